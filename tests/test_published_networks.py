"""The published networks: names, shapes and sizes of their files, and the same answers as other implementations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.downsampling import FirDownsample2D, downsample_2d
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import upsample_2d
from published_parts import MAKERS, SMALL, SONG, TAPS, X, images, linear, network, shapes, state
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo import CATALOGUE
from dode.zoo.families import nvidia

# --- what a file holds ----------------------------------------------------------------------------------------------

WIDE = dict(augment_dim=9, model_channels=128)
ARCHITECTURES: dict[str, dict[str, Any]] = dict(  # what the names of NVIDIA's files stand for
    vp=WIDE, adm=dict(model_channels=192),
    ve=WIDE | dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=TAPS),
)  # fmt: skip


def in_file(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a card's tensors."""
    card = CATALOGUE[name]
    if card.family != "nvidia":
        kinds = {"ddpm": "ddpm", "openai-classifier": "classifier"}
        return shapes(kinds.get(card.family, "guided"), **card.network)
    kind, side = name.rpartition("-")[2], card.shape[1]
    usual = nvidia.USUAL["DhariwalUNet" if kind == "adm" else "SongUNet"]
    widths = (1, 2, 3, 4) if kind == "adm" else (2, 2, 2) if side == 32 else (1, 2, 2, 2)
    own = dict(img_resolution=side, in_channels=3, out_channels=3, label_dim=card.classes, channel_mult=widths)
    return shapes(kind, **usual | ARCHITECTURES[kind] | own)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("edm-cifar10-32x32-uncond-vp", 55.7), ("edm-cifar10-32x32-cond-vp", 55.7), ("edm-ffhq-64x64-uncond-vp", 61.8),
        ("edm-imagenet-64x64-cond-adm", 295.9), ("adm-imagenet-64", 295.9), ("adm-imagenet-128", 421.5),
        ("adm-imagenet-256", 553.8), ("adm-imagenet-256-uncond", 552.814086), ("edm-lsun-bedroom-256", 526.304771),
        ("iddpm-imagenet-64-cond", 273.0), ("iddpm-cifar10-32", 52.5), ("ddpm-cifar10-32", 35.7),
        ("ddpm-lsun-bedroom-256", 113.7), ("ddim-celeba-64", 78.7), ("ldm-lsun-bedroom-256", 274),
        ("ldm-ffhq-256", 274), ("ldm-lsun-church-256", 295), ("adm-imagenet-512", 559), ("cd-imagenet-64-l2", 295.9),
        ("ldm-imagenet-256", 401), ("ldm-imagenet-256-vq8", 395), ("iddpm-lsun-bedroom-256-2400k", 114),
    ],
)  # fmt: skip
def test_published_sizes(name: str, millions: float) -> None:
    """Numbers of parameters: the networks' papers, and inspected files."""
    card = CATALOGUE[name]
    parameters = sum(math.prod(s) for key, s in in_file(name).items() if "resample_filter" not in key)
    assert round(parameters / 1e6, len(str(millions).partition(".")[2])) == millions
    if card.size:  # four bytes each, and names
        assert 4 * parameters < card.size < 4 * parameters + 500_000


NAMES: dict[str, dict[str, tuple[int, ...] | None]] = {  # by card: shapes of parameters in its file, None for no such
    "edm-cifar10-32x32-cond-vp": {
        "map_label.weight": (128, 10), "map_label.bias": (128,), "map_augment.weight": (128, 9),
        "map_augment.bias": None, "map_noise.freqs": None, "map_layer0.weight": (512, 128),
        "enc.32x32_conv.weight": (128, 3, 3, 3), "enc.16x16_down.conv0.resample_filter": (1, 1, 2, 2),
        "enc.16x16_down.skip.weight": (256, 256, 1, 1), "enc.16x16_block3.qkv.weight": (768, 256, 1, 1),
        "dec.8x8_in0.proj.weight": (256, 256, 1, 1), "dec.8x8_in1.qkv.weight": None,
        "dec.16x16_block4.qkv.bias": (768,), "dec.16x16_block3.qkv.bias": None, "dec.32x32_aux_norm.weight": (256,),
        "dec.32x32_aux_conv.weight": (3, 256, 3, 3),
    },
    "edm-ffhq-64x64-uncond-ve": {
        "map_noise.freqs": (128,), "map_layer0.weight": (512, 256), "enc.32x32_aux_residual.weight": (128, 3, 3, 3),
        "enc.16x16_aux_residual.resample_filter": (1, 1, 4, 4), "dec.32x32_aux_norm.weight": None,
    },
    "edm-imagenet-64x64-cond-adm": {
        "map_label.weight": (768, 1000), "map_label.bias": None, "map_augment.weight": None,
        "enc.32x32_down.skip.resample_filter": (1, 1, 2, 2), "enc.32x32_down.skip.weight": None,
        "enc.32x32_block0.affine.weight": (768, 768), "dec.8x8_block0.qkv.weight": (2304, 768, 1, 1),
        "out_norm.weight": (192,), "out_conv.weight": (3, 192, 3, 3),
    },
    "edm-lsun-bedroom-256": {
        "middle_block.1.qkv.weight": (3072, 1024, 1, 1), "input_blocks.1.0.in_layers.2.weight": (256, 256, 3, 3),
        "output_blocks.17.0.out_layers.3.weight": (256, 256, 3, 3), "out.2.weight": (3, 256, 3, 3),
    },
    "adm-imagenet-64": {
        "label_emb.weight": (1000, 768), "time_embed.0.weight": (768, 192), "out.2.weight": (6, 192, 3, 3),
        "input_blocks.4.0.emb_layers.1.weight": (384, 768),  # halves, by a residual block
        "input_blocks.5.0.skip_connection.weight": (384, 192, 1, 1), "input_blocks.5.1.qkv.bias": (1152,),
    },
    "iddpm-lsun-bedroom-256": {
        "input_blocks.3.0.op.weight": (128, 128, 3, 3),  # halves, by a convolution
        "output_blocks.2.1.conv.weight": (512, 512, 3, 3), "output_blocks.5.2.conv.bias": (512,),
    },
    "adm-imagenet-256-classifier": {
        "out.2.positional_embedding": (512, 65), "out.2.c_proj.weight": (1000, 512, 1), "output_blocks.0.0": None,
    },
    "adm-imagenet-512": {
        "input_blocks.0.0.weight": (128, 3, 3, 3), "time_embed.0.weight": (1024, 256), "out.2.weight": (6, 128, 3, 3),
        "label_emb.weight": (1000, 1024), "output_blocks.20.0.skip_connection.weight": (128, 256, 1, 1),
    },
    "ldm-lsun-church-256": {
        "input_blocks.0.0.weight": (192, 4, 3, 3), "out.2.weight": (4, 192, 3, 3),
        "input_blocks.1.1.qkv.weight": (576, 192, 1, 1), "input_blocks.13.1.qkv.weight": None,  # at 2 x 2 none
        "middle_block.1.qkv.weight": (2304, 768, 1, 1), "input_blocks.3.0.emb_layers.1.weight": (384, 768),
    },
    "ldm-imagenet-256": {
        "cond_stage_model.embedding.weight": (1001, 512), "label_emb.weight": None,
        "middle_block.1.norm.weight": (960,), "out.2.weight": (3, 192, 3, 3),
        "input_blocks.4.1.transformer_blocks.0.attn1.to_q.weight": (384, 384), "input_blocks.2.1.norm.weight": None,
        "input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (384, 512),
        "output_blocks.8.1.transformer_blocks.0.ff.net.0.proj.weight": (3072, 384),
        "output_blocks.0.1.transformer_blocks.0.attn2.to_out.0.bias": (960,),
    },
    "ddim-celeba-64": {
        "temb.dense.0.weight": (512, 128), "down.2.attn.1.q.weight": (256, 256, 1, 1),
        "up.0.block.2.nin_shortcut.weight": (128, 256, 1, 1), "up.0.upsample.conv.weight": None,
        "down.3.downsample.conv.weight": (256, 256, 3, 3), "mid.block_1.conv1.weight": (512, 512, 3, 3),
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_published_parameters(name: str) -> None:
    found = in_file(name)
    assert {key: found.get(key) for key in NAMES[name]} == NAMES[name]
    assert name != "edm-lsun-bedroom-256" or len(found) == 566


# --- the same answers as diffusers' ---------------------------------------------------------------------------------

BLOCKS: dict[str, Any] = dict(sample_size=8, block_out_channels=(32, 64), layers_per_block=1)
# The parts of a block by their names in diffusers; those of an attention that shares its block's name begin with "@".
PARTS: dict[str, dict[str, str]] = dict(
    ddpm=dict(
        norm1="norm1", conv1="conv1", temb_proj="time_emb_proj", norm2="norm2", conv2="conv2",
        nin_shortcut="conv_shortcut", norm="group_norm", q="to_q", k="to_k", v="to_v", proj_out="to_out.0",
    ),
    guided={
        "in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2",
        "out_layers.3": "conv2", "skip_connection": "conv_shortcut", "norm": "group_norm", "proj_out": "to_out.0",
        "op": "conv",
    },
    nvidia=dict(
        norm0="norm1", conv0="conv1", affine="time_emb_proj", norm1="norm2", conv1="conv2", skip="conv_shortcut",
        norm2="@group_norm", qkv="@qkv", proj="@to_out.0",
    ),
)  # fmt: skip
# Where the blocks of the small networks are there, kind and number.
PLACES: dict[str, dict[str, str]] = dict(
    ddpm={
        "conv_in": "conv_in", "down.0.block.0": "down_blocks.0.resnets.0", "mid.block_1": "mid_block.resnets.0",
        "down.0.downsample": "down_blocks.0.downsamplers.0", "down.1.block.0": "down_blocks.1.resnets.0",
        "down.1.attn.0": "down_blocks.1.attentions.0", "mid.attn_1": "mid_block.attentions.0",
        "mid.block_2": "mid_block.resnets.1", "up.1.block": "up_blocks.0.resnets",
        "up.1.attn": "up_blocks.0.attentions", "up.1.upsample": "up_blocks.0.upsamplers.0",
        "up.0.block": "up_blocks.1.resnets", "norm_out": "conv_norm_out",
        "conv_out": "conv_out", "temb.dense.0": "time_embedding.linear_1", "temb.dense.1": "time_embedding.linear_2",
    },
    guided={
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
    },
    nvidia={
        "enc.8x8_conv": "conv_in", "enc.8x8_block0": "down_blocks.0.{}.0",
        "enc.4x4_down": "down_blocks.0.downsamplers.0", "enc.4x4_block0": "down_blocks.1.{}.0",
        "dec.4x4_in0": "mid_block.{}.0", "dec.4x4_in1": "mid_block.{}.1", "dec.4x4_block0": "up_blocks.0.{}.0",
        "dec.4x4_block1": "up_blocks.0.{}.1", "dec.8x8_up": "up_blocks.0.upsamplers.0",
        "dec.8x8_block0": "up_blocks.1.{}.0", "dec.8x8_block1": "up_blocks.1.{}.1",
        "dec.8x8_aux_norm": "conv_norm_out", "dec.8x8_aux_conv": "conv_out", "out_norm": "conv_norm_out",
        "out_conv": "conv_out", "map_layer0": "time_embedding.linear_1", "map_layer1": "time_embedding.linear_2",
        "map_label": "class_embedding",
    },
)  # fmt: skip


# Latent diffusion's transformers have the same names there.
PARTS["latent"] = {ours: theirs for ours, theirs in PARTS["guided"].items() if ours not in ("norm", "proj_out")}
PLACES["latent"] = PLACES["guided"]


def to_diffusers(form: str, tensors: dict[str, Tensor], order: str = "", head: int = 0) -> dict[str, Tensor]:
    """The state of diffusers' network, linear layers for 1x1 convolutions in attention.

    Fused channels lie as ``order`` says: h heads (of ``head`` channels, one for 0), t query, key and value, c channels.
    """
    found, places = dict[str, Tensor](), PLACES[form]
    for name, value in tensors.items():
        if "resample_filter" in name or "map_augment" in name:
            continue
        old = max((place for place in places if name.startswith(f"{place}.")), key=len)
        *parts, kind = name[len(old) + 1 :].split(".")
        number = parts.pop(0) + "." if parts and parts[0].isdigit() else ""
        part = PARTS[form].get(".".join(parts), ".".join(parts))
        where = places[old].format("attentions" if part[:1] == "@" else "resnets") + "." + number
        part = part.removeprefix("@")
        if part == "qkv":
            value, heads = value.flatten(1) if value.ndim > 2 else value, len(value) // 3 // head if head else 1
            sides = dict(h=heads, t=3, c=len(value) // 3 // heads)
            split = value.reshape(*(sides[axis] for axis in order), *value.shape[1:]).unbind(order.index("t"))
            for letter, piece in zip("qkv", split, strict=True):
                found[f"{where}to_{letter}.{kind}"] = piece.reshape(-1, *value.shape[1:])
        else:
            found[f"{where}{part}.{kind}" if part else f"{where}{kind}"] = linear(value) if "to_" in part else value
    return found


def agrees(kind: str, tensors: dict[str, Tensor], theirs: UNet2DModel, classes: bool = False, **more: Any) -> None:
    """A network with a file's tensors answers as diffusers' does."""
    label, drawn = torch.tensor([3.0, 871.5]), torch.tensor([3, 9]) if classes else None
    expected = theirs.eval()(X, label, class_labels=drawn).sample[:, :3]
    ours = network(kind, tensors, **more)
    torch.testing.assert_close(ours(X, label, drawn), expected, rtol=1e-4, atol=1e-5)
    assert drawn is None or not torch.allclose(ours(X, label, drawn.flip(0)), expected)


def test_ddpm_is_that_of_diffusers() -> None:
    theirs, tensors = UNet2DModel(
        **BLOCKS, norm_eps=1e-6, attention_head_dim=None, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), downsample_padding=0, flip_sin_to_cos=False, freq_shift=1,
    ), state("ddpm")  # fmt: skip
    theirs.load_state_dict(to_diffusers("ddpm", tensors))
    agrees("ddpm", tensors, theirs)


def adm_in_diffusers(kind: str = "resnet", **more: Any) -> UNet2DModel:
    first = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if kind == "resnet" else ("DownBlock2D", "UpBlock2D")
    return UNet2DModel(
        **BLOCKS | dict(
            down_block_types=(first[0], "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", first[1]),
            downsample_type=kind, upsample_type=kind, num_class_embeds=10, flip_sin_to_cos=True, freq_shift=0,
            norm_eps=1e-5, attn_norm_num_groups=32, resnet_time_scale_shift="scale_shift",
        ) | more
    )  # fmt: skip


@pytest.mark.parametrize(
    ("scale_shift", "new_order", "flat", "resblocks"),  # each value of each beside each value of every other
    [(0, 0, 0, 0), (0, 1, 1, 1), (1, 0, 1, 1), (1, 1, 0, 1), (1, 1, 1, 0)],
)
def test_guided_is_that_of_diffusers(scale_shift: bool, new_order: bool, flat: bool, resblocks: bool) -> None:
    more = dict(
        num_classes=10, use_scale_shift_norm=scale_shift, use_new_attention_order=new_order, resblock_updown=resblocks
    )
    shift = "scale_shift" if scale_shift else "default"
    kind, own = "resnet" if resblocks else "conv", dict(attention_head_dim=16, resnet_time_scale_shift=shift)
    theirs, tensors = adm_in_diffusers(kind, out_channels=6, **own), state("guided", **more)
    theirs.load_state_dict(to_diffusers("guided", tensors, "thc" if new_order else "htc", 16))
    if flat:  # 1x1 convolutions over a row of pixels
        tensors = {k: v.flatten(2) if v.shape[2:] == (1, 1) and "skip" not in k else v for k, v in tensors.items()}
    agrees("guided", tensors, theirs, classes=True, **more)


@pytest.mark.parametrize("head", [16, 0])
def test_latent_diffusion_with_classes_is_that_of_diffusers(head: int) -> None:
    """Whose cross-attention has queries and keys; to one token, they change nothing."""
    more: dict[str, Any] = dict(num_heads=1, num_head_channels=head)
    theirs = UNet2DConditionModel(
        **BLOCKS, in_channels=3, out_channels=3, attention_head_dim=(32 // head, 64 // head) if head else 1,
        cross_attention_dim=24, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    tensors = state("latent", **more)
    for name in tensors:
        if name.endswith(("proj_in.weight", "proj_out.weight")):
            tensors[name] = tensors[name][:, :, None, None]  # as in the files
    embedding = tensors["cond_stage_model.embedding.weight"]
    theirs.load_state_dict(to_diffusers("latent", {k: v for k, v in tensors.items() if v is not embedding}))
    theirs, net = theirs.eval().double(), network("latent", tensors, **more).double()  # whose sinusoids stay float32
    x, label = X.double(), torch.tensor([3.0, 871.5], dtype=torch.float64)
    for classes, rows in ((torch.tensor([3, 9]), [3, 9]), (torch.tensor([10, 2]), [10, 2]), (None, [10, 10])):
        expected = theirs(x, label, encoder_hidden_states=embedding[rows][:, None].double()).sample
        torch.testing.assert_close(net(x, label, classes), expected, rtol=1e-6, atol=1e-6)


def test_nvidia_s_adm_is_that_of_diffusers() -> None:
    more = dict(model_channels=128, label_dim=10)  # 32 groups, as there
    theirs, tensors = adm_in_diffusers(block_out_channels=(128, 256), attention_head_dim=64), state("adm", **more)
    found = to_diffusers("nvidia", tensors, "hct", 64)
    theirs.load_state_dict(found | {"class_embedding.weight": found["class_embedding.weight"].T})
    agrees("adm", tensors, theirs, classes=True, **more)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, kernel=TAPS)


@pytest.mark.parametrize("taps", [(1, 1), TAPS])
def test_ddpm_plus_plus_is_that_of_diffusers_parts(taps: tuple[float, ...]) -> None:
    """Put together from them: other sums with the skips, groups, filters and attention."""
    theirs = UNet2DModel(
        **BLOCKS, norm_eps=1e-6, attention_head_dim=None, norm_num_groups=8,
        down_block_types=("AttnDownBlock2D", "ResnetDownsampleBlock2D"), downsample_type="resnet",
        up_block_types=("ResnetUpsampleBlock2D", "AttnUpBlock2D"), upsample_type="resnet", flip_sin_to_cos=False,
        freq_shift=1,
    )  # fmt: skip
    for module in theirs.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = module.num_channels // 4
        if isinstance(module, ResnetBlock2D):
            module.output_scale_factor = 2**0.5
            if module.up or module.down:
                module.conv_shortcut = nn.Conv2d(module.in_channels, module.out_channels, 1)
            if taps == TAPS and module.up:
                module.upsample = Function(upsample_2d)
            if taps == TAPS and module.down:
                module.downsample = Function(downsample_2d)
        if hasattr(module, "rescale_output_factor"):
            module.rescale_output_factor = 2**0.5
    theirs.up_blocks[1].attentions[0] = nn.Identity()  # attention in the last block of a level alone
    tensors = state("vp", resample_filter=taps)
    theirs.load_state_dict(to_diffusers("nvidia", tensors, "hct"))
    agrees("vp", tensors, theirs, resample_filter=taps)


# --- what no other implementation has -------------------------------------------------------------------------------


def test_ncsn_plus_plus_adds_the_halved_image() -> None:
    """Song et al. 2021, appendix H: at each resolution the image, halved by a convolution, joins the features."""
    net = network("ve", img_resolution=16, channel_mult=(1, 2, 2), attn_resolutions=(8,))
    given, out, x = dict[str, Tensor](), dict[str, Tensor](), images(side=16)
    for way in ("down", "shrink", "pyramid"):
        for k, layer in enumerate(getattr(net, way)):
            layer.register_forward_pre_hook(lambda m, args, name=f"{way}{k}": given.update({name: args[0].clone()}))
            layer.register_forward_hook(lambda m, args, y, name=f"{way}{k}": out.update({name: y}))
    net(x, torch.tensor([0.5, -1.0]))
    assert torch.equal(given["pyramid0"], x)
    theirs = FirDownsample2D(3, 32, use_conv=True, fir_kernel=TAPS)
    theirs.load_state_dict({f"Conv2d_0.{k}": v for k, v in net.pyramid[0][0].state_dict().items()})
    torch.testing.assert_close(out["pyramid0"], theirs(x), rtol=1e-4, atol=1e-5)
    for k in (0, 1):
        joined = (out[f"shrink{k}"] + out[f"pyramid{k}"]) / 2**0.5
        torch.testing.assert_close(given[f"down{k + 1}"], joined)
        assert k or torch.equal(given["pyramid1"], given["down1"])  # the sum is halved on, not the image alone


def test_a_skip_encoder_adds_the_image_itself() -> None:
    """Song et al. 2021, "input skip": at each resolution the filtered image, by a 1x1 convolution, unweighted."""
    more = dict(encoder_type="skip", img_resolution=16, channel_mult=(1, 2, 2), attn_resolutions=(8,))
    found = shapes("vp", **SMALL["vp"] | more, resample_filter=TAPS)
    assert found["enc.8x8_aux_down.resample_filter"] == (1, 1, 4, 4) and "enc.16x16_aux_skip.weight" not in found
    assert found["enc.4x4_aux_skip.weight"] == (64, 3, 1, 1) and found["enc.4x4_aux_skip.bias"] == (64,)
    w, x = state("vp", **more, resample_filter=TAPS), images(side=16)
    net = network("vp", w, **more, resample_filter=TAPS)
    given, out = dict[str, Tensor](), dict[str, Tensor]()
    for k in (0, 1):
        net.shrink[k].register_forward_hook(lambda m, args, y, k=k: out.update({k: y}))
        net.down[k + 1].register_forward_pre_hook(lambda m, args, k=k: given.update({k: args[0].clone()}))
    net(x, torch.tensor([0.5, -1.0]))
    for k, side in ((0, 8), (1, 4)):
        x = downsample_2d(x, kernel=TAPS)
        fitted = F.conv2d(x, w[f"enc.{side}x{side}_aux_skip.weight"], w[f"enc.{side}x{side}_aux_skip.bias"])
        torch.testing.assert_close(given[k], out[k] + fitted, rtol=1e-4, atol=1e-5)


# --- EDM2 -------------------------------------------------------------------------------------------------------------


def unit(x: Tensor, *dims: int) -> Tensor:
    return x / (1e-4 + x.square().mean(dims, keepdim=True).sqrt())


def layer(x: Tensor, w: Tensor, gain: Any = 1) -> Tensor:
    """Equations 47 and 66 as they stand: the weight is normalised, then scaled by the root of its inputs."""
    w = gain * unit(w, *range(1, w.ndim)) / math.prod(w.shape[1:]) ** 0.5
    return F.linear(x, w) if w.ndim == 2 else F.conv2d(x, w, padding=w.shape[-1] // 2)


def mixed(a: Tensor, b: Tensor, t: float) -> Tensor:
    return ((1 - t) * a + t * b) / ((1 - t) ** 2 + t**2) ** 0.5


def edm2(w: dict[str, Tensor], x: Tensor, label: Tensor, one_hot: Tensor) -> Tensor:
    """The small network (:data:`published_parts.EDM2`), written down from the paper's figure 21."""
    rise = lambda x: F.silu(x) / 0.596  # noqa: E731

    def block(name: str, x: Tensor) -> Tensor:
        p = {k.removeprefix(f"{name}."): v for k, v in w.items() if k.startswith(f"{name}.")}
        down, up, encodes = name.endswith("down"), name.endswith("up"), name.startswith("enc")
        x = F.avg_pool2d(x, 2) if down else x.repeat_interleave(2, 2).repeat_interleave(2, 3) if up else x
        fit = lambda x: layer(x, p["conv_skip.weight"]) if "conv_skip.weight" in p else x  # noqa: E731
        x = unit(fit(x), 1) if encodes else x
        y = layer(rise(x), p["conv_res0.weight"])
        y = rise(y * (1 + layer(e, p["emb_linear.weight"], p["emb_gain"]))[:, :, None, None])
        x = mixed(x if encodes else fit(x), layer(y, p["conv_res1.weight"]), 0.25)
        if "attn_qkv.weight" in p:
            b, c, h, _ = x.shape
            q, k, v = unit(layer(x, p["attn_qkv.weight"]).reshape(b, c // 16, 16, 3, h * h), 2).unbind(3)
            y = v @ (q.transpose(2, 3) @ k / 4).softmax(3).transpose(2, 3)
            x = mixed(x, layer(y.reshape(x.shape), p["attn_proj.weight"]), 0.35)
        return x.clamp(-2, 2)

    def joined(a: Tensor, b: Tensor) -> Tensor:
        whole = ((a.shape[1] + b.shape[1]) / (0.4**2 + 0.6**2)) ** 0.5
        return torch.cat([0.4 * whole / a.shape[1] ** 0.5 * a, 0.6 * whole / b.shape[1] ** 0.5 * b], 1)

    e = 2**0.5 * torch.cos(label[:, None] * w["emb_fourier.freqs"] + w["emb_fourier.phases"])
    e = rise(mixed(layer(e, w["emb_noise.weight"]), layer(10**0.5 * one_hot, w["emb_label.weight"]), 0.4))
    skips = [layer(torch.cat([x, torch.ones_like(x[:, :1])], 1), w["enc.8x8_conv.weight"])]
    for name in ("enc.8x8_block0", "enc.4x4_down", "enc.4x4_block0"):
        skips.append(block(name, skips[-1]))
    x = block("dec.4x4_in1", block("dec.4x4_in0", skips[-1]))
    for name in ("dec.4x4_block0", "dec.4x4_block1", "dec.8x8_up", "dec.8x8_block0", "dec.8x8_block1"):
        x = block(name, x if name.endswith("up") else joined(x, skips.pop()))
    return layer(x, w["out_conv.weight"], w["out_gain"])


def test_edm2_is_the_paper_s() -> None:
    w, label = state("edm2"), torch.tensor([0.3, -1.7])
    net = network("edm2", w)
    for classes, one_hot in (
        (torch.tensor([4, 0]), F.one_hot(torch.tensor([4, 0]), 10).float()), (None, torch.zeros(2, 10))
    ):  # fmt: skip
        torch.testing.assert_close(net(X, label, classes), edm2(w, X, label, one_hot), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "millions"), [(128, 125), (192, 280), (256, 498), (448, 1523)])
def test_edm2_s_sizes(channels: int, millions: int) -> None:
    """Karras et al. 2024, table 2, from XS to XXL."""
    found = shapes("edm2", img_resolution=64, img_channels=4, label_dim=1000, model_channels=channels)
    assert round(sum(math.prod(s) for name, s in found.items() if "fourier" not in name) / 1e6) == millions


@pytest.mark.parametrize("kind", ["vp", "ve", "adm"])
def test_embeddings_are_the_formulas(kind: str) -> None:
    """Of a label, and of a class as a one-hot vector, of length ``sqrt(classes)`` in DDPM++ and NCSN++."""
    w = state(kind, label_dim=10)
    label, classes = torch.tensor([0.3, 1.7]), torch.tensor([4, 0])
    features = w["map_layer0.weight"].shape[1]
    steps = torch.arange(features // 2) / (features // 2 - (kind == "vp"))
    frequencies = 2 * math.pi * w["map_noise.freqs"] if kind == "ve" else 10_000.0**-steps
    angles, one_hot = label[:, None] * frequencies, F.one_hot(classes, 10).float()
    dense = lambda name, e: F.linear(e, w[f"map_{name}.weight"], w.get(f"map_{name}.bias"))  # noqa: E731
    if kind == "adm":
        e = torch.cat([angles.cos(), angles.sin()], 1)
        expected = F.silu(dense("layer1", F.silu(dense("layer0", e))) + dense("label", one_hot))
    else:
        e = torch.cat([angles.sin(), angles.cos()], 1) + dense("label", one_hot * 10**0.5)
        expected = F.silu(dense("layer1", F.silu(dense("layer0", e))))
    net = network(kind, w, label_dim=10)
    torch.testing.assert_close(net.embedding(label, classes, 2), expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(net.embedding(label, None, 2), expected, atol=1e-2)


@pytest.mark.parametrize("kind", ["vp", "ve", "adm", "guided", "ddpm", "edm2", "latent"])
def test_networks_run_in_half_precision_without_dropout_and_show_their_bottleneck(kind: str) -> None:
    net, label, seen = network(kind).train(), torch.tensor([0.3, 0.9]), list[Tensor]()
    whole = net(X, label)
    assert torch.equal(net(X, label), whole)
    net.bottleneck.register_forward_hook(lambda m, given, out: seen.append(out))
    half = net.to(torch.bfloat16)(X.to(torch.bfloat16), label)
    assert half.dtype == torch.bfloat16 and (half.float() - whole).norm() < 0.1 * whole.norm()
    numbers = net.emb_fourier.freqs if kind == "edm2" else net.embed.frequencies
    assert [tuple(s.shape[2:]) for s in seen] == [(4, 4)] and numbers.dtype == torch.float32


def test_unpublished_options_are_refused() -> None:
    for option, match in (
        (dict(encoder_type="other"), "encoder 'other'"),
        (dict(decoder_type="skip"), "decoder 'skip'"),
        (dict(embedding_type="zero"), "'zero'"),
    ):
        with pytest.raises(ValueError, match=match):
            MAKERS["vp"](**SONG | option)
