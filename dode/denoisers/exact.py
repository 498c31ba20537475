"""Denoisers of distributions that have a formula: what solvers are tested on, and drawn with."""

from __future__ import annotations

import torch
from torch import Tensor

from dode.denoisers.base import Denoiser, expand
from dode.schedules import Schedule


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
