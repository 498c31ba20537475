"""Whether AMED's training is steady: the error on noise held back as it goes on, as released and by Algorithm 1.

    python benchmarks/amed_stability.py [--nfe 5] [--seeds 0 1]

Two runs of each: 400 noises in batches of 16, looked at after every batch, and 10,000 in the usual batches (128 as
released, 32), looked at some 25 times.  The RMSE is that of final images to those of 40 calls of UniP-3 on 128 noises,
by the network in float32; training is in bf16 where the device has it, as fits are.  Algorithm 1 is that of DLMS; it
compares features of final images, and what is looked at is its moving average: so was AMED before it was as released.
A row "teacher" is of the released training's own, Heun's method.  Written to results/amed_stability.csv.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

from dode import distillation, schedules, solvers, zoo
from dode.denoisers import Denoiser
from dode.distillation import AMED, DISTILLERS, Problem, train
from dode.distillation.amed import vp_time
from dode.distillation.designer import Designer, feature_size
from dode.distillation.teachers import Examples
from dode.experiments import Sweep, fits, home, preset, provenance
from dode.experiments.run import Run, load_cached
from dode.sampling import initial_noise, sample

NAME, HELD, PRESET = "fashion-mnist-data", range(10_000, 10_128), "standard"
KEYS = ["checkpoint", "weights", "method", "nfe", "seed", "trajectories", "batch", "images"]


@cache
def held(device: str) -> tuple[Tensor, Tensor]:
    """Noise that no training sees, and the teacher's images from it."""
    model = load_cached(NAME, device)
    noise = initial_noise(model.shape, HELD, device=model.device)
    with torch.no_grad():
        return noise, sample(model, distillation.default_teacher(model), noise)


@dataclass(frozen=True)
class Noted(Examples):
    """Notes the RMSE of each solver that it checks."""

    trace: list[float] = field(default_factory=list)

    def check(self, denoiser: Denoiser, table: Any) -> float:
        self.trace.append(error(table, str(denoiser.device)))
        return 0.0  # none is better than another: the last is what counts


@dataclass
class Watched(Problem):
    """A problem whose checks are noted in ``trace``."""

    trace: list[float] = field(default_factory=list)

    def examples(self, held_back: float, bias: float = 0.0) -> Noted:
        found = Noted.make(self.denoiser, self.noise, self.guide, self.residual, held_back, bias)
        assert isinstance(found, Noted)
        return replace(found, trace=self.trace)


def batch_of(method: str, trajectories: int) -> int:
    """Noises at a time."""
    return 16 if trajectories == 400 else {"released": 128, "algorithm 1": 32, "teacher": 0}[method]


@torch.no_grad()
def error(table: Any, device: str) -> float:
    """RMSE of the final images, in float32."""
    noise, truth = held(device)
    return float((sample(load_cached(NAME, device), table, noise) - truth).double().square().mean().sqrt())


def runs(method: str, nfe: int, seed: int, trajectories: int, batch: int, device: str) -> dict[int, float]:
    """The RMSE by how many noises were seen, at the start and at each check."""
    model, steps = load_cached(NAME, device), (nfe + 1) // 2
    if method == "teacher":
        return {0: error(solvers.heun(vp_time(2 * steps, model.sigma_min, model.sigma_max)), device)}
    run, noise = Run(preset(PRESET), device), initial_noise(model.shape, range(4), device=model.device)
    table, make = fits.initial_solver(run, NAME, "amed", nfe)
    problem, rounds = Watched(run.fast(NAME), table, noise, make, method="amed"), math.ceil(trajectories / batch)
    if method == "released":
        checks = 20
        DISTILLERS["amed"].fit(problem, trajectories=trajectories, batch=batch, seed=seed)
    else:
        rounds = trajectories // batch
        checks, problem.residual = min(25, rounds), fits.loss(model)
        levels = schedules.karras(steps, model.sigma_min, model.sigma_max)
        start = AMED(solvers.ddim(levels), Designer(steps, 2, feature_size(model)), dict(afs=bool(nfe % 2)))
        train(problem, start, rate=5e-3, trajectories=trajectories, batch_size=batch, checks=checks, seed=seed)
    every = max(1, rounds // checks)
    return {min(batch, trajectories) * min(k * every, rounds): rmse for k, rmse in enumerate(problem.trace)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", default=["released", "algorithm 1"])
    parser.add_argument("--trajectories", type=int, nargs="+", default=[400, 10_000])
    args = parser.parse_args()
    sweep = Sweep(home() / "results" / "amed_stability.csv", KEYS)
    facts = dict(n=len(HELD), reference_calls=40, network=Run(preset(PRESET), args.device).arithmetic)
    cells = product(args.nfe, args.trajectories, args.methods, args.seeds)
    for nfe, trajectories, method, seed in [*((nfe, 0, "teacher", 0) for nfe in args.nfe), *cells]:
        began, batch = time.perf_counter(), batch_of(method, trajectories)
        trace = runs(method, nfe, seed, trajectories, batch, args.device)
        print(f"{method}, NFE {nfe}, seed {seed}, {trajectories}: {time.perf_counter() - began:.0f} s", flush=True)
        for images, rmse in trace.items():
            print(f"  {images}: {rmse:.4f}", flush=True)
            row = dict(
                checkpoint=NAME, weights=zoo.digest(NAME), method=method, nfe=nfe, seed=seed, batch=batch,
                trajectories=trajectories, images=images, rmse=f"{rmse:.5f}", **facts, **provenance(args.device),
            )  # fmt: skip
            sweep.add(row, replace=True)


if __name__ == "__main__":
    main()
