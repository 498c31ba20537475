r"""What a designer is trained on: from a batch of noise to losses.

- :class:`Paths`, Algorithm 1 of DLMS: student and teacher start from the same noise.  After each of the student's rows
  the teacher, running on its own, goes to the same level, and the states are compared.  The graph never spans more than
  two rows: the state a row starts from was made from the state before with nothing but the design in the graph, and the
  level a loss is taken at is fixed.  At the last row the residuals of the images are compared: features, as published.
- :class:`StoredPaths`, the same with a teacher that runs once, of which every level is known.
- :class:`TeachersSteps`, AMED's as released: each step for itself, between states of the teacher.
- :class:`LastImages`, ours: the last image alone, by gradient through the whole run.  Its teacher runs once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from dode.denoisers import Denoiser
from dode.distillation.dense import DensePath
from dode.distillation.designer import Designed, row_of_shares
from dode.distillation.losses import bound, evaluations
from dode.distillation.teachers import Examples, batches, default_teacher, record, target_states
from dode.sampling import State, advance, next_x, sample
from dode.tableau import Tableau
from dode.utils.optimisation import Settings

ORDER = 3
POOL = 1_200  # noises of a teacher that runs once
STORED = 60  # its steps
TINY = 1e-12  # under a root, which has no slope at 0


def exponential_shares(levels: list[Tensor], following: Tensor) -> Tensor:
    """Adams-Bashforth parts ``(k, B)`` in ``ln sigma`` on clean images; ``levels`` are ``k`` of ``(B,)``, newest last.

    The parabola through the outputs, integrated exactly: the row of
    ``dode.solvers.deis(variable="log_rho", basis="data")``, for each image its own, newest output first.
    """
    newest = levels[-1]
    if len(levels) == 1 or bool((following == 0).all()):  # a step to 0 is endless in ln sigma: order 1 there
        return torch.ones_like(newest)[None]
    h = (newest / following).log()
    m = [-torch.expm1(-h)]  # int_0^h tau^j e^(tau - h) dtau, by parts
    for j in range(1, len(levels)):
        m.append(h**j - j * m[-1])
    nodes = torch.stack([(newest / level).log() for level in reversed(levels)])  # (k, B), 0 and below
    powers = torch.stack([nodes**j for j in range(len(levels))])  # (j, k, B)
    solved = torch.linalg.solve(powers.permute(2, 0, 1), torch.stack(m).T[:, :, None])[:, :, 0].T
    return solved / m[0]


class OnlineTeacher:
    """Runs from ``top`` times the noise to wherever the student goes, ``points`` steps a time, uniform in ``sigma``.

    ``points = 5``: the four extra points of each student's step that the paper has (M = 4).  Uniform in ``sigma``,
    because a student's steps are long: uniform in ``ln sigma`` the last of them, down to 0, is hardly resolved at all.
    """

    def __init__(self, denoiser: Denoiser, noise: Tensor, top: float, points: int = 5) -> None:
        self.denoiser, self.points, self.levels = denoiser, points, list[Tensor]()
        self.level = torch.full((len(noise),), top, dtype=torch.float64, device=noise.device)
        self.state = State(top * noise)

    @torch.no_grad()
    def run_to(self, following: Tensor) -> Tensor:
        """The state at levels ``(B,)``, all below those where it is; all 0, or all above."""
        for k in range(1, self.points + 1):
            self._step(torch.lerp(self.level, following, 1 / (self.points + 1 - k)))  # what is left, in equal steps
        return self.state.x

    def _step(self, following: Tensor) -> None:
        self.levels, newest = [*self.levels, self.level][-ORDER:], self.state.row
        shares = [(newest - k, part) for k, part in enumerate(exponential_shares(self.levels, following))]
        keep = range(newest + 2 - ORDER, newest + 1)
        advance(self.denoiser, row_of_shares("data", shares, keep, self.level, self.level, following), self.state)
        self.level = following


class Objective:
    """Losses of a batch; its noise is fresh for each step of the training."""

    settings: ClassVar[type[Settings]] = Settings
    ema: ClassVar[float] = 0.98  # of the designer's moving average
    each: ClassVar[bool] = False  # each loss is an update of its own, and the last designer is kept, not the best
    examples: Examples
    top: float

    def prepare(self, denoiser: Denoiser, examples: Examples) -> None:
        """Once, before the first batch; ``examples`` are held back, and have the residual."""
        self.examples, self.top = examples, denoiser.sigma_max

    def batch(self, denoiser: Denoiser, size: int, step: int, draws: torch.Generator) -> tuple[Denoiser, Tensor, Any]:
        """The denoiser for the batch of a step, its noise, and what :meth:`losses` aims at, if it is known before."""
        noise = torch.randn((size, *denoiser.shape), generator=draws).to(denoiser.device)
        return denoiser.of(size * step + torch.arange(size)), noise, None

    def held(self, denoiser: Denoiser, size: int) -> tuple[Denoiser, Tensor, Any]:
        """The same of images held back."""
        noise = self.examples.held_noise[:size]
        return denoiser.of(range(len(noise))), noise, self.examples.held_goal[:size]

    def losses(self, solver: Designed, denoiser: Denoiser, noise: Tensor, goal: Any) -> Iterable[Tensor]:
        """Scalars with gradients."""
        raise NotImplementedError

    @property
    def differentiated(self) -> int:
        """Network evaluations of an image that are differentiated beside the solver's own."""
        return evaluations(self.examples.residual)

    def facts(self, solver: Designed) -> dict[str, Any]:
        """What the metadata of the result say of the teacher."""
        return self.examples.facts

    @property
    def name(self) -> list[Any]:
        """What distinguishes it, for the state of a training."""
        return [type(self).__name__]


class Paths(Objective):
    """The states after each row against an online teacher's, ``points`` steps to each of the student's.

    ``distances``: the distances themselves, not their squares, so that single images far off do not lead.
    """

    moving = False  # whether a level that a loss is taken at has a gradient

    def __init__(self, points: int = 5, distances: bool = False) -> None:
        self.points, self.distances = points, distances

    def teacher(self, denoiser: Denoiser, noise: Tensor) -> Callable[[Tensor], Tensor]:
        """From levels ``(B,)``, each below the one before, to the states there."""
        return OnlineTeacher(denoiser, noise, self.top, self.points).run_to

    def held(self, denoiser: Denoiser, size: int) -> tuple[Denoiser, Tensor, Any]:
        return (*super().held(denoiser, size)[:2], None)

    def losses(
        self, solver: Designed, denoiser: Denoiser, noise: Tensor, goal: Callable[[Tensor], Tensor] | None = None
    ) -> list[Tensor]:
        """Mean squared distances of states over ``sqrt(1 + sigma^2)``, so that no row drowns the others.

        That of the last row is of its residual.
        """
        found, teacher = list[Tensor](), goal or self.teacher(denoiser, noise)
        residual = bound(self.examples.residual, denoiser)
        for state, row in solver.walk(denoiser, noise):
            if row is None:
                break
            level = row.plan.following
            level = level if self.moving else level.detach()
            if solver.matched(state.row):
                ahead, aim = next_x(row.complete(level), state), teacher(level)
                if state.row + 1 == solver.nfe:
                    squares = (residual(ahead) - residual(aim)).square().sum(1)
                else:
                    squares = (ahead - aim).square().flatten(1).mean(1) / (1 + level**2)
                found.append(((squares + TINY).sqrt() if self.distances else squares).mean())
            # what leads to the next row is this row's design alone
            state.x, row.sigma = state.x.detach(), row.sigma.detach()
            state.outputs = {j: d.detach() for j, d in state.outputs.items()}
        return found

    def facts(self, solver: Designed) -> dict[str, Any]:
        return dict(teacher="deis, online", teacher_nfe=self.points * sum(map(solver.matched, range(solver.nfe))))

    @property
    def name(self) -> list[Any]:
        return [self.points] + ["distances"] * self.distances


class Pooled(Objective):
    """Of ``pool`` noises, drawn again and again; the teacher runs once for each."""

    def __init__(self, pool: int = POOL, seed: int = 0) -> None:
        self.pool, self.seed = pool, seed

    def prepare(self, denoiser: Denoiser, examples: Examples) -> None:
        super().prepare(denoiser, examples)
        draws = torch.Generator().manual_seed(self.seed + 1)
        self.noise = torch.randn((self.pool, *denoiser.shape), generator=draws).to(denoiser.device)

    def batch(self, denoiser: Denoiser, size: int, step: int, draws: torch.Generator) -> tuple[Denoiser, Tensor, Any]:
        return self.chosen(denoiser, torch.randint(self.pool, (size,), generator=draws))

    def chosen(self, denoiser: Denoiser, pick: Tensor) -> tuple[Denoiser, Tensor, Any]:
        """The batch of these noises."""
        return denoiser.of(pick), self.noise[pick], self.goals(pick)

    def goals(self, pick: Tensor) -> Any:
        """What :meth:`losses` aims at for these noises."""
        raise NotImplementedError


class StoredPaths(Pooled, Paths):
    """:class:`Paths` with a teacher that runs once for each noise: UniP-3, :data:`STORED` steps.

    ``moving``: the level of a loss is designed too, and the path's slope is known there; else a level moves for the
    next row's loss alone.
    """

    def __init__(self, pool: int = POOL, seed: int = 0, distances: bool = False, moving: bool = False) -> None:
        Pooled.__init__(self, pool, seed)
        Paths.__init__(self, distances=distances)
        self.moving = moving

    def prepare(self, denoiser: Denoiser, examples: Examples) -> None:
        super().prepare(denoiser, examples)
        self.path = DensePath.record(denoiser, default_teacher(denoiser, STORED), self.noise, examples.size)

    def goals(self, pick: Tensor) -> Callable[[Tensor], Tensor]:
        return self.path.of(pick).at

    def facts(self, solver: Designed) -> dict[str, Any]:
        return dict(teacher="deis, stored", teacher_nfe=STORED)

    @property
    def name(self) -> list[Any]:
        return [type(self).__name__, self.pool, self.seed, self.distances, self.moving]


class Steady(Settings):
    """Adam as AMED was released: at one rate, with the gradient as it is."""

    betas, clip = (0.9, 0.999), math.inf

    def rate_at(self, step: int) -> float:
        return 1.0


class TeachersSteps(Objective):
    """Of each step for itself, from state to state of ``teacher``; squares, summed over pixels."""

    settings, ema, each, differentiated = Steady, 0.0, True, 0

    def __init__(self, teacher: Tableau) -> None:
        self.teacher = teacher

    def losses(self, solver: Designed, denoiser: Denoiser, noise: Tensor, goal: Any = None) -> Iterator[Tensor]:
        stops = target_states(solver.base, self.teacher, "time")
        states, start = record(denoiser, solver.base, noise, self.teacher).states, None
        matched = filter(solver.matched, range(solver.nfe))
        for level, stop, row in zip(solver.base.sigmas[1:], stops, matched, strict=True):
            *_, (end, _) = solver.walk(denoiser, noise, start, row + 1)
            yield (end.x - states[stop]).square().flatten(1).sum(1).mean()
            start = State(states[stop], {}, row + 1, level.to(noise.device).expand(len(noise)))

    def facts(self, solver: Designed) -> dict[str, Any]:
        return dict(teacher=self.teacher.metadata["solver"], teacher_nfe=self.teacher.nfe)

    @property
    def name(self) -> list[Any]:
        return [5, self.teacher.digest]


class LastImages(Pooled):
    """The distance of the last image's residual, not its square, so that single images far off do not lead.

    The solver's levels keep their gradient from row to row (``solver.through``).
    """

    @torch.no_grad()
    def prepare(self, denoiser: Denoiser, examples: Examples) -> None:
        super().prepare(denoiser, examples)
        pieces = batches(denoiser, examples.size, self.noise)
        goals = [bound(examples.residual, m)(sample(m, examples.teacher, part)) for m, (part,) in pieces]
        self.goal = torch.cat(goals)

    def goals(self, pick: Tensor) -> Tensor:
        return self.goal[pick]

    def losses(self, solver: Designed, denoiser: Denoiser, noise: Tensor, goal: Any) -> list[Tensor]:
        *_, (end, _) = replace(solver, through=True).walk(denoiser, noise)
        missed = bound(self.examples.residual, denoiser)(end.x) - goal
        return [(missed.square().sum(1) + TINY).sqrt().mean()]

    @property
    def name(self) -> list[Any]:
        return [type(self).__name__, self.pool, self.seed]
