"""Few evaluations against many on networks of galaxies: RMSE, total flux and morphology on held-out seeds.

No network here was trained by this project, and no classifier knows its images: what astronomers measure takes the
place of Fréchet distances.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from dode.distillation import DISTILLERS, Designed
from dode.experiments import fits
from dode.experiments.measurements import Cell, Value, distinct, measurement
from dode.experiments.morphology import compared, morphologies, total_flux
from dode.experiments.run import Run, draw, held_out_seeds
from dode.experiments.sweeps import Preset, images_of
from dode.metrics import rmse
from dode.tableau import Tableau
from dode.zoo.families.galaxies import sky_of

HANDCRAFTED = {  # what pages call them, each on two grids
    "ddim": "DDIM", "ipndm": "iPNDM", "deis:variable=log_rho,basis=data": "DEIS on clean images",
    "dpm_solver_pp:order=2": "DPM-Solver++(2M)", "dpm_solver_pp": "DPM-Solver++(3M)", "unipc": "UniPC-3",
}  # fmt: skip
TRIED = ("time", "Karras")
DISTILLED = {  # on each grid; 32 noises: a step has one number, and an image 4,096 pixels
    f"d-ode:base={'deis' if solver.startswith('deis') else solver},grid={grid},images=32": f"D-{title}"
    for solver, title in HANDCRAFTED.items()
    for grid in TRIED
}
D_DDIM = tuple(DISTILLED)[: len(TRIED)]
GAUSS_NEWTON = {  # begun with an analytical first step, and without; single images that end as others are bounded
    "gauss-newton:residual=pixels,base=deis,grid=time,afs=True,images=64,limit=5": "Gauss-Newton, AFS",
    "gauss-newton:residual=pixels,base=deis,grid=time,afs=False,images=64,limit=5": "Gauss-Newton",
}
DESIGNED = {"dlms:objective=last,rate=0.005,residual=pixels,trajectories=4800": "DLMS, last image"}  # begun with AFS
MORE = {  # where it is cheap; without a bound on the error of single images
    "gauss-newton:residual=pixels,base=deis,grid=time,afs=False,images=256,limit=0.0": "Gauss-Newton, 256 images",
}
TITLES = HANDCRAFTED | DISTILLED | GAUSS_NEWTON | DESIGNED | MORE
FIRST = "galaxies-hsc-64"
SURVEYS = ("galaxies-ztf-64", "galaxies-lsst-60")  # with 5 evaluations, as the others
LARGEST = "galaxies-roman-120"  # a fit of the whole table takes an hour
LARGE = ("galaxies-quasar-72", LARGEST)  # no designer was trained
OTHERS = ("galaxies-hsc-32", "galaxies-ztf-32", *LARGE)  # from one block of seeds
NFES, FITTED_NFES = (3, 4, 5, 6, 8, 10), (3, 4, 5, 6, 8)  # the second: of the Gauss-Newton solver
BLOCKS, SURVEY_BLOCKS = 5, 3  # of seeds, with 5 evaluations


def solver_of(run: Run, checkpoint: str, solver: str, grid: str, nfe: int) -> Tableau | Designed:
    """A learned solver by its method, or a handcrafted one on a grid (:data:`~dode.experiments.run.GRIDS`)."""
    if solver.partition(":")[0] in DISTILLERS:
        return fits.fit(run, checkpoint, solver, nfe)
    return run.on_grid(checkpoint, solver, grid, nfe)  # to 0: at sigma_min much noise is left


def drawn(run: Run, checkpoint: str, solver: Tableau | Designed, n: int, block: int) -> Tensor:
    """A solver's images of a block's first ``n`` seeds, in float32."""
    return torch.cat([x.cpu() for x in draw(run.model(checkpoint), solver, held_out_seeds(n, block), batch_size=50)])


def errors(images: Tensor, truth: Tensor, sky: float) -> dict[str, Value]:
    """RMSE and relative error of the total flux (median, 16 to 84%) to the reference solution of the same noise."""
    off = (total_flux(images, sky) / total_flux(truth, sky) - 1).abs()
    low, median, high = (float(q) for q in off.quantile(torch.tensor([0.16, 0.5, 0.84], dtype=off.dtype)))
    return dict(rmse=rmse(images, truth), flux_error=median, flux_error_16=low, flux_error_84=high)


def facts(run: Run, solver: Tableau | Designed, n: int, block: int) -> dict[str, Value]:
    """What else a row says: how many images of which seeds, and what the fit took."""
    known = solver.metadata
    return dict(
        n=n, seeds=held_out_seeds(n, block), reference_calls=run.preset.reference_calls,
        seconds=known.get("seconds", 0), evaluations=known.get("network_evaluations", 0),
    )  # fmt: skip


# --- errors of images ------------------------------------------------------------------------------


def solvers_on(solvers: tuple[str, ...], **axes: Any) -> list[Cell]:
    """Cells of each solver: a handcrafted one on every grid that is tried, a learned one on its own."""
    plain = [s for s in solvers if s in HANDCRAFTED]
    found = galaxies.cells(**axes, solver=plain, grid=TRIED)
    return found + galaxies.cells(**axes, solver=[s for s in solvers if s not in HANDCRAFTED], grid="")


def galaxies_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """Of one network against NFE; of the others with 5 evaluations, of the distilled solvers D-DDIM alone."""
    if p.name == "smoke":
        return galaxies.cells(checkpoint=checkpoint or "galaxies-hsc-32", nfe=3, block=0, solver="ddim", grid="time")
    first, (afs, _) = checkpoint or FIRST, GAUSS_NEWTON
    cells = solvers_on((*HANDCRAFTED, *DISTILLED), checkpoint=first, nfe=NFES, block=0)
    cells += galaxies.cells(checkpoint=first, nfe=FITTED_NFES, block=0, solver=afs, grid="")
    cells.sort(key=lambda cell: (cell["nfe"] != 5, cell["nfe"]))
    few = functools.partial(solvers_on, (*HANDCRAFTED, *D_DDIM, *GAUSS_NEWTON, *DESIGNED), nfe=5)
    cells += few(checkpoint=first, block=range(BLOCKS))
    for name in () if checkpoint else SURVEYS:
        cells += few(checkpoint=name, block=range(SURVEY_BLOCKS))
    for name in () if checkpoint else OTHERS:
        some = () if name in LARGE else (*DESIGNED, *MORE)
        fitted = () if name == LARGEST else GAUSS_NEWTON
        cells += solvers_on((*HANDCRAFTED, *D_DDIM, *fitted, *some), checkpoint=name, nfe=5, block=0)
    return distinct(cells)


@measurement(gives=["rmse", "flux_error"], planned=galaxies_cells)
def galaxies(run: Run, *, checkpoint: str, solver: str, grid: str, nfe: int, block: int) -> dict[str, Value]:
    """:func:`errors` of a solver's images."""
    n, table = images_of(run.preset, checkpoint), solver_of(run, checkpoint, solver, grid, nfe)
    truth = run.reference_images(checkpoint, n, run.preset.reference_calls, block)
    found = errors(drawn(run, checkpoint, table, n, block), truth, sky_of(checkpoint))
    return found | facts(run, table, n, block)


# --- morphology ------------------------------------------------------------------------------------


def reference(run: Run, checkpoint: str, n: int, block: int) -> tuple[Tensor, Tensor]:
    """The reference solution of the first ``n`` seeds of a block, and its morphologies."""
    where = (checkpoint, n, run.preset.reference_calls, block)
    return run.reference_images(*where), run.shapes(*where)


def morphology_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """With 5 evaluations: three handcrafted solvers and three learned ones, begun on uniform times."""
    blocks = range(BLOCKS if p.kept else 1)
    make = functools.partial(morphology.cells, checkpoint=checkpoint or FIRST, nfe=5, block=blocks)
    if p.name == "smoke":
        return make(solver="ddim", grid="time")
    plain = [solver for solver, title in HANDCRAFTED.items() if title in ("DDIM", "DEIS on clean images", "UniPC-3")]
    return make(solver=plain, grid="time") + make(
        solver=[D_DDIM[0], next(iter(GAUSS_NEWTON)), next(iter(DESIGNED))], grid=""
    )


@measurement(gives=["rmse", "flux_error", "failed"], planned=morphology_cells)
def morphology(run: Run, *, checkpoint: str, solver: str, grid: str, nfe: int, block: int) -> dict[str, Value]:
    """:func:`errors`, and the morphology against the reference solution's."""
    n, table = images_of(run.preset, checkpoint), solver_of(run, checkpoint, solver, grid, nfe)
    truth, shapes = reference(run, checkpoint, n, block)
    images, sky = drawn(run, checkpoint, table, n, block), sky_of(checkpoint)
    found: dict[str, Value] = dict(compared(morphologies(images, sky), shapes))
    return found | errors(images, truth, sky) | facts(run, table, n, block)


def floor_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """The floors of :func:`morphology_cells`."""
    return morphology_floor.cells(checkpoint=checkpoint or FIRST, block=0)


@measurement(gives=["failed"], planned=floor_cells)
def morphology_floor(run: Run, *, checkpoint: str, block: int) -> dict[str, Value]:
    """The distances of :func:`morphology` between reference solutions of this block's seeds and of the next one's."""
    n = images_of(run.preset, checkpoint)
    one, other = (reference(run, checkpoint, n, k)[1] for k in (block, block + 1))
    found: dict[str, Value] = dict(compared(other, one))
    return {k: v for k, v in found.items() if k == "failed" or k.endswith("_distance")} | {"n": n}
