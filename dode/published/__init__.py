"""The checkpoints of the papers people use, loaded without executing anything.

>>> import dode.published
>>> model = dode.published.load("edm-cifar10-32x32-cond-vp", labels=3)  # NVIDIA's pickle, read as data
>>> print(*dode.published.CATALOGUE)

Each is a :class:`dode.denoisers.NetworkDenoiser`: solvers, distillation and metrics need nothing else.
"""

from dode.published.catalogue import CATALOGUE, Row
from dode.published.download import fetch
from dode.published.guidance import ClassifierGuidance
from dode.published.loading import load, load_classifier
from dode.published.wrapping import Published

__all__ = ["CATALOGUE", "ClassifierGuidance", "Published", "Row", "fetch", "load", "load_classifier"]
