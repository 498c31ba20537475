"""Multistep methods that extrapolate the noise estimate: DDIM, iPNDM, PNDM, LMS, DEIS."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dode.schedules import Schedule, VPDiscrete, vp_linear
from dode.solvers.base import solver
from dode.solvers.quadrature import gauss, lagrange, log_step
from dode.solvers.rows import Stages, gain, multistep, orders_of_steps
from dode.tableau import Basis, Tableau
from dode.utils.files import one_of

Variable = Literal["t", "rho", "log_rho"]
WarmUp = Literal["none", "heun", "runge_kutta"]
ADAMS_BASHFORTH = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


@solver("DDIM", "noise", [1], "Song, Meng and Ermon 2021, arXiv:2010.02502, eq. 13", compared=True)
def ddim(sigmas: Tensor, basis: Basis = "noise") -> Tableau:
    """Order 1, one evaluation a step: Euler's method in sigma, exact for a constant output.

    ``x_{i+1} = x_i + (sigma_{i+1} - sigma_i) d_i``, in x / alpha.  DPM-Solver-1, DEIS-0 and UniP-1 are the same table.
    """
    s = sigmas.tolist()
    return multistep(basis, s, [1] * (len(s) - 1), lambda i, p: [gain(basis, s[i], s[i + 1])])


@solver("iPNDM", "noise", [1, 2, 3, 4], "Zhang and Chen 2023, arXiv:2204.13902", entries={"iPNDM-4": {}}, compared=True)
def ipndm(sigmas: Tensor, order: int = 4, lower_order_final: bool = False) -> Tableau:
    """iPNDM: Adams-Bashforth weights of a uniform grid.

    Row ``i`` uses order ``min(order, i + 1)``.  The weights are those of equal steps whatever the
    grid, so the order they promise holds only where sigma is nearly uniform.
    """
    s = sigmas.tolist()
    orders = orders_of_steps(s, order, lower_order_final)
    return multistep("noise", s, orders, lambda i, p: [w * (s[i + 1] - s[i]) for w in ADAMS_BASHFORTH[p]])


def _in_sigma(s: np.ndarray, i: int, p: int) -> np.ndarray:
    """``int L_j(sigma) dsigma`` over step ``i``, ``(p,)``, newest output first."""
    x, w = gauss(s[i], s[i + 1])
    return lagrange(s[i - p + 1 : i + 1][::-1], x) @ w


@solver("Gradient estimation", "noise", [1], "Permenter and Yuan 2024, arXiv:2306.04848, algorithm 1")
def gradient_estimation(sigmas: Tensor, gamma: float = 2.0) -> Tableau:
    """DDIM with the noise estimate extrapolated: ``gamma d_i + (1 - gamma) d_{i-1}``, the first step plain.

    D-ODE's correction (Kim et al. 2024, eq. 10) with the same ``lambda = gamma - 1`` in every step.
    """
    s = sigmas.tolist()
    return multistep(
        "noise", s, orders_of_steps(s, 2, False),
        lambda i, p: [w * (s[i + 1] - s[i]) for w in ([1.0] if p == 1 else [gamma, 1 - gamma])],
    )  # fmt: skip


@solver("LMS", "noise", [1, 2, 3, 4], "Crowson 2022, k-diffusion, sample_lms", entries={"LMS-4": {}})
def lms(sigmas: Tensor, order: int = 4, lower_order_final: bool = False) -> Tableau:
    """The linear multistep method of k-diffusion: Adams-Bashforth for unequal steps, polynomials in sigma.

    ``W_ij = int_{sigma_i}^{sigma_{i+1}} L_j(sigma) dsigma``, exact.  DEIS calls it rhoAB, others iPNDM_v.
    """
    s = sigmas.numpy()
    orders = orders_of_steps(s.tolist(), order, lower_order_final)
    return multistep("noise", s.tolist(), orders, lambda i, p: _in_sigma(s, i, p))


@solver("iPNDM_v", "noise", [1, 2, 3, 4], "Zhang and Chen 2023, arXiv:2204.13902", entries={})
def ipndm_v(sigmas: Tensor, order: int = 4, lower_order_final: bool = False, as_circulated: bool = False) -> Tableau:
    """iPNDM with the weights of the steps actually taken; the same table as :func:`lms`.

    ``as_circulated=True``: the formula that samplers of this name have (diff-sampler, ComfyUI and others).  On the
    differences of the last outputs it has three slips: a factor ``h`` too many in the second one; at order 4 a plus
    for a minus in the third one, and ``h1 / h2`` for ``h2 / h3`` in its last weight, so that rows of unequal steps do
    not sum to the step.  Order 3 keeps its order; order 4 has order 2 on Karras's grid.
    """
    s = sigmas.numpy()
    weights = partial(_circulating if as_circulated else _in_sigma, s)
    return multistep("noise", s.tolist(), orders_of_steps(s.tolist(), order, lower_order_final), weights)


def _circulating(s: np.ndarray, i: int, p: int) -> np.ndarray:
    """What samplers called iPNDM_v weigh the outputs of step ``i`` with, ``(p,)``, newest first."""
    if p < 3:
        return _in_sigma(s, i, p)
    h, h1, h2, *more = (s[i + 1 - k] - s[i - k] for k in range(p))
    second = (1 - h**2 / (3 * h1 * (h1 + h2))) / 2
    a = h1 / h2
    row = np.array([1 + h / (2 * h1) + second, -h / (2 * h1) - (1 + a) * second, a * second, 0.0])
    if p == 4:
        (h3,) = more
        third = (1 - h / (3 * (h + h1))) / 2 + (1 - h / (2 * (h + h1))) * h / (6 * (h + h1 + h2))
        third *= h * (h + h1) * (h + h1 + h2) / (h1 * (h1 + h2) * (h1 + h2 + h3))
        b = h1 * (h1 + h2) / (h2 * (h2 + h3))
        row += third * np.array([1, -(1 + a + b), a + b * (1 + h2 / h3), -b * a])
    return h * row[:p]


def _time(schedule: Schedule, sigma: np.ndarray) -> np.ndarray:
    """The label, continued below ``sigma_min``, where a discrete chain runs to label -1 at 0."""
    label = schedule.label(torch.from_numpy(sigma)).numpy()
    if isinstance(schedule, VPDiscrete):
        label = np.where(sigma < schedule.sigma_min, sigma / schedule.sigma_min - 1, label)
    return label


@solver(
    "DEIS", "noise", [1, 2, 3, 4], "Zhang and Chen 2023, arXiv:2204.13902", compared=True,
    entries={
        "DEIS tAB2": {}, "DEIS log-rho": dict(variable="log_rho"),
        "DEIS on clean images": dict(variable="log_rho", basis="data"),
        "RES multistep": dict(order=2, variable="log_rho", basis="data"),
    },
)  # fmt: skip
def deis(
    sigmas: Tensor,
    order: int = 3,
    variable: Variable = "t",
    schedule: Schedule | None = None,
    basis: Basis = "noise",
    lower_order_final: bool = False,
) -> Tableau:
    """DEIS: the exact integral of the polynomial through the last ``order`` outputs.

    ``variable`` is what the polynomial lives in: "t" (tAB, the network's time label on ``schedule``,
    default the linear VP chain), "rho" (rhoAB, sigma), "log_rho" (ln sigma, what diffusers calls DEIS).
    tAB-r of the paper is order ``r + 1``.  ``basis="data"`` integrates clean-image estimates in
    ``log_rho``: the multistep exponential integrator, of which DPM-Solver++(2M) is a midpoint variant
    and UniP-3 the same table; its order 2 is RES multistep (Zhang, Song and Chen 2023, arXiv:2308.02157), which
    ComfyUI has under that name.  In ``log_rho`` a step to 0 is of order 1.

    ValueError for "t" on a schedule whose time has no end at sigma = 0 (EDM), and for the data basis in
    another variable.
    """
    s = sigmas.numpy()
    schedule = schedule or vp_linear()
    if basis == "data" and variable != "log_rho":
        raise ValueError("deis integrates clean-image estimates in ln sigma; take variable='log_rho' with basis='data'")
    if variable == "t" and not np.isfinite(_time(schedule, np.zeros(1))).all():
        raise ValueError("deis in t needs a schedule with a time of its own (VP); take variable='rho' or 'log_rho'")
    one_of("variable", variable, Variable)
    cuts: Any = schedule.sigmas.numpy() if isinstance(schedule, VPDiscrete) and variable == "t" else []
    with np.errstate(divide="ignore"):
        tau = {"t": lambda: _time(schedule, s), "rho": lambda: s, "log_rho": lambda: np.log(s)}[variable]()

    def weights(i: int, p: int) -> list[float]:
        if p == 1:
            return [gain(basis, s[i], s[i + 1])]
        if variable == "log_rho":
            x, w = log_step(basis, s[i], s[i + 1])
        else:
            x, w = gauss(s[i], s[i + 1], cuts)
            x = _time(schedule, x) if variable == "t" else x
        return (lagrange(tau[i - p + 1 : i + 1][::-1], x) @ w).tolist()

    orders = orders_of_steps(s.tolist(), order, lower_order_final, exponential=variable == "log_rho")
    return multistep(basis, s.tolist(), orders, weights)


WARM_UP_STEPS = {"none": 0, "heun": 1, "runge_kutta": 3}


def _pndm_calls(steps: int, zero: bool, options: Mapping[str, Any]) -> int:
    kind = options.get("warm_up", "heun")
    staged = WARM_UP_STEPS.get(kind, 0)
    if zero and steps <= staged > 0:
        return 0  # a warm-up step cannot end at 0
    return steps + (3 if kind == "runge_kutta" else 1) * min(steps, staged)


@solver("PNDM", "noise", [4], "Liu, Ren, Lin and Zhao 2022, arXiv:2202.09778", _pndm_calls)
def pndm(sigmas: Tensor, warm_up: WarmUp = "heun", schedule: Schedule | None = None) -> Tableau:
    """PNDM: Adams-Bashforth of order 4 after a warm-up; in x / alpha its transfer function is Euler's step.

    ``warm_up`` "runge_kutta": three steps of the classical method, four evaluations each, with the middle
    in the time of ``schedule`` (default the linear VP chain); "heun": one step of Heun's method, then rising
    order (PLMS); "none": rising order from the start, which is iPNDM.
    """
    s, schedule = sigmas.tolist(), schedule or vp_linear()
    one_of("warm_up", warm_up, WarmUp)
    staged = WARM_UP_STEPS[warm_up]
    if s[-1] == 0 and len(s) - 1 <= staged > 0:
        raise ValueError(
            f"warm_up={warm_up!r} evaluates where its steps end: to reach 0 it needs {staged + 1} steps or more"
        )
    table, history = Stages("noise", s[0]), list[int]()
    for i, (here, there) in enumerate(pairwise(s)):
        h = there - here
        history.append(len(table.rows))
        if i >= staged:
            weights = ADAMS_BASHFORTH[min(4, len(history))]
            table.step([(there, {j: w * h for j, w in zip(reversed(history), weights)})])  # noqa: B905
        elif warm_up == "heun":
            table.step([(there, [h]), (there, [h / 2, h / 2])])
        else:
            ends = torch.from_numpy(_time(schedule, np.array([here, there])))
            middle = float(schedule.sigma(ends.mean()))
            half = middle - here
            table.step(
                [(middle, [half]), (middle, [0, half]), (there, [0, 0, h]), (there, [h / 6, h / 3, h / 3, h / 6])]
            )
    return table.tableau()
