"""Training: the loss is the papers', and a killed run ends where an unbroken one does."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dode import metrics, zoo
from dode.cli import main
from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction
from dode.schedules import EDM, vp_linear
from dode.training import TRAININGS, Training, build_classifier, build_denoiser, networks, train, trainings
from dode.training.losses import classifier_loss, denoiser_loss, denoising_loss, draw_sigma
from dode.utils.files import load_tensors, save_tensors
from dode.utils.optimisation import Loss, Run
from dode.zoo import datasets
from dode.zoo.unet import UNet

TINY = dict(steps=6, batch=4, warmup=2, save_every=2, rate=1e-2, ema=0.9)
UNET = dict(widths=(8, 16), heads=2)
EYES = dict(width=4, features=8)
NETWORKS = dict(
    noise=UNET,
    data=UNET,
    classifier=EYES,
    critic=dict(stem=4, widths=(4, 8)),
    observer=EYES,
    transformer=dict(width=8, layers=2),
)
DATA = "fashion-mnist-data"
SLOW = ("fashion-mnist-noise", "fashion-mnist-critic", "fashion-mnist-observer", "imagenet32-data")


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty random images of each data set."""
    g = torch.Generator().manual_seed(0)
    grey = torch.randint(256, (20, 1, 28, 28), generator=g, dtype=torch.uint8)
    colour = torch.randint(256, (20, 3, 32, 32), generator=g, dtype=torch.uint8)
    labels = torch.randint(10, (20,), generator=g)
    monkeypatch.setattr(datasets, "fashion_mnist", lambda split="train": (grey, labels))
    monkeypatch.setattr(datasets, "imagenet32", lambda split="all": (colour, 19 * labels))


def recipe(name: str, **changes: object) -> Training:
    network = NETWORKS.get(name.rsplit("-", 1)[-1], {})
    return replace(Training(name, network=network, **TINY), **changes)  # type: ignore[arg-type]


def state(run: Run) -> dict[str, Tensor]:
    assert run.state_file
    return load_tensors(run.state_file, "training state")[0]


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [k for k in a if not torch.equal(a[k], b[k])]


def kill_after(steps: int, patch: pytest.MonkeyPatch) -> None:
    """Every run, whichever it is, in the step after so many."""
    whole, left = Run._step, iter(range(steps))

    def step(run: Run, loss: Loss) -> float:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return whole(run, loss)

    patch.setattr(Run, "_step", step)


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [DATA, "fashion-mnist-classifier", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)],
)
def test_killed_and_resumed_is_bit_identical(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    r = recipe(
        name, bf16=name.endswith("noise"), flips=name.endswith(("critic", "data")),
        drop=0.3 if name.startswith("imagenet") else 0.0,
    )  # fmt: skip
    whole = train(r, tmp_path / "whole")
    for steps in (1, 3, 3):  # nothing is saved, then two steps, then four: the others are lost and done again
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            kill_after(steps, patch)
            train(r, tmp_path / "parts")
    assert os.listdir(tmp_path / "parts") == [f"{name}.state.safetensors"]
    early = load_tensors(tmp_path / "parts" / f"{name}.state.safetensors", "training state")
    parts = train(r, tmp_path / "parts")
    assert early[1]["step"] == 4 and parts.step == whole.step == 6
    assert_same(state(whole), state(parts))  # weights, average and Adam's moments
    assert_same(*(load_tensors(tmp_path / k / f"{name}.safetensors", "network")[0] for k in ("whole", "parts")))
    moved = [k for k, v in early[0].items() if k.startswith("model.") and not torch.equal(v, state(whole)[k])]
    assert len(moved) > 10  # there was something to get wrong


def test_each_step_of_each_seed_draws_its_own_numbers(tmp_path: Path) -> None:
    model, drawn = nn.Linear(1, 1), list[float]()

    def loss(g: torch.Generator) -> Tensor:
        drawn.append(float(torch.randn(1, generator=g)))
        return model(torch.ones(1, 1)).sum()

    for seed in (0, 1):
        Run(recipe("line", seed=seed), model, tmp_path / str(seed)).train(loss)
    assert len(drawn) == len(set(drawn)) == 12


def square(model: nn.Linear) -> Loss:
    return lambda g: model(torch.randn(4, model.in_features, generator=g)).square().mean()


def test_a_state_of_another_recipe_or_format_is_refused(tmp_path: Path) -> None:
    model, file = nn.Linear(2, 1), tmp_path / "line.state.safetensors"
    Run(recipe("line"), model, tmp_path).train(square(model), until=2)
    tensors, facts = load_tensors(file, "training state")
    for change in (dict(format=1), dict(recipe=facts["recipe"] | {"rate": 2e-2})):
        save_tensors(file, tensors, "training state", facts | change)
        before = file.read_bytes()
        with pytest.raises(ValueError, match="is of another recipe or version; remove it or choose another folder"):
            Run(recipe("line"), model, tmp_path)
        assert file.read_bytes() == before


def test_a_diverged_run_stops_and_keeps_the_last_good_state(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    run, values = Run(recipe("line"), model, tmp_path), iter([1.0, 1.0, math.nan])
    with pytest.raises(FloatingPointError, match="loss is nan at step 3; lower the rate"):
        run.train(lambda g: model(torch.ones(1, 1)).sum() * next(values))
    assert all(torch.isfinite(v).all() for v in state(run).values())


def test_average_follows_its_formula(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    run = Run(recipe("line", steps=5, ema=0.6), model, tmp_path)
    expected = model.weight.detach().clone()
    for step in range(5):
        run.train(square(model), until=step + 1)
        keep = min(0.6, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * model.weight.detach()
    torch.testing.assert_close(run.average.module.weight, expected)


def test_rate_warms_up_and_falls_to_zero() -> None:
    rates = [Training("line", steps=100, warmup=10).rate_at(step) for step in range(100)]
    assert rates[:3] == pytest.approx([0.1, 0.2, 0.3]) and rates[50] == pytest.approx(0.5) and 0 < rates[99] < 1e-3
    assert max(rates) <= 1.0 and rates[20:] == sorted(rates[20:], reverse=True)


# --- what is published ---------------------------------------------------------------------------


def test_published_file_rebuilds_the_denoiser(tmp_path: Path) -> None:
    name = "fashion-mnist-noise"
    run = train(recipe(name), tmp_path)
    tensors, meta = load_tensors(tmp_path / f"{name}.safetensors", "network")
    assert meta["name"] == name and meta["prediction"] == "noise" and meta["shape"] == [1, 28, 28]
    assert meta["schedule"] == vp_linear().config and meta["recipe"] == run.recipe.facts
    assert {v.dtype for v in tensors.values()} == {torch.float16}
    network = UNet(**meta["config"])
    network.load_state_dict(tensors)
    for key, value in network.state_dict().items():  # the moving average, not the last weights
        torch.testing.assert_close(value, run.average.module.state_dict()[key], rtol=1e-3, atol=1e-5)
    out = zoo.load_denoiser(tmp_path / f"{name}.safetensors")(torch.randn(2, 1, 28, 28), 1.0)
    assert torch.isfinite(out).all() and meta["config"] == network.config


@pytest.mark.parametrize("kind", ["classifier", "critic", "observer"])
def test_published_classifier_is_of_its_class_and_has_its_moments(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dode.utils.optimisation.LOG_EVERY", 3)
    name = f"fashion-mnist-{kind}"
    run = train(recipe(name, save_every=4), tmp_path)
    path = tmp_path / f"{name}.safetensors"
    network, features_name = zoo.load_evaluator(path)
    assert type(network) is zoo.CLASSIFIERS[name]
    assert zoo.metadata(path)["architecture"] == type(network).__name__
    for key, value in network.state_dict().items():  # the moving average, not the last weights
        torch.testing.assert_close(value, run.average.module.state_dict()[key], rtol=1e-3, atol=1e-5)
    reference = metrics.Moments.load(tmp_path / zoo.moments_file(name))
    assert (reference.features, reference.n) == (features_name, 20)
    expected = network.features(datasets.fashion_mnist("train")[0]).double()
    torch.testing.assert_close(reference.mean, expected.mean(0), rtol=1e-4, atol=1e-6)
    with (tmp_path / f"{name}.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [row["step"] for row in rows] == ["3", "6"] and all(math.isfinite(float(row["loss"])) for row in rows)


# --- the command ---------------------------------------------------------------------------------


def test_the_command_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(TRAININGS, DATA, recipe(DATA))
    command = ["train", DATA, "--out", str(tmp_path), "--device", "cpu"]
    with monkeypatch.context() as patch:
        kill_after(3, patch)
        assert main(command) == 130 and len(networks.missing([TRAININGS[DATA]], tmp_path)) == 1
    assert main(command) == 0 and networks.missing([TRAININGS[DATA]], tmp_path) == []
    assert f"resuming {DATA} at step 2\nwrote {tmp_path / DATA}.safetensors\n" == capsys.readouterr().out
    for wrong in ("cifar", "imagenet32-critic --large"):
        assert main(["train", *wrong.split(), "--out", str(tmp_path)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_processor_without_bf16_trains_in_float32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = list[Training]()
    monkeypatch.setattr(networks, "train", lambda recipe, *_: found.append(recipe))
    for has in (False, True):
        monkeypatch.setattr("dode.utils.environment.has_bf16", lambda device, has=has: has)
        assert main(["train", DATA, "--steps", "7", "--device", "cpu"]) == 0
        assert found[-1] == replace(TRAININGS[DATA], steps=7, bf16=has)
        assert main(["train", "fashion-mnist-critic"]) == 0 and not found[-1].bf16  # whose recipe asks for none


def test_only_denoisers_of_natural_images_have_a_larger_size() -> None:
    (small,), (large,) = (trainings("imagenet32-data", large) for large in (False, True))
    assert large.compile and not small.compile and small.drop == large.drop and small.facts != large.facts
    assert [r.name for r in trainings("imagenet32", True)] == ["imagenet32-noise", "imagenet32-data"]


def test_natural_recipes_build_networks_that_may_be_shipped() -> None:
    for large, most in ((False, 9.6e6), (True, 15.8e6)):
        for r in trainings("imagenet32", large):
            model = build_denoiser(r).network if r.denoises else build_classifier(r)
            assert 2 * sum(p.numel() for p in model.parameters()) < most  # bytes in half precision
            if not r.denoises:
                images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
                assert model(images).shape == (2, 200)
                assert model.features(images).shape[1] == dict(critic=224, transformer=256).get(r.kind, 128)


# --- the loss ------------------------------------------------------------------------------------


class Linear(nn.Module):
    """Predicts ``k`` times its input."""

    def __init__(self, k: float) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.k * x


def draws(denoiser: NetworkDenoiser, std: float, n: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    x0 = std * torch.randn(n, 1, 28, 28, generator=g)
    return x0, draw_sigma(denoiser, n, g), torch.randn(x0.shape, generator=g)


def test_loss_is_edms_weighted_denoising_error() -> None:
    """EDM, eq. 8 with lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2."""
    sd = 0.7
    d = EDMPrediction(Linear(0.3), (1, 28, 28), EDM(), sigma_data=sd)
    x0, sigma, noise = draws(d, 0.5)
    s = sigma.float()[:, None, None, None]
    weight = (s**2 + sd**2) / (s * sd) ** 2
    with torch.no_grad():
        expected = (weight * (d(x0 + s * noise, sigma) - x0).square()).mean()
        torch.testing.assert_close(denoising_loss(d, x0, sigma, noise), expected, rtol=1e-4, atol=0)


def test_loss_is_ddpms_simple_loss() -> None:
    """Mean squared error of the predicted noise (Ho et al. 2020, eq. 14), at every label."""
    d = NoisePrediction(Linear(0.3), (1, 28, 28), vp_linear())
    x0, sigma, noise = draws(d, 0.5)
    s = sigma.float()[:, None, None, None]
    with torch.no_grad():
        predicted = 0.3 * (x0 + s * noise) / (1 + s**2).sqrt()
        # float32 rounds the target (x_0 - x) / -sigma where sigma is small
        torch.testing.assert_close(
            denoising_loss(d, x0, sigma, noise), (predicted - noise).square().mean(), rtol=1e-4, atol=0
        )


def test_flips_mirror_half_of_the_images() -> None:
    """And change nothing else: each image is the one without flips, or its mirror image."""
    seen: list[Tensor] = []

    class Look(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return super().forward(x.flatten(1))

    model = Look(784, 10)
    for flips in (False, True):
        r = recipe("fashion-mnist-critic", batch=64, flips=flips)
        classifier_loss(model, *datasets.fashion_mnist("train"), r)(torch.Generator().manual_seed(3))
    plain, flipped = seen
    assert plain.shape == (64, 1, 28, 28)
    same, mirrored = ((flipped == x).flatten(1).all(1) for x in (plain, plain.flip(3)))
    assert (same ^ mirrored).all() and 20 <= int(mirrored.sum()) <= 44


def test_noise_levels_are_the_papers() -> None:
    g = torch.Generator().manual_seed(0)
    edm = draw_sigma(build_denoiser(recipe("fashion-mnist-data")), 20_000, g).log()
    assert float(edm.mean()) == pytest.approx(-1.2, abs=0.03) and float(edm.std()) == pytest.approx(1.2, abs=0.03)
    vp = build_denoiser(recipe("fashion-mnist-noise"))
    labels = vp.schedule.label(draw_sigma(vp, 20_000, g))
    assert torch.equal(labels, labels.round()) and labels.min() >= 0 and labels.max() <= 999
    assert float(labels.mean()) == pytest.approx(499.5, abs=8)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "steps", "left"), [("fashion-mnist-noise", 40, 0.5), ("fashion-mnist-data", 60, 0.9)])
def test_training_learns(name: str, steps: int, left: float, tmp_path: Path) -> None:
    """Four ramps, one from each side: the loss on draws that were not trained on falls."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 255, 28).to(torch.uint8).expand(1, 28, 28)
    images = torch.stack([ramp, ramp.flip(2), ramp.mT, ramp.mT.flip(1)])
    d = build_denoiser(recipe(name))
    assert isinstance(d.network, nn.Module)
    r = Training(name, steps=steps, batch=8, warmup=5, rate=1e-2, bf16=False, network=UNET)
    loss = denoiser_loss(d, images, torch.arange(4), r)

    def held_out() -> float:
        with torch.no_grad():
            return sum(float(loss(torch.Generator().manual_seed(10_000 + k))) for k in range(8)) / 8

    before = held_out()
    run = Run(r, d.network, tmp_path)
    run.train(loss)
    assert held_out() < left * before


def test_a_drawn_part_of_the_classes_is_withheld() -> None:
    """Each image its own label; a part of ``drop`` none."""
    r = recipe("imagenet32-data", batch=400, drop=0.25, flips=True)
    d = build_denoiser(r)
    seen: list[Tensor] = []

    class Look(nn.Module):
        def forward(self, x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
            seen.append(classes)
            return x * nn.Parameter(torch.ones(()))

    d.network = Look()
    images, labels = datasets.imagenet32()
    loss = denoiser_loss(d, images, labels, r)
    loss(torch.Generator().manual_seed(0))
    loss(torch.Generator().manual_seed(0))
    assert torch.equal(*seen)
    hidden = seen[0] == 200
    assert 0.15 < float(hidden.float().mean()) < 0.35 and set(seen[0][~hidden].tolist()) <= set(labels.tolist())
