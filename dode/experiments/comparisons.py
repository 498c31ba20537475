"""How far solvers end from the reference solution on the same seeds: all of them, and distilled ones on their way.

Eq. (14) of the D-ODE paper brings each state nearest to the teacher's, one after the other.  Three distances of
:func:`greedy_error` tell what comes of that: of each step to the teacher (what is fitted), of the last state to the
teacher (greed may lose there), and of the last state to the reference solution (the teacher may lose there).
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from dode import distillation, solvers
from dode.denoisers import Denoiser
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.quality import OWN, variant_of
from dode.experiments.rows import joined
from dode.experiments.run import GRIDS as GRIDS
from dode.experiments.run import Run, base_solver, held_out_seeds, load_cached, on_grid, possible_nfe, seeded
from dode.experiments.run import grid_function as grid_function
from dode.experiments.sweeps import Preset, checkpoints
from dode.metrics import rmse as rmse_of
from dode.metrics import trajectory_distance
from dode.sampling import trajectory
from dode.solvers import SOLVERS
from dode.tableau import Tableau

# What a page calls an entry -> the solver, as one word.  No order: its usual one, or what a short grid carries.
ENTRIES = {
    label: info.name + ":" * bool(options) + ",".join(f"{k}={v}" for k, v in options.items())
    for info in SOLVERS.values()
    for label, options in info.entries.items()
}


def rmse_cells(names: Iterable[str], nfes: Iterable[int], n: int, reference_calls: int) -> list[Cell]:
    """Every entry on every grid; an NFE that a solver cannot make is replaced by the next one below."""
    cells = {
        (checkpoint, entry, grid, possible_nfe(spec, nfe)): None
        for checkpoint in names
        for nfe in sorted(nfes)
        for entry, spec in ENTRIES.items()
        for grid in GRIDS
    }
    return [
        rmse.cell(dict(checkpoint=name, solver=entry, grid=grid, nfe=nfe, n=n, reference_calls=reference_calls))
        for name, entry, grid, nfe in cells
    ]


def zoo_cells(p: Preset, checkpoint: str | None) -> list[Cell]:
    """What the page of all solvers measures at a preset."""
    return rmse_cells(checkpoints(checkpoint or "fashion-mnist"), p.zoo_nfes, p.zoo_images, p.reference_steps)


@measurement(name="solver_zoo", gives=["rmse"], adds=["network"], planned=zoo_cells)
def rmse(
    run: Run, *, checkpoint: str, solver: str, grid: str, nfe: int, n: int, reference_calls: int
) -> dict[str, Value]:
    """Root mean squared distance of a solver's images to the reference solution's, in pixels of -1..1."""
    table = on_grid(ENTRIES[solver], grid_function(grid, run.model(checkpoint)), nfe)
    return dict(rmse=run.rmse(checkpoint, table, n, reference_calls), seeds=held_out_seeds(n))


def variants(checkpoint: str, solver: str) -> list[str]:
    """Plain, distilled, and in its own basis too where a noise-predicting network meets a solver of clean images."""
    model = load_cached(checkpoint, "cpu")
    other = model.prediction == "noise" and base_solver(solver, model, 5).basis == "data"
    return ["plain", "d-ode", *[OWN][: int(other)]]


def greedy_error_cells(
    names: Iterable[str], solvers: Iterable[str], nfes: Iterable[int], n: int, reference_calls: int
) -> list[Cell]:
    """Cells of every variant; those that share a teacher stand together."""
    cells = list[Cell]()
    for name, nfe, solver in itertools.product(names, nfes, solvers):
        which = dict(solver=solver, nfe=possible_nfe(solver, nfe), variant=variants(name, solver))
        cells += greedy_error.cells(checkpoint=name, **which, n=n, reference_calls=reference_calls)
    return cells


def _batches(model: Denoiser, n: int) -> list[tuple[Denoiser, Tensor]]:
    return [seeded(model, held_out_seeds(n)[k : k + 100]) for k in range(0, n, 100)]


@functools.lru_cache(maxsize=4)
def _teacher(model: Denoiser, n: int, levels: tuple[float, ...]) -> dict[float, Tensor]:
    """States ``(n, C, H, W)`` of the fit's teacher at each level after the first, on the first ``n`` held-out seeds."""
    student = solvers.ddim(torch.tensor(levels, dtype=torch.float64))  # as any solver through these levels
    runs = [distillation.record(conditioned, student, noise) for conditioned, noise in _batches(model, n)]
    rows = distillation.target_states(student, runs[0].tableau, "time")
    return {
        level: torch.cat([run.states[row].cpu() for run in runs]) for level, row in zip(levels[1:], rows, strict=True)
    }


def distances(run: Run, checkpoint: str, tableau: Tableau, n: int, reference_calls: int) -> dict[str, Value]:
    """How far a run on the first ``n`` held-out seeds is from the teacher's run, and from the long one.

    Each is the RMSE of an image in pixels of -1..1, averaged over images; ``path`` is that of the state after each row
    to the teacher's there, both as ``x / sqrt(1 + sigma^2)``.
    """
    model = run.model(checkpoint)
    states = torch.cat(
        [trajectory(conditioned, tableau, noise).cpu() for conditioned, noise in _batches(model, n)], dim=1
    )[1:]
    teacher = _teacher(model, n, tuple(tableau.levels.tolist()))
    aims = torch.stack([teacher[sigma] for sigma in tableau.sigmas[1:].tolist()])
    truth = run.reference_images(checkpoint, n, reference_calls)
    path = trajectory_distance(states, aims) / (1 + tableau.sigmas[1:] ** 2).sqrt()
    return dict(
        rmse=rmse_of(states[-1], truth), rmse_teacher=rmse_of(states[-1], aims[-1]),
        teacher_rmse=rmse_of(aims[-1], truth), path=joined(path, ".6g"),
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
