"""EDM2's networks (Karras et al. 2024): every layer keeps the magnitude of what passes through it.

Its weights are normalised each time they are used; here once, when a file is read, and gains go with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo.blocks import Resample
from dode.zoo.keys import Key

EPS = 1e-4


def unit(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Scaled to a root mean square of 1 along ``dim``."""
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=torch.float32)
    return x / (EPS + length * math.sqrt(length.numel() / x.numel())).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """SiLU, with a root mean square of 1 for normally distributed ``x`` (equation 81)."""
    return F.silu(x) / 0.596


def blend(a: Tensor, b: Tensor, t: float) -> Tensor:
    """``(1 - t) a + t b``, of the magnitude of ``a`` and ``b`` if these are independent (equation 88)."""
    return a.lerp(b, t) / math.hypot(1 - t, t)


def join(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels of both, where the share of ``b`` in the magnitude is ``t`` (equation 103)."""
    total = (a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2)
    return torch.cat([(1 - t) * math.sqrt(total / a.shape[1]) * a, t * math.sqrt(total / b.shape[1]) * b], dim=1)


def convolution(c_in: int, c_out: int, size: int) -> nn.Conv2d:
    """Without a bias; the map keeps its size."""
    return nn.Conv2d(c_in, c_out, size, padding=size // 2, bias=False)


class Fourier(nn.Module):
    """Random cosines ``(B, channels)`` of a ``(B,)`` noise label, in float32 whatever the network's dtype."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(channels))
        self.register_buffer("phases", torch.zeros(channels))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Fourier:
        exact = self.freqs, self.phases
        super()._apply(fn, recurse)
        self.freqs, self.phases = (value.to(self.freqs.device) for value in exact)
        return self

    def forward(self, label: Tensor) -> Tensor:
        return math.sqrt(2) * (label[:, None] * self.freqs.to(label.dtype) + self.phases.to(label.dtype)).cos()


class Block(nn.Module):
    """Two convolutions, the embedding's gain between them, then perhaps attention (figure 21).

    On the way down (``decodes`` false) the map is fitted and normalised first.
    """

    def __init__(
        self, c_in: int, c_out: int, width: int, decodes: bool, resample: Resample | None = None,
        attends: bool = False, *, head: int = 64, balance: float = 0.3, attention: float = 0.3,
        clip: float | None = 256,
    ) -> None:  # fmt: skip
        super().__init__()
        self.decodes, self.balance, self.attention, self.clip = decodes, balance, attention, clip
        self.resample, self.heads = resample or nn.Identity(), c_out // head if attends else 0
        self.conv_res0 = convolution(c_in if decodes else c_out, c_out, 3)
        self.emb_linear = nn.Linear(width, c_out, bias=False)
        self.conv_res1 = convolution(c_out, c_out, 3)
        self.conv_skip = convolution(c_in, c_out, 1) if c_in != c_out else nn.Identity()
        if attends:
            self.attn_qkv, self.attn_proj = convolution(c_out, 3 * c_out, 1), convolution(c_out, c_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.resample(x)
        if not self.decodes:
            x = unit(self.conv_skip(x), dim=1)
        gain = 1 + self.emb_linear(embedding)[:, :, None, None]
        found = self.conv_res1(silu(gain * self.conv_res0(silu(x))))
        x = blend(self.conv_skip(x) if self.decodes else x, found, self.balance)
        if self.heads:
            x = blend(x, self.attn_proj(self.attend(x)), self.attention)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def attend(self, x: Tensor) -> Tensor:
        """Attention over pixels; queries, keys and values are normalised, and lie there channel by channel."""
        parts = unit(self.attn_qkv(x).reshape(len(x), self.heads, -1, 3, math.prod(x.shape[2:])), dim=2)
        q, k, v = parts.transpose(2, 4).unbind(3)
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(x.shape)


class UNet(nn.Module):
    """``(B, C, H, W)`` images, ``(B,)`` noise labels and, with ``classes``, ``(B,)`` classes to ``(B, C, H, W)``.

    Module names are those of the files.  ``block`` holds keywords of :class:`Block`.
    """

    def __init__(
        self, size: int, channels: int, classes: int, widths: Sequence[int], blocks: int, sides: Sequence[int],
        features: int, width: int, taps: Sequence[float], label_balance: float, concat_balance: float,
        block: dict[str, Any],
    ) -> None:  # fmt: skip
        super().__init__()
        self.classes, self.label_balance, self.concat_balance = classes, label_balance, concat_balance
        self.emb_fourier, self.emb_noise = Fourier(features), nn.Linear(features, width, bias=False)
        if classes:
            self.kinds = nn.Embedding(classes + 1, width)
        make: Callable[..., Block] = partial(Block, width=width, **block)
        c, deepest = widths[0], len(widths) - 1
        self.enc, self.dec, skips = nn.ModuleDict(), nn.ModuleDict(), [c]
        self.enc[f"{size}x{size}_conv"] = convolution(channels + 1, c, 3)
        for level, wide in enumerate(widths):
            at = f"{size >> level}x{size >> level}"
            if level:
                self.enc[f"{at}_down"] = make(c, c, decodes=False, resample=Resample(taps, up=False))
                skips.append(c)
            for k in range(blocks):
                self.enc[f"{at}_block{k}"] = make(c, wide, decodes=False, attends=size >> level in sides)
                c = wide
                skips.append(c)
        for level, wide in reversed(list(enumerate(widths))):
            at = f"{size >> level}x{size >> level}"
            if level == deepest:
                self.dec[f"{at}_in0"] = make(c, c, decodes=True, attends=True)
                self.dec[f"{at}_in1"] = make(c, c, decodes=True)
            else:
                self.dec[f"{at}_up"] = make(c, c, decodes=True, resample=Resample(taps, up=True))
            for k in range(blocks + 1):
                self.dec[f"{at}_block{k}"] = make(c + skips.pop(), wide, decodes=True, attends=size >> level in sides)
                c = wide
        self.out_conv = convolution(c, channels, 3)

    @property
    def bottleneck(self) -> nn.Module:
        """The last middle block: its output is the feature that designed solvers read."""
        return next(block for name, block in self.dec.items() if name.endswith("_in1"))

    def embedding(self, label: Tensor, classes: Tensor | None, images: int) -> Tensor:
        """What every block sees of noise label and class, ``(images, width)``."""
        found = self.emb_noise(self.emb_fourier(label.expand(images)).to(self.emb_noise.weight.dtype))
        if self.classes:
            kind = self.kinds.weight[-1] if classes is None else self.kinds(classes)
            found = blend(found, kind.to(found.dtype), self.label_balance)
        return silu(found)

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        """``classes``, int64 ``(B,)``, are those to draw; :attr:`classes` for any, and None for any of all images."""
        e, skips = self.embedding(label, classes, x.shape[0]), list[Tensor]()
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # so that layers need no bias
        for block in self.enc.values():
            x = block(x, e) if isinstance(block, Block) else block(x)
            skips.append(x)
        for name, block in self.dec.items():
            x = block(join(x, skips.pop(), self.concat_balance) if "block" in name else x, e)
        return self.out_conv(x)


def unet(
    img_resolution: int, img_channels: int, label_dim: int, *, model_channels: int = 192,
    channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_noise: int | None = None,
    channel_mult_emb: int | None = None, num_blocks: int = 3, attn_resolutions: Sequence[int] = (16, 8),
    label_balance: float = 0.5, concat_balance: float = 0.5, resample_filter: Sequence[float] = (1, 1),
    channels_per_head: int = 64, dropout: float = 0, res_balance: float = 0.3, attn_balance: float = 0.3,
    clip_act: float | None = 256,
) -> tuple[UNet, Iterator[Key]]:  # fmt: skip
    """The network by the names of its arguments there, without its dropout."""
    widths = [model_channels * mult for mult in channel_mult]
    net = UNet(
        img_resolution, img_channels, label_dim, widths, num_blocks, attn_resolutions,
        widths[0] if channel_mult_noise is None else model_channels * channel_mult_noise,
        max(widths) if channel_mult_emb is None else model_channels * channel_mult_emb,
        tuple(resample_filter), label_balance, concat_balance,
        dict(head=channels_per_head, balance=res_balance, attention=attn_balance, clip=clip_act),
    )  # fmt: skip
    return net, keys_of(net)


def keys_of(net: UNet) -> Iterator[Key]:
    """Where the tensors of a network are in a file; of classes, "any" is no class at all."""
    for name, value in net.state_dict().items():
        shape = tuple(value.shape)
        if name.startswith("emb_fourier."):
            yield Key(name, (name,), (shape,), Tensor.float)
        elif name == "kinds.weight":
            yield Key(name, ("emb_label.weight",), ((shape[1], net.classes),), _classes)
        elif name == "out_conv.weight" or name.endswith(".emb_linear.weight"):
            gain = name.replace("out_conv.weight", "out_gain").replace("emb_linear.weight", "emb_gain")
            yield Key(name, (name, gain), (shape, ()), _layer)
        else:
            yield Key(name, (name,), (shape,), _layer)


def _layer(weight: Tensor, gain: Tensor | float = 1.0) -> Tensor:
    """Inputs with a root mean square of 1 come out with one of ``gain`` (equations 47 and 66)."""
    weight = unit(weight.float(), dim=tuple(range(1, weight.ndim)))
    return weight * (gain / math.sqrt(weight[0].numel()))


def _classes(weight: Tensor) -> Tensor:
    """There a linear layer of one-hot vectors of length ``sqrt(classes)``."""
    rows = math.sqrt(weight.shape[1]) * _layer(weight).T
    return torch.cat([rows, 0 * rows[:1]])
