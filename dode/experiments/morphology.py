"""What astronomers measure of a galaxy: its total flux, and non-parametric morphology.

The morphology is that of ``statmorph`` (Rodriguez-Gomez et al. 2019): half-light radius, concentration, asymmetry,
Gini, M20 and ellipticity, of the brightest source that ``photutils`` detects.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dode.metrics import Features, Moments
from dode.utils.environment import need
from dode.zoo.families.galaxies import flux

QUANTITIES = {  # by their columns; the names that statmorph has
    "half_light_radius": "rhalf_circ", "concentration": "concentration", "asymmetry": "asymmetry", "gini": "gini",
    "m20": "m20", "ellipticity": "ellipticity_asymmetry",
}  # fmt: skip
THRESHOLD, PIXELS = 0.02, 5  # a source is so many joined pixels above this flux, in every image of every survey
GAIN = 1e4  # of no effect on these quantities: it weighs pixels in a profile fit and in a signal-to-noise ratio
UNUSED = ("multimode", "intensity", "deviation")  # of statmorph's quantities, the slow ones: not measured
WORST_FLAG = 1  # "suspect"; what statmorph flags as bad counts as failed


def total_flux(samples: Tensor, sky: float = 0.0) -> Tensor:
    """Sum of the flux above the sky of each image, ``(B, 1, H, W)`` to ``(B,)``."""
    return (flux(samples.double()) - sky).sum((1, 2, 3))


def morphologies(samples: Tensor, sky: float = 0.0) -> Tensor:
    """:data:`QUANTITIES` of each image, ``(B, 1, H, W)`` to ``(B, 6)`` float64; a row of NaN where they failed.

    The radius is in pixels.  ImportError without ``statmorph`` and ``photutils``; a third of a second an image.
    """
    pictures = (flux(samples.double()) - sky).squeeze(1).cpu().numpy()
    return torch.tensor(np.array([morphology_of(picture) for picture in pictures])).reshape(-1, len(QUANTITIES))


@functools.cache
def _measures() -> Any:
    """The class of ``statmorph``, which measures all when it is made, without what is :data:`UNUSED`."""
    whole = need("statmorph", "galaxies", "morphology").SourceMorphology
    return type("SourceMorphology", (whole,), dict.fromkeys(UNUSED, 0.0))


def morphology_of(picture: np.ndarray) -> list[float]:
    """:data:`QUANTITIES` of the brightest source in ``(H, W)``, or as many NaN."""
    segmentation = need("photutils.segmentation", "galaxies", "morphology")
    failed = [float("nan")] * len(QUANTITIES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single images; failures are counted
        sources = segmentation.detect_sources(picture, THRESHOLD, PIXELS)
        if sources is None:
            return failed
        brightest = max(sources.labels, key=lambda label: picture[sources.data == label].sum())
        try:
            found: Any = _measures()(
                picture, sources.data, label=int(brightest), gain=GAIN, skybox_size=len(picture) // 8
            )
        except Exception:  # a source at the edge, say: it can raise anything
            return failed
    values = [float(getattr(found, name)) for name in QUANTITIES.values()]
    return values if found.flag <= WORST_FLAG and np.isfinite(values).all() else failed


def light(samples: Tensor) -> Tensor:
    """The mean sample in 4 x 4 parts of each image, ``(B, 1, H, W)`` to ``(B, 16)``."""
    return F.adaptive_avg_pool2d(samples.double(), 4).flatten(1)


def observed(name: str, take: Callable[[Tensor], Tensor], known: Tensor) -> tuple[Features, Moments]:
    """What ``take`` measures of samples as features in units of its spread over ``known``, and the moments of these.

    Samples that cannot be measured have no row.
    """
    unit = known[known.isfinite().all(1)].std(0)
    scaled = lambda found: found[found.isfinite().all(1)] / unit  # noqa: E731
    label = f"FD ({name.rpartition('-')[2]})"
    features = Features(name, known.shape[1], label, (1,), lambda x: scaled(take(x)), samples=True)
    return features, Moments(name, features.dim, "the reference solution").update(scaled(known))


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance of two samples of as many numbers."""
    return float((a.sort().values - b.sort().values).abs().mean())


def compared(found: Tensor, reference: Tensor) -> dict[str, float | int]:
    """Of each quantity the median difference of an image, and the distance of the distributions.

    Both in units of the reference's standard deviation, over the images where both could be measured.
    """
    good = (found.isfinite() & reference.isfinite()).all(1)
    found, reference, columns = found[good], reference[good], dict[str, float | int]()
    for name, a, b in zip(QUANTITIES, found.T, reference.T, strict=True):
        spread = float(b.std()) if len(b) > 1 else float("nan")
        columns[name] = float((a - b).abs().median()) / spread
        columns[f"{name}_distance"] = wasserstein(a, b) / spread
    return columns | dict(failed=int((~good).sum()))
