"""What the U-Nets are made of, with the options (:class:`Style`) by which the published ones differ.

Where they differ only in how their numbers are stored (:mod:`dode.zoo.keys`), nothing here knows of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_count(channels: int, size: int = 16) -> int:
    """Groups for a group norm: as near to ``size`` channels each as divides ``channels``."""
    return max(g for g in range(1, max(1, channels // size) + 1) if channels % g == 0)


@dataclass(frozen=True, kw_only=True)
class Style:
    """How a U-Net of this form is built; the defaults are those of the networks that dode trains."""

    features: int = 0  # sinusoids of the noise label, 0: twice the first width;
    embedding: int = 0  # channels of the embedding, 0: four times,
    stem: int = 0  # and of the first convolution, 0: as many
    # Of the sinusoids from 1 down to 1/10,000, the last left out or not (Ho et al. 2020); or random and in the file.
    frequencies: Literal["open", "closed", "stored"] = "open"
    classes_first: bool = False  # the classes' embedding is added to the sinusoids, not to the noise's embedding
    adaptive: bool = True  # the embedding scales and shifts each second norm (ADM), or is added before it (DDPM)
    weight: float = 1.0  # of the sums with a skip: sqrt(1/2) keeps their variance (Song et al. 2021)
    # Between resolutions: a convolution, one that pads below and on the right only when it halves, a residual block.
    resampling: Literal["convolution", "padded", "block"] = "convolution"
    taps: Sequence[float] = (1, 1)  # of such a block's filter: (1, 1) averages and repeats, (1, 3, 3, 1) is NCSN++'s
    project: bool = False  # such a block has a 1x1 convolution in its skip
    # The noisy image is halved along and added at each resolution: convolved as it goes (NCSN++), or when it is added.
    pyramid: Literal["", "residual", "skip"] = ""
    sides: Sequence[int] = ()  # of the maps that get attention after each block; the middle always does
    last_only: bool = False  # going up, only after the last block of a resolution
    head_width: int = 0  # channels of an attention head; 0 for a fixed number of heads
    context: int = 0  # channels of the class's token; with it, attention is a :class:`Transformer`'s
    groups: Callable[[int], int] = group_count  # of a group norm of so many channels,
    eps: float = 1e-5  # and the constant under its root

    def norm(self, channels: int) -> nn.GroupNorm:
        return nn.GroupNorm(self.groups(channels), channels, eps=self.eps)

    def sum(self, skip: Tensor, found: Tensor) -> Tensor:
        return skip + found if self.weight == 1 else self.weight * (skip + found)


OURS = Style()


def zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start at zero, so that a fresh block changes nothing and a fresh network predicts nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class NoiseEmbedding(nn.Module):
    """Sinusoids ``(B, features)`` of a ``(B,)`` noise label, then (:attr:`mlp`) two linear layers: ``(B, width)``."""

    frequencies: Tensor  # float32 whatever the network's dtype: labels go up to 1000

    def __init__(self, width: int, features: int, scale: float, kind: str) -> None:
        super().__init__()
        self.scale, self.kind = scale, kind
        self.register_buffer("frequencies", torch.zeros(features // 2), persistent=kind == "stored")
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))
        self.fill()

    def fill(self) -> None:
        """Compute what a state dictionary does not hold."""
        if self.kind != "stored":
            half = len(self.frequencies)
            last = half - 1 if self.kind == "closed" else half
            self.frequencies = self.scale * torch.exp(-math.log(10_000.0) * torch.arange(half) / last)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoiseEmbedding:
        exact = self.frequencies
        super()._apply(fn, recurse)
        self.frequencies = exact.to(self.frequencies.device)
        return self

    def forward(self, label: Tensor) -> Tensor:
        angles = label[:, None] * self.frequencies.to(label.dtype)
        return torch.cat([angles.cos(), angles.sin()], dim=1).to(next(self.mlp.parameters()).dtype)


class Resample(nn.Module):
    """An image doubled or halved with a fixed separable filter; by default the filter pads, so that it fits."""

    filter: Tensor

    def __init__(self, taps: Sequence[float], up: bool, pad: bool = True) -> None:
        super().__init__()
        self.up, self.taps, self.edge = up, tuple(taps), (len(taps) - 1) // 2 if pad else 0
        self.register_buffer("filter", None, persistent=False)
        self.fill()

    def fill(self) -> None:
        """Compute what a state dictionary does not hold."""
        row = torch.tensor(self.taps, dtype=torch.float32)
        self.filter = torch.outer(row, row)[None, None] / row.sum() ** 2

    def forward(self, x: Tensor) -> Tensor:
        if self.taps == (1, 1):
            return F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.avg_pool2d(x, 2)
        channels = x.shape[1]
        taps = self.filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.up:  # energy 4, spread over four new pixels
            return F.conv_transpose2d(x, 4 * taps, groups=channels, stride=2, padding=self.edge)
        return F.conv2d(x, taps, groups=channels, stride=2, padding=self.edge)


def attend(qkv: Tensor, heads: int) -> Tensor:
    """``(B, 3 C, ...)`` queries, keys and values of ``heads`` heads to ``(B, C, pixels)``: attention over pixels."""
    b, channels = qkv.shape[0], qkv.shape[1] // 3
    parts = qkv.reshape(b, 3, heads, channels // heads, math.prod(qkv.shape[2:]))
    q, k, v = parts.transpose(-1, -2).unbind(1)
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(b, channels, -1)


class Attention(nn.Module):
    """Self-attention over the pixels of a map, residual."""

    def __init__(self, channels: int, heads: int, style: Style) -> None:
        super().__init__()
        self.heads, self.style = heads, style
        self.norm = style.norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.style.sum(x, self.out(attend(self.qkv(self.norm(x)), self.heads).reshape(x.shape)))


class Transformer(nn.Module):
    """Self-attention over pixels, cross-attention to the class, a gated layer, residual (Rombach et al. 2022).

    The class is one token.  The only weight that a softmax gives is 1, whatever query and key, so what
    cross-attention finds is the value of that token, at each pixel.
    """

    def __init__(self, channels: int, heads: int, style: Style) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(style.groups(channels), channels, eps=1e-6)
        self.norm_mix, self.norm_widen = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.enter, self.out = nn.Linear(channels, channels), nn.Linear(channels, channels)
        self.qkv, self.mix = nn.Linear(channels, 3 * channels, bias=False), nn.Linear(channels, channels)
        self.value, self.place = nn.Linear(style.context, channels, bias=False), nn.Linear(channels, channels)
        self.widen, self.narrow = nn.Linear(channels, 8 * channels), nn.Linear(4 * channels, channels)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.enter(self.norm(x).flatten(2).mT)
        h = h + self.mix(attend(self.qkv(self.norm_mix(h)).mT, self.heads).mT)
        h = h + self.place(self.value(embedding[:, -self.value.in_features :]))[:, None]
        wide, gate = self.widen(self.norm_widen(h)).chunk(2, dim=2)
        h = h + self.narrow(wide * F.gelu(gate))
        return x + self.out(h).mT.reshape(x.shape)


def attention(channels: int, heads: int, style: Style) -> Attention | Transformer:
    """What follows a residual block, with the embedding that the block sees."""
    return (Transformer if style.context else Attention)(channels, heads, style)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution twice, residual, conditioned on the noise level in between; then, perhaps, attention.

    The embedding is ``(B, width)``, followed by the class's token if the style has one.
    """

    def __init__(
        self, c_in: int, c_out: int, width: int, style: Style, resample: Resample | None = None, heads: int = 0
    ) -> None:
        super().__init__()
        self.style = style
        self.norm1 = style.norm(c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(width, 2 * c_out if style.adaptive else c_out)
        self.norm2 = style.norm(c_out)
        self.conv2 = zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        project = c_in != c_out or (resample is not None and style.project)
        self.skip = nn.Conv2d(c_in, c_out, 1) if project else nn.Identity()
        self.resample = resample or nn.Identity()
        self.attention = attention(c_out, heads, style) if heads else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h, x = self.resample(F.silu(self.norm1(x))), self.resample(x)
        h, modulation = self.conv1(h), self.affine(embedding[:, : self.affine.in_features])[:, :, None, None]
        if self.style.adaptive:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        else:
            h = self.norm2(h + modulation)
        x = self.style.sum(self.skip(x), self.conv2(F.silu(h)))
        return x if self.attention is None else self.attention(x, embedding)
