"""What published networks share: the blocks of DDPM++, NCSN++ and ADM, and the call ``F(x, label)`` of them all.

Residual blocks after Song et al. 2021 (appendix H) and Dhariwal and Nichol 2021 (section 3), in the arrangement
of Karras et al. 2022, appendix F and table 7.  Parameters and buffers are named as in NVIDIA's checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def group_norm(channels: int, eps: float) -> nn.GroupNorm:
    """32 groups, or fewer where a group would have less than four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention over pixels, ``(..., channels, pixels)``: ``softmax(q^T k / sqrt(channels))`` applied to ``v``."""
    q, k, v = (t.transpose(-1, -2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(-1, -2)


def sinusoids(label: Tensor, features: int, *, endpoint: bool = False) -> tuple[Tensor, Tensor]:
    """Cosines and sines of a ``(B,)`` label, each ``(B, features // 2)``, at frequencies from 1 down to 1/10,000.

    ``endpoint`` says whether the last one is 1/10,000 itself (Ho et al. 2020) or the step before it (ADM).
    """
    half = features // 2
    ramp = torch.arange(half, dtype=torch.float32, device=label.device) / (half - 1 if endpoint else half)
    angles = label[:, None].float() * torch.exp(-math.log(10_000) * ramp)
    return angles.cos(), angles.sin()


class Resample(nn.Module):
    """A convolution after doubling or halving the image with a fixed filter; ``kernel = 0`` resamples alone.

    Parameters
    ----------
    up, down
        One of them.
    taps
        Of the separable filter: ``(1, 1)`` is nearest doubling and averaging, ``(1, 3, 3, 1)`` that of NCSN++.
    fused
        Convolve the full image first, then filter and halve it (NCSN++'s inputs); else halve, then convolve.
    """

    resample_filter: Tensor

    def __init__(
        self, c_in: int, c_out: int, kernel: int, *, up: bool = False, down: bool = False,
        taps: Sequence[float] = (1, 1), fused: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if up == down or (fused and up):
            raise ValueError("resample either up or down; only halving can be fused")
        self.up, self.fused = up, fused
        self.weight = nn.Parameter(torch.zeros(c_out, c_in, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(c_out)) if kernel else None
        row = torch.as_tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(row, row)[None, None] / row.sum() ** 2)

    def filtered(self, x: Tensor, padding: int) -> Tensor:
        """Doubled or halved: energy 4 spread over four new pixels, or an average of the old."""
        channels = x.shape[1]
        taps = self.resample_filter.to(x.dtype).expand(channels, 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, 4 * taps, groups=channels, stride=2, padding=padding)
        return F.conv2d(x, taps, groups=channels, stride=2, padding=padding)

    def forward(self, x: Tensor) -> Tensor:
        edge = (self.resample_filter.shape[-1] - 1) // 2
        if self.weight is None:
            return self.filtered(x, edge)
        border = self.weight.shape[-1] // 2
        if self.fused:
            assert self.bias is not None
            return self.filtered(F.conv2d(x, self.weight, padding=border + edge), 0) + self.bias[:, None, None]
        return F.conv2d(self.filtered(x, edge), self.weight, self.bias, padding=border)


class UNetBlock(nn.Module):
    """Norm, SiLU, convolution twice, residual; then, perhaps, self-attention, residual.

    Parameters
    ----------
    heads
        Of the attention; 0 for none.
    adaptive
        The embedding scales and shifts the second norm (ADM), or is added before it (DDPM++, NCSN++).
    weight
        Of both sums with the skip: 1, or ``sqrt(1/2)`` to keep their variance (Song et al. 2021).
    project
        The skip has a 1x1 convolution when resampling, even where the channels do not change.
    """

    def __init__(
        self, c_in: int, c_out: int, embedding: int, *, up: bool = False, down: bool = False, heads: int = 0,
        adaptive: bool = True, weight: float = 1.0, project: bool = False, taps: Sequence[float] = (1, 1),
        eps: float = 1e-5,
    ) -> None:  # fmt: skip
        super().__init__()
        self.heads, self.adaptive, self.weight = heads, adaptive, weight
        moved = up or down
        self.norm0 = group_norm(c_in, eps)
        self.conv0: nn.Module = nn.Conv2d(c_in, c_out, 3, padding=1)
        if moved:
            self.conv0 = Resample(c_in, c_out, 3, up=up, down=down, taps=taps)
        self.affine = nn.Linear(embedding, 2 * c_out if adaptive else c_out)
        self.norm1 = group_norm(c_out, eps)
        self.conv1 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip: nn.Module = nn.Identity()
        if moved:
            self.skip = Resample(c_in, c_out, int(project or c_in != c_out), up=up, down=down, taps=taps)
        elif c_in != c_out:
            self.skip = nn.Conv2d(c_in, c_out, 1)
        if heads:
            self.norm2 = group_norm(c_out, eps)
            self.qkv = nn.Conv2d(c_out, 3 * c_out, 1)
            self.proj = nn.Conv2d(c_out, c_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv0(F.silu(self.norm0(x)))
        modulation = self.affine(embedding)[:, :, None, None].to(h.dtype)
        if self.adaptive:
            scale, shift = modulation.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm1(h), 1 + scale)
        else:
            h = self.norm1(h + modulation)
        x = self.weight * (self.skip(x) + self.conv1(F.silu(h)))
        return self.weight * (x + self.attention(x)) if self.heads else x

    def attention(self, x: Tensor) -> Tensor:
        """Channels are ordered head, channel, then query, key, value: the three of one channel lie together."""
        b, c, height, width = x.shape
        qkv = self.qkv(self.norm2(x)).reshape(b, self.heads, c // self.heads, 3, height * width)
        return self.proj(attend(*qkv.unbind(3)).reshape(b, c, height, width))


class Published(nn.Module):
    """A published network as dode calls it, ``F(x, label, classes)``: surplus channels cut off.

    Parameters
    ----------
    body
        Called with images, labels and classes ``(B,)`` (or None).
    classes
        0 for an unconditional network.
    label_scale
        Multiplies the schedule's label.
    channels
        Of the image; what the body gives beyond them (variances) is dropped.
    """

    def __init__(self, body: nn.Module, channels: int, *, classes: int = 0, label_scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.channels, self.classes, self.label_scale = body, channels, classes, label_scale

    @property
    def bottleneck(self) -> nn.Module:
        """The feature that designed solvers read (:mod:`dode.distillation.designer`)."""
        return self.body.bottleneck  # type: ignore[return-value]

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        return self.body(x, self.label_scale * label, classes)[:, : self.channels]
