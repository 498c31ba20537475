"""Teachers: the many-step tableau, and which of its states each student row is fitted to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dode import solvers
from dode.sampling import AnyDenoiser, State, advance, start
from dode.schedules import refine
from dode.tableau import Tableau


@dataclass(frozen=True)
class Recording:
    """A teacher's finished run: students on the same levels may be fitted to it without running it again.

    ``states[row]`` is ``(B, ...)``, the state before the teacher's row ``row``, for the rows that students may ask for.
    """

    tableau: Tableau
    noise: Tensor
    states: dict[int, Tensor]

    def state(self, row: int) -> State:
        return State(self.states[row], {}, row)


Align = Literal["time", "index"]
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


@torch.no_grad()
def record(
    denoiser: AnyDenoiser,
    tableau: Tableau,
    noise: Tensor,
    teacher: Teacher = "ddim",
    scale: int = 10,
    align: Align = "time",
) -> Recording:
    """Run the teacher of ``tableau`` once on ``noise`` ``(B, ...)``, to be given to several fits as their ``teacher``.

    They must be of students with the same levels (DDIM and every multistep solver on one grid) and the same noise.
    """
    guide = make_teacher(tableau, teacher, scale, align)
    wanted, state, states = set(target_states(tableau, guide, align)), start(guide, noise), dict[int, Tensor]()
    while state.row < guide.nfe:
        state = advance(denoiser, guide, state)
        if state.row in wanted:
            states[state.row] = state.x
    return Recording(guide, noise, states)
