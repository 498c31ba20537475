"""DLMS as published: weights, levels and input levels, designed row by row (Liang et al., ICLR 2025)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from dode.denoisers import Denoiser
from dode.distillation.designer import Designed, Designer, Memory, Plan, feature_size
from dode.distillation.designer_training import train
from dode.distillation.objectives import POOL, LastImages, Objective, Paths, StoredPaths
from dode.distillation.problem import Problem, distiller
from dode.distillation.space import Space
from dode.tableau import Tableau


class DLMS(Designed):
    """Row ``i`` mixes its last ``window`` outputs; the next level and its input level are designed too.

    The parts sum to one; the next level is a share of the way left in ``ln sigma``, so levels decrease whatever the
    numbers are; an input level is the level times a factor.  With ``afs`` the first level moves too: what lies
    above it is the analytical first step.  Options: window, adaptive, scaling, afs.
    """

    def begin(self, noise: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        level = self.base.sigmas[0].to(noise.device).expand(len(noise))
        if not self.options["afs"]:
            return level, level * self._scale(0)
        numbers = self.designer(None, level, 0).double()
        if self.options["adaptive"]:
            level = level * numbers[:, -2].clamp(-1, 1).exp()
        return level, level * self._scale(0) * (numbers[:, -1].exp() if self.options["scaling"] else 1)

    def _scale(self, row: int) -> float:
        """The level that the base gives the network at row ``row``, over its own level."""
        b = self.base
        return float(b.sigmas_in[row] / b.sigmas[row]) if row < b.nfe else 1.0

    def plan(self, row: int, feature: Tensor | None, level: Tensor, memory: Memory) -> Plan:
        """DLMS eqs. 8 and 9 for this row, and where the next one evaluates."""
        numbers = self.designer(feature, level, row + 1).double()
        usual, start = self.base.normalised_weights[row], max(-1, row + 1 - self.options["window"])
        parts = [(j, usual[j + 1].to(level) + numbers[:, row - 1 - j]) for j in range(start, row)]
        rest = sum((part for _, part in parts), torch.zeros_like(level))
        before = level if self.through else level.detach()  # a design answers for its own step alone
        following = self._next(row, before, numbers[:, -2])
        sigma_in = following * self._scale(row + 1)
        sigma_in = sigma_in * numbers[:, -1].exp() if self.options["scaling"] else sigma_in
        return Plan([(row, 1 - rest), *reversed(parts)], following, sigma_in)

    def _next(self, row: int, level: Tensor, number: Tensor) -> Tensor:
        s = self.base.sigmas
        if row + 1 == self.nfe or not self.options["adaptive"]:
            return s[row + 1].to(level).expand(len(level))
        end = s[-1].log() if s[-1] > 0 else s[-2].log() - 1  # to 0 the way is endless: a little below its last stop
        share = (s[row] / s[row + 1]).log() / (s[row].log() - end)
        share = torch.sigmoid(torch.logit(share).to(level) + number)
        return torch.exp(level.log() + share * (end.to(level) - level.log()))

    def keep(self, row: int) -> range:
        return range(row + 2 - self.options["window"], row + 1)

    def freeze(self) -> Tableau:
        """The table of a solver that reads no features; a ValueError for one that does."""
        if self.reads:
            raise ValueError("a solver that reads features has a table for each image, not one")
        with torch.no_grad():
            level, sigma_in = self.begin(torch.zeros(1, 1), {})
            levels, sigmas_in = [level], [sigma_in]
            parts = torch.zeros_like(self.base.full)
            for row in range(self.nfe):
                plan = self.plan(row, None, levels[-1], {})
                for j, part in plan.shares:
                    parts[row, j + 1] = part
                levels.append(plan.following)
                sigmas_in.append(plan.sigma_in)
        n = self.nfe
        table = Tableau(
            self.base.basis, torch.cat(levels), torch.zeros(n, n), sigmas_in=torch.cat(sigmas_in[:-1]),
            metadata=self.metadata,
        )  # fmt: skip
        return table.with_full(parts * table.row_sums[:, None])


def begin_dlms(
    denoiser: Denoiser, base: Tableau, *, window: int = 4, features: bool = True, scaling: bool = True,
    adaptive: bool = True,
) -> DLMS:  # fmt: skip
    """The solver that training starts from: ``base``, a multistep table on clean images; options as of :func:`dlms`.

    As published: ``dode.solvers.deis(grid, variable="log_rho", basis="data", afs=True)``.  A DDIM table is "without
    high-order initialisation", a table without ``afs`` "without AFS".  ValueError for a table that cannot be moved, as
    for :class:`~dode.distillation.space.Space`.
    """
    Space(base, window)  # says what it cannot carry
    designer = Designer(base.nfe + 1, window + 1, feature_size(denoiser) if features else 0)
    afs = bool(base.metadata.get("afs", False))
    return DLMS(base, designer, dict(window=window, adaptive=adaptive, scaling=scaling, afs=afs))


@distiller(
    "DLMS", source="Liang et al. 2025", cite="liang2025lms", place=7, needs_gradient=True, designs=True,
    everywhere=True, moves=("first level", "levels", "input levels", "weights"),
)  # fmt: skip
def dlms(
    problem: Problem, *, window: int = 4, features: bool = True, scaling: bool = True, adaptive: bool = True,
    objective: Literal["last", "paths", "stored", "moving"] = "last", distances: bool = False,
    rate: float = 5e-3, trajectories: int = 2_000, seed: int = 0,
) -> Designed:  # fmt: skip
    """A small network predicts each step from the features of the denoiser.

    The network and what it designs are the paper's; it is trained on the final image, unless ``objective`` is another.

    Parameters
    ----------
    window
        Outputs that a step may use.
    features
        Whether the designer reads the bottleneck of the network.
    scaling
        Whether it designs the noise levels given to the network.
    adaptive
        Whether it designs the noise levels.
    objective
        last: the final image alone, by gradient through all steps (ours: it converges, as the others may not); paths:
        the states after each step against a teacher's (Algorithm 1, known second-hand); stored: the same with a teacher
        that runs once for each of 1,200 noises; moving: the level of a loss has a gradient too.
    distances
        Whether losses are distances, or their squares; last: always.
    rate
        Adam's, at first; that of the reimplementation which the paper's numbers are known from.
    trajectories
        Noises that the designer is trained on (the paper: 20,000); of those that are stored, each more than once.
    seed
        Of these noises.
    """
    start = begin_dlms(
        problem.denoiser, problem.table, window=window, features=features, scaling=scaling, adaptive=adaptive
    )
    pool = min(POOL, trajectories)
    aim: Objective = Paths(distances=distances)
    if objective in ("stored", "moving"):
        aim = StoredPaths(pool, seed, distances, objective == "moving")
    elif objective == "last":
        aim = LastImages(pool, seed)
    return train(problem, start, aim, rate=rate, trajectories=trajectories, seed=seed)
