"""A loss from the network that is sampled: the outputs of its own blocks when it sees an image again.

The network that is sampled has seen such images, and needs no classifier of them.  An image goes back into it with a
small noise level; the outputs of its blocks, averaged over each quarter of the image, are compared.  Perceptual losses
do so with classifiers (Johnson et al. 2016, Zhang et al. 2018).  Never measure with the network that a fit used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.denoisers import Denoiser
from dode.denoisers.networks import is_compiled
from dode.distillation.designer import bottleneck
from dode.utils.files import one_of

Blocks = Literal["all", "middle", "output"]


class _Enough(Exception):
    """All blocks that are read have answered."""


def blocks_of(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks of a network by their names: its outermost modules that have parts of their own, within its lists.

    Where one of them is the whole network (a wrapper), its blocks; where there are none, the layers with weights.
    """

    def within(module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList | nn.ModuleDict | nn.Sequential):
                yield from within(child, f"{prefix}{name}.")
            elif next(child.children(), None) is not None:
                yield f"{prefix}{name}", child

    size = lambda module: sum(p.numel() for p in module.parameters())  # noqa: E731
    found = dict(within(network, ""))
    for name, module in found.items():
        if size(module) > 0.9 * size(network):
            inner = blocks_of(module)
            return {f"{name}.{k}": v for k, v in inner.items()} or found
    layers = {k: m for k, m in network.named_modules() if k and not [*m.children()] and [*m.parameters()]}
    return found or layers


def maps(output: Any, images: int) -> list[Tensor]:
    """The maps ``(B, C, ...)`` or tokens ``(B, T, C)`` in what a block returns; none in an embedding ``(B, C)``.

    Guidance may have each image several times in a batch; then there are as many.
    """
    parts = output if isinstance(output, tuple | list) else [output]
    found = [t for t in parts if isinstance(t, Tensor) and t.ndim > 2 and t.is_floating_point()]
    return [part for t in found if len(t) and len(t) % images == 0 for part in t.split(images)]


def averaged(found: Tensor, mesh: int) -> Tensor:
    """Each channel's mean in ``mesh x mesh`` parts of the image, ``(B, C mesh^2)`` float32; of tokens, in as many."""
    found = found.float()
    if found.ndim == 4:
        return F.adaptive_avg_pool2d(found, mesh).flatten(1)
    flat = found.transpose(1, 2) if found.ndim == 3 else found.flatten(2)
    return F.adaptive_avg_pool1d(flat, mesh**2).flatten(1)


@dataclass(frozen=True, eq=False)
class OwnFeatures:
    """A residual ``(B, ...)`` to ``(B, R)``, made by :func:`own_features`; a mean over its numbers is one."""

    denoiser: Denoiser
    blocks: tuple[str, ...]  # modules of its network whose outputs are read; none: the denoised image itself
    levels: tuple[float, ...]
    mesh: int
    noise: Tensor  # (draws, *shape), added to every image
    spreads: Tensor | None = None  # of each number's channel, over the images of a teacher and their pixels

    @property
    def evaluations(self) -> int:
        """Network evaluations for each image."""
        return len(self.levels) * max(1, len(self.noise))

    @torch.no_grad()
    def bound(self, denoiser: Denoiser, images: Tensor | None = None) -> OwnFeatures:
        """With the conditions of ``denoiser``; if ``images`` are given, a channel's unit is its spread over them.

        That is the standard deviation over all images and all of their pixels, or tokens.
        """
        same = replace(self, denoiser=denoiser)
        if images is None:
            return same
        pieces = torch.arange(len(images)).split(100)
        each = [replace(same, denoiser=denoiser.of(piece))._raw(images[piece], (1, 2)) for piece in pieces]
        mean, square = torch.cat(each, dim=1).double().mean(1)
        spread = (square - mean**2).clamp(min=0).sqrt().float()
        return replace(same, spreads=spread.clamp(min=1e-3 * float(spread.mean())))

    def __call__(self, images: Tensor) -> Tensor:
        if self.spreads is None:
            raise ValueError("own features are compared in units of their spread; bound(denoiser, images) measures it")
        found = self._raw(images)[0] / self.spreads.to(images.device)
        return (found / found.shape[1] ** 0.5).to(images.dtype)

    def _raw(self, images: Tensor, powers: Sequence[int] = (1,)) -> Tensor:
        """The averages of these powers of all maps, ``(powers, B, R)``."""
        noises = self.noise.to(images) if len(self.noise) else [torch.zeros_like(images[0])]
        every = [(images + level * z, level) for level in self.levels for z in noises]
        seen = [found for x, level in every for found in self._maps(x, level)]
        reduce = (lambda found: averaged(found, self.mesh)) if self.blocks else (lambda found: found.flatten(1))
        return torch.stack([torch.cat([reduce(found.float() ** k) for found in seen], dim=1) for k in powers])

    def _maps(self, x: Tensor, level: float) -> list[Tensor]:
        if not self.blocks:
            return [self.denoiser(x, level)]
        network: Any = self.denoiser.network  # type: ignore[attr-defined]
        with _reading({name: network.get_submodule(name) for name in self.blocks}, len(x)) as seen:
            self.denoiser.affine(x, level)
        return [found for block in seen.values() for found in block]


@contextmanager
def _reading(modules: Mapping[str, nn.Module], images: int) -> Iterator[dict[str, list[Tensor]]]:
    """The maps that come out of each of ``modules``; the network is left as soon as all have answered."""
    seen = dict[str, list[Tensor]]()

    def look(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        seen.setdefault(name, []).extend(maps(output, images))
        if len(seen) == len(modules):
            raise _Enough

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(partial(look, name)).remove)
        with suppress(_Enough):
            yield seen


def own_features(
    denoiser: Denoiser, *, levels: Sequence[float] = (0.3,), blocks: Blocks | Sequence[str] = "all",
    mesh: int = 2, draws: int = 0, seed: int = 0,
) -> OwnFeatures:  # fmt: skip
    """What the blocks of the denoiser's own network make of an image, as a loss for a fit.

    Gradients pass.  A fit measures the spread of each number over the images of its teacher
    (:meth:`OwnFeatures.bound`).  Each level is one network evaluation an image, counted with the denoiser's; it ends
    after the last block that is read.

    Parameters
    ----------
    levels
        The noise levels at which an image is put back; more cost more, and leave a fit's budget fewer images.
    blocks
        "all" (:func:`blocks_of`), "middle", "output" (the denoised image in place of features, as for a denoiser that
        is no network), or names of modules.
    mesh
        Each channel is averaged over ``mesh x mesh`` parts of the image.
    draws, seed
        How many noises are added, the same to all images; 0: none, and the network sees the image as it is.

    ValueError for a name that the network does not have, blocks of what is no network, or a compiled network, which
    calls no hook.
    """
    if isinstance(blocks, str):
        one_of("blocks", blocks, Blocks)
    network = getattr(denoiser, "network", None)
    if not isinstance(network, nn.Module) and blocks not in ("all", "output"):
        raise ValueError(f"{type(denoiser).__name__} has no network whose blocks could be read; take blocks='output'")
    noise = torch.randn(draws, *denoiser.shape, generator=torch.Generator().manual_seed(seed))
    names: list[str] = []
    if isinstance(network, nn.Module) and blocks != "output":
        if is_compiled(network):
            raise ValueError("a compiled network has no blocks to read; give the network as it was, or blocks='output'")
        every = dict(network.named_modules())
        if blocks == "middle":
            middle = bottleneck(denoiser)
            names = [name for name, module in every.items() if module is middle]
        else:
            names = list(blocks_of(network)) if isinstance(blocks, str) else list(blocks)
        if unknown := [name for name in names if name not in every]:
            known = ", ".join(blocks_of(network))
            raise ValueError(f"{type(network).__name__} has no module {unknown[0]!r}; its blocks: {known}")
        answering = _answering(denoiser, {name: every[name] for name in names})
        if names and not answering:
            raise ValueError(
                f"no block of {type(network).__name__} returns a map; name others, or take blocks='output'"
            )
        names = answering
    return OwnFeatures(denoiser, tuple(names), tuple(levels), mesh, noise)


@torch.no_grad()
def _answering(denoiser: Denoiser, modules: Mapping[str, nn.Module]) -> list[str]:
    """Those of ``modules`` that return a map when the network runs, found by one call on two images (not counted)."""
    two = copy.copy(denoiser.of(range(2)))
    two._count = dict(nfe=0, evaluations=0)
    with _reading(modules, 2) as seen:
        two(torch.zeros(2, *denoiser.shape, device=denoiser.device), torch.tensor(1.0))
    return [name for name, found in seen.items() if found]
