"""The checkpoints that papers on fast sampling use: where they are, whose they are, and with what settings.

A file of :mod:`dode.zoo.families` knows the networks of one origin: it reads their files and lists them, a
:class:`Card` each.  Nothing is fetched before it is asked for by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from dode.denoisers import PICTURES, Images
from dode.schedules import Schedule
from dode.utils.files import nearest


@dataclass(frozen=True, kw_only=True)
class Card:
    """One checkpoint.

    A digest is given where public material states it; without one a file is checked by its format alone: parameter
    names and shapes must all fit.

    ``family`` says what reads it (:data:`FAMILIES`). ``settings`` are those with which the authors sample:
    ``sigma_min``, ``sigma_max``, ``rho``, ``steps``, ``solver``; the stochastic ``S_churn``, ``S_min``, ``S_max``,
    ``S_noise``; ``classifier`` (a card's name) and ``classifier_scale``; ``guidance_scale`` (classifier-free).
    """

    name: str
    family: str = ""  # filled in by the family that lists it
    licence: str  # of the weights
    source: str  # the paper
    shape: tuple[int, int, int]  # (C, H, W) of one image, or of one latent
    file: str = ""
    url: str = ""
    page: str = ""  # where a person finds it, if a program cannot fetch it
    package: str = ""  # the Python package that holds it: "name==version"
    digest: str = ""  # "sha256:..." or "md5:...", or "" if it is not known
    size: int = 0  # in bytes, 0 if it is not known
    classes: int = 0  # 0 for an unconditional network
    network: Mapping[str, Any] = field(default_factory=dict)  # its arguments; NVIDIA's pickles carry their own
    schedule: Schedule | None = None  # None where the file says it (NVIDIA) or the hub does
    label_scale: float = 1.0  # multiplies the schedule's label before the network sees it
    images: Images = PICTURES  # what a sample is
    hub: str = ""  # the model's id on the Hugging Face hub
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Family:
    """What reads files of one origin: from a file and its card to a denoiser, or a classifier, on the CPU.

    ``network.classes`` is 0 for an unconditional one.  FileError for a file that does not hold exactly what it should.
    """

    read: Callable[[Path, Any], Any]
    suffix: str = ""  # of files that need no card, if there are such
    classifies: bool = False  # it reads classifiers of noisy images, which guide a denoiser


FAMILIES: dict[str, Family] = {}
CATALOGUE: dict[str, Card] = {}
Read = TypeVar("Read", bound=Callable[[Path, Any], Any])


def family(name: str, *cards: Card, suffix: str = "", classifies: bool = False) -> Callable[[Read], Read]:
    """Register what reads a :class:`Family`, and its cards."""

    def register(read: Read) -> Read:
        FAMILIES[name] = Family(read, suffix, classifies)
        CATALOGUE.update({card.name: replace(card, family=name) for card in cards})
        return read

    return register


def varied(card: Card, name: str, network: Mapping[str, Any]) -> Card:
    """A card for somebody's own network: the same program, schedule and settings, with other arguments.

    ValueError for a card whose files say the network's arguments themselves, or whose network is not in a file.
    """
    if not card.network:
        raise ValueError(f"{card.name} has no arguments that could be others; leave out network=")
    arguments = {**card.network, **network}
    side, channels = arguments["image_size"], arguments.get("in_channels", card.shape[0])
    classes = arguments.get("num_classes", 0)
    return replace(card, name=name, network=arguments, shape=(channels, side, side), classes=classes)


def find(name: str) -> Card:
    """The card of a name.  ValueError with the nearest names if there is none."""
    if name not in CATALOGUE:
        raise ValueError(f"no published checkpoint named {name!r}; the nearest: {nearest(name, CATALOGUE)}")
    return CATALOGUE[name]
