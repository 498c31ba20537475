"""Noise schedules, and the grids of noise levels that solvers walk.

In the coordinates ``x / alpha`` every Gaussian diffusion is the same ODE in
``sigma = sigma_t / alpha_t`` (EDM, Karras et al. 2022, appendix B).  A *schedule* therefore only
translates: ``sigma`` to the label that a network was trained with, and back; and it gives ``alpha``
for networks that expect ``alpha * x``.  A *grid* is a float64 tensor of ``n + 1`` decreasing sigmas.
"""

from dode.schedules.grids import (
    Align, Final, Spacing, check_grid, discrete, exponential, karras, log_snr, polyexponential, refine, time_quadratic,
    time_uniform,
)  # fmt: skip
from dode.schedules.noise import (
    EDM, Flow, Schedule, VPContinuous, VPDiscrete, cosine, from_config, scaled_linear, vp_linear,
)  # fmt: skip

__all__ = [
    "EDM", "Align", "Final", "Flow", "Schedule", "Spacing", "VPContinuous", "VPDiscrete", "check_grid", "cosine",
    "discrete", "exponential", "from_config", "karras", "log_snr", "polyexponential", "refine", "scaled_linear",
    "time_quadratic", "time_uniform", "vp_linear",
]  # fmt: skip
