"""What several figures measure: the Fréchet distance of plain and distilled solvers, on held-out seeds."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from dode import distillation, solvers, zoo
from dode.denoisers import Denoiser, NetworkDenoiser
from dode.denoisers.networks import is_compiled
from dode.distillation import Align
from dode.experiments.sweeps import ARITHMETIC, Preset, Sweep, autocast, home, provenance
from dode.metrics import Features, Mode, Moments, cache_folder, classifier_features, inception_features, measure
from dode.sampling import Walker, initial_noise, sample
from dode.tableau import Tableau
from dode.utils.files import FileError
from dode.zoo.unet import UNet


def base_solver(name: str, denoiser: Denoiser, nfe: int) -> Tableau:
    """The solver ``name`` (see :func:`dode.solvers.parse`) with ``nfe`` evaluations on the denoiser's own grid.

    An order in the name is the highest: with fewer calls it is their number.
    """
    facts, options = solvers.parse(name)
    if "order" in options:
        options["order"] = min(options["order"], nfe)
    return facts.make(denoiser.grid, nfe=nfe, **options)


def fit_seeds(count: int, block: int = 0) -> range:
    """The seeds that block ``block`` fits with: below any seed that is measured."""
    return range(block * 1000, block * 1000 + count)


def held_out_seeds(count: int, block: int = 0) -> range:
    """The held-out seeds of block ``block``."""
    return range((block + 1) * 1_000_000, (block + 1) * 1_000_000 + count)


def possible_nfe(solver: str, nfe: int) -> int:
    """The most network calls, ``nfe`` at most, that ``solver`` can make on a grid to 0: Heun, asked for 10, makes 9."""
    facts, options = solvers.parse(solver)
    return facts.most_calls(nfe, options)


def distilled(
    denoiser: Denoiser,
    tableau: Tableau,
    images: int,
    block: int = 0,
    align: Align = "time",
    scale: int = 10,
    **more: Any,
) -> Tableau:
    """The D- version of ``tableau``, fitted on the block's seeds; ``more`` goes to :func:`dode.distillation.d_ode`."""
    seeds = fit_seeds(images, block)
    conditioned, noise = seeded(denoiser, seeds)
    if more.get("teacher", "ddim") == "ddim":
        more["teacher"] = _recorded(denoiser, tuple(tableau.levels.tolist()), images, block, align, scale)
    return distillation.d_ode(conditioned, tableau, noise, align=align, scale=scale, seeds=seeds, **more)


def seeded(denoiser: Denoiser, seeds: Iterable[int]) -> tuple[Denoiser, Tensor]:
    """The noise of ``seeds``, and the denoiser for their images: each has its noise and its class by its seed alone."""
    seeds = list(seeds)
    return denoiser.of(seeds), initial_noise(denoiser.shape, seeds, device=denoiser.device)


@functools.lru_cache(maxsize=8)
def _recorded(
    denoiser: Denoiser, levels: tuple[float, ...], images: int, block: int, align: Align, scale: int
) -> distillation.Recording:
    """DDIM's many-step run through ``levels``, which all solvers of one grid are fitted to: most of a fit's cost."""
    conditioned, noise = seeded(denoiser, fit_seeds(images, block))
    student = solvers.ddim(torch.tensor(levels, dtype=torch.float64))
    return distillation.record(conditioned, student, noise, scale=scale, align=align)


VARIANT_OPTIONS = ("images", "scale", "teacher", "align", "first_step", "equation", "basis", "model")


def variant_of(
    p: Preset, device_name: str, checkpoint: str, solver: str, variant: str, nfe: int, block: int
) -> Tableau:
    """``solver`` as ``variant`` has it: "plain", or "d-ode" with options, ``"d-ode:scale=20,teacher=same"``.

    ``images`` is |B| (default: the preset's), ``teacher`` "ddim" or "same", ``model`` the checkpoint that is
    fitted on in place of the one that samples (on this one's grid); the others are those of
    :func:`dode.distillation.d_ode`.
    """
    model = load_cached(checkpoint, device_name, None)  # the fit is always in float32
    tableau = base_solver(solver, model, nfe)
    method, options = solvers.parse_options(variant, VARIANT_OPTIONS)
    if method == "plain":
        return tableau
    if method != "d-ode":
        raise ValueError(f"no variant named {method!r}; there are plain and d-ode")
    if options.get("teacher") == "same":
        facts, own = solvers.parse(solver)
        options["teacher"] = functools.partial(facts.make, **own)
    source = load_cached(options.pop("model", checkpoint), device_name, None)
    learned = distilled(source, tableau, options.pop("images", p.fit_images), block, **options)
    return learned if source is model else learned.unbind()


def draw(
    denoiser: Denoiser, tableau: Tableau | Walker, seeds: Iterable[int], batch_size: int | None = None
) -> Iterable[Tensor]:
    """Samples of ``seeds``, batch by batch; a GPU has larger batches."""
    seeds, size = list(seeds), batch_size or (250 if denoiser.device.type == "cpu" else 1_000)
    for first in range(0, len(seeds), size):
        conditioned, noise = seeded(denoiser, seeds[first : first + size])
        yield sample(conditioned, tableau, noise)


@functools.cache
def data_moments(data_set: str, device_name: str = "cpu", evaluator: str = "classifier") -> tuple[Features, Moments]:
    """The offline evaluator of a data set: features of its classifier, or critic, and their moments on its images."""
    name = f"{data_set}-{evaluator}"
    features = classifier_features(name, device_name)
    return features, Moments.load(zoo.CHECKPOINTS / zoo.moments_file(name))


fashion_moments = functools.partial(data_moments, "fashion-mnist")


def evaluator(p: Preset, checkpoint: str, device_name: str) -> tuple[Features, Moments]:
    """What the samples of ``checkpoint`` are measured with: features, and their moments on the training images.

    That is :func:`data_moments` of its data set, but for a network that does not ship with dode where the preset has
    a mode of FID.  There it is Inception, and the moments are those in ``NAME.inception-MODE.safetensors`` in
    :func:`dode.metrics.cache_folder`, NAME being the network's; a FileError says how to make them.
    """
    name = load_cached(checkpoint, device_name, None).name
    if p.fid is None or name in zoo.NAMES:
        return data_moments(zoo.data_set_of(checkpoint).name, device_name)
    return inception_moments(p.fid, name, device_name)


@functools.cache
def inception_moments(mode: Mode, name: str, device_name: str) -> tuple[Features, Moments]:
    """Inception's features, and their moments on the training images of the network ``name``: a file of the user's."""
    path = cache_folder() / f"{name}.inception-{mode}.safetensors"
    if not path.is_file():
        make = f"dode.metrics.moments(training_images, dode.metrics.inception_features({mode!r})).save(path)"
        raise FileError(f"{path} does not exist; make it from the images that {name} was trained on: {make}")
    return inception_features(mode, device_name), Moments.load(path)


FD_KEYS = ("checkpoint", "weights", "solver", "variant", "nfe", "block")


def fd_cells(
    p: Preset, plan: Mapping[tuple[str, str], Iterable[int]], variants: Iterable[str] = ("plain", "d-ode")
) -> list[dict[str, Any]]:
    """Cells of an FD sweep: ``plan`` maps (checkpoint, solver) to NFEs; cheap cells come first."""
    weights = {checkpoint: zoo.digest(checkpoint) for checkpoint, _ in plan}
    cells = [
        dict(checkpoint=checkpoint, weights=weights[checkpoint], solver=name, variant=variant, nfe=nfe, block=block)
        for (checkpoint, name), nfes in plan.items()
        for nfe in nfes
        for variant in variants
        for block in range(p.repeats)
    ]
    return sorted(cells, key=lambda cell: cell["nfe"])


def committed(*pages: str) -> list[dict[str, str]]:
    """Rows of :func:`fd_row` that the project keeps of these pages' standard runs.

    A cell that several pages have counts once: the last one's.
    """
    rows = (row for page in pages for row in Sweep(home() / "results" / f"{page}.standard.csv", FD_KEYS).rows)
    return list({tuple(row[k] for k in FD_KEYS): row for row in rows}.values())


@functools.cache
def load_cached(name: str, device_name: str, autocast: torch.dtype | None = None) -> NetworkDenoiser:
    """:func:`dode.load`, once for each process."""
    return zoo.load_denoiser(name, device_name, autocast=autocast)


def load_autocast(p: Preset, checkpoint: str, device_name: str) -> NetworkDenoiser:
    """The denoiser in the arithmetic that the preset samples with."""
    return load_cached(checkpoint, device_name, autocast(p, device_name))


@functools.cache
def load_compiled(p: Preset, checkpoint: str, device_name: str) -> NetworkDenoiser:
    """:func:`load_autocast`, compiled where ``DODE_COMPILE`` is set: worth its minute where a GPU draws many images."""
    found = load_autocast(p, checkpoint, device_name)
    if not os.environ.get("DODE_COMPILE") or not isinstance(found.network, UNet):
        return found
    compiled = copy.copy(found)
    compiled.network = torch.compile(found.network)
    return compiled


def fd_row(
    p: Preset, device_name: str, *, checkpoint: str, weights: str, solver: str, variant: str, nfe: int, block: int
) -> dict[str, Any]:
    """Measure one cell of :func:`fd_cells`: fit on the block's seeds if asked, sample its held-out ones, compare.

    ``weights`` only names the cell: numbers of other weights are other cells.
    """
    features, reference = evaluator(p, checkpoint, device_name)
    tableau = variant_of(p, device_name, checkpoint, solver, variant, nfe, block)
    seeds = held_out_seeds(p.images, block)
    model = load_compiled(p, checkpoint, device_name)
    found = measure(draw(model, tableau, seeds), features, reference)
    lambdas = (row if isinstance(row, list) else [row] for row in tableau.metadata.get("lambdas", []))
    return dict(
        fd=f"{found['fd']:.5f}", n=found["n"], features=found["features"], seeds=f"{seeds.start}-{seeds.stop - 1}",
        lambdas=" ".join(f"{v:.5f}" for row in lambdas for v in row),
        evaluations=tableau.metadata.get("network_evaluations", 0),
        network=ARITHMETIC[model.autocast] + ", compiled" * is_compiled(model.network),
        preset=p.name, **provenance(device_name),
    )  # fmt: skip
