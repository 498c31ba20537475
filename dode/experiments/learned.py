"""Learned solvers measured: fitted once, kept as files, and compared on seeds that no fit saw.

Every row has three distances: Fréchet to the training images, Fréchet to the samples of a reference solution from other
seeds, and RMSE to its images from the same seeds.  The critic's features enter fits; the classifier's measure.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dode import distillation, zoo
from dode.distillation.teachers import default_teacher
from dode.experiments.fits import fit, initial_solver
from dode.experiments.measurements import Cell, Value, measurement, weights_of
from dode.experiments.rows import kept
from dode.experiments.run import EVALUATION, GRIDS, Run, draw, held_out_seeds
from dode.experiments.sweeps import Preset, checkpoints, home, images_of
from dode.experiments.variants import variant_of
from dode.metrics import Moments, frechet_distance, measured_distance
from dode.metrics import moments as moments_of
from dode.solvers import SOLVERS
from dode.tableau import Tableau

if TYPE_CHECKING:
    import pandas as pd

HANDCRAFTED = tuple(info.name for info in SOLVERS.values() if info.compared)
FITTED = {name: d for name, d in distillation.DISTILLERS.items() if name != "dlms"}  # that one: :mod:`.dlms_study`
METHODS = (*HANDCRAFTED, "start", *FITTED)
EVERYWHERE = (*HANDCRAFTED, "start", *(name for name, d in FITTED.items() if d.everywhere))
NFES = (3, 4, 5, 6, 7, 8, 9, 10)  # of the DLMS paper's table 5
SMALL = ("deis", "start", "gits", "gauss-newton")  # of METHODS, at the preset smoke
REFERENCE_SEEDS = 50_000_000  # the first of the reference solution's own; nothing else uses them
SELECTION_BLOCK = 7  # whose held-out seeds choose grids, and measure nothing


def asked(preset: str, checkpoint: str | None = None) -> tuple[tuple[int, ...], dict[str, list[str]]]:
    """What the book compares at a preset: numbers of calls, and for each network, the first one first, its methods.

    ``checkpoint`` is a name, a data set, "all" or a file; by default both networks of Fashion-MNIST, at "smoke" one.
    """
    small = preset == "smoke"
    names = checkpoints(checkpoint or ("fashion-mnist-data" if small else "fashion-mnist"))[::-1]
    methods = SMALL if small else METHODS
    return (3,) if small else NFES, {n: [m for m in methods if n == names[0] or m in EVERYWHERE] for n in names}


@functools.cache
def reference_moments(run: Run, checkpoint: str, kinds: tuple[str, ...] = EVALUATION) -> tuple[Moments, ...]:
    """Moments of the reference solution's samples in the features of networks; kept in the project's ``_build``.

    The reference solution is fits' own teacher, :func:`dode.distillation.teachers.default_teacher`, of more calls.
    """
    n, calls = images_of(run.preset, checkpoint), run.preset.reference_calls
    evaluators = run.evaluators(checkpoint, kinds)
    word = f"{checkpoint}-{zoo.digest(checkpoint)}-{n}-{calls}-{run.arithmetic.split()[0]}"
    folder = home() / "_build" / "references"
    files = [folder / f"moments-{word}-{features.name}.safetensors" for features, _ in evaluators]

    def read(_: Path) -> tuple[Moments, ...]:
        return tuple(map(Moments.load, files))

    def make(_: Path) -> tuple[Moments, ...]:
        model, seeds = run.fast(checkpoint), range(REFERENCE_SEEDS, REFERENCE_SEEDS + n)
        images = torch.cat([x.cpu() for x in draw(model, default_teacher(model, calls), seeds)])
        for (features, _data), file in zip(evaluators, files, strict=True):
            moments_of(images, features, source=f"{checkpoint}, {calls} calls").save(file)
        return read(file)

    missing = [file for file in files if not file.is_file()]
    return kept((missing or files)[0], read, make)


# --- floors ----------------------------------------------------------------------------------------


def floor_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """The cell of :func:`floor` that a preset has of each checkpoint."""
    names, calls = asked(p.name, checkpoint)[1], p.reference_calls
    return [
        cell for name in names for cell in floor.cells(checkpoint=name, n=images_of(p, name), reference_calls=calls)
    ]


@measurement(name="floors", gives=["fd_reference", "fd_data"], planned=floor_cells)
def floor(run: Run, *, checkpoint: str, n: int, reference_calls: int) -> dict[str, Value]:
    """The floors of the distances, by column of the rows; ``n`` and the calls are the preset's.

    ``fd_reference``: what two sets of ``n`` normal draws with the moments of its features are apart.
    ``fd_data``: how far the reference solution itself is from the training images: the error of the *network*.
    """
    (aim,) = reference_moments(run, checkpoint, EVALUATION[:1])
    values, vectors = torch.linalg.eigh(aim.cov)
    root, draws = vectors * values.clamp(min=0).sqrt(), torch.Generator().manual_seed(0)
    one, other = (
        Moments("normal", aim.dim).update(torch.randn(n, aim.dim, generator=draws, dtype=torch.float64) @ root.T)
        for _ in range(2)
    )
    data = run.evaluator(checkpoint)[1]
    return dict(
        fd_reference=frechet_distance(one, other), fd_data=frechet_distance(aim, data),
        seeds=range(REFERENCE_SEEDS, REFERENCE_SEEDS + n), network=run.arithmetic,
    )  # fmt: skip


def floors(run: Run, names: Iterable[str]) -> pd.DataFrame:
    """The rows of :func:`floor` of each network, by its name."""
    cells = [cell for name in names for cell in floor_cells(run.preset, name)]
    return floor.rows(run, cells).set_index("checkpoint")


# --- handcrafted solvers, each on its best grid ----------------------------------------------------


@measurement(name="grids", gives=["fd_reference"])
def grid_distance(run: Run, *, checkpoint: str, solver: str, variant: str, grid: str, nfe: int) -> dict[str, Value]:
    """Fréchet distance to the reference solution's samples, from few seeds that choose the grid and measure nothing."""
    table = variant_of(run, checkpoint, solver, variant, nfe, grid=grid)
    n = min(500, images_of(run.preset, checkpoint), max(run.preset.images // 4, 64))
    seeds = held_out_seeds(n, SELECTION_BLOCK)
    found = moments_of(draw(run.fast(checkpoint), table, seeds), run.evaluator(checkpoint)[0])
    (aim,) = reference_moments(run, checkpoint, EVALUATION[:1])
    return dict(fd_reference=measured_distance(found, aim), n=n, seeds=seeds, network=run.arithmetic)


def best_grid(run: Run, checkpoint: str, solver: str, nfe: int, variant: str = "plain") -> str:
    """The grid on which ``variant`` is nearest by :func:`grid_distance`; measured where there are no rows."""
    cells = grid_distance.cells(checkpoint=checkpoint, nfe=nfe, solver=solver, variant=variant, grid=GRIDS)
    found = grid_distance.rows(run, cells, jobs=1)
    return str(found.sort_values(["fd_reference", "grid"]).grid.iloc[0])


# --- measurements ----------------------------------------------------------------------------------


def compared_solver(run: Run, checkpoint: str, method: str, nfe: int) -> Tableau | distillation.Designed:
    """A handcrafted solver on its best grid, "start", where LMS distillation begins, or a learned one."""
    if method == "start":
        return initial_solver(run, checkpoint, "dlms", nfe)[0]
    if method not in HANDCRAFTED:
        return fit(run, checkpoint, method, nfe)
    return run.on_grid(checkpoint, method, best_grid(run, checkpoint, method, nfe), nfe, to_zero=False)


def frechet_distances(
    run: Run,
    checkpoint: str,
    solver: Tableau | distillation.Designed,
    seeds: range,
    kinds: tuple[str, ...] = EVALUATION,
) -> dict[str, Value]:
    """To the training images and to the reference solution's samples, in the features of networks.

    Columns of all but the first network end in its kind.
    """
    images = torch.cat([x.cpu() for x in draw(run.compiled(checkpoint), solver, seeds)])
    aims, found = reference_moments(run, checkpoint, kinds), dict[str, Value]()
    for kind, (features, data), aim in zip(kinds, run.evaluators(checkpoint, kinds), aims, strict=True):
        seen, word = moments_of(images, features), "" if kind == kinds[0] else f"_{kind}"
        found[f"fd_data{word}"] = measured_distance(seen, data)
        found[f"fd_reference{word}"] = measured_distance(seen, aim)
    return found


@measurement(gives=["fd_data", "fd_reference"])
def learned(run: Run, *, checkpoint: str, method: str, nfe: int, block: int) -> dict[str, Value]:
    """The three distances of a solver, and the Fréchet ones in the critic's features too.

    RMSE is of the first block's seeds, whose exact images are known; rows of others have none.
    """
    p, n, solver = run.preset, images_of(run.preset, checkpoint), compared_solver(run, checkpoint, method, nfe)
    seeds = held_out_seeds(n, block)
    found = frechet_distances(run, checkpoint, solver, seeds)
    if block == 0:
        found |= dict(rmse=run.rmse(checkpoint, solver, p.zoo_images, p.reference_steps), n_rmse=p.zoo_images)
    grid = best_grid(run, checkpoint, method, nfe) if method in HANDCRAFTED else "time" if method == "start" else ""
    return found | dict(
        n=n, reference_calls=p.reference_calls, seeds=seeds, network=run.network(checkpoint), preset=p.name, grid=grid,
        evaluations=solver.metadata.get("network_evaluations", 0), seconds=solver.metadata.get("seconds", 0),
    )  # fmt: skip


def compare(
    run: Run, methods: Mapping[str, Iterable[str]], nfes: Iterable[int], blocks: Iterable[int] = (0,)
) -> pd.DataFrame:
    """The rows of :func:`learned` for each network's methods, after those of the grids that handcrafted ones need."""
    import pandas as pd

    nfes, blocks, parts = list(nfes), list(blocks), list[Any]()
    for name, some in ((name, list(some)) for name, some in methods.items()):
        cells = learned.cells(nfe=nfes, checkpoint=name, method=some, block=blocks)
        if learned.sweep(run.preset).missing(cells) and not run.preset.rows_of:
            reference_moments(run, name)  # in both networks' features, from the same images
        if set(some) & set(HANDCRAFTED):
            which = dict(checkpoint=name, nfe=nfes, solver=HANDCRAFTED, variant="plain", grid=GRIDS)
            grid_distance.rows(run, grid_distance.cells(**which))
        parts.append(learned.rows(run, cells))
    return pd.concat(parts, ignore_index=True)


# --- where it was not learned: on another network, or with another number of calls -----------------


def table_of(run: Run, made_for: str, method: str, nfe: int) -> Tableau:
    """The table that a method, or "start", makes for a network; ValueError if it designs one for each image."""
    found = compared_solver(run, made_for, method, nfe)
    if not isinstance(found, Tableau):
        raise ValueError(f"{method} designs its table for each image of {made_for}; no other network can be given it")
    return found


def transfer_cell(run: Run, checkpoint: str, made_for: str, method: str, made_nfe: int, nfe: int, n: int) -> Cell:
    """What a table that was made for ``made_for`` and ``made_nfe`` calls does on ``checkpoint`` with ``nfe``.

    The cell names the numbers of the table: a new fit is a new row.
    """
    solver = "" if method == "start" else table_of(run, made_for, method, made_nfe).digest
    cell = dict(checkpoint=checkpoint, made_for=made_for, method=method, made_nfe=made_nfe, nfe=nfe, n=n)
    return transfer.cell(cell, made_for_weights=weights_of(made_for), solver=solver)


@measurement(gives=["fd_data", "rmse"])
def transfer(
    run: Run, *, checkpoint: str, made_for: str, method: str, made_for_weights: str, solver: str, made_nfe: int,
    nfe: int, n: int,
) -> dict[str, Value]:  # fmt: skip
    """Fréchet distances to the training images and to the reference's samples, RMSE to the reference's images."""
    p, table = run.preset, table_of(run, made_for, method, made_nfe)
    table = (table if nfe == made_nfe else distillation.resampled(table, nfe)).unbind()
    features, data = run.evaluator(checkpoint)
    aim, _critic = reference_moments(run, checkpoint)
    seeds = held_out_seeds(n)
    found = moments_of(draw(run.fast(checkpoint), table, seeds), features)
    return dict(
        fd_data=frechet_distance(found, data), fd_reference=frechet_distance(found, aim),
        rmse=run.rmse(checkpoint, table, p.zoo_images, p.reference_steps), n_rmse=p.zoo_images, seeds=seeds,
        network=run.arithmetic,
    )  # fmt: skip
