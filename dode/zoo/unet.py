"""The U-Net of the shipped denoisers.

It follows the recipe of EDM (Karras et al. 2022, appendix F.2): residual blocks conditioned
on the noise level by a scale and shift, attention at the coarsest resolution, last layers that
start at zero.  Two choices make it fit two CPU cores: the image enters *pixel-unshuffled* (a 2x2
patch becomes four channels, so the widest maps are a quarter of the size), and the widths grow by
three where the area shrinks by four, which spends the same arithmetic on each level.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_count(channels: int, size: int = 16) -> int:
    """Groups for a group norm: as near to ``size`` channels each as divides ``channels``."""
    return max(g for g in range(1, max(1, channels // size) + 1) if channels % g == 0)


def _zero(layer: nn.Conv2d) -> nn.Conv2d:
    """Start at zero, so that a fresh block changes nothing and a fresh network predicts nothing."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class NoiseEmbedding(nn.Module):
    """Sinusoidal features of a scalar noise label, then two linear layers: (B,) -> (B, width)."""

    frequencies: Tensor

    def __init__(self, width: int, features: int, scale: float) -> None:
        super().__init__()
        half = features // 2
        frequencies = torch.exp(-math.log(10_000.0) * torch.arange(half) / half)
        self.register_buffer("frequencies", scale * frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, label: Tensor) -> Tensor:
        angles = label[:, None] * self.frequencies.to(label.dtype)
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=1).to(next(self.mlp.parameters()).dtype))


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution twice; the noise level scales and shifts the second norm."""

    def __init__(self, c_in: int, c_out: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(group_count(c_in), c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.affine = nn.Linear(width, 2 * c_out)
        self.norm2 = nn.GroupNorm(group_count(c_out), c_out)
        self.conv2 = _zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        self.skip = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        scale, shift = self.affine(embedding)[:, :, None, None].chunk(2, dim=1)
        h = self.conv2(F.silu(torch.addcmul(shift, self.norm2(h), 1 + scale)))
        return self.skip(x) + h


class Attention(nn.Module):
    """Self-attention over the pixels of the coarsest map, residual."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(group_count(channels), channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = _zero(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(b, 3, self.heads, c // self.heads, height * width)
        q, k, v = qkv.transpose(-1, -2).unbind(1)
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)
        return x + self.out(h.reshape(b, c, height, width))


class UNet(nn.Module):
    """``(B, C, H, W)`` images and ``(B,)`` noise labels to ``(B, C, H, W)``.

    Parameters
    ----------
    channels, size
        Of the images; ``size`` must be divisible by ``patch``.  Odd maps halve upwards (7 -> 4).
    patch
        Side of the pixel-unshuffle stem.
    widths
        Channels of each resolution, finest first.
    blocks
        Residual blocks per resolution on the way down (one more on the way up).
    label_scale
        Multiplies the noise label before the sinusoids: 1 for labels 0..1000, 1000 for ln(sigma)/4.
    classes
        Kinds of images; an embedding of each, and one of "any" (label ``classes``), is added to that of the noise.
    """

    def __init__(
        self,
        channels: int = 1,
        size: int = 28,
        patch: int = 2,
        widths: tuple[int, ...] = (48, 144),
        blocks: int = 1,
        heads: int = 4,
        label_scale: float = 1.0,
        classes: int = 0,
    ) -> None:
        super().__init__()
        widths, self.classes = tuple(widths), classes
        if size % patch:
            raise ValueError(f"image size {size} is not divisible by the patch of {patch}; pad the images or change it")
        self.config: dict[str, Any] = dict(
            channels=channels, size=size, patch=patch, widths=list(widths), blocks=blocks,
            heads=heads, label_scale=label_scale,
        ) | ({"classes": classes} if classes else {})  # fmt: skip
        emb = 4 * widths[0]
        self.embed = NoiseEmbedding(emb, 2 * widths[0], label_scale)
        if classes:
            self.kinds = nn.Embedding(classes + 1, emb)
        self.stem = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(channels * patch**2, widths[0], 3, padding=1))
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, c = [widths[0]], widths[0]
        for level, width in enumerate(widths):
            for _ in range(blocks):
                self.down.append(ResidualBlock(c, width, emb))
                c = width
                skips.append(c)
            if level < len(widths) - 1:
                self.shrink.append(nn.Conv2d(c, c, 3, stride=2, padding=1))
                skips.append(c)
        self.middle = nn.ModuleList([ResidualBlock(c, c, emb), Attention(c, heads), ResidualBlock(c, c, emb)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                self.up.append(ResidualBlock(c + skips.pop(), width, emb))
                c = width
            if level > 0:
                self.grow.append(nn.Conv2d(c, c, 3, padding=1))
        last = _zero(nn.Conv2d(c, channels * patch**2, 3, padding=1))
        self.head = nn.Sequential(nn.GroupNorm(group_count(c), c), nn.SiLU(), last, nn.PixelShuffle(patch))

    @property
    def bottleneck(self) -> nn.Module:
        """The last middle block: its output is the feature that designed solvers read."""
        return self.middle[-1]

    def _embedding(self, label: Tensor, classes: Tensor | None, images: int) -> Tensor:
        """What every block sees of noise label and class, ``(B, 4 widths[0])``."""
        found = self.embed(label.expand(images))
        if self.classes:
            found = found + (self.kinds.weight[-1] if classes is None else self.kinds(classes)).to(found.dtype)
        return F.silu(found)

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """``classes``, int64 ``(B,)``, are those to draw; :attr:`classes` for any, and None for any of all images."""
        blocks = self.config["blocks"]
        emb = self._embedding(label, classes, x.shape[0])
        h = self.stem(x)
        skips = [h]
        for level in range(len(self.config["widths"])):
            if level:
                h = self.shrink[level - 1](h)
                skips.append(h)
            for k in range(blocks):
                h = self.down[level * blocks + k](h, emb)
                skips.append(h)
        h = self.middle[2](self.middle[1](self.middle[0](h, emb)), emb)
        for level in range(len(self.config["widths"])):
            for k in range(blocks + 1):
                h = self.up[level * (blocks + 1) + k](torch.cat([h, skips.pop()], dim=1), emb)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, size=skips[-1].shape[-2:], mode="nearest"))
        return self.head(h)
