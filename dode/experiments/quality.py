"""What several pages measure of solvers, on held-out seeds: Fréchet distance and RMSE.

:func:`fd` is to the training images, :func:`rmse` to the images of a reference solution from the same seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from dode import metrics, solvers, zoo
from dode.experiments.learned import best_grid, frechet_distances
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.rows import Sweep, joined, typed
from dode.experiments.run import EVALUATION, GRIDS, Run, base_solver, draw, fit_seeds, held_out_seeds, possible_nfe
from dode.experiments.sweeps import Preset, checkpoints, home, images_of
from dode.experiments.variants import ON_BEST, distilled, variant_of
from dode.tableau import Tableau

if TYPE_CHECKING:
    import pandas as pd

# What a page calls an entry -> the solver, as one word.  No order: its usual one, or what a short grid carries.
ENTRIES = {
    label: info.name + ":" * bool(options) + ",".join(f"{k}={v}" for k, v in options.items())
    for info in solvers.SOLVERS.values()
    for label, options in info.entries.items()
}


def fd_cells(
    p: Preset, plan: Mapping[tuple[str, str], Iterable[int]], variants: Iterable[str] = ("plain", "d-ode")
) -> list[Cell]:
    """Cells of :func:`fd`: ``plan`` maps (checkpoint, solver) to NFEs; cheap cells come first."""
    cells = list[Cell]()
    for (checkpoint, solver), nfes in plan.items():
        for nfe in nfes:
            blocks = range(1 if nfe > p.blocks_to else p.repeats)
            cells += fd.cells(checkpoint=checkpoint, solver=solver, nfe=nfe, variant=variants, block=blocks)
    return in_order(p, cells)


def in_order(p: Preset, cells: Iterable[Cell]) -> list[Cell]:
    """Cheap cells first: few evaluations, the first block of seeds."""
    return sorted(cells, key=lambda cell: (cell["nfe"] > p.blocks_to, cell["block"], cell["nfe"]))


@measurement(gives=["fd"])
def fd(run: Run, *, checkpoint: str, solver: str, variant: str, nfe: int, block: int) -> dict[str, Value]:
    """Fréchet distance: fit on the block's seeds if asked, sample its held-out ones, compare with training images."""
    features, reference = run.evaluator(checkpoint)
    tableau = variant_of(run, checkpoint, solver, variant, nfe, block)
    seeds = held_out_seeds(images_of(run.preset, checkpoint), block)
    found = metrics.measure(draw(run.compiled(checkpoint), tableau, seeds), features, reference)
    return dict(
        fd=found["fd"], n=found["n"], features=found["features"], seeds=seeds, **of_fit(tableau),
        network=run.network(checkpoint),
    )  # fmt: skip


def of_fit(tableau: Tableau) -> dict[str, Value]:
    """What a fit found, and the evaluations that it took."""
    per_row = (row if isinstance(row, list) else [row] for row in tableau.metadata.get("lambdas", []))
    found = joined(v for row in per_row for v in row)
    return dict(lambdas=found, evaluations=tableau.metadata.get("network_evaluations", 0))


@measurement(gives=["fd", "fd_reference"])
def fidelity(run: Run, *, checkpoint: str, solver: str, variant: str, nfe: int, block: int) -> dict[str, Value]:
    """:func:`fd` and, of the same images, the Fréchet distance to the reference solution's samples; RMSE to its images.

    A variant that ends in ":grid=best" is on the grid that :func:`.learned.best_grid` chooses for it.
    RMSE is of seeds of the first block; rows of others have none.
    """
    p, (kind, best, _) = run.preset, variant.partition(ON_BEST)
    grid = best_grid(run, checkpoint, solver, nfe, kind) if best else ""
    tableau = variant_of(run, checkpoint, solver, kind, nfe, block, grid)
    seeds = held_out_seeds(images_of(p, checkpoint), block)
    distances = frechet_distances(run, checkpoint, tableau, seeds, EVALUATION[:1])
    found = dict[str, Value](fd=distances["fd_data"], fd_reference=distances["fd_reference"])
    if block == 0:
        found |= dict(rmse=run.rmse(checkpoint, tableau, p.zoo_images, p.reference_steps), n_rmse=p.zoo_images)
    return found | of_fit(tableau) | dict(
        n=len(seeds), features=run.evaluator(checkpoint)[0].name, seeds=seeds, reference_calls=p.reference_calls,
        grid=grid, network=run.network(checkpoint),
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


def pairs(rows: pd.DataFrame) -> pd.DataFrame:
    """Each distilled solver beside the plain one on its grid, of rows of :func:`fd` or :func:`fidelity`.

    A row for each network, solver, NFE and variant: distances are means over blocks of seeds, those of the plain solver
    end in ``_plain``, as do standard deviations (``fd_std``); ``ratio`` is of ``fd``.  ``paired`` says which is nearer
    in every block, whose seeds are the same for both: "distilled", "plain", a "tie", or "" where there is one block.
    """
    import pandas as pd

    keys, found = ["checkpoint", "solver", "nfe"], list[pd.DataFrame]()
    means = {m: (m, "mean") for m in ("fd", "fd_reference", "rmse") if m in rows} | {"fd_std": ("fd", "std")}
    facts = {k: (k, "first") for k in ("grid", "n", "n_rmse") if k in rows} | {"blocks": ("fd", "count")}
    for variant in (v for v in rows.variant.unique() if not v.startswith("plain")):
        base = "plain" + ON_BEST * variant.endswith(ON_BEST)
        fitted, plain = (rows[rows.variant == v].set_index([*keys, "block"]) for v in (variant, base))
        plain = plain[plain.index.isin(fitted.index)]  # the same blocks
        nearer = (fitted.fd < plain.fd.reindex(fitted.index)).groupby(level=keys).agg(["mean", "count"])
        of = [part.groupby(level=keys).agg(**means, **facts) for part in (fitted, plain)]
        same = [k for k in facts if k != "grid"]
        both = of[0].join(of[1].drop(columns=same), rsuffix="_plain", how="inner")
        verdict = nearer["mean"].map(lambda share: {1: "distilled", 0: "plain"}.get(share, "tie"))
        both["paired"] = verdict.where(nearer["count"] > 1, "")
        found.append(both.assign(ratio=both.fd / both.fd_plain, variant=variant).reset_index())
    return pd.concat(found, ignore_index=True)


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
