"""What several figures measure: the Fréchet distance of plain and distilled solvers, on held-out seeds."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from dode import distillation, solvers
from dode.denoisers import Denoiser
from dode.denoisers.networks import is_compiled
from dode.distillation import Align
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.rows import Sweep, joined, typed
from dode.experiments.run import Run, base_solver, draw, fit_seeds, held_out_seeds, seeded
from dode.experiments.sweeps import Preset, home
from dode.metrics import measure
from dode.tableau import Tableau

if TYPE_CHECKING:
    import pandas as pd

OWN = "d-ode:basis=own"  # the variant for solvers whose own basis is not the network's
VARIANT_OPTIONS = ("images", "scale", "teacher", "align", "first_step", "equation", "basis", "model")


def distilled(
    denoiser: Denoiser,
    tableau: Tableau,
    images: int,
    block: int = 0,
    align: Align = "time",
    scale: int = 10,
    **more: Any,
) -> Tableau:
    """The D- version of ``tableau``, fitted on the block's seeds; ``more`` goes to :func:`dode.distillation.d_ode`."""
    seeds = fit_seeds(images, block)
    conditioned, noise = seeded(denoiser, seeds)
    if more.get("teacher", "ddim") == "ddim":
        more["teacher"] = _recorded(denoiser, tuple(tableau.levels.tolist()), images, block, align, scale)
    return distillation.d_ode(conditioned, tableau, noise, align=align, scale=scale, seeds=seeds, **more)


@functools.lru_cache(maxsize=8)
def _recorded(
    denoiser: Denoiser, levels: tuple[float, ...], images: int, block: int, align: Align, scale: int
) -> distillation.Recording:
    """DDIM's many-step run through ``levels``, which all solvers of one grid are fitted to: most of a fit's cost."""
    conditioned, noise = seeded(denoiser, fit_seeds(images, block))
    student = solvers.ddim(torch.tensor(levels, dtype=torch.float64))
    return distillation.record(conditioned, student, noise, scale=scale, align=align)


def variant_of(run: Run, checkpoint: str, solver: str, variant: str, nfe: int, block: int = 0) -> Tableau:
    """``solver`` as ``variant`` has it: "plain", or "d-ode" with options, ``"d-ode:scale=20,teacher=same"``.

    ``images`` is |B| (default: the preset's), ``teacher`` "ddim" or "same", ``model`` the checkpoint that is
    fitted on in place of the one that samples (on this one's grid); the others are those of
    :func:`dode.distillation.d_ode`.
    """
    model = run.model(checkpoint)  # the fit is always in float32
    tableau = base_solver(solver, model, nfe)
    method, options = solvers.parse_options(variant, VARIANT_OPTIONS)
    if method == "plain":
        return tableau
    if method != "d-ode":
        raise ValueError(f"no variant named {method!r}; there are plain and d-ode")
    if options.get("teacher") == "same":
        facts, own = solvers.parse(solver)
        options["teacher"] = functools.partial(facts.make, **own)
    source = run.model(options.pop("model", checkpoint))
    learned = distilled(source, tableau, options.pop("images", run.preset.fit_images), block, **options)
    return learned if source is model else learned.unbind()


def fd_cells(
    p: Preset, plan: Mapping[tuple[str, str], Iterable[int]], variants: Iterable[str] = ("plain", "d-ode")
) -> list[Cell]:
    """Cells of :func:`fd`: ``plan`` maps (checkpoint, solver) to NFEs; cheap cells come first."""
    blocks, cells = range(p.repeats), list[Cell]()
    for (checkpoint, solver), nfes in plan.items():
        cells += fd.cells(checkpoint=checkpoint, solver=solver, nfe=nfes, variant=variants, block=blocks)
    return sorted(cells, key=lambda cell: cell["nfe"])


@measurement(gives=["fd"])
def fd(run: Run, *, checkpoint: str, solver: str, variant: str, nfe: int, block: int) -> dict[str, Value]:
    """Fréchet distance: fit on the block's seeds if asked, sample its held-out ones, compare with training images."""
    features, reference = run.evaluator(checkpoint)
    tableau = variant_of(run, checkpoint, solver, variant, nfe, block)
    seeds = held_out_seeds(run.preset.images, block)
    model = run.compiled(checkpoint)
    found = measure(draw(model, tableau, seeds), features, reference)
    per_row = (row if isinstance(row, list) else [row] for row in tableau.metadata.get("lambdas", []))
    return dict(
        fd=found["fd"], n=found["n"], features=found["features"], seeds=seeds,
        lambdas=joined(v for row in per_row for v in row),
        evaluations=tableau.metadata.get("network_evaluations", 0),
        network=run.arithmetic + ", compiled" * is_compiled(model.network),
    )  # fmt: skip


@measurement(name="ablations_spread", gives=["lambdas"], adds=["preset", "network"])
def lambdas(run: Run, *, checkpoint: str, solver: str, nfe: int, images: int, batch: int) -> dict[str, Value]:
    """The lambdas of one fit, on one of the disjoint batches of ``images``."""
    model = run.model(checkpoint)
    found = distilled(model, base_solver(solver, model, nfe), images, batch)
    return dict(lambdas=joined(found.metadata["lambdas"]), seeds=fit_seeds(images, batch))


def committed(*pages: str) -> pd.DataFrame:
    """Rows of :func:`fd` that the project keeps of these pages' standard runs.

    A cell that several pages have counts once: the last one's.
    """
    sweeps = (Sweep(home() / "results" / f"{page}.standard.csv", fd.keys) for page in pages)
    return typed({tuple(row[k] for k in fd.keys): row for sweep in sweeps for row in sweep.rows}.values())
