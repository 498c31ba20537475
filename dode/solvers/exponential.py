"""Multistep exponential integrators: DPM-Solver, DPM-Solver++, UniPC.

Their polynomials live in the half log-SNR ``-ln sigma``.  With the moments ``I_k`` of a step
(:func:`dode.solvers.quadrature.moments`) the formulas are the same in either basis; only the moments differ.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from torch import Tensor

from dode.solvers.base import SolverType, solver
from dode.solvers.quadrature import moments
from dode.solvers.rows import LowerOrderFinal, from_rows, gain, multistep, orders_of_steps
from dode.tableau import Basis, Tableau
from dode.utils.files import one_of

Variant = Literal["bh1", "bh2", "vary_coeff"]


def _dpm_multistep(
    basis: Basis, s: list[float], order: int, solver_type: SolverType, lower_order_final: LowerOrderFinal
) -> Tableau:
    one_of("solver_type", solver_type, SolverType)

    def weights(i: int, p: int) -> Sequence[float]:
        if p == 1:
            return [gain(basis, s[i], s[i + 1])]
        I0, I1, I2 = moments(basis, s[i], s[i + 1])
        h = math.log(s[i] / s[i + 1])
        r0 = math.log(s[i - 1] / s[i]) / h
        if p == 2:  # D0 + slope (D0 - D1) / r0
            slope = I0 / 2 if solver_type == "midpoint" else I1
            return [I0 + slope / r0, -slope / r0]
        r1 = math.log(s[i - 2] / s[i - 1]) / h
        # first and second difference as released; an exact third order would have I2 for I2 / 2
        newer = I1 + (I1 * r0 + I2 / 2) / (r0 + r1)
        older = -(I1 * r0 + I2 / 2) / (r0 + r1)
        return [I0 + newer / r0, older / r1 - newer / r0, -older / r1]

    return multistep(basis, s, orders_of_steps(s, order, lower_order_final, exponential=True), weights)


@solver("DPM-Solver (multistep)", "noise", [1, 2, 3], "Lu et al. 2022, arXiv:2211.01095, the released code", entries={})
def dpm_solver_multistep(
    sigmas: Tensor, order: int = 3, solver_type: SolverType = "midpoint", lower_order_final: LowerOrderFinal = True
) -> Tableau:
    """DPM-Solver's formulas with earlier outputs in place of intermediate ones, noise basis.

    As :func:`dpm_solver_pp` in all but the basis.
    """
    return _dpm_multistep("noise", sigmas.tolist(), order, solver_type, lower_order_final)


@solver(
    "DPM-Solver++", "data", [1, 2, 3], "Lu et al. 2022, arXiv:2211.01095, algorithm 2", compared=True,
    entries={"DPM-Solver++(2M)": dict(order=2), "DPM-Solver++(3M)": {}},
)  # fmt: skip
def dpm_solver_pp(
    sigmas: Tensor, order: int = 3, solver_type: SolverType = "midpoint", lower_order_final: LowerOrderFinal = True
) -> Tableau:
    r"""DPM-Solver++ multistep: DDIM, 2M and 3M in the data basis.

    2M: ``D = (1 + 1/(2 r0)) D_i - 1/(2 r0) D_{i-1}``, ``r0 = h_{i-1} / h_i`` in ln sigma
    (``solver_type="heun"`` integrates the slope exactly instead of taking the middle).

    3M is the released one.  It takes half of the second-derivative term that integrating the parabola
    gives, so it converges with order 2; ``deis(order=3, variable="log_rho", basis="data")`` is the method
    of order 3.  The last step falls to order 1 (always if it ends at 0), the one before to 2; in the released code
    that is so below ten steps only, ``lower_order_final="below_10"``.
    """
    return _dpm_multistep("data", sigmas.tolist(), order, solver_type, lower_order_final)


@solver(
    "UniPC", "data", [1, 2, 3, 4, 5], "Zhao, Bai, Rao, Zhou and Lu 2023, arXiv:2302.04867", compared=True,
    entries={"UniPC-2": dict(order=2), "UniPC-3": {}},
)  # fmt: skip
def unipc(
    sigmas: Tensor,
    order: int = 3,
    variant: Variant = "bh2",
    corrector: bool = True,
    basis: Basis = "data",
    lower_order_final: LowerOrderFinal = True,
) -> Tableau:
    """UniPC: predictor UniP-p and corrector UniC-p, one evaluation a step.

    The corrector improves the state that was predicted with the output found there, and the next step
    starts from the improved state with that same output: two moves in one row.  ``corrector=False`` is
    UniP alone.  ``variant`` chooses ``B(h) = h`` ("bh1") or ``e^h - 1`` ("bh2"), which matters only where the
    published code fixes a weight at 1/2: UniP-2 and UniC-1.  "vary_coeff" fixes none; its corrector is the released
    one, which leaves out the highest derivative of the old outputs and all but one of the new one's, so that
    its order is 1.
    """
    one_of("variant", variant, Variant)
    s = sigmas.tolist()
    orders = orders_of_steps(s, order, lower_order_final, exponential=True)

    def step(i: int, nodes: list[int]) -> dict[int, float]:
        """Weights from the corrected state ``i`` on outputs ``nodes``, of which ``i`` is the base point."""
        others = [j for j in nodes if j != i]
        if not others:
            return {i: gain(basis, s[i], s[i + 1])}
        I = moments(basis, s[i], s[i + 1], len(others))  # noqa: E741
        h = math.log(s[i] / s[i + 1])
        r = np.array([math.log(s[i] / s[j]) / h for j in others])
        if variant == "vary_coeff" and others[-1] > i:
            slopes = _vary_corrector(r, I)
        elif variant != "vary_coeff" and len(others) == 1:  # fixed at 1/2 where one condition leaves it free
            slopes = np.array([I[0] if variant == "bh2" else h if basis == "data" else -s[i + 1] * h]) / 2
        else:
            slopes = np.linalg.solve(r ** np.arange(len(r))[:, None], np.array(I[1:]))
        weights = dict(zip(others, slopes / r, strict=True))
        return {i: I[0] - sum(weights.values()), **weights}

    rows = list[dict[int, float]]()
    for i, p in enumerate(orders):
        row = step(i, list(range(i - p + 1, i + 1)))
        if corrector and i > 0:  # the state before is improved by c, and this step carries the improvement on
            before = orders[i - 1]
            predicted = step(i - 1, list(range(i - before, i)))
            improved = step(i - 1, list(range(i - before, i + 1)))
            ratio = 1.0 if basis == "noise" else s[i + 1] / s[i]
            for j, w in improved.items():
                row[j] = row.get(j, 0.0) + ratio * (w - predicted.get(j, 0.0))
        rows.append(row)
    return from_rows(basis, s, rows)


def _vary_corrector(r: np.ndarray, I: Sequence[float]) -> np.ndarray:  # noqa: E741
    """Weights of the divided differences to the nodes ``r`` ``(K,)``, the new one last, as released."""
    factorials = np.array([math.factorial(k + 1) for k in range(len(r))])
    derivatives = np.linalg.inv(r[:, None] ** np.arange(len(r)) / factorials)  # (order of the derivative, node)
    phi = np.array(I[1:]) / factorials
    kept = max(len(r) - 1, 1)
    slopes = phi[:kept] @ derivatives[:kept]
    slopes[-1] = phi[-1] * derivatives[kept - 1, -1]
    return slopes
