"""The loop around a network: its share of the time, its memory, and what bf16 and torch.compile add to the images.

    python benchmarks/network_share.py [--device cuda] [--checkpoint NAME ...] [--smoke]

Three measures, one line each in results/loop_network.csv, on a GPU in results/loop_network.gpu.csv:

- network share: the part of ``dode.sample``'s time that is spent inside the shipped networks, batch 64, and the time of
  their bare forward passes over the time of the whole.  Each pass is waited for; ``throughput.py`` waits for none.
- peak memory: of DDIM with 100 and with 1000 steps on 64 x 3 x 32 x 32, each in a process of its own.
- RMSE to float32: of the final images (pixels in -1..1) under bf16 autocast and under torch.compile.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import timing
import torch
from torch import nn

import dode
from dode import solvers
from dode.denoisers import NoisePrediction
from dode.experiments import provenance
from dode.metrics import rmse
from dode.schedules import vp_linear

BATCH, STEPS, ROUNDS = 64, 10, 7
TABLES = {"ddim": solvers.ddim, "dpm_solver_pp": lambda s: solvers.dpm_solver_pp(s, order=3)}


class Timed(nn.Module):
    """A network that adds up the seconds spent in it."""

    def __init__(self, network: nn.Module, device: str) -> None:
        super().__init__()
        self.network, self.at, self.seconds = network, device, 0.0

    def forward(self, x, label, **conditions):
        timing.settle(self.at)
        started = time.perf_counter()
        answer = self.network(x, label, **conditions)
        timing.settle(self.at)
        self.seconds += time.perf_counter() - started
        return answer


def shares(device: str, names: list[str], rounds: int) -> Iterator[dict[str, object]]:
    for name in names:
        model = timing.load(name, device)
        timed = model.network = Timed(model.network, device)
        noise = dode.initial_noise(model.shape, range(BATCH), device=device)
        for solver, make in TABLES.items():
            table = make(model.grid(STEPS))
            labels = [torch.full((BATCH,), model.level(row.sigma_in).label, device=device) for row in table.rows]
            inside, bare = [], []
            for k in range(rounds + 1):  # the first warms up
                timed.seconds = 0.0
                timing.settle(device)
                started = time.perf_counter()
                dode.sample(model, table, noise)
                timing.settle(device)
                whole, within = time.perf_counter() - started, timed.seconds
                timed.seconds = 0.0
                for label in labels:
                    timed(noise, label)
                if k:
                    inside.append(within / whole)
                    bare.append(timed.seconds / whole)
            for measure, values in (("time inside the network", inside), ("bare passes over sample()", bare)):
                yield dict(
                    measure=measure, network=name, solver=solver, steps=STEPS, value=f"{statistics.median(values):.4f}",
                    low=f"{min(values):.4f}", high=f"{max(values):.4f}", unit="of the whole",
                )  # fmt: skip


def peak(steps: int, device: str) -> float:
    """MiB at the highest, of this whole process (or of the GPU's allocator), for one DDIM run of ``steps``."""
    model = NoisePrediction(lambda x, label: torch.tanh(x), (3, 32, 32), vp_linear())
    noise = dode.initial_noise(model.shape, range(64), device=device)
    dode.sample(model, solvers.ddim(model.grid(steps)), noise)
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / 2**20
    status = Path("/proc/self/status").read_text()  # getrusage's maximum would begin with the parent's
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 2**10


def memory(device: str, names: list[str], rounds: int) -> Iterator[dict[str, object]]:
    for steps in (100, 1000):
        command = [sys.executable, __file__, "--device", device, "--peak", str(steps)]
        value = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        yield dict(measure="peak memory", network="tanh", solver="ddim", steps=steps, value=value, unit="MiB")


def errors(device: str, names: list[str], rounds: int) -> Iterator[dict[str, object]]:
    for name in names:
        exact = timing.load(name, device)
        noise = dode.initial_noise(exact.shape, range(BATCH), device=device)
        others = {"bf16 autocast": timing.load(name, device, autocast=torch.bfloat16)}
        if device.startswith("cuda") or shutil.which("g++"):
            compiled = timing.load(name, device)
            compiled.network = torch.compile(compiled.network)
            others["torch.compile"] = compiled
        for solver, make in TABLES.items():
            table = make(exact.grid(STEPS))
            expected = dode.sample(exact, table, noise)
            for what, model in others.items():
                found = dode.sample(model, table, noise)
                yield dict(
                    measure=f"RMSE to float32: {what}", network=name, solver=solver, steps=STEPS,
                    value=f"{rmse(found, expected):.3g}", unit="of pixels in -1..1",
                )  # fmt: skip


def main() -> None:
    parser = timing.options(__doc__ or "")
    parser.add_argument("--peak", type=int, metavar="STEPS", help="only print the peak memory of this process")
    args = parser.parse_args()
    if args.peak:
        print(f"{peak(args.peak, args.device):.1f}")
        return
    keys = ["measure", "network", "solver", "steps", "device", "commit"]
    rows = timing.Rows("loop_network", keys, args.device, args.smoke)
    facts = dict(images=BATCH, threads=torch.get_num_threads(), **provenance(args.device))
    for measure in (shares,) if args.smoke else (shares, memory, errors):
        for found in measure(args.device, args.checkpoint, 1 if args.smoke else ROUNDS):
            row = found | facts
            rows.add(row)
            print(f"{row['measure']:32} {row['network']:20} {row['solver']:14} {row['steps']:>5} steps: "
                  f"{row['value']} {row['unit']}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
