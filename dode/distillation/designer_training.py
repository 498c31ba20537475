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
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dode.denoisers import Denoiser, expand
from dode.distillation.designer import Designed, Memory, next_state, output_at, watched
from dode.distillation.losses import Residual
from dode.distillation.problem import Problem
from dode.solvers.rows import gain
from dode.utils.environment import tqdm
from dode.utils.files import load_tensors, save_tensors
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
        self.denoiser, self.points = denoiser, points
        self.x, self.level = top * noise, torch.full((len(noise),), top, dtype=torch.float64, device=noise.device)
        self.levels, self.outputs = list[Tensor](), list[Tensor]()

    @torch.no_grad()
    def run_to(self, following: Tensor) -> Tensor:
        """The state at levels ``(B,)``, all below those where it is; all 0, or all above."""
        for k in range(1, self.points + 1):
            self._step(torch.lerp(self.level, following, 1 / (self.points + 1 - k)))  # what is left, in equal steps
        return self.x

    def _step(self, following: Tensor) -> None:
        self.outputs = [*self.outputs, self.denoiser(self.x, self.level)][-ORDER:]
        self.levels = [*self.levels, self.level][-ORDER:]
        parts = exponential_shares(self.levels, following)
        weights = gain("data", self.level, following) * parts
        newest_first = zip(weights, reversed(self.outputs), strict=False)
        self.x, self.level = next_state("data", self.x, list(newest_first), self.level, following), following


def losses(
    solver: Designed, denoiser: Denoiser, noise: Tensor, residual: Residual, top: float, points: int = 5
) -> list[Tensor]:
    """The loss ``L_n`` of each row whose state a teacher has too: mean squared distances, the last in ``residual``.

    A distance at level ``sigma`` is of states over ``sqrt(1 + sigma^2)``, so that no row drowns the others.
    """
    basis, found = solver.base.basis, list[Tensor]()
    memory: Memory = {}
    teacher = OnlineTeacher(denoiser, noise, top, points)
    level, sigma_in = solver.begin(noise, memory)
    x, outputs = expand(level, noise) * noise, solver.initial_outputs(noise)
    with watched(denoiser, solver.reads) as seen:
        for row in range(solver.nfe):
            outputs[row] = output_at(denoiser, basis, x, level, sigma_in)
            plan = solver.plan(row, seen[-1] if seen else None, level, memory)
            if solver.matched(row):
                fixed = plan.following.detach()
                ahead = solver.move(x, plan.shares, outputs, level, fixed)
                aim = teacher.run_to(fixed)
                if row + 1 == solver.nfe:
                    found.append((residual(ahead) - residual(aim)).square().sum(1).mean())
                else:
                    found.append(((ahead - aim).square().flatten(1).mean(1) / (1 + fixed**2)).mean())
            outputs = {j: d.detach() for j, d in outputs.items()}
            x = solver.move(x.detach(), plan.shares, outputs, level.detach(), plan.following)
            outputs = solver.forget(row, outputs)
            level, sigma_in = plan.following, plan.sigma_in
    return found


def train(
    problem: Problem, solver: Designed, *, rate: float, trajectories: int = 2_000, batch_size: int = 32,
    checks: int = 20, points: int = 5, seed: int = 0,
) -> Designed:  # fmt: skip
    """Train a designer (``solver``, left as it is), and return it as it was when the images held back were best.

    These are of the problem's noise: every ``1 / checks`` of the way the moving average of the designer is run on it
    (early selection).  Adam's ``rate`` is warmed up over a twentieth of the steps and then falls to zero as half a
    cosine.  Of ``trajectories`` noises each is seen once (the paper: 20,000); the teacher makes ``points`` steps for
    each of the student's.  The result has ``metadata["cost"]`` (on the noise held back; first the start's),
    ``["losses"]`` (each row's, at each check) and ``["network_evaluations"]``, a backward pass counted as two calls,
    all teachers' included.  FloatingPointError if a loss is not finite.
    """
    if problem.folder is None:
        options = dict(trajectories=trajectories, batch_size=batch_size, checks=checks, points=points, seed=seed)
        with TemporaryDirectory() as scratch:
            return train(replace(problem, folder=Path(scratch)), solver, rate=rate, **options)
    denoiser, residual, method, folder = problem.denoiser, problem.residual, problem.method, problem.folder
    before, steps = denoiser.evaluations, max(1, trajectories // batch_size)
    facts: list[Any] = [type(solver).__name__, solver.base.full.tolist(), solver.base.sigmas.tolist(), solver.options]
    facts += [solver.base.sigmas_in.tolist(), getattr(denoiser, "name", None), points]
    word = hashlib.sha256(json.dumps([*facts, solver.designer.config]).encode()).hexdigest()[:8]
    recipe = Settings(
        f"{method}-{solver.nfe}-{word}", steps, batch_size, rate, max(1, steps // 20), ema=0.98, seed=seed,
        save_every=max(1, steps // checks),
    )  # fmt: skip
    learner = _copy(solver).to(denoiser.device)
    run, best = Run(recipe, learner, Path(folder)), Path(folder) / f"{recipe.name}.best.safetensors"
    noisy = replace(solver, designer=learner)
    examples = problem.examples(1.0)

    def error() -> float:
        return examples.check(denoiser, replace(solver, designer=_copy(solver, run.average)))

    history, rows, spent, checked = [error()], list[list[float]](), 0, 0
    kept = _copy(solver).state_dict()
    if run.resume() and best.is_file():
        found_tensors, found = load_tensors(best, "best designer")
        if not math.isclose(history[0], found["cost"][0], rel_tol=1e-2):
            raise ValueError(f"{best} is of a training for another residual, teacher or check; choose another folder")
        kept = {k.removeprefix("kept."): v for k, v in found_tensors.items()}
        history, rows, spent, checked = found["cost"], found["losses"], found["network_evaluations"], found["step"]

    bar = tqdm(desc=method, initial=run.step, total=steps, disable=not problem.progress)

    def loss(generator: torch.Generator) -> Tensor:
        bar.update()
        noise = torch.randn((batch_size, *denoiser.shape), generator=generator).to(denoiser.device)
        these = denoiser.of(batch_size * run.step + torch.arange(batch_size))
        each = losses(noisy, these, noise, residual, denoiser.sigma_max, points)
        return torch.stack([v.float() for v in each]).sum()

    while run.step < steps or checked < run.step:
        if run.step == checked:  # else killed between the two files: what is there has no check yet
            run.train(loss, until=run.step + recipe.save_every, progress=False)
        history.append(error())
        with torch.no_grad():
            some = examples.held_noise[:batch_size]
            these = denoiser.of(range(len(some)))
            rows.append([float(v) for v in losses(noisy, these, some, residual, denoiser.sigma_max, points)])
        if history[-1] == min(history):
            kept = {k: v.clone() for k, v in run.average.items()}
        checked = run.step
        state = dict(cost=history, losses=rows, network_evaluations=spent + denoiser.evaluations - before, step=checked)
        save_tensors(best, {f"kept.{k}": v for k, v in kept.items()}, "best designer", state)
    bar.close()
    training_evaluations = spent + denoiser.evaluations - before + BACKWARD * solver.nfe * batch_size * steps
    found_designer = _copy(solver, kept).requires_grad_(False)
    metadata = dict(
        cost=history, losses=rows, trajectories=steps * batch_size, network_evaluations=training_evaluations,
        teacher="deis, online", teacher_nfe=points * sum(map(solver.matched, range(solver.nfe))),
    )  # fmt: skip
    return replace(solver, designer=found_designer, metadata=metadata)


def _copy(solver: Designed, state: dict[str, Tensor] | None = None) -> Any:
    """A designer of its own, with the solver's weights or those of ``state``."""
    made = type(solver.designer)(**solver.designer.config)
    made.load_state_dict(state or solver.designer.state_dict())
    return made
