"""A network of diffusers as a denoiser: conditions, guidance, counting; what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, FlowMatchEulerDiscreteScheduler, UNet2DModel
from small import refused
from torch import Tensor, nn

import dode
from dode import distillation, solvers
from dode.denoisers import DataPrediction, NoisePrediction
from dode.diffusers import decode, from_diffusers
from dode.distillation.designer import bottleneck
from dode.schedules import VPDiscrete, scaled_linear, vp_linear
from tests.tiny import SCALED, crossed, drawn, unet

DDIM = DDIMScheduler()


def classes(**more: Any) -> UNet2DModel:
    found = unet(2, num_class_embeds=5, **more)
    nn.init.normal_(found.class_embedding.weight, std=2)  # type: ignore[union-attr, arg-type]
    return found


X = dode.initial_noise((2, 8, 8), range(6))
TEXT, EMPTY = drawn(3, 4, 8, seed=1).float(), drawn(1, 4, 8, seed=2).float()


def test_what_it_is() -> None:
    pipe = DDPMPipeline(unet(1, sample_size=(4, 8)), DDIM)
    model = from_diffusers(pipe)
    assert type(model) is NoisePrediction and model.schedule == vp_linear() and model.shape == (1, 4, 8)
    assert model.name == "DDPMPipeline" and model.conditions == 1
    assert not any(p.requires_grad for p in pipe.unet.parameters()) and not pipe.unet.training
    alone = from_diffusers(pipe.unet, DDIM.config, name="mine", shape=(1, 8, 8))
    assert alone.name == "mine" and alone.shape == (1, 8, 8)
    x = X[:2, :1]
    noise = pipe.unet(x / 10**0.5, vp_linear().label(torch.tensor(3.0)).float())[0]
    torch.testing.assert_close(alone(x, 3.0), x - 3 * noise, rtol=0, atol=1e-4)
    assert (alone.nfe, alone.evaluations) == (1, 2)
    assert from_diffusers(pipe, DDIMScheduler(**SCALED)).schedule == scaled_linear()
    assert isinstance(from_diffusers(pipe, DDIMScheduler(prediction_type="sample")), DataPrediction)
    trained = from_diffusers(pipe, DDIMScheduler(trained_betas=[0.1, 0.2], num_train_timesteps=2)).schedule
    assert trained == VPDiscrete(2, "trained", betas=(0.1, 0.2))
    assert bottleneck(model) is pipe.unet.mid_block
    guided = from_diffusers(crossed(2), DDIM, guidance_scale=3.0, conditions=TEXT, negative=EMPTY)
    with pytest.raises(ValueError, match="has no bottleneck that is known"):
        bottleneck(guided)
    assert torch.equal(decode(pipe, x), x)  # no decoder: pixels


@pytest.mark.parametrize(
    ("make", "ways"),
    [
        (classes, [[3, 1], torch.tensor([3, 1]), {"class_labels": torch.tensor([3, 1])}]),
        (lambda: crossed(2), [TEXT, {"encoder_hidden_states": TEXT}]),
    ],
)
def test_ways_to_say_the_same(make: Any, ways: list[Any]) -> None:
    network = make()
    first, *others = [from_diffusers(network, DDIM, conditions=way)(X, 1.0) for way in ways]
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("guided", [{}, dict(guidance_scale=3.0, negative=0)])
def test_an_images_condition_does_not_depend_on_the_batches(guided: dict[str, Any]) -> None:
    """Image ``i`` of all images gets condition ``i mod K``, however they are cut."""
    network, labels = classes(), [3, 1]
    model = from_diffusers(network, DDIM, conditions=labels, **guided)
    single = [from_diffusers(network, DDIM, conditions=label, **guided) for label in labels]
    alone = torch.cat([single[i % 2](X[i : i + 1], 1.0) for i in range(6)])
    for sizes in ([6], [2, 4], [4, 2], [2, 2, 2]):
        together = torch.cat([model(part, 1.0) for part in X.split(sizes)])
        torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    table = solvers.ddim(model.grid, nfe=2)
    whole = dode.sample(model, table, X)
    for size in (1, 2, 3, 4):
        torch.testing.assert_close(whole, dode.sample(model, table, X, batch_size=size), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(whole[1:4], dode.sample(model.of([7, 2, 9]), table, X[1:4]), rtol=1e-4, atol=1e-3)
    message = "has 2 conditions, one an image, so it takes batches of a multiple of 2 images, got 3"
    with pytest.raises(ValueError, match=message):
        dode.sample(model, table, X[:3])


def test_half_precision_networks_keep_their_conditions() -> None:
    network = crossed(2)
    wide = from_diffusers(network, DDIM, guidance_scale=3.0, conditions=TEXT, negative=EMPTY)(X, 1.0)
    model = from_diffusers(network.to(torch.bfloat16), DDIM, guidance_scale=3.0, conditions=TEXT, negative=EMPTY)
    got = model(X, 1.0)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, wide, rtol=0, atol=0.2)


class Told(nn.Module):
    """A network that answers with its label: whoever mixes up the conditions sees it."""

    config = dict(in_channels=2, out_channels=2, sample_size=3)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, return_dict: bool = False) -> Any:
        return (self.weight * (sample / 3 + class_labels.to(sample).view(-1, 1, 1, 1)),)


def test_a_descent_shuffles_whole_turns() -> None:
    """Where student and teacher are one solver, every image of the one is one of the other: noise and condition."""
    labels, seen = [-2, 0, 1, 5], list[Tensor]()
    model = from_diffusers(Told(), DDIMScheduler(prediction_type="sample"), conditions=labels, shape=(2, 3, 3))
    noise, table = dode.initial_noise(model.shape, range(16)), solvers.ddim(model.grid, nfe=2, basis="data")

    def look(x: Tensor) -> Tensor:
        seen.append(x.detach().flatten(1))
        return x.flatten(1)

    problem = distillation.Problem(model, table, noise, residual=look, teacher=table)
    learned = distillation.descend(problem, distillation.Space(table), rate=0.0, epochs=2, minibatch=4)
    assert learned.metadata["cost"] == [0.0] * 3
    goal, students = seen[0], torch.cat(seen[1:])
    assert len(goal) == 16 and len(students) == 4 + 2 * (12 + 4)  # held back, then twice those to fit and those again
    assert float(torch.cdist(students, goal).min(1).values.max()) < 0.1
    shuffled = [torch.cdist(students[k : k + 12], goal).argmin(1).tolist() for k in (4, 20)]
    assert sorted(shuffled[0]) == sorted(shuffled[1]) == list(range(4, 16)) and shuffled[0] != shuffled[1]


# --- what is refused -----------------------------------------------------------------------------


def attends() -> nn.Module:
    return crossed(2)


ONE = dict(conditions=1)
LABEL = torch.tensor([1])
REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (classes, {}, "UNet2DModel wants class_labels: give conditions="),
    (attends, dict(conditions=[1, 2]), "UNet2DConditionModel wants encoder_hidden_states: give conditions="),
    (attends, dict(conditions="a fox"), "NoneType reads no prompts; give conditions as tensors"),
    (classes, dict(scheduler=None), "a network alone needs scheduler=: the scheduler it was trained for, or its c"),
    (classes, ONE | dict(guidance_scale=2.0), "guidance needs negative=: the label of no class"),
    (classes, ONE | dict(guidance_scale=0.5), "guidance_scale is 1 (none) or more, got 0.5"),
    (classes, ONE | dict(guidance_scale=float("nan")), "guidance_scale is 1 (none) or more"),
    (classes, dict(guidance_scale=2.0), "guidance sets a condition against none"),
    (classes, dict(conditions=7), "UNet2DModel has the classes 0 to 4, not 7"),
    (classes, dict(conditions=[]), "conditions are prompts, class labels, a tensor"),
    (classes, dict(conditions=[1, "fox"]), "conditions are prompts, class labels, a tensor"),
    (classes, dict(conditions=dict(class_labels=LABEL, mood=X)), "every condition needs the same"),
    (classes, dict(conditions=dict(class_labels=LABEL, mood=EMPTY)), "UNet2DModel takes no mood"),
    (attends, dict(conditions=TEXT, negative=TEXT[:2], guidance_scale=2.0), "without a condition: one row, or 3"),
    (lambda: unet(sample_size=None), {}, "the config of UNet2DModel gives no sample size; give shape="),
    (lambda: unet(9, out_channels=4), {}, "a network of 9 channels in and 4 out denoises a part of what it sees"),
    (object, {}, "object has no unet and no transformer of diffusers; give the network itself"),
    (unet, dict(scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True)), "invert_sigmas=True"),
]


@pytest.mark.parametrize(("make", "options", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_one_line_says_what_is_wrong(make: Any, options: dict[str, Any], message: str) -> None:
    with refused(message):
        from_diffusers(make(), **dict(scheduler=DDIM) | options)


def test_what_needs_diffusers_stands_beside_the_rest() -> None:
    assert dode.from_diffusers is from_diffusers and dode.DodeScheduler.__name__ == "DodeScheduler"
    assert {"from_diffusers", "DodeScheduler", "load", "__all__"} <= set(dir(dode))
    with pytest.raises(AttributeError, match="module 'dode' has no attribute 'from_nowhere'"):
        _ = dode.from_nowhere  # type: ignore[attr-defined]
