"""The published networks against other implementations: one set of weights, the same answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.downsampling import downsample_2d
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import upsample_2d
from published_parts import (
    ADM,
    DDPM,
    GUIDED,
    GUIDED_RESNET,
    NVIDIA_RESNET,
    RESNET,
    TAPS,
    VP,
    attention,
    images,
    linear,
    randomised,
    split_qkv,
)
from torch import Tensor, nn

from dode.zoo.ddpm import Model
from dode.zoo.nvidia import DhariwalUNet, SongUNet
from dode.zoo.openai import UNetModel


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


@pytest.mark.parametrize(
    ("scale_shift", "new_order", "flat", "resblocks"),  # each value of each beside each value of every other
    [(0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)],
)
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
