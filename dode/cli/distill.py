"""``dode distill``: build the solver that the options describe, fit it by ``--method``, store it."""

from __future__ import annotations

import argparse
import functools
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from dode import distillation, solvers, zoo
from dode.cli.models import open_model
from dode.cli.options import conditioning, pipeline_words
from dode.denoisers import NetworkDenoiser
from dode.distillation import losses
from dode.experiments import comparisons, fits
from dode.sampling import initial_noise
from dode.solvers.base import OrderError
from dode.tableau import Tableau

GRIDS = {name.lower().replace(" ", "_"): name for name in comparisons.GRIDS}


def run(args: argparse.Namespace) -> None:
    """``dode distill``."""
    own = args.checkpoint and not zoo.published(args.checkpoint)  # published files are no .safetensors
    if own and args.out.resolve() == zoo.checkpoint_file(args.checkpoint).resolve():
        raise ValueError(f"--out {args.out} is the checkpoint itself; name another file")
    model, _ = open_model(args, args.checkpoint)
    solver = METHODS[args.method](args, model)
    solver.metadata.update(conditioning(args))
    solver.save(args.out)
    facts = solver.metadata
    print(
        f"wrote {args.out}: {facts['solver']}, NFE {solver.nfe}; {facts['network_evaluations']:,} network evaluations"
    )
    print(outcome(facts))
    print(f"sample with it: {sample_command(args)}")


def sample_command(args: argparse.Namespace) -> str:
    """The command that draws images with the stored solver."""
    images = 4 * len(args.prompt or args.class_label or [0]) if args.diffusers else 64
    words = [*args.prog.split(), "sample", "--solver", str(args.out), "--seeds", f"1000-{999 + images}"]
    if args.diffusers:
        words += pipeline_words(args)
    elif args.checkpoint not in zoo.NAMES:
        words += ["--checkpoint", args.checkpoint]
    return shlex.join([*words, "--out", str(args.out.with_suffix(".png"))])


def build(args: argparse.Namespace, model: NetworkDenoiser) -> tuple[Tableau, Callable[..., Tableau]]:
    """The solver that the options describe, and the same solver as a function of a grid."""
    facts, options = solvers.parse(args.solver)
    if args.order is not None:
        if "order" not in inspect.signature(facts.make).parameters:
            raise ValueError(f"--order {args.order}: {facts.name} has only one order; leave --order out")
        options["order"] = args.order
    own = {k: v for k, v in options.items() if k not in ("nfe", "steps", "final", "afs")}
    grid = model.grid if args.grid == "default" else comparisons.grid_function(GRIDS[args.grid], model)
    option = f"--solver {args.solver}: order " if args.order is None else "--order "
    try:
        table = facts.make(grid, **options | {"nfe": args.nfe} | ({"afs": True} if args.afs else {}))
    except OrderError as error:  # its message is about a grid, which comes from --nfe here
        has = f"--nfe {args.nfe} gives {error.steps}"
        take = f"{'order' if args.order is None else '--order'} {error.steps} or a larger --nfe"
        raise ValueError(f"{option}{error.order} needs {error.order} steps or more and {has}; take {take}") from None
    except (TypeError, AttributeError) as error:  # a text where the solver wants something else
        raise ValueError(f"--solver {args.solver}: {error}") from None
    return table, functools.partial(facts.make, **own)


def fit_noise(args: argparse.Namespace, model: NetworkDenoiser) -> tuple[NetworkDenoiser, Sequence[int], Tensor]:
    """The model with the conditioning of the seeds to fit on, these seeds, and their noise."""
    chosen = args.seeds or range(args.images)
    return model.of(chosen), chosen, initial_noise(model.shape, chosen, device=model.device)


def d_ode(args: argparse.Namespace, model: NetworkDenoiser) -> Tableau:
    """``--method d-ode``."""
    refuse(args)
    if args.scale < 2:
        raise ValueError("--scale 1: the teacher would take no more steps than the solver; take 2 or more")
    table, same = build(args, model)
    model, chosen, noise = fit_noise(args, model)
    teacher: distillation.Teacher = same if args.teacher == "same" else "ddim"
    return distillation.d_ode(
        model, table, noise, teacher=teacher, scale=args.scale, align=args.align, first_step=args.first_step,
        equation=args.equation, batch_size=args.batch_size, seeds=chosen, progress=True,
    )  # fmt: skip


def refuse(args: argparse.Namespace) -> None:
    """ValueError for an option that ``--method`` does not have."""
    usual: dict[str, Any] = {}
    if args.method == "gits":
        usual |= dict(grid="default")
    if args.method in ("d-ode", "gits"):
        usual |= dict(compare="auto")
    if args.method not in ("dlms", "dlms-fixed", "amed"):
        usual |= dict(trajectories=2_000)
    if args.method != "d-ode":
        usual |= dict(teacher="ddim", scale=10, align="time", first_step=None, equation=10, batch_size=100)
    if foreign := [name for name, value in usual.items() if getattr(args, name) != value]:
        raise ValueError(f"--method {args.method} has no option --{foreign[0].replace('_', '-')}; leave it out")


def loss(args: argparse.Namespace, model: NetworkDenoiser) -> distillation.Residual:
    """``--compare``: for images that classifiers of dode know, the loss of the book's fits; otherwise pixels."""
    known = model.name in zoo.NAMES
    if args.compare == "features" and not known:
        raise ValueError(
            f"--compare features: no feature extractor knows the images of {model.name}; take --compare pixels"
        )
    if args.compare == "pixels" or not known:
        return distillation.pixels
    return fits.loss_of(
        losses.default_loss(args.method), zoo.data_set_of(model.name), model.shape[0], str(model.device)
    )


def recipe(args: argparse.Namespace, model: NetworkDenoiser) -> Tableau | distillation.Designed:
    """The other methods: :data:`dode.distillation.DISTILLERS`."""
    refuse(args)
    model, chosen, noise = fit_noise(args, model)
    table, make = build(args, model)
    if args.afs:  # the table starts below the first noise level, on which its weights still depend
        make = distillation.with_first_level(model.grid(1)[:1], functools.partial(make, afs=True))
    task = distillation.Problem(
        model, table, make, noise, loss(args, model), chosen, None, None, args.trajectories, True
    )
    return distillation.DISTILLERS[args.method](task)


METHODS: Mapping[str, Callable[[argparse.Namespace, NetworkDenoiser], Tableau | distillation.Designed]] = {
    "d-ode": d_ode,
    **dict.fromkeys(distillation.DISTILLERS, recipe),
}


def outcome(facts: Mapping[str, Any]) -> str:
    """How well the fit did, in one line."""
    if "cost" in facts:
        first, best = facts["cost"][0], min(facts["cost"])
        return f"error to the teacher's images, on seeds held back from the fit: {best:.4g} ({first:.4g} before)"
    if facts["method"] == "gits":
        return f"noise levels: {' '.join(f'{level:.4g}' for level in facts['grid'])}"
    end, without = facts["fit_rmse"][-1], facts["plain_rmse"][-1]
    return f"RMSE to the teacher at the end: {end:.4f} ({without:.4f} without the correction of the last step)"
