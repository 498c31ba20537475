"""The published networks: their sizes and names, and the parts they are made of."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers.models.downsampling import FirDownsample2D
from diffusers.models.resnet import ResnetBlock2D
from published_parts import (
    ADM,
    DDPM,
    GUIDED,
    NVIDIA_RESNET,
    SONG,
    TAPS,
    VE,
    VP,
    images,
    on_meta,
    randomised,
    shapes,
    size,
)
from torch import Tensor, nn
from torch.nn import functional as F

from dode.zoo import CATALOGUE
from dode.zoo.blocks import Resample, UNetBlock, attend
from dode.zoo.ddpm import Model
from dode.zoo.nvidia import DhariwalUNet, SongUNet
from dode.zoo.openai import EncoderUNetModel, UNetModel


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("edm-cifar10-32x32-uncond-vp", 55.7), ("edm-cifar10-32x32-cond-vp", 55.7), ("edm-ffhq-64x64-uncond-vp", 61.8),
        ("edm-imagenet-64x64-cond-adm", 295.9), ("adm-imagenet-64", 295.9), ("adm-imagenet-128", 421.5),
        ("adm-imagenet-256", 553.8), ("adm-imagenet-256-uncond", 552.814086), ("edm-lsun-bedroom-256", 526.304771),
        ("iddpm-imagenet-64-cond", 273.0), ("iddpm-cifar10-32", 52.5), ("ddpm-cifar10-32", 35.7),
        ("ddpm-lsun-bedroom-256", 113.7), ("ddim-celeba-64", 78.7), ("ldm-lsun-bedroom-256", 274),
    ],
)  # fmt: skip
def test_published_sizes(name: str, millions: float) -> None:
    """Numbers of parameters: the networks' papers, and inspected files."""
    row = CATALOGUE[name]
    make = {"edm": DhariwalUNet if "adm" in name else SongUNet, "ddpm": Model}.get(row.kind, UNetModel)
    parameters = size(on_meta(make, **row.network))
    digits = len(str(millions).partition(".")[2])
    assert round(parameters / 1e6, digits) == millions
    if row.size:  # four bytes each, and names
        assert 4 * parameters < row.size < 4 * parameters + 500_000


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
