"""DLMS trained until its error is flat: by which objective, what its parts are worth, and beside other fits.

What is compared has one loss of the last image, that of the Gauss-Newton solver, unless a table says otherwise, and is
measured in two networks: the classifier that the book measures with, and a transformer by which nothing was chosen.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

from dode.experiments import fits
from dode.experiments.learned import HANDCRAFTED, compared_solver
from dode.experiments.loss_study import distances
from dode.experiments.measurements import Cell, Value, distinct, measurement
from dode.experiments.run import Run
from dode.experiments.sweeps import Preset

if TYPE_CHECKING:
    import pandas as pd

BLOCK = 8  # of held-out seeds: no grid, loss or setting was chosen by them
NETWORKS = ("fashion-mnist-data", "fashion-mnist-noise")
NFES = (3, 5, 8)  # with three trainings each
ABLATED, CROSSED = (4, 8), {3: 2, 5: 1}  # crossed: how many fits of each
LONG, SHORT = 9_600, 4_800  # noises of a training: 300 and 150 steps of Adam


def trained(objective: str, noises: int = LONG, change: str = "", loss: str = "seen") -> str:
    """The words of a training: the rate is that of the reimplementation that the paper's numbers are known from."""
    words = f"dlms:objective={objective},rate=0.005,residual={loss},trajectories={noises}"
    return ",".join([words, change] if change else [words])


OBJECTIVES = {  # with 5 evaluations
    trained("stored"): "step losses, the level of a loss held fixed",
    trained("stored", change="adaptive=False"): "step losses, levels not designed",
    trained("moving"): "step losses, the level of a loss with its gradient",
    trained("last"): "the last image alone, through all steps",
    trained("last", 20_000): "the same, 20,000 noises, as many as the paper's",
    trained("stored", change="distances=True"): "distances in place of squares, the level held fixed",
    trained("moving", change="distances=True"): "distances in place of squares, the level with its gradient",
}
ENDS = trained("last")
ABLATION = {
    trained("last", SHORT): "all techniques",
    trained("last", SHORT, "afs=False"): "without AFS",
    trained("last", SHORT, "features=False"): "without the bottleneck feature",
    trained("last", SHORT, "base=ddim"): "without high-order initialisation",
    trained("last", SHORT, loss="pixels"): "without the feature distance",
    trained("last", SHORT, "scaling=False"): "without time scaling",
    trained("last", SHORT, "adaptive=False"): "without the adaptive schedule",
}
OPTIMISERS = {
    "gauss-newton": "Gauss-Newton, all numbers of a table", "ld3": "Adam, the grid alone (LD3)",
    "s4s-alt": "Adam, grid and weights in turn (S4S-Alt)", "dlms": "Adam, a designer (DLMS)",
}  # fmt: skip
LOSSES = {
    "seen-pixels": "pixels", "seen-critic": "a classifier", "own": "own features",
    "seen": "two classifiers and random features",
}  # fmt: skip


def fitted(optimiser: str, loss: str) -> str:
    """The words of a fit with a loss of :data:`LOSSES`."""
    if optimiser == "dlms":
        return trained("last", LONG if loss == "seen" else SHORT, loss=loss)
    return f"{optimiser}:residual={loss}"


_UNRELAXED = fitted("s4s-alt", "seen") + ",radius=0"
UNRELAXED = {  # S4S-Alt
    _UNRELAXED: "without relaxed starts",
    f"{_UNRELAXED},rate=0.005": "the same, a quarter of the rate",
    f"{_UNRELAXED},rate=0.005,epochs=60": "the same, and three times the epochs",
}
GAUSS_NEWTON = fitted("gauss-newton", "seen")  # the book's "gauss-newton"


def again(word: str, k: int) -> str:
    """Fit ``k`` of several, of other noises: for a designer those it is trained on."""
    return (word if k == 0 else f"{word},seed={k}") if word.startswith("dlms") else f"{word},fit={k}"


def recipes(methods: pd.Series) -> pd.Series:
    """The words of fits without those of their noises."""
    return methods.str.replace(r",(seed|fit)=\d+$", "", regex=True)


def together(rows: pd.DataFrame) -> pd.DataFrame:
    """Fits that differ in their noises alone as one line: mean, least and greatest of each column of numbers."""
    columns = ["fd_reference", "fd_reference_transformer", "fd_data", "rmse", "kept", "ended", "evaluations"]
    named = rows.assign(method=recipes(rows.method))
    return named.groupby(["checkpoint", "nfe", "method"], sort=False)[columns].agg(["mean", "min", "max", "count"])


def dlms_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """The comparison on both networks, the objectives on both, the ablation and all losses on the first."""
    names = [checkpoint] if checkpoint else list(NETWORKS)
    first = functools.partial(dlms_study.cells, checkpoint=names[0])
    if p.name == "smoke":
        return first(method=["start", trained("moving"), ENDS], nfe=3)
    make, cells = functools.partial(dlms_study.cells, checkpoint=names), list[Cell]()
    several = [again(word, k) for word in (GAUSS_NEWTON, ENDS) for k in range(3)]
    cells += make(method=["start", *HANDCRAFTED, *several], nfe=NFES)
    cells += make(method=[trained("stored"), trained("moving")], nfe=5) + first(method=OBJECTIVES, nfe=5)
    cells += first(method=ABLATION, nfe=ABLATED) + first(method=UNRELAXED, nfe=5)
    for nfe, count in CROSSED.items():
        pairs = itertools.product(OPTIMISERS, LOSSES)
        cells += first(method=[again(fitted(*pair), k) for pair in pairs for k in range(count)], nfe=nfe)
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
