"""The command line: ``python -m dode.training NAME``."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dode.training import TRAININGS, Training, missing, networks, train, training_named, write_moments
from dode.utils.environment import has_bf16
from dode.utils.files import first_line
from dode.zoo.datasets import DATA_SETS

ABOUT = """Train a network that ships with dode, or all networks of a data set; a classifier's moments too.

  python -m dode.training fashion-mnist-noise --out runs
  python -m dode.training imagenet32-data --out runs
  python -m dode.training imagenet32 --out runs --device cuda --large --minutes 11 --stop-after 9

A run that was killed or stopped goes on with the same command.  The images of imagenet32 are ImageNet's (research
without commerce); they are read from the folder that DODE_DATA names, and nothing fetches them."""


LATER = 75  # as in sysexits.h: try again


def parser() -> argparse.ArgumentParser:
    """What can be said."""
    options = argparse.ArgumentParser(
        prog="python -m dode.training", description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, names = options.add_argument, [*TRAININGS, *DATA_SETS]
    add("name", choices=names, metavar="NAME", help=", ".join(names))
    add("--out", type=Path, default=Path("runs"), help="folder for the state and the result (runs)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="CPU threads (default: all)")
    add("--large", action="store_true", help="the larger denoisers of Tiny ImageNet 32x32, for a GPU")
    add("--steps", type=int, help="of Adam, in place of the recipe's")
    add("--minutes", type=float, help="of each denoiser's training: decides the number of steps")
    add("--stop-after", type=float, metavar="MINUTES", help="save and stop after so long; go on later")
    add("--ship", action="store_true", help="copy what is finished beside the package's own checkpoints")
    return options


def wanted(name: str, args: argparse.Namespace) -> Training:
    """The recipe with what command line and device say otherwise; the time is a denoiser's alone."""
    recipe = training_named(name, args.large)
    recipe = replace(recipe, bf16=recipe.bf16 and has_bf16(args.device))
    if args.steps:
        return replace(recipe, steps=args.steps, minutes=None)
    return replace(recipe, minutes=args.minutes) if args.minutes and recipe.denoises else recipe


def work(name: str, args: argparse.Namespace, patience: float) -> bool:
    """Train one network, and compute the moments of a classifier's features; whether it is finished."""
    run = train(wanted(name, args), args.out, args.device, patience=patience)
    if not run.finished:
        print(f"stopped {name} at step {run.step} of {run.steps or '?'}; the same command goes on from there")
        return False
    if not run.recipe.denoises:
        write_moments(args.out, name, args.device)
    print(f"wrote {args.out / name}.safetensors")
    return True


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not finished; exits with :data:`LATER` if time ran out before all of it was."""
    args, began = parser().parse_args(argv), time.perf_counter()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        raise SystemExit("error: torch finds no CUDA device here; take --device cpu, or leave it out")
    names = networks.named(args.name, args.large)
    try:
        for name in names if args.name in TRAININGS else missing(names, args.out):
            left = 60 * args.stop_after - (time.perf_counter() - began) if args.stop_after else math.inf
            if left <= 0 or not work(name, args, left):
                raise SystemExit(LATER)
        for name in names if args.ship else ():
            print("shipped", *(path.name for path in networks.ship(name, args.out)))
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        raise SystemExit(f"error: {first_line(error)}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from the last saved step") from None


if __name__ == "__main__":
    main()
