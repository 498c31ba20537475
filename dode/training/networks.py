"""The networks that dode ships, from recipe to file: trained, described, and the statistics that belong to them."""

from __future__ import annotations

import csv
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dode import metrics, zoo
from dode.denoisers import NetworkDenoiser
from dode.training.losses import Loss, accuracy, classifier_loss, denoiser_loss
from dode.training.recipes import Training, build_classifier, build_denoiser
from dode.utils.files import FileError, atomic
from dode.utils.optimisation import Run


def describe(denoiser: NetworkDenoiser) -> dict[str, Any]:
    """What :func:`dode.load` needs to wrap a network again."""
    return dict(
        prediction=denoiser.prediction, wrapper=type(denoiser).__name__, schedule=denoiser.schedule.config,
        shape=list(denoiser.shape), sigma_data=getattr(denoiser, "sigma_data", None),
    )  # fmt: skip


def _begin(recipe: Training, device: str) -> tuple[nn.Module, Loss, dict[str, Any]]:
    """The untrained network on ``device``, its loss on the data, which are there too, and its description."""
    split = recipe.data.whole if recipe.denoises else "train"
    images, labels = (t.to(device) for t in recipe.data.load(split))
    torch.manual_seed(recipe.seed)
    if not recipe.denoises:
        model = build_classifier(recipe).to(device)
        return model, classifier_loss(model, images, labels, recipe), dict(architecture=type(model).__name__)
    denoiser = build_denoiser(recipe).to(device)
    model = denoiser.network.to(memory_format=torch.channels_last)  # type: ignore[union-attr, call-overload]
    if recipe.compile and device.startswith("cuda"):
        denoiser.network = torch.compile(model)
    return model, denoiser_loss(denoiser, images, labels, recipe), describe(denoiser)


def train(recipe: Training, folder: Path, device: str = "cpu") -> Run:
    """Train the network of a recipe, or go on where a killed run stopped.

    Writes its state into ``folder`` and, when it is finished, ``NAME.safetensors``, ``NAME.csv`` and the moments of a
    classifier's features.

    ValueError if the state in ``folder`` is another recipe's, FileError if it or the training images cannot be read,
    FloatingPointError for a loss that is not finite; the last saved state is as it was.
    """
    model, loss, info = _begin(recipe, device)
    run = Run(recipe, model, folder, device)
    if run.step:
        print(f"resuming {recipe.name} at step {run.step}")
    run.train(loss)
    _publish(run, recipe, folder, info)
    return run


def _publish(run: Run, recipe: Training, folder: Path, info: dict[str, Any]) -> None:
    """Write the finished network, with what a model card says of it, its log, and FD's other side of a classifier."""
    average, data, device = run.average.module, recipe.data, run.device
    network = folder / f"{recipe.name}.safetensors"
    info |= dict(
        data=data.source, licence=data.licence, seconds=round(run.seconds), threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        final_loss=run.log[-1][1] if run.log else None, torch=torch.__version__, python=platform.python_version(),
    )  # fmt: skip
    if not recipe.denoises:
        run.publish(network, info | dict(test_accuracy=accuracy(average, *data.load("test"))))
        features, (images, _) = metrics.classifier_features(network, device), data.load(data.whole)
        metrics.moments(images, features, source=data.source).save(folder / zoo.moments_file(recipe.name))
    else:
        run.publish(network, info)
    with atomic(network.with_suffix(".csv")) as temporary, open(temporary, "w", newline="") as f:
        csv.writer(f).writerows([("step", "loss", "seconds"), *((s, f"{v:.6f}", f"{t:.1f}") for s, v, t in run.log)])


def files(recipe: Training) -> list[str]:
    """What a finished recipe leaves: the network, its log, and a classifier's moments."""
    found = [f"{recipe.name}.safetensors", f"{recipe.name}.csv"]
    return found if recipe.denoises else [*found, zoo.moments_file(recipe.name)]


def missing(recipes: Iterable[Training], folder: Path) -> list[Training]:
    """Those of the recipes that are not finished in ``folder``."""
    return [recipe for recipe in recipes if not all((folder / file).is_file() for file in files(recipe))]


def ship(recipe: Training, folder: Path) -> list[Path]:
    """Copy what a finished recipe left in ``folder`` beside the package's own checkpoints; the copies.

    FileError if something is not there, or too large to be shipped.
    """
    if missing([recipe], folder):
        raise FileError(f"{recipe.name} is not finished in {folder}; train it with dode train {recipe.name}")
    sources = [folder / file for file in files(recipe)]
    if large := [p for p in sources if p.stat().st_size > 16e6]:
        raise FileError(f"{large[0]} has {large[0].stat().st_size / 1e6:.1f} MB; a shipped file has 16 at most")
    for source in sources:
        with atomic(zoo.CHECKPOINTS / source.name) as temporary:
            shutil.copyfile(source, temporary)
    return [zoo.CHECKPOINTS / p.name for p in sources]
