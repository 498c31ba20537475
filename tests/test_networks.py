"""Shapes, sizes and the state at the start of the networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dode import zoo
from dode.training import TRAININGS, build_denoiser
from dode.utils.files import load_tensors
from dode.zoo.classifiers import Classifier, Critic, Observer
from dode.zoo.unet import Attention, UNet

SMALL = dict(widths=(16, 32), heads=2)


def disturbed(network: torch.nn.Module) -> torch.nn.Module:
    """Some weights that are not zero, as after training."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=g))
    return network


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize(("channels", "patch", "blocks"), [(1, 2, 1), (3, 2, 2), (3, 4, 1), (1, 1, 1)])
def test_unet_keeps_the_shape(size: int, channels: int, patch: int, blocks: int) -> None:
    net = disturbed(UNet(channels, size, patch, (16, 32, 48), blocks, heads=2))
    out = net(torch.randn(2, channels, size, size), torch.tensor([0.0, 999.0]))
    assert out.shape == (2, channels, size, size) and torch.isfinite(out).all() and out.std() > 0


@pytest.mark.parametrize("name", ["fashion-mnist-noise", "fashion-mnist-data"])
def test_shipped_network_is_small_and_starts_at_zero(name: str) -> None:
    d = build_denoiser(TRAININGS[name])
    assert isinstance(d.network, UNet)
    assert sum(p.numel() for p in d.network.parameters()) <= 3_000_000
    with torch.no_grad():
        out = d.network(torch.randn(2, 1, 28, 28), torch.tensor([3.0, 500.0]))
        assert out.shape == (2, 1, 28, 28) and not out.any()
        x = torch.randn(2, 1, 28, 28)
        c = d.coefficients(torch.tensor(1.5, dtype=torch.float64))
        torch.testing.assert_close(d(x, 1.5), float(c.skip) * x)


def test_config_rebuilds_the_network() -> None:
    net = disturbed(UNet(3, 16, 2, (16, 32), 2, heads=2, label_scale=250.0))
    again = UNet(**net.config)
    again.load_state_dict(net.state_dict())
    x, label = torch.randn(2, 3, 16, 16), torch.tensor([0.1, -0.7])
    assert torch.equal(net(x, label), again(x, label)) and again.config == net.config


def test_label_matters_and_is_scaled() -> None:
    net = disturbed(UNet(size=16, **SMALL))
    x = torch.randn(1, 1, 16, 16)
    assert not torch.allclose(net(x, torch.tensor([1.0])), net(x, torch.tensor([50.0])))
    scaled = UNet(size=16, label_scale=250.0, **SMALL)
    scaled.load_state_dict(net.state_dict())
    torch.testing.assert_close(scaled(x, torch.tensor([0.2])), net(x, torch.tensor([50.0])))
    torch.testing.assert_close(
        net(x.expand(3, -1, -1, -1), torch.tensor(7.0)), net(x, torch.tensor([7.0])).expand(3, 1, 16, 16)
    )


def test_images_of_a_batch_do_not_mix() -> None:
    net = disturbed(UNet(size=16, **SMALL)).eval()
    x, label = torch.randn(3, 1, 16, 16), torch.tensor([1.0, 40.0, 900.0])
    together = net(x, label)
    for k in range(3):
        torch.testing.assert_close(net(x[k : k + 1], label[k : k + 1])[0], together[k], rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_parameter() -> None:
    net = disturbed(UNet(size=16, **SMALL))
    net(torch.randn(2, 1, 16, 16), torch.tensor([1.0, 40.0])).square().mean().backward()
    for name, p in net.named_parameters():
        assert p.grad is not None and p.grad.abs().max() > 0, name


def test_bottleneck_can_be_watched() -> None:
    net = UNet(size=28, **SMALL)
    seen: list[Tensor] = []
    net.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output))
    net(torch.randn(2, 1, 28, 28), torch.tensor([1.0, 2.0]))
    assert [tuple(s.shape) for s in seen] == [(2, 32, 7, 7)]


def test_attention_is_the_formula() -> None:
    """Head by head: softmax(q k^T / sqrt(d)) v, over all pixels."""
    net = disturbed(Attention(32, 4))
    x = torch.randn(2, 32, 3, 5)
    q, k, v = net.qkv(net.norm(x)).reshape(2, 3, 4, 8, 15).unbind(1)  # (images, heads, channels, pixels)
    weights = torch.einsum("bhcp,bhcq->bhpq", q, k).div(8**0.5).softmax(-1)
    h = torch.einsum("bhpq,bhcq->bhcp", weights, v).reshape(2, 32, 3, 5)
    torch.testing.assert_close(net(x), x + net.out(h), rtol=1e-4, atol=1e-5)


def test_unet_refuses_an_odd_size() -> None:
    with pytest.raises(ValueError, match="image size 27 is not divisible by the patch of 2; pad the images"):
        UNet(size=27)


def test_classifier() -> None:
    net = Classifier().eval()
    images = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
    assert net(images).shape == (3, 10) and net.features(images).shape == (3, 64)
    torch.testing.assert_close(net.features(images.float()), net.features(images))
    torch.testing.assert_close(net.head(net.features(images)), net(images))
    again = Classifier(**net.config).eval()
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(images), net(images))


def test_critic() -> None:
    net = disturbed(Critic())
    images = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
    features = net.features(images)
    assert net(images).shape == (3, 10) and features.shape == (3, 96)
    torch.testing.assert_close(net.features(images.float()), features)
    torch.testing.assert_close(net.head(net.norm(features)), net(images))
    for k in range(3):  # in training mode too: no image sees its batch
        torch.testing.assert_close(net.features(images[k : k + 1])[0], features[k], rtol=1e-4, atol=1e-5)
    small = Critic(channels=3, classes=4, stem=6, widths=(5, 9))
    again = Critic(**small.config)
    again.load_state_dict(small.state_dict())
    colour = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert again.features(colour).shape == (2, 14) and again(colour).shape == (2, 4)
    assert torch.equal(again(colour), small(colour)) and again.config == small.config


def test_observer_and_how_it_differs_from_the_classifier() -> None:
    net, images = disturbed(Observer()).eval(), torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
    features = net.features(images)
    assert net(images).shape == (3, 10) and features.shape == (3, 80) and (features >= 0).all()
    torch.testing.assert_close(net.features(images.float()), features)
    torch.testing.assert_close(net.head(features), net(images))
    colour = Observer(channels=3, classes=4, width=6, features=9).eval()
    again = Observer(**colour.config).eval()
    again.load_state_dict(colour.state_dict())
    x = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert again.features(x).shape == (2, 9) and torch.equal(again(x), colour(x))
    ours, other = ([type(m) for m in n.modules()] for n in (net, Classifier()))
    assert {torch.nn.ReLU, torch.nn.MaxPool2d} <= set(ours) - set(other) and torch.nn.SiLU not in ours
    strides = [m.stride for n in (net, Classifier()) for m in n.modules() if isinstance(m, torch.nn.Conv2d)]
    assert strides[:5] == [(1, 1)] * 5 and (2, 2) in strides[5:]  # it halves by maxima, the other by strides


def test_critic_is_small_and_another_network_than_the_classifier() -> None:
    def cost(network: torch.nn.Module, *inputs: Tensor) -> int:
        """Multiplications in the convolutions, which are nearly all."""
        counts: list[int] = []
        for m in network.modules():
            if isinstance(m, torch.nn.Conv2d):
                m.register_forward_hook(lambda m, inputs, out: counts.append(m.weight.numel() * out[0, 0].numel()))
        network(*inputs)
        return sum(counts)

    net, x = Critic(), torch.zeros(1, 1, 28, 28)
    assert 60_000 <= sum(p.numel() for p in net.parameters()) <= 150_000
    unet = build_denoiser(TRAININGS["fashion-mnist-noise"]).network
    assert isinstance(unet, UNet) and 10 * cost(net, x) < cost(unet, x, torch.zeros(1))
    kinds = [{type(m) for m in n.modules()} for n in (net, Classifier())]
    assert kinds[0] & kinds[1] == {torch.nn.Conv2d, torch.nn.Linear}  # other norms, activations and wiring


def test_critic_is_smooth_in_the_pixels() -> None:
    """Its gradient is the slope of a central difference, outside 0..255 too: nothing rounds or clips."""
    net = disturbed(Critic()).double().requires_grad_(False)
    x = (torch.randn(4, 1, 28, 28, dtype=torch.float64) * 200 + 127).requires_grad_()
    assert float((x < 0).double().mean()) > 0.1 and float((x > 255).double().mean()) > 0.1
    weights, direction = torch.randn(96, dtype=torch.float64), torch.randn(x.shape, dtype=torch.float64)
    value = lambda at: (net.features(at) @ weights).sum()  # noqa: E731
    (gradient,) = torch.autograd.grad(value(x), x)
    assert (gradient != 0).all()  # every pixel matters
    slope = (value(x + 1e-4 * direction) - value(x - 1e-4 * direction)) / 2e-4
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-5, atol=1e-9)


# --- classes ---------------------------------------------------------------------------------------


def conditional() -> UNet:
    net = disturbed(UNet(3, 16, 1, (16, 32), heads=2, classes=5)).eval()
    assert isinstance(net, UNet)
    return net


def test_every_class_is_one_of_its_own_and_any_is_another() -> None:
    net, x, label = conditional(), torch.randn(3, 3, 16, 16), torch.tensor([0.1, 2.0, 700.0])
    free, each = net(x, label), net(x, label, torch.tensor([0, 4, 2]))
    for k, kind in enumerate((0, 4, 2)):
        torch.testing.assert_close(net(x, label, torch.full((3,), kind))[k], each[k], rtol=1e-4, atol=1e-5)
        assert not torch.allclose(each[k], free[k], atol=1e-3)  # "any" is an embedding of its own
    torch.testing.assert_close(net(x, label, torch.full((3,), 5)), free, rtol=1e-5, atol=1e-6)  # as training says it


def test_gradients_reach_the_classes_that_were_drawn_and_no_others() -> None:
    net = conditional()
    net(torch.randn(3, 3, 16, 16), torch.ones(3), torch.tensor([1, 5, 1])).square().mean().backward()
    assert net.kinds.weight.grad is not None
    assert net.kinds.weight.grad.abs().sum(1).gt(0).tolist() == [False, True, False, False, False, True]


def test_config_with_classes_rebuilds_the_network() -> None:
    net = conditional()
    again = UNet(**net.config)
    again.load_state_dict(net.state_dict())
    x, label, classes = torch.randn(2, 3, 16, 16), torch.tensor([0.1, 0.7]), torch.tensor([1, 2])
    assert torch.equal(again(x, label, classes), net(x, label, classes))
    assert again.config == net.config and again.config["classes"] == 5


@pytest.mark.parametrize("name", ["fashion-mnist-noise", "fashion-mnist-data"])
def test_shipped_networks_are_what_they_were_before_there_were_classes(name: str) -> None:
    """The file's tensors are all there is, under the names it has them; a network of its config has no more."""
    tensors, card = load_tensors(zoo.checkpoint_file(name), "network")
    network = zoo.load_denoiser(name).network
    assert isinstance(network, UNet) and network.config == card["config"] and "classes" not in network.config
    state = network.state_dict()
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[k], v.to(state[k].dtype)) for k, v in tensors.items())
