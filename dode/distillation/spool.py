"""States of many batches between two rows of a fit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from dode.sampling import State


class Spool:
    """The runs of all batches between two rows: one batch stays in memory, more wait on disk.

    Greedy fitting needs every batch at row i before any may pass it.  Waiting on disk keeps memory
    constant and evaluates each network call once, where running each batch again would not.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        self.memory: tuple[State, State] | None = None

    def _file(self, k: int) -> Path:
        return self.folder / f"{k}.safetensors"

    def _write(self, k: int, pair: tuple[State, State]) -> None:
        tensors = {f"{who}.x": s.x.contiguous() for who, s in zip("st", pair, strict=True)}
        for who, s in zip("st", pair, strict=True):
            tensors |= {f"{who}.{j}": d.clone().contiguous() for j, d in s.outputs.items()}
        save_file(tensors, self._file(k), {"s": str(pair[0].row), "t": str(pair[1].row)})

    def _read(self, k: int, rows: tuple[int, int], device: torch.device) -> tuple[State, State]:
        tensors = load_file(self._file(k), device=str(device))
        pick = lambda who: {int(n[2:]): v for n, v in tensors.items() if n[0] == who and n[2:] != "x"}  # noqa: E731
        return State(tensors["s.x"], pick("s"), rows[0]), State(tensors["t.x"], pick("t"), rows[1])

    def append(self, pair: tuple[State, State]) -> None:
        if self.count == 0:
            self.memory = pair
        else:
            if self.memory is not None:
                self._write(0, self.memory)
                self.memory = None
            self._write(self.count, pair)
        self.rows, self.device = (pair[0].row, pair[1].row), pair[0].x.device
        self.count += 1

    def update(self, change: Callable[[int, State, State], tuple[State, State]]) -> None:
        """Replace every batch's pair of states by ``change(batch, student, teacher)``."""
        for k in range(self.count):
            pair = change(k, *(self.memory or self._read(k, self.rows, self.device)))
            if self.memory is None:
                self._write(k, pair)
            else:
                self.memory = pair
        self.rows = (pair[0].row, pair[1].row)
