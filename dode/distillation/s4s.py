"""S4S and S4S-Alt: the weights on a grid, alone or in turn with the grid (Frankel et al., ICML 2025)."""

from __future__ import annotations

from dode.distillation.descent import descend
from dode.distillation.problem import Problem, distiller
from dode.distillation.space import Kind, Space
from dode.tableau import Tableau


@distiller("S4S", source="Frankel et al. 2025", cite="frankel2025s4s", place=5, moves=("weights",), needs_gradient=True)
def s4s(problem: Problem, *, radius: float = 0.01, epochs: int = 10, rate: float = 0.02) -> Tableau:
    """Weights by gradient, with relaxed starts.

    The options are those of :func:`dode.distillation.ld3`.
    """
    space = Space(problem.table, levels=False, levels_in=False)
    return descend(problem, space, radius=radius, epochs=epochs, rate=rate)


@distiller(
    "S4S-Alt", source="Frankel et al. 2025", cite="frankel2025s4s", place=6, needs_gradient=True, everywhere=True
)
def s4s_alt(problem: Problem, *, radius: float = 0.01, epochs: int = 20, rate: float = 0.02) -> Tableau:
    """Weights and noise levels by gradient, alternately.

    The options are those of :func:`dode.distillation.ld3`.
    """
    phases: list[list[Kind]] = [["weight"], ["level", "level_in"]]
    return descend(problem, Space(problem.table), phases=phases, radius=radius, epochs=epochs, rate=rate)
