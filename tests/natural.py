"""A tiny stand-in for the natural images: sheets of drawn patterns, of as many classes as a test wants."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from dode.zoo import datasets


def pixels(kind: int, seed: int) -> torch.Tensor:
    """A sheet ``(10, 25, 3, 32, 32)``, uint8: stripes, a direction and hue for each class."""
    rows, columns = datasets.SHEET
    g = torch.Generator().manual_seed(seed)
    phase = 6.28 * torch.rand(rows, columns, 1, 1, 1, generator=g)
    hue = torch.rand(3, 1, 1, generator=torch.Generator().manual_seed(kind))
    place = torch.arange(datasets.SIDE) / 3.0
    wave = torch.sin((place[:, None] if kind % 2 else place[None]) + phase)
    return ((0.5 + 0.4 * wave * hue) * 255).expand(rows, columns, 3, datasets.SIDE, datasets.SIDE).to(torch.uint8)


def write_sheet(path: Path, sheet: torch.Tensor) -> None:
    """A sheet as the PNG that the loader reads."""
    picture = sheet.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(picture.contiguous().numpy()).save(path)


def make(folder: Path, monkeypatch: pytest.MonkeyPatch, classes: int = 2) -> list[torch.Tensor]:
    """Write ``classes`` sheets below ``folder``, point ``DODE_DATA`` there, and return their images."""
    (folder / "imagenet32").mkdir(parents=True)
    sheets = [pixels(kind, 100 + kind) for kind in range(classes)]
    for kind, sheet in reversed(list(enumerate(sheets))):
        write_sheet(folder / "imagenet32" / f"n{kind:08d}.png", sheet)
    monkeypatch.setattr(datasets, "CLASSES", classes)
    monkeypatch.setenv("DODE_DATA", str(folder))
    return sheets
