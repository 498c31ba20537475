"""What a fit may compare of two images: pixels, features of a network, or both.

A residual maps images ``(B, C, H, W)`` in -1..1 to ``(B, R)``; the squared distance of two of them is the error.
All here are smooth, so they serve Gauss-Newton and gradient descent alike.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

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


def stack(*weighted: tuple[float, Residual]) -> Residual:
    """Several residuals side by side, so that the error is the sum of ``weight * error``."""
    return lambda images: torch.cat([r(images).to(images.dtype) * weight**0.5 for weight, r in weighted], dim=1)
