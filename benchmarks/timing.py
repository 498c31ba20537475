"""What the benchmarks share: options, a clock that knows a GPU, and where rows go.

Rows of a GPU go to ``results/NAME.gpu.csv``, beside those of the CPU, which pages quote; with ``--smoke``, which only
shows that a benchmark runs, to ``_build/benchmarks``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

import dode
from dode.denoisers import NetworkDenoiser
from dode.denoisers.conditioning import class_labels
from dode.experiments import Sweep, home


def device(name: str) -> str:
    """``name``, if torch has that device here."""
    if is_gpu(name) and not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("torch finds no CUDA device here; take cpu, or leave it out")
    return name


def options(about: str, checkpoints: bool = True) -> argparse.ArgumentParser:
    """``--device``, ``--smoke`` and, if there are ``checkpoints`` to choose from, ``--checkpoint``."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--device", type=device, default="cpu", help="cpu (default) or cuda")
    if checkpoints:
        parser.add_argument("--checkpoint", nargs="+", default=list(dode.zoo.NAMES), metavar="NAME", help="(all)")
    parser.add_argument("--smoke", action="store_true", help="as little as shows that it runs; no row is kept")
    return parser


def load(name: str, device: str, **types: torch.dtype | None) -> NetworkDenoiser:
    """A checkpoint that is told one class for all images, where there are classes: what is timed is the network."""
    model = dode.load(name, device, **types)  # type: ignore[arg-type]
    if getattr(model.network, "classes", 0):
        model.conditioning = class_labels(model.network.classes, 0)  # type: ignore[union-attr, arg-type]
    return model


def is_gpu(device: str) -> bool:
    return device.startswith("cuda")


def settle(device: str) -> None:
    """Wait for the device; nothing to wait for on the CPU."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def seconds(run: Callable[[], object], device: str) -> float:
    """Of one run, by the device's own clock."""
    if not is_gpu(device):
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    settle(device)
    first.record()
    run()
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1e3


def in_turn(runs: Mapping[str, Callable[[], object]], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round; the runs take turns, so that what else the machine does meets all of them."""
    for run in runs.values():  # warm
        run()
    found = {name: list[float]() for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(seconds(run, device))
    return found


class Rows:
    """The rows of one benchmark; one that is measured again replaces the one before."""

    def __init__(self, name: str, keys: Iterable[str], device: str, smoke: bool) -> None:
        folder = home() / ("_build/benchmarks" if smoke else "results")
        self.sweep = Sweep(folder / f"{name}{'.gpu' if is_gpu(device) else ''}.csv", keys)

    def add(self, row: Mapping[str, Any]) -> None:
        self.sweep.add(row, replace=True)
