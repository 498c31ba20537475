"""The papers' rows as parameter sets: whole, of checkpoints that can be named, and understood by what runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from published_parts import SMALL, state
from small import refused

import dode
from dode import distillation, experiments, zoo
from dode.experiments import Run, fits, learned, plans
from dode.experiments.run import load_cached
from dode.utils.files import FileError, load_tensors, save_tensors
from dode.zoo import CATALOGUE, Card, ClassifierGuidance

ROOT = Path(__file__).parents[1]
DATA = "fashion-mnist-data"


@pytest.mark.parametrize("row", plans.ROWS, ids=lambda row: f"{row.notebook}-{row.data}")
def test_a_row_is_what_its_notebook_understands(row: plans.Parameters) -> None:
    assert (ROOT / "notebooks" / f"{row.notebook}.py").is_file()
    name, _, scale = row.checkpoint.partition("@")
    found, p = CATALOGUE[name], experiments.preset("paper")
    side = {"CIFAR-10": 32, "LSUN-Bedroom": 256}.get(row.data) or int(row.data.rpartition("-")[2])
    assert found.shape == (3, side, side) and row.data.partition("-")[0].lower() in name
    assert not scale or ("classifier" in found.settings and float(scale) > 0)
    assert p.images == 50_000
    assert row.blocks == (1 if row.notebook == "learned" else p.repeats)
    if row.notebook in plans.PLANS:  # figure 4 is of networks that predict clean images
        stands_in = "fashion-mnist-noise" if row.notebook == "figure_3" else "fashion-mnist-data"
        assert (found.schedule is None) == (row.notebook == "figure_4")
        plan = plans.plan(row.notebook, "paper", stands_in)
        assert plan.calls[stands_in, "ddim"] == row.nfes and plans.price(row) == plan.evaluations


def test_table_5_is_the_published_one() -> None:
    rows = {row.data: row for row in plans.ROWS if "table 5" in row.source}
    table = pd.read_csv(ROOT / "results" / "published_dlms.csv")
    table = table[table.source.str.startswith("DLMS Table 5")]
    assert set(rows) == set(table.dataset)
    assert all(set(table.nfe[table.dataset == data]) <= set(row.nfes) for data, row in rows.items())
    assert plans.price(rows["CIFAR-10"]) == 50_000 * (15 * 52 + 16 + 100) + 1_000 * (15 * 52 + 16 + 1_000)


def test_the_preset_of_the_paper_is_the_papers() -> None:
    three, four = (experiments.plan(figure, "paper") for figure in plans.PLANS)
    for plan in (three, four):
        assert (plan.preset.images, plan.preset.fit_images, plan.preset.bf16) == (50_000, 100, False)
        assert {cell["block"] for cell in plan.cells if cell["nfe"] > 200} == {0, 1, 2}
        assert plan.preset.kept
    assert four.calls[DATA, "heun"] == (3, 5, 9, 25, 49, 99, 249)  # DDIM's are in the papers' rows
    assert (round(three.evaluations / 1e9, 1), round(four.evaluations / 1e9, 1)) == (1.4, 0.8)  # as plans.py says


def renamed(path: Path, name: str) -> Path:
    tensors, card = load_tensors(zoo.checkpoint_file(DATA), "network")
    return save_tensors(path, tensors, "network", card | {"name": name})


@pytest.mark.parametrize("figure", plans.PLANS)
def test_a_file_can_stand_for_a_checkpoint(figure: str, tmp_path: Path) -> None:
    path = str(renamed(tmp_path / "mine.safetensors", "mine"))
    named, filed = (experiments.plan(figure, "paper", which) for which in (DATA, path))
    assert filed.checkpoints == [path]
    strip = lambda cell: {k: v for k, v in cell.items() if k not in ("checkpoint", "weights")}  # noqa: E731
    assert list(map(strip, filed.cells)) == list(map(strip, named.cells))
    assert {cell["weights"] for cell in filed.cells} == {zoo.digest(path)}


def test_a_network_of_known_images_is_measured_by_their_classifier(tmp_path: Path) -> None:
    path = str(renamed(tmp_path / "file.safetensors", "mine"))
    paper, standard = (Run(experiments.preset(name)) for name in ("paper", "standard"))
    assert paper.evaluator(DATA) is standard.evaluator(path) is paper.evaluator(path)
    assert paper.evaluator(path)[0].name.startswith("fashion-mnist-classifier-")


def small(rows: Callable[..., Card], folder: Path, name: str, like: str, kind: str, **settings: Any) -> None:
    """A published network of a few channels, where the cache would have it."""
    (folder / "cache").mkdir(exist_ok=True)
    torch.save(state(kind, num_classes=10), folder / "cache" / f"{name}.pt")
    rows(name, like, network=SMALL[kind] | dict(num_classes=10), file=f"{name}.pt", classes=10, settings=settings)


@pytest.fixture
def guided(rows: Callable[..., Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    small(rows, tmp_path, "tiny", "adm-imagenet-64", "guided", classifier="judge")
    small(rows, tmp_path, "judge", "adm-imagenet-64-classifier", "classifier")
    load_cached.cache_clear()
    return "tiny@1.25"


def test_a_name_can_have_a_guidance(guided: str) -> None:
    model = dode.load(guided)
    assert isinstance(model, ClassifierGuidance) and (model.name, model.scale, model.conditions) == (guided, 1.25, 10)
    assert zoo.digest(guided) == zoo.digest("tiny") and experiments.checkpoints(guided) == [guided]
    seeds = [3, 14, 15]
    told, noise = experiments.seeded(model, seeds)
    table = dode.solvers.ddim(model.grid(2))
    plain = dode.sample(dode.load("tiny").of(seeds), table, noise)
    assert (dode.sample(told, table, noise, batch_size=2) - plain).abs().max() > 1e-3
    for wrong in ("tiny@much", "judge@1", "iddpm-imagenet-64@"):
        with refused(""):
            dode.load(wrong)


def test_a_sweep_of_a_published_network(guided: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan has the paper's batch of fitting images; FID wants the user's statistics."""
    plan = plans.plan("figure_3", "paper", guided)
    assert plan.checkpoints == [guided] and plan.preset.fit_images == 100
    monkeypatch.setattr(plans, "ROWS", (plans.Parameters("", "figure_3", "", guided, (2,), fit_images=25),))
    assert plans.plan("figure_3", "paper", guided).preset.fit_images == 25
    assert plans.plan("figure_3", "full", guided).preset.fit_images == 100
    for ask in (
        lambda: Run(experiments.preset("paper")).evaluator(guided),
        lambda: Run(experiments.preset("smoke")).evaluators(guided),
        lambda: learned.reference_moments(Run(experiments.preset("smoke")), guided),
    ):
        with pytest.raises(FileError, match=r"tiny@1\.25\.inception-legacy_tensorflow\.safetensors does not exist"):
            ask()


def test_fits_of_other_images_have_no_critic(guided: str) -> None:
    """Pixels and random features of as many channels; all fifteen solvers start on the network's own grids."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model = dode.load(guided)
    compared = fits.loss(model)
    wanted = distillation.stack((0.1, distillation.pixels), (3.0, distillation.random_features(3)))
    torch.testing.assert_close(compared(images), wanted(images))
    ours = fits.loss(model, "seen")
    averaged = distillation.clipped(
        distillation.stack((0.1, distillation.pixels), (0.5, distillation.random_features(3, mesh=1)))
    )
    torch.testing.assert_close(ours(2 * images), averaged(2 * images))
    assert fits.solver_file(experiments.preset("smoke"), guided, "gits", 3).name == "tiny@1.25-gits-3.safetensors"
    p = replace(experiments.preset("smoke"), fit_images=4, learn_images=4)
    for method in ("gits", "d-ode"):
        assert fits.fit(Run(p), guided, method, 2).metadata["model"] == guided
