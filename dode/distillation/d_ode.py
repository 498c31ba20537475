r"""D-ODE solvers: distil a many-step teacher into one scalar a step (Kim, Tang, Yu, CVPR 2024).

The paper replaces the solver's output ``d_t`` by ``O_t = d_t + lambda_t (d_t - d_{t+1})`` (eq. 10) and fits each
``lambda_t`` so that the student's next state meets the teacher's (eq. 14).  On a tableau this adds ``lambda_i`` times a
fixed *direction* to row ``i``, so the next state is affine in ``lambda_i`` and the fit is closed form: ``lambda_i =
<u, r> / <u, u>`` over all pixels of all batches, with ``r`` = target - plain next state and ``u`` = the state's move.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Container, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import safetensors
import torch
from torch import Tensor

from dode import __version__
from dode.denoisers import Denoiser
from dode.distillation.corrections import Plan, default_first_step, families, released_plan
from dode.distillation.problem import Problem, distiller
from dode.distillation.spool import Spool
from dode.distillation.teachers import Recording, Teacher, make_teacher, target_states
from dode.sampling import AnyDenoiser, State, advance, combine, evaluate, for_images, initial_state
from dode.tableau import Tableau, TableauRow, check_model
from dode.utils.environment import tqdm
from dode.utils.files import one_of

Alignment = Literal["time", "index", "released"]
VERSIONS = dict(
    dode=__version__, torch=torch.__version__, safetensors=safetensors.__version__, python=platform.python_version()
)


class _RowFit:
    """Row ``i`` of the fit: where the plain step leads, which ways lambda turns it, and the sums over batches."""

    def __init__(self, row: TableauRow, directions: Tensor, keep: Container[int], i: int) -> None:
        self.index, self.ratio, self.terms = i, row.ratio, row.terms
        self.directions = [
            [(c - 1, float(direction[c])) for c in direction.nonzero().flatten().tolist()] for direction in directions
        ]
        self.keep = keep  # outputs that a later row or its lambda still needs
        k = len(self.directions)
        self.uu = torch.zeros(k, k, dtype=torch.float64)  # <u_a, u_b>
        self.ur = torch.zeros(k, dtype=torch.float64)  # <u_a, r>
        self.rr = torch.zeros((), dtype=torch.float64)  # <r, r>

    def plain(self, s: State) -> Tensor:
        return combine(self.terms, s.outputs, s.x, self.ratio)

    def moves(self, s: State) -> list[Tensor]:
        # D_{-1} = 0 in the data basis
        known = [[(j, w) for j, w in direction if j in s.outputs] for direction in self.directions]
        return [combine(direction, s.outputs, torch.zeros_like(s.x)) for direction in known]

    def add(self, s: State, target: Tensor) -> None:
        """Add one batch to the normal equations of eq. (14)."""
        r = (target - self.plain(s)).double().flatten()
        self.rr += (r @ r).cpu()
        if self.directions:
            u = torch.stack([moves.double().flatten() for moves in self.moves(s)])
            self.uu += (u @ u.T).cpu()
            self.ur += (u @ r).cpu()

    def finite(self) -> bool:
        return all(bool(torch.isfinite(v).all()) for v in (self.uu, self.ur, self.rr))

    @cached_property
    def values(self) -> Tensor:
        """The lambdas ``(K,)``; asked for when every batch is in."""
        if len(self.directions) == 1:
            return self.ur / self.uu[0] if self.uu > 0 else torch.zeros_like(self.ur)
        if not self.directions:
            return self.ur
        return torch.linalg.lstsq(self.uu, self.ur, rcond=1e-13, driver="gelsd").solution

    def move(self, _: int, s: State, t: State) -> tuple[State, State]:
        x = self.plain(s)
        for value, moves in zip(self.values.tolist(), self.moves(s), strict=True):
            x = x.add(moves, alpha=value)
        return State(x, {j: d for j, d in s.outputs.items() if j in self.keep}, self.index + 1), t

    def rmse(self, pixels: int) -> tuple[float, float]:
        """Distance to the target without and with lambda."""
        left = self.rr - 2 * self.values @ self.ur + self.values @ self.uu @ self.values
        return float(self.rr / pixels) ** 0.5, (max(float(left), 0.0) / pixels) ** 0.5


@distiller(
    "D-DDIM", source="Kim et al. 2024", cite="kim2024dode", place=1, start="ddim", grid="own", moves=("weights",),
    loss=None, prefix="d",
)  # fmt: skip
def d_ode(
    problem: Problem, *, teacher: Literal["ddim", "same"] | Teacher = "ddim", scale: int = 10,
    align: Alignment = "time", first_step: Literal["noise", "none"] | None = None, equation: Literal[8, 9, 10] = 10,
    basis: Literal["prediction", "own"] = "prediction",
) -> Tableau:  # fmt: skip
    """One number a step, in closed form, each step on its own.

    Equation 14 of the paper, with equation 10, 9 or 8.
    The denoiser may be any callable ``D(x, sigma)``, and the noise an iterable of batches: memory does not grow with
    their number.  float64 noise makes the states float64.  (The paper: 100 images.)

    Parameters
    ----------
    teacher
        DDIM (the paper) or the same solver, on a finer grid.  From Python also a function (``dode.solvers.ipndm``), a
        tableau, or its run on the same noise (:func:`dode.distillation.record`), which several fits may share.
    scale
        Teacher steps for each step; the paper's C.
    align
        Which of the teacher's states a row is fitted to; time: those at its own levels (eq. 14), index: those of its
        number on a grid spaced anew (:func:`dode.schedules.refine`), released: the authors' code for D-DDIM, D-EDM and
        D-DPM-Solver, with its teacher, levels and directions (:func:`dode.distillation.corrections.released_plan`).
    first_step
        What the first step is corrected by; None: the noise, if the network predicts noise (:func:`directions`).
    equation
        10: one number a row; 9: one for each earlier output, the weights still summing to one; 8: any combination of
        the outputs (:func:`families`).
    basis
        Which estimates are corrected; prediction: those of the kind that the network predicts, own: those of the
        tableau, as D-DPM-Solver++ has it, whose estimates are clean images whatever the network predicts, and Heun,
        whose are noise; the last corrector of D-EDM is of use only so (:func:`directions`).

    The result has ``metadata["lambdas"]`` (a number a row; a list a row for equations 8 and 9), ``["fit_rmse"]`` and
    ``["plain_rmse"]`` (per row: distance to the teacher with and without lambda); its cost counts the teacher's run,
    recorded or not.  ValueError if teacher and student do not meet; FloatingPointError names the row of a NaN or inf.
    """
    denoiser: AnyDenoiser = problem.denoiser
    tableau, batch_size = problem.table, problem.batch_size
    noise: Tensor | Iterable[Tensor] = problem.noise
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be one or more, got {batch_size}")
    one_of("basis", basis, Literal["prediction", "own"])
    prediction = getattr(denoiser, "prediction", None)
    if basis == "prediction" and prediction in ("noise", "data"):
        tableau = tableau.to_basis(prediction)
    teacher = problem.family if teacher == "same" else teacher
    one_of("align", align, Alignment)
    if align == "released":
        if (teacher, first_step, equation) != ("ddim", None, 10):
            raise ValueError("align='released' has its own teacher, first step and equation; leave those options out")
        plan = released_plan(tableau, getattr(denoiser, "schedule", None), scale)
    else:
        guide = make_teacher(tableau, teacher, scale, align)
        plan = Plan(tableau, guide, target_states(tableau, guide, align), families(tableau, equation, first_step))
    tableau, guide, targets = plan.table, plan.teacher, plan.targets
    if isinstance(teacher, Recording) and not teacher.states.keys() >= set(targets):
        raise ValueError("the teacher was recorded for a student of other levels; record it for this one")
    scales, support = plan.target_scales or [1.0] * tableau.nfe, plan.support.rows
    fits: list[_RowFit] = []

    with tempfile.TemporaryDirectory(prefix="dode-") as folder:
        spool, images, pixels, shape = Spool(Path(folder)), 0, 0, tuple[int, ...]()
        parts = list[AnyDenoiser]()
        for batch in noise.split(batch_size or len(noise)) if isinstance(noise, Tensor) else noise:
            check_model(tableau.metadata, getattr(denoiser, "name", None), tuple(batch.shape[1:]))
            theirs = plan.teacher_start * batch
            spool.append((initial_state(tableau.rows[0], batch), initial_state(guide.rows[0], theirs)))
            parts.append(for_images(denoiser, range(images, images + len(batch))))
            images, pixels, shape = images + len(batch), pixels + batch.numel(), tuple(batch.shape[1:])
            if isinstance(teacher, Recording) and not torch.equal(teacher.noise, batch):
                raise ValueError("a recorded teacher goes with its own noise, in one batch")
        if isinstance(denoiser, Denoiser):
            denoiser.conditioning.check(images)
        if images == 0:
            raise ValueError("no noise given; dode.initial_noise(denoiser.shape, range(100)) makes the paper's batch")

        calls = tableau.nfe + (0 if isinstance(teacher, Recording) else targets[-1])
        bar = tqdm(total=calls * spool.count, disable=not problem.progress, unit="NFE", desc="distilling")

        def evaluate_both(fit: _RowFit, k: int, s: State, t: State) -> tuple[State, State]:
            evaluate(parts[k], tableau.rows[s.row], s)
            bar.update()
            if isinstance(teacher, Recording):
                t = teacher.state(targets[fit.index])
            while t.row < targets[fit.index]:
                t = advance(parts[k], guide.rows[t.row], t)
                bar.update()
            fit.add(s, scales[fit.index] * t.x)
            if not fit.finite():
                i, level = fit.index, float(guide.sigmas[t.row])
                student = f"in row {i} at sigma = {float(tableau.sigmas[i]):g}"
                who = student if not torch.isfinite(s.outputs[i]).all() else f"to the teacher, above sigma = {level:g}"
                raise FloatingPointError(f"the denoiser gave NaN or inf {who}")
            return s, t

        for i in range(tableau.nfe):
            row = plan.corrected([fit.values for fit in fits]).rows[i]
            fit = _RowFit(row, plan.directions[i], support[i].keep, i)
            spool.update(partial(evaluate_both, fit))
            spool.update(fit.move)
            fits.append(fit)
        bar.close()

    lambdas = [fit.values.tolist() for fit in fits]
    plain, fitted = zip(*(fit.rmse(pixels) for fit in fits), strict=True)
    student = plan.corrected([fit.values for fit in fits])
    return student.with_full(
        student.full, lambdas=[sum(row, 0.0) for row in lambdas] if equation == 10 else lambdas, equation=equation,
        fit_rmse=list(fitted), plain_rmse=list(plain), shape=list(shape), images=images,
        teacher=guide.metadata.get("solver", "tableau"), teacher_nfe=guide.nfe, scale=scale, align=align,
        first_step=first_step or default_first_step(tableau), grid=tableau.levels.tolist(), versions=VERSIONS,
        network_evaluations=images * (tableau.nfe + targets[-1]),
    )  # fmt: skip
