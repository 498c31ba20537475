r"""D-ODE solvers: distil a many-step teacher into one scalar a step (Kim, Tang, Yu, CVPR 2024).

The paper replaces the solver's output ``d_t`` by ``O_t = d_t + lambda_t (d_t - d_{t+1})`` (eq. 10) and
fits each ``lambda_t`` so that the student's next state meets the teacher's (eq. 14).  On a tableau
this adds ``lambda_i`` times a fixed *direction* to row ``i``, so the next state is affine in
``lambda_i`` and the fit is closed form: with ``r`` = target - plain next state and ``u`` = the state's
move along the direction, ``lambda_i = <u, r> / <u, u>`` over all pixels of all batches.
"""

from __future__ import annotations

import platform
import tempfile
from collections.abc import Callable, Container, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dode import __version__
from dode.denoisers import Denoiser
from dode.distillation.corrections import Equation, FirstStep, corrected, default_first_step, families
from dode.distillation.teachers import Align, Recording, Teacher, make_teacher, target_states
from dode.sampling import AnyDenoiser, State, advance, combine, evaluate, for_images, initial_state
from dode.tableau import Tableau, check_model
from dode.utils.environment import tqdm
from dode.utils.files import one_of

Estimates = Literal["prediction", "own"]
VERSIONS = dict(
    dode=__version__, torch=torch.__version__, safetensors=safetensors.__version__, python=platform.python_version()
)


class _Spool:
    """The runs of all batches between two rows: one batch stays in memory, more wait on disk.

    Greedy fitting needs every batch at row i before any may pass it.  Waiting on disk keeps memory
    constant and evaluates each network call once, where running each batch again would not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.memory: tuple[State, State] | None = None

    def _file(self, k: int) -> Path:
        return self.folder / f"{k}.safetensors"

    def _write(self, k: int, pair: tuple[State, State]) -> None:
        tensors = {f"{who}.x": s.x.contiguous() for who, s in zip("st", pair, strict=True)}
        for who, s in zip("st", pair, strict=True):
            tensors |= {f"{who}.{j}": d.clone().contiguous() for j, d in s.outputs.items()}
        save_file(tensors, self._file(k), {"s": str(pair[0].row), "t": str(pair[1].row)})

    def _read(self, k: int, rows: tuple[int, int], device: torch.device) -> tuple[State, State]:
        tensors = load_file(self._file(k), device=str(device))
        pick = lambda who: {int(n[2:]): v for n, v in tensors.items() if n[0] == who and n[2:] != "x"}  # noqa: E731
        return State(tensors["s.x"], pick("s"), rows[0]), State(tensors["t.x"], pick("t"), rows[1])

    def append(self, pair: tuple[State, State]) -> None:
        if self.count == 0:
            self.memory = pair
        else:
            if self.memory is not None:
                self._write(0, self.memory)
                self.memory = None
            self._write(self.count, pair)
        self.rows, self.device = (pair[0].row, pair[1].row), pair[0].x.device
        self.count += 1

    def update(self, change: Callable[[int, State, State], tuple[State, State]]) -> None:
        """Replace every batch's pair of states by ``change(batch, student, teacher)``."""
        for k in range(self.count):
            pair = change(k, *(self.memory or self._read(k, self.rows, self.device)))
            if self.memory is None:
                self._write(k, pair)
            else:
                self.memory = pair
        self.rows = (pair[0].row, pair[1].row)


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


@torch.no_grad()
def d_ode(
    denoiser: AnyDenoiser,
    tableau: Tableau,
    noise: Tensor | Iterable[Tensor],
    *,
    teacher: Teacher = "ddim",
    scale: int = 10,
    align: Align = "time",
    first_step: FirstStep | None = None,
    equation: Equation = 10,
    basis: Estimates = "prediction",
    batch_size: int | None = None,
    seeds: Iterable[int] | None = None,
    progress: bool = False,
) -> Tableau:
    """Distil ``tableau`` into its D- version for ``denoiser`` (eq. 14, with eq. 10, 9 or 8).

    Parameters
    ----------
    tableau
        The solver to correct.
    noise
        Unit-variance noise ``(B, ...)`` (the paper: B = 100), or an iterable of such batches; memory
        does not grow with their number.  float64 noise makes the states float64.
    teacher
        "ddim" (the paper), a function such as :func:`dode.solvers.ipndm`, a finished tableau, or its run
        on the same noise (:func:`dode.distillation.record`), shared by the fits of several solvers.
    scale
        The paper's C: teacher steps for each student step.
    align
        "time": targets at the student's own levels (eq. 14).  "index": as in the released EDM code; see
        :func:`dode.schedules.refine`.
    first_step
        See :func:`dode.distillation.directions`.
    equation
        10 (the paper's solver): one lambda a row.  9: one for each earlier output, the weights still
        summing to one.  8: any combination of the outputs; see :func:`dode.distillation.families`.
    basis
        Which estimates are corrected.  "prediction": those of the kind that the network predicts, so that
        D-DDIM corrects noise estimates of a noise-predicting network.  "own": those of the tableau, as
        D-DPM-Solver++ has it, whose estimates are clean images whatever the network predicts.
    batch_size
        Split a noise tensor into batches of this size.
    seeds
        Of ``noise``, to be kept in the metadata.

    Returns
    -------
    Tableau
        Of the same NFE, with ``metadata["lambdas"]`` (a number a row; a list a row for equations 8 and 9),
        ``["fit_rmse"]`` and ``["plain_rmse"]`` (per row: distance to the teacher with and without lambda),
        model, shape, teacher, cost (with the teacher's run, recorded or not) and versions.

    Raises
    ------
    ValueError
        Teacher and student do not meet, or the arguments are unknown.
    FloatingPointError
        The denoiser gave a NaN or inf in a row that is named.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be one or more, got {batch_size}")
    one_of("basis", basis, Estimates)
    prediction = getattr(denoiser, "prediction", None)
    if basis == "prediction" and prediction in ("noise", "data"):
        tableau = tableau.to_basis(prediction)
    guide = make_teacher(tableau, teacher, scale, align)
    targets = target_states(tableau, guide, align)
    if isinstance(teacher, Recording) and not teacher.states.keys() >= set(targets):
        raise ValueError("the teacher was recorded for a student of other levels; record it for this one")
    directions = families(tableau, equation, first_step)
    reach = torch.stack([direction.abs().sum(0) for direction in directions])
    support = tableau.with_full(tableau.full.abs() + reach).rows
    fits: list[_RowFit] = []

    with tempfile.TemporaryDirectory(prefix="dode-") as folder:
        spool, images, pixels, shape = _Spool(Path(folder)), 0, 0, tuple[int, ...]()
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
        bar = tqdm(total=calls * spool.count, disable=not progress, unit="NFE", desc="distilling")

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
    name = tableau.metadata.get("solver", "solver")
    student = corrected(tableau, lambdas, first_step, equation)
    return student.with_full(
        student.full, solver=f"d-{name}", nfe=student.nfe, method="d-ode",
        lambdas=[sum(row, 0.0) for row in lambdas] if equation == 10 else lambdas, equation=equation,
        fit_rmse=list(fitted), plain_rmse=list(plain),
        model=getattr(denoiser, "name", None), shape=list(shape), images=images,
        seeds=None if seeds is None else list(seeds), teacher=guide.metadata.get("solver", "tableau"),
        teacher_nfe=guide.nfe, scale=scale, align=align, first_step=first_step or default_first_step(tableau),
        network_evaluations=images * (tableau.nfe + targets[-1]),
        grid=tableau.levels.tolist(), versions=VERSIONS,
    )  # fmt: skip
