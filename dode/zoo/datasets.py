"""Training images.  Needed to train and to measure against the data, never to sample.

Fashion-MNIST (Xiao et al. 2017, MIT licence) comes from the directory named by ``DODE_DATA`` (``fashion_mnist.npz``
with ``x_train``, ``y_train``, ``x_test``, ``y_test``) or, without it, from the originals.

Tiny ImageNet 32x32, 200 classes of ImageNet (Deng et al. 2009), is under ImageNet's terms: research without commerce.
It comes from that directory alone; dode neither holds nor fetches it.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dode.denoisers import PICTURES
from dode.utils.environment import need
from dode.utils.files import FileError, first_line
from dode.zoo.download import cache, fetched

FASHION_MNIST_URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
# file -> md5 of the published archive
FASHION_MNIST_FILES = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
# md5 of the training images as published (idx header and pixels), for copies in other wrappings
TRAIN_IDX_MD5 = "f4a8712d7a061bf5bd6d2ca38dc4d50a"

Split = Literal["train", "test"]
SHEET = (10, 25)  # rows and columns of images on a class's sheet
CLASSES, SIDE, HELD_OUT = 200, 32, 1  # the last row of each sheet is for testing classifiers


def fashion_mnist(split: Split = "train") -> tuple[Tensor, Tensor]:
    """``(images uint8 (N, 1, 28, 28), labels int64 (N,))``.

    Downloads are checked against the published digests, a local copy's training images too.

    FileError if ``DODE_DATA`` is set but holds no such file, or the images are not the published ones or cannot be
    fetched; ImportError if it is not set, and pooch, which fetches them, is not installed.
    """
    if folder := os.environ.get("DODE_DATA"):
        path = Path(folder) / "fashion_mnist.npz"
        if not path.is_file():
            raise FileError(f"{path} does not exist; point DODE_DATA at a folder that holds it, or unset DODE_DATA")
        try:
            with np.load(path, allow_pickle=False) as f:
                images, labels = f[f"x_{split}"], f[f"y_{split}"]
        except (KeyError, ValueError, OSError, EOFError):
            raise FileError(f"{path} is not the Fashion-MNIST archive with x_{split} and y_{split}") from None
        header = np.array([2051, len(images), 28, 28], dtype=">i4").tobytes()
        if split == "train" and hashlib.md5(header + images.tobytes()).hexdigest() != TRAIN_IDX_MD5:
            raise FileError(f"{path} does not hold the published Fashion-MNIST training images")
    else:
        stem = "train" if split == "train" else "t10k"
        images = _idx(f"{stem}-images-idx3-ubyte.gz").reshape(-1, 28, 28)
        labels = _idx(f"{stem}-labels-idx1-ubyte.gz")
    return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64))


def _idx(name: str) -> np.ndarray:
    """Download (once, digest checked) and decode one idx file; uint8, flat."""
    with gzip.open(fetched(cache() / name, FASHION_MNIST_URL + name, f"md5:{FASHION_MNIST_FILES[name]}")) as f:
        raw = f.read()
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])


def imagenet32(split: Split | Literal["all"] = "all") -> tuple[Tensor, Tensor]:
    """Natural images ``(images uint8 (N, 3, 32, 32), labels int64 (N,))``, sorted by class, N = 50,000.

    Read from ``DODE_DATA/imagenet32/<wnid>.png``, 200 sheets of 10 rows and 25 columns of images; a class's label is
    the place of its wnid among the sorted ones.  ``split="test"``: the last row of each sheet (5,000 images), which a
    classifier does not learn from; ``"train"``: the other 45,000.

    FileError if the folder is not there or holds other sheets, ImportError without Pillow, which reads them.
    """
    image = need("PIL.Image", "cli", "reading sheets of images")
    home = os.environ.get("DODE_DATA")
    folder = Path(home or "DODE_DATA") / "imagenet32"
    if not home or not folder.is_dir():
        raise FileError(f"{folder} does not exist; point DODE_DATA at a folder that holds imagenet32, {CLASSES} sheets")
    files = sorted(folder.glob("*.png"))
    if len(files) != CLASSES:
        raise FileError(f"{folder} holds {len(files)} sheets of images (*.png), not one for each of {CLASSES} classes")
    rows, test = SHEET[0], SHEET[0] - HELD_OUT
    kept = {"all": slice(rows), "train": slice(test), "test": slice(test, rows)}[split]
    found = torch.stack([_sheet(path, image)[kept] for path in files]).flatten(1, 2)
    labels = torch.arange(CLASSES).repeat_interleave(found.shape[1])
    return found.flatten(0, 1), labels


def _sheet(path: Path, image: Any) -> Tensor:
    """The images of one sheet, uint8 ``(rows, columns, 3, 32, 32)``."""
    try:
        with image.open(path) as opened:
            pixels = np.array(opened)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow has all three for damaged files
        raise FileError(f"{path} cannot be read ({first_line(error)}); copy it again") from None
    rows, columns = SHEET
    if pixels.shape != (rows * SIDE, columns * SIDE, 3):
        wanted = f"{rows} rows of {columns} RGB images of {SIDE} x {SIDE}"
        raise FileError(f"{path} has pixels of shape {pixels.shape}, not {wanted}; copy it again")
    return torch.from_numpy(pixels).reshape(rows, SIDE, columns, SIDE, 3).permute(0, 2, 4, 1, 3).contiguous()


@dataclass(frozen=True)
class DataSet:
    """Training images, and what networks and model cards must know of them.

    Checkpoints begin with its name: ``NAME-noise``, ``NAME-data``, ``NAME-classifier``, ``NAME-critic``.
    """

    name: str
    title: str
    shape: tuple[int, int, int]
    classes: int
    load: Callable[..., tuple[Tensor, Tensor]]  # from a split to images (N, *shape), uint8, and labels (N,)
    whole: str  # the split that denoisers learn from and Fréchet distances are taken to
    images: int  # in that split
    class_conditional: bool  # whether denoisers are conditioned on the classes
    sigma_data: float  # standard deviation of the pixels in -1..1
    source: str  # for model cards: what the images are,
    licence: str  # whose they are,
    scope: str  # and what a network of them knows


DATA_SETS = {
    d.name: d
    for d in (
        DataSet(
            name="fashion-mnist", title="Fashion-MNIST", shape=(1, 28, 28), classes=10,
            load=lambda split: fashion_mnist(split), whole="train", images=60_000, class_conditional=False,
            sigma_data=0.706,
            source="Fashion-MNIST, 60,000 training images", licence="MIT (data: MIT, Zalando Research)",
            scope="It knows the ten classes of Fashion-MNIST in 28 x 28 grey pixels and nothing else.",
        ),
        DataSet(
            name="imagenet32", title="natural", shape=(3, 32, 32), classes=CLASSES,
            load=lambda split: imagenet32(split), whole="all", images=50_000, class_conditional=True, sigma_data=0.53,
            source="50,000 images of 200 ImageNet classes (Tiny ImageNet's training images halved to 32 x 32)",
            licence="non-commercial research only, by ImageNet's terms for the data (code: MIT)",
            scope="It knows 200 of ImageNet's classes in 32 x 32 pixels, 250 images of each, and nothing else.",
        ),
    )
}  # fmt: skip


def data_set(name: str) -> DataSet:
    """The data set that the checkpoint or data set ``name`` belongs to, by the beginning of its name.

    ValueError if it is of none: then nothing here knows what its images should look like.
    """
    for known, found in DATA_SETS.items():
        if name == known or name.startswith(f"{known}-"):
            return found
    raise ValueError(f"{name} is of no data set that is known here: {', '.join(DATA_SETS)}")


def described(facts: Mapping[str, Any]) -> DataSet | None:
    """The data set that the header of a checkpoint says it was trained on, if it is known here."""
    return next((d for d in DATA_SETS.values() if facts.get("data") == d.source), None)


to_signal, to_uint8, mosaic = PICTURES.from_uint8, PICTURES.to_uint8, PICTURES.mosaic
