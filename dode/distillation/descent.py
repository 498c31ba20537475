r"""Tables fitted to the last image by gradient descent through the frozen network.

One loop serves the neighbours of LMS distillation, which differ in what may move:

- **LD3**: the grid of a handcrafted solver and the levels given to the network;
- **S4S**: the weights on a fixed grid; **S4S-Alt**: weights and grid, in turn.

Both compare features of the student's image with those of the teacher's from the same noise, and both *relax*: the
student may start from another noise nearby, because a few steps cannot follow every path of the teacher's exactly.

One backward pass through the walk gives the gradient with respect to levels, input levels and weights; what moves them
(a :class:`~dode.distillation.space.Space`, a handcrafted formula on a moving grid) is a small function without a
network in it, whose Jacobian differences give to nine digits.  So any family of tables can be descended in, without
writing its formula a second time for autograd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dode.denoisers import Denoiser
from dode.distillation.losses import bound, evaluations
from dode.distillation.problem import Problem
from dode.distillation.space import Kind, Space
from dode.sampling import walk
from dode.tableau import Basis, Tableau, TableauRow
from dode.utils.environment import tqdm
from dode.utils.optimisation import BACKWARD

NUDGE = 1e-5  # of a number, for differences of a table in float64


def last_image(
    denoiser: Denoiser, basis: Basis, sigmas: Tensor, sigmas_in: Tensor, full: Tensor, used: Tensor, noise: Tensor
) -> Tensor:
    """:func:`dode.sample` on numbers that may carry gradients; ``used`` ``(N, N + 1)`` says which weights count."""
    rows = list[TableauRow]()
    for i, (sigma, sigma_in, to) in enumerate(zip(sigmas, sigmas_in, sigmas[1:], strict=False)):
        terms = [(j, full[i, j + 1]) for j in range(-(basis == "noise"), i + 1) if used[i, j + 1]]
        ratio = to / sigma if basis == "data" else 1.0
        rows.append(TableauRow(basis, ratio, terms, range(-1, len(full)), sigma, sigma_in, to))
    *_, (end, _) = walk(denoiser, rows, noise)
    return end.x


def _entries(table: Tableau) -> Tensor:
    return torch.cat([table.sigmas, table.sigmas_in, table.full.flatten()])


def jacobian(space: Space, vector: Tensor) -> Tensor:
    """``(P, T)``: how each of the ``P`` numbers moves the ``T`` entries (levels, input levels, weights)."""
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


class _Relaxed:
    """Each image's own shift of the starting noise, within a ball of ``radius`` (of a unit-variance noise's norm)."""

    def __init__(self, noise: Tensor, radius: float) -> None:
        self.noise, self.shift = noise, torch.zeros_like(noise)
        self.radius = radius * math.sqrt(noise[0].numel())

    def start(self, pick: Tensor) -> Tensor:
        return (self.noise[pick] + self.shift[pick]).requires_grad_(self.radius > 0)

    def follow(self, pick: Tensor, slope: Tensor | None) -> None:
        """A quarter of the radius downhill, then back into the ball."""
        if slope is None:
            return
        norm = lambda t: t.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (t.ndim - 1))  # noqa: E731
        moved = self.shift[pick] - self.radius / 4 * slope / norm(slope)
        self.shift[pick] = moved * (self.radius / norm(moved)).clamp(max=1)


def descend(
    problem: Problem, space: Space, *, phases: Sequence[Sequence[Kind]] = (("weight", "level", "level_in"),),
    radius: float = 0.0, rate: float = 0.02, epochs: int = 10, minibatch: int = 20, held_back: float = 0.25,
) -> Tableau:  # fmt: skip
    """Adam on the numbers of ``space``, starting at the problem's table; the epoch that is best on images held back.

    ``phases`` are the kinds of numbers that move, a phase an epoch, again and again; ``radius``, ``epochs``, ``rate``
    are explained in :func:`dode.distillation.ld3`.  The result has ``metadata["cost"]``: on the held-back images, the
    start's, then after each epoch; a backward pass is counted as two calls.  ValueError for fewer than four images.
    """
    denoiser, tableau = problem.denoiser, problem.table
    before = denoiser.evaluations
    examples = problem.examples(held_back)
    relaxed, generator = _Relaxed(examples.noise, radius), torch.Generator().manual_seed(0)
    fitted = examples.fitted(denoiser)
    vector = space.pack(tableau)
    optimizer = torch.optim.Adam([vector], lr=rate, betas=(0.9, 0.99))
    history, best, done = [examples.check(denoiser, tableau)], vector.clone(), 0
    steps = epochs * math.ceil(len(examples.noise) / minibatch)
    bar = tqdm(total=steps, desc=problem.method, disable=not problem.progress)
    for epoch in range(epochs):
        moving = torch.tensor([kind in phases[epoch % len(phases)] for kind in space.kinds])
        for pick in torch.randperm(len(examples.noise), generator=generator).split(minibatch):
            start, goal, model = relaxed.start(pick), examples.goal[pick], fitted.of(pick)
            seen = bound(examples.residual, model)
            error = lambda x, seen=seen, goal=goal: (seen(x) - goal).square().sum(1).mean()  # noqa: E731
            _, slope = gradient(model, space, vector, start, error)
            relaxed.follow(pick, start.grad)
            slope = torch.where(moving, slope, 0.0)
            vector.grad = slope / max(1.0, float(slope.norm()))
            optimizer.param_groups[0]["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * done / steps))
            frozen = vector.clone()
            optimizer.step()
            vector.copy_(torch.where(moving, vector, frozen))
            done += 1
            bar.update()
        history.append(examples.check(denoiser, space.table(vector)))
        if history[-1] == min(history):
            best = vector.clone()
    bar.close()

    found = space.table(best) if min(history) < history[0] else tableau
    behind = BACKWARD * (tableau.nfe + evaluations(examples.residual)) * len(examples.noise) * epochs
    spent = denoiser.evaluations - before + behind
    return found.with_full(found.full, cost=history, network_evaluations=spent, **examples.facts)
