"""The handcrafted solvers, each a pure function from a grid to a tableau of some ten lines.

Every one takes a grid ``(n + 1,)`` of decreasing sigmas, or a grid function with ``nfe=`` or ``steps=``,
and the options ``final``, ``afs`` and (where there are several) ``order``; see
:func:`dode.solvers.base.solver`.  :data:`SOLVERS` lists them with basis, orders and source.  Any solver
can be had in the other basis with :meth:`dode.Tableau.to_basis`.
"""

from dode.solvers.adams import ddim, deis, ipndm, ipndm_v, lms, pndm
from dode.solvers.base import SOLVERS, SolverInfo, get, parse, parse_options
from dode.solvers.exponential import dpm_solver_multistep, dpm_solver_pp, unipc
from dode.solvers.rows import analytical_first_step
from dode.solvers.singlestep import dpm_2, dpm_solver, dpm_solver_pp_singlestep, heun, split

__all__ = [
    "SOLVERS", "SolverInfo", "analytical_first_step", "ddim", "deis", "dpm_2", "dpm_solver", "dpm_solver_multistep",
    "dpm_solver_pp", "dpm_solver_pp_singlestep", "get", "heun", "ipndm", "ipndm_v", "lms", "parse", "parse_options",
    "pndm", "split", "unipc",
]  # fmt: skip
