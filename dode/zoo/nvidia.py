"""DDPM++ and NCSN++ (Song et al. 2021), as Karras et al. 2022 train and publish them (appendix F, table 7)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo.blocks import Resample, UNetBlock, group_norm, sinusoids


class Fourier(nn.Module):
    """NCSN++'s fixed random frequencies, kept in the checkpoint."""

    freqs: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(features // 2))


class SongUNet(nn.Module):
    """``(B, C, H, W)`` images, ``(B,)`` noise labels and ``(B,)`` classes to ``(B, C, H, W)``.

    The arguments are those that NVIDIA's checkpoints carry, with their names and defaults.

    Parameters
    ----------
    label_dim
        Classes; 0 for none.
    augment_dim
        Features of an augmentation in training; they are zero here, so theirs is a weight
        that is loaded and never used.
    channel_mult
        Channels of each resolution, finest first, in units of ``model_channels``.
    embedding_type
        "positional" (DDPM++) or "fourier" (NCSN++).
    encoder_type
        "standard" (DDPM++), or "residual" (NCSN++): the noisy image is halved along and added at each resolution.
    dropout, label_dropout
        Of training; there is none here.

    Raises
    ------
    ValueError
        Options that none of the published networks has.
    """

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, augment_dim: int = 0,
        model_channels: int = 128, channel_mult: Sequence[int] = (1, 2, 2, 2), channel_mult_emb: int = 4,
        num_blocks: int = 4, attn_resolutions: Sequence[int] = (16,), dropout: float = 0.1, label_dropout: float = 0,
        embedding_type: str = "positional", channel_mult_noise: int = 1, encoder_type: str = "standard",
        decoder_type: str = "standard", resample_filter: Sequence[float] = (1, 1),
    ) -> None:  # fmt: skip
        super().__init__()
        if (encoder_type not in ("standard", "residual")) or decoder_type != "standard":
            raise ValueError(f"encoder {encoder_type!r} with decoder {decoder_type!r} is in no published network")
        if embedding_type not in ("positional", "fourier"):
            raise ValueError(f"embedding {embedding_type!r} is in no published network")
        self.label_dim, self.features, taps = label_dim, model_channels * channel_mult_noise, tuple(resample_filter)
        width = model_channels * channel_mult_emb
        self.map_noise = Fourier(self.features) if embedding_type == "fourier" else nn.Identity()
        self.map_label = nn.Linear(label_dim, self.features) if label_dim else None
        self.map_augment = nn.Linear(augment_dim, self.features, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(self.features, width)
        self.map_layer1 = nn.Linear(width, width)

        def block(c_in: int, c_out: int, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            return UNetBlock(
                c_in, c_out, width, up=up, down=down, heads=int(attention), adaptive=False, weight=math.sqrt(0.5),
                project=True, taps=taps, eps=1e-6,
            )  # fmt: skip

        channels = [model_channels * mult for mult in channel_mult]
        sides = [img_resolution >> level for level in range(len(channels))]
        self.enc = nn.ModuleDict({f"{sides[0]}x{sides[0]}_conv": nn.Conv2d(in_channels, model_channels, 3, padding=1)})
        c, skips, image = model_channels, [model_channels], in_channels
        for level, (side, c_out) in enumerate(zip(sides, channels, strict=True)):
            at = f"{side}x{side}"
            if level:
                self.enc[f"{at}_down"] = block(c, c, down=True)
                skips.append(c)
                if encoder_type == "residual":
                    self.enc[f"{at}_aux_residual"] = Resample(image, c, 3, down=True, taps=taps, fused=True)
                    image = c
            for k in range(num_blocks):
                self.enc[f"{at}_block{k}"] = block(c, c_out, side in attn_resolutions)
                c = c_out
                skips.append(c)
        self.dec = nn.ModuleDict()
        for level, side in reversed(list(enumerate(sides))):
            at = f"{side}x{side}"
            if level == len(sides) - 1:
                self.dec[f"{at}_in0"] = block(c, c, attention=True)
                self.dec[f"{at}_in1"] = block(c, c)
            else:
                self.dec[f"{at}_up"] = block(c, c, up=True)
            for k in range(num_blocks + 1):
                last = k == num_blocks and side in attn_resolutions
                self.dec[f"{at}_block{k}"] = block(c + skips.pop(), channels[level], last)
                c = channels[level]
        self.dec[f"{sides[0]}x{sides[0]}_aux_norm"] = group_norm(c, 1e-6)
        self.dec[f"{sides[0]}x{sides[0]}_aux_conv"] = nn.Conv2d(c, out_channels, 3, padding=1)

    @property
    def bottleneck(self) -> nn.Module:
        """The last block at the coarsest resolution before the first skip returns."""
        return next(block for name, block in self.dec.items() if name.endswith("_in1"))

    def embed(self, label: Tensor, classes: Tensor | None) -> Tensor:
        """Sines before cosines here; a class is a one-hot vector of length ``sqrt(label_dim)``."""
        if isinstance(self.map_noise, Fourier):
            angles = label[:, None].float() * (2 * math.pi * self.map_noise.freqs.float())
            cosines, sines = angles.cos(), angles.sin()
        else:
            cosines, sines = sinusoids(label, self.features, endpoint=True)
        e = torch.cat([sines, cosines], dim=1).to(self.map_layer0.weight.dtype)
        if self.map_label is not None:
            one_hot = torch.zeros(len(e), self.label_dim, dtype=e.dtype, device=e.device)
            if classes is not None:
                one_hot.scatter_(1, classes[:, None], math.sqrt(self.label_dim))
            e = e + self.map_label(one_hot)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(e))))

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        e = self.embed(label, classes)
        skips, image = list[Tensor](), x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                x = skips[-1] = image = (x + layer(image)) / math.sqrt(2)
            else:
                x = layer(x, e) if isinstance(layer, UNetBlock) else layer(x)
                skips.append(x)
        for name, layer in self.dec.items():
            if name.endswith("aux_norm"):
                x = F.silu(layer(x))
            elif name.endswith("aux_conv"):
                x = layer(x)
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, e)
        return x


HEAD = 64  # channels of an attention head


class DhariwalUNet(nn.Module):
    """``(B, C, H, W)`` images, ``(B,)`` noise labels and ``(B,)`` classes to ``(B, C, H, W)``.

    The arguments are those that NVIDIA's checkpoints carry, with their names and defaults; :class:`.SongUNet`
    explains the ones that both have.
    """

    def __init__(
        self, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0, augment_dim: int = 0,
        model_channels: int = 192, channel_mult: Sequence[int] = (1, 2, 3, 4), channel_mult_emb: int = 4,
        num_blocks: int = 3, attn_resolutions: Sequence[int] = (32, 16, 8), dropout: float = 0.1,
        label_dropout: float = 0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.label_dim, self.features, width = label_dim, model_channels, model_channels * channel_mult_emb
        self.map_augment = nn.Linear(augment_dim, model_channels, bias=False) if augment_dim else None
        self.map_layer0 = nn.Linear(model_channels, width)
        self.map_layer1 = nn.Linear(width, width)
        self.map_label = nn.Linear(label_dim, width, bias=False) if label_dim else None

        def block(c_in: int, c_out: int, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            return UNetBlock(c_in, c_out, width, up=up, down=down, heads=c_out // HEAD if attention else 0)

        channels = [model_channels * mult for mult in channel_mult]
        sides = [img_resolution >> level for level in range(len(channels))]
        c = channels[0]
        self.enc = nn.ModuleDict({f"{sides[0]}x{sides[0]}_conv": nn.Conv2d(in_channels, c, 3, padding=1)})
        skips = [c]
        for level, (side, c_out) in enumerate(zip(sides, channels, strict=True)):
            if level:
                self.enc[f"{side}x{side}_down"] = block(c, c, down=True)
                skips.append(c)
            for k in range(num_blocks):
                self.enc[f"{side}x{side}_block{k}"] = block(c, c_out, side in attn_resolutions)
                c = c_out
                skips.append(c)
        self.dec = nn.ModuleDict()
        for level, side in reversed(list(enumerate(sides))):
            if level == len(sides) - 1:
                self.dec[f"{side}x{side}_in0"] = block(c, c, attention=True)
                self.dec[f"{side}x{side}_in1"] = block(c, c)
            else:
                self.dec[f"{side}x{side}_up"] = block(c, c, up=True)
            for k in range(num_blocks + 1):
                self.dec[f"{side}x{side}_block{k}"] = block(c + skips.pop(), channels[level], side in attn_resolutions)
                c = channels[level]
        self.out_norm = group_norm(c, 1e-5)
        self.out_conv = nn.Conv2d(c, out_channels, 3, padding=1)

    @property
    def bottleneck(self) -> nn.Module:
        """The last block at the coarsest resolution before the first skip returns."""
        return next(block for name, block in self.dec.items() if name.endswith("_in1"))

    def embed(self, label: Tensor, classes: Tensor | None) -> Tensor:
        """Cosines before sines here; a class is a one-hot vector."""
        e = torch.cat(sinusoids(label, self.features), dim=1).to(self.map_layer0.weight.dtype)
        e = self.map_layer1(F.silu(self.map_layer0(e)))
        if self.map_label is not None and classes is not None:
            e = e + self.map_label.weight.T[classes]
        return F.silu(e)

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        e = self.embed(label, classes)
        skips = list[Tensor]()
        for layer in self.enc.values():
            x = layer(x, e) if isinstance(layer, UNetBlock) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "_block" in name else x, e)
        return self.out_conv(F.silu(self.out_norm(x)))
