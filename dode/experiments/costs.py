"""Table 1: what a quality costs, when solvers are distilled and when networks are.

Cost is counted as the paper counts it: the time to distil and then draw 50,000 images, in units of the time in
which the same machine draws 50,000 images with ten steps of DDIM.
"""

from __future__ import annotations

import functools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dode import distillation, solvers, zoo
from dode.denoisers import NetworkDenoiser
from dode.experiments import network_distillation, quality
from dode.experiments.sweeps import ARITHMETIC, Preset, Sweep, autocast, home, provenance
from dode.experiments.sweeps import jobs as jobs_of
from dode.metrics import measure
from dode.sampling import initial_noise
from dode.utils.files import FileError
from dode.zoo import datasets

METHODS = ("progressive", "consistency")
ROUNDS = (32, 16, 8, 4, 2, 1)  # steps of progressive distillation's students
CALLS, DRAWN = 10, 50_000  # the unit: DDIM's steps, and images


def unit_seconds(p: Preset, checkpoint: str, device_name: str, images: int = 500) -> float:
    """Seconds in which this process would draw 50,000 images with ten steps of DDIM, from a timed ``images``.

    In the arithmetic that the preset samples with: bf16 only where the device has it.
    """
    denoiser = quality.load_autocast(p, checkpoint, device_name)
    tableau, seeds = quality.base_solver("ddim", denoiser, CALLS), range(images)
    next(iter(quality.draw(denoiser, tableau, range(16))))  # warm
    started = time.perf_counter()
    for batch in quality.draw(denoiser, tableau, seeds):
        batch.sum().item()  # waits for a GPU
    return (time.perf_counter() - started) * DRAWN / images


def training_images(p: Preset, checkpoint: str, device_name: str) -> Tensor:
    """What students learn from: the teacher's own, or where nothing may be fetched, 2,000 samples of the teacher."""
    if p.downloads:
        known = zoo.data_set_of(checkpoint)
        return known.load(known.whole)[0]
    denoiser = quality.load_autocast(p, checkpoint, device_name)
    count = min(2_000, p.images)
    samples = torch.cat(list(quality.draw(denoiser, quality.base_solver("ddim", denoiser, CALLS), range(count))))
    return datasets.to_uint8(samples).cpu()


def stops(p: Preset) -> list[int]:
    """Adam's steps after which consistency distillation is looked at; the last costs what progressive does."""
    most = p.student_steps * 5  # six rounds of five passes, against six passes a step
    return sorted({max(1, most * part // 100) for part in (5, 10, 25, 50, 100)})


def folder(p: Preset) -> Path:
    """Where the students of a preset live (not committed: 5 MB each)."""
    return home() / "_build" / "students" / p.name


def _students(
    p: Preset, checkpoint: str, device_name: str, method: str, where: Path, steps: int | None = None
) -> Iterator[network_distillation.Student]:
    """Train the students of one method as they are asked for; ``steps`` of Adam in place of the preset's."""
    images, few = training_images(p, checkpoint, device_name), dict(batch=48) if p.name == "smoke" else {}
    if method == "progressive":
        return network_distillation.progressive(checkpoint, images, where, steps or p.student_steps, device_name, **few)
    until = [steps] if steps else stops(p)
    return network_distillation.consistency(checkpoint, images, where, until, device_name, **few)


def _train(p: Preset, checkpoint: str, device_name: str, method: str) -> None:
    if not device_name.startswith("cuda"):
        torch.set_num_threads(1)
    done = Sweep(folder(p) / f"{checkpoint}-{method}.csv", ["stage"])
    for student in _students(p, checkpoint, device_name, method, folder(p)):
        stage = student.file.stem.rsplit("-", 1)[1]
        if not done.done({"stage": stage}):
            facts = dict(seconds=round(student.seconds, 2), evaluations=student.evaluations)
            done.add(dict(stage=stage, file=student.file.name, nfe=student.nfe, **facts, **provenance(device_name)))


def train_students(p: Preset, checkpoint: str, device_name: str) -> None:
    """Train all students that are not there yet: on a CPU both methods side by side, a thread each.

    One after the other on a GPU, or where ``DODE_JOBS`` is 1.
    """
    work = functools.partial(_train, p, checkpoint, device_name)
    if jobs_of(device_name) == 1:
        for method in METHODS:
            work(method)
        return
    quiet = {} if p.downloads else {"TQDM_DISABLE": "1"}  # two bars would tear the terminal of who builds the book
    os.environ.update(quiet)
    try:
        with ProcessPoolExecutor(len(METHODS), get_context("spawn")) as pool:
            list(pool.map(work, METHODS))
    finally:
        for name in quiet:
            del os.environ[name]


COST_KEYS = ("checkpoint", "weights", "method", "stage")
STUDENT_KEYS = (*COST_KEYS, "calls", "block")
# Where consistency's second call begins: the best of 0.3, 0.8, 1.5, 3, 6 on seeds that nothing else uses.
SECOND_LEVEL = 1.5


def cost_cells(p: Preset, checkpoint: str, solver_nfes: Mapping[str, Iterable[int]]) -> list[dict[str, Any]]:
    """What is paid for: fits of ``solver_nfes`` (stage: NFE), students (stage: their steps, or Adam's so far)."""
    stages = [(f"d-ode {solver}", nfe) for solver, nfes in solver_nfes.items() for nfe in nfes]
    stages += [("progressive", nfe) for nfe in ROUNDS] + [("consistency", stop) for stop in stops(p)]
    weights = zoo.digest(checkpoint)
    return [dict(checkpoint=checkpoint, weights=weights, method=method, stage=stage) for method, stage in stages]


@functools.cache
def time_of_an_evaluation(p: Preset, checkpoint: str, device_name: str, method: str) -> float:
    """How much longer an evaluation takes in training than in sampling, timed one after the other.

    A long training shares its machine with other work; counted evaluations do not, and this makes them time.
    """
    size, steps = (16, 2) if p.name == "smoke" else (500, 20)
    with tempfile.TemporaryDirectory() as scratch:
        student = next(_students(p, checkpoint, device_name, method, Path(scratch), steps))
    unit = unit_seconds(p, checkpoint, device_name, size)
    return student.seconds / student.evaluations / (unit / (CALLS * DRAWN))


def fit_cost(p: Preset, checkpoint: str, device_name: str, method: str, stage: int) -> tuple[float, int]:
    """Seconds and evaluations of one fit of "d-ode SOLVER" with ``stage`` calls, its teacher's included."""
    model, noise = quality.seeded(quality.load_cached(checkpoint, device_name, None), quality.fit_seeds(p.fit_images))
    started = time.perf_counter()
    found = distillation.d_ode(model, quality.base_solver(method.removeprefix("d-ode "), model, stage), noise).metadata
    return time.perf_counter() - started, found["network_evaluations"]


def cost_row(p: Preset, device_name: str, *, checkpoint: str, weights: str, method: str, stage: int) -> dict[str, Any]:
    """What one distillation takes: evaluations, and time in units; ``weights`` only names the cell.

    A fit is timed against the unit in one process.  A student's evaluations are counted while it trains and
    priced by :func:`time_of_an_evaluation`; ``seconds`` is what its training took, whatever ran beside it.
    """
    if method in METHODS:
        log = Sweep(folder(p) / f"{checkpoint}-{method}.csv", ["stage"]).select([{"stage": stage}])
        if not log:
            raise FileError(f"{folder(p)} has no cost of {method} {stage}; remove its students to train them again")
        seconds, evaluations = float(log[0]["seconds"]), int(log[0]["evaluations"])
        units = evaluations / (CALLS * DRAWN) * time_of_an_evaluation(p, checkpoint, device_name, method)
    else:
        unit = unit_seconds(p, checkpoint, device_name, 16 if p.name == "smoke" else 500)
        seconds, evaluations = fit_cost(p, checkpoint, device_name, method, stage)
        units = seconds / unit
    return dict(
        seconds=round(seconds, 2), evaluations=evaluations, units=f"{units:.5f}", preset=p.name,
        **provenance(device_name),
    )  # fmt: skip


def student_cells(p: Preset, checkpoint: str) -> list[dict[str, Any]]:
    """Each student in each block of seeds; a consistency student with one call and with two."""
    made = [("progressive", nfe, nfe) for nfe in ROUNDS]
    made += [("consistency", stop, calls) for stop in stops(p) for calls in (1, 2)]
    weights = zoo.digest(checkpoint)
    return [
        dict(checkpoint=checkpoint, weights=weights, method=method, stage=stage, calls=calls, block=block)
        for method, stage, calls in made
        for block in range(p.repeats)
    ]


def _draw_student(student: NetworkDenoiser, method: str, calls: int, seeds: range) -> Iterator[Tensor]:
    if method == "progressive":
        yield from quality.draw(student, solvers.ddim(network_distillation.progressive_grid(student, calls)), seeds)
        return
    for k in range(0, len(seeds), 250):
        noise, fresh = (
            initial_noise(student.shape, (shift + seed for seed in seeds[k : k + 250]), device=student.device)
            for shift in (0, 500_000_000)
        )
        yield network_distillation.consistency_sample(student, noise, [(SECOND_LEVEL, fresh)] * (calls - 1))


def student_row(
    p: Preset, device_name: str, *, checkpoint: str, weights: str, method: str, stage: int, calls: int, block: int
) -> dict[str, Any]:
    """The Fréchet distance of one student's samples on the block's held-out seeds."""
    file = folder(p) / f"{checkpoint}-{method}-{stage}.safetensors"
    student = quality.load_cached(str(file), device_name, autocast(p, device_name))
    features, reference = quality.data_moments(zoo.data_set_of(checkpoint).name, device_name)
    seeds = quality.held_out_seeds(p.images, block)
    found = measure(_draw_student(student, method, calls, seeds), features, reference)
    return dict(
        fd=f"{found['fd']:.5f}", n=found["n"], features=found["features"], seeds=f"{seeds.start}-{seeds.stop - 1}",
        network=ARITHMETIC[student.autocast], preset=p.name, **provenance(device_name),
    )  # fmt: skip


def measure_students(p: Preset, checkpoint: str, device_name: str, costs: Sweep, quality: Sweep, jobs: int) -> None:
    """Train the students that a row is wanted of and missing, then fill both sweeps; none where rows are frozen."""
    paid, wanted = cost_cells(p, checkpoint, {}), student_cells(p, checkpoint)
    if not (costs.frozen or (all(map(costs.done, paid)) and all(map(quality.done, wanted)))):
        train_students(p, checkpoint, device_name)
    costs.run(paid, functools.partial(cost_row, p, device_name))
    quality.run(wanted, functools.partial(student_row, p, device_name), jobs=jobs)
