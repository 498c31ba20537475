"""AMED: between any two levels of a grid, one level and one length are designed (Zhou et al., CVPR 2024).

The network, its training and the defaults are those of the program that the authors released.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode import solvers
from dode.denoisers import Denoiser, expand
from dode.distillation.designer import Designed, Designer, Memory, Plan, feature_size
from dode.distillation.designer_training import train
from dode.distillation.objectives import TeachersSteps
from dode.distillation.problem import Problem, distiller
from dode.sampling import State
from dode.schedules import VPContinuous, time_uniform


class Predictor(Designer):
    """The released network: from the bottleneck and the levels at a step's ends to two numbers, random at first.

    ``levels`` are the grid's; at an analytical first step, where no network ran, the bottleneck is 0.
    """

    def __init__(self, levels: list[float], features: int = 0, seed: int = 0) -> None:
        nn.Module.__init__(self)
        self.config: dict[str, Any] = dict(levels=levels, features=features, seed=seed)
        self.levels = torch.tensor(levels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.time, self.read = nn.Linear(8, 8), nn.Linear(features or 1, 128)
            self.narrow, self.ends = nn.Linear(128, 4), nn.Linear(4 + 2 * 8, 2)
            nn.init.xavier_uniform_(self.time.weight)
            for layer in (self.read, self.narrow, self.ends):
                nn.init.normal_(layer.weight, std=layer.weight.shape[1] ** -0.5)
        for layer in (self.time, self.read, self.narrow, self.ends):
            layer.bias.data.zero_()

    def forward(self, feature: Tensor | None, level: Tensor, row: int) -> Tensor:
        weight, count = self.read.weight, len(level)
        levels = self.levels[row : row + 2].to(weight)
        angles = levels[:, None] / 10_000 ** (torch.arange(4).to(weight) / 3)
        ends = F.silu(self.time(torch.cat([angles.sin(), angles.cos()], 1))).flatten()
        feature = weight.new_zeros(count, weight.shape[1]) if feature is None else feature.to(weight)
        seen = self.narrow(F.silu(self.read(feature)))
        return self.ends(torch.cat([seen, ends.expand(count, -1)], 1))


class AMED(Designed):
    """Two rows a step: along its first noise to a designed level, and from its start along the noise seen there.

        x_mid = x_n + (t_mid - t_n) eps(x_n, t_n)        x_{n+1} = x_n + c (t_{n+1} - t_n) eps(x_mid, t_mid)

    with ``t_mid = t_n^r t_{n+1}^(1-r)`` (the program's ``r`` is our ``1 - r``).  ``r`` and ``c`` are designed from the
    bottleneck of the first call.  The base is a DDIM table on the grid, which stays.  With ``afs`` (an odd number of
    calls) ``x / sqrt(1 + t^2)`` takes the place of the first step's first call.  Options: afs, and scale: ``c`` is in
    ``1 - scale .. 1 + scale``.  Without a scale, as Algorithm 1 of DLMS trained it: a :class:`Designer` that starts as
    DPM-Solver-2 (``r = 1/2``, ``c = 1``), ``c`` in 0.5..1.5, and the starting noise itself in that place.
    """

    @property
    def nfe(self) -> int:
        return 2 * self.base.nfe - int(self.options["afs"])

    network = staticmethod(lambda **config: (Predictor if "levels" in config else Designer)(**config))

    def begin(self, noise: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        top = self.base.sigmas[0].to(noise.device).expand(len(noise))
        first = self._design(0, None, top, memory) if self.options["afs"] else top
        return first, first

    def initial(self, noise: Tensor) -> State | None:
        if "scale" not in self.options or not self.options["afs"]:
            return None
        level, top = self.begin(noise, {})[0], self.base.sigmas[0].item()
        first = noise * (top / math.sqrt(1 + top**2))
        return State(top * noise + expand(level - top, noise) * first, {-1: first}, 0, level)

    def _design(self, step: int, feature: Tensor | None, level: Tensor, memory: Memory) -> Tensor:
        """The level between those of ``step``; the length of the step goes to ``memory``."""
        numbers = self.designer(feature, level, step).double()  # of what is known where the step starts
        start, end = (self.base.sigmas[k].to(level) for k in (step, step + 1))
        scale, number = self.options.get("scale"), numbers[:, 1]
        memory["length"] = 1 + (scale * torch.tanh(number / 2) if scale else torch.tanh(number) / 2)
        return torch.exp(end.log() + torch.sigmoid(numbers[:, 0]) * (start / end).log())

    def _place(self, row: int) -> tuple[int, bool]:
        """The step that ``row`` belongs to, and whether it starts there."""
        step, second = divmod(row + int(self.options["afs"]), 2)
        return step, not second

    def plan(self, row: int, feature: Tensor | None, level: Tensor, memory: Memory) -> Plan:
        step, starts = self._place(row)
        if starts:
            middle = self._design(step, feature, level, memory)
            return Plan([(row, torch.ones_like(level))], middle, middle)
        start, end = (self.base.sigmas[k].to(level) for k in (step, step + 1))
        along = memory["length"] * (end - start) / (end - level)  # parts are of what lies between here and the end
        back = (start - level) / (end - level)
        return Plan([(row, along), (row - 1, back)], end.expand(len(level)), end.expand(len(level)))

    def matched(self, row: int) -> bool:
        """Whether the state after ``row`` is one that a teacher has too: at the end of a step."""
        return not self._place(row)[1]

    def keep(self, row: int) -> range:
        return range(row - 1, row + 1)


def begin_amed(
    denoiser: Denoiser, grid: Callable[[int], Tensor], nfe: int, *, features: bool = True, scale: float = 0.01,
    seed: int = 0,
) -> AMED:  # fmt: skip
    """The solver that AMED's training starts from, with an analytical first step where ``nfe`` is odd.

    ``grid`` is a function of the number of steps.  ValueError for fewer than two calls, or a grid that ends at 0: there
    is no level between that and the last.
    """
    if nfe < 2:
        raise ValueError(f"AMED takes two calls a step, the first of which may be analytical; got {nfe} in all, take 2")
    steps = (nfe + 1) // 2
    if (levels := grid(steps))[-1] == 0:
        raise ValueError("AMED designs a level between any two, and none lies between one and 0; end at sigma_min")
    predictor = Predictor(levels.tolist(), feature_size(denoiser) if features else 0, seed)
    return AMED(solvers.ddim(levels), predictor, dict(afs=bool(nfe % 2), scale=scale))


def vp_time(n: int, sigma_min: float, sigma_max: float) -> Tensor:
    """``n`` steps, uniform in the time of the VP process with these ends at 1e-3 and 1: the released "time_uniform"."""
    low, high, end = math.log1p(sigma_min**2), math.log1p(sigma_max**2), 1e-3
    growth = 2 * (low / end - high) / (end - 1)
    return time_uniform(n, sigma_min, sigma_max, VPContinuous(high - growth / 2, high + growth / 2, end))


@distiller(
    "AMED", source="Zhou et al. 2024", cite="zhou2024amed", place=3, grid=None, moves=("levels", "weights"),
    needs_gradient=True, loss=None, designs=True, trajectories=10_000,
)  # fmt: skip
def amed(
    problem: Problem, *, levels: Callable[[int], Tensor] | None = None, features: bool = True, scale: float = 0.01,
    rate: float = 5e-3, trajectories: int = 10_000, batch: int = 128, seed: int = 0,
) -> Designed:  # fmt: skip
    """An intermediate noise level for each step; of the solver only the calls count.  Trained as released.

    Each step of a batch is an update of its own: from the teacher's state to its next one, by the squared distance
    summed over pixels.  The teacher is Heun's method with two steps to each of the student's; the last weights count.
    As released, but: the bottleneck is the coarsest map, whichever block gives it; a loss that is not finite ends the
    training (there a gradient is set to 0); it runs in ``autocast`` arithmetic where there is one.

    ``levels`` is a grid function that does not end at 0, and meets each of its levels with twice the steps; None:
    :func:`vp_time`.  ``features``: whether the bottleneck is read.  ``scale``: how far the length of a step may be from
    1.  ``rate`` is Adam's, constant.  Of ``trajectories`` noises, ``batch`` at a time, each is seen once; ``seed`` is
    theirs and that of the first weights.
    """
    model, size = problem.denoiser, min(batch, trajectories)
    grid = levels or (lambda n: vp_time(n, model.sigma_min, model.sigma_max))
    start = begin_amed(model, grid, problem.table.nfe, features=features, scale=scale, seed=seed)
    return train(
        problem, start, TeachersSteps(solvers.get("heun").make(grid(2 * start.base.nfe))), rate=rate,
        trajectories=size * math.ceil(trajectories / size), batch_size=size, seed=seed,
    )  # fmt: skip
