"""``dode distill``: build the solver that the options describe, fit it by ``--method``, store it."""

from __future__ import annotations

import argparse
import functools
import inspect
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dode import distillation, solvers, zoo
from dode.cli.methods import own_options
from dode.cli.models import open_model
from dode.cli.options import conditioning, pipeline_words
from dode.denoisers import NetworkDenoiser
from dode.distillation import losses
from dode.experiments import fits
from dode.experiments import run as runs
from dode.sampling import initial_noise
from dode.solvers.base import OrderError
from dode.tableau import Tableau

GRIDS = {name.lower().replace(" ", "_"): name for name in runs.GRIDS}


def run(args: argparse.Namespace) -> None:
    """``dode distill``."""
    own = args.checkpoint and not zoo.published(args.checkpoint)  # published files are no .safetensors
    if own and args.out.resolve() == zoo.checkpoint_file(args.checkpoint).resolve():
        raise ValueError(f"--out {args.out} is the checkpoint itself; name another file")
    options, method = own_options(args), distillation.DISTILLERS[args.method]
    model = open_model(args, args.checkpoint)
    table, make = build(args, model)
    chosen = args.seeds or range(args.images)
    noise = initial_noise(model.shape, chosen, device=model.device)
    problem = distillation.Problem(
        model.of(chosen), table, noise, make, loss(args, model, method.loss), chosen, batch_size=args.batch_size,
        progress=True,
    )  # fmt: skip
    solver = method.fit(problem, **options)
    solver.metadata.update(conditioning(args))
    solver.save(args.out)
    facts = solver.metadata
    print(
        f"wrote {args.out}: {facts['solver']}, NFE {solver.nfe}; {facts['network_evaluations']:,} network evaluations"
    )
    print(outcome(facts, solver.levels.tolist() if isinstance(solver, Tableau) else []))
    print(f"sample with it: {sample_command(args)}")


def sample_command(args: argparse.Namespace) -> str:
    """The command that draws images with the stored solver."""
    images = 4 * len(args.prompt or args.class_label or [0]) if args.diffusers else 64
    words = [*args.prog.split(), "sample", "--solver", str(args.out), "--seeds", f"1000-{999 + images}"]
    if args.diffusers:
        words += pipeline_words(args)
    elif not zoo.local(args.checkpoint):
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
    grid = model.grid if args.grid == "default" else runs.grid_function(GRIDS[args.grid], model)
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


def loss(args: argparse.Namespace, model: NetworkDenoiser, usual: str | None) -> losses.Residual:
    """``--compare``: what ``usual``, the method's own loss, is by default if it can be had, otherwise pixels."""
    known, kind = model.name in zoo.NAMES, args.compare
    if kind == "features" and not known:
        raise ValueError(
            f"--compare features: no feature extractor knows the images of {model.name}; take --compare own or pixels"
        )
    if kind == "own" and usual is not None:
        return fits.loss(model, "own")
    if kind == "pixels" or usual is None or not (known or usual == "own"):
        return losses.pixels
    return fits.loss(model, "seen" if kind == "features" and usual == "own" else usual)


def outcome(facts: Mapping[str, Any], levels: Sequence[float]) -> str:
    """How well the fit did, in one line."""
    if "cost" in facts:
        first, best = facts["cost"][0], facts.get("kept", min(facts["cost"]))
        return f"error to the teacher's images, on seeds held back from the fit: {best:.4g} ({first:.4g} before)"
    if "fit_rmse" in facts:
        end, without = facts["fit_rmse"][-1], facts["plain_rmse"][-1]
        return f"RMSE to the teacher at the end: {end:.4f} ({without:.4f} without the correction of the last step)"
    return f"noise levels: {' '.join(f'{level:.4g}' for level in levels)}"
