"""Networks and data sets: those that dode ships, and the checkpoints of the papers people use.

>>> import dode
>>> model = dode.zoo.load_denoiser("fashion-mnist-noise")  # shipped; dode.load is the same function
>>> model = dode.zoo.load_published("edm-cifar10-32x32-cond-vp", labels=3)  # NVIDIA's pickle, read as data
>>> print(*dode.zoo.NAMES, *dode.zoo.CATALOGUE)

Each is a :class:`dode.denoisers.NetworkDenoiser`: solvers, distillation and metrics need nothing else.  No file is
ever executed.  A file of :mod:`dode.zoo.families` reads the networks of one origin and lists them: a checkpoint of a
known family is a card there, a new architecture a file.
"""

from dode.zoo import checkpoints as checkpoints
from dode.zoo.catalogue import CATALOGUE as CATALOGUE, FAMILIES as FAMILIES, Card as Card, family as family
from dode.zoo.checkpoints import (
    CHECKPOINTS as CHECKPOINTS, CLASSIFIERS as CLASSIFIERS, DENOISERS as DENOISERS, EVALUATORS as EVALUATORS,
    NAMES as NAMES, checkpoint_file as checkpoint_file, data_set_of as data_set_of, digest as digest, known as known,
    local as local, metadata as metadata, moments_file as moments_file, published as published, shipped as shipped,
)  # fmt: skip
from dode.zoo.download import fetch as fetch
from dode.zoo.families.shipped import WRAPPERS as WRAPPERS
from dode.zoo.guidance import (
    ClassifierFreeGuidance as ClassifierFreeGuidance, ClassifierGuidance as ClassifierGuidance,
)  # fmt: skip
from dode.zoo.loading import (
    load_denoiser as load_denoiser, load_evaluator as load_evaluator, load_noisy_classifier as load_noisy_classifier,
    load_published as load_published,
)  # fmt: skip
