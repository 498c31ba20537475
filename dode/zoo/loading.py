"""Published checkpoints as denoisers, and the classifiers of noisy images that guide them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction, VEPrediction
from dode.denoisers.conditioning import Labels, class_labels
from dode.schedules import EDM, VPContinuous, cosine
from dode.utils.files import FileError, first_line
from dode.zoo import pickles
from dode.zoo.blocks import Published
from dode.zoo.catalogue import CATALOGUE, Card, Kind, find
from dode.zoo.ddpm import Model
from dode.zoo.download import fetch
from dode.zoo.nvidia import DhariwalUNet, SongUNet
from dode.zoo.openai import EncoderUNetModel, UNetModel
from dode.zoo.states import latent_tensors_of, tensors_of

BODIES: dict[str, type[nn.Module]] = {"SongUNet": SongUNet, "DhariwalUNet": DhariwalUNet}
STATES: tuple[Kind, ...] = ("guided", "guided-edm", "latent", "ddpm")


def build(
    make: Callable[..., nn.Module], tensors: Mapping[str, Tensor], path: Path, *positional: Any, **named: Any
) -> nn.Module:
    """A network that holds exactly these tensors.  FileError if a name or a shape does not fit."""
    try:
        with torch.device("meta"):  # shapes alone: nothing is initialised only to be overwritten
            network = make(*positional, **named)
    except Exception as error:  # the arguments may come from the file
        raise FileError(f"{path} holds a network that dode cannot build ({first_line(error)})") from None
    wanted = {name: tuple(t.shape) for name, t in network.state_dict().items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    lacking, foreign = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & given.keys() if wanted[name] != given[name])
    if lacking or foreign or other:
        first = (
            f"no {lacking[0]!r}" if lacking
            else f"{foreign[0]!r} has no place" if foreign
            else f"{other[0]!r} has shape {given[other[0]]}, not {wanted[other[0]]}"
        )  # fmt: skip
        many = len(lacking) + len(foreign) + len(other)
        raise FileError(f"{path} does not fit {make.__name__}: {first}" + (f" ({many} such)" if many > 1 else ""))
    network.load_state_dict(dict(tensors), assign=True)
    return network


def _nvidia(path: Path) -> tuple[Published, Callable[..., NetworkDenoiser], dict[str, Any], tuple[int, ...]]:
    """Network, wrapper, its arguments and the shape of an image, all as the pickle says."""
    outer = pickles.network(path)
    facts = outer.state
    try:
        inner = outer.children["model"]
        if inner.kind not in BODIES:
            raise ValueError(f"network {inner.kind!r}")
        positional, named = inner.arguments
        body = build(BODIES[inner.kind], inner.tensors(), path, *positional, **named)
        shape = (int(facts["img_channels"]), int(facts["img_resolution"]), int(facts["img_resolution"]))
        wrapper, arguments, scale = _preconditioning(outer.kind, facts)
    except FileError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileError(f"{path} holds {outer.kind} in a form that dode does not know: {error}") from None
    network = Published(body, shape[0], classes=int(facts.get("label_dim", 0)), label_scale=scale)
    return network, wrapper, arguments, shape


def _preconditioning(
    kind: str, facts: Mapping[str, Any]
) -> tuple[Callable[..., NetworkDenoiser], dict[str, Any], float]:
    """Karras et al. 2022, table 1: the wrapper, its arguments, and the factor of its label."""
    if kind == "EDMPrecond":  # the range is that of their sampler, inside what the network takes
        span = EDM(max(0.002, float(facts["sigma_min"])), min(80.0, float(facts["sigma_max"])))
        return EDMPrediction, dict(schedule=span, sigma_data=float(facts["sigma_data"])), 1.0
    if kind == "VPPrecond":
        low, extent = float(facts["beta_min"]), float(facts["beta_d"])
        return NoisePrediction, dict(schedule=VPContinuous(low, low + extent)), (facts["M"] - 1) / 999
    if kind == "VEPrecond":
        return VEPrediction, dict(schedule=EDM(float(facts["sigma_min"]), float(facts["sigma_max"]))), 1.0
    if kind == "iDDPMPrecond" and (facts["C_1"], facts["C_2"]) == (0.001, 0.008):  # fractional labels stay so
        return NoisePrediction, dict(schedule=cosine(int(facts["M"]))), 1.0
    raise ValueError(f"preconditioning {kind!r}")


def _openai(row: Card, path: Path) -> tuple[Published, Callable[..., NetworkDenoiser], dict[str, Any], tuple[int, ...]]:
    """As :func:`_nvidia`, by the row's flags."""
    make = Model if row.kind == "ddpm" else UNetModel
    tensors = latent_tensors_of(path) if row.kind == "latent" else tensors_of(path)
    body = build(make, tensors, path, **row.network)
    network = Published(body, row.shape[0], classes=row.classes, label_scale=row.label_scale)
    wrapper = EDMPrediction if row.kind == "guided-edm" else NoisePrediction
    return network, wrapper, dict(schedule=row.schedule), row.shape


def locate(name: str | Path, like: str | None, progress: bool, classifier: bool = False) -> tuple[Path, Card | None]:
    """The file, and the row that describes it if there is one; nothing is fetched of the other kind of network.

    A name of the catalogue is fetched.  A path is taken as it is; ``like``, or the file's own name, says what it is.
    """
    text = str(name)
    path = Path(text).expanduser()
    named = text in CATALOGUE and not like
    if named or (not path.suffix and not path.exists()):
        row: Card | None = find(text)  # a ValueError if there is no such name
    else:
        row = find(like) if like else next((r for r in CATALOGUE.values() if r.file == path.name), None)
    if row and row.kind == "classifier" and not classifier:
        raise ValueError(f"{row.name} is a classifier; load it with dode.zoo.load_noisy_classifier")
    if classifier and (row is None or row.kind != "classifier"):
        several = ", ".join(r.name for r in CATALOGUE.values() if r.kind == "classifier")
        raise ValueError(f"{name} is not known as a classifier; the classifiers: {several}")
    return (fetch(row, progress=progress) if named and row else path), row


def load_published(
    name_or_file: str | Path,
    device: str | torch.device = "cpu",
    *,
    labels: Labels = None,
    like: str | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    progress: bool = True,
) -> NetworkDenoiser:
    """A published network as a denoiser, frozen and in eval mode.  No file is ever executed.

    Parameters
    ----------
    name_or_file
        A name of :data:`dode.zoo.CATALOGUE` (its file is downloaded once, into ``DODE_CACHE``), or a file:
        one of NVIDIA's pickles (``.pkl``, any of that format), or a state dictionary (``.pt``, ``.pth``, ``.ckpt``;
        of latent diffusion a training state, or the ``.zip`` that has one) with the name of a catalogue file, or
        with ``like``.
    labels
        Of a class-conditional network: one class for all images, several in turn or "all"
        (:mod:`dode.denoisers.conditioning`).
    like
        The row whose network and schedule a file has.
    dtype, autocast
        As in :func:`dode.load`.  NVIDIA's networks that say ``use_fp16`` run in ``dtype`` all the same.

    Raises
    ------
    ValueError
        Unknown name, wrong labels, or a device that is not there.
    FileError
        Missing, unfetchable, altered, damaged, foreign or malicious file.
    """
    path, row = locate(name_or_file, like, progress)
    if path.suffix == ".pkl" or (row and row.kind == "edm"):
        network, wrapper, arguments, shape = _nvidia(path)
    elif row is None or row.kind not in STATES:
        several = ", ".join(r.name for r in CATALOGUE.values() if r.kind in STATES)
        raise ValueError(f"say which network {path} holds with like=, one of: {several}")
    else:
        network, wrapper, arguments, shape = _openai(row, path)
    if row and (tuple(shape), network.classes) != (tuple(row.shape), row.classes):
        raise FileError(f"{path} holds a network of {shape} with {network.classes} classes; {row.name} has others")
    conditioning, title = class_labels(network.classes, labels), row.name if row else path.stem
    denoiser = wrapper(network, shape, conditioning=conditioning, autocast=autocast, name=title, **arguments)
    settle(network, device, dtype)
    return denoiser


def settle(network: nn.Module, device: str | torch.device, dtype: torch.dtype) -> None:
    """Move, freeze and set to eval mode."""
    try:
        network.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"cannot use device {str(device)!r}: {first_line(error)}") from None
    network.eval().requires_grad_(False)


def load_noisy_classifier(
    name_or_file: str | Path,
    device: str | torch.device = "cpu",
    *,
    like: str | None = None,
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> EncoderUNetModel:
    """A classifier of noisy images, frozen, to guide a denoiser with: logits ``(B, 1000)`` of ``(B, 3, H, W)``, labels.

    Arguments and errors as in :func:`load_published`.
    """
    path, row = locate(name_or_file, like, progress, classifier=True)
    assert row is not None
    network = build(EncoderUNetModel, tensors_of(path), path, **row.network)
    settle(network, device, dtype)
    assert isinstance(network, EncoderUNetModel)
    return network
