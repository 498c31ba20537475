"""Noise schedules, and the grids of noise levels that solvers walk.

In the coordinates ``x / alpha`` every Gaussian diffusion is the same ODE in
``sigma = sigma_t / alpha_t`` (EDM, Karras et al. 2022, appendix B).  A *schedule* therefore only
translates: ``sigma`` to the label that a network was trained with, and back; and it gives ``alpha``
for networks that expect ``alpha * x``.  A *grid* is a float64 tensor of ``n + 1`` decreasing sigmas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Final = Literal["sigma_min", "zero"]


class Schedule(Protocol):
    """What a denoiser and a grid need to know of a forward process."""

    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def sigma_min(self) -> float: ...
    @property
    def sigma_max(self) -> float: ...
    def alpha(self, sigma: Tensor) -> Tensor: ...
    def label(self, sigma: Tensor) -> Tensor: ...
    def sigma(self, label: Tensor) -> Tensor: ...


def _vp_alpha(sigma: Tensor) -> Tensor:
    """``alpha^2 + sigma_t^2 = 1`` gives ``alpha = 1 / sqrt(1 + sigma^2)``."""
    return (1 + sigma**2).rsqrt()


@dataclass(frozen=True)
class VPDiscrete:
    """DDPM's variance-preserving chain: labels 0..steps-1, betas linear or cosine.

    ``kind="linear"``: betas from ``beta_min`` to ``beta_max`` (Ho et al. 2020).
    ``kind="cosine"``: ``alpha_bar = cos^2((t + 0.008) / 1.008 * pi / 2)``, betas clipped at 0.999
    (Nichol and Dhariwal 2021).
    Between labels, ``ln sigma`` is interpolated linearly; label -1 stands for sigma = 0.
    """

    steps: int = 1000
    kind: Literal["linear", "cosine"] = "linear"
    beta_min: float = 1e-4
    beta_max: float = 0.02

    @property
    def config(self) -> dict[str, Any]:
        return dict(
            schedule="vp_discrete", steps=self.steps, kind=self.kind, beta_min=self.beta_min, beta_max=self.beta_max
        )

    @cached_property
    def sigmas(self) -> Tensor:
        """Sigma of each label, float64 ``(steps,)``, increasing."""
        if self.kind == "linear":
            betas = torch.linspace(self.beta_min, self.beta_max, self.steps, dtype=torch.float64)
        else:
            t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        alpha_bar = torch.cumprod(1 - betas, 0)
        return ((1 - alpha_bar) / alpha_bar).sqrt()

    @property
    def sigma_min(self) -> float:
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        return float(self.sigmas[-1])

    def alpha(self, sigma: Tensor) -> Tensor:
        return _vp_alpha(sigma)

    def label(self, sigma: Tensor) -> Tensor:
        """Real-valued label of ``sigma``; exact integers on the chain, clamped to its ends."""
        logs = self.sigmas.log().to(sigma.device)
        x = sigma.double().clamp(min=self.sigma_min, max=self.sigma_max).log()
        hi = torch.searchsorted(logs, x.contiguous()).clamp(1, self.steps - 1)
        fraction = (x - logs[hi - 1]) / (logs[hi] - logs[hi - 1])
        return hi - 1 + fraction

    def sigma(self, label: Tensor) -> Tensor:
        """Sigma at real labels in ``[-1, steps - 1]``; towards -1 it goes to 0 linearly."""
        label = torch.as_tensor(label, dtype=torch.float64)
        logs = self.sigmas.log().to(label.device)
        lo = label.floor().long().clamp(0, self.steps - 2)
        inside = torch.lerp(logs[lo], logs[lo + 1], label - lo).exp()
        return torch.where(label < 0, (label + 1) * self.sigma_min, inside)


@dataclass(frozen=True)
class VPContinuous:
    """The variance-preserving SDE of Song et al. 2021: ``beta(t) = beta_min + t (beta_max - beta_min)``.

    Labels are ``999 t``, ``t`` in ``[eps, 1]``, as score-SDE networks expect.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    eps: float = 1e-3

    @property
    def config(self) -> dict[str, Any]:
        return dict(schedule="vp_continuous", beta_min=self.beta_min, beta_max=self.beta_max, eps=self.eps)

    @property
    def sigma_min(self) -> float:
        return float(self.sigma(torch.tensor(999 * self.eps)))

    @property
    def sigma_max(self) -> float:
        return float(self.sigma(torch.tensor(999.0)))

    def alpha(self, sigma: Tensor) -> Tensor:
        return _vp_alpha(sigma)

    def label(self, sigma: Tensor) -> Tensor:
        # -2 ln alpha = ln(1 + sigma^2) = t beta_min + t^2 (beta_max - beta_min) / 2, solved for t.
        spread, log = self.beta_max - self.beta_min, torch.log1p(sigma.double() ** 2)
        return 999 * 2 * log / (self.beta_min + (self.beta_min**2 + 2 * spread * log).sqrt())

    def sigma(self, label: Tensor) -> Tensor:
        t = torch.as_tensor(label, dtype=torch.float64) / 999
        return torch.expm1(t * self.beta_min + t**2 * (self.beta_max - self.beta_min) / 2).sqrt()


@dataclass(frozen=True)
class EDM:
    """Karras et al. 2022: ``alpha = 1``, label ``ln(sigma) / 4``."""

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    @property
    def config(self) -> dict[str, Any]:
        return dict(schedule="edm", sigma_min=self.sigma_min, sigma_max=self.sigma_max)

    def alpha(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def label(self, sigma: Tensor) -> Tensor:
        return sigma.log() / 4

    def sigma(self, label: Tensor) -> Tensor:
        return (4 * torch.as_tensor(label, dtype=torch.float64)).exp()


def vp_linear(steps: int = 1000) -> VPDiscrete:
    """The linear VP chain, betas 1e-4..0.02."""
    return VPDiscrete(steps=steps)


def cosine(steps: int = 1000) -> VPDiscrete:
    """The cosine VP chain."""
    return VPDiscrete(steps=steps, kind="cosine")


def from_config(config: dict[str, Any]) -> Schedule:
    """The schedule that wrote ``config`` (its ``.config``)."""
    kinds = {"vp_discrete": VPDiscrete, "vp_continuous": VPContinuous, "edm": EDM}
    rest = {k: v for k, v in config.items() if k != "schedule"}
    try:
        return kinds[config["schedule"]](**rest)
    except KeyError:
        raise ValueError(f"unknown schedule {config.get('schedule')!r}; known: {', '.join(kinds)}") from None


# --- grids ---------------------------------------------------------------------------------------


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
    if final not in ("sigma_min", "zero"):
        raise ValueError(f"final must be 'sigma_min' or 'zero', got {final!r}")
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
    if final == "zero":
        sigmas[-1] = 0.0
    else:
        sigmas[-1] = sigma_min
    sigmas[0] = sigma_max
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


def refine(sigmas: Tensor, scale: int, align: Literal["time", "index"] = "time", rho: float = 7) -> Tensor:
    """The teacher's grid: ``scale`` times as many steps as ``sigmas``, float64 ``(scale * N + 1,)``.

    ``align="time"``: every interval is divided in ``scale``, so teacher level ``scale * i`` *is*
    student level ``i`` (eq. 14 of the D-ODE paper read by time).  ``align="index"``: the levels
    above zero are re-spaced over the same span, and teacher level ``scale * i`` only meets student level
    ``i`` by its index; it is noisier.  On EDM's grid that is the released code (ten steps: 45.0 against
    42.4 after the first); on a VP chain the released code does the same on labels counted from below,
    a grid that is not offered here.  The two agree on grids that do not end at zero.

    New levels are uniform in ``sigma^(1/rho)``, which maps a Karras grid to a Karras grid; in a last
    interval that ends at 0 they go far below ``sigma_min``, where a denoiser only returns its input.
    """
    sigmas = check_grid(sigmas)
    if scale < 1 or scale != int(scale):
        raise ValueError(f"the teacher's scale must be a whole number of one or more, got {scale}")
    if align not in ("time", "index"):
        raise ValueError(f"align must be 'time' or 'index', got {align!r}")
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
