"""A learned table read at another number of calls: where the fit of N calls may begin from that of N + 1 or N - 1."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from dode.tableau import Tableau


def resampled(table: Tableau, nfe: int) -> Tableau:
    """``table`` with ``nfe`` calls in place of its own, on levels and weights between its own.

    Levels, and what is told to the network over them, are read off as functions of the share of the calls that are
    done: ``ln sigma`` is linear between two of them, first and last call keep theirs.  A row has the parts of the
    old row that is nearest in that share, the newest first; what it has no output for goes to the newest.  A start,
    not a solver: fit it.

    Raises
    ------
    ValueError
        A step that stays at its level (a corrector), or fewer than one call is asked for.
    """
    if nfe < 1:
        raise ValueError(f"a solver needs one call or more, got {nfe}")
    if (table.sigmas[1:] == table.sigmas[:-1]).any():
        raise ValueError("a solver that stays at a level (a corrector) cannot be read at another number of calls")
    old = table.nfe
    share = torch.linspace(0, old - 1, nfe, dtype=torch.float64)  # in rows of the old table
    sigmas = _between(table.sigmas[:-1].log(), share).exp()
    told = _between((table.sigmas_in / table.sigmas[:-1]).log(), share).exp()
    parts = torch.zeros(nfe, nfe + 1, dtype=torch.float64)
    for i, where in enumerate(share.round().long().tolist()):
        newest_first = table.parts[where, : where + 2].flip(0)[: i + 2]
        parts[i, : i + 2] = torch.nn.functional.pad(newest_first, (0, i + 2 - len(newest_first))).flip(0)
        parts[i, i + 1] += 1 - parts[i].sum()
    empty = torch.zeros(nfe, dtype=torch.float64)
    found = replace(
        table, sigmas=torch.cat([sigmas, table.sigmas[-1:]]), sigmas_in=told * sigmas, start=empty,
        weights=torch.zeros(nfe, nfe, dtype=torch.float64), metadata={**table.metadata, "nfe": nfe},
    )  # fmt: skip
    return found.with_full(parts * found.row_sums[:, None])


def _between(values: Tensor, where: Tensor) -> Tensor:
    """``values`` ``(N,)`` at positions 0..N - 1, linear between them."""
    low = where.long().clamp(max=max(len(values) - 2, 0))
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], where - low)
