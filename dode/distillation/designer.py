"""Solvers whose rows depend on the sample: a small network designs each row from what the large one has just seen.

DLMS (Liang et al., ICLR 2025) designs weights, levels and input levels; AMED (Zhou et al., CVPR 2024) the point between
two levels and the length of the step through it.  Both read the bottleneck of the U-Net, averaged over its channels.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.denoisers import Denoiser
from dode.denoisers.networks import is_compiled
from dode.sampling import State, walk
from dode.solvers.rows import gain
from dode.tableau import Basis, Tableau, TableauRow
from dode.utils.files import FileError, load_tensors, save_tensors

KIND = "designed solver"
Shares = list[tuple[int, Tensor]]
Memory = dict[str, Tensor]  # what one row's plan tells a later one's


class Plan(NamedTuple):
    """The rest of a row: (output, part ``(B,)``), the next level ``(B,)``, the level given to the network there."""

    shares: Shares
    following: Tensor
    sigma_in: Tensor


def row_of_shares(basis: Basis, shares: Shares, keep: range, sigma: Tensor, sigma_in: Tensor, to: Tensor) -> TableauRow:
    """The unified prediction (DLMS, eqs. 8 and 9): the parts' mean of the outputs, over one step to level ``to``."""
    weight = gain(basis, sigma, to)
    terms = [(j, weight * part) for j, part in shares if j >= 0 or basis == "noise"]  # before the first, D is 0
    return TableauRow(basis, to / sigma if basis == "data" else 1.0, terms, keep, sigma, sigma_in, to)


def bottleneck(denoiser: Denoiser) -> nn.Module:
    """The module of a U-Net whose output is its coarsest: dode's, diffusers' or OpenAI's; else a ValueError.

    A compiled network has none to look at: what is one graph calls no hook.
    """
    network = getattr(denoiser, "network", None)
    for name in ("bottleneck", "mid_block", "middle_block"):
        if isinstance(found := getattr(network, name, None), nn.Module) and not is_compiled(network):
            return found
    raise ValueError(
        f"{getattr(denoiser, 'name', 'this denoiser')} has no bottleneck that is known; take features=False"
    )


@contextmanager
def watched(denoiser: Denoiser, wanted: bool) -> Iterator[list[Tensor]]:
    """A list whose last entry is the channel mean ``(B, H W)`` of the newest call's bottleneck, without gradient."""
    seen = list[Tensor]()
    if not wanted:
        yield seen
        return

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        seen[:] = [output.detach().float().mean(1).flatten(1)]

    handle = bottleneck(denoiser).register_forward_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@torch.no_grad()
def feature_size(denoiser: Denoiser) -> int:
    """Positions of the bottleneck's map, found by one call on one image (not counted)."""
    one = copy.copy(denoiser.of(range(1)))
    one._count = dict(nfe=0, evaluations=0)
    with watched(one, True) as seen:
        one(torch.zeros(1, *denoiser.shape, device=denoiser.device), torch.tensor(1.0))
    return seen[-1].shape[1]


class Designer(nn.Module):
    """``g``: (feature ``(B, F)`` or none, level ``(B,)``, row) to ``outputs`` numbers ``(B, outputs)``, 0 at first.

    A table of numbers, one line a row, and beside it, where there are features, a small network of them.
    """

    def __init__(self, rows: int, outputs: int, features: int = 0, width: int = 64) -> None:
        super().__init__()
        self.config = dict(rows=rows, outputs=outputs, features=features, width=width)
        self.table = nn.Parameter(torch.zeros(rows, outputs))
        if features:
            with torch.random.fork_rng(devices=[]):  # two designers start alike, whatever was drawn before
                torch.manual_seed(0)
                self.read, self.when = nn.Linear(features, width), nn.Linear(1, width)
                self.row, last = nn.Embedding(rows, width), nn.Linear(width, outputs)
                narrow, wide = nn.Linear(width, width // 2), nn.Linear(width // 2, width)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            self.body = nn.Sequential(nn.SiLU(), narrow, nn.SiLU(), wide)
            self.last = nn.Sequential(nn.SiLU(), last)

    def forward(self, feature: Tensor | None, level: Tensor, row: int) -> Tensor:
        fixed = self.table[row].expand(len(level), -1)
        if feature is None or not self.config["features"]:
            return fixed
        seen = F.layer_norm(feature, feature.shape[1:])
        when = level.detach().float().log()[:, None] / 4
        hidden = self.read(seen) + self.when(when) + self.row.weight[row]
        return fixed + self.last(self.body(hidden))


@dataclass
class DesignedRow:
    """A row at levels ``(B,)``; its :attr:`plan` is made when it is first asked for, after the network evaluation."""

    basis: Basis
    sigma: Tensor
    sigma_in: Tensor
    keep: range
    seen: list[Tensor]
    design: Callable[[Tensor | None], Plan]

    @cached_property
    def plan(self) -> Plan:
        return self.design(self.seen[-1] if self.seen else None)

    def complete(self, to: Tensor | None = None) -> TableauRow:
        """The row in numbers, to the level of its plan or ``to`` another ``(B,)``."""
        to = self.plan.following if to is None else to
        return row_of_shares(self.basis, self.plan.shares, self.keep, self.sigma, self.sigma_in, to)


@dataclass
class Designed:
    """A solver that :func:`dode.sample` runs, row by row as ``designer`` has it; it starts out as ``base``."""

    base: Tableau
    designer: Designer
    options: dict[str, Any] = field(default_factory=dict)  # of the kind of solver, for :meth:`save`
    metadata: dict[str, Any] = field(default_factory=dict)
    through: bool = False  # in training: a row's level has a gradient from those before it, too
    network: ClassVar[Callable[..., Designer]] = Designer  # of the config that a file has

    @property
    def nfe(self) -> int:
        """Network evaluations."""
        return self.base.nfe

    @property
    def reads(self) -> bool:
        """Whether it reads the bottleneck at all."""
        return bool(self.designer.config["features"])

    def begin(self, noise: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """First level ``(B,)`` and the level given to the network, float64."""
        raise NotImplementedError

    def plan(self, row: int, feature: Tensor | None, level: Tensor, memory: Memory) -> Plan:
        """The rest of row ``row`` once it has evaluated at ``level`` ``(B,)``."""
        raise NotImplementedError

    def matched(self, row: int) -> bool:
        """Whether the state after ``row`` is one that a teacher has too."""
        return True

    def keep(self, row: int) -> range:
        """The outputs that rows after ``row`` may use."""
        raise NotImplementedError

    def initial(self, noise: Tensor) -> State | None:
        """Where a run starts; None: at its first level times the noise."""
        return None

    def walk(
        self, denoiser: Denoiser, noise: Tensor, start: State | None = None, until: int | None = None
    ) -> Iterator[tuple[State, DesignedRow | None]]:
        """:func:`dode.sampling.walk` over the rows of a run from ``noise``: what :func:`dode.sample` asks for.

        Or from ``start``, at its level, and before row ``until``.
        """
        self.designer.to(noise.device)
        return walk(denoiser, self._rows(denoiser, noise, start, until), noise, start or self.initial(noise))

    def _rows(self, denoiser: Denoiser, noise: Tensor, start: State | None, until: int | None) -> Iterator[DesignedRow]:
        """Each is designed when its network evaluation is done."""
        memory: Memory = {}
        sigma, sigma_in = (torch.as_tensor(start.level),) * 2 if start else self.begin(noise, memory)
        with watched(denoiser, self.reads) as seen:
            for index in range(start.row if start else 0, until or self.nfe):
                design = partial(self.plan, index, level=sigma, memory=memory)
                row = DesignedRow(self.base.basis, sigma, sigma_in, self.keep(index), seen, design)
                yield row
                sigma, sigma_in = row.plan.following, row.plan.sigma_in

    def unbind(self) -> Designed:
        """Without the model and shape it was distilled for, so that any denoiser with such a bottleneck may use it."""
        return replace(self, metadata={k: v for k, v in self.metadata.items() if k not in ("model", "shape")})

    # --- files -----------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the designer's weights, the base table, and the metadata in its header."""
        b = self.base
        tensors = {f"designer.{k}": v for k, v in self.designer.state_dict().items()}
        tensors |= {"base.sigmas": b.sigmas, "base.sigmas_in": b.sigmas_in, "base.full": b.full}
        facts = dict(
            style=type(self).__name__, basis=b.basis, config=self.designer.config, options=self.options,
            metadata=self.metadata,
        )  # fmt: skip
        return save_tensors(path, tensors, KIND, facts)

    @staticmethod
    def load(path: str | Path) -> Designed:
        """Read a file of :meth:`save`; :class:`~dode.utils.files.FileError` says what is wrong with it."""
        tensors, facts = load_tensors(path, KIND)
        try:
            full = tensors["base.full"]
            base = Tableau(facts["basis"], tensors["base.sigmas"], full[:, 1:], full[:, 0], tensors["base.sigmas_in"])
            style = next(c for c in Designed.__subclasses__() if c.__name__ == facts["style"])
            designer = style.network(**facts["config"])
            own = {k.removeprefix("designer."): v for k, v in tensors.items() if k.startswith("designer.")}
            designer.load_state_dict(own)
            designer.eval().requires_grad_(False)
            return style(base, designer, facts["options"], facts["metadata"])
        except (KeyError, TypeError, ValueError, RuntimeError, StopIteration):
            raise FileError(f"{path} does not hold a valid designed solver; distil it again") from None


def load_solver(path: str | Path) -> Tableau | Designed:
    """A solver file of either kind; :class:`~dode.utils.files.FileError` says what is wrong with it."""
    try:
        return Tableau.load(path)
    except ValueError as error:
        if "holds a designed solver" not in str(error):
            raise
    return Designed.load(path)
