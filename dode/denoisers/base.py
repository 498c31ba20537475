"""What every denoiser has: a shape, a schedule, a count of its evaluations, and the parts that a loop asks for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from dode.denoisers.conditioning import Conditioning, ImageNumbers
from dode.denoisers.images import PICTURES, Images
from dode.schedules import EDM, Flow, Schedule, VPDiscrete, karras, time_uniform


class Coefficients(NamedTuple):
    """``D = skip x + out F(inp x, label)``: float64 of sigma's shape, or plain numbers of one level for all images."""

    skip: Any
    out: Any
    inp: Any
    label: Any


class Affine(NamedTuple):
    """``D = skip x + out raw``: numbers, and a tensor of ``x``'s shape in whatever dtype the network gave it."""

    skip: float
    out: float
    raw: Tensor


def expand(value: Any, x: Tensor) -> Any:
    """A number as it is; a 0-d or ``(B,)`` tensor in ``x``'s dtype and ready to multiply ``x``.

    A 0-d CPU tensor stays there: torch multiplies by it on any device, where a copy would make the host wait.
    """
    if isinstance(value, float):
        return value
    if value.ndim == 0:
        return value.to(x.dtype) if value.is_cpu else value.to(x)
    return value.to(x).reshape(-1, *[1] * (x.ndim - 1))


class Denoiser:
    """A callable ``D(x, sigma)`` that knows its image shape, its noise range and its cost."""

    prediction = "exact"  # or what the network was trained to predict: "noise", "data", "v" or "flow"
    name = "denoiser"
    conditioning = Conditioning()  # the classes or prompts of a conditional network
    images: Images = PICTURES  # what a sample is: its range, how it becomes a picture, what measures it

    def __init__(self, shape: Sequence[int], schedule: Schedule | None = None) -> None:
        self.shape = tuple(shape)  # (C, H, W), or any, of one sample
        self.schedule: Schedule = schedule or EDM()
        self._count = dict(nfe=0, evaluations=0)  # one for all parts

    def reset(self) -> None:
        """Set the counters to zero."""
        self._count.update(nfe=0, evaluations=0)

    @property
    def nfe(self) -> int:
        """Calls so far."""
        return self._count["nfe"]

    @property
    def evaluations(self) -> int:
        """Images in them."""
        return self._count["evaluations"]

    @property
    def conditions(self) -> int:
        """How many classes or prompts it has, 1 for none."""
        return self.conditioning.count

    def of(self, images: ImageNumbers) -> Self:
        """The same denoiser for a batch that holds these images of a run: seeds, or places in the run.

        Each has the condition it has in the whole run; evaluations count with the whole.  With one condition: self.
        """
        if self.conditions == 1:
            return self
        found = copy.copy(self)
        found.conditioning = self.conditioning.of(images)
        return found

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

        ValueError unless ``x`` is ``(B, *shape)``.
        """
        self._admit(x)
        return self.affine_parts(x, sigma)

    def _admit(self, x: Tensor) -> None:
        """Refuse samples of another shape, and count the evaluation."""
        if x.shape[1:] != self.shape:
            raise ValueError(f"{self.name} takes samples of shape {self.shape}, got {tuple(x.shape[1:])}")
        self._count["nfe"] += 1
        self._count["evaluations"] += x.shape[0]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        raise NotImplementedError

    def affine_parts(self, x: Tensor, sigma: float) -> Affine:
        return Affine(0.0, 1.0, self.denoise(x, torch.tensor(sigma, dtype=torch.float64)))
