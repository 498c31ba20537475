"""What measurements work with: networks, seeds, grids, evaluators, and the reference solution."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from dode import schedules, solvers, zoo
from dode.denoisers import Denoiser, NetworkDenoiser
from dode.denoisers.networks import is_compiled
from dode.experiments.morphology import light, morphologies, observed
from dode.experiments.rows import kept
from dode.experiments.sweeps import Preset, home, images_of
from dode.metrics import Features, Mode, Moments, cache_folder, classifier_features, inception_features, rmse
from dode.sampling import Walker, initial_noise, sample, trajectory
from dode.solvers.base import Grid
from dode.tableau import Tableau
from dode.utils.environment import has_bf16
from dode.utils.files import FileError, load_tensors, save_tensors
from dode.zoo.families.galaxies import sky_of
from dode.zoo.unet import UNet

TRAINING_BLOCK = 60  # of held-out seeds whose reference solution stands for training images, where there are none
EVALUATION = ("classifier", "critic")  # the networks whose features distances of learned solvers are in
# Each from a noise range to a grid function.
GRIDS: dict[str, Callable[..., Tensor]] = {
    "time": schedules.time_uniform,
    "quadratic": schedules.time_quadratic,
    "Karras": schedules.karras,
    "log SNR": schedules.log_snr,
}


def grid_function(name: str, denoiser: Denoiser, to_zero: bool = True) -> Callable[[int], Tensor]:
    """The grid called ``name`` over the denoiser's noise range, with a last step to 0.

    The time is that of the denoiser's schedule if it is a VP chain or a flow, else of the linear chain.  Without
    ``to_zero``, "Karras" and "log SNR" end at ``sigma_min``: that is their last level, and a call spent there is lost.
    """
    options: dict[str, Any] = dict(sigma_min=denoiser.sigma_min, sigma_max=denoiser.sigma_max)
    if to_zero or name in ("time", "quadratic"):
        options["final"] = "zero"
    if name in ("time", "quadratic") and isinstance(denoiser.schedule, (schedules.VPDiscrete, schedules.Flow)):
        options["schedule"] = denoiser.schedule
    return functools.partial(GRIDS[name], **options)


def on_grid(spec: str, grid: Grid, nfe: int | None = None) -> Tableau:
    """The solver ``spec`` (see :func:`dode.solvers.parse`) on a grid, or with ``nfe`` evaluations on a grid function.

    An order in the spec is the highest: with fewer evaluations it is their number.
    """
    facts, options = solvers.parse(spec)
    if nfe and "order" in options:
        options["order"] = min(options["order"], nfe)
    return facts.make(grid, nfe=nfe, **options)


def base_solver(spec: str, denoiser: Denoiser, nfe: int) -> Tableau:
    """:func:`on_grid` on the denoiser's own grid."""
    return on_grid(spec, denoiser.grid, nfe)


def possible_nfe(spec: str, nfe: int) -> int:
    """The most network calls, ``nfe`` at most, that ``spec`` can make on a grid to 0: Heun, asked for 10, makes 9."""
    facts, options = solvers.parse(spec)
    return facts.most_calls(nfe, options)


def fit_seeds(count: int, block: int = 0) -> range:
    """The seeds that block ``block`` fits with: below any seed that is measured."""
    return range(block * 1000, block * 1000 + count)


def held_out_seeds(count: int, block: int = 0) -> range:
    """The held-out seeds of block ``block``."""
    return range((block + 1) * 1_000_000, (block + 1) * 1_000_000 + count)


def seeded(denoiser: Denoiser, seeds: Iterable[int]) -> tuple[Denoiser, Tensor]:
    """The noise of ``seeds``, and the denoiser for their images: each has its noise and its class by its seed alone."""
    seeds = list(seeds)
    return denoiser.of(seeds), initial_noise(denoiser.shape, seeds, device=denoiser.device)


def draw(
    denoiser: Denoiser, tableau: Tableau | Walker, seeds: Iterable[int], batch_size: int | None = None
) -> Iterable[Tensor]:
    """Samples of ``seeds``, batch by batch; a GPU has larger batches."""
    seeds, size = list(seeds), batch_size or (250 if denoiser.device.type == "cpu" else 1_000)
    for first in range(0, len(seeds), size):
        conditioned, noise = seeded(denoiser, seeds[first : first + size])
        yield sample(conditioned, tableau, noise)


def seeded_batches(denoiser: Denoiser, seeds: range) -> list[tuple[Denoiser, Tensor]]:
    """:func:`seeded` of 100 seeds each."""
    return [seeded(denoiser, seeds[k : k + 100]) for k in range(0, len(seeds), 100)]


def states_of(denoiser: Denoiser, tableau: Tableau, seeds: range, rows: Sequence[int] | slice = slice(None)) -> Tensor:
    """``(len(rows), B, C, H, W)``: states of a run from these seeds, the start and that after each row, or some."""
    runs = [trajectory(model, tableau, noise)[rows].cpu() for model, noise in seeded_batches(denoiser, seeds)]
    return torch.cat(runs, dim=1)


@functools.cache
def load_cached(name: str, device_name: str, autocast: torch.dtype | None = None) -> NetworkDenoiser:
    """:func:`dode.load`, once for each process."""
    return zoo.load_denoiser(name, device_name, autocast=autocast)


@functools.cache
def data_moments(data_set: str, device_name: str = "cpu", evaluator: str = "classifier") -> tuple[Features, Moments]:
    """The offline evaluator of a data set: features of its classifier, or critic, and their moments on its images."""
    name = f"{data_set}-{evaluator}"
    return classifier_features(name, device_name), Moments.load(zoo.CHECKPOINTS / zoo.moments_file(name))


@functools.cache
def inception_moments(mode: Mode, name: str, device_name: str) -> tuple[Features, Moments]:
    """Inception's features, and their moments on the training images of the network ``name``: a file of the user's."""
    path = cache_folder() / f"{name}.inception-{mode}.safetensors"
    if not path.is_file():
        make = f"dode.metrics.moments(training_images, dode.metrics.inception_features({mode!r})).save(path)"
        raise FileError(f"{path} does not exist; make it from the images that {name} was trained on: {make}")
    return inception_features(mode, device_name), Moments.load(path)


def kept_tensor(key: str, facts: dict[str, Any], make: Callable[[], Tensor], prefix: str = "") -> Tensor:
    """What ``make`` returns, made once and kept under ``key`` in a file of ``_build`` that ``facts`` name."""

    def made(file: Path) -> Tensor:
        found = make()
        save_tensors(file, {key: found}, "images", facts)
        return found

    name = prefix + "-".join(map(str, facts.values())) + ".safetensors"
    read = lambda file: load_tensors(file, "images")[0][key]  # noqa: E731
    return kept(home() / "_build" / "references" / name, read, made)


@dataclass(frozen=True)
class Run:
    """What the cells of a sweep have in common: the sizes, the device, and what is loaded or drawn once for all."""

    preset: Preset
    device: str = "cpu"

    @property
    def autocast(self) -> torch.dtype | None:
        """What the FD sweeps run a network in: bf16 if the preset and the device have it, None for float32."""
        return torch.bfloat16 if self.preset.bf16 and has_bf16(self.device) else None

    @property
    def arithmetic(self) -> str:
        """:attr:`autocast` as rows call it."""
        return "bf16 autocast" if self.autocast else "float32"

    def model(self, checkpoint: str) -> NetworkDenoiser:
        """The network in float32, as fits and pixels want it."""
        return load_cached(checkpoint, self.device)

    def fast(self, checkpoint: str) -> NetworkDenoiser:
        """The network in the arithmetic that the preset samples with."""
        return load_cached(checkpoint, self.device, self.autocast)

    def network(self, checkpoint: str) -> str:
        """What :meth:`compiled` computes with, as rows have it."""
        return self.arithmetic + ", compiled" * is_compiled(self.compiled(checkpoint).network)

    @functools.cache  # noqa: B019 (a few runs a process)
    def compiled(self, checkpoint: str) -> NetworkDenoiser:
        """:meth:`fast`, compiled where ``DODE_COMPILE`` is set: worth its minute where a GPU draws many images."""
        found = self.fast(checkpoint)
        if not os.environ.get("DODE_COMPILE") or not isinstance(found.network, UNet):
            return found
        compiled = copy.copy(found)
        compiled.network = torch.compile(found.network)
        return compiled

    def on_grid(self, checkpoint: str, spec: str, grid: str, nfe: int, to_zero: bool = True) -> Tableau:
        """The solver ``spec`` with ``nfe`` evaluations on the network's :func:`grid_function` called ``grid``."""
        return on_grid(spec, grid_function(grid, self.model(checkpoint), to_zero), nfe)

    def evaluator(self, checkpoint: str, kind: str = "classifier") -> tuple[Features, Moments]:
        """What samples are measured with: features, and their moments on the training images.

        The features are those of the classifier that knows the network's images; a "critic" enters fits, and the
        "transformer" measures alone.  For images that none knows: Inception's, resized as in the papers' tables (or as
        clean-fid does it; fits see neither).  Their moments are in ``NAME.inception-MODE.safetensors`` in
        :func:`dode.metrics.cache_folder`, NAME being the network's; a FileError says how to make them.  For galaxies:
        morphology, or the light in 4 x 4 parts of an image; no training images are at hand, so the moments are those
        of the reference solution from seeds of its own.
        """
        model = self.model(checkpoint)
        if known := model.images.evaluators:
            return data_moments(known, self.device, kind)
        if model.images.to_values:
            return self.observables(checkpoint, "morphology" if kind == "classifier" else "light")
        return inception_moments("legacy_tensorflow" if kind == "classifier" else "clean", model.name, self.device)

    def evaluators(self, checkpoint: str, kinds: Sequence[str] = EVALUATION) -> list[tuple[Features, Moments]]:
        """:meth:`evaluator` of each kind."""
        return [self.evaluator(checkpoint, kind) for kind in kinds]

    @functools.cache  # noqa: B019
    def observables(self, checkpoint: str, kind: Literal["morphology", "light"]) -> tuple[Features, Moments]:
        """What is measured of galaxies, as features in units of its spread, and the reference solution's moments."""
        n = max(32, images_of(self.preset, checkpoint))
        where = (checkpoint, n, self.preset.reference_calls, TRAINING_BLOCK)
        if kind == "light":
            return observed(f"{checkpoint}-light", light, light(self.reference_images(*where)))
        measure = functools.partial(morphologies, sky=sky_of(checkpoint))
        return observed(f"{checkpoint}-morphology", measure, self.shapes(*where))

    def shapes(self, checkpoint: str, n: int, calls: int, block: int = 0) -> Tensor:
        """Morphologies ``(n, 6)`` of :meth:`reference_images`; kept in ``_build``."""
        facts = dict(checkpoint=checkpoint, weights=zoo.digest(checkpoint), n=n, calls=calls, block=block)
        make = lambda: morphologies(self.reference_images(checkpoint, n, calls, block), sky_of(checkpoint))  # noqa: E731
        return kept_tensor("morphologies", facts, make, "morphology-")

    def reference_images(self, checkpoint: str, n: int, calls: int, block: int = 0) -> Tensor:
        """Images of the first ``n`` held-out seeds of a block, ``(n, C, H, W)``, with ``calls`` evaluations each.

        By DPM-Solver++(2M) on Karras's grid: of second order, so that its own error is small beside what is measured.
        Kept in the project's ``_build``.
        """
        facts = dict(checkpoint=checkpoint, weights=zoo.digest(checkpoint), n=n, calls=calls)
        facts |= dict(block=block) if block else {}

        def make() -> Tensor:
            model, noise = seeded(self.model(checkpoint), held_out_seeds(n, block))
            table = self.on_grid(checkpoint, "dpm_solver_pp:order=2", "Karras", calls)
            return sample(model, table, noise, batch_size=100, progress=True).cpu()

        return kept_tensor("images", facts, make)

    def rmse(self, checkpoint: str, solver: Tableau | Walker, n: int, calls: int) -> float:
        """How far a solver's images of the first ``n`` held-out seeds are from :meth:`reference_images`, in float32.

        Root mean square of each image in pixels of -1..1, averaged.
        """
        model, noise = seeded(self.model(checkpoint), held_out_seeds(n))
        images = sample(model, solver, noise, batch_size=100).cpu()
        return rmse(images, self.reference_images(checkpoint, n, calls))
