"""Fits of learned solvers, each kept as a file: what a page compares (:mod:`.learned`) is fitted once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dode import distillation, solvers, zoo
from dode.denoisers import NetworkDenoiser
from dode.distillation import DISTILLERS, Problem, losses
from dode.distillation.problem import DistillerInfo
from dode.experiments.rows import kept
from dode.experiments.run import Run, fit_seeds, grid_function, seeded
from dode.experiments.sweeps import Preset, home
from dode.metrics import Moments
from dode.solvers.base import Grid
from dode.tableau import Tableau
from dode.utils.files import FileError, names_a_file

# Options of any method in a cell, beside its own: where it starts, what it compares, on how many images of which block.
CELL_OPTIONS = ("afs", "grid", "base", "near", "residual", "images", "fit")
BASES = {"deis": "deis:variable=log_rho,basis=data", "ddim": "ddim:basis=data"}  # others as they are
EXTRACTORS = {"critic": "critic", "observer": "observer", "judge": "classifier"}


def loss(model: NetworkDenoiser, kind: str = "all") -> losses.Residual:
    """What fits of a network compare: a mix of :func:`dode.distillation.losses.named_loss`.

    The features of a classifier that knows the images count in units of their spread over the training images.
    """

    def trained(word: str) -> losses.Residual:
        name = f"{model.images.evaluators}-{EXTRACTORS[word]}"
        network, _ = zoo.load_evaluator(name, str(model.device))
        spread = Moments.load(zoo.CHECKPOINTS / zoo.moments_file(name)).cov.trace()
        return losses.features(network, float(spread) ** -0.5)

    return losses.named_loss(kind, model, trained if model.images.evaluators else None)


def solver_file(p: Preset, checkpoint: str, method: str, nfe: int) -> Path:
    """Where a learned solver is kept: with the results if they are committed, else in ``_build``."""
    folder = home() / ("results" if p.kept else "_build") / "solvers" / (p.rows_of or p.name)
    name = Path(checkpoint).stem if names_a_file(checkpoint) else checkpoint
    word = method.replace(":", "-").replace(",", "-").replace("=", "-")
    return folder / f"{name}-{word}-{nfe}.safetensors"


def initial_solver(
    run: Run, checkpoint: str, method: str, nfe: int, afs: bool | None = None, grid: str | None = None,
    base: str | None = None,
) -> tuple[Tableau, Callable[..., Tableau]]:  # fmt: skip
    """Where a method starts, and the same solver as a function of a grid.

    As published, or as :func:`dode.distillation.distiller` has it: LMS distillation, S4S and Gauss-Newton from
    Adams-Bashforth in ``ln sigma`` with an analytical first step, LD3 from UniPC, GITS from iPNDM.  ``base`` is another
    solver's name, ``grid`` one of :data:`~dode.experiments.run.GRIDS`, or "own", the network's.
    """
    info, model = DISTILLERS[method], run.model(checkpoint)
    facts, options = solvers.parse(info.start)
    first = options.pop("afs", False)
    if base:
        facts, options = solvers.parse(BASES.get(base, base))
    solver: Callable[..., Tableau] = functools.partial(facts.make, **options)
    where = grid or info.grid or "time"
    levels: Grid = model.grid if where == "own" else grid_function(where, model, to_zero=False)
    return solver(levels, nfe=nfe, afs=first if afs is None else afs), solver


def fit(run: Run, checkpoint: str, method: str, nfe: int) -> Tableau | distillation.Designed:
    """The learned solver, from its file, or fitted now; ``metadata["seconds"]`` is what the fit took.

    ``method`` may have options (its own, and :data:`CELL_OPTIONS`), as the rows of an ablation do: ``"ld3:radius=0"``.
    Its ``base`` may be learned itself: ``"dlms:base=gauss-newton"`` is a designer on top of a table fitted before.
    ``near=4`` begins at the method's own solver of 4 calls, read at ``nfe`` of them.
    """

    def read(file: Path) -> Tableau | distillation.Designed:
        found = distillation.load_solver(file)
        if found.metadata.get("weights") != zoo.digest(checkpoint):
            raise FileError(f"{file} is of other weights; the preset standard fits {method} again")
        return found

    def make(file: Path) -> Tableau | distillation.Designed:
        info, problem, own = task(run, checkpoint, method, nfe)
        began = time.perf_counter()
        solver = info.fit(problem, **own)
        solver.metadata.update(seconds=round(time.perf_counter() - began, 2), weights=zoo.digest(checkpoint))
        solver.save(file)
        return solver

    file = solver_file(run.preset, checkpoint, method, nfe)
    if run.preset.rows_of:
        return read(file)
    return make(file) if run.preset.name == "live" else kept(file, read, make)  # live: anew, whatever is kept


def task(run: Run, checkpoint: str, method: str, nfe: int) -> tuple[DistillerInfo[Any], Problem, dict[str, Any]]:
    """A method of a cell: the distiller, what it is given, and its own options."""
    p, name = run.preset, method.partition(":")[0]
    if name not in DISTILLERS:
        raise ValueError(f"no method named {name!r}; there are: {', '.join(DISTILLERS)}")
    info = DISTILLERS[name]
    given = solvers.parse_options(method, (*CELL_OPTIONS, *info.options))[1]
    sizes = dict(steps=p.fit_steps, trajectories=(p.kept and info.trajectories) or p.trajectories)
    own = {k: v for k, v in (sizes | given).items() if k in info.options}
    if "trajectories" in own and not p.kept:
        own["trajectories"] = min(own["trajectories"], p.trajectories)
    where = {k: given[k] for k in ("afs", "grid", "base") if k in given}
    below = where.pop("base") if where.get("base") in DISTILLERS else None
    table, make = initial_solver(run, checkpoint, name, nfe, **where)
    if below or "near" in given:
        learned, calls = below or name, given.get("near", nfe)
        if DISTILLERS[learned].designs:
            raise ValueError(f"{method}: {learned} designs its table for each image; a base is one table for all")
        made = fit(run, checkpoint, learned, calls)
        assert isinstance(made, Tableau)
        table = distillation.resampled(made, nfe) if calls != nfe else made
    residual = loss(run.model(checkpoint), given.get("residual", info.loss)) if info.loss else losses.pixels
    count = min(2 * p.learn_images, max(32, info.images(table, residual))) if info.images else p.learn_images
    seeds = fit_seeds(given.get("images", count), given.get("fit", 0))
    model, noise = seeded(run.model(checkpoint), seeds)
    problem = Problem(
        model, table, noise, make, residual, seeds, autocast=run.fast(checkpoint).of(seeds),  # each seed has its class
        folder=home() / "_build" / "training" / p.name / solver_file(p, checkpoint, method, nfe).stem,
    )  # fmt: skip
    return info, problem, own
