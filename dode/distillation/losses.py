"""What a fit may compare of two images: pixels, features of a network, or both.

A residual maps samples ``(B, C, H, W)`` to ``(B, R)``; the squared distance of two of them is the error.
All here are smooth, so they serve Gauss-Newton and gradient descent alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.denoisers import PICTURES, Images

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


def clipped(residual: Residual, kind: Images = PICTURES) -> Residual:
    """``residual`` of the image that a file would hold (``kind``: the model's ``images``), as evaluation clips it.

    A few steps leave black at -1.1 as easily as at -0.9.  Only the second changes the file; a fit to both spends its
    few numbers on values that no file can hold.  Not for latents, which no file clips.
    """
    return lambda images: residual(kind.clip(images))


def stack(*weighted: tuple[float, Residual]) -> Residual:
    """Several residuals side by side, so that the error is the sum of ``weight * error``."""
    return lambda images: torch.cat([r(images).to(images.dtype) * weight**0.5 for weight, r in weighted], dim=1)


OURS = dict(pixels=0.1, averaged=0.5, critic=0.5, observer=1.0)
# What the errors of pixels, of features and of random ones (on a mesh, or averaged over the image) count in a fit.
LOSSES: dict[str, dict[str, float]] = {
    "all": dict(pixels=0.1, random=3.0, critic=1.0), "seen": OURS, "raw": OURS, "pixels": dict(pixels=1.0),
    "random": dict(pixels=0.1, random=3.0), "averaged": dict(pixels=0.1, averaged=1.0),
    **{word: {"pixels": 0.1, word: 1.0} for word in ("critic", "observer", "judge")},
}  # fmt: skip


def named_loss(
    kind: str, channels: int, trained: Callable[[str], Residual] | None, images: Images = PICTURES
) -> Residual:
    """One of :data:`LOSSES` for ``images`` of so many ``channels``.

    "all" is what every method but Gauss-Newton compares.  "seen" is what that does: clipped images (:func:`clipped`)
    in more features; "raw" is the same of images as they are, "seen-KIND" another mix of clipped ones.  "judge",
    the features that measure, no honest fit may use: it shows what the others miss.

    ``trained`` goes from "critic", "observer" or "judge" to the features of that classifier; None, where none knows the
    images: pixels and random features are what is left of a mix.  ValueError for another mix, or one of a classifier's
    features alone where there is none.
    """
    if kind.startswith("seen-"):
        return clipped(named_loss(kind.removeprefix("seen-"), channels, trained), images)
    if kind not in LOSSES:
        raise ValueError(f"no residual named {kind!r}; there are {', '.join(LOSSES)}, and seen-KIND")
    if trained is None and kind in ("critic", "observer", "judge"):
        raise ValueError(f"no {kind} knows these images; take the residual pixels, random or all")
    terms = list[tuple[float, Residual]]()
    for word, weight in LOSSES[kind].items():
        if word == "pixels":
            terms.append((weight, pixels))
        elif word in ("random", "averaged"):
            terms.append((weight, random_features(channels, mesh=4 if word == "random" else 1)))
        elif trained:
            terms.append((weight, trained(word)))
    return clipped(stack(*terms), images) if kind == "seen" else stack(*terms)
