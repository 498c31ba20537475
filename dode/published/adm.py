"""ADM (Dhariwal and Nichol 2021) with the parameter names of NVIDIA's checkpoints; :mod:`.guided` has OpenAI's."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.published.blocks import UNetBlock, group_norm, sinusoids

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
