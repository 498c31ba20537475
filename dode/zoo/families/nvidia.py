"""NVIDIA's pickles: DDPM++, NCSN++ (Song et al. 2021) and ADM as Karras et al. 2022 train and wrap them, and EDM2."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction, VEPrediction
from dode.schedules import EDM, VPContinuous, cosine
from dode.utils.files import FileError
from dode.zoo import edm2, pickles
from dode.zoo.blocks import Style
from dode.zoo.catalogue import Card, family
from dode.zoo.keys import Key, build, halves_swapped, keys_of, unused
from dode.zoo.unet import UNet

HEAD = 64  # channels of an attention head of ADM
ENCODERS: dict[str, Any] = dict(standard="", residual="residual", skip="skip")  # by what their halved image is here
USUAL: dict[str, dict[str, Any]] = dict(
    SongUNet=dict(model_channels=128, channel_mult=(1, 2, 2, 2), num_blocks=4, attn_resolutions=(16,)),
    DhariwalUNet=dict(model_channels=192, channel_mult=(1, 2, 3, 4), num_blocks=3, attn_resolutions=(32, 16, 8)),
)


def unet(
    kind: str, label_scale: float, img_resolution: int, in_channels: int, out_channels: int, *, model_channels: int,
    channel_mult: Sequence[int], num_blocks: int, attn_resolutions: Sequence[int], label_dim: int = 0,
    augment_dim: int = 0, channel_mult_emb: int = 4, dropout: float = 0.1, label_dropout: float = 0,
    embedding_type: str = "positional", channel_mult_noise: int = 1, encoder_type: str = "standard",
    decoder_type: str = "standard", resample_filter: Sequence[float] = (1, 1),
) -> tuple[UNet, Iterator[Key]]:  # fmt: skip
    """The network of NVIDIA's class ``kind``, with the names of its arguments; without its dropout.

    Augmentation's features are zero here, so the weight for them is never used.

    ValueError for options that none of the published networks has.
    """
    song = kind == "SongUNet"
    if encoder_type not in ENCODERS or decoder_type != "standard":
        raise ValueError(f"encoder {encoder_type!r} with decoder {decoder_type!r} is in no published network")
    if embedding_type not in ("positional", "fourier") or out_channels < in_channels:
        raise ValueError(f"embedding {embedding_type!r}, {in_channels} to {out_channels} channels: not published")
    base, taps = model_channels, tuple(resample_filter)
    common: dict[str, Any] = dict(
        embedding=base * channel_mult_emb, resampling="block", groups=lambda channels: min(32, channels // 4),
        sides=attn_resolutions,
    )  # fmt: skip
    style = Style(features=base, head_width=HEAD, **common) if not song else Style(
        features=base * channel_mult_noise, stem=base, classes_first=True, adaptive=False, weight=math.sqrt(0.5),
        frequencies="stored" if embedding_type == "fourier" else "closed", taps=taps, project=True, last_only=True,
        pyramid=ENCODERS[encoder_type], eps=1e-6, **common,
    )  # fmt: skip
    widths = [base * mult for mult in channel_mult]
    net = UNet(in_channels, img_resolution, 1, widths, num_blocks, 1, label_scale, label_dim, style)
    where = places(net, song)
    more = own(net, song, where, augment_dim)
    return net, keys_of(net, where, PARTS, more, order="hct", outputs=out_channels, sines_first=song)


PARTS = {
    "norm1": "norm0", "conv1": "conv0", "norm2": "norm1", "conv2": "conv1", "attention.norm": "norm2",
    "attention.qkv": "qkv", "attention.out": "proj", "norm": "norm2", "out": "proj",
}  # fmt: skip


def places(net: UNet, song: bool) -> dict[str, str]:
    """Where the blocks of a network are in the file."""
    first, last, deepest = f"{net.sides[0]}x{net.sides[0]}", f"{net.sides[-1]}x{net.sides[-1]}", len(net.sides) - 1
    found = {
        "embed.mlp.0": "map_layer0", "embed.mlp.2": "map_layer1", "stem.1": f"enc.{first}_conv",
        "middle.0": f"dec.{last}_in0", "middle.1": f"dec.{last}_in0", "middle.2": f"dec.{last}_in1",
        "head.0": f"dec.{first}_aux_norm" if song else "out_norm",
        "head.2": f"dec.{first}_aux_conv" if song else "out_conv",
    }  # fmt: skip
    for level, side in enumerate(net.sides):
        enc, dec, up = f"enc.{side}x{side}", f"dec.{side}x{side}", deepest - level
        found |= {f"down.{level * net.blocks + k}": f"{enc}_block{k}" for k in range(net.blocks)}
        found |= {f"up.{up * (net.blocks + 1) + k}": f"{dec}_block{k}" for k in range(net.blocks + 1)}
        found |= {f"shrink.{level - 1}": f"{enc}_down", f"pyramid.{level - 1}.0": f"{enc}_aux_residual"}
        found |= {f"pyramid.{level - 1}.1": f"{enc}_aux_skip"}
        found |= {f"grow.{up - 1}": f"{dec}_up"}
    return found


def own(net: UNet, song: bool, where: Mapping[str, str], augment_dim: int) -> Iterator[Key]:
    """What no block has.  Classes are a linear layer of one-hot vectors, in DDPM++ of length ``sqrt(classes)``."""
    classes, features = net.classes, 2 * len(net.embed.frequencies)
    if classes and song:  # added to the sinusoids
        shapes, scale = ((features, classes), (features,)), math.sqrt(classes)
        join: Any = lambda w, b: halves_swapped(torch.cat([scale * w.T + b, b[None]]))  # noqa: E731
        yield Key("kinds.weight", ("map_label.weight", "map_label.bias"), shapes, join)
    elif classes:
        join = lambda w: torch.cat([w.T, 0 * w.T[:1]])  # noqa: E731
        yield Key("kinds.weight", ("map_label.weight",), ((net.width, classes),), join)
    if net.style.frequencies == "stored":
        join = lambda found: 2 * math.pi * found.float()  # noqa: E731
        yield Key("embed.frequencies", ("map_noise.freqs",), ((features // 2,),), join)
    if augment_dim:
        yield from unused(["map_augment.weight"], (features, augment_dim))
    blocks = [where[f"{way}.{k}"] for way in ("shrink", "grow") for k in range(len(net.shrink))]
    filters = [f"{block}.{part}" for block in blocks for part in ("conv0", "skip")]
    skips = net.style.pyramid == "skip"  # there a layer of its own halves the image
    filters += [where[f"pyramid.{k}.{int(skips)}"].replace("_skip", "_down") for k in range(len(net.pyramid))]
    taps = len(net.style.taps)
    yield from unused([f"{name}.resample_filter" for name in filters], (1, 1, taps, taps))


def preconditioned(network: Any, kind: str, shape: tuple[int, ...], facts: Mapping[str, Any]) -> NetworkDenoiser:
    """Karras et al. 2022, table 1, and 2024.  ValueError for another kind, KeyError without the facts that it needs."""
    if kind == "Precond":
        return EDMPrediction(network, shape, EDM(0.002, 80.0), sigma_data=float(facts["sigma_data"]))
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


AT, NON_COMMERCIAL = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/", "CC BY-NC-SA 4.0"


def _edm(stem: str, steps: int, digest: str = "", size: int = 0, **stochastic: float) -> Card:
    """One of NVIDIA's networks (config F), from its name: data set, size, condition and architecture."""
    _, data, sides, condition, _ = stem.split("-")
    side, classes = int(sides.partition("x")[0]), dict(cifar10=10, imagenet=1000)[data] if condition == "cond" else 0
    return Card(
        name=stem, file=f"{stem}.pkl", url=f"{AT}{stem}.pkl", digest=digest, size=size, licence=NON_COMMERCIAL,
        source="Karras et al. 2022", shape=(3, side, side), classes=classes,
        settings=dict(solver="heun", steps=steps, sigma_min=0.002, sigma_max=80.0, rho=7.0) | stochastic,
    )  # fmt: skip


def _edm2(name: str, file: str) -> Card:
    """EDM2's networks of ImageNet, with the averages of best FID; those of 512 x 512 draw latents."""
    return Card(
        name=name, file=file, url=f"https://nvlabs-fi-cdn.nvidia.com/edm2/posthoc-reconstructions/{file}",
        licence=NON_COMMERCIAL, source="Karras et al. 2024", shape=(4 if "512" in name else 3, 64, 64), classes=1000,
        settings=dict(solver="heun", steps=32, sigma_min=0.002, sigma_max=80.0, rho=7.0),
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
    *(_edm2(f"edm2-img{stem.rsplit('-', 2)[0]}-fid", f"edm2-img{stem}.pkl") for stem in (
        "512-xs-2147483-0.135", "512-s-2147483-0.130", "512-m-2147483-0.100", "512-l-1879048-0.085",
        "512-xl-1342177-0.085", "512-xxl-0939524-0.070", "64-s-1073741-0.075", "64-m-2147483-0.060",
        "64-l-1073741-0.040", "64-xl-0671088-0.040")),
)  # fmt: skip


@family("nvidia", *CARDS, suffix=".pkl")
def read(path: Path, card: Card | None) -> NetworkDenoiser:
    """Any pickle of theirs: it says everything itself."""
    outer = pickles.network(path)
    facts, newer = outer.state, outer.kind == "Precond"  # EDM2's
    try:
        inner, side = outer.children["unet" if newer else "model"], int(facts["img_resolution"])
        if inner.kind not in (["UNet"] if newer else USUAL):
            raise ValueError(f"network {inner.kind!r}")
        scale = (facts["M"] - 1) / 999 if outer.kind == "VPPrecond" else 1.0
        positional, named = inner.arguments
        make: Any = partial(edm2.unet, *positional, **named)
        if not newer:
            make = partial(unet, inner.kind, scale, *positional, **USUAL[inner.kind] | named)
        network = build(inner.kind, make, inner.tensors(), path)
        found = preconditioned(network, outer.kind, (int(facts["img_channels"]), side, side), facts)
    except FileError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} holds {outer.kind} in a form that dode does not know: {error}") from None
    found.name = path.stem
    return found
