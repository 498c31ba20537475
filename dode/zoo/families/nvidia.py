"""NVIDIA's pickles: DDPM++, NCSN++ (Song et al. 2021) and ADM as Karras et al. 2022 train and wrap them (appendix F)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction, VEPrediction
from dode.schedules import EDM, VPContinuous, cosine
from dode.utils.files import FileError
from dode.zoo import pickles
from dode.zoo.blocks import Style
from dode.zoo.catalogue import Card, family
from dode.zoo.keys import Key, build, cut, qkv, renamed, same, swapped, unused
from dode.zoo.unet import UNet

HEAD = 64  # channels of an attention head of ADM


def unet(
    kind: str, label_scale: float, img_resolution: int, in_channels: int, out_channels: int, label_dim: int = 0,
    augment_dim: int = 0, model_channels: int | None = None, channel_mult: Sequence[int] | None = None,
    channel_mult_emb: int = 4, num_blocks: int | None = None, attn_resolutions: Sequence[int] | None = None,
    dropout: float = 0.1, label_dropout: float = 0, embedding_type: str = "positional", channel_mult_noise: int = 1,
    encoder_type: str = "standard", decoder_type: str = "standard", resample_filter: Sequence[float] = (1, 1),
) -> tuple[UNet, Iterator[Key]]:  # fmt: skip
    """The network that NVIDIA's "SongUNet" or "DhariwalUNet" makes of these arguments, with their defaults.

    There is no dropout here, and no augmentation: its features are zero, so its weight is never used.

    ValueError for options that none of the published networks has.
    """
    song = kind == "SongUNet"
    if kind not in ("SongUNet", "DhariwalUNet"):
        raise ValueError(f"network {kind!r}")
    if encoder_type not in ("standard", "residual") or decoder_type != "standard":
        raise ValueError(f"encoder {encoder_type!r} with decoder {decoder_type!r} is in no published network")
    if embedding_type not in ("positional", "fourier"):
        raise ValueError(f"embedding {embedding_type!r} is in no published network")
    if out_channels < in_channels:
        raise ValueError(f"{out_channels} channels come out for an image of {in_channels}")
    base = model_channels or (128 if song else 192)
    usual = (1, 2, 2, 2) if song else (1, 2, 3, 4)
    widths = [base * mult for mult in (usual if channel_mult is None else channel_mult)]
    common: dict[str, Any] = dict(
        embedding=base * channel_mult_emb, resampling="block", groups=lambda channels: min(32, channels // 4),
    )  # fmt: skip
    if song:
        style = Style(
            features=base * channel_mult_noise, stem=base, classes_first=True, adaptive=False, weight=math.sqrt(0.5),
            frequencies="stored" if embedding_type == "fourier" else "closed", taps=tuple(resample_filter),
            project=True, pyramid=encoder_type == "residual", last_only=True, eps=1e-6,
            sides=(16,) if attn_resolutions is None else attn_resolutions, **common,
        )  # fmt: skip
    else:
        sides = (32, 16, 8) if attn_resolutions is None else attn_resolutions
        style = Style(features=base, head_width=HEAD, sides=sides, **common)
    blocks = num_blocks or (4 if song else 3)
    net = UNet(in_channels, img_resolution, 1, widths, blocks, 1, label_scale, label_dim, style)
    return net, keys(net, song, out_channels, augment_dim)


PARTS = {
    "norm1": "norm0", "conv1": "conv0", "norm2": "norm1", "conv2": "conv1", "attention.norm": "norm2",
    "attention.qkv": "qkv", "attention.out": "proj", "norm": "norm2", "out": "proj",
}  # fmt: skip


def places(net: UNet, song: bool) -> dict[str, str]:
    """Where the blocks of a network are in the file."""
    first, last = (f"{side}x{side}" for side in (net.sides[0], net.sides[-1]))
    found = {
        "embed.mlp.0": "map_layer0", "embed.mlp.2": "map_layer1", "stem.1": f"enc.{first}_conv",
        "middle.0": f"dec.{last}_in0", "middle.1": f"dec.{last}_in0", "middle.2": f"dec.{last}_in1",
        "head.0": f"dec.{first}_aux_norm" if song else "out_norm",
        "head.2": f"dec.{first}_aux_conv" if song else "out_conv",
    }  # fmt: skip
    for level, side in enumerate(net.sides):
        at, coarser = f"{side}x{side}", len(net.sides) - 1 - level
        for k in range(net.blocks):
            found[f"down.{level * net.blocks + k}"] = f"enc.{at}_block{k}"
        for k in range(net.blocks + 1):
            found[f"up.{coarser * (net.blocks + 1) + k}"] = f"dec.{at}_block{k}"
        if level:
            found[f"shrink.{level - 1}"] = f"enc.{at}_down"
            found[f"pyramid.{level - 1}.0"] = f"enc.{at}_aux_residual"
        if coarser:
            found[f"grow.{coarser - 1}"] = f"dec.{at}_up"
    return found


def keys(net: UNet, song: bool, out_channels: int, augment_dim: int) -> Iterator[Key]:
    """All of the file's tensors."""
    where = places(net, song)
    for ours, t in net.state_dict().items():
        if ours == "kinds.weight":
            yield _classes(ours, t, song)
        elif ours == "embed.frequencies":
            yield Key(ours, ("map_noise.freqs",), (tuple(t.shape),), lambda found: 2 * math.pi * found.float())
        else:
            name = renamed(ours, where, PARTS)
            if ".qkv." in ours:
                yield qkv(ours, name, t, 1 if song else len(t) // 3 // HEAD, "hct")
            elif ours.startswith("head.2"):
                yield cut(ours, name, t, out_channels)
            else:
                yield (swapped if song and ours == "embed.mlp.0.weight" else same)(ours, name, t)
    if augment_dim:
        yield from unused(["map_augment.weight"], (2 * len(net.embed.frequencies), augment_dim))
    resampled = [f"{where[f'{way}.{k}']}.{part}" for way in ("shrink", "grow") for k in range(len(net.shrink))
                 for part in ("conv0", "skip")]  # fmt: skip
    resampled += [where[f"pyramid.{k}.0"] for k in range(len(net.pyramid or ()))]
    taps = len(net.style.taps)
    yield from unused([f"{name}.resample_filter" for name in resampled], (1, 1, taps, taps))


def _classes(ours: str, t: Tensor, song: bool) -> Key:
    """Theirs is a linear layer of a one-hot vector, in DDPM++ of length ``sqrt(classes)`` and with a bias."""
    classes, width = len(t) - 1, t.shape[1]
    if not song:
        return Key(ours, ("map_label.weight",), ((width, classes),), lambda w: torch.cat([w.T, 0 * w.T[:1]]))
    names, shapes = ("map_label.weight", "map_label.bias"), ((width, classes), (width,))

    def join(w: Tensor, b: Tensor) -> Tensor:  # added to the sinusoids, of which sines come first there
        return torch.cat([math.sqrt(classes) * w.T + b, b[None]]).roll(width // 2, 1)

    return Key(ours, names, shapes, join)


def preconditioned(network: Any, kind: str, shape: tuple[int, ...], facts: Mapping[str, Any]) -> NetworkDenoiser:
    """Karras et al. 2022, table 1.  ValueError or KeyError for a kind, or without the facts, that nothing here knows."""
    if kind == "EDMPrecond":  # the range is that of their sampler, inside what the network takes
        span = EDM(max(0.002, float(facts["sigma_min"])), min(80.0, float(facts["sigma_max"])))
        return EDMPrediction(network, shape, span, sigma_data=float(facts["sigma_data"]))
    if kind == "VPPrecond":
        low, extent = float(facts["beta_min"]), float(facts["beta_d"])
        return NoisePrediction(network, shape, VPContinuous(low, low + extent))
    if kind == "VEPrecond":
        return VEPrediction(network, shape, EDM(float(facts["sigma_min"]), float(facts["sigma_max"])))
    if kind == "iDDPMPrecond" and (facts["C_1"], facts["C_2"]) == (0.001, 0.008):  # fractional labels stay so
        return NoisePrediction(network, shape, cosine(int(facts["M"])))
    raise ValueError(f"preconditioning {kind!r}")


SONG: dict[str, Any] = dict(augment_dim=9, model_channels=128)
# What the names of NVIDIA's files stand for.
ARCHITECTURES: dict[str, dict[str, Any]] = dict(
    vp=SONG | dict(embedding_type="positional", encoder_type="standard", resample_filter=(1, 1)),
    ve=SONG | dict(
        embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=(1, 3, 3, 1)
    ),
    adm=dict(model_channels=192),
)  # fmt: skip
AT, NON_COMMERCIAL = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/", "CC BY-NC-SA 4.0"


def _edm(stem: str, steps: int, digest: str = "", size: int = 0, **stochastic: float) -> Card:
    """One of NVIDIA's networks (config F), from its name: data set, size, condition and architecture."""
    _, data, sides, condition, architecture = stem.split("-")
    side, classes = int(sides.partition("x")[0]), dict(cifar10=10, imagenet=1000)[data] if condition == "cond" else 0
    widths = (1, 2, 3, 4) if architecture == "adm" else (2, 2, 2) if side == 32 else (1, 2, 2, 2)
    network = dict(img_resolution=side, in_channels=3, out_channels=3, label_dim=classes, channel_mult=widths)
    return Card(
        name=stem, file=f"{stem}.pkl", url=f"{AT}{stem}.pkl", digest=digest, size=size, licence=NON_COMMERCIAL,
        source="Karras et al. 2022", shape=(3, side, side), classes=classes,
        network=network | ARCHITECTURES[architecture],
        settings=dict(solver="heun", steps=steps, sigma_min=0.002, sigma_max=80.0, rho=7.0) | stochastic,
    )  # fmt: skip


def _baseline(stem: str, side: int, origin: str, classes: int = 0) -> Card:
    """The networks that EDM compares with (config A), in the same wrapping."""
    return Card(
        name=stem, file=f"{stem}.pkl", url=f"{AT}baseline/{stem}.pkl", classes=classes,
        licence=f"{NON_COMMERCIAL}, derived from {origin}", source="Karras et al. 2022", shape=(3, side, side),
    )  # fmt: skip


CARDS = (
    _edm("edm-cifar10-32x32-cond-vp", 18),
    _edm("edm-cifar10-32x32-cond-ve", 18),
    _edm("edm-cifar10-32x32-uncond-vp", 18, "sha256:4d5dcc1f1d0d41c8934ad21626eeddbdc0460182becf9fc059a0631b1eedb4da"),
    _edm("edm-cifar10-32x32-uncond-ve", 18),
    _edm("edm-ffhq-64x64-uncond-vp", 40, "sha256:f6f8f24a2b46ae79807b0f919e2550c6ed37cc3f8b7a2100629092cad9b5d2f5",
         247_513_128),
    _edm("edm-ffhq-64x64-uncond-ve", 40),
    _edm("edm-afhqv2-64x64-uncond-vp", 40),
    _edm("edm-afhqv2-64x64-uncond-ve", 40),
    _edm("edm-imagenet-64x64-cond-adm", 256, S_churn=40.0, S_min=0.05, S_max=50.0, S_noise=1.003),
    _baseline("baseline-cifar10-32x32-uncond-vp", 32, "Song et al. 2021 (Apache 2.0)"),
    _baseline("baseline-cifar10-32x32-uncond-ve", 32, "Song et al. 2021 (Apache 2.0)"),
    _baseline("baseline-imagenet-64x64-cond-adm", 64, "Dhariwal and Nichol 2021 (MIT)", 1000),
)  # fmt: skip


@family("nvidia", *CARDS, suffix=".pkl")
def read(path: Path, card: Card | None) -> NetworkDenoiser:
    """Any pickle of theirs: it says everything itself."""
    outer = pickles.network(path)
    facts = outer.state
    try:
        inner, shape = outer.children["model"], (int(facts["img_channels"]), *2 * [int(facts["img_resolution"])])
        positional, named = inner.arguments
        scale = (facts["M"] - 1) / 999 if outer.kind == "VPPrecond" else 1.0
        net = build(inner.kind, partial(unet, inner.kind, scale, *positional, **named), inner.tensors(), path)
        return preconditioned(net, outer.kind, shape, facts)
    except FileError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} holds {outer.kind} in a form that dode does not know: {error}") from None
