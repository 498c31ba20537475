r"""Tables fitted to the last image by gradient descent through the frozen network.

One loop serves the neighbours of LMS distillation, which differ in what may move:

- **LD3** (Tong et al., ICLR 2025): the grid of a handcrafted solver and the levels told to the network;
- **S4S** (Frankel et al., ICML 2025): the weights on a fixed grid; **S4S-Alt**: weights and grid, in turn.

Both compare features of the student's image with those of the teacher's from the same noise, and both *relax*: the
student may start from another noise nearby, because a few steps cannot follow every path of the teacher's exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dode.denoisers import Denoiser
from dode.extras import tqdm
from dode.lms.gradients import gradient
from dode.lms.residuals import Residual, pixels
from dode.lms.space import Kind, Space
from dode.lms.targets import Examples, usual_teacher
from dode.tableau import Tableau
from dode.training import BACKWARD


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
    denoiser: Denoiser,
    tableau: Tableau,
    noise: Tensor,
    *,
    space: Space,
    method: str,
    turns: Sequence[Sequence[Kind]] = (("weight", "level", "level_in"),),
    teacher: Tableau | None = None,
    residual: Residual = pixels,
    radius: float = 0.0,
    rate: float = 0.02,
    epochs: int = 10,
    batch_size: int = 20,
    held_back: float = 0.25,
    seeds: Iterable[int] | None = None,
    progress: bool = False,
) -> Tableau:
    """Adam on the numbers of ``space``, starting at ``tableau``.

    Parameters
    ----------
    noise
        Unit-variance noise ``(B, ...)``; the part ``held_back`` chooses the epoch that is returned.
    method
        Goes into the metadata and the solver's name.
    turns
        The kinds of numbers that move, epoch by epoch in turn.
    radius
        How far a student's noise may be moved from the teacher's, of the noise's own norm; 0: not at all.
    rate
        Adam's, of the first epoch; it falls to zero as half a cosine.

    Returns
    -------
    Tableau
        With ``metadata["cost"]`` (on the held-back images: the start's, then after each epoch) and
        ``["network_evaluations"]``, a backward pass counted as two calls.

    Raises
    ------
    ValueError
        Fewer than four images.
    """
    before = denoiser.images
    examples = Examples.make(denoiser, noise, teacher or usual_teacher(denoiser), residual, held_back)
    relaxed, generator = _Relaxed(examples.noise, radius), torch.Generator().manual_seed(0)
    fitted = examples.fitted(denoiser)
    vector = space.pack(tableau)
    optimizer = torch.optim.Adam([vector], lr=rate, betas=(0.9, 0.99))
    history, best, done = [examples.check(denoiser, tableau)], vector.clone(), 0
    steps = epochs * math.ceil(len(examples.noise) / batch_size)
    bar = tqdm(total=steps, desc=method, disable=not progress)
    for epoch in range(epochs):
        moving = torch.tensor([kind in turns[epoch % len(turns)] for kind in space.kinds])
        for pick in torch.randperm(len(examples.noise), generator=generator).split(batch_size):
            start, goal = relaxed.start(pick), examples.goal[pick]
            error = lambda x, goal=goal: (residual(x) - goal).square().sum(1).mean()  # noqa: E731
            _, slope = gradient(fitted.of(pick), space, vector, start, error)
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
    walked = BACKWARD * tableau.nfe * len(examples.noise) * epochs
    found = space.table(best) if min(history) < history[0] else tableau
    return examples.label(
        found, denoiser, tableau, method, seeds, cost=history, network_evaluations=denoiser.images - before + walked
    )
