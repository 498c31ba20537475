"""Resumable optimisation: its settings, and the run itself.

Every random number of step ``k`` is drawn from a generator seeded by ``(seed, k)``, so a run that
was killed and resumed ends with the same weights as one that was not (on a GPU but for the order of its sums).
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from dode.utils.environment import tqdm
from dode.utils.files import atomic, load_tensors, save_tensors

LOG_EVERY = 100  # steps behind each row of the log
TRIAL = 2 * LOG_EVERY  # steps after which a run of so many minutes knows its length
BACKWARD = 2  # a backward pass is counted as this many network calls


@dataclass(frozen=True)
class Settings:
    """How Adam runs; a run that was killed goes on only with the settings it began with."""

    name: str
    steps: int = 6_500
    batch: int = 128
    rate: float = 1.5e-3
    warmup: int = 300
    ema: float = 0.999
    seed: int = 0
    save_every: int = 500
    minutes: float | None = None  # if given, ``steps`` follows from the speed of the first, so that a run takes so long

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return json.loads(json.dumps(asdict(self)))

    def matches(self, facts: Mapping[str, Any]) -> bool:
        """Whether ``facts`` were written by these settings; what was not known of then is as usual."""
        mine = {f.name for f in fields(self)}
        try:
            return type(self)(**{k: v for k, v in facts.items() if k in mine}).facts == self.facts
        except TypeError:
            return False


S = TypeVar("S", bound=Settings)


class Run(Generic[S]):
    """A resumable optimisation: model, its moving average, Adam's moments and the step count.

    ``device`` is where the loss draws its random numbers.  There a GPU is asked for its losses only now and then, so
    that it is never kept waiting.  ``steps`` is None while a run of so many minutes does not know its length.
    """

    def __init__(self, recipe: S, model: nn.Module, folder: Path, device: str | torch.device = "cpu") -> None:
        self.recipe, self.model, self.folder, self.device = recipe, model, folder, torch.device(device)
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, betas=(0.9, 0.99))
        self.each = self.device.type == "cpu"  # whether each loss is looked at when it is there
        self.steps: int | None = None if recipe.minutes else recipe.steps
        self.step, self.seconds, self.log = 0, 0.0, list[tuple[int, float, float]]()
        self._recent = list[Tensor]()

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.recipe.name}.state.safetensors"

    @property
    def finished(self) -> bool:
        return self.step == self.steps

    def save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for (name, _), state in zip(self.model.named_parameters(), self.optimizer.state.values(), strict=True):
            tensors |= {f"adam.{k}.{name}": v for k, v in state.items()}
        facts = dict(recipe=self.recipe.facts, step=self.step, steps=self.steps, seconds=self.seconds, log=self.log)
        save_tensors(self.state_file, tensors, "training state", facts)

    def resume(self) -> bool:
        """Load the saved state of the same recipe, if there is one."""
        if not self.state_file.is_file():
            return False
        tensors, meta = load_tensors(self.state_file, "training state")
        if not self.recipe.matches(meta["recipe"]):
            raise ValueError(f"{self.state_file} is of another recipe; remove it or choose another folder")
        device = next(self.model.parameters()).device
        pick = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        self.model.load_state_dict(pick("model."))
        self.average = {k: v.to(device) for k, v in pick("average.").items()}
        for name, parameter in self.model.named_parameters():
            moments = {k: tensors[f"adam.{k}.{name}"].to(device) for k in ("exp_avg", "exp_avg_sq")}
            count = tensors[f"adam.step.{name}"]  # stays on the CPU, where Adam keeps it
            self.optimizer.state[parameter] = {"step": count, **moments}
        self.step, self.seconds = meta["step"], meta["seconds"]
        self.steps = meta.get("steps", self.steps)
        self.log = [tuple(row) for row in meta["log"]]
        return True

    def rate(self) -> float:
        """Linear warm-up, then half a cosine to zero."""
        r = self.recipe
        fall = 1.0 if self.steps is None else 0.5 + 0.5 * math.cos(math.pi * self.step / self.steps)
        return r.rate * min((self.step + 1) / r.warmup, fall)

    def train(
        self,
        loss: Callable[[torch.Generator], Tensor],
        until: int | None = None,
        progress: bool = True,
        patience: float = math.inf,
    ) -> None:
        """Minimise ``loss(generator)`` up to the last step, or to ``until``, or for ``patience`` seconds."""
        r, began, tick = self.recipe, time.perf_counter(), time.perf_counter()
        bar = tqdm(desc=r.name, initial=self.step, total=self.steps, mininterval=10, disable=not progress)
        while not self.finished and (until is None or self.step < until):
            self._step(loss)
            bar.update()
            logged = self.step % LOG_EVERY == 0
            if logged or self.each:
                self._look()  # waits for a GPU, so the clock below is right where it is written down
            tick, before = time.perf_counter(), tick
            self.seconds += tick - before
            if logged:
                self.log.append((self.step, sum(map(float, self._recent)) / len(self._recent), self.seconds))
                self._recent.clear()
                self._plan()
            late = tick - began > patience
            if self.step % r.save_every == 0 or self.finished or self.step == until or late:
                self._look()
                self.save()
                tick = time.perf_counter()  # training's time, not the disk's
            if late:
                break
        bar.close()

    def _step(self, loss: Callable[[torch.Generator], Tensor]) -> None:
        generator = torch.Generator(self.device).manual_seed(self.recipe.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        value = loss(generator)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self._average()
        self._recent.append(value.detach())
        self.step += 1

    def _look(self) -> None:
        """FloatingPointError if a loss since the last row of the log was not finite."""
        if self._recent and not torch.isfinite(torch.stack(self._recent)).all():
            values = [float(v) for v in self._recent]
            bad = next(k for k, v in enumerate(values) if not math.isfinite(v))
            at = self.step - len(values) + bad + 1
            raise FloatingPointError(f"{self.recipe.name}: loss is {values[bad]} at step {at}; lower the rate")

    def _plan(self) -> None:
        """Fix the number of steps of a run of so many minutes, once the speed is known; kept with the state."""
        if self.steps is None and self.step >= TRIAL:
            assert self.recipe.minutes is not None
            (first, _, early), (last, _, late) = self.log[-2:]
            left = 60 * self.recipe.minutes - late
            self.steps = self.step + max(0, round(left * (last - first) / (late - early)))
            self.save()

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)

    def publish(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the averaged weights in half precision as a network of :func:`dode.load`."""
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.average.items()}
        save_tensors(path, half, "network", facts)

    def write_log(self, path: Path) -> None:
        with atomic(path) as temporary, open(temporary, "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["step", "loss", "seconds"])
            writer.writerows((s, f"{v:.6f}", f"{t:.1f}") for s, v, t in self.log)
