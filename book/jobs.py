"""What a run of the book has to do: its pages, what each is made from, their order, and the sweeps that come before.

``workflow/Snakefile`` makes jobs of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from book.pages import ROOT, BookError, pages, source

TRANSIENT = ("smoke", "quick")  # presets whose results are not committed
# These start first: what a reader opens first, then the longest and those that others wait for, so that at the end no
# core waits for a long one.
EARLY = (
    "index", "start_here", "learned", "figure_4", "dlms", "table_1", "gauss_newton", "carried", "natural", "solver_zoo",
    "figure_3", "ablations", "limits",
)  # fmt: skip
# These add to the same files of results and of solvers: one at a time.
SHARE = ("learned", "gauss_newton", "carried", "natural")
# These need rows of other pages, which make the rows that are committed.
AFTER = {"limits": ("figure_3", "figure_4"), "checkpoints": ("figure_4", "natural")}
NEEDS = {"galaxies": "galaxygrad"}  # packages whose networks a page draws with; where they are not, it is not run
SWEPT = ("figure_3", "figure_4")  # where results are kept, their sweeps are jobs of their own; "paper" has these alone


def chosen(preset: str, names: Iterable[str] = ()) -> list[str]:
    """The pages that a preset has, or those named, in reading order; BookError if there is none of a name.

    A page that is left out, because its networks are not here, stays as it was published.
    """
    known, wanted = pages(), tuple(names)
    if unknown := sorted(set(wanted) - set(known)):
        raise BookError(f"no page named {', '.join(unknown)}; there are: {', '.join(known)}")
    here = [name for name in known if name not in NEEDS or find_spec(NEEDS[name])]
    return [name for name in known if name in (wanted or (SWEPT if preset == "paper" else here))]


def inputs(name: str, preset: str) -> list[Path]:
    """What a page is made from: its source, the package, the lock file and the results of other presets."""
    passing = tuple(f".{p}.csv" for p in {*TRANSIENT, preset})
    package = [path for path in (ROOT / "dode").rglob("[!.]*.*") if path.is_file() and "__pycache__" not in path.parts]
    results = [path for path in (ROOT / "results").glob("[!.]*.csv") if not path.name.endswith(passing)]
    return [source(name), ROOT / "requirements.lock", *sorted(package), *sorted(results)]


def before(name: str, preset: str) -> tuple[str, ...]:
    """The pages that page ``name`` waits for."""
    return () if preset in TRANSIENT else AFTER.get(name, ())  # a smoke run measures its own, quick shows what is there


def pieces(figure: str, preset: str, checkpoint: str | None = None) -> list[tuple[str, str, int]]:
    """The checkpoints, solvers and blocks of seeds of a figure's sweep that the results lack a row of."""
    from dode.experiments import plans  # torch: seconds

    plan = plans.plan(figure, preset, checkpoint)
    sweep = plan.sweep()
    missing = [cell for cell in plan.cells if not sweep.done(cell)]
    return list(dict.fromkeys((cell["checkpoint"], cell["solver"], cell["block"]) for cell in missing))


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0))


def take_gpu(gpus: str) -> str:
    """A piece of shell that keeps a free one of several GPUs (``"0,1"``) to a job while it runs; else empty."""
    if "," not in gpus:
        return ""
    lock = "exec 9>/tmp/dode-$UID-gpu-$gpu.lock"
    take = "if flock -n 9; then export CUDA_VISIBLE_DEVICES=$gpu; break; fi"
    return f"for gpu in {gpus.replace(',', ' ')}; do {lock}; {take}; done; "
