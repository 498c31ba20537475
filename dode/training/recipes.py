"""Everything that decides a training run, as data: one row of :data:`TRAININGS` for each network that dode trains."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction
from dode.schedules import EDM, vp_linear
from dode.utils.optimisation import Settings
from dode.zoo.checkpoints import EVALUATORS
from dode.zoo.datasets import DataSet, data_set
from dode.zoo.unet import UNet

NETWORKS: dict[str, type[nn.Module]] = {"noise": UNet, "data": UNet, **EVALUATORS}
LABEL_SCALE = {"noise": 1.0, "data": 250.0}  # labels 0..1000, and ln(sigma) / 4


@dataclass(frozen=True)
class Training(Settings):
    """Everything that decides a training run.

    Its name is the data set's, then "-" and one of :data:`NETWORKS` where :func:`dode.training.train` is to build it.
    """

    bf16: bool = True  # mixed precision
    flips: bool = False  # half of the images are seen mirrored
    compile: bool = False  # ``torch.compile`` where the device is a GPU
    drop: float = 0.0  # the part of images whose class is withheld from a denoiser, so that it learns to draw any
    network: dict[str, Any] = field(default_factory=dict)  # its arguments beside those that the data set decides

    @property
    def data(self) -> DataSet:
        """What it learns from."""
        return data_set(self.name)

    @property
    def kind(self) -> str:
        """What it makes.  ValueError for a name that says none."""
        found = self.name.rsplit("-", 1)[-1]
        if found not in NETWORKS:
            raise ValueError(f"{self.name!r} does not end with one of {', '.join(NETWORKS)}")
        return found

    @property
    def denoises(self) -> bool:
        """Whether it makes a denoiser and no classifier."""
        return self.kind in LABEL_SCALE


SMALL = dict(widths=(32, 64, 128))  # 2.7 M parameters, an hour on one core
MEDIUM = dict(widths=(48, 96, 160))  # 4.7 M parameters, 9.4 MB in half precision, an hour on one core
CLASSIFIER, CRITIC = dict(width=32, features=128), dict(stem=24, widths=(64, 160))
PATCHES = dict(width=128, layers=6)
LARGE = dict(patch=1, widths=(64, 112, 160), blocks=2, heads=5)  # 7.8 M parameters, 15.5 MB, for a GPU

TRAININGS = {
    r.name: r
    for r in (
        Training("fashion-mnist-noise", network=SMALL),
        Training("fashion-mnist-data", network=SMALL),
        Training("fashion-mnist-classifier", steps=2_000, rate=2e-3, warmup=100, bf16=False),
        Training("fashion-mnist-critic", 5_000, rate=3e-3, seed=1, bf16=False, flips=True),
        Training("fashion-mnist-observer", 2_000, rate=3e-3, warmup=200, seed=2, flips=True),
        Training("fashion-mnist-transformer", 12_000, rate=1e-3, warmup=500, seed=3, bf16=False, flips=True),
        Training("imagenet32-noise", 5_000, rate=1.2e-3, flips=True, drop=0.1, network=MEDIUM),
        Training("imagenet32-data", 5_000, rate=1.2e-3, flips=True, drop=0.1, network=MEDIUM),
        Training("imagenet32-classifier", 3_000, batch=256, rate=2e-3, flips=True, network=CLASSIFIER),
        Training("imagenet32-critic", 2_000, batch=256, rate=2e-3, seed=1, flips=True, network=CRITIC),
        Training("imagenet32-observer", 2_000, batch=256, rate=2e-3, seed=2, flips=True, network=CLASSIFIER),
        Training("imagenet32-transformer", 4_000, batch=256, warmup=400, seed=3, flips=True, network=PATCHES),
    )
}

# What a denoiser of Tiny ImageNet has otherwise where there is a GPU.
ON_A_GPU: dict[str, Any] = dict(
    steps=20_000, batch=512, rate=1e-3, warmup=500, ema=0.9995, save_every=1_000, compile=True, network=LARGE
)


def trainings(word: str, large: bool = False) -> list[Training]:
    """The recipe called ``word``, or all of the data set of that name, those that measure first.

    ``large``: its larger denoisers alone, which want a GPU.  ValueError if there is none; it says which there are.
    """
    found = sorted((r for r in TRAININGS.values() if word in (r.name, r.data.name)), key=lambda r: r.denoises)
    if large:
        found = [replace(r, **ON_A_GPU) for r in found if r.denoises and r.data.class_conditional]
    if not found:
        raise ValueError(f"no {'larger ' * large}network or data set named {word!r}; known: {', '.join(TRAININGS)}")
    return found


def build_denoiser(recipe: Training) -> NetworkDenoiser:
    """The untrained denoiser of a recipe."""
    data, name = recipe.data, recipe.name
    channels, size, _ = data.shape
    classes = data.classes if data.class_conditional else 0
    network = UNet(channels, size, label_scale=LABEL_SCALE[recipe.kind], classes=classes, **recipe.network)
    if recipe.kind == "noise":
        return NoisePrediction(network, data.shape, vp_linear(), name=name)
    return EDMPrediction(network, data.shape, EDM(), sigma_data=data.sigma_data, name=name)


def build_classifier(recipe: Training) -> nn.Module:
    """The untrained classifier or critic of a recipe."""
    (channels, size, _), classes = recipe.data.shape, recipe.data.classes
    sized = dict(size=size) if recipe.kind == "transformer" else {}
    return NETWORKS[recipe.kind](channels=channels, classes=classes, **sized, **recipe.network)
