"""The distillers by name, each set as its paper sets it (scaled to seconds), behind one signature.

``RECIPES[name](task)`` gives a solver that :func:`dode.sample` runs.  The settings are ordinary keyword arguments of
the functions behind; who wants others calls those.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dode.denoisers import Denoiser
from dode.distillation.amed import begin_amed
from dode.distillation.descent import descend
from dode.distillation.designer import Designed
from dode.distillation.designer_training import train
from dode.distillation.dlms import DLMS, begin_dlms
from dode.distillation.gauss_newton import gauss_newton
from dode.distillation.gits import gits
from dode.distillation.losses import Residual, pixels
from dode.distillation.space import GridSpace, Space
from dode.distillation.teachers import TEACHER_STEPS
from dode.schedules import karras
from dode.tableau import Tableau


@dataclass
class Task:
    """A solver to distil.

    ``make`` writes the solver for a grid; ``table`` is it on the usual one, the start.  ``noise`` ``(B, ...)`` is
    fitted on, ``seeds`` are its seeds; ``residual`` says what is compared at the end.  ``fast`` is the same model in
    cheaper arithmetic, for what is trained long; ``folder`` keeps a long training's state.
    """

    denoiser: Denoiser
    table: Tableau
    make: Callable[[Tensor], Tableau]
    noise: Tensor
    residual: Residual = pixels
    seeds: Iterable[int] | None = None
    fast: Denoiser | None = None
    folder: Path | None = None
    trajectories: int = 20_000
    progress: bool = False
    levels: Callable[[int], Tensor] | None = None  # AMED's grid function, which must not end at 0; None: Karras's

    @property
    def afs(self) -> bool:
        """Whether the start has an analytical first step."""
        return bool(self.table.metadata.get("afs", False))

    @property
    def quick(self) -> Denoiser:
        """The model to train with."""
        return self.fast or self.denoiser


def below(top: Tensor, make: Callable[[Tensor], Tableau]) -> Callable[[Tensor], Tableau]:
    """``make`` as a function of the levels below ``top`` ``(1,)``, which an analytical first step passes over."""
    return lambda levels: make(torch.cat([top, levels]))


# A second-order fit takes so many steps at most, and so many network evaluations for each call of its solver: a tenth
# of what DLMS trains with, 20,000 trajectories of three calls for each of the student's (a backward pass is two) and
# five of its teacher.
STEPS, BUDGET = 10, 16_000


def affordable(table: Tableau) -> int:
    """How many images a second-order fit's budget pays all steps of: each a Jacobian and some one and a half walks."""
    step = Space(table, top=True).jacobian_calls * 7 / 8 + table.nfe * 3 / 2  # an eighth is held back
    return int(BUDGET * table.nfe / (TEACHER_STEPS + STEPS * step))


def second_order(
    task: Task, bias: float = 5.0, path: float = 0.0, limit: float | None = None, top: bool | None = None
) -> Tableau:
    """Ours: Levenberg-Marquardt on weights, levels and levels told; with an analytical first step, the first too.

    ``limit`` is 5 where there are fewer than 128 images, so that none of them leads the fit, and else 0.  The budget
    grows with the images where they are more than it pays for.
    """
    images = len(task.noise)
    budget = round(BUDGET * task.table.nfe * max(1.0, images / affordable(task.table)))
    space = Space(task.table, top=task.afs if top is None else top)
    limit = 5.0 * (images < 128) if limit is None else limit
    return gauss_newton(
        task.denoiser, task.table, task.noise, space=space, residual=task.residual, bias=bias, path=path, limit=limit,
        held_back=0.125, iterations=STEPS, patience=3, budget=budget, seeds=task.seeds, progress=task.progress,
    )  # fmt: skip


def dynamic_grid(task: Task) -> Tableau:
    """GITS: the solver as it is, on levels found by dynamic programming; 60 steps of a teacher."""
    before = task.denoiser.images
    levels = gits(task.denoiser, task.noise)(task.table.nfe + task.afs)[int(task.afs) :]
    found = task.make(levels)
    return found.with_full(
        found.full, solver=f"gits-{task.table.metadata['solver']}", method="gits",
        model=getattr(task.denoiser, "name", None), shape=list(task.noise.shape[1:]), nfe=found.nfe,
        seeds=None if task.seeds is None else list(task.seeds), images=len(task.noise), grid=found.levels.tolist(),
        network_evaluations=task.denoiser.images - before,
    )  # fmt: skip


def ld3(task: Task) -> Tableau:
    """LD3: levels and levels told of a handcrafted solver, by gradient, with relaxed starts."""
    space = GridSpace(task.table, make=task.make)
    return descend(
        task.quick, task.table, task.noise, space=space, method="ld3", residual=task.residual, radius=0.01,
        seeds=task.seeds, progress=task.progress,
    )  # fmt: skip


def s4s(task: Task) -> Tableau:
    """S4S: the weights alone, on the grid of the start, with relaxed starts."""
    space = Space(task.table, levels=False, levels_in=False)
    return descend(
        task.quick, task.table, task.noise, space=space, method="s4s", residual=task.residual, radius=0.01,
        seeds=task.seeds, progress=task.progress,
    )  # fmt: skip


def s4s_alt(task: Task) -> Tableau:
    """S4S-Alt: weights in one epoch, levels and levels told in the next."""
    space = Space(task.table)
    return descend(
        task.quick, task.table, task.noise, space=space, method="s4s-alt", residual=task.residual, radius=0.01,
        turns=[("weight",), ("level", "level_in")], epochs=20, seeds=task.seeds, progress=task.progress,
    )  # fmt: skip


def dlms(task: Task, rate: float | None = None, **options: bool) -> Designed:
    """DLMS: a designer that reads the bottleneck, Algorithm 1; ``options`` are those of :func:`begin_dlms`.

    ``rate`` is Adam's: by default 2.5e-4, eight times that where nothing is read.
    """
    start = begin_dlms(task.quick, task.table, **options)
    return _train(task, start, "dlms", rate=rate or (2.5e-4 if start.reads else 2e-3))


def dlms_fixed(task: Task) -> Tableau:
    """DLMS without features: the same training of a table that is one for all images."""
    found = _train(task, begin_dlms(task.quick, task.table, features=False), "dlms-fixed", rate=2e-3)
    assert isinstance(found, DLMS)  # what begin_dlms makes
    return found.freeze()


def amed(task: Task) -> Designed:
    """AMED: a designed level and length for each step of a grid to ``sigma_min``; ``table`` gives the calls."""
    model = task.denoiser
    grid = task.levels or (lambda n: karras(n, model.sigma_min, model.sigma_max))
    return _train(task, begin_amed(task.quick, grid, task.table.nfe), "amed", rate=5e-3)


def _train(task: Task, start: Designed, method: str, rate: float) -> Designed:
    return train(
        start, task.quick, task.folder, method=method, trajectories=task.trajectories, rate=rate, batch_size=32,
        residual=task.residual, check=task.noise, seeds=task.seeds, progress=task.progress,
    )  # fmt: skip


RECIPES: dict[str, Callable[[Task], Tableau | Designed]] = {
    "gauss-newton": second_order,
    "gits": dynamic_grid,
    "ld3": ld3,
    "s4s": s4s,
    "s4s-alt": s4s_alt,
    "dlms": dlms,
    "dlms-fixed": dlms_fixed,
    "amed": amed,
}
DESIGNED = ("dlms", "amed")  # make a table for each image; the others one for all


def load(path: str | Path) -> Tableau | Designed:
    """A solver file of either kind; :class:`~dode.utils.files.FileError` says what is wrong with it."""
    try:
        return Tableau.load(path)
    except ValueError as error:
        if "holds a designed solver" not in str(error):
            raise
    return Designed.load(path)
