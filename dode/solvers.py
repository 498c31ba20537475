"""The handcrafted solvers, each a pure function from a grid to a tableau.

``sigmas`` is a strictly decreasing grid of ``n + 1`` levels (see :mod:`dode.schedules`); only the
last may be 0.  Any solver can be had in the other basis with :meth:`Tableau.to_basis`.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from dode.schedules import check_grid
from dode.tableau import Basis, Tableau


def ddim(sigmas: Tensor, basis: Basis = "noise") -> Tableau:
    """Order 1, one evaluation a step: Euler's method in sigma, exact for a constant output.

    ``x_{i+1} = x_i + (sigma_{i+1} - sigma_i) d_i`` (Song et al. 2020, eq. 13, in x / alpha).
    """
    s = check_grid(sigmas)
    step = s[1:] - s[:-1] if basis == "noise" else 1 - s[1:] / s[:-1]
    return Tableau(basis, s, torch.diag(step), metadata={"solver": "ddim", "order": 1})


ADAMS_BASHFORTH = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def ipndm(sigmas: Tensor, order: int = 4) -> Tableau:
    """iPNDM (Zhang and Chen 2022): Adams-Bashforth weights of a uniform grid, noise basis.

    Row ``i`` uses order ``min(order, i + 1)``.  The weights are those of equal steps whatever the
    grid, so the order they promise holds only where sigma is nearly uniform.
    """
    if order not in ADAMS_BASHFORTH:
        raise ValueError(f"ipndm has orders 1 to 4, got {order}")
    s = check_grid(sigmas)
    weights = torch.zeros(len(s) - 1, len(s) - 1, dtype=torch.float64)
    for i in range(len(weights)):
        for k, w in enumerate(ADAMS_BASHFORTH[min(order, i + 1)]):
            weights[i, i - k] = w * (s[i + 1] - s[i])
    return Tableau("noise", s, weights, metadata={"solver": "ipndm", "order": order})


def heun(sigmas: Tensor, basis: Basis = "noise") -> Tableau:
    """EDM's second-order sampler (Karras et al. 2022, algorithm 1), without churn.

    A step from ``s`` to ``t`` is two rows, with ``h = t - s``: Euler's to ``t``, then one that stays at
    ``t`` and trades half of the first slope for the second, ``h/2 (d_t - d_s)``; in the data basis
    that is ``(s - t) / (2 t) (D_t - D_s)``.  A step to 0 is Euler's alone, so n steps make
    ``2n - 1`` evaluations on a grid that ends at zero and ``2n`` on any other.
    """
    s = check_grid(sigmas)
    levels, rows = [s[0]], list[dict[int, Tensor]]()
    for here, there in pairwise(s):
        i = len(rows)
        rows.append({i: there - here if basis == "noise" else 1 - there / here})
        levels.append(there)
        if there > 0:
            half = (there - here) / 2 if basis == "noise" else (here - there) / (2 * there)
            rows.append({i: -half, i + 1: half})
            levels.append(there)
    weights = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, row in enumerate(rows):
        for j, w in row.items():
            weights[i, j] = w
    return Tableau(basis, torch.stack(levels), weights, metadata={"solver": "heun", "order": 2})


def steps_for_nfe(solver: str, nfe: int) -> int:
    """Grid steps that give ``solver`` exactly ``nfe`` evaluations on a grid ending at zero.

    Heun needs an odd number (``2n - 1``); the others one a step.
    """
    if nfe < 1:
        raise ValueError(f"NFE must be one or more, got {nfe}")
    if solver != "heun":
        return nfe
    if nfe % 2 == 0:
        raise ValueError(f"heun makes 2n - 1 evaluations in n steps; {nfe} is even, try {nfe - 1} or {nfe + 1}")
    return (nfe + 1) // 2
