"""What bf16 in the network changes: FD of the same 5,000 seeds in float32 and under bf16 autocast.

    python benchmarks/bf16.py

Written to results/bf16.csv; the Figure 4 page quotes it.
"""

from __future__ import annotations

import torch

import dode
from dode.experiments import Sweep, base_solver, distilled, draw, fashion_reference, held_out_seeds, home, provenance
from dode.metrics import measure, rmse

NFE, IMAGES = 5, 5_000


def main() -> None:
    features, reference = fashion_reference()
    seeds = held_out_seeds(IMAGES)

    def work(checkpoint: str, weights: str, solver: str, variant: str, nfe: int) -> dict[str, object]:
        images, found = {}, {}
        exact = dode.load(checkpoint)
        tableau = base_solver(solver, exact, nfe)
        if variant == "d-ode":  # fitted in float32 for both, as the sweep does
            tableau = distilled(exact, tableau, 100)
        for name, autocast in (("float32", None), ("bf16", torch.bfloat16)):
            model = dode.load(checkpoint, autocast=autocast)
            images[name] = torch.cat(list(draw(model, tableau, seeds)))
            found[name] = measure(images[name], features, reference)["fd"]
        facts = {f"fd_{k}": f"{v:.5f}" for k, v in found.items()}
        facts["rmse_between"] = f"{rmse(images['float32'], images['bf16']):.5f}"
        return facts | dict(n=IMAGES, seeds=f"{seeds.start}-{seeds.stop - 1}", **provenance("cpu"))

    cells = [
        dict(checkpoint=name, weights=dode.zoo.digest(name), solver="ddim", variant=variant, nfe=NFE)
        for name in dode.zoo.NAMES
        for variant in ("plain", "d-ode")
    ]
    for row in Sweep(home() / "results" / "bf16.csv", list(cells[0])).run(cells, work).select(cells):
        print(
            {
                k: row[k]
                for k in ("checkpoint", "solver", "variant", "nfe", "n", "fd_float32", "fd_bf16", "rmse_between")
            }
        )


if __name__ == "__main__":
    main()
