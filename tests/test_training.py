"""Training: the loss is the papers', and a killed run ends where an unbroken one does."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from dode import metrics, training, zoo
from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction
from dode.schedules import EDM, vp_linear
from dode.training import (
    Run,
    Training,
    build_classifier,
    build_denoiser,
    classifier_loss,
    denoiser_loss,
    denoising_loss,
    draw_sigma,
    losses,
    networks,
    train,
    training_named,
)
from dode.training.__main__ import main, parser, wanted
from dode.utils.files import FileError, load_tensors, save_tensors
from dode.zoo import datasets
from dode.zoo.unet import UNet

TINY = dict(steps=6, batch=4, warmup=2, save_every=2, rate=1e-2, ema=0.9)
UNET = dict(widths=(8, 16), heads=2)
EYES = dict(width=4, features=8)
NETWORKS = dict(noise=UNET, data=UNET, classifier=EYES, critic=dict(stem=4, widths=(4, 8)), observer=EYES)


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
    tensors, _ = load_tensors(run.state_file, "training state")
    return tensors


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [k for k in a if not torch.equal(a[k], b[k])]
    assert not different, different


# --- resuming ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "fashion-mnist-data", "fashion-mnist-classifier", pytest.param("fashion-mnist-noise", marks=pytest.mark.slow),
        "fashion-mnist-critic", "fashion-mnist-observer", pytest.param("imagenet32-data", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_stopped_and_resumed_is_bit_identical(name: str, tmp_path: Path) -> None:
    r = recipe(
        name, bf16=name.endswith("noise"), flips=name.endswith(("critic", "data")),
        drop=0.3 if name.startswith("imagenet") else 0.0,
    )  # fmt: skip
    whole = train(r, tmp_path / "whole")
    for until in (1, 3, None):
        parts = train(r, tmp_path / "parts", until=until)
    assert parts.step == whole.step == 6
    assert_same(state(whole), state(parts))  # weights, average and Adam's moments
    published = [load_tensors(tmp_path / k / f"{name}.safetensors", "network")[0] for k in ("whole", "parts")]
    assert_same(*published)
    start = train(r, tmp_path / "start", until=1)
    moved = [k for k, v in state(start).items() if k.startswith("model.") and not torch.equal(v, state(whole)[k])]
    assert len(moved) > 10  # there was something to get wrong


def test_killed_between_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps after the last save are lost and done again, alike."""
    name = "fashion-mnist-data"
    r = recipe(name, bf16=False)
    whole = train(r, tmp_path / "whole")
    calls, real = [], denoising_loss

    def dies(*args: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(losses, "denoising_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        train(r, tmp_path / "killed")
    assert load_tensors(tmp_path / "killed" / f"{name}.state.safetensors", "training state")[1]["step"] == 4
    assert not (tmp_path / "killed" / f"{name}.safetensors").exists()
    assert not [f for f in os.listdir(tmp_path / "killed") if f.endswith(".part")]
    resumed = train(r, tmp_path / "killed")
    assert len(calls) == 8  # steps 4 and 5 again
    assert_same(state(whole), state(resumed))


@pytest.mark.slow
def test_seed_decides(tmp_path: Path) -> None:
    name = "fashion-mnist-data"
    torch.manual_seed(123)  # whatever happened before
    a = train(recipe(name), tmp_path / "a")
    torch.manual_seed(456)
    b = train(recipe(name), tmp_path / "b")
    c = train(recipe(name, seed=1), tmp_path / "c")
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
    train(recipe(name), tmp_path, until=2)
    before = (tmp_path / f"{name}.state.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is of another recipe; remove it or choose another folder") as info:
        train(recipe(name, **change), tmp_path)
    assert "\n" not in str(info.value)
    assert (tmp_path / f"{name}.state.safetensors").read_bytes() == before


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    name = "fashion-mnist-data"
    run = train(recipe(name), tmp_path, until=2)
    run.state_file.write_bytes(run.state_file.read_bytes()[:-100])
    with pytest.raises(FileError, match="not a readable safetensors file"):
        train(recipe(name), tmp_path)


def test_a_state_of_an_older_recipe_goes_on(tmp_path: Path) -> None:
    """It was written before a field was there; what it did not know of was as usual."""
    r = recipe("fashion-mnist-data", network=UNET)
    run = train(r, tmp_path, until=2)
    tensors, meta = load_tensors(run.state_file, "training state")
    for new in ("minutes", "compile", "drop"):
        del meta["recipe"][new]
    del meta["steps"]
    save_tensors(run.state_file, tensors, "training state", meta)
    assert train(r, tmp_path).finished
    assert not r.matches(meta["recipe"] | {"drop": 0.5}) and not r.matches({"unknown": 1})


# --- a length in minutes ---------------------------------------------------------------------------


def lines(folder: Path, clock: list[float], **changes: object) -> tuple[Run, Callable[[torch.Generator], Tensor]]:
    """A run of a model so small that the clock alone says how long a step takes: 10 ms more each time it is read."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    run = Run(recipe("line", save_every=10_000, **changes), model, folder)
    return run, lambda g: model(torch.randn(4, 1, generator=g)).square().mean()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that is 10 ms later each time it is read."""
    now = [0.0]

    def read() -> float:
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr("dode.utils.optimisation.time.perf_counter", read)
    return now


def test_minutes_become_steps_once_and_the_state_keeps_them(tmp_path: Path, clock: list[float]) -> None:
    run, loss = lines(tmp_path, clock, minutes=0.05)
    run.train(loss)
    assert run.finished and run.step == run.steps == pytest.approx(300, abs=3)  # 3 s at 10 ms a step
    assert run.seconds == pytest.approx(3, abs=0.05)
    parts, loss = lines(tmp_path / "parts", clock, minutes=0.05)
    parts.train(loss, until=150)
    assert parts.steps is None
    for until in (220, 260, None):
        parts, loss = lines(tmp_path / "parts", clock, minutes=0.05)
        assert parts.resume()
        parts.train(loss, until)
    assert parts.finished and abs(parts.step - run.step) <= 3


def test_a_resumed_run_of_minutes_ends_where_an_unbroken_one_does(tmp_path: Path, clock: list[float]) -> None:
    whole, loss = lines(tmp_path / "whole", clock, minutes=0.05)
    whole.train(loss)
    for until in (210, 250, None):  # its length is fixed at 200, and another speed does not change it
        parts, loss = lines(tmp_path / "parts", clock, minutes=0.05)
        parts.resume()
        parts.train(loss, until)
        clock[0] += 1e3
    assert parts.steps == whole.steps
    assert_same(state(whole), state(parts))


def test_a_call_that_is_out_of_time_saves_and_goes_on_later(tmp_path: Path, clock: list[float]) -> None:
    whole, loss = lines(tmp_path / "whole", clock, steps=100)
    whole.train(loss)
    run, loss = lines(tmp_path / "parts", clock, steps=100)
    run.train(loss, patience=0.3)
    assert 20 < run.step < 40 and not run.finished
    assert load_tensors(run.state_file, "training state")[1]["step"] == run.step
    again, loss = lines(tmp_path / "parts", clock, steps=100)
    assert again.resume()
    again.train(loss)
    assert_same(state(whole), state(again))


def test_losses_that_are_not_awaited_are_looked_at_before_anything_is_kept(tmp_path: Path) -> None:
    """As on a GPU, which is not asked for each loss."""
    model = nn.Linear(1, 1)
    run = Run(recipe("line", steps=300, save_every=50), model, tmp_path)
    run.each = False
    values = iter([*[1.0] * 60, math.nan, *[1.0] * 300])
    with pytest.raises(FloatingPointError, match="loss is nan at step 61; lower the rate"):
        run.train(lambda g: model(torch.ones(1, 1)).sum() * 0 + next(values))
    assert load_tensors(run.state_file, "training state")[1]["step"] == 50


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
        torch.testing.assert_close(value, run.average[key], rtol=1e-3, atol=1e-5)
    out = zoo.load_denoiser(tmp_path / f"{name}.safetensors")(torch.randn(2, 1, 28, 28), 1.0)
    assert torch.isfinite(out).all() and meta["config"] == network.config


@pytest.mark.parametrize(
    ("name", "moments"),
    [
        ("fashion-mnist-classifier", "fashion-mnist-moments.safetensors"),
        ("fashion-mnist-critic", "fashion-mnist-critic-moments.safetensors"),
        ("fashion-mnist-observer", "fashion-mnist-observer-moments.safetensors"),
    ],
)
def test_published_classifier_is_of_its_class_and_has_its_moments(name: str, moments: str, tmp_path: Path) -> None:
    run = train(recipe(name), tmp_path)
    path = tmp_path / f"{name}.safetensors"
    network, features_name = zoo.load_evaluator(path)
    assert type(network) is zoo.CLASSIFIERS[name]
    assert zoo.metadata(path)["architecture"] == type(network).__name__
    for key, value in network.state_dict().items():  # the moving average, not the last weights
        torch.testing.assert_close(value, run.average[key], rtol=1e-3, atol=1e-5)
    assert_same(run.model.state_dict(), run.average)  # the stored accuracy is theirs
    found = training.write_moments(tmp_path, name)
    assert found == tmp_path / moments
    reference = metrics.Moments.load(found)
    assert (reference.features, reference.n) == (features_name, 20)
    expected = network.features(datasets.fashion_mnist("train")[0]).double()
    torch.testing.assert_close(reference.mean, expected.mean(0), rtol=1e-4, atol=1e-6)


def test_log_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fashion-mnist-classifier"
    monkeypatch.setattr("dode.utils.optimisation.LOG_EVERY", 3)
    train(recipe(name, save_every=4), tmp_path)
    with (tmp_path / f"{name}.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [row["step"] for row in rows] == ["3", "6"]
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
    run = Run(Training("line", steps=100, warmup=10, rate=2.0), nn.Linear(1, 1), tmp_path)
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


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="no recipe named 'cifar'; known: fashion-mnist-noise, fashion"):
        build_denoiser("cifar")


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


# --- classes ---------------------------------------------------------------------------------------


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


def test_a_processor_without_bf16_trains_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    args = parser().parse_args(["fashion-mnist-data", "--steps", "7"])
    for has in (False, True):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda has=has: {"avx2": True, "amx_bf16": has}, raising=False
        )
        assert wanted("fashion-mnist-data", args) == replace(training_named("fashion-mnist-data"), steps=7, bf16=has)
        assert not wanted("fashion-mnist-critic", args).bf16  # whose recipe asks for none


def test_only_denoisers_of_natural_images_have_a_larger_size(tmp_path: Path) -> None:
    small, large = (training_named("imagenet32-data", large) for large in (False, True))
    assert large.compile and large.minutes and not small.compile and not small.minutes and small.drop == large.drop
    assert not small.matches(large.facts)  # the state of one is not taken up by the other
    assert networks.named("imagenet32", large=True) == ["imagenet32-noise", "imagenet32-data"]
    for name in ("imagenet32-critic", "fashion-mnist-data"):
        with pytest.raises(SystemExit, match=f"error: {name} has one size alone; leave out --large"):
            main([name, "--large", "--out", str(tmp_path)])


def test_natural_recipes_build_networks_that_may_be_shipped() -> None:
    for kind in ("noise", "data"):
        for large, most in ((False, 9.6e6), (True, 15.8e6)):
            d = build_denoiser(training_named(f"imagenet32-{kind}", large))
            assert isinstance(d.network, UNet) and d.shape == (3, 32, 32) and d.network.classes == 200
            assert 2 * sum(p.numel() for p in d.network.parameters()) < most  # bytes in half precision
    for kind in ("classifier", "critic", "observer"):
        model = build_classifier(f"imagenet32-{kind}")
        images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
        assert model(images).shape == (2, 200) and model.features(images).shape[1] == (224 if kind == "critic" else 128)
        assert 2 * sum(p.numel() for p in model.parameters()) < 4e6
