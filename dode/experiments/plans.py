"""What figures 3 and 4 measure: known before, and outside of, the notebooks that draw it.

So the sweep of a page can be done piece by piece, by many processes or machines (:mod:`dode.experiments.shard`).

At the preset "paper": 2 to 250 calls, 50,000 images, three blocks of seeds, and FID for networks that do not ship with
dode (:mod:`.papers` has the rows of the papers).  Its price is counted, not measured: figure 3 asks one network for
1.4e9 evaluations, figure 4 the two that ship for 0.8e9 (:attr:`Plan.evaluations`).  A GPU that does 10,000 a second
takes 39 and 22 hours, and the longest piece, which no second GPU shortens, 111 minutes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dode.experiments import papers, sweeps
from dode.experiments.quality import FD_KEYS, fd_cells, fd_row, load_cached, possible_nfe
from dode.experiments.sweeps import Preset, Sweep, results
from dode.utils.files import FileError, names_a_file

Calls = Mapping[tuple[str, str], tuple[int, ...]]

FOUR = ("ddim", "ipndm", "dpm_solver", "deis:order=4")  # of the D-ODE paper's figure 3
LATER = ("dpm_solver_pp:order=2", "dpm_solver_pp", "unipc")  # published after its four, and not in its figures
STAGES = ("dpm_solver:order=2", "heun")  # distilled in the paper too, but not in its figure 3
OWN = "d-ode:basis=own"  # for solvers whose own basis is not the network's


@dataclass(frozen=True)
class Plan:
    """The sweep behind one figure."""

    figure: str  # the name of the page
    preset: Preset  # with what this figure has otherwise
    checkpoints: tuple[str, ...]  # names or files of networks
    calls: Calls  # for each checkpoint and solver, the NFEs
    cells: tuple[dict[str, Any], ...]  # what there is to measure, cheap first: arguments of :func:`fd_row`

    def sweep(self, path: str | Path | None = None) -> Sweep:
        """The rows there are: in ``path``, or in the results of the project."""
        return Sweep(path, FD_KEYS) if path else results(self.figure, self.preset, FD_KEYS)

    def row(self, device_name: str) -> Callable[..., dict[str, Any]]:
        """What measures a cell."""
        return functools.partial(fd_row, self.preset, device_name)

    def run(self, device_name: str) -> Sweep:
        """Measure what has no row yet; the sweep then has one for each cell."""
        jobs = sweeps.jobs(device_name) if self.preset.kept else 1  # a process costs more than the work of a smoke run
        return self.sweep().run(self.cells, self.row(device_name), jobs)

    @property
    def evaluations(self) -> int:
        """Network evaluations of all cells' samples; the fits add a fraction (of 100 images, not of 50,000)."""
        return sum(cell["nfe"] for cell in self.cells) * self.preset.images


def figure_3(preset: str, checkpoint: str = "fashion-mnist-noise", seeds: int | None = None) -> Plan:
    """Every solver and its distilled version, the paper's four followed to more calls than the later ones."""
    p, names = sweeps.preset(preset), checkpoints(checkpoint)
    if seeds:
        p = replace(p, repeats=seeds)
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
    return Plan("figure_3", p, names, calls, tuple(cells))


def figure_4(preset: str, checkpoint: str = "fashion-mnist", seeds: int | None = None) -> Plan:
    """DDIM on every network; Heun and the later solvers on those that predict clean images."""
    p, names = sweeps.preset(preset), checkpoints(checkpoint)
    if seeds:
        p = replace(p, repeats=seeds)
    clean = [name for name in names if load_cached(name, "cpu").prediction == "data"]
    most = 10 if preset == "smoke" else 250
    calls: dict[tuple[str, str], tuple[int, ...]] = {(name, "ddim"): p.nfes for name in names}
    calls |= {(name, "heun"): p.heun_nfes for name in clean}
    calls |= {(name, solver): tuple(n for n in p.nfes if 5 <= n <= most) for solver in LATER for name in clean}
    return Plan("figure_4", p, names, calls, tuple(fd_cells(p, calls)))


PLANS: dict[str, Callable[..., Plan]] = {"figure_3": figure_3, "figure_4": figure_4}


def plan(figure: str, preset: str, checkpoint: str | None = None, seeds: int | None = None) -> Plan:
    """What ``figure``, one of :data:`PLANS`, measures at ``preset``.

    ``checkpoint`` is a name, a data set, "all", or a ``.safetensors`` file, by default what the page has; ``seeds`` the
    number of blocks of seeds, by default the preset's.  ValueError for an unknown figure, preset or checkpoint, with
    those there are; FileError for a file that is not there, or holds no network.
    """
    if figure not in PLANS:
        raise ValueError(f"no plan named {figure!r}; there are: {', '.join(PLANS)}")
    return PLANS[figure](preset, *([] if checkpoint is None else [checkpoint]), seeds=seeds)


def checkpoints(name: str) -> tuple[str, ...]:
    """As :func:`dode.experiments.checkpoints`, and any ``.safetensors`` file that is there."""
    if names_a_file(name) and not Path(name).is_file():
        raise FileError(f"{name} does not exist; check the path")
    return (name,) if names_a_file(name) else tuple(sweeps.checkpoints(name))


def price(row: papers.Parameters) -> int:
    """Network evaluations of the samples that a row of a paper takes, without fits: counted, for no file is opened."""
    p = sweeps.preset("paper")
    if row.notebook == "learned":  # distances, the reference solution they are to, and RMSE
        calls = len(papers.METHODS) * sum(row.nfes)
        return p.images * (calls + p.reference_calls) + p.zoo_images * (calls + p.reference_steps)
    stands_in = "fashion-mnist-noise" if row.notebook == "figure_3" else "fashion-mnist-data"
    return PLANS[row.notebook]("paper", stands_in).evaluations
