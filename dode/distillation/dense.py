"""A teacher's run with dense output: recorded once, it says where a path is at every noise level."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dode.denoisers import Denoiser, expand
from dode.distillation.teachers import batches
from dode.sampling import walk
from dode.tableau import Tableau


@dataclass(frozen=True)
class DensePath:
    """States ``(B, M + 1, ...)`` and slopes ``dx / d ln sigma`` ``(B, M, ...)`` at falling ``levels`` ``(M + 1,)``.

    Between two levels it is the cubic of both states and slopes in ``ln sigma`` (Hermite); in a step to 0 a straight
    line in ``sigma``.
    """

    levels: Tensor
    states: Tensor
    slopes: Tensor

    @classmethod
    @torch.no_grad()
    def record(cls, denoiser: Denoiser, teacher: Tableau, noise: Tensor, size: int = 100) -> DensePath:
        """Of a solver with one evaluation at each level: ``x - D`` is the slope."""
        states, slopes = list[Tensor](), list[Tensor]()
        for model, (part,) in batches(denoiser, size, noise):
            passed, gone = list[Tensor](), list[Tensor]()
            for state, row in walk(model, teacher.rows, part):
                passed.append(state.x)
                if row is not None:
                    output = state.outputs[state.row]
                    gone.append(state.x - output if row.basis == "data" else row.sigma * output)
            states.append(torch.stack(passed, 1))
            slopes.append(torch.stack(gone, 1))
        return cls(teacher.sigmas.to(noise.device), torch.cat(states), torch.cat(slopes))

    def of(self, images: Tensor) -> DensePath:
        """The paths of some images."""
        return DensePath(self.levels, self.states[images], self.slopes[images])

    def at(self, sigma: Tensor) -> Tensor:
        """The states at levels ``(B,)``, of each image its own, with a gradient to them; above the first, the first."""
        k = (torch.searchsorted(-self.levels, -sigma.detach()) - 1).clamp(0, len(self.levels) - 2)
        each, last = torch.arange(len(sigma), device=sigma.device), k == len(self.levels) - 2
        upper, lower = self.levels[k], self.levels[k + 1]
        straight = last & (lower == 0)
        below = torch.where(straight, upper / 2, lower)  # any level: its cubic is not taken
        h = (below / upper).log()
        u = ((torch.where(straight, upper, sigma) / upper).log() / h).clamp(min=0)
        slope_k = self.slopes[each, k], self.slopes[each, (k + 1).clamp(max=self.slopes.shape[1] - 1)]
        a, b = self.states[each, k], self.states[each, k + 1]
        x = expand((1 + 2 * u) * (1 - u) ** 2, a) * a + expand(u**2 * (3 - 2 * u), a) * b
        x = x + expand(h * u * (1 - u) ** 2, a) * slope_k[0] + expand(h * u**2 * (u - 1), a) * slope_k[1]
        line = torch.lerp(b, a, expand(torch.where(straight, sigma / upper, torch.zeros_like(sigma)), a).to(a.dtype))
        return torch.where(straight.view(-1, *[1] * (a.ndim - 1)), line, x)
