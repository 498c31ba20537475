"""The solvers: their algebra, their tables, their orders, and the options that all of them share."""

from __future__ import annotations

import math
import re
from functools import partial
from itertools import accumulate, pairwise
from operator import mul
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import refused

import dode
from dode import schedules, solvers
from dode.denoisers import GaussianDenoiser, MixtureDenoiser
from dode.experiments import orders
from dode.sampling import initial_noise, sample, trajectory
from dode.solvers.quadrature import gauss
from dode.tableau import Tableau

MEANS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
MIXTURE = MixtureDenoiser(MEANS, torch.tensor([0.3, 0.5, 0.8]))
GAUSSIAN = GaussianDenoiser(torch.full((4,), 0.5, dtype=torch.float64), 0.5)
NOISE = initial_noise((4,), range(8), dtype=torch.float64)
VP = schedules.VPContinuous()

# every solver at every order, and the options that change its formula
ALL = {
    f"{name}-{order}": (name, dict(order=order) if len(facts.orders) > 1 else {})
    for name, facts in solvers.SOLVERS.items()
    for order in facts.orders
} | {
    "ddim data": ("ddim", dict(basis="data")),
    "heun data": ("heun", dict(basis="data")),
    "deis rho": ("deis", dict(order=3, variable="rho")),
    "deis log_rho": ("deis", dict(order=3, variable="log_rho")),
    "deis data": ("deis", dict(order=3, variable="log_rho", basis="data")),
    "deis cosine": ("deis", dict(order=4, schedule=schedules.cosine())),
    "2M heun": ("dpm_solver_pp", dict(order=2, solver_type="heun")),
    "3S heun": ("dpm_solver_pp_singlestep", dict(order=3, solver_type="heun")),
    "dpm-solver-3 grid": ("dpm_solver", dict(order=3, inner="grid")),
    "unipc bh1": ("unipc", dict(order=2, variant="bh1")),
    "unipc noise": ("unipc", dict(order=3, basis="noise")),
    "unip": ("unipc", dict(order=3, corrector=False)),
    "3M to the end": ("dpm_solver_pp", dict(order=3, lower_order_final=False)),
    "iPNDM, easing off": ("ipndm", dict(order=4, lower_order_final=True)),
    "plms": ("pndm", dict(warm_up="none")),
    "prk": ("pndm", dict(warm_up="runge_kutta")),
}
EVERY = pytest.mark.parametrize(("name", "options"), ALL.values(), ids=ALL)
ends = st.sampled_from(["zero", "sigma_min"])
smooth = st.builds(
    schedules.karras, st.integers(5, 12), st.floats(0.01, 0.5), st.floats(1.0, 150.0), st.floats(1.0, 9.0), ends
)
rough = st.builds(  # steps of any size, one after the other
    lambda top, ratios: torch.tensor([top, *(top * r for r in accumulate(ratios, mul))]).double(),
    st.floats(1.0, 150.0),
    st.lists(st.floats(0.2, 0.9), min_size=5, max_size=10),
)
grids = smooth | rough | rough.map(lambda grid: torch.cat([grid, torch.zeros(1).double()]))


def make(name: str, grid, **options):
    return solvers.SOLVERS[name].make(grid, **options)


# --- algebra -------------------------------------------------------------------------------------


@EVERY
@given(grid=grids)
@settings(max_examples=5)
def test_every_table_is_consistent_makes_the_calls_it_says_and_has_a_twin(name, options, grid) -> None:
    table, facts = make(name, grid, **options), solvers.SOLVERS[name]
    assert table.inconsistency() < 1e-12
    constant = torch.full((4,), 0.7, dtype=torch.float64)
    if grid[-1] == 0:  # an image that does not depend on the noise is reached exactly
        image = sample(lambda x, sigma: constant.expand_as(x), table, NOISE)
        torch.testing.assert_close(image, constant.expand_as(NOISE), rtol=0, atol=1e-9)
    assert table.nfe == facts.calls(len(grid) - 1, bool(grid[-1] == 0), options)
    assert table.basis == options.get("basis", facts.basis)
    assert table.sigmas[0] == grid[0] and table.sigmas[-1] == grid[-1]
    assert table.metadata["source"] == facts.source
    assert table.metadata["order"] == options.get("order", facts.orders[-1])
    other = table.to_basis("data" if table.basis == "noise" else "noise")
    assert other.inconsistency() < 1e-9
    states, twins = (trajectory(MIXTURE, t, NOISE) for t in (table, other))
    torch.testing.assert_close(twins, states, rtol=1e-7, atol=1e-7)


@given(grid=grids)
@settings(max_examples=10)
def test_one_table_under_many_names(grid) -> None:
    same = lambda a, b: torch.testing.assert_close(a.full, b.full, rtol=1e-10, atol=1e-12)  # noqa: E731
    for basis in ("noise", "data"):
        euler = solvers.ddim(grid, basis=basis)
        same(euler, solvers.unipc(grid, order=1, corrector=False, basis=basis))
    euler = solvers.ddim(grid)
    for name in ("ipndm", "lms", "ipndm_v", "deis", "dpm_solver", "dpm_solver_multistep"):
        same(euler, make(name, grid, order=1))
    for name in ("dpm_solver_pp", "dpm_solver_pp_singlestep"):
        same(euler.to_basis("data"), make(name, grid, order=1))
    for order in (2, 3, 4):
        same(solvers.lms(grid, order=order), solvers.deis(grid, order=order, variable="rho"))
        same(solvers.lms(grid, order=order), solvers.ipndm_v(grid, order=order))
    same(solvers.ipndm(grid), solvers.pndm(grid, warm_up="none"))
    outer = grid[grid > 0]
    fine = torch.cat([outer[:1], *(torch.stack([(a * b).sqrt(), b]) for a, b in pairwise(outer))])
    same(solvers.dpm_2(outer), solvers.dpm_solver(fine, order=2))
    unip = lambda order, **kw: solvers.unipc(grid, order=order, corrector=False, lower_order_final=False, **kw)  # noqa: E731
    same(unip(2), solvers.dpm_solver_pp(grid, order=2, lower_order_final=False))
    same(unip(2, basis="noise"), solvers.dpm_solver_multistep(grid, order=2, lower_order_final=False))
    for basis in ("noise", "data"):  # above order 2 UniP is the exact exponential integrator, whatever B(h)
        exact = solvers.deis(grid, order=3, variable="log_rho", basis=basis)
        for i in range(2, len(grid) - 1 - (grid[-1] == 0).int()):
            for variant in ("bh1", "bh2"):
                weights = unip(3, basis=basis, variant=variant).weights[i]
                torch.testing.assert_close(weights, exact.weights[i], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("schedule", [schedules.vp_linear(), schedules.cosine(), VP], ids=["linear", "cosine", "sde"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_tab_weights_integrate_powers_of_time(schedule, order) -> None:
    """Independent of the panels: the integral by parts, ``[q sigma] - int sigma(t) q'(t) dt``, on a fine grid."""
    grid = schedules.time_uniform(6, 0.05, 80.0, schedule)
    time = schedule.label(grid) / 999
    weights = solvers.deis(grid, order=order, schedule=schedule).weights
    for i in range(order - 1, 6):
        a, b = float(time[i]), float(time[i + 1])
        for k in range(1, order):
            t = torch.linspace(a, b, 200_001, dtype=torch.float64)
            inner = float(torch.trapezoid(schedule.sigma(999 * t) * k * t ** (k - 1), t))
            exact = b**k * float(grid[i + 1]) - a**k * float(grid[i]) - inner
            assert float(weights[i] @ time[:-1] ** k) == pytest.approx(exact, rel=1e-6), (i, k)


def test_panels_do_not_change_an_integral() -> None:
    x, w = gauss(5.0, 1.0)
    y, v = gauss(5.0, 1.0, [0.5, 1.5, 3.0, 7.0])
    assert len(y) == 3 * len(x)
    assert float(w @ x**3) == pytest.approx(float(v @ y**3), rel=1e-14) == pytest.approx((1 - 625) / 4, rel=1e-14)


def test_lower_order_final_eases_to_euler() -> None:
    grid = schedules.karras(6, 0.1, 50.0)
    for name in ("ipndm", "lms", "deis", "dpm_solver_pp", "dpm_solver_multistep"):
        used = (make(name, grid, order=3, lower_order_final=True).weights != 0).sum(1).tolist()
        assert used == [1, 2, 3, 3, 2, 1], name
        assert (make(name, grid, order=3, lower_order_final=False).weights != 0).sum(1).tolist() == [1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize(
    ("nfe", "order", "zero", "parts"),
    [
        (3, 3, False, [2, 1]), (9, 3, False, [3, 3, 2, 1]), (10, 3, False, [3, 3, 3, 1]), (11, 3, False, [3, 3, 3, 2]),
        (11, 3, True, [3, 3, 3, 1, 1]), (10, 2, False, [2] * 5), (10, 2, True, [2] * 4 + [1, 1]), (4, 1, True, [1] * 4),
    ],
)  # fmt: skip
def test_singlestep_splits_an_nfe_as_the_paper_does(nfe, order, zero, parts) -> None:
    assert solvers.split(nfe, order, zero) == parts and sum(parts) == nfe


# --- the table itself ---------------------------------------------------------------------------


def test_the_starting_noise_changes_basis_with_the_rest() -> None:
    table = solvers.ddim(schedules.karras(4, 0.1, 10.0))
    full = table.full
    full[0, 0], full[0, 1] = full[0, 1] / 3, full[0, 1] * 2 / 3
    table = table.with_full(full)
    assert table.inconsistency() < 1e-12
    torch.testing.assert_close(sample(MIXTURE, table.to_basis("data"), NOISE), sample(MIXTURE, table, NOISE))
    torch.testing.assert_close(table.to_basis("data").to_basis("noise").full, table.full)


def test_files_keep_every_bit_and_all_metadata(tmp_path: Path) -> None:
    table = solvers.ipndm(schedules.karras(7, 0.01, 80.0))
    table = table.with_full(table.full, model="m", seeds=[1, 2], lambdas=[0.1])
    again = Tableau.load(table.save(tmp_path / "t.safetensors"))
    for name in ("sigmas", "sigmas_in", "weights", "noise_weights"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    assert again.basis == table.basis and again.metadata == table.metadata


def test_a_digest_is_of_the_numbers_alone(tmp_path: Path) -> None:
    table = solvers.ddim(schedules.karras(4, 0.1, 10.0))
    kept = Tableau.load(table.save(tmp_path / "t.safetensors"))
    assert table.digest == kept.digest == table.with_full(table.full, solver="another name").digest
    moved = table.full.clone()
    moved[3, 2] += 1e-9
    sigmas_in = table.sigmas_in * (1 + 1e-12)
    others = [table.with_full(moved), Tableau("data", table.sigmas, table.weights)]
    others.append(Tableau(table.basis, table.sigmas, table.weights, sigmas_in=sigmas_in))
    assert len({table.digest, *(other.digest for other in others)}) == 4


# --- orders --------------------------------------------------------------------------------------

GRIDS = {
    "log_snr": lambda n: schedules.log_snr(n, 0.3, 10.0),
    "karras": lambda n: schedules.karras(n, 0.3, 10.0),
}
PROBLEMS = {grid: orders.Problem(MIXTURE, NOISE, make_grid) for grid, make_grid in GRIDS.items()}
LATE = dict(lower_order_final=False)
# (solver, options, order it converges with on unequal steps)
ORDERS = [
    ("ddim", {}, 1),
    *(("lms", dict(order=p), p) for p in (2, 3, 4)),
    *(("deis", dict(order=p, schedule=VP), p) for p in (2, 3, 4)),
    *(("deis", dict(order=p, variable="log_rho", basis="data"), p) for p in (2, 3)),
    *(("deis", dict(order=p, variable="log_rho"), p) for p in (2, 3)),
    ("heun", {}, 2),
    ("dpm_2", {}, 2),
    *(("dpm_solver", dict(order=p), p) for p in (2, 3)),
    *(("dpm_solver_pp_singlestep", dict(order=p), p) for p in (2, 3)),
    ("dpm_solver", dict(order=3, solver_type="heun"), 3),
    ("dpm_solver_pp", dict(order=2, **LATE), 2),
    ("dpm_solver_multistep", dict(order=2, **LATE), 2),
    *(("unipc", dict(order=p, corrector=False, **LATE), p) for p in (1, 2, 3)),
    *(("unipc", dict(order=p, **LATE), p + 1) for p in (1, 2)),
    # what their names promise, and they do not keep:
    ("dpm_solver_pp", dict(order=3, **LATE), 2),
    ("dpm_solver_multistep", dict(order=3, **LATE), 2),
    ("ipndm", dict(order=3), 2),
    ("ipndm", dict(order=4), 2),
]


@pytest.mark.parametrize(("name", "options", "order"), ORDERS, ids=[f"{n} {o}" for n, o, _ in ORDERS])
@pytest.mark.parametrize("grid", ["karras", pytest.param("log_snr", marks=pytest.mark.slow)])
def test_the_order_on_a_mixture(name, options, order, grid) -> None:
    # 110 and 218 are both even and 2 modulo 3, so that a single-step method ends with no step of lower order
    slope = PROBLEMS[grid].order(lambda s: make(name, s, **options), (110, 218), given=4)
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("order", [2, 3, 4])
def test_ipndm_has_its_order_on_equal_steps(order) -> None:
    problem = orders.Problem(MIXTURE, NOISE, lambda n: torch.linspace(4.0, 1.0, n + 1, dtype=torch.float64))
    assert problem.order(lambda s: solvers.ipndm(s, order=order), (100, 200), given=4) == pytest.approx(order, abs=0.2)


def test_warm_up_decides_the_order_of_pndm() -> None:
    """Equal steps, nothing given: Euler's start leaves order 2, Runge-Kutta's all of 4."""
    schedule = schedules.EDM()  # only the middle of a warm-up step asks it: ln sigma
    problem = orders.Problem(MIXTURE, NOISE, lambda n: torch.linspace(4.0, 1.0, n + 1, dtype=torch.float64))
    slope = lambda kind: problem.order(lambda s: solvers.pndm(s, warm_up=kind, schedule=schedule), (100, 200))  # noqa: E731
    assert slope("none") == pytest.approx(2, abs=0.25)
    assert slope("runge_kutta") == pytest.approx(4, abs=0.25)


def test_the_reference_of_the_order_test_is_exact() -> None:
    """Runge-Kutta against the closed form, on a Gaussian written as a mixture of one."""
    sigmas = schedules.karras(7, 0.1, 50.0)
    single = MixtureDenoiser(GAUSSIAN.mean[None], torch.tensor([0.5], dtype=torch.float64))
    numerical, exact = (orders.solution(who, NOISE, sigmas) for who in (single, GAUSSIAN))
    torch.testing.assert_close(numerical, exact, rtol=1e-10, atol=1e-10)


# --- options that mean the same everywhere -------------------------------------------------------


@EVERY
@given(
    nfe=st.integers(1, 30),
    kind=st.sampled_from([schedules.karras, schedules.log_snr, schedules.time_uniform]),
    ends=ends,
    final=st.none() | ends,
    afs=st.booleans(),
)
@settings(max_examples=6)
def test_nfe_is_what_was_asked_for_or_an_error_that_says_what_can(name, options, nfe, kind, ends, final, afs) -> None:
    try:
        table = make(name, lambda n: kind(n, 0.05, 50.0, final=ends), nfe=nfe, final=final, afs=afs, **options)
    except ValueError as error:
        assert re.search(r"cannot make \d+ calls on such a grid, try \d+|take order \d+ or a longer grid", str(error))
        return
    MIXTURE.reset()
    sample(MIXTURE, table, NOISE)
    assert table.nfe == MIXTURE.nfe == nfe and table.inconsistency() < 1e-10
    if final:
        assert (table.sigmas[-1] == 0) == (final == "zero")


@EVERY
def test_the_analytical_first_step_is_the_starting_noise_as_first_output(name, options) -> None:
    grid = schedules.karras(6, 0.05, 50.0)
    table, short = make(name, grid, **options), make(name, grid, afs=True, **options)
    assert short.nfe == table.nfe - 1 and short.inconsistency() < 1e-10
    zero_first = lambda x, sigma: torch.zeros_like(x) if sigma == grid[0] else MIXTURE(x, sigma)  # noqa: E731
    torch.testing.assert_close(sample(MIXTURE, short, NOISE), sample(zero_first, table, NOISE), rtol=1e-9, atol=1e-9)


to_zero = partial(schedules.karras, sigma_min=0.1, sigma_max=10.0, final="zero")
GRID, THREE = schedules.karras(2, 0.1, 10.0), [2.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solvers.ipndm(GRID, order=5), "ipndm has orders 1 to 4, got 5"),
        (lambda: solvers.ipndm(GRID, order=3), "order 3 needs 3 steps or more and this grid has 2; take order 2 or a"),
        (lambda: solvers.heun(to_zero, nfe=6), "heun cannot make 6 calls on such a grid, try 5 or 7"),
        (lambda: solvers.ddim(GRID, nfe=2), "this grid has its steps"),
        (lambda: solvers.ddim(lambda n: GRID, nfe=2, steps=2), "needs nfe= or steps="),
        (lambda: solvers.ddim(schedules.karras, nfe=0), "NFE must be one or more"),
        (lambda: solvers.ddim(GRID, final="end"), "final must be"),
        (lambda: solvers.ddim(GRID[:2], afs=True), "makes only one"),
        (lambda: solvers.deis(GRID, variable="lambda"), "variable must be"),
        (lambda: solvers.deis(GRID, basis="data"), "log_rho"),
        (lambda: solvers.deis(GRID, schedule=schedules.EDM()), "schedule with a time"),
        (lambda: solvers.unipc(GRID, variant="bh3"), "bh1"),
        (lambda: solvers.pndm(torch.tensor([9.0, 4.0, 1.0, 0.0]), warm_up="runge_kutta"), "it needs 4 steps"),
        (lambda: solvers.heun([3.0, 3.0, 1.0]), "strictly"),
        (lambda: Tableau("v", THREE, torch.eye(2)), "basis"),
        (lambda: Tableau("noise", [1.0, 2.0, 0.0], torch.eye(2)), "increase"),
        (lambda: Tableau("noise", [2.0, 1.0], torch.eye(2)), "shape"),
        (lambda: Tableau("noise", 2.0, 1.0), "shape"),
        (lambda: Tableau("noise", [2.0, 0.0, 0.0], torch.eye(2)), "positive"),
        (lambda: Tableau("noise", THREE, torch.eye(2) * math.nan), "finite"),
        (lambda: Tableau("noise", THREE, torch.ones(2, 2)), "diagonal"),
        (lambda: Tableau("noise", [2.0], torch.zeros(0, 0)), "one row"),
        (lambda: Tableau("noise", THREE, torch.eye(2)).to_basis("data"), "only a consistent tableau"),
        (lambda: solvers.parse("ipndm:ordre=2"), "ipndm has no option 'ordre=2'; it has order"),
        (lambda: solvers.parse("heun:2"), "as option=value"),
        (lambda: solvers.parse("unipc:corrector=no"), "corrector is True or False, not no"),
        (lambda: solvers.get("euler"), "no solver named 'euler'; there are: ddim"),
    ],
)
def test_bad_input_is_one_line_that_says_what_can(call, message) -> None:
    with refused(message):
        call()


def test_a_solver_in_one_word() -> None:
    facts, options = solvers.parse("deis:order=4,variable=rho,lower_order_final=True")
    assert facts.name == "deis" and options == dict(order=4, variable="rho", lower_order_final=True)
    assert solvers.parse("heun") == (solvers.get("heun"), {})


def test_steps_and_short_grids() -> None:
    """Steps may be counted instead of evaluations; a grid gets the order that it can carry."""
    assert solvers.heun(dode.load("fashion-mnist-data").grid, steps=5).nfe == 9
    assert solvers.ipndm(GRID).metadata["order"] == 2 and solvers.unipc(GRID[:2]).metadata["order"] == 1
