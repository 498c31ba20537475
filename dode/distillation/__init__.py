"""D-ODE solvers: distil a many-step teacher into a few numbers a step (Kim, Tang, Yu, CVPR 2024)."""

from dode.distillation.corrections import Equation, FirstStep, corrected, default_first_step, directions, families
from dode.distillation.fit import d_ode
from dode.distillation.teachers import Align, Recording, Teacher, make_teacher, record, target_states

__all__ = [
    "Align",
    "Equation",
    "FirstStep",
    "Recording",
    "Teacher",
    "corrected",
    "d_ode",
    "default_first_step",
    "directions",
    "families",
    "make_teacher",
    "record",
    "target_states",
]
