"""The handcrafted solvers, each a pure function from a grid to a tableau of some ten lines.

Every one takes a grid ``(n + 1,)`` of decreasing sigmas, or a grid function with ``nfe=`` or ``steps=``,
and the options ``final``, ``afs`` and (where there are several) ``order``; see
:func:`dode.solvers.base.solver`.  :data:`SOLVERS` lists them with basis, orders and source.  Any solver
can be had in the other basis with :meth:`dode.Tableau.to_basis`.  All files of this folder are searched
for solvers: a new one is a function here, and stands in no other file.
"""

import importlib
import pkgutil

from dode.solvers.adams import ddim as ddim, deis as deis, ipndm as ipndm, ipndm_v as ipndm_v, lms as lms, pndm as pndm
from dode.solvers.base import (
    SOLVERS as SOLVERS, SolverInfo as SolverInfo, get as get, parse as parse, parse_options as parse_options,
)  # fmt: skip
from dode.solvers.exponential import (
    dpm_solver_multistep as dpm_solver_multistep, dpm_solver_pp as dpm_solver_pp, unipc as unipc,
)  # fmt: skip
from dode.solvers.rows import analytical_first_step as analytical_first_step
from dode.solvers.singlestep import (
    dpm_2 as dpm_2, dpm_solver as dpm_solver, dpm_solver_pp_singlestep as dpm_solver_pp_singlestep, heun as heun,
    split as split,
)  # fmt: skip

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update({name: info.make for name, info in SOLVERS.items()})  # those of files that are not named above, too
