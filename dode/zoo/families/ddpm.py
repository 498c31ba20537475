"""DDPM's U-Net (Ho et al. 2020) in PyTorch: DDIM's CelebA network, and the conversions that the same program reads.

Song et al. 2021 (DDIM), github.com/ermongroup/ddim.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dode.denoisers import NetworkDenoiser, NoisePrediction
from dode.schedules import VPDiscrete
from dode.zoo.blocks import Style
from dode.zoo.catalogue import Card, family
from dode.zoo.keys import Key, build, keys_of
from dode.zoo.states import tensors_of
from dode.zoo.unet import UNet


def unet(
    image_size: int, ch: int = 128, ch_mult: Sequence[int] = (1, 2, 2, 2), num_res_blocks: int = 2,
    attn_resolutions: Sequence[int] = (16,), in_channels: int = 3,
) -> tuple[UNet, Iterator[Key]]:  # fmt: skip
    """A network by the entries of the configurations that come with the checkpoints."""
    style = Style(
        features=ch, embedding=4 * ch, stem=ch, frequencies="closed", adaptive=False, resampling="padded",
        sides=attn_resolutions, groups=lambda channels: 32, eps=1e-6,
    )  # fmt: skip
    net = UNet(in_channels, image_size, 1, [ch * mult for mult in ch_mult], num_res_blocks, 1, style=style)
    return net, keys_of(net, places(net), PARTS, sines_first=True)


PARTS = dict(affine="temb_proj", skip="nin_shortcut", out="proj_out")


def places(net: UNet) -> dict[str, str]:
    """Where the blocks of a network are in the file."""
    found = {
        "embed.mlp.0": "temb.dense.0", "embed.mlp.2": "temb.dense.1", "stem.1": "conv_in", "middle.0": "mid.block_1",
        "middle.1": "mid.attn_1", "middle.2": "mid.block_2", "head.0": "norm_out", "head.2": "conv_out",
    }  # fmt: skip
    top = len(net.widths) - 1
    for way, per in (("down", net.blocks), ("up", net.blocks + 1)):
        for k in range(per * (top + 1)):
            at = f"{way}.{k // per if way == 'down' else top - k // per}"
            found |= {f"{way}.{k}": f"{at}.block.{k % per}", f"{way}.{k}.attention": f"{at}.attn.{k % per}"}
    for k in range(top):
        found |= {f"shrink.{k}.1": f"down.{k}.downsample.conv", f"grow.{k}": f"up.{top - k}.upsample.conv"}
    return found


def _card(name: str, side: int, mult: tuple[int, ...], **where: Any) -> Card:
    """Betas linear from 1e-4 to 0.02 in 1000 steps."""
    where = dict(licence="MIT (github.com/pesser/pytorch_diffusion)", source="Ho et al. 2020") | where
    network = dict(image_size=side, ch=128, ch_mult=mult, num_res_blocks=2, attn_resolutions=(16,))
    return Card(name=name, shape=(3, side, side), schedule=VPDiscrete(), network=network, **where)


HEIBOX = "https://heibox.uni-heidelberg.de/f/"
CARDS = (
    _card("ddim-celeba-64", 64, (1, 2, 2, 2, 4), file="ddim-celeba-64.pth", licence="MIT",
          source="Song et al. 2021 (DDIM)", page="https://drive.google.com/file/d/1R_H-fJYXSH79wfSKs9D-fuKQVan5L-GR/view"),
    _card("ddpm-cifar10-32", 32, (1, 2, 2, 2), file="ema_diffusion_cifar10_model-790000.ckpt",
          url=f"{HEIBOX}2e4f01e2d9ee49bab1d5/?dl=1", digest="md5:1fa350b952534ae442b1d5235cce5cd3"),
    *(_card(f"ddpm-lsun-{what}-256", 256, (1, 1, 2, 2, 4, 4), file=f"ema_diffusion_lsun_{what}_model-{step}.ckpt",
            url=f"{HEIBOX}{place}/?dl=1", digest=f"md5:{digest}")
      for what, step, place, digest in (
          ("bedroom", 2388000, "b95206528f384185889b", "1921fa46b66a3665e450e42f36c2720f"),
          ("cat", 1761000, "0701aac3aa69457bbe34", "646f23f4821f2459b8bafc57fd824558"),
          ("church", 4432000, "44ccb50ef3c6436db52e", "fdc68a23938c2397caba4a260bc2445f"))),
)  # fmt: skip


@family("ddpm", *CARDS)
def read(path: Path, card: Card) -> NetworkDenoiser:
    """A state dictionary, or the list that DDIM's program writes."""
    assert card.schedule is not None
    return NoisePrediction(
        build("Model", partial(unet, **card.network), tensors_of(path), path), card.shape, card.schedule
    )
