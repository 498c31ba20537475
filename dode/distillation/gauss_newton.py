r"""Gauss-Newton: Levenberg-Marquardt steps on the final error of the whole solver.

A solver of a few calls has a few dozen numbers, so the Jacobian of its last image is a few dozen images: cheap enough
to take by differences, and Gauss-Newton's step then moves all rows, levels and weights together towards

    min_theta  sum_images | R(x_N(theta)) - R(teacher) |^2 ,

where R is any map of an image (pixels, features).  Nothing is greedy: the error of an early row counts by
what becomes of it at the end.

Known before: a trust region for the grid alone (DMN, Xue et al., CVPR 2024); least squares of weights, step by step
(IIA, Zhang et al., ICLR 2024; OLSS, Duan et al., CIKM 2023; D-ODE); Levenberg and Marquardt's damping within a step
of sampling (LML, Wang et al., ICCV 2025).  Ours: Gauss-Newton steps on the error of the last image in all numbers of
a table at once, levels and input levels too, with the network evaluated and never differentiated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from dode.denoisers import Denoiser
from dode.distillation.losses import Residual, bound, evaluations, pixels
from dode.distillation.problem import Problem, distiller
from dode.distillation.space import Space
from dode.distillation.teachers import TEACHER_STEPS, Examples, batches, on_path
from dode.sampling import State, Step, initial_state, sample, trajectory, walk
from dode.tableau import Tableau
from dode.utils.environment import tqdm

DIFFERENCE = 1e-2  # of a number, for the Jacobian: far above float32's rounding of a state, far below its curvature


@dataclass
class _Equations:
    """Cost, gradient and Gauss-Newton matrix of a space on the examples to fit.

    With a ``weight`` the states on the way count too: so many times their mean squared distance, over
    ``1 + sigma^2``, to the teacher's path.
    """

    denoiser: Denoiser
    space: Space
    examples: Examples
    batch_size: int
    weight: float = 0.0

    @cached_property
    def path(self) -> Tensor:
        """The teacher's states ``(B, M + 1, ...)``; without a weight none, ``(B, 0)``."""
        e = self.examples
        if not self.weight:
            return e.noise.new_zeros(len(e.noise), 0)
        pieces = batches(self.denoiser, self.batch_size, e.noise)
        return torch.cat([trajectory(model, e.teacher, part).transpose(0, 1) for model, (part,) in pieces])

    def cost(self, vector: Tensor) -> float:
        """The examples' error; inf for a step so far that it gives no solver at all."""
        try:
            table = self.space.table(vector)
        except ValueError:
            return float("inf")
        missed = (
            self._residuals(model, table, trajectory(model, table, noise)[1:], goal, path)
            for model, (noise, goal, path) in self._batches()
        )
        found = self.examples.norm(missed, len(self.examples.noise))
        return found if found == found else float("inf")

    def normal(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """``(J^T J, J^T r)`` by forward differences, each from the first row that its number touches."""
        size, base = len(vector), self.space.table(vector)
        jj, jr = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
        tables = [self.space.table(vector + DIFFERENCE * unit) for unit in torch.eye(size, dtype=torch.float64)]
        means = torch.zeros((), dtype=torch.float64)  # of each column, and of r
        for model, (noise, goal, path) in self._batches():
            seen = list[Step]()
            end = sample(model, base, noise, callback=seen.append)
            r = self._residuals(model, base, [*(step.x for step in seen[1:]), end], goal, path).double()
            columns = [
                self._residuals(model, table, self._again(model, table, noise, seen, row, kept), goal, path).double()
                - r
                for table, row, kept in zip(tables, self.space.rows, self.space.moves_only, strict=True)
            ]
            j = torch.stack(columns) / DIFFERENCE
            jj += (j.flatten(1) @ j.flatten(1).T).cpu()
            jr += (j.flatten(1) @ r.flatten()).cpu()
            means = means + torch.cat([j, r[None]]).sum(1).cpu()
        images, bias = len(self.examples.noise), self.examples.bias
        means = means / images
        return jj / images + bias * means[:-1] @ means[:-1].T, jr / images + bias * means[:-1] @ means[-1]

    def _batches(self) -> Iterator[tuple[Denoiser, tuple[Tensor, ...]]]:
        return batches(self.denoiser, self.batch_size, self.examples.noise, self.examples.goal, self.path)

    def _residuals(
        self, model: Denoiser, table: Tableau, states: Sequence[Tensor] | Tensor, goal: Tensor, path: Tensor
    ) -> Tensor:
        """``(b, R)``: what the last of a walk's ``states`` 1..N, and with a path the others too, are off."""
        missed = [bound(self.examples.residual, model)(states[-1]) - goal]
        if self.weight:
            levels, on_the_way = self.examples.teacher.sigmas, table.sigmas[1:-1].tolist()
            for x, level in zip(states[:-1], on_the_way, strict=True):
                share = self.weight / ((1 + level**2) * len(on_the_way))
                missed.append(share**0.5 * pixels(x - on_path(levels, path, level)))
        return self.examples.capped(torch.cat(missed, dim=1))

    @staticmethod
    def _again(model: Denoiser, table: Tableau, noise: Tensor, seen: list[Step], row: int, kept: bool) -> list[Tensor]:
        """States 1..N of a table that agrees with the one ``seen`` up to ``row`` (with its evaluation, if ``kept``)."""
        start = initial_state(table.rows[0], noise)
        outputs = start.outputs | {step.index: step.output for step in seen[: row + kept]}
        start = State(seen[row].x if row or kept else start.x, outputs, row)
        states = [state.x for state, _ in walk(model, table.rows[row:], noise, start)]
        return [*(step.x for step in seen[1 : row + 1]), *states[1:]]


CALLS = 16_000  # the budget for each of a solver's, of ten steps


def jacobian_evaluations(space: Space, residual: Residual) -> int:
    """Network evaluations of a Jacobian for each image: the walks, and the residuals at their ends."""
    return space.jacobian_calls + (len(space.rows) + 1) * evaluations(residual)


def images_within_budget(table: Tableau, residual: Residual = pixels) -> int:
    """How many images the budget of a fit pays for; a step is a Jacobian and some one and a half walks."""
    space, own = Space(table, first_level=True), evaluations(residual)
    step = jacobian_evaluations(space, residual) * 7 / 8 + (table.nfe + own) * 3 / 2  # an eighth is held back
    return int(CALLS * table.nfe / (TEACHER_STEPS + 2 * own + 10 * step))


@distiller(
    "Gauss-Newton", place=9, loss="seen", everywhere=True, images=images_within_budget,
    moves=("first level", "levels", "input levels", "weights"),
)  # fmt: skip
def gauss_newton(
    problem: Problem, *, bias: float = 5.0, path: float = 0.0, limit: float | None = None,
    first_level: bool | None = None, steps: int = 10, patience: int = 3, held_back: float = 0.125,
    budget: int | None = None, space: Space | None = None,
) -> Tableau:  # fmt: skip
    """Weights and noise levels together, by Gauss-Newton steps on the final image; any solver without repeated levels.

    The residual is only evaluated, never differentiated.

    Parameters
    ----------
    bias
        How much more the mean of all images' errors counts (:class:`~dode.distillation.teachers.Examples`).
    path
        What the states on the way count, mean squared pixels over ``1 + sigma^2``, against the teacher's path; 0: the
        last image alone is compared.  Early selection compares that alone in any case.
    limit
        What one image's error can count at most, in medians of the start's; 0: all of it.  None: 5 where there are
        fewer than 128 images, of which one that ends as another object would be half of the error; and 0 for a loss
        that takes network evaluations, with which a bound was no gain.
    first_level
        Whether the first noise level moves too; None: after an analytical first step.
    steps
        Steps at most.
    patience
        Steps without progress on the images held back, after which the search ends.
    held_back
        Part of the images that no step sees; the solver that is best on them is returned.
    budget
        Network evaluations (of one image each); no step is begun whose Jacobian would be past it.  None: 16,000 for
        each of the solver's, a tenth of what DLMS trains with as published (20,000 noises, of the student three calls
        for each, five of its teacher), and more where there are more images than that pays for.
    space
        What may move; None: weights, levels and levels given to the network.

    The result has ``metadata["cost"]``: on the held-back images, first the start's, then after each accepted step.
    ValueError for a tableau that repeats levels, or fewer than four images.
    """
    denoiser, tableau, images = problem.denoiser, problem.table, len(problem.noise)
    before = denoiser.evaluations
    space = space or Space(tableau, first_level=problem.afs if first_level is None else first_level)
    if budget is None:
        budget = round(CALLS * tableau.nfe * max(1.0, images / images_within_budget(tableau, problem.residual)))
    examples = problem.examples(held_back, bias)
    few = images < 128 and not evaluations(problem.residual)
    if limit := 5.0 * few if limit is None else limit:
        examples = examples.with_limit(denoiser, tableau, limit)
    fit = _Equations(examples.fitted(denoiser), space, examples, examples.size, path)

    vector = best = space.pack(tableau)
    cost, history, damping, idle = fit.cost(vector), [examples.check(denoiser, tableau)], 1e-2, 0
    for _ in tqdm(range(steps), desc="Levenberg-Marquardt", disable=not problem.progress):
        if (
            denoiser.evaluations - before + jacobian_evaluations(space, examples.residual) * len(examples.noise)
            > budget
        ):
            break
        jj, jr = fit.normal(vector)
        for _ in range(8):  # the trust region: more damping until the cost falls, and nothing is lost on other images
            step = torch.linalg.lstsq(jj + damping * jj.diagonal().diag(), -jr, driver="gelsd").solution
            trial = vector + step.clamp(-1, 1)
            lower = fit.cost(trial)
            if lower < cost and (held := examples.check(denoiser, space.table(trial))) <= history[0]:
                break
            damping *= 4
        else:
            break
        gained, vector, cost, damping = cost - lower, trial, lower, max(damping / 3, 1e-8)
        history.append(held)
        best, idle = (vector, 0) if history[-1] <= min(history) else (best, idle + 1)
        if idle >= patience or gained < 1e-5 * cost:
            break
    found = space.table(best)
    return found.with_full(found.full, cost=history, **examples.facts)
