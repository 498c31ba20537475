"""Natural images from sheets to a measured row, at a tiny size: what a GPU does at the real one, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dode
from book import prose
from dode import experiments, zoo
from dode.cli import main
from dode.denoisers.networks import is_compiled
from dode.experiments import fits, variants
from dode.experiments import run as runs
from dode.training import TRAININGS, networks, trainings
from dode.utils.files import FileError, load_tensors
from tests.test_data import make
from tests.test_training import NETWORKS, kill_after

NAMES = ["imagenet32-noise", "imagenet32-data"]
EYES = [f"imagenet32-{kind}" for kind in ("classifier", "critic", "observer", "transformer")]
ALL = [*EYES, *NAMES]
P = replace(experiments.preset("smoke"), images=24, fit_images=4, learn_images=2, bf16=False)

pytestmark = pytest.mark.slow  # six networks are trained


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Everything of the data set trained in a few steps, killed now and then, and shipped into an empty zoo."""
    folder = tmp_path_factory.mktemp("natural")
    with pytest.MonkeyPatch.context() as patch:
        make(folder / "data", patch)
        for name in ALL:
            small = dict(steps=8, batch=16, warmup=2, save_every=1, ema=0.5)
            small |= dict(rate=0.03, network=NETWORKS[name.rsplit("-", 1)[1]])
            patch.setitem(TRAININGS, name, replace(TRAININGS[name], **small))
        for place in (zoo, zoo.checkpoints):
            patch.setattr(place, "CHECKPOINTS", folder / "checkpoints")
        command = ["train", "imagenet32", "--out", str(folder / "runs"), "--device", "cpu", "--ship"]
        statuses = [call(command) for _ in range(16)]  # every call has time for three of the 48 steps
        assert statuses == [130] * 15 + [0]
        patch.setattr(zoo, "NAMES", tuple(zoo.shipped(zoo.DENOISERS)))
        forget()
        patch.setattr(fits, "home", lambda: folder)
        yield folder
    forget()


def call(command: list[str]) -> int:
    """The command, interrupted in its fourth step; its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        kill_after(3, patch)
        return main(command)


def forget() -> None:
    """What is kept by name is of other weights now."""
    experiments.load_cached.cache_clear()
    runs.data_moments.cache_clear()
    variants._recorded.cache_clear()


def test_all_of_a_data_set_is_trained_by_one_command_called_again_and_again(trained: Path) -> None:
    shipped = {p.name for p in (trained / "checkpoints").iterdir()}
    files = {f"{name}.{end}" for name in ALL for end in ("safetensors", "csv")}
    assert shipped == files | {zoo.moments_file(name) for name in EYES}
    recipes = trainings("imagenet32")
    assert networks.missing(recipes, trained / "runs") == [] and [r.name for r in recipes] == ALL
    for name in ALL:
        card = zoo.metadata(zoo.CHECKPOINTS / f"{name}.safetensors")
        assert card["recipe"]["steps"] == 8 and "200 ImageNet classes" in card["data"]
        assert card["licence"].startswith("non-commercial research only")
    assert experiments.checkpoints("imagenet32") == experiments.checkpoints("all") == NAMES


def test_what_is_not_trained_yet_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zoo.checkpoints, "CHECKPOINTS", tmp_path)
    monkeypatch.setattr(zoo, "NAMES", ())
    with pytest.raises(FileError, match="imagenet32-data is not among the shipped files; train it with dode train"):
        dode.load("imagenet32-data")
    with pytest.raises(FileError, match="imagenet32-critic is not among the shipped files; train it with"):
        zoo.load_evaluator("imagenet32-critic")
    with pytest.raises(FileError, match="no checkpoint of imagenet32 is here; train them with dode train"):
        experiments.checkpoints("imagenet32")
    with pytest.raises(FileError, match="imagenet32-data is not finished in .*; train it with dode train"):
        networks.ship(TRAININGS["imagenet32-data"], tmp_path)
    (tmp_path / "imagenet32-data.csv").write_text("step,loss,seconds\n")
    (tmp_path / "imagenet32-data.safetensors").write_bytes(bytes(16_100_000))
    with pytest.raises(FileError, match="has 16.1 MB; a shipped file has 16 at most"):
        networks.ship(TRAININGS["imagenet32-data"], tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_measured_by_the_classifier_of_its_data_set(name: str, trained: Path) -> None:
    (cell,) = experiments.fd_cells(P, {(name, "ddim"): [2]}, ["d-ode"])
    row = experiments.fd(experiments.Run(P), **cell)
    assert row["features"].startswith("imagenet32-classifier-") and row["n"] == "24" and float(row["fd"]) > 0
    (features, data), (critic, critic_data) = experiments.Run(P).evaluators(name)
    assert features.name == row["features"] == data.features and data.n == critic_data.n == 500
    assert critic.name.startswith("imagenet32-critic-") and critic.name == critic_data.features
    residual = fits.loss(dode.load(name), "critic")(torch.rand(3, 3, 32, 32) * 2 - 1)
    assert residual.shape == (3, critic.dim + 3 * 32 * 32)  # the critic's features, and pixels
    learned = fits.fit(experiments.Run(P), name, "gauss-newton", 2)
    assert isinstance(learned, dode.Tableau) and learned.nfe == 2 and learned.metadata["model"] == name


def test_sweeps_may_sample_with_a_compiled_network(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = experiments.Run.compiled.__wrapped__(experiments.Run(P), NAMES[0])
    monkeypatch.setenv("DODE_COMPILE", "1")
    compiled = experiments.Run.compiled.__wrapped__(experiments.Run(P), NAMES[0])
    assert plain is experiments.Run(P).fast(NAMES[0]) and not is_compiled(plain.network)
    assert is_compiled(compiled.network) and compiled.conditions == 200 and compiled.name == plain.name
    assert compiled.of([3, 4]).network is compiled.network


def test_the_model_card_says_whose_the_images_are(trained: Path) -> None:
    card = prose.model_card("imagenet32-data")
    assert card.startswith("# imagenet32-data\n") and "3 x 32 x 32" in card and "natural images" in card
    assert "| licence | non-commercial research only, by ImageNet's terms for the data (code: MIT) |" in card
    assert "| quality | not measured yet |" in card and "8 steps of 16 images" in card and "(0.0 passes" in card


def test_moments_are_of_all_images_and_the_network_of_its_header(trained: Path) -> None:
    tensors, card = load_tensors(zoo.CHECKPOINTS / "imagenet32-data.safetensors", "network")
    assert card["config"]["classes"] == 200 and tensors["kinds.weight"].shape[0] == 201
    assert {v.dtype for v in tensors.values()} == {torch.float16} and card["shape"] == [3, 32, 32]
    assert 0 <= zoo.metadata(zoo.CHECKPOINTS / "imagenet32-classifier.safetensors")["test_accuracy"] <= 1
    log = (zoo.CHECKPOINTS / "imagenet32-data.csv").read_text().splitlines()
    assert log[0] == "step,loss,seconds"
