"""Noise schedules, and the grids of noise levels that solvers walk.

In the coordinates ``x / alpha`` every Gaussian diffusion is the same ODE in
``sigma = sigma_t / alpha_t`` (EDM, Karras et al. 2022, appendix B).  A *schedule* therefore only
translates: ``sigma`` to the label that a network was trained with, and back; and it gives ``alpha``
for networks that expect ``alpha * x``.  A *grid* is a float64 tensor of ``n + 1`` decreasing sigmas.
"""

from dode.schedules.grids import (
    Align as Align, Final as Final, Spacing as Spacing, check_grid as check_grid, discrete as discrete,
    exponential as exponential, karras as karras, log_snr as log_snr, polyexponential as polyexponential,
    refine as refine, time_quadratic as time_quadratic, time_uniform as time_uniform,
)  # fmt: skip
from dode.schedules.noise import (
    EDM as EDM, Flow as Flow, Schedule as Schedule, VPContinuous as VPContinuous, VPDiscrete as VPDiscrete,
    cosine as cosine, from_config as from_config, scaled_linear as scaled_linear, vp_linear as vp_linear,
)  # fmt: skip
