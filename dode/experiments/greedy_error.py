"""What the greedy fit wins at every step, and whether anything of it is left at the end.

Eq. (14) of the D-ODE paper brings each state nearest to the teacher's, one after the other.  Three distances tell
what comes of that: of each step to the teacher (what is fitted), of the last state to the teacher (greed may lose
there), and of the last state to a long reference run (the teacher may lose there: it has an error of its own).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dode import distillation, solvers, zoo
from dode.denoisers import Denoiser
from dode.experiments import comparisons
from dode.experiments.quality import base_solver, held_out_seeds, load_cached, possible_nfe, seeded, variant_of
from dode.experiments.sweeps import Preset, provenance
from dode.metrics import rmse, trajectory_distance
from dode.sampling import trajectory
from dode.tableau import Tableau

OWN = "d-ode:basis=own"
GREEDY_ERROR_KEYS = ("checkpoint", "weights", "solver", "variant", "nfe", "n", "reference_calls")


def variants(checkpoint: str, solver: str) -> list[str]:
    """Plain, distilled, and in its own basis too where a noise-predicting network meets a solver of clean images."""
    model = load_cached(checkpoint, "cpu", None)
    other = model.prediction == "noise" and base_solver(solver, model, 5).basis == "data"
    return ["plain", "d-ode", *[OWN][: int(other)]]


def greedy_error_cells(
    plan: Mapping[str, Iterable[int]], checkpoints: Iterable[str], n: int, reference_calls: int
) -> list[dict[str, Any]]:
    """Cells of every variant; ``plan`` maps solvers to NFEs.  Those that share a teacher stand together."""
    return [
        dict(
            checkpoint=name, weights=zoo.digest(name), solver=solver, variant=variant, nfe=possible_nfe(solver, nfe),
            n=n, reference_calls=reference_calls,
        )
        for name in checkpoints
        for nfe in sorted({nfe for nfes in plan.values() for nfe in nfes})
        for solver, nfes in plan.items()
        if nfe in nfes
        for variant in variants(name, solver)
    ]  # fmt: skip


def _batches(model: Denoiser, n: int) -> list[tuple[Denoiser, Tensor]]:
    return [seeded(model, held_out_seeds(n)[k : k + 100]) for k in range(0, n, 100)]


@functools.lru_cache(maxsize=4)
def _teacher(checkpoint: str, device_name: str, n: int, levels: tuple[float, ...]) -> dict[float, Tensor]:
    """States ``(n, C, H, W)`` of the fit's teacher at each level after the first, on the first ``n`` held-out seeds."""
    model = load_cached(checkpoint, device_name, None)
    student = solvers.ddim(torch.tensor(levels, dtype=torch.float64))  # as any solver through these levels
    runs = [distillation.record(conditioned, student, noise) for conditioned, noise in _batches(model, n)]
    rows = distillation.target_states(student, runs[0].tableau, "time")
    return {
        level: torch.cat([run.states[row].cpu() for run in runs]) for level, row in zip(levels[1:], rows, strict=True)
    }


@dataclass(frozen=True)
class Distances:
    """RMSE of each image, averaged over images; pixels are of -1..1."""

    rmse: float  # the images to :func:`dode.experiments.comparisons.reference_images`
    rmse_teacher: float  # the images to the teacher's
    teacher_rmse: float  # the teacher's images to the reference
    path: Tensor  # (N,): the state after each row to the teacher's there, both as x / sqrt(1 + sigma^2)


def distances(tableau: Tableau, checkpoint: str, device_name: str, n: int, reference_calls: int) -> Distances:
    """How far a run on the first ``n`` held-out seeds is from the teacher's run, and from the long one."""
    model = load_cached(checkpoint, device_name, None)
    states = torch.cat(
        [trajectory(conditioned, tableau, noise).cpu() for conditioned, noise in _batches(model, n)], dim=1
    )[1:]
    teacher = _teacher(checkpoint, device_name, n, tuple(tableau.levels.tolist()))
    aims = torch.stack([teacher[sigma] for sigma in tableau.sigmas[1:].tolist()])
    truth = comparisons.reference_images(checkpoint, device_name, n, reference_calls)
    path = trajectory_distance(states, aims) / (1 + tableau.sigmas[1:] ** 2).sqrt()
    return Distances(rmse(states[-1], truth), rmse(states[-1], aims[-1]), rmse(aims[-1], truth), path)


def _join(values: Iterable[float]) -> str:
    return " ".join(f"{float(v):.6g}" for v in values)


def numbers(text: str) -> list[float]:
    """A column of several numbers, read back."""
    return [float(v) for v in text.split()]


def step_gain(row: Mapping[str, str]) -> float:
    """How much nearer to the teacher lambda brought a step, on the fit's own seeds: geometric mean over the steps.

    1 where nothing was won.  It cannot be more: each lambda is the best for its step.
    """
    pairs = list(zip(numbers(row["fit_rmse"]), numbers(row["plain_rmse"]), strict=True))
    logs = [math.log(max(fit, 1e-12) / plain) for fit, plain in pairs if plain > 0]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def greedy_error_row(
    p: Preset, device_name: str, *, checkpoint: str, weights: str, solver: str, variant: str, nfe: int, n: int,
    reference_calls: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure one cell of :func:`greedy_error_cells`: fit on the first block's seeds, run on held-out ones.

    ``weights`` only names the cell.  The row keeps what the fit found, so that a page needs no second fit.
    """
    tableau = variant_of(p, device_name, checkpoint, solver, variant, nfe, 0)
    found = distances(tableau, checkpoint, device_name, n, reference_calls)
    fit, seeds = tableau.metadata, held_out_seeds(n)
    used = fit.get("seeds") or []
    return dict(
        rmse=f"{found.rmse:.5f}", rmse_teacher=f"{found.rmse_teacher:.5f}", teacher_rmse=f"{found.teacher_rmse:.5f}",
        path=_join(found.path.tolist()), levels=_join(tableau.sigmas.tolist()),
        lambdas=_join(fit.get("lambdas", [])), plain_rmse=_join(fit.get("plain_rmse", [])),
        fit_rmse=_join(fit.get("fit_rmse", [])), fit_seeds=f"{used[0]}-{used[-1]}" if used else "",
        seeds=f"{seeds.start}-{seeds.stop - 1}", network="float32", preset=p.name, **provenance(device_name),
    )  # fmt: skip
