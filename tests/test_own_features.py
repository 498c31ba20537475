"""The loss from the network that is sampled: what it reads, what it costs, and that gradients and conditions pass."""

from __future__ import annotations

import copy

import diffusers
import pytest
import tiny
import torch
from small import MIXTURE
from torch import Tensor, nn

import dode
from dode.denoisers import DataPrediction, NoisePrediction
from dode.denoisers.conditioning import Conditioning
from dode.distillation import losses, own_features
from dode.distillation.own_features import averaged, blocks_of
from dode.schedules import EDM, vp_linear
from dode.zoo.unet import UNet


class Convolutions(nn.Module):
    """A network without blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(3, 1, 3, padding=1)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(x)) + label[:, None, None, None])


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = small_unet()

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.inner(x, label)


def small_unet(**more) -> UNet:
    torch.manual_seed(0)
    return tiny.randomised(UNet(size=8, patch=1, widths=(4, 8), heads=2, **more))


def denoiser(network: nn.Module, channels: int = 1, **more) -> DataPrediction:
    return DataPrediction(network, (channels, 8, 8), EDM(), **more)


def images(model, count: int = 6) -> Tensor:
    return torch.randn(count, *model.shape, generator=torch.Generator().manual_seed(1))


NETWORKS = {
    "ours": (small_unet, 1, ["down.0", "down.1", "middle.0", "middle.1", "middle.2", *(f"up.{k}" for k in range(4))]),
    "wrapped": (Wrapped, 1, [f"inner.{name}" for name in ("down.0", "middle.2", "up.3")]),
    "U-Net of diffusers": (lambda: tiny.unet(1), 1, ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0"]),
    "layers alone": (Convolutions, 1, ["first", "last"]),
}


@pytest.mark.parametrize("kind", NETWORKS)
def test_the_blocks_of_a_network_are_read_by_their_type(kind: str) -> None:
    make, channels, wanted = NETWORKS[kind]
    network = make()
    found = blocks_of(network)
    assert set(wanted) <= set(found) and not any("stem" in name for name in found)
    if kind == "U-Net of diffusers":
        model = dode.from_diffusers(network, diffusers.DDIMScheduler())
    else:
        model = denoiser(network, channels)
    residual = own_features(model)
    x = images(model)
    bound = residual.bound(model, x)
    values = bound(x)
    assert len(residual.blocks) >= min(len(wanted), 2) and values.shape[0] == len(x) and values.isfinite().all()
    mean, square = bound._raw(x, (1, 2)).mean(1) / torch.stack([bound.spreads, bound.spreads**2])
    assert torch.allclose(square - mean**2, torch.ones_like(mean), atol=1e-2)  # each channel has unit spread


def test_a_transformer_s_tokens_are_averaged() -> None:
    sizes = dict(num_attention_heads=2, attention_head_dim=4, num_layers=3, sample_size=8, norm_num_groups=2)
    network = tiny.randomised(diffusers.DiTTransformer2DModel(in_channels=4, out_channels=4, **sizes))
    assert [name for name in blocks_of(network) if "transformer_blocks" in name] == [
        f"transformer_blocks.{k}" for k in range(3)
    ]
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    assert torch.equal(averaged(tokens, 1), tokens.mean(1)) and averaged(tokens, 2).shape == (2, 12)


def test_it_is_what_hooks_see_in_whole_evaluations_of_the_network() -> None:
    model, seen = denoiser(small_unet()), list[Tensor]()
    residual, x = own_features(model, levels=(0.3, 2.0), draws=2, mesh=1), images(model)
    handles = [
        module.register_forward_hook(
            lambda module, inputs, output: seen.append(output / output.std((0, 2, 3), keepdim=True))
        )
        for module in map(model.network.get_submodule, residual.blocks)
    ]
    with torch.no_grad():
        for level in (0.3, 2.0):
            for noise in residual.noise:
                model(x + level * noise, level)
    for handle in handles:
        handle.remove()
    wanted = torch.cat([found.mean((2, 3)) for found in seen], dim=1)
    torch.testing.assert_close(residual.bound(model, x)(x), wanted / wanted.shape[1] ** 0.5, rtol=1e-2, atol=1e-4)


def test_the_network_is_left_after_the_last_block_and_each_level_is_an_evaluation() -> None:
    network = small_unet()
    model, ran = denoiser(network), list[str]()
    for name in ("middle.2", "up.3", "head"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda module, inputs, output, name=name: ran.append(name))
    x, before = images(model), model.evaluations
    residual = own_features(model, blocks="middle", levels=(0.1, 1.0))
    ran.clear()  # of the call that finds what answers
    bound = residual.bound(model, x)
    assert set(ran) == {"middle.2"} and model.evaluations - before == 2 * len(x) == residual.evaluations * len(x)
    named = own_features(model, blocks=["middle.2"], levels=(0.1, 1.0)).bound(model, x)
    assert torch.equal(named(x), bound(x))
    assert losses.evaluations(losses.stack((1.0, bound), (0.1, losses.pixels))) == 2


def test_gradients_pass_through_the_network() -> None:
    model = denoiser(small_unet().double())
    x = images(model).double()
    residual, aim = own_features(model).bound(model, x), x.flip(0)
    goal = residual(aim).detach()
    error = lambda x: (residual(x) - goal).square().sum()  # noqa: E731
    leaf = x.clone().requires_grad_()
    error(leaf).backward()
    way = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).double()
    slope = (error(x + 1e-3 * way) - error(x - 1e-3 * way)).detach() / 2e-3
    assert float((leaf.grad * way).sum()) == pytest.approx(float(slope), rel=5e-3)  # features are float32


def test_each_image_keeps_its_condition_however_a_run_is_split() -> None:
    network = small_unet(classes=3)
    model = denoiser(network, conditioning=Conditioning(dict(classes=torch.tensor([0, 1, 2]))))
    x = images(model)
    residual = losses.bound(losses.named_loss("own", model), model, x)
    whole = losses.bound(residual, model.of(range(6)))(x)
    parts = [losses.bound(residual, model.of([k]))(x[[k]]) for k in range(6)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-4, atol=1e-5)
    other = losses.bound(residual, model.of([1, 2, 0, 1, 2, 0]))(x)
    assert not torch.allclose(other, whole, atol=1e-3)


def test_a_denoiser_that_is_no_network_is_its_own_feature() -> None:
    x = images(MIXTURE)
    residual = own_features(MIXTURE, levels=(0.5,), draws=0).bound(MIXTURE, x)
    wanted = MIXTURE(x, 0.5).float()
    wanted = wanted / wanted.std(0, correction=0) / MIXTURE.shape[0] ** 0.5
    torch.testing.assert_close(residual(x), wanted.to(x.dtype))
    network = denoiser(small_unet())
    assert own_features(network, blocks="output").blocks == ()


def test_pictures_are_clipped_and_latents_are_not() -> None:
    model = denoiser(small_unet())
    latent = copy.copy(model)
    latent.images = dode.denoisers.Images(to_picture=lambda x: x)
    x = 3 * images(model)
    pictures, latents = (losses.bound(losses.named_loss("own", m), m, x) for m in (model, latent))
    assert torch.equal(pictures(x), pictures(x.clamp(-1, 1))) and not torch.equal(latents(x), latents(x.clamp(-1, 1)))


def test_what_cannot_be_read_is_refused() -> None:
    model = denoiser(small_unet())
    with pytest.raises(ValueError, match=r"UNet has no module 'mid'; its blocks: embed, down\.0"):
        own_features(model, blocks=["mid"])
    with pytest.raises(ValueError, match="blocks must be .*, got 'al'"):
        own_features(model, blocks="al")
    with pytest.raises(ValueError, match="MixtureDenoiser has no network whose blocks could be read"):
        own_features(MIXTURE, blocks="middle")
    with pytest.raises(ValueError, match="units of their spread"):
        own_features(model)(images(model))
    compiled = NoisePrediction(torch.compile(small_unet()), (1, 8, 8), vp_linear())
    with pytest.raises(ValueError, match="a compiled network has no blocks"):
        own_features(compiled)
