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
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from dode import solvers
from dode.sampling import AnyDenoiser, State, advance, combine, evaluate, start
from dode.schedules import refine
from dode.tableau import Tableau, check_model

Align = Literal["time", "index"]
FirstStep = Literal["noise", "none"]
Teacher = Literal["ddim"] | Tableau | Callable[[Tensor], Tableau]


def default_first_step(tableau: Tableau) -> FirstStep:
    """The released convention: lean on the starting noise in the noise basis, not in the data basis."""
    return "noise" if tableau.basis == "noise" else "none"


def _versions() -> dict[str, str]:
    from dode import __version__  # not at the top: the package imports this module

    packages = dict(dode=__version__, torch=torch.__version__, safetensors=safetensors.__version__)
    return packages | {"python": platform.python_version()}


def directions(tableau: Tableau, first_step: FirstStep | None = None) -> Tensor:
    """What ``lambda_i`` multiplies: ``(N, N + 1)`` float64, start column first; rows sum to zero.

    Row ``i`` is ``c (dhat_i - dhat_{i-1})``, with ``dhat_i`` the solver's own combined output (its row
    over its row sum ``c``), as eq. 10 has it for high-order solvers.  A row that stays at its level
    (Heun's corrector) has no such sum: there ``dhat`` is the last network output, as in the released
    D-EDM, and ``c`` the row's weight on it, so that ``lambda = -1`` takes the corrector back.  (The
    released code has ``c = 1`` there: the same correction, on a scale that changes from row to row.)

    The first row leans on the starting noise (``first_step="noise"``, the default in the noise basis,
    ``d_{T+1} := x_T``) or is left alone ("none", the default in the data basis).  Corrections are kept:
    a corrector starts from the corrected predictor, where the released D-EDM starts again from the
    beginning of the step; on the tableau that needs no special case.
    """
    if first_step not in (None, "noise", "none"):
        raise ValueError(f"first_step must be 'noise' or 'none', got {first_step!r}")
    first_step = first_step or default_first_step(tableau)
    full, sums = tableau.full, tableau.row_sums
    stays = tableau.sigmas[1:] == tableau.sigmas[:-1]
    last_call = torch.zeros_like(full)
    last_call[:, 1:].fill_diagonal_(1.0)
    scale = torch.where(stays, tableau.weights.diagonal(), sums)[:, None]
    staged = stays.any()  # single-step schemes compare raw outputs, multistep ones their combinations
    combined = last_call if staged else full / scale
    previous = torch.zeros_like(full)
    previous[0, 0] = 1.0
    previous[1:] = combined[:-1]
    result = scale * (combined - previous)
    if first_step == "none":
        result[0] = 0.0
    return result


def corrected(tableau: Tableau, lambdas: Tensor | Sequence[float], first_step: FirstStep | None = None) -> Tableau:
    """The D- version of ``tableau`` with the given ``lambdas`` ``(N,)``; zeros give it back bit for bit."""
    lambdas = torch.as_tensor(lambdas, dtype=torch.float64)
    if lambdas.shape != (tableau.nfe,):
        raise ValueError(f"{tableau.nfe} rows need {tableau.nfe} lambdas, got shape {tuple(lambdas.shape)}")
    return tableau.with_full(tableau.full + lambdas[:, None] * directions(tableau, first_step))


def make_teacher(tableau: Tableau, teacher: Teacher = "ddim", scale: int = 10, align: Align = "time") -> Tableau:
    """The teacher's tableau: DDIM (or ``teacher(sigmas)``) on :func:`dode.schedules.refine`'s grid."""
    if isinstance(teacher, Tableau):
        return teacher
    make = solvers.ddim if teacher == "ddim" else teacher
    if not callable(make):
        raise ValueError(
            f"teacher must be 'ddim', a function of sigmas (dode.solvers.ipndm) or a Tableau, got {teacher!r}"
        )
    return make(refine(tableau.levels, scale, align))


def target_states(student: Tableau, teacher: Tableau, align: Align) -> list[int]:
    """For each student row, the teacher state (0..teacher.nfe) that its next state is fitted to.

    Raises
    ------
    ValueError
        The teacher does not pass through the student's levels ("time"), or its number of levels is
        no multiple of the student's ("index").
    """
    levels, counts = torch.unique_consecutive(teacher.sigmas, return_counts=True)
    arrival = counts.cumsum(0) - 1  # the last state at each level: after any corrector
    which = torch.searchsorted(-student.levels, -student.sigmas[1:])
    if align == "index":
        scale, rest = divmod(len(levels) - 1, len(student.levels) - 1)
        if rest:
            raise ValueError(
                f"align='index' needs a teacher of a multiple of {len(student.levels) - 1} steps, got {len(levels) - 1}"
            )
        return arrival[scale * which].tolist()
    gap = (levels[None] - student.levels[:, None]).abs() / student.sigmas[0]
    nearest = gap.argmin(1)
    if (miss := gap.gather(1, nearest[:, None]).max()) > 1e-9:
        raise ValueError(
            f"align='time' needs a teacher that meets every student level; one is missed by {miss:.2g} of sigma_max"
        )
    return arrival[nearest[which]].tolist()


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

    def update(self, change: Callable[[State, State], tuple[State, State]]) -> None:
        """Replace every batch's pair of states by ``change(student, teacher)``."""
        for k in range(self.count):
            pair = change(*(self.memory or self._read(k, self.rows, self.device)))
            if self.memory is None:
                self._write(k, pair)
            else:
                self.memory = pair
        self.rows = (pair[0].row, pair[1].row)


def _batches(noise: Tensor | Iterable[Tensor], batch_size: int | None) -> Iterator[Tensor]:
    if isinstance(noise, Tensor):
        yield from noise.split(batch_size or len(noise))
    else:
        yield from noise


class _RowFit:
    """Row ``i`` of the fit: where the plain step leads, which way lambda turns it, and the sums over batches."""

    def __init__(self, tableau: Tableau, along: Tensor, keep: frozenset[int], i: int) -> None:
        self.index, self.ratio, self.terms = i, tableau.rows[i].ratio, tableau.rows[i].terms
        self.turn = [(c - 1, float(along[i, c])) for c in along[i].nonzero().flatten().tolist()]
        self.keep = keep  # outputs that a later row or its lambda still needs
        self.sums = torch.zeros(3, dtype=torch.float64)  # <u, u>, <u, r>, <r, r>

    def plain(self, s: State) -> Tensor:
        return combine(self.terms, s.outputs, self.ratio * s.x)

    def turned(self, s: State) -> Tensor:
        known = [(j, w) for j, w in self.turn if j in s.outputs]  # D_{-1} = 0 in the data basis
        return combine(known, s.outputs, torch.zeros_like(s.x))

    def add(self, s: State, target: Tensor) -> None:
        """Add one batch to the normal equation of eq. (14)."""
        u, r = self.turned(s).double().flatten(), (target - self.plain(s)).double().flatten()
        self.sums += torch.stack([u @ u, u @ r, r @ r]).cpu()

    @property
    def value(self) -> float:
        uu, ur, _ = self.sums.tolist()
        return ur / uu if uu > 0 else 0.0

    def move(self, s: State, t: State) -> tuple[State, State]:
        x = self.plain(s).add(self.turned(s), alpha=self.value)
        return State(x, {j: d for j, d in s.outputs.items() if j in self.keep}, self.index + 1), t

    def rmse(self, pixels: int) -> tuple[float, float]:
        """Distance to the target without and with lambda."""
        _, ur, rr = self.sums.tolist()
        return (rr / pixels) ** 0.5, (max(rr - self.value * ur, 0.0) / pixels) ** 0.5


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
    batch_size: int | None = None,
    seeds: Iterable[int] | None = None,
    progress: bool = False,
) -> Tableau:
    """Distil ``tableau`` into its D- version for ``denoiser`` (eqs. 10 and 14).

    Parameters
    ----------
    tableau
        The solver to correct.  It is used in the basis of the denoiser's prediction: D-DDIM corrects
        noise estimates of a noise-predicting network, clean-image estimates of a data-predicting one.
    noise
        Unit-variance noise ``(B, ...)`` (the paper: B = 100), or an iterable of such batches; memory
        does not grow with their number.  float64 noise makes the states float64.
    teacher
        "ddim" (the paper), a function such as :func:`dode.solvers.ipndm`, or a finished tableau.
    scale
        The paper's C: teacher steps for each student step.
    align
        "time": targets at the student's own levels (eq. 14).  "index": as in the released EDM code; see
        :func:`dode.schedules.refine`.
    first_step
        See :func:`directions`.
    batch_size
        Split a noise tensor into batches of this size.
    seeds
        Of ``noise``, to be kept in the metadata.

    Returns
    -------
    Tableau
        Of the same NFE, with ``metadata["lambdas"]``, ``["fit_rmse"]`` and ``["plain_rmse"]`` (per row:
        distance to the teacher with and without lambda), model, shape, teacher, cost and versions.

    Raises
    ------
    ValueError
        Teacher and student do not meet, or the arguments are unknown.
    FloatingPointError
        The denoiser gave a NaN or inf in a row that is named.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be one or more, got {batch_size}")
    prediction = getattr(denoiser, "prediction", None)
    if prediction in ("noise", "data"):
        tableau = tableau.to_basis(prediction)
    guide = make_teacher(tableau, teacher, scale, align)
    targets = target_states(tableau, guide, align)
    along = directions(tableau, first_step)
    support = tableau.with_full(tableau.full.abs() + along.abs()).rows
    fits: list[_RowFit] = []

    with tempfile.TemporaryDirectory(prefix="dode-") as folder:
        spool, images, pixels, shape = _Spool(Path(folder)), 0, 0, tuple[int, ...]()
        for batch in _batches(noise, batch_size):
            check_model(tableau.metadata, getattr(denoiser, "name", None), tuple(batch.shape[1:]))
            spool.append((start(tableau, batch), start(guide, batch)))
            images, pixels, shape = images + len(batch), pixels + batch.numel(), tuple(batch.shape[1:])
        if images == 0:
            raise ValueError("no noise given; dode.initial_noise(denoiser.shape, range(100)) makes the paper's batch")

        bar = tqdm(total=(tableau.nfe + targets[-1]) * spool.count, disable=not progress, unit="NFE", desc="distilling")

        def evaluate_both(fit: _RowFit, s: State, t: State) -> tuple[State, State]:
            evaluate(denoiser, tableau, s)
            bar.update()
            while t.row < targets[fit.index]:
                t = advance(denoiser, guide, t)
                bar.update()
            fit.add(s, t.x)
            if not torch.isfinite(fit.sums).all():
                i, level = fit.index, float(guide.sigmas[t.row])
                student = f"in row {i} at sigma = {float(tableau.sigmas[i]):g}"
                who = student if not torch.isfinite(s.outputs[i]).all() else f"to the teacher, above sigma = {level:g}"
                raise FloatingPointError(f"the denoiser gave NaN or inf {who}")
            return s, t

        for i in range(tableau.nfe):
            fit = _RowFit(tableau, along, support[i].keep, i)
            spool.update(partial(evaluate_both, fit))
            spool.update(fit.move)
            fits.append(fit)
        bar.close()

    lambdas = [fit.value for fit in fits]
    plain, fitted = zip(*(fit.rmse(pixels) for fit in fits), strict=True)
    name = tableau.metadata.get("solver", "solver")
    student = corrected(tableau, lambdas, first_step)
    return student.with_full(
        student.full, solver=f"d-{name}", nfe=student.nfe, method="d-ode",
        lambdas=lambdas, fit_rmse=list(fitted), plain_rmse=list(plain),
        model=getattr(denoiser, "name", None), shape=list(shape), images=images,
        seeds=None if seeds is None else list(seeds), teacher=guide.metadata.get("solver", "tableau"),
        teacher_nfe=guide.nfe, scale=scale, align=align, first_step=first_step or default_first_step(tableau),
        network_evaluations=images * (tableau.nfe + targets[-1]),
        grid=tableau.levels.tolist(), versions=_versions(),
    )  # fmt: skip
