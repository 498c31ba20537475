"""What all solvers share: the options that mean the same everywhere, and the register of those there are.

A solver is written as a pure function from a grid to a tableau.  The decorator :func:`solver` gives it
``nfe``, ``steps``, ``final`` and ``afs``, checks its order, and enters it in :data:`SOLVERS`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from dode.schedules import Final, check_grid
from dode.solvers.rows import analytical_first_step
from dode.tableau import Basis, Tableau
from dode.utils.files import one_of

Grid = Tensor | Callable[[int], Tensor]
SolverType = Literal["midpoint", "heun"]  # of DPM-Solver: how its second order is written
Calls = Callable[[int, bool, Mapping[str, Any]], int]


class OrderError(ValueError):
    """An order that needs more steps than the grid has."""

    def __init__(self, order: int, steps: int) -> None:
        self.order, self.steps = order, steps
        super().__init__(
            f"order {order} needs {order} steps or more and this grid has {steps}; take order {steps} or a longer grid"
        )


class Maker(Protocol):
    """A solver as users call it; :func:`solver` explains the common options."""

    def __call__(
        self,
        grid: Grid,
        *,
        nfe: int | None = None,
        steps: int | None = None,
        final: Final | None = None,
        afs: bool = False,
        **options: Any,
    ) -> Tableau: ...


@dataclass(frozen=True)
class SolverInfo:
    """What the field knows of a solver."""

    name: str
    title: str
    basis: Basis  # its own
    orders: tuple[int, ...]  # those it can have
    source: str  # who published it
    calls: Calls  # (steps, ends at zero, options): the network evaluations on a grid of so many steps
    make: Maker
    entries: Mapping[str, Mapping[str, Any]]  # its rows on the book's page of all solvers: label -> options
    compared: bool  # with the learned solvers, on the grid that suits it best

    def most_calls(self, nfe: int, options: Mapping[str, Any]) -> int:
        """The most evaluations, ``nfe`` at most, that it can make on a grid to 0: Heun, asked for 10, makes 9."""
        calls = (self.calls(steps, True, options) for steps in range(1, nfe + 1))
        return max(c for c in calls if c <= nfe)


SOLVERS: dict[str, SolverInfo] = {}


def once_a_step(steps: int, zero: bool, options: Mapping[str, Any]) -> int:
    """Multistep schemes."""
    return steps


def twice_a_step(steps: int, zero: bool, options: Mapping[str, Any]) -> int:
    """Two-stage schemes; a step to 0 is Euler's alone, because nothing can be evaluated at 0."""
    return 2 * steps - zero


COMMON = "grid, nfe, steps, final and afs mean the same for every solver: see dode.solvers.base.solver."


def solver(
    title: str,
    basis: Basis,
    orders: Iterable[int],
    source: str,
    calls: Calls = once_a_step,
    *,
    entries: Mapping[str, Mapping[str, Any]] | None = None,
    compared: bool = False,
) -> Callable[[Callable[..., Tableau]], Maker]:
    """Make a pure function ``sigmas -> Tableau`` a solver, with the options that all of them have.

    ``entries`` and ``compared`` say where the book shows it: :class:`SolverInfo`; by default with its usual options
    on the page of all solvers.  The other arguments are fields of that too.  Users then pass:

    grid
        ``(n + 1,)`` decreasing sigmas, of which only the last may be 0; or a function from ``n`` to such a
        grid (``model.grid``), which then needs ``nfe`` or ``steps``.
    nfe
        Network evaluations that the table shall make; the number of steps follows.
    steps
        Steps of the grid function; the number of evaluations follows.
    final
        "zero" adds a last step to 0 to a grid that stops above it ("denoise to zero"); "sigma_min" leaves
        a last step to 0 off.  None takes the grid as it is.
    afs
        Analytical first step: the starting noise is taken for the first output, which saves one call.
    order
        Where a solver has several.  Not given, it is the usual one, or what a shorter grid carries.

    ValueError where the order or the NFE cannot be had; the message says what can.
    """

    def register(make: Callable[..., Tableau]) -> Maker:
        own = inspect.signature(make).parameters

        @wraps(make)
        def build(
            grid: Grid,
            *,
            nfe: int | None = None,
            steps: int | None = None,
            final: Final | None = None,
            afs: bool = False,
            **options: Any,
        ) -> Tableau:
            if final is not None:
                one_of("final", final, Final)
            sigmas = check_grid(_end(_levels(facts, grid, nfe, steps, final, afs, options), final))
            if "order" in own:
                options["order"] = _order(facts, options.get("order"), own["order"].default, len(sigmas) - 1)
            table = make(sigmas, **options)
            order = options.get("order", facts.orders[-1])
            table = replace(table, metadata=dict(solver=facts.name, order=order, source=source))
            return analytical_first_step(table) if afs else table

        build.__doc__ = f"{inspect.cleandoc(make.__doc__ or '')}\n\n{COMMON}"
        common = [
            p for p in inspect.signature(build, follow_wrapped=False).parameters.values() if p.kind == p.KEYWORD_ONLY
        ]
        special = [p.replace(kind=p.KEYWORD_ONLY) for p in list(own.values())[1:]]
        first = inspect.Parameter("grid", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        build.__signature__ = inspect.Signature([first, *special, *common])  # type: ignore[attr-defined]  # for help()
        shown = {title: {}} if entries is None else entries
        facts = SolverInfo(make.__name__, title, basis, tuple(orders), source, calls, build, shown, compared)
        SOLVERS[facts.name] = facts
        return build

    return register


def _end(sigmas: Tensor, final: Final | None) -> Tensor:
    """The grid with a step to 0 added or left off."""
    if final == "zero" and sigmas[-1] > 0:
        return torch.cat([sigmas, sigmas.new_zeros(1)])
    return sigmas[:-1] if final == "sigma_min" and sigmas[-1] == 0 else sigmas


def _levels(
    facts: SolverInfo,
    grid: Grid,
    nfe: int | None,
    steps: int | None,
    final: Final | None,
    afs: bool,
    options: Mapping[str, Any],
) -> Tensor:
    """The grid itself, or the one of a grid function that has the wanted steps or makes the wanted calls."""
    if isinstance(grid, Tensor) or not callable(grid):
        if nfe is not None or steps is not None:
            raise ValueError("nfe= and steps= choose from a grid function such as model.grid; this grid has its steps")
        return torch.as_tensor(grid, dtype=torch.float64)
    if (nfe is None) == (steps is None):
        raise ValueError("a grid function needs nfe= or steps=, one of the two")
    if steps is not None:
        return grid(steps)
    assert nfe is not None
    if nfe < 1:
        raise ValueError(f"NFE must be one or more, got {nfe}")
    probe = _end(grid(2), final)
    more, zero = len(probe) - 3, bool(probe[-1] == 0)
    can = {facts.calls(n + more, zero, options) - afs: n for n in range(1, nfe + 6) if n + more > 0}
    if nfe not in can:
        near = sorted(sorted((c for c in can if c > 0), key=lambda calls: abs(calls - nfe))[:2])
        raise ValueError(f"{facts.name} cannot make {nfe} calls on such a grid, try {' or '.join(map(str, near))}")
    return grid(can[nfe])


def _order(facts: SolverInfo, order: int | None, usual: int, steps: int) -> int:
    """The order asked for, or the usual one as far as the grid carries it."""
    if order is None:
        return min(usual, steps)
    if order not in facts.orders:
        low, high = facts.orders[0], facts.orders[-1]
        raise ValueError(f"{facts.name} has {f'orders {low} to {high}' if low < high else f'order {low}'}, got {order}")
    if order > steps:
        raise OrderError(order, steps)
    return order


def get(name: str) -> SolverInfo:
    """The solver called ``name``, or a ValueError with those there are."""
    if name not in SOLVERS:
        raise ValueError(f"no solver named {name!r}; there are: {', '.join(SOLVERS)}")
    return SOLVERS[name]


def parse(spec: str) -> tuple[SolverInfo, dict[str, Any]]:
    """A solver written as one word, ``"unipc"`` or ``"deis:order=4,variable=rho"``: the solver, and its options.

    ValueError for an unknown solver, an option that it has not, or a text that is not of this form.
    """
    facts = get(spec.partition(":")[0])
    known = {k: p.default for k, p in inspect.signature(facts.make).parameters.items() if k not in ("grid", "schedule")}
    options = parse_options(spec, known)[1]
    for key, value in options.items():
        if isinstance(known[key], bool) and not isinstance(value, bool):
            raise ValueError(f"{spec!r}: {key} is True or False, not {value}")
    return facts, options


def parse_options(spec: str, known: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """``"name:key=value,key=value"`` into the name and its options; values are numbers, True, False or words.

    ValueError for an option that is not ``known``, or a text that is not of this form.
    """
    name, _, rest = spec.partition(":")
    options = dict[str, Any]()
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if not equals or key not in known:
            raise ValueError(f"{spec!r}: {name} has no option {part!r}; it has {', '.join(known)}, as option=value")
        options[key] = {"True": True, "False": False}.get(value, _number(value))
    return name, options


def _number(text: str) -> int | float | str:
    """A whole number, a decimal one, or the word as it is."""
    if text.isdecimal():
        return int(text)
    whole, point, rest = text.partition(".")
    return float(text) if point and (whole + rest).isdecimal() else text
