"""The measurements behind the page "Where distilled solvers lose"."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import dode
from dode import distillation, experiments, solvers
from dode.experiments import greedy_error
from dode.experiments.quality import OWN
from dode.metrics import rmse

NOISE, DATA = "fashion-mnist-noise", "fashion-mnist-data"
P = replace(experiments.preset("smoke"), fit_images=4)
RUN = experiments.Run(P)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, so that references land there."""
    (tmp_path / "_toc.yml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def row_of(checkpoint: str, solver: str, variant: str, nfe: int) -> dict[str, str]:
    cell = dict(checkpoint=checkpoint, solver=solver, variant=variant, nfe=nfe)
    return greedy_error.greedy_error(RUN, **cell, n=2, reference_calls=20)


@pytest.mark.slow
@pytest.mark.parametrize("name, solver, nfe", [(DATA, "ddim", 3), (NOISE, "unipc", 4), (DATA, "heun", 3)])
def test_a_row_is_what_a_fit_and_two_long_runs_give(project: Path, name: str, solver: str, nfe: int) -> None:
    row = row_of(name, solver, "d-ode", nfe)
    model = dode.load(name)
    noise = dode.initial_noise(model.shape, range(1_000_000, 1_000_002))
    plain = solvers.get(solver).make(model.grid, nfe=nfe)
    learned = dode.distillation.d_ode(model, plain, dode.initial_noise(model.shape, range(P.fit_images)))
    images, teacher = (dode.sample(model, t, noise) for t in (learned, distillation.make_teacher(plain)))
    truth = RUN.reference_images(name, 2, 20)
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
def test_the_path_is_measured_level_by_level_in_unit_variance(project: Path) -> None:
    model, n = dode.load(NOISE), 2
    plain = solvers.heun(model.grid, nfe=5)  # states twice at a level: predictor and corrector
    path = experiments.numbers(greedy_error.distances(RUN, NOISE, plain, n, 20)["path"])
    guide = distillation.make_teacher(plain)
    noise = dode.initial_noise(model.shape, experiments.held_out_seeds(n))
    states, aims = (dode.trajectory(model, table, noise) for table in (plain, guide))
    for i, sigma in enumerate(plain.sigmas[1:].tolist()):
        aim = aims[guide.sigmas.tolist().index(sigma)]
        assert path[i] == pytest.approx(rmse(states[i + 1], aim) / (1 + sigma**2) ** 0.5, rel=1e-3)


def test_a_plain_row_has_no_fit_and_keeps_its_distances(project: Path) -> None:
    row = row_of(DATA, "ddim", "plain", 3)
    table = experiments.base_solver("ddim", dode.load(DATA), 3)
    assert row["lambdas"] == row["fit_rmse"] == row["plain_rmse"] == row["fit_seeds"] == ""
    assert experiments.numbers(row["lambdas"]) == []
    assert row["rmse"] == f"{greedy_error.distances(RUN, DATA, table, 2, 20)['rmse']:.5f}"


@pytest.mark.slow
def test_cells_can_be_made_and_no_two_are_one() -> None:
    cells = greedy_error.greedy_error_cells([NOISE, DATA], ("ddim", "heun", "unipc"), (5, 10), 4, 50)
    assert len({tuple(c.values()) for c in cells}) == len(cells)
    assert {c["nfe"] for c in cells if c["solver"] == "heun"} == {5, 9}
    assert {(c["checkpoint"], c["solver"]) for c in cells if c["variant"] == OWN} == {(NOISE, "unipc")}
    for c in cells:
        assert experiments.base_solver(c["solver"], dode.load(c["checkpoint"]), c["nfe"]).nfe == c["nfe"]
