# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Figure 5: distance to the reference trajectory

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist"  # a data set, all, or one name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images; None: the preset's number

# %% tags=["remove-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd

from dode import experiments
from dode.experiments import paths, plots

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
names = experiments.checkpoints(checkpoint)
cells = [cell | ({"n": seeds} if seeds else {}) for name in names for cell in paths.path_cells(p, name)]
rows = paths.path.rows(experiments.Run(p, where), cells)
by = rows.set_index(["checkpoint", "solver", "variant"]).sort_index()
word = lambda name: name.removeprefix("fashion-mnist-")  # noqa: E731
pairs = list(dict.fromkeys(zip(rows.checkpoint, rows.solver, strict=True)))
nearer = [pair for pair in pairs if by.rmse_end[(*pair, "d-ode")] < by.rmse_end[(*pair, "plain")]]
n, (name, solver) = int(rows.n.max()), pairs[0]
moved = {pair: by.norm_ratio_end[(*pair, "d-ode")] - by.norm_ratio_end[(*pair, "plain")] for pair in pairs}
usual = by.loc[(name, solver)]
size = by.norm_ratio_end.sub(1).abs().unstack()
closer = int((size["d-ode"] < size.plain).sum())
short = (
    "Asked: do distilled solvers end nearer to the reference trajectory, and do they keep the plain solver's norm (Section 5.1 of the D-ODE paper)? "
    f"{len(nearer)} of {len(pairs)} end nearer to it. The norm at the end changes by up to {max(map(abs, moved.values())):.0%}; of {closer} it comes nearer to the reference's.\n"
    f"RMSE at the end, {word(name)} prediction, {plots.NAMES[solver]} with NFE 10: {usual.rmse_end['plain']:.3f}, distilled {usual.rmse_end['d-ode']:.3f}; norm over the reference's: {usual.norm_ratio_end['plain']:.3f}, {usual.norm_ratio_end['d-ode']:.3f} (n = {n:,} held-out seeds)."
)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "figure-5", "caption": "RMSE to the end of the reference trajectory of the same noise, NFE 10 (Heun 9): plain (hollow) and distilled (filled). Left is nearer."}}
figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names) + 1, 2.6), squeeze=False, sharex=True)
for ax, name in zip(axes[0], names, strict=True):
    those = [solver for of, solver in pairs if of == name]
    for y, solver in enumerate(those):
        plain, fitted = (by.rmse_end[name, solver, variant] for variant in ("plain", "d-ode"))
        ax.plot([plain, fitted], [y, y], color="0.7", zorder=0)
        ax.plot(plain, y, "o", color="C0", markerfacecolor="white", markersize=8, label="plain" if not y else "")
        ax.plot(fitted, y, "o", color="C0", markersize=8, label="distilled" if not y else "")
    ax.set_yticks(range(len(those)), [plots.NAMES[solver] for solver in those])
    ax.set(xscale="log", xlabel=f"RMSE, n = {n:,}", title=f"{word(name)} prediction", ylim=(len(those) - 0.5, -0.5))
    plots.plain_ticks(ax.xaxis)
axes[0, 0].legend(fontsize=9)
plt.show()

# %% [markdown]
# ## The measurement
#
# The paper's Figure 5 shows the norm of $x_t$ and the path of two pixels, for ten-step solvers and their distilled versions against 1000-step DDIM: 1,000 samples of a noise-predicting network of CIFAR-10 {cite:p}`kim2024dode`. Here DDIM, iPNDM, DPM-Solver-3 and DEIS-3 are on the noise-predicting network; the data-predicting one, with DDIM, Heun's method, DPM-Solver++(2M) and UniPC-3, is an addition.
#
# The reference here is of second order: DPM-Solver++(2M) with 200 steps through the same noise levels, at a fifth of the evaluations of 1000-step DDIM. States are compared at equal noise level, divided by $\sqrt{1 + \sigma^2}$. Intermediate stages of DPM-Solver-3 and Heun's method are not shown.
#
# ## Norms and pixels, as in the paper

# %% tags=["hide-input"]
LOOKS = {  # of two colours, because the lines cross
    "plain": dict(color=plots.COLOURS["ddim"], linestyle=":", marker="o", markerfacecolor="white", label="plain"),
    "d-ode": dict(color=plots.COLOURS["heun"], marker="o", markersize=4, label="distilled"),
}
LONG = dict(color=plots.COLOURS["teacher"], linewidth=3, alpha=0.4, label="reference")
LINES = {"norms": "norm / reference's", "pixel_0_mean": "pixel {}, mean", "pixel_0": "pixel {}, one image", "pixel_1": "pixel {}, one image"}  # fmt: skip


def draw(prediction: str) -> None:
    """One network's solvers side by side, if this run has it."""
    for name in (name for name in names if name.endswith(prediction)):
        those = [solver for of, solver in pairs if of == name]
        figure, axes = plt.subplots(len(LINES), len(those), figsize=(11, 9), sharex=True, sharey="row")
        for column, solver in zip(axes.T, those, strict=True):
            for ax, line in zip(column, LINES, strict=True):
                for variant, look in LOOKS.items():
                    row = by.loc[(name, solver, variant)]
                    calls, values = experiments.numbers(row.calls), experiments.numbers(row[line])
                    if variant == "plain":
                        long = [1.0] * len(calls) if line == "norms" else experiments.numbers(row[f"{line}_reference"])
                        ax.plot(calls, long, **LONG)
                    ax.plot(calls, values, **look)
            column[0].set_title(f"{plots.NAMES[solver]}, NFE {row.nfe}")
            column[-1].set(xlabel="network evaluations", xticks=range(0, 11, 2))
        for ax, (line, label) in zip(axes[:, 0], LINES.items(), strict=True):
            ax.set_ylabel(label.format(paths.PIXELS[int(line[6])] if line != "norms" else ""))
        figure.align_ylabels()
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        plt.show()


# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-5-noise", "caption": "The noise-predicting network: solvers with NFE 10, plain and distilled, against the reference trajectory at the same noise levels, in coordinates of unit variance. Top: mean norm of the states relative to the trajectory's. Below: a pixel's mean over the images, and two pixels of the first image. A marker is a finished step."}}
draw("noise")

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-5-data", "caption": "The same on the data-predicting network. Heun's method makes nine evaluations in five steps; its reference goes through those five levels."}}
draw("data")

# %% [markdown]
# ## Every number
#
# RMSE to the reference half way (where a step ends after five or six evaluations) and at the end, the norm of the end over the reference's, and how far the mean of pixel (14, 14) is from the reference's mean there.

# %% tags=["hide-input"]
half = [dict(zip(experiments.numbers(r.calls), experiments.numbers(r.rmse_path), strict=True)) for r in rows.itertuples()]  # fmt: skip
mean, aim = (rows[f"pixel_0_mean{of}"].map(lambda v: experiments.numbers(v)[-1]) for of in ("", "_reference"))
table = pd.DataFrame({
    "checkpoint": rows.checkpoint, "solver": [plots.NAMES[("d-" if v != "plain" else "") + s] for s, v in zip(rows.solver, rows.variant, strict=True)],
    "NFE": rows.nfe, "RMSE half way": [f"{v.get(5, v.get(6, float('nan'))):.4f}" for v in half], "RMSE at the end": rows.rmse_end.map("{:.4f}".format),
    "norm / reference's": rows.norm_ratio_end.map("{:.4f}".format), "mean of the pixel, off by": (mean - aim).map("{:+.4f}".format),
})  # fmt: skip
print(f"n = {n:,} images")
plots.listing(table)

# %% tags=["nbval-check-output", "hide-input"]
for pair in pairs:
    plain, fitted = (by.rmse_end[(*pair, variant)] for variant in ("plain", "d-ode"))
    print(f"{word(pair[0]):5s} {plots.NAMES[pair[1]]:17s} RMSE to the trajectory's end: plain {plain:.3f}, distilled {fitted:.3f}")  # fmt: skip

# %% [markdown]
# ## What comes out
#
# - **Of the eight solvers shown, seven end nearer** with NFE 10. DPM-Solver++(2M), plain the nearest of the four shown on its network, ends 10% farther. On the data-predicting network iPNDM and DEIS-3, not shown, end 1.8 times as far ([Limitations](limits), n = 128).
# - **Pixels follow.** The paper's pixels of D-ODE solvers are nearer to the target's path than the plain solver's (Section 5.1). In the RMSE over all pixels so are these at the end, but for DPM-Solver++(2M)'s. The mean of pixel (14, 14) over 1,000 images ends nearer to the reference's mean for seven of eight, EDM being the exception. Plain UniPC-3 is far off on this grid, Karras's; on the quadratic one its RMSE is 0.032 ([The solver zoo](solver_zoo)).
# - **The norm is not left as it was.** The paper says that the norm of D-ODE solvers closely follows that of the plain solvers (Section 5.1). Here distillation changes it: DDIM's by 4% and 8%, iPNDM's by 4%, Heun's by a fifth. It moves towards the reference's for five of eight, and away from it for iPNDM, DEIS-3 and UniPC-3.
# - **A right norm is not a right path**: plain DEIS-3 ends with the reference's norm to four thousandths, and at twice the distance of its distilled version.
#
# ## Limits
#
# No spread over images; two of the pixel paths are of one image. `deis:order=4` has four outputs, as in the paper's released code.

# %% tags=["hide-input"]
live = experiments.Live("figure_5", p, where)
few = replace(p.live, path_images=16)
for _, stored in rows[rows.solver.isin(["ddim", "heun"])].iterrows():
    live.check(stored, paths.path, "rmse_end", few, n=16)
live.show("", "Figures and table")

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
