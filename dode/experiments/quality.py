"""What several pages measure of solvers, on held-out seeds: Fréchet distance and RMSE.

:func:`fd` is to the training images, :func:`rmse` to the images of a reference solution from the same seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from dode import distillation, metrics, solvers, zoo
from dode.denoisers import Denoiser
from dode.denoisers.networks import is_compiled
from dode.distillation import Align, Alignment
from dode.distillation.corrections import released_plan
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.rows import Sweep, joined, typed
from dode.experiments.run import GRIDS, Run, base_solver, draw, fit_seeds, held_out_seeds, possible_nfe, seeded
from dode.experiments.sweeps import Preset, checkpoints, home, images_of
from dode.tableau import Tableau

if TYPE_CHECKING:
    import pandas as pd

OWN = "d-ode:basis=own"  # the variant for solvers whose own basis is not the network's
VARIANT_OPTIONS = ("images", "scale", "teacher", "align", "first_step", "equation", "basis", "model")
# What a page calls an entry -> the solver, as one word.  No order: its usual one, or what a short grid carries.
ENTRIES = {
    label: info.name + ":" * bool(options) + ",".join(f"{k}={v}" for k, v in options.items())
    for info in solvers.SOLVERS.values()
    for label, options in info.entries.items()
}


def distilled(
    denoiser: Denoiser, tableau: Tableau, images: int, block: int = 0, align: Alignment = "time", scale: int = 10,
    **more: Any,
) -> Tableau:  # fmt: skip
    """The D- version of ``tableau``, fitted on the block's seeds; ``more`` goes to :func:`dode.distillation.d_ode`."""
    seeds = fit_seeds(images, block)
    conditioned, noise = seeded(denoiser, seeds)
    if align != "released" and more.get("teacher", "ddim") == "ddim":
        more["teacher"] = _recorded(denoiser, tuple(tableau.levels.tolist()), images, block, align, scale)
    return distillation.d_ode(conditioned, tableau, noise, align=align, scale=scale, seeds=seeds, **more)


def joint(denoiser: Denoiser, tableau: Tableau, images: int, block: int = 0) -> Tableau:
    """The lambdas of :func:`distilled` fitted to the teacher's last state alone, all at once, from where it ends.

    Same teacher, same seeds, Gauss-Newton steps: what is different is what fitting one step after the other costs.
    """
    seeds = fit_seeds(images, block)
    conditioned, noise = seeded(denoiser, seeds)
    start = distilled(denoiser, tableau, images, block)
    plain = tableau.to_basis(start.basis)
    space = distillation.DirectionSpace(plain, directions=distillation.families(plain))
    found = distillation.gauss_newton(
        conditioned, start, noise, space=space, teacher=distillation.make_teacher(tableau), bias=0.0, limit=0.0,
        budget=10**9, seeds=seeds,
    )  # fmt: skip
    return found.with_full(found.full, lambdas=space.pack(found).tolist())


@functools.lru_cache(maxsize=8)
def _recorded(
    denoiser: Denoiser, levels: tuple[float, ...], images: int, block: int, align: Align, scale: int
) -> distillation.Recording:
    """DDIM's many-step run through ``levels``, which all solvers of one grid are fitted to: most of a fit's cost."""
    conditioned, noise = seeded(denoiser, fit_seeds(images, block))
    student = solvers.ddim(torch.tensor(levels, dtype=torch.float64))
    return distillation.record(conditioned, student, noise, scale=scale, align=align)


def variant_of(run: Run, checkpoint: str, solver: str, variant: str, nfe: int, block: int = 0) -> Tableau:
    """``solver`` as ``variant`` has it: "plain", "joint", or "d-ode" with options, ``"d-ode:scale=20,teacher=same"``.

    "joint" is :func:`joint`; "plain:align=released" is the solver on the levels of the authors' fit, which may be
    others than the network's own.

    ``images`` is |B| (default: the preset's), ``teacher`` "ddim" or "same", ``model`` the checkpoint that is
    fitted on in place of the one that samples (on this one's grid); the others are those of
    :func:`dode.distillation.d_ode`.
    """
    model = run.model(checkpoint)  # the fit is always in float32
    tableau = base_solver(solver, model, nfe)
    method, options = solvers.parse_options(variant, VARIANT_OPTIONS)
    if method == "plain":
        return released_plan(tableau, model.schedule, 10).table if options.get("align") == "released" else tableau
    if method == "joint":
        return joint(model, tableau, options.get("images", run.preset.fit_images), block)
    if method != "d-ode":
        raise ValueError(f"no variant named {method!r}; there are plain, d-ode and joint")
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
    seeds = held_out_seeds(images_of(run.preset, checkpoint), block)
    model = run.compiled(checkpoint)
    found = metrics.measure(draw(model, tableau, seeds), features, reference)
    per_row = (row if isinstance(row, list) else [row] for row in tableau.metadata.get("lambdas", []))
    return dict(
        fd=found["fd"], n=found["n"], features=found["features"], seeds=seeds,
        lambdas=joined(v for row in per_row for v in row),
        evaluations=tableau.metadata.get("network_evaluations", 0),
        network=run.arithmetic + ", compiled" * is_compiled(model.network),
    )  # fmt: skip


def real_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """One network of each data set."""
    names = [checkpoint] if checkpoint else [name for name in zoo.NAMES if name.endswith("-data")]
    return real_images.cells(checkpoint=names)


@measurement(gives=["fd"], planned=real_cells)
def real_images(run: Run, *, checkpoint: str) -> dict[str, Value]:
    """Fréchet distance of test images to the training images: what no solver and no network can be asked to better.

    Needs the data set (``DODE_DATA``).
    """
    known = zoo.data_set_of(checkpoint)
    images = known.load("test")[0][: run.preset.images]
    found = metrics.measure(images, *run.evaluator(checkpoint))
    return dict(fd=found["fd"], n=found["n"], features=found["features"])


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


@functools.cache
def committed_rows(name: str) -> pd.DataFrame:
    """All rows of ``results/NAME.standard.csv``, which the project keeps."""
    import pandas as pd

    text = pd.read_csv(home() / "results" / f"{name}.standard.csv", dtype=str, keep_default_na=False)
    return typed(text.to_dict("records"))


def paired(rows: pd.DataFrame, variant: str = "d-ode") -> pd.Series:
    """Which is nearer in every block of rows of :func:`fd`: "distilled", "plain", or neither, a "tie".

    By network, solver and NFE; a block's seeds are the same for both.
    """
    keys = ["checkpoint", "solver", "nfe"]
    each = rows.pivot(index=[*keys, "block"], columns="variant", values="fd")[["plain", variant]].dropna()
    nearer = (each[variant] < each.plain).groupby(level=keys).mean()
    return nearer.map(lambda share: {1: "distilled", 0: "plain"}.get(share, "tie"))


# --- how far from the reference solution -----------------------------------------------------------


def rmse_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """Every entry on every grid; an NFE that a solver cannot make is replaced by the next one below."""
    cells = {
        (name, entry, grid, possible_nfe(spec, nfe)): None
        for name in checkpoints(checkpoint or "fashion-mnist")
        for nfe in sorted(p.zoo_nfes)
        for entry, spec in ENTRIES.items()
        for grid in GRIDS
    }
    sizes = dict(n=p.zoo_images, reference_calls=p.reference_steps)
    named = (dict(zip(("checkpoint", "solver", "grid", "nfe"), cell, strict=True)) for cell in cells)
    return [rmse.cell(values, **sizes) for values in named]


@measurement(name="solver_zoo", gives=["rmse"], adds=["network"], planned=rmse_cells)
def rmse(
    run: Run, *, checkpoint: str, solver: str, grid: str, nfe: int, n: int, reference_calls: int
) -> dict[str, Value]:
    """Root mean squared distance of a solver's images to the reference solution's, in pixels of -1..1."""
    table = run.on_grid(checkpoint, ENTRIES[solver], grid, nfe)
    return dict(rmse=run.rmse(checkpoint, table, n, reference_calls), seeds=held_out_seeds(n))
