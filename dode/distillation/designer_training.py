"""A designer trained by gradient through the frozen network, on one of :mod:`dode.distillation.objectives`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dode.distillation.designer import Designed
from dode.distillation.objectives import Objective, Paths
from dode.distillation.problem import Problem
from dode.utils.optimisation import BACKWARD, Run


def train(
    problem: Problem, solver: Designed, objective: Objective | None = None, *, rate: float, trajectories: int = 2_000,
    batch_size: int = 32, checks: int = 20, seed: int = 0,
) -> Designed:  # fmt: skip
    """Train a designer (``solver``, left as it is), and return it as it was when the images held back were best.

    These are of the problem's noise: every ``1 / checks`` of the way the moving average of the designer is run on it
    (early selection).  Adam's ``rate`` is warmed up over a twentieth of the steps and then falls to zero as half a
    cosine.  The ``objective`` (None: :class:`~dode.distillation.objectives.Paths`) sees ``trajectories`` noises, each
    once if it has no pool (the paper: 20,000); one that updates for each loss has its own settings of Adam, and the
    last designer is kept.

    The result has ``metadata["cost"]`` (on the noise held back; first the start's), ``["losses"]`` (each row's, at
    each check), ``["kept"]`` (the cost of what is returned) and ``["network_evaluations"]``, a backward pass counted
    as two calls, all teachers' included.  FloatingPointError if a loss is not finite.
    """
    denoiser, objective = problem.denoiser, objective or Paths()
    before, steps = denoiser.evaluations, max(1, trajectories // batch_size)
    facts: list[Any] = [type(solver).__name__, solver.base.full.tolist(), solver.base.sigmas.tolist(), solver.options]
    facts += [solver.base.sigmas_in.tolist(), getattr(denoiser, "name", None), *objective.name]
    word = hashlib.sha256(json.dumps([*facts, solver.designer.config]).encode()).hexdigest()[:8]
    recipe = objective.settings(
        f"{problem.method}-{solver.nfe}-{word}", steps, batch_size, rate, max(1, steps // 20), ema=objective.ema,
        seed=seed, save_every=max(1, steps // checks),
    )  # fmt: skip
    learner = _copy(solver).to(denoiser.device)
    run = Run(recipe, learner, problem.folder)
    averaged: Any = run.average.module
    noisy, average = replace(solver, designer=learner), replace(solver, designer=averaged)
    examples = problem.examples(1.0)
    objective.prepare(denoiser, examples)
    start = examples.check(denoiser, replace(solver, designer=_copy(solver)))
    if not run.step:
        run.best, run.notes = _copy(solver).state_dict(), dict(cost=[start], losses=[], network_evaluations=0)
    elif not math.isclose(start, run.notes["cost"][0], rel_tol=1e-2):
        raise ValueError(f"{run.state_file} is of another residual, teacher or check; choose another folder")
    notes, spent = run.notes, run.notes["network_evaluations"]

    def loss(generator: torch.Generator) -> Iterable[Tensor]:
        found = objective.losses(noisy, *objective.batch(denoiser, batch_size, run.step, generator))
        return found if objective.each else [torch.stack([value.float() for value in found]).sum()]

    @torch.no_grad()
    def select() -> None:
        notes["cost"].append(examples.check(denoiser, average))
        notes["losses"].append([float(v) for v in objective.losses(noisy, *objective.held(denoiser, batch_size))])
        if objective.each or notes["cost"][-1] == min(notes["cost"]):
            run.best = {k: v.clone() for k, v in averaged.state_dict().items()}
        notes["network_evaluations"] = spent + denoiser.evaluations - before

    run.train(loss, progress=problem.progress, check=select)
    differentiated = (solver.nfe + objective.differentiated) * batch_size * steps
    found_designer = _copy(solver, run.best).requires_grad_(False)
    metadata = dict(
        cost=notes["cost"], losses=notes["losses"], kept=notes["cost"][-1] if objective.each else min(notes["cost"]),
        trajectories=steps * batch_size,
        network_evaluations=spent + denoiser.evaluations - before + BACKWARD * differentiated,
    )  # fmt: skip
    return replace(solver, designer=found_designer, metadata=metadata | objective.facts(solver))


def _copy(solver: Designed, state: dict[str, Tensor] | None = None) -> Any:
    """A designer of its own, with the solver's weights or those of ``state``."""
    made = type(solver.designer)(**solver.designer.config)
    made.load_state_dict(state or solver.designer.state_dict())
    return made
