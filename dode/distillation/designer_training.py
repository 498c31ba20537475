r"""Algorithm 1 of DLMS: a designer trained by gradient through the frozen network, step by step.

Student and teacher start from the same noise.  After each of the student's rows the teacher, running on its own, goes
to the same level, and the states are compared.  The graph never spans more than two rows: the state a row starts from
was made from the state before with nothing but the design in the graph, and the level a loss is taken at is fixed.
At the last row the residuals of the images are compared: features, as published.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dode.denoisers import Denoiser
from dode.distillation.designer import Designed, row_of_shares
from dode.distillation.losses import Residual, bound, evaluations
from dode.distillation.problem import Problem
from dode.distillation.teachers import record, target_states
from dode.sampling import State, advance, next_x
from dode.tableau import Tableau
from dode.utils.optimisation import BACKWARD, Run, Settings

ORDER = 3


def exponential_shares(levels: list[Tensor], following: Tensor) -> Tensor:
    """Adams-Bashforth parts ``(k, B)`` in ``ln sigma`` on clean images; ``levels`` are ``k`` of ``(B,)``, newest last.

    The parabola through the outputs, integrated exactly: the row of
    ``dode.solvers.deis(variable="log_rho", basis="data")``, for each image its own, newest output first.
    """
    newest = levels[-1]
    if len(levels) == 1 or bool((following == 0).all()):  # a step to 0 is endless in ln sigma: order 1 there
        return torch.ones_like(newest)[None]
    h = (newest / following).log()
    m = [-torch.expm1(-h)]  # int_0^h tau^j e^(tau - h) dtau, by parts
    for j in range(1, len(levels)):
        m.append(h**j - j * m[-1])
    nodes = torch.stack([(newest / level).log() for level in reversed(levels)])  # (k, B), 0 and below
    powers = torch.stack([nodes**j for j in range(len(levels))])  # (j, k, B)
    solved = torch.linalg.solve(powers.permute(2, 0, 1), torch.stack(m).T[:, :, None])[:, :, 0].T
    return solved / m[0]


class OnlineTeacher:
    """Runs from ``top`` times the noise to wherever the student goes, ``points`` steps a time, uniform in ``sigma``.

    ``points = 5``: the four extra points of each student's step that the paper has (M = 4).  Uniform in ``sigma``,
    because a student's steps are long: uniform in ``ln sigma`` the last of them, down to 0, is hardly resolved at all.
    """

    def __init__(self, denoiser: Denoiser, noise: Tensor, top: float, points: int = 5) -> None:
        self.denoiser, self.points, self.levels = denoiser, points, list[Tensor]()
        self.level = torch.full((len(noise),), top, dtype=torch.float64, device=noise.device)
        self.state = State(top * noise)

    @torch.no_grad()
    def run_to(self, following: Tensor) -> Tensor:
        """The state at levels ``(B,)``, all below those where it is; all 0, or all above."""
        for k in range(1, self.points + 1):
            self._step(torch.lerp(self.level, following, 1 / (self.points + 1 - k)))  # what is left, in equal steps
        return self.state.x

    def _step(self, following: Tensor) -> None:
        self.levels, newest = [*self.levels, self.level][-ORDER:], self.state.row
        shares = [(newest - k, part) for k, part in enumerate(exponential_shares(self.levels, following))]
        keep = range(newest + 2 - ORDER, newest + 1)
        advance(self.denoiser, row_of_shares("data", shares, keep, self.level, self.level, following), self.state)
        self.level = following


def losses(
    solver: Designed, denoiser: Denoiser, noise: Tensor, residual: Residual, top: float, points: int = 5
) -> list[Tensor]:
    """The loss ``L_n`` of each row whose state a teacher has too: mean squared distances, the last in ``residual``.

    A distance at level ``sigma`` is of states over ``sqrt(1 + sigma^2)``, so that no row drowns the others.
    """
    found, teacher = list[Tensor](), OnlineTeacher(denoiser, noise, top, points)
    for state, row in solver.walk(denoiser, noise):
        if row is None:
            break
        fixed = row.plan.following.detach()
        if solver.matched(state.row):
            ahead, aim = next_x(row.complete(fixed), state), teacher.run_to(fixed)
            if state.row + 1 == solver.nfe:
                found.append((residual(ahead) - residual(aim)).square().sum(1).mean())
            else:
                found.append(((ahead - aim).square().flatten(1).mean(1) / (1 + fixed**2)).mean())
        # what leads to the next row is this row's design alone
        state.x, row.sigma = state.x.detach(), row.sigma.detach()
        state.outputs = {j: d.detach() for j, d in state.outputs.items()}
    return found


def step_losses(solver: Designed, denoiser: Denoiser, noise: Tensor, teacher: Tableau) -> Iterator[Tensor]:
    """AMED's, as released: of each step for itself, from state to state of ``teacher``; squares, summed over pixels."""
    stops = target_states(solver.base, teacher, "time")
    states, start = record(denoiser, solver.base, noise, teacher).states, None
    for level, stop, row in zip(solver.base.sigmas[1:], stops, filter(solver.matched, range(solver.nfe)), strict=True):
        *_, (end, _) = solver.walk(denoiser, noise, start, row + 1)
        yield (end.x - states[stop]).square().flatten(1).sum(1).mean()
        start = State(states[stop], {}, row + 1, level.to(noise.device).expand(len(noise)))


class Steady(Settings):
    """Adam as AMED was released: at one rate, with the gradient as it is."""

    betas, clip = (0.9, 0.999), math.inf

    def rate_at(self, step: int) -> float:
        return 1.0


def train(
    problem: Problem, solver: Designed, *, rate: float, trajectories: int = 2_000, batch_size: int = 32,
    checks: int = 20, points: int = 5, seed: int = 0, released: Tableau | None = None,
) -> Designed:  # fmt: skip
    """Train a designer (``solver``, left as it is), and return it as it was when the images held back were best.

    These are of the problem's noise: every ``1 / checks`` of the way the moving average of the designer is run on it
    (early selection).  Adam's ``rate`` is warmed up over a twentieth of the steps and then falls to zero as half a
    cosine.  Of ``trajectories`` noises each is seen once (the paper: 20,000); the teacher makes ``points`` steps for
    each of the student's.  The result has ``metadata["cost"]`` (on the noise held back; first the start's),
    ``["losses"]`` (each row's, at each check) and ``["network_evaluations"]``, a backward pass counted as two calls,
    all teachers' included.  FloatingPointError if a loss is not finite.

    With ``released``, a teacher's table, each of :func:`step_losses` is an update of its own, the rate constant, and
    the last designer kept (``metadata["kept"]`` is its cost).
    """
    denoiser, method = problem.denoiser, problem.method
    before, steps = denoiser.evaluations, max(1, trajectories // batch_size)
    facts: list[Any] = [type(solver).__name__, solver.base.full.tolist(), solver.base.sigmas.tolist(), solver.options]
    facts += [solver.base.sigmas_in.tolist(), getattr(denoiser, "name", None), points]
    facts += [released.digest] if released else []
    word = hashlib.sha256(json.dumps([*facts, solver.designer.config]).encode()).hexdigest()[:8]
    recipe = (Steady if released else Settings)(
        f"{method}-{solver.nfe}-{word}", steps, batch_size, rate, max(1, steps // 20), ema=0 if released else 0.98,
        seed=seed, save_every=max(1, steps // checks),
    )  # fmt: skip
    learner = _copy(solver).to(denoiser.device)
    run = Run(recipe, learner, problem.folder)
    averaged: Any = run.average.module
    noisy, average = replace(solver, designer=learner), replace(solver, designer=averaged)
    examples = problem.examples(1.0)
    start = examples.check(denoiser, replace(solver, designer=_copy(solver)))
    if not run.step:
        run.best, run.notes = _copy(solver).state_dict(), dict(cost=[start], losses=[], network_evaluations=0)
    elif not math.isclose(start, run.notes["cost"][0], rel_tol=1e-2):
        raise ValueError(f"{run.state_file} is of another residual, teacher or check; choose another folder")
    notes, spent = run.notes, run.notes["network_evaluations"]

    def of_rows(noise: Tensor, first: int) -> Iterable[Tensor]:
        these = denoiser.of(first + torch.arange(len(noise)))
        if released:
            return step_losses(noisy, these, noise, released)
        return losses(noisy, these, noise, bound(examples.residual, these), denoiser.sigma_max, points)

    def loss(generator: torch.Generator) -> Iterable[Tensor]:
        noise = torch.randn((batch_size, *denoiser.shape), generator=generator).to(denoiser.device)
        found = of_rows(noise, batch_size * run.step)
        return found if released else [torch.stack([value.float() for value in found]).sum()]

    @torch.no_grad()
    def select() -> None:
        notes["cost"].append(examples.check(denoiser, average))
        notes["losses"].append([float(value) for value in of_rows(examples.held_noise[:batch_size], 0)])
        if released or notes["cost"][-1] == min(notes["cost"]):
            run.best = {k: v.clone() for k, v in averaged.state_dict().items()}
        notes["network_evaluations"] = spent + denoiser.evaluations - before

    run.train(loss, progress=problem.progress, check=select)
    differentiated = solver.nfe + (0 if released else evaluations(examples.residual))
    training_evaluations = spent + denoiser.evaluations - before + BACKWARD * differentiated * batch_size * steps
    found_designer = _copy(solver, run.best).requires_grad_(False)
    metadata = dict(
        cost=notes["cost"], losses=notes["losses"], trajectories=steps * batch_size,
        network_evaluations=training_evaluations, teacher="deis, online",
        teacher_nfe=points * sum(map(solver.matched, range(solver.nfe))),
    )  # fmt: skip
    if released:
        metadata |= dict(kept=notes["cost"][-1], teacher=released.metadata["solver"], teacher_nfe=released.nfe)
    return replace(solver, designer=found_designer, metadata=metadata)


def _copy(solver: Designed, state: dict[str, Tensor] | None = None) -> Any:
    """A designer of its own, with the solver's weights or those of ``state``."""
    made = type(solver.designer)(**solver.designer.config)
    made.load_state_dict(state or solver.designer.state_dict())
    return made
