"""Networks and data sets: those that dode ships, and the checkpoints of the papers people use.

>>> import dode
>>> model = dode.zoo.load_denoiser("fashion-mnist-noise")  # shipped; dode.load is the same function
>>> model = dode.zoo.load_published("edm-cifar10-32x32-cond-vp", labels=3)  # NVIDIA's pickle, read as data
>>> print(*dode.zoo.NAMES, *dode.zoo.CATALOGUE)

Each is a :class:`dode.denoisers.NetworkDenoiser`: solvers, distillation and metrics need nothing else.  No file is
ever executed.
"""

from dode.zoo import checkpoints
from dode.zoo.catalogue import CATALOGUE, FAMILIES, Card, family
from dode.zoo.checkpoints import (
    CHECKPOINTS, CLASSIFIERS, DENOISERS, EVALUATORS, NAMES, checkpoint_file, data_set_of, digest, known,
    metadata, moments_file, published, shipped,
)  # fmt: skip
from dode.zoo.download import fetch
from dode.zoo.families.shipped import WRAPPERS
from dode.zoo.guidance import ClassifierGuidance
from dode.zoo.loading import load_denoiser, load_evaluator, load_noisy_classifier, load_published

__all__ = [
    "CATALOGUE", "CHECKPOINTS", "CLASSIFIERS", "DENOISERS", "EVALUATORS", "FAMILIES", "NAMES", "WRAPPERS", "Card",
    "ClassifierGuidance", "checkpoint_file", "checkpoints", "data_set_of", "digest", "family", "fetch", "known",
    "load_denoiser", "load_evaluator", "load_noisy_classifier", "load_published", "metadata", "moments_file",
    "published", "shipped",
]  # fmt: skip
