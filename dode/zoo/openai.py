"""The U-Nets of OpenAI's improved-diffusion, guided-diffusion and consistency-models checkpoints, by their names.

One network with the options of Nichol and Dhariwal 2021 and Dhariwal and Nichol 2021 (section 3): residual blocks
that may resample, attention at several resolutions, a class embedding; and its encoder with attention pooling,
the classifier of noisy images (appendix H there).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo.blocks import attend, sinusoids


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels)


def _halve(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


class Downsample(nn.Module):
    """A convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest doubling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.conv(_double(x))


class ResBlock(nn.Module):
    """Norm, SiLU, convolution twice, residual.  The gaps in the numbers of layers are their parameterless ones."""

    def __init__(self, c_in: int, c_out: int, width: int, scale_shift: bool, up: bool = False, down: bool = False):
        super().__init__()
        self.scale_shift = scale_shift
        self.resample = _double if up else _halve if down else nn.Identity()
        self.in_layers = nn.ModuleDict({"0": _norm(c_in), "2": nn.Conv2d(c_in, c_out, 3, padding=1)})
        self.emb_layers = nn.ModuleDict({"1": nn.Linear(width, 2 * c_out if scale_shift else c_out)})
        self.out_layers = nn.ModuleDict({"0": _norm(c_out), "3": nn.Conv2d(c_out, c_out, 3, padding=1)})
        self.skip_connection = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.in_layers["2"](self.resample(F.silu(self.in_layers["0"](x))))
        modulation = self.emb_layers["1"](F.silu(embedding))[:, :, None, None].to(h.dtype)
        if self.scale_shift:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.out_layers["0"](h), 1 + scale)
        else:
            h = self.out_layers["0"](h + modulation)
        return self.skip_connection(self.resample(x)) + self.out_layers["3"](F.silu(h))


class AttentionBlock(nn.Module):
    """Self-attention over pixels, residual.

    Parameters
    ----------
    new_order
        Channels lie as (query, key, value), head, channel; else as head, (query, key, value), channel.
    flat
        The 1x1 convolutions run over a row of pixels, so that their weights have three dimensions, not four.
    """

    def __init__(self, channels: int, heads: int, new_order: bool, flat: bool) -> None:
        super().__init__()
        self.heads, self.new_order = heads, new_order
        conv: type[nn.Conv1d] | type[nn.Conv2d] = nn.Conv1d if flat else nn.Conv2d
        self.norm, self.flat = _norm(channels), flat
        self.qkv = conv(channels, 3 * channels, 1)
        self.proj_out = conv(channels, channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        b, c, h = *x.shape[:2], self.norm(x)
        qkv = self.qkv(h.flatten(2) if self.flat else h).flatten(2)
        order = (b, 3, self.heads) if self.new_order else (b, self.heads, 3)
        h = attend(*qkv.reshape(*order, c // self.heads, -1).unbind(1 if self.new_order else 2)).reshape(b, c, -1)
        return x + self.proj_out(h if self.flat else h.reshape(x.shape)).reshape(x.shape)


class Steps(nn.ModuleList):
    """Layers one after the other; the very first of a network is a convolution and takes no embedding."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x) if isinstance(layer, nn.Conv2d) else layer(x, embedding)
        return x


class Encoder(nn.Module):
    """What the denoiser and the classifier share: the way down and the middle.

    The arguments are the flags of OpenAI's scripts.

    Parameters
    ----------
    channel_mult
        Channels of each resolution, finest first, in units of ``num_channels``.
    attention_resolutions
        Sides of the maps that get attention; the middle always does.
    num_heads, num_head_channels
        Of the attention; the second, if given, decides.
    resblock_updown
        Residual blocks resample, not plain convolutions.
    """

    def __init__(
        self, image_size: int, num_channels: int, num_res_blocks: int, channel_mult: Sequence[int], *,
        attention_resolutions: Sequence[int] = (16, 8), num_heads: int = 4, num_head_channels: int | None = None,
        use_scale_shift_norm: bool = True, resblock_updown: bool = False, use_new_attention_order: bool = False,
        flat_attention: bool = True, in_channels: int = 3,
    ) -> None:  # fmt: skip
        super().__init__()
        self.features, self.width = num_channels, 4 * num_channels
        self.time_embed = nn.ModuleDict(
            {"0": nn.Linear(num_channels, self.width), "2": nn.Linear(self.width, self.width)}
        )
        self.scale_shift, self.resblock_updown = use_scale_shift_norm, resblock_updown
        self.attention_resolutions = tuple(attention_resolutions)
        self.num_heads, self.num_head_channels = num_heads, num_head_channels
        self.new_order, self.flat = use_new_attention_order, flat_attention
        c, side = channel_mult[0] * num_channels, image_size
        self.input_blocks = nn.ModuleList([Steps([nn.Conv2d(in_channels, c, 3, padding=1)])])
        self.skips = [c]
        for level, mult in enumerate(channel_mult):
            if level:
                self.input_blocks.append(Steps([self.resampling(c, down=True)]))
                self.skips.append(c)
                side //= 2
            for _ in range(num_res_blocks):
                self.input_blocks.append(Steps(self.step(c, mult * num_channels, side)))
                c = mult * num_channels
                self.skips.append(c)
        self.middle_block = Steps([self.block(c, c), self.attention(c), self.block(c, c)])
        self.channels, self.side = c, side

    def block(self, c_in: int, c_out: int, **resample: bool) -> ResBlock:
        return ResBlock(c_in, c_out, self.width, self.scale_shift, **resample)

    def resampling(self, channels: int, *, down: bool) -> nn.Module:
        """Between two resolutions."""
        if self.resblock_updown:
            return self.block(channels, channels, down=down, up=not down)
        return Downsample(channels) if down else Upsample(channels)

    def attention(self, channels: int) -> AttentionBlock:
        heads = channels // self.num_head_channels if self.num_head_channels else self.num_heads
        return AttentionBlock(channels, heads, self.new_order, self.flat)

    def step(self, c_in: int, c_out: int, side: int) -> Iterator[nn.Module]:
        """A residual block, and attention where this resolution has it."""
        yield self.block(c_in, c_out)
        if side in self.attention_resolutions:
            yield self.attention(c_out)

    def embed(self, label: Tensor) -> Tensor:
        e = torch.cat(sinusoids(label, self.features), dim=1).to(next(self.parameters()).dtype)
        return self.time_embed["2"](F.silu(self.time_embed["0"](e)))

    def encode(self, x: Tensor, e: Tensor) -> list[Tensor]:
        """The maps that the way up needs, finest first, and the middle's at the end."""
        maps = list[Tensor]()
        for steps in [*self.input_blocks, self.middle_block]:
            x = steps(x, e)
            maps.append(x)
        return maps


class UNetModel(Encoder):
    """``(B, 3, H, W)`` images, ``(B,)`` labels and ``(B,)`` classes to ``(B, 3 or 6, H, W)``.

    Parameters
    ----------
    learn_sigma
        Three channels more, about the variance of a step, which no ODE solver needs.
    num_classes
        0 for an unconditional network.
    flags
        Of :class:`Encoder`.
    """

    def __init__(
        self, image_size: int, num_channels: int, num_res_blocks: int, channel_mult: Sequence[int], *,
        learn_sigma: bool = True, num_classes: int = 0, **flags: Any,
    ) -> None:  # fmt: skip
        super().__init__(image_size, num_channels, num_res_blocks, channel_mult, **flags)
        self.label_emb = nn.Embedding(num_classes, self.width) if num_classes else None
        self.output_blocks = nn.ModuleList()
        c, side, skips = self.channels, self.side, list(self.skips)
        for level, mult in reversed(list(enumerate(channel_mult))):
            for k in range(num_res_blocks + 1):
                layers = list(self.step(c + skips.pop(), mult * num_channels, side))
                c = mult * num_channels
                if level and k == num_res_blocks:
                    layers.append(self.resampling(c, down=False))
                    side *= 2
                self.output_blocks.append(Steps(layers))
        self.out = nn.ModuleDict({"0": _norm(c), "2": nn.Conv2d(c, 6 if learn_sigma else 3, 3, padding=1)})

    @property
    def bottleneck(self) -> nn.Module:
        """The last middle block."""
        return self.middle_block[-1]

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        e = self.embed(label)
        if self.label_emb is not None:
            e = e + self.label_emb(classes)
        *skips, h = self.encode(x, e)
        for steps in self.output_blocks:
            h = steps(torch.cat([h, skips.pop()], dim=1), e)
        return self.out["2"](F.silu(self.out["0"](h)))


class AttentionPool(nn.Module):
    """The answer of one more pixel, the mean of all, that attends to every pixel."""

    def __init__(self, side: int, channels: int, head: int, outputs: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(channels, side**2 + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)
        self.heads = channels // head

    def forward(self, x: Tensor) -> Tensor:
        b, c = x.shape[:2]
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.positional_embedding
        qkv = self.qkv_proj(x).reshape(b, 3, self.heads, c // self.heads, -1)
        return self.c_proj(attend(*qkv.unbind(1)).reshape(b, c, -1))[:, :, 0]


class EncoderUNetModel(Encoder):
    """The classifier of noisy images: ``(B, 3, H, W)`` and ``(B,)`` labels to logits ``(B, classes)``."""

    def __init__(
        self, image_size: int, num_channels: int, num_res_blocks: int, channel_mult: Sequence[int], *,
        num_classes: int = 1000, num_head_channels: int = 64, **flags: Any,
    ) -> None:  # fmt: skip
        flags |= dict(num_head_channels=num_head_channels)
        super().__init__(image_size, num_channels, num_res_blocks, channel_mult, **flags)
        pool = AttentionPool(self.side, self.channels, num_head_channels, num_classes)
        self.out = nn.ModuleDict({"0": _norm(self.channels), "2": pool})

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        h = self.encode(x, self.embed(label))[-1]
        return self.out["2"](F.silu(self.out["0"](h)))
