"""Corrections: the allowed in which a D-ODE solver may move a row's weights (eqs. 8, 9 and 10 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from dode.tableau import Tableau
from dode.utils.files import one_of

FirstStep = Literal["noise", "none"]
Equation = Literal[8, 9, 10]


def default_first_step(tableau: Tableau) -> FirstStep:
    """The released convention: lean on the starting noise in the noise basis, not in the data basis."""
    return "noise" if tableau.basis == "noise" else "none"


def _estimates(tableau: Tableau, first_step: FirstStep | None) -> tuple[Tensor, Tensor, FirstStep]:
    """``dhat_i`` of each row as weights on the outputs ``(N, N + 1)``, their scale ``c`` ``(N, 1)``, the first step."""
    first_step = first_step or default_first_step(tableau)
    one_of("first_step", first_step, FirstStep)
    full, sums = tableau.full, tableau.row_sums
    stays = tableau.sigmas[1:] == tableau.sigmas[:-1]
    last_call = torch.zeros_like(full)
    last_call[:, 1:].fill_diagonal_(1.0)
    scale = torch.where(stays, tableau.weights.diagonal(), sums)[:, None]
    # schemes with a corrector compare raw outputs, all others their combinations
    return last_call if stays.any() else full / scale, scale, first_step


def directions(tableau: Tableau, first_step: FirstStep | None = None) -> Tensor:
    """What ``lambda_i`` multiplies: ``(N, N + 1)`` float64, start column first; rows sum to zero.

    Row ``i`` is ``c (dhat_i - dhat_{i-1})``, with ``dhat_i`` the solver's own combined output (its row
    over its row sum ``c``), as eq. 10 has it for high-order solvers.  A row that stays at its level
    (Heun's corrector) has no such sum: there ``dhat`` is the last network output, as in the released
    D-EDM, and ``c`` the row's weight on it, so that ``lambda = -1`` takes the corrector back.  (The
    released code has ``c = 1`` there: the same correction, on a scale that changes from row to row.)

    The first row leans on the starting noise (``first_step="noise"``, the default in the noise basis,
    ``d_{T+1} := x_T``) or is left alone ("none", the default in the data basis).  Corrections are kept:
    a corrector starts from the corrected predictor, where the released D-EDM starts again from the
    beginning of the step; on the tableau that needs no special case.
    """
    combined, scale, first_step = _estimates(tableau, first_step)
    previous = torch.zeros_like(combined)
    previous[0, 0] = 1.0
    previous[1:] = combined[:-1]
    result = scale * (combined - previous)
    if first_step == "none":
        result[0] = 0.0
    return result


def families(tableau: Tableau, equation: Equation = 10, first_step: FirstStep | None = None) -> list[Tensor]:
    """The directions in which row ``i`` may move: for each row ``(K_i, N + 1)`` float64, start column first.

    Equation 10 has one direction a row (:func:`directions`); 9 has ``c (dhat_i - dhat_k)`` for every earlier
    ``k``, so the weights still sum to one; 8 has ``c dhat_k`` for every ``k`` up to ``i``, which is any
    combination at all, consistent or not.  The starting noise counts as an earlier estimate with
    ``first_step="noise"``.  A row without a direction has ``K_i = 0``.
    """
    one_of("equation", equation, Equation)
    if equation == 10:
        along = directions(tableau, first_step)
        return [row[None][: int(row.any())] for row in along]
    estimates, scale, first_step = _estimates(tableau, first_step)
    noise = torch.zeros(1, tableau.nfe + 1, dtype=torch.float64)
    noise[0, 0] = 1.0
    result = []
    for i in range(tableau.nfe):
        earlier = torch.cat([noise[: int(first_step == "noise")], estimates[:i]])
        here = estimates[i : i + 1]
        result.append(scale[i] * (here - earlier if equation == 9 else torch.cat([earlier, here])))
    return result


def corrected(
    tableau: Tableau,
    lambdas: Tensor | Sequence[float] | Sequence[Sequence[float]],
    first_step: FirstStep | None = None,
    equation: Equation = 10,
) -> Tableau:
    """The D- version of ``tableau``; zeros give it back bit for bit.

    ``lambdas``: one for each row (equation 10), or for each row as many as it has :func:`families`.
    """
    allowed = families(tableau, equation, first_step)
    if len(lambdas) != tableau.nfe:
        raise ValueError(f"{tableau.nfe} rows need {tableau.nfe} lambdas, got {len(lambdas)}")
    full = tableau.full
    for i, (value, direction) in enumerate(zip(lambdas, allowed, strict=True)):
        value = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        if equation != 10 and len(value) != len(direction):
            raise ValueError(f"row {i} needs {len(direction)} lambdas with equation {equation}, got {len(value)}")
        full[i] += value[: len(direction)] @ direction
    return tableau.with_full(full)
