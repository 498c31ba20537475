"""Which loss a fit should have: one Gauss-Newton fit a loss, measured on seeds that no other page measures.

Every fit has the same budget of network evaluations, so a loss that costs evaluations has fewer images.  Distances are
taken in two networks: the classifier that the book measures with, and a transformer that nothing was tuned on.
"""

from __future__ import annotations

import functools

import torch

from dode.distillation import Designed
from dode.distillation.losses import bound, named_loss
from dode.experiments import fits
from dode.experiments.learned import SELECTION_BLOCK, frechet_distances
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.run import Run, held_out_seeds, seeded
from dode.experiments.sweeps import Preset, checkpoints, images_of
from dode.sampling import sample
from dode.tableau import Tableau

EVALUATION = ("classifier", "transformer")
LOSSES = {  # what pages call them; all of images clipped to what a file holds
    "seen-pixels": "pixels", "seen": "two classifiers and random features", "own": "own features",
    "own-mean": "own features, averaged over the image", "own-mesh": "own features, in 4 x 4 parts of it",
    "own-levels": "own features, at three levels", "own-random": "own features and random features",
    "seen-judge": "the evaluation classifier itself (a bound)",
}  # fmt: skip
MAIN = ("seen-pixels", "seen", "own")


def loss_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """The cells of :func:`loss_study`: with 3 evaluations all, the main ones from two fits; these with 5 too."""
    small = p.name == "smoke"
    names = checkpoints(checkpoint or "fashion-mnist")[: 1 if small else None]
    make = functools.partial(loss_study.cells, checkpoint=names)
    if small:
        return make(nfe=3, loss=MAIN, fit=0)
    return make(nfe=3, loss=LOSSES, fit=0) + make(nfe=5, loss=MAIN, fit=0) + make(nfe=3, loss=MAIN, fit=1)


@measurement(gives=["fd_reference", "fd_data"], planned=loss_cells)
def loss_study(run: Run, *, checkpoint: str, nfe: int, loss: str, fit: int) -> dict[str, Value]:
    """The distances of the Gauss-Newton solver fitted with a loss of :data:`LOSSES` to the seeds of block ``fit``."""
    solver = fits.fit(run, checkpoint, f"gauss-newton:residual={loss},fit={fit}", nfe)
    facts = solver.metadata
    return distances(run, checkpoint, solver, SELECTION_BLOCK) | dict(
        own_error=own_error(run, checkpoint, solver), images=facts["images"], seconds=facts["seconds"],
        evaluations=facts["network_evaluations"], steps=len(facts["cost"]) - 1,
    )  # fmt: skip


def distances(run: Run, checkpoint: str, solver: Tableau | Designed, block: int) -> dict[str, Value]:
    """Fréchet distances to the reference solution and to the data in both networks of :data:`EVALUATION`, and RMSE."""
    p = run.preset
    seeds = held_out_seeds(min(2_000, max(images_of(p, checkpoint) * 2 // 5, 64)), block)
    found = frechet_distances(run, checkpoint, solver, seeds, EVALUATION)
    rmse = run.rmse(checkpoint, solver, p.zoo_images, p.reference_steps)
    return found | dict(rmse=rmse, n_rmse=p.zoo_images, n=len(seeds), seeds=seeds, network=run.network(checkpoint))


@torch.no_grad()
def own_error(run: Run, checkpoint: str, solver: Tableau | Designed) -> float:
    """The error in the loss "own" to the reference solution of the same seeds: what some of the fits made small."""
    n, (model, noise) = run.preset.zoo_images, seeded(run.model(checkpoint), held_out_seeds(run.preset.zoo_images))
    truth = run.reference_images(checkpoint, n, run.preset.reference_steps)
    loss = bound(named_loss("own", model), model, truth)
    return float((loss(sample(model, solver, noise, batch_size=100).cpu()) - loss(truth)).square().sum(1).mean())
