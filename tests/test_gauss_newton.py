"""Gauss-Newton: the space holds only solvers, the Jacobian is right, and the fit finds what is there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import MIXTURE
from torch import Tensor

from dode import schedules, solvers
from dode.denoisers import GaussianDenoiser
from dode.distillation import (
    DirectionSpace,
    GridSpace,
    Problem,
    Space,
    corrected,
    descend,
    families,
    gauss_newton,
    pixels,
    resampled,
)  # fmt: skip
from dode.distillation.descent import _Relaxed, gradient, jacobian
from dode.distillation.gauss_newton import _Equations
from dode.distillation.gits import cheapest_path, gits, gits_grid, step_costs
from dode.distillation.space import Kind
from dode.distillation.teachers import Examples
from dode.metrics import rmse
from dode.sampling import initial_noise, sample, trajectory
from dode.tableau import Tableau

ZERO, END = schedules.karras(4, 0.02, 20.0, final="zero"), schedules.karras(4, 0.02, 20.0)
TEACHER = solvers.deis(schedules.karras(60, 0.02, 20.0, final="zero"), variable="log_rho", basis="data")
NOISE = initial_noise((3,), range(60), dtype=torch.float64)
STARTS = {
    "ddim": solvers.ddim(ZERO),
    "ipndm": solvers.ipndm(ZERO),
    "3M": solvers.dpm_solver_pp(ZERO),
    "to sigma_min": solvers.dpm_solver_pp(END),
}


# --- the space ------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", STARTS.values(), ids=STARTS)
def test_there_and_back_is_the_same_table(table: Tableau) -> None:
    again = (space := Space(table)).table(space.pack(table))
    for name in ("sigmas", "sigmas_in", "full"):
        torch.testing.assert_close(getattr(again, name), getattr(table, name), rtol=1e-12, atol=1e-12)
    assert len(space.rows) == len(space.moves_only) == len(space.pack(table))


@settings(max_examples=30)
@given(st.sampled_from(list(STARTS)), st.booleans(), st.integers(0, 2**31), st.floats(0.01, 2.0))
def test_every_vector_is_a_consistent_solver(name: str, first: bool, seed: int, size: float) -> None:
    """Whose first level moves only if asked."""
    space = Space(STARTS[name], first_level=first)
    vector = space.pack(STARTS[name])
    assert space.kinds.count("level") == STARTS[name].nfe - 1 + first and len(space.kinds) == len(vector)
    vector += size * torch.randn(len(vector), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    table = space.table(vector)  # a Tableau checks its levels itself
    assert table.inconsistency() < 1e-9 and (table.sigmas[1:] < table.sigmas[:-1]).all()
    assert (table.sigmas[0] != STARTS[name].sigmas[0]) == first
    torch.testing.assert_close(table.sigmas[-1], STARTS[name].sigmas[-1])
    torch.testing.assert_close(space.pack(table), vector, rtol=1e-6, atol=1e-6)


def test_what_may_not_move_stays() -> None:
    table = STARTS["3M"]
    for fixed in ("weights", "levels", "levels_in"):
        space = Space(table, **{fixed: False})
        moved = space.table(space.pack(table) + 0.3)
        parts = lambda t: t.full / t.row_sums[:, None]  # noqa: E731
        same = {
            "weights": torch.allclose(parts(moved), parts(table)),
            "levels": torch.allclose(moved.sigmas, table.sigmas),
            "levels_in": torch.allclose(moved.sigmas_in / moved.sigmas[:-1], torch.ones(4, dtype=torch.float64)),
        }
        assert [name for name, value in same.items() if value] == [fixed]


def test_a_grid_space_writes_the_handcrafted_weights_anew() -> None:
    table = STARTS["3M"]
    space = GridSpace(table, make=solvers.dpm_solver_pp)
    torch.testing.assert_close(space.table(space.pack(table)).full, table.full)
    moved = space.table(space.pack(table) + 0.2)
    torch.testing.assert_close(moved.full, solvers.dpm_solver_pp(moved.sigmas).full)
    assert (moved.sigmas_in / moved.sigmas[:-1] - math.exp(0.2)).abs().max() < 1e-12
    assert set(space.kinds) == {"level", "level_in"}


@pytest.mark.parametrize("basis", ["noise", "data"])
@pytest.mark.parametrize("equation", [8, 9, 10])
@pytest.mark.parametrize("make", [solvers.ddim, solvers.heun, solvers.unipc])
def test_lambdas_are_a_space_of_any_table(make: Callable[..., Tableau], equation: int, basis: str) -> None:
    """One that repeats levels, or looks back to its first output, too."""
    table = make(ZERO).to_basis(basis)
    space = DirectionSpace(table, directions=families(table, equation))
    assert len(space.rows) == len(space.moves_only) == len(space.kinds) == len(space.pack(table))
    torch.testing.assert_close(space.table(torch.zeros(len(space.rows))).full, table.full)
    if equation == 10:
        lambdas = torch.tensor([0.0] * (basis == "data") + [0.3, -0.2, 0.5, 0.1, 0.7, -0.4, 0.2])[: table.nfe]
        moved = space.table(lambdas[-len(space.rows) :])
        torch.testing.assert_close(moved.full, corrected(table, lambdas).full)
        torch.testing.assert_close(space.pack(moved), lambdas[-len(space.rows) :].double())


def test_what_has_no_such_space_is_refused() -> None:
    with pytest.raises(ValueError, match="stays at a level"):
        Space(solvers.heun(ZERO))
    with pytest.raises(ValueError, match=r"row 3 uses output 0: widen window=3"):
        Space(solvers.ipndm(ZERO), window=3)


# every start with a bias, and one without
biased = pytest.mark.parametrize(("table", "bias"), [*((table, 3.0) for table in STARTS.values()), (STARTS["3M"], 0.0)])


def differences(function: Callable[[Tensor], Tensor], vector: Tensor) -> Tensor:
    """Central ones, of each number: ``(P, ...)``."""
    steps = 1e-5 * torch.eye(len(vector), dtype=torch.float64)
    return torch.stack([(function(vector + step) - function(vector - step)) / 2e-5 for step in steps])


# --- the fit --------------------------------------------------------------------------------------


@biased
@pytest.mark.parametrize("weight", [0.0, 0.7], ids=["end", "path"])
def test_the_normal_equations_are_those_of_the_error(
    table: Tableau, bias: float, weight: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: ``mean |r|^2 + bias |mean r|^2``, the means over all batches; ``r`` has the states on the way too."""
    monkeypatch.setitem(_Equations.normal.__globals__, "DIFFERENCE", 1e-5)
    residual = lambda x: x * torch.tensor([1.0, 2.0, -0.5])  # noqa: E731
    space = Space(table, first_level=True)
    examples = Examples.make(MIXTURE, NOISE[:8], TEACHER, residual, 0.25, bias, size=3)
    fit, vector = _Equations(MIXTURE, space, examples, 3, weight), space.pack(table) + 0.1
    exact = trajectory(MIXTURE, TEACHER, examples.noise)

    def missed(vector: Tensor) -> Tensor:
        made = space.table(vector)
        walk, levels = trajectory(MIXTURE, made, examples.noise), made.sigmas[1:-1].tolist()
        found = [residual(walk[-1] - exact[-1])]
        for x, level in zip(walk[1:-1], levels, strict=True):
            k = int((TEACHER.sigmas > level).sum())
            before, after = TEACHER.sigmas[k - 1 : k + 1].tolist()
            aim = exact[k - 1] + (before - level) / (before - after) * (exact[k] - exact[k - 1])
            found.append((weight / len(levels) / (1 + level**2)) ** 0.5 * pixels(x - aim))
        return torch.cat(found, 1)

    r, images = missed(vector), len(examples.noise)
    error = float(r.square().sum(1).mean() + bias * r.mean(0).square().sum())
    assert fit.cost(vector) == pytest.approx(error, rel=1e-9)
    of_end = examples.error(MIXTURE, space.table(vector), examples.noise, examples.goal)
    assert of_end == pytest.approx(error, rel=1e-9) if not weight else of_end < error
    j = differences(missed, vector)
    jj, jr = fit.normal(vector)
    wanted = torch.einsum("pbr,qbr->pq", j, j) / images + bias * j.mean(1) @ j.mean(1).T
    torch.testing.assert_close(jj, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
    slope = torch.einsum("pbr,br->p", j, r) / images + bias * j.mean(1) @ r.mean(0)
    torch.testing.assert_close(jr, slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))


def test_an_image_counts_no_more_than_the_limit() -> None:
    """One image that is hopeless leads the fit, unless it is bounded."""
    table, noise = STARTS["ipndm"], NOISE[:8]
    examples = replace(Examples.make(MIXTURE, noise, TEACHER, pixels, 0.25), limit=0.3)
    far = torch.tensor([[0.3, 0.4], [30.0, 40.0]])
    squares = examples.capped(far).square().sum(1).tolist()
    assert squares == pytest.approx([0.25 * 0.3 / (0.25 + 0.3), 0.3], rel=1e-3)
    assert torch.equal(replace(examples, limit=0.0).capped(far), far)
    e = pixels(sample(MIXTURE, table, examples.noise) - sample(MIXTURE, TEACHER, examples.noise)).square().sum(1)
    assert examples.with_limit(MIXTURE, table, 5.0).limit == pytest.approx(5 * float(e.median()))
    by_hand = (e * 0.3 / (e + 0.3)).mean()
    assert examples.error(MIXTURE, table, examples.noise, examples.goal) == pytest.approx(float(by_hand))

    goal = examples.goal.clone()
    goal[0] += 5.0
    fits = [replace(examples, goal=goal, limit=limit) for limit in (0.0, 0.3)]
    space = Space(table)
    slopes = [_Equations(MIXTURE, space, e, 4).normal(space.pack(table))[1] for e in (*fits, examples)]
    assert (slopes[1] - slopes[2]).norm() < 0.2 * (slopes[0] - slopes[2]).norm()


def test_one_call_is_enough_for_one_gaussian() -> None:
    """A linear ODE: x_N is linear in z, so a fitted row of one weight ends exactly at the teacher."""
    model = GaussianDenoiser(torch.zeros(3).double(), 0.7)
    learned = gauss_newton(model, solvers.ddim(ZERO[[0, -1]]), NOISE, teacher=TEACHER, steps=30, patience=6, limit=0)
    gap = rmse(sample(model, learned, NOISE), sample(model, TEACHER, NOISE))
    assert gap < 1e-4 < rmse(sample(model, solvers.ddim(ZERO[[0, -1]]), NOISE), sample(model, TEACHER, NOISE))


@pytest.mark.parametrize("name", ["ddim", "ipndm", "3M"])
def test_the_end_is_nearer_on_seeds_that_no_fit_saw(name: str, tmp_path) -> None:
    table = STARTS[name]
    learned = gauss_newton(MIXTURE, table, NOISE, teacher=TEACHER, seeds=range(60))
    other = initial_noise((3,), range(1000, 1200), dtype=torch.float64)
    truth = sample(MIXTURE, TEACHER, other)
    assert rmse(sample(MIXTURE, learned, other), truth) < 0.5 * rmse(sample(MIXTURE, table, other), truth)
    assert learned.nfe == table.nfe and learned.metadata["cost"][0] > min(learned.metadata["cost"])
    again = Tableau.load(learned.save(tmp_path / "learned.safetensors"))
    assert torch.equal(sample(MIXTURE, again, other), sample(MIXTURE, learned, other))


# --- descent --------------------------------------------------------------------------------------

SPACES = {
    "all": Space(STARTS["3M"], first_level=True),
    "noise basis": Space(STARTS["ipndm"]),
    "grid": GridSpace(STARTS["to sigma_min"], make=solvers.dpm_solver_pp),
}


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_gradient_is_that_of_the_sampler(space: Space) -> None:
    """Against central differences of :func:`dode.sample`, which walks without gradients."""
    vector = space.pack(space.base) + 0.05
    loss = lambda x: (x * torch.arange(1, 4)).sum()  # noqa: E731
    value, slope = gradient(MIXTURE, space, vector, NOISE[:4], loss)
    here = lambda v: loss(sample(MIXTURE, space.table(v), NOISE[:4]))  # noqa: E731
    assert value == pytest.approx(float(here(vector)), rel=1e-9)
    expected = differences(here, vector)
    torch.testing.assert_close(slope, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert jacobian(space, vector).shape[0] == len(vector)


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [("weight",), ("level", "level_in")])
def test_descent_comes_nearer_and_moves_only_what_it_may(kinds: tuple[Kind, ...]) -> None:
    table = STARTS["3M"]
    space = Space(table)
    problem = Problem(MIXTURE, table, NOISE, teacher=TEACHER)
    learned = descend(problem, space, phases=[kinds], epochs=8, rate=0.05)
    other = initial_noise((3,), range(1000, 1200), dtype=torch.float64)
    truth = sample(MIXTURE, TEACHER, other)
    assert rmse(sample(MIXTURE, learned, other), truth) < 0.92 * rmse(sample(MIXTURE, table, other), truth)
    changed = (space.pack(learned) - space.pack(table)).abs() > 1e-9
    assert {kind for kind, c in zip(space.kinds, changed, strict=True) if c} == set(kinds)
    if kinds == ("weight",):
        torch.testing.assert_close(
            descend(problem, space, phases=[kinds], epochs=8, rate=0.05).full, learned.full
        )  # no chance in it


def test_descent_counts_a_backward_pass_as_two_calls_and_never_ends_behind_its_start() -> None:
    MIXTURE.reset()
    table = STARTS["3M"]
    found = descend(Problem(MIXTURE, table, NOISE[:8], teacher=TEACHER), Space(table), epochs=1, rate=1.5)
    assert found.metadata["network_evaluations"] == MIXTURE.evaluations + 2 * 4 * 6
    assert found.metadata["cost"][1] > found.metadata["cost"][0] and torch.equal(found.full, table.full)


def test_a_relaxed_start_stays_in_its_ball() -> None:
    relaxed = _Relaxed(NOISE[:4].clone(), 0.1)
    pick = torch.arange(4)
    for _ in range(20):
        relaxed.follow(pick, torch.ones(4, 3, dtype=torch.float64))
    torch.testing.assert_close(relaxed.shift.norm(dim=1), torch.full((4,), 0.1 * math.sqrt(3), dtype=torch.float64))
    assert relaxed.start(pick).requires_grad and not _Relaxed(NOISE, 0.0).start(pick).requires_grad


# --- grids ----------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.integers(2, 7), st.data(), st.sampled_from([1.0, 1.15, 2.0]), st.integers(0, 2**31))
def test_no_other_path_is_cheaper(last: int, data: st.DataObject, growth: float, seed: int) -> None:
    steps = data.draw(st.integers(1, last))
    costs = torch.rand(last + 1, last + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)

    def total(path: tuple[int, ...]) -> float:
        return sum(float(costs[i, j]) * growth**k for k, (i, j) in enumerate(pairwise(path)))

    found = tuple(cheapest_path(costs, steps, growth))
    every = [(0, *inner, last) for inner in combinations(range(1, last), steps - 1)]
    assert found in every and total(found) == pytest.approx(min(map(total, every)))


@pytest.mark.parametrize("cost", ["l1", "l2", "dev"])
@pytest.mark.parametrize("teacher", ["ddim", "ipndm"])
def test_a_steps_cost_is_what_eulers_method_misses_by(cost, teacher) -> None:
    fine = schedules.karras(6, 0.02, 20.0)
    costs, last = step_costs(MIXTURE, fine, NOISE[:5], cost, teacher)
    states = trajectory(MIXTURE, solvers.get(teacher).make(fine), NOISE[:5])
    torch.testing.assert_close(last, states[-1])
    line = (last - states[0]) / (last - states[0]).norm(dim=1, keepdim=True)
    off = lambda x: ((last - x) - ((last - x) * line).sum(1, keepdim=True) * line).norm(dim=1)  # noqa: E731
    for i, j in ((0, 1), (1, 4), (2, 6), (0, 6)):
        slope = (states[i] - MIXTURE(states[i], fine[i])) / fine[i]
        x = states[i] + (fine[j] - fine[i]) * slope
        missed = dict(l1=(x - states[j]).abs().sum(1), l2=(x - states[j]).norm(dim=1), dev=off(x) - off(states[j]))
        assert float(costs[i, j]) == pytest.approx(float(missed[cost].mean()), rel=1e-6, abs=1e-9)
    assert not costs.tril().any()


def test_a_found_grid_serves_ddim_better_than_the_usual_one() -> None:
    chosen = gits_grid(MIXTURE, NOISE, points=40)
    grid, usual = chosen(4), MIXTURE.grid(4, final="sigma_min")
    assert torch.equal(grid[[0, -1]], usual[[0, -1]]) and (grid[1:] < grid[:-1]).all() and len(grid) == 5
    other = initial_noise((3,), range(1000, 1200), dtype=torch.float64)
    truth = sample(MIXTURE, solvers.ddim(MIXTURE.grid(200)), other)
    gap = lambda g: rmse(sample(MIXTURE, solvers.ddim(g), other), truth)  # noqa: E731
    assert gap(grid) < gap(usual)
    with pytest.raises(ValueError, match="40 fine steps has no path of 41"):
        chosen(41)


def test_an_analytical_first_step_gets_a_level_of_its_own() -> None:
    plain = gits(MIXTURE, solvers.ddim, NOISE, nfe=3, points=20)
    found = gits(MIXTURE, solvers.ddim(MIXTURE.grid(4, final="sigma_min"), afs=True), NOISE, points=20)
    assert found.nfe == 3 and torch.equal(found.sigmas[1:], plain.sigmas[1:])
    assert plain.sigmas[1] < found.sigmas[0] < plain.sigmas[0]
    last = sample(MIXTURE, solvers.ipndm(MIXTURE.grid(20, final="sigma_min")), NOISE)
    far = lambda t: float((sample(MIXTURE, t, NOISE) - last).norm(dim=1).mean())  # noqa: E731
    fine = MIXTURE.grid(20, final="sigma_min")
    between = [level for level in fine[1:] if level > plain.sigmas[1]]
    grids = [torch.cat([fine[:1], level[None], plain.sigmas[1:]]) for level in between]
    assert far(found) == pytest.approx(min(far(solvers.ddim(grid, afs=True)) for grid in grids))


# --- another number of calls ------------------------------------------------------------------------


@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("table", STARTS.values(), ids=STARTS)
def test_a_table_read_at_another_number_of_calls_is_a_solver(table: Tableau, nfe: int) -> None:
    found = resampled(replace(table, sigmas_in=0.9 * table.sigmas[:-1]), nfe)
    assert found.nfe == nfe == found.metadata["nfe"] and found.inconsistency() < 1e-12
    assert (found.sigmas.diff() < 0).all() and found.sigmas[[0, -1]].tolist() == pytest.approx(
        table.sigmas[[0, -1]].tolist()
    )
    torch.testing.assert_close(found.sigmas_in, 0.9 * found.sigmas[:-1])
    assert Space(found).table(Space(found).pack(found)).nfe == nfe


def test_read_on_a_finer_grid_a_solver_keeps_what_it_is() -> None:
    """DDIM stays DDIM, on levels between its own."""
    found = resampled(STARTS["ddim"], 7)
    torch.testing.assert_close(found.full, solvers.ddim(found.sigmas).full, rtol=1e-9, atol=1e-12)
    assert found.sigmas[::2][:4].tolist() == pytest.approx(ZERO[:4].tolist())


def test_nothing_is_read_on_that_has_no_smooth_grid() -> None:
    with pytest.raises(ValueError, match="one call or more, got 0"):
        resampled(STARTS["ddim"], 0)
    with pytest.raises(ValueError, match="corrector"):
        resampled(solvers.heun(ZERO), 3)
