"""``dode run``: measure parts of a sweep, in as many processes or on as many machines as share the results."""

from __future__ import annotations

import argparse
import time
from typing import Any

from dode.cli.options import DEFAULT

RUN = """Measure the cells of a figure that have no row yet, into the shared results (results/FIGURE.PRESET.csv).

  dode run                                        list the figures and measurements
  dode run figure_3 --preset standard             list what is missing
  dode run figure_3 --preset standard --checkpoint fashion-mnist-noise --solver ddim --block 0

With --checkpoint, --solver or --block it measures those cells. A run that is stopped goes on where it was; many may
run at the same time, since each row is written under a lock."""


def add(commands: Any) -> None:
    """The command and its options."""
    command = commands.add_parser("run", description=RUN, help="measure parts of a figure's sweep")
    option = command.add_argument
    option("figure", nargs="?", metavar="FIGURE", help="a figure or measurement (default: list them)")
    option("--preset", default="quick", help=f"smoke, quick, standard, full or paper {DEFAULT}")
    option("--checkpoint", metavar="NAME", help="a name or a .safetensors file (default: all that the figure has)")
    option("--solver", metavar="NAME", help="one of the figure's")
    option("--block", type=int, metavar="N", help="which block of seeds, from 0")
    option("--device", default="auto", help=f"cpu, cuda, cuda:1 or auto {DEFAULT}")
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """List, or measure what was chosen; returns when each of its cells has a row."""
    from dode.experiments import measurements, plans, sweeps

    if args.figure is None:
        for name, found in (plans.PLANS | dict(sorted(measurements.known().items()))).items():
            by_page = isinstance(found, measurements.Measurement) and not found.planned
            print(f"{name:18} {(found.__doc__ or '').partition(chr(10))[0]}{' (by its page)' * by_page}")
        return
    plan = plans.plan(args.figure, args.preset, args.checkpoint)
    chosen = {k: v for k in ("solver", "block") if (v := getattr(args, k)) is not None}
    cells = [cell for cell in plan.cells if all(cell.get(k) == v for k, v in chosen.items())]
    if not cells:
        raise ValueError(f"{args.figure} has no cell of {', '.join(f'{k} {v}' for k, v in chosen.items())}")
    missing = plan.sweep().missing(cells)
    if args.checkpoint or chosen:
        start = time.perf_counter()
        plan.run(sweeps.device(args.device), cells)
        print(f"{len(missing)} of {len(cells)} cells measured in {time.perf_counter() - start:.0f} s")
        return
    parts = dict[str, list[int]]()
    for cell in missing:
        words = " ".join(f"--{k} {cell[k]}" for k in ("checkpoint", "solver", "block") if k in cell)
        parts.setdefault(words, []).append(cell.get("nfe", 0))
    for words, nfes in parts.items():
        print(f"{words}   {len(nfes)} cells, {sum(nfes) * plan.preset.images:,} evaluations")
    print(f"{len(missing)} of {len(cells)} cells are missing in {plan.sweep().path}")
