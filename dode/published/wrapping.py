"""Published networks as dode calls them, ``F(x, label)``, and the one kind of prediction that only they have."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from dode.denoisers import Coefficients, NetworkDenoiser
from dode.turns import Images, Turn, spread

Labels = int | Sequence[int] | Tensor | Literal["all"] | None


class Published(nn.Module):
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

    labels: Tensor | None

    def __init__(self, body: nn.Module, channels: int, *, classes: int = 0, label_scale: float = 1.0) -> None:
        super().__init__()
        self.body, self.channels, self.classes, self.label_scale = body, channels, classes, label_scale
        self.register_buffer("labels", None, persistent=False)
        self.turn = Turn()

    def condition(self, labels: Labels) -> Published:
        """Set the classes: one for all images, or several, told in turn (:class:`dode.turns.Turn`); returns self.

        "all" is every class once, in an order whose consecutive pieces are even over the whole.

        Raises
        ------
        ValueError
            Classes for an unconditional network, none for a conditional one, or out of range.
        """
        if not self.classes:
            if labels is not None:
                raise ValueError("the network is unconditional; leave out labels")
            return self
        if labels is None:
            raise ValueError(f"the network draws one of {self.classes} classes; give labels=, one, several or 'all'")
        if isinstance(labels, str):
            labels = spread(self.classes) if labels == "all" else []
        found = torch.as_tensor(labels).reshape(-1)
        if found.is_floating_point() or not len(found) or found.min() < 0 or found.max() >= self.classes:
            raise ValueError(f"labels must be whole numbers from 0 to {self.classes - 1}, got {labels}")
        self.labels = found.to(next(self.parameters()).device, torch.int64)
        self.turn = Turn(len(found))
        return self

    def of(self, images: Images) -> Published:
        """The same network, for a batch that holds these images of a run."""
        found = copy.copy(self)
        found.turn = self.turn.of(images)
        return found

    def told(self, images: int) -> Tensor | None:
        """Classes ``(B,)`` of a batch.  ValueError if it has other images than the network was told of."""
        return None if self.labels is None else self.labels[self.turn.places(images, self.labels.device)]

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
