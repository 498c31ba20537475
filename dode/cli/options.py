"""What the command line accepts: its options, their types and their help.  Nothing here imports torch."""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dode import __version__
from dode.cli.methods import MOST, add_options, count, listed, methods

DEFAULT = "(default: %(default)s)"
CONDITIONING = ("prompt", "negative_prompt", "class_label", "guidance_scale")  # options of --diffusers alone
# Registries that need torch hold these too; a test compares them.
CHECKPOINTS = ("fashion-mnist-noise", "fashion-mnist-data", "imagenet32-noise", "imagenet32-data")
GRIDS = ("time", "quadratic", "karras", "log_snr")

ABOUT = """Fast sampling from diffusion models with distilled solvers.

  dode distill --checkpoint fashion-mnist-noise --solver ddim --nfe 5 --out d-ddim-5.safetensors
  dode sample --solver d-ddim-5.safetensors --seeds 1000-1063 --out d-ddim-5.png
  dode info d-ddim-5.safetensors

A solver is a small table of numbers. distill fits it to a many-step teacher and stores it, sample draws images
with it, info prints it, solvers lists the handcrafted ones to start from. The network is not changed."""
DISTILL = """Fit a few-step solver to a many-step teacher and store the table. The network is not changed.

  dode distill --checkpoint fashion-mnist-noise --solver dpm_solver_pp --order 3 --nfe 5 --out d.safetensors
  dode distill --checkpoint fashion-mnist-data --solver heun --nfe 9 --teacher same --out d-heun.safetensors

--method:
{methods}

With a checkpoint of dode at NFE 3 on one CPU core, d-ode and gits take about ten seconds; olss, ld3, s4s, s4s-alt,
dyweight and gauss-newton less than a minute; dlms two minutes, amed four.

  dode distill --checkpoint fashion-mnist-data --solver deis:variable=log_rho,basis=data --afs --nfe 3 \\
    --method gauss-newton --out g.safetensors
  dode distill --diffusers my-pipeline --prompt "a red fox" --guidance-scale 7.5 --solver dpm_solver_pp \\
    --order 2 --nfe 6 --images 16 --batch-size 4 --out fox.safetensors
"""
SAMPLE = """Draw one image for each seed and write them as one PNG, row by row; FILE.npy and FILE.fits hold numbers. An
image depends on its seed alone.

  dode sample --solver d-ddim-5.safetensors --seeds 1000-1063 --out d-ddim-5.png
  dode sample --solver ddim --nfe 10 --checkpoint fashion-mnist-noise --seeds 0-15 --out ddim-10.png"""
SOLVERS = "List the handcrafted solvers: basis, orders, network evaluations (NFE) for ten steps, and source."
INFO = """Print a solver file: its table, method, teacher, cost of the fit, noise levels, checkpoint and seeds.

  dode info d-ddim-5.safetensors
  dode info d-ddim-5.safetensors --json"""


class Parser(argparse.ArgumentParser):
    """Keeps its help as written; an error is a ValueError of one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def seeds(text: str) -> list[int]:
    """``"0-99"``, ``"7"`` or ``"0-9,20,30-39"`` as a list."""
    found = list[int]()
    for part in text.split(","):
        match = re.fullmatch("([0-9]{1,18})(?:-([0-9]{1,18}))?", part)
        if not match:
            raise argparse.ArgumentTypeError(f"{text!r} is not of the form 0-99 or 0-9,20,30-39")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise argparse.ArgumentTypeError(f"{part} runs backwards; write {last}-{first}")
        if len(found) + last - first >= MOST:
            raise argparse.ArgumentTypeError(f"{text} is more than {MOST:,} seeds; ask for fewer at a time")
        found += range(first, last + 1)
    return found


def output(suffixes: tuple[str, ...], text: str) -> Path:
    """A path of a file that can be written, as far as can be checked before the work is done."""
    path = Path(text)
    if path.suffix.lower() not in suffixes:
        only = ", the only format" if len(suffixes) == 1 else ""
        raise argparse.ArgumentTypeError(f"{text!r} must end in {' or '.join(suffixes)}{only}")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    parent = next(p for p in path.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}: {parent} is not a folder that you may write in")
    return path


def guidance(text: str) -> float:
    """A guidance scale of 1 or more."""
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 1 <= scale < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 (no guidance) or more")
    return scale


def model_options(command: argparse.ArgumentParser, networks: str, required: bool) -> None:
    """The network: a checkpoint, or a pipeline of diffusers and its conditioning."""
    which = command.add_mutually_exclusive_group(required=required)
    which.add_argument("--checkpoint", metavar="NAME", help=networks)
    which.add_argument("--diffusers", metavar="FOLDER|ID", help="or a pipeline of diffusers: a folder, or a hub name")
    add = command.add_argument_group("conditioning of the pipeline").add_argument
    add("--prompt", action="append", metavar="TEXT", help="once or more; image i gets prompt i mod the number of them")
    add("--negative-prompt", metavar="TEXT", help="(default: the pipeline's empty prompt)")
    add("--class-label", action="append", type=int, metavar="N", help="once or more, for class-conditional networks")
    add("--guidance-scale", type=guidance, metavar="G", help="classifier-free guidance (default: 1, none)")


def refuse_conditioning(args: argparse.Namespace) -> None:
    """ValueError for options that only a pipeline of diffusers takes."""
    if foreign := [name for name in CONDITIONING if getattr(args, name) is not None]:
        raise ValueError(f"--{foreign[0].replace('_', '-')} is an option of --diffusers; leave it out")


def conditioning(args: argparse.Namespace) -> dict[str, Any]:
    """The conditioning of ``--diffusers``, as a solver file records it."""
    given = {name: getattr(args, name) for name in CONDITIONING}
    return {name: value for name, value in given.items() if value is not None} if args.diffusers else {}


def pipeline_words(args: argparse.Namespace) -> list[str]:
    """The options of the pipeline, to be typed again."""
    words = ["--diffusers", args.diffusers]
    for name, value in conditioning(args).items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    return words


def late(module: str, function: str = "run") -> Callable[[Any], None]:
    """A command that is imported when it runs: torch takes seconds."""
    return lambda args: getattr(importlib.import_module(f"dode.cli.{module}"), function)(args)


def parser(prog: str = "dode") -> Parser:
    """All commands and options."""
    whole = Parser(prog=prog, description=ABOUT)
    whole.add_argument("--version", action="version", version=f"dode {__version__}")
    commands = whole.add_subparsers(required=True, metavar="distill | sample | solvers | info | run | train")
    distil = commands.add_parser(
        "distill", description=DISTILL.format(methods=listed()), help="fit a solver to a many-step teacher, store it"
    )
    draw = commands.add_parser("sample", description=SAMPLE, help="draw images with a stored or a named solver")
    listing = commands.add_parser("solvers", description=SOLVERS, help="list the handcrafted solvers")
    show = commands.add_parser("info", description=INFO, help="print a solver file")
    networks = f"{', '.join(CHECKPOINTS)}, a name of dode.zoo, or a file of dode train"

    model_options(distil, networks, required=True)
    distill_options(distil)
    model_options(draw, f"{networks} (default: the one that the file names)", required=False)
    add = draw.add_argument
    add("--solver", required=True, metavar="FILE|NAME", help="a solver file; or a name, --nfe and --checkpoint")
    add("--seeds", type=seeds, required=True, metavar="0-63", help="one image each: 0-63, or 1,5,8-11")
    add("--nfe", type=count, metavar="N", help="network evaluations for one image, for a solver by its name")
    add("--columns", type=count, default=8, metavar="N", help=f"images in a row {DEFAULT}")
    for command, suffixes, what in (
        (distil, (".safetensors",), "an older file is replaced"),
        (draw, (".png", ".npy", ".fits"), "one picture, or numbers: an image for each seed, of galaxies their flux"),
    ):
        add, path = command.add_argument, functools.partial(output, suffixes)
        add("--out", required=True, type=path, metavar=f"FILE{'|'.join(suffixes)}", help=what)
        add("--order", type=count, metavar="N", help="(default: the solver's usual one, or what the steps allow)")
        add("--grid", choices=("default", *GRIDS), default="default", help="noise levels (default: uniform in time for "
            "discrete VP schedules, as of fashion-mnist-noise; otherwise karras)")  # fmt: skip
        add("--afs", action="store_true", help="analytical first step: saves one network evaluation")
        add("--batch-size", type=count, default=100, metavar="N", help=f"images at a time {DEFAULT}")
        add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=f"auto: a GPU if there is one {DEFAULT}")
    show.add_argument("file", metavar="FILE", help="a solver file: .safetensors, written by dode")
    show.add_argument("--json", action="store_true", help="everything in the file, as JSON")

    distil.set_defaults(run=late("distill"), prog=prog)
    draw.set_defaults(run=late("sample"))
    listing.set_defaults(run=late("info", "list_solvers"))
    show.set_defaults(run=late("info"))
    late("run", "add")(commands)
    late("train", "add")(commands)  # which imports no torch, as nothing here does
    return whole


def distill_options(command: argparse.ArgumentParser) -> None:
    """What to fit, by which method, to which teacher."""
    add = command.add_argument
    add("--solver", required=True, metavar="NAME", help="one of `dode solvers`, also with options: deis:variable=rho")
    add("--nfe", required=True, type=count, metavar="N", help="network evaluations for one image")
    add("--method", choices=list(methods()), default="d-ode", help=f"how to fit {DEFAULT}")
    group = command.add_mutually_exclusive_group()
    group.add_argument("--images", type=count, default=100, metavar="N", help=f"fit on seeds 0 to N - 1 {DEFAULT}")
    group.add_argument("--seeds", type=seeds, metavar="0-99", help="fit on these seeds instead")
    add("--compare", choices=("auto", "own", "pixels", "features"), default="auto",
        help="the loss on final images: own: features of the network itself; features: of classifiers of dode that "
        f"know the images; auto: the method's, or pixels where no classifier knows them {DEFAULT}")  # fmt: skip
    add_options(command)
