"""Teachers, and what fits aim at: the states on a teacher's path (D-ODE), or its images from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dode import solvers
from dode.denoisers import Denoiser
from dode.distillation.losses import Residual, bound
from dode.sampling import AnyDenoiser, State, Walker, sample, walk
from dode.schedules import Align, refine
from dode.tableau import Tableau


@dataclass(frozen=True)
class Recording:
    """A teacher's finished run: students on the same levels may be fitted to it without running it again."""

    tableau: Tableau
    noise: Tensor
    states: dict[int, Tensor]  # (B, ...) before each of the teacher's rows that students may ask for

    def state(self, row: int) -> State:
        return State(self.states[row], {}, row)


Teacher = Literal["ddim"] | Tableau | Recording | Callable[[Tensor], Tableau]


def make_teacher(tableau: Tableau, teacher: Teacher = "ddim", scale: int = 10, align: Align = "time") -> Tableau:
    """The teacher's tableau: DDIM (or ``teacher(sigmas)``) on :func:`dode.schedules.refine`'s grid."""
    if isinstance(teacher, Tableau):
        return teacher
    if isinstance(teacher, Recording):
        return teacher.tableau
    make = solvers.ddim if teacher == "ddim" else teacher
    if not callable(make):
        raise ValueError(
            f"teacher must be 'ddim', a function of sigmas (dode.solvers.ipndm) or a Tableau, got {teacher!r}"
        )
    return make(refine(tableau.levels, scale, align))


def target_states(student: Tableau, teacher: Tableau, align: Align) -> list[int]:
    """For each student row, the teacher state (0..teacher.nfe) that its next state is fitted to.

    ValueError for a teacher that does not pass through the student's levels ("time"), or whose number of levels is no
    multiple of the student's ("index").
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


@torch.no_grad()
def record(
    denoiser: AnyDenoiser, tableau: Tableau, noise: Tensor, teacher: Teacher = "ddim", scale: int = 10,
    align: Align = "time",
) -> Recording:  # fmt: skip
    """Run the teacher of ``tableau`` once on ``noise`` ``(B, ...)``, to be given to several fits as their ``teacher``.

    They must be of students with the same levels (DDIM and every multistep solver on one grid) and the same noise.
    """
    guide = make_teacher(tableau, teacher, scale, align)
    wanted = set(target_states(tableau, guide, align))
    states = {state.row: state.x for state, _ in walk(denoiser, guide.rows, noise) if state.row in wanted}
    return Recording(guide, noise, states)


TEACHER_STEPS = 40


def default_teacher(denoiser: Denoiser, steps: int = TEACHER_STEPS) -> Tableau:
    """DEIS of order 3 on clean-image estimates, on the denoiser's own grid."""
    return solvers.deis(denoiser.grid, nfe=steps, variable="log_rho", basis="data")


def batches(denoiser: Denoiser, size: int, *tensors: Tensor) -> Iterator[tuple[Denoiser, tuple[Tensor, ...]]]:
    """``tensors``, a row an image, in pieces of ``size`` images, each with the denoiser for these images."""
    for images, *parts in zip(*(t.split(size) for t in (torch.arange(len(tensors[0])), *tensors)), strict=True):
        yield denoiser.of(images), tuple(parts)


def on_path(levels: Tensor, states: Tensor, level: float) -> Tensor:
    """The states ``(B, ...)`` at ``level`` of paths ``(B, M + 1, ...)`` through ``levels`` ``(M + 1,)``, falling.

    Linear between two of them; above the first it is the first.
    """
    k = int((levels > level).sum().clamp(1, len(levels) - 1))
    done = (levels[k - 1] - level) / (levels[k - 1] - levels[k])
    return torch.lerp(states[:, k - 1], states[:, k], float(done.clamp(0, 1)))


@dataclass(frozen=True)
class Examples:
    """Noise ``(B, ...)`` and the teacher's residuals ``(B, R)``: to fit on, and held back.

    The error of a table is the mean over images of ``|r|^2`` plus ``bias`` times ``|mean of r|^2``, ``r`` the residual
    of its image less the teacher's.  What all images have in common is a small part of the first, and the larger part
    of any distance between distributions.
    """

    residual: Residual
    teacher: Tableau
    noise: Tensor
    goal: Tensor
    held_noise: Tensor
    held_goal: Tensor
    bias: float = 0.0
    limit: float = 0.0
    size: int = 100  # images at a time

    @classmethod
    @torch.no_grad()
    def make(
        cls, denoiser: Denoiser, noise: Tensor, teacher: Tableau, residual: Residual, held_back: float,
        bias: float = 0.0, size: int = 100,
    ) -> Examples:  # fmt: skip
        """Run the teacher once; the first images are held back (all for 1).  ValueError for fewer than four.

        A residual that wants it gets the spread of its numbers over the teacher's images.
        """
        if len(noise) < 4:
            raise ValueError(f"a fit needs four images or more, got {len(noise)}")
        denoiser.conditioning.check(len(noise))
        images = torch.cat([sample(model, teacher, part) for model, (part,) in batches(denoiser, size, noise)])
        residual = bound(residual, denoiser, images)
        goal = torch.cat([bound(residual, model)(part) for model, (part,) in batches(denoiser, size, images)])
        kept = max(1, min(len(noise) - (held_back < 1), round(held_back * len(noise))))
        return cls(residual, teacher, noise[kept:], goal[kept:], noise[:kept], goal[:kept], bias, size=size)

    def fitted(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser for the images to fit on, which come after those that are held back."""
        return denoiser.of(len(self.held_noise) + torch.arange(len(self.noise)))

    @torch.no_grad()
    def error(self, denoiser: Denoiser, table: Tableau | Walker, noise: Tensor, goal: Tensor) -> float:
        """What a fit makes small; inf where the table makes no finite images."""
        return self.norm(map(self.capped, self.residuals(denoiser, table, noise, goal)), len(noise))

    def residuals(self, denoiser: Denoiser, table: Tableau | Walker, noise: Tensor, goal: Tensor) -> Iterator[Tensor]:
        """The residuals of a table's images less their goals, ``(b, R)`` a piece."""
        for model, (x, aim) in batches(denoiser, self.size, noise, goal):
            yield bound(self.residual, model)(sample(model, table, x)) - aim

    def with_limit(self, denoiser: Denoiser, table: Tableau, medians: float) -> Examples:
        """The same, where an image counts so many medians of the errors of ``table`` at most."""
        missed = self.residuals(self.fitted(denoiser), table, self.noise, self.goal)
        each = [piece.square().sum(1) for piece in missed]
        return replace(self, limit=medians * float(torch.cat(each).median()))

    def capped(self, missed: Tensor) -> Tensor:
        """Residuals ``(b, R)`` less their goals, each image's shortened so that its square stays below ``limit``."""
        if not self.limit:
            return missed
        return missed / (1 + missed.square().sum(1, keepdim=True) / self.limit).sqrt()

    def norm(self, missed: Iterable[Tensor], images: int) -> float:
        """The error of ``images`` residuals less their goals, ``(b, R)`` a piece; inf where a piece is not finite."""
        total, mean = 0.0, torch.zeros((), dtype=torch.float64)
        try:
            for part in missed:
                total += float(part.double().square().sum())
                mean = mean + part.double().sum(0).cpu() / images
        except FloatingPointError:
            return float("inf")
        return total / images + self.bias * float(mean.square().sum())

    def check(self, denoiser: Denoiser, table: Tableau | Walker) -> float:
        """:meth:`error` on the images held back."""
        return self.error(denoiser.of(range(len(self.held_noise))), table, self.held_noise, self.held_goal)

    @property
    def facts(self) -> dict[str, Any]:
        """The teacher, as the metadata of a fit have it."""
        return dict(teacher=self.teacher.metadata.get("solver", "tableau"), teacher_nfe=self.teacher.nfe)
