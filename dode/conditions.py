"""What a network is told of its images beside the noise level: their classes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Literal, Self

import torch
from torch import Tensor, nn

from dode.turns import Images, Turn, spread

Labels = int | Sequence[int] | Tensor | Literal["all"] | None


class ClassConditional(nn.Module):
    """What a network of ``classes`` kinds of images is told of them; 0 classes: nothing.

    The labels stay until others are set, so that a denoiser remains a function of image and level.
    """

    labels: Tensor | None

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("labels", None, persistent=False)
        self.turn = Turn()

    def condition(self, labels: Labels) -> Self:
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

    def of(self, images: Images) -> Self:
        """The same network, for a batch that holds these images of a run."""
        found = copy.copy(self)
        found.turn = self.turn.of(images)
        return found

    def told(self, images: int) -> Tensor | None:
        """Classes ``(B,)`` of a batch.  ValueError if it has other images than the network was told of."""
        return None if self.labels is None else self.labels[self.turn.places(images, self.labels.device)]


class Compiled(nn.Module):
    """A network that was compiled once and is told the classes of each batch as an input, so never compiled again.

    It has no bottleneck to look at: what is compiled into one graph calls nobody back.  For sampling.
    """

    def __init__(self, network: ClassConditional, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network, self.run = network, run

    @classmethod
    def make(cls, network: ClassConditional, **options: object) -> Self:
        """Compile ``F(x, label, kinds)``; ``options`` are those of ``torch.compile``."""
        return cls(network, torch.compile(network, **options))  # type: ignore[call-overload]

    @property
    def turn(self) -> Turn:
        return self.network.turn

    def of(self, images: Images) -> Self:
        """The same compiled network, for a batch that holds these images of a run."""
        return type(self)(self.network.of(images), self.run)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.run(x, label, self.network.told(len(x))) if self.network.classes else self.run(x, label)
