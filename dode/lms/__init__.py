"""Linear multistep solvers learned as a whole: weights, levels and the levels told to the network at once."""

from dode.lms.amed import AMED, begin_amed
from dode.lms.continuation import resampled
from dode.lms.descent import descend
from dode.lms.designer import Designed, Designer
from dode.lms.distill import train
from dode.lms.dlms import DLMS, begin_dlms
from dode.lms.grids import cheapest_path, gits, step_costs
from dode.lms.recipes import RECIPES, Task, below, load
from dode.lms.residuals import Residual, features, pixels, random_features, seen, stack
from dode.lms.second_order import gauss_newton
from dode.lms.space import GridSpace, Space
from dode.lms.targets import usual_teacher

__all__ = [
    "AMED",
    "DLMS",
    "RECIPES",
    "Designed",
    "Designer",
    "GridSpace",
    "Residual",
    "Space",
    "Task",
    "begin_amed",
    "begin_dlms",
    "below",
    "cheapest_path",
    "descend",
    "features",
    "gauss_newton",
    "gits",
    "load",
    "pixels",
    "random_features",
    "resampled",
    "seen",
    "stack",
    "step_costs",
    "train",
    "usual_teacher",
]  # fmt: skip
