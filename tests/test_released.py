"""The released D-ODE solvers, written out a second time, in the states and times of their authors' code."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from dode import schedules, solvers
from dode.denoisers import MixtureDenoiser
from dode.distillation import d_ode
from dode.sampling import initial_noise, sample, trajectory

MEANS, STDS = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).double(), torch.tensor([0.3, 0.5, 0.8, 0.2])
EDM, CHAIN = MixtureDenoiser(MEANS, STDS), MixtureDenoiser(MEANS, STDS, schedule=schedules.vp_linear())
NOISE, FRESH = (initial_noise((3,), seeds, dtype=torch.float64) for seeds in (range(40), range(40, 60)))


class Lambdas:
    """Fits a lambda each time that it is asked for one, or gives those it was made with."""

    def __init__(self, given=None) -> None:
        self.given, self.found = given, []

    def __call__(self, x, direction, target=None):
        if self.given:
            value = self.given[len(self.found)]
        else:
            value = float(torch.linalg.lstsq(direction.reshape(-1, 1), (target() - x).reshape(-1, 1)).solution)
        self.found.append(value)
        return x + value * direction


# --- data side: EDM's states, Karras's levels ---------------------------------------------------


def karras(n, low=0.02, high=80.0):
    return [*((high ** (1 / 7) + i / (n - 1) * (low ** (1 / 7) - high ** (1 / 7))) ** 7 for i in range(n)), 0.0]


def euler(x, estimate, s, t):
    return x + (t - s) * (x - estimate) / s


def released_edm(steps, noise, scale, heun, given=None):
    fit, calls = Lambdas(given), 2 * steps - 1 if heun else steps
    teacher = [80.0 * noise]
    for s, t in pairwise(karras(scale * calls)):
        teacher.append(euler(teacher[-1], EDM(teacher[-1], s), s, t))
    x, seen = 80.0 * noise, list[torch.Tensor]()

    def corrected(x, estimate):
        seen.append(estimate)
        if len(seen) == 1:
            fit.found.append(0.0)
            return x
        return fit(x, seen[-1] - seen[-2], lambda: teacher[scale * len(seen)])

    for s, t in pairwise(karras(steps)):
        start, estimate = x, EDM(x, s)
        x = corrected(euler(start, estimate, s, t), estimate)
        if heun and t > 0:
            second = EDM(x, t)
            slope = ((start - estimate) / s + (x - second) / t) / 2
            x = corrected(start + (t - s) * slope, second)
    return fit.found, x


# --- noise side: states alpha x, labels of the chain --------------------------------------------

BAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)


def eps(x, bar):
    sigma = math.sqrt((1 - bar) / bar)
    return (x / math.sqrt(bar) - CHAIN(x / math.sqrt(bar), sigma)) / sigma


def step(x, noise, bar, later):
    return math.sqrt(later) * (x - math.sqrt(1 - bar) * noise) / math.sqrt(bar) + math.sqrt(1 - later) * noise


def bars(n):
    """Alpha bar at labels counted from below, high to low, and 1."""
    return [*BAR[torch.linspace(0, 1000, n + 1)[:n].long().flip(0)].tolist(), 1.0]


def teacher_states(x, n):
    states = [x]
    for bar, later in pairwise(bars(n)):
        states.append(step(states[-1], eps(states[-1], bar), bar, later))
    return states


def released_ddim(n, noise, scale, given=None):
    x = math.sqrt(1 - bars(n)[0]) * noise  # as it is here at the first level; there, the noise itself
    fit, last, teacher = Lambdas(given), x, teacher_states(x, scale * n)
    for i, (bar, later) in enumerate(pairwise(bars(n))):
        output = eps(x, bar)
        x, last = fit(step(x, output, bar, later), output - last, lambda i=i: teacher[scale * (i + 1)]), output
    return fit.found, x


def released_dpm_solver(n, noise, scale, order, given=None):
    sigmas = CHAIN.schedule.sigma(999 - 999 * torch.arange(n + 1, dtype=torch.float64) / n).tolist()
    level = [(1 / math.sqrt(1 + s * s), s / math.sqrt(1 + s * s), -math.log(s)) for s in sigmas]  # alpha, sigma, lambda
    x = level[0][1] * noise
    fit, last, teacher = Lambdas(given), x, teacher_states(x, scale * n)
    target = lambda: teacher[scale * (len(fit.found) + 1)]  # noqa: E731
    orders = [order] * (n // order) + [n % order] * bool(n % order)
    if order == 3 and n % 3 == 0:
        orders[-1:] = [2, 1]
    output = lambda x, k: eps(x, level[k][0] ** 2)  # noqa: E731
    at = 0
    for p in orders:
        (a, _, start), (b, sigma, end) = level[at], level[at + p]
        h = end - start
        inner = [(*level[at + k], (level[at + k][2] - start) / h) for k in range(1, p)]
        first, base = output(x, at), x
        if p == 1:
            weight = -sigma * math.expm1(h)
            x, last = fit(b / a * base + weight * first, weight * (first - last), target), first
        if p > 1:
            a1, sigma1, _, r1 = inner[0]
            weight = -sigma1 * math.expm1(r1 * h)
            x = fit(a1 / a * base + weight * first, weight * (first - last), target)
            second = output(x, at + 1)
        if p == 2:
            plain, weight = b / a * base - sigma * math.expm1(h) * first, -0.5 / r1 * sigma * math.expm1(h)
            x, last = fit(plain + weight * (second - first), weight * (second - first), target), second
        if p == 3:
            a2, sigma2, _, r2 = inner[1]
            weight = -r2 / r1 * sigma2 * (math.expm1(r2 * h) / (r2 * h) - 1)
            plain = a2 / a * base - sigma2 * math.expm1(r2 * h) * first
            x = fit(plain + weight * (second - first), weight * (second - first), target)
            third = output(x, at + 2)
            plain, weight = b / a * base - sigma * math.expm1(h) * first, -sigma / r2 * (math.expm1(h) / h - 1)
            x, last = fit(plain + weight * (third - first), weight * (third - second), target), third
        at += p
    return fit.found, x / level[-1][0]


def is_released(denoiser, table, scale, reference) -> None:
    """Lambdas and images of noise that was not fitted to, to nine digits."""
    learned, wanted = d_ode(denoiser, table, NOISE, align="released", scale=scale, batch_size=15), reference(NOISE)[0]
    found = torch.tensor(learned.metadata["lambdas"], dtype=torch.float64)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-9, atol=1e-9)
    assert learned.metadata["align"] == "released" and found.abs().max() > 0.01
    expected = reference(FRESH, given=wanted)[1]
    torch.testing.assert_close(sample(denoiser, learned, FRESH), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("calls", "scale"), [(5, 10), (9, 3)])
def test_the_data_side_is_the_released_code(calls, scale) -> None:
    """D-EDM of five calls is fitted to a teacher of fifty; its corrector starts again from the step's beginning."""
    ddim = solvers.ddim(schedules.karras(calls, 0.02, 80.0, final="zero"), basis="data")
    is_released(EDM, ddim, scale, lambda noise, **given: released_edm(calls, noise, scale, False, **given))
    steps = (calls + 1) // 2
    heun = solvers.heun(schedules.karras(steps, 0.02, 80.0, final="zero"), basis="data")
    is_released(EDM, heun, scale, lambda noise, **given: released_edm(steps, noise, scale, True, **given))


@pytest.mark.parametrize("calls", [5, 6])
def test_the_noise_side_is_the_released_code(calls) -> None:
    """Whatever the table's grid is: labels from below for D-DDIM, equal times for D-DPM-Solver."""
    ddim = solvers.ddim(CHAIN.grid, nfe=calls)
    is_released(CHAIN, ddim, 7, lambda noise, **given: released_ddim(calls, noise, 7, **given))
    for order in (2, 3):
        table = solvers.dpm_solver(CHAIN.grid, nfe=calls, order=order)
        reference = lambda noise, order=order, **given: released_dpm_solver(calls, noise, 7, order, **given)  # noqa: E731
        is_released(CHAIN, table, 7, reference)


def test_what_was_not_released_is_refused() -> None:
    data = schedules.karras(4, 0.02, 80.0)
    for denoiser, table, options, message in (
        (CHAIN, solvers.ipndm(CHAIN.grid, nfe=4), {}, "ddim and dpm_solver on a chain of labels .* this is ipndm"),
        (EDM, solvers.ddim(EDM.grid, nfe=4), {}, "ddim and dpm_solver on a chain of labels"),
        (EDM, solvers.ddim(EDM.grid, nfe=4, basis="data", afs=True), {}, "without afs"),
        (EDM, solvers.ddim(data, basis="data"), {}, "ddim and heun down to sigma = 0"),
        (CHAIN, solvers.ddim(CHAIN.grid, nfe=4), dict(equation=9), "its own teacher, first step and equation"),
        (CHAIN, solvers.ddim(CHAIN.grid, nfe=4), dict(teacher="same"), "its own teacher, first step and equation"),
    ):
        with pytest.raises(ValueError, match=message):
            d_ode(denoiser, table, NOISE, align="released", **options)


def test_the_last_corrector_of_d_edm_is_taken_back_unless_noise_is_corrected() -> None:
    """Five calls to EDM's lowest level: with clean images the fourth changes nothing, so the fifth sees the same."""
    generator = torch.Generator().manual_seed(1)
    means, mix = (torch.randn(n, 32, generator=generator).double() for n in (100, 32))
    means = 0.3 * means @ (mix * 0.8 ** torch.arange(32)).T  # correlated, as pixels are
    denoiser, noise = MixtureDenoiser(means, torch.full((100,), 0.1)), initial_noise((32,), range(60)).double()
    data = d_ode(denoiser, solvers.heun(denoiser.grid, nfe=5, basis="data"), noise)
    own = d_ode(denoiser, solvers.heun(denoiser.grid, nfe=5), noise, basis="own")
    facts = data.metadata
    assert abs(facts["lambdas"][3] + 1) < 1e-3
    assert facts["fit_rmse"][2:] == pytest.approx([facts["fit_rmse"][2]] * 3, rel=1e-3)
    states = trajectory(denoiser, data, noise)
    assert (states[4] - states[3]).square().mean() < 1e-4 * states[3].square().mean()
    assert abs(own.metadata["lambdas"][3] + 1) > 0.01 and own.metadata["fit_rmse"][4] < 0.9 * facts["fit_rmse"][4]
