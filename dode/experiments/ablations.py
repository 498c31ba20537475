"""The D-ODE paper's ablations as lists of variants (see :func:`dode.experiments.variant_of`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dode import zoo
from dode.experiments.quality import base_solver, distilled, load_cached
from dode.experiments.sweeps import Preset, provenance

SCALES, IMAGES = (2, 5, 10, 20, 50), (5, 10, 25, 50, 100, 200, 500)  # C and |B| of the paper's supplement
EQUATIONS, ALIGNS = (10, 9, 8), ("time", "index")
USUAL = dict(scale=10, images=100, equation=10, align="time", teacher="ddim")  # what "d-ode" alone means


def spec(**options: Any) -> str:
    """The variant that differs from the usual fit in ``options``: what is usual is left out, so cells are shared."""
    unusual = {k: v for k, v in options.items() if USUAL.get(k) != v}
    return "d-ode" + ":" * bool(unusual) + ",".join(f"{k}={v}" for k, v in unusual.items())


def other_model(checkpoint: str) -> str:
    """The network of the same data set and the other prediction."""
    known, kind = checkpoint.rsplit("-", 1)
    return f"{known}-{'data' if kind == 'noise' else 'noise'}"


def axes(checkpoint: str, scales: Iterable[int] = SCALES, images: Iterable[int] = IMAGES) -> dict[str, dict[str, str]]:
    """Each ablation of D-DDIM: what a page calls its values, and their variants, the usual one among them."""
    first = ("noise", "none") if checkpoint.endswith("noise") else ("none", "noise")
    return {
        "scale C": {str(c): spec(scale=c) for c in scales},
        "batch |B|": {str(b): spec(images=b) for b in images},
        "equation": {f"({e})": spec(equation=e) for e in EQUATIONS},
        "targets": {a: spec(align=a) for a in ALIGNS},
        "first step": {first[0]: "d-ode", first[1]: spec(first_step=first[1])},
        "fitted on": {"itself": "d-ode", "other": spec(model=other_model(checkpoint))},
    }


SPREAD_KEYS = ("checkpoint", "weights", "solver", "nfe", "images", "batch")


def spread_cells(checkpoints: Iterable[str], nfe: int, images: Iterable[int], batches: int) -> list[dict[str, Any]]:
    """Fits of D-DDIM on ``batches`` disjoint batches of each size."""
    return [
        dict(checkpoint=name, weights=zoo.digest(name), solver="ddim", nfe=nfe, images=size, batch=batch)
        for name in checkpoints
        for size in images
        for batch in range(batches)
    ]


def spread_row(
    p: Preset, device_name: str, *, checkpoint: str, weights: str, solver: str, nfe: int, images: int, batch: int
) -> dict[str, Any]:
    """The lambdas of one fit; ``weights`` only names the cell."""
    model = load_cached(checkpoint, device_name, None)
    found = distilled(model, base_solver(solver, model, nfe), images, batch).metadata
    return dict(
        lambdas=" ".join(f"{v:.5f}" for v in found["lambdas"]), seeds=f"{found['seeds'][0]}-{found['seeds'][-1]}",
        preset=p.name, network="float32", **provenance(device_name),
    )  # fmt: skip
