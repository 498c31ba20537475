"""Teachers: the many-step tableau, and which of its states each student row is fitted to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dode import solvers
from dode.schedules import refine
from dode.tableau import Tableau

Align = Literal["time", "index"]
Teacher = Literal["ddim"] | Tableau | Callable[[Tensor], Tableau]


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
