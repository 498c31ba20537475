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

__version__ = "0.3.0"  # pyproject.toml reads it here

__all__ = [
    "Tableau", "denoisers", "distillation", "initial_noise", "load", "metrics", "sample", "sampling", "schedules",
    "solvers", "tableau", "trajectory", "zoo",
]  # fmt: skip

# Names are imported when they are first asked for (PEP 562): torch takes seconds, and `dode --help` needs none of it.
if TYPE_CHECKING:
    from dode import denoisers, distillation, metrics, sampling, schedules, solvers, tableau, zoo
    from dode.diffusers import DodeScheduler as DodeScheduler
    from dode.diffusers import from_diffusers as from_diffusers
    from dode.sampling import initial_noise, sample, trajectory
    from dode.tableau import Tableau
    from dode.zoo import load_denoiser as load
else:
    _DIFFUSERS = ("DodeScheduler", "from_diffusers")  # not in __all__: `from dode import *` would import diffusers
    _HOME = {
        "Tableau": "tableau",
        **dict.fromkeys(("initial_noise", "sample", "trajectory"), "sampling"),
        **dict.fromkeys(_DIFFUSERS, "diffusers"),
    }

    def __getattr__(name: str) -> Any:
        """A public name from the module that defines it; ImportError, one line, where diffusers is not installed."""
        if name == "load":
            return importlib.import_module("dode.zoo").load_denoiser
        if name in _HOME:
            return getattr(importlib.import_module(f"dode.{_HOME[name]}"), name)
        if name in __all__:
            return importlib.import_module(f"dode.{name}")
        raise AttributeError(f"module 'dode' has no attribute {name!r}")

    def __dir__() -> list[str]:
        """All names that can be had here: those that need diffusers only where it is installed."""
        return sorted({*globals(), *__all__, *(_DIFFUSERS if importlib.util.find_spec("diffusers") else ())})
