"""Conditioning: which class or prompt each image of a run gets, image ``i`` the one at ``i mod K``.

What is conditioned on is an argument of the network, ``F(input, label, **conditioning(...))``, and no state in it.
Whoever cuts a run into batches says which images a batch holds (:meth:`dode.denoisers.Denoiser.of`).  Where images are
numbered by their seeds, as in sweeps and on the command line, the condition of an image depends on its seed alone, as
its noise does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import gcd
from typing import Literal

import torch
from torch import Tensor

ImageNumbers = slice | Iterable[int] | Tensor
Labels = int | Sequence[int] | Tensor | Literal["all", "none"] | None


@dataclass(frozen=True, eq=False)
class Conditioning:
    """Rows ``(K, ...)`` of tensors by argument of the network; none where it is unconditional.

    Image ``i`` gets row ``i mod K``; ``images`` are the numbers of a batch's images, None: from 0 on.

    ValueError for arguments with different numbers of rows, or none.
    """

    rows: Mapping[str, Tensor] = field(default_factory=dict)
    images: Tensor | None = None
    _moved: dict[torch.device, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)  # one for all parts
    _places: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        counts = {len(rows) for rows in self.rows.values()}
        if len(counts) > 1 or 0 in counts:
            each = ", ".join(f"{name} {len(rows)}" for name, rows in self.rows.items())
            raise ValueError(f"every condition needs the same number of rows, one or more: {each}")

    @property
    def count(self) -> int:
        """``K``, 1 for an unconditional network."""
        return next((len(rows) for rows in self.rows.values()), 1)

    def of(self, images: ImageNumbers) -> Conditioning:
        """For a batch that holds these of the images; numbers beyond the last begin anew."""
        if self.count == 1:
            return self
        if isinstance(images, slice):
            images = range(images.start or 0, images.stop)
        numbers = images.cpu() if isinstance(images, Tensor) else torch.tensor(list(images), dtype=torch.int64)
        return replace(self, images=numbers if self.images is None else self.images[numbers % len(self.images)])

    def check(self, images: int) -> None:
        """ValueError unless a run has as many images as this was made for, or a multiple of the conditions."""
        if self.images is not None and len(self.images) != images:
            made = f"this denoiser was made for {len(self.images)} images"
            raise ValueError(f"{made}, each with its condition, and is given {images}")
        if self.images is None and images % self.count:
            wanted = f"{self.count} conditions, one an image, so it takes batches of a multiple of {self.count} images"
            raise ValueError(f"this denoiser has {wanted}, got {images}; .of(seeds) tells it which images these are")

    def __call__(self, images: int, device: torch.device) -> dict[str, Tensor]:
        """The arguments ``(B, ...)`` of a batch, on ``device``; errors as in :meth:`check`."""
        if not self.rows:
            return {}
        if device not in self._moved:
            self._moved[device] = {name: rows.to(device) for name, rows in self.rows.items()}
        if (places := self._places.get((images, device))) is None:
            self.check(images)
            numbers = torch.arange(images) if self.images is None else self.images
            places = self._places[images, device] = (numbers % self.count).to(device)
        return {name: rows[places] for name, rows in self._moved[device].items()}


def spread(count: int) -> list[int]:
    """0 to ``count - 1`` in an order whose consecutive pieces are even over the whole: steps of a golden section."""
    step = next(s for k in range(count + 1) for s in (round(0.618 * count) + k,) if gcd(s, count) == 1)
    return [step * i % count for i in range(count)]


def class_labels(classes: int, labels: Labels) -> Conditioning:
    """Of a network of ``classes`` classes (0: unconditional): one label for all images, or several in turn.

    "all" is every class once, in the order of :func:`spread`; "none" is any, for networks that learned that.

    ValueError for labels of an unconditional network, none of a conditional one, or labels out of range.
    """
    if not classes:
        if labels is not None:
            raise ValueError("the network is unconditional; leave out labels")
        return Conditioning()
    if labels is None:
        raise ValueError(f"the network draws one of {classes} classes; give labels=, one, several or 'all'")
    if labels == "none":
        return Conditioning({"classes": torch.tensor([classes])})
    if isinstance(labels, str):
        labels = spread(classes) if labels == "all" else []
    found = torch.as_tensor(labels).reshape(-1)
    if found.is_floating_point() or not len(found) or found.min() < 0 or found.max() >= classes:
        raise ValueError(f"labels must be whole numbers from 0 to {classes - 1}, got {labels}")
    return Conditioning({"classes": found.to(torch.int64)})
