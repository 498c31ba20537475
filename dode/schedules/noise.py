"""Noise schedules: what translates sigma to a network's time label and back.

A schedule gives ``alpha`` too, for networks that expect ``alpha * x``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dode.utils.files import one_of

Betas = Literal["linear", "scaled_linear", "cosine", "trained"]


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
    """DDPM's variance-preserving chain: labels 0..steps-1, one beta each.

    ``kind="linear"``: betas from ``beta_min`` to ``beta_max`` (Ho et al. 2020).
    ``kind="scaled_linear"``: their square roots are linear (Stable Diffusion: 0.00085 to 0.012).
    ``kind="cosine"``: ``alpha_bar = cos^2((t + 0.008) / 1.008 * pi / 2)``, betas clipped at 0.999
    (Nichol and Dhariwal 2021).
    ``kind="trained"``: ``betas`` as they are, ``steps`` of them.
    Between labels, ``ln sigma`` is interpolated linearly; label -1 stands for sigma = 0.

    ValueError for another kind, or betas that are not ``steps`` numbers between 0 and 1.
    """

    steps: int = 1000
    kind: Betas = "linear"
    beta_min: float = 1e-4
    beta_max: float = 0.02
    betas: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(float(b) for b in self.betas))  # a list, where it comes from a file
        one_of("kind", self.kind, Betas)
        if len(self.betas) != (self.steps if self.kind == "trained" else 0):
            raise ValueError(
                f"a chain of {self.steps} labels has as many betas, and has them only if its kind is 'trained'; "
                f"got {len(self.betas)} for {self.kind!r}"
            )
        if not all(0 < b < 1 for b in self.betas):
            raise ValueError("trained betas must lie between 0 and 1")

    @property
    def config(self) -> dict[str, Any]:
        found = dict[str, Any](
            schedule="vp_discrete", steps=self.steps, kind=self.kind, beta_min=self.beta_min, beta_max=self.beta_max
        )
        return found | ({"betas": list(self.betas)} if self.kind == "trained" else {})

    @cached_property
    def sigmas(self) -> Tensor:
        """Sigma of each label, float64 ``(steps,)``, increasing."""
        if self.kind == "linear":
            betas = torch.linspace(self.beta_min, self.beta_max, self.steps, dtype=torch.float64)
        elif self.kind == "scaled_linear":
            betas = torch.linspace(self.beta_min**0.5, self.beta_max**0.5, self.steps, dtype=torch.float64) ** 2
        elif self.kind == "trained":
            betas = torch.tensor(self.betas, dtype=torch.float64)
        else:
            t = torch.arange(self.steps + 1, dtype=torch.float64) / self.steps
            bar = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
            betas = (1 - bar[1:] / bar[:-1]).clamp(max=0.999)
        alpha_bar = torch.cumprod(1 - betas, 0)
        return ((1 - alpha_bar) / alpha_bar).sqrt()

    @cached_property
    def _copies(self) -> dict[torch.device, Tensor]:
        return {}

    def sigmas_on(self, device: torch.device) -> Tensor:
        """:attr:`sigmas` on a device, copied there once: each copy would make the host wait for a GPU."""
        if device not in self._copies:
            self._copies[device] = self.sigmas.to(device)
        return self._copies[device]

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
        chain = self.sigmas_on(sigma.device)
        x = sigma.double().clamp(min=self.sigma_min, max=self.sigma_max).contiguous()
        hi = torch.searchsorted(chain, x).clamp(1, self.steps - 1)
        # One logarithm of each ratio: on the chain both are of the same number, so the fraction is 0 or 1 exactly,
        # however a processor rounds a logarithm.
        low, high = chain[hi - 1], chain[hi]
        return hi - 1 + (x / low).log() / (high / low).log()

    def sigma(self, label: Tensor) -> Tensor:
        """Sigma at labels in ``[-1, steps - 1]``, the chain's own at integers; towards -1 it goes to 0 linearly."""
        label = torch.as_tensor(label, dtype=torch.float64)
        chain = self.sigmas_on(label.device)
        lo = label.floor().long().clamp(0, self.steps - 1)
        low, high = chain[lo], chain[(lo + 1).clamp(max=self.steps - 1)]
        inside = low * (high / low) ** (label - lo)
        return torch.where(label < 0, (label + 1) * self.sigma_min, inside)


@dataclass(frozen=True)
class VPContinuous:
    """The variance-preserving SDE of Song et al. 2021: ``beta(t) = beta_min + t (beta_max - beta_min)``.

    Labels are ``999 t``, ``t`` in ``[eps, 1]``, as score-SDE networks expect.  ``beta_min`` may be a little below 0, as
    in the VP time of EDM's range (-0.0047 and 17.53 for 0.002 to 80); sigma is then 0 at a label a little above 0.
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
        root = (self.beta_min**2 + 2 * spread * log).sqrt()
        if self.beta_min < 0:  # where the other form is 0 / 0 at sigma = 0; above 0 this one loses digits there
            return 999 * (root - self.beta_min) / spread
        return 999 * 2 * log / (self.beta_min + root)

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


@dataclass(frozen=True)
class Flow:
    """Flow matching: ``x_t = (1 - t) x_0 + t eps``, so ``alpha = 1 - t`` and ``sigma = t / (1 - t)``.

    Labels are ``steps t``.  At ``t = 1`` no image is left and sigma is infinite, so the range ends one label short, at
    ``t = 1 - 1 / steps``, as it starts at ``1 / steps``.  ``shift`` moves the times of a grid up without touching
    the process: ``t -> shift t / (1 + (shift - 1) t)`` (Stable Diffusion 3, Esser et al. 2024), which multiplies
    sigma by ``shift``, the ends of the range included.
    """

    steps: int = 1000
    shift: float = 1.0

    @property
    def config(self) -> dict[str, Any]:
        return dict(schedule="flow", steps=self.steps, shift=self.shift)

    @property
    def sigma_min(self) -> float:
        return self.shift / (self.steps - 1)

    @property
    def sigma_max(self) -> float:
        return self.shift * (self.steps - 1)

    def alpha(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def label(self, sigma: Tensor) -> Tensor:
        return self.steps * sigma / (1 + sigma)

    def sigma(self, label: Tensor) -> Tensor:
        t = torch.as_tensor(label, dtype=torch.float64) / self.steps
        return t / (1 - t)


# VP chains of so many ``steps``: DDPM's linear one, betas 1e-4..0.02; the cosine one; Stable Diffusion's.
vp_linear = partial(VPDiscrete, kind="linear")
cosine = partial(VPDiscrete, kind="cosine")
scaled_linear = partial(VPDiscrete, kind="scaled_linear", beta_min=0.00085, beta_max=0.012)


def from_config(config: dict[str, Any]) -> Schedule:
    """The schedule that wrote ``config`` (its ``.config``)."""
    kinds = {"vp_discrete": VPDiscrete, "vp_continuous": VPContinuous, "edm": EDM, "flow": Flow}
    rest = {k: v for k, v in config.items() if k != "schedule"}
    try:
        return kinds[config["schedule"]](**rest)
    except KeyError:
        raise ValueError(f"unknown schedule {config.get('schedule')!r}; known: {', '.join(kinds)}") from None
