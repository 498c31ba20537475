"""The numbers of a linear multistep solver that a fit may move, as one vector without constraints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from dode.tableau import Tableau

Kind = Literal["weight", "level", "level_in"]


@dataclass(frozen=True)
class Space:
    """Tables around ``base`` as vectors ``(P,)`` float64, and back; every vector is a valid, consistent solver.

    - *Weights* as parts ``a_ij = W_ij / (row sum)`` of a row (DLMS eq. 8: they sum to one).  A row may use its last
      ``window`` outputs, the starting noise counting as output -1; the newest part is what the others leave.
    - *Levels* as ``ln`` of the gaps in ``ln sigma``, so that they decrease whatever the numbers are.  The last stays,
      and the first unless asked.
    - With ``top``, the first level too, as ``ln`` of what it is of the base's: an analytical first step (AFS) from the
      teacher's start to there, learned.
    - *Levels given to the network* as ``ln(sigmas_in / sigmas)``: DLMS's time scaling.

    ValueError for a ``base`` that repeats a level (Heun's corrector) or uses an output outside the window.
    """

    base: Tableau
    window: int = 4
    weights: bool = True
    levels: bool = True
    levels_in: bool = True
    first_level: bool = False

    def __post_init__(self) -> None:
        if (self.base.sigmas[1:] == self.base.sigmas[:-1]).any():
            raise ValueError(
                "a solver that stays at a level (a corrector) has no smooth grid to move; take a multistep one"
            )
        outside = [(i, j - 1) for i, j in self.base.full.nonzero().tolist() if j - 1 not in self._reach(i)]
        if outside:
            raise ValueError(f"row {outside[0][0]} uses output {outside[0][1]}: widen window={self.window}")

    def _reach(self, row: int) -> range:
        """The outputs that a row may use, the newest last; -1 is the starting noise."""
        return range(max(-1, row + 1 - self.window), row + 1)

    @cached_property
    def _parts(self) -> list[tuple[int, int]]:
        """(row, output) of each free part."""
        return [(i, j) for i in range(self.base.nfe) for j in self._reach(i)[:-1]] if self.weights else []

    @cached_property
    def kinds(self) -> list[Kind]:
        """What each number of a vector is."""
        n = self.base.nfe
        weights: list[Kind] = ["weight"] * len(self._parts)
        levels: list[Kind] = ["level"] * (self.first_level + (n - 1) * self.levels)
        levels_in: list[Kind] = ["level_in"] * (n * self.levels_in)
        return weights + levels + levels_in

    @cached_property
    def rows(self) -> list[int]:
        """For each number the first row whose evaluation, or else whose move, it changes."""
        n = self.base.nfe
        levels = [*range(n - 1)] if self._ends_at_zero else [0] * (n - 1)  # a fixed end: each gap moves all levels
        return (
            [i for i, _ in self._parts] + [0] * self.first_level + levels * self.levels + [*range(n)] * self.levels_in
        )

    @cached_property
    def moves_only(self) -> list[bool]:
        """For each number, whether it leaves the evaluation of that row as it is."""
        kept = [kind != "level_in" for kind in self.kinds]
        if self.first_level:
            kept[len(self._parts)] = False
        return kept

    @property
    def jacobian_calls(self) -> int:
        """Network calls, an image, of a walk and of the Jacobian of its end by differences."""
        n = self.base.nfe
        return n + sum(n - row - kept for row, kept in zip(self.rows, self.moves_only, strict=True))

    def pack(self, table: Tableau) -> Tensor:
        """The vector of a table of as many rows."""
        found = list[Tensor]()
        if self.weights:
            parts = table.normalised_weights.tolist()
            found.append(torch.tensor([parts[i][j + 1] for i, j in self._parts], dtype=torch.float64))
        if self.first_level:
            found.append((table.sigmas[:1] / self.base.sigmas[:1]).log())
        if self.levels:
            gaps = self._gaps(table)
            found.append(gaps.log() if self._ends_at_zero else (gaps[:-1] / gaps[-1]).log())
        if self.levels_in:
            found.append((table.sigmas_in / table.sigmas[:-1]).log())
        return torch.cat([torch.zeros(0, dtype=torch.float64), *found])

    def table(self, vector: Tensor) -> Tableau:
        """The table of a vector."""
        n, rest = self.base.nfe, vector.double()
        parts, rest = rest[: len(self._parts)], rest[len(self._parts) :]
        sigmas, ratio = self.base.sigmas, self.base.sigmas_in / self.base.sigmas[:-1]
        top, rest = rest[: int(self.first_level)].sum().exp() * sigmas[:1], rest[int(self.first_level) :]
        if self.levels:
            sigmas, rest = self._sigmas(top, rest[: n - 1]), rest[n - 1 :]
        elif self.first_level:
            sigmas = torch.cat([top, sigmas[1:]])
        if self.levels_in:
            ratio = rest.exp()
        moved = replace(self.base, sigmas=sigmas, sigmas_in=ratio * sigmas[:-1])
        full = self.base.normalised_weights
        for (i, j), part in zip(self._parts, parts, strict=True):
            full[i, j + 1] = part
        if self.weights:
            for i in range(n):
                full[i, i + 1] = 1 - full[i, : i + 1].sum()
        return moved.with_full(full * moved.row_sums[:, None])

    @property
    def _ends_at_zero(self) -> bool:
        return bool(self.base.sigmas[-1] == 0)

    def _gaps(self, table: Tableau) -> Tensor:
        logs = table.sigmas[: len(table.sigmas) - self._ends_at_zero].log()
        return logs[:-1] - logs[1:]

    def _sigmas(self, top: Tensor, numbers: Tensor) -> Tensor:
        end = self.base.sigmas[-1:]
        if self._ends_at_zero:
            return torch.cat([top, top * (-numbers.exp().cumsum(0)).exp(), end])
        shares = torch.cat([numbers, numbers.new_zeros(1)]).softmax(0)  # of the whole way down
        return torch.cat([top, top * (shares.cumsum(0)[:-1] * (end / top).log()).exp(), end])


@dataclass(frozen=True)
class GridSpace(Space):
    """A handcrafted solver on grids that may move: ``make(sigmas)`` writes its weights anew for each.

    What LD3 (Tong et al., ICLR 2025) searches: the levels, and apart from them those given to the network.
    """

    make: Callable[[Tensor], Tableau] | None = None
    weights: bool = False

    def table(self, vector: Tensor) -> Tableau:
        moved = super().table(vector)
        assert self.make is not None and not self.weights, "a grid space needs make=, and has no free weights"
        made = self.make(moved.sigmas)
        return replace(made, sigmas_in=moved.sigmas_in, metadata=self.base.metadata)


def resampled(table: Tableau, nfe: int) -> Tableau:
    """``table`` with ``nfe`` calls in place of its own, on levels and weights between its own.

    Levels, and the levels given to the network over them, are read off as functions of the share of the calls that are
    done: ``ln sigma`` is linear between two of them, first and last call keep theirs.  A row has the parts of the
    old row that is nearest in that share, the newest first; what it has no output for goes to the newest.  A start,
    not a solver: fit it.

    ValueError for a step that stays at its level (a corrector), or if fewer than one call is asked for.
    """
    if nfe < 1:
        raise ValueError(f"a solver needs one call or more, got {nfe}")
    if (table.sigmas[1:] == table.sigmas[:-1]).any():
        raise ValueError("a solver that stays at a level (a corrector) cannot be read at another number of calls")
    old = table.nfe
    share = torch.linspace(0, old - 1, nfe, dtype=torch.float64)  # in rows of the old table
    sigmas = _between(table.sigmas[:-1].log(), share).exp()
    ratios = _between((table.sigmas_in / table.sigmas[:-1]).log(), share).exp()
    parts = torch.zeros(nfe, nfe + 1, dtype=torch.float64)
    for i, where in enumerate(share.round().long().tolist()):
        newest_first = table.normalised_weights[where, : where + 2].flip(0)[: i + 2]
        parts[i, : i + 2] = torch.nn.functional.pad(newest_first, (0, i + 2 - len(newest_first))).flip(0)
        parts[i, i + 1] += 1 - parts[i].sum()
    empty = torch.zeros(nfe, dtype=torch.float64)
    found = replace(
        table, sigmas=torch.cat([sigmas, table.sigmas[-1:]]), sigmas_in=ratios * sigmas, noise_weights=empty,
        weights=torch.zeros(nfe, nfe, dtype=torch.float64), metadata={**table.metadata, "nfe": nfe},
    )  # fmt: skip
    return found.with_full(parts * found.row_sums[:, None])


def _between(values: Tensor, where: Tensor) -> Tensor:
    """``values`` ``(N,)`` at positions 0..N - 1, linear between them."""
    low = where.long().clamp(max=max(len(values) - 2, 0))
    high = (low + 1).clamp(max=len(values) - 1)
    return torch.lerp(values[low], values[high], where - low)
