"""What the two papers claim, where it is tested here, and what the committed rows say of it.

A claim is the docstring of a function that reads rows and returns a number in words, and whether the verdict is so: the
tests hold each verdict to that, so it cannot outlive a new run.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dode.experiments.dlms_study import ABLATION, ENDS, trained
from dode.experiments.learned import HANDCRAFTED
from dode.experiments.quality import committed_rows as rows

if TYPE_CHECKING:
    import pandas as pd

Verdict = Literal["holds", "holds in part", "not here", "not tested"]
Finding = Callable[[], tuple[str, bool]]
FOUR = ("ddim", "ipndm", "dpm_solver", "deis:order=4")
DATA, NOISE = "fashion-mnist-data", "fashion-mnist-noise"


@dataclass(frozen=True)
class Claim:
    """A claim of a paper, and the verdict on it."""

    text: str
    source: str  # paper and section
    page: str  # where it is tested
    verdict: Verdict
    finding: Finding  # the number that the verdict rests on, and whether it is so


CLAIMS: list[Claim] = []


def claim(source: str, page: str, verdict: Verdict) -> Callable[[Finding], Finding]:
    """Enter a finding under the claim that its docstring states."""

    def enter(finding: Finding) -> Finding:
        CLAIMS.append(Claim((finding.__doc__ or "").rstrip("."), source, page, verdict, finding))
        return finding

    return enter


@functools.cache
def ratios(name: str) -> pd.Series:
    """Distance of the distilled solver over the plain one's, by network, solver and NFE; mean over blocks."""
    fd = rows(name).groupby(["checkpoint", "solver", "nfe", "variant"]).fd.mean().unstack()
    return (fd["d-ode"] / fd.plain).dropna()


def distance(name: str, checkpoint: str, solver: str, variant: str, nfe: int) -> float:
    """The mean Fréchet distance of a cell over its blocks."""
    cell = "checkpoint == @checkpoint and solver == @solver and variant == @variant and nfe == @nfe"
    return float(rows(name).query(cell).fd.mean())


def ablated(variant: str) -> tuple[float, float]:
    """D-DDIM's distance with NFE 5 when one thing is changed over that of the usual fit: noise, data."""
    of = functools.partial(distance, "ablations", solver="ddim", nfe=5)
    noise, data = (of(checkpoint=c, variant=variant) / of(checkpoint=c, variant="d-ode") for c in (NOISE, DATA))
    return noise, data


# --- the D-ODE paper -------------------------------------------------------------------------------


@claim("D-ODE 3.1", "figure_2", "holds")
def similar() -> tuple[str, bool]:
    """Outputs of neighbouring steps have a cosine similarity close to one."""
    least = float(rows("figure_2")[[f"similarity_{k}" for k in ("first", "middle", "last")]].min(axis=None))
    return f"a tenth of a run apart, least mean {least:.2f}", least > 0.9


@claim("D-ODE 3.2", "ablations", "not here")
def untied() -> tuple[str, bool]:
    """Weights that are not tied together (eq. 8) can be unstable."""
    noise, data = ablated("d-ode:equation=8")
    return f"FD over eq. (10)'s: noise {noise:.2f}, data {data:.2f}", max(noise, data) < 1.5


@claim("D-ODE 3.2", "ablations", "holds in part")
def sufficient() -> tuple[str, bool]:
    """One number a step (eq. 10) is sufficient."""
    noise, data = ablated("d-ode:equation=9")
    return f"FD of eq. (9) over eq. (10)'s: noise {noise:.2f}, data {data:.2f}", noise < 0.8 and data > 1.1


@claim("D-ODE 3.3", "ablations", "holds")
def batch() -> tuple[str, bool]:
    """One batch of 100 images settles the numbers for all later ones."""
    both = ablated("d-ode:images=500")
    return "FD with 500 images over 100: noise {:.2f}, data {:.2f}".format(*both), all(abs(v - 1) < 0.03 for v in both)


@claim("D-ODE 4.1", "figure_3", "holds")
def four() -> tuple[str, bool]:
    """DDIM, iPNDM, DPM-Solver-3, DEIS-3: lower FID distilled in most NFEs."""
    found = {key: v for key, v in ratios("figure_3")[NOISE].items() if key[0] in FOUR}
    lower = [key for key, v in found.items() if v < 1]
    always = all((s, n) in lower for s in FOUR for n in (5, 10))
    return f"{len(lower)} of {len(found)} cells; all with 5 and 10", always and len(lower) > len(found) / 2


@claim("D-ODE 4.1", "figure_3", "holds")
def beyond_five() -> tuple[str, bool]:
    """D-DDIM is ahead of DDIM when the NFE exceeds 5."""
    ten, more = (ratios("figure_3")[NOISE, "ddim", n] for n in (10, 25))
    return f"FD distilled / plain: NFE 10 {ten:.2f}, 25 {more:.2f}", max(ten, more) < 1


@claim("D-ODE 4.1", "figure_3", "holds")
def notable() -> tuple[str, bool]:
    """The gain is notable for DPM-Solver-3 and DEIS-3."""
    found = [ratios("figure_3")[NOISE, s, 5] for s in FOUR[2:]]
    return "FD distilled / plain, NFE 5: {:.2f}, {:.2f}; plain they are far behind DDIM".format(*found), max(
        found
    ) < 0.2


@claim("D-ODE 4.1", "figure_3", "holds in part")
def later() -> tuple[str, bool]:
    """It is effective for DPM-Solver++ (supplement, not at hand)."""
    second, third = (ratios("figure_3")[NOISE, f"dpm_solver_pp{o}", 10] for o in (":order=2", ""))
    return f"FD distilled / plain, NFE 10: (2M) {second:.2f}, (3M) {third:.2f}", second < 1 < third


@claim("D-ODE 4.2", "figure_4", "not tested")
def speed() -> tuple[str, bool]:
    """D-DDIM with 25 evaluations is comparable to DDIM with 250."""
    few, many = (distance("figure_4", DATA, "ddim", v, n) for v, n in (("d-ode", 10), ("plain", 50)))
    return f"250 was not run; FD of D-DDIM with 10 {few:.2f}, of DDIM with 50 {many:.2f}", few < many


@claim("D-ODE 4.2", "figure_4", "holds in part")
def two() -> tuple[str, bool]:
    """Around NFE 2 DDIM occasionally wins slightly."""
    data, noise = (ratios("figure_4")[c, "ddim", 2] for c in (DATA, NOISE))
    return f"it wins clearly; FD distilled / plain: data {data:.2f}, noise {noise:.2f}", min(data, noise) > 1.2


@claim("D-ODE 4.2, 6", "figure_4", "holds in part")
def many() -> tuple[str, bool]:
    """Plain and distilled come to one FID as the NFE grows."""
    ten, more = ([ratios("figure_4")[c, "ddim", n] for c in (DATA, NOISE)] for n in (10, 25))
    words = "FD distilled / plain, DDIM, NFE 10: data {:.2f}, noise {:.2f}; 25: {:.2f}, {:.2f}".format(*ten, *more)
    return words, all(t < m < 0.9 for t, m in zip(ten, more, strict=True))


@claim("D-ODE 4.3", "table_1", "holds in part")
def cheaper() -> tuple[str, bool]:
    """To distil the solver is cheaper than the network: 2.55, 106, 187."""
    cost = rows("table_1_costs").query("checkpoint == @DATA").set_index(["method", "stage"]).units
    students = rows("table_1").query("method == 'progressive'").groupby("stage").fd.mean()
    network = min(cost["progressive", k] + k / 10 for k, fd in students.items() if fd <= 0.5)
    edm, ddim = cost["d-ode heun", 25] + 2.5, cost["d-ode ddim", 10] + 1
    words = f"to FD 0.5: D-EDM {edm:.2f}, D-DDIM {ddim:.2f} at most, progressive distillation {network:.2f}"
    return words, 1.5 < network / edm < 20 and ddim < edm


@claim("D-ODE 5.1", "figure_5", "not here")
def norms() -> tuple[str, bool]:
    """The norm of D-ODE solvers follows that of the plain ones."""
    of = rows("figure_5").query("checkpoint == @NOISE and solver == 'ddim'").set_index("variant").norm_ratio_end
    plain, fitted = float(of["plain"]), float(of["d-ode"])
    return f"DDIM's norm over the reference's: {plain:.3f}, distilled {fitted:.3f}", abs(fitted - plain) > 0.02


@claim("D-ODE 5.1", "figure_5", "holds in part")
def nearer() -> tuple[str, bool]:
    """D-ODE solvers are nearer to the reference trajectory."""
    keys = ["checkpoint", "solver", "nfe"]
    ends = rows("figure_5").pivot(index=keys, columns="variant", values="rmse_end")
    won = int((ends["d-ode"] < ends.plain).sum())
    more = rows("limits").query("nfe >= 5").pivot(index=keys, columns="variant", values="rmse")
    nearer = more["d-ode"] < more.plain
    words = f"{won} of {len(ends)} solvers of figure 5; {nearer.sum()} of {len(nearer)} cells with NFE 5, 10 and 25"
    return words, won > 0.8 * len(ends) and 0.5 < nearer.mean() < 0.8


@claim("D-ODE 5.2", "figure_6", "not here")
def clear() -> tuple[str, bool]:
    """D-EDM draws relatively clear objects with 5 evaluations."""
    cells = ("heun", "plain"), ("heun", "d-ode"), ("ddim", "d-ode")
    plain, edm, ddim = (distance("figure_4", DATA, *cell, 5) for cell in cells)
    words = f"FD of EDM {plain:.1f}, of D-EDM {edm:.1f}, of D-DDIM {ddim:.1f}; D-EDM's images are blurred"
    return words, plain > edm > 3 * ddim


# --- the DLMS paper --------------------------------------------------------------------------------


@claim("DLMS abstract", "dlms", "holds in part")
def ahead() -> tuple[str, bool]:
    """With 5 evaluations sampling is twice as fast as with handcrafted solvers."""
    found = (
        rows("learned").query("block == 0").pivot(index=["checkpoint", "nfe"], columns="method", values="fd_reference")
    )
    best, five = found[list(HANDCRAFTED)].min(axis=1), found[ENDS].xs(5, level="nfe")
    needed = {c: min((n for n, fd in best[c].items() if fd <= five[c]), default=11) for c in (DATA, NOISE)}
    words = f"trained on the last image, FD with NFE 5: data {five[DATA]:.3f}, noise {five[NOISE]:.3f}"
    return words + f"; handcrafted solvers need {needed[DATA]} and {needed[NOISE]}", min(needed.values()) >= 9


@claim("DLMS, Algorithm 1", "dlms", "holds in part")
def steps() -> tuple[str, bool]:
    """Training by step losses (second-hand)."""
    found = rows("dlms_study").query("checkpoint == @DATA and nfe == 5").set_index("method").ended
    fixed, moving = (float(found[trained(kind)]) for kind in ("stored", "moving"))
    words = f"final error at the end / initial: level fixed {fixed:.2f}, with its gradient {moving:.2f}"
    return words, moving < fixed / 2


@claim("DLMS, ablation", "dlms", "holds in part")
def techniques() -> tuple[str, bool]:
    """Each of the six techniques helps at 4 evaluations (second-hand)."""
    found = rows("dlms_study").query("checkpoint == @DATA and nfe == 4").set_index("method").fd_reference
    whole, *others = ABLATION
    worth = [float(found[m] / found[whole]) for m in others]
    words = f"trained on the last image, FD without one over all: {min(worth):.1f} to {max(worth):.1f}; one training"
    return words, min(worth) > 1
