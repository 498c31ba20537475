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
# # Figure 4: DDIM, EDM and their distilled versions

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard, full or paper
checkpoint = "fashion-mnist"  # a data set, all, one name or a .safetensors file
device = "auto"  # cpu, cuda or auto
seeds = None  # how many blocks of seeds; None: the preset's number

# %% tags=["remove-input"]
import matplotlib.pyplot as plt
import pandas as pd

from dode import experiments, zoo
from dode.experiments import learned, plots, quality
from dode.experiments.plans import LATER

plots.style()
plan = experiments.plan("figure_4", preset, checkpoint, seeds)
names = plan.checkpoints
clean = [name for name in names if (name, LATER[0]) in plan.calls]  # networks that predict clean images
where = experiments.device(device)
rows = plan.run(where)
distance = "FID" if rows.features[0].startswith("inception") else "FD"


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and spread over seed blocks."""
    grouped = table.groupby(["checkpoint", "solver", "nfe", "variant"]).fd.agg(["mean", "std", "count"])
    return grouped.join(table.groupby(["checkpoint", "solver", "nfe", "variant"]).n.first()).reset_index()


def draw(table: pd.DataFrame) -> None:
    table = table[~table.solver.isin(LATER)]
    _, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4.2), squeeze=False, sharey=True)
    for ax, name in zip(axes[0], names, strict=True):
        part = table[table.checkpoint == name]
        for (solver, variant), line in part.sort_values("variant", ascending=False, kind="stable").groupby(
            ["solver", "variant"], sort=False
        ):
            plots.curve(ax, line.nfe, line["mean"], solver, variant == "d-ode", line["std"].fillna(0))
        plots.log_axes(ax, sorted(set(part.nfe) - {9, 49}), f"{distance}, n = {int(part.n.max()):,}")
        if name in floors:
            ax.axhline(floors[name], color="0.3", linestyle="--", linewidth=0.9, label="reference solution")
        ax.set_title(f"{experiments.load_cached(name, 'cpu').prediction} prediction")
        ax.legend()
    plt.show()


floors = {}
if distance == "FD" and all(name in zoo.NAMES for name in names) and preset != "smoke":
    cells = [cell for name in names for cell in learned.floor_cells(plan.preset, name)]
    floors = learned.floor.rows(experiments.Run(plan.preset, where), cells).set_index("checkpoint").fd_data
measured = summary(rows)
shown = (clean or names)[0]
cell = measured[measured.checkpoint == shown].set_index(["solver", "variant", "nfe"])
few = max(nfe for nfe in plan.calls[shown, "ddim"] if nfe <= 10)
said = [("D-DDIM", "ddim", "d-ode"), ("DDIM", "ddim", "plain")]
said += [("DPM-Solver++(2M), not fitted", "dpm_solver_pp:order=2", "plain")] if clean else []
numbers = ", ".join(f"{title} {plots.plus_minus(*cell.loc[(solver, variant, few), ['mean', 'std']])}" for title, solver, variant in said)  # fmt: skip
short = (
    "Asked: does distillation improve DDIM and EDM's Heun sampler, as in the D-ODE paper (Section 4.2)? From 5 network evaluations on it does; at 2 it makes DDIM clearly worse.\n"
    f"{distance} to the training images, data prediction, NFE {few}, n = {int(measured.n.max()):,} x {int(measured['count'].max())} blocks: {numbers}."
)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "figure-4", "caption": "Fréchet distance in classifier features (not FID) to the training images against NFE, Fashion-MNIST. Solvers dotted, distilled versions solid; bars (smaller than the marks): one standard deviation over blocks of seeds. Dashed: the reference solution's own distance."}}
draw(measured)

# %% [markdown]
# ## The measurement
#
# The paper's Figure 4 shows FID against NFE for DDIM and EDM's Heun sampler and their distilled versions, on data-predicting networks (CIFAR-10, FFHQ, ImageNet-64) {cite:p}`kim2024dode`. Here it is Fashion-MNIST; the noise-predicting network is an addition. The measure is the Fréchet distance in the features of a small classifier, **not** FID, so only the shape of curves can be compared.
#
# The grid is Karras's as EDM has it, 80 to 0.002 and then 0. The evaluation at 0.002 is nearly lost: with NFE 2 it means one step from 80 and an idle evaluation. With NFE 5, plain (3M) and UniPC-3 on better grids (FD 0.52) are ahead of every distilled solver here; DDIM gains more by distillation than by the grid ([Learned solvers compared](learned)).
#
# ## The solvers that came later
#
# DPM-Solver++ and UniPC work on estimates of clean images, which is what this network gives.


# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-4-later", "caption": "Three solvers that are not in the paper's figure, on the data-predicting network, with DDIM's two lines (grey). Dotted: plain; solid: distilled."}}
def draw_later(table: pd.DataFrame) -> None:
    table = table[table.checkpoint.isin(clean) & table.nfe.isin(plan.calls[clean[0], LATER[0]])]
    _, axes = plt.subplots(1, len(LATER), figsize=(11, 3.4), squeeze=False, sharey=True)
    for ax, solver in zip(axes[0], LATER, strict=True):
        for who, colour in (("ddim", "grey"), (solver, "C0")):
            for variant, look in (("plain", ":"), ("d-ode", "-")):
                line = table[(table.solver == who) & (table.variant == variant)]
                face = "white" if variant == "plain" else colour
                label = plots.NAMES[who if variant == "plain" else f"d-{who}"]
                ax.errorbar(
                    line.nfe, line["mean"], yerr=line["std"].fillna(0), linestyle=look, color=colour, marker="o",
                    markerfacecolor=face, label=label, capsize=3,
                )  # fmt: skip
        plots.log_axes(
            ax,
            sorted(set(line.nfe)),
            f"{distance.split(' (')[0]}, n = {int(table.n.max()):,}" if ax is axes[0, 0] else "",
        )
        ax.legend(fontsize=7)
    plt.show()


if clean:
    draw_later(measured)

# %% [markdown]
# ## Every number
#
# Mean and standard deviation over blocks of seeds; each block fits its own $\lambda$ on its own 100 seeds. Plain and distilled share the seeds of a block. *Paired*: which is ahead in all blocks; else it is a tie.

# %% tags=["hide-input"]
keys = ["checkpoint", "solver", "nfe"]
wide = measured.pivot(index=keys, columns="variant", values=["mean", "std", "count", "n"])
verdict = quality.paired(rows)
result = pd.DataFrame({title: wide["mean"][v].combine(wide["std"][v], plots.plus_minus) for v, title in (("plain", "plain"), ("d-ode", "distilled"))})  # fmt: skip
result["distilled / plain"] = (wide["mean"]["d-ode"] / wide["mean"]["plain"]).map("{:.2f}".format)
result["paired"] = verdict.reindex(result.index)
counts = zip(wide["n"]["plain"], wide["count"]["plain"], strict=True)
result["n x blocks"] = [f"{int(n):,} x {int(c)}" for n, c in counts]
plots.listing(result.reset_index().replace({"solver": plots.NAMES}))

# %% tags=["nbval-check-output", "hide-input"]
for (name, solver), part in verdict.groupby(level=["checkpoint", "solver"]):
    won = [str(nfe) for (_, _, nfe), v in part.items() if v == "distilled"]
    ran = ", ".join(map(str, part.index.get_level_values("nfe")))
    print(f"{name}, {plots.NAMES[solver]}: distilled ahead in all blocks at NFE {', '.join(won) or 'none'} of {ran}")

# %% [markdown]
# ## Heun's corrector
#
# $\lambda$ of each network evaluation of D-EDM, first block. In a corrector row $\lambda = -1$ takes Heun's correction back; we suspect that D-EDM gains mostly by that. The predictor after a corrector evaluates at the same noise level as the corrector, so their difference is small: we suspect that this makes its $\lambda$ large (+8.91 with NFE 9).

# %% tags=["hide-input"]
for row in rows.query("solver == 'heun' and variant == 'd-ode' and block == 0 and nfe <= 9").itertuples():
    print(f"NFE {row.nfe}: " + "  ".join(f"{v:+.2f}" for v in experiments.numbers(row.lambdas)))

# %% [markdown]
# ## What the paper says, and what came out
#
# | the paper (Section 4.2) | here |
# |---|---|
# | D-ODE solvers are ahead, most for smaller NFE | holds with 5 and 10 evaluations (9 for EDM) on the data-predicting network |
# | D-DDIM with 25 is comparable to DDIM with 250 | 250 was not run; D-DDIM with 10 is ahead of DDIM with 50, on the data-predicting network |
# | around NFE 2 DDIM "occasionally" wins "slightly" | differs: it wins clearly, on both networks |
# | both come to the same FID as NFE grows | the gain shrinks from 10 to 50; EDM's is nearly gone at 49, DDIM's not |
#
# - **D-EDM with NFE 3 is D-DDIM with 2**: both are farther than plain DDIM with 2, which is D-EDM with $\lambda = (0, -1, 0)$. The fit finds (0, -0.998, 0.023), and FD 22.6 in place of 17.9.
# - **The later solvers** lose in Fréchet distance at 5, and gain at 10. In RMSE all three gain at 5, and (2M) loses at 10 ([Limitations](limits)): the two measures disagree.
# - **A plain baseline**: DPM-Solver++(2M) with 5, not fitted, is ahead of every distilled solver of the data-predicting network. UniPC-3 and (3M) are far behind it with 10 *on this grid*; on others they are not ([The solver zoo](solver_zoo)).
# - **The dashed line** is one block of other seeds, by UniP-3 with 60 evaluations. On the data-predicting network all solvers with 50 but DDIM lie below it; we do not know why. Lower than the line does not mean more exact: D-(2M) with 10 has a larger RMSE than (2M).
#
# ## Limits
#
# One small data set; no 100 or 250 evaluations; one grid. The networks computed in bf16, the fits in float32. What that changes, on 5,000 seeds of the first block (`benchmarks/bf16.py`):

# %% tags=["hide-input"]
precision = pd.read_csv(experiments.home() / "results" / "bf16.csv")
plots.listing(precision[["checkpoint", "solver", "variant", "nfe", "n", "fd_float32", "fd_bf16", "rmse_between"]])

# %% tags=["hide-input"]
live = experiments.Live("figure_4", plan.preset, where)
checked = rows.query("solver == 'ddim' and nfe == 5 and block == 0 and variant in ['plain', 'd-ode']")
for _, row in checked.iterrows():
    live.check(row, experiments.fd, "fd")
live.show("")

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
