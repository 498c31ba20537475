"""What distilling costs beyond the network: time of ``d_ode`` over the bare evaluations of teacher and student.

    python benchmarks/distillation_cost.py

Both sides run in turn in one process, on the same inputs and batch, several times; the median ratio is printed and
written to results/distillation_cost.csv.
"""

from __future__ import annotations

import statistics
import time

import torch

import dode
from dode.distillation import d_ode, make_teacher
from dode.experiments import Sweep, home, provenance

BATCH, STEPS, SCALE, ROUNDS = 100, 5, 10, 7


def seconds(work) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def bare(model, table, guide, noise) -> None:
    """The network's forward passes of student and teacher at their levels: no scaling, no solver, nothing else."""
    for sigma in (*table.sigmas_in, *guide.sigmas_in):
        model.network(noise, model.schedule.label(sigma).float().expand(len(noise)))


def main() -> None:
    sweep = Sweep(home() / "results" / "distillation_cost.csv", ["checkpoint", "solver", "batches", "commit"])
    for name, solver in (("fashion-mnist-noise", "ddim"), ("fashion-mnist-data", "heun")):
        model = dode.load(name)
        prediction = "noise" if model.prediction == "noise" else "data"
        table = getattr(dode.solvers, solver)(model.grid(STEPS), basis=prediction)
        guide = make_teacher(table, scale=SCALE)
        noise = dode.initial_noise(model.shape, range(BATCH))
        for batches in (1, 4):
            inputs = noise.split(BATCH // batches)

            def fit(model=model, table=table, noise=noise, batches=batches) -> None:
                d_ode(model, table, noise, scale=SCALE, batch_size=BATCH // batches)

            def network(model=model, table=table, guide=guide, inputs=inputs) -> None:
                for part in inputs:
                    bare(model, table, guide, part)

            fit(), network()  # warm up
            ratios = [seconds(fit) / seconds(network) for _ in range(ROUNDS)]
            row = dict(
                checkpoint=name, solver=solver, batches=batches, ratio_median=f"{statistics.median(ratios):.3f}",
                ratio_min=f"{min(ratios):.3f}", ratio_max=f"{max(ratios):.3f}", rounds=ROUNDS, images=BATCH,
                evaluations=BATCH * (table.nfe + guide.nfe), threads=torch.get_num_threads(), **provenance("cpu"),
            )  # fmt: skip
            if not sweep.done(row):
                sweep.add(row)
            print(f"{name} {solver} in {batches} batch(es): d_ode / bare network = {row['ratio_median']} "
                  f"({row['ratio_min']} to {row['ratio_max']}, {ROUNDS} rounds)")  # fmt: skip


if __name__ == "__main__":
    main()
