"""OpenAI's networks: improved-diffusion, guided-diffusion and consistency models, and their noisy classifiers.

Nichol and Dhariwal 2021; Dhariwal and Nichol 2021, section 3, and appendix H for the classifier.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dode.denoisers import ConsistencyPrediction, EDMPrediction, NetworkDenoiser, NoisePrediction
from dode.schedules import EDM, Schedule, VPDiscrete
from dode.zoo.blocks import Style, Transformer, attend
from dode.zoo.catalogue import Card, family
from dode.zoo.keys import Key, build, keys_of, unused
from dode.zoo.states import tensors_of
from dode.zoo.unet import UNet


class NoisyClassifier(UNet):
    """The way down of their U-Net: ``(B, 3, H, W)`` images and ``(B,)`` labels to logits ``(B, outputs)``."""

    def __init__(self, outputs: int, **arguments: Any) -> None:
        super().__init__(**arguments)
        del self.up, self.grow
        c = self.widths[-1]
        pool = AttentionPool(self.sides[-1], c, self.style.head_width, outputs)
        self.head = nn.Sequential(self.style.norm(c), nn.SiLU(), pool)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:  # type: ignore[override]
        return self.head(self.encode(x, self.embedding(label, None, len(x)))[0])


class AttentionPool(nn.Module):
    """The answer of one more pixel, the mean of all, that attends to every pixel."""

    def __init__(self, side: int, channels: int, head: int, outputs: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.zeros(channels, side**2 + 1))
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)
        self.heads = channels // head

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(dim=2, keepdim=True), x], dim=2) + self.positional_embedding
        return self.c_proj(attend(self.qkv_proj(x), self.heads))[:, :, 0]


def unet(
    label_scale: float, image_size: int, num_channels: int, num_res_blocks: int, channel_mult: Sequence[float], *,
    attention_resolutions: Sequence[int] = (16, 8), num_heads: int = 4, num_head_channels: int = 0,
    use_scale_shift_norm: bool = True, resblock_updown: bool = False, use_new_attention_order: bool = False,
    learn_sigma: bool = True, num_classes: int = 0, in_channels: int = 3, classifies: bool = False,
    context_dim: int = 0, n_classes: int = 0,
) -> tuple[UNet, Iterator[Key]]:  # fmt: skip
    """A network by the flags of their scripts; ``learn_sigma``: three channels more, which no ODE solver needs.

    ``attention_resolutions`` are sides of maps; a first ``channel_mult`` of 0.5 is that of their 512 x 512 networks.
    ``context_dim`` and ``n_classes`` are latent diffusion's: of its embedding of classes, which may hold "none" too.
    """
    style = Style(
        features=num_channels, embedding=4 * num_channels, adaptive=use_scale_shift_norm, sides=attention_resolutions,
        head_width=num_head_channels or (64 if classifies else 0), groups=lambda channels: 32,
        resampling="block" if resblock_updown else "convolution", context=context_dim,
    )  # fmt: skip
    common: dict[str, Any] = dict(
        channels=in_channels, size=image_size, patch=1, widths=[int(num_channels * mult) for mult in channel_mult],
        blocks=num_res_blocks, heads=num_heads, style=style,
    )  # fmt: skip
    outputs = 0 if classifies else in_channels + (3 if learn_sigma else 0)
    net: UNet
    if classifies:
        net = NoisyClassifier(num_classes, **common)
    else:
        net = UNet(**common, label_scale=label_scale, classes=num_classes)
    where, order = places(net), "" if context_dim else "thc" if use_new_attention_order else "htc"
    parts = PARTS | TRANSFORMER if context_dim else PARTS
    return net, keys_of(net, where, parts, own(net, where, n_classes or num_classes), order=order, outputs=outputs)


def own(net: UNet, where: Mapping[str, str], rows: int) -> Iterator[Key]:
    """The embedding of classes, and what nothing needs of cross-attention to one token: its query and key."""
    context = net.style.context
    if net.classes:  # without a row for "any" there are zeros
        join = lambda w: torch.cat([w, 0 * w[:1]])[: net.classes + 1]  # noqa: E731
        name = EMBEDDING if context else "label_emb.weight"
        yield Key("kinds.weight", (name,), ((rows, context or net.width),), join)
    for name, module in net.named_modules():
        if isinstance(module, Transformer):
            at, c = f"{where[name]}.{INNER}", module.out.out_features
            yield from unused([f"{at}.norm2.weight", f"{at}.norm2.bias"], (c,))
            yield from unused([f"{at}.attn2.to_q.weight"], (c, c)) + unused([f"{at}.attn2.to_k.weight"], (c, context))


EMBEDDING, INNER = "cond_stage_model.embedding.weight", "transformer_blocks.0"  # latent diffusion's
TRANSFORMER = {
    "enter": "proj_in", "norm_mix": f"{INNER}.norm1", "qkv": f"{INNER}.attn1.to_qkv", "mix": f"{INNER}.attn1.to_out.0",
    "value": f"{INNER}.attn2.to_v", "place": f"{INNER}.attn2.to_out.0", "norm_widen": f"{INNER}.norm3",
    "widen": f"{INNER}.ff.net.0.proj", "narrow": f"{INNER}.ff.net.2",
}  # fmt: skip
PARTS = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "affine": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "skip": "skip_connection", "out": "proj_out",
}  # fmt: skip


def places(net: UNet) -> dict[str, str]:
    """Where the blocks of a network are in the file; the gaps in the numbers of layers are parameterless ones."""
    op, conv = ("", "") if net.style.resampling == "block" else (".op", ".conv")
    found = {
        "embed.mlp.0": "time_embed.0", "embed.mlp.2": "time_embed.2", "stem.1": "input_blocks.0.0",
        "head.0": "out.0", "head.2": "out.2",
    }  # fmt: skip
    found |= {f"middle.{k}": f"middle_block.{k}" for k in range(3)}
    number = 0
    for k in range(len(net.down)):
        if k and k % net.blocks == 0:
            number += 1
            found[f"shrink.{k // net.blocks - 1}"] = f"input_blocks.{number}.0{op}"
        number += 1
        found |= {f"down.{k}": f"input_blocks.{number}.0", f"down.{k}.attention": f"input_blocks.{number}.1"}
    if isinstance(net, NoisyClassifier):
        return found
    for k, block in enumerate(net.up):
        found |= {f"up.{k}": f"output_blocks.{k}.0", f"up.{k}.attention": f"output_blocks.{k}.1"}
        level, place = divmod(k, net.blocks + 1)
        if place == net.blocks and level < len(net.grow):  # the last of its resolution
            after = 1 if block.attention is None else 2
            found[f"grow.{level}"] = f"output_blocks.{k}.{after}{conv}"
    return found


AT, IDDPM = "https://openaipublic.blob.core.windows.net/", "Nichol and Dhariwal 2021"
JULY, MARCH = "diffusion/jul-2021/", "diffusion/march-2021/"
COSINE = VPDiscrete(steps=4000, kind="cosine")
ADM: dict[str, Any] = dict(attention_resolutions=(32, 16, 8), resblock_updown=True)
HEADS: dict[str, Any] = dict(num_head_channels=64)
MULTIPLES = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4),
             512: (0.5, 1, 1, 2, 2, 4, 4)}  # fmt: skip


def _card(
    name: str, file: str, side: int, channels: int, blocks: int, *, source: str = "Dhariwal and Nichol 2021",
    classes: int = 0, digest: str = "", size: int = 0, schedule: Schedule | None = None, label_scale: float = 1.0,
    settings: Mapping[str, Any] | None = None, **flags: Any,
) -> Card:  # fmt: skip
    """``file`` is the path at their address."""
    network = dict(image_size=side, num_channels=channels, num_res_blocks=blocks, channel_mult=MULTIPLES[side])
    return Card(
        name=name, file=file.rpartition("/")[2], url=AT + file, digest=digest, size=size, licence="MIT", source=source,
        shape=(3, side, side), classes=classes, label_scale=label_scale,
        network=network | flags | (dict(num_classes=classes) if classes else {}), schedule=schedule or VPDiscrete(),
        settings=settings or {},
    )  # fmt: skip


def _guidance(side: int, scale: float) -> dict[str, Any]:
    return dict(classifier=f"adm-imagenet-{side}-classifier", classifier_scale=scale)


HEUN: dict[str, Any] = dict(solver="heun", steps=40)


def _consistency(name: str, stem: str, digest: str = "", size: int = 0, **settings: Any) -> Card:
    """A network of their program for consistency models, which has EDM's noise levels."""
    shape: dict[str, Any] = dict(side=256, channels=256, blocks=2, use_scale_shift_norm=False)
    if "imagenet" in name:
        shape = dict(side=64, channels=192, blocks=3, classes=1000)
    return _card(
        name, f"consistency/{stem}.pt", source="Song et al. 2023", digest=digest, size=size, schedule=EDM(),
        label_scale=1000.0, learn_sigma=False, use_new_attention_order=True, **ADM, **HEADS, **shape,
        settings=settings | dict(sigma_min=0.002, sigma_max=80.0, rho=7.0),
    )  # fmt: skip


CARDS = (
    _card("adm-imagenet-64", f"{JULY}64x64_diffusion.pt", 64, 192, 3, classes=1000, settings=_guidance(64, 1.0),
          schedule=VPDiscrete(kind="cosine"), use_new_attention_order=True, **ADM, **HEADS),
    # The paper on D-ODE solvers guides the 128 x 128 network with a scale of 1.25.
    _card("adm-imagenet-128", f"{JULY}128x128_diffusion.pt", 128, 256, 2, classes=1000, settings=_guidance(128, 0.5),
          num_heads=4, **ADM),
    _card("adm-imagenet-256", f"{JULY}256x256_diffusion.pt", 256, 256, 2, classes=1000, settings=_guidance(256, 1.0),
          **ADM, **HEADS),
    _card("adm-imagenet-256-uncond", f"{JULY}256x256_diffusion_uncond.pt", 256, 256, 2, settings=_guidance(256, 10.0),
          digest="sha256:a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1", size=2_211_383_297,
          **ADM, **HEADS),
    _card("adm-imagenet-512", f"{JULY}512x512_diffusion.pt", 512, 256, 2, classes=1000, settings=_guidance(512, 4.0),
          **ADM, **HEADS),
    *(_card(f"adm-lsun-{what}", f"{JULY}lsun_{what.replace('-', '_')}.pt", 256, 256, 2, settings=dict(steps=1000),
            **ADM, **HEADS) for what in ("bedroom", "cat", "horse", "horse-nodropout")),
    _consistency("edm-imagenet-64", "edm_imagenet64_ema", **HEUN),
    _consistency("edm-lsun-bedroom-256", "edm_bedroom256_ema", **HEUN, size=2_105_395_349,
                 digest="sha256:5947bb5ae7b664feef1796ebe0a531efcf689d76e81d03ba88159dd8019b674f"),
    _consistency("edm-lsun-cat-256", "edm_cat256_ema", **HEUN),
    # Labels run over 0..1000 whatever the number of steps, but for the class-conditional network.
    *(_card(f"iddpm-{name}", f"{MARCH}{file}.pt", side, 128, 3, source=IDDPM, schedule=COSINE, label_scale=0.25)
      for name, side, file in (
          ("imagenet-64", 64, "imagenet64_uncond_100M_1500K"),
          ("imagenet-64-vlb", 64, "imagenet64_uncond_vlb_100M_1500K"),
          ("cifar10-32", 32, "cifar10_uncond_50M_500K"), ("cifar10-32-vlb", 32, "cifar10_uncond_vlb_50M_500K"))),
    _card("iddpm-imagenet-64-cond", f"{MARCH}imagenet64_cond_270M_250K.pt", 64, 192, 3, source=IDDPM, schedule=COSINE,
          classes=1000),
    *(_card(name, f"{MARCH}lsun_uncond_100M_{file}.pt", 256, 128, 2, source=IDDPM, num_heads=1,
            use_scale_shift_norm=False, attention_resolutions=(16,)) for name, file in (
                ("iddpm-lsun-bedroom-256", "1200K_bs128"), ("iddpm-lsun-bedroom-256-2400k", "2400K_bs64"))),
)  # fmt: skip
CLASSIFIERS = (
    _card("adm-imagenet-64-classifier", f"{JULY}64x64_classifier.pt", 64, 128, 4, classes=1000,
          schedule=VPDiscrete(kind="cosine"), **ADM),
    *(_card(f"adm-imagenet-{side}-classifier", f"{JULY}{side}x{side}_classifier.pt", side, 128, 2, classes=1000, **ADM)
      for side in (128, 256, 512)),
)  # fmt: skip
CONSISTENCY = tuple(
    _consistency(f"{way}-{name}{loss and '-'}{loss}", f"{way}_{file}{loss and '_'}{loss}", steps=1)
    for name, file in (("imagenet-64", "imagenet64"), ("lsun-bedroom-256", "bedroom256"), ("lsun-cat-256", "cat256"))
    for way, loss in (("cd", "l2"), ("cd", "lpips"), ("ct", ""))
)


@family("openai", *CARDS)
def read(path: Path, card: Card, tensors: Mapping[str, Tensor] | None = None) -> NetworkDenoiser:
    """A state dictionary: EDM's preconditioning on EDM's schedule, else a predicted noise."""
    make = partial(unet, card.label_scale, **card.network)
    network = build("UNetModel", make, tensors_of(path) if tensors is None else tensors, path)
    wrapper = EDMPrediction if isinstance(card.schedule, EDM) else NoisePrediction
    assert card.schedule is not None
    return wrapper(network, card.shape, card.schedule)


@family("openai-consistency", *CONSISTENCY)
def read_consistency(path: Path, card: Card) -> ConsistencyPrediction:
    """A state dictionary of a distilled or trained consistency model, the identity at ``sigma_min``."""
    assert card.schedule is not None
    return ConsistencyPrediction(read(path, card).network, card.shape, card.schedule)


@family("openai-classifier", *CLASSIFIERS, classifies=True)
def read_classifier(path: Path, card: Card) -> nn.Module:
    """A state dictionary."""
    return build("EncoderUNetModel", partial(unet, 1.0, **card.network, classifies=True), tensors_of(path), path)
