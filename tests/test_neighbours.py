"""Solvers as their authors' programs have them, slips included: recorded numbers, and formulas written out by hand."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import dode
from dode import schedules, solvers
from dode.denoisers import MixtureDenoiser
from dode.distillation import d_ode, olss
from dode.distillation.dyweight import UntiedSpace
from dode.experiments import orders
from dode.sampling import initial_noise

MEANS = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).double()
MIXTURE = MixtureDenoiser(MEANS, torch.tensor([0.3, 0.5, 0.8]))
NOISE = initial_noise((4,), range(8), dtype=torch.float64)
KARRAS = schedules.karras(7, 0.002, 80.0)
EDM_TIME = schedules.VPContinuous(-0.004723, 17.533)  # the VP time of EDM's range, as diff-sampler works it out


def test_ipndm_v_as_it_circulates() -> None:
    equal = torch.linspace(1.0, 0.1, 8, dtype=torch.float64)
    for order, row in ((3, [5, -16, 23]), (4, [-11, 43, -65, 57])):
        table = solvers.ipndm_v(equal, order=order, as_circulated=True)
        wanted = torch.tensor(row, dtype=torch.float64) / (12 if order == 3 else 24)
        torch.testing.assert_close(table.weights[5, 6 - order : 6] / (equal[6] - equal[5]), wanted)
    sums = solvers.ipndm_v(KARRAS, as_circulated=True).weights.sum(1) / (KARRAS[1:] - KARRAS[:-1]) - 1
    assert float(sums.abs().max()) == pytest.approx(2.9e-4, rel=0.02)
    grids = dict(karras=schedules.karras, log_snr=schedules.log_snr)
    for name, order in dict(karras=1.87, log_snr=2.89).items():
        problem = orders.Problem(MIXTURE, NOISE, lambda n, name=name: grids[name](n, 1.0, 10.0))
        make = lambda grid: solvers.ipndm_v(grid, as_circulated=True)  # noqa: E731
        assert problem.order(make, (158, 314), given=4) == pytest.approx(order, abs=0.35), name


def test_gradient_estimation_is_d_ode_with_every_lambda_one() -> None:
    plain, table = solvers.ddim(KARRAS).weights, solvers.gradient_estimation(KARRAS).weights
    steps = KARRAS[1:] - KARRAS[:-1]
    correction = torch.diag(steps) - torch.diag(steps[1:], -1)  # d_i - d_{i-1} over the step
    correction[0] = 0
    torch.testing.assert_close(table, plain + correction)


def test_res_multistep_is_deis_of_order_2_on_clean_images() -> None:
    table = solvers.deis(KARRAS, order=2, variable="log_rho", basis="data", lower_order_final=False)
    steps = [math.log(a / b) for a, b in pairwise(KARRAS.tolist())]
    for i in range(1, 7):
        h, back = steps[i], -steps[i - 1] / steps[i]
        phi_1, phi_2 = -math.expm1(-h) / h, (math.expm1(-h) + h) / h**2
        wanted = [h * phi_2 / back, h * (phi_1 - phi_2 / back)]
        assert table.weights[i, i - 1 : i + 1].tolist() == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("name", ["dpm_solver_pp", "dpm_solver_multistep", "unipc"])
def test_lower_order_final_below_ten_steps(name) -> None:
    make = solvers.get(name).make
    for n, falls in ((9, True), (10, False)):
        grid = schedules.log_snr(n, 0.1, 10.0)
        assert torch.equal(make(grid, lower_order_final="below_10").full, make(grid, lower_order_final=falls).full)
    with pytest.raises(ValueError, match="below_10"):
        make(KARRAS, lower_order_final="late")


@pytest.mark.parametrize("order", [2, 3, 4])
def test_deis_in_the_vp_time_of_edm(order) -> None:
    """Against the sum over ten thousand points that diff-sampler integrates by."""
    table = solvers.deis(KARRAS, order=order, variable="t", schedule=EDM_TIME)
    time = (EDM_TIME.label(KARRAS) / 999).numpy()
    for i in range(order - 1, 7):
        t = np.linspace(time[i], time[i + 1], 200_001)
        sigma = EDM_TIME.sigma(torch.from_numpy(999 * t)).numpy()
        nodes = time[i - order + 1 : i + 1]
        for k, node in enumerate(nodes):
            others = np.delete(nodes, k)
            basis = np.prod([(t - other) / (node - other) for other in others], axis=0)
            middle = (basis[1:] + basis[:-1]) / 2
            assert float(table.weights[i, i - order + 1 + k]) == pytest.approx(float(middle @ np.diff(sigma)), rel=1e-6)
    with pytest.raises(ValueError, match="time of its own"):
        solvers.deis(KARRAS, variable="t", schedule=schedules.EDM())


def test_the_vp_time_of_edm_goes_there_and_back() -> None:
    sigmas = torch.cat([KARRAS, torch.zeros(1)])
    torch.testing.assert_close(EDM_TIME.sigma(EDM_TIME.label(sigmas)), sigmas.double(), rtol=1e-9, atol=1e-7)


@pytest.mark.parametrize("n", [7, 8, 9])
def test_outer_steps_equal_in_log_snr(n) -> None:
    table = solvers.dpm_solver(schedules.karras(n, 0.1, 40.0), order=3, outer="log_snr")
    parts, start = solvers.split(n, 3), 40.0
    for row, k in zip(np.cumsum([0, *parts]), range(len(parts) + 1), strict=True):
        assert float(table.sigmas[row]) == pytest.approx(start * (0.1 / start) ** (k / len(parts)), rel=1e-12)
    zero = solvers.dpm_solver(schedules.karras(n, 0.1, 40.0, final="zero"), order=3, outer="log_snr")
    assert zero.sigmas[-1] == 0 and float(zero.sigmas[-2]) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="take one"):
        solvers.dpm_solver(KARRAS, outer="log_snr", inner="grid")


def unipc_by_states(grid: torch.Tensor, order: int, variant: str) -> torch.Tensor:
    """UniPC on clean images as the released program walks: two states a step, from scaled phi functions."""
    levels, x, known = grid.tolist(), grid[0] * NOISE, list[tuple[float, torch.Tensor]]()
    steps, d = len(levels) - 1, MIXTURE(grid[0] * NOISE, levels[0])
    for i in range(steps):
        p = min(order, i + 1, steps - i)
        known.append((levels[i], d))
        s, t = levels[i], levels[i + 1]
        h = math.log(s / t)
        old = [(math.log(s / level) / h, output) for level, output in known[-p:-1]][::-1]
        differences = [(output - d) / r for r, output in old]
        phi, values = math.expm1(-h), list[float]()
        for k in range(1, p + 2):  # (phi_k scaled) by their recursion
            values.append(phi)
            phi = phi / -h - 1 / math.factorial(k)
        base = t / s * x - values[0] * d
        scale = -h if variant == "bh1" else math.expm1(-h)
        nodes = [r for r, _ in old]

        def weights(nodes: list[float], size: int, values=values, scale=scale) -> np.ndarray:
            if size == 1 and variant != "vary_coeff":
                return np.array([0.5 * scale])
            rhs = np.array([values[k] * math.factorial(k) for k in range(1, size + 1)])
            return np.linalg.solve(np.array(nodes)[None] ** np.arange(size)[:, None], rhs)

        plan = weights(nodes, p - 1) if p > 1 else []
        ahead = base - sum(w * difference for w, difference in zip(plan, differences, strict=True))
        if i + 1 == steps:
            return ahead
        new = MIXTURE(ahead, t)
        if variant == "vary_coeff":
            r = np.array([*nodes, 1.0])
            c = np.stack([r**k / math.factorial(k + 1) for k in range(p)], axis=1)
            inverse = np.linalg.inv(c)
            x, k = base, 0
            for k in range(p - 1):
                x = x - values[k + 1] * sum(inverse[k, j] * differences[j] for j in range(p - 1))
            x = x - values[p] * inverse[k, -1] * (new - d)
        else:
            *rest, last = weights([*nodes, 1.0], p)
            x = base - sum(w * difference for w, difference in zip(rest, differences, strict=True)) - last * (new - d)
        d = new
    raise AssertionError


@pytest.mark.parametrize("variant", ["bh1", "bh2", "vary_coeff"])
@pytest.mark.parametrize("order", [1, 2, 3, 4, 5])
def test_unipc_beside_its_two_states_a_step(order, variant) -> None:
    grid = schedules.karras(9, 0.05, 20.0)
    table = solvers.unipc(grid, order=order, variant=variant)
    torch.testing.assert_close(dode.sample(MIXTURE, table, NOISE), unipc_by_states(grid, order, variant))


@pytest.mark.parametrize(("order", "options", "measured"), [
    (4, dict(corrector=False), 4), (5, dict(corrector=False), 5), (3, dict(variant="vary_coeff"), 1),
])  # fmt: skip
def test_the_order_that_unipc_keeps(order, options, measured) -> None:
    problem = orders.Problem(MIXTURE, NOISE, lambda n: schedules.karras(n, 1.0, 10.0))
    make = lambda grid: solvers.unipc(grid, order=order, lower_order_final=False, **options)  # noqa: E731
    assert problem.order(make, (158, 314), given=4) == pytest.approx(measured, abs=0.2)


def test_olss_as_released() -> None:
    """The search for levels, the least squares and the walk of a scheduler, written out on the whole path."""
    fine, n, noise = MIXTURE.grid(100), 4, NOISE
    x, states, outputs = fine[0] * noise, [fine[0] * noise], list[torch.Tensor]()
    for s, t in pairwise(fine.tolist()):
        outputs.append((x - MIXTURE(x, s)) / s)
        x = x + (t - s) * outputs[-1]
        states.append(x)
    small = [x / (1 + s**2) ** 0.5 for x, s in zip(states, fine.tolist(), strict=True)]  # VP's coordinates

    def solved(known: list[torch.Tensor], goal: torch.Tensor) -> tuple[torch.Tensor, float]:
        columns = torch.stack([k.flatten() for k in known], dim=1)
        weights = torch.linalg.lstsq(columns, goal.flatten()).solution
        return weights, float((columns @ weights - goal.flatten()).square().mean())

    def searched(limit: float) -> list[int] | None:
        path = [0]
        for _ in range(n):
            low, high = path[-1] + 1, 100
            while high > low:
                middle = (low + high + 1) // 2
                left = solved([small[path[-1]], *(outputs[k] for k in path)], small[middle])[1]
                low, high = (low, middle - 1) if left > limit else (middle, high)
            if low == 100:
                return path
            path.append(low)
        return None

    low, high = 0.0, 10.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if searched(middle) else (middle, high)
    path, walked, student = searched(high), fine[0] * noise, list[torch.Tensor]()
    assert path is not None and len(path) == n
    for i, goal in enumerate([*path[1:], 100]):
        weights, _ = solved([states[0], *(outputs[k] for k in path[: i + 1])], states[goal])
        student.append((walked - MIXTURE(walked, fine[path[i]])) / fine[path[i]])
        walked = weights[0] * states[0] + sum(w * d for w, d in zip(weights[1:], student, strict=True))
    found = olss(MIXTURE, solvers.ddim, noise, nfe=n)
    assert torch.equal(found.levels, fine[[*path, 100]])
    torch.testing.assert_close(dode.sample(MIXTURE, found, noise), walked, rtol=1e-5, atol=1e-6)
    assert not found.metadata["afs"] and found.metadata["network_evaluations"] == 100 * len(noise)


def test_olss_on_given_levels_begins_as_equation_8_of_d_ode() -> None:
    """Its first output is the teacher's, too; the later ones are not."""
    start = solvers.ddim(KARRAS)
    found = olss(MIXTURE, start, NOISE, points=70, search=False)
    equation_8 = d_ode(MIXTURE, start, NOISE, equation=8, basis="own")
    assert torch.equal(found.sigmas, start.sigmas) and found.inconsistency() > 1e-3
    torch.testing.assert_close(found.full[0], equation_8.full[0], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(found.full[1:], equation_8.full[1:], rtol=0.01)
    assert olss(MIXTURE, solvers.ddim, NOISE, nfe=6, points=6).levels.tolist() == MIXTURE.grid(6).tolist()
    with pytest.raises(ValueError, match="a teacher of 7 steps has no levels for 8"):
        olss(MIXTURE, solvers.ddim, NOISE, nfe=8, teacher=start)


@pytest.mark.parametrize("afs", [False, True])
def test_dyweight_as_released(afs) -> None:
    """Its loop: weights over the step to the nominal next level, a level that their sums lead to, a factor on it."""
    base = solvers.ipndm(schedules.karras(4 + afs, 0.1, 40.0), order=3, afs=afs)
    space = UntiedSpace(base, window=3, first_level=afs)
    vector = space.pack(base)
    assert len(vector) == (16 if afs else 15)  # of the weights, the first three are the noise's
    torch.testing.assert_close(space.table(vector).full, base.full)
    vector = vector + 0.1 * torch.randn(len(vector), generator=torch.Generator().manual_seed(2)).double()
    table = space.table(vector)
    torch.testing.assert_close(space.pack(table), vector)
    assert table.inconsistency() < 1e-12 and table.sigmas[-1] != base.sigmas[-1]
    level = float(base.sigmas[0] * (vector[11].exp() if afs else 1))
    x, factors, weights, known = level * NOISE, vector[-4:].exp(), vector[:11].tolist(), [NOISE]
    for nominal, factor in zip(base.sigmas[1:].tolist(), factors.tolist(), strict=True):
        known = [*known, (x - MIXTURE(x, factor * level)) / level][-3:]
        now, weights = weights[: len(known)], weights[len(known) :]
        x = x + (nominal - level) * sum(w * d for w, d in zip(now, known, strict=True))
        level = level + sum(now) * (nominal - level)
    torch.testing.assert_close(dode.sample(MIXTURE, table, NOISE), x)
    assert float(table.sigmas[-1]) == pytest.approx(level)
