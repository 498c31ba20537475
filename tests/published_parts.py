"""What the tests of the published networks share: small networks, files as published, cards of the catalogue."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from small import refused
from test_pickles import Nvidia
from torch import Tensor, nn

from dode.utils.files import FileError
from dode.zoo import edm2, load_published
from dode.zoo.families import ddpm, nvidia, openai
from dode.zoo.keys import build
from dode.zoo.unet import UNet

TAPS = (1, 3, 3, 1)
SONG = dict(
    img_resolution=8, in_channels=3, out_channels=3, model_channels=32, channel_mult=(1, 2), num_blocks=1,
    attn_resolutions=(8,),
)  # fmt: skip
VP = SONG | dict(augment_dim=9)
VE = SONG | dict(
    attn_resolutions=(4,), embedding_type="fourier", channel_mult_noise=2, encoder_type="residual",
    resample_filter=TAPS,
)  # fmt: skip
ADM = SONG | dict(model_channels=64, attn_resolutions=(4,))
GUIDED: dict[str, Any] = dict(
    image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,),
    num_head_channels=16,
)  # fmt: skip
CLASSIFIER: dict[str, Any] = GUIDED | dict(num_classes=10, resblock_updown=True)
CLASSES: dict[str, Any] = GUIDED | dict(
    num_classes=10, n_classes=11, context_dim=24, learn_sigma=False, use_scale_shift_norm=False
)
DDPM = dict(image_size=8, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))
EDM2: dict[str, Any] = dict(
    img_resolution=8, img_channels=3, label_dim=10, model_channels=32, channel_mult=[1, 2], num_blocks=1,
    attn_resolutions=[4], label_balance=0.4, concat_balance=0.6, channels_per_head=16, res_balance=0.25,
    attn_balance=0.35, clip_act=2,
)  # fmt: skip
# What makes a network of each kind, and a small one's arguments.
MAKERS: dict[str, Any] = dict(
    vp=partial(nvidia.unet, "SongUNet", 1.0), ve=partial(nvidia.unet, "SongUNet", 1.0),
    adm=partial(nvidia.unet, "DhariwalUNet", 1.0), guided=partial(openai.unet, 1.0), ddpm=ddpm.unet,
    classifier=partial(openai.unet, 1.0, classifies=True), edm2=edm2.unet, latent=partial(openai.unet, 1.0),
)  # fmt: skip
SMALL: dict[str, dict[str, Any]] = dict(
    vp=VP, ve=VE, adm=ADM, guided=GUIDED, ddpm=DDPM, classifier=CLASSIFIER, edm2=EDM2, latent=CLASSES
)


def shapes(kind: str, **arguments: Any) -> dict[str, tuple[int, ...]]:
    """Of the tensors in a file that holds such a network, by name."""
    with torch.device("meta"):
        return {name: s for key in MAKERS[kind](**arguments)[1] for name, s in zip(key.names, key.shapes, strict=True)}


def state(kind: str, seed: int = 0, **more: Any) -> dict[str, Tensor]:
    """A file's tensors: weights that are neither zero nor one anywhere, and its own filters."""
    g, found = torch.Generator().manual_seed(seed), dict[str, Tensor]()
    for name, shape in shapes(kind, **SMALL[kind] | more).items():
        if name.endswith("resample_filter"):
            row = torch.tensor(TAPS if shape[-1] == 4 else (1.0, 1.0))
            found[name] = torch.outer(row, row)[None, None] / row.sum() ** 2
        else:
            scale = 1.0 if len(shape) < 2 or "embedding" in name else math.prod(shape[1:]) ** -0.5
            found[name] = scale * torch.randn(shape, generator=g) + (0.5 if "norm" in name else 0)
    return found


def network(kind: str, tensors: dict[str, Tensor] | None = None, **more: Any) -> UNet:
    """A small network, frozen, that holds a file's tensors: those of :func:`state`, or these."""
    tensors = state(kind, **more) if tensors is None else tensors
    found: UNet = build(kind, lambda: MAKERS[kind](**SMALL[kind] | more), tensors, Path("made here"))
    return found.eval().requires_grad_(False)


def images(n: int = 2, side: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


X, SIGMA = images(), torch.tensor([0.3, 7.0], dtype=torch.float64)


def linear(weight: Tensor) -> Tensor:
    """A 1x1 convolution as a linear layer."""
    return weight.flatten(1) if weight.ndim > 2 else weight


def tree(tensors: dict[str, Tensor]) -> nn.Module:
    """Modules whose parameters and buffers have these names."""
    root = nn.Module()
    if "map_noise.freqs" not in tensors:
        root.add_module("map_noise", nn.Identity())
    for name, value in tensors.items():
        *path, leaf = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.ModuleDict() if part in ("enc", "dec") else nn.Module())
            at = at._modules[part]  # type: ignore[assignment]
        if leaf in ("freqs", "phases", "resample_filter"):
            at.register_buffer(leaf, value)
        else:
            at.register_parameter(leaf, nn.Parameter(value, requires_grad=False))
    return root


EDM_FACTS = dict(sigma_min=0, sigma_max=float("inf"), sigma_data=0.5)


def precond(
    nvidia: Nvidia, kind: str, wrapper: str = "EDMPrecond", more: dict[str, Any] | None = None,
    said: dict[str, Any] | None = None, **facts: Any,
) -> Any:  # fmt: skip
    """NVIDIA's wrapper around a small network of :func:`state`; ``said``: what the file says otherwise of it."""
    more, outer, name = more or {}, nn.Module(), "DhariwalUNet" if kind == "adm" else "SongUNet"
    body = tree(state(kind, **more))
    outer.add_module("model", body)
    saved = nvidia.module(outer, wrapper, model_type=name)
    usual = dict(img_resolution=8, img_channels=3, label_dim=more.get("label_dim", 0), use_fp16=False)
    saved.state |= usual | (facts or EDM_FACTS)
    saved.state["_modules"]["model"] = nvidia.module(body, name, **SMALL[kind] | more | (said or {}))
    return saved


def expand(value: Tensor) -> Tensor:
    return value.float().reshape(-1, 1, 1, 1)


def refuses(match: str, *arguments: Any, error: type[ValueError] = FileError, **options: Any) -> None:
    """One line with ``match`` in it."""
    with refused(match, error):
        load_published(*arguments, **options)
