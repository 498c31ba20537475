"""Table 1: what a quality costs, when solvers are distilled and when networks are.

Cost is counted as the paper counts it: the time to distil and then draw 50,000 images, in units of the time in
which the same machine draws 50,000 images with ten steps of DDIM.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from dode import distillation, solvers, zoo
from dode.denoisers import NetworkDenoiser
from dode.experiments import network_distillation
from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.run import Run, base_solver, draw, fit_seeds, held_out_seeds, load_cached, seeded
from dode.experiments.sweeps import Preset, home
from dode.metrics import measure
from dode.sampling import initial_noise
from dode.zoo import datasets

METHODS = ("progressive", "consistency")
ROUNDS = (32, 16, 8, 4, 2, 1)  # steps of progressive distillation's students
CALLS, DRAWN = 10, 50_000  # the unit: DDIM's steps, and images


def unit_seconds(run: Run, checkpoint: str) -> float:
    """Seconds in which this process would draw 50,000 images with ten steps of DDIM, from the time of few.

    In the arithmetic that the preset samples with: bf16 only where the device has it.
    """
    denoiser, images = run.fast(checkpoint), 16 if run.preset.name == "smoke" else 500
    tableau, seeds = base_solver("ddim", denoiser, CALLS), range(images)
    next(iter(draw(denoiser, tableau, range(16))))  # warm
    started = time.perf_counter()
    for batch in draw(denoiser, tableau, seeds):
        batch.sum().item()  # waits for a GPU
    return (time.perf_counter() - started) * DRAWN / images


def training_images(run: Run, checkpoint: str) -> Tensor:
    """What students learn from: the teacher's own, or where nothing may be fetched, 2,000 samples of the teacher."""
    if run.preset.downloads:
        known = zoo.data_set_of(checkpoint)
        return known.load(known.whole)[0]
    denoiser, count = run.fast(checkpoint), min(2_000, run.preset.images)
    samples = torch.cat(list(draw(denoiser, base_solver("ddim", denoiser, CALLS), range(count))))
    return datasets.to_uint8(samples).cpu()


def stops(p: Preset) -> list[int]:
    """Adam's steps after which consistency distillation is looked at; the last costs what progressive does."""
    most = p.student_steps * 5  # six rounds of five passes, against six passes a step
    return sorted({max(1, most * part // 100) for part in (5, 10, 25, 50, 100)})


def students(
    run: Run, checkpoint: str, method: str, where: Path, steps: int | None = None
) -> Iterator[network_distillation.Student]:
    """The students of one method, trained as they are asked for where ``where`` has them not.

    A training that was stopped goes on.  ``steps`` of Adam in place of the preset's.
    """
    p, images = run.preset, training_images(run, checkpoint)
    batch = 48 if p.name == "smoke" else 128
    if method == "progressive":
        each = steps or p.student_steps
        return network_distillation.progressive(checkpoint, images, where, each, run.device, batch=batch)
    until = [steps] if steps else stops(p)
    return network_distillation.consistency(checkpoint, images, where, until, run.device, batch=batch)


@functools.cache
def student(run: Run, checkpoint: str, method: str, stage: int) -> network_distillation.Student:
    """The student of a stage (its steps, or Adam's so far), with those before it; 5 MB each, so not committed."""
    found = students(run, checkpoint, method, home() / "_build" / "students" / run.preset.name)
    return next(one for one in found if one.file.stem.endswith(f"-{stage}"))


# Where consistency's second call begins: the best of 0.3, 0.8, 1.5, 3, 6 on seeds that nothing else uses.
SECOND_LEVEL = 1.5


def student_stages(p: Preset, checkpoint: str) -> list[tuple[str, int]]:
    """Each student: its method, and its steps or Adam's so far; none of a network that does not predict clean images.

    Distilling a network is written for EDM's preconditioning.
    """
    if load_cached(checkpoint, "cpu").prediction != "data":
        return []
    return [("progressive", nfe) for nfe in ROUNDS] + [("consistency", stop) for stop in stops(p)]


def cost_cells(p: Preset, checkpoint: str, solver_nfes: Mapping[str, Iterable[int]]) -> list[Cell]:
    """What is paid for: fits of ``solver_nfes`` (stage: NFE), and :func:`student_stages`."""
    stages = [(f"d-ode {solver}", nfe) for solver, nfes in solver_nfes.items() for nfe in nfes]
    stages += student_stages(p, checkpoint)
    return [cost.cell(dict(checkpoint=checkpoint, method=method, stage=stage)) for method, stage in stages]


@functools.cache
def time_of_an_evaluation(run: Run, checkpoint: str, method: str) -> float:
    """How much longer an evaluation takes in training than in sampling, timed one after the other.

    A long training shares its machine with other work; counted evaluations do not, and this makes them time.
    """
    steps = 2 if run.preset.name == "smoke" else 20
    with tempfile.TemporaryDirectory() as scratch:
        tried = next(students(run, checkpoint, method, Path(scratch), steps))
    return tried.seconds / tried.evaluations / (unit_seconds(run, checkpoint) / (CALLS * DRAWN))


def fit_cost(run: Run, checkpoint: str, method: str, stage: int) -> tuple[float, int]:
    """Seconds and evaluations of one fit of "d-ode SOLVER" with ``stage`` calls, its teacher's included."""
    model, noise = seeded(run.model(checkpoint), fit_seeds(run.preset.fit_images))
    started = time.perf_counter()
    found = distillation.d_ode(model, base_solver(method.removeprefix("d-ode "), model, stage), noise).metadata
    return time.perf_counter() - started, found["network_evaluations"]


@measurement(name="table_1_costs", gives=["evaluations", "units"], adds=["preset"])
def cost(run: Run, *, checkpoint: str, method: str, stage: int) -> dict[str, Value]:
    """What one distillation takes: evaluations, and time in units.

    A fit is timed against the unit in one process.  A student's evaluations are counted while it trains and
    priced by :func:`time_of_an_evaluation`; ``seconds`` is what its training took, whatever ran beside it.
    """
    if method in METHODS:
        made = student(run, checkpoint, method, stage)
        seconds, evaluations = made.seconds, made.evaluations
        units = evaluations / (CALLS * DRAWN) * time_of_an_evaluation(run, checkpoint, method)
    else:
        unit = unit_seconds(run, checkpoint)
        seconds, evaluations = fit_cost(run, checkpoint, method, stage)
        units = seconds / unit
    return dict(seconds=seconds, evaluations=evaluations, units=units)


def student_cells(p: Preset, checkpoint: str) -> list[Cell]:
    """Each student in each block of seeds; a consistency student with one call and with two."""
    cells = list[Cell]()
    for method, stage in student_stages(p, checkpoint):
        calls = [stage] if method == "progressive" else [1, 2]
        which = dict(checkpoint=checkpoint, method=method, stage=stage, calls=calls)
        cells += student_fd.cells(**which, block=range(p.repeats))
    return cells


def draw_student(model: NetworkDenoiser, method: str, calls: int, seeds: range) -> Iterator[Tensor]:
    """Samples of a student's network, batch by batch, with ``calls`` evaluations each."""
    if method == "progressive":
        yield from draw(model, solvers.ddim(network_distillation.progressive_grid(model, calls)), seeds)
        return
    for k in range(0, len(seeds), 250):
        noise, fresh = (
            initial_noise(model.shape, (shift + seed for seed in seeds[k : k + 250]), device=model.device)
            for shift in (0, 500_000_000)
        )
        yield network_distillation.consistency_sample(model, noise, [(SECOND_LEVEL, fresh)] * (calls - 1))


@measurement(name="table_1", gives=["fd"])
def student_fd(run: Run, *, checkpoint: str, method: str, stage: int, calls: int, block: int) -> dict[str, Value]:
    """The Fréchet distance of one student's samples on the block's held-out seeds."""
    file = student(run, checkpoint, method, stage).file
    model, (features, reference) = run.fast(str(file)), run.evaluator(checkpoint)
    seeds = held_out_seeds(run.preset.images, block)
    found = measure(draw_student(model, method, calls, seeds), features, reference)
    return dict(fd=found["fd"], n=found["n"], features=found["features"], seeds=seeds, network=run.arithmetic)
