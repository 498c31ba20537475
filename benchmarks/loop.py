"""Time outside the network, a step: dode's loop beside the diffusers scheduler of the same solver.

    python benchmarks/loop.py [--device cuda] [--threads 1 2] [--smoke]

Both sides drive the same "network", an epsilon prediction that hands out a tensor made beforehand, as their users
would: ``dode.sample`` around a noise-predicting denoiser, ``scale_model_input`` and ``step`` of the scheduler as in a
pipeline, after ``set_timesteps`` (and after the denoiser has met its levels).  They run in turn in one process, each
right after a run of its own that is not timed, so that neither begins with caches that the other left; a round gives
one ratio.  Written to results/loop.csv, on a GPU to results/loop.gpu.csv.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable

import diffusers
import timing
import torch

from dode import solvers
from dode.denoisers import NoisePrediction
from dode.experiments import provenance
from dode.sampling import sample, walk
from dode.schedules import vp_linear
from dode.tableau import Tableau

SHAPE, STEPS, ROUNDS, RUNS = (64, 3, 32, 32), 20, 51, 2  # one timing is of RUNS runs
VP = dict(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")

# name: our tableau, their scheduler
PAIRS: dict[str, tuple[Callable[[torch.Tensor], Tableau], Callable[[], diffusers.SchedulerMixin]]] = {
    "DDIM": (solvers.ddim, lambda: diffusers.DDIMScheduler(**VP, clip_sample=False)),
    "iPNDM": (solvers.ipndm, lambda: diffusers.IPNDMScheduler()),
    "DPM-Solver++(3M)": (
        lambda s: solvers.dpm_solver_pp(s, order=3),
        lambda: diffusers.DPMSolverMultistepScheduler(**VP, solver_order=3),
    ),
    "UniPC-3": (
        lambda s: solvers.unipc(s, order=3),
        lambda: diffusers.UniPCMultistepScheduler(**VP, solver_order=3),
    ),
    "DEIS-3": (
        lambda s: solvers.deis(s, order=3, variable="log_rho"),
        lambda: diffusers.DEISMultistepScheduler(**VP, solver_order=3),
    ),
}


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one run, the mean of RUNS right after one that is not counted."""
    run(), timing.settle(device)
    started = time.perf_counter()
    for _ in range(RUNS):
        run()
    timing.settle(device)
    return (time.perf_counter() - started) / RUNS


def their_run(scheduler, network, noise: torch.Tensor) -> Callable[[], object]:
    """The loop of a pipeline.  What ``set_timesteps`` makes is kept and put back, so that no run pays for it."""
    scheduler.set_timesteps(STEPS, device=noise.device)
    assert len(scheduler.timesteps) == STEPS
    fresh = dict(scheduler.__dict__)

    def run() -> torch.Tensor:
        scheduler.__dict__.update(fresh)
        for name in ("ets", "model_outputs", "timestep_list"):  # the histories that step() writes into
            if name in fresh:
                setattr(scheduler, name, list(fresh[name]))
        x = noise * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x, return_dict=False)[0]
        return x

    return run


def waits(model, table: Tableau, noise: torch.Tensor) -> str:
    """Whether the host waits for a GPU anywhere inside the loop: torch raises where it does."""
    if not noise.is_cuda:
        return ""
    torch.cuda.set_sync_debug_mode("error")
    try:
        list(walk(model, table.rows, noise))
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


@torch.no_grad()
def compare(name: str, device: str, rounds: int) -> dict[str, object]:
    ours, theirs = PAIRS[name]
    generator = torch.Generator().manual_seed(0)
    noise, answer = (torch.randn(SHAPE, generator=generator).to(device) for _ in range(2))
    network = lambda x, label: answer  # noqa: E731
    model = NoisePrediction(network, SHAPE[1:], vp_linear())
    table = ours(model.grid(STEPS))
    assert table.nfe == STEPS
    mine, other = (lambda: sample(model, table, noise)), their_run(theirs(), network, noise)
    mine(), other()
    pairs = [(seconds(mine, device), seconds(other, device)) for _ in range(rounds)]
    bare = seconds(lambda: [network(noise, 0) for _ in range(STEPS)], device)
    ratios = [a / b for a, b in pairs]
    each = lambda v: f"{1e6 * statistics.median(v) / STEPS:.1f}"  # noqa: E731
    return dict(
        dode_us=each(a for a, _ in pairs), diffusers_us=each(b for _, b in pairs), network_us=each([bare]),
        ratio=f"{statistics.median(ratios):.3f}", ratio_min=f"{min(ratios):.3f}", ratio_max=f"{max(ratios):.3f}",
        rounds=rounds, host_waits=waits(model, table, noise),
    )  # fmt: skip


def main() -> None:
    parser = timing.options(__doc__ or "", checkpoints=False)
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, len(os.sched_getaffinity(0))}))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--solvers", nargs="+", choices=PAIRS, default=list(PAIRS))
    args = parser.parse_args()
    # malloc gives large blocks back to the system at once, until a larger one has been freed: then it keeps them.  A
    # network's activations see to that in the first step; here, where there are none, this block does, for both sides.
    torch.empty(1 << 22)
    rounds, threads_of = (1, args.threads[:1]) if args.smoke else (args.rounds, args.threads)
    rows = timing.Rows("loop", ["solver", "threads", "device", "commit"], args.device, args.smoke)
    where = provenance(args.device)
    for threads in threads_of if args.device == "cpu" else threads_of[:1]:
        torch.set_num_threads(threads)
        for name in args.solvers:
            cell = dict(solver=name, threads=threads)
            facts = dict(steps=STEPS, shape="x".join(map(str, SHAPE)), diffusers=diffusers.__version__, **where)
            row = cell | compare(name, args.device, rounds) | facts
            rows.add(row)
            print(
                f"{name:17} {threads} thread(s): dode {row['dode_us']:>6} us a step, diffusers {row['diffusers_us']:>7}"
                f" us; ratio {row['ratio']} ({row['ratio_min']} to {row['ratio_max']})"
                + (f"; host waits: {row['host_waits']}" if row["host_waits"] else ""),
                flush=True,
            )


if __name__ == "__main__":
    main()
