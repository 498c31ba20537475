"""Distillation of solvers: a many-step teacher into a table of a few numbers, or into a small network that writes one.

A file a method.  :func:`d_ode` fits one number a step in closed form, :func:`olss` levels and whole rows;
:func:`gauss_newton` all numbers of a multistep solver at once; :func:`gits` a grid by dynamic programming;
:func:`ld3`, :func:`s4s`, :func:`s4s_alt` and :func:`dyweight` go by gradient; :func:`dlms` and :func:`amed` train a
small network that designs each step.  :data:`DISTILLERS` lists them.
All files of this folder are searched: a new method is one file here, and stands in no other.
"""

import importlib
import pkgutil

from dode.distillation.amed import AMED as AMED, amed as amed, begin_amed as begin_amed
from dode.distillation.corrections import (
    DirectionSpace as DirectionSpace, Equation as Equation, FirstStep as FirstStep, corrected as corrected,
    default_first_step as default_first_step, directions as directions, families as families,
)  # fmt: skip
from dode.distillation.d_ode import Alignment as Alignment, d_ode as d_ode
from dode.distillation.dlms import DLMS as DLMS, begin_dlms as begin_dlms, dlms as dlms
from dode.distillation.dyweight import dyweight as dyweight
from dode.distillation.gauss_newton import gauss_newton as gauss_newton
from dode.distillation.gits import (
    cheapest_path as cheapest_path, gits as gits, gits_grid as gits_grid, step_costs as step_costs,
)  # fmt: skip
from dode.distillation.ld3 import ld3 as ld3
from dode.distillation.olss import olss as olss
from dode.distillation.s4s import s4s as s4s, s4s_alt as s4s_alt
from dode.distillation.descent import descend as descend
from dode.distillation.designer import Designed as Designed, Designer as Designer, load_solver as load_solver
from dode.distillation.designer_training import train as train
from dode.distillation.losses import (
    Residual as Residual, clipped as clipped, features as features, pixels as pixels,
    random_features as random_features, stack as stack,
)  # fmt: skip
from dode.distillation.own_features import own_features as own_features
from dode.distillation.problem import DISTILLERS as DISTILLERS, Problem as Problem, distiller as distiller
from dode.distillation.space import GridSpace as GridSpace, Space as Space, resampled as resampled
from dode.distillation.teachers import (
    Align as Align, Recording as Recording, Teacher as Teacher, default_teacher as default_teacher,
    make_teacher as make_teacher, record as record, target_states as target_states,
)  # fmt: skip

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update({info.function.__name__: info.call for info in DISTILLERS.values()})  # not the files of that name
