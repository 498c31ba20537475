"""Where the losses of DLMS lead: their gradients beside that of the last image's error, head by head and row by row."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from dode.distillation import DLMS
from dode.distillation.dlms import begin_dlms
from dode.distillation.objectives import LastImages, StoredPaths
from dode.experiments.fits import task
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.rows import joined
from dode.experiments.run import Run
from dode.experiments.sweeps import Preset

HEADS = {"weights": slice(0, -2), "levels": slice(-2, -1), "input levels": slice(-1, None)}  # columns of a designer
POOL = 192  # noises behind a gradient, of training
OBJECTIVES = {"stored": "level held fixed", "moving": "level with its gradient"}


def gradient_cells(p: Preset, checkpoint: str | None = None) -> list[Cell]:
    """At the start of a training, with 5 evaluations; on both Fashion-MNIST networks."""
    small = p.name == "smoke"
    names = [checkpoint] if checkpoint else ["fashion-mnist-data", "fashion-mnist-noise"][: 1 if small else None]
    return gradients.cells(checkpoint=names, objective=OBJECTIVES, head=HEADS, nfe=3 if small else 5)


def pool_of(p: Preset) -> int:
    """How many noises a preset takes."""
    return 4 if p.name == "smoke" else POOL


@functools.cache
def gradients_of(run: Run, checkpoint: str, nfe: int, objective: str) -> list[Tensor]:
    """Of each loss, on the numbers of the starting table, ``(rows, columns)``, over a pool of noises.

    ``objective`` is one of :data:`OBJECTIVES`, or "last": the last image's distance alone.
    """
    pool = pool_of(run.preset)
    aim = LastImages(pool) if objective == "last" else StoredPaths(pool, moving=objective == "moving")
    _, problem, _ = task(run, checkpoint, "dlms:residual=seen", nfe)
    model = problem.denoiser
    solver: DLMS = begin_dlms(model, problem.table, features=False)
    table, total = solver.designer.table, list[Tensor]()
    table.requires_grad_(True)
    aim.prepare(model, problem.examples(1.0))
    for first in range(0, pool, 32):
        images = torch.arange(first, min(pool, first + 32))
        losses = aim.losses(solver, *aim.chosen(model, images))
        found = [torch.autograd.grad(loss, table, retain_graph=True, allow_unused=True)[0] for loss in losses]
        part = [torch.zeros_like(table) if g is None else g * len(images) / pool for g in found]
        total = [a + b for a, b in zip(total, part, strict=True)] if total else part
    return total


def cosine(a: Tensor, b: Tensor) -> float:
    """Of the angle between two gradients; NaN where one is 0."""
    return float((a * b).sum() / (a.norm() * b.norm()))


@measurement(gives=["cosine"], planned=gradient_cells)
def gradients(run: Run, *, checkpoint: str, nfe: int, objective: str, head: str) -> dict[str, Value]:
    """The cosine between the gradients of the step losses' sum and of the last image's distance; each row's beside it.

    1: descending the one descends the other; below 0: it climbs.
    """
    steps, (last,) = (gradients_of(run, checkpoint, nfe, kind) for kind in (objective, "last"))
    columns = HEADS[head]
    each = [cosine(g[:, columns], last[:, columns]) for g in steps]
    total = torch.stack(steps).sum(0)
    rows = joined((cosine(g, w) for g, w in zip(total[:, columns], last[:, columns], strict=True)), ".3f")
    return dict(
        cosine=cosine(total[:, columns], last[:, columns]), by_loss=joined(each, ".3f"), by_design=rows,
        n=pool_of(run.preset),
    )  # fmt: skip
