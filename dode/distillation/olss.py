"""OLSS: levels and weights by least squares on the teacher's path, no gradient (Duan et al., CIKM 2023)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dode import solvers
from dode.distillation.problem import Problem, distiller
from dode.distillation.teachers import batches, make_teacher, target_states
from dode.sampling import Step, sample
from dode.tableau import Tableau


def path_vectors(problem: Problem, guide: Tableau) -> tuple[Tensor, Tensor]:
    """The noise and the outputs of the teacher's ``M`` rows, then its states: ``(M + 1, M + 1)`` float64 each.

    A row stands for the values of all images and pixels in a basis of so many numbers that the mean squares and
    products stay: least squares of these rows are least squares of the images.  The teacher runs once.
    """
    gram, values = torch.zeros(guide.nfe + 1, guide.nfe + 1, dtype=torch.float64), problem.noise.numel()
    for model, (noise,) in batches(problem.denoiser, problem.batch_size or 100, problem.noise):
        steps = list[Step]()
        sample(model, guide, noise, callback=steps.append)
        rows = torch.stack([noise.double().flatten(), *(step.output.double().flatten() for step in steps)])
        gram += (rows @ rows.T).cpu() / values
    squares, directions = torch.linalg.eigh(gram)
    start = guide.sigmas[0] * torch.eye(1, guide.nfe + 1, dtype=torch.float64)
    vectors = directions * squares.clamp(min=0).sqrt()
    return vectors, torch.cat([start, start + guide.full.cumsum(0)]) @ vectors


def nearest(known: Tensor, goals: Tensor) -> tuple[Tensor, Tensor]:
    """The weights ``(G, K)`` of ``known`` ``(K, M)`` nearest to each of ``goals`` ``(G, M)``, and the squares left."""
    weights = torch.linalg.lstsq(known.T, goals.T, rcond=1e-13, driver="gelsd").solution.T
    return weights, (goals - weights @ known).square().sum(1)


def path_within(limit: float, steps: int, vectors: Tensor, states: Tensor, scale: Tensor) -> list[int] | None:
    """Indices of the levels of ``steps`` steps at most, each as long as its error allows; None if they do not arrive.

    The error of a step is what the teacher's state at its start, and the outputs at all levels so far, leave of the
    state at its end, times ``scale``.  It is taken to grow with the step, which bisection finds.
    """
    path, last = [0], len(states) - 1
    while len(path) <= steps:
        known = torch.cat([states[path[-1:]], vectors[1:][path]])
        errors = (nearest(known, states)[1] * scale).tolist()
        low, high = path[-1] + 1, last
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (low, middle - 1) if errors[middle] > limit else (middle, high)
        path.append(low)
        if low == last:
            return path
    return None


@distiller(
    "OLSS", source="Duan et al. 2023", cite="duan2023olss", place=1.5, start="ddim", grid=None,
    moves=("first level", "levels", "weights"), loss=None,
)  # fmt: skip
def olss(problem: Problem, *, points: int = 100, search: bool = True) -> Tableau:
    """Levels of equal error on a teacher's path, and the weights nearest to its states.

    Each next state is any combination of the starting noise and of all outputs so far, in the noise basis, whatever
    that of the start: a table holds it exactly, its rows do not sum to the step.  D-ODE's equation 8 with
    ``first_step="noise"`` has the same combinations and the same goal; there the outputs are those that the solver
    itself makes, step after step, here the teacher's, all known at once.  The first row is the same.

    As released (alibaba/EasyNLP): DDIM as the teacher, squared errors in VP's coordinates ``x / sqrt(1 + sigma^2)``,
    the search for levels, in which the state at the start of a step stands for the noise.  What differs: the limit is
    halved to float64's end, not 30 times; sums over images are taken in batches; a path that arrives early, where the
    released program ends with an error, gets levels in the middle of its longest steps.

    Parameters
    ----------
    points
        Steps of the teacher (in the released demonstration 100, with nine images).
    search
        Whether the levels are searched for; otherwise those of the start stay, and the teacher refines them.
    """
    n, denoiser = problem.table.nfe, problem.denoiser
    denoiser.conditioning.check(len(problem.noise))
    fine = denoiser.grid(max(points, n), final="zero" if problem.table.sigmas[-1] == 0 else "sigma_min")
    own = solvers.ddim(fine) if search else make_teacher(problem.table, scale=math.ceil(points / n))
    guide = (problem.teacher or own).to_basis("noise")
    if guide.nfe < n:
        raise ValueError(f"a teacher of {guide.nfe} steps has no levels for {n}")
    vectors, states = path_vectors(problem, guide)
    path: list[int] | None = None if search else [0, *target_states(problem.table, guide, "time")]
    if path is None:
        scale = 1 / (1 + guide.sigmas.square())
        low, high = 0.0, float((states.square().sum(1) * scale).max())
        while low < (middle := (low + high) / 2) < high:
            low, high = (low, middle) if path_within(middle, n, vectors, states, scale) else (middle, high)
        path = path_within(high, n, vectors, states, scale) or []
    while len(path) <= n:  # arrived early: a limit just below it takes more than n steps
        k = max(range(len(path) - 1), key=lambda k: path[k + 1] - path[k])
        path.insert(k + 1, (path[k] + path[k + 1]) // 2)
    solution = torch.zeros(n + 1, n + 1, dtype=torch.float64)  # of each state: on the noise, then on each output
    solution[0, 0], errors = guide.sigmas[0], list[float]()
    for i in range(n):
        known = torch.cat([vectors[:1], vectors[1:][path[: i + 1]]])
        weights, left = nearest(known, states[path[i + 1]][None])
        solution[i + 1, : i + 2] = weights
        errors.append(float(left.sqrt()))
    sigmas, full = guide.sigmas[path], solution.diff(dim=0)
    facts = dict(
        fit_rmse=errors, grid=sigmas.tolist(), teacher=guide.metadata.get("solver", "tableau"), teacher_nfe=guide.nfe,
        afs=problem.afs and not search,
    )  # fmt: skip
    return Tableau("noise", sigmas, full[:, 1:], full[:, 0], metadata=problem.table.metadata | facts)
