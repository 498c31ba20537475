"""What figures 3 and 4 measure: known before, and outside of, the notebooks that draw it.

So many processes or machines can measure it, each a part (``dode run``).  At the preset "paper": 2 to 250 calls,
50,000 images, three blocks of seeds, and FID for networks that do not ship with dode (:mod:`.papers` has the rows of
the papers).  Its price is counted, not measured: figure 3 asks one network for 1.4e9 evaluations, figure 4 the two that
ship for 0.8e9 (:attr:`Plan.evaluations`).  A GPU that does 10,000 a second takes 39 and 22 hours, and the longest part,
which no second GPU shortens, 111 minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dode.experiments import papers, sweeps
from dode.experiments.measurements import Cell, Measurement, known
from dode.experiments.quality import OWN, fd, fd_cells
from dode.experiments.rows import Sweep
from dode.experiments.run import Run, load_cached, possible_nfe
from dode.experiments.sweeps import Preset, checkpoints

if TYPE_CHECKING:
    import pandas as pd

FOUR = ("ddim", "ipndm", "dpm_solver", "deis:order=4")  # of the D-ODE paper's figure 3
LATER = ("dpm_solver_pp:order=2", "dpm_solver_pp", "unipc")  # published after its four, and not in its figures
STAGES = ("dpm_solver:order=2", "heun")  # distilled in the paper too, but not in its figure 3


@dataclass(frozen=True)
class Plan:
    """The sweep behind one figure."""

    figure: str  # the name of the page, and of the file of results
    preset: Preset  # with what this figure has otherwise
    cells: tuple[Cell, ...]  # what there is to measure, cheap first
    measurement: Measurement = fd

    @property
    def checkpoints(self) -> list[str]:
        """The names or files of its networks."""
        return list(dict.fromkeys(cell["checkpoint"] for cell in self.cells))

    @property
    def calls(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """For each checkpoint and solver the NFEs, from few to many."""
        found = dict[tuple[str, str], dict[int, None]]()
        for cell in sorted(self.cells, key=lambda cell: cell["nfe"]):
            found.setdefault((cell["checkpoint"], cell["solver"]), {})[cell["nfe"]] = None
        return {key: tuple(nfes) for key, nfes in found.items()}

    def sweep(self) -> Sweep:
        """The rows there are, in the results of the project."""
        return self.measurement.sweep(self.preset, self.figure)

    def run(self, device_name: str) -> pd.DataFrame:
        """The rows of all cells; what has none yet is measured."""
        return self.measurement.rows(Run(self.preset, device_name), self.cells, self.figure)

    @property
    def evaluations(self) -> int:
        """Network evaluations of all cells' samples; the fits add a fraction (of 100 images, not of 50,000)."""
        return sum(cell.get("nfe", 0) for cell in self.cells) * self.preset.images


def figure_3(preset: str, checkpoint: str = "fashion-mnist-noise", seeds: int | None = None) -> Plan:
    """Every solver and its distilled version, the paper's four followed to more calls than the later ones."""
    p, names = _sizes(preset, seeds), checkpoints(checkpoint)
    if preset == "paper":
        p = replace(p, fit_images=papers.fit_images(checkpoint, p.fit_images))
    most = 5 if preset == "smoke" else 250
    calls: dict[tuple[str, str], tuple[int, ...]] = {}
    for name in names:
        for solver in FOUR + LATER + STAGES:  # a third order wants three calls
            fewest = 2 if preset == "paper" and solver in ("ddim", "ipndm") else 3
            calls[name, solver] = tuple(possible_nfe(solver, max(fewest, nfe)) for nfe in p.nfes if nfe <= most)
    own = {key: found for key, found in calls.items() if key[1] in LATER}
    cells = fd_cells(p, calls) + fd_cells(p, own, [OWN])
    return Plan("figure_3", p, tuple(cells))


def figure_4(preset: str, checkpoint: str = "fashion-mnist", seeds: int | None = None) -> Plan:
    """DDIM on every network; Heun and the later solvers on those that predict clean images."""
    p, names = _sizes(preset, seeds), checkpoints(checkpoint)
    clean = [name for name in names if load_cached(name, "cpu").prediction == "data"]
    most = 10 if preset == "smoke" else 250
    calls: dict[tuple[str, str], tuple[int, ...]] = {(name, "ddim"): p.nfes for name in names}
    calls |= {(name, "heun"): p.heun_nfes for name in clean}
    calls |= {(name, solver): tuple(n for n in p.nfes if 5 <= n <= most) for solver in LATER for name in clean}
    return Plan("figure_4", p, tuple(fd_cells(p, calls)))


PLANS: dict[str, Callable[..., Plan]] = {"figure_3": figure_3, "figure_4": figure_4}


def plan(figure: str, preset: str, checkpoint: str | None = None, seeds: int | None = None) -> Plan:
    """What ``figure``, one of :data:`PLANS` or a measurement that says its cells, measures at ``preset``.

    ``checkpoint`` is a name, a data set, "all", or a ``.safetensors`` file, by default what the page has; ``seeds`` the
    number of blocks of seeds, by default the preset's.  ValueError for an unknown figure, preset or checkpoint, with
    those there are; FileError for a file that is not there, or holds no network.
    """
    if figure in PLANS:
        return PLANS[figure](preset, *([] if checkpoint is None else [checkpoint]), seeds=seeds)
    planned = {name: found for name, found in known().items() if found.planned}
    if figure not in planned:
        raise ValueError(f"no plan named {figure!r}; there are: {', '.join([*PLANS, *planned])}")
    p, found = _sizes(preset, seeds), planned[figure]
    assert found.planned
    return Plan(figure, p, tuple(found.planned(p, checkpoint)), found)


def price(row: papers.Parameters) -> int:
    """Network evaluations of the samples that a row of a paper takes, without fits: counted, for no file is opened."""
    p = sweeps.preset("paper")
    if row.notebook == "learned":  # distances, the reference solution they are to, and RMSE
        calls = len(papers.METHODS) * sum(row.nfes)
        return p.images * (calls + p.reference_calls) + p.zoo_images * (calls + p.reference_steps)
    stands_in = "fashion-mnist-noise" if row.notebook == "figure_3" else "fashion-mnist-data"
    return PLANS[row.notebook]("paper", stands_in).evaluations


def _sizes(preset: str, seeds: int | None) -> Preset:
    p = sweeps.preset(preset)
    return replace(p, repeats=seeds) if seeds else p
