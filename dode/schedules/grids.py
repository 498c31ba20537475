"""Grids: float64 tensors of ``n + 1`` decreasing noise levels that a solver walks."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dode.schedules.noise import Schedule, VPDiscrete, vp_linear
from dode.utils.files import one_of

Align = Literal["time", "index"]
Final = Literal["sigma_min", "zero"]
Spacing = Literal["trailing", "leading", "linspace"]


def check_grid(sigmas: Tensor) -> Tensor:
    """``sigmas`` as float64 ``(n + 1,)``, or a ValueError that names the first bad entry."""
    sigmas = torch.as_tensor(sigmas, dtype=torch.float64)
    if sigmas.ndim != 1 or len(sigmas) < 2:
        raise ValueError(f"a grid needs at least two noise levels in one dimension, got shape {tuple(sigmas.shape)}")
    if not torch.isfinite(sigmas).all():
        raise ValueError(f"grid has a non-finite noise level at index {int((~torch.isfinite(sigmas)).nonzero()[0])}")
    bad = (sigmas[1:] >= sigmas[:-1]).nonzero()
    if len(bad):
        i = int(bad[0])
        raise ValueError(f"grid must decrease strictly, but sigma[{i + 1}] = {sigmas[i + 1]:g} follows {sigmas[i]:g}")
    if sigmas[-1] < 0:
        raise ValueError(f"noise levels must not be negative, got {sigmas[-1]:g} at the end")
    return sigmas


def _ramp(n: int, sigma_min: float, sigma_max: float, final: Final) -> Tensor:
    """0..1 for the grid's non-zero levels, after checking the arguments."""
    if n < 1 or n != int(n):
        raise ValueError(f"a grid needs one step or more, got n = {n}")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"need 0 < sigma_min < sigma_max, got {sigma_min:g} and {sigma_max:g}")
    one_of("final", final, Final)
    points = n + (final == "sigma_min")
    return torch.arange(points, dtype=torch.float64) / max(points - 1, 1)


def _finish(sigmas: Tensor, sigma_min: float, sigma_max: float, final: Final) -> Tensor:
    sigmas[-1], sigmas[0] = sigma_min, sigma_max  # exactly, not to rounding (and one level alone is sigma_max)
    return check_grid(torch.cat([sigmas, sigmas.new_zeros(1)]) if final == "zero" else sigmas)


def karras(n: int, sigma_min: float, sigma_max: float, rho: float = 7, final: Final = "sigma_min") -> Tensor:
    """``n`` steps, uniform in ``sigma^(1/rho)`` (EDM, eq. 5).

    Always ``n + 1`` levels.  ``final="sigma_min"`` ends there; ``final="zero"`` lets the first ``n``
    levels span ``sigma_max..sigma_min`` and makes the last step go to 0, as EDM does.
    """
    u = _ramp(n, sigma_min, sigma_max, final)
    top, bottom = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return _finish((top + u * (bottom - top)) ** rho, sigma_min, sigma_max, final)


def log_snr(n: int, sigma_min: float, sigma_max: float, final: Final = "sigma_min") -> Tensor:
    """``n`` steps, uniform in ``ln sigma`` (half the log-SNR); ``final`` as in :func:`karras`."""
    u = _ramp(n, sigma_min, sigma_max, final)
    return _finish(torch.exp(math.log(sigma_max) + u * math.log(sigma_min / sigma_max)), sigma_min, sigma_max, final)


exponential = log_snr  # k-diffusion's name


def polyexponential(n: int, sigma_min: float, sigma_max: float, rho: float = 1.0, final: Final = "sigma_min") -> Tensor:
    """``n`` steps, ``ln(sigma / sigma_min)`` a power ``rho`` of a uniform ramp (k-diffusion); finer below for rho > 1.

    ``rho = 1`` is :func:`log_snr`; ``final`` as in :func:`karras`.
    """
    logs = (1 - _ramp(n, sigma_min, sigma_max, final)) ** rho * math.log(sigma_max / sigma_min)
    return _finish(sigma_min * torch.exp(logs), sigma_min, sigma_max, final)


def _time_grid(
    n: int, sigma_min: float, sigma_max: float, schedule: Schedule | None, final: Final, power: int
) -> Tensor:
    schedule = schedule or vp_linear()
    _ramp(n, sigma_min, sigma_max, final)
    ends = schedule.label(torch.tensor([sigma_max, sigma_min], dtype=torch.float64))
    zero = -1.0 if isinstance(schedule, VPDiscrete) else 0.0
    stop = zero if final == "zero" else float(ends[1])
    u = torch.arange(n + 1, dtype=torch.float64) / n
    start, stop = (float(ends[0]) - zero) ** (1 / power), (stop - zero) ** (1 / power)
    sigmas = schedule.sigma((start + u * (stop - start)) ** power + zero)
    sigmas[0], sigmas[-1] = sigma_max, 0.0 if final == "zero" else sigma_min
    return check_grid(sigmas)


def time_uniform(
    n: int, sigma_min: float, sigma_max: float, schedule: Schedule | None = None, final: Final = "sigma_min"
) -> Tensor:
    """``n`` steps, uniform in the label of ``schedule`` (default: the linear VP chain).

    With ``final="zero"`` the spacing runs through to time zero, where sigma is 0 (the "trailing"
    spacing: 10 steps of a 1000-step chain use the labels 999, 899, ..., 99): ``sigma_min`` is
    not visited, because a last step of one label out of 1000 would be wasted.
    """
    return _time_grid(n, sigma_min, sigma_max, schedule, final, power=1)


def time_quadratic(
    n: int, sigma_min: float, sigma_max: float, schedule: Schedule | None = None, final: Final = "sigma_min"
) -> Tensor:
    """As :func:`time_uniform`, uniform in the square root of the label: finer at low noise."""
    return _time_grid(n, sigma_min, sigma_max, schedule, final, power=2)


def _labels(n: int, steps: int, spacing: Spacing, final: Final) -> np.ndarray:
    """``n`` labels, and label 0 if the grid ends there; in numpy's arithmetic, so that halves round as in diffusers."""
    if spacing == "trailing":  # cut, because n = 61 of 1000 gives a 62nd that is 0 up to rounding
        labels = np.append(np.arange(steps, 0, -steps / n)[:n].round() - 1, [0] * (final == "sigma_min"))
    else:
        points = n + (final == "sigma_min")
        at = np.arange(points) * (steps // points) if spacing == "leading" else np.linspace(0, steps - 1, points)
        labels = at.round()[::-1]
    return labels.astype(int)


def discrete(
    n: int, schedule: VPDiscrete | None = None, spacing: Spacing = "trailing", offset: int = 0, final: Final = "zero"
) -> Tensor:
    """``n`` steps from labels of the chain itself (default: the linear VP chain), spaced as diffusers spaces them.

    ``spacing`` is its ``timestep_spacing``, with T labels in the chain: "trailing" counts down from T - 1 in
    parts of T / n (to whole labels; 999, 899, ..., 99); "leading" counts up from 0 in parts of T // n, or
    from ``offset`` (``steps_offset``); "linspace" spreads them over both ends.

    ``final="zero"``: these ``n`` labels, then sigma = 0, as for DDIM (and Euler, which does not round "linspace").
    ``final="sigma_min"``: label 0 comes last, as for DPM-Solver, DEIS and UniPC; "leading" and "linspace"
    place ``n + 1`` labels of which it is one (it gets no offset), "trailing" adds it.

    ValueError if labels coincide or leave the chain, or if the first is 0, where no noise is left to remove.
    """
    chain = vp_linear() if schedule is None else schedule
    if not isinstance(chain, VPDiscrete):
        raise ValueError(f"a discrete grid needs a chain of labels (VPDiscrete), got {type(chain).__name__}")
    _ramp(n, chain.sigma_min, chain.sigma_max, final)
    n = int(n)
    one_of("spacing", spacing, Spacing)
    if offset < 0 or offset != int(offset) or (offset and spacing != "leading"):
        raise ValueError(f"offset must be 0, or for leading spacing a whole number above, got {offset}")
    fits = lambda n: n <= chain.steps and bool((np.diff(_labels(n, chain.steps, spacing, final)) < 0).all())  # noqa: E731
    if not fits(n):
        most = next(m for m in range(chain.steps, 0, -1) if fits(m))
        raise ValueError(f"{n} steps do not fit on {chain.steps} labels with {spacing} spacing; at most {most} do")
    labels = _labels(n, chain.steps, spacing, final)
    if labels[0] + offset >= chain.steps:
        last = chain.steps - 1
        raise ValueError(f"offset {offset} leaves the chain's labels 0 to {last}; at most {last - labels[0]} fits")
    labels[:n] += int(offset)
    if labels[0] == 0:
        raise ValueError(f"one step of {spacing} spacing would start at label 0, where no noise is; take 'trailing'")
    sigmas = chain.sigmas[torch.from_numpy(labels)]
    return check_grid(torch.cat([sigmas, sigmas.new_zeros(1)]) if final == "zero" else sigmas)


def refine(sigmas: Tensor, scale: int, align: Align = "time", rho: float = 7) -> Tensor:
    """The teacher's grid: ``scale`` times as many steps as ``sigmas``, float64 ``(scale * N + 1,)``.

    ``align="time"``: every interval is divided in ``scale``, so teacher level ``scale * i`` *is*
    student level ``i`` (eq. 14 of the D-ODE paper read by time).  ``align="index"``: the levels
    above zero are re-spaced over the same span, and teacher level ``scale * i`` only meets student level
    ``i`` by its index; it is noisier (EDM's grid of ten steps: 45.0 against 42.4 after the first).  The two
    agree on grids that do not end at zero.  On EDM's grid the second is that of the released D-DDIM; the released
    D-EDM has ``scale`` levels for each call, and on a VP chain the released code counts labels from below and compares
    states in other coordinates (``alpha x``): :func:`dode.distillation.corrections.released_plan`.

    New levels are uniform in ``sigma^(1/rho)``, which maps a Karras grid to a Karras grid; in a last
    interval that ends at 0 they go far below ``sigma_min``, where a denoiser only returns its input.
    """
    sigmas = check_grid(sigmas)
    if scale < 1 or scale != int(scale):
        raise ValueError(f"the teacher's scale must be a whole number of one or more, got {scale}")
    one_of("align", align, Align)
    root = sigmas ** (1 / rho)
    steps = len(sigmas) - 1
    keep_zero = align == "index" and bool(sigmas[-1] == 0) and steps > 1
    if keep_zero:
        position = torch.linspace(0, steps - 1, scale * steps, dtype=torch.float64)
    else:
        position = torch.arange(scale * steps + 1, dtype=torch.float64) / scale
    low = position.floor().long().clamp(max=steps - 1)
    fine = torch.lerp(root[low], root[low + 1], position - low) ** rho
    if keep_zero:
        fine[0], fine[-1] = sigmas[0], sigmas[-2]
        return check_grid(torch.cat([fine, fine.new_zeros(1)]))
    fine[::scale] = sigmas
    return check_grid(fine)
