"""The U-Net of every network here that has one: those that dode trains, and the published ones by their style.

The default follows the recipe of EDM (Karras et al. 2022, appendix F.2): residual blocks conditioned
on the noise level by a scale and shift, attention at the coarsest resolution, last layers that
start at zero.  Two choices make it fit two CPU cores: the image enters *pixel-unshuffled* (a 2x2
patch becomes four channels, so the widest maps are a quarter of the size), and the widths grow by
three where the area shrinks by four, which spends the same arithmetic on each level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo.blocks import OURS, NoiseEmbedding, Resample, ResidualBlock, Style, attention, zero


class UNet(nn.Module):
    """``(B, C, H, W)`` images, ``(B,)`` noise labels and, with ``classes``, ``(B,)`` classes to ``(B, C, H, W)``.

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
    heads
        Of the attention.
    label_scale
        Multiplies the noise label before the sinusoids: 1 for labels 0..1000, 1000 for ln(sigma)/4.
    classes
        Of images; an embedding of each, and one of "any" (label ``classes``), is added to that of the noise, or with
        ``style.context`` attended to.
    style
        Everything else; :attr:`config` holds what rebuilds a network of the default one.

    ValueError for a size that the patch does not divide.
    """

    def __init__(
        self, channels: int = 1, size: int = 28, patch: int = 2, widths: Sequence[int] = (48, 144), blocks: int = 1,
        heads: int = 4, label_scale: float = 1.0, classes: int = 0, style: Style = OURS,
    ) -> None:  # fmt: skip
        super().__init__()
        if size % patch:
            raise ValueError(f"image size {size} is not divisible by the patch of {patch}; pad the images or change it")
        self.config: dict[str, Any] = dict(
            channels=channels, size=size, patch=patch, widths=list(widths), blocks=blocks,
            heads=heads, label_scale=label_scale,
        ) | ({"classes": classes} if classes else {})  # fmt: skip
        self.widths, self.blocks, self.heads, self.classes, self.style = tuple(widths), blocks, heads, classes, style
        self.sides = [size // patch >> level for level in range(len(self.widths))]
        features, self.width = style.features or 2 * widths[0], style.embedding or 4 * widths[0]
        self.embed = NoiseEmbedding(self.width, features, label_scale, style.frequencies)
        if classes:
            self.kinds = nn.Embedding(classes + 1, style.context or (features if style.classes_first else self.width))
        c, image, deep = style.stem or widths[0], channels, channels * patch**2
        self.stem = nn.Sequential(nn.PixelUnshuffle(patch), nn.Conv2d(deep, c, 3, padding=1))
        self.down, self.shrink, self.pyramid = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        skips = [c]
        for level, width in enumerate(self.widths):
            if level:
                self.shrink.append(self._resampling(c, up=False))
                if style.pyramid == "skip":
                    self.pyramid.append(nn.Sequential(Resample(style.taps, up=False), nn.Conv2d(channels, c, 1)))
                elif style.pyramid:
                    fit = nn.Conv2d(image, c, 3, padding=1 + (len(style.taps) - 1) // 2)
                    self.pyramid.append(nn.Sequential(fit, Resample(style.taps, up=False, pad=False)))
                    image = c
                skips.append(c)
            for _ in range(blocks):
                self.down.append(self._block(c, width, self.sides[level] in style.sides))
                c = width
                skips.append(c)
        first, between = self._block(c, c), attention(c, self._heads(c), style)
        self.middle = nn.ModuleList([first, between, self._block(c, c)])
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for level, width in reversed(list(enumerate(self.widths))):
            for k in range(blocks + 1):
                attends = self.sides[level] in style.sides and (k == blocks or not style.last_only)
                self.up.append(self._block(c + skips.pop(), width, attends))
                c = width
            if level > 0:
                self.grow.append(self._resampling(c, up=True))
        last = zero(nn.Conv2d(c, deep, 3, padding=1))
        self.head = nn.Sequential(style.norm(c), nn.SiLU(), last, nn.PixelShuffle(patch))

    def _heads(self, channels: int) -> int:
        return channels // self.style.head_width if self.style.head_width else self.heads

    def _block(self, c_in: int, c_out: int, attends: bool = False, resample: Resample | None = None) -> ResidualBlock:
        return ResidualBlock(c_in, c_out, self.width, self.style, resample, self._heads(c_out) if attends else 0)

    def _resampling(self, channels: int, up: bool) -> nn.Module:
        """What stands between two resolutions; going up, a convolution comes after the doubling."""
        if self.style.resampling == "block":
            return self._block(channels, channels, resample=Resample(self.style.taps, up))
        if self.style.resampling == "padded" and not up:
            return nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))
        return nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=1)

    @property
    def bottleneck(self) -> nn.Module:
        """The last middle block: its output is the feature that designed solvers read."""
        return self.middle[-1]

    def embedding(self, label: Tensor, classes: Tensor | None, images: int) -> Tensor:
        """What every block sees of noise label and class, ``(images, width)``, or the two side by side."""
        found = self.embed(label.expand(images))
        if not self.classes:
            return F.silu(self.embed.mlp(found))
        kind = self.kinds.weight[-1] if classes is None else self.kinds(classes)
        if self.style.classes_first:
            return F.silu(self.embed.mlp(found + kind.to(found.dtype)))
        found = self.embed.mlp(found)
        if self.style.context:
            return torch.cat([F.silu(found), kind.to(found.dtype).expand(images, -1)], dim=1)
        return F.silu(found + kind.to(found.dtype))

    def encode(self, x: Tensor, e: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The middle's map, and the maps that the way up needs, finest first."""
        h, image = self.stem(x), x
        skips = [h]
        for level in range(len(self.widths)):
            if level:
                shrink = self.shrink[level - 1]
                h = shrink(h, e) if isinstance(shrink, ResidualBlock) else shrink(h)
                if self.style.pyramid == "skip":
                    step: Any = self.pyramid[level - 1]
                    image = step[0](image)
                    h = h + step[1](image)
                elif self.style.pyramid:
                    h = image = self.style.sum(h, self.pyramid[level - 1](image))
                skips.append(h)
            for k in range(self.blocks):
                h = self.down[level * self.blocks + k](h, e)
                skips.append(h)
        for block in self.middle:
            h = block(h, e)
        return h, skips

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """``classes``, int64 ``(B,)``, are those to draw; :attr:`classes` for any, and None for any of all images."""
        e = self.embedding(label, classes, x.shape[0])
        h, skips = self.encode(x, e)
        for level in range(len(self.widths)):
            for k in range(self.blocks + 1):
                h = self.up[level * (self.blocks + 1) + k](torch.cat([h, skips.pop()], dim=1), e)
            if level < len(self.grow):
                grow = self.grow[level]
                whole = isinstance(grow, ResidualBlock)
                h = grow(h, e) if whole else grow(F.interpolate(h, size=skips[-1].shape[-2:], mode="nearest"))
        return self.head(h)
