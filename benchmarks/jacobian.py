"""One column of a Jacobian two ways: a second forward pass of the network, or forward-mode differentiation.

    python benchmarks/jacobian.py [--threads 1] [--batch 100]

``dode.distillation.gauss_newton`` takes differences: a column costs one more walk.  Forward mode
(``torch.func.jvp``) carries a tangent along instead and has no error of a difference.
Here both are of the shipped networks alone, along one random
direction in image and level: the time of each over that of a bare forward pass, in turn in one process, and how far
the difference (with the step that the fit takes) is from the tangent.

The networks lie in memory channels last, where torch's group norm has no forward-mode derivative (attention has one).
There jvp runs on a copy with contiguous weights; the row says so, and has the ratio to that copy's forward pass too.
Written to results/jacobian.csv.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import jvp

import dode
from dode.denoisers import NetworkDenoiser
from dode.distillation.gauss_newton import DIFFERENCE
from dode.experiments import Sweep, home, provenance

LEVEL, ROUNDS = 1.0, 31  # sigma: the middle of the way down


def seconds(run: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    run()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def contiguous(model: NetworkDenoiser) -> NetworkDenoiser:
    """A copy whose weights lie in torch's usual order."""
    other = copy.copy(model)
    other.network = copy.deepcopy(model.network).to(memory_format=torch.contiguous_format)  # type: ignore[union-attr]
    return other


@torch.no_grad()
def compare(name: str, device: str, batch: int, rounds: int) -> dict[str, object]:
    shipped = dode.load(name, device=device)
    noise = dode.initial_noise(shipped.shape, range(batch), device=device)
    x = (LEVEL**2 + 0.25) ** 0.5 * noise  # about as spread as a state at that level
    turn = dode.initial_noise(shipped.shape, range(batch, 2 * batch), device=device)
    sigma, along = torch.full((batch,), LEVEL, device=device), torch.ones(batch, device=device)

    def tangent(model: NetworkDenoiser) -> Tensor:
        return jvp(lambda a, b: model(a, b), (x, sigma), (turn, along))[1]

    try:
        tangent(shipped)
        model, layout = shipped, "as shipped"
    except RuntimeError as error:
        if "view size" not in str(error):
            raise
        model, layout = contiguous(shipped), "contiguous"
    runs = (lambda: tangent(model), lambda: shipped(x, sigma), lambda: model(x, sigma))
    exact, here, _ = (run() for run in runs)  # and warm
    error = (shipped(x + DIFFERENCE * turn, sigma + DIFFERENCE * along) - here) / DIFFERENCE - exact
    times = list(zip(*([seconds(run, device) for run in runs] for _ in range(rounds)), strict=True))
    forward_mode, forward, same = map(statistics.median, times)
    each = [a / b for a, b in zip(*times[:2], strict=True)]
    return dict(
        ratio=f"{forward_mode / forward:.3f}", ratio_min=f"{min(each):.3f}", ratio_max=f"{max(each):.3f}",
        ratio_same_layout=f"{forward_mode / same:.3f}", layout=layout,
        difference_error=f"{float(error.norm() / exact.norm()):.5f}", rounds=rounds,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sweep = Sweep(home() / "results" / "jacobian.csv", ["checkpoint", "batch", "threads", "device", "commit"])
    for name in dode.zoo.NAMES:
        cell = dict(checkpoint=name, batch=args.batch, threads=args.threads)
        row = cell | compare(name, args.device, args.batch, args.rounds) | provenance(args.device)
        sweep.add(row, replace=True)  # measured again
        print(
            f"{name}: jvp / forward = {row['ratio']} ({row['ratio_min']} to {row['ratio_max']}, {args.rounds} rounds; "
            f"{row['ratio_same_layout']} in one layout, {row['layout']}); a difference is off by "
            f"{row['difference_error']} of the tangent"
        )


if __name__ == "__main__":
    main()
