"""The comparison behind the page "The solver zoo"."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch

import dode
from dode import experiments, solvers
from dode.experiments import comparisons

ROOT = Path(__file__).parents[1]
NAME = "fashion-mnist-data"
RUN = experiments.Run(experiments.preset("smoke"))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, so that references land there."""
    (tmp_path / "_toc.yml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_cells_name_no_impossible_and_no_double_one() -> None:
    model, cells = dode.load(NAME), comparisons.rmse_cells([NAME], (3, 8, 9), n=4, reference_calls=50)
    heun = [cell["nfe"] for cell in cells if cell["solver"] == "Heun" and cell["grid"] == "Karras"]
    assert heun == [3, 7, 9] and len({tuple(cell.values()) for cell in cells}) == len(cells)
    for cell in cells:
        grid = comparisons.grid_function(cell["grid"], model)
        table = comparisons.on_grid(comparisons.ENTRIES[cell["solver"]], grid, cell["nfe"])
        assert table.nfe == cell["nfe"] and table.sigmas[-1] == 0 and table.inconsistency() < 1e-10


def test_a_row_is_the_distance_to_the_kept_reference(project: Path) -> None:
    row = comparisons.rmse(RUN, checkpoint=NAME, solver="UniPC-3", grid="time", nfe=5, n=2, reference_calls=20)
    folder = project / "_build" / "references"
    (file,) = folder.glob("*.safetensors")
    truth = RUN.reference_images(NAME, 2, 20).clone()  # the file is mapped, and is cut short below
    model = dode.load(NAME)
    noise = dode.initial_noise(model.shape, experiments.held_out_seeds(2))
    images = dode.sample(model, solvers.unipc(comparisons.grid_function("time", model), nfe=5), noise)
    by_hand = (images - truth).flatten(1).square().mean(1).sqrt().mean()
    assert float(row["rmse"]) == pytest.approx(float(by_hand), abs=2e-5) and by_hand > 0.01
    assert "preset" not in row and row["seeds"] == "1000000-1000001"
    file.write_bytes(file.read_bytes()[:100])  # half a file is made again
    torch.testing.assert_close(RUN.reference_images(NAME, 2, 20), truth)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["UniPC-3", "DDIM"])
def test_a_committed_distance_can_be_measured_again(project: Path, solver: str) -> None:
    """On eight of the seeds; a short reference will do, because these solvers are far from it."""
    rows = pd.read_csv(ROOT / "results" / "solver_zoo.standard.csv")
    (there,) = rows.query("checkpoint == @NAME and solver == @solver and grid == 'time' and nfe == 5").rmse
    row = comparisons.rmse(RUN, checkpoint=NAME, solver=solver, grid="time", nfe=5, n=8, reference_calls=60)
    assert float(row["rmse"]) == pytest.approx(there, rel=0.25)
