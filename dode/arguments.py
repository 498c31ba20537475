"""What the command line takes: its parser, its kinds of numbers, and the options about pipelines of diffusers."""

from __future__ import annotations

import argparse
import math
import os
import re
from pathlib import Path
from typing import Any, NoReturn

MOST = 1_000_000  # seeds, images, calls; more is a slip of the keyboard
DEFAULT = "(default: %(default)s)"
PIPELINE = ("prompt", "negative_prompt", "class_label", "guidance_scale")


class Parser(argparse.ArgumentParser):
    """Keeps its help as written, and leaves what was wrong, in one line, to whoever reads the arguments."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see {self.prog} --help")


def count(text: str) -> int:
    """A whole number from 1 to :data:`MOST`."""
    if not re.fullmatch("[0-9]{1,18}", text) or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {MOST:,}")
    return int(text)


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


def output(suffix: str, text: str) -> Path:
    """A path of a file that can be written, as far as can be told before the work is done."""
    path = Path(text)
    if path.suffix.lower() != suffix:
        raise argparse.ArgumentTypeError(f"{text!r} must end in {suffix}, the one format there is")
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder; name a file")
    parent = next(p for p in path.parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text}: {parent} is no folder that you may write in")
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
    """The network: a checkpoint of dode's, or a pipeline of diffusers and what it is told."""
    which = command.add_mutually_exclusive_group(required=required)
    which.add_argument("--checkpoint", metavar="NAME", help=networks)
    which.add_argument(
        "--diffusers", metavar="FOLDER|ID", help="or a pipeline of diffusers: a folder, or the hub's name"
    )
    add = command.add_argument_group("told to the pipeline").add_argument
    add("--prompt", action="append", metavar="TEXT", help="once or more; image i gets prompt i mod the number of them")
    add(
        "--negative-prompt", metavar="TEXT", help="what guidance leads away from (default: the pipeline's empty prompt)"
    )
    add("--class-label", action="append", type=int, metavar="N", help="once or more, for networks of classes")
    add("--guidance-scale", type=guidance, metavar="G", help="of classifier-free guidance (default: 1, none)")


def refuse_pipeline_options(args: argparse.Namespace) -> None:
    """ValueError for what only a pipeline is told."""
    if foreign := [name for name in PIPELINE if getattr(args, name) is not None]:
        raise ValueError(f"--{foreign[0].replace('_', '-')} is told to a pipeline; give one with --diffusers")


def pipeline_facts(args: argparse.Namespace) -> dict[str, Any]:
    """What a solver's file says of the pipeline it was made for."""
    told = {name: getattr(args, name) for name in PIPELINE}
    return {name: value for name, value in told.items() if value is not None} if args.diffusers else {}


def pipeline_words(args: argparse.Namespace) -> list[str]:
    """The options about the pipeline, to be typed again."""
    words = ["--diffusers", args.diffusers]
    for name, value in pipeline_facts(args).items():
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}", str(one)]
    return words
