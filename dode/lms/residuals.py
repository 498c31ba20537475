"""What a fit may compare of two images: pixels, features of a network, or both.

A residual maps images ``(B, C, H, W)`` in -1..1 to ``(B, R)``; the squared distance of two of them is the error.
All here are smooth, so they serve Gauss-Newton and gradient descent alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Residual = Callable[[Tensor], Tensor]


def pixels(images: Tensor) -> Tensor:
    """``(B, ...)`` to ``(B, C H W)``, scaled so that the error is a mean over pixels."""
    return images.flatten(1) / images[0].numel() ** 0.5


def features(network: nn.Module, scale: float = 1.0) -> Residual:
    """The features of a classifier of :mod:`dode.networks`, each weighed by ``scale``.

    ``network.features`` takes grey values of 0..255, which are not rounded here: a fit wants slopes.  Never measure
    with the network that a fit has seen: it would find what that network cannot tell apart.
    """
    return lambda images: network.features(images.float() * 127.5 + 127.5) * scale  # type: ignore[operator]


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


def seen(residual: Residual) -> Residual:
    """``residual`` of the image that a file would hold: clipped to -1..1, as whoever measures will see it.

    A few steps leave black at -1.1 as easily as at -0.9.  Only the second can be seen, and a fit that is to undo both
    spends its few numbers on what nobody looks at.  Not for latents, which no file clips.
    """
    return lambda images: residual(images.clamp(-1, 1))


def stack(*weighted: tuple[float, Residual]) -> Residual:
    """Several residuals side by side, so that the error is the sum of ``weight * error``."""
    return lambda images: torch.cat([r(images).to(images.dtype) * weight**0.5 for weight, r in weighted], dim=1)
