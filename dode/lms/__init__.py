"""Linear multistep solvers learned as a whole: weights, levels and the levels told to the network at once."""

from dode.lms.grids import cheapest_path, gits, step_costs
from dode.lms.second_order import gauss_newton
from dode.lms.space import Space

__all__ = ["Space", "cheapest_path", "gauss_newton", "gits", "step_costs"]
