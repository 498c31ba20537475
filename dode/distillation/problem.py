"""What a distiller is given, a :class:`Problem`, and the register of those there are, :data:`DISTILLERS`.

A method is a function of a problem and of its own options.  The decorator :func:`distiller` gives it the public call
``dode.distillation.NAME(model, solver, noise, ...)``, writes what a reader of its file wants to know, and enters it:
``dode distill --method``, the words of sweeps and the comparison page know it from its declaration alone.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from dode import solvers
from dode.denoisers import Denoiser
from dode.distillation.designer import Designed
from dode.distillation.losses import Residual, pixels
from dode.distillation.teachers import Examples, default_teacher
from dode.sampling import AnyDenoiser
from dode.solvers.base import Maker
from dode.tableau import Tableau

Result = TypeVar("Result", bound=Tableau | Designed, covariant=True)
Moved = Literal["first level", "levels", "input levels", "weights"]


@dataclass
class Problem:
    """A solver to distil: the one argument of every distiller."""

    denoiser: Denoiser  # D-ODE takes any callable D(x, sigma), too
    table: Tableau  # where the search starts
    noise: Tensor  # (B, ...) of unit variance to fit on; some methods hold a part back.  D-ODE: or batches of it
    solver: Callable[..., Tableau] | None = None  # ``table`` as a function of a grid; None: found by its name
    residual: Residual = pixels  # what final images are compared in
    seeds: Iterable[int] | None = None  # of the noise, for the metadata
    teacher: Tableau | None = None  # None: 40 calls of UniP-3 on the denoiser's own grid
    autocast: Denoiser | None = None  # the same model in cheaper arithmetic; methods that go by gradient take it
    folder: Path | None = None  # keeps the state of a long training, which goes on from there; None: nowhere
    batch_size: int | None = None  # images at a time; None: all (D-ODE), or 100
    progress: bool = False  # a progress bar
    method: str = ""  # the distiller at work; it enters its name itself

    @property
    def afs(self) -> bool:
        """Whether the start has an analytical first step."""
        return bool(self.table.metadata.get("afs", False))

    @property
    def guide(self) -> Tableau:
        """The teacher's table."""
        return self.teacher or default_teacher(self.denoiser)

    def examples(self, held_back: float, bias: float = 0.0) -> Examples:
        """The noise, to fit on and held back (the first part), with the teacher's images; runs the teacher."""
        size = self.batch_size or 100
        return Examples.make(self.denoiser, self.noise, self.guide, self.residual, held_back, bias, size)

    @property
    def family(self) -> Callable[..., Tableau]:
        """The solver as a function of a grid, without an analytical first step."""
        if self.solver is not None:
            return functools.partial(self.solver, afs=False) if self.afs else self.solver
        make: Callable[..., Tableau] = solvers.get(str(self.table.metadata.get("solver"))).make
        usual = dict(order=self.table.metadata.get("order"), basis=self.table.basis)
        known = inspect.signature(make).parameters
        return functools.partial(make, **{k: v for k, v in usual.items() if k in known})

    @property
    def make(self) -> Callable[[Tensor], Tableau]:
        """The solver as a function of the levels of its table, before which an analytical first step has one more.

        ValueError if it was not given, and its name in the metadata does not give the table again.
        """
        if self.solver or self.table.metadata.get("solver") in solvers.SOLVERS:
            make = family = self.family
            if self.afs:
                top = self.denoiser.grid(1)[:1]
                make = lambda levels: family(torch.cat([top, levels]), afs=True)  # noqa: E731
            if self.solver or make(self.table.levels).digest == self.table.digest:
                return make
        raise ValueError(
            f"{self.method} writes the solver on other noise levels, and this table does not tell how; pass the solver "
            "as a function, such as dode.solvers.unipc, and nfe="
        )


SHARED = ("residual", "seeds", "teacher", "autocast", "folder", "batch_size", "progress")
COMMON = """For every distiller: ``model`` is the denoiser; ``solver`` a tableau, or a function such as
``dode.solvers.unipc`` with ``nfe=``; ``noise`` some hundred images of unit variance, ``(B, ...)``
(:func:`dode.initial_noise`).  The other options are fields of :class:`dode.distillation.Problem`.  The ``metadata`` of
the result name the method, the model, the teacher and the ``network_evaluations`` that it took."""


class Distiller(Protocol[Result]):
    """A distiller as users call it; :class:`Problem` explains the common options."""

    def __call__(
        self, model: AnyDenoiser, solver: Tableau | Callable[..., Tableau] | Maker, noise: Tensor | Iterable[Tensor],
        *, nfe: int | None = None, **options: Any,
    ) -> Result: ...  # fmt: skip


@dataclass(frozen=True)
class DistillerInfo(Generic[Result]):
    """What the field knows of a distiller, and what the book asks of it."""

    name: str
    title: str  # on pages
    function: Callable[..., Result]
    source: str = ""  # who published it
    cite: str = ""  # its entry in the book's references
    place: float = float("inf")  # on the comparison page, the first one first
    start: str = "deis:variable=log_rho,basis=data,afs=True"  # what is distilled there
    grid: str | None = "time"  # its noise levels there; "own": the network's; None: the method finds its own anyway
    moves: Sequence[Moved] = ("levels", "input levels", "weights")
    needs_gradient: bool = False  # through the network
    loss: str | None = "all"  # how final images are compared (:func:`dode.distillation.losses.named_loss`); None: not
    designs: bool = False  # a table for each image, not one for all
    everywhere: bool = False  # compared on every network, not on the first alone
    prefix: str = ""  # of its solvers' names; by default its own name
    trajectories: int = 0  # noises that its authors train on, taken in place of what a kept preset has
    images: Callable[[Tableau, Residual], int] | None = None  # that its budget pays for; None: what the others have
    options: dict[str, Any] = field(default_factory=dict)  # its own, with their defaults
    call: Any = None  # the :class:`Distiller`

    @property
    def shared(self) -> tuple[str, ...]:
        """The options of a problem that it takes."""
        other = {"residual"} if self.loss is None else set()
        return tuple(name for name in SHARED if name not in self.options and name not in other)

    def fit(self, problem: Problem, **options: Any) -> Result:
        """Distil; ``options`` are its own.  Writes the metadata that all have."""
        inherited = {k: v for k, v in problem.table.metadata.items() if k != "network_evaluations"}  # of the start
        network, noise = (self.needs_gradient and problem.autocast) or problem.denoiser, problem.noise
        table, before = replace(problem.table, metadata=inherited), getattr(network, "evaluations", 0)
        problem = replace(problem, denoiser=network, table=table, method=self.name)
        with torch.set_grad_enabled(self.needs_gradient):
            found = self.function(problem, **options)
        spent = dict(network_evaluations=getattr(network, "evaluations", 0) - before)
        start = found.base if isinstance(found, Designed) else problem.table
        facts: dict[str, Any] = dict(
            solver=f"{self.prefix or self.name}-{start.metadata.get('solver', 'solver')}", method=self.name,
            nfe=found.nfe, model=getattr(problem.denoiser, "name", None),
        )  # fmt: skip
        trained = "trajectories" in self.options  # then the noise only checked
        facts["check_seeds" if trained else "seeds"] = None if problem.seeds is None else list(problem.seeds)
        if isinstance(noise, Tensor):
            facts |= dict(shape=list(noise.shape[1:])) | ({} if trained else dict(images=len(noise)))
        return replace(found, metadata=spent | found.metadata | facts)


DISTILLERS: dict[str, DistillerInfo[Any]] = {}


def distiller(title: str, **facts: Any) -> Callable[[Callable[..., Result]], Distiller[Result]]:
    """Make a function ``(problem, *, own options) -> solver`` a distiller; ``facts`` are :class:`DistillerInfo`'s.

    ``dode.cli.methods`` reads them without running the file: write them, and the options' types and defaults, as plain
    values.  An option that can be typed is an int, a float, a bool or a ``Literal``.  Presets of the book set those
    called ``steps`` and ``trajectories``.
    """

    def register(function: Callable[..., Result]) -> Distiller[Result]:
        own = list(inspect.signature(function).parameters.values())[1:]
        name = function.__name__.replace("_", "-")
        info = DistillerInfo(name, title, function, **facts, options={p.name: p.default for p in own})

        @functools.wraps(function)
        def call(model: Any, solver: Any, noise: Any, *, nfe: int | None = None, **options: Any) -> Result:
            shared = {name: options.pop(name) for name in info.shared if name in options}
            if isinstance(solver, Tableau) != (nfe is None):
                raise ValueError("nfe= goes with a function such as dode.solvers.unipc, and not with a finished table")
            if isinstance(solver, Tableau):
                return info.fit(Problem(model, solver, noise, **shared), **options)
            return info.fit(Problem(model, solver(model.grid, nfe=nfe), noise, solver, **shared), **options)

        call.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{COMMON}"
        *first, _ = inspect.signature(call, follow_wrapped=False).parameters.values()
        fields = inspect.signature(Problem).parameters
        common = [fields[name].replace(kind=inspect.Parameter.KEYWORD_ONLY) for name in info.shared]
        call.__signature__ = inspect.Signature([*first, *own, *common])  # type: ignore[attr-defined]  # for help()
        DISTILLERS[name] = replace(info, call=call)
        for key in sorted(DISTILLERS, key=lambda key: DISTILLERS[key].place):
            DISTILLERS[key] = DISTILLERS.pop(key)
        return call

    return register
