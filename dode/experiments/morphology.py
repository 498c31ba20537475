"""What astronomers measure of a galaxy, of a solver's images against the reference solution of the same noise.

The total flux, and the non-parametric morphology of ``statmorph`` (Rodriguez-Gomez et al. 2019): half-light radius,
concentration, asymmetry, Gini, M20 and ellipticity, of the brightest source that ``photutils`` detects.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dode import distillation, zoo
from dode.experiments import fits
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.rows import kept
from dode.experiments.run import Run, draw, held_out_seeds
from dode.experiments.sweeps import Preset, home
from dode.metrics import rmse
from dode.tableau import Tableau
from dode.utils.environment import need
from dode.utils.files import load_tensors, save_tensors
from dode.zoo.families.galaxies import flux, sky_of

QUANTITIES = {  # by their columns; the names that statmorph has
    "half_light_radius": "rhalf_circ", "concentration": "concentration", "asymmetry": "asymmetry", "gini": "gini",
    "m20": "m20", "ellipticity": "ellipticity_asymmetry",
}  # fmt: skip
THRESHOLD, PIXELS = 0.02, 5  # a source is so many joined pixels above this flux, in every image of every survey
GAIN = 1e4  # of no effect on these quantities: it weighs pixels in a profile fit and in a signal-to-noise ratio
WORST_FLAG = 1  # "suspect"; what statmorph flags as bad counts as failed


def images_measured(p: Preset) -> int:
    """A fifth of what stands behind a preset's distances, 1,000 at most: half a second each."""
    return min(1_000, p.images // 5)


def total_flux(samples: Tensor, sky: float = 0.0) -> Tensor:
    """Sum of the flux above the sky of each image, ``(B, 1, H, W)`` to ``(B,)``."""
    return (flux(samples.double()) - sky).sum((1, 2, 3))


def morphologies(samples: Tensor, sky: float = 0.0) -> Tensor:
    """:data:`QUANTITIES` of each image, ``(B, 1, H, W)`` to ``(B, 6)`` float64; a row of NaN where they failed.

    The radius is in pixels.  ImportError without ``statmorph`` and ``photutils``; half a second an image.
    """
    pictures = (flux(samples.double()) - sky).squeeze(1).cpu().numpy()
    return torch.tensor(np.array([morphology_of(picture) for picture in pictures])).reshape(-1, len(QUANTITIES))


def morphology_of(picture: np.ndarray) -> list[float]:
    """:data:`QUANTITIES` of the brightest source in ``(H, W)``, or as many NaN."""
    statmorph = need("statmorph", "galaxies", "morphology")
    segmentation = need("photutils.segmentation", "galaxies", "morphology")
    failed = [float("nan")] * len(QUANTITIES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single images; failures are counted
        sources = segmentation.detect_sources(picture, THRESHOLD, PIXELS)
        if sources is None:
            return failed
        brightest = max(sources.labels, key=lambda label: picture[sources.data == label].sum())
        try:
            found: Any = statmorph.SourceMorphology(
                picture, sources.data, label=int(brightest), gain=GAIN, skybox_size=len(picture) // 8
            )
        except Exception:  # a source at the edge, say: it can raise anything
            return failed
    values = [float(getattr(found, name)) for name in QUANTITIES.values()]
    return values if found.flag <= WORST_FLAG and np.isfinite(values).all() else failed


def wasserstein(a: Tensor, b: Tensor) -> float:
    """Wasserstein-1 distance of two samples of as many numbers."""
    return float((a.sort().values - b.sort().values).abs().mean())


def compared(found: Tensor, reference: Tensor) -> dict[str, Value]:
    """Of each quantity the median difference of an image, and the distance of the distributions.

    Both in units of the reference's standard deviation, over the images where both could be measured.
    """
    good = (found.isfinite() & reference.isfinite()).all(1)
    found, reference, columns = found[good], reference[good], dict[str, Value]()
    for name, a, b in zip(QUANTITIES, found.T, reference.T, strict=True):
        spread = float(b.std()) if len(b) > 1 else float("nan")
        columns[name] = float((a - b).abs().median()) / spread
        columns[f"{name}_distance"] = wasserstein(a, b) / spread
    return columns | dict(failed=int((~good).sum()))


def reference(run: Run, checkpoint: str, n: int, block: int) -> tuple[Tensor, Tensor]:
    """The reference solution of the first ``n`` seeds of a block, and its morphologies; kept in ``_build``."""
    calls = run.preset.reference_calls
    facts = dict(checkpoint=checkpoint, weights=zoo.digest(checkpoint), n=n, calls=calls, block=block)
    file = home() / "_build" / "references" / ("morphology-" + "-".join(map(str, facts.values())) + ".safetensors")

    def make(file: Path) -> dict[str, Tensor]:
        images = images_of(run, checkpoint, run.on_grid(checkpoint, "dpm_solver_pp:order=2", "Karras", calls), n, block)
        tensors = dict(images=images, morphologies=morphologies(images, sky_of(checkpoint)))
        save_tensors(file, tensors, "images", facts)
        return tensors

    found = kept(file, lambda file: load_tensors(file, "images")[0], make)
    return found["images"], found["morphologies"]


def images_of(run: Run, checkpoint: str, solver: Any, n: int, block: int) -> Tensor:
    """A solver's images of a block's first ``n`` seeds, in float32."""
    return torch.cat([x.cpu() for x in draw(run.model(checkpoint), solver, held_out_seeds(n, block), batch_size=50)])


def solver_of(run: Run, checkpoint: str, solver: str, grid: str, nfe: int) -> Tableau | distillation.Designed:
    """A learned solver by its method, or a handcrafted one on a grid (:data:`~dode.experiments.run.GRIDS`)."""
    if solver.partition(":")[0] in distillation.DISTILLERS:
        return fits.fit(run, checkpoint, solver, nfe)
    return run.on_grid(checkpoint, solver, grid, nfe)  # to 0: at sigma_min much noise is left


HANDCRAFTED = ("ddim", "dpm_solver_pp:order=3", "unipc:order=3", "deis:variable=log_rho,basis=data")
LEARNED = "gauss-newton:residual=pixels,base=deis,grid=time,afs=False"  # from the last of these


def morphology_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """Of one network or three, with 5 evaluations: handcrafted solvers on two grids, and a learned one."""
    names = [checkpoint] if checkpoint else [f"galaxies-{name}" for name in ("hsc-64", "ztf-64", "lsst-60")]
    axes = dict(checkpoint=names, nfe=5, block=range(p.repeats))
    if p.name == "smoke":
        return morphology.cells(**axes, solver="ddim", grid="time")
    plain = morphology.cells(**axes, solver=HANDCRAFTED, grid=("time", "Karras"))
    return plain + morphology.cells(**axes, solver=LEARNED, grid="time")


@measurement(gives=["rmse", "flux_error", "failed"], planned=morphology_cells)
def morphology(run: Run, *, checkpoint: str, solver: str, grid: str, nfe: int, block: int) -> dict[str, Value]:
    """RMSE, relative error of the total flux (median, 16 to 84%), and morphology against the reference solution."""
    n, table = images_measured(run.preset), solver_of(run, checkpoint, solver, grid, nfe)
    truth, shapes = reference(run, checkpoint, n, block)
    images, sky = images_of(run, checkpoint, table, n, block), sky_of(checkpoint)
    error = (total_flux(images, sky) / total_flux(truth, sky) - 1).abs()
    low, median, high = (float(q) for q in error.quantile(torch.tensor([0.16, 0.5, 0.84], dtype=error.dtype)))
    return compared(morphologies(images, sky), shapes) | dict(
        rmse=rmse(images, truth), flux_error=median, flux_error_16=low, flux_error_84=high, n=n,
        seeds=held_out_seeds(n, block), reference_calls=run.preset.reference_calls,
        seconds=table.metadata.get("seconds", 0), evaluations=table.metadata.get("network_evaluations", 0),
    )  # fmt: skip


@measurement(gives=["failed"])
def morphology_floor(run: Run, *, checkpoint: str, block: int) -> dict[str, Value]:
    """The distances of :func:`morphology` between reference solutions of this block's seeds and of the next one's."""
    n = images_measured(run.preset)
    one, other = (reference(run, checkpoint, n, k)[1] for k in (block, block + 1))
    found = compared(other, one)
    return {k: v for k, v in found.items() if k == "failed" or k.endswith("_distance")} | dict(n=n)
