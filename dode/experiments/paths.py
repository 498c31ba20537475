"""How a solver's run follows the reference trajectory of the same noise: states compared where their levels meet."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dode import distillation, solvers
from dode.denoisers import Denoiser
from dode.distillation.objectives import OnlineTeacher
from dode.experiments.learned import compared_solver
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.rows import joined
from dode.experiments.run import Run, held_out_seeds, load_cached, seeded, states_of
from dode.experiments.sweeps import Preset, checkpoints
from dode.experiments.variants import variant_of
from dode.metrics import trajectory_distance
from dode.sampling import trajectory
from dode.tableau import Tableau

PIXELS = ((14, 14), (9, 19))
TEN_CALLS = {  # what Figure 5 of the D-ODE paper shows, and what a data-predicting network has in its place
    "noise": {"ddim": 10, "ipndm": 10, "dpm_solver": 10, "deis:order=4": 10},
    "data": {"ddim": 10, "heun": 9, "dpm_solver_pp:order=2": 10, "unipc": 10},
}


def _states(model: Denoiser, tableau: Tableau, n: int, rows: list[int]) -> Tensor:
    """``(len(rows), n, C, H, W)``: states after these rows over ``sqrt(1 + sigma^2)``, of the first held-out seeds."""
    scale = (1 + tableau.sigmas[rows] ** 2).sqrt().float()
    return states_of(model, tableau, held_out_seeds(n), rows) / scale[:, None, None, None, None]


@functools.lru_cache(maxsize=2)
def _reference(model: Denoiser, steps: int, n: int, calls: int) -> tuple[Tensor, Tensor]:
    """The network's grid of ``steps`` steps, and the states of a run of ``calls`` evaluations at its levels."""
    grid = model.grid(steps)
    two = functools.partial(solvers.dpm_solver_pp, order=2)
    long = distillation.make_teacher(solvers.ddim(grid), two, calls // steps)
    return grid, _states(model, long, n, list(range(0, long.nfe + 1, calls // steps)))


def path_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """The solvers of :data:`TEN_CALLS`, plain and distilled: 1,000 images, as in the paper."""
    n = 1_000 if p.kept else p.path_images
    return [
        cell for name in checkpoints(checkpoint or "fashion-mnist")
        for solver, nfe in TEN_CALLS[load_cached(name, "cpu").prediction].items()
        for cell in path.cells(checkpoint=name, solver=solver, variant=("plain", "d-ode"), nfe=nfe, n=n)
    ]  # fmt: skip


@measurement(name="figure_5", gives=["rmse_end", "norms"], planned=path_cells)
def path(run: Run, *, checkpoint: str, solver: str, variant: str, nfe: int, n: int) -> dict[str, Value]:
    """Norms, distances and two pixels of ``n`` held-out images where a run meets the network's grid.

    The reference is DPM-Solver++(2M) of 200 steps through the same levels: of second order, where the paper has DDIM.
    Lists have a number for each of ``calls``, the evaluations made so far: ``norms`` are means over images, over the
    reference's; ``pixel_k`` is one image's, ``pixel_k_mean`` the mean over images.
    """
    model, tableau = run.model(checkpoint), variant_of(run, checkpoint, solver, variant, nfe)
    steps, long = len(tableau.levels) - 1, min(200, run.preset.reference_steps)
    grid, truth = _reference(model, steps, n, long)
    meets = (tableau.sigmas - grid[:, None]).abs() < 1e-9 * grid[0]
    levels = meets.any(1).nonzero().flatten().tolist()
    calls = [int(meets[k].nonzero().max()) for k in levels]  # the last one at its level: after Heun's corrector
    states, truth = _states(model, tableau, n, calls), truth[levels]
    apart = trajectory_distance(states, truth).tolist()
    size = lambda x: x.flatten(2).norm(dim=2).mean(1)  # noqa: E731
    norms = size(states) / size(truth)
    pixels = {
        f"pixel_{k}{word}{of}": joined(values)
        for (k, (y, x)), (of, seen) in itertools.product(enumerate(PIXELS), {"": states, "_reference": truth}.items())
        for word, values in {"": seen[:, 0, 0, y, x], "_mean": seen[:, :, 0, y, x].mean(1)}.items()
    }
    return dict[str, Value](
        rmse_end=apart[-1], norm_ratio_end=float(norms[-1]), calls=" ".join(map(str, calls)), rmse_path=joined(apart),
        norms=joined(norms), **pixels, reference_calls=long, seeds=held_out_seeds(n),
    )  # fmt: skip


@torch.no_grad()
def path_distances(
    run: Run, checkpoint: str, solver: Tableau | distillation.Designed, count: int = 64, points: int = 16
) -> tuple[Tensor, Tensor]:
    """Mean level ``(N + 1,)`` of each state of a solver, and how far it is from the exact path of the same noise there.

    The path is that of DLMS's online teacher with ``points`` steps to each of the solver's; the distance is the mean
    over ``count`` held-out images of the Euclidean one, over ``sqrt(1 + sigma^2)``, the size of a state.
    """
    model, noise = seeded(run.model(checkpoint), held_out_seeds(count))
    teacher, found = OnlineTeacher(model, noise, model.sigma_max, points), list[tuple[float, float]]()
    if isinstance(solver, Tableau):
        states: Iterable[tuple[Any, Tensor]] = zip(solver.sigmas, trajectory(model, solver, noise), strict=True)
    else:
        states = ((state.level, state.x) for state, _ in solver.walk(model, noise))
    for level, x in states:
        level = level.to(noise.device).double().expand(count)
        aim = teacher.run_to(level) if (level < teacher.level).any() else teacher.state.x
        apart = (x - aim).flatten(1).norm(dim=1) / (1 + level**2).sqrt()
        found.append((float(level.mean()), float(apart.mean())))
    levels, distances = torch.tensor(found, dtype=torch.float64).T
    return levels, distances


@measurement(gives=["image", "levels", "distances"])
def paths(run: Run, *, checkpoint: str, method: str, nfe: int, n: int) -> dict[str, Value]:
    """:func:`path_distances` of a solver on ``n`` images; ``image`` is the last of them."""
    levels, apart = path_distances(run, checkpoint, compared_solver(run, checkpoint, method, nfe), n)
    return dict(image=float(apart[-1]), levels=joined(levels, ".5g"), distances=joined(apart, ".5g"))
