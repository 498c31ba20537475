"""Networks as denoisers: a prediction type is four coefficients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from dode.denoisers.base import Affine, Coefficients, Denoiser, expand
from dode.denoisers.conditioning import Conditioning
from dode.schedules import Schedule


def first_parameter(network: nn.Module | Callable[..., Tensor]) -> Tensor:
    """A tensor of the network's device and dtype; the CPU's and float32 where it has no parameters."""
    parameters = network.parameters() if isinstance(network, nn.Module) else iter(())
    return next(parameters, torch.empty(0, dtype=torch.float32, device="cpu"))


class NetworkDenoiser(Denoiser):
    """A network ``F(input, label, **conditions)`` with the coefficients of its prediction type.

    ``conditioning`` has the conditions of each image, by the names of the network's arguments; none by default.
    The network runs in its own dtype (or in ``autocast``, e.g. ``torch.bfloat16``); the state keeps
    its own, so a float64 sampler may drive a float32 network.  What the network returns is kept as a
    solver's output, not copied: a network that writes its next answer over its last must return a clone.
    """

    def __init__(
        self, network: nn.Module | Callable[..., Tensor], shape: Sequence[int], schedule: Schedule, *,
        conditioning: Conditioning | None = None, autocast: torch.dtype | None = None, name: str | None = None,
    ) -> None:  # fmt: skip
        super().__init__(shape, schedule)
        self.network, self.autocast, self.name = network, autocast, name or type(self).__name__
        self.conditioning = conditioning or Conditioning()
        self._levels: dict[float, Coefficients] = {}

    def level(self, sigma: float) -> Coefficients:
        """The coefficients of one level, computed when it is first met (a schedule's label is a search)."""
        found = self._levels.get(sigma)
        if found is None:
            at = self.coefficients(torch.tensor(sigma, dtype=torch.float64))
            found = self._levels[sigma] = Coefficients(*(float(c) for c in at))
        return found

    def coefficients(self, sigma: Tensor) -> Coefficients:
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return first_parameter(self.network).device

    def raw(self, x: Tensor, c: Coefficients, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """The bare network ``F`` at preconditioned input, in its dtype; ``given`` conditions in place of its own."""
        own, images = first_parameter(self.network).dtype, x.shape[0]
        given = self.conditioning(images, x.device) if given is None else given
        wide = torch.promote_types(own, torch.float32)  # labels up to 1000 do not fit half precision
        label = torch.full((images,), c.label if isinstance(c.label, float) else 0.0, dtype=wide, device=x.device)
        if not isinstance(c.label, float):
            label = label + expand(c.label, label)
        with torch.autocast(x.device.type, dtype=self.autocast) if self.autocast else nullcontext():
            return self.network((x * expand(c.inp, x)).to(own), label, **given)

    def affine_parts(self, x: Tensor, sigma: float) -> Affine:
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


def is_compiled(network: object) -> bool:
    """Whether ``torch.compile`` made it."""
    return hasattr(network, "_orig_mod")


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


class VEPrediction(NetworkDenoiser):
    """``D = x + sigma F(x, ln(sigma / 2))``: ``F`` predicts the noise with a minus (Karras et al. 2022, table 1)."""

    prediction = "noise"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (sigma / 2).log())
