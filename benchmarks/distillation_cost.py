"""What distilling costs: seconds for each solver, and the time of ``d_ode`` over the bare evaluations in it.

    python benchmarks/distillation_cost.py [--device cuda] [--checkpoint NAME ...] [--smoke]

Fit and bare network calls of teacher and student run in turn in one process, on the same inputs and batch, several
times; the median ratio is printed and written to results/distillation_cost.csv, on a GPU to
results/distillation_cost.gpu.csv.  There all solvers are fitted, on the CPU those whose ratio *Start here* quotes.
"""

from __future__ import annotations

import statistics

import timing
import torch

import dode
from dode.distillation import d_ode, make_teacher
from dode.experiments import provenance

BATCH, STEPS, SCALE, ROUNDS = 100, 5, 10, 7
QUOTED = {"noise": ["ddim"], "data": ["heun"]}
ALL = ["ddim", "ipndm", "dpm_solver", "deis", "dpm_solver_pp", "unipc", "heun"]
KEYS = ["checkpoint", "solver", "batches", "device", "commit"]


def bare(model, table, guide, noise) -> None:
    """The network's forward passes of student and teacher at their levels: no scaling, no solver, nothing else."""
    conditions = model.conditioning(len(noise), noise.device)
    for sigma in (*table.sigmas_in, *guide.sigmas_in):
        model.network(noise, model.schedule.label(sigma).float().to(noise.device).expand(len(noise)), **conditions)


@torch.no_grad()
def cost(model, solver: str, batches: int, device: str, rounds: int, images: int) -> dict[str, object]:
    own = dict(basis=model.prediction) if solver in ("ddim", "heun") else {}
    table = dode.solvers.get(solver).make(model.grid(STEPS), **own)
    guide = make_teacher(table, scale=SCALE)
    noise = dode.initial_noise(model.shape, range(images), device=device)
    parts = noise.split(images // batches)
    times = timing.in_turn(
        {
            "fit": lambda: d_ode(model, table, noise, scale=SCALE, batch_size=images // batches),
            "bare": lambda: [bare(model, table, guide, part) for part in parts],
        },
        device,
        rounds,
    )
    ratios = [a / b for a, b in zip(times["fit"], times["bare"], strict=True)]
    return dict(
        ratio_median=f"{statistics.median(ratios):.3f}", ratio_min=f"{min(ratios):.3f}",
        ratio_max=f"{max(ratios):.3f}", rounds=rounds, images=images, evaluations=images * (table.nfe + guide.nfe),
        seconds=f"{statistics.median(times['fit']):.3f}",
    )  # fmt: skip


def main() -> None:
    args = timing.options(__doc__ or "").parse_args()
    rounds, images = (1, 4) if args.smoke else (ROUNDS, BATCH)
    chosen = ALL if timing.is_gpu(args.device) else ["ddim", "unipc"] if args.smoke else None
    rows = timing.Rows("distillation_cost", KEYS, args.device, args.smoke)
    for name in args.checkpoint:
        model = timing.load(name, args.device)
        for solver in chosen or QUOTED[model.prediction]:
            for batches in (1, 4):
                found = cost(model, solver, batches, args.device, rounds, images)
                row = dict(checkpoint=name, solver=solver, batches=batches) | found
                rows.add(row | dict(threads=torch.get_num_threads(), **provenance(args.device)))
                print(
                    f"{name} {solver} in {batches} batch(es): {row['seconds']} s; d_ode / bare network = "
                    f"{row['ratio_median']} ({row['ratio_min']} to {row['ratio_max']}, {rounds} rounds)",
                    flush=True,
                )


if __name__ == "__main__":
    main()
