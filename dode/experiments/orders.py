"""The order of a solver, measured: the slope of log error against log step.

A method of order p errs by h^p.  Multistep methods start with lower orders, and that start would be
measured instead; so the first states can be given exactly, as a proof of order wants it.  The reference is
the denoiser's exact solution where there is one (a Gaussian), else classical Runge-Kutta in ln sigma.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from dode.denoisers import Denoiser, GaussianDenoiser
from dode.sampling import advance, initial_state
from dode.tableau import Tableau


def solution(denoiser: Denoiser, noise: Tensor, sigmas: Tensor, step: float = 0.005) -> Tensor:
    """The exact states ``(n + 1, B, ...)`` at ``sigmas`` from ``sigmas[0] * noise``; float64, ``sigmas > 0``.

    In closed form for a Gaussian; otherwise by classical Runge-Kutta steps of at most ``step`` in ``ln sigma``.
    """
    x = sigmas[0] * noise
    if isinstance(denoiser, GaussianDenoiser):
        return torch.stack([denoiser.solution(x, float(sigmas[0]), float(s)) for s in sigmas])
    slope = lambda x, u: x - denoiser(x, math.exp(u))  # noqa: E731  dx / d ln sigma
    states = [x]
    for a, b in pairwise(sigmas.log().tolist()):
        parts = math.ceil((a - b) / step)
        h = (b - a) / parts
        for u in (a + k * h for k in range(parts)):
            k1 = slope(x, u)
            k2 = slope(x + h / 2 * k1, u + h / 2)
            k3 = slope(x + h / 2 * k2, u + h / 2)
            k4 = slope(x + h * k3, u + h)
            x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(x)
    return torch.stack(states)


@dataclass
class Problem:
    """A denoiser, noise ``(B, ...)`` in float64, and a family of grids that end above 0."""

    denoiser: Denoiser
    noise: Tensor
    grid: Callable[[int], Tensor]
    known: dict[tuple[float, ...], Tensor] = field(default_factory=dict)

    def exact(self, n: int, given: int) -> Tensor:
        """The true states on the grid of ``n`` steps, the first ``given`` and the last; computed once."""
        grid = self.grid(n)
        levels = torch.cat([grid[:-1][: given + 1], grid[-1:]])
        key = tuple(round(level, 12) for level in levels.tolist())  # grids of all n have one end
        if key not in self.known:
            self.known[key] = solution(self.denoiser, self.noise, levels)
        return self.known[key]

    def error(self, make: Callable[[Tensor], Tableau], n: int, given: int = 0) -> float:
        """RMSE of the last state in ``n`` steps, the first ``given`` states after the start set to the truth."""
        grid, exact = self.grid(n), self.exact(n, given)
        tableau = make(grid)
        position = {level: k for k, level in enumerate(grid.tolist())}
        state, before = initial_state(tableau.rows[0], self.noise), None
        for row in tableau.rows:
            if row.sigma != before and position.get(row.sigma, n) <= given:  # a step begins, no stage or corrector
                state.x = exact[position[row.sigma]]
            before = row.sigma
            advance(self.denoiser, row, state)
        return float((state.x - exact[-1]).square().mean().sqrt())

    def order(self, make: Callable[[Tensor], Tableau], steps: tuple[int, int] = (80, 160), given: int = 0) -> float:
        """The measured order between two step counts."""
        few, many = steps
        return math.log(self.error(make, few, given) / self.error(make, many, given)) / math.log(many / few)
