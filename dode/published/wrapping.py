"""Published networks as dode calls them, ``F(x, label)``, and the one kind of prediction that only they have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dode.conditions import ClassConditional
from dode.denoisers import Coefficients, NetworkDenoiser


class Published(ClassConditional):
    """A published network as dode calls it, ``F(x, label)``: classes told, surplus channels cut off.

    Parameters
    ----------
    body
        Called with images, labels and classes ``(B,)`` (or None).
    classes
        0 for an unconditional network.
    label_scale
        Multiplies the schedule's label.
    channels
        Of the image; what the body gives beyond them (variances) is dropped.
    """

    def __init__(self, body: nn.Module, channels: int, *, classes: int = 0, label_scale: float = 1.0) -> None:
        super().__init__(classes)
        self.body, self.channels, self.label_scale = body, channels, label_scale

    @property
    def bottleneck(self) -> nn.Module:
        """What solvers that look at the network read (:mod:`dode.lms`)."""
        return self.body.bottleneck  # type: ignore[return-value]

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.body(x, self.label_scale * label, self.told(len(x)))[:, : self.channels]


class VEPrediction(NetworkDenoiser):
    """``D = x + sigma F(x, ln(sigma / 2))``: ``F`` predicts the noise with a minus (Karras et al. 2022, table 1)."""

    prediction = "noise"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (sigma / 2).log())
