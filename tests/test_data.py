"""The loader of Tiny ImageNet: what a sheet holds comes out in its order, and what is no sheet is named in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from small import refused

from dode import zoo
from dode.utils.files import FileError
from dode.zoo import datasets

# --- a tiny stand-in: sheets of drawn patterns, of as many classes as a test wants ---------------------------------


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


# --- the loader ----------------------------------------------------------------------------------------------------


def test_images_come_sheet_by_sheet_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets = make(tmp_path, monkeypatch, classes=3)
    images, labels = datasets.imagenet32()
    assert images.shape == (750, 3, 32, 32) and images.dtype == torch.uint8 and labels.dtype == torch.int64
    assert labels.tolist() == [k for k in range(3) for _ in range(250)]
    for kind, row, column in ((0, 0, 0), (1, 3, 7), (2, 9, 24)):
        assert torch.equal(images[250 * kind + 25 * row + column], sheets[kind][row, column])


def test_the_last_row_of_each_class_is_held_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheets = make(tmp_path, monkeypatch)
    images, labels = datasets.imagenet32("test")
    assert images.shape == (50, 3, 32, 32) and labels.tolist() == [0] * 25 + [1] * 25
    assert torch.equal(images[:25], sheets[0][9]) and torch.equal(images[25:], sheets[1][9])
    rest, kinds = datasets.imagenet32("train")
    assert len(rest) == len(kinds) == 450 and torch.equal(rest[225:], sheets[1][:9].flatten(0, 1))


def test_what_is_no_data_set_is_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, monkeypatch)
    folder = tmp_path / "imagenet32"

    def refuses(message: str) -> None:
        with refused(message, FileError):
            datasets.imagenet32()

    monkeypatch.setattr(datasets, "CLASSES", 200)
    refuses(f"{folder} holds 2 sheets of images (*.png), not one for each of 200 classes")
    monkeypatch.setattr(datasets, "CLASSES", 2)
    first = folder / "n00000000.png"
    whole = first.read_bytes()
    first.write_bytes(whole[: len(whole) // 2])
    refuses(f"{first} cannot be read (")
    first.write_bytes(b"no picture")
    refuses(f"{first} cannot be read (")
    Image.new("RGB", (800, 288)).save(first)
    refuses(f"{first} has pixels of shape (288, 800, 3), not 10 rows of 25 RGB images of 32 x 32; copy it again")
    Image.new("L", (800, 320)).save(first)
    refuses(f"{first} has pixels of shape (320, 800), not 10 rows")
    monkeypatch.setenv("DODE_DATA", str(tmp_path / "nowhere"))
    refuses(f"{tmp_path / 'nowhere' / 'imagenet32'} does not exist; point DODE_DATA at a folder that holds imagenet32")
    monkeypatch.delenv("DODE_DATA")
    refuses("DODE_DATA/imagenet32 does not exist; point DODE_DATA at")


def test_checkpoints_belong_to_a_data_set_by_name() -> None:
    assert datasets.data_set("imagenet32-data") is datasets.data_set("imagenet32") is datasets.DATA_SETS["imagenet32"]
    assert datasets.data_set("fashion-mnist-data-progressive-4").name == "fashion-mnist"
    for name in ("imagenet32x", "edm-cifar10-32x32-uncond-vp", ""):
        with pytest.raises(ValueError, match="is of no data set that is known here: fashion-mnist, imagenet32"):
            datasets.data_set(name)
    for name in zoo.NAMES:
        model, known = zoo.load_denoiser(name), datasets.data_set(name)
        assert model.shape == known.shape and model.images.evaluators == known.name
