r"""The tableau: a solver as one small table of numbers.

Row ``i`` of a tableau evaluates the denoiser once, at state ``x_i`` and level ``sigmas_in[i]``,
keeps an output ``d_i``, and moves to ``sigmas[i + 1]``:

    basis "noise":  d_i = (x_i - D_i) / sigma_i    x_{i+1} = x_i + sum_j W_ij d_j
    basis "data":   d_i = D_i                      x_{i+1} = (sigma_{i+1} / sigma_i) x_i + sum_j W_ij d_j

``j`` runs from -1: the starting noise ``z`` stands in as an output before the first (``d_{-1} = z``
in the noise basis, where it is the noise estimate at infinite sigma; ``d_{-1} = 0`` in the data
basis).  A row is *consistent* when a constant output is integrated exactly:

    sum_j W_ij = sigma_{i+1} - sigma_i  (noise)        sum_j W_ij = 1 - sigma_{i+1} / sigma_i  (data)

Single-step schemes of several stages are rows too; a row may stay at its level (Heun's corrector).
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from dode.utils.files import FileError, load_tensors, one_of, save_tensors

Basis = Literal["noise", "data"]


class TableauRow(NamedTuple):
    """One row as the loop reads it: ``x = ratio x + sum(w d_j for j, w in terms)``, from a level to the following.

    Its numbers are plain ones; in rows that a fit makes they are tensors, 0-d or ``(B,)``.
    """

    basis: Basis
    ratio: Any
    terms: Sequence[tuple[int, Any]]  # the newest output first
    keep: Container[int]  # outputs that a later row still uses
    sigma: Any
    sigma_in: Any
    following: Any


@dataclass(frozen=True, eq=False)
class Tableau:
    """A solver: basis, levels, weights.  All tensors float64 on the CPU.

    Attributes
    ----------
    basis : "noise" or "data"
    sigmas : (N + 1,)
        Level of each state, never increasing; only the last may be 0.
    weights : (N, N)
        Lower triangular, ``weights[i, j]`` multiplies output ``j`` in row ``i``.
    noise_weights : (N,)
        Weights of the starting noise; zero by default.
    sigmas_in : (N,)
        The level given to the network; ``sigmas[:-1]`` by default.
    metadata : dict
        JSON-serialisable: ``solver``, ``order``, and for distilled ones model, shape, teacher,
        seeds, fit error, versions.

    Raises
    ------
    ValueError
        Shapes disagree, levels increase, an entry is not finite or lies above the diagonal.
    """

    basis: Basis
    sigmas: Tensor
    weights: Tensor
    noise_weights: Tensor = None  # type: ignore[assignment]
    sigmas_in: Tensor = None  # type: ignore[assignment]
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, torch.as_tensor(value, dtype=torch.float64).cpu())  # noqa: E731
        put("sigmas", self.sigmas)
        put("weights", self.weights)
        if self.weights.ndim != 2 or self.sigmas.ndim != 1:
            raise ValueError("a tableau needs weights of shape (N, N) and sigmas of shape (N + 1,)")
        put("noise_weights", torch.zeros(self.nfe) if self.noise_weights is None else self.noise_weights)
        put("sigmas_in", self.sigmas[:-1].clone() if self.sigmas_in is None else self.sigmas_in)
        object.__setattr__(self, "metadata", dict(self.metadata))
        self._check()

    def _check(self) -> None:
        n = self.nfe
        one_of("basis", self.basis, Basis)
        if n < 1:
            raise ValueError("a tableau needs one row (one network evaluation) or more")
        for name, shape in (("sigmas", (n + 1,)), ("weights", (n, n)), ("noise_weights", (n,)), ("sigmas_in", (n,))):
            value = getattr(self, name)
            if tuple(value.shape) != shape:
                raise ValueError(f"tableau of {n} rows: {name} must have shape {shape}, got {tuple(value.shape)}")
            if not torch.isfinite(value).all():
                raise ValueError(f"tableau: {name} has an entry that is not finite")
        up = (self.sigmas[1:] > self.sigmas[:-1]).nonzero()
        if len(up):
            i = int(up[0])
            raise ValueError(f"tableau: sigmas increase from {self.sigmas[i]:g} to {self.sigmas[i + 1]:g} in row {i}")
        if self.sigmas[-1] < 0 or self.sigmas[-2] <= 0 or (self.sigmas_in <= 0).any():
            raise ValueError("tableau: the denoiser can only be evaluated at positive noise levels")
        if self.weights.triu(1).any():
            raise ValueError("tableau: a weight above the diagonal would use an output that is not yet there")

    # --- algebra ---------------------------------------------------------------------------------

    @property
    def nfe(self) -> int:
        """Network evaluations: the number of rows."""
        return len(self.weights)

    @property
    def full(self) -> Tensor:
        """``(N, N + 1)``: the starting-noise column, then :attr:`weights`."""
        return torch.cat([self.noise_weights[:, None], self.weights], dim=1)

    @property
    def row_sums(self) -> Tensor:
        """What the rows of :attr:`full` must sum to, ``(N,)``."""
        s = self.sigmas
        return s[1:] - s[:-1] if self.basis == "noise" else 1 - s[1:] / s[:-1]

    @property
    def normalised_weights(self) -> Tensor:
        """``(N, N + 1)``: :attr:`full` over its row sums, the ``a_k`` of the unified prediction (DLMS, eq. 8).

        A consistent row's parts sum to one; a row that stays at its level has none (inf or nan).
        """
        return self.full / self.row_sums[:, None]

    def inconsistency(self) -> float:
        """Largest deviation of a row sum, relative to the row's largest weight; 0 up to rounding for a solver."""
        full = self.full
        return float(((full.sum(1) - self.row_sums).abs() / full.abs().amax(1).clamp(min=1e-300)).max())

    @cached_property
    def rows(self) -> tuple[TableauRow, ...]:
        """The non-zero weights row by row; a 1000-step DDIM keeps one output, not 1000."""
        sigmas, sigmas_in = self.sigmas.tolist(), self.sigmas_in.tolist()
        ratio = [1.0] * self.nfe if self.basis == "noise" else (self.sigmas[1:] / self.sigmas[:-1]).tolist()
        full, terms = self.full, [list[tuple[int, float]]() for _ in range(self.nfe)]
        if self.basis == "data":
            full[:, 0] = 0  # the starting noise is an output of zero
        where = full.nonzero()
        for (i, column), weight in zip(where.tolist(), full[where[:, 0], where[:, 1]].tolist(), strict=True):
            terms[i].append((column - 1, weight))
        rows, needed = list[TableauRow](), frozenset[int]()
        for i in reversed(range(self.nfe)):
            newest_first = tuple(reversed(terms[i]))
            rows.append(TableauRow(self.basis, ratio[i], newest_first, needed, sigmas[i], sigmas_in[i], sigmas[i + 1]))
            needed = frozenset(j for j in needed | {j for j, _ in terms[i]} if j < i)
        return tuple(reversed(rows))

    @property
    def levels(self) -> Tensor:
        """The distinct levels, decreasing: the grid without its repeats."""
        return torch.unique_consecutive(self.sigmas)

    def with_full(self, full: Tensor, **metadata: Any) -> Tableau:
        """The same tableau with other weights (``(N, N + 1)``, start column first)."""
        return replace(self, noise_weights=full[:, 0], weights=full[:, 1:], metadata={**self.metadata, **metadata})

    def unbind(self) -> Tableau:
        """Without the model and shape it was distilled for, so that any denoiser may use it."""
        return replace(self, metadata={k: v for k, v in self.metadata.items() if k not in ("model", "shape")})

    def to_basis(self, basis: Basis) -> Tableau:
        """The same solver in the other basis: equal states for every denoiser, up to rounding.

        ValueError if the row sums are off: only a consistent solver has a twin.

        Every state is ``x_i = a_i z + sum_j C_ij d_j``; the recursion below carries ``C`` (and, towards
        the noise basis, ``a``) from one basis to the other, row by row.
        """
        if basis == self.basis:
            return self
        if self.inconsistency() > 1e-9:
            raise ValueError("only a consistent tableau has a twin in the other basis; check its row sums")
        n, s = self.nfe, self.sigmas
        c = torch.zeros(n + 1, n, dtype=torch.float64)  # states as combinations of the new outputs
        a = torch.zeros(n + 1, dtype=torch.float64)
        a[0] = s[0]
        unit = torch.eye(n, dtype=torch.float64)
        for i in range(n):
            w = self.weights[i, : i + 1]
            if basis == "data":  # d_j = (x_j - D_j) / sigma_j; the z-part is always sigma_i
                c[i + 1] = c[i] + (w / s[: i + 1]) @ (c[: i + 1] - unit[: i + 1])
            else:  # D_j = x_j - sigma_j d_j
                ratio = s[i + 1] / s[i]
                c[i + 1] = ratio * c[i] + w @ (c[: i + 1] - s[: i + 1, None] * unit[: i + 1])
                a[i + 1] = ratio * a[i] + w @ a[: i + 1]
        if basis == "data":
            weights = c[1:] - (s[1:] / s[:-1])[:, None] * c[:-1]
            start = 1 - s[1:] / s[:-1] - weights.sum(1)
        else:
            weights, start = c[1:] - c[:-1], a[1:] - a[:-1]
        start[start.abs() <= 1e-12 * weights.abs().amax(1)] = 0  # rounding, not a use of the noise
        return replace(self, basis=basis, weights=weights, noise_weights=start)

    # --- files -----------------------------------------------------------------------------------

    @property
    def digest(self) -> str:
        """The first eight digits of a SHA-256 of basis and numbers: which solver a row was measured with."""
        numbers = torch.cat([self.sigmas, self.sigmas_in, self.full.flatten()]).numpy()
        return hashlib.sha256(self.basis.encode() + numbers.astype("<f8").tobytes()).hexdigest()[:8]

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the four tensors, and the metadata in its header."""
        tensors = dict(sigmas=self.sigmas, sigmas_in=self.sigmas_in, weights=self.weights, start=self.noise_weights)
        return save_tensors(path, tensors, "tableau", {"basis": self.basis, **self.metadata})

    @staticmethod
    def load(path: str | Path) -> Tableau:
        """Read a file of :meth:`save`, bit for bit.

        FileError for a file that is missing, truncated, of another program or kind, or holds no valid tableau.
        """
        tensors, metadata = load_tensors(path, "tableau")
        try:
            tensors["noise_weights"] = tensors.pop("start")  # its name in a file
            return Tableau(metadata.pop("basis"), **tensors, metadata=metadata)
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(f"{path} does not hold a valid tableau: {error}") from None

    def __repr__(self) -> str:
        name = self.metadata.get("solver", "solver")
        return f"Tableau({name}, basis={self.basis!r}, nfe={self.nfe}, sigma {self.sigmas[0]:g} -> {self.sigmas[-1]:g})"


def check_model(metadata: Mapping[str, Any], model: str | None, shape: tuple[int, ...]) -> None:
    """Refuse a tableau that was distilled for another model or image shape."""
    if (wanted := metadata.get("shape")) is not None and tuple(wanted) != shape:
        raise ValueError(
            f"this solver was distilled for samples of shape {tuple(wanted)}, not {shape}; distil one for yours"
        )
    if (trained := metadata.get("model")) is not None and model is not None and trained != model:
        raise ValueError(
            f"this solver was distilled for {trained!r}, not {model!r}; use tableau.unbind() to try it anyway"
        )
