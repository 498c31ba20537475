"""Presets, sweeps that resume, and the provenance of a number.

A sweep is a list of cells (checkpoint, solver, NFE, ...); each finished cell becomes one row of a
CSV file at once, so a killed sweep goes on where it stopped.
"""

from __future__ import annotations

import csv
import functools
import io
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dode import zoo
from dode.metrics import Mode
from dode.utils.environment import has_bf16, tqdm
from dode.utils.files import FileError, names_a_file, nearest, write_text
from dode.zoo.datasets import DATA_SETS, data_set


@dataclass(frozen=True)
class Preset:
    """How much is run.  The same notebook serves all of them; "paper" is for those of :mod:`.papers`."""

    name: str
    images: int  # samples behind each FD
    repeats: int  # seed blocks of each FD
    fit_images: int  # |B| of the distillation
    reference_steps: int  # DDIM steps of the "exact" trajectory
    path_images: int  # images in figures 2 and 5
    nfes: tuple[int, ...]  # DDIM's, figure 4
    heun_nfes: tuple[int, ...]
    bf16: bool  # the network's arithmetic in the FD sweeps, where the device has it
    zoo_images: int  # seeds behind each RMSE of the solver zoo
    zoo_nfes: tuple[int, ...]
    student_steps: int  # table 1: Adam's steps in each round of progressive distillation
    downloads: bool  # whether training images may be fetched
    learn_images: int  # seeds of the fits of learned solvers
    trajectories: int  # noises that a designer is trained on
    reference_calls: int  # of the reference solution whose samples FDs are taken to
    fit_steps: int = 10  # of a Gauss-Newton fit, at most
    fid: Mode | None = None  # measure networks that do not ship with dode by Inception's features, resized so
    anew: bool = False  # fit solvers each time, whatever is kept
    rows_of: str = ""  # the preset whose committed rows and solvers its pages show; none: its own, measured if missing

    @property
    def kept(self) -> bool:
        """Whether its results, and the solvers it learns, are committed."""
        return self.name not in ("smoke", "live")

    @property
    def live(self) -> Preset:
        """The sizes of what a page computes whenever it runs: small ones where its rows are another preset's."""
        return LIVE if self.rows_of else self

    @property
    def again(self) -> Preset:
        """``live``, but its solvers are those of the preset whose rows are shown, not fitted anew."""
        return replace(self.live, name=self.name, rows_of=self.rows_of, anew=False)


DDIM_NFES, HEUN_NFES, ZOO_NFES = (2, 5, 10, 25, 50), (3, 5, 9, 25, 49), (3, 5, 8, 10, 20)
ARITHMETIC = {None: "float32", torch.bfloat16: "bf16 autocast"}  # as rows call it
PRESETS = {
    p.name: p
    for p in (
        Preset(
            name="smoke", images=64, repeats=1, fit_images=16, reference_steps=50, path_images=16,
            nfes=(2, 5), heun_nfes=(3, 5), bf16=False, zoo_images=4, zoo_nfes=(3, 5), student_steps=1, downloads=False,
            learn_images=4, trajectories=32, reference_calls=10, fit_steps=2,
        ),
        Preset(
            name="standard", images=5_000, repeats=3, fit_images=100, reference_steps=1000,
            path_images=100, nfes=DDIM_NFES, heun_nfes=HEUN_NFES, bf16=True, zoo_images=128, zoo_nfes=ZOO_NFES,
            student_steps=800, downloads=True, learn_images=128, trajectories=1_600, reference_calls=60,
        ),
        Preset(
            name="full", images=50_000, repeats=3, fit_images=100, reference_steps=1000,
            path_images=1000, nfes=(*DDIM_NFES, 100, 250), heun_nfes=(*HEUN_NFES, 99, 249), bf16=False,
            zoo_images=1000, zoo_nfes=ZOO_NFES, student_steps=20_000, downloads=True,
            learn_images=512, trajectories=20_000, reference_calls=100,
        ),
    )
}  # fmt: skip
PRESETS = {
    "smoke": PRESETS["smoke"],
    "quick": replace(PRESETS["standard"], name="quick", rows_of="standard"),  # shows rows; computes with LIVE's sizes
    **PRESETS,
}
LIVE = Preset(
    name="live", images=200, repeats=1, fit_images=32, reference_steps=100, path_images=16, nfes=(2, 5),
    heun_nfes=(3, 5), bf16=False, zoo_images=16, zoo_nfes=(3, 5), student_steps=1, downloads=False, learn_images=16,
    trajectories=160, reference_calls=20, anew=True,
)  # fmt: skip
# Kim et al. 2024: FID of 50,000 images, three blocks of seeds, 2 to 250 calls (figures 3 and 4)
PRESETS["paper"] = replace(PRESETS["full"], name="paper", fid="legacy_tensorflow")


def preset(name: str) -> Preset:
    """The preset called ``name``; a ValueError names the nearest ones."""
    if name not in PRESETS:
        raise ValueError(f"no preset named {name!r}; the nearest: {nearest(name, PRESETS)}")
    return PRESETS[name]


def device(name: str = "auto") -> str:
    """ "auto" is CUDA where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def autocast(p: Preset, device_name: str) -> torch.dtype | None:
    """The type that the FD sweeps run a network in: bf16 if the preset and the device have it, None for float32."""
    return torch.bfloat16 if p.bf16 and has_bf16(device_name) else None


def file_stem(checkpoint: str) -> str:
    """A checkpoint in the names of files: its own name, or that of its file."""
    return Path(checkpoint).stem if names_a_file(checkpoint) else checkpoint


def checkpoints(name: str) -> list[str]:
    """ "all" is every shipped checkpoint, a data set's name its shipped ones; any other name is itself.

    ValueError for an unknown name, with the nearest ones; FileError for one whose files are not here.
    """
    found = [n for n in zoo.NAMES if name == "all" or name == data_set(n).name]
    if not found and name in DATA_SETS:
        raise FileError(f"no checkpoint of {name} is here; train them with dode train {name} --out runs")
    if not found:
        zoo.checkpoint_file(file_stem(name))
    return found or [name]


def home() -> Path:
    """The project's root: the nearest folder upwards with a ``_toc.yml``, else the one that holds this module."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "_toc.yml").is_file()), Path(__file__).parents[2])


def results_file(name: str, preset_name: str) -> Path:
    """``results/NAME.PRESET.csv`` in the project (or in the folder named by ``DODE_RESULTS``).

    PRESET is the one whose rows are shown: "standard" for "quick".
    """
    shown = PRESETS[preset_name].rows_of if preset_name in PRESETS else ""
    return Path(os.environ.get("DODE_RESULTS") or home() / "results") / f"{name}.{shown or preset_name}.csv"


@functools.cache
def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=home(), capture_output=True, text=True, check=True).stdout.strip()

    if value := os.environ.get("DODE_COMMIT"):  # a copy of the tree without its history
        return value
    try:
        return git("rev-parse", "--short=10", "HEAD") + ("+" if git("status", "--porcelain", "--", "dode") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@functools.cache
def processor() -> str:
    """A name for this machine's processor."""
    try:
        info = Path("/proc/cpuinfo").read_text()
        return next(line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def provenance(device_name: str) -> dict[str, Any]:
    """Where and with what a number was made; a "+" after the commit marks uncommitted changes."""
    cuda = device_name.startswith("cuda")
    what = torch.cuda.get_device_name(device_name) if cuda else f"{processor()}, {os.cpu_count()} cores"
    return dict(device=what, torch=torch.__version__, python=platform.python_version(), commit=_commit())


def origin(rows: Iterable[Mapping[str, str]]) -> dict[str, str]:
    """Where the numbers of a page come from: the distinct values of each column of provenance in ``rows``."""
    rows = list(rows)
    columns = ("preset", "n", "seeds", "weights", "network", "device", "torch", "python", "commit")
    found = {c: list(dict.fromkeys(row[c] for row in rows if row.get(c))) for c in columns}
    return {c: ", ".join(values) for c, values in found.items() if values}


class Sweep:
    """A CSV file that grows by one row for each finished cell.

    ``path`` is made on the first row, replaced whole (never half-written) on each; ``keys`` are the columns that
    identify a cell; where it is ``frozen``, rows are shown and none is added.
    """

    def __init__(self, path: str | Path, keys: Iterable[str], frozen: bool = False) -> None:
        self.path, self.keys, self.frozen = Path(path), tuple(keys), frozen
        self.rows: list[dict[str, str]] = []
        if self.path.is_file():
            with open(self.path, newline="", encoding="utf-8") as f:
                self.rows = list(csv.DictReader(f))
            missing = [k for k in self.keys if self.rows and k not in self.rows[0]]
            if missing:
                raise FileError(f"{self.path} has no column {missing[0]!r}; it is of another sweep: move it away")

    def _key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[k]) for k in self.keys)

    def done(self, cell: Mapping[str, Any]) -> bool:
        """Whether ``cell`` has its row."""
        return self._key(cell) in {self._key(row) for row in self.rows}

    def select(self, cells: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
        """The rows of ``cells``, in their order: what this run is about, whatever else the file holds."""
        rows = {self._key(row): row for row in self.rows}
        return [rows[self._key(cell)] for cell in cells if self._key(cell) in rows]

    def add(self, *rows: Mapping[str, Any]) -> None:
        """Append rows and write the file."""
        self.rows += [{k: str(v) for k, v in row.items()} for row in rows]
        columns = list(dict.fromkeys(k for r in self.rows for k in r))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, buffer.getvalue())

    def run(self, cells: Iterable[Mapping[str, Any]], work: Callable[..., Mapping[str, Any]], jobs: int = 1) -> Sweep:
        """Call ``work(**cell)`` for each cell without a row, and add ``cell | work(**cell)``; returns self.

        With ``jobs`` above one, in that many processes of one thread each; ``work`` must then be a function
        of a module.  FileError if the rows are frozen and one is missing.
        """
        todo = [dict(cell) for cell in cells if not self.done(cell)]
        if self.frozen and todo:
            missing = ", ".join(f"{k} {v}" for k, v in todo[0].items())
            raise FileError(f"{self.path} has no row of {missing}; the preset quick shows rows, standard measures them")
        bar = functools.partial(tqdm, total=len(todo), desc=self.path.name, disable=not todo)
        if jobs == 1:
            for cell in bar(todo):
                self.add({**cell, **work(**cell)})
            return self
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(jobs, context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                waiting = {pool.submit(work, **cell): cell for cell in todo}
                for future in bar(as_completed(waiting)):
                    self.add({**waiting[future], **future.result()})
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                for future, cell in waiting.items():  # what others had finished is not lost
                    if future.done() and not future.cancelled() and not future.exception() and not self.done(cell):
                        self.add({**cell, **future.result()})
                raise
        return self


def results(name: str, p: Preset, keys: Iterable[str]) -> Sweep:
    """The rows of :func:`results_file`; those of a preset that only shows another's are frozen."""
    return Sweep(results_file(name, p.name), keys, frozen=bool(p.rows_of))


def jobs(device_name: str) -> int:
    """How many processes a sweep may use: ``DODE_JOBS``, or one for each core; on a GPU one."""
    if device_name.startswith("cuda"):
        return 1
    value = os.environ.get("DODE_JOBS", "")
    if value and not (value.isdecimal() and int(value)):
        raise ValueError(f"DODE_JOBS is {value!r}; make it a number of processes, or unset it")
    return int(value) if value else len(os.sched_getaffinity(0))
