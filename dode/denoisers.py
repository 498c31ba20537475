"""Denoisers: ``D(x, sigma) -> estimate of x_0``, the one thing a solver asks of a model.

``x`` is ``(B, ...)`` in the coordinates ``x / alpha``; ``sigma`` a number, a 0-d or a ``(B,)`` tensor.
Every kind of network becomes a denoiser by four coefficients that depend on sigma alone,

    D(x, sigma) = c_skip x + c_out F(c_in x, label)

so prediction types are one line each.  Network evaluations are counted here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dode.schedules import EDM, Schedule, VPDiscrete, karras, time_uniform


class Coefficients(NamedTuple):
    """``D = skip x + out F(inp x, label)``; each float64, of sigma's shape."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    label: Tensor


def expand(value: Tensor, x: Tensor) -> Tensor:
    """A 0-d or ``(B,)`` tensor, in ``x``'s dtype and ready to multiply ``x``."""
    value = value.to(device=x.device, dtype=x.dtype)
    return value if value.ndim == 0 else value.reshape(-1, *[1] * (x.ndim - 1))


class Denoiser:
    """A callable ``D(x, sigma)`` that knows its image shape, its noise range and its cost.

    Attributes
    ----------
    shape : tuple
        ``(C, H, W)`` (or any shape) of one sample.
    prediction : str
        What the network was trained to predict: "noise", "data", "v" or "exact".
    schedule : Schedule
    nfe : int
        Calls so far; :attr:`images` counts the images in them.  Set both to 0 with :meth:`reset`.
    """

    prediction = "exact"
    name = "denoiser"

    def __init__(self, shape: Sequence[int], schedule: Schedule | None = None) -> None:
        self.shape = tuple(shape)
        self.schedule: Schedule = schedule or EDM()
        self.reset()

    def reset(self) -> None:
        """Set the counters to zero."""
        self.nfe = 0
        self.images = 0

    @property
    def device(self) -> torch.device:
        """Where samples should live."""
        return torch.device("cpu")

    @property
    def sigma_min(self) -> float:
        return self.schedule.sigma_min

    @property
    def sigma_max(self) -> float:
        return self.schedule.sigma_max

    def grid(self, n: int) -> Tensor:
        """The customary grid of ``n`` steps to 0, ``(n + 1,)``: uniform in time on a VP chain, Karras's otherwise."""
        if isinstance(self.schedule, VPDiscrete):
            return time_uniform(n, self.sigma_min, self.sigma_max, self.schedule, final="zero")
        return karras(n, self.sigma_min, self.sigma_max, final="zero")

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"{self.name} takes samples of shape {self.shape}, got {tuple(x.shape[1:])}")
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) != len(x)):
            raise ValueError(f"sigma must be one number or one for each of {len(x)} samples, got {tuple(sigma.shape)}")
        self.nfe += 1
        self.images += len(x)
        return self.denoise(x, sigma)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError


class NetworkDenoiser(Denoiser):
    """A network ``F(input, label)`` with the coefficients of its prediction type.

    The network runs in its own dtype (or in ``autocast``, e.g. ``torch.bfloat16``); the state keeps
    its own, so a float64 sampler may drive a float32 network.
    """

    def __init__(
        self,
        network: nn.Module | Callable[[Tensor, Tensor], Tensor],
        shape: Sequence[int],
        schedule: Schedule,
        *,
        autocast: torch.dtype | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(shape, schedule)
        self.network = network
        self.autocast = autocast
        self.name = name or type(self).__name__

    def coefficients(self, sigma: Tensor) -> Coefficients:
        raise NotImplementedError

    @property
    def _dtype(self) -> torch.dtype:
        if isinstance(self.network, nn.Module):
            return next((p.dtype for p in self.network.parameters()), torch.float32)
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        if isinstance(self.network, nn.Module):
            return next((p.device for p in self.network.parameters()), torch.device("cpu"))
        return torch.device("cpu")

    def raw(self, x: Tensor, c: Coefficients) -> Tensor:
        """The bare network ``F`` at preconditioned input, in the network's dtype."""
        wide = torch.promote_types(self._dtype, torch.float32)  # labels up to 1000 do not fit half precision
        label = c.label.to(device=x.device, dtype=wide).expand(len(x))
        context: AbstractContextManager[object] = nullcontext()
        if self.autocast is not None:
            context = torch.autocast(x.device.type, dtype=self.autocast)
        with context:
            return self.network((expand(c.inp, x) * x).to(self._dtype), label)

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        c = self.coefficients(sigma)
        return expand(c.skip, x) * x + expand(c.out, x) * self.raw(x, c).to(x.dtype)

    def to(self, device: str | torch.device) -> NetworkDenoiser:
        """Move the network; returns self."""
        if isinstance(self.network, nn.Module):
            self.network.to(device)
        return self


class NoisePrediction(NetworkDenoiser):
    """``F`` predicts the noise: ``D = x - sigma F(alpha x, label)`` (DDPM)."""

    prediction = "noise"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        s = self.schedule
        return Coefficients(torch.ones_like(sigma), -sigma, s.alpha(sigma), s.label(sigma))


class DataPrediction(NetworkDenoiser):
    """``F`` predicts the clean image: ``D = F(alpha x, label)``."""

    prediction = "data"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        s = self.schedule
        return Coefficients(torch.zeros_like(sigma), torch.ones_like(sigma), s.alpha(sigma), s.label(sigma))


class VPrediction(NetworkDenoiser):
    """``F`` predicts ``v = alpha eps - sigma_t x_0`` (Salimans and Ho 2022), for VP schedules."""

    prediction = "v"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        alpha = self.schedule.alpha(sigma)
        return Coefficients(alpha**2, -alpha * sigma, alpha, self.schedule.label(sigma))


class EDMPrediction(NetworkDenoiser):
    """Data prediction with EDM's preconditioning (Karras et al. 2022, table 1)."""

    prediction = "data"

    def __init__(self, *args: object, sigma_data: float = 0.5, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> Coefficients:
        d2 = self.sigma_data**2
        norm = (sigma**2 + d2).rsqrt()
        return Coefficients(d2 * norm**2, sigma * self.sigma_data * norm, norm, self.schedule.label(sigma))


class GaussianDenoiser(Denoiser):
    """Exact for data ``N(mean, std^2 I)``: ``D = (std^2 x + sigma^2 mean) / (std^2 + sigma^2)``."""

    name = "Gaussian"

    def __init__(self, mean: Tensor, std: float, schedule: Schedule | None = None) -> None:
        super().__init__(mean.shape, schedule)
        self.mean, self.std = mean, std

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        s2 = expand(sigma, x) ** 2
        return (self.std**2 * x + s2 * self.mean.to(x)) / (self.std**2 + s2)

    def solution(self, x: Tensor, sigma: float, target: float) -> Tensor:
        """The exact ODE solution at ``target`` from ``x`` at ``sigma``."""
        ratio = ((self.std**2 + target**2) / (self.std**2 + sigma**2)) ** 0.5
        return self.mean.to(x) + ratio * (x - self.mean.to(x))


class MixtureDenoiser(Denoiser):
    """Exact for a mixture of isotropic Gaussians: the posterior mean, component by component.

    ``means`` is ``(K, *shape)``, ``stds`` and ``weights`` ``(K,)``.
    """

    name = "Gaussian mixture"

    def __init__(self, means: Tensor, stds: Tensor, weights: Tensor | None = None, schedule: Schedule | None = None):
        super().__init__(means.shape[1:], schedule)
        self.means = means
        self.stds = stds
        self.weights = torch.ones_like(stds) / len(stds) if weights is None else weights / weights.sum()

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        means, stds, weights = (v.to(x) for v in (self.means, self.stds, self.weights))
        flat, centres = x.reshape(len(x), -1), means.reshape(len(means), -1)
        s2 = sigma.to(x).reshape(-1, 1) ** 2  # (1 or B, 1)
        total = stds**2 + s2  # (1 or B, K)
        distance = torch.cdist(flat, centres, compute_mode="donot_use_mm_for_euclid_dist").square()
        logits = weights.log() - distance / (2 * total) - flat.shape[1] / 2 * total.log()
        posterior = logits.softmax(dim=1)  # (B, K)
        shrink = stds**2 / total
        mean = (posterior * shrink).sum(1, keepdim=True) * flat + (posterior * (1 - shrink)) @ centres
        return mean.reshape(x.shape)
