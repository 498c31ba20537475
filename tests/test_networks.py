"""Shapes, sizes and the state at the start of the networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dode.training import TRAININGS, build_denoiser
from dode.zoo.classifiers import Classifier, Critic, Observer
from dode.zoo.unet import UNet

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
    seen = list[Tensor]()
    net.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output))
    out = net(torch.randn(2, channels, size, size), torch.tensor([0.0, 999.0]))
    coarse = -(-size // patch // 4)  # odd maps halve upwards
    assert [tuple(s.shape) for s in seen] == [(2, 48, coarse, coarse)]
    assert out.shape == (2, channels, size, size) and torch.isfinite(out).all() and out.std() > 0


@pytest.mark.parametrize("name", ["fashion-mnist-noise", "fashion-mnist-data"])
def test_shipped_network_starts_at_zero(name: str) -> None:
    d = build_denoiser(TRAININGS[name])
    with torch.no_grad():
        out = d.network(torch.randn(2, 1, 28, 28), torch.tensor([3.0, 500.0]))
        assert out.shape == (2, 1, 28, 28) and not out.any()
        x = torch.randn(2, 1, 28, 28)
        c = d.coefficients(torch.tensor(1.5, dtype=torch.float64))
        torch.testing.assert_close(d(x, 1.5), float(c.skip) * x)


@pytest.mark.parametrize("classes", [0, 5])
def test_config_rebuilds_the_network(classes: int) -> None:
    net = disturbed(UNet(3, 16, 2, (16, 32), 2, heads=2, label_scale=250.0, classes=classes))
    again = UNet(**net.config)
    again.load_state_dict(net.state_dict())
    x, label, drawn = torch.randn(2, 3, 16, 16), torch.tensor([0.1, -0.7]), torch.tensor([1, 2]) if classes else None
    assert torch.equal(net(x, label, drawn), again(x, label, drawn)) and again.config == net.config
    assert net.config.get("classes", 0) == classes and ("classes" in net.config) == bool(classes)


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


def test_unet_refuses_an_odd_size() -> None:
    with pytest.raises(ValueError, match="image size 27 is not divisible by the patch of 2; pad the images"):
        UNet(size=27)


EVALUATORS: dict[type[torch.nn.Module], tuple[int, dict[str, object]]] = {  # features, and a smaller one's arguments
    Classifier: (64, dict(width=6, features=14)), Critic: (96, dict(stem=6, widths=(5, 9))),
    Observer: (80, dict(width=6, features=14)),
}  # fmt: skip


@pytest.mark.parametrize("kind", EVALUATORS)
def test_evaluators(kind: type[torch.nn.Module]) -> None:
    net, images = disturbed(kind()).eval(), torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8)
    features = net.features(images)
    assert net(images).shape == (3, 10) and features.shape == (3, EVALUATORS[kind][0])
    torch.testing.assert_close(net.features(images.float()), features)
    for k in range(3):  # the critic's in training mode too: no image sees its batch
        one = (net.train() if kind is Critic else net).features(images[k : k + 1])[0]
        torch.testing.assert_close(one, features[k], rtol=1e-4, atol=1e-5)
    small = kind(channels=3, classes=4, **EVALUATORS[kind][1]).eval()
    again = kind(**small.config).eval()
    again.load_state_dict(small.state_dict())
    colour = torch.randint(256, (2, 3, 16, 16), dtype=torch.uint8)
    assert again.features(colour).shape == (2, 14) and again(colour).shape == (2, 4)
    assert torch.equal(again(colour), small(colour)) and again.config == small.config


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
