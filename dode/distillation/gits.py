"""Grids found by dynamic programming, no gradient: GITS (Chen et al., ICML 2024), as released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dode import solvers
from dode.denoisers import Denoiser
from dode.distillation.problem import Problem, distiller
from dode.sampling import Step, sample
from dode.tableau import Tableau
from dode.utils.files import one_of

Cost = Literal["dev", "l2", "l1"]
Guide = Literal["ipndm", "ddim"]


def deviation(states: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """How far ``(B,)`` states ``(B, ...)`` are from the straight line between the first and the last of a path."""
    along, off = (last - first).flatten(1), (last - states).flatten(1)
    along = along / along.norm(dim=1, keepdim=True)
    return (off - (off * along).sum(1, keepdim=True) * along).norm(dim=1)


def step_costs(
    denoiser: Denoiser, fine: Tensor, noise: Tensor, cost: Cost = "dev", teacher: Guide = "ipndm"
) -> tuple[Tensor, Tensor]:
    """``(M + 1, M + 1)``: what an Euler step from level ``i`` of ``fine`` to level ``j`` costs, and the last state.

    The step leaves from the state of the teacher, which runs once on ``fine`` ``(M + 1,)``, ``M`` calls for each image
    of ``noise``.  "dev": how much farther it ends from the line between the teacher's ends than the teacher itself
    (it may be negative); "l1", "l2": its distance to the teacher's state.  Means over images; 0 where ``j <= i``.
    """
    one_of("cost", cost, Cost)
    one_of("teacher", teacher, Guide)
    steps = list[Step]()
    last = sample(denoiser, solvers.get(teacher).make(fine), noise, callback=steps.append)
    states, levels = [*(step.x for step in steps), last], fine.tolist()
    own = [deviation(x, states[0], last).mean() for x in states[:-1]] + [torch.zeros(())]
    costs = torch.zeros(len(fine), len(fine), dtype=torch.float64)
    for i, step in enumerate(steps):
        for j in range(i + 1, len(fine)):
            x = step.x.add(step.output, alpha=levels[j] - levels[i])
            if cost == "dev":
                costs[i, j] = float(deviation(x, states[0], last).mean() - own[j])
            else:
                costs[i, j] = (x - states[j]).double().flatten(1).norm(p=int(cost[1]), dim=1).mean()
    return costs, last


def cheapest_path(costs: Tensor, steps: int, growth: float = 1.0) -> list[int]:
    """The ``steps + 1`` indices from 0 to the last along which the costs sum to least.

    ``growth`` multiplies the costs of all later steps, at each step: best(j, k) = min_i cost(j, i) + growth best(i,
    k - 1).  ValueError if there are not so many steps to take.
    """
    last = len(costs) - 1
    if not 1 <= steps <= last:
        raise ValueError(f"a grid of {last} fine steps has no path of {steps}")
    allowed = costs.masked_fill(~torch.ones_like(costs).triu(1).bool(), float("inf"))
    best, choices = allowed[:, -1], list[Tensor]()
    for _ in range(steps - 1):
        best, where = (allowed + growth * best).min(1)
        choices.append(where)
    path = [0]
    for where in reversed(choices):
        path.append(int(where[path[-1]]))
    return [*path, last]


@torch.no_grad()
def gits_grid(
    denoiser: Denoiser, noise: Tensor, *, points: int = 60, growth: float = 1.15, cost: Cost = "dev",
    teacher: Guide = "ipndm",
) -> Callable[[int], Tensor]:  # fmt: skip
    """A grid function like ``denoiser.grid``: ``n`` steps to ``sigma_min``, chosen from ``points``, ``(n + 1,)``.

    ``noise`` is ``(B, ...)`` of unit variance (released: 256 images).  The teacher runs once, here; every ``n`` and
    every solver may then use it: ``dode.solvers.ipndm(gits_grid(model, noise), nfe=5)``.
    """
    fine = denoiser.grid(points, final="sigma_min")
    costs, _ = step_costs(denoiser, fine, noise, cost, teacher)
    return lambda n: fine[cheapest_path(costs, n, growth)]


@distiller(
    "GITS", source="Chen et al. 2024", cite="chen2024gits", place=2, start="ipndm", grid=None, moves=("levels",),
    loss=None, images=lambda table, residual: 256,
)  # fmt: skip
def gits(
    problem: Problem, *, points: int = 60, growth: float = 1.15, cost: Cost = "dev", teacher: Guide = "ipndm"
) -> Tableau:
    """The weights of the solver, on noise levels found by dynamic programming.

    With an analytical first step another level is put between the first two, the one with which the images end nearest
    to the teacher's.

    Parameters
    ----------
    points
        Steps of the teacher, between which the solver's are chosen; the last is ``sigma_min``.
    growth
        What multiplies the costs of later steps; the released coefficient.
    cost
        What a step costs: the deviation from a straight path, or the distance to the teacher's state.
    teacher
        The solver that runs on the fine grid.
    """
    fine = problem.denoiser.grid(points, final="sigma_min")
    costs, last = step_costs(problem.denoiser, fine, problem.noise, cost, teacher)
    path = cheapest_path(costs, problem.table.nfe, growth)
    if not problem.afs:
        found = problem.make(fine[path])
    else:
        tables = [problem.make(fine[[k, *path[1:]]]) for k in range(1, path[1])]
        if not tables:
            raise ValueError(f"no level lies between the first two of {points} steps; take more points")
        ends = [(sample(problem.denoiser, t, problem.noise) - last).flatten(1).norm(dim=1).mean() for t in tables]
        found = tables[int(torch.stack(ends).argmin())]
    return found.with_full(found.full, grid=found.levels.tolist())
