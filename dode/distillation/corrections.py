"""What D-ODE's lambdas multiply: in the paper, for any table, or in github.com/kim-sanghwan/D-ODE-Solvers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from dode import solvers
from dode.distillation.space import Kind, Space
from dode.schedules import VPDiscrete, karras, time_uniform
from dode.solvers.singlestep import split
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
    last_call = torch.eye(*full.shape, dtype=torch.float64).roll(1, 1)
    scale = torch.where(stays, tableau.weights.diagonal(), sums)[:, None]
    # schemes with a corrector compare raw outputs, all others their combinations
    return last_call if stays.any() else full / scale, scale, first_step


def directions(tableau: Tableau, first_step: FirstStep | None = None) -> Tensor:
    """What ``lambda_i`` multiplies: ``(N, N + 1)`` float64, start column first; rows sum to zero.

    Row ``i`` is ``c (dhat_i - dhat_{i-1})``, with ``dhat_i`` the solver's own combined output (its row over its row sum
    ``c``), as eq. 10 has it for high-order solvers.  A row that stays at its level (Heun's corrector) has no such sum:
    there ``dhat`` is the last network output, as in the released D-EDM, and ``c`` the row's weight on it, so that
    ``lambda = -1`` takes the corrector back.  (The released code has ``c = 1`` in every row of D-DDIM, D-iPNDM, D-DEIS
    and D-EDM: the same solvers on another scale.)

    The first row leans on the starting noise (``first_step="noise"``, the default in the noise basis) or is left alone
    ("none", the default in the data basis).

    Corrections are kept: Heun's corrector starts from the corrected predictor, the released one from the step's start.
    In the data basis it multiplies what was kept by ``(s - t) / (2 t)``, 628 in the last step of five calls that ends
    at EDM's lowest level.  The best ``lambda`` there is -1 (-0.998 on fashion-mnist-data, -1.0001 on another network):
    it takes the corrector back, the last call sees what the one before saw, and one is wasted.  Noise estimates
    (``basis="own"`` with Heun) compare the state with what the network says of it: that fit uses the call.
    """
    combined, scale, first_step = _estimates(tableau, first_step)
    noise = torch.eye(1, tableau.nfe + 1, dtype=torch.float64)
    result = scale * (combined - torch.cat([noise, combined[:-1]]))
    if first_step == "none":
        result[0] = 0.0
    return result


def families(tableau: Tableau, equation: Equation = 10, first_step: FirstStep | None = None) -> list[Tensor]:
    """The directions in which row ``i`` may move: for each row ``(K_i, N + 1)`` float64, start column first.

    Equation 10 has one direction a row (:func:`directions`), or none; 9 has ``c (dhat_i - dhat_k)`` for every earlier
    ``k``, so the weights still sum to one; 8 has ``c dhat_k`` for every ``k`` up to ``i``, which is any combination,
    consistent or not.  The starting noise counts as an earlier estimate with ``first_step="noise"``.
    """
    one_of("equation", equation, Equation)
    if equation == 10:
        along = directions(tableau, first_step)
        return [row[None][: int(row.any())] for row in along]
    estimates, scale, first_step = _estimates(tableau, first_step)
    start = int(first_step == "noise")
    seen = torch.cat([torch.eye(start, tableau.nfe + 1, dtype=torch.float64), estimates])
    allowed = lambda k: seen[k] - seen[:k] if equation == 9 else seen[: k + 1]  # noqa: E731
    return [scale[i] * allowed(i + start) for i in range(tableau.nfe)]


def corrected(
    tableau: Tableau, lambdas: Tensor | Sequence[float] | Sequence[Sequence[float]],
    first_step: FirstStep | None = None, equation: Equation = 10,
) -> Tableau:  # fmt: skip
    """The D- version of ``tableau``; zeros give it back bit for bit.

    ``lambdas``: one for each row (equation 10), or for each row as many as it has :func:`families`.
    """
    allowed = families(tableau, equation, first_step)
    if len(lambdas) != tableau.nfe:
        raise ValueError(f"{tableau.nfe} rows need {tableau.nfe} lambdas, got {len(lambdas)}")
    values = [torch.as_tensor(value, dtype=torch.float64).reshape(-1) for value in lambdas]
    for i, (value, direction) in enumerate(zip(values, allowed, strict=True)):
        if equation != 10 and len(value) != len(direction):
            raise ValueError(f"row {i} needs {len(direction)} lambdas with equation {equation}, got {len(value)}")
    return Plan(tableau, tableau, [], allowed).corrected(values)


@dataclass(frozen=True)
class Plan:
    """What a fit does with the rows of ``table``, one after another."""

    table: Tableau
    teacher: Tableau
    targets: Sequence[int]  # the teacher's state that each row is fitted to
    directions: Sequence[Tensor] | Tensor  # what each row's lambdas multiply, (K_i, N + 1), start column first
    takes_back: Mapping[int, float] = field(default_factory=dict)  # so often the correction of the row before, by row
    target_scales: Sequence[float] = ()  # what the target of each row is multiplied by; none: by 1
    teacher_start: float = 1.0  # the teacher's starting noise, for one of the student's

    def corrected(self, lambdas: Sequence[Tensor]) -> Tableau:
        """The table whose first rows have these corrections: ``K_i`` numbers a row, of those beyond none is used."""
        full = self.table.full
        for i, (value, direction) in enumerate(zip(lambdas, self.directions, strict=False)):
            move = value[: len(direction)] @ direction
            full[i] += move
            if i + 1 in self.takes_back:
                full[i + 1] -= self.takes_back[i + 1] * move
        return self.table.with_full(full)

    @property
    def support(self) -> Tableau:
        """A table with a weight wherever a row or its correction may have one."""
        reach = torch.stack([direction.abs().sum(0) for direction in self.directions])
        back = [reach[i - 1] * (i in self.takes_back) for i in range(self.table.nfe)]
        return self.table.with_full(self.table.full.abs() + reach + torch.stack(back))


@dataclass(frozen=True)
class DirectionSpace(Space):
    """Lambdas as what a fit may move: each row along ``directions``, ``(K_i, N + 1)`` of it (:func:`families`).

    Any table will do, one that repeats levels too.
    """

    directions: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        """Nothing is refused: no level moves, and a row may use any output."""

    @cached_property
    def kinds(self) -> list[Kind]:
        return ["weight"] * len(self.rows)

    @cached_property
    def rows(self) -> list[int]:
        return [i for i, along in enumerate(self.directions) for _ in along]

    def pack(self, table: Tableau) -> Tensor:
        moves = zip(self.directions, table.full - self.base.full, strict=True)
        return torch.cat([torch.linalg.lstsq(d.T, move[:, None], driver="gelsd").solution[:, 0] for d, move in moves])

    def table(self, vector: Tensor) -> Tableau:
        lambdas = vector.double().split([len(along) for along in self.directions])
        return Plan(self.base, self.base, [], self.directions).corrected(lambdas)


def released_plan(table: Tableau, schedule: Any, scale: int) -> Plan:
    """The authors' fit: of D-DDIM and D-EDM (Heun) in the data basis, of D-DDIM and D-DPM-Solver in the noise basis.

    ``lambda_i`` multiplies the newest network output less that of the call before, whatever its step, times one in the
    states that are compared, or in D-DPM-Solver times the newest output's weight.  A stage starts from its step's
    start: what corrected the stage before it shows in what was evaluated there alone, the output or Heun's slope
    ``(x - D) / sigma``.  Row ``r`` is fitted to state ``scale (r + 1)`` of DDIM, whose level is another.

    Data basis: the table's levels, the last of them 0; DDIM's are Karras's over the same range, ``scale`` for each
    *call*; ``lambda_0 = 0``.  Noise basis, on a chain, whatever the table's levels: D-DDIM's labels are ``n`` equal
    parts of the chain counted from 0 and cut to whole ones, then sigma = 0, DDIM's ``scale n`` (at most all) such
    parts; D-DPM-Solver has equal times from end to end, inside steps too.  States ``alpha x`` are compared; both start
    at the same one, which the first row leans on.  (There it is the noise, here ``alpha sigma`` times the noise, 0.9992
    at label 800.  Between labels the authors interpolate ``ln alpha``, a :class:`VPDiscrete` has ``ln sigma``.)

    ValueError for other solvers.  Released D-iPNDM and D-DEIS are aligned in time, with themselves as the teacher, and
    tell the network of label ``t - 1`` at the level of label ``t``: ``align="time", teacher="same"``, but for that.
    """
    n, name, data = table.nfe, str(table.metadata.get("solver")), table.basis == "data"
    known = table.levels[-1] == 0 if data else isinstance(schedule, VPDiscrete)
    if not known or name not in ("ddim", "heun" if data else "dpm_solver") or table.metadata.get("afs"):
        having = "ddim and heun down to sigma = 0" if data else "ddim and dpm_solver on a chain of labels"
        raise ValueError(f"align='released' has {having} in the {table.basis} basis, without afs; this is {name}")
    along = torch.eye(n + 1, dtype=torch.float64).diff(dim=0)
    if data:
        along[0] = 0.0
        guide = solvers.ddim(karras(scale * n, float(table.levels[-2]), float(table.levels[0]), final="zero"))
        s = table.sigmas.tolist()
        back = {i: (s[i - 1] / s[i] + 1) / 2 for i in range(n) if s[i + 1] == s[i]}
        return Plan(table, guide, range(scale, scale * n + 1, scale), along[:, None], back)
    alpha, below = schedule.alpha, lambda n: torch.linspace(0, schedule.steps, n + 1)[:n].long().flip(0)
    guide = solvers.ddim(schedule.sigmas[below(min(schedule.steps, scale * n))], final="zero")
    order = 1 if name == "ddim" else table.metadata["order"]
    if name == "ddim":
        table = solvers.ddim(schedule.sigmas[below(n)], final="zero")
        weights = 1 / alpha(table.sigmas[1:])
    else:
        grid = time_uniform(n, schedule.sigma_min, schedule.sigma_max, schedule)
        table = solvers.dpm_solver(grid, order=order, inner="grid")
        weights = table.weights.diagonal()
    inside = set(range(n)).difference(accumulate(split(n, order), initial=0))
    targets = [guide.nfe // n * (i + 1) for i in range(n - 1)] + [guide.nfe]
    start = alpha(table.sigmas[0]) * table.sigmas[0]
    along[0, 0] *= start
    return Plan(
        table, guide, targets, (weights[:, None] * along)[:, None], dict.fromkeys(inside, 1.0),
        (alpha(guide.sigmas[targets]) / alpha(table.sigmas[1:])).tolist(),
        float(start / alpha(guide.sigmas[0]) / guide.sigmas[0]),
    )  # fmt: skip
