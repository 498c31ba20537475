"""A sweep in pieces: one process a piece, on any machine, then merged, as if one process had done it all.

``python -m dode.experiments.shard figure_3 --preset standard`` lists the pieces;

    python -m dode.experiments.shard figure_3 --preset standard --solver ddim --block 0 --out FILE.csv

measures one.  It goes on where it was stopped: rows wait in ``FILE.csv.part``, and FILE.csv is there only when whole.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dode.experiments import plans, sweeps
from dode.experiments.plans import Plan
from dode.experiments.sweeps import Sweep
from dode.utils.files import FileError


@dataclass(frozen=True)
class Shard:
    """The cells of one checkpoint, one solver and one block of seeds: what one job measures."""

    plan: Plan
    checkpoint: str
    solver: str
    block: int

    @property
    def key(self) -> tuple[str, str, int]:
        return self.checkpoint, self.solver, self.block

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Its part of the plan's cells, in their order."""
        return [cell for cell in self.plan.cells if (cell["checkpoint"], cell["solver"], cell["block"]) == self.key]

    @property
    def path(self) -> Path:
        """Figure, checkpoint, solver, block: for a file, and another one as soon as anything is measured otherwise."""
        digest = hashlib.sha256(repr((self.plan.preset, self.cells)).encode()).hexdigest()[:8]
        return Path(self.plan.figure, sweeps.file_stem(self.checkpoint), self.solver, f"{self.block}.{digest}.csv")

    @property
    def evaluations(self) -> int:
        """Network evaluations of its samples."""
        return sum(cell["nfe"] for cell in self.cells) * self.plan.preset.images

    def missing(self, sweep: Sweep) -> list[dict[str, Any]]:
        """Its cells without a row in ``sweep``."""
        return [cell for cell in self.cells if not sweep.done(cell)]

    def run(self, out: str | Path, device_name: str) -> Sweep:
        """Measure what the project's results do not have, into ``out``: whole, or not there."""
        part = Path(f"{out}.part")
        todo = self.missing(self.plan.sweep())
        sweep = self.plan.sweep(part).run(todo, self.plan.row(device_name), sweeps.jobs(device_name))
        if not part.is_file():  # nothing was missing
            part.parent.mkdir(parents=True, exist_ok=True)
            part.touch()
        os.replace(part, out)
        return sweep


def shards(plan: Plan) -> list[Shard]:
    """The pieces of a plan; together they have each of its cells once."""
    keys = dict.fromkeys((cell["checkpoint"], cell["solver"], cell["block"]) for cell in plan.cells)
    return [Shard(plan, *key) for key in keys]


def merge(plan: Plan, files: Iterable[str | Path]) -> Sweep:
    """Add the rows of shards to the project's results, which is the same file whatever the order of ``files``.

    Rows that are there stay as they are; new ones come after them, in the plan's order.
    FileError if a shard is missing, or two have different rows of one cell; the results are then as they were.
    """
    sweep, found = plan.sweep(), dict[str, tuple[dict[str, str], Path]]()
    for path in map(Path, files):
        if not path.is_file():
            raise FileError(f"{path} does not exist; make it with python -m dode.experiments.shard")
        for row in plan.sweep(path).rows:
            before, other = found.setdefault("\n".join(row[key] for key in sweep.keys), (row, path))
            if before != row:
                raise FileError(f"{other} and {path} have different rows of one cell; remove one of them")
    named = {"\n".join(str(cell[key]) for key in sweep.keys): cell for cell in plan.cells}
    if rows := [found[key][0] for key, cell in named.items() if key in found and not sweep.done(cell)]:
        sweep.add(*rows)
    return sweep


@contextlib.contextmanager
def one_gpu() -> Iterator[None]:
    """Keep one of the machine's GPUs to this process and its children, so that jobs side by side use all of them.

    Nothing happens where there is no choice, as on a node whose scheduler has chosen.  If all are taken, they are
    shared.
    """
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = before.split(",") if before is not None else [str(i) for i in range(torch.cuda.device_count())]
    with contextlib.ExitStack() as stack:
        for gpu in gpus if len(gpus) > 1 else []:
            path = Path(tempfile.gettempdir(), f"dode-{os.getuid()}-gpu-{gpu}.lock")
            lock = stack.enter_context(open(path, "w"))
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # given back when the process ends, however it ends
                os.environ["CUDA_VISIBLE_DEVICES"] = gpu
                stack.callback(_restore, before)
                break
        yield


def _restore(before: str | None) -> None:
    if before is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


def parser() -> argparse.ArgumentParser:
    """What can be said."""
    options = argparse.ArgumentParser(prog="python -m dode.experiments.shard", description=__doc__.splitlines()[0])
    add = options.add_argument
    add("figure", help=", ".join(plans.PLANS))
    add("--preset", default="quick", help=", ".join(sweeps.PRESETS))
    add("--checkpoint", metavar="NAME", help="a name or a .safetensors file (default: all that the figure has)")
    add("--solver", metavar="NAME", help="one of the figure's")
    add("--block", type=int, metavar="N", help="which block of seeds, from 0")
    add("--device", default="auto", help="cpu, cuda or auto (default)")
    add("--out", type=Path, metavar="FILE.csv", help="measure; without it, list the pieces")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """List pieces or measure one; the exit status: 0, or 2 after one line on stderr."""
    args, start = parser().parse_args(argv), time.perf_counter()
    try:
        plan = plans.plan(args.figure, args.preset, args.checkpoint)
        wanted = (args.checkpoint, args.solver, args.block)
        found = [s for s in shards(plan) if all(b in (None, a) for a, b in zip(s.key, wanted, strict=True))]
        if args.out is None:
            for s in found:
                options = f"--checkpoint {s.checkpoint} --solver {s.solver} --block {s.block}"
                print(f"{options}   {s.evaluations:,} evaluations")
            return 0
        if len(found) != 1:
            name = "name one with --checkpoint, --solver and --block"
            raise ValueError(f"{len(found)} pieces of {args.figure} are meant; {name}")
        with one_gpu():
            rows = found[0].run(args.out, sweeps.device(args.device)).rows
        print(f"{len(rows)} numbers\ndone in {time.perf_counter() - start:.0f} s")
        return 0
    except (ValueError, OSError, FloatingPointError, ImportError) as error:
        print(f"failed: {args.figure}, {args.solver}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
