"""Rows into a table: one a step of a multistep scheme, several of one with stages, and the analytical first step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from dode.tableau import Basis, Tableau

Number = TypeVar("Number", float, Tensor)
Below = Literal["below_10"]
LowerOrderFinal = bool | Below  # "below_10": only where there are fewer than ten steps


def gain(basis: Basis, s: Number, t: Number) -> Number:
    """What a constant output is worth in a step from ``s`` to ``t``: the row sum."""
    return t - s if basis == "noise" else 1 - t / s


def from_rows(basis: Basis, levels: Sequence[float], rows: Sequence[Mapping[int, float]]) -> Tableau:
    """Rows as ``{output: weight}`` into a tableau."""
    weights = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, row in enumerate(rows):
        for j, w in row.items():
            weights[i, j] = w
    return Tableau(basis, torch.tensor(levels, dtype=torch.float64), weights)


def orders_of_steps(
    s: Sequence[float], order: int, lower_order_final: LowerOrderFinal, exponential: bool = False
) -> list[int]:
    """The order of each step: rising to ``order`` as outputs come in, falling to 1 at the end if so wished.

    In ``ln sigma`` a step to 0 is infinitely long, so it is always of order 1 there (``exponential``).
    ``lower_order_final="below_10"``: it falls only where there are fewer than ten steps.  ValueError for another word.
    """
    n = len(s) - 1
    if isinstance(lower_order_final, str):
        if lower_order_final not in get_args(Below):
            raise ValueError(f"lower_order_final must be True, False or 'below_10', got {lower_order_final!r}")
        lower_order_final = n < 10
    orders = [min(order, i + 1, n - i if lower_order_final else order) for i in range(n)]
    if exponential and s[-1] == 0:
        orders[-1] = 1
    return orders


def multistep(
    basis: Basis, s: Sequence[float], orders: Sequence[int], weights: Callable[[int, int], Iterable[float]]
) -> Tableau:
    """One row a step; ``weights(i, p)`` of step ``i`` at order ``p``, on the newest output first."""
    rows = [{i - k: w for k, w in enumerate(weights(i, p))} for i, p in enumerate(orders)]
    return from_rows(basis, s, rows)


class Stages:
    """Rows of schemes with several evaluations a step, where each stage is written from the step's start.

    A row knows only the last state, so stage k is reached from stage k - 1 by the difference of the two.
    """

    def __init__(self, basis: Basis, top: float) -> None:
        self.basis, self.levels, self.rows = basis, [top], list[dict[int, float]]()

    def step(self, stages: Iterable[tuple[float, Mapping[int, float] | Sequence[float]]]) -> None:
        """``stages``: level, and weights on this step's outputs (a list) or on any (``{output: weight}``)."""
        first, before = len(self.rows), dict[int, float]()
        for level, weights in stages:
            new = dict(weights) if isinstance(weights, Mapping) else {first + k: w for k, w in enumerate(weights)}
            ratio = 1.0 if self.basis == "noise" else level / self.levels[-1]
            row = {j: new.get(j, 0.0) - ratio * before.get(j, 0.0) for j in sorted(new.keys() | before.keys())}
            self.rows.append(row)
            self.levels.append(level)
            before = new

    def tableau(self) -> Tableau:
        return from_rows(self.basis, self.levels, self.rows)


def analytical_first_step(tableau: Tableau) -> Tableau:
    """The table without its first call: the starting noise ``z`` is taken for the first output.

    ``x_1 = sigma_1 z`` then, so the table may start there (DLMS, after Dockhorn et al. 2022).
    """
    if tableau.nfe < 2:
        raise ValueError(
            "an analytical first step replaces one call, and this solver makes only one; take a longer grid"
        )
    full = tableau.full[1:]
    return Tableau(
        tableau.basis, tableau.sigmas[1:], full[:, 2:], full[:, 0] + full[:, 1], tableau.sigmas_in[1:],
        {**tableau.metadata, "afs": True},
    )  # fmt: skip
