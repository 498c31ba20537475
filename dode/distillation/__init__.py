"""Distillation of solvers: a many-step teacher into a table of a few numbers, or into a small network that writes one.

:func:`d_ode` fits one number a step in closed form; :func:`gauss_newton` all numbers of a multistep solver at once;
:func:`gits` a grid by dynamic programming; :data:`DISTILLERS` has these, LD3, S4S, DLMS and AMED by name, each set as
its paper sets it.
"""

from dode.distillation.amed import AMED, begin_amed
from dode.distillation.corrections import Equation, FirstStep, corrected, default_first_step, directions, families
from dode.distillation.d_ode import d_ode
from dode.distillation.descent import descend
from dode.distillation.designer import Designed, Designer
from dode.distillation.designer_training import train
from dode.distillation.dlms import DLMS, begin_dlms
from dode.distillation.gauss_newton import gauss_newton
from dode.distillation.gits import cheapest_path, gits, step_costs
from dode.distillation.losses import Residual, clipped, features, pixels, random_features, stack
from dode.distillation.problem import DISTILLERS, Problem, load_solver, with_first_level
from dode.distillation.space import GridSpace, Space, resampled
from dode.distillation.teachers import Align, Recording, Teacher, default_teacher, make_teacher, record, target_states

__all__ = [
    "AMED", "DISTILLERS", "DLMS", "Align", "Designed", "Designer", "Equation", "FirstStep", "GridSpace", "Problem",
    "Recording", "Residual", "Space", "Teacher", "begin_amed", "begin_dlms", "cheapest_path", "clipped", "corrected",
    "d_ode", "default_first_step", "default_teacher", "descend", "directions", "families", "features", "gauss_newton",
    "gits", "load_solver", "make_teacher", "pixels", "random_features", "record", "resampled", "stack", "step_costs",
    "target_states", "train", "with_first_level",
]  # fmt: skip
