"""Fits of learned solvers, each kept as a file: what a page compares is fitted once.

The critic's features enter fits; the classifier's measure (:mod:`dode.experiments.learned`).
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dode import distillation, solvers, zoo
from dode.distillation import DISTILLERS, Problem, losses
from dode.distillation.problem import DistillerInfo
from dode.experiments import comparisons
from dode.experiments.rows import kept
from dode.experiments.run import Run, data_moments, fit_seeds, inception_moments, load_cached
from dode.experiments.sweeps import Preset, file_stem, home
from dode.metrics import Features, Moments
from dode.sampling import initial_noise
from dode.tableau import Tableau
from dode.utils.files import FileError
from dode.zoo.datasets import DataSet

# Options of any method in a cell, beside its own: where it starts, what it compares, on how many images.
CELL_OPTIONS = ("afs", "grid", "base", "near", "residual", "images")
BASES = {"deis": "deis:variable=log_rho,basis=data", "ddim": "ddim:basis=data"}  # others as they are


def grid_of(name: str, checkpoint: str, device_name: str) -> Any:
    """One of :data:`~dode.experiments.comparisons.GRIDS`, "time" and "quadratic" with a last step to 0.

    "Karras" and "log SNR" end at ``sigma_min``: their last level is that itself, and a call spent there is lost.
    """
    return comparisons.grid_function(name, load_cached(checkpoint, device_name), to_zero=False)


def known_data(checkpoint: str) -> DataSet | None:
    """The data set whose classifier and critic know a checkpoint's images; None: Inception alone can measure them."""
    try:
        return zoo.data_set_of(checkpoint)
    except FileError:
        raise
    except ValueError:
        return None


def evaluators(
    device_name: str, checkpoint: str = "fashion-mnist"
) -> tuple[tuple[Features, Moments], tuple[Features, Moments]]:
    """(features, moments of the training images) of the classifier, which measures, and of the critic, which fits.

    Both are those of the checkpoint's data set.  For networks of other images: Inception's, resized as in the papers'
    tables and as clean-fid does it.  Fits see neither.
    """
    if known := known_data(checkpoint):
        return data_moments(known.name, device_name), data_moments(known.name, device_name, "critic")
    name = load_cached(checkpoint, device_name).name
    first, second = (inception_moments(mode, name, device_name) for mode in ("legacy_tensorflow", "clean"))
    return first, second


EXTRACTORS = {"critic": "critic", "observer": "observer", "judge": "classifier"}


def loss(device_name: str, kind: str = "all", checkpoint: str = "fashion-mnist") -> losses.Residual:
    """What fits of a checkpoint compare: a mix of :func:`dode.distillation.losses.named_loss`.

    The features of a classifier that knows the images count in units of their spread over the training images.
    """
    data = known_data(checkpoint)
    channels = data.shape[0] if data else load_cached(checkpoint, device_name).shape[0]

    def trained(word: str) -> losses.Residual:
        assert data is not None
        name = f"{data.name}-{EXTRACTORS[word]}"
        network, _ = zoo.load_evaluator(name, device_name)
        spread = Moments.load(zoo.CHECKPOINTS / zoo.moments_file(name)).cov.trace()
        return losses.features(network, float(spread) ** -0.5)

    return losses.named_loss(kind, channels, trained if data else None)


def solver_file(p: Preset, checkpoint: str, method: str, nfe: int) -> Path:
    """Where a learned solver is kept: with the results if they are committed, else in ``_build``."""
    folder = home() / ("results" if p.kept else "_build") / "solvers" / (p.rows_of or p.name)
    word = method.replace(":", "-").replace(",", "-").replace("=", "-")
    return folder / f"{file_stem(checkpoint)}-{word}-{nfe}.safetensors"


def initial_solver(
    method: str, checkpoint: str, device_name: str, nfe: int, afs: bool | None = None, grid: str | None = None,
    base: str | None = None,
) -> tuple[Tableau, Callable[..., Tableau]]:  # fmt: skip
    """Where a method starts, and the same solver as a function of a grid.

    As published, or as :func:`dode.distillation.distiller` has it: LMS distillation, S4S and Gauss-Newton from
    Adams-Bashforth in ``ln sigma`` with an analytical first step, LD3 from UniPC, GITS from iPNDM.  ``base`` is another
    solver's name.
    """
    info = DISTILLERS[method]
    facts, options = solvers.parse(info.start)
    first = options.pop("afs", False)
    if base:
        facts, options = solvers.parse(BASES.get(base, base))
    solver: Callable[..., Tableau] = functools.partial(facts.make, **options)
    where = grid or info.grid or "time"
    levels = load_cached(checkpoint, device_name).grid if where == "own" else grid_of(where, checkpoint, device_name)
    return solver(levels, nfe=nfe, afs=first if afs is None else afs), solver


def fit(p: Preset, checkpoint: str, device_name: str, method: str, nfe: int) -> Tableau | distillation.Designed:
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
        info, problem, own = task(p, checkpoint, device_name, method, nfe)
        began = time.perf_counter()
        solver = info.fit(problem, **own)
        solver.metadata.update(seconds=round(time.perf_counter() - began, 2), weights=zoo.digest(checkpoint))
        solver.save(file)
        return solver

    file = solver_file(p, checkpoint, method, nfe)
    if p.rows_of:
        return read(file)
    return make(file) if p.anew else kept(file, read, make)


def task(
    p: Preset, checkpoint: str, device_name: str, method: str, nfe: int
) -> tuple[DistillerInfo[Any], Problem, dict[str, Any]]:
    """A method of a cell: the distiller, what it is given, and its own options."""
    if (name := method.partition(":")[0]) not in DISTILLERS:
        raise ValueError(f"no method named {name!r}; there are: {', '.join(DISTILLERS)}")
    info = DISTILLERS[name]
    given = solvers.parse_options(method, (*CELL_OPTIONS, *info.options))[1]
    sizes = dict(steps=p.fit_steps, trajectories=(p.kept and info.trajectories) or p.trajectories)
    own = {k: v for k, v in (sizes | given).items() if k in info.options}
    if "trajectories" in own and not p.kept:
        own["trajectories"] = min(own["trajectories"], p.trajectories)
    where = {k: given[k] for k in ("afs", "grid", "base") if k in given}
    below = where.pop("base") if where.get("base") in DISTILLERS else None
    table, make = initial_solver(name, checkpoint, device_name, nfe, **where)
    if below or "near" in given:
        learned, calls = below or name, given.get("near", nfe)
        if DISTILLERS[learned].designs:
            raise ValueError(f"{method}: {learned} designs its table for each image; a base is one table for all")
        made = fit(p, checkpoint, device_name, learned, calls)
        assert isinstance(made, Tableau)
        table = distillation.resampled(made, nfe) if calls != nfe else made
    count = min(2 * p.learn_images, max(32, info.images(table))) if info.images else p.learn_images
    seeds = fit_seeds(given.get("images", count))
    model, quick = load_cached(checkpoint, device_name), Run(p, device_name).fast(checkpoint)
    problem = Problem(
        model.of(seeds), table, initial_noise(model.shape, seeds, device=model.device), make, seeds=seeds,
        autocast=quick.of(seeds),  # each seed has its class
        folder=home() / "_build" / "training" / p.name / solver_file(p, checkpoint, method, nfe).stem,
    )  # fmt: skip
    if info.loss:
        problem.residual = loss(device_name, given.get("residual", info.loss), checkpoint)
    return info, problem, own


def solver_of(p: Preset, checkpoint: str, device_name: str, method: str, nfe: int) -> Tableau | distillation.Designed:
    """:func:`fit`, or for the method "start" the table that LMS distillation and Gauss-Newton begin at."""
    if method == "start":
        return initial_solver("dlms", checkpoint, device_name, nfe)[0]
    return fit(p, checkpoint, device_name, method, nfe)
