"""Table 1: what a quality costs, when solvers are distilled and when networks are.

Cost is counted as the paper counts it: the time to distil and then draw 50,000 images, in units of the time in
which the same machine draws 50,000 images with ten steps of DDIM.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from dode import baselines, data
from dode.experiments.quality import base_solver, draw, load_cached
from dode.experiments.sweeps import Preset, Sweep, home, provenance

METHODS = ("progressive", "consistency")
CALLS, DRAWN = 10, 50_000  # the unit: DDIM's steps, and images


def unit_seconds(checkpoint: str, device_name: str, autocast: torch.dtype | None, images: int = 500) -> float:
    """Seconds in which this process would draw 50,000 images with ten steps of DDIM, from a timed ``images``."""
    denoiser = load_cached(checkpoint, device_name, autocast)
    tableau, seeds = base_solver("ddim", denoiser, CALLS), range(images)
    next(iter(draw(denoiser, tableau, range(16))))  # warm
    started = time.perf_counter()
    for batch in draw(denoiser, tableau, seeds):
        batch.sum().item()  # waits for a GPU
    return (time.perf_counter() - started) * DRAWN / images


def training_images(p: Preset, checkpoint: str, device_name: str) -> Tensor:
    """What the students learn from: Fashion-MNIST, or where nothing may be fetched, 2,000 samples of the teacher."""
    if p.downloads:
        return data.fashion_mnist("train")[0]
    denoiser = load_cached(checkpoint, device_name, torch.bfloat16)
    count = min(2_000, p.images)
    return torch.cat(list(draw(denoiser, base_solver("ddim", denoiser, CALLS), range(count)))).cpu()


def stops(p: Preset) -> list[int]:
    """Adam's steps after which consistency distillation is looked at; the last costs what progressive does."""
    most = p.student_steps * 5  # six rounds of five passes, against six passes a step
    return sorted({max(1, most * part // 100) for part in (5, 10, 25, 50, 100)})


def folder(p: Preset) -> Path:
    """Where the students of a preset live (not committed: 5 MB each)."""
    return home() / "_build" / "students" / p.name


def _train(p: Preset, checkpoint: str, device_name: str, method: str) -> None:
    """Train one method's students, and note beside each what the unit took at that time."""
    if not device_name.startswith("cuda"):
        torch.set_num_threads(1)
    images = training_images(p, checkpoint, device_name)
    done = Sweep(folder(p) / f"{checkpoint}-{method}.csv", ["stage"])
    students: Iterator[baselines.Student]
    if method == "progressive":
        students = baselines.progressive(checkpoint, images, folder(p), p.student_steps, device_name)
    else:
        students = baselines.consistency(checkpoint, images, folder(p), stops(p), device_name)
    for student in students:
        stage = student.file.stem.rsplit("-", 1)[1]
        if not done.done({"stage": stage}):
            unit = unit_seconds(checkpoint, device_name, torch.bfloat16, 16 if p.name == "smoke" else 500)
            done.add(dict(
                stage=stage, file=student.file.name, nfe=student.nfe, seconds=round(student.seconds, 2),
                evaluations=student.evaluations, unit_seconds=round(unit, 2), **provenance(device_name),
            ))  # fmt: skip


def train_students(p: Preset, checkpoint: str, device_name: str) -> None:
    """Train all students that are not there yet: on a CPU both methods side by side, a thread each."""
    work = functools.partial(_train, p, checkpoint, device_name)
    if device_name.startswith("cuda"):
        for method in METHODS:
            work(method)
        return
    with ProcessPoolExecutor(len(METHODS), get_context("spawn")) as pool:
        list(pool.map(work, METHODS))
