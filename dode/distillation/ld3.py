"""LD3: the grid of a handcrafted solver, learned (Tong et al., ICLR 2025)."""

from __future__ import annotations

from dode.distillation.descent import descend
from dode.distillation.problem import Problem, distiller
from dode.distillation.space import GridSpace
from dode.tableau import Tableau


@distiller(
    "LD3", source="Tong et al. 2025", cite="tong2025ld3", place=4, start="unipc", moves=("levels", "input levels"),
    needs_gradient=True, everywhere=True,
)  # fmt: skip
def ld3(problem: Problem, *, radius: float = 0.01, epochs: int = 10, rate: float = 0.02) -> Tableau:
    """Noise levels and the levels given to the network, by gradient, with relaxed starts.

    Parameters
    ----------
    radius
        How far a student's noise may be moved from the teacher's, of the noise's own norm; 0: not at all.
    epochs
        How often each image is seen; the epoch that is best on the noise held back is returned.
    rate
        Adam's, at first; it falls to zero as half a cosine.
    """
    space = GridSpace(problem.table, make=problem.make)
    return descend(problem, space, radius=radius, epochs=epochs, rate=rate)
