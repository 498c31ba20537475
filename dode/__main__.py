"""The command line: ``python -m dode distill``, ``sample`` and ``solvers``; ``--help`` explains each."""

from __future__ import annotations

import argparse
import functools
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dode import distillation, solvers, zoo
from dode.arguments import (
    DEFAULT,
    Parser,
    count,
    model_options,
    output,
    pipeline_facts,
    pipeline_words,
    refuse_pipeline_options,
    seeds,
)
from dode.denoisers import NetworkDenoiser
from dode.methods import GRIDS, METHODS, build, outcome
from dode.sampling import initial_noise, sample
from dode.tableau import Tableau
from dode.utils.environment import need
from dode.utils.files import atomic, names_a_file, nearest
from dode.zoo.datasets import to_uint8

ABOUT = """Better images from the same few network calls: distil a solver of a diffusion model, then sample with it.

  python -m dode distill --checkpoint fashion-mnist-noise --solver ddim --nfe 5 --out d-ddim-5.safetensors
  python -m dode sample --solver d-ddim-5.safetensors --seeds 1000-1063 --out d-ddim-5.png

A solver is a small table of numbers. distill fits it to a many-step teacher and stores it; sample draws with it."""
DISTILL = """Fit a few-step solver to a many-step teacher and store the table. The network stays as it is.

  python -m dode distill --checkpoint fashion-mnist-noise --solver dpm_solver_pp --order 3 --nfe 5 --out d.safetensors
  python -m dode distill --checkpoint fashion-mnist-data --solver heun --nfe 9 --teacher same --out d-heun.safetensors

d-ode       (Kim et al. 2024) one number a step, each step for itself
gauss-newton  all numbers of a multistep solver at once, noise levels too, so that the last image is right (ours)
gits        (Chen et al. 2024) the solver as it is, on better noise levels
ld3         (Tong et al. 2025) the same by gradient, and the levels told to the network
s4s, s4s-alt  (Frankel et al. 2025) the weights by gradient; and the levels, in turn
dlms        (Liang et al. 2025) a small network that designs each step from what the large one has seen
dlms-fixed  the same training of one table for all images
amed        (Zhou et al. 2024) a designed level between any two; --solver and --nfe give the number of calls

A shipped network and three calls on one core of a CPU: d-ode and gits take about ten seconds; ld3, s4s, s4s-alt and
gauss-newton less than a minute; dlms, dlms-fixed and amed a minute and a half.

  python -m dode distill --checkpoint fashion-mnist-data --solver deis:variable=log_rho,basis=data --afs --nfe 3 \\
    --method gauss-newton --out g.safetensors
  python -m dode distill --diffusers my-pipeline --prompt "a red fox" --guidance-scale 7.5 --solver dpm_solver_pp \\
    --order 2 --nfe 6 --images 16 --batch-size 4 --out fox.safetensors
"""
SAMPLE = """Draw one image a seed and write them as one PNG, row by row. Image k depends on seed k alone.

  python -m dode sample --solver d-ddim-5.safetensors --seeds 1000-1063 --out d-ddim-5.png
  python -m dode sample --solver ddim --nfe 10 --checkpoint fashion-mnist-noise --seeds 0-15 --out ddim-10.png"""
LISTING = "List the solvers: name, basis, orders, calls in ten steps to noise level 0, and who published them."


def picture(images: Tensor, columns: int) -> Any:
    """``(B, C, H, W)`` in -1..1 as one ``PIL.Image.Image``, grey or RGB, with a white line between images."""
    image = need("PIL.Image", "cli", "writing a picture")
    b, c, h, w = images.shape
    columns = min(columns, b)
    sheet = torch.full((-(-b // columns) * columns, c, h + 1, w + 1), 255, dtype=torch.uint8)
    sheet[:b, :, :h, :w] = to_uint8(images).cpu()
    sheet = sheet.unflatten(0, (-1, columns)).permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)
    sheet = F.pad(sheet, (1, 0, 1, 0), value=255)
    return image.fromarray(sheet[0].numpy() if c == 1 else sheet.permute(1, 2, 0).contiguous().numpy())


def choose(device: str) -> str:
    """The GPU if ``device`` is "auto" and there is one."""
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ValueError("--device cuda: torch finds no CUDA device here; take --device cpu, or leave it out")
    return ("cuda" if cuda else "cpu") if device == "auto" else device


def load(checkpoint: str, device: str) -> NetworkDenoiser:
    """The model of a checkpoint."""
    return zoo.load(checkpoint, choose(device))


def opened(args: argparse.Namespace, checkpoint: str | None) -> tuple[NetworkDenoiser, Callable[[Tensor], Tensor]]:
    """The model of a checkpoint or of ``--diffusers``, and what makes images of its samples."""
    if args.diffusers is None:
        refuse_pipeline_options(args)
        checkpoint = checkpoint or args.checkpoint
        if (row := zoo.published(checkpoint)) and row.hub:
            raise ValueError(f"{checkpoint} is a pipeline of diffusers; take --diffusers {row.hub} and no --checkpoint")
        return load(checkpoint, args.device), lambda samples: samples
    try:
        from dode.diffusers import command  # diffusers may not be there, and takes its time to import
    except ImportError as error:
        raise ValueError(f"--diffusers: {error}") from None
    return command.opened(args, choose(args.device))


def run_distill(args: argparse.Namespace) -> None:
    """``distill``: fit, store, say what came of it."""
    mine = args.checkpoint and not zoo.published(args.checkpoint)  # those are no .safetensors, and may not be here
    if mine and args.out.resolve() == zoo.checkpoint_file(args.checkpoint).resolve():
        raise ValueError(f"--out {args.out} is the checkpoint itself; name another file")
    model, _ = opened(args, args.checkpoint)
    table = METHODS[args.method](args, model)
    table.metadata.update(pipeline_facts(args))
    table.save(args.out)
    facts = table.metadata
    last = 1000 + (64 if not args.diffusers else 4 * len(args.prompt or args.class_label or [0])) - 1
    command = ["python", "-m", "dode", "sample", "--solver", str(args.out), "--seeds", f"1000-{last}"]
    if args.diffusers:
        command += pipeline_words(args)
    elif args.checkpoint not in zoo.NAMES:
        command += ["--checkpoint", args.checkpoint]
    print(f"wrote {args.out}: {facts['solver']}, NFE {table.nfe}; {facts['network_evaluations']:,} network evaluations")
    print(outcome(facts))
    print(f"sample with it: {shlex.join([*command, '--out', str(args.out.with_suffix('.png'))])}")


def run_sample(args: argparse.Namespace) -> None:
    """``sample``: a solver file, or a solver by its name, drawn as a PNG."""
    checkpoint, stored = args.checkpoint, names_a_file(args.solver)
    need("PIL.Image", "cli", "sample")  # before the work, not after it
    if stored and (args.nfe or args.order or args.afs or args.grid != "default"):
        raise ValueError(f"{args.solver} is a finished solver; leave out --nfe, --order, --grid and --afs")
    given = checkpoint or args.diffusers
    if not stored and (name := args.solver.partition(":")[0]) not in solvers.SOLVERS:
        near = nearest(name, solvers.SOLVERS)
        raise ValueError(f"no solver named {name!r}; the nearest: {near}; a solver file ends in .safetensors")
    if not stored and (args.nfe is None or given is None):
        raise ValueError(
            f"--solver {args.solver} is a name, not a file: it needs --nfe and --checkpoint or --diffusers"
        )
    table: Tableau | distillation.Designed | None = distillation.load(args.solver) if stored else None
    if table and given is None and (checkpoint := table.metadata.get("model")) not in zoo.NAMES:
        which = f"is for {checkpoint}, which does not ship with dode" if checkpoint else "names no network"
        raise ValueError(f"{args.solver} {which}; give one with --checkpoint or --diffusers")
    model, finish = opened(args, checkpoint)
    made = finish(torch.zeros(1, *model.shape, device=model.device)).shape[1:]
    if len(made) != 3 or made[0] not in (1, 3):
        raise ValueError(f"{model.name} makes samples of shape {tuple(made)}; a picture needs one channel or three")
    table = table or build(args, model)[0]
    if table.metadata.get("model", model.name) not in (None, model.name):
        raise ValueError(f"{args.solver} is for {table.metadata['model']}, not {model.name}; distil one for that")
    noise = initial_noise(model.shape, args.seeds, device=model.device)
    samples = sample(model.of(args.seeds), table, noise, batch_size=args.batch_size, progress=True)
    images = torch.cat([finish(part) for part in samples.split(args.batch_size)])
    with atomic(args.out) as temporary:
        picture(images, args.columns).save(temporary, format="PNG")
    print(f"wrote {args.out}: {len(images)} images by {table.metadata.get('solver', 'solver')}, NFE {table.nfe}")


def run_solvers(args: argparse.Namespace) -> None:
    """``solvers``: what :data:`dode.solvers.SOLVERS` knows."""
    line = "{:26}{:7}{:12}{:>5}  {}".format
    print(line("solver", "basis", "orders", "calls", "source"))
    for facts in solvers.SOLVERS.values():
        orders, calls = ", ".join(map(str, facts.orders)), facts.calls(10, True, {})
        print(line(facts.name, facts.basis, orders, calls, facts.source))
    print("\ncalls: network calls in ten steps to noise level 0. Options follow the name: unipc:variant=bh1")


def parser() -> Parser:
    """What can be said."""
    whole = Parser(prog="python -m dode", description=ABOUT)
    commands = whole.add_subparsers(required=True, metavar="distill | sample | solvers")
    distil = commands.add_parser("distill", description=DISTILL, help="fit a solver to a many-step teacher, store it")
    draw = commands.add_parser("sample", description=SAMPLE, help="draw images with a stored or a named solver")
    listing = commands.add_parser("solvers", description=LISTING, help="list the solvers that can be named")
    listing.set_defaults(run=run_solvers)
    networks = f"{', '.join(zoo.NAMES)}, a name of dode.zoo, or a file of dode.training"

    add = distil.add_argument
    model_options(distil, f"the network: {networks}", required=True)
    add("--solver", required=True, metavar="NAME", help="one that `solvers` lists, or with options: deis:variable=rho")
    add("--nfe", required=True, type=count, metavar="N", help="network calls for one image")
    add("--method", choices=METHODS, default="d-ode", help=f"how to distil {DEFAULT}")
    group = distil.add_mutually_exclusive_group()
    group.add_argument("--images", type=count, default=100, metavar="N", help=f"fit on seeds 0 to N - 1 {DEFAULT}")
    group.add_argument("--seeds", type=seeds, metavar="0-99", help="fit on these seeds instead")
    add("--teacher", choices=("ddim", "same"), default="ddim", help=f"many steps of ddim or the same solver {DEFAULT}")
    add("--scale", type=count, default=10, metavar="C", help=f"teacher steps for each step {DEFAULT}")
    add("--align", choices=("time", "index"), default="time", help=f"how the grids meet; index: EDM's code {DEFAULT}")
    add("--first-step", choices=("noise", "none"), help="what it leans on (default: noise if the network predicts it)")
    add(
        "--compare",
        choices=("auto", "pixels", "features"),
        default="auto",
        help="what the last images are compared in, "
        f"by all but d-ode and gits; auto: features of small classifiers, where they know the images {DEFAULT}",
    )
    add("--trajectories", type=count, default=2_000, metavar="N", help=f"of dlms, dlms-fixed and amed {DEFAULT}")
    add("--equation", type=int, choices=(10, 9, 8), default=10, help=f"of the paper; 10: one number a step {DEFAULT}")

    add = draw.add_argument
    add("--solver", required=True, metavar="FILE|NAME", help="a file of distill; or a name, --nfe and --checkpoint")
    add("--seeds", type=seeds, required=True, metavar="0-63", help="one image each: 0-63, or 1,5,8-11")
    model_options(draw, f"{networks} (default: the one the file is for)", required=False)
    add("--nfe", type=count, metavar="N", help="network calls for one image, for a solver by its name")
    add("--columns", type=count, default=8, metavar="N", help=f"images in a row {DEFAULT}")

    for command, run, suffix in ((distil, run_distill, ".safetensors"), (draw, run_sample, ".png")):
        command.set_defaults(run=run)
        add, path = command.add_argument, functools.partial(output, suffix)
        add("--out", required=True, type=path, metavar=f"FILE{suffix}", help="an older file is replaced")
        add("--order", type=count, metavar="N", help="(default: the solver's usual one, or what a short grid carries)")
        add("--grid", choices=("default", *GRIDS), default="default", help="noise levels (default: time on a VP chain, "
            "as fashion-mnist-noise; otherwise karras)")  # fmt: skip
        add("--afs", action="store_true", help="analytical first step: saves the first call")
        add("--batch-size", type=count, default=100, metavar="N", help=f"images at a time {DEFAULT}")
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=f"auto: a GPU if there is one {DEFAULT}")
    return whole


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0, 2 after one line on stderr, 130 after Ctrl-C."""
    try:
        args = parser().parse_args(argv)
        args.run(args)
        return 0
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        wrong = " ".join(str(error).split())
    except RuntimeError as error:  # what torch raises when memory is full; anything else is a bug
        if "memory" not in str(error):
            raise
        wrong = "memory is full; take a smaller --batch-size, --nfe or --scale"
    except KeyboardInterrupt:
        return 130
    print(f"python -m dode: {wrong}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    raise SystemExit(main())
