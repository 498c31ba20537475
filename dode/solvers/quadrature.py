"""Integrals of polynomials along a step: what the weights of every multistep method are.

All methods replace the denoiser's output by a polynomial through known values and integrate it over
the step.  They differ in the variable that the polynomial lives in, and in the basis:

    noise   x_t = x_s         +  int_s^t eps dsigma
    data    x_t = (t / s) x_s +  t int D d(1 / sigma)

The integrands are smooth, so Gauss-Legendre quadrature gives them to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.polynomial.legendre import leggauss

from dode.tableau import Basis

_nodes = cache(leggauss)


def gauss(
    a: float, b: float, inner: Sequence[float] | np.ndarray = (), order: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights ``(P * order,)`` of the integral from ``a`` to ``b``, in panels cut at ``inner``."""
    between = np.asarray(inner, dtype=np.float64)
    between = np.sort(between[(between > min(a, b)) & (between < max(a, b))])
    edges = np.concatenate([[a], between if a < b else between[::-1], [b]])
    x, w = _nodes(order)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * x).ravel(), (half[:, None] * w).ravel()


def lagrange(nodes: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The Lagrange polynomials of ``nodes`` ``(p,)`` at ``x`` ``(q,)``: ``(p, q)``, summing to one."""
    result = np.ones((len(nodes), len(x)))
    for k, node in enumerate(nodes):
        for other in np.delete(nodes, k):
            result[k] *= (x - other) / (node - other)
    return result


def log_step(basis: Basis, s: float, t: float) -> tuple[np.ndarray, np.ndarray]:
    """Points ``u = ln sigma`` from ``s`` to ``t > 0``, and the weights of the step's integral there."""
    u, w = gauss(math.log(s), math.log(t))
    return u, w * (np.exp(u) if basis == "noise" else -np.exp(math.log(t) - u))


def moments(basis: Basis, s: float, t: float, highest: int = 2) -> list[float]:
    r"""``I_k = int (u / h)^k`` over the step, ``u`` the way gone in ``-ln sigma`` and ``h`` the whole of it.

    ``I_0`` is the row sum; the others are the phi functions of exponential integrators, and with them every
    formula of DPM-Solver(++) and UniPC is a line.  ``t > 0``, but for ``highest = 0``.
    """
    total = t - s if basis == "noise" else 1 - t / s
    if highest == 0:
        return [total]
    u, w = log_step(basis, s, t)
    way = (math.log(s) - u) / math.log(s / t)
    return [total, *(float(w @ way**k) for k in range(1, highest + 1))]
