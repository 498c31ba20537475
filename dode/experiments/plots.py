"""The figures' one style: readable in print, safe for the colour-blind, no title (captions do that)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from IPython.display import HTML, Markdown
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import TwoSlopeNorm
from torch import Tensor

from dode.denoisers import PICTURES, Images
from dode.distillation import DISTILLERS
from dode.experiments.variants import ON_BEST, OWN
from dode.solvers import SOLVERS
from dode.tableau import Tableau

COLOURS = dict(
    zip(("ddim", "heun", "ipndm", "teacher"), [*sns.color_palette("colorblind", 3), (0.25, 0.25, 0.25)], strict=True)
)
NAMES = {name: info.title for name, info in SOLVERS.items()} | {
    "dpm_solver": "DPM-Solver-3",
    "deis": "DEIS tAB2",
    "deis:order=4": "DEIS-3 (tAB3)",
    "dpm_solver_pp:order=2": "DPM-Solver++(2M)",
    "dpm_solver_pp": "DPM-Solver++(3M)",
    "unipc": "UniPC-3",
}
NAMES |= {f"d-{solver}": f"D-{name}" for solver, name in NAMES.items()}
MARKERS = {"ddim": "o", "heun": "s", "ipndm": "^"}
LEARNED = {name: method.title for name, method in DISTILLERS.items()}
NAMES |= {"start": "initial solver"} | LEARNED
LEARNED_LOOKS = {
    method: dict(color=colour, marker=marker)
    for method, colour, marker in zip(
        LEARNED,
        itertools.cycle(("C8", "C2", "C3", "C1", "C5", "C4", "C0", "C9", "#AA1155", "C6", "C7", "#225544")),
        itertools.cycle("PX*^v<sDop"),
    )
} | {"gauss-newton": dict(color="black", marker="D")}  # grey is for handcrafted solvers


def style() -> None:
    """Set the style once, at the top of a notebook."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", font_scale=0.95)
    plt.rcParams.update({
        "figure.dpi": 110, "savefig.dpi": 150, "figure.constrained_layout.use": True, "axes.titlesize": "medium",
        "axes.titleweight": "bold", "legend.frameon": False, "image.interpolation": "nearest",
    })  # fmt: skip


def curve(
    ax: Axes,
    nfes: Sequence[int],
    values: Sequence[float],
    solver: str,
    distilled: bool,
    spread: Sequence[float] | None = None,
) -> None:
    """One solver's line: dotted as published, solid for its D- version, with the spread as error bars."""
    label = NAMES[f"d-{solver}" if distilled else solver]
    ax.errorbar(
        nfes, values, yerr=spread, label=label, color=COLOURS[solver], capsize=3, linewidth=1.8, markersize=6,
        linestyle="-" if distilled else ":", marker=MARKERS[solver], markerfacecolor=None if distilled else "white",
    )  # fmt: skip


def against_calls(ax: Axes, found: pd.DataFrame, column: str, label: str, floor: float | None = None) -> None:
    """Distances of one network's solvers, by ``method``, against calls: handcrafted ones grey, learned ones coloured.

    The start is dotted; ``floor``, below which nothing can be distinguished, is dashed.
    """
    marks = itertools.cycle("osDPX")
    crafted = [m for m in found.method.unique() if m != "start" and m not in LEARNED]
    for method in [*crafted, "start", *(m for m in LEARNED if m in set(found.method))]:
        part = found[found.method == method].sort_values("nfe")
        look: dict[str, Any]
        if method in LEARNED:
            look = dict(linewidth=2, **LEARNED_LOOKS[method])
        elif method == "start":
            look = dict(color="black", linestyle=":", marker=".", linewidth=1.8)
        else:
            look = dict(color="0.65", marker=next(marks), markersize=4, linewidth=1)
        ax.plot(part.nfe, part[column], label=NAMES[method], **look)
    if floor is not None:
        ax.axhline(floor, color="0.3", linestyle="--", linewidth=0.8)
    log_axes(ax, sorted(found.nfe.unique()), label)


MEASURES = {"fd": "{} to the data", "fd_reference": "{} to the reference", "rmse": "RMSE"}
ODD = {9: 10, 49: 50}  # Heun's method makes an odd number of evaluations, and stands with the others
KINDS: dict[str, dict[str, Any]] = {
    "plain": dict(linestyle=":", markerfacecolor="white"), "distilled": dict(linestyle="-"),
}  # fmt: skip


def _of(pairs: pd.DataFrame, grid: str, kind: str, column: str) -> pd.Series:
    """A distance of plain or distilled solvers on their own or on the best grid, in the network's basis."""
    part = pairs[pairs.variant == "d-ode" + ON_BEST * (grid == "best")]
    return part[column if kind == "distilled" else f"{column}_plain"].dropna()


def best_lines(
    axes: Sequence[Axes], pairs: pd.DataFrame, distance: str, floors: Mapping[str, float] | None = None
) -> None:
    """The best plain and the best distilled solver at each NFE, a measure a panel; of :func:`.quality.pairs`.

    On the network's own grid, and where each is on the grid that suits it.  ``distance``: what the Fréchet distance is
    called; ``floors``: what to draw dashed in its panels, by column.
    """
    pairs = pairs.replace({"nfe": ODD})
    for ax, (column, label) in zip(axes, MEASURES.items(), strict=False):
        for (grid, colour), (kind, look) in itertools.product({"own": "C0", "best": "C1"}.items(), KINDS.items()):
            line = _of(pairs, grid, kind, column).groupby(pairs.nfe).min()
            ax.plot(line.index, line, marker="o", color=colour, label=f"best {kind}, {grid} grid", **look)
        n = f", n = {int(pairs['n_rmse' if column == 'rmse' else 'n'].max()):,}"
        log_axes(ax, sorted(set(pairs.nfe)), label.format(distance) + n)
        if floors and column in floors:
            ax.axhline(floors[column], color="0.3", linestyle="--", linewidth=0.9)


def best_names(pairs: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Who the best of :func:`best_lines` are, with their distance: a line an NFE, grid and measure."""
    lines = []
    for (nfe, part), grid, (column, label) in itertools.product(
        pairs.replace({"nfe": ODD}).groupby("nfe"), ("own", "best"), MEASURES.items()
    ):
        found = {kind: _of(part, grid, kind, column) for kind in KINDS}
        if all(map(len, found.values())):
            best = {
                kind: f"{'D-' * (kind != 'plain')}{names[part.solver[v.idxmin()]]} {v.min():.3f}"
                for kind, v in found.items()
            }
            lines.append({"NFE": nfe, "grid": grid, "measure": label.format("FD")} | best)
    return pd.DataFrame(lines)


def beside(ax: Axes, pairs: pd.DataFrame) -> None:
    """One solver of :func:`.quality.pairs`: plain dotted, distilled solid, own basis dashed; best grid orange."""
    for variant, part in pairs.groupby("variant", sort=False):
        best, own = str(variant).endswith(ON_BEST), variant == OWN
        for kind, look in KINDS.items() if not own else [("own basis", dict(linestyle="--", marker="s"))]:
            of = "_plain" if kind == "plain" else ""
            ax.errorbar(
                part.nfe, part[f"fd{of}"], yerr=part[f"fd_std{of}"].fillna(0), color="C1" if best else "C0",
                label=kind + ", best grid" * best, **{"marker": "o", "capsize": 3} | look,
            )  # fmt: skip


def pairs_table(pairs: pd.DataFrame, names: Mapping[str, str]) -> HTML:
    """Every number of :func:`.quality.pairs`, a line a solver, NFE, grid and variant."""
    order = {solver: k for k, solver in enumerate(names)}
    pairs = pairs.assign(
        order=pairs.solver.map(order).fillna(len(order)), best=pairs.variant.str.endswith(ON_BEST),
        basis=np.where(pairs.variant == OWN, "own", "network's"),
    ).sort_values(["checkpoint", "order", "best", "basis", "nfe"])  # fmt: skip
    grids = pairs.grid_plain.where(pairs.grid_plain == pairs.grid, pairs.grid_plain + ", " + pairs.grid)
    listed = {
        "checkpoint": pairs.checkpoint, "solver": pairs.solver.map(lambda s: names.get(s, s)), "NFE": pairs.nfe,
        "grid": grids.replace("", "own"), "basis": pairs.basis,
    } | {
        kind: [plus_minus(*v) for v in zip(pairs[f"fd{of}"], pairs[f"fd_std{of}"], strict=True)]
        for kind, of in {"plain": "_plain", "distilled": ""}.items()
    } | {"ratio": pairs.ratio.map("{:.2f}".format), "paired": pairs.paired}  # fmt: skip
    for column in ("fd_reference", "rmse"):
        both = pairs[f"{column}_plain"].map("{:.3f} → ".format) + pairs[column].map("{:.3f}".format)
        listed[MEASURES[column].format("FD")] = both.where(pairs[column].notna(), "")
    listed["n x blocks"] = pairs.n.map("{:,.0f} x ".format) + pairs.blocks.map(str)
    return listing(pd.DataFrame(listed))


def ahead_in_blocks(pairs: pd.DataFrame, names: Mapping[str, str]) -> None:
    """Print at which NFEs a solver of :func:`.quality.pairs` is nearer distilled in every block, if it has several."""
    print("of solvers with several blocks of seeds:")
    several = pairs[(pairs.paired != "") & (pairs.variant == "d-ode")]
    for (network, solver), part in several.groupby(["checkpoint", "solver"], sort=False):
        won = ", ".join(map(str, part.nfe[part.paired == "distilled"])) or "none"
        of = ", ".join(map(str, part.nfe))
        print(f"{network}, {names.get(solver, solver)}: distilled ahead in all blocks at NFE {won} of {of}")


def log_axes(ax: Axes, nfes: Sequence[int], ylabel: str) -> None:
    """Both axes logarithmic, a tick for each NFE."""
    ax.set(xscale="log", yscale="log", xlabel="NFE (network evaluations)", ylabel=ylabel)
    ax.set_xticks(list(nfes), [str(n) for n in nfes])
    ax.minorticks_off()
    plain_ticks(ax.yaxis)


def plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis at 1, 2 and 5 times the powers of ten, written as plain numbers."""
    axis.set_major_locator(plt.LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(plt.FuncFormatter(lambda v, _: f"{v:g}"))
    axis.set_minor_locator(plt.NullLocator())


def show(ax: Axes, images: Tensor, columns: int, title: str = "", kind: Images = PICTURES) -> None:
    """Draw a mosaic without axes; ``kind``: the model's ``images``."""
    ax.imshow(kind.mosaic(images, columns), cmap="gray", vmin=0, vmax=255)
    ax.set_title(title)
    ax.set_axis_off()


def strip(ax: Axes, images: Tensor, label: str, kind: Images = PICTURES) -> None:
    """Draw ``(B, C, H, W)`` as one row with ``label``, a line for each part between commas, on its left.

    ``kind``: the model's ``images``.
    """
    ax.imshow(kind.mosaic(images, len(images)), cmap="gray", vmin=0, vmax=255)
    ax.set(xticks=[], yticks=[])
    ax.set_ylabel(label.replace(", ", "\n"), rotation=0, ha="right", va="center")
    ax.spines[:].set_visible(False)


def table(ax: Axes, tableau: Tableau, title: str = "", numbers: bool = True) -> None:
    """A tableau as a picture: one square a weight, as a share of its row; blue goes the way of the step, red back.

    DDIM is 1, the second row of iPNDM 3/2 and -1/2, in either basis.  A row that stays at its noise level has no sum:
    it is divided by half of the sum without signs, so that it takes away as much as it adds.
    """
    sums, sizes = tableau.full.sum(1, keepdim=True), tableau.full.abs().sum(1, keepdim=True)
    half = sizes / 2 * (-1 if tableau.basis == "noise" else 1)  # noise is taken away on the way
    shares = tableau.full / torch.where(sums.abs() > 1e-9 * sizes, sums, half)
    shown = shares / shares.abs().amax(1, keepdim=True).clamp(min=1e-300)
    blank = torch.where(shares == 0, torch.nan, shown).numpy()
    ax.imshow(blank, cmap="RdBu", norm=TwoSlopeNorm(0, -1, 1), aspect="auto")
    n = tableau.nfe
    for i, j in shares.nonzero().tolist() if numbers else []:
        colour = "white" if abs(float(shown[i, j])) > 0.6 else "black"
        ax.text(j, i, f"{shares[i, j]:.3g}", ha="center", va="center", fontsize=8, color=colour)
    symbol = "d" if tableau.basis == "noise" else "D"
    ax.set_xticks(range(n + 1), ["z", *(f"${symbol}_{{{j}}}$" for j in range(n))])
    ax.set_yticks(
        range(n), [f"{a:.3g} → {b:.3g}" for a, b in zip(tableau.sigmas[:-1], tableau.sigmas[1:], strict=True)]
    )
    ax.set_title(title)
    ax.grid(False)


def plus_minus(mean: float, deviation: float) -> str:
    """Mean and standard deviation, ``"0.278 ± 0.008"``: the mean alone if no deviation is known, empty if neither."""
    return ("" if pd.isna(mean) else f"{mean:.3f}") + ("" if pd.isna(deviation) else f" ± {deviation:.3f}")


def spread(values: pd.Series) -> str:
    """Mean and standard deviation over blocks of seeds; of a single one, its value."""
    return plus_minus(values.mean(), values.std())


def listing(table: pd.DataFrame) -> HTML:
    """A data frame as a page shows it: no index, checkpoints by their last word where all are of one data set."""
    if "checkpoint" in table:
        parts = table.checkpoint.str.rsplit("-", n=1)
        table = table.assign(checkpoint=parts.str[-1] if parts.str[0].nunique() == 1 else table.checkpoint)
        table = table.rename(columns={"checkpoint": "network"})
    return HTML(table.to_html(index=False, border=0))


def calls_table(found: pd.DataFrame, column: str, caption: str, titles: Mapping[str, str] = NAMES) -> HTML:
    """Distances of one network's solvers: a line a ``method``, a column an NFE, the least in bold; empty: not measured.

    After a handcrafted solver's its ``grid`` stands as a letter: t uniform in time, q quadratic, K Karras's, s log SNR.
    """
    wide, grid = (found.pivot(index="method", columns="nfe", values=v) for v in (column, "grid"))
    letter = {"time": "t", "quadratic": "q", "Karras": "K", "log SNR": "s"}
    methods = list(dict.fromkeys(found.method))
    cells = pd.DataFrame({"solver": [titles[m] for m in methods]})
    for nfe in wide:
        low = wide[nfe].min()
        cells[f"NFE {nfe}"] = [
            (f"<b>{v:.4f}</b>" if v == low else "" if pd.isna(v) else f"{v:.4f}")
            + (f" {letter[g]}" if g in letter and m != "start" else "")
            for m, v, g in ((m, wide[nfe][m], grid[nfe][m]) for m in methods)
        ]
    return HTML(f"<p>{caption}</p>" + cells.to_html(index=False, border=0, escape=False))


def in_short(text: str) -> Markdown:
    """The box at the head of a page; its cell has the metadata ``mystnb={"markdown_format": "myst"}``."""
    paragraphs = text.strip().replace("\n", "\n\n")
    return Markdown(f"```{{admonition}} In short\n{paragraphs}\n```")


def provenance(facts: Mapping[str, object]) -> Markdown:
    """The foot of a page: where its numbers come from."""
    return Markdown("*" + " · ".join(f"{k}: {v}" for k, v in facts.items()) + "*")
