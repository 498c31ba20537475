"""The U-Net of DDPM (Ho et al. 2020) with the parameter names of its PyTorch checkpoints.

Those are the CelebA network of DDIM (Song et al. 2021, github.com/ermongroup/ddim) and the conversions of the
original networks that the same program reads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo.blocks import attend, sinusoids


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Norm, SiLU, convolution twice, residual; the embedding is added in between."""

    def __init__(self, c_in: int, c_out: int, width: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = _norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.temb_proj = nn.Linear(width, c_out)
        self.norm2, self.conv2 = _norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.temb_proj(F.silu(embedding))[:, :, None, None]
        return self.nin_shortcut(x) + self.conv2(F.silu(self.norm2(h)))


class AttnBlock(nn.Module):
    """Self-attention over pixels with one head, residual."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(channels, channels, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        h = attend(*(layer(h).flatten(2) for layer in (self.q, self.k, self.v)))
        return x + self.proj_out(h.reshape(x.shape))


class Resampling(nn.Module):
    """A convolution of stride 2 that pads below and on the right only, or one after nearest doubling."""

    def __init__(self, channels: int, up: bool) -> None:
        super().__init__()
        self.up, self.conv = up, nn.Conv2d(channels, channels, 3, stride=1 if up else 2, padding=int(up))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))


class Level(nn.Module):
    """The blocks of one resolution."""

    def __init__(self, channels: Sequence[tuple[int, int]], width: int, attention: bool) -> None:
        super().__init__()
        self.channels = channels[-1][1]
        self.block = nn.ModuleList([ResnetBlock(c_in, c_out, width) for c_in, c_out in channels])
        self.attn = nn.ModuleList([AttnBlock(self.channels) for _ in channels] if attention else [])

    def step(self, k: int, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.block[k](x, embedding)
        return self.attn[k](x) if len(self.attn) else x


class Down(Level):
    """On the way down: every map is kept, and perhaps the last is halved."""

    def __init__(self, channels: Sequence[tuple[int, int]], width: int, attention: bool, last: bool) -> None:
        super().__init__(channels, width, attention)
        self.downsample = None if last else Resampling(self.channels, up=False)

    def forward(self, maps: list[Tensor], embedding: Tensor) -> list[Tensor]:
        for k in range(len(self.block)):
            maps = [*maps, self.step(k, maps[-1], embedding)]
        return maps if self.downsample is None else [*maps, self.downsample(maps[-1])]


class Up(Level):
    """On the way up: each block takes one of the kept maps, the latest first."""

    def __init__(self, channels: Sequence[tuple[int, int]], width: int, attention: bool, last: bool) -> None:
        super().__init__(channels, width, attention)
        self.upsample = None if last else Resampling(self.channels, up=True)

    def forward(self, x: Tensor, maps: list[Tensor], embedding: Tensor) -> Tensor:
        for k in range(len(self.block)):
            x = self.step(k, torch.cat([x, maps.pop()], dim=1), embedding)
        return x if self.upsample is None else self.upsample(x)


class Embedding(nn.Module):
    """Sines and cosines of a ``(B,)`` label, then two linear layers: ``(B, width)``."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features = features
        self.dense = nn.ModuleList([nn.Linear(features, width), nn.Linear(width, width)])

    def forward(self, label: Tensor) -> Tensor:
        cosines, sines = sinusoids(label, self.features, endpoint=True)
        e = torch.cat([sines, cosines], dim=1).to(next(self.parameters()).dtype)
        return self.dense[1](F.silu(self.dense[0](e)))


class Model(nn.Module):
    """``(B, 3, H, W)`` images and ``(B,)`` labels to the noise, ``(B, 3, H, W)``; ``classes`` must be None.

    The arguments are the entries of the configurations that come with the checkpoints.
    """

    def __init__(
        self, image_size: int, ch: int = 128, ch_mult: Sequence[int] = (1, 2, 2, 2), num_res_blocks: int = 2,
        attn_resolutions: Sequence[int] = (16,), in_channels: int = 3, out_ch: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        width, c, side = 4 * ch, ch, image_size
        self.temb = Embedding(ch, width)
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        skips, sides = [ch], list[int]()
        for level, mult in enumerate(ch_mult):
            last, sides = level == len(ch_mult) - 1, [*sides, side]
            pairs = [(c if k == 0 else ch * mult, ch * mult) for k in range(num_res_blocks)]
            self.down.append(Down(pairs, width, side in attn_resolutions, last))
            c = ch * mult
            skips += [c] * (num_res_blocks + (not last))
            side //= 2
        self.mid = nn.ModuleDict(
            {"block_1": ResnetBlock(c, c, width), "attn_1": AttnBlock(c), "block_2": ResnetBlock(c, c, width)}
        )
        for level, mult in reversed(list(enumerate(ch_mult))):
            pairs = [((c if k == 0 else ch * mult) + skips.pop(), ch * mult) for k in range(num_res_blocks + 1)]
            self.up.insert(0, Up(pairs, width, sides[level] in attn_resolutions, level == 0))
            c = ch * mult
        self.norm_out, self.conv_out = _norm(c), nn.Conv2d(c, out_ch, 3, padding=1)

    @property
    def bottleneck(self) -> nn.Module:
        """The last middle block."""
        return self.mid["block_2"]

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        e = self.temb(label)
        maps = [self.conv_in(x)]
        for level in self.down:
            maps = level(maps, e)
        h = self.mid["block_2"](self.mid["attn_1"](self.mid["block_1"](maps[-1], e)), e)
        for level in reversed(self.up):
            h = level(h, maps, e)
        return self.conv_out(F.silu(self.norm_out(h)))
