"""The published networks: their sizes and names, their agreement with other implementations, and every way in."""

from __future__ import annotations

import hashlib
import http.server
import math
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.downsampling import FirDownsample2D, downsample_2d
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import upsample_2d
from test_pickles import Nvidia
from torch import Tensor, nn
from torch.nn import functional as F

import dode
from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction
from dode.published import CATALOGUE, ClassifierGuidance, Published, Row, download, load, load_classifier
from dode.published.adm import DhariwalUNet
from dode.published.blocks import Resample, UNetBlock, attend
from dode.published.ddpm import Model
from dode.published.guided import EncoderUNetModel, UNetModel
from dode.published.loading import BODIES
from dode.published.songunet import SongUNet
from dode.published.wrapping import VEPrediction
from dode.schedules import VPDiscrete, cosine
from dode.storage import FileError

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


# --- sizes and names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("edm-cifar10-32x32-uncond-vp", 55.7), ("edm-cifar10-32x32-cond-vp", 55.7), ("edm-ffhq-64x64-uncond-vp", 61.8),
        ("edm-imagenet-64x64-cond-adm", 295.9), ("adm-imagenet-64", 295.9), ("adm-imagenet-128", 421.5),
        ("adm-imagenet-256", 553.8), ("adm-imagenet-256-uncond", 552.814086), ("edm-lsun-bedroom-256", 526.304771),
        ("iddpm-imagenet-64-cond", 273.0), ("iddpm-cifar10-32", 52.5), ("ddpm-cifar10-32", 35.7),
        ("ddpm-lsun-bedroom-256", 113.7), ("ddim-celeba-64", 78.7),
    ],
)  # fmt: skip
def test_published_sizes(name: str, millions: float) -> None:
    """Numbers of parameters: Karras et al. 2022, Dhariwal and Nichol 2021, Ho et al. 2020, and inspected files."""
    row = CATALOGUE[name]
    make = {"edm": DhariwalUNet if "adm" in name else SongUNet, "ddpm": Model}.get(row.kind, UNetModel)
    parameters = size(on_meta(make, **row.network))
    digits = len(str(millions).split(".")[1])
    assert round(parameters / 1e6, digits) == millions
    if row.size:  # four bytes each, and names
        assert 4 * parameters < row.size < 4 * parameters + 500_000


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(t.shape) for name, t in network.state_dict().items()}


def test_names_of_nvidia_s_parameters() -> None:
    vp = shapes(on_meta(SongUNet, **CATALOGUE["edm-cifar10-32x32-cond-vp"].network))
    ve = shapes(on_meta(SongUNet, **CATALOGUE["edm-ffhq-64x64-uncond-ve"].network))
    adm = shapes(on_meta(DhariwalUNet, **CATALOGUE["edm-imagenet-64x64-cond-adm"].network))
    assert vp["map_label.weight"] == (128, 10) and vp["map_label.bias"] == (128,)
    assert vp["map_augment.weight"] == (128, 9) and "map_augment.bias" not in vp and "map_noise.freqs" not in vp
    assert vp["map_layer0.weight"] == (512, 128) and vp["enc.32x32_conv.weight"] == (128, 3, 3, 3)
    assert vp["enc.16x16_down.conv0.resample_filter"] == (1, 1, 2, 2)
    assert vp["enc.16x16_down.skip.weight"] == (256, 256, 1, 1) and vp["enc.16x16_block3.qkv.weight"][0] == 768
    assert vp["dec.8x8_in0.proj.weight"] == (256, 256, 1, 1) and "dec.8x8_in1.qkv.weight" not in vp
    assert vp["dec.16x16_block4.qkv.bias"] == (768,) and "dec.16x16_block3.qkv.bias" not in vp
    assert vp["dec.32x32_aux_norm.weight"] == (256,) and vp["dec.32x32_aux_conv.weight"] == (3, 256, 3, 3)
    assert ve["map_noise.freqs"] == (128,) and ve["map_layer0.weight"] == (512, 256)
    assert ve["enc.32x32_aux_residual.weight"] == (128, 3, 3, 3)
    assert ve["enc.16x16_aux_residual.resample_filter"] == (1, 1, 4, 4) and "dec.32x32_aux_norm.weight" not in ve
    assert adm["map_label.weight"] == (768, 1000) and "map_label.bias" not in adm and "map_augment.weight" not in adm
    assert adm["enc.32x32_down.skip.resample_filter"] == (1, 1, 2, 2) and "enc.32x32_down.skip.weight" not in adm
    assert adm["enc.32x32_block0.affine.weight"] == (768, 768) and adm["dec.8x8_block0.qkv.weight"][0] == 2304
    assert adm["out_norm.weight"] == (192,) and adm["out_conv.weight"] == (3, 192, 3, 3)


def test_names_of_openai_s_parameters() -> None:
    big = on_meta(UNetModel, **CATALOGUE["edm-lsun-bedroom-256"].network)
    found = shapes(big)
    assert len(found) == 566 and found["middle_block.1.qkv.weight"] == (3072, 1024, 1, 1)
    assert found["input_blocks.1.0.in_layers.2.weight"] == (256, 256, 3, 3)
    assert found["output_blocks.17.0.out_layers.3.weight"] == (256, 256, 3, 3) and found["out.2.weight"][0] == 3
    found = shapes(on_meta(UNetModel, **CATALOGUE["adm-imagenet-64"].network))
    assert found["label_emb.weight"] == (1000, 768) and found["time_embed.0.weight"] == (768, 192)
    assert found["input_blocks.4.0.emb_layers.1.weight"] == (384, 768)  # halves, by a residual block
    assert found["input_blocks.5.0.skip_connection.weight"] == (384, 192, 1, 1)
    assert found["input_blocks.5.1.qkv.weight"] == (1152, 384, 1) and found["out.2.weight"] == (6, 192, 3, 3)
    found = shapes(on_meta(UNetModel, **CATALOGUE["iddpm-lsun-bedroom-256"].network))
    assert found["input_blocks.3.0.op.weight"] == (128, 128, 3, 3)  # halves, by a convolution
    assert found["output_blocks.2.1.conv.weight"] == (512, 512, 3, 3) and found["output_blocks.5.2.conv.bias"] == (512,)
    found = shapes(on_meta(EncoderUNetModel, **CATALOGUE["adm-imagenet-256-classifier"].network))
    assert found["out.2.positional_embedding"] == (512, 65) and found["out.2.c_proj.weight"] == (1000, 512, 1)
    found = shapes(on_meta(Model, **CATALOGUE["ddim-celeba-64"].network))
    assert found["temb.dense.0.weight"] == (512, 128) and found["down.2.attn.1.q.weight"] == (256, 256, 1, 1)
    assert found["up.0.block.2.nin_shortcut.weight"] == (128, 256, 1, 1) and "up.0.upsample.conv.weight" not in found
    assert found["down.3.downsample.conv.weight"] == (256, 256, 3, 3) and found["mid.block_1.conv1.weight"][0] == 512


# --- parts --------------------------------------------------------------------------------------------------------


def test_attention_is_the_formula() -> None:
    q, k, v = torch.randn(3, 2, 4, 16, 25).unbind(0)  # two images, four heads
    scores = torch.einsum("bhcq,bhck->bhqk", q, k) / 16**0.5
    torch.testing.assert_close(attend(q, k, v), torch.einsum("bhqk,bhck->bhcq", scores.softmax(-1), v))


@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (64, 16), (128, 32), (192, 32), (768, 32)])
def test_group_rule(channels: int, groups: int) -> None:
    assert UNetBlock(channels, channels, 8).norm0.num_groups == groups == min(32, channels // 4)


def test_filters() -> None:
    """(1, 1) is averaging and nearest doubling; every filter keeps a constant and the sum of an image."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(Resample(3, 3, 0, down=True)(x), F.avg_pool2d(x, 2))
    torch.testing.assert_close(Resample(3, 3, 0, up=True)(x), F.interpolate(x, scale_factor=2, mode="nearest"))
    up, down = Resample(3, 3, 0, up=True, taps=TAPS), Resample(3, 3, 0, down=True, taps=TAPS)
    flat = torch.full((1, 3, 8, 8), 1.7, dtype=torch.float64)
    for layer in (up, down):
        assert torch.allclose(layer(flat)[..., 1:-1, 1:-1], torch.tensor(1.7, dtype=torch.float64))
    inside = F.pad(torch.randn(1, 3, 4, 4, dtype=torch.float64), (2, 2, 2, 2))
    torch.testing.assert_close(up(inside).sum() / 4, inside.sum())
    torch.testing.assert_close(down(inside).sum() * 4, inside.sum())
    assert up(x).square().sum() < Resample(3, 3, 0, up=True)(x).square().sum()  # a longer filter blurs more
    impulse = torch.zeros(1, 1, 8, 8)
    impulse[0, 0, 4, 4] = 1
    row = torch.tensor([1.0, 3, 3, 1]) / 4
    torch.testing.assert_close(Resample(1, 1, 0, up=True, taps=TAPS)(impulse)[0, 0, 7:11, 7:11], torch.outer(row, row))
    for bad in (dict(up=True, down=True), dict(), dict(up=True, fused=True)):
        with pytest.raises(ValueError, match="up or down"):
            Resample(3, 3, 0, **bad)


@pytest.mark.parametrize("move", [{}, dict(up=True), dict(down=True)])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("taps", [(1, 1), TAPS])
def test_blocks_are_those_of_diffusers(move: dict[str, bool], adaptive: bool, taps: tuple[float, ...]) -> None:
    c_in, c_out = (64, 64) if move else (64, 128)
    ours = randomised(UNetBlock(c_in, c_out, 32, adaptive=adaptive, weight=0.5**0.5, project=True, taps=taps, **move))
    theirs = ResnetBlock2D(
        in_channels=c_in, out_channels=c_out, temb_channels=32, groups=c_in // 4, groups_out=c_out // 4, eps=1e-5,
        time_embedding_norm="scale_shift" if adaptive else "default", output_scale_factor=2**0.5,
        kernel="fir" if taps == TAPS else None, use_in_shortcut=True, **move,
    )  # fmt: skip
    state = {
        f"{NVIDIA_RESNET[name.split('.')[0]]}.{name.split('.')[1]}": value
        for name, value in ours.state_dict().items()
        if "resample_filter" not in name
    }
    theirs.load_state_dict(state)
    x, e = torch.randn(2, c_in, 8, 8), torch.randn(2, 32)
    torch.testing.assert_close(ours(x, F.silu(e)), theirs.eval()(x, e), rtol=1e-4, atol=1e-5)


def test_fused_halving_is_that_of_diffusers() -> None:
    ours = randomised(Resample(3, 32, 3, down=True, taps=TAPS, fused=True))
    theirs = FirDownsample2D(3, 32, use_conv=True, fir_kernel=TAPS)
    theirs.load_state_dict({"Conv2d_0.weight": ours.weight, "Conv2d_0.bias": ours.bias})
    torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-4, atol=1e-5)


# --- whole networks against diffusers -----------------------------------------------------------------------------


def linear(weight: Tensor) -> Tensor:
    """A 1x1 convolution as a linear layer."""
    return weight.flatten(1) if weight.ndim > 2 else weight


NVIDIA_RESNET = dict(
    norm0="norm1", conv0="conv1", affine="time_emb_proj", norm1="norm2", conv1="conv2", skip="conv_shortcut"
)
RESNET = dict(
    norm1="norm1", conv1="conv1", temb_proj="time_emb_proj", norm2="norm2", conv2="conv2", nin_shortcut="conv_shortcut"
)


def test_ddpm_is_that_of_diffusers() -> None:
    ours = randomised(Model(**DDPM))
    theirs = UNet2DModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_eps=1e-6, attention_head_dim=None,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
    ).eval()  # fmt: skip
    state = dict[str, Tensor]()
    for name, value in ours.state_dict().items():
        path = name.split(".")
        if path[0] in ("down", "up"):
            level = int(path[1]) if path[0] == "down" else 1 - int(path[1])
            where = f"{path[0]}_blocks.{level}."
            if path[2] == "block":
                new = f"{where}resnets.{path[3]}.{RESNET[path[4]]}.{path[5]}"
            elif path[2] == "attn":
                new = f"{where}attentions.{path[3]}.{attention(path[4])}.{path[5]}"
            else:
                new = f"{where}{path[2]}rs.0.conv.{path[4]}"
        elif path[0] == "mid":
            new = (
                f"mid_block.attentions.0.{attention(path[2])}.{path[3]}" if path[1] == "attn_1"
                else f"mid_block.resnets.{int(path[1][-1]) - 1}.{RESNET[path[2]]}.{path[3]}"
            )  # fmt: skip
        elif path[0] == "temb":
            new = f"time_embedding.linear_{int(path[2]) + 1}.{path[3]}"
        else:
            new = name.replace("norm_out", "conv_norm_out")
        state[new] = linear(value) if ".to_" in new else value
    theirs.load_state_dict(state)
    label = torch.tensor([3.0, 871.5])
    torch.testing.assert_close(ours(images(), label), theirs(images(), label).sample, rtol=1e-4, atol=1e-5)


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
# Where the parts of the small guided networks are in diffusers: OpenAI's index to block, kind and number.
GUIDED_PLACES = {
    "input_blocks.1.0": "down_blocks.0.resnets.0", "input_blocks.2.0": "down_blocks.0.downsamplers.0",
    "input_blocks.3.0": "down_blocks.1.resnets.0", "input_blocks.3.1": "down_blocks.1.attentions.0",
    "middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "output_blocks.0.0": "up_blocks.0.resnets.0", "output_blocks.0.1": "up_blocks.0.attentions.0",
    "output_blocks.1.0": "up_blocks.0.resnets.1", "output_blocks.1.1": "up_blocks.0.attentions.1",
    "output_blocks.1.2": "up_blocks.0.upsamplers.0", "output_blocks.2.0": "up_blocks.1.resnets.0",
    "output_blocks.3.0": "up_blocks.1.resnets.1", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out",
    "out.2": "conv_out", "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
    "label_emb": "class_embedding",
}  # fmt: skip


def to_diffusers(ours: UNetModel, new_order: bool) -> dict[str, Tensor]:
    state = dict[str, Tensor]()
    for name, value in ours.state_dict().items():
        old = next(place for place in GUIDED_PLACES if name.startswith(place + "."))
        where, rest = GUIDED_PLACES[old], name[len(old) + 1 :]
        part, kind = rest.rpartition(".")[::2]
        if "attentions" in where and part == "qkv":
            heads = len(value) // 3 // 16
            for letter, piece in zip("qkv", split_qkv(value, heads, "thc" if new_order else "htc"), strict=True):
                state[f"{where}.to_{letter}.{kind}"] = piece
        elif "attentions" in where:
            state[f"{where}.{attention(part)}.{kind}"] = linear(value)
        else:
            state[".".join(filter(None, (where, GUIDED_RESNET.get(part, part), kind)))] = value
    return state


@pytest.mark.parametrize("scale_shift", [True, False])
@pytest.mark.parametrize("new_order", [True, False])
@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("resblocks", [True, False])
def test_guided_is_that_of_diffusers(scale_shift: bool, new_order: bool, flat: bool, resblocks: bool) -> None:
    ours = UNetModel(
        **GUIDED, num_classes=10, use_scale_shift_norm=scale_shift, use_new_attention_order=new_order,
        flat_attention=flat, resblock_updown=resblocks,
    )  # fmt: skip
    randomised(ours)
    kind = "resnet" if resblocks else "conv"
    first = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if resblocks else ("DownBlock2D", "UpBlock2D")
    theirs = UNet2DModel(
        sample_size=8, out_channels=6, block_out_channels=(32, 64), layers_per_block=1, attention_head_dim=16,
        down_block_types=(first[0], "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", first[1]),
        downsample_type=kind, upsample_type=kind, resnet_time_scale_shift="scale_shift" if scale_shift else "default",
        num_class_embeds=10, flip_sin_to_cos=True, freq_shift=0, norm_eps=1e-5, attn_norm_num_groups=32,
    ).eval()  # fmt: skip
    state = to_diffusers(ours, new_order)
    if not resblocks:
        state = {re.sub(r"samplers\.0\.(op|conv)\.", "samplers.0.conv.", name): v for name, v in state.items()}
    theirs.load_state_dict(state)
    label, classes = torch.tensor([0.0, 871.25]), torch.tensor([3, 9])
    expected = theirs(images(), label, class_labels=classes).sample
    torch.testing.assert_close(ours(images(), label, classes), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(ours(images(), label, classes.flip(0)), expected)


def test_nvidia_s_adm_is_openai_s() -> None:
    """Two networks written from two descriptions, one set of weights."""
    theirs = UNetModel(
        8, 128, 1, (1, 2), attention_resolutions=(4,), num_head_channels=64, resblock_updown=True, num_classes=10,
        learn_sigma=False, use_new_attention_order=True,
    )  # fmt: skip
    ours = DhariwalUNet(**ADM | dict(model_channels=128), label_dim=10)  # 32 groups, as there
    names = {
        "enc.8x8_conv": "input_blocks.0.0", "enc.8x8_block0": "input_blocks.1", "enc.4x4_down": "input_blocks.2",
        "enc.4x4_block0": "input_blocks.3", "dec.4x4_in0": "middle_block", "dec.4x4_in1": "middle_block.2",
        "dec.4x4_block0": "output_blocks.0", "dec.4x4_block1": "output_blocks.1", "dec.8x8_up": "output_blocks.1.2",
        "dec.8x8_block0": "output_blocks.2", "dec.8x8_block1": "output_blocks.3", "out_norm": "out.0",
        "out_conv": "out.2", "map_layer0": "time_embed.0", "map_layer1": "time_embed.2",
    }  # fmt: skip
    parts = dict(
        norm0="0.in_layers.0", conv0="0.in_layers.2", affine="0.emb_layers.1", norm1="0.out_layers.0",
        conv1="0.out_layers.3", skip="0.skip_connection", norm2="1.norm", qkv="1.qkv", proj="1.proj_out",
    )  # fmt: skip
    given = randomised(theirs).state_dict()
    state = dict[str, Tensor]()
    for name, value in ours.state_dict().items():
        if name.endswith("resample_filter"):
            state[name] = value
            continue
        if name == "map_label.weight":
            state[name] = given["label_emb.weight"].T
            continue
        old = next(place for place in names if name.startswith(place + "."))
        part, _, kind = name[len(old) + 1 :].rpartition(".")
        where = names[old]
        within = parts[part][2:] if where in ("middle_block.2", "output_blocks.1.2") and part else parts.get(part, "")
        found = given[".".join(filter(None, (where, within, kind)))]
        if part == "qkv":
            heads = len(found) // 3 // 64
            found = torch.stack(split_qkv(found, heads, "thc"), dim=1).flatten(0, 1)  # channel, then the three
        state[name] = found.reshape(value.shape)
    ours.load_state_dict(state)
    label, classes = torch.tensor([0.3, 40.0]), torch.tensor([1, 7])
    got, expected = ours.eval()(images(), label, classes), theirs(images(), label, classes)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor], **options: Any) -> None:
        super().__init__()
        self.function, self.options = function, options

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **self.options)


def song_in_diffusers(ours: SongUNet, taps: tuple[float, ...]) -> UNet2DModel:
    """DDPM++ put together from diffusers' parts: other sums with the skips, groups, filters and attention."""
    theirs = UNet2DModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, norm_eps=1e-6, attention_head_dim=None,
        norm_num_groups=8, down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D"),
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D"), downsample_type="resnet", upsample_type="resnet",
        flip_sin_to_cos=False, freq_shift=1,
    ).eval()  # fmt: skip
    for module in theirs.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = module.num_channels // 4
        if isinstance(module, ResnetBlock2D):
            module.output_scale_factor = 2**0.5
            if module.up or module.down:
                module.conv_shortcut = nn.Conv2d(module.in_channels, module.out_channels, 1)
            if taps == TAPS and module.up:
                module.upsample = Function(upsample_2d, kernel=TAPS)
            if taps == TAPS and module.down:
                module.downsample = Function(downsample_2d, kernel=TAPS)
        if hasattr(module, "rescale_output_factor"):
            module.rescale_output_factor = 2**0.5
    theirs.up_blocks[1].attentions[0] = nn.Identity()  # attention in the last block of a level alone
    places = {
        "enc.8x8_conv": "conv_in", "enc.8x8_block0": "down_blocks.0.{}.0",
        "enc.4x4_down": "down_blocks.0.downsamplers.0",
        "enc.4x4_block0": "down_blocks.1.{}.0", "dec.4x4_in0": "mid_block.{}.0", "dec.4x4_in1": "mid_block.{}.1",
        "dec.4x4_block0": "up_blocks.0.{}.0", "dec.4x4_block1": "up_blocks.0.{}.1",
        "dec.8x8_up": "up_blocks.0.upsamplers.0", "dec.8x8_block0": "up_blocks.1.{}.0",
        "dec.8x8_block1": "up_blocks.1.{}.1", "dec.8x8_aux_norm": "conv_norm_out", "dec.8x8_aux_conv": "conv_out",
        "map_layer0": "time_embedding.linear_1", "map_layer1": "time_embedding.linear_2",
    }  # fmt: skip
    state = dict[str, Tensor]()
    for name, value in ours.state_dict().items():
        if "resample_filter" in name or "map_augment" in name:
            continue
        old = next(place for place in places if name.startswith(place + "."))
        part, _, kind = name[len(old) + 1 :].rpartition(".")
        if part == "qkv":
            for letter, piece in zip("qkv", split_qkv(value, 1, "hct"), strict=True):
                state[f"{places[old].format('attentions')}.to_{letter}.{kind}"] = piece
        elif part in ("norm2", "proj"):
            new = "group_norm" if part == "norm2" else "to_out.0"
            state[f"{places[old].format('attentions')}.{new}.{kind}"] = linear(value)
        else:
            state[".".join(filter(None, (places[old].format("resnets"), NVIDIA_RESNET.get(part, part), kind)))] = value
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("taps", [(1, 1), TAPS])
def test_ddpm_plus_plus_is_that_of_diffusers_parts(taps: tuple[float, ...]) -> None:
    ours = SongUNet(**VP | dict(resample_filter=taps))
    randomised(ours)
    theirs = song_in_diffusers(ours, taps)
    label = torch.tensor([3.0, 871.5])
    expected = theirs(images(), label).sample
    torch.testing.assert_close(ours(images(), label), expected, rtol=1e-4, atol=1e-5)


def test_ncsn_plus_plus_adds_the_halved_image() -> None:
    """Song et al. 2021, appendix H: at each resolution the image, halved by a convolution, joins the features."""
    net = SongUNet(**VE | dict(img_resolution=16, channel_mult=(1, 2, 2)))
    randomised(net)
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    for name, layer in net.enc.items():
        layer.register_forward_hook(lambda m, given, out, name=name: seen.update({name: (given[0].clone(), out)}))
    x = images(side=16)
    net(x, torch.tensor([0.5, -1.0]))
    assert torch.equal(seen["8x8_aux_residual"][0], x)
    first = (seen["8x8_down"][1] + seen["8x8_aux_residual"][1]) / 2**0.5
    torch.testing.assert_close(seen["8x8_block0"][0], first)
    torch.testing.assert_close(seen["4x4_aux_residual"][0], first)  # the sum is halved on, not the image alone
    second = (seen["4x4_down"][1] + seen["4x4_aux_residual"][1]) / 2**0.5
    torch.testing.assert_close(seen["4x4_block0"][0], second)


def test_fourier_features_of_the_label() -> None:
    net = SongUNet(**VE)
    randomised(net)
    label = torch.tensor([0.5, -1.0])
    angles = 2 * math.pi * label[:, None] * net.map_noise.freqs
    e = torch.cat([angles.sin(), angles.cos()], dim=1)
    expected = F.silu(net.map_layer1(F.silu(net.map_layer0(e))))
    torch.testing.assert_close(net.embed(label, None), expected)


@pytest.mark.parametrize("make", [SongUNet, DhariwalUNet])
def test_classes_are_one_hot_vectors(make: type[nn.Module]) -> None:
    net = make(**(SONG if make is SongUNet else ADM), label_dim=10)
    randomised(net)
    label, classes = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([4, 0, 4])
    told = F.one_hot(classes, 10).float() * (10**0.5 if make is SongUNet else 1)
    seen: list[Tensor] = []
    plain = net.embed(label, None)
    if make is SongUNet:
        net.map_label.register_forward_hook(lambda m, given, out: seen.append(given[0]))
        net.embed(label, classes)
        torch.testing.assert_close(seen[0], told)
    else:
        net.map_layer1.register_forward_hook(lambda m, given, out: seen.append(out))
        torch.testing.assert_close(net.embed(label, classes), F.silu(seen.pop() + told @ net.map_label.weight.T))
    out = net(images(1).expand(3, -1, -1, -1), label, classes)
    torch.testing.assert_close(out[0], out[2])
    assert not torch.allclose(out[0], out[1]) and not torch.allclose(net.embed(label, classes), plain)


def test_there_is_no_dropout() -> None:
    for net in (SongUNet(**VP), DhariwalUNet(**ADM), UNetModel(**GUIDED), Model(**DDPM)):
        randomised(net).train()
        label = torch.tensor([0.3, 0.9])
        assert torch.equal(net(images(), label), net(images(), label))
        assert not any(isinstance(m, nn.Dropout) for m in net.modules())


def test_unpublished_options_are_refused() -> None:
    with pytest.raises(ValueError, match="encoder 'skip'"):
        SongUNet(**SONG | dict(encoder_type="skip"))
    with pytest.raises(ValueError, match="embedding 'zero'"):
        SongUNet(**SONG | dict(embedding_type="zero"))


@pytest.mark.parametrize("make", ["vp", "ve", "adm", "guided", "ddpm"])
def test_networks_run_in_half_precision_and_show_their_bottleneck(make: str) -> None:
    net = {
        "vp": lambda: SongUNet(**VP), "ve": lambda: SongUNet(**VE), "adm": lambda: DhariwalUNet(**ADM),
        "guided": lambda: UNetModel(**GUIDED), "ddpm": lambda: Model(**DDPM),
    }[make]()  # fmt: skip
    randomised(net)
    label = torch.tensor([0.3, 0.9])
    whole = net(images(), label)
    half = net.to(torch.bfloat16)(images().to(torch.bfloat16), label)
    assert half.dtype == torch.bfloat16 and (half.float() - whole).norm() < 0.1 * whole.norm()
    seen: list[Tensor] = []
    net.bottleneck.register_forward_hook(lambda m, given, out: seen.append(out))
    net(images().to(torch.bfloat16), label)
    assert [tuple(s.shape[2:]) for s in seen] == [(4, 4)]


# --- files --------------------------------------------------------------------------------------------------------

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


@pytest.fixture
def nvidia() -> Nvidia:
    return Nvidia()


def expand(value: Tensor) -> Tensor:
    return value.float().reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("architecture", ["vp", "ve", "adm"])
def test_an_edm_pickle(tmp_path: Path, nvidia: Nvidia, architecture: str) -> None:
    """``D = c_skip x + c_out F(c_in x, ln(sigma) / 4)``, with one-hot classes and no augmentation."""
    config = dict(vp=VP, ve=VE, adm=ADM)[architecture] | dict(label_dim=10, dropout=0.13)
    body = BODIES["DhariwalUNet" if architecture == "adm" else "SongUNet"](**config)
    randomised(body)
    facts = dict(sigma_min=0, sigma_max=float("inf"), sigma_data=0.5, label_dim=10)
    saved = precond(nvidia, body, "EDMPrecond", config=config, **facts)
    path = nvidia.dump(tmp_path / "tiny.pkl", dict(ema=saved, augment_pipe=None))
    model = load(path, labels=[3, 9])
    assert isinstance(model, EDMPrediction) and model.shape == (3, 8, 8) and model.name == "tiny"
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.002, 80.0, 0.5)
    s = expand(SIGMA)
    with torch.no_grad():
        raw = body(X / (s**2 + 0.25).sqrt(), SIGMA.log().float() / 4, torch.tensor([3, 9]))
    expected = 0.25 / (s**2 + 0.25) * X + 0.5 * s / (s**2 + 0.25).sqrt() * raw
    torch.testing.assert_close(model(X, SIGMA), expected, rtol=1e-4, atol=1e-5)
    model.network.condition(3)
    torch.testing.assert_close(model(X, 0.3)[0], expected[0], rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in model.network.parameters()) and not model.network.training
    assert model.nfe == 2


def test_the_other_preconditionings(tmp_path: Path, nvidia: Nvidia) -> None:
    s = expand(SIGMA)
    body = SongUNet(**VP)
    randomised(body)
    facts = dict(beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5, sigma_min=0.001, sigma_max=152.0)
    path = nvidia.dump(tmp_path / "vp.pkl", dict(ema=precond(nvidia, body, "VPPrecond", config=VP, **facts)))
    model = load(path)
    t = ((0.1**2 + 2 * 19.9 * (1 + SIGMA**2).log()).sqrt() - 0.1) / 19.9
    assert isinstance(model, NoisePrediction) and 0.01 < model.sigma_min < 0.011 and 152 < model.sigma_max < 153
    raw = body(X / (1 + s**2).sqrt(), (999 * t).float())
    torch.testing.assert_close(model(X, SIGMA), X - s * raw, rtol=1e-4, atol=1e-4)

    body = SongUNet(**VE)
    randomised(body)
    facts = dict(sigma_min=0.02, sigma_max=100)
    model = load(nvidia.dump(tmp_path / "ve.pkl", precond(nvidia, body, "VEPrecond", config=VE, **facts)))
    assert isinstance(model, VEPrediction) and (model.sigma_min, model.sigma_max) == (0.02, 100.0)
    raw = body(X, (SIGMA / 2).log().float())
    torch.testing.assert_close(model(X, SIGMA), X + s * raw, rtol=1e-4, atol=1e-4)

    config = ADM | dict(out_channels=6)
    body = DhariwalUNet(**config)
    randomised(body)
    facts = dict(C_1=0.001, C_2=0.008, M=1000, sigma_min=0.0064, sigma_max=2e4)
    saved = precond(nvidia, body, "iDDPMPrecond", config=config, **facts)
    saved.state["_buffers"] = dict(u=torch.zeros(1001))
    model = load(nvidia.dump(tmp_path / "iddpm.pkl", dict(ema=saved)))
    level = float(cosine(1000).sigmas[400])
    raw = body(X / (1 + level**2) ** 0.5, torch.full((2,), 400.0))[:, :3]
    torch.testing.assert_close(model(X, level), X - level * raw, rtol=1e-4, atol=1e-4)


def refuses(match: str, *arguments: Any, error: type[ValueError] = FileError, **options: Any) -> None:
    """One line with ``match`` in it."""
    with pytest.raises(error) as info:
        load(*arguments, **options)
    assert match in str(info.value) and "\n" not in str(info.value)


def test_edm_pickles_that_do_not_fit(tmp_path: Path, nvidia: Nvidia) -> None:
    facts = dict(sigma_min=0, sigma_max=float("inf"), sigma_data=0.5)
    body, path = SongUNet(**VP), tmp_path / "n.pkl"
    write = lambda saved: nvidia.dump(path, dict(ema=saved))  # noqa: E731
    saved = precond(nvidia, body, "EDMPrecond", config=VP | dict(model_channels=64), **facts)
    refuses("does not fit SongUNet: 'dec.4x4_block0.affine.bias' has shape (64,), not (128,) (", write(saved))
    saved = precond(nvidia, body, "EDMPrecond", config=VP | dict(num_blocks=2), **facts)
    refuses("does not fit SongUNet: no 'dec.4x4_block2.affine.bias' (", write(saved))
    saved = precond(nvidia, body, "EDMPrecond", config=VP | dict(augment_dim=0), **facts)
    refuses("does not fit SongUNet: 'map_augment.weight' has no place", write(saved))
    for config in (dict(rho=3), dict(channel_mult=()), dict(channel_mult="wide"), dict(encoder_type="skip")):
        saved = precond(nvidia, body, "EDMPrecond", config=VP | config, **facts)
        refuses("dode cannot build", write(saved))
    refuses("preconditioning 'Precond'", write(precond(nvidia, body, "Precond", config=VP, **facts)))
    saved = precond(nvidia, body, "EDMPrecond", config=VP, **facts)
    saved.state["_modules"]["model"].kind = "UNet"
    refuses("network 'UNet'", write(saved))
    saved = precond(nvidia, body, "EDMPrecond", config=VP, sigma_min=0)
    refuses("'sigma_max'", write(saved))
    refuses("in a form that dode does not know", write(nvidia.module(nn.Linear(2, 2), "Linear")))
    saved = precond(nvidia, body, "EDMPrecond", config=VP, **facts)
    refuses("edm-cifar10-32x32-uncond-vp has others", write(saved), like="edm-cifar10-32x32-uncond-vp")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Row]:
    """Puts rows into the catalogue, and the cache into a folder of the test."""
    monkeypatch.setenv("DODE_CACHE", str(tmp_path / "cache"))

    def add(name: str, like: str, **changes: Any) -> Row:
        row = replace(CATALOGUE[like], name=name, shape=(3, 8, 8), digest="", size=0, **changes)
        monkeypatch.setitem(CATALOGUE, name, row)  # type: ignore[arg-type]
        return row

    return add


@pytest.mark.parametrize("zipped", [True, False])
def test_a_guided_checkpoint(tmp_path: Path, rows: Callable[..., Row], zipped: bool) -> None:
    """The first three of six channels, labels 0..1000 for 4000 steps."""
    row = rows("tiny", "iddpm-imagenet-64", network=GUIDED, file="tiny.pt")
    body = UNetModel(**GUIDED)
    randomised(body)
    path = tmp_path / "mine.pt"
    torch.save(body.state_dict(), path, _use_new_zipfile_serialization=zipped)
    model = load(path, like="tiny")
    assert isinstance(model, NoisePrediction) and model.name == "tiny" and model.schedule == row.schedule
    level = float(row.schedule.sigmas[1200])
    with torch.no_grad():
        raw = body(X / (1 + level**2) ** 0.5, torch.full((2,), 300.0))
    assert raw.shape == (2, 6, 8, 8)
    torch.testing.assert_close(model(X, level), X - level * raw[:, :3], rtol=1e-4, atol=1e-4)
    part = model.affine(X, level)
    torch.testing.assert_close(part.raw, raw[:, :3], rtol=1e-4, atol=1e-5)
    download.cache().mkdir()
    path.rename(download.place(row))
    torch.testing.assert_close(load("tiny")(X, level), model(X, level))  # by name, from the cache


def test_classes_of_a_guided_checkpoint(tmp_path: Path, rows: Callable[..., Row]) -> None:
    network = GUIDED | dict(num_classes=10)
    rows("tiny", "adm-imagenet-64", network=network, file="tiny.pt", classes=10)
    body = UNetModel(**network)
    randomised(body)
    torch.save(body.state_dict(), tmp_path / "tiny.pt")
    refuses("draws one of 10 classes; give labels=", tmp_path / "tiny.pt", error=ValueError)
    for bad in (10, -1, [0, 99], 1.5, []):
        refuses("whole numbers from 0 to 9", tmp_path / "tiny.pt", error=ValueError, labels=bad)
    model = load(tmp_path / "tiny.pt", labels=4)  # the file's name says which
    both = model(X, 2.0)
    model.network.condition([4, 4])
    torch.testing.assert_close(model(X, 2.0), both)
    model.network.condition(torch.tensor([4, 5]))
    assert torch.equal(model(X, 2.0)[0], both[0]) and not torch.allclose(model(X, 2.0)[1], both[1])
    with pytest.raises(ValueError, match="2 labels for a batch of 1"):
        model(X[:1], 2.0)
    plain = Published(Model(**DDPM), 3)
    assert plain.condition(None) is plain
    with pytest.raises(ValueError, match="unconditional; leave out labels"):
        plain.condition(3)


def test_consistency_s_edm_checkpoint(tmp_path: Path, rows: Callable[..., Row]) -> None:
    """EDM's preconditioning with labels 250 ln(sigma)."""
    flags = dict(learn_sigma=False, flat_attention=False, use_new_attention_order=True, use_scale_shift_norm=False)
    rows("tiny", "edm-lsun-bedroom-256", network=GUIDED | flags, file="tiny.pt")
    body = UNetModel(**GUIDED, **flags)
    randomised(body)
    torch.save(body.state_dict(), tmp_path / "tiny.pt")
    model = load(tmp_path / "tiny.pt")
    assert isinstance(model, EDMPrediction)
    s = expand(SIGMA)
    raw = body(X / (s**2 + 0.25).sqrt(), 250 * SIGMA.log().float())
    expected = 0.25 / (s**2 + 0.25) * X + 0.5 * s / (s**2 + 0.25).sqrt() * raw
    torch.testing.assert_close(model(X, SIGMA), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["with averages", "without", "alone"])
def test_ddim_s_checkpoint(tmp_path: Path, rows: Callable[..., Row], form: str) -> None:
    """[network, optimizer, epoch, step, averages]; the network was trained inside DataParallel."""
    row = rows("tiny", "ddim-celeba-64", network=DDPM, file="tiny.pth")
    body, averages = Model(**DDPM), Model(**DDPM)
    randomised(body), randomised(averages, seed=5)
    optimizer = torch.optim.Adam(body.requires_grad_(True).parameters())
    sum(p.sum() for p in body.parameters()).backward()
    optimizer.step()
    states = [nn.DataParallel(body).state_dict(), optimizer.state_dict(), 3, 1000, averages.state_dict()]
    saved = {"with averages": states, "without": states[:4], "alone": states[4]}[form]
    torch.save(saved, tmp_path / "tiny.pth")
    expected = body if form == "without" else averages
    model = load(tmp_path / "tiny.pth")
    assert model.schedule == VPDiscrete()
    level = float(row.schedule.sigmas[250])
    with torch.no_grad():
        raw = expected(X / (1 + level**2) ** 0.5, torch.full((2,), 250.0))
    torch.testing.assert_close(model(X, level), X - level * raw, rtol=1e-4, atol=1e-4)


def test_torch_files_that_do_not_fit(tmp_path: Path, rows: Callable[..., Row]) -> None:
    rows("tiny", "ddim-celeba-64", network=DDPM, file="tiny.pth")
    path = tmp_path / "tiny.pth"
    refuses("does not exist", path)
    for raw in (b"", b"hello", b"PK\x03\x04"):
        path.write_bytes(raw)
        refuses("is not a file of weights alone", path)
    state = Model(**DDPM).state_dict()
    for other in ([1, 2], {}, [], 3, {"a": 1}, state | {"more": 3}):
        torch.save(other, path)
        refuses("does not hold the weights of one network", path)
    torch.save({k: v for k, v in state.items() if k != "conv_in.bias"}, path)
    refuses("does not fit Model: no 'conv_in.bias'", path)
    torch.save(state | {"foreign": torch.ones(1)}, path)
    refuses("'foreign' has no place", path)
    torch.save(state | {"conv_in.bias": torch.ones(3)}, path)
    refuses("'conv_in.bias' has shape (3,), not (32,)", path)
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    refuses("is not a file of weights alone", path)
    refuses("say which network", path.rename(tmp_path / "unknown.pth"), error=ValueError)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_torch_file_runs_nothing(tmp_path: Path, rows: Callable[..., Row], zipped: bool) -> None:
    rows("tiny", "ddim-celeba-64", network=DDPM, file="tiny.pth")
    torch.save(
        {"conv_in.bias": Trap(tmp_path / "sprung")}, tmp_path / "tiny.pth", _use_new_zipfile_serialization=zipped
    )
    refuses("GLOBAL", tmp_path / "tiny.pth")
    assert not (tmp_path / "sprung").exists()


def test_names(rows: Callable[..., Row]) -> None:
    refuses("no published checkpoint named 'edm-cifar'; the nearest: edm-", "edm-cifar", error=ValueError)
    refuses("no published checkpoint named 'x'", "some.pt", error=ValueError, like="x")
    refuses("dode.diffusers.from_diffusers('google/ddpm-cifar10-32')", "google/ddpm-cifar10-32", error=ValueError)
    row = rows("tiny", "adm-imagenet-64-classifier", file="tiny.pt")
    download.place(row).parent.mkdir()
    download.place(row).write_bytes(b"")
    refuses("is a classifier; load it with", "tiny", error=ValueError)
    with pytest.raises(ValueError, match="not known as a classifier"):
        load_classifier("some.pt", like="ddim-celeba-64")


def test_device_and_dtype(tmp_path: Path, rows: Callable[..., Row]) -> None:
    rows("tiny", "ddim-celeba-64", network=DDPM, file="tiny.pth")
    body = Model(**DDPM)
    randomised(body)
    torch.save(body.half().state_dict(), tmp_path / "tiny.pth")
    model = load(tmp_path / "tiny.pth")
    assert next(model.network.parameters()).dtype == torch.float32  # stored in half precision, widened
    half = load(tmp_path / "tiny.pth", dtype=torch.bfloat16)
    assert half(X.double(), 2.0).dtype == torch.float64
    torch.testing.assert_close(half(X, 2.0), model(X, 2.0), rtol=0.1, atol=0.5)
    auto = load(tmp_path / "tiny.pth", autocast=torch.bfloat16)
    torch.testing.assert_close(auto(X, 2.0), model(X, 2.0), rtol=0.1, atol=0.5)
    refuses("cannot use device 'nowhere'", tmp_path / "tiny.pth", "nowhere", error=ValueError)


def test_solvers_need_nothing_else(tmp_path: Path, nvidia: Nvidia) -> None:
    """From a pickle to distilled samples."""
    body = SongUNet(**VP)
    randomised(body)
    facts = dict(sigma_min=0, sigma_max=float("inf"), sigma_data=0.5)
    path = nvidia.dump(tmp_path / "n.pkl", dict(ema=precond(nvidia, body, "EDMPrecond", config=VP, **facts)))
    model = load(path)
    table = dode.solvers.ddim(model.grid(3))
    learned = dode.distillation.d_ode(model, table, dode.initial_noise(model.shape, range(4)), scale=2)
    out = dode.sample(model, learned, dode.initial_noise(model.shape, range(100, 103)))
    assert out.shape == (3, 3, 8, 8) and torch.isfinite(out).all()


# --- guidance -----------------------------------------------------------------------------------------------------

CLASSIFIER: dict[str, Any] = dict(
    image_size=8, num_channels=32, num_res_blocks=1, channel_mult=(1, 2), attention_resolutions=(4,),
    num_head_channels=16, num_classes=10, resblock_updown=True,
)  # fmt: skip


def test_classifier(tmp_path: Path, rows: Callable[..., Row]) -> None:
    rows("tiny", "adm-imagenet-64-classifier", network=CLASSIFIER, file="tiny.pt", classes=10)
    body = EncoderUNetModel(**CLASSIFIER)
    randomised(body)
    torch.save(body.state_dict(), tmp_path / "tiny.pt")
    found = load_classifier(tmp_path / "tiny.pt")
    label = torch.tensor([3.0, 400.0])
    logits = found(X, label)
    assert logits.shape == (2, 10) and not any(p.requires_grad for p in found.parameters())
    torch.testing.assert_close(logits, body(X, label))
    pool = body.out["2"]
    h = torch.randn(2, 64, 4, 4)
    flat = h.flatten(2)
    flat = torch.cat([flat.mean(2, keepdim=True), flat], 2) + pool.positional_embedding
    query = nn.MultiheadAttention(64, 4, batch_first=True)  # torch's own, with the same weights
    query.load_state_dict(
        {"in_proj_weight": linear(pool.qkv_proj.weight), "in_proj_bias": pool.qkv_proj.bias,
         "out_proj.weight": torch.eye(64), "out_proj.bias": torch.zeros(64)}
    )  # fmt: skip
    tokens = flat.transpose(1, 2)
    answer = query(tokens[:, :1], tokens, tokens)[0][:, 0]
    torch.testing.assert_close(pool(h), answer @ linear(pool.c_proj.weight).T + pool.c_proj.bias, rtol=1e-4, atol=1e-5)


def guided_pair(classes: int = 0) -> tuple[NoisePrediction, nn.Module]:
    network = GUIDED | dict(num_classes=classes)
    body, classifier = UNetModel(**network), EncoderUNetModel(**CLASSIFIER)
    randomised(body), randomised(classifier)
    wrapped = Published(body, 3, classes=classes).condition(2 if classes else None)
    return NoisePrediction(wrapped, (3, 8, 8), VPDiscrete(), name="tiny"), classifier


def test_guidance_shifts_the_noise() -> None:
    """``eps - sqrt(1 - alpha_bar) s grad log p``; the gradient against central differences in float64."""
    model, classifier = guided_pair()
    classifier.double()
    guided = ClassifierGuidance(model, classifier, labels=[3, 7], scale=2.5)
    sigmas = model.schedule.sigmas[[100, 600]]
    alpha = expand((1 + sigmas**2).rsqrt())
    x_t, label = (alpha * X).double(), torch.tensor([100.0, 600.0])
    log = lambda at: classifier(at, label).log_softmax(1)[[0, 1], [3, 7]]  # noqa: E731
    direction = torch.randn(X.shape, dtype=torch.float64)
    slope = (log(x_t + 1e-4 * direction) - log(x_t - 1e-4 * direction)) / 2e-4
    gradient = guided.gradient(x_t, label)
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), slope, rtol=1e-4, atol=1e-6)
    noise = (X - model(X, sigmas)) / expand(sigmas)
    shifted = (X - guided(X, sigmas)) / expand(sigmas)
    root = (1 - alpha**2).sqrt()
    torch.testing.assert_close(shifted, noise - 2.5 * root * gradient.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(guided.affine(X, float(sigmas[0])).raw[0], shifted[0], rtol=1e-3, atol=1e-4)
    assert guided.nfe == 2 and model.nfe == 1 and guided.prediction == "noise"


def test_guidance_raises_the_likelihood_of_the_class() -> None:
    model, classifier = guided_pair()
    level, label = 1.0, model.schedule.label(torch.tensor(1.0)).float().expand(2)
    logs = []
    for scale in (0.0, 0.5, 1.0):
        guided = ClassifierGuidance(model, classifier, labels=5, scale=scale)
        moved = X + (0.9 - level) * (X - guided(X, level)) / level  # a step of DDIM, in x / alpha
        logs.append(guided.log_likelihood(moved / (1 + 0.9**2) ** 0.5, label))
    assert (logs[0] < logs[1]).all() and (logs[1] < logs[2]).all()
    assert torch.equal(ClassifierGuidance(model, classifier, labels=5, scale=0)(X, level), model(X, level))


def test_guidance_and_gradients() -> None:
    """No graph is kept where none is wanted; where one is, it is the derivative of what was computed."""
    model, classifier = guided_pair(classes=10)
    guided = ClassifierGuidance(model, classifier)  # the denoiser's own labels
    assert guided.labels.tolist() == [2] and not guided(X, 1.0).requires_grad
    with torch.no_grad():
        quiet = guided(X, 1.0)
    torch.testing.assert_close(quiet, guided(X, 1.0))
    model.network.double()
    classifier.double()
    x, direction = X.double().requires_grad_(), torch.randn(X.shape, dtype=torch.float64)
    out = torch.randn(X.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((guided(x, 1.0) * out).sum(), x)
    value = lambda at: (guided(at.detach(), 1.0) * out).sum()  # noqa: E731
    slope = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-6)


def test_guidance_needs_a_noise_prediction_and_labels() -> None:
    model, classifier = guided_pair()
    with pytest.raises(ValueError, match="tiny is told no class; give labels="):
        ClassifierGuidance(model, classifier)
    edm = EDMPrediction(model.network, (3, 8, 8), dode.schedules.EDM(), name="edm")
    with pytest.raises(ValueError, match="edm predicts something else"):
        ClassifierGuidance(edm, classifier, labels=1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="3 labels for a batch of 2"):
        ClassifierGuidance(model, classifier, labels=[1, 2, 3])(X, 1.0)
    conditional, classifier = guided_pair(classes=10)
    guided = ClassifierGuidance(conditional, classifier, labels=[4, 6])
    assert conditional.network.labels.tolist() == [4, 6]  # type: ignore[union-attr]
    out = dode.sample(guided, dode.solvers.ddim(guided.grid(2)), dode.initial_noise((3, 8, 8), range(2)))
    assert torch.isfinite(out).all() and guided.nfe == 2


# --- the catalogue ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", CATALOGUE.values(), ids=list(CATALOGUE))
def test_rows_are_whole(row: Row) -> None:
    assert row.licence and row.source and len(row.shape) == 3 and row.shape[1] == row.shape[2]
    assert bool(row.hub) == (row.kind == "diffusers") != bool(row.file)
    assert not row.url or re.fullmatch(r"https://[\w.-]+/[\w./?=-]+", row.url)
    assert bool(row.url) + bool(row.page) + bool(row.hub) == 1
    assert re.fullmatch("|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", row.digest)
    assert row.check == (row.digest or "digest not known: the file is checked by its format alone")
    assert row.kind in ("edm", "diffusers") or row.schedule is not None
    assert row.settings.get("classifier", row.name) in CATALOGUE


def test_files_have_names_of_their_own() -> None:
    files = [row.file for row in CATALOGUE.values() if row.file]
    assert len(set(files)) == len(files)


# --- downloads ----------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Sends ``payload``; its class attributes say how it misbehaves."""

    payload, cuts, ranges, status = b"", list[int](), True, 200
    asked = list[str | None]()

    def do_GET(self) -> None:
        cls = type(self)
        wanted = self.headers.get("Range")
        cls.asked.append(wanted)
        first = int(wanted[6:-1]) if wanted and cls.ranges else 0
        self.send_response(cls.status if cls.status != 200 else 206 if first else 200)
        body = cls.payload[first:]
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: cls.cuts.pop(0)] if cls.cuts else body)  # and hangs up

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, type[Server]]]:
    monkeypatch.setattr(download, "PAUSE", 0.0)
    own = type("Own", (Server,), dict(payload=bytes(range(256)) * 40, cuts=[], asked=[]))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), own)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/tiny.pt", own
    httpd.shutdown()
    httpd.server_close()


def digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def fetch_fails(row: Row, match: str) -> None:
    """One line, and nothing in the cache."""
    with pytest.raises(FileError) as info:
        download.fetch(row, progress=False)
    assert match in str(info.value) and "\n" not in str(info.value)
    assert not list(download.cache().glob("*")) if download.cache().exists() else True


def test_a_download_is_checked_and_kept(rows: Callable[..., Row], server: tuple[str, type[Server]]) -> None:
    url, own = server
    row = replace(rows("tiny", "adm-imagenet-64", file="tiny.pt", url=url), digest=digest(own.payload), size=10_240)
    path = download.fetch(row)
    assert path == download.place(row) and path.read_bytes() == own.payload
    assert download.fetch(row) == path and len(own.asked) == 1  # the second time from the cache
    assert [p.name for p in path.parent.iterdir()] == ["tiny.pt"]


def test_a_broken_connection_is_taken_up(rows: Callable[..., Row], server: tuple[str, type[Server]]) -> None:
    url, own = server
    row = replace(rows("tiny", "adm-imagenet-64", file="tiny.pt", url=url), digest=digest(own.payload))
    own.cuts = [5000, 3000]
    assert download.fetch(row, progress=False).read_bytes() == own.payload
    assert own.asked == [None, "bytes=5000-", "bytes=8000-"]


def test_a_server_without_ranges_begins_again(rows: Callable[..., Row], server: tuple[str, type[Server]]) -> None:
    url, own = server
    row = replace(rows("tiny", "adm-imagenet-64", file="tiny.pt", url=url), digest=digest(own.payload))
    own.cuts, own.ranges = [5000, 7000], False
    assert download.fetch(row, progress=False).read_bytes() == own.payload


def test_a_download_that_fails_leaves_nothing(rows: Callable[..., Row], server: tuple[str, type[Server]]) -> None:
    url, own = server
    row = rows("tiny", "adm-imagenet-64", file="tiny.pt", url=url)
    own.cuts = [1000] * 20
    fetch_fails(row, f"the connection ended after 5,000 bytes); put the file from {url} at {download.place(row)}")
    own.cuts = []
    fetch_fails(replace(row, digest=digest(b"other")), f"{url} sent other bytes than expected")
    own.status = 404
    fetch_fails(row, "could not be fetched (404")


def test_offline(rows: Callable[..., Row]) -> None:
    """One line that says which file to put where; and there it is found."""
    row = rows("tiny", "adm-imagenet-64", file="tiny.pt", url="http://127.0.0.1:9/tiny.pt")
    fetch_fails(row, f"put the file from http://127.0.0.1:9/tiny.pt at {download.place(row)}")
    refuses("tiny is not here and could not be fetched", "tiny")
    by_hand = rows("other", "ddim-celeba-64", file="other.pth")
    fetch_fails(by_hand, f"save the file as {download.place(by_hand)}")


def test_an_altered_file_is_refused_and_kept(rows: Callable[..., Row]) -> None:
    row = replace(rows("tiny", "adm-imagenet-64", file="tiny.pt"), digest=digest(b"as published"), size=12)
    path = download.place(row)
    path.parent.mkdir()
    path.write_bytes(b"as published")
    assert download.fetch(row) == path
    path.write_bytes(b"as_published")
    with pytest.raises(FileError, match="is not the published file"):
        download.fetch(row)
    path.write_bytes(b"as publ")
    with pytest.raises(FileError, match="has 7 bytes, not 12"):
        download.fetch(row)
    assert path.read_bytes() == b"as publ"  # it may be somebody's: theirs to delete


def test_a_cache_that_cannot_be_written(
    rows: Callable[..., Row], server: tuple[str, type[Server]], tmp_path: Path
) -> None:
    row = rows("tiny", "adm-imagenet-64", file="tiny.pt", url=server[0])
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FileError, match="cannot be stored at"):
        download.fetch(row, progress=False)


def test_the_cache_s_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DODE_CACHE", str(tmp_path))
    assert download.cache() == tmp_path
    monkeypatch.delenv("DODE_CACHE")
    assert download.cache().name == "dode"


def test_loaded_networks_are_denoisers() -> None:
    """What the package promises of all of them."""
    assert all(issubclass(kind, NetworkDenoiser) for kind in (EDMPrediction, NoisePrediction, VEPrediction))


def test_the_names_of_the_catalogue_are_names_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DODE_CACHE", str(tmp_path))
    where = tmp_path / "ddim-celeba-64.pth"
    for ask in (dode.load, dode.zoo.digest):
        with pytest.raises(FileError, match=f"has to be fetched by hand: open https.* and save the file as {where}"):
            ask("ddim-celeba-64")
    where.write_bytes(b"half a file")
    with pytest.raises(FileError, match="nothing in it was run"):
        dode.load("ddim-celeba-64")
    assert dode.zoo.digest("ddim-celeba-64") == hashlib.sha256(b"half a file").hexdigest()[:8]
