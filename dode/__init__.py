"""dode: fast diffusion sampling with distilled solvers.  A solver is one small table of numbers.

>>> import dode
>>> model = dode.load("fashion-mnist-noise")
>>> sigmas = dode.schedules.time_uniform(5, model.sigma_min, model.sigma_max, final="zero")
>>> solver = dode.distillation.d_ode(model, dode.solvers.ddim(sigmas), dode.initial_noise(model.shape, range(100)))
>>> images = dode.sample(model, solver, dode.initial_noise(model.shape, range(1000, 1064)))
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from dode import denoisers, distillation, metrics, sampling, schedules, solvers, tableau, zoo
from dode.sampling import initial_noise, sample, trajectory
from dode.tableau import Tableau
from dode.utils.environment import VERSION as __version__  # noqa: F401 (no name that * imports)
from dode.zoo import load

if TYPE_CHECKING:
    from dode.diffusers import DodeScheduler as DodeScheduler
    from dode.diffusers import from_diffusers as from_diffusers
else:
    LATE = ("DodeScheduler", "from_diffusers")  # not in __all__, for `from dode import *` would import diffusers

    def __getattr__(name: str) -> Any:
        """What needs diffusers, imported when it is asked for; ImportError, one line, where that is not installed."""
        if name in LATE:
            return getattr(importlib.import_module("dode.diffusers"), name)
        raise AttributeError(f"module 'dode' has no attribute {name!r}")

    def __dir__() -> list[str]:
        """All names, the late ones where they can be had: who goes through all of a module then meets no error."""
        return sorted([*globals(), *(LATE if importlib.util.find_spec("diffusers") else ())])


__all__ = [
    "Tableau",
    "denoisers",
    "distillation",
    "initial_noise",
    "load",
    "metrics",
    "sample",
    "sampling",
    "schedules",
    "solvers",
    "tableau",
    "trajectory",
    "zoo",
]
