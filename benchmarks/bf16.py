"""What bf16 in the network changes: FD of the same 5,000 seeds in float32 and under bf16 autocast.

    python benchmarks/bf16.py [--device cuda] [--checkpoint NAME ...] [--smoke]

Written to results/bf16.csv, which the Figure 4 page quotes, on a GPU to results/bf16.gpu.csv; rows that are there stay.
"""

from __future__ import annotations

import functools

import timing
import torch

import dode
from dode.experiments import base_solver, data_moments, distilled, draw, held_out_seeds, provenance
from dode.metrics import measure, rmse

NFE, IMAGES = 5, 5_000


def work(
    device: str, images: int, *, checkpoint: str, weights: str, solver: str, variant: str, nfe: int
) -> dict[str, object]:
    features, reference = data_moments(dode.zoo.data_set_of(checkpoint).name, device)
    seeds, samples, found = held_out_seeds(images), {}, {}
    exact = dode.load(checkpoint, device)
    tableau = base_solver(solver, exact, nfe)
    if variant == "d-ode":  # fitted in float32 for both, as the sweep does
        tableau = distilled(exact, tableau, min(100, images))
    for name, autocast in (("float32", None), ("bf16", torch.bfloat16)):
        model = dode.load(checkpoint, device, autocast=autocast)
        samples[name] = torch.cat(list(draw(model, tableau, seeds)))
        found[name] = measure(samples[name], features, reference)["fd"]
    facts = {f"fd_{k}": f"{v:.5f}" for k, v in found.items()}
    facts["rmse_between"] = f"{rmse(samples['float32'], samples['bf16']):.5f}"
    return facts | dict(n=images, seeds=f"{seeds.start}-{seeds.stop - 1}", **provenance(device))


def main() -> None:
    args = timing.options(__doc__ or "").parse_args()
    cells = [
        dict(checkpoint=name, weights=dode.zoo.digest(name), solver="ddim", variant=variant, nfe=NFE)
        for name in args.checkpoint
        for variant in ("plain", "d-ode")
    ]
    sweep = timing.Rows("bf16", list(cells[0]), args.device, args.smoke).sweep
    images = 8 if args.smoke else IMAGES
    found = sweep.run(cells, functools.partial(work, args.device, images)).select(cells)
    for row in found.to_dict("records"):
        print({k: row[k] for k in (*cells[0], "n", "fd_float32", "fd_bf16", "rmse_between") if k != "weights"})


if __name__ == "__main__":
    main()
