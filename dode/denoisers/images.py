"""What a sample of a model is: its values, how it becomes a picture, and what measures it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Images:
    """Samples ``(B, ...)`` of a model; by default pictures with values from -1 (black) to 1 (white).

    Nothing else in dode assumes a range: what turns samples into pictures, or clips them, asks ``denoiser.images``.
    """

    low: float = -1.0  # the value of black,
    high: float = 1.0  # and of white
    # From samples to pictures (B, C, H, W) of low to high: a decoder of latents, a stretch of a telescope's flux.
    to_picture: Callable[[Tensor], Tensor] | None = None  # None: the samples are pictures
    to_values: Callable[[Tensor], Tensor] | None = None  # to what is measured, a flux for instance; None: the samples
    evaluators: str = ""  # the data set (dode.zoo.datasets.DATA_SETS) whose classifiers know these pictures, if any

    def picture(self, samples: Tensor) -> Tensor:
        """``(B, C, H, W)``, ``low`` to ``high``."""
        return samples if self.to_picture is None else self.to_picture(samples)

    def values(self, samples: Tensor) -> Tensor:
        """The quantity that the samples stand for, of their shape: what files of numbers hold."""
        return samples if self.to_values is None else self.to_values(samples)

    def clip(self, samples: Tensor) -> Tensor:
        """To what a file can hold, as evaluation clips; what is no picture yet no file clips: it stays as it is."""
        return samples.clamp(self.low, self.high) if self.to_picture is None else samples

    def pixel_values(self, samples: Tensor) -> Tensor:
        """Pictures with float32 values 0 (black) to 255 (white), neither rounded nor clipped, so they have slopes."""
        scale = 255 / (self.high - self.low)
        return self.picture(samples).float() * scale - self.low * scale

    def to_uint8(self, samples: Tensor) -> Tensor:
        """Pictures in uint8 0..255, rounded and clipped: what an image file, and an FID, sees."""
        return self.pixel_values(samples).round().clamp(0, 255).to(torch.uint8)

    def from_uint8(self, pixels: Tensor) -> Tensor:
        """uint8 0..255 to float32 ``low`` to ``high``."""
        return pixels.float() / (255 / (self.high - self.low)) + self.low

    def mosaic(self, samples: Tensor, columns: int) -> np.ndarray:
        """All pictures as one: :func:`sheet`."""
        return sheet(self.to_uint8(samples.detach()), columns)


def sheet(pixels: Tensor, columns: int) -> np.ndarray:
    """uint8 ``(B, C, H, W)`` as one picture, uint8 ``(rows, columns[, C])`` (no ``C`` of 1), white in between."""
    b, c, h, w = pixels.shape
    found = torch.full((-(-b // columns) * columns, c, h + 1, w + 1), 255, dtype=torch.uint8)
    found[:b, :, :h, :w] = pixels.cpu()
    found = found.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    return F.pad(found, (1, 0, 1, 0), value=255).permute(1, 2, 0).squeeze(-1).contiguous().numpy()


PICTURES = Images()
