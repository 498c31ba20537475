"""Presets, where results are kept, and the provenance of a number."""

from __future__ import annotations

import functools
import os
import platform
import re
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dode import zoo
from dode.utils.files import FileError, names_a_file, nearest, present
from dode.zoo.datasets import DATA_SETS, data_set

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Preset:
    """How much is run.  The same notebook serves all of them; "paper" is for those of :data:`.plans.ROWS`."""

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
    blocks_to: int = 1_000  # NFEs above this have one block of seeds
    rows_of: str = ""  # the preset whose committed rows and solvers its pages show; none: its own, measured if missing

    @property
    def brief(self) -> bool:
        """Whether large NFEs have one block of seeds."""
        return self.blocks_to < 1_000

    @property
    def once(self) -> Preset:
        """The preset with one block of seeds for all, if it is :attr:`brief`."""
        return replace(self, repeats=1) if self.brief else self

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
        return replace(self.live, name=self.name, rows_of=self.rows_of)


DDIM_NFES, HEUN_NFES, ZOO_NFES = (2, 5, 10, 25, 50), (3, 5, 9, 25, 49), (3, 5, 8, 10, 20)
_SMOKE = Preset(
    name="smoke", images=64, repeats=1, fit_images=16, reference_steps=50, path_images=16, nfes=(2, 5),
    heun_nfes=(3, 5), bf16=False, zoo_images=4, zoo_nfes=(3, 5), student_steps=1, downloads=False, learn_images=4,
    trajectories=32, reference_calls=10, fit_steps=2,
)  # fmt: skip
_STANDARD = Preset(
    name="standard", images=5_000, repeats=3, fit_images=100, reference_steps=1000, path_images=100, nfes=DDIM_NFES,
    heun_nfes=HEUN_NFES, bf16=True, zoo_images=128, zoo_nfes=ZOO_NFES, student_steps=800, downloads=True,
    learn_images=128, trajectories=1_600, reference_calls=60,
)  # fmt: skip
_FULL = replace(
    _STANDARD, name="full", images=50_000, path_images=1000, nfes=(*DDIM_NFES, 100, 250), bf16=False,
    heun_nfes=(*HEUN_NFES, 99, 249), zoo_images=1000, student_steps=20_000, learn_images=512, trajectories=20_000,
    reference_calls=100,
)  # fmt: skip
LIVE = replace(
    _SMOKE, name="live", images=200, fit_images=32, reference_steps=100, zoo_images=16, learn_images=16,
    trajectories=160, reference_calls=20, fit_steps=10,
)  # fmt: skip
_QUICK = replace(_STANDARD, name="quick", rows_of="standard")  # shows rows; computes with LIVE's sizes
# Figures 3 and 4 of Kim et al. (2024) from 2 calls on, and from three blocks of seeds.
_PAPER = replace(_FULL, name="paper")
PRESETS = {p.name: p for p in (_SMOKE, _QUICK, _STANDARD, _FULL, _PAPER)}


def preset(name: str) -> Preset:
    """The preset called ``name``; a ValueError names the nearest ones."""
    if name not in PRESETS:
        raise ValueError(f"no preset named {name!r}; the nearest: {nearest(name, PRESETS)}")
    return PRESETS[name]


def device(name: str = "auto") -> str:
    """ "auto" is CUDA where there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def checkpoints(name: str) -> list[str]:
    """ "all" is every shipped checkpoint, a data set's name its shipped ones; any other name, or a file, is itself.

    ValueError for an unknown name, with the nearest ones; FileError for one whose files are not here.
    """
    if names_a_file(name):
        return [str(present(name))]
    found = [n for n in zoo.NAMES if name == "all" or name == data_set(n).name]
    if not found and name in DATA_SETS:
        raise FileError(f"no checkpoint of {name} is here; train them with dode train {name} --out runs")
    if not found:
        zoo.checkpoint_file(name)
    return found or [name]


def images_of(p: Preset, checkpoint: str) -> int:
    """The samples behind each FD of a network: a twenty-fifth where samples are measured (galaxies).

    A morphology takes a fifth of a second.
    """
    card = zoo.CATALOGUE.get(checkpoint)
    return max(3, p.images // 25) if card and card.images.to_values else p.images


def home() -> Path:
    """The project's root: the nearest folder upwards with a ``_toc.yml``, else the one that holds this module."""
    here = Path.cwd()
    return next((p for p in (here, *here.parents) if (p / "_toc.yml").is_file()), Path(__file__).parents[2])


@functools.cache
def _commit() -> str:
    if value := os.environ.get("DODE_COMMIT"):  # a copy of the tree without its history
        return value
    git = functools.partial(subprocess.check_output, cwd=home(), text=True, stderr=subprocess.DEVNULL)
    try:
        head, changed = git(["git", "rev-parse", "--short=10", "HEAD"]), git(["git", "status", "--porcelain", "dode"])
        return head.strip() + "+" * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@functools.cache
def _processor() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.*)", info.read_text() if info.is_file() else "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def provenance(device_name: str) -> dict[str, Any]:
    """Where and with what a number was made; a "+" after the commit marks uncommitted changes."""
    cuda = device_name.startswith("cuda")
    what = torch.cuda.get_device_name(device_name) if cuda else f"{_processor()}, {os.cpu_count()} cores"
    return dict(device=what, torch=torch.__version__, python=platform.python_version(), commit=_commit())


def origin(rows: pd.DataFrame) -> dict[str, str]:
    """Where the numbers of a page come from: the distinct values of each column of provenance in ``rows``."""
    columns = ("preset", "n", "seeds", "weights", "network", "device", "torch", "python", "commit")
    found = {c: rows[c].dropna().unique() for c in columns if c in rows}
    return {c: ", ".join(map(str, values)) for c, values in found.items() if len(values)}


def jobs(device_name: str) -> int:
    """How many processes a sweep may use: ``DODE_JOBS``, or one for each core; on a GPU one."""
    if device_name.startswith("cuda"):
        return 1
    value = os.environ.get("DODE_JOBS", "")
    if value and not (value.isdecimal() and int(value)):
        raise ValueError(f"DODE_JOBS is {value!r}; make it a number of processes, or unset it")
    return int(value) if value else len(os.sched_getaffinity(0))
