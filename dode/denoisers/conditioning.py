"""Conditioning: which class or prompt each image of a run gets, image ``i`` the one at ``i mod K``.

A network of several classes or prompts holds a :class:`Conditioning`.  Whoever cuts a run into batches says which
images a batch holds (:meth:`dode.denoisers.Denoiser.of`).  Where images are numbered by their seeds, as in sweeps and
on the command line, the condition of an image depends on its seed alone, as its noise does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Literal, Self

import torch
from torch import Tensor, nn

Images = slice | Iterable[int] | Tensor
Labels = int | Sequence[int] | Tensor | Literal["all"] | None


@dataclass(frozen=True)
class Conditioning:
    """Image ``i`` gets condition ``i mod rows``; ``images`` are the numbers of a batch's images, None: from 0 on."""

    rows: int = 1
    images: Tensor | None = None
    _known: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def of(self, images: Images) -> Conditioning:
        """For a batch that holds these of the images; numbers beyond the last begin anew."""
        if self.rows == 1:
            return self
        if isinstance(images, slice):
            images = range(images.start or 0, images.stop)
        numbers = images.cpu() if isinstance(images, Tensor) else torch.tensor(list(images), dtype=torch.int64)
        return Conditioning(self.rows, numbers if self.images is None else self.images[numbers % len(self.images)])

    def check(self, images: int) -> None:
        """ValueError unless a run has as many images as this was made for, or a multiple of the conditions."""
        if self.images is not None and len(self.images) != images:
            raise ValueError(
                f"this denoiser was made for {len(self.images)} images, each with its condition, and is given {images}"
            )
        if self.images is None and images % self.rows:
            raise ValueError(
                f"this denoiser has {self.rows} conditions, one an image, so it takes batches of a multiple of "
                f"{self.rows} images, got {images}; .of(seeds) tells it which images these are"
            )

    def places(self, images: int, device: torch.device) -> Tensor:
        """For each image of a batch the place ``(B,)`` of its condition; errors as in :meth:`check`."""
        if (found := self._known.get((images, device))) is None:
            if self.rows > 1:
                self.check(images)
            numbers = torch.arange(images) if self.images is None else self.images
            found = self._known[images, device] = (numbers % self.rows).expand(images).to(device)
        return found


def spread(count: int) -> list[int]:
    """0 to ``count - 1`` in an order whose consecutive pieces are even over the whole: steps of a golden section."""
    step = next(s for k in range(count + 1) for s in (round(0.618 * count) + k,) if gcd(s, count) == 1)
    return [step * i % count for i in range(count)]


class ClassConditional(nn.Module):
    """A network of ``classes`` classes, 0 for an unconditional one, and the labels of what it is to draw.

    The labels stay until others are set, so that a denoiser remains a function of image and level.
    """

    labels: Tensor | None

    def __init__(self, classes: int = 0) -> None:
        super().__init__()
        self.classes = classes
        self.register_buffer("labels", None, persistent=False)
        self.conditioning = Conditioning()

    def condition(self, labels: Labels) -> Self:
        """Set the classes: one for all images, or several (image ``i`` gets ``i mod K``); returns self.

        "all" is every class once, in an order whose consecutive pieces are even over the whole.
        ValueError for classes of an unconditional network, none of a conditional one, or classes out of range.
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
        self.conditioning = Conditioning(len(found))
        return self

    def of(self, images: Images) -> Self:
        """The same network, for a batch that holds these images of a run."""
        found = copy.copy(self)
        found.conditioning = self.conditioning.of(images)
        return found

    def classes_of(self, images: int) -> Tensor | None:
        """Classes ``(B,)`` of a batch.  ValueError if it has other images than :meth:`of` was given."""
        return None if self.labels is None else self.labels[self.conditioning.places(images, self.labels.device)]


class Compiled(nn.Module):
    """A network that was compiled once; the classes of each batch are an input, so it is never compiled again.

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
    def conditioning(self) -> Conditioning:
        return self.network.conditioning

    def of(self, images: Images) -> Self:
        """The same compiled network, for a batch that holds these images of a run."""
        return type(self)(self.network.of(images), self.run)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        return self.run(x, label, self.network.classes_of(len(x))) if self.network.classes else self.run(x, label)
