"""Training images.  Needed to train and to measure against the data, never to sample.

Fashion-MNIST (Xiao et al. 2017, MIT licence) comes from the directory named by ``DODE_DATA``
(``fashion_mnist.npz`` with ``x_train``, ``y_train``, ``x_test``, ``y_test``) or, without it, from
the originals, whose published digests are checked.
"""

from __future__ import annotations

import gzip
import hashlib
import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dode.extras import need
from dode.storage import FileError

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


def fashion_mnist(split: Split = "train") -> tuple[Tensor, Tensor]:
    """``(images uint8 (N, 1, 28, 28), labels int64 (N,))``.

    Downloads are checked against the published digests, a local copy's training images too.

    Raises
    ------
    FileError
        ``DODE_DATA`` is set but holds no such file, or the images are not the published ones.
    ImportError
        It is not set, and pooch, which fetches the originals, is not installed.
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
        if split == "train":
            _check(images, str(path))
    else:
        stem = "train" if split == "train" else "t10k"
        images = _idx(f"{stem}-images-idx3-ubyte.gz").reshape(-1, 28, 28)
        labels = _idx(f"{stem}-labels-idx1-ubyte.gz")
    return torch.from_numpy(images.copy())[:, None], torch.from_numpy(labels.astype(np.int64))


def _check(images: np.ndarray, where: str) -> None:
    header = np.array([2051, len(images), 28, 28], dtype=">i4").tobytes()
    if hashlib.md5(header + images.tobytes()).hexdigest() != TRAIN_IDX_MD5:
        raise FileError(f"{where} does not hold the published Fashion-MNIST training images")


def _idx(name: str) -> np.ndarray:
    """Download (once, digest checked) and decode one idx file; uint8, flat."""
    pooch = need("pooch", "cli", "fetching training images")
    path = pooch.retrieve(
        FASHION_MNIST_URL + name, f"md5:{FASHION_MNIST_FILES[name]}", fname=name,
        path=pooch.os_cache("dode"), progressbar=True,
    )  # fmt: skip
    with gzip.open(path) as f:
        raw = f.read()
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * raw[3])


def to_signal(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 -1..1."""
    return images.float() / 127.5 - 1


def to_uint8(x: Tensor) -> Tensor:
    """-1..1 to uint8 0..255, rounded and clipped: what an image file, and an FID, sees."""
    return (x.float() * 127.5 + 127.5).round().clamp(0, 255).to(torch.uint8)
