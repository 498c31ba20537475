"""Distances between sets of images, and between the paths that solvers take.

The Frechet distance (Heusel et al. 2017) and the kernel distance (Binkowski et al. 2018) are
computed on *features* of uint8 images, the pixels an image file would hold.  With Inception's
features and clean-fid's resizing (Parmar et al. 2022) they are FID and KID; with those of the
shipped classifier they are not, and say so: "FD (classifier features)".  Both numbers depend on
the number of images (the bias of the first is about 1/n), so ``n`` travels with every result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dode.utils.files import FileError, load_tensors, one_of, save_tensors
from dode.zoo import load_evaluator
from dode.zoo.datasets import to_uint8
from dode.zoo.download import cache as cache_folder
from dode.zoo.download import checked

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_DIGEST = "sha256:f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/" + INCEPTION_FILE

Mode = Literal["clean", "legacy_tensorflow"]
Array = Tensor | np.ndarray
Images = Tensor | Iterable[Tensor]


def _rows(features: Array, first: int = 0) -> Tensor:
    """``features`` as a float64 CPU tensor ``(n, d)``, or a ValueError naming the first bad row."""
    x = torch.as_tensor(features).detach().to(device="cpu", dtype=torch.float64)
    if x.ndim != 2:
        raise ValueError(f"features must be (images, dimension), got shape {tuple(x.shape)}")
    bad = (~torch.isfinite(x)).any(dim=1).nonzero()
    if len(bad):
        raise ValueError(f"the features of image {first + int(bad[0])} are not finite; look at that image")
    return x


class Moments:
    """Mean and covariance of features, streamed in float64; memory does not grow with ``n``.

    Batches are merged by Chan, Golub and LeVeque's update (1979) of mean and centred scatter, so
    neither batches, shards nor a large mean change the result beyond rounding.  ``features`` names
    the extractor (``Features.name``), ``dim`` is its dimension ``d``, ``source`` says where the images
    came from; all three stay with the saved file.  Moments of different extractors do not mix.
    """

    def __init__(self, features: str, dim: int, source: str = "") -> None:
        self.features, self.dim, self.source, self.n = features, dim, source, 0
        self._mean = torch.zeros(dim, dtype=torch.float64)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Array) -> Moments:
        """Add ``(B, d)`` features; returns self.  ValueError for another dimension, or a non-finite feature."""
        x = _rows(features, self.n)
        if x.shape[1] != self.dim:
            raise ValueError(f"{self.features} has {self.dim} dimensions, got features of {x.shape[1]}")
        if len(x):
            mean = x.mean(dim=0)
            self._add(len(x), mean, (x - mean).T @ (x - mean))
        return self

    def merge(self, other: Moments) -> Moments:
        """Add the images that ``other`` saw; returns self.  ValueError if the features differ."""
        _check_same(self, other)
        self.source = " + ".join(dict.fromkeys(filter(None, (self.source, other.source))))
        if other.n:
            self._add(other.n, other._mean, other._scatter)
        return self

    def _add(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        total = self.n + n
        delta = mean - self._mean
        self._mean = self._mean + delta * (n / total)
        self._scatter = self._scatter + scatter + torch.outer(delta, delta) * (self.n * n / total)
        self.n = total

    @property
    def mean(self) -> Tensor:
        """Float64 ``(d,)``.  ValueError before the first image."""
        if self.n < 1:
            raise ValueError("no images yet: the mean needs one or more")
        return self._mean.clone()

    @property
    def cov(self) -> Tensor:
        """Float64 ``(d, d)``, unbiased (divided by n - 1, as clean-fid does).  ValueError if n < 2."""
        if self.n < 2:
            raise ValueError(f"a covariance needs two images or more, got n = {self.n}")
        return self._scatter / (self.n - 1)

    def save(self, path: str | Path) -> Path:
        """Store as safetensors of kind "moments", with extractor, n and source in its header."""
        tensors = {"mean": self._mean, "scatter": self._scatter}
        return save_tensors(path, tensors, "moments", dict(features=self.features, n=self.n, source=self.source))

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read a file of :meth:`save`; :class:`~dode.utils.files.FileError` says what is wrong with it."""
        tensors, metadata = load_tensors(path, "moments")
        try:
            mean, scatter = tensors["mean"].double(), tensors["scatter"].double()
            moments = cls(metadata["features"], mean.numel(), metadata["source"])
            moments.n = int(metadata["n"])
            moments._mean, moments._scatter = mean.reshape(moments.dim), scatter.reshape(moments.dim, moments.dim)
        except (KeyError, RuntimeError, TypeError, ValueError):
            raise FileError(f"{path} does not hold a mean and a covariance of one dimension; make it again") from None
        return moments


def _check_same(a: Moments, b: Moments) -> None:
    if (a.features, a.dim) != (b.features, b.dim):
        both = f"{a.features!r} ({a.dim} dimensions) and {b.features!r} ({b.dim})"
        raise ValueError(f"moments of different features cannot be compared: {both}")


def frechet_distance(a: Moments, b: Moments) -> float:
    """``|m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2))``, in float64 (Dowson and Landau 1982).

    The trace of the root is the sum of the roots of the eigenvalues of ``F^T S_b F`` with
    ``S_a = F F^T``: two symmetric eigenproblems instead of a matrix root, hence fast and real even
    where fewer images than dimensions leave a covariance singular.  ValueError for different
    extractors or dimensions, or fewer than two images on a side.
    """
    _check_same(a, b)
    first, second = (a.cov, b.cov) if a.n <= b.n else (b.cov, a.cov)  # the lower rank gives the smaller problem
    values, vectors = torch.linalg.eigh(first)
    keep = values > values[-1] * len(values) * torch.finfo(torch.float64).eps
    factor = vectors[:, keep] * values[keep].sqrt()
    root = torch.linalg.eigvalsh(factor.T @ second @ factor).clamp(min=0).sqrt().sum() if keep.any() else 0.0
    distance = (a.mean - b.mean).square().sum() + first.trace() + second.trace() - 2 * root
    return max(float(distance), 0.0)  # below zero by rounding alone


def measured_distance(seen: Moments, reference: Moments) -> float:
    """:func:`frechet_distance`, but NaN where fewer than two images could be measured."""
    return frechet_distance(seen, reference) if seen.n > 1 else math.nan


def _mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of ``(n, d)`` and ``(m, d)``, 1,024 rows at a time."""

    def kernel(dots: Tensor) -> Tensor:
        return (dots / x.shape[1] + 1).pow(3).sum()

    def pairs(a: Tensor, b: Tensor) -> Tensor:
        return torch.stack([kernel(part @ b.T) for part in torch.split(a, 1024)]).sum()

    def within(a: Tensor) -> Tensor:
        return (pairs(a, a) - kernel(a.square().sum(dim=1))) / (len(a) * (len(a) - 1))

    return float(within(x) + within(y) - 2 * pairs(x, y) / (len(x) * len(y)))


def kernel_distance(x: Array, y: Array, *, subsets: int | None = None, subset_size: int = 1000, seed: int = 0) -> float:
    """KID: the unbiased squared MMD under ``(x.y/d + 1)^3`` (Binkowski et al. 2018).

    ``x`` and ``y`` are features ``(n, d)`` and ``(m, d)``, taken in float64; the result may be negative.
    Without ``subsets``, one estimate from all rows, in memory that does not grow with ``n * m``.  With
    it, the mean over that many random subsets of ``subset_size`` rows (at most the smaller set), drawn
    as clean-fid's ``kernel_distance(x, y)`` draws them after ``numpy.random.seed(seed)``.  ValueError
    for different dimensions, fewer than two rows, non-finite features, or no subsets.
    """
    x, y = _rows(x), _rows(y)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"features have different dimensions: {x.shape[1]} and {y.shape[1]}")
    size = min(len(x), len(y), subset_size)
    if size < 2:
        raise ValueError(f"a kernel distance needs two images or more on each side, got {len(x)} and {len(y)}")
    if subsets is None:
        return _mmd2(x, y)
    if subsets < 1:
        raise ValueError(f"need one subset or more, got {subsets}")
    state, total = np.random.RandomState(seed), 0.0
    for _ in range(subsets):
        part_y, part_x = (v[torch.from_numpy(state.choice(len(v), size, replace=False))] for v in (y, x))
        total += _mmd2(part_x, part_y)
    return total / subsets


@dataclass(frozen=True)
class Features:
    """A feature extractor: uint8 images ``(B, C, H, W)`` to float features ``(B, dim)``, no gradients.

    Where an image cannot be measured (``samples``), it has no row.
    """

    name: str  # identifies network, weights and resizing
    dim: int
    label: str  # what a table prints over the Frechet distance: "FID" for Inception alone
    channels: tuple[int, ...]  # the C that it takes
    function: Callable[[Tensor], Tensor] = field(repr=False)
    samples: bool = False  # of samples as a solver leaves them, in place of uint8 images

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """ValueError unless ``images`` is uint8 (float for ``samples``) ``(B, C, H, W)``, ``C`` in :attr:`channels`."""
        fits = images.is_floating_point() if self.samples else images.dtype == torch.uint8
        if images.ndim != 4 or not fits or images.shape[1] not in self.channels:
            kind, channels = "float" if self.samples else "uint8", " or ".join(map(str, self.channels))
            wanted = f"{self.name} takes {kind} images (B, {channels}, H, W)"
            raise ValueError(f"{wanted}, got {images.dtype} {tuple(images.shape)}; see dode.zoo.datasets.to_uint8")
        return self.function(images)


def classifier_features(path: str | Path | None = None, device: str | torch.device = "cpu") -> Features:
    """Those of a classifier (:func:`dode.zoo.load_evaluator`, with its errors), or of the shipped one that measures."""
    model, name = load_evaluator(path or "fashion-mnist-classifier", device)
    label = f"FD ({type(model).__name__.lower()} features)"
    dim, channels = model.head.in_features, (model.config["channels"],)
    return Features(name, dim, label, channels, lambda images: model.features(images.to(device)))


def inception_features(mode: Mode = "clean", device: str | torch.device = "cpu") -> Features:
    """clean-fid's Inception, ``(B, 2048)``, behind clean-fid's resizer (Parmar et al. 2022).

    ``mode="clean"`` resizes with antialiasing; ``"legacy_tensorflow"`` inside the network, as in most
    papers' tables.  Grey images become three equal channels.  The weights are read from :func:`cache_folder`, and only
    after they have been checked; nothing is downloaded.  :class:`~dode.utils.files.FileError` names file and place when
    they are absent or not the published ones; ImportError when clean-fid is not installed.
    """
    one_of("mode", mode, Mode)
    try:
        from cleanfid.inception_torchscript import InceptionV3W
        from cleanfid.resize import build_resizer
    except ImportError as error:
        raise ImportError(f"Inception features need clean-fid ({error}); pip install 'dode[fid]'") from None
    path = cache_folder() / INCEPTION_FILE
    if not path.is_file():
        raise FileError(f"{path} does not exist; put {INCEPTION_URL} there, or measure with classifier_features()")
    model = InceptionV3W(
        str(checked(path, INCEPTION_DIGEST).parent), download=False, resize_inside=mode == "legacy_tensorflow"
    )
    model.to(device).eval().requires_grad_(False)
    resize = build_resizer(mode)

    def function(images: Tensor) -> Tensor:
        pixels = images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).cpu().numpy()
        resized = np.stack([np.asarray(resize(image), dtype=np.float32) for image in pixels])
        return torch.as_tensor(model(torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous().to(device)))

    return Features(f"inception-{mode}", 2048, "FID" if mode == "clean" else f"FID ({mode})", (1, 3), function)


def embed(images: Images, features: Features, batch_size: int = 256) -> Iterator[Tensor]:
    """Features ``(<= batch_size, d)`` of one tensor ``(N, C, H, W)`` or of a stream of them.

    Images in -1..1 become uint8 first (:func:`dode.zoo.datasets.to_uint8`); a non-finite pixel is a ValueError.
    """
    for block in [images] if isinstance(images, Tensor) else images:
        for part in block.split(batch_size):
            if part.is_floating_point():
                if not torch.isfinite(part).all():
                    raise ValueError("images hold NaN or infinite pixels; the sampler has diverged")
                part = part if features.samples else to_uint8(part)
            yield features(part)


def moments(images: Images, features: Features, *, batch_size: int = 256, source: str = "") -> Moments:
    """:class:`Moments` of the features of ``images`` (as for :func:`embed`), batch by batch."""
    result = Moments(features.name, features.dim, source)
    for part in embed(images, features, batch_size):
        result.update(part)
    return result


def measure(images: Images, features: Features, reference: Moments, *, batch_size: int = 256) -> dict[str, Any]:
    """Frechet distance of ``images`` to ``reference``: ``dict(fd, n, n_reference, features, label)``.

    ``n`` are the images that have features; ``fd`` is NaN where they are fewer than two.
    """
    seen = moments(images, features, batch_size=batch_size)
    result = dict(n=seen.n, n_reference=reference.n, features=features.name, label=features.label)
    return dict(fd=measured_distance(seen, reference), **result)


def trajectory_distance(a: Tensor, b: Tensor) -> Tensor:
    """Two paths' states ``(N + 1, B, ...)`` to ``(N + 1,)``: RMSE of each image, averaged over images."""
    if a.shape != b.shape or a.ndim < 3:
        raise ValueError(f"need two equal shapes (levels, images, ...), got {tuple(a.shape)} and {tuple(b.shape)}")
    return (a.double() - b.double()).flatten(2).square().mean(dim=2).sqrt().mean(dim=1)


def rmse(a: Tensor, b: Tensor) -> float:
    """Root mean squared difference of each image, averaged over images: ``(B, ...)`` twice to a number."""
    return float(trajectory_distance(a[None], b[None])[0])
