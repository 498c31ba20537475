"""Denoisers: ``D(x, sigma) -> estimate of x_0``, the one thing a solver asks of a model.

``x`` is ``(B, ...)`` in the coordinates ``x / alpha``; ``sigma`` a number, a 0-d or a ``(B,)`` tensor.
Every kind of network becomes a denoiser by four coefficients that depend on sigma alone,

    D(x, sigma) = c_skip x + c_out F(c_in x, label)

so prediction types are one line each.  Network evaluations are counted here and nowhere else.

A solver's loop asks for the parts of ``D`` instead (:meth:`Denoiser.affine`): at one level for the whole
batch the coefficients are plain numbers, computed once, and what the solver needs (``D``, or the noise
``(x - D) / sigma``, which for a noise-predicting network is ``F`` itself) costs at most one pass or two.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dode.schedules import EDM, Flow, Schedule, VPDiscrete, karras, time_uniform
from dode.turns import Images, Turn


class Coefficients(NamedTuple):
    """``D = skip x + out F(inp x, label)``; each float64, of sigma's shape."""

    skip: Tensor
    out: Tensor
    inp: Tensor
    label: Tensor


class Level(NamedTuple):
    """The :class:`Coefficients` of one level for the whole batch, as plain numbers."""

    skip: float
    out: float
    inp: float
    label: float


class Affine(NamedTuple):
    """``D = skip x + out raw``: numbers, and a tensor of ``x``'s shape in whatever dtype the network gave it."""

    skip: float
    out: float
    raw: Tensor


def expand(value: Tensor, x: Tensor) -> Tensor:
    """A 0-d or ``(B,)`` tensor, in ``x``'s dtype and ready to multiply ``x``.

    A 0-d CPU tensor stays there: torch multiplies by it on any device, where a copy would make the host wait.
    """
    if value.ndim == 0:
        return value.to(x.dtype) if value.is_cpu else value.to(x)
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


class Denoiser:
    """A callable ``D(x, sigma)`` that knows its image shape, its noise range and its cost.

    Attributes
    ----------
    shape : tuple
        ``(C, H, W)`` (or any shape) of one sample.
    prediction : str
        What the network was trained to predict: "noise", "data", "v", "flow" or "exact".
    schedule : Schedule
    nfe : int
        Calls so far; :attr:`images` counts the images in them.  Set both to 0 with :meth:`reset`.
    told : Turn
        The conditions that it tells in turn: image ``i`` of a run the one at ``i mod turn``.  A batch that is a part
        of a run is given to :meth:`of` that part.
    """

    prediction = "exact"
    name = "denoiser"

    def __init__(self, shape: Sequence[int], schedule: Schedule | None = None) -> None:
        self.shape = tuple(shape)
        self.schedule: Schedule = schedule or EDM()
        self._count = dict(nfe=0, images=0)  # one for all parts

    def reset(self) -> None:
        """Set the counters to zero."""
        self._count.update(nfe=0, images=0)

    @property
    def nfe(self) -> int:
        return self._count["nfe"]

    @property
    def images(self) -> int:
        return self._count["images"]

    @property
    def told(self) -> Turn:
        return Turn()

    @property
    def turn(self) -> int:
        """How many conditions it tells."""
        return self.told.rows

    def of(self, images: Images) -> Denoiser:
        """The same denoiser for a batch that holds these images of a run: seeds, or places in the run.

        It tells each what it is told in the whole, and counts with the whole; where all are told the same, it is self.
        """
        return self

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
        """The customary grid of ``n`` steps to 0, ``(n + 1,)``.

        Uniform in time on a VP chain and for flow matching, there with the schedule's shift; otherwise Karras's.
        """
        shift = self.schedule.shift if isinstance(self.schedule, Flow) else 1.0
        if isinstance(self.schedule, (VPDiscrete, Flow)):
            return shift * time_uniform(n, self.sigma_min / shift, self.sigma_max / shift, self.schedule, final="zero")
        return karras(n, self.sigma_min, self.sigma_max, final="zero")

    def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) != len(x)):
            raise ValueError(f"sigma must be one number or one for each of {len(x)} samples, got {tuple(sigma.shape)}")
        self._admit(x)
        return self.denoise(x, sigma)

    def affine(self, x: Tensor, sigma: float) -> Affine:
        """One evaluation at one level for the whole batch, in parts: ``D(x, sigma) = skip x + out raw``.

        Raises
        ------
        ValueError
            ``x`` is not ``(B, *shape)``.
        """
        self._admit(x)
        return self.parts(x, sigma)

    def _admit(self, x: Tensor) -> None:
        """Refuse samples of another shape, and count the evaluation."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"{self.name} takes samples of shape {self.shape}, got {tuple(x.shape[1:])}")
        self._count["nfe"] += 1
        self._count["images"] += x.shape[0]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def parts(self, x: Tensor, sigma: float) -> Affine:
        return Affine(0.0, 1.0, self.denoise(x, torch.tensor(sigma, dtype=torch.float64)))


class NetworkDenoiser(Denoiser):
    """A network ``F(input, label)`` with the coefficients of its prediction type.

    The network runs in its own dtype (or in ``autocast``, e.g. ``torch.bfloat16``); the state keeps
    its own, so a float64 sampler may drive a float32 network.  What the network returns is kept as a
    solver's output, not copied: a network that writes its next answer over its last must return a clone.
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
        self._levels: dict[float, Level] = {}

    @property
    def told(self) -> Turn:
        return getattr(self.network, "turn", None) or Turn()

    def of(self, images: Images) -> NetworkDenoiser:
        if self.turn == 1:
            return self
        found = copy.copy(self)
        found.network = self.network.of(images)  # type: ignore[union-attr,operator]
        return found

    def level(self, sigma: float) -> Level:
        """The coefficients of one level, computed when it is first met (a schedule's label is a search)."""
        found = self._levels.get(sigma)
        if found is None:
            at = self.coefficients(torch.tensor(sigma, dtype=torch.float64))
            found = self._levels[sigma] = Level(*(float(c) for c in at))
        return found

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

    def raw(self, x: Tensor, c: Coefficients | Level) -> Tensor:
        """The bare network ``F`` at preconditioned input, in the network's dtype."""
        own, images = self._dtype, x.shape[0]
        wide = torch.promote_types(own, torch.float32)  # labels up to 1000 do not fit half precision
        if isinstance(c, Level):
            scaled, label = x * c.inp, torch.full((images,), c.label, dtype=wide, device=x.device)
        else:
            label = torch.zeros(images, dtype=wide, device=x.device)
            scaled, label = x * expand(c.inp, x), label + expand(c.label, label)
        if self.autocast is None:
            return self.network(scaled.to(own), label)
        with torch.autocast(x.device.type, dtype=self.autocast):
            return self.network(scaled.to(own), label)

    def parts(self, x: Tensor, sigma: float) -> Affine:
        c = self.level(sigma)
        return Affine(c.skip, c.out, self.raw(x, c))

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


class FlowPrediction(NetworkDenoiser):
    """``F`` predicts ``eps - x_0``, the velocity of ``x_t = (1 - t) x_0 + t eps``, so ``x_0 = x_t - t F``.

    Flow matching (Lipman et al. 2023, Liu et al. 2023).
    """

    prediction = "flow"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        alpha = self.schedule.alpha(sigma)
        return Coefficients(alpha, -alpha * sigma, alpha, self.schedule.label(sigma))


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


class ConsistencyPrediction(EDMPrediction):
    """EDM's coefficients moved so that ``D(x, sigma_min) = x`` exactly (Song et al. 2023, appendix C)."""

    def coefficients(self, sigma: Tensor) -> Coefficients:
        d2, above = self.sigma_data**2, sigma - self.sigma_min
        norm = (sigma**2 + d2).rsqrt()
        return Coefficients(d2 / (above**2 + d2), above * self.sigma_data * norm, norm, self.schedule.label(sigma))


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
