"""The one loop.  Every solver, handcrafted or learned, runs through :func:`advance`.

No ``no_grad`` here: the sampler is differentiable, and who wants no graph says so
(:func:`dode.load` freezes its networks, so by default none is built).  The state keeps the dtype
of the noise it is given, float32 or float64, whatever the network computes in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from dode.tableau import Tableau, check_model

AnyDenoiser = Callable[[Tensor, Tensor], Tensor]


@dataclass
class State:
    """Where a run is: before row ``row``, at ``x``, with the outputs that later rows still need.

    ``outputs[j]`` is ``d_j``; ``outputs[-1]`` the starting noise (noise basis).
    """

    x: Tensor
    outputs: dict[int, Tensor] = field(default_factory=dict)
    row: int = 0


def initial_noise(
    shape: Iterable[int],
    seeds: Iterable[int],
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Standard normal ``(len(seeds), *shape)``; image k depends on ``seeds[k]`` alone.

    Drawn in float32 on the CPU by one generator an image, so that neither batch size, order, dtype
    nor device changes it.
    """
    shape, seeds = tuple(shape), list(seeds)
    if not seeds:
        raise ValueError("no seeds given; pass at least one, e.g. range(16)")
    draw = lambda seed: torch.randn(shape, generator=torch.Generator().manual_seed(int(seed)))  # noqa: E731
    return torch.stack([draw(seed) for seed in seeds]).to(device=device, dtype=dtype)


def start(tableau: Tableau, noise: Tensor) -> State:
    """The state before the first row: ``sigmas[0]`` times unit noise."""
    return State(float(tableau.sigmas[0]) * noise, {-1: noise} if tableau.basis == "noise" else {})


def evaluate(denoiser: AnyDenoiser, tableau: Tableau, state: State) -> Tensor:
    """The output ``d_i`` of the state's row: one network evaluation; also kept in the state."""
    i = state.row
    output = denoiser(state.x, tableau.sigmas_in[i])
    if tableau.basis == "noise":
        output = (state.x - output) / float(tableau.sigmas[i])
    state.outputs[i] = output
    return output


def combine(terms: Iterable[tuple[int, float]], outputs: dict[int, Tensor], x: Tensor) -> Tensor:
    """``x + sum_j w_j d_j``."""
    for j, weight in terms:
        x = x.add(outputs[j], alpha=weight)
    return x


def move(tableau: Tableau, state: State) -> State:
    """Apply the state's row to the outputs, and forget what no later row needs."""
    row = tableau.rows[state.row]
    x = combine(row.terms, state.outputs, state.x if row.ratio == 1 else row.ratio * state.x)
    return State(x, {j: d for j, d in state.outputs.items() if j in row.keep}, state.row + 1)


def advance(denoiser: AnyDenoiser, tableau: Tableau, state: State) -> State:
    """One row: evaluate, then move."""
    evaluate(denoiser, tableau, state)
    return move(tableau, state)


@dataclass(frozen=True)
class Step:
    """What a callback sees after each row.

    ``index`` of the row, ``sigma`` before it, ``x`` and ``output`` there, ``batch`` the slice of
    images of the whole run.
    """

    index: int
    sigma: float
    x: Tensor
    output: Tensor
    batch: slice


def _walk(denoiser: AnyDenoiser, tableau: Tableau, noise: Tensor) -> Iterator[tuple[State, Tensor | None]]:
    """States 0..N, each with the output that led to it."""
    state = start(tableau, noise)
    yield state, None
    for _ in range(tableau.nfe):
        output = evaluate(denoiser, tableau, state)
        state = move(tableau, state)
        yield state, output


def _check(denoiser: AnyDenoiser, tableau: Tableau, noise: Tensor) -> None:
    if not noise.is_floating_point() or noise.ndim < 2:
        raise ValueError("noise must be a floating-point tensor (batch, ...); dode.initial_noise makes one")
    if len(noise) == 0:
        raise ValueError("noise holds no images; pass at least one")
    check_model(tableau.metadata, getattr(denoiser, "name", None), tuple(noise.shape[1:]))


def _explain(denoiser: AnyDenoiser, tableau: Tableau, noise: Tensor) -> FloatingPointError:
    """Walk again and name the first step that was not finite.  Only a failed run pays for this."""
    for state, output in _walk(denoiser, tableau, noise):
        if output is not None and not torch.isfinite(output).all():
            i = state.row - 1
            return FloatingPointError(
                f"the denoiser gave NaN or inf in step {i} at sigma = {float(tableau.sigmas_in[i]):g}; "
                "check the checkpoint, its precision and the noise range it was trained for"
            )
    return FloatingPointError("the sample is not finite although every denoiser output is; check the tableau's weights")


def sample(
    denoiser: AnyDenoiser,
    tableau: Tableau,
    noise: Tensor,
    *,
    batch_size: int | None = None,
    callback: Callable[[Step], Any] | None = None,
    progress: bool = False,
) -> Tensor:
    """Solve the ODE from ``noise`` (unit variance, ``(B, ...)``) to ``x_0``, of its shape and dtype.

    Parameters
    ----------
    denoiser
        A :class:`dode.denoisers.Denoiser` or any callable ``D(x, sigma)``.
    batch_size
        Images at a time; all by default.  The result does not depend on it beyond the rounding of
        the network itself.
    callback
        Called after every row with a :class:`Step`.
    progress
        Show a tqdm bar over network evaluations.

    Raises
    ------
    ValueError
        The tableau was distilled for another model or shape, or ``noise`` is no such tensor.
    FloatingPointError
        The denoiser gave a NaN or inf; the message names step and sigma.
    """
    _check(denoiser, tableau, noise)
    size = len(noise) if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"batch_size must be one or more, got {size}")
    done = []
    with tqdm(total=-(-len(noise) // size) * tableau.nfe, disable=not progress, unit="NFE") as bar:
        for first in range(0, len(noise), size):
            batch = slice(first, min(first + size, len(noise)))
            before = None
            for state, output in _walk(denoiser, tableau, noise[batch]):
                if output is not None:
                    bar.update()
                    if callback and before is not None:
                        i = state.row - 1
                        callback(Step(i, float(tableau.sigmas[i]), before, output, batch))
                before = state.x
            if not torch.isfinite(state.x).all():
                raise _explain(denoiser, tableau, noise[batch])
            done.append(state.x)
    return torch.cat(done)


def trajectory(denoiser: AnyDenoiser, tableau: Tableau, noise: Tensor) -> Tensor:
    """All states ``(N + 1, B, ...)`` of a run, at ``tableau.sigmas``; errors as in :func:`sample`."""
    _check(denoiser, tableau, noise)
    states = torch.stack([state.x for state, _ in _walk(denoiser, tableau, noise)])
    if not torch.isfinite(states[-1]).all():
        raise _explain(denoiser, tableau, noise)
    return states
