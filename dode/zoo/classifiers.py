"""Classifiers that ship with dode: one measures (:class:`Classifier`), the features of the others may enter fits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo.blocks import group_count


class _Averaging(nn.Module):
    """A classifier by the mean over pixels of what its convolutions (:attr:`body`) find."""

    body: nn.Module
    head: nn.Linear

    def features(self, x: Tensor) -> Tensor:
        return self.body(x.float() / 127.5 - 1).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


class Classifier(_Averaging):
    """A small convolutional classifier; its features stand in for Inception's offline.

    Takes pixel values 0..255 (uint8 or float, ``(B, channels, H, W)``); :meth:`features` gives the
    ``(B, features)`` activations before the last layer.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 24, features: int = 64) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(channels=channels, classes=classes, width=width, features=features)

        def stage(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.SiLU()]

        self.body = nn.Sequential(
            *stage(channels, width, 1), *stage(width, 2 * width, 2), *stage(2 * width, 2 * width, 1),
            *stage(2 * width, 4 * width, 2), *stage(4 * width, features, 1),
        )  # fmt: skip
        self.head = nn.Linear(features, classes)


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

    Takes pixel values 0..255 (uint8 or float, ``(B, channels, H, W)``) in any range, neither
    rounded nor clipped: :meth:`features` is smooth in them, and an image's features depend on that image alone.
    :meth:`forward` gives logits ``(B, classes)``.

    Parameters
    ----------
    stem
        Channels of the 5 x 5 convolution at full resolution; average pooling halves its maps.
    widths
        Channels of the residual blocks at half and at a quarter of the resolution; their sum is the
        number of features.
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
    solvers get wrong.  Takes and gives what :class:`Critic` does; :meth:`features` ``(B, features)`` has kinks, so it
    serves fits by differences better than fits by gradient.
    """

    def __init__(self, channels: int = 1, classes: int = 10, width: int = 20, features: int = 80) -> None:
        super().__init__()
        self.config: dict[str, Any] = dict(channels=channels, classes=classes, width=width, features=features)

        def stage(c_in: int, c_out: int, side: int = 3) -> list[nn.Module]:
            return [nn.Conv2d(c_in, c_out, side, padding=side // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]

        self.body = nn.Sequential(
            *stage(channels, width), *stage(width, width), nn.MaxPool2d(2), *stage(width, 2 * width), nn.MaxPool2d(2),
            *stage(2 * width, 4 * width), *stage(4 * width, features, 1),
        )  # fmt: skip
        self.head = nn.Linear(features, classes)
