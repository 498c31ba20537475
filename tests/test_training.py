"""Training: the loss is the papers', and a killed run ends where an unbroken one does."""

from __future__ import annotations

import csv
import math
import os
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dode import data, metrics, training, zoo
from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction
from dode.networks import Classifier, Critic, UNet
from dode.schedules import EDM, vp_linear
from dode.storage import FileError, load_tensors
from dode.training import Recipe, Run, build_denoiser, classifier_loss, denoiser_loss, denoising_loss, draw_sigma, train

TINY = dict(steps=6, batch=4, warmup=2, save_every=2, rate=1e-2, ema=0.9)
NAMES = ["fashion-mnist-noise", "fashion-mnist-data", "fashion-mnist-classifier", "fashion-mnist-critic"]
CLASSIFIERS = {
    "fashion-mnist-classifier": lambda: Classifier(width=4, features=8),
    "fashion-mnist-critic": lambda: Critic(stem=4, widths=(4, 8)),
}


def tiny_unet() -> UNet:
    return UNet(widths=(8, 16), heads=2)


@pytest.fixture(autouse=True)
def small_world(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty random images and tiny networks under the shipped names."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (20, 1, 28, 28), generator=g, dtype=torch.uint8)
    labels = torch.randint(10, (20,), generator=g)
    monkeypatch.setattr(data, "fashion_mnist", lambda split="train": (images, labels))
    monkeypatch.setattr(training, "build_denoiser", lambda name: build_denoiser(name, tiny_unet()))
    monkeypatch.setattr(training, "CLASSIFIERS", CLASSIFIERS)


def recipe(name: str, **changes: object) -> Recipe:
    return replace(Recipe(name, **TINY), **changes)  # type: ignore[arg-type]


def state(run: Run) -> dict[str, Tensor]:
    tensors, _ = load_tensors(run.state_file, "training state")
    return tensors


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, different


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_stopped_and_resumed_is_bit_identical(name: str, tmp_path: Path) -> None:
    r = recipe(name, bf16=name.endswith("noise"), flips=name.endswith("critic"))
    whole = train(name, tmp_path / "whole", recipe=r)
    for until in (1, 3, None):
        parts = train(name, tmp_path / "parts", until=until, recipe=r)
    assert parts.step == whole.step == 6
    assert_same(state(whole), state(parts))  # weights, average and Adam's moments
    published = [load_tensors(tmp_path / k / f"{name}.safetensors", "network")[0] for k in ("whole", "parts")]
    assert_same(*published)
    start = train(name, tmp_path / "start", until=1, recipe=r)
    moved = [k for k, v in state(start).items() if k.startswith("model.") and not torch.equal(v, state(whole)[k])]
    assert len(moved) > 10  # there was something to get wrong


def test_killed_between_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps after the last save are lost and done again, alike."""
    name = "fashion-mnist-data"
    r = recipe(name, bf16=False)
    whole = train(name, tmp_path / "whole", recipe=r)
    calls, real = [], denoising_loss

    def dies(*args: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "denoising_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(name, tmp_path / "killed", recipe=r)
    assert load_tensors(tmp_path / "killed" / f"{name}.state.safetensors", "training state")[1]["step"] == 4
    assert not (tmp_path / "killed" / f"{name}.safetensors").exists()
    assert not [f for f in os.listdir(tmp_path / "killed") if f.endswith(".part")]
    resumed = train(name, tmp_path / "killed", recipe=r)
    assert len(calls) == 8  # steps 4 and 5 again
    assert_same(state(whole), state(resumed))


def test_seed_decides(tmp_path: Path) -> None:
    name = "fashion-mnist-data"
    torch.manual_seed(123)  # whatever happened before
    a = train(name, tmp_path / "a", recipe=recipe(name))
    torch.manual_seed(456)
    b = train(name, tmp_path / "b", recipe=recipe(name))
    c = train(name, tmp_path / "c", recipe=recipe(name, seed=1))
    assert_same(state(a), state(b))
    assert not torch.equal(state(a)["model.head.2.weight"], state(c)["model.head.2.weight"])


def test_each_step_draws_its_own_numbers(tmp_path: Path) -> None:
    """And a step's numbers depend on the seed and its index alone, however the run got there."""
    model, drawn = nn.Linear(1, 1), dict[tuple[int, int], float]()
    for seed in (0, 1):
        for stops in ((6,), (2, 5, 6)):
            run = Run(recipe("line", seed=seed), model, tmp_path / f"{seed}{stops}")

            def loss(g: torch.Generator, run: Run = run, seed: int = seed) -> Tensor:
                x = torch.randn(1, 1, generator=g)
                assert drawn.setdefault((seed, run.step), float(x)) == float(x)
                return model(x).square().sum()

            for until in stops:
                run.train(loss, until)
    assert len(drawn) == len(set(drawn.values())) == 12


@pytest.mark.parametrize("change", [dict(rate=2e-2), dict(seed=1), dict(steps=7)])
def test_another_recipe_is_refused(change: dict[str, float], tmp_path: Path) -> None:
    name = "fashion-mnist-data"
    train(name, tmp_path, until=2, recipe=recipe(name))
    before = (tmp_path / f"{name}.state.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is of another recipe; remove it or choose another folder") as info:
        train(name, tmp_path, recipe=recipe(name, **change))
    assert "\n" not in str(info.value)
    assert (tmp_path / f"{name}.state.safetensors").read_bytes() == before


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    name = "fashion-mnist-data"
    run = train(name, tmp_path, until=2, recipe=recipe(name))
    run.state_file.write_bytes(run.state_file.read_bytes()[:-100])
    with pytest.raises(FileError, match="not a readable safetensors file"):
        train(name, tmp_path, recipe=recipe(name))


# --- what is published ---------------------------------------------------------------------------


def test_published_file_rebuilds_the_denoiser(tmp_path: Path) -> None:
    name = "fashion-mnist-noise"
    run = train(name, tmp_path, recipe=recipe(name))
    tensors, meta = load_tensors(tmp_path / f"{name}.safetensors", "network")
    assert meta["name"] == name and meta["prediction"] == "noise" and meta["shape"] == [1, 28, 28]
    assert meta["schedule"] == vp_linear().config and meta["recipe"] == asdict(run.recipe)
    assert {v.dtype for v in tensors.values()} == {torch.float16}
    network = UNet(**meta["config"])
    network.load_state_dict(tensors)
    for key, value in network.state_dict().items():  # the moving average, not the last weights
        torch.testing.assert_close(value, run.average[key], rtol=1e-3, atol=1e-5)
    out = build_denoiser(name, network)(torch.randn(2, 1, 28, 28), 1.0)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("fashion-mnist-classifier", "fashion-mnist-moments.safetensors"),
        ("fashion-mnist-critic", "fashion-mnist-critic-moments.safetensors"),
    ],
)
def test_published_classifier_is_of_its_class_and_has_its_moments(name: str, moments: str, tmp_path: Path) -> None:
    run = train(name, tmp_path, recipe=recipe(name))
    path = tmp_path / f"{name}.safetensors"
    network, features_name = zoo.load_classifier(path)
    assert type(network) is type(CLASSIFIERS[name]()) is zoo.CLASSIFIERS[name]
    assert zoo.metadata(path)["architecture"] == type(network).__name__
    for key, value in network.state_dict().items():  # the moving average, not the last weights
        torch.testing.assert_close(value, run.average[key], rtol=1e-3, atol=1e-5)
    assert_same(run.model.state_dict(), run.average)  # the stored accuracy is theirs
    found = training.reference_moments(tmp_path, name)
    assert found == tmp_path / moments
    reference = metrics.Moments.load(found)
    assert (reference.features, reference.n) == (features_name, 20)
    expected = network.features(data.fashion_mnist("train")[0]).double()
    torch.testing.assert_close(reference.mean, expected.mean(0), rtol=1e-4, atol=1e-6)


def test_log_is_written(tmp_path: Path) -> None:
    name = "fashion-mnist-classifier"
    train(name, tmp_path, recipe=recipe(name, steps=200, batch=2, save_every=100))
    with (tmp_path / f"{name}.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [row["step"] for row in rows] == ["100", "200"]
    assert all(math.isfinite(float(row["loss"])) for row in rows)


def test_average_follows_its_formula(tmp_path: Path) -> None:
    model = nn.Linear(2, 1)
    run = Run(recipe("line", steps=5, ema=0.6), model, tmp_path)
    expected = model.weight.detach().clone()
    for step in range(5):
        run.train(lambda g: model(torch.randn(4, 2, generator=g)).square().mean(), until=step + 1)
        keep = min(0.6, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * model.weight.detach()
    torch.testing.assert_close(run.average["weight"], expected)


def test_rate_warms_up_and_falls_to_zero(tmp_path: Path) -> None:
    run = Run(Recipe("line", steps=100, warmup=10, rate=2.0), nn.Linear(1, 1), tmp_path)
    rates = []
    for run.step in range(100):
        rates.append(run.rate())
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert rates[50] == pytest.approx(1.0) and 0 < rates[99] < 1e-3
    assert max(rates) <= 2.0 and rates[20:] == sorted(rates[20:], reverse=True)


def test_a_diverged_run_stops(tmp_path: Path) -> None:
    model = nn.Linear(1, 1)
    run = Run(recipe("line"), model, tmp_path)
    with pytest.raises(FloatingPointError, match="loss is nan at step 1; lower the rate"):
        run.train(lambda g: model(torch.ones(1, 1)).sum() * math.nan)
    assert not run.state_file.exists()  # nothing good was overwritten


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


def test_loss_of_the_exact_denoisers_of_gaussian_data() -> None:
    """For N(0, s^2), EDM's best network is F = 0 with loss 1; the noise's best loss is s^2 / (s^2 + sigma^2)."""
    edm = EDMPrediction(Linear(0.0), (1, 28, 28), EDM(), sigma_data=0.7)
    with torch.no_grad():
        assert float(denoising_loss(edm, *draws(edm, 0.7))) == pytest.approx(1, abs=0.02)
        worse = EDMPrediction(Linear(0.2), (1, 28, 28), EDM(), sigma_data=0.7)
        assert float(denoising_loss(worse, *draws(edm, 0.7))) == pytest.approx(1.04, abs=0.02)
    sigma = torch.full((64,), 1.5, dtype=torch.float64)
    x0, _, noise = draws(edm, 0.7)
    best = 1.5 * (1 + 1.5**2) ** 0.5 / (0.49 + 1.5**2)  # eps = sigma x / (s^2 + sigma^2), x = sqrt(1 + sigma^2) input
    d = NoisePrediction(Linear(best), (1, 28, 28), vp_linear())
    with torch.no_grad():
        assert float(denoising_loss(d, x0, sigma, noise)) == pytest.approx(0.49 / (0.49 + 1.5**2), rel=0.02)


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
        classifier_loss(model, *data.fashion_mnist("train"), r)(torch.Generator().manual_seed(3))
    plain, flipped = seen
    assert plain.shape == (64, 1, 28, 28)
    same, mirrored = ((flipped == x).flatten(1).all(1) for x in (plain, plain.flip(3)))
    assert (same ^ mirrored).all() and 20 <= int(mirrored.sum()) <= 44


def test_noise_levels_are_the_papers() -> None:
    g = torch.Generator().manual_seed(0)
    edm = draw_sigma(build_denoiser("fashion-mnist-data", tiny_unet()), 20_000, g).log()
    assert float(edm.mean()) == pytest.approx(-1.2, abs=0.03) and float(edm.std()) == pytest.approx(1.2, abs=0.03)
    vp = build_denoiser("fashion-mnist-noise", tiny_unet())
    labels = vp.schedule.label(draw_sigma(vp, 20_000, g))
    assert torch.equal(labels, labels.round()) and labels.min() >= 0 and labels.max() <= 999
    assert float(labels.mean()) == pytest.approx(499.5, abs=8)


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="no recipe named 'cifar'; known: fashion-mnist-noise"):
        build_denoiser("cifar")


@pytest.mark.parametrize(("name", "steps", "left"), [("fashion-mnist-noise", 40, 0.5), ("fashion-mnist-data", 80, 0.9)])
def test_training_learns(name: str, steps: int, left: float, tmp_path: Path) -> None:
    """Four ramps, one from each side: the loss on draws that were not trained on falls."""
    torch.manual_seed(0)
    ramp = torch.linspace(0, 255, 28).to(torch.uint8).expand(1, 28, 28)
    images = torch.stack([ramp, ramp.flip(2), ramp.mT, ramp.mT.flip(1)])
    d = build_denoiser(name, tiny_unet())
    assert isinstance(d.network, nn.Module)
    r = Recipe(name, steps=steps, batch=16, warmup=5, rate=1e-2, bf16=False)
    loss = denoiser_loss(d, images, r)

    def held_out() -> float:
        with torch.no_grad():
            return sum(float(loss(torch.Generator().manual_seed(10_000 + k))) for k in range(8)) / 8

    before = held_out()
    run = Run(r, d.network, tmp_path)
    run.train(loss)
    assert held_out() < left * before
