"""Whether AMED's training is steady: the error on noise held back as it goes on, as released and by Algorithm 1.

    python benchmarks/amed_stability.py [--nfe 5] [--seeds 0 1]

Two runs of each: 400 noises in batches of 16, looked at after every batch, and 10,000 in the usual batches (128 as
released, 32), looked at some 25 times.  The RMSE is that of final images to those of 40 calls of UniP-3 on 128 noises,
by the network in float32; training is in bf16 where the device has it, as fits are.  Algorithm 1 is that of DLMS; it
compares features of final images, and what is looked at is its moving average: so was AMED before it was as released.
Written to results/amed_stability.csv.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from dode import distillation, schedules, solvers, zoo
from dode.denoisers import Denoiser
from dode.distillation import AMED, DISTILLERS, Designer, Problem, train
from dode.distillation.designer import feature_size
from dode.distillation.teachers import Examples
from dode.experiments import Sweep, fits, home, preset, provenance
from dode.experiments.run import Run, load_cached
from dode.experiments.sweeps import ARITHMETIC, autocast
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

    @torch.no_grad()
    def check(self, denoiser: Denoiser, table: Any) -> float:
        noise, truth = held(str(denoiser.device))
        missed = sample(load_cached(NAME, str(denoiser.device)), table, noise) - truth
        self.trace.append(float(missed.double().square().mean().sqrt()))
        return 0.0  # none is better than another: the last is what counts


@dataclass
class Watched(Problem):
    """A problem whose checks are noted in ``trace``."""

    trace: list[float] = field(default_factory=list)

    def examples(self, held_back: float, bias: float = 0.0) -> Noted:
        found = Noted.make(self.denoiser, self.noise, self.guide, self.residual, held_back, bias)
        assert isinstance(found, Noted)
        return replace(found, trace=self.trace)


def runs(p: Any, method: str, nfe: int, seed: int, trajectories: int, batch: int, device: str) -> list[float]:
    """The RMSE at the start and at each check."""
    model = load_cached(NAME, device)
    table, make = fits.initial_solver("amed", NAME, device, nfe)
    noise = initial_noise(model.shape, range(4), device=model.device)
    problem = Watched(model, table, noise, make, autocast=Run(p, device).fast(NAME), method="amed")
    if method == "released":
        DISTILLERS["amed"].fit(problem, trajectories=trajectories, batch=batch, seed=seed)
    else:
        problem.residual = fits.loss(device, "all", NAME)
        fast = replace(problem, denoiser=problem.autocast)
        levels = schedules.karras((nfe + 1) // 2, model.sigma_min, model.sigma_max)
        designer = Designer(len(levels) - 1, 2, feature_size(model))
        start = AMED(solvers.ddim(levels), designer, dict(afs=bool(nfe % 2)))
        checks = min(25, trajectories // batch)
        train(fast, start, rate=5e-3, trajectories=trajectories, batch_size=batch, checks=checks, seed=seed)
    return problem.trace


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--nfe", type=int, nargs="+", default=[5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--methods", nargs="+", default=["released", "algorithm 1"])
    parser.add_argument("--trajectories", type=int, nargs="+", default=[400, 10_000])
    args = parser.parse_args()
    p, weights = preset(PRESET), zoo.digest(NAME)
    network = ARITHMETIC[autocast(p, args.device)]
    sweep = Sweep(home() / "results" / "amed_stability.csv", KEYS)
    for nfe in args.nfe:
        for trajectories in args.trajectories:
            for method in args.methods:
                for seed in args.seeds:
                    batch = 16 if trajectories == 400 else 128 if method == "released" else 32
                    began = time.perf_counter()
                    trace = runs(p, method, nfe, seed, trajectories, batch, args.device)
                    print(
                        f"{method}, NFE {nfe}, seed {seed}, {trajectories}: {time.perf_counter() - began:.0f} s",
                        flush=True,
                    )
                    rounds = -(-trajectories // batch) if method == "released" else trajectories // batch
                    every = max(1, rounds // 20) if method == "released" else max(1, rounds // min(25, rounds))
                    for k, rmse in enumerate(trace):
                        images = batch * min(k * every, rounds)
                        print(f"  {images}: {rmse:.4f}", flush=True)
                        sweep.add(
                            dict(
                                checkpoint=NAME, weights=weights, method=method, nfe=nfe, seed=seed,
                                trajectories=trajectories, batch=batch, images=images, rmse=f"{rmse:.5f}", n=len(HELD),
                                reference_calls=40, network=network, **provenance(args.device),
                            ),
                            replace=True,
                        )  # fmt: skip


if __name__ == "__main__":
    main()
