"""The fit: equal to least squares, indifferent to batches, nothing lost at lambda = 0."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path

import pytest
import torch
from small import MIXTURE, network_file

import dode
from dode import schedules, solvers
from dode.distillation import (
    DISTILLERS,
    corrected,
    d_ode,
    directions,
    families,
    gits,
    ld3,
    make_teacher,
    record,
    target_states,
)  # fmt: skip
from dode.sampling import Step, initial_noise, sample, trajectory

GRID = schedules.karras(5, 0.02, 80.0, final="zero")  # lower, and the last difference of outputs is rounding
NOISE = initial_noise((3,), range(40), dtype=torch.float64)
SOLVERS = {
    "d-ddim": solvers.ddim(GRID),
    "d-ddim data": solvers.ddim(GRID, basis="data"),
    "d-edm": solvers.heun(GRID, basis="data"),
    "d-ipndm": solvers.ipndm(GRID),
}


def reference_fit(denoiser, table, noise, align="time", scale=10):
    """Equation 14 by torch.linalg.lstsq on whole trajectories, one row after another."""
    guide = make_teacher(table, "ddim", scale, align)
    truth = trajectory(denoiser, guide, noise)
    targets, along, lambdas = (
        target_states(table, guide, align),
        directions(table),
        torch.zeros(table.nfe, dtype=torch.float64),
    )
    for i in range(table.nfe):
        seen: list[Step] = []
        sample(denoiser, corrected(table, lambdas), noise, callback=seen.append)
        outputs = [noise if table.basis == "noise" else torch.zeros_like(noise), *(step.output for step in seen)]
        u = sum(float(w) * d for w, d in zip(along[i], outputs, strict=True)).reshape(-1, 1)
        plain = trajectory(denoiser, corrected(table, lambdas), noise)[i + 1]
        if u.any():
            lambdas[i] = torch.linalg.lstsq(u, (truth[targets[i]] - plain).reshape(-1, 1)).solution[0, 0]
    return lambdas


@pytest.mark.parametrize("align", ["time", "index"])
@pytest.mark.parametrize("table", SOLVERS.values(), ids=SOLVERS)
def test_lambda_is_the_least_squares_solution(table, align) -> None:
    fitted = torch.tensor(d_ode(MIXTURE, table, NOISE, align=align).metadata["lambdas"], dtype=torch.float64)
    torch.testing.assert_close(fitted, reference_fit(MIXTURE, table, NOISE, align), rtol=1e-10, atol=1e-10)
    assert fitted.abs().max() > 1e-3


@pytest.mark.parametrize("name", ("fashion-mnist-noise", "fashion-mnist-data"))
def test_one_batch_split_in_ten_gives_the_same_lambda(name, tmp_path) -> None:
    """On a network, whose lambdas are the least squares solution too."""
    model = dode.load(network_file(tmp_path, name), dtype=torch.float64)
    table = solvers.ddim(model.grid(3), basis=model.prediction)
    noise = initial_noise(model.shape, range(10), dtype=torch.float64)
    expected = reference_fit(model, table, noise, scale=3)
    for batches, options in ((noise, {}), (noise, dict(batch_size=1)), (iter(noise.split(1)), {})):
        found = d_ode(model, table, batches, scale=3, **options).metadata["lambdas"]
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("align", ["time", "index"])
def test_a_recorded_teacher_serves_every_solver_of_a_grid_and_no_other(align) -> None:
    grid = schedules.karras(4, 0.02, 20, final="zero")
    recording = record(MIXTURE, solvers.ddim(grid), NOISE, scale=3, align=align)
    for table in (solvers.ddim(grid), solvers.ipndm(grid), solvers.heun(grid)):
        shared = d_ode(MIXTURE, table, NOISE, teacher=recording, scale=3, align=align).metadata
        alone = d_ode(MIXTURE, table, NOISE, scale=3, align=align).metadata
        assert {k: shared[k] for k in shared} == {k: alone[k] for k in alone}
    with pytest.raises(ValueError, match="its own noise"):
        d_ode(MIXTURE, solvers.ddim(grid), NOISE.flip(0), teacher=recording, scale=3, align=align)
    with pytest.raises(ValueError, match="its own noise"):
        d_ode(MIXTURE, solvers.ddim(grid), NOISE, teacher=recording, scale=3, align=align, batch_size=5)
    finer = record(MIXTURE, solvers.ddim(schedules.karras(2, 0.02, 20, final="zero")), NOISE, scale=6)
    with pytest.raises(ValueError, match=r"missed by|other levels"):
        d_ode(MIXTURE, solvers.ddim(grid), NOISE, teacher=finer)


@pytest.mark.parametrize("table", SOLVERS.values(), ids=SOLVERS)
def test_lambda_zero_is_the_base_solver_bit_for_bit(table) -> None:
    plain = corrected(table, torch.zeros(table.nfe))
    assert torch.equal(plain.full, table.full)
    assert torch.equal(sample(MIXTURE, plain, NOISE), sample(MIXTURE, table, NOISE))


@pytest.mark.parametrize("table", SOLVERS.values(), ids=SOLVERS)
def test_a_distilled_solver_stays_consistent_and_nearer_to_its_teacher(table) -> None:
    learned = d_ode(MIXTURE, table, NOISE)
    assert learned.inconsistency() < 1e-11 and learned.nfe == table.nfe
    facts = learned.metadata
    assert all(after <= before + 1e-15 for before, after in zip(facts["plain_rmse"], facts["fit_rmse"], strict=True))
    rebuilt = trajectory(MIXTURE, learned, NOISE)
    teacher = make_teacher(table)
    truth = trajectory(MIXTURE, teacher, NOISE)[target_states(table, teacher, "time")]
    measured = (rebuilt[1:] - truth).square().mean(dim=(1, 2)).sqrt()
    torch.testing.assert_close(measured, torch.tensor(facts["fit_rmse"], dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_directions_are_equation_10() -> None:
    table = solvers.ddim(GRID)
    along, step = directions(table), table.row_sums
    for i in range(5):
        wanted = torch.zeros(6, dtype=torch.float64)
        wanted[i + 1], wanted[i] = step[i], -step[i]  # c (d_i - d_{i-1}), d_{-1} the starting noise
        torch.testing.assert_close(along[i], wanted)
    assert not directions(table, "none")[0].any() and not directions(solvers.ddim(GRID, basis="data"))[0].any()
    heun = directions(solvers.heun(GRID, basis="data"))
    assert heun.shape == (9, 10)
    # Heun without its correctors is DDIM
    undone = corrected(solvers.heun(GRID, basis="data"), [0.0, -1.0] * 4 + [0.0])
    torch.testing.assert_close(sample(MIXTURE, undone, NOISE), sample(MIXTURE, solvers.ddim(GRID), NOISE))


@pytest.mark.parametrize("first_step", ["noise", "none"])
@pytest.mark.parametrize("table", SOLVERS.values(), ids=SOLVERS)
def test_wider_formulations_fit_better_and_keep_what_they_promise(table, first_step) -> None:
    """Equation 10 is inside 9, and 9 inside 8: on the fitted batch the first step can only get nearer."""
    found = {e: d_ode(MIXTURE, table, NOISE, equation=e, first_step=first_step) for e in (10, 9, 8)}
    assert found[10].inconsistency() < 1e-10 and found[9].inconsistency() < 1e-9 and found[8].inconsistency() > 1e-4
    if first_step == "noise":
        row_0 = {e: learned.metadata["fit_rmse"][0] for e, learned in found.items()}
        assert row_0[9] == pytest.approx(row_0[10]) and row_0[8] <= row_0[9] * (1 + 1e-9)
    for e, learned in found.items():
        counts = [len(turn) for turn in families(table, e, first_step)]
        start = int(first_step == "noise")
        wanted = {9: [i + start for i in range(table.nfe)], 8: [i + 1 + start for i in range(table.nfe)]}
        assert counts == wanted.get(e, counts)
        again = corrected(table.to_basis(table.basis), learned.metadata["lambdas"], first_step, e)
        torch.testing.assert_close(again.full, learned.full)


def test_the_basis_says_which_estimates_are_corrected() -> None:
    model = dode.load("fashion-mnist-noise")
    table, noise = solvers.dpm_solver_pp(model.grid, nfe=3), initial_noise(model.shape, range(4))
    own = d_ode(model, table, noise, scale=2, basis="own")
    assert own.basis == "data" and d_ode(model, table, noise, scale=2).basis == "noise"
    assert own.metadata["lambdas"][0] == 0 and own.metadata["first_step"] == "none"
    torch.testing.assert_close(
        own.full, table.full + torch.tensor(own.metadata["lambdas"]).double()[:, None] * directions(table)
    )


def test_equation_8_with_one_output_is_a_scaled_step() -> None:
    """One row, no starting noise: the best multiple of the plain step, by hand."""
    table = solvers.ddim(torch.tensor([10.0, 2.0], dtype=torch.float64))
    learned = d_ode(MIXTURE, table, NOISE, equation=8, first_step="none")
    x = 10 * NOISE
    step = (2.0 - 10.0) * (x - MIXTURE(x, 10.0)) / 10
    move = trajectory(MIXTURE, make_teacher(table), NOISE)[-1] - x
    assert float(learned.weights[0, 0]) == pytest.approx(float((step * move).sum() / step.square().sum()) * -8.0)


def test_the_teacher_meets_the_student_as_published() -> None:
    grid = schedules.karras(10, 0.002, 80.0, final="zero")
    table = solvers.ddim(grid)
    for align, wanted in (
        ("time", grid[1:]),
        ("index", torch.tensor([45.0, 24.1, 12.1, 5.65, 2.40, 0.907, 0.292, 0.0756, 0.0141, 0])),
    ):
        guide = make_teacher(table, "ddim", 10, align)
        assert guide.nfe == 100
        met = guide.sigmas[target_states(table, guide, align)]
        torch.testing.assert_close(met, wanted.double(), rtol=5e-3, atol=1e-12)


def test_a_stage_and_its_corrector_share_a_target() -> None:
    table = solvers.heun(GRID)
    guide = make_teacher(table, solvers.heun, 4)
    targets = target_states(table, guide, "time")
    torch.testing.assert_close(guide.sigmas[targets], table.sigmas[1:])
    assert targets[0] == targets[1] == 8 and targets[-1] == guide.nfe


def test_the_cost_is_one_run_of_teacher_and_student() -> None:
    MIXTURE.reset()
    learned = d_ode(MIXTURE, SOLVERS["d-edm"], NOISE, batch_size=10)
    assert MIXTURE.evaluations == learned.metadata["network_evaluations"] == 40 * (9 + 50)


def test_what_cannot_be_fitted_is_refused_in_one_line() -> None:
    table, other = SOLVERS["d-ddim"], solvers.ddim(schedules.karras(7, 0.02, 80.0, final="zero"))
    for wrong, message in (
        (dict(teacher="euler"), "teacher must be"), (dict(equation=11), "equation must be"),
        (dict(teacher=other), "meets every student level"), (dict(teacher=other, align="index"), "multiple of 5"),
        (dict(batch_size=0), "batch_size must be"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message) as caught:
            d_ode(MIXTURE, table, NOISE, **wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no noise given"):
        d_ode(MIXTURE, table, iter(()))
    with pytest.raises(ValueError, match="5 lambdas"):
        corrected(table, [0.0])
    between = 0.5 * float(GRID[1] + GRID[2])  # only the teacher goes there
    hole = lambda x, sigma: x * float("nan") if abs(float(sigma) - between) < 3 else MIXTURE(x, sigma)  # noqa: E731
    with pytest.raises(FloatingPointError, match="to the teacher"):
        d_ode(hole, table, NOISE)
    with pytest.raises(FloatingPointError, match="row 0 at sigma = 80"):
        d_ode(lambda x, sigma: x * float("nan"), table, NOISE)


def test_a_method_that_writes_the_solver_anew_needs_it_as_a_function() -> None:
    """Or a table whose metadata say how it was made."""
    for make in (
        solvers.ddim,
        solvers.ipndm,
        partial(solvers.unipc, order=2),
        partial(solvers.dpm_solver_pp, afs=True),
    ):
        noise = NOISE[:8]
        told, found = (
            gits(MIXTURE, make, noise, nfe=4, points=12),
            gits(MIXTURE, make(MIXTURE.grid, nfe=4), noise, points=12),
        )
        assert told.metadata == found.metadata and torch.equal(told.full, found.full)
    with pytest.raises(ValueError, match="this table does not tell how; pass the solver as a function") as caught:
        ld3(MIXTURE, solvers.deis(GRID, variable="rho"), NOISE)
    assert str(caught.value).startswith("ld3 ")
    for wrong in (dict(solver=solvers.unipc), dict(solver=solvers.unipc(GRID), nfe=5)):
        with pytest.raises(ValueError, match="nfe= goes with a function"):
            ld3(MIXTURE, noise=NOISE, **wrong)
    with pytest.raises(TypeError, match="residual"):
        gits(MIXTURE, solvers.ipndm, NOISE, nfe=4, residual=lambda x: x)


def test_a_method_shows_what_it_takes_and_names_its_paper() -> None:
    shown = inspect.signature(ld3).parameters
    assert list(shown)[:7] == ["model", "solver", "noise", "nfe", "radius", "epochs", "rate"]
    assert "residual" in shown and "residual" not in inspect.signature(d_ode).parameters and "Problem" in ld3.__doc__
    references = (Path(__file__).parents[1] / "book/references.bib").read_text()
    assert all(f"{{{method.cite}," in references for method in DISTILLERS.values() if method.source)
