"""Checkpoints by name: which there are, their files, and what those say of themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dode.utils.files import FileError, load_tensors, names_a_file, nearest
from dode.zoo.catalogue import CATALOGUE, FAMILIES, Card
from dode.zoo.classifiers import Classifier, Critic, Observer, PatchTransformer
from dode.zoo.datasets import DATA_SETS, DataSet, data_set, described
from dode.zoo.download import fetch

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
Evaluator = Classifier | Critic | Observer | PatchTransformer
DENOISERS = ("noise", "data")
EVALUATORS: dict[str, type[Evaluator]] = {
    "classifier": Classifier, "critic": Critic, "observer": Observer, "transformer": PatchTransformer,
}  # fmt: skip


def known(kinds: Iterable[str]) -> list[str]:
    """The names of the networks of these kinds (:data:`DENOISERS`, :data:`EVALUATORS`) of every data set."""
    return [f"{name}-{kind}" for name in DATA_SETS for kind in kinds]


def shipped(kinds: Iterable[str]) -> list[str]:
    """Those of :func:`known` whose files are here."""
    return [name for name in known(kinds) if (CHECKPOINTS / f"{name}.safetensors").is_file()]


NAMES = tuple(shipped(DENOISERS))
# Of each data set the first measures, so nothing may be fitted with its features; that is what the others are for.
CLASSIFIERS: dict[str, type[Evaluator]] = {name: EVALUATORS[name.rsplit("-", 1)[1]] for name in shipped(EVALUATORS)}


def published(name: str | Path) -> Card | None:
    """The card of a published checkpoint, by its name with or without the scale of a guidance; None of another's."""
    return CATALOGUE.get(str(name).partition("@")[0])


def local(name: str | None) -> bool:
    """Whether a network by this name is had without a download: it ships with dode, or is in a Python package."""
    return name in NAMES or (name in CATALOGUE and bool(CATALOGUE[name].package))


def checkpoint_file(name: str | Path, kinds: Iterable[str] = DENOISERS) -> Path:
    """The file of a name of :func:`known`, of a published checkpoint, or a path to a ``.safetensors`` file.

    The part of a name from "@" on is the scale of its guidance (:func:`load_denoiser`) and no part of the file's.

    ValueError for another name, with the nearest ones, or a pipeline of diffusers, which has no file.  FileError for a
    published one (:data:`dode.zoo.CATALOGUE`) that is not here and cannot be fetched, or one of dode's own that does
    not ship; the message says how to train it.
    """
    if kinds is DENOISERS and (card := published(name)):
        return fetch(card)
    if names_a_file(name):
        return Path(name)
    if name not in known(kinds):
        others = [c.name for c in CATALOGUE.values() if not FAMILIES[c.family].classifies]
        near = nearest(str(name).partition("@")[0], [*shipped(kinds), *(others if kinds is DENOISERS else ())])
        raise ValueError(f"no checkpoint named {str(name)!r}; the nearest: {near}")
    path = CHECKPOINTS / f"{name}.safetensors"
    if not path.is_file():
        train = f"dode train {name} --out runs"
        raise FileError(f"{name} is not among the shipped files; train it with {train}, or name a .safetensors file")
    return path


def data_set_of(checkpoint: str | Path) -> DataSet:
    """What a checkpoint was trained on: a file says so in its header, a name by its beginning.

    ValueError if that is no data set of :data:`dode.zoo.datasets.DATA_SETS`.
    """
    if not names_a_file(checkpoint):
        return data_set(str(checkpoint))
    facts = metadata(checkpoint)
    return described(facts) or data_set(str(facts.get("name", checkpoint)))


def moments_file(classifier: str) -> str:
    """What the file with the moments of a classifier's features over its data set is called."""
    return f"{classifier.removesuffix('-classifier')}-moments.safetensors"


def digest(name: str | Path) -> str:
    """The first eight digits of the file's SHA-256: which weights a number was measured with."""
    return hashlib.sha256(checkpoint_file(name).read_bytes()).hexdigest()[:8]


def metadata(name: str | Path) -> dict[str, Any]:
    """The model card's facts as stored in the checkpoint's header."""
    return load_tensors(checkpoint_file(name), "network")[1]
