"""DLMS trained until its error is flat: by which objective, what its parts are worth, and beside other solvers.

All are trained with one loss of the last image, that of the Gauss-Newton solver, and measured in two networks: the
classifier that the book measures with, and a transformer by which nothing was chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable

from dode.experiments import fits
from dode.experiments.learned import HANDCRAFTED, compared_solver
from dode.experiments.loss_study import distances
from dode.experiments.measurements import Cell, Value, distinct, measurement
from dode.experiments.run import Run
from dode.experiments.sweeps import Preset

BLOCK = 8  # of held-out seeds: no grid, loss or setting was chosen by them
NETWORKS = ("fashion-mnist-data", "fashion-mnist-noise")
NFES, ABLATED = (3, 5, 8), (4,)
LONG, SHORT = 9_600, 4_800  # noises of a training: 300 and 150 steps of Adam


def trained(objective: str, noises: int = LONG, change: str = "", loss: str = "seen") -> str:
    """The words of a training: the rate is that of the reimplementation that the paper's numbers are known from."""
    return f"dlms:objective={objective},rate=0.005,residual={loss},trajectories={noises}" + ("," + change) * bool(
        change
    )


OBJECTIVES = {  # with 5 evaluations
    trained("stored"): "step losses, the level of a loss held fixed",
    trained("stored", change="adaptive=False"): "step losses, levels not designed",
    trained("moving"): "step losses, the level of a loss with its gradient",
    trained("last"): "the last image alone, through all steps",
}
ENDS = trained("last")
AGAIN = trained("last", change="seed=1")
ABLATION = {
    trained("last", SHORT): "all techniques",
    trained("last", SHORT, "afs=False"): "without AFS",
    trained("last", SHORT, "features=False"): "without the bottleneck feature",
    trained("last", SHORT, "base=ddim"): "without high-order initialisation",
    trained("last", SHORT, loss="pixels"): "without the feature distance",
    trained("last", SHORT, "scaling=False"): "without time scaling",
    trained("last", SHORT, "adaptive=False"): "without the adaptive schedule",
}


def dlms_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """The comparison on both networks, the objectives on both, and the ablation on the first."""
    names = [checkpoint] if checkpoint else list(NETWORKS)
    if p.name == "smoke":
        return dlms_study.cells(checkpoint=names[:1], method=["start", *list(OBJECTIVES)[2:]], nfe=3)
    make = functools.partial(dlms_study.cells, checkpoint=names)
    cells = make(method=["start", *HANDCRAFTED, "gauss-newton", ENDS], nfe=NFES)
    cells += make(method=[trained("stored"), trained("moving"), AGAIN], nfe=5)
    cells += dlms_study.cells(checkpoint=names[0], method=list(OBJECTIVES), nfe=5)
    cells += dlms_study.cells(checkpoint=names[0], method=["start", *HANDCRAFTED, *ABLATION], nfe=ABLATED)
    return distinct(cells)


@measurement(gives=["fd_reference", "fd_data"], planned=dlms_cells)
def dlms_study(run: Run, *, checkpoint: str, method: str, nfe: int) -> dict[str, Value]:
    """:func:`~dode.experiments.loss_study.distances` of a solver, and what its training took.

    ``kept`` is the error on held-back images of what is returned, over the start's; ``ended`` that of the last check.
    """
    solver = compared_solver(run, checkpoint, method, nfe)
    facts = solver.metadata
    cost: list[float] = facts.get("cost") or [1.0]
    return distances(run, checkpoint, solver, BLOCK) | dict(
        kept=min(cost) / cost[0], ended=cost[-1] / cost[0], evaluations=facts.get("network_evaluations", 0),
        seconds=facts.get("seconds", 0), trajectories=facts.get("trajectories", 0),
    )  # fmt: skip


def courses(run: Run, checkpoint: str, methods: Iterable[str], nfe: int) -> dict[str, list[float]]:
    """Of each training the error on the images held back at each check, over the start's."""
    found = {method: fits.fit(run, checkpoint, method, nfe).metadata["cost"] for method in methods}
    return {method: [value / cost[0] for value in cost] for method, cost in found.items()}
