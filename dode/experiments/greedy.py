"""How far distilled solvers end from their teacher and from the reference solution, and what fitting by steps costs.

Eq. (14) of the D-ODE paper brings each state nearest to the teacher's, one after the other.  :func:`greedy_error` gives
three distances: of each step to the teacher (what is fitted), of the last state to the teacher (what fitting step by
step may make worse), and of the last state to the reference solution (what a poor teacher may make worse).  The same
numbers fitted to the teacher's last state, all at once (:func:`joint`), tell the first two apart.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from dode import distillation, metrics, solvers, zoo
from dode.denoisers import Denoiser
from dode.experiments.learned import frechet_distances
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.rows import joined
from dode.experiments.run import (
    EVALUATION,
    Run,
    base_solver,
    fit_seeds,
    held_out_seeds,
    possible_nfe,
    seeded_batches,
    states_of,
)
from dode.experiments.sweeps import Preset, checkpoints, images_of
from dode.experiments.variants import OWN, variant_of
from dode.tableau import Tableau


def greedy_error_cells(
    names: Iterable[str], solvers: Iterable[str], nfes: Iterable[int], n: int, reference_calls: int
) -> list[Cell]:
    """Cells of every variant; those that share a teacher stand together.

    Plain, distilled, and in its own basis too where a noise-predicting network meets a solver of clean images.
    """
    cells = list[Cell]()
    for name in names:
        model = zoo.load_denoiser(name)
        for nfe, solver in itertools.product(nfes, solvers):
            own = model.prediction == "noise" and base_solver(solver, model, 5).basis == "data"
            which = dict(solver=solver, nfe=possible_nfe(solver, nfe), variant=["plain", "d-ode"] + [OWN] * own)
            cells += greedy_error.cells(checkpoint=name, **which, n=n, reference_calls=reference_calls)
    return cells


@functools.lru_cache(maxsize=4)
def _teacher(model: Denoiser, seeds: range, levels: tuple[float, ...]) -> dict[float, Tensor]:
    """States ``(B, C, H, W)`` of the fit's teacher at each level after the first."""
    student = solvers.ddim(torch.tensor(levels, dtype=torch.float64))  # as any solver through these levels
    runs = [distillation.record(conditioned, student, noise) for conditioned, noise in seeded_batches(model, seeds)]
    rows = distillation.target_states(student, runs[0].tableau, "time")
    return {
        level: torch.cat([run.states[row].cpu() for run in runs]) for level, row in zip(levels[1:], rows, strict=True)
    }


def distances(run: Run, checkpoint: str, tableau: Tableau, n: int, reference_calls: int) -> dict[str, Value]:
    """How far a run on the first ``n`` held-out seeds is from the teacher's run, and from the long one.

    Each is the RMSE of an image in pixels of -1..1, averaged over images; ``path`` is that of the state after each row
    to the teacher's there, both as ``x / sqrt(1 + sigma^2)``.
    """
    model, seeds = run.model(checkpoint), held_out_seeds(n)
    states, teacher = states_of(model, tableau, seeds)[1:], _teacher(model, seeds, tuple(tableau.levels.tolist()))
    aims = torch.stack([teacher[sigma] for sigma in tableau.sigmas[1:].tolist()])
    truth = run.reference_images(checkpoint, n, reference_calls)
    path = metrics.trajectory_distance(states, aims) / (1 + tableau.sigmas[1:] ** 2).sqrt()
    return dict(
        rmse=metrics.rmse(states[-1], truth), rmse_teacher=metrics.rmse(states[-1], aims[-1]),
        teacher_rmse=metrics.rmse(aims[-1], truth), path=joined(path, ".6g"),
    )  # fmt: skip


@measurement(name="limits", gives=["rmse", "rmse_teacher", "path"])
def greedy_error(
    run: Run, *, checkpoint: str, solver: str, variant: str, nfe: int, n: int, reference_calls: int
) -> dict[str, Value]:
    """:func:`distances`: fit on the first block's seeds, run on held-out ones.

    The row keeps what the fit found, so that a page needs no second fit.
    """
    tableau = variant_of(run, checkpoint, solver, variant, nfe)
    fit = tableau.metadata
    used = fit.get("seeds") or []
    lists = {key: joined(fit.get(key, []), ".6g") for key in ("lambdas", "plain_rmse", "fit_rmse")}
    return dict(
        **distances(run, checkpoint, tableau, n, reference_calls), levels=joined(tableau.sigmas, ".6g"), **lists,
        fit_seeds=f"{used[0]}-{used[-1]}" if used else "", seeds=held_out_seeds(n),
    )  # fmt: skip


# --- why a fit loses -------------------------------------------------------------------------------

CAUSES = {  # what is different from the usual fit
    "plain": "no fit", "d-ode": "one step after the other (the paper's)", "joint": "all steps at once",
    "d-ode:teacher=same": "teacher: the solver itself",
}  # fmt: skip
TAUGHT = ("ddim", "ipndm", "deis:order=4", "dpm_solver", "dpm_solver_pp:order=2", "dpm_solver_pp", "unipc", "heun")


def cause_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """The usual fit of each solver, and those that differ from it in one thing."""
    small = p.name == "smoke"
    names, taught, nfe = checkpoints(checkpoint or "fashion-mnist"), TAUGHT[:: 6 if small else 1], 3 if small else 5
    cells = [
        cell for name in names for solver in taught
        for cell in causes.cells(checkpoint=name, solver=solver, nfe=possible_nfe(solver, nfe), variant=CAUSES)
    ]  # fmt: skip
    # DDIM's own many steps are the usual teacher, a single-step solver's do not meet the levels inside a step
    return [c for c in cells if "same" not in c["variant"] or c["solver"] not in ("ddim", "dpm_solver")]


@measurement(gives=["rmse", "fd_reference"], planned=cause_cells)
def causes(run: Run, *, checkpoint: str, solver: str, variant: str, nfe: int) -> dict[str, Value]:
    """The last image's distances: to DDIM's many-step image, the teacher of the usual fit, and to the reference.

    ``teacher`` and ``teacher_fitted`` are the mean over images of their RMSE, held out and of the fit's own seeds;
    ``_rms`` is the root of the mean square of all pixels, which a fit makes small.
    """
    p, tableau, model = run.preset, variant_of(run, checkpoint, solver, variant, nfe), run.model(checkpoint)
    found = dict[str, Value]()
    for word, seeds in {"": held_out_seeds(p.zoo_images), "_fitted": fit_seeds(p.fit_images)}.items():
        (ends,) = states_of(model, tableau, seeds, [-1])
        aim = _teacher(model, seeds, tuple(tableau.levels.tolist()))[float(tableau.sigmas[-1])]
        found |= {
            f"teacher{word}": metrics.rmse(ends, aim),
            f"teacher{word}_rms": float((ends - aim).square().mean().sqrt()),
        }
    seeds = held_out_seeds(min(2_000, images_of(p, checkpoint)))
    found |= frechet_distances(run, checkpoint, tableau, seeds, EVALUATION[:1])
    rmse = run.rmse(checkpoint, tableau, p.zoo_images, p.reference_steps)
    return found | dict(
        rmse=rmse, n_rmse=p.zoo_images, n=len(seeds), lambdas=joined(tableau.metadata.get("lambdas", []), ".6g"),
        evaluations=tableau.metadata.get("network_evaluations", 0), seeds=seeds, network=run.network(checkpoint),
    )  # fmt: skip
