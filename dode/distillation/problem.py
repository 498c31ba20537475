"""The distillers by name, each set as its paper sets it (scaled to seconds), behind one signature.

``DISTILLERS[name](problem)`` gives a solver that :func:`dode.sample` runs.  Other settings: call the functions behind,
which have them as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from dode.distillation.space import GridSpace, Kind, Space
from dode.distillation.teachers import TEACHER_STEPS
from dode.schedules import karras
from dode.tableau import Tableau


@dataclass
class Problem:
    """A solver to distil."""

    denoiser: Denoiser
    table: Tableau  # on the usual grid: the start
    make: Callable[[Tensor], Tableau]  # the same solver for a grid
    noise: Tensor  # (B, ...) to fit on
    residual: Residual = pixels  # what is compared at the end
    seeds: Iterable[int] | None = None  # of the noise
    autocast: Denoiser | None = None  # the same model in cheaper arithmetic, for what is trained long
    folder: Path | None = None  # keeps a long training's state
    trajectories: int = 20_000
    progress: bool = False
    levels: Callable[[int], Tensor] | None = None  # AMED's grid function, which must not end at 0; None: Karras's

    @property
    def afs(self) -> bool:
        """Whether the start has an analytical first step."""
        return bool(self.table.metadata.get("afs", False))

    @property
    def training_denoiser(self) -> Denoiser:
        """The model to train with."""
        return self.autocast or self.denoiser


def with_first_level(top: Tensor, make: Callable[[Tensor], Tableau]) -> Callable[[Tensor], Tableau]:
    """``make`` as a function of the levels below ``top`` ``(1,)``, which an analytical first step passes over."""
    return lambda levels: make(torch.cat([top, levels]))


# A Gauss-Newton fit takes so many steps at most, and so many network evaluations for each call of its solver: a tenth
# of what DLMS trains with, 20,000 trajectories of three calls for each of the student's (a backward pass is two) and
# five of its teacher.
STEPS, BUDGET = 10, 16_000


def images_within_budget(table: Tableau) -> int:
    """How many images the budget of a Gauss-Newton fit pays for; a step is a Jacobian and some one and a half walks."""
    step = Space(table, first_level=True).jacobian_calls * 7 / 8 + table.nfe * 3 / 2  # an eighth is held back
    return int(BUDGET * table.nfe / (TEACHER_STEPS + STEPS * step))


def distil_gauss_newton(
    problem: Problem, bias: float = 5.0, path: float = 0.0, limit: float | None = None, top: bool | None = None,
    steps: int = STEPS,
) -> Tableau:  # fmt: skip
    """Gauss-Newton on weights, levels and input levels; with an analytical first step, the first level too.

    ``limit`` is 5 where there are fewer than 128 images, so that none of them leads the fit, and else 0.  The budget
    grows with the images where they are more than it pays for.
    """
    images = len(problem.noise)
    budget = round(BUDGET * problem.table.nfe * max(1.0, images / images_within_budget(problem.table)))
    space = Space(problem.table, first_level=problem.afs if top is None else top)
    limit = 5.0 * (images < 128) if limit is None else limit
    return gauss_newton(
        problem.denoiser, problem.table, problem.noise, space=space, residual=problem.residual, bias=bias, path=path,
        limit=limit, held_back=0.125, iterations=steps, patience=3, budget=budget, seeds=problem.seeds,
        progress=problem.progress,
    )  # fmt: skip


def distil_gits(problem: Problem) -> Tableau:
    """GITS: the solver as it is, on levels found by dynamic programming; 60 steps of a teacher."""
    before = problem.denoiser.evaluations
    levels = gits(problem.denoiser, problem.noise)(problem.table.nfe + problem.afs)[int(problem.afs) :]
    found = problem.make(levels)
    return found.with_full(
        found.full, solver=f"gits-{problem.table.metadata['solver']}", method="gits",
        model=getattr(problem.denoiser, "name", None), shape=list(problem.noise.shape[1:]), nfe=found.nfe,
        seeds=None if problem.seeds is None else list(problem.seeds), images=len(problem.noise),
        grid=found.levels.tolist(), network_evaluations=problem.denoiser.evaluations - before,
    )  # fmt: skip


def ld3(problem: Problem) -> Tableau:
    """LD3: levels and input levels of a handcrafted solver, by gradient, with relaxed starts."""
    return _descend(problem, GridSpace(problem.table, make=problem.make), "ld3")


def s4s(problem: Problem) -> Tableau:
    """S4S: the weights alone, on the grid of the start, with relaxed starts."""
    return _descend(problem, Space(problem.table, levels=False, levels_in=False), "s4s")


def s4s_alt(problem: Problem) -> Tableau:
    """S4S-Alt: weights in one epoch, levels and input levels in the next."""
    phases: list[Sequence[Kind]] = [("weight",), ("level", "level_in")]
    return _descend(problem, Space(problem.table), "s4s-alt", phases=phases, epochs=20)


def _descend(problem: Problem, space: Space, method: str, **options: Any) -> Tableau:
    return descend(
        problem.training_denoiser, problem.table, problem.noise, space=space, method=method, radius=0.01,
        residual=problem.residual, seeds=problem.seeds, progress=problem.progress, **options,
    )  # fmt: skip


def dlms(problem: Problem, rate: float | None = None, **options: bool) -> Designed:
    """DLMS: a designer that reads the bottleneck, Algorithm 1; ``options`` are those of :func:`begin_dlms`.

    ``rate`` is Adam's: by default 2.5e-4, eight times that where nothing is read.
    """
    start = begin_dlms(problem.training_denoiser, problem.table, **options)
    return _train(problem, start, "dlms", rate=rate or (2.5e-4 if start.reads else 2e-3))


def dlms_fixed(problem: Problem) -> Tableau:
    """DLMS without features: the same training of a table that is one for all images."""
    found = _train(
        problem, begin_dlms(problem.training_denoiser, problem.table, features=False), "dlms-fixed", rate=2e-3
    )
    assert isinstance(found, DLMS)  # what begin_dlms makes
    return found.freeze()


def amed(problem: Problem) -> Designed:
    """AMED: a designed level and length for each step of a grid to ``sigma_min``; ``table`` gives the calls."""
    model = problem.denoiser
    grid = problem.levels or (lambda n: karras(n, model.sigma_min, model.sigma_max))
    return _train(problem, begin_amed(problem.training_denoiser, grid, problem.table.nfe), "amed", rate=5e-3)


def _train(problem: Problem, start: Designed, method: str, rate: float) -> Designed:
    return train(
        start, problem.training_denoiser, problem.folder, method=method, trajectories=problem.trajectories, rate=rate,
        batch_size=32, residual=problem.residual, check=problem.noise, seeds=problem.seeds, progress=problem.progress,
    )  # fmt: skip


DISTILLERS: dict[str, Callable[[Problem], Tableau | Designed]] = {
    "gauss-newton": distil_gauss_newton,
    "gits": distil_gits,
    "ld3": ld3,
    "s4s": s4s,
    "s4s-alt": s4s_alt,
    "dlms": dlms,
    "dlms-fixed": dlms_fixed,
    "amed": amed,
}
DESIGNED = ("dlms", "amed")  # make a table for each image; the others one for all


def load_solver(path: str | Path) -> Tableau | Designed:
    """A solver file of either kind; :class:`~dode.utils.files.FileError` says what is wrong with it."""
    try:
        return Tableau.load(path)
    except ValueError as error:
        if "holds a designed solver" not in str(error):
            raise
    return Designed.load(path)
