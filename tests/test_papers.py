"""The papers' rows as parameter sets: whole, of checkpoints that can be named, and understood by what runs them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from published_parts import CLASSIFIER, GUIDED, randomised

import dode
from dode import distillation, experiments, zoo
from dode.experiments import fits, learned, papers, plans, quality, shard
from dode.utils.files import FileError
from dode.zoo import CATALOGUE, Card, ClassifierGuidance
from dode.zoo.openai import EncoderUNetModel, UNetModel

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("row", papers.ROWS, ids=lambda row: f"{row.notebook}-{row.data}")
def test_a_row_is_what_its_notebook_understands(row: papers.Parameters) -> None:
    assert (ROOT / "notebooks" / f"{row.notebook}.py").is_file()
    name, _, scale = row.checkpoint.partition("@")
    found, p = CATALOGUE[name], experiments.preset("paper")
    side = {"CIFAR-10": 32, "LSUN-Bedroom": 256}.get(row.data) or int(row.data.rpartition("-")[2])
    assert found.shape == (3, side, side) and row.data.partition("-")[0].lower() in name
    assert not scale or ("classifier" in found.settings and float(scale) > 0)
    assert (p.images, p.fid) == (50_000, "legacy_tensorflow")
    assert row.blocks == (1 if row.notebook == "learned" else p.repeats)
    if row.notebook in plans.PLANS:  # figure 4 is of networks that predict clean images
        stands_in = "fashion-mnist-noise" if row.notebook == "figure_3" else "fashion-mnist-data"
        assert (found.schedule is None) == (row.notebook == "figure_4")
        plan = plans.plan(row.notebook, "paper", stands_in)
        assert plan.calls[stands_in, "ddim"] == row.nfes and plans.price(row) == plan.evaluations


def test_table_5_is_the_published_one() -> None:
    rows = {row.data: row for row in papers.ROWS if "table 5" in row.source}
    table = pd.read_csv(ROOT / "results" / "published_dlms.csv")
    table = table[table.source.str.startswith("DLMS Table 5")]
    assert set(rows) == set(table.dataset)
    assert all(set(table.nfe[table.dataset == data]) <= set(row.nfes) for data, row in rows.items())
    assert plans.price(rows["CIFAR-10"]) == 50_000 * (15 * 52 + 100) + 1_000 * (15 * 52 + 1_000)


def small(rows: Callable[..., Card], folder: Path, name: str, like: str, kind: Any, network: dict[str, Any]) -> None:
    """A published network of a few channels, where the cache would have it."""
    (folder / "cache").mkdir(exist_ok=True)
    body = kind(**network)
    randomised(body)
    torch.save(body.state_dict(), folder / "cache" / f"{name}.pt")
    classifier = dict(settings=dict(classifier="judge")) if kind is UNetModel else {}
    rows(name, like, network=network, file=f"{name}.pt", classes=10, **classifier)


@pytest.fixture
def guided(rows: Callable[..., Card], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    small(rows, tmp_path, "tiny", "adm-imagenet-64", UNetModel, GUIDED | dict(num_classes=10))
    small(rows, tmp_path, "judge", "adm-imagenet-64-classifier", EncoderUNetModel, CLASSIFIER)
    quality.load_cached.cache_clear()
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
        with pytest.raises(ValueError) as error:
            dode.load(wrong)
        assert "\n" not in str(error.value)


def test_a_sweep_of_a_published_network(guided: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its plan has the paper's batch of fitting images; its pieces keep its name; FID wants the user's statistics."""
    plan = plans.plan("figure_3", "paper", guided)
    assert plan.checkpoints == (guided,) and plan.preset.fit_images == 100
    assert all(piece.path.parts[1] == guided for piece in shard.shards(plan))
    monkeypatch.setattr(papers, "ROWS", (papers.Parameters("", "figure_3", "", guided, (2,), fit_images=25),))
    assert plans.plan("figure_3", "paper", guided).preset.fit_images == 25
    assert plans.plan("figure_3", "full", guided).preset.fit_images == 100
    for ask in (
        lambda: quality.evaluator(experiments.preset("paper"), guided, "cpu"),
        lambda: fits.evaluators("cpu", guided),
        lambda: learned.reference_moments(experiments.preset("smoke"), "cpu", guided),
    ):
        with pytest.raises(FileError, match=r"tiny@1\.25\.inception-legacy_tensorflow\.safetensors does not exist"):
            ask()
    assert papers.ROWS[0].statistics == "tiny@1.25.inception-legacy_tensorflow.safetensors"


def test_fits_of_other_images_have_no_critic(guided: str) -> None:
    """Pixels and random features of as many channels; all fifteen solvers start on the network's own grids."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    compared = fits.loss("cpu", checkpoint=guided)
    wanted = distillation.stack((0.1, distillation.pixels), (3.0, distillation.random_features(3)))
    torch.testing.assert_close(compared(images), wanted(images))
    ours = fits.loss("cpu", "seen", guided)
    averaged = distillation.clipped(
        distillation.stack((0.1, distillation.pixels), (0.5, distillation.random_features(3, mesh=1)))
    )
    torch.testing.assert_close(ours(2 * images), averaged(2 * images))
    assert fits.solver_file(experiments.preset("smoke"), guided, "gits", 3).name == "tiny@1.25-gits-3.safetensors"
    p = replace(experiments.preset("smoke"), fit_images=4, learn_images=4)
    for method in ("gits", "d-ode"):
        assert fits.fit(p, guided, "cpu", method, 2).metadata["model"] == guided
