"""What figures measure, known before, and outside of, the notebooks that draw them; and the papers' own experiments.

So many processes or machines can measure a figure, each a part (``dode run``).  At the preset "paper": 2 to 250 calls,
50,000 images, three blocks of seeds.  Its price is counted, not measured: figure 3 asks one network for 1.4e9
evaluations, figure 4 the two that ship for 0.8e9 (:attr:`Plan.evaluations`).  A GPU that does 10,000 a second takes 39
and 22 hours, and the longest part, which no second GPU shortens, 111 minutes.

A row of :data:`ROWS` is what a notebook takes at that preset to run a row of the papers':

    papermill NOTEBOOK OUT.ipynb -p preset paper -p checkpoint CHECKPOINT -p device cuda

All have FID with the resizing of the original implementation, for networks that do not ship with dode.  The statistics
of the training images are the user's to make, once (:meth:`dode.experiments.Run.evaluator` says how and where).  The
grid is the checkpoint's own (:meth:`dode.denoisers.Denoiser.grid`): uniform in time on a VP chain, Karras's from 80 to
0 with rho = 7 for EDM's networks.  The notebook ``learned`` gives each handcrafted solver the best of four.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dode.experiments import dlms_study, learned, sweeps
from dode.experiments.measurements import Cell, Measurement, known
from dode.experiments.quality import fd_cells, fidelity, in_order
from dode.experiments.rows import Sweep
from dode.experiments.run import Run, load_cached, possible_nfe
from dode.experiments.sweeps import Preset, checkpoints
from dode.experiments.variants import ON_BEST, OWN

if TYPE_CHECKING:
    import pandas as pd

FOUR = ("ddim", "ipndm", "dpm_solver", "deis:order=4")  # of the D-ODE paper's figure 3
LATER = ("dpm_solver_pp:order=2", "dpm_solver_pp", "unipc")  # published after its four, and not in its figures
STAGES = ("dpm_solver:order=2", "heun")  # two a step; the paper has Heun on data-predicting networks alone
KIM, LIANG = "Kim et al. 2024", "Liang et al. 2025"
DDIM = (2, 5, 10, 25, 50, 100, 250)
REFERENCE = "deis:variable=log_rho,basis=data"  # :func:`dode.distillation.teachers.default_teacher`, as a word
BEST = ("plain" + ON_BEST, "d-ode" + ON_BEST)
FEW = 10  # evaluations: to here the standard run has three blocks of seeds


@dataclass(frozen=True)
class Plan:
    """The sweep behind one figure."""

    figure: str  # the name of the page, and of the file of results
    preset: Preset  # with what this figure has otherwise
    cells: tuple[Cell, ...]  # what there is to measure, cheap first
    measurement: Measurement = fidelity

    @property
    def checkpoints(self) -> list[str]:
        """The names or files of its networks."""
        return list(dict.fromkeys(cell["checkpoint"] for cell in self.cells))

    @property
    def calls(self) -> dict[tuple[str, str], tuple[int, ...]]:
        """For each checkpoint and solver the NFEs, from few to many."""
        found = dict[tuple[str, str], set[int]]()
        for cell in self.cells:
            found.setdefault((cell["checkpoint"], cell["solver"]), set()).add(cell["nfe"])
        return {key: tuple(sorted(nfes)) for key, nfes in found.items()}

    @property
    def evaluations(self) -> int:
        """Network evaluations of all cells' samples; the fits add a fraction (of 100 images, not of 50,000)."""
        return sum(cell.get("nfe", 0) for cell in self.cells) * self.preset.images

    def sweep(self) -> Sweep:
        """The rows there are, in the results of the project."""
        return self.measurement.sweep(self.preset, self.figure)

    def run(self, device_name: str, cells: list[Cell] | None = None) -> pd.DataFrame:
        """The rows of ``cells``, by default of all; what has none yet is measured."""
        return self.measurement.rows(Run(self.preset, device_name), self.cells if cells is None else cells, self.figure)


def figure_3(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """Every solver and its distilled version; few evaluations in its own basis, and on the grid that suits it, too."""
    cells, once = list[Cell](), p.once
    for name, solver in itertools.product(checkpoints(checkpoint or "fashion-mnist-noise"), FOUR + LATER + STAGES):
        most = 5 if p.name == "smoke" else 250
        if p.brief:  # the standard run follows the paper's four
            most = 25 if solver in FOUR else FEW
        fewest = 2 if p.name == "paper" and solver in ("ddim", "ipndm") else 3  # a third order wants three calls
        calls = {(name, solver): [possible_nfe(solver, max(fewest, n)) for n in p.nfes if n <= most]}
        cells += fd_cells(p if solver in (*FOUR, "unipc") else once, calls)
        cells += fd_cells(once, calls, [OWN]) if solver in LATER else []
        cells += best_cells(once, calls) if solver not in STAGES else []
    return in_order(p, cells)


def figure_4(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """DDIM on every network; Heun and the later solvers on those that predict clean images."""
    cells, once = list[Cell](), p.once
    for name in checkpoints(checkpoint or "fashion-mnist"):
        clean = load_cached(name, "cpu").prediction == "data"
        calls = {(name, "ddim"): [n for n in p.nfes if n <= 25 or not p.brief]}
        if clean:
            calls[name, "heun"] = [n for n in p.heun_nfes if n <= 25 or not p.brief]
            most = FEW if p.brief or p.name == "smoke" else 250
            calls |= {(name, solver): [n for n in p.nfes if 5 <= n <= most] for solver in LATER}
        for (_, solver), nfes in calls.items():
            cells += fd_cells(once if solver in LATER[1:] else p, {(name, solver): nfes})
        cells += best_cells(once, calls) if clean else []
        if p.brief:  # the reference solver itself, on the seeds that are measured
            long = dict(solver=REFERENCE, variant="plain", nfe=p.reference_calls, block=0)
            cells += fidelity.cells(checkpoint=name, **long) + fd_cells(p, {(name, "ddim"): [50]}, ["plain"])
    return in_order(p, cells)


def best_cells(p: Preset, calls: dict[tuple[str, str], list[int]]) -> list[Cell]:
    """Few evaluations of each solver, plain and distilled, on the grid that suits it; at "smoke" of DDIM alone."""
    small = p.name == "smoke"
    few = {key: [n for n in nfes if 3 <= n <= (3 if small else FEW)] for key, nfes in calls.items()}
    return fd_cells(p, {key: nfes for key, nfes in few.items() if key[1] == "ddim" or not small}, BEST)


PLANS = {"figure_3": figure_3, "figure_4": figure_4}  # of :func:`~dode.experiments.quality.fidelity`, a file each


def plan(figure: str, preset: str, checkpoint: str | None = None, seeds: int | None = None) -> Plan:
    """What ``figure``, one of :data:`PLANS` or a measurement that says its cells, measures at ``preset``.

    ``checkpoint`` is a name, a data set, "all", or a ``.safetensors`` file, by default what the page has; ``seeds`` the
    number of blocks of seeds, by default the preset's.  ValueError for an unknown figure, preset or checkpoint, with
    those there are; FileError for a file that is not there, or holds no network.
    """
    planned = {m.name: (m.planned, m) for m in known().values() if m.planned}
    planned = {name: (cells, fidelity) for name, cells in PLANS.items()} | planned
    if figure not in planned:
        raise ValueError(f"no plan named {figure!r}; there are: {', '.join(planned)}")
    p, (cells, measurement) = sweeps.preset(preset), planned[figure]
    p = replace(p, repeats=seeds or p.repeats)
    if figure in PLANS and p.bf16:  # float32 costs twice as much: fewer images, and one block where steps are many
        p = replace(p, images=2_000, bf16=False, blocks_to=FEW)
    if preset == "paper":
        p = replace(p, fit_images=next((r.fit_images for r in ROWS if r.checkpoint == checkpoint), p.fit_images))
    return Plan(figure, p, tuple(cells(p, checkpoint)), measurement)


@dataclass(frozen=True)
class Parameters:
    """One row of a paper's figure or table."""

    source: str  # paper, figure or table
    notebook: str  # what runs it
    data: str  # the paper's name for it: the statistics of FID are of these training images
    checkpoint: str  # a name of :data:`dode.zoo.CATALOGUE`; with "@SCALE", guided by its classifier
    nfes: tuple[int, ...]  # third-order solvers begin at 3, Heun takes odd numbers
    fit_images: int = 100  # |B|, the noises that D-ODE solvers are fitted on
    blocks: int = 3  # of 50,000 seeds each


ROWS = (
    Parameters(f"{KIM}, figure 3", "figure_3", "CIFAR-10", "ddpm-cifar10-32", DDIM),
    Parameters(f"{KIM}, figure 3", "figure_3", "CelebA-64", "ddim-celeba-64", DDIM),
    Parameters(f"{KIM}, figure 3", "figure_3", "ImageNet-64", "iddpm-imagenet-64", DDIM),
    Parameters(f"{KIM}, figure 3", "figure_3", "ImageNet-128", "adm-imagenet-128@1.25", DDIM),
    Parameters(f"{KIM}, figure 3", "figure_3", "LSUN-Bedroom", "adm-lsun-bedroom", DDIM, fit_images=25),
    Parameters(f"{KIM}, figure 4", "figure_4", "CIFAR-10", "edm-cifar10-32x32-uncond-vp", DDIM),
    Parameters(f"{KIM}, figure 4", "figure_4", "FFHQ-64", "edm-ffhq-64x64-uncond-vp", DDIM),
    Parameters(f"{KIM}, figure 4", "figure_4", "ImageNet-64", "edm-imagenet-64x64-cond-adm", DDIM),
    Parameters(f"{LIANG}, table 5", "learned", "CIFAR-10", "edm-cifar10-32x32-uncond-vp", learned.NFES, blocks=1),
    Parameters(f"{LIANG}, table 5", "learned", "FFHQ-64", "edm-ffhq-64x64-uncond-vp", learned.NFES, blocks=1),
    Parameters(f"{LIANG}, table 5", "learned", "ImageNet-64", "edm-imagenet-64x64-cond-adm", learned.NFES, blocks=1),
)


def price(row: Parameters) -> int:
    """Network evaluations of the samples that a row of a paper takes, without fits: counted, for no file is opened."""
    if row.notebook == "learned":  # distances, the reference solution they are to, and RMSE
        p, calls = sweeps.preset("paper"), len(learned.METHODS) * sum(row.nfes) + sum(dlms_study.NFES)
        return p.images * (calls + p.reference_calls) + p.zoo_images * (calls + p.reference_steps)
    stands_in = "fashion-mnist-noise" if row.notebook == "figure_3" else "fashion-mnist-data"
    return plan(row.notebook, "paper", stands_in).evaluations
