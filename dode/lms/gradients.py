r"""Gradients of an error of the last image, with respect to every number of a table.

One backward pass through the walk gives the gradient with respect to levels, levels told and weights; what moves them
(a :class:`~dode.lms.space.Space`, a handcrafted formula on a moving grid) is a small function without a network in it,
whose Jacobian differences give to nine digits.  So any family of tables can be descended in, without writing its
formula a second time for autograd.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dode.denoisers import Denoiser, expand
from dode.lms.space import Space
from dode.tableau import Basis, Tableau

NUDGE = 1e-5  # of a number, for differences of a table in float64


def evaluate(denoiser: Denoiser, basis: Basis, x: Tensor, sigma: Tensor, sigma_in: Tensor) -> Tensor:
    """The output ``d`` of a row whose levels are tensors, 0-d or ``(B,)``, and may carry gradients."""
    estimate = denoiser(x, sigma_in)
    return estimate if basis == "data" else (x - estimate) / expand(sigma, x)


def move(basis: Basis, x: Tensor, terms: list[tuple[Tensor, Tensor]], sigma: Tensor, following: Tensor) -> Tensor:
    """The state at level ``following``: ``terms`` are (weight, output), each weight 0-d or ``(B,)``."""
    total = expand(following / sigma, x) * x if basis == "data" else x
    for weight, output in terms:
        total = total + expand(weight, x) * output
    return total


def last_image(
    denoiser: Denoiser, basis: Basis, sigmas: Tensor, sigmas_in: Tensor, full: Tensor, used: Tensor, noise: Tensor
) -> Tensor:
    """:func:`dode.sample` on numbers that may carry gradients; ``used`` ``(N, N + 1)`` says which weights count."""
    x, outputs = sigmas[0].to(noise) * noise, {-1: noise if basis == "noise" else torch.zeros_like(noise)}
    for i in range(len(full)):
        outputs[i] = evaluate(denoiser, basis, x, sigmas[i], sigmas_in[i])
        terms = [(full[i, j + 1], outputs[j]) for j in range(-1, i + 1) if used[i, j + 1]]
        x = move(basis, x, terms, sigmas[i], sigmas[i + 1])
    return x


def _entries(table: Tableau) -> Tensor:
    return torch.cat([table.sigmas, table.sigmas_in, table.full.flatten()])


def jacobian(space: Space, vector: Tensor) -> Tensor:
    """``(P, T)``: how each of the ``P`` numbers moves the ``T`` entries (levels, levels told, weights) of the table."""
    nudges = NUDGE * torch.eye(len(vector), dtype=torch.float64)
    ahead, behind = ([_entries(space.table(vector + sign * nudge)) for nudge in nudges] for sign in (1, -1))
    return (torch.stack(ahead) - torch.stack(behind)) / (2 * NUDGE)


def gradient(
    denoiser: Denoiser, space: Space, vector: Tensor, noise: Tensor, loss: Callable[[Tensor], Tensor]
) -> tuple[float, Tensor]:
    """``loss(images)`` of the table of ``vector``, and its gradient ``(P,)`` float64.

    ``noise`` that requires a gradient gets its own, in ``noise.grad``.
    """
    table, slopes = space.table(vector), jacobian(space, vector)
    size = table.full.numel()
    used = (table.full != 0) | slopes[:, -size:].any(0).reshape(table.full.shape)
    leaves = [t.clone().requires_grad_() for t in (table.sigmas, table.sigmas_in, table.full)]
    value = loss(last_image(denoiser, table.basis, leaves[0], leaves[1], leaves[2], used, noise))
    value.backward()
    entries = torch.cat([(torch.zeros_like(t) if t.grad is None else t.grad).flatten() for t in leaves])
    return float(value.detach()), slopes @ entries
