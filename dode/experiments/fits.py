"""Fits of learned solvers, each kept as a file: what a page compares is fitted once.

The critic's features enter fits; the classifier's measure (:mod:`dode.experiments.learned`).
"""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

import torch

from dode import distillation, solvers, zoo
from dode.distillation import d_ode, losses, problem
from dode.distillation.problem import Problem
from dode.experiments import comparisons
from dode.experiments.run import Run, data_moments, fit_seeds, inception_moments, load_cached
from dode.experiments.sweeps import Preset, file_stem, home
from dode.metrics import Features, Moments
from dode.sampling import initial_noise
from dode.tableau import Tableau
from dode.utils.files import FileError
from dode.zoo.datasets import DataSet

LEARNED = ("d-ode", *problem.DISTILLERS)
START_OPTIONS = ("afs", "grid", "base")  # of a method in a cell: "dlms:afs=False"
DESIGN_OPTIONS = ("features", "scaling", "adaptive", "rate")
SEARCH_OPTIONS = ("bias", "path", "limit", "top", "steps")
FIT_OPTIONS = (*START_OPTIONS, *DESIGN_OPTIONS, *SEARCH_OPTIONS, "residual", "images", "trajectories", "near")


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


def loss_of(kind: str, data: DataSet | None, channels: int, device: str = "cpu") -> losses.Residual:
    """A mix of :func:`dode.distillation.losses.named_loss`; a classifier's features count in units of their spread.

    That is their spread over the training images of ``data``; None: no classifier knows these images.
    """

    def trained(word: str) -> losses.Residual:
        assert data is not None
        name = f"{data.name}-{EXTRACTORS[word]}"
        network, _ = zoo.load_evaluator(name, device)
        spread = Moments.load(zoo.CHECKPOINTS / zoo.moments_file(name)).cov.trace()
        return losses.features(network, float(spread) ** -0.5)

    return losses.named_loss(kind, channels, trained if data else None)


def loss(device_name: str, kind: str = "all", checkpoint: str = "fashion-mnist") -> losses.Residual:
    """What fits of a checkpoint compare, through the classifiers that know its images."""
    data = known_data(checkpoint)
    channels = data.shape[0] if data else load_cached(checkpoint, device_name).shape[0]
    return loss_of(kind, data, channels, device_name)


def solver_file(p: Preset, checkpoint: str, method: str, nfe: int) -> Path:
    """Where a learned solver is kept: with the results if they are committed, else in ``_build``."""
    folder = home() / ("results" if p.kept else "_build") / "solvers" / (p.rows_of or p.name)
    word = method.replace(":", "-").replace(",", "-").replace("=", "-")
    return folder / f"{file_stem(checkpoint)}-{word}-{nfe}.safetensors"


def initial_solver(
    method: str, checkpoint: str, device_name: str, nfe: int, afs: bool = True, grid: str = "time", base: str = "deis"
) -> tuple[Tableau, Any]:
    """Where a method starts, and the same solver as a function of levels.

    LMS distillation, S4S and Gauss-Newton from Adams-Bashforth in ``ln sigma`` (``base="deis"``; or any solver's name)
    with an analytical first step; LD3 from UniPC and GITS from iPNDM without one, as published.
    """
    where = grid_of(grid, checkpoint, device_name)
    if method in ("ld3", "gits", "d-ode"):
        make = solvers.unipc if method == "ld3" else solvers.ipndm
        return make(where, nfe=nfe), make
    usual: dict[str, Any] = dict(variable="log_rho", basis="data") if base == "deis" else {}
    if base == "ddim":
        usual = dict(basis="data")
    solver: Any = functools.partial(solvers.get(base).make, afs=afs, **usual)
    top = where(nfe + 1)[:1] if afs else torch.zeros(0, dtype=torch.float64)
    return solver(where, nfe=nfe), problem.with_first_level(top, solver)


def fit(p: Preset, checkpoint: str, device_name: str, method: str, nfe: int) -> Tableau | distillation.Designed:
    """The learned solver, from its file, or fitted now; ``metadata["seconds"]`` is what the fit took.

    ``method`` may have options (:data:`FIT_OPTIONS`), as the rows of an ablation do: ``"gauss-newton:bias=0"``; its
    ``base`` may be learned itself: ``"dlms:base=gauss-newton"`` is a designer on top of a table fitted before.
    ``near=4`` begins at the method's own solver of 4 calls, read at ``nfe`` of them.
    """
    file = solver_file(p, checkpoint, method, nfe)
    try:
        if p.name != "live" and (found := distillation.load_solver(file)).metadata.get("weights") == zoo.digest(
            checkpoint
        ):
            return found  # a live fit is made anew each time
    except FileError:
        if p.rows_of:
            raise
    if p.rows_of:
        raise FileError(f"{file} is of other weights; the preset standard fits {method} again")
    name, options = solvers.parse_options(method, FIT_OPTIONS)
    model, quick = load_cached(checkpoint, device_name), Run(p, device_name).fast(checkpoint)
    where = {k: options[k] for k in START_OPTIONS if k in options}
    below = where.pop("base") if where.get("base") in problem.DISTILLERS else None
    table, make = initial_solver(name, checkpoint, device_name, nfe, **where)
    if below or "near" in options:
        learned, calls = below or name, options.get("near", nfe)
        if learned in problem.DESIGNED:
            raise ValueError(f"{method}: {learned} designs its table for each image; a base is one table for all")
        made = fit(p, checkpoint, device_name, learned, calls)
        assert isinstance(made, Tableau)
        table = distillation.resampled(made, nfe) if calls != nfe else made
    seeds = fit_seeds(options.get("images", _images(p, name, table)))
    noise = initial_noise(model.shape, seeds, device=model.device)
    model, quick = model.of(seeds), quick.of(seeds)  # each seed has its class
    compared = loss(device_name, options.get("residual", losses.default_loss(name)), checkpoint)
    folder = home() / "_build" / "training" / p.name / file.stem  # a state must not be taken up by another method
    trajectories = options.get("trajectories", p.trajectories)
    trajectories = trajectories if p.kept else min(trajectories, p.trajectories)
    task = Problem(model, table, make, noise, compared, seeds, quick, folder, trajectories)
    began = time.perf_counter()
    solver = _fit(name, task, dict(steps=p.fit_steps) | options)
    solver.metadata.update(seconds=round(time.perf_counter() - began, 2), weights=zoo.digest(checkpoint))
    solver.save(file)
    return solver


def solver_of(p: Preset, checkpoint: str, device_name: str, method: str, nfe: int) -> Tableau | distillation.Designed:
    """:func:`fit`, or for the method "start" the table that LMS distillation and Gauss-Newton begin at."""
    if method == "start":
        return initial_solver("dlms", checkpoint, device_name, nfe)[0]
    return fit(p, checkpoint, device_name, method, nfe)


def _images(p: Preset, method: str, table: Tableau) -> int:
    """How many seeds a fit has: a second-order one so many as its budget pays for, from 32 to twice the others'."""
    if method != "gauss-newton":
        return p.learn_images
    return min(2 * p.learn_images, max(32, problem.images_within_budget(table)))


def _fit(name: str, task: Problem, options: dict[str, Any]) -> Tableau | distillation.Designed:
    design = {k: options[k] for k in DESIGN_OPTIONS if k in options}
    if name == "d-ode":
        model, nfe = task.denoiser, task.table.nfe
        return d_ode(model, solvers.ddim(model.grid(nfe)), task.noise, seeds=task.seeds)
    if name == "dlms" and design:
        return problem.dlms(task, **design)
    if name == "gauss-newton":
        return problem.distil_gauss_newton(task, **{k: options[k] for k in SEARCH_OPTIONS if k in options})
    return problem.DISTILLERS[name](task)
