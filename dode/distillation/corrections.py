"""What the lambdas of D-ODE solvers multiply: the paper's equations on any table, and what its authors released.

``Released`` below means https://github.com/kim-sanghwan/D-ODE-Solvers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from dode import solvers
from dode.distillation.teachers import Teacher, make_teacher, target_states
from dode.schedules import Align, VPDiscrete, karras, time_uniform
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
    last_call = torch.zeros_like(full)
    last_call[:, 1:].fill_diagonal_(1.0)
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
    ("none", the default in the data basis).  Corrections are kept: a corrector starts from the corrected predictor,
    where the released D-EDM starts again from the beginning of the step.
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

    Equation 10 has one direction a row (:func:`directions`), or none; 9 has ``c (dhat_i - dhat_k)`` for every earlier
    ``k``, so the weights still sum to one; 8 has ``c dhat_k`` for every ``k`` up to ``i``, which is any combination,
    consistent or not.  The starting noise counts as an earlier estimate with ``first_step="noise"``.
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
    directions: Sequence[Tensor]  # what each row's lambdas multiply, (K_i, N + 1), start column first
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
        full = self.table.full.abs() + reach
        for i in self.takes_back:
            full[i] += reach[i - 1]
        return self.table.with_full(full)


def paper_plan(
    table: Tableau, teacher: Teacher, scale: int, align: Align, first_step: FirstStep | None, equation: Equation
) -> Plan:
    """The fit of the paper's equations 14 and 10 (or 9, or 8)."""
    guide = make_teacher(table, teacher, scale, align)
    return Plan(table, guide, target_states(table, guide, align), families(table, equation, first_step))


def released_plan(table: Tableau, schedule: Any, scale: int) -> Plan:
    """The fit of the released code for D-DDIM, D-EDM (data side) and D-DPM-Solver (noise side, with D-DDIM).

    ``lambda_i`` multiplies the newest network output less that of the call before, whichever step that was of, times
    one in the states that are compared (D-DDIM, D-EDM), or times the newest output's weight (D-DPM-Solver).  Every
    stage starts from its step's start: what corrected the stage before shows only in the output there, or for Heun's
    slope in ``(x - D) / sigma`` there.  Row ``r`` is fitted to DDIM's state ``scale (r + 1)``, whatever its level.

    In the data basis the levels are the table's, to zero, and DDIM's as many as ``scale`` calls for one of the solver
    have on Karras's grid over the same range.  In the noise basis the schedule is a chain: D-DDIM's labels are
    ``T`` equal parts of it counted from below, then sigma = 0; D-DPM-Solver's all of it from end to end, also inside
    steps; DDIM's are ``scale T`` equal parts, at most all.  There the states are ``alpha x``, from one starting noise.

    ValueError for other solvers: the released D-iPNDM and D-DEIS meet the teacher in time (and tell the network of the
    label below), so that ``align="time"`` with ``teacher="same"`` is theirs.
    """
    n, name = table.nfe, None if table.metadata.get("afs") else table.metadata.get("solver")
    known = ["ddim", "heun"] if table.basis == "data" else ["ddim", "dpm_solver"]
    if name not in known:
        raise ValueError(
            f"align='released' knows {' and '.join(known)} for a network that predicts {table.basis}, not {name}; take "
            "align='time' or 'index'"
        )
    along = torch.eye(n, n + 1, dtype=torch.float64).roll(1, 1)
    along = along - along.roll(-1, 1)
    if table.basis == "data":
        if table.levels[-1] > 0:
            raise ValueError("align='released' needs a grid that ends at zero in the data basis, as EDM's does")
        top, bottom = float(table.sigmas[0]), float(table.levels[-2])
        guide = solvers.ddim(karras(scale * n, bottom, top, final="zero"))
        along[0] = 0
        s = table.sigmas.tolist()
        back = {i: (s[i - 1] + s[i]) / (2 * s[i]) for i in range(n) if s[i + 1] == s[i]}
        return Plan(table, guide, range(scale, scale * n + 1, scale), [row[None] for row in along], back)
    if not isinstance(schedule, VPDiscrete):
        raise ValueError("align='released' needs a network on a chain of labels (VPDiscrete) in the noise basis")
    guide = solvers.ddim(_from_below(min(schedule.steps, scale * n), schedule))
    targets = [*range(guide.nfe // n, guide.nfe, guide.nfe // n)][: n - 1] + [guide.nfe]
    if name == "ddim":
        table, firsts = solvers.ddim(_from_below(n, schedule)), [*range(n)]
        weights = 1 / schedule.alpha(table.sigmas[1:])
    else:
        order = int(table.metadata["order"])
        grid = time_uniform(n, schedule.sigma_min, schedule.sigma_max, schedule)
        table = solvers.dpm_solver(grid, order=order, inner="grid")
        firsts, weights = [*accumulate(split(n, order), initial=0)], table.weights.diagonal()
    alpha, guides = schedule.alpha(table.sigmas), schedule.alpha(guide.sigmas)
    along[0, 0] *= alpha[0] * table.sigmas[0]  # the first row leans on the state that it starts from
    start = alpha[0] * table.sigmas[0] / (guides[0] * guide.sigmas[0])
    return Plan(
        table, guide, targets, [row[None] for row in weights[:, None] * along],
        {i: 1.0 for i in range(n) if i not in firsts},
        (guides[targets] / alpha[1:]).tolist(), float(start),
    )  # fmt: skip


def _from_below(n: int, chain: VPDiscrete) -> Tensor:
    """``n`` labels, equal parts of the chain from label 0 on, cut to whole ones; then sigma = 0."""
    labels = torch.linspace(0, chain.steps, n + 1)[:n].long().flip(0)
    return torch.cat([chain.sigmas[labels], torch.zeros(1, dtype=torch.float64)])
