"""What a fit may compare of two images: pixels, features of a network, or both.

A residual maps samples ``(B, C, H, W)`` to ``(B, R)``; the squared distance of two of them is the error.
All here are smooth, so they serve Gauss-Newton and gradient descent alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.denoisers import PICTURES, Denoiser, Images
from dode.distillation.own_features import own_features

Residual = Callable[[Tensor], Tensor]


def pixels(images: Tensor) -> Tensor:
    """``(B, ...)`` to ``(B, C H W)``, scaled so that the error is a mean over pixels."""
    return images.flatten(1) / images[0].numel() ** 0.5


def features(network: nn.Module, scale: float = 1.0, kind: Images = PICTURES) -> Residual:
    """The features of a classifier of :mod:`dode.zoo.classifiers`, each weighed by ``scale``.

    ``network.features`` takes the pixel values 0..255 of a model's samples (``kind``: its ``images``), which are not
    rounded here: a fit wants slopes.  Never measure with the network that a fit used: it would find what that network
    cannot tell apart.
    """
    return lambda images: network.features(kind.pixel_values(images)) * scale  # type: ignore[operator]


def random_features(channels: int, seed: int = 0, mesh: int = 4) -> Residual:
    """Three convolutions with random weights, each averaged over a square mesh: to ``(B, 160 mesh^2)``.

    Nobody trained them, so nothing is hidden from them on purpose: they see blur and contrast that a classifier may
    have learned to overlook.
    """
    generator, c, weights = torch.Generator().manual_seed(seed), channels, list[Tensor]()
    for width, side in ((32, 5), (64, 3), (64, 3)):
        weights.append(2 * torch.randn(width, c, side, side, generator=generator) / (c * side**2) ** 0.5)
        c = width

    def residual(images: Tensor) -> Tensor:
        x, seen = images.float(), list[Tensor]()
        for k, weight in enumerate(weights):
            x = F.gelu(F.conv2d(F.avg_pool2d(x, 2) if k else x, weight.to(x), padding="same"))
            seen.append(F.adaptive_avg_pool2d(x, mesh).flatten(1) / (mesh * len(weight) ** 0.5))
        return torch.cat(seen, dim=1)

    return residual


@dataclass(frozen=True)
class Mix:
    """Several residuals side by side, so that the error is the sum of ``weight * error``."""

    terms: tuple[tuple[float, Residual], ...]
    images: Images | None = None  # whose range images are clipped to first; None: they are not

    def __call__(self, images: Tensor) -> Tensor:
        images = images if self.images is None else self.images.clip(images)
        return torch.cat([r(images).to(images.dtype) * weight**0.5 for weight, r in self.terms], dim=1)

    def bound(self, denoiser: Denoiser, images: Tensor | None = None) -> Mix:
        """Each residual that depends on the denoiser (:class:`.OwnFeatures`) with this one; ``images``: a teacher's."""
        seen = images if images is None or self.images is None else self.images.clip(images)
        return replace(self, terms=tuple((weight, bound(r, denoiser, seen)) for weight, r in self.terms))


def bound(residual: Residual, denoiser: Denoiser, images: Tensor | None = None) -> Residual:
    """``residual`` for the images of ``denoiser``: with its conditions, and in units of the spread of ``images``."""
    make = getattr(residual, "bound", None)
    return residual if make is None else make(denoiser, images)


def evaluations(residual: Residual) -> int:
    """Network evaluations that a residual takes for each image."""
    if isinstance(residual, Mix):
        return sum(evaluations(r) for _, r in residual.terms)
    return int(getattr(residual, "evaluations", 0))


def clipped(residual: Residual, kind: Images = PICTURES) -> Residual:
    """``residual`` of the image that a file would hold (``kind``: the model's ``images``), as evaluation clips it.

    A few steps leave black at -1.1 as easily as at -0.9.  Only the second changes the file; a fit to both spends its
    few numbers on values that no file can hold.  Not for latents, which no file clips.
    """
    return Mix(((1.0, residual),), kind)


def stack(*weighted: tuple[float, Residual]) -> Residual:
    """Several residuals side by side, so that the error is the sum of ``weight * error``."""
    return Mix(weighted)


OURS = dict(pixels=0.1, averaged=0.5, critic=0.5, observer=1.0)
# What the errors of pixels, of features and of random ones (on a mesh, or averaged over the image) count in a fit.
LOSSES: dict[str, dict[str, float]] = {
    "all": dict(pixels=0.1, random=3.0, critic=1.0), "seen": OURS, "raw": OURS, "pixels": dict(pixels=1.0),
    "random": dict(pixels=0.1, random=3.0), "averaged": dict(pixels=0.1, averaged=1.0),
    "own-random": dict(pixels=0.1, own=1.0, averaged=0.5),
    **{word: {"pixels": 0.1, word: 1.0} for word in ("critic", "observer", "judge", "own")},
}  # fmt: skip
# Ways to read the network's own blocks (:func:`own_features`), besides the usual one, "own".
OWN: dict[str, dict[str, Any]] = {
    "own-levels": dict(levels=(0.1, 0.5, 2.0)), "own-noise": dict(draws=1), "own-noises": dict(draws=3),
    "own-middle": dict(blocks="middle"), "own-output": dict(blocks="output"), "own-mean": dict(mesh=1),
    "own-mesh": dict(mesh=4),
}  # fmt: skip


def named_loss(kind: str, model: Denoiser, trained: Callable[[str], Residual] | None = None) -> Residual:
    """One of :data:`LOSSES` for the images of ``model``.

    "own": clipped images (:func:`clipped`) in the features of the model's own network; it needs nothing else.  "all"
    is what every method but Gauss-Newton compares.  "seen" is of clipped images in more features; "raw" is the same of
    images as they are, "seen-KIND" another mix of clipped ones.  "judge", the features that measure, no honest fit may
    use: it shows what the others miss.  :data:`OWN` has variants of "own".

    ``trained`` goes from "critic", "observer" or "judge" to the features of that classifier; None, where none knows the
    images: pixels and random features are what is left of a mix.  ValueError for another mix, or one of a classifier's
    features alone where there is none.
    """
    if kind.startswith("seen-"):
        return clipped(named_loss(kind.removeprefix("seen-"), model, trained), model.images)
    name = "own" if kind in OWN else kind
    if name not in LOSSES:
        raise ValueError(f"no residual named {kind!r}; there are {', '.join([*LOSSES, *OWN])}, and seen-KIND")
    if trained is None and kind in ("critic", "observer", "judge"):
        raise ValueError(f"no {kind} knows these images; take the residual own, pixels, random or all")
    terms = list[tuple[float, Residual]]()
    for word, weight in LOSSES[name].items():
        if word == "pixels":
            terms.append((weight, pixels))
        elif word == "own":
            terms.append((weight, own_features(model, **OWN.get(kind, {}))))
        elif word in ("random", "averaged"):
            terms.append((weight, random_features(model.shape[0], mesh=4 if word == "random" else 1)))
        elif trained:
            terms.append((weight, trained(word)))
    return Mix(tuple(terms), model.images if "own" in LOSSES[name] or name == "seen" else None)
