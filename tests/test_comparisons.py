"""The comparisons behind the pages "The solver zoo" and "Where distilled solvers lose"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import dode
from dode import distillation, experiments, solvers
from dode.experiments import greedy, learned, paths, plans, quality
from dode.experiments.run import GRIDS, grid_function, on_grid
from dode.experiments.variants import OWN
from dode.metrics import rmse

ROOT = Path(__file__).parents[1]
NAME = "fashion-mnist-data"
NOISE = "fashion-mnist-noise"
RUN = experiments.Run(experiments.preset("smoke"))
FEW = experiments.Run(replace(RUN.preset, fit_images=4))


def test_cells_name_no_impossible_and_no_double_one() -> None:
    model, cells = dode.load(NAME), quality.rmse_cells(replace(RUN.preset, zoo_nfes=(3, 8, 9)), NAME)
    heun = [cell["nfe"] for cell in cells if cell["solver"] == "Heun" and cell["grid"] == "Karras"]
    assert heun == [3, 7, 9] and len({tuple(cell.values()) for cell in cells}) == len(cells)
    for cell in cells:
        grid = grid_function(cell["grid"], model)
        table = on_grid(quality.ENTRIES[cell["solver"]], grid, cell["nfe"])
        assert table.nfe == cell["nfe"] and table.sigmas[-1] == 0 and table.inconsistency() < 1e-10


def test_a_row_is_the_distance_to_the_kept_reference(project: Path) -> None:
    row = quality.rmse(RUN, checkpoint=NAME, solver="UniPC-3", grid="time", nfe=5, n=2, reference_calls=20)
    folder = project / "_build" / "references"
    (file,) = folder.glob("*.safetensors")
    truth = RUN.reference_images(NAME, 2, 20).clone()  # the file is mapped, and is cut short below
    model = dode.load(NAME)
    noise = dode.initial_noise(model.shape, experiments.held_out_seeds(2))
    images = dode.sample(model, solvers.unipc(grid_function("time", model), nfe=5), noise)
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
    row = quality.rmse(RUN, checkpoint=NAME, solver=solver, grid="time", nfe=5, n=8, reference_calls=60)
    assert float(row["rmse"]) == pytest.approx(there, rel=0.25)


# --- on the way of a distilled solver -------------------------------------------------------------


def row_of(checkpoint: str, solver: str, variant: str, nfe: int) -> dict[str, str]:
    cell = dict(checkpoint=checkpoint, solver=solver, variant=variant, nfe=nfe)
    return greedy.greedy_error(FEW, **cell, n=2, reference_calls=20)


@pytest.mark.slow
@pytest.mark.parametrize("name, solver, nfe", [(NAME, "ddim", 3), (NOISE, "unipc", 4), (NAME, "heun", 3)])
def test_a_row_is_what_a_fit_and_two_long_runs_give(project: Path, name: str, solver: str, nfe: int) -> None:
    row = row_of(name, solver, "d-ode", nfe)
    model = dode.load(name)
    noise = dode.initial_noise(model.shape, range(1_000_000, 1_000_002))
    plain = solvers.get(solver).make(model.grid, nfe=nfe)
    learned = dode.distillation.d_ode(model, plain, dode.initial_noise(model.shape, range(4)))
    images, teacher = (dode.sample(model, t, noise) for t in (learned, distillation.make_teacher(plain)))
    truth = FEW.reference_images(name, 2, 20)
    close = lambda value: pytest.approx(value, rel=1e-3, abs=2e-5)  # noqa: E731
    assert float(row["rmse"]) == close(rmse(images, truth)) and float(row["rmse"]) > 0.01
    assert float(row["rmse_teacher"]) == close(rmse(images, teacher))
    assert float(row["teacher_rmse"]) == close(rmse(teacher, truth))
    assert experiments.numbers(row["lambdas"]) == close(learned.metadata["lambdas"])
    assert experiments.numbers(row["path"])[-1] == close(float(row["rmse_teacher"])) and learned.sigmas[-1] == 0
    assert experiments.numbers(row["levels"]) == close(learned.sigmas.tolist())
    assert len(experiments.numbers(row["path"])) == len(experiments.numbers(row["fit_rmse"])) == nfe
    assert row["seeds"] == "1000000-1000001" and row["fit_seeds"] == "0-3"


@pytest.mark.slow
def test_fitted_at_once_the_last_image_is_nearer_to_the_teachers_than_step_by_step(project: Path) -> None:
    """On the fit's own seeds, in the mean of squares that both make small; and its lambdas give the solver again."""
    found = {
        v: greedy.causes(FEW, checkpoint=NOISE, solver="ddim", variant=v, nfe=3) for v in ("plain", "d-ode", "joint")
    }
    plain, steps, joint = (float(row["teacher_fitted_rms"]) for row in found.values())
    assert joint < steps - 1e-4 < plain
    model = dode.load(NOISE)
    table = experiments.base_solver("ddim", model, 3)
    again = distillation.corrected(table, experiments.numbers(found["joint"]["lambdas"]))
    made = experiments.variant_of(FEW, NOISE, "ddim", "joint", 3)
    torch.testing.assert_close(again.full, made.full, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_path_is_measured_level_by_level_in_unit_variance(project: Path) -> None:
    model, n = dode.load(NOISE), 2
    plain = solvers.heun(model.grid, nfe=5)  # states twice at a level: predictor and corrector
    path = experiments.numbers(greedy.distances(FEW, NOISE, plain, n, 20)["path"])
    guide = distillation.make_teacher(plain)
    noise = dode.initial_noise(model.shape, experiments.held_out_seeds(n))
    states, aims = (dode.trajectory(model, table, noise) for table in (plain, guide))
    for i, sigma in enumerate(plain.sigmas[1:].tolist()):
        aim = aims[guide.sigmas.tolist().index(sigma)]
        assert path[i] == pytest.approx(rmse(states[i + 1], aim) / (1 + sigma**2) ** 0.5, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("solver, nfe", [("ddim", 10), ("heun", 9)])
def test_a_run_is_compared_with_the_reference_where_their_levels_meet(project: Path, solver: str, nfe: int) -> None:
    """The last state after Heun's corrector; norms, distances and pixels are of the states that a run gives."""
    row = paths.path(FEW, checkpoint=NAME, solver=solver, variant="plain", nfe=nfe, n=2)
    model = dode.load(NAME)
    table = solvers.get(solver).make(model.grid, nfe=nfe)
    noise = dode.initial_noise(model.shape, range(1_000_000, 1_000_002))
    steps = len(table.levels) - 1
    guide = distillation.make_teacher(
        table, lambda s: solvers.dpm_solver_pp(s, order=2), FEW.preset.reference_steps // steps
    )
    states, aims = dode.trajectory(model, table, noise), dode.trajectory(model, guide, noise)
    expected = {"ddim": range(11), "heun": (0, 2, 4, 6, 8, 9)}[solver]  # Heun's last step is Euler's
    assert experiments.numbers(row["calls"]) == list(expected)
    assert len(experiments.numbers(row["norms"])) == steps + 1
    assert float(row["rmse_end"]) == pytest.approx(rmse(states[-1], aims[-1]), rel=1e-3)
    size = lambda x: float(x.flatten(1).norm(dim=1).mean())  # noqa: E731
    assert float(row["norm_ratio_end"]) == pytest.approx(size(states[-1]) / size(aims[-1]), rel=1e-3)
    assert experiments.numbers(row["pixel_0_mean"])[-1] == pytest.approx(
        float(states[-1][:, 0, 14, 14].mean()), abs=1e-4
    )
    assert experiments.numbers(row["pixel_1_reference"])[-1] == pytest.approx(float(aims[-1][0, 0, 9, 19]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("solver, variant", [("ddim", "d-ode:grid=best"), ("heun", "plain:grid=best")])
def test_a_variant_is_measured_on_the_grid_that_suits_it(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, solver: str, variant: str
) -> None:
    monkeypatch.setenv("DODE_RESULTS", str(tmp_path))
    small = experiments.Run(replace(FEW.preset, images=16))
    row = experiments.fidelity(small, checkpoint=NAME, solver=solver, variant=variant, nfe=3, block=0)
    chosen = learned.grid_distance.sweep(small.preset).rows
    assert {r["grid"] for r in chosen} == set(GRIDS) and {r["variant"] for r in chosen} == {variant.split(":")[0]}
    assert row["grid"] == min(chosen, key=lambda r: float(r["fd_reference"]))["grid"]
    table = experiments.variant_of(small, NAME, solver, variant.split(":")[0], 3, grid=row["grid"])
    assert table.nfe == 3 and (solver == "heun" or table.sigmas[-2] > 1.5 * dode.load(NAME).sigma_min)
    by_hand = learned.frechet_distances(small, NAME, table, experiments.held_out_seeds(16))
    assert float(row["fd"]) == pytest.approx(by_hand["fd_data"], rel=1e-4)
    assert float(row["fd_reference"]) == pytest.approx(by_hand["fd_reference"], rel=1e-4) and float(row["rmse"]) > 0


def test_the_authors_levels_can_be_had_without_their_fit() -> None:
    found = experiments.variant_of(FEW, NOISE, "ddim", "plain:align=released", 5)
    chain = dode.load(NOISE).schedule
    assert torch.equal(found.sigmas, torch.cat([chain.sigmas[[800, 600, 400, 200, 0]], torch.zeros(1).double()]))
    assert torch.equal(found.full, dode.solvers.ddim(found.sigmas).full)


def test_the_reference_solver_of_rows_is_the_fits_own_teacher() -> None:
    found = experiments.base_solver(plans.REFERENCE, dode.load(NAME), 12)
    expected = distillation.default_teacher(dode.load(NAME), 12)
    assert torch.equal(found.full, expected.full) and torch.equal(found.sigmas, expected.sigmas)


def test_a_plain_row_has_no_fit_and_keeps_its_distances(project: Path) -> None:
    row = row_of(NAME, "ddim", "plain", 3)
    table = experiments.base_solver("ddim", dode.load(NAME), 3)
    assert row["lambdas"] == row["fit_rmse"] == row["plain_rmse"] == row["fit_seeds"] == ""
    assert experiments.numbers(row["lambdas"]) == []
    assert row["rmse"] == f"{greedy.distances(FEW, NAME, table, 2, 20)['rmse']:.5f}"


@pytest.mark.slow
def test_cells_can_be_made_and_no_two_are_one() -> None:
    cells = greedy.greedy_error_cells([NOISE, NAME], ("ddim", "heun", "unipc"), (5, 10), 4, 50)
    assert len({tuple(c.values()) for c in cells}) == len(cells)
    assert {c["nfe"] for c in cells if c["solver"] == "heun"} == {5, 9}
    assert {(c["checkpoint"], c["solver"]) for c in cells if c["variant"] == OWN} == {(NOISE, "unipc")}
    for c in cells:
        assert experiments.base_solver(c["solver"], dode.load(c["checkpoint"]), c["nfe"]).nfe == c["nfe"]
