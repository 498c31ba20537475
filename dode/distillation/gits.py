"""Grids found by dynamic programming, no gradient: GITS (Chen et al., ICML 2024)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dode import solvers
from dode.denoisers import Denoiser
from dode.distillation.problem import Problem, distiller
from dode.sampling import Step, sample
from dode.tableau import Tableau


def step_costs(denoiser: Denoiser, fine: Tensor, noise: Tensor) -> Tensor:
    """``(M + 1, M + 1)``: what an Euler step from level ``i`` of ``fine`` to level ``j`` misses by; 0 where ``j <= i``.

    The miss is the mean Euclidean distance to the state of the teacher, DDIM on ``fine`` ``(M + 1,)``, which
    both steps leave from: the teacher's own outputs are all it takes, ``M`` calls for each image of ``noise``.
    """
    steps = list[Step]()
    last = sample(denoiser, solvers.ddim(fine), noise, callback=steps.append)
    states = [*(step.x for step in steps), last]
    costs, levels = torch.zeros(len(fine), len(fine), dtype=torch.float64), fine.tolist()
    for i, step in enumerate(steps):
        for j in range(i + 1, len(fine)):
            missed = step.x.add(step.output, alpha=levels[j] - levels[i]) - states[j]
            costs[i, j] = missed.double().flatten(1).norm(dim=1).mean()
    return costs


def cheapest_path(costs: Tensor, steps: int, growth: float = 1.0) -> list[int]:
    """The ``steps + 1`` indices from 0 to the last along which the costs sum to least.

    Each error is multiplied by ``growth`` in every step after it: what is missed early has longer to grow.
    ValueError if there are not so many steps to take.
    """
    last = len(costs) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"a grid of {last} fine steps has no path of {steps}")
    impossible = torch.tensor(float("inf"), dtype=torch.float64)
    allowed = torch.where(torch.ones_like(costs).triu(1).bool(), costs, impossible)
    best, came = allowed[0], list[Tensor]()
    for _ in range(steps - 1):
        through = best[:, None] * growth + allowed
        best, where = through.min(0)
        came.append(where)
    path = [last]
    for where in reversed(came):
        path.append(int(where[path[-1]]))
    return [0, *reversed(path)]


@torch.no_grad()
def gits_grid(denoiser: Denoiser, noise: Tensor, *, points: int = 60, growth: float = 1.15) -> Callable[[int], Tensor]:
    """A grid function like ``denoiser.grid``: ``n`` steps chosen from ``points`` of the denoiser's own, ``(n + 1,)``.

    ``noise`` is ``(B, ...)`` of unit variance (the paper: 256 images and 60 steps; ``growth`` is its coefficient).
    The teacher runs once, here; every ``n`` and every solver may then use it:
    ``dode.solvers.ipndm(gits_grid(model, noise), nfe=5)``.
    """
    fine = denoiser.grid(points)
    costs = step_costs(denoiser, fine, noise)
    return lambda n: fine[cheapest_path(costs, n, growth)]


@distiller(
    "GITS", source="Chen et al. 2024", cite="chen2024gits", place=2, start="ipndm", grid=None, moves=("levels",),
    loss=None,
)  # fmt: skip
def gits(problem: Problem, *, points: int = 60, growth: float = 1.15) -> Tableau:
    """The weights of the solver, on noise levels found by dynamic programming.

    Parameters
    ----------
    points
        Steps of the teacher, between which the solver's are chosen.
    growth
        How an error grows with each later step; the paper's coefficient.
    """
    make, afs = problem.make, int(problem.afs)
    grid = gits_grid(problem.denoiser, problem.noise, points=points, growth=growth)
    found = make(grid(problem.table.nfe + afs)[afs:])
    return found.with_full(found.full, grid=found.levels.tolist())
