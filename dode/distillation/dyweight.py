"""DyWeight: weights whose sums move the noise levels, by gradient (Zhao et al., 2026)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from dode.distillation.descent import descend
from dode.distillation.problem import Problem, distiller
from dode.distillation.space import Space
from dode.tableau import Tableau


@dataclass(frozen=True)
class UntiedSpace(Space):
    """Tables whose weights are free; the levels follow.

    A part is a weight over the step from the level of its row to the *base's* next level.  Parts that sum to one lead
    there; other sums lead to another level, which is that of the next row, and so to the last.  Every row sums to its
    step, but where a level would not lie between 0 and the one before.
    """

    levels: bool = False

    @cached_property
    def _parts(self) -> list[tuple[int, int]]:
        return [(i, j) for i in range(self.base.nfe) for j in self._reach(i)]

    def pack(self, table: Tableau) -> Tensor:
        parts = table.full / (self.base.sigmas[1:] - table.sigmas[:-1])[:, None]
        own = [float(parts[i, j + 1]) for i, j in self._parts]
        return torch.cat([torch.tensor(own, dtype=torch.float64), Space.pack(replace(self, weights=False), table)])

    def table(self, vector: Tensor) -> Tableau:
        parts, rest = vector[: len(self._parts)], vector[len(self._parts) :].double()
        full, first = torch.zeros_like(self.base.full), int(self.first_level)
        for (i, j), part in zip(self._parts, parts.tolist(), strict=True):
            full[i, j + 1] = part
        sigmas = [float(self.base.sigmas[0] * rest[:first].sum().exp())]
        for i, nominal in enumerate(self.base.sigmas[1:].tolist()):
            full[i] *= nominal - sigmas[i]
            least = 1e-3 if i + 1 < self.base.nfe else 0.0
            sigmas.append(sigmas[i] * min(max(1 + float(full[i].sum()) / sigmas[i], least), 0.999))
        levels = torch.tensor(sigmas, dtype=torch.float64)
        return replace(self.base, sigmas=levels, sigmas_in=rest[first:].exp() * levels[:-1]).with_full(full)


@distiller(
    "DyWeight", source="Zhao et al. 2026", cite="zhao2026dyweight", place=6.5, start="ipndm:order=3,afs=True",
    grid="Karras", moves=("first level", "levels", "input levels", "weights"), needs_gradient=True,
)  # fmt: skip
def dyweight(problem: Problem, *, window: int = 3, epochs: int = 20, rate: float = 0.03) -> Tableau:
    """Weights whose sums move the levels, and the levels given to the network, by gradient.

    As released: the noise basis, iPNDM as the start, an analytical first step, a window of three outputs (12 numbers
    at 3 evaluations, 20 at 5), each level's own factor on the level given to the network, Adam through the sampler.
    What differs: the factors move as logarithms; a level never rises; the noise is the same in each epoch (released:
    625 batches of 16 new ones, after a warm-up; squared differences of Inception features, teacher iPNDM of 35
    levels).  The paper's FID of 3.02 on CIFAR-10 at 5 evaluations is known here at second hand.

    Parameters
    ----------
    window
        Outputs that a row may use, the starting noise counting as one; more, if the start uses more.
    epochs
        How often each image is seen; the epoch that is best on the noise held back is returned.
    rate
        Adam's, at first; it falls to zero as half a cosine.
    """
    base = problem.table.to_basis("noise")
    used = max(i + 2 - column for i, column in base.full.nonzero().tolist())
    space = UntiedSpace(base, max(window, used), first_level=problem.afs)
    return descend(replace(problem, table=base), space, epochs=epochs, rate=rate)
