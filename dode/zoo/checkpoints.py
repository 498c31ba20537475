"""Checkpoints by name: their files, the denoisers in them, and the networks that evaluate samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from dode.denoisers import (
    ConsistencyPrediction,
    DataPrediction,
    EDMPrediction,
    NetworkDenoiser,
    NoisePrediction,
    VPrediction,
)
from dode.denoisers.conditioning import class_labels
from dode.schedules import from_config
from dode.utils.files import FileError, first_line, load_tensors, names_a_file, nearest
from dode.zoo.catalogue import CATALOGUE, Card
from dode.zoo.classifiers import Classifier, Critic, Observer
from dode.zoo.datasets import DATA_SETS, DataSet, data_set
from dode.zoo.download import fetch
from dode.zoo.guidance import ClassifierGuidance
from dode.zoo.loading import load_noisy_classifier, load_published, settle
from dode.zoo.unet import UNet

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"
Evaluator = Classifier | Critic | Observer
DENOISERS = ("noise", "data")
EVALUATORS: dict[str, type[Evaluator]] = {"classifier": Classifier, "critic": Critic, "observer": Observer}


def known(kinds: Iterable[str]) -> list[str]:
    """The names of the networks of these kinds (:data:`DENOISERS`, :data:`EVALUATORS`) of every data set."""
    return [f"{name}-{kind}" for name in DATA_SETS for kind in kinds]


def shipped(kinds: Iterable[str]) -> list[str]:
    """Those of :func:`known` whose files are here."""
    return [name for name in known(kinds) if (CHECKPOINTS / f"{name}.safetensors").is_file()]


NAMES = tuple(shipped(DENOISERS))
WRAPPERS: tuple[type[NetworkDenoiser], ...] = (
    NoisePrediction,
    DataPrediction,
    VPrediction,
    EDMPrediction,
    ConsistencyPrediction,
)
# Of each data set the first measures, so nothing may be fitted with its features; that is what the others are for.
CLASSIFIERS: dict[str, type[Evaluator]] = {name: EVALUATORS[name.rsplit("-", 1)[1]] for name in shipped(EVALUATORS)}


def published(name: str | Path) -> Card | None:
    """The row of a published checkpoint, by its name with or without the scale of a guidance; None of another's."""
    return CATALOGUE.get(str(name).partition("@")[0])


def checkpoint_file(name: str | Path, kinds: Iterable[str] = DENOISERS) -> Path:
    """The file of a name of :func:`known`, of a published checkpoint, or a path to a ``.safetensors`` file.

    The part of a name from "@" on is the scale of its guidance (:func:`load_denoiser`) and no part of the file's.

    ValueError for another name, with the nearest ones, or a pipeline of diffusers, which has no file.  FileError for a
    published one (:data:`dode.zoo.CATALOGUE`) that is not here and cannot be fetched, or one of dode's own that does
    not ship; the message says how to train it.
    """
    if kinds is DENOISERS and (row := published(name)):
        return fetch(row)
    if names_a_file(name):
        return Path(name)
    if name not in known(kinds):
        others = [row.name for row in CATALOGUE.values() if row.kind != "classifier"] if kinds is DENOISERS else []
        near = nearest(str(name).partition("@")[0], [*shipped(kinds), *others])
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
    matching = [d for d in DATA_SETS.values() if facts.get("data") == d.source]
    return matching[0] if matching else data_set(str(facts.get("name", checkpoint)))


def moments_file(classifier: str) -> str:
    """What the file with the moments of a classifier's features over its data set is called."""
    return f"{classifier.removesuffix('-classifier')}-moments.safetensors"


def digest(name: str | Path) -> str:
    """The first eight digits of the file's SHA-256: which weights a number was measured with."""
    return hashlib.sha256(checkpoint_file(name).read_bytes()).hexdigest()[:8]


def metadata(name: str | Path) -> dict[str, Any]:
    """The model card's facts as stored in the checkpoint's header."""
    return load_tensors(checkpoint_file(name), "network")[1]


def load_denoiser(
    name: str | Path,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> NetworkDenoiser:
    """A denoiser from a shipped name or a file of ``dode train``, frozen and in eval mode.

    A name of :data:`dode.zoo.CATALOGUE` does too: a class-conditional network draws all its classes, image ``i``
    class ``i mod K`` (``model.of(seeds)``: by seed); :func:`dode.zoo.load_published` takes other labels.
    "NAME@1.25" is guided by the classifier that goes with the network, scaled so.

    Parameters
    ----------
    dtype
        Of the network's parameters and arithmetic (stored in half precision, widened here).
    autocast
        e.g. ``torch.bfloat16``: faster and less exact; the states stay as they are.

    Raises
    ------
    ValueError
        Unknown name, a pipeline of diffusers, or a guidance that cannot be.
    FileError
        Missing, truncated or foreign file.
    """
    if row := published(name):
        guidance = _guidance(row, str(name))  # before anything is fetched
        labels: Any = "all" if row.classes else None
        found = load_published(row.name, device, labels=labels, dtype=dtype, autocast=autocast)
        return _guided(found, str(name), *guidance) if guidance else found
    path = checkpoint_file(name)
    tensors, meta = load_tensors(path, "network")
    try:
        network = UNet(**meta["config"])
        network.load_state_dict({k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()})
        wrapper = {c.__name__: c for c in WRAPPERS}[meta["wrapper"]]
        extra = {} if meta.get("sigma_data") is None else {"sigma_data": meta["sigma_data"]}
        denoiser = wrapper(
            network, meta["shape"], from_config(meta["schedule"]), autocast=autocast, name=meta["name"],
            conditioning=class_labels(network.classes, "all" if network.classes else None), **extra,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise FileError(f"{path} does not hold a denoiser of this version of dode ({first_line(error)})") from None
    settle(network, device, dtype)
    return denoiser


def _guidance(row: Card, name: str) -> tuple[str, float] | None:
    """Classifier and scale of "NAME@1.25", None of a name alone; ValueError if there is none, or it is no number."""
    _, at, text = name.partition("@")
    if not at:
        return None
    if "classifier" not in row.settings:
        raise ValueError(f"{name}: no classifier is published with {row.name}; leave out @{text}")
    if not row.classes:
        raise ValueError(f"{name}: {row.name} has no class to draw; dode.zoo.ClassifierGuidance guides it to labels=")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(f"{name}: {text!r} is no scale of a guidance; write a number, as in {row.name}@1.0")
    return row.settings["classifier"], scale


def _guided(denoiser: NetworkDenoiser, name: str, classifier: str, scale: float) -> ClassifierGuidance:
    """A published network guided by its classifier; ValueError if it has no classes."""
    assert isinstance(denoiser, NoisePrediction)  # all that have a classifier are
    found = ClassifierGuidance(denoiser, load_noisy_classifier(classifier, denoiser.device), scale=scale)
    found.name = name
    return found


def load_evaluator(name: str | Path, device: str | torch.device = "cpu") -> tuple[Evaluator, str]:
    """A classifier from a shipped name or a file of ``dode train``, and the name of its features.

    The network is frozen and in eval mode, but its inputs are not: ``network.features(pixels)``, with float
    pixel values 0..255 ``(B, C, H, W)``, gives ``(B, F)`` and passes gradients on.  A fit takes the data set's
    "...-critic" or "...-observer": a solver fitted with the features that measure it would be measured by its own loss.
    The features' name holds the first digits of the weights' SHA-256, so that statistics of a retrained
    classifier are refused, not compared.

    ValueError for an unknown name, FileError for a missing, truncated or foreign file.
    """
    path = checkpoint_file(name, EVALUATORS)
    tensors, meta = load_tensors(path, "network")
    try:
        architectures = {c.__name__: c for c in EVALUATORS.values()}
        network = architectures[meta.get("architecture", "Classifier")](**meta["config"])  # the first has no entry
        network.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise FileError(f"{path} does not hold a classifier of dode.zoo.classifiers; train it again") from None
    network.to(device).eval().requires_grad_(False)
    weights = hashlib.sha256(b"".join(tensors[k].numpy().tobytes() for k in sorted(tensors))).hexdigest()
    return network, f"{meta.get('name', 'classifier')}-{weights[:8]}"
