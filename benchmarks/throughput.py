"""Images a second: ``dode.sample`` over bare forward passes of the same network: eager, compiled, as CUDA graphs.

    python benchmarks/throughput.py [--device cuda] [--checkpoint NAME ...] [--batch 64 512] [--smoke]

Each way to run the network is measured on both sides, in turn in one process: the whole of ``dode.sample``, and as
many calls of the network with nothing between them.  Their ratio is the part of the time that the solver leaves to the
network.  On a GPU nothing waits inside a run.  "graph" replays a CUDA graph of the network; "whole graph" is one graph
of the whole run, network and solver.  RMSE is that of the final images to float32's.  Written to
results/throughput.csv, on a GPU to results/throughput.gpu.csv.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator

import timing
import torch
from torch import Tensor, nn

import dode
from dode import solvers
from dode.denoisers import NetworkDenoiser
from dode.experiments import provenance
from dode.metrics import rmse
from dode.sampling import walk

STEPS, ROUNDS = 10, 15
TABLES = {"ddim": solvers.ddim, "dpm_solver_pp": lambda s: solvers.dpm_solver_pp(s, order=3)}
KEYS = ("network", "way", "solver", "images", "device", "commit")


class Graphed(nn.Module):
    """A network as one CUDA graph for batches of one shape; its answers are copies, as a solver keeps them."""

    def __init__(self, model: NetworkDenoiser, noise: Tensor, label: Tensor) -> None:
        super().__init__()
        self.network, autocast, conditions = model.network, model.autocast, model.conditioning(len(noise), noise.device)
        self.x, self.label = noise.to(next(model.network.parameters()).dtype, copy=True), label.clone()

        def run() -> Tensor:
            with torch.autocast("cuda", dtype=autocast, enabled=autocast is not None, cache_enabled=False):
                return self.network(self.x, self.label, **conditions)

        self.graph, self.answer = record(run)

    def forward(self, x: Tensor, label: Tensor, **conditions: Tensor) -> Tensor:
        self.x.copy_(x), self.label.copy_(label)
        self.graph.replay()
        return self.answer.clone()


def record(run: Callable[[], Tensor]) -> tuple[torch.cuda.CUDAGraph, Tensor]:
    """A CUDA graph of ``run``, and the tensor that it writes."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = run()
    return graph, answer


PRECISIONS: dict[str, dict[str, torch.dtype]] = {
    "float32": {}, "bf16 autocast": dict(autocast=torch.bfloat16), "bf16 weights": dict(dtype=torch.bfloat16)
}  # fmt: skip


def ways(name: str, device: str, noise: Tensor, smoke: bool) -> Iterator[tuple[str, NetworkDenoiser]]:
    """The denoiser in each way to run its network."""
    label = torch.full((len(noise),), 0.5, device=device)
    for word, types in PRECISIONS.items():
        plain, compiled = (timing.load(name, device, **types) for _ in range(2))
        yield word, plain
        compiled.network = torch.compile(compiled.network, backend="eager" if smoke else "inductor")
        yield f"{word}, compiled", compiled
        for before, model in (("", plain), (", compiled", compiled)) if timing.is_gpu(device) else ():
            graphed = copy.copy(model)
            graphed.network = Graphed(model, noise, label)
            yield f"{word}{before}, graph", graphed


def whole_graph(model: NetworkDenoiser, table: dode.Tableau, noise: Tensor) -> Callable[[], Tensor]:
    """The whole run as one CUDA graph: that there can be one shows that no step asks the host."""

    def run() -> Tensor:
        *_, (end, _) = walk(model, table.rows, noise)
        return end.x

    graph, answer = record(run)

    def again() -> Tensor:
        graph.replay()
        return answer

    return again


@torch.no_grad()
def measure(name: str, device: str, batch: int, rounds: int, smoke: bool) -> Iterator[dict[str, object]]:
    noise = dode.initial_noise(dode.load(name).shape, range(batch), device=device)
    exact = dict[str, Tensor]()
    for way, model in ways(name, device, noise, smoke):
        for solver, make in TABLES.items():
            table = make(model.grid(STEPS))
            labels = [torch.full((batch,), model.level(row.sigma_in).label, device=device) for row in table.rows]

            def bare(model=model, labels=labels) -> None:
                x = noise.to(next(model.network.parameters()).dtype)
                for label in labels:
                    with torch.autocast(x.device.type, dtype=model.autocast, enabled=model.autocast is not None):
                        model.network(x, label, **model.conditioning(len(x), x.device))

            runs: dict[str, Callable[[], object]] = {
                way: lambda model=model, table=table: dode.sample(model, table, noise),
                "bare": bare,
            }
            if timing.is_gpu(device) and way in PRECISIONS:
                runs[f"{way}, whole graph"] = whole_graph(model, table, noise)
            times = timing.in_turn(runs, device, rounds)
            for word in (w for w in runs if w != "bare"):
                share = [b / a for a, b in zip(times[word], times["bare"], strict=True)]
                images = runs[word]()
                exact.setdefault(solver, images)
                yield dict(
                    network=name, way=word, solver=solver, images=batch, steps=STEPS, rounds=rounds,
                    images_per_second=f"{batch / statistics.median(times[word]):.1f}",
                    bare_per_second=f"{batch / statistics.median(times['bare']):.1f}",
                    bare_over_sample=f"{statistics.median(share):.4f}", low=f"{min(share):.4f}",
                    high=f"{max(share):.4f}", rmse_to_float32=f"{rmse(images, exact[solver]):.3g}",
                )  # fmt: skip


def main() -> None:
    parser = timing.options(__doc__ or "")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512])
    args = parser.parse_args()
    batches, rounds = ([2], 1) if args.smoke else (args.batch, ROUNDS)
    rows = timing.Rows("throughput", KEYS, args.device, args.smoke)
    for name in args.checkpoint:
        for batch in batches:
            for row in measure(name, args.device, batch, rounds, args.smoke):
                rows.add(row | provenance(args.device))
                print(
                    f"{name:20} {row['way']:28} {row['solver']:14} batch {batch:4}: {row['images_per_second']:>9}"
                    f" images a second, bare {row['bare_per_second']:>9}; {row['bare_over_sample']} of the time",
                    flush=True,
                )


if __name__ == "__main__":
    main()
