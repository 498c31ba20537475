"""What the tests of the published networks share: small networks, files as published, rows of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_pickles import Nvidia
from torch import Tensor, nn

from dode.utils.files import FileError
from dode.zoo import load_published

TAPS = (1, 3, 3, 1)
SONG = dict(img_resolution=8, in_channels=3, out_channels=3, model_channels=32, channel_mult=(1, 2), num_blocks=1)
VP = SONG | dict(augment_dim=9, attn_resolutions=(8,))
VE = SONG | dict(
    attn_resolutions=(4,), embedding_type="fourier", channel_mult_noise=2, encoder_type="residual",
    resample_filter=TAPS,
)  # fmt: skip
ADM = dict(
    img_resolution=8, in_channels=3, out_channels=3, model_channels=64, channel_mult=(1, 2), num_blocks=1,
    attn_resolutions=(4,),
)  # fmt: skip
GUIDED: dict[str, Any] = dict(
    image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,),
    num_head_channels=16,
)  # fmt: skip
DDPM = dict(image_size=8, ch=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,))


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights that are neither zero nor one anywhere, frozen."""
    g = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if "resample_filter" not in name:
            scale = 1.0 if value.ndim < 2 or "embedding" in name else value[0].numel() ** -0.5
            value.copy_(scale * torch.randn(value.shape, generator=g) + (0.5 if "norm" in name else 0))
    return network.eval().requires_grad_(False)


def images(n: int = 2, side: int = 8, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(make: Callable[..., nn.Module], **arguments: Any) -> nn.Module:
    with torch.device("meta"):
        return make(**arguments)


def linear(weight: Tensor) -> Tensor:
    """A 1x1 convolution as a linear layer."""
    return weight.flatten(1) if weight.ndim > 2 else weight


NVIDIA_RESNET = dict(
    norm0="norm1", conv0="conv1", affine="time_emb_proj", norm1="norm2", conv1="conv2", skip="conv_shortcut"
)
RESNET = dict(
    norm1="norm1", conv1="conv1", temb_proj="time_emb_proj", norm2="norm2", conv2="conv2", nin_shortcut="conv_shortcut"
)


def attention(name: str) -> str:
    return dict(norm="group_norm", q="to_q", k="to_k", v="to_v", proj_out="to_out.0")[name]


def split_qkv(value: Tensor, heads: int, order: str) -> tuple[Tensor, Tensor, Tensor]:
    """The three linear layers in a fused one whose channels lie as ``order`` says: h heads, t three, c channels."""
    value = linear(value)
    sides = dict(h=heads, t=3, c=len(value) // 3 // heads)
    q, k, v = value.reshape(*(sides[axis] for axis in order), *value.shape[1:]).unbind(order.index("t"))
    return tuple(part.reshape(-1, *value.shape[1:]) for part in (q, k, v))  # type: ignore[return-value]


GUIDED_RESNET = {
    "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
    "out_layers.3": "conv2", "skip_connection": "conv_shortcut",
}  # fmt: skip


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


CLASSIFIER: dict[str, Any] = dict(
    image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,),
    num_head_channels=16, num_classes=10, resblock_updown=True,
)  # fmt: skip


X, SIGMA = images(), torch.tensor([0.3, 7.0], dtype=torch.float64)


def precond(nvidia: Nvidia, body: nn.Module, kind: str, **facts: Any) -> Any:
    """NVIDIA's wrapper around a network, with its attributes."""
    outer = nn.Module()
    outer.add_module("model", body)
    saved = nvidia.module(outer, kind, model_type=type(body).__name__)
    config = dict(facts.pop("config"))
    saved.state |= dict(img_resolution=8, img_channels=3, label_dim=0, use_fp16=False) | facts
    saved.state["_modules"]["model"] = nvidia.module(body, type(body).__name__, **config)
    return saved


def expand(value: Tensor) -> Tensor:
    return value.float().reshape(-1, 1, 1, 1)


def refuses(match: str, *arguments: Any, error: type[ValueError] = FileError, **options: Any) -> None:
    """One line with ``match`` in it."""
    with pytest.raises(error) as info:
        load_published(*arguments, **options)
    assert match in str(info.value) and "\n" not in str(info.value)
