"""Methods that look ahead within a step: Heun, DPM-2, and the single-step DPM-Solver and DPM-Solver++."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Literal

from torch import Tensor

from dode.solvers.base import SolverType, solver, twice_a_step
from dode.solvers.quadrature import moments
from dode.solvers.rows import Stages, gain
from dode.tableau import Basis, Tableau
from dode.utils.files import one_of

Inner = Literal["log_snr", "grid"]


@solver(
    "EDM (Heun)", "noise", [2], "Karras et al. 2022, arXiv:2206.00364, algorithm 1", twice_a_step, entries={"Heun": {}}
)
def heun(sigmas: Tensor, basis: Basis = "noise") -> Tableau:
    """EDM's second-order sampler, without churn.

    A step from ``s`` to ``t`` is two rows: Euler's to ``t``, then one that stays at ``t`` and trades half of
    the first slope for the second, ``(t - s) / 2 (d_t - d_s)``; in the data basis that is
    ``(s - t) / (2 t) (D_t - D_s)``.  A step to 0 is Euler's alone.
    """
    s = sigmas.tolist()
    table = Stages(basis, s[0])
    for here, there in pairwise(s):
        euler = gain(basis, here, there)
        if there == 0:
            table.step([(there, [euler])])
            continue
        half = (there - here) / 2 if basis == "noise" else (here - there) / (2 * there)
        table.step([(there, [euler]), (there, [euler - half, half])])
    return table.tableau()


@solver("DPM-2", "noise", [2], "Karras et al. 2022, arXiv:2206.00364; k-diffusion, sample_dpm_2", twice_a_step)
def dpm_2(sigmas: Tensor) -> Tableau:
    """The midpoint method, the middle taken in ``ln sigma``; DPM-Solver-2 by another name.  A step to 0 is Euler's."""
    s = sigmas.tolist()
    table = Stages("noise", s[0])
    for here, there in pairwise(s):
        middle = math.sqrt(here * there)
        table.step([(middle, [middle - here]), (there, [0, there - here])] if there > 0 else [(there, [-here])])
    return table.tableau()


def split(nfe: int, order: int, ends_at_zero: bool = False) -> list[int]:
    """The orders of the steps that share ``nfe`` evaluations: 3, 3, ..., 2, 1 (DPM-Solver).

    A step to 0 has order 1, so a last step of order 2 is taken as two.
    """
    whole, rest = divmod(nfe, order)
    orders = [order] * whole + [rest] * (rest > 0)
    if order == 3 and rest == 0:
        orders[-1:] = [2, 1]
    if ends_at_zero and orders[-1] > 1:
        orders[-1:] = [orders[-1] - 1, 1]
    return orders


def _singlestep(
    basis: Basis, s: list[float], order: int, inner: Inner, outer: Inner, solver_type: SolverType
) -> Tableau:
    one_of("solver_type", solver_type, SolverType)
    one_of("inner", inner, Inner)
    one_of("outer", outer, Inner)
    orders, zero = split(len(s) - 1, order, s[-1] == 0), s[-1] == 0
    places = [0, *accumulate(orders)]
    levels = [s[place] for place in places]
    if outer == "log_snr":
        if inner == "grid":
            raise ValueError("inner='grid' evaluates at the grid's levels, which outer='log_snr' leaves; take one")
        levels = [*geometric(s[0], s[-1 - zero], len(orders) - zero), *[0.0] * zero]
    table = Stages(basis, s[0])
    for (first, last), (here, there) in zip(pairwise(places), pairwise(levels), strict=True):
        inside = s[first + 1 : last] if inner == "grid" else geometric(here, there, last - first)[1:-1]
        table.step(_stages(basis, [here, *inside, there], solver_type))
    return table.tableau()


def geometric(first: float, last: float, parts: int) -> list[float]:
    """``parts + 1`` levels, equal steps in ``ln sigma``; one step may end at 0."""
    inside = [first ** (1 - k / parts) * last ** (k / parts) for k in range(1, parts)]
    return [first, *inside, last]


def _stages(basis: Basis, levels: Sequence[float], solver_type: SolverType) -> list[tuple[float, list[float]]]:
    """One step of order 1, 2 or 3 over ``levels``: start, inner ones, end; weights as in the paper's algorithms."""
    s, t = levels[0], levels[-1]
    if len(levels) == 2:
        return [(t, [gain(basis, s, t)])]
    I0, I1, I2 = moments(basis, s, t)
    r1, *others = (math.log(s / level) / math.log(s / t) for level in levels[1:-1])
    first = (levels[1], [gain(basis, s, levels[1])])
    if len(levels) == 3:  # D0 + slope (D1 - D0) / r1
        slope = (I0 / 2 if solver_type == "midpoint" else I1) / r1
        return [first, (t, [I0 - slope, slope])]
    (r2,) = others
    J0, J1 = moments(basis, s, levels[2], 1)
    slope = J1 * r2 / r1
    second = (levels[2], [J0 - slope, slope])
    if solver_type == "midpoint":  # the paper's: the slope from the second stage alone
        return [first, second, (t, [I0 - I1 / r2, 0.0, I1 / r2])]
    # slope and curvature of the parabola through all three ("taylor" in the released code)
    w1 = (I1 * r2 - I2) / (r1 * (r2 - r1))
    w2 = (I2 - I1 * r1) / (r2 * (r2 - r1))
    return [first, second, (t, [I0 - w1 - w2, w1, w2])]


@solver(
    "DPM-Solver", "noise", [1, 2, 3], "Lu et al. 2022, arXiv:2206.00927, algorithms 1 and 2",
    entries={"DPM-Solver-3": {}},
)  # fmt: skip
def dpm_solver(
    sigmas: Tensor,
    order: int = 3,
    inner: Inner = "log_snr",
    outer: Inner = "grid",
    solver_type: SolverType = "midpoint",
) -> Tableau:
    """DPM-Solver-1, -2, -3, single-step.

    The grid has one step for each evaluation; steps are taken together in threes, with the rest as the
    paper has it (:func:`split`).  ``inner="log_snr"`` evaluates inside such a step at equal parts of
    ``ln sigma`` (the paper: r1 = 1/3, r2 = 2/3, or 1/2); "grid" at the grid's own levels (diffusers).
    ``outer="log_snr"`` cuts the grid's range into steps equal in ``ln sigma``, whatever their order, as the released
    code does on its log-SNR grid and k-diffusion's dpm_fast always does; "grid" takes the levels that the grid has.
    ``solver_type="heun"`` uses the full parabola where "midpoint", the paper's, uses one slope.
    """
    return _singlestep("noise", sigmas.tolist(), order, inner, outer, solver_type)


@solver(
    "DPM-Solver++ (singlestep)", "data", [1, 2, 3], "Lu et al. 2022, arXiv:2211.01095, algorithm 1",
    entries={"DPM-Solver++(3S)": {}},
)  # fmt: skip
def dpm_solver_pp_singlestep(
    sigmas: Tensor,
    order: int = 3,
    inner: Inner = "log_snr",
    outer: Inner = "grid",
    solver_type: SolverType = "midpoint",
) -> Tableau:
    """DPM-Solver++(2S) and (3S): :func:`dpm_solver` in the data basis, with the same options."""
    return _singlestep("data", sigmas.tolist(), order, inner, outer, solver_type)
