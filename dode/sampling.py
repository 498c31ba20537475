"""The one loop.  Every solver, handcrafted or learned, is walked row by row by :func:`walk`.

A row evaluates the denoiser once and moves on; its numbers are plain ones, the same for all images, or tensors, of each
image its own, through which gradients pass.  Sampling, trajectories, descent through the frozen network, DLMS's losses,
recorded teachers and Gauss-Newton's resumed walks are this generator.  Who sets a state before its row, or goes as far
as another run does (measured orders, D-ODE's pairs, DLMS's online teacher), takes the same step, :func:`advance`.
Only network distillation has formulas of its own: its targets are single steps from noised data.

No ``no_grad`` here: the sampler is differentiable, and who wants no graph says so
(:func:`dode.load` freezes its networks, so by default none is built).  The state keeps the dtype
of the noise it is given, float32 or float64, whatever the network computes in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from dode.denoisers import Denoiser, expand
from dode.denoisers.conditioning import ImageNumbers
from dode.tableau import Tableau, TableauRow, check_model
from dode.utils.environment import tqdm

AnyDenoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass
class State:
    """Where a run is: before row ``row``, at ``x``, with the outputs that later rows still need."""

    x: Tensor
    outputs: dict[int, Tensor] = field(default_factory=dict)  # ``d_j`` by ``j``; -1: the starting noise (noise basis)
    row: int = 0
    level: float | Tensor | None = None  # of ``x``; ``(B,)`` where images differ


class Walker(Protocol):
    """A solver whose rows depend on the sample (:mod:`dode.distillation`)."""

    metadata: dict[str, Any]

    @property
    def nfe(self) -> int:
        """Network evaluations."""

    def walk(self, denoiser: Any, noise: Tensor) -> Iterator[tuple[State, Any]]:
        """:func:`walk` over the rows of a run from ``noise``."""


def initial_noise(
    shape: Iterable[int], seeds: Iterable[int], *, dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Tensor:  # fmt: skip
    """Standard normal ``(len(seeds), *shape)``; image k depends on ``seeds[k]`` alone.

    Drawn in float32 on the CPU by one generator an image, so that neither batch size, order, dtype
    nor device changes it.
    """
    shape, seeds = tuple(shape), list(seeds)
    if not seeds:
        raise ValueError("no seeds given; pass at least one, e.g. range(16)")
    draw = lambda seed: torch.randn(shape, generator=torch.Generator().manual_seed(int(seed)))  # noqa: E731
    return torch.stack([draw(seed) for seed in seeds]).to(device=device, dtype=dtype)


def for_images(denoiser: AnyDenoiser, images: ImageNumbers) -> AnyDenoiser:
    """The denoiser for a batch of these images of a run (:meth:`dode.denoisers.Denoiser.of`)."""
    return denoiser.of(images) if isinstance(denoiser, Denoiser) else denoiser


def initial_state(row: TableauRow, noise: Tensor) -> State:
    """The state before the first ``row``: its level times unit noise."""
    return State(expand(row.sigma, noise) * noise, {-1: noise} if row.basis == "noise" else {}, 0, row.sigma)


def blend(a: float, x: Tensor, b: float, y: Tensor) -> Tensor:
    """``a x + b y``, a new tensor of ``x``'s shape, in one pass over memory where a factor is 0 or 1, else in two."""
    if a == 0:
        return b * y
    if a == 1:
        return x.add(y, alpha=b)
    if b == 1:
        return y.add(x, alpha=a)
    if abs(a) < 1e-30 * abs(b):  # a quotient that float32 does not hold: a level near 0 that a search has tried
        return (b * y).add(x, alpha=a)
    return x.add(y, alpha=b / a).mul_(a)  # for b = -a the difference comes first: near x = y nothing is lost


def evaluate(denoiser: AnyDenoiser, row: TableauRow, state: State) -> Tensor:
    """The output of ``row``: one network evaluation; also kept in the state.

    Formed from what the network said, in the row's basis directly: where that is what the network
    predicts, the output is the network's own tensor.
    """
    x, noise = state.x, row.basis == "noise"
    if isinstance(row.sigma, Tensor):
        estimate = denoiser(x, row.sigma_in)
        output = (x - estimate) / expand(row.sigma, x) if noise else estimate
    else:
        if isinstance(denoiser, Denoiser):
            skip, out, raw = denoiser.affine(x, row.sigma_in)
        else:
            skip, out, raw = 0.0, 1.0, denoiser(x, torch.tensor(row.sigma_in, dtype=torch.float64))
        if raw.dtype != x.dtype or raw.shape != x.shape:
            raw = raw.to(x.dtype).expand_as(x)
        if noise:  # (x - D) / sigma
            skip, out = (1 - skip) / row.sigma, -out / row.sigma
        output = raw if (skip, out) == (0, 1) else blend(skip, x, out, raw)
    state.outputs[state.row] = output
    return output


def combine(terms: Iterable[tuple[int, float]], outputs: dict[int, Tensor], x: Tensor, ratio: float = 1.0) -> Tensor:
    """``ratio x + sum_j w_j d_j``, one pass over memory a term (and one for a ratio); ``x`` itself if there is no term.

    The first term makes a new tensor, which nobody else holds: the others are added to it in place.  The
    newest output comes first, so that under ``torch.func.vmap`` this tensor has any batch dimension that
    a later one has.
    """
    terms = iter(terms)
    first = next(terms, None)
    if first is None:
        return x if ratio == 1 else ratio * x
    total = blend(ratio, x, first[1], outputs[first[0]])
    for j, weight in terms:
        total.add_(outputs[j], alpha=weight)
    return total


def next_x(row: TableauRow, state: State) -> Tensor:
    """Where ``row`` leads from a state that has its output."""
    if not isinstance(row.sigma, Tensor):
        return combine(row.terms, state.outputs, state.x, row.ratio)
    x = state.x if row.basis == "noise" else expand(row.ratio, state.x) * state.x
    for j, weight in row.terms:
        x = x + expand(weight, x) * state.outputs[j]
    return x


def move(row: TableauRow, state: State) -> State:
    """Apply ``row`` to the state and its outputs, and forget those that no later row needs."""
    state.x = next_x(row, state)
    state.outputs = {j: d for j, d in state.outputs.items() if j in row.keep}
    state.row, state.level = state.row + 1, row.following
    return state


def advance(denoiser: AnyDenoiser, row: TableauRow, state: State) -> State:
    """One row: evaluate, then move."""
    evaluate(denoiser, row, state)
    return move(row, state)


def walk(
    denoiser: AnyDenoiser, rows: Iterable[Any], noise: Tensor, start: State | None = None
) -> Iterator[tuple[State, Any]]:
    """The state at each of ``rows``, with the row, once it is evaluated; at last the state after them, with None.

    It is one state, which moves on: what is changed in it before the next row counts.  ``start``, if given, stands
    before the first of ``rows``; an output that it has for that row is not evaluated again.  A solver that decides
    where to go when it has seen the output gives, in place of rows, levels with a ``complete()``.
    """
    state = start
    for row in rows:
        state = initial_state(row, noise) if state is None else state
        if state.row not in state.outputs:
            evaluate(denoiser, row, state)
        yield state, row
        move(row if isinstance(row, TableauRow) else row.complete(), state)
    assert state is not None, "no rows"
    yield state, None


@dataclass(frozen=True)
class Step:
    """What a callback sees after each row."""

    index: int  # of the row
    sigma: float  # before it; its mean where images differ
    x: Tensor  # there
    output: Tensor
    batch: slice  # of images of the whole run


def _walk(denoiser: AnyDenoiser, tableau: Tableau | Walker, noise: Tensor) -> Iterator[tuple[State, Any]]:
    if isinstance(tableau, Tableau):
        return walk(denoiser, tableau.rows, noise)
    return tableau.walk(denoiser, noise)


def _check(denoiser: AnyDenoiser, tableau: Tableau | Walker, noise: Tensor) -> None:
    if not noise.is_floating_point() or noise.ndim < 2:
        raise ValueError("noise must be a floating-point tensor (batch, ...); dode.initial_noise makes one")
    if len(noise) == 0:
        raise ValueError("noise holds no images; pass at least one")
    check_model(tableau.metadata, getattr(denoiser, "name", None), tuple(noise.shape[1:]))
    if isinstance(denoiser, Denoiser):
        denoiser.conditioning.check(len(noise))


def _finite(x: Tensor) -> bool:
    """Whether every entry is; a sum tells so in one pass, and waits for the device only here, after the loop."""
    x = x.detach()
    return math.isfinite(float(x.sum())) or bool(torch.isfinite(x).all())  # large entries may overflow the sum alone


def _mean(level: float | Tensor) -> float:
    return float(level.mean()) if isinstance(level, Tensor) else level


def _explain(denoiser: AnyDenoiser, tableau: Tableau | Walker, noise: Tensor) -> FloatingPointError:
    """Walk again and name the first step that was not finite.  Only a failed run pays for this."""
    for state, row in _walk(denoiser, tableau, noise):
        if row is not None and not torch.isfinite(state.outputs[state.row]).all():
            return FloatingPointError(
                f"the denoiser gave NaN or inf in step {state.row} at sigma = {_mean(row.sigma_in):g}; "
                "check the checkpoint, its precision and the noise range it was trained for"
            )
    return FloatingPointError("the sample is not finite although every denoiser output is; check the tableau's weights")


def sample(
    denoiser: AnyDenoiser, tableau: Tableau | Walker, noise: Tensor, *, batch_size: int | None = None,
    callback: Callable[[Step], Any] | None = None, progress: bool = False,
) -> Tensor:  # fmt: skip
    """Solve the ODE from ``noise`` (unit variance, ``(B, ...)``) to ``x_0``, of its shape and dtype.

    Parameters
    ----------
    denoiser
        A :class:`dode.denoisers.Denoiser` or any callable ``D(x, sigma)``.
    tableau
        Or a solver that designs its rows for each image (:mod:`dode.distillation`).
    batch_size
        Images at a time; all by default.  The result does not depend on it beyond the rounding of
        the network itself.
    callback
        Called after every row with a :class:`Step`.
    progress
        Show a bar over network evaluations (where tqdm is installed).

    Raises
    ------
    ValueError
        The tableau was distilled for another model or shape, ``noise`` is no such tensor, or there are other images
        than the denoiser has conditions for.
    FloatingPointError
        The denoiser gave a NaN or inf; the message names step and sigma.
    """
    _check(denoiser, tableau, noise)
    images = noise.shape[0]
    size = images if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be one or more, got {size}")
    done = []
    calls = -(-images // size) * tableau.nfe
    with tqdm(total=calls, unit="NFE", desc="sampling") if progress else nullcontext() as bar:
        for first in range(0, images, size):
            batch = slice(first, min(first + size, images))
            for state, row in _walk(for_images(denoiser, batch), tableau, noise[batch]):
                if row is None:
                    break
                if bar is not None:
                    bar.update()
                if callback:
                    callback(Step(state.row, _mean(row.sigma), state.x, state.outputs[state.row], batch))
            if not _finite(state.x):
                raise _explain(for_images(denoiser, batch), tableau, noise[batch])
            done.append(state.x)
    return done[0] if len(done) == 1 else torch.cat(done)


def trajectory(denoiser: AnyDenoiser, tableau: Tableau | Walker, noise: Tensor) -> Tensor:
    """All states ``(N + 1, B, ...)`` of a run, at ``tableau.sigmas``; errors as in :func:`sample`."""
    _check(denoiser, tableau, noise)
    states = torch.stack([state.x for state, _ in _walk(denoiser, tableau, noise)])
    if not _finite(states[-1]):
        raise _explain(denoiser, tableau, noise)
    return states
