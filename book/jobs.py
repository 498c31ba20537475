"""What a run of the book has to do, as jobs of ``workflow/Snakefile``: pages, and before some of them pieces of sweeps.

``python -m book.jobs NAME`` is one page as one job.  Its last line is the outcome, which :mod:`book.runner` reads.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from book import pages

if TYPE_CHECKING:
    from dode.experiments.shard import Shard

# These start first: what a reader opens first, then the longest and those that others wait for, so that at the end no
# core waits for a long one.
EARLY = (
    "index", "start_here", "learned", "figure_4", "dlms", "table_1", "second_order", "carried", "natural", "solver_zoo",
    "figure_3", "ablations", "limits",
)  # fmt: skip
# These add to the same files of results and of solvers: one at a time.
SHARE = ("learned", "dlms", "second_order", "carried", "natural")
# These need rows of other pages: always, and where the other pages make the rows that are committed.
AFTER = {"table_1": ("figure_4",)}
AFTER_KEPT = AFTER | {"limits": ("figure_3", "figure_4"), "checkpoints": ("figure_4", "natural")}
DONE, UNCHANGED, FAILED = "done in", "unchanged", "failed:"


@dataclass(frozen=True)
class Jobs:
    """The jobs of one run.

    Parameters
    ----------
    preset, folder
        The executed pages go to ``folder``; what the jobs leave beside them, to ``folder/.jobs``.
    force
        Run pages that are unchanged, too.
    more
        Parameters of the notebooks beside the preset: ``checkpoint``.
    names
        The pages; by default all that the preset has.
    sharded
        Whether the sweeps of figures 3 and 4 are done in pieces; by default at presets whose results are kept.
    """

    preset: str
    folder: Path
    force: bool = False
    more: Mapping[str, str] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    sharded: bool | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Jobs:
        """From the workflow's configuration, e.g. ``dict(preset="paper", checkpoint="x.safetensors")``."""
        preset, chosen = str(config.get("preset", "quick")), str(config.get("pages", ""))
        folder = Path(config.get("folder", f"_build/stage/{preset}/book"))
        more = {"checkpoint": str(config["checkpoint"])} if "checkpoint" in config else {}
        names = tuple(filter(None, chosen.split(",")))
        sharded = bool(int(config["sharded"])) if "sharded" in config else None
        return cls(preset, folder, bool(int(config.get("force", 0))), more, names, sharded)

    @cached_property
    def pages(self) -> list[str]:
        """The pages, in reading order."""
        known = pages.pages()
        if unknown := sorted(set(self.names) - set(known)):
            raise pages.BookError(f"no page named {', '.join(unknown)}; there are: {', '.join(known)}")
        return [name for name in known if name in (self.names or self._all)]

    @cached_property
    def _all(self) -> list[str]:
        if self.preset != "paper":
            return pages.pages()
        from dode.experiments import plans

        return list(plans.PLANS)

    @cached_property
    def stale(self) -> list[str]:
        """The pages that must run."""
        fresh = lambda name: pages.is_current(name, self.preset, self.folder, **self.more)  # noqa: E731
        return [name for name in self.pages if self.force or not fresh(name)]

    @cached_property
    def _shards(self) -> dict[str, list[tuple[Shard, bool]]]:
        """The pieces of the stale pages' sweeps, each with whether the results lack a row of it."""
        if not (self.preset not in pages.TRANSIENT if self.sharded is None else self.sharded):
            return {}
        from dode.experiments import plans  # torch: seconds
        from dode.experiments.shard import shards

        found = {}
        for name in (name for name in self.stale if name in plans.PLANS):
            plan = plans.plan(name, self.preset, self.more.get("checkpoint"))
            found[name] = [(shard, bool(shard.missing(plan.sweep()))) for shard in shards(plan)]
        return found

    def shards(self, name: str) -> list[str]:
        """The files that page ``name`` waits for."""
        return [self.shard_file(shard) for shard, missing in self._shards.get(name, []) if missing]

    def before(self, name: str) -> list[str]:
        """The stamps of the pages that page ``name`` waits for."""
        after = {"smoke": AFTER, "quick": {}}.get(self.preset, AFTER_KEPT)  # quick shows rows that are there
        return [self.stamp(other) for other in after.get(name, ()) if other in self.stale]

    def shard_file(self, shard: Shard) -> str:
        """Where the rows of a piece wait for its page."""
        return str(self.folder / ".jobs" / shard.path)

    def stamp(self, name: str) -> str:
        """What says that a page is executed and current."""
        return str(self.folder / ".jobs" / f"{name}.done")

    def log(self, name: str) -> str:
        """Where the job of a page says what came of it."""
        return str(self.folder / ".jobs" / f"{name}.log")

    def logs(self) -> dict[str, Path]:
        """What is to be done, in words, and where each job says what came of it."""
        todo = {}
        for name in self.stale:
            for shard, missing in self._shards.get(name, []):
                if missing and not Path(self.shard_file(shard)).is_file():
                    words = f"{name}: {shard.path.parts[1]}, {shard.solver}, block {shard.block}"
                    todo[words] = Path(self.shard_file(shard)).with_suffix(".log")
            todo[name] = Path(self.log(name))
        return todo

    def shares(self, name: str) -> bool:
        """Whether page ``name`` adds to files that other pages add to."""
        return name in SHARE and self.preset != "quick"

    def priority(self, name: str) -> int:
        """What starts earlier has more."""
        return len(EARLY) - EARLY.index(name) if name in EARLY else 0

    @property
    def threads(self) -> int:
        """A page's share of this machine; Snakemake gives it no more than there are."""
        return max(1, len(os.sched_getaffinity(0)) // max(1, len(self.stale)))

    @property
    def measured(self) -> Path:
        """Where a run leaves the seconds of each page, for the next one."""
        return self.folder / ".jobs" / "seconds.json"

    @property
    def seconds(self) -> dict[str, int]:
        """What pages took when they last ran here, else on the project's own two cores (a copy of such a file)."""
        files = (pages.ROOT / "workflow" / f"seconds.{self.preset}.json", self.measured)
        return {k: s for path in files if path.is_file() for k, s in json.loads(path.read_text()).items()}

    @property
    def options(self) -> list[str]:
        """Of ``python -m book.jobs``."""
        return [word for k, v in self.more.items() for word in (f"--{k}", v)] + ["--force"] * self.force

    def forget(self) -> None:
        """Remove what an earlier run left and is no longer so: stamps of stale pages, pieces whose rows are merged."""
        for name in self.stale:
            Path(self.stamp(name)).unlink(missing_ok=True)
        for name in set(self.pages) - set(self.stale):
            stamp = Path(self.stamp(name))
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
        for shard, missing in (pair for found in self._shards.values() for pair in found):
            if not missing:
                Path(self.shard_file(shard)).unlink(missing_ok=True)


def run(args: argparse.Namespace) -> str:
    """Merge the page's pieces, execute it, leave its stamp; return the outcome."""
    start, more = time.perf_counter(), {"checkpoint": args.checkpoint} if args.checkpoint else {}
    if args.shards:
        from dode.experiments import plans
        from dode.experiments.shard import merge

        merge(plans.plan(args.name, args.preset, args.checkpoint), args.shards)
    with contextlib.ExitStack() as stack:
        if args.gpu:  # torch: seconds
            from dode.experiments.shard import one_gpu

            stack.enter_context(one_gpu())
        ran = pages.execute(args.name, args.preset, args.folder, force=args.force, **more)
    args.stamp.parent.mkdir(parents=True, exist_ok=True)
    args.stamp.touch()
    return f"{DONE} {time.perf_counter() - start:.0f} s" if ran else UNCHANGED


def main() -> int:
    """Run one page; its last line is what came of it."""
    parser = argparse.ArgumentParser(prog="python -m book.jobs", description="Run one page of the book.")
    parser.add_argument("name", help=", ".join(pages.pages()))
    parser.add_argument("--preset", required=True)
    parser.add_argument("--folder", type=Path, required=True, help="where executed pages go")
    parser.add_argument("--stamp", type=Path, required=True, help="made when the page is there")
    parser.add_argument("--checkpoint", help="another than the page's own")
    parser.add_argument("--force", action="store_true", help="even if it is unchanged")
    parser.add_argument("--gpu", type=int, default=0, help="1: keep one for it")
    parser.add_argument("--shards", nargs="*", default=[], help="pieces of its sweep, to be merged first")
    args = parser.parse_args()
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else each kernel warns about its debugger
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing half-written stays
    try:
        print(run(args), flush=True)
        return 0
    except (pages.BookError, ValueError, OSError) as error:
        print(FAILED, " ".join(str(error).split()), flush=True)
        return 1


if __name__ == "__main__":
    raise SystemExit(main())
