r"""D-ODE solvers: distil a many-step teacher into one scalar a step (Kim, Tang, Yu, CVPR 2024).

The paper replaces the solver's output ``d_t`` by ``O_t = d_t + lambda_t (d_t - d_{t+1})`` (eq. 10) and fits each
``lambda_t`` so that the student's next state meets the teacher's (eq. 14).  On a tableau this adds ``lambda_i`` times a
fixed *direction* to row ``i``, so the next state is affine in ``lambda_i`` and the fit is closed form: ``lambda_i =
<u, r> / <u, u>`` over all pixels of all batches, with ``r`` = target - plain next state and ``u`` = the state's move.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Container, Iterable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import safetensors
import torch
from torch import Tensor

from dode import __version__
from dode.denoisers import Denoiser
from dode.distillation.problem import Problem, distiller
from dode.distillation.spool import Spool
from dode.distillation.teachers import Recording, Teacher, make_teacher, target_states
from dode.sampling import AnyDenoiser, State, advance, combine, evaluate, for_images, initial_state
from dode.tableau import Tableau, check_model
from dode.utils.environment import tqdm
from dode.utils.files import one_of

FirstStep = Literal["noise", "none"]
Equation = Literal[8, 9, 10]
VERSIONS = dict(
    dode=__version__, torch=torch.__version__, safetensors=safetensors.__version__, python=platform.python_version()
)


def default_first_step(tableau: Tableau) -> FirstStep:
    """The released convention: lean on the starting noise in the noise basis, not in the data basis."""
    return "noise" if tableau.basis == "noise" else "none"


def _estimates(tableau: Tableau, first_step: FirstStep | None) -> tuple[Tensor, Tensor, FirstStep]:
    """``dhat_i`` of each row as weights on the outputs ``(N, N + 1)``, their scale ``c`` ``(N, 1)``, the first step."""
    first_step = first_step or default_first_step(tableau)
    one_of("first_step", first_step, FirstStep)
    full, sums = tableau.full, tableau.row_sums
    stays = tableau.sigmas[1:] == tableau.sigmas[:-1]
    last_call = torch.zeros_like(full)
    last_call[:, 1:].fill_diagonal_(1.0)
    scale = torch.where(stays, tableau.weights.diagonal(), sums)[:, None]
    # schemes with a corrector compare raw outputs, all others their combinations
    return last_call if stays.any() else full / scale, scale, first_step


def directions(tableau: Tableau, first_step: FirstStep | None = None) -> Tensor:
    """What ``lambda_i`` multiplies: ``(N, N + 1)`` float64, start column first; rows sum to zero.

    Row ``i`` is ``c (dhat_i - dhat_{i-1})``, with ``dhat_i`` the solver's own combined output (its row over its row sum
    ``c``), as eq. 10 has it for high-order solvers.  A row that stays at its level (Heun's corrector) has no such sum:
    there ``dhat`` is the last network output, as in the released D-EDM, and ``c`` the row's weight on it, so that
    ``lambda = -1`` takes the corrector back.  (The released code has ``c = 1`` there: another scale.)

    The first row leans on the starting noise (``first_step="noise"``, the default in the noise basis) or is left alone
    ("none", the default in the data basis).  Corrections are kept: a corrector starts from the corrected predictor,
    where the released D-EDM starts again from the beginning of the step.
    """
    combined, scale, first_step = _estimates(tableau, first_step)
    previous = torch.zeros_like(combined)
    previous[0, 0] = 1.0
    previous[1:] = combined[:-1]
    result = scale * (combined - previous)
    if first_step == "none":
        result[0] = 0.0
    return result


def families(tableau: Tableau, equation: Equation = 10, first_step: FirstStep | None = None) -> list[Tensor]:
    """The directions in which row ``i`` may move: for each row ``(K_i, N + 1)`` float64, start column first.

    Equation 10 has one direction a row (:func:`directions`), or none; 9 has ``c (dhat_i - dhat_k)`` for every earlier
    ``k``, so the weights still sum to one; 8 has ``c dhat_k`` for every ``k`` up to ``i``, which is any combination,
    consistent or not.  The starting noise counts as an earlier estimate with ``first_step="noise"``.
    """
    one_of("equation", equation, Equation)
    if equation == 10:
        along = directions(tableau, first_step)
        return [row[None][: int(row.any())] for row in along]
    estimates, scale, first_step = _estimates(tableau, first_step)
    noise = torch.zeros(1, tableau.nfe + 1, dtype=torch.float64)
    noise[0, 0] = 1.0
    result = []
    for i in range(tableau.nfe):
        earlier = torch.cat([noise[: int(first_step == "noise")], estimates[:i]])
        here = estimates[i : i + 1]
        result.append(scale[i] * (here - earlier if equation == 9 else torch.cat([earlier, here])))
    return result


def corrected(
    tableau: Tableau,
    lambdas: Tensor | Sequence[float] | Sequence[Sequence[float]],
    first_step: FirstStep | None = None,
    equation: Equation = 10,
) -> Tableau:
    """The D- version of ``tableau``; zeros give it back bit for bit.

    ``lambdas``: one for each row (equation 10), or for each row as many as it has :func:`families`.
    """
    allowed = families(tableau, equation, first_step)
    if len(lambdas) != tableau.nfe:
        raise ValueError(f"{tableau.nfe} rows need {tableau.nfe} lambdas, got {len(lambdas)}")
    full = tableau.full
    for i, (value, direction) in enumerate(zip(lambdas, allowed, strict=True)):
        value = torch.as_tensor(value, dtype=torch.float64).reshape(-1)
        if equation != 10 and len(value) != len(direction):
            raise ValueError(f"row {i} needs {len(direction)} lambdas with equation {equation}, got {len(value)}")
        full[i] += value[: len(direction)] @ direction
    return tableau.with_full(full)


class _RowFit:
    """Row ``i`` of the fit: where the plain step leads, which ways lambda turns it, and the sums over batches."""

    def __init__(self, tableau: Tableau, directions: Tensor, keep: Container[int], i: int) -> None:
        self.index, self.ratio, self.terms = i, tableau.rows[i].ratio, tableau.rows[i].terms
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
    align: Literal["time", "index"] = "time", first_step: FirstStep | None = None, equation: Equation = 10,
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
        How the teacher's noise levels are placed; time: it meets the solver's own (eq. 14), index: as in the released
        EDM code, see :func:`dode.schedules.refine`.
    first_step
        What the first step is corrected by; None: the noise, if the network predicts noise (:func:`directions`).
    equation
        10: one number a row; 9: one for each earlier output, the weights still summing to one; 8: any combination of
        the outputs (:func:`families`).
    basis
        Which estimates are corrected; prediction: those of the kind that the network predicts, own: those of the
        tableau, as D-DPM-Solver++ has it, whose estimates are clean images whatever the network predicts.

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
    guide = make_teacher(tableau, teacher, scale, align)
    targets = target_states(tableau, guide, align)
    if isinstance(teacher, Recording) and not teacher.states.keys() >= set(targets):
        raise ValueError("the teacher was recorded for a student of other levels; record it for this one")
    directions = families(tableau, equation, first_step)
    reach = torch.stack([direction.abs().sum(0) for direction in directions])
    support = tableau.with_full(tableau.full.abs() + reach).rows
    fits: list[_RowFit] = []

    with tempfile.TemporaryDirectory(prefix="dode-") as folder:
        spool, images, pixels, shape = Spool(Path(folder)), 0, 0, tuple[int, ...]()
        parts = list[AnyDenoiser]()
        for batch in noise.split(batch_size or len(noise)) if isinstance(noise, Tensor) else noise:
            check_model(tableau.metadata, getattr(denoiser, "name", None), tuple(batch.shape[1:]))
            spool.append((initial_state(tableau.rows[0], batch), initial_state(guide.rows[0], batch)))
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
            fit.add(s, t.x)
            if not fit.finite():
                i, level = fit.index, float(guide.sigmas[t.row])
                student = f"in row {i} at sigma = {float(tableau.sigmas[i]):g}"
                who = student if not torch.isfinite(s.outputs[i]).all() else f"to the teacher, above sigma = {level:g}"
                raise FloatingPointError(f"the denoiser gave NaN or inf {who}")
            return s, t

        for i in range(tableau.nfe):
            fit = _RowFit(tableau, directions[i], support[i].keep, i)
            spool.update(partial(evaluate_both, fit))
            spool.update(fit.move)
            fits.append(fit)
        bar.close()

    lambdas = [fit.values.tolist() for fit in fits]
    plain, fitted = zip(*(fit.rmse(pixels) for fit in fits), strict=True)
    student = corrected(tableau, lambdas, first_step, equation)
    return student.with_full(
        student.full, lambdas=[sum(row, 0.0) for row in lambdas] if equation == 10 else lambdas, equation=equation,
        fit_rmse=list(fitted), plain_rmse=list(plain), shape=list(shape), images=images,
        teacher=guide.metadata.get("solver", "tableau"), teacher_nfe=guide.nfe, scale=scale, align=align,
        first_step=first_step or default_first_step(tableau), grid=tableau.levels.tolist(), versions=VERSIONS,
        network_evaluations=images * (tableau.nfe + targets[-1]),
    )  # fmt: skip
