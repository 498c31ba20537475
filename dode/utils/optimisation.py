"""Resumable optimisation: its settings, and the run itself.

Every random number of step ``k`` is drawn from a generator seeded by ``(seed, k)``, so a run that
was killed and resumed ends with the same weights as one that was not (on a GPU but for the order of its sums).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from dode.utils.environment import tqdm
from dode.utils.files import load_tensors, save_tensors

LOG_EVERY = 100  # steps behind each row of the log
BACKWARD = 2  # a backward pass is counted as this many network calls
FORMAT = 2  # of a state; one of another is refused
# Draws all its random numbers from the generator.  Of several losses each is an update of its own.
Loss = Callable[[torch.Generator], Tensor | Iterable[Tensor]]


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
    betas: ClassVar[tuple[float, float]] = (0.9, 0.99)
    clip: ClassVar[float] = 1.0  # the longest gradient

    @property
    def facts(self) -> dict[str, Any]:
        """All of it as JSON has it."""
        return json.loads(json.dumps(asdict(self)))

    def check(self, file: Path, facts: Mapping[str, Any]) -> None:
        """ValueError unless ``facts``, which ``file`` holds, say all that these settings do; they may say more."""
        if any(key not in facts or facts[key] != value for key, value in self.facts.items()):
            raise ValueError(f"{file} is of another recipe or version; remove it or choose another folder")

    def rate_at(self, step: int) -> float:
        """The part of ``rate`` at a step: a linear warm-up, then half a cosine to zero."""
        return min((step + 1) / self.warmup, 0.5 + 0.5 * math.cos(math.pi * step / self.steps))


class Run:
    """An optimisation of ``model`` that begins, or goes on from the state of the same recipe in ``folder``.

    ``average`` is the model's moving average.  ``device`` is where the loss draws its random numbers.  ``notes`` (as
    JSON has it) and ``best`` are the caller's, and kept with the state.  A ``folder`` of None: nothing is kept.
    ValueError for a state of another recipe or format, FileError for one that cannot be read.
    """

    def __init__(self, recipe: Settings, model: nn.Module, folder: Path | None, device: str = "cpu") -> None:
        self.recipe, self.model, self.device = recipe, model, device
        self.state_file = folder / f"{recipe.name}.state.safetensors" if folder else None
        self.step, self.seconds, self.log = 0, 0.0, list[tuple[int, float, float]]()
        self.notes, self.best = dict[str, Any](), dict[str, Tensor]()
        self.average = AveragedModel(model, multi_avg_fn=self._average, use_buffers=True)
        self.average.update_parameters(model)  # the first copies, all others average
        weights = dict(params=list(model.parameters()), initial_lr=recipe.rate)  # where LambdaLR looks when it goes on
        self.optimizer = torch.optim.Adam([weights], lr=recipe.rate, betas=recipe.betas)
        if self.state_file and self.state_file.is_file():
            self._resume(self.state_file)
        self.rates = LambdaLR(self.optimizer, recipe.rate_at, last_epoch=self.step - 1)

    def save(self) -> None:
        if self.state_file:
            parts = {"model": self.model.state_dict(), "average": self.average.state_dict(), "best": self.best}
            parts |= {f"adam.{k}": state for k, state in self.optimizer.state_dict()["state"].items()}
            tensors = {f"{part}.{key}": value for part, state in parts.items() for key, value in state.items()}
            facts = dict(format=FORMAT, recipe=self.recipe.facts, step=self.step, seconds=self.seconds)
            save_tensors(self.state_file, tensors, "training state", facts | dict(log=self.log, notes=self.notes))

    def _resume(self, file: Path) -> None:
        tensors, facts = load_tensors(file, "training state")
        self.recipe.check(file, facts["recipe"] if facts.get("format") == FORMAT else {})
        pick = lambda part: {k.removeprefix(part): v for k, v in tensors.items() if k.startswith(part)}  # noqa: E731
        self.model.load_state_dict(pick("model."))
        self.average.load_state_dict(pick("average."))
        adam = self.optimizer.state_dict()
        adam["state"] = {k: pick(f"adam.{k}.") for k in adam["param_groups"][0]["params"]}
        self.optimizer.load_state_dict(adam)
        self.step, self.seconds, self.notes, self.best = facts["step"], facts["seconds"], facts["notes"], pick("best.")
        self.log = [tuple(row) for row in facts["log"]]

    def train(
        self, loss: Loss, until: int | None = None, progress: bool = True, check: Callable[[], None] = lambda: None
    ) -> None:
        """Minimise ``loss`` up to the last step, or to ``until``; ``check`` is called before each saving.

        FloatingPointError for a loss that is not finite; the last saved state is as it was.
        """
        r, until, recent = self.recipe, until or self.recipe.steps, list[float]()
        bar = tqdm(desc=r.name, initial=self.step, total=r.steps, mininterval=10, disable=not progress)
        while self.step < until:
            began = time.perf_counter()
            recent.append(self._step(loss))
            self.seconds += time.perf_counter() - began
            bar.update()
            if self.step % LOG_EVERY == 0:
                self.log.append((self.step, sum(recent) / len(recent), self.seconds))
                recent.clear()
            if self.step % r.save_every == 0 or self.step == until:
                check()
                self.save()
        bar.close()

    def _step(self, loss: Loss) -> float:
        values = loss(torch.Generator(self.device).manual_seed(self.recipe.seed * 1_000_003 + self.step))
        for value in [values] if isinstance(values, Tensor) else values:
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
            self.optimizer.step()
        self.average.update_parameters(self.model)
        self.rates.step()
        self.step += 1
        if not math.isfinite(found := value.item()):
            raise FloatingPointError(f"{self.recipe.name}: loss is {found} at step {self.step}; lower the rate")
        return found

    @torch.no_grad()
    def _average(self, means: Any, values: Any, _: Any) -> None:
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))  # less while it warms up
        for mean, value in zip(means, values, strict=True):
            mean.copy_(mean.lerp(value, 1 - keep) if mean.is_floating_point() else value)

    def publish(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the averaged weights in half precision as a network of :func:`dode.load`, which ``facts`` describe."""
        average, own = self.average.module.state_dict(), dict(name=path.stem, recipe=self.recipe.facts)
        half = {k: v.half() if v.is_floating_point() else v for k, v in average.items()}
        save_tensors(path, half, "network", facts | own | dict(config=self.model.config))
