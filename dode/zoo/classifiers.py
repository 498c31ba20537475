"""Classifiers that ship with dode: one measures (:class:`Classifier`), the features of the others may enter fits.

Each takes pixel values 0..255, uint8 or float ``(B, channels, H, W)``, in any range, neither rounded nor clipped.
``forward`` gives logits ``(B, classes)``; ``features`` gives ``(B, F)``, an image's from that image alone.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo.blocks import group_count


class _Averaging(nn.Module):
    """A classifier by the mean over pixels of what its convolutions (:attr:`body`) find."""

    def __init__(self, channels: int, classes: int, width: int, features: int, body: list[nn.Module]) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(channels=channels, classes=classes, width=width, features=features)
        self.body, self.head = nn.Sequential(*body), nn.Linear(features, classes)

    def features(self, x: Tensor) -> Tensor:
        return self.body(x.float() / 127.5 - 1).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def _stage(
    c_in: int, c_out: int, side: int = 3, stride: int = 1, activation: type[nn.Module] = nn.SiLU
) -> list[nn.Module]:
    return [nn.Conv2d(c_in, c_out, side, stride, side // 2, bias=False), nn.BatchNorm2d(c_out), activation()]


class Classifier(_Averaging):
    """A small convolutional classifier; its features, before the last layer, stand in for Inception's offline."""

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 24, features: int = 64) -> None:
        body = [
            *_stage(channels, width), *_stage(width, 2 * width, stride=2), *_stage(2 * width, 2 * width),
            *_stage(2 * width, 4 * width, stride=2), *_stage(4 * width, features),
        ]  # fmt: skip
        super().__init__(channels, classes, width, features, body)


class CriticBlock(nn.Module):
    """Norm, GELU, convolution twice, residual: ``(B, c_in, H, W)`` to ``(B, c_out, H, W)``."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(group_count(c_in, 8), c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(group_count(c_out, 8), c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.gelu(self.norm1(x)))
        return self.skip(x) + self.conv2(F.gelu(self.norm2(h)))


class Critic(nn.Module):
    """A second classifier, unlike :class:`Classifier`: its features may enter a fit, the other's measure the result.

    :meth:`features` is smooth in the pixels.  ``stem`` is the channels of the 5 x 5 convolution at full resolution,
    whose maps average pooling halves; ``widths`` those of the residual blocks at half and at a quarter of it.
    """

    def __init__(
        self, channels: int = 1, classes: int = 10, stem: int = 16, widths: tuple[int, int] = (24, 72)
    ) -> None:
        super().__init__()
        fine, coarse = widths
        self.config: dict[str, Any] = dict(channels=channels, classes=classes, stem=stem, widths=[fine, coarse])
        self.stem = nn.Conv2d(channels, stem, 5, padding=2)
        self.fine, self.coarse = CriticBlock(stem, fine), CriticBlock(fine, coarse)
        self.norm, self.head = nn.LayerNorm(fine + coarse), nn.Linear(fine + coarse, classes)

    def features(self, x: Tensor) -> Tensor:
        """``(B, sum(widths))``: the activations of both resolutions, averaged over pixels.

        Before the last norm, which speeds training up but would hide how strong the activations are.
        """
        x = x.to(self.head.weight.dtype) / 127.5 - 1
        fine = self.fine(F.avg_pool2d(F.gelu(self.stem(x)), 2))
        coarse = self.coarse(F.avg_pool2d(fine, 2))
        return torch.cat([F.gelu(h).mean(dim=(2, 3)) for h in (fine, coarse)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.features(x)))


class Observer(_Averaging):
    """A third classifier, unlike both others: its features may enter fits beside the critic's.

    Two convolutions at full resolution, where the critic averages at once: it sees grain and edges that few-step
    solvers get wrong.  :meth:`features` has kinks, so it serves fits by differences better than fits by gradient.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 20, features: int = 80) -> None:
        stage = partial(_stage, activation=nn.ReLU)
        body = [
            *stage(channels, width), *stage(width, width), nn.MaxPool2d(2), *stage(width, 2 * width), nn.MaxPool2d(2),
            *stage(2 * width, 4 * width), *stage(4 * width, features, 1),
        ]  # fmt: skip
        super().__init__(channels, classes, width, features, body)


class PatchTransformer(nn.Module):
    """A vision transformer of small patches (Dosovitskiy et al. 2021); it only measures.

    No fit, no choice of a grid or a setting uses it, and it has no convolution over the image in common with the
    others.  ``size`` is the side of the images, a multiple of ``patch``.
    """

    def __init__(
        self, channels: int = 1, classes: int = 10, size: int = 28, patch: int = 4, width: int = 64, layers: int = 4
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(
            channels=channels, classes=classes, size=size, patch=patch, width=width, layers=layers
        )
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.places = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, classes)

    def features(self, x: Tensor) -> Tensor:
        """``(B, 2 width)``: the mean tokens after the middle and the last layer."""
        x = self.patches(x.to(self.head.weight.dtype) / 127.5 - 1).flatten(2).transpose(1, 2) + self.places
        seen = list[Tensor]()
        for layer in self.layers:
            x = layer(x)
            seen.append(x.mean(1))
        return torch.cat([seen[len(seen) // 2 - 1], seen[-1]], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.features(x)))
