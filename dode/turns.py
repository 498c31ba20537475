"""Which condition each image of a run is told: image ``i`` the one at ``i mod K``, however the run is cut.

A network that is told classes or prompts holds a :class:`Turn`.  Whoever cuts a run into batches says which images a
batch holds (:meth:`dode.denoisers.Denoiser.of`).  Where images are numbered by their seeds, as in sweeps and on the
command line, the condition of an image depends on its seed alone, as its noise does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import gcd

import torch
from torch import Tensor

Images = slice | Iterable[int] | Tensor


@dataclass(frozen=True)
class Turn:
    """``rows`` conditions told in turn to the images numbered ``images``; None: to those from 0 on."""

    rows: int = 1
    images: Tensor | None = None
    _known: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, compare=False, repr=False)

    def of(self, images: Images) -> Turn:
        """For a batch that holds these of the images; numbers beyond the last begin anew."""
        if self.rows == 1:
            return self
        if isinstance(images, slice):
            images = range(images.start or 0, images.stop)
        numbers = images.cpu() if isinstance(images, Tensor) else torch.tensor(list(images), dtype=torch.int64)
        return Turn(self.rows, numbers if self.images is None else self.images[numbers % len(self.images)])

    def check(self, images: int) -> None:
        """ValueError unless a run of so many images is what this is about, or one of whole turns."""
        if self.images is not None and len(self.images) != images:
            raise ValueError(
                f"this denoiser was made for {len(self.images)} images, each with its condition, and is given {images}"
            )
        if self.images is None and images % self.rows:
            raise ValueError(
                f"this denoiser tells its {self.rows} conditions in turn, so it takes batches of a multiple of "
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
