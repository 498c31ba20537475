"""A solver plain, distilled, or as a variant has it: a name with options, ``"d-ode:scale=20,teacher=same"``."""

from __future__ import annotations

import functools
from typing import Any

import torch

from dode import distillation, solvers
from dode.denoisers import Denoiser
from dode.distillation import Align, Alignment
from dode.distillation.corrections import released_plan
from dode.experiments.run import Run, base_solver, fit_seeds, seeded
from dode.tableau import Tableau

OWN = "d-ode:basis=own"  # the variant for solvers whose own basis is not the network's
ON_BEST = ":grid=best"  # ends the word of a variant on the grid that suits it, which :func:`.learned.best_grid` finds
VARIANT_OPTIONS = ("images", "scale", "teacher", "align", "first_step", "equation", "basis", "model")


def distilled(
    denoiser: Denoiser, tableau: Tableau, images: int, block: int = 0, align: Alignment = "time", scale: int = 10,
    **more: Any,
) -> Tableau:  # fmt: skip
    """The D- version of ``tableau``, fitted on the block's seeds; ``more`` goes to :func:`dode.distillation.d_ode`."""
    seeds = fit_seeds(images, block)
    conditioned, noise = seeded(denoiser, seeds)
    if align != "released" and more.get("teacher", "ddim") == "ddim":
        more["teacher"] = _recorded(denoiser, tuple(tableau.levels.tolist()), images, block, align, scale)
    return distillation.d_ode(conditioned, tableau, noise, align=align, scale=scale, seeds=seeds, **more)


def joint(denoiser: Denoiser, tableau: Tableau, images: int, block: int = 0) -> Tableau:
    """The lambdas of :func:`distilled` fitted to the teacher's last state alone, all at once, from where it ends.

    Same teacher, same seeds, Gauss-Newton steps: what is different is what fitting one step after the other costs.
    """
    seeds = fit_seeds(images, block)
    conditioned, noise = seeded(denoiser, seeds)
    start = distilled(denoiser, tableau, images, block)
    plain = tableau.to_basis(start.basis)
    space = distillation.DirectionSpace(plain, directions=distillation.families(plain))
    found = distillation.gauss_newton(
        conditioned, start, noise, space=space, teacher=distillation.make_teacher(tableau), bias=0.0, limit=0.0,
        budget=10**9, seeds=seeds,
    )  # fmt: skip
    return found.with_full(found.full, lambdas=space.pack(found).tolist())


@functools.lru_cache(maxsize=8)
def _recorded(
    denoiser: Denoiser, levels: tuple[float, ...], images: int, block: int, align: Align, scale: int
) -> distillation.Recording:
    """DDIM's many-step run through ``levels``, which all solvers of one grid are fitted to: most of a fit's cost."""
    conditioned, noise = seeded(denoiser, fit_seeds(images, block))
    student = solvers.ddim(torch.tensor(levels, dtype=torch.float64))
    return distillation.record(conditioned, student, noise, scale=scale, align=align)


def variant_of(
    run: Run, checkpoint: str, solver: str, variant: str, nfe: int, block: int = 0, grid: str = ""
) -> Tableau:
    """``solver`` as ``variant`` has it: "plain", "joint", or "d-ode" with options, ``"d-ode:scale=20,teacher=same"``.

    "joint" is :func:`joint`; "plain:align=released" is the solver on the levels of the authors' fit, which may be
    others than the network's own.

    ``images`` is |B| (default: the preset's), ``teacher`` "ddim" or "same", ``model`` the checkpoint that is
    fitted on in place of the one that samples (on this one's grid); the others are those of
    :func:`dode.distillation.d_ode`.

    ``grid`` is one of :data:`.run.GRIDS` in place of the network's own, without an evaluation at its last level
    (Heun's corrector alone needs one for an odd NFE).
    """
    model = run.model(checkpoint)  # the fit is always in float32
    method, options = solvers.parse_options(variant, VARIANT_OPTIONS)
    tableau = run.on_grid(checkpoint, solver, grid, nfe, solver == "heun") if grid else base_solver(solver, model, nfe)
    if method == "plain":
        return released_plan(tableau, model.schedule, 10).table if options.get("align") == "released" else tableau
    if method == "joint":
        return joint(model, tableau, options.get("images", run.preset.fit_images), block)
    if method != "d-ode":
        raise ValueError(f"no variant named {method!r}; there are plain, d-ode and joint")
    if options.get("teacher") == "same":
        facts, own = solvers.parse(solver)
        options["teacher"] = functools.partial(facts.make, **own)
    source = run.model(options.pop("model", checkpoint))
    learned = distilled(source, tableau, options.pop("images", run.preset.fit_images), block, **options)
    return learned if source is model else learned.unbind()
