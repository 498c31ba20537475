"""Networks as denoisers, by name or file; the classifiers that guide them, and those that evaluate samples."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import dode.zoo.families  # noqa: F401  each registers itself
from dode.denoisers import NetworkDenoiser, NoisePrediction
from dode.denoisers.conditioning import Labels, class_labels
from dode.utils.files import FileError, first_line, load_tensors
from dode.zoo.catalogue import CATALOGUE, FAMILIES, Card, find, varied
from dode.zoo.checkpoints import EVALUATORS, Evaluator, checkpoint_file, published
from dode.zoo.download import fetch, packaged
from dode.zoo.guidance import ClassifierFreeGuidance, ClassifierGuidance


def load_denoiser(
    name: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> NetworkDenoiser:  # fmt: skip
    """A denoiser from a shipped name or a file of ``dode train``, frozen and in eval mode.

    A name of :data:`dode.zoo.CATALOGUE` does too: a class-conditional network draws all its classes, image ``i``
    class ``i mod K`` (``model.of(seeds)``: by seed); :func:`dode.zoo.load_published` takes other labels.
    "NAME@1.25" is guided as its authors do, by the classifier that goes with it or by no class, scaled so.

    ``dtype`` is that of the network's parameters and arithmetic (stored in half precision, widened here); ``autocast``,
    e.g. ``torch.bfloat16``, is faster and less exact, and the states stay as they are.

    ValueError for an unknown name, a pipeline of diffusers, or a guidance that cannot be; FileError for a missing,
    truncated or foreign file.
    """
    if card := published(name):
        guidance = _guidance(card, str(name))  # before anything is fetched
        labels: Any = "all" if card.classes else None
        found = load_published(card.name, device, labels=labels, dtype=dtype, autocast=autocast)
        if guidance:
            assert isinstance(found, NoisePrediction)  # all that have a guidance are
            classifier, scale = guidance
            if classifier:
                found = ClassifierGuidance(found, load_noisy_classifier(classifier, found.device), scale=scale)
            else:
                found = ClassifierFreeGuidance(found, scale=scale)
            found.name = str(name)
        return found
    found = FAMILIES["dode"].read(checkpoint_file(name), None)
    return _finished(found, "all" if found.network.classes else None, device, dtype, autocast)


def load_published(
    name_or_file: str | Path, device: str | torch.device = "cpu", *, labels: Labels = None, like: str | None = None,
    network: Mapping[str, Any] | None = None, dtype: torch.dtype = torch.float32, autocast: torch.dtype | None = None,
    progress: bool = True,
) -> NetworkDenoiser:  # fmt: skip
    """A published network as a denoiser, frozen and in eval mode.  No file is ever executed.

    Parameters
    ----------
    name_or_file
        A name of :data:`dode.zoo.CATALOGUE` (its file is downloaded once, into ``DODE_CACHE``, or read from the package
        that has it), or a file:
        one of NVIDIA's pickles (``.pkl``, of EDM or EDM2), or a state dictionary (``.pt``, ``.pth``, ``.ckpt``;
        of latent diffusion a training state, or the ``.zip`` that has one; of galaxies the package's wheel or folder)
        with the name of a catalogue file, or with ``like``.
    labels
        Of a class-conditional network: one class for all images, several in turn, "all" or "none"
        (:func:`dode.denoisers.conditioning.class_labels`).
    like
        The card whose network and schedule a file has.
    network
        What an own run of the program of ``like`` has for the card's arguments (:attr:`dode.zoo.Card.network`), by the
        names there: ``dict(num_channels=64, channel_mult=(1, 2, 2))``. ``num_classes`` stands for ``class_cond``.
    dtype, autocast
        As in :func:`dode.load`.  NVIDIA's networks that say ``use_fp16`` run in ``dtype`` all the same.

    ValueError for an unknown name, wrong labels, arguments for a file that says its own, or a device that is not there;
    FileError for a missing, unfetchable, altered, damaged, foreign or malicious file.
    """
    path, card = locate(name_or_file, like, progress)
    family = next((f for f in FAMILIES.values() if f.suffix and f.suffix == path.suffix), None)
    if family is None and card is None:
        several = ", ".join(c.name for c in CATALOGUE.values() if c.file and not FAMILIES[c.family].classifies)
        raise ValueError(f"say which network {path} holds with like=, one of: {several}")
    if network is not None:
        if card is None:
            raise ValueError(f"{path} says its network's arguments itself; leave out network=")
        card = varied(card, path.stem, network)
    found: NetworkDenoiser = (family or FAMILIES[card.family]).read(path, card)  # type: ignore[union-attr]
    if card:
        classes: Any = found.network.classes  # type: ignore[union-attr]
        if (found.shape, classes) != (tuple(card.shape), card.classes):
            raise FileError(f"{path} holds a network of {found.shape} with {classes} classes; {card.name} has others")
        found.name, found.images = card.name, card.images
    return _finished(found, labels, device, dtype, autocast)


def load_noisy_classifier(
    name_or_file: str | Path, device: str | torch.device = "cpu", *, like: str | None = None,
    dtype: torch.dtype = torch.float32, progress: bool = True,
) -> nn.Module:  # fmt: skip
    """A classifier of noisy images, frozen, to guide a denoiser with: logits ``(B, 1000)`` of ``(B, 3, H, W)``, labels.

    Arguments and errors as in :func:`load_published`.
    """
    path, card = locate(name_or_file, like, progress, classifier=True)
    assert card is not None
    return _settled(FAMILIES[card.family].read(path, card), device, dtype)


def locate(name: str | Path, like: str | None, progress: bool, classifier: bool = False) -> tuple[Path, Card | None]:
    """The file, and the card that describes it if there is one; nothing is fetched of the other kind of network.

    A name of the catalogue is fetched.  A path is taken as it is; ``like``, or the file's own name, says what it is.
    """
    text = str(name)
    path = Path(text).expanduser()
    named = text in CATALOGUE and not like
    if named or (not path.suffix and not path.exists()):
        card: Card | None = find(text)  # a ValueError if there is no such name
    else:
        card = find(like) if like else next((c for c in CATALOGUE.values() if c.file == path.name), None)
    classifies = card is not None and FAMILIES[card.family].classifies
    if card and classifies and not classifier:
        raise ValueError(f"{card.name} is a classifier; load it with dode.zoo.load_noisy_classifier")
    if classifier and not classifies:
        several = ", ".join(c.name for c in CATALOGUE.values() if FAMILIES[c.family].classifies)
        raise ValueError(f"{name} is not known as a classifier; the classifiers: {several}")
    if card and card.package and (path.is_dir() or path.suffix == ".whl") and not named:
        return packaged(card, path), card
    return (fetch(card, progress=progress) if named and card else path), card


def _finished(
    denoiser: NetworkDenoiser, labels: Labels, device: str | torch.device, dtype: torch.dtype,
    autocast: torch.dtype | None,
) -> NetworkDenoiser:  # fmt: skip
    """How every loaded denoiser ends: its labels, its arithmetic, its place; frozen and in eval mode."""
    network: Any = denoiser.network
    denoiser.conditioning, denoiser.autocast = class_labels(network.classes, labels), autocast
    _settled(network, device, dtype)
    return denoiser


def _settled(network: nn.Module, device: str | torch.device, dtype: torch.dtype) -> nn.Module:
    """Move, freeze and set to eval mode."""
    try:
        network.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use device {str(device)!r}: {first_line(error)}") from None
    return network.eval().requires_grad_(False)


def _guidance(card: Card, name: str) -> tuple[str, float] | None:
    """Classifier ("" for none) and scale of "NAME@1.25", None of a name alone.

    ValueError if the network has no guidance, or the scale is no number.
    """
    _, at, text = name.partition("@")
    if not at:
        return None
    if not {"classifier", "guidance_scale"} & card.settings.keys():
        raise ValueError(f"{name}: no guidance is published with {card.name}; leave out @{text}")
    if not card.classes:
        raise ValueError(f"{name}: {card.name} has no class to draw; dode.zoo.ClassifierGuidance guides it to labels=")
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not math.isfinite(scale):
        raise ValueError(f"{name}: {text!r} is no scale of a guidance; write a number, as in {card.name}@1.0")
    return card.settings.get("classifier", ""), scale


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
