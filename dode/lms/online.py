"""A teacher that runs along, because the student's levels move: third-order Adams-Bashforth, image by image."""

from __future__ import annotations

import torch
from torch import Tensor

from dode.denoisers import Denoiser
from dode.lms.gradients import move
from dode.solvers.rows import gain

ORDER = 3


def exponential_parts(levels: list[Tensor], following: Tensor) -> Tensor:
    """Adams-Bashforth parts ``(k, B)`` in ``ln sigma`` on clean images; ``levels`` are ``k`` of ``(B,)``, newest last.

    The parabola through the outputs, integrated exactly: the row of
    ``dode.solvers.deis(variable="log_rho", basis="data")``, for each image its own, newest output first.
    """
    newest = levels[-1]
    if len(levels) == 1 or bool((following == 0).all()):  # a step to 0 is endless in ln sigma: order 1 there
        return torch.ones_like(newest)[None]
    h = (newest / following).log()
    m = [-torch.expm1(-h)]  # int_0^h tau^j e^(tau - h) dtau, by parts
    for j in range(1, len(levels)):
        m.append(h**j - j * m[-1])
    nodes = torch.stack([(newest / level).log() for level in reversed(levels)])  # (k, B), 0 and below
    powers = torch.stack([nodes**j for j in range(len(levels))])  # (j, k, B)
    solved = torch.linalg.solve(powers.permute(2, 0, 1), torch.stack(m).T[:, :, None])[:, :, 0].T
    return solved / m[0]


class OnlineTeacher:
    """Runs from ``top`` times the noise to wherever the student goes, ``points`` steps a time, uniform in ``sigma``.

    ``points = 5``: the four extra points of each student's step that the paper has (M = 4).  Uniform in ``sigma``,
    because a student's steps are long: uniform in ``ln sigma`` the last of them, down to 0, is hardly resolved at all.
    """

    def __init__(self, denoiser: Denoiser, noise: Tensor, top: float, points: int = 5) -> None:
        self.denoiser, self.points = denoiser, points
        self.x, self.level = top * noise, torch.full((len(noise),), top, dtype=torch.float64, device=noise.device)
        self.levels, self.outputs = list[Tensor](), list[Tensor]()

    @torch.no_grad()
    def run_to(self, following: Tensor) -> Tensor:
        """The state at levels ``(B,)``, all below those where it is; all 0, or all above."""
        for k in range(1, self.points + 1):
            self._step(torch.lerp(self.level, following, 1 / (self.points + 1 - k)))  # what is left, in equal steps
        return self.x

    def _step(self, following: Tensor) -> None:
        self.outputs = [*self.outputs, self.denoiser(self.x, self.level)][-ORDER:]
        self.levels = [*self.levels, self.level][-ORDER:]
        parts = exponential_parts(self.levels, following)
        weights = gain("data", self.level, following) * parts
        newest_first = zip(weights, reversed(self.outputs), strict=False)
        self.x, self.level = move("data", self.x, list(newest_first), self.level, following), following
