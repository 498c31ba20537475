r"""Second-order fitting: Levenberg-Marquardt on the final error of the whole solver.

A solver of a few calls has a few dozen numbers, so the Jacobian of its last image is a few dozen images: cheap enough
to take by differences, and Gauss-Newton's step then moves all rows, levels and weights together towards

    min_theta  sum_images | R(x_N(theta)) - R(teacher) |^2 ,

where R is any map of an image (pixels, features).  Nothing is greedy: what a row does early is judged by the end.
(Ours; the papers fit step by step, or by gradient descent.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from dode import solvers
from dode.denoisers import Denoiser
from dode.lms.space import Space
from dode.sampling import State, Step, advance, move, sample, start
from dode.tableau import Tableau

Residual = Callable[[Tensor], Tensor]
DIFFERENCE = 1e-2  # of a number, for the Jacobian: far above float32's rounding of a state, far below its curvature


def pixels(images: Tensor) -> Tensor:
    """The plain residual: ``(B, ...)`` to ``(B, C H W)``, scaled so that the cost is a mean over pixels."""
    return images.flatten(1) / images[0].numel() ** 0.5


def usual_teacher(denoiser: Denoiser, steps: int = 40) -> Tableau:
    """UniP-3 on the denoiser's own grid."""
    return solvers.deis(denoiser.grid, nfe=steps, variable="log_rho", basis="data")


@dataclass
class _Problem:
    """Cost, gradient and Gauss-Newton matrix of a space on one batch of noise."""

    denoiser: Denoiser
    space: Space
    noise: Tensor
    target: Tensor
    residual: Residual
    batch_size: int

    def _runs(self) -> Iterable[tuple[Tensor, Tensor]]:
        return zip(self.noise.split(self.batch_size), self.target.split(self.batch_size), strict=True)

    def cost(self, vector: Tensor) -> float:
        """Mean over images of the squared residual."""
        table, total = self.space.table(vector), 0.0
        for noise, target in self._runs():
            total += float((self.residual(sample(self.denoiser, table, noise)) - target).double().square().sum())
        return total / len(self.noise)

    def normal(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """``(J^T J, J^T r)`` by forward differences, each from the first row that its number touches."""
        size, base = len(vector), self.space.table(vector)
        jj, jr = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        tables = [self.space.table(vector + DIFFERENCE * unit) for unit in torch.eye(size, dtype=torch.float64)]
        for noise, target in self._runs():
            seen = list[Step]()
            here = self.residual(sample(self.denoiser, base, noise, callback=seen.append))
            columns = [
                (self.residual(self._again(table, noise, seen, row, kept)) - here).double().flatten() / DIFFERENCE
                for table, row, kept in zip(tables, self.space.rows, self.space.moves_only, strict=True)
            ]
            j = torch.stack(columns)
            jj += (j @ j.T).cpu()
            jr += (j @ (here - target).double().flatten()).cpu()
        return jj / len(self.noise), jr / len(self.noise)

    def _again(self, table: Tableau, noise: Tensor, seen: list[Step], row: int, kept: bool) -> Tensor:
        """The image of a table that agrees with the one ``seen`` up to ``row`` (with its evaluation, if ``kept``)."""
        outputs = start(table, noise).outputs | {step.index: step.output for step in seen[: row + kept]}
        state = State(seen[row].x, outputs, row)
        if kept:
            state = move(table, state)
        while state.row < table.nfe:
            state = advance(self.denoiser, table, state)
        return state.x


@torch.no_grad()
def gauss_newton(
    denoiser: Denoiser,
    tableau: Tableau,
    noise: Tensor,
    *,
    teacher: Tableau | None = None,
    residual: Residual = pixels,
    window: int = 4,
    weights: bool = True,
    levels: bool = True,
    levels_in: bool = True,
    held_back: float = 0.25,
    iterations: int = 20,
    patience: int = 3,
    batch_size: int = 100,
    seeds: Iterable[int] | None = None,
    progress: bool = False,
) -> Tableau:
    """Fit a multistep ``tableau`` to a teacher's final images, all its numbers at once.

    Parameters
    ----------
    tableau
        Where the search starts; any solver without repeated levels.
    noise
        Unit-variance noise ``(B, ...)``; some hundred images.
    teacher
        A finished tableau; None: :func:`usual_teacher`.
    residual
        A map of images ``(B, ...)`` to ``(B, R)`` whose squared difference is the error; it is only evaluated, never
        differentiated.
    window, weights, levels, levels_in
        What may move; see :class:`Space`.
    held_back
        Part of the images that no step sees: the solver that is best on them is returned, and the search ends when
        ``patience`` steps have brought nothing there.

    Returns
    -------
    Tableau
        With ``metadata["cost"]`` (on the held-back images; first the start's, then after each accepted step) and
        ``["network_evaluations"]``, teacher's included.

    Raises
    ------
    ValueError
        The tableau repeats levels, or fewer than four images were given.
    """
    if len(noise) < 4:
        raise ValueError(f"a fit needs four images or more, got {len(noise)}")
    teacher = teacher or usual_teacher(denoiser)
    before, space = denoiser.images, Space(tableau, window, weights, levels, levels_in)
    goal = torch.cat([residual(sample(denoiser, teacher, part)) for part in noise.split(batch_size)])
    kept = max(1, min(len(noise) - 1, round(held_back * len(noise))))
    fit = _Problem(denoiser, space, noise[kept:], goal[kept:], residual, batch_size)
    check = _Problem(denoiser, space, noise[:kept], goal[:kept], residual, batch_size)

    vector = best = space.pack(tableau)
    cost, history, damping, idle = fit.cost(vector), [check.cost(vector)], 1e-2, 0
    for _ in tqdm(range(iterations), desc="Levenberg-Marquardt", disable=not progress):
        jj, jr = fit.normal(vector)
        for _ in range(8):  # the trust region: more damping until the cost falls
            step = torch.linalg.lstsq(jj + damping * jj.diagonal().diag(), -jr, driver="gelsd").solution
            trial = vector + step.clamp(-1, 1)
            if (lower := _cost_or_inf(fit, trial)) < cost:
                break
            damping *= 4
        else:
            break
        gained, vector, cost, damping = cost - lower, trial, lower, max(damping / 3, 1e-8)
        history.append(check.cost(vector))
        best, idle = (vector, 0) if history[-1] <= min(history) else (best, idle + 1)
        if idle >= patience or gained < 1e-5 * cost:
            break
    name = tableau.metadata.get("solver", "solver")
    found = space.table(best)
    return found.with_full(
        found.full, solver=f"gn-{name}", method="gauss-newton", cost=history, images=len(noise),
        model=getattr(denoiser, "name", None), shape=list(noise.shape[1:]), nfe=tableau.nfe,
        seeds=None if seeds is None else list(seeds), teacher=teacher.metadata.get("solver", "tableau"),
        teacher_nfe=teacher.nfe, network_evaluations=denoiser.images - before,
    )  # fmt: skip


def _cost_or_inf(problem: _Problem, vector: Tensor) -> float:
    """A step too far may give no solver at all, or images that are not finite."""
    try:
        found = problem.cost(vector)
    except (ValueError, FloatingPointError):
        return float("inf")
    return found if found == found else float("inf")
