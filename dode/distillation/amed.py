"""AMED: between any two levels of a grid, one level and one length are designed (Zhou et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dode import solvers
from dode.denoisers import Denoiser
from dode.distillation.designer import Designed, Designer, Memory, Plan, feature_size
from dode.distillation.designer_training import train
from dode.distillation.problem import Problem, distiller
from dode.schedules import karras


class AMED(Designed):
    """Two rows a step: along its first noise to a designed level, and from its start along the noise seen there.

        x_mid = x_n + (t_mid - t_n) eps(x_n, t_n)        x_{n+1} = x_n + c (t_{n+1} - t_n) eps(x_mid, t_mid)

    with ``t_mid = t_n^r t_{n+1}^(1-r)``.  ``r`` and ``c`` are designed from the bottleneck of the first call; both
    start where DPM-Solver-2 is, ``r = 1/2`` and ``c = 1``.  The base is a DDIM table on the grid, which stays.  With
    ``afs`` (an odd number of calls) the first step's first call is replaced by the starting noise.  Options: afs.
    """

    @property
    def nfe(self) -> int:
        return 2 * self.base.nfe - int(self.options["afs"])

    def begin(self, noise: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        top = self.base.sigmas[0].to(noise.device).expand(len(noise))
        first = self._design(0, None, top, memory) if self.options["afs"] else top
        return first, first

    def _design(self, step: int, feature: Tensor | None, level: Tensor, memory: Memory) -> Tensor:
        """The level between those of ``step``; the length of the step goes to ``memory``."""
        numbers = self.designer(feature, level, step).double()  # of what is known where the step starts
        start, end = (self.base.sigmas[k].to(level) for k in (step, step + 1))
        memory["length"] = 1 + torch.tanh(numbers[:, 1]) / 2
        return torch.exp(end.log() + torch.sigmoid(numbers[:, 0]) * (start / end).log())

    def _place(self, row: int) -> tuple[int, bool]:
        """The step that ``row`` belongs to, and whether it starts there."""
        step, second = divmod(row + int(self.options["afs"]), 2)
        return step, not second

    def plan(self, row: int, feature: Tensor | None, level: Tensor, memory: Memory) -> Plan:
        step, starts = self._place(row)
        if starts:
            middle = self._design(step, feature, level, memory)
            return Plan([(row, torch.ones_like(level))], middle, middle)
        start, end = (self.base.sigmas[k].to(level) for k in (step, step + 1))
        along = memory["length"] * (end - start) / (end - level)  # parts are of what lies between here and the end
        back = (start - level) / (end - level)
        return Plan([(row, along), (row - 1, back)], end.expand(len(level)), end.expand(len(level)))

    def matched(self, row: int) -> bool:
        """Whether the state after ``row`` is one that a teacher has too: at the end of a step."""
        return not self._place(row)[1]

    def keep(self, row: int) -> range:
        return range(row - 1, row + 1)


def begin_amed(denoiser: Denoiser, grid: Callable[[int], Tensor], nfe: int, *, features: bool = True) -> AMED:
    """The solver that AMED's training starts from, with an analytical first step where ``nfe`` is odd.

    ``grid`` is a function of the number of steps.  ValueError for fewer than two calls, or a grid that ends at 0: there
    is no level between that and the last.
    """
    if nfe < 2:
        raise ValueError(f"AMED takes two calls a step, the first of which may be analytical; got {nfe} in all, take 2")
    steps = (nfe + 1) // 2
    if (levels := grid(steps))[-1] == 0:
        raise ValueError("AMED designs a level between any two, and none lies between one and 0; end at sigma_min")
    designer = Designer(steps, 2, feature_size(denoiser) if features else 0)
    return AMED(solvers.ddim(levels), designer, dict(afs=bool(nfe % 2)))


@distiller(
    "AMED", source="Zhou et al. 2024", cite="zhou2024amed", place=3, grid=None, moves=("levels", "weights"),
    needs_gradient=True, designs=True,
)  # fmt: skip
def amed(
    problem: Problem, *, levels: Callable[[int], Tensor] | None = None, features: bool = True, rate: float = 5e-3,
    trajectories: int = 2_000,
) -> Designed:  # fmt: skip
    """An intermediate noise level for each step; of the solver only the calls count.

    ``levels`` is a grid function that does not end at 0; None: Karras's.  The other options are those of :func:`dlms`.
    """
    model = problem.denoiser
    grid = levels or (lambda n: karras(n, model.sigma_min, model.sigma_max))
    start = begin_amed(problem.denoiser, grid, problem.table.nfe, features=features)
    return train(problem, start, rate=rate, trajectories=trajectories)
