"""``dode train``: train the networks that ship with dode.  Nothing here imports torch before it runs."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from dode.cli.options import DEFAULT, count

ABOUT = """Train a network that ships with dode, or all networks of a data set; a classifier's moments too.

  dode train fashion-mnist-noise --out runs
  dode train imagenet32 --out runs --device cuda --large
  timeout -s INT 9m dode train imagenet32-data --out runs

A run that was killed or stopped goes on from the last saved step with the same command.  The images of imagenet32 are
ImageNet's (research without commerce); they are read from the folder that DODE_DATA names, and nothing fetches them."""


def add(commands: Any) -> None:
    """The command and its options."""
    command = commands.add_parser("train", description=ABOUT, help="train a network that ships with dode again")
    command.set_defaults(run=run)
    option = command.add_argument
    option("name", metavar="NAME", help="a network that ships with dode, or a data set: fashion-mnist, imagenet32")
    option("--out", type=Path, default=Path("runs"), help=f"folder for the state and the result {DEFAULT}")
    option("--device", choices=("auto", "cpu", "cuda"), default="auto", help=f"auto: a GPU if there is one {DEFAULT}")
    option("--threads", type=count, metavar="N", help="of the CPU (default: all)")
    option("--large", action="store_true", help="the larger denoisers of Tiny ImageNet 32x32, for a GPU")
    option("--steps", type=count, metavar="N", help="of Adam, in place of the recipe's")
    option("--ship", action="store_true", help="copy what is finished beside the package's own checkpoints")


def run(args: argparse.Namespace) -> None:
    """``dode train``: what is not finished."""
    import torch

    from dode.cli.models import choose_device
    from dode.training import networks, trainings
    from dode.utils.environment import has_bf16

    device, recipes = choose_device(args.device), trainings(args.name, args.large)
    torch.set_num_threads(args.threads or torch.get_num_threads())
    torch.backends.cudnn.benchmark = True  # all batches have one shape
    for recipe in recipes if len(recipes) == 1 else networks.missing(recipes, args.out):
        bf16, steps = recipe.bf16 and has_bf16(device), args.steps or recipe.steps
        networks.train(replace(recipe, bf16=bf16, steps=steps), args.out, device)
        print(f"wrote {args.out / recipe.name}.safetensors")
    for recipe in recipes if args.ship else ():
        print("shipped", *(path.name for path in networks.ship(recipe, args.out)))
