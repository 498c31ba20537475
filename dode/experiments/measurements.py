"""Measurements: a function from a run and one cell to numbers, and everything else that a row of results needs.

    @measurement(gives=("fd",))
    def fd(run: Run, *, checkpoint: str, solver: str, nfe: int, block: int) -> dict[str, Value]: ...

The keyword arguments are the columns that name a cell.  The weights of the checkpoint, rounding, arithmetic, preset and
provenance are added to its row, and :func:`known` finds it in whatever module of this package it stands.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import itertools
import os
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dode import zoo
from dode.experiments import sweeps
from dode.experiments.rows import Sweep
from dode.experiments.run import Run
from dode.experiments.sweeps import Preset, home, provenance

if TYPE_CHECKING:
    import pandas as pd

Value = float | int | str | range
Cell = dict[str, Any]
MEASUREMENTS: dict[str, Measurement] = {}


def distinct(cells: Iterable[Cell]) -> list[Cell]:
    """Each cell once, where it came first."""
    return list({tuple(cell.items()): cell for cell in cells}.values())


def text(column: str, value: Value) -> str:
    """A value as its file has it: five decimals, of seconds two; seeds as first and last."""
    if isinstance(value, range):
        return f"{value.start}-{value.stop - 1}"
    if isinstance(value, float):
        return str(round(value, 2)) if column == "seconds" else f"{value:.5f}"
    return str(value)


def weights_of(checkpoint: str) -> str:
    """:func:`dode.zoo.digest`, read once for as long as the file does not change."""
    return _digest(checkpoint, zoo.checkpoint_file(checkpoint).stat().st_mtime_ns)


@functools.cache
def _digest(checkpoint: str, changed: int) -> str:
    return zoo.digest(checkpoint)


@dataclass(eq=False)
class Measurement:
    """A function that measures one cell, and the file of its rows; made by :func:`measurement`."""

    function: Callable[..., Mapping[str, Value]]  # (run, *, checkpoint, ...) -> numbers
    name: str = ""  # of its file of results; the function's by default
    gives: Sequence[str] = ()  # columns without which a row is not whole, and is measured again
    adds: Sequence[str] = ("network", "preset")  # beside provenance; network: float32 if the function names no other
    # From a preset and a checkpoint (None: what the book has) to what ``dode run NAME`` measures.
    planned: Callable[[Preset, str | None], list[Cell]] | None = None

    def __post_init__(self) -> None:
        functools.update_wrapper(self, self.function)
        self.name = self.name or self.function.__name__
        parameters = inspect.signature(self.function, eval_str=True).parameters.values()
        self.kinds = {p.name: p.annotation for p in parameters if p.kind == p.KEYWORD_ONLY}
        named = [p.name for p in parameters if p.kind == p.KEYWORD_ONLY and p.default is p.empty]
        at = named.index("checkpoint") + 1 if "checkpoint" in named else 0
        self.keys = (*named[:at], *["weights"][:at], *named[at:])
        MEASUREMENTS[self.name] = self

    def __reduce__(self) -> str:  # other processes find it where it is defined
        return self.function.__qualname__

    def cell(self, values: Mapping[str, Any], **changes: Any) -> Cell:
        """The cell that ``values`` name, a row for instance, but for ``changes``; with the weights that are here."""
        given = dict(values) | changes
        if "weights" in self.keys:
            given["weights"] = weights_of(given["checkpoint"])
        names = [*self.keys, *(name for name in self.kinds if name not in self.keys)]
        return {name: self.kinds.get(name, str)(given[name]) for name in names if name in given}

    def cells(self, **axes: Any) -> list[Cell]:
        """The cells of all combinations of ``axes``, each a value or several, the first one's changing slowest."""
        several = [[v] if isinstance(v, str | int) else list(v) for v in axes.values()]
        return [self.cell(dict(zip(axes, values, strict=True))) for values in itertools.product(*several)]

    def __call__(self, run: Run, **cell: Any) -> dict[str, str]:
        """Measure one cell: the columns of its row that do not name it."""
        found = self.function(run, **{k: v for k, v in cell.items() if k != "weights"})
        also = dict(network="float32", preset=run.preset.name)
        row = dict(found) | {k: also[k] for k in self.adds if k not in found} | provenance(run.device)
        return {k: text(k, v) for k, v in row.items()}

    def sweep(self, preset: Preset, file: str = "") -> Sweep:
        """The rows in ``results/FILE.PRESET.csv`` in the project (or in the folder named by ``DODE_RESULTS``).

        FILE is by default the measurement's name, PRESET the one whose rows are shown: "standard" for "quick", whose
        rows are frozen.
        """
        name = f"{file or self.name}.{preset.rows_of or preset.name}.csv"
        path = Path(os.environ.get("DODE_RESULTS") or home() / "results") / name
        return Sweep(path, self.keys, bool(preset.rows_of), self.gives)

    def rows(
        self, run: Run, cells: Iterable[Mapping[str, Any]], file: str = "", jobs: int | None = None
    ) -> pd.DataFrame:
        """The rows of ``cells``, measured where there are none: by ``jobs`` processes, or as many as there may be."""
        asked = [self.cell(cell) for cell in cells]
        if jobs is None:  # a process costs more than the work of a smoke run
            jobs = sweeps.jobs(run.device) if run.preset.kept else 1
        return self.sweep(run.preset, file).run(asked, functools.partial(self, run), jobs).select(asked)


def measurement(function: Callable[..., Mapping[str, Value]] | None = None, /, **options: Any) -> Any:
    """Make a function ``(run, *, checkpoint, ...) -> numbers`` a measurement, with ``options`` of that class."""
    return Measurement(function, **options) if function else functools.partial(Measurement, **options)


def known() -> dict[str, Measurement]:
    """All measurements of this package, by name: every module is asked, so a new file is enough."""
    package = importlib.import_module("dode.experiments")
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "plots":  # which needs the book's packages
            importlib.import_module(f"dode.experiments.{module.name}")
    return MEASUREMENTS
