"""Conditioning: an image's class is decided by its number alone, in samples, fits and sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from published_parts import precond
from torch import Tensor, nn

import dode
from dode import distillation, experiments, solvers
from dode.denoisers import GaussianDenoiser, NoisePrediction
from dode.denoisers.conditioning import Conditioning, class_labels, spread
from dode.experiments import run as runs
from dode.schedules import VPDiscrete
from dode.zoo import CATALOGUE, ClassifierGuidance, load_published

if TYPE_CHECKING:
    from test_pickles import Nvidia

CPU = torch.device("cpu")


class Body(nn.Module):
    """A network whose answer leans on the class, and whose feature map does."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.bottleneck = nn.Conv2d(1, 2, 3, padding=1)
        self.last = nn.Conv2d(2, 1, 1)

    def forward(self, x: Tensor, label: Tensor, classes: Tensor | None = None) -> Tensor:
        shift = 0 if classes is None else classes.to(x).view(-1, 1, 1, 1) / 5 - 1
        return x + self.last(torch.tanh(self.bottleneck(x + shift)) + shift)


def conditional(labels: Any, classes: int = 10) -> NoisePrediction:
    torch.manual_seed(0)
    network = Body(classes).requires_grad_(False)
    given = class_labels(classes, labels)
    return NoisePrediction(network, (1, 4, 4), VPDiscrete(), conditioning=given, name="leaning")


# --- the rule ---------------------------------------------------------------------------------------


@given(st.integers(1, 7), st.lists(st.integers(0, 10**9), min_size=1, max_size=20), st.integers(1, 6))
def test_a_part_of_a_part_is_a_part(rows: int, seeds: list[int], size: int) -> None:
    whole = Conditioning({"kind": torch.arange(rows)}).of(seeds)
    assert whole(len(seeds), CPU)["kind"].tolist() == [seed % rows for seed in seeds]
    for first in range(0, len(seeds), size):
        part = slice(first, min(first + size, len(seeds)))
        for images in (part, range(part.start, part.stop), torch.arange(part.start, part.stop)):
            got = whole.of(images)(part.stop - part.start, CPU)["kind"]
            assert got.tolist() == [seed % rows for seed in seeds[part]]


def test_a_batch_of_other_images_is_refused() -> None:
    model, x = conditional([1, 2]), torch.zeros(3, 1, 4, 4)
    with pytest.raises(ValueError, match=r"a multiple of 2 images, got 3; \.of\(seeds\) tells it which"):
        model(x, 1.0)
    with pytest.raises(ValueError, match=r"was made for 4 images, each with its condition, and is given 3$"):
        dode.sample(model.of(range(4)), solvers.ddim(model.grid(2)), x)
    for one in (conditional(3), GaussianDenoiser(torch.zeros(1, 4, 4), 1.0)):
        assert one.of(range(3)) is one and one.conditions == 1 and torch.isfinite(one(x, 1.0)).all()


@pytest.mark.parametrize("labels", [5, -1, [0, 5], [], [0.5], torch.tensor([1.0]), "every"])
def test_wrong_labels_are_refused(labels: Any) -> None:
    with pytest.raises(ValueError, match="labels must be whole numbers from 0 to 4"):
        class_labels(5, labels)


def test_labels_go_with_classes() -> None:
    for classes, labels, message in ((5, None, "draws one of 5 classes; give labels="), (0, 3, "leave out labels")):
        with pytest.raises(ValueError, match=message):
            class_labels(classes, labels)


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 100, 1000])
def test_all_classes_come_evenly(classes: int) -> None:
    order = spread(classes)
    assert sorted(order) == list(range(classes))
    for first in range(0, classes, 7):  # of any 100 in a row, about twenty in each fifth of the classes
        piece = [order[(first + k) % classes] * 5 // classes for k in range(100)]
        assert classes < 5 or max(map(piece.count, range(5))) - min(map(piece.count, range(5))) <= 6


# --- samples and fits -------------------------------------------------------------------------------


def test_parts_count_with_the_whole() -> None:
    model = conditional([1, 2, 3])
    part = model.of([0, 1])
    part(torch.zeros(2, 1, 4, 4), 1.0)
    assert (part.nfe, part.evaluations, model.nfe, model.evaluations) == (1, 2, 1, 2) and part.conditions == 3
    model.reset()
    assert part.evaluations == 0


@pytest.mark.parametrize("size", [1, 3, 5])
def test_a_fit_does_not_depend_on_the_batches(size: int) -> None:
    """As many conditions as images, and one more: no batch is a whole turn."""
    seeds, labels = range(13), [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7]
    model = conditional(labels)
    noise, table = dode.initial_noise(model.shape, seeds), solvers.ipndm(model.grid(3))
    conditioned = model.of(seeds)
    fit = lambda **options: dode.distillation.d_ode(conditioned, table, noise, scale=2, **options)  # noqa: E731
    torch.testing.assert_close(fit(batch_size=size).full, fit().full, rtol=1e-4, atol=1e-5)
    free = dict(space=distillation.Space(table), teacher=solvers.ddim(model.grid(6)), steps=2)
    again, whole = (distillation.gauss_newton(conditioned, table, noise, batch_size=b, **free) for b in (size, 100))  # type: ignore[arg-type]
    torch.testing.assert_close(again.full, whole.full, rtol=1e-3, atol=1e-3)
    assert whole.metadata["cost"][-1] < whole.metadata["cost"][0]
    other = dode.distillation.d_ode(conditional(labels[::-1]).of(seeds), table, noise, scale=2)
    assert (other.full - fit().full).abs().max() > 1e-3  # the classes do matter


@pytest.mark.parametrize("method", list(distillation.DISTILLERS))
def test_every_method_takes_as_many_conditions_as_images(method: str) -> None:
    model = conditional("all").of(range(40, 53))
    noise, table = dode.initial_noise(model.shape, range(40, 53)), solvers.ddim(model.grid, nfe=2, basis="data")
    info = distillation.DISTILLERS[method]
    few = {"trajectories": 64} if "trajectories" in info.options else {}
    found = info.fit(distillation.Problem(model, table, noise), **few)
    assert torch.isfinite(dode.sample(model, found, noise, batch_size=4)).all()


def test_guidance_leads_each_image_to_its_class() -> None:
    class Judge(nn.Module):
        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return x.flatten(1)[:, :10] ** 2

    noise, seeds = dode.initial_noise((1, 4, 4), range(5)), [7, 1, 2, 9, 4]
    plain = conditional(None, classes=0)
    table = solvers.ddim(plain.grid(2))
    guided = ClassifierGuidance(plain, Judge(), labels=[2, 8, 5])
    each = [
        dode.sample(ClassifierGuidance(plain, Judge(), labels=[2, 8, 5][seed % 3]), table, noise[k : k + 1])
        for k, seed in enumerate(seeds)
    ]
    got = dode.sample(guided.of(seeds), table, noise, batch_size=2)
    torch.testing.assert_close(got, torch.cat(each), rtol=1e-4, atol=1e-4)


# --- sweeps -----------------------------------------------------------------------------------------


@pytest.fixture
def swept(nvidia: Nvidia, rows: Any, tmp_path: Path) -> str:
    """A class-conditional pickle of NVIDIA's format, under a name of the catalogue."""
    row = rows("tiny", "edm-cifar10-32x32-cond-vp", file="tiny.pkl")
    (tmp_path / "cache").mkdir()
    saved = precond(nvidia, "vp", more=dict(label_dim=10, model_channels=16))
    nvidia.dump(tmp_path / "cache" / row.file, dict(ema=saved))
    runs.load_cached.cache_clear()
    return row.name


@pytest.mark.filterwarnings("ignore:`torch.jit.script`")
def test_a_class_conditional_network_is_swept(swept: str) -> None:
    """Each seed has its class, whatever the batches; all ten classes come equally often."""
    model = experiments.load_cached(swept, "cpu")
    assert model.conditions == 10 == CATALOGUE[swept].classes
    table, seeds = solvers.ddim(model.grid(2)), list(experiments.held_out_seeds(12))
    whole, cut = (torch.cat(list(experiments.draw(model, table, seeds, batch_size=size))) for size in (12, 5))
    torch.testing.assert_close(whole, cut, rtol=1e-4, atol=1e-4)
    for k in (0, 3, 11):
        own = load_published(swept, labels=spread(10)[seeds[k] % 10])
        alone = dode.sample(own, table, dode.initial_noise(model.shape, seeds[k : k + 1]))
        torch.testing.assert_close(whole[k : k + 1], alone, rtol=1e-4, atol=1e-4)
    learned = experiments.distilled(model, table, 7, block=1, scale=2)
    conditioned = load_published(swept, labels=[spread(10)[seed % 10] for seed in range(1000, 1007)])
    noise = dode.initial_noise(model.shape, range(1000, 1007))
    wanted = dode.distillation.d_ode(conditioned, table, noise, scale=2)
    torch.testing.assert_close(learned.full, wanted.full, rtol=1e-3, atol=1e-3)
