"""Linear multistep solvers learned as a whole: weights, levels and the levels told to the network at once."""

from dode.lms.second_order import gauss_newton
from dode.lms.space import Space

__all__ = ["Space", "gauss_newton"]
