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
from dode.experiments import galaxies, learned, plots, quality
from dode.experiments.plans import LATER

plots.style()
plan = experiments.plan("figure_4", preset, checkpoint, seeds)
names = plan.checkpoints
clean = [name for name in names if (name, LATER[0]) in plan.calls]  # networks that predict clean images
where = experiments.device(device)
rows = plan.run(where)
distance = "FID" if rows.features[0].startswith("inception") else "FD"
pairs = quality.pairs(rows)
NAMES = {solver: plots.NAMES[solver] for solver in ("ddim", "heun", *LATER)} | {"heun": "EDM (Heun)"}
usual = pairs[pairs.variant == "d-ode"]
n = f"n = {int(pairs.n.max()):,}"
floors = {}
if distance == "FD" and all(name in zoo.NAMES for name in names) and plan.preset.kept:
    floors = learned.floors(experiments.Run(plan.preset, where), names)
shown = (clean or names)[0]
cell = usual[usual.checkpoint == shown].set_index(["solver", "nfe"])
few = max(nfe for nfe in plan.calls[shown, "ddim"] if nfe <= 10)
at = cell.loc[("ddim", few)]
numbers = f"D-DDIM {plots.plus_minus(at.fd, at.fd_std)}, DDIM {plots.plus_minus(at.fd_plain, at.fd_std_plain)}"
if clean:
    two = cell.loc[("dpm_solver_pp:order=2", few)]
    numbers += f", DPM-Solver++(2M), not fitted {plots.plus_minus(two.fd_plain, two.fd_std_plain)}"
short = (
    "Asked: does distillation improve DDIM and EDM's Heun sampler, as in the D-ODE paper (Section 4.2)? From 5 network evaluations on it does; at 2 it makes DDIM clearly worse.\n"
    f"{distance} to the training images, data prediction, NFE {few}, {n} x {int(pairs.blocks.max())} blocks: {numbers}."
)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "figure-4", "caption": "Fréchet distance in classifier features (not FID) to the training images against NFE, Fashion-MNIST. Solvers dotted, distilled versions solid; bars (smaller than the marks): one standard deviation over blocks of seeds. Dashed: the reference solution's own distance."}}
_, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 4.2), squeeze=False, sharey=True)
for ax, name in zip(axes[0], names, strict=True):
    for solver in ("ddim", "heun"):
        line = usual[(usual.checkpoint == name) & (usual.solver == solver)]
        if len(line):
            plots.curve(ax, line.nfe, line.fd_plain, solver, False, line.fd_std_plain.fillna(0))
            plots.curve(ax, line.nfe, line.fd, solver, True, line.fd_std.fillna(0))
    line = usual[(usual.checkpoint == name) & (usual.solver == LATER[0])]
    ax.plot(line.nfe, line.fd_plain, color="0.5", marker="D", markersize=4, linestyle=":", label=plots.NAMES[LATER[0]] if len(line) else None)  # fmt: skip
    plots.log_axes(
        ax,
        sorted(set(usual[usual.checkpoint == name].nfe) - {3, 9, 49}),
        f"{distance}, {n}" if ax is axes[0, 0] else "",
    )
    if len(floors):
        ax.axhline(floors.fd_data[name], color="0.3", linestyle="--", linewidth=0.9, label="reference solution")
    ax.set_title(f"{experiments.load_cached(name, 'cpu').prediction} prediction")
    ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## The measurement
#
# The paper's Figure 4 shows FID against NFE for DDIM and EDM's Heun sampler and their distilled versions, on data-predicting networks (CIFAR-10, FFHQ, ImageNet-64) {cite:p}`kim2024dode`. Here it is Fashion-MNIST; the noise-predicting network is an addition. The measure is the Fréchet distance in the features of a small classifier, **not** FID, so only the shape of curves can be compared.
#
# The network's own grid is Karras's as EDM has it, 80 to 0.002 and then 0. The evaluation at 0.002 is nearly lost: with NFE 2 it means one step from 80 and an idle evaluation. The best of four grids, chosen on other seeds for each solver, plain and distilled, has none.

# %% [markdown]
# ## The best of each kind, by three distances

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-4-best", "caption": "On the data-predicting network, at each NFE the best plain and the best distilled of five solvers (DDIM, EDM's Heun, DPM-Solver++(2M) and (3M), UniPC-3). Blue: on the network's own grid; orange: each on the grid that suits it. Dashed: the reference solution's own distance (left), what two sets of as many normal draws are apart (middle)."}}
if clean:
    figure, axes = plt.subplots(1, 3, figsize=(12.5, 3.8))
    lines = {} if not len(floors) else {"fd": floors.fd_data[shown], "fd_reference": floors.fd_reference[shown]}
    plots.best_lines(axes, pairs[(pairs.checkpoint == shown) & (pairs.nfe > 2)], distance, lines)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    plt.show()

# %% tags=["hide-input"]
plots.listing(plots.best_names(pairs[(pairs.checkpoint == shown) & (pairs.nfe > 2)], NAMES))

# %% [markdown]
# ## Each solver, on two grids
#
# DPM-Solver++ and UniPC are not in the paper's figure. They work on estimates of clean images, which is what this network gives.

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-4-later", "caption": "Fréchet distance to the training images on the data-predicting network. Dotted: plain; solid: distilled. Blue: on the network's own grid; orange: each on the grid that suits it, chosen on other seeds."}}
if clean:
    figure, axes = plt.subplots(1, len(NAMES), figsize=(12.5, 3.4), sharey=True)
    for ax, (solver, title) in zip(axes, NAMES.items(), strict=True):
        part = pairs[(pairs.checkpoint == shown) & (pairs.solver == solver) & (pairs.nfe > 2)]
        plots.beside(ax, part)
        plots.log_axes(
            ax, sorted({k for k in usual.nfe if k not in (2, 3, 9, 49)}), f"{distance}, {n}" if ax is axes[0] else ""
        )
        ax.set(title=title, xlabel="NFE")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    plt.show()

# %% [markdown]
# ## Every number
#
# Means over blocks of seeds; each block fits its own $\lambda$ on its own 100 seeds, and plain and distilled share the seeds that measure them. *Paired*: which is nearer to the data in all blocks; else it is a tie. *Grids*: own, or the best for the plain and for the distilled solver, chosen on 500 other seeds.

# %% tags=["hide-input", "hide-output"]
plots.pairs_table(pairs, NAMES)

# %% tags=["nbval-check-output", "hide-input"]
plots.ahead_in_blocks(pairs, NAMES)

# %% [markdown]
# ## On galaxies
#
# The same on a published network of galaxies that predicts clean images ([Galaxies](galaxies) says which, and how many seeds).

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-4-galaxies", "caption": "RMSE to the reference solution on a network of galaxies of the Hyper Suprime-Cam (64 x 64 pixels): each solver on the better of two grids (uniform in time, Karras's) at each NFE, chosen on the same images; n = 200, one block of seeds. Dotted: plain; solid: distilled."}}
sky = quality.committed_rows("galaxies").query("checkpoint == @galaxies.FIRST and block == 0")
kinds = {"plain": galaxies.HANDCRAFTED, "distilled": {k: v.removeprefix("D-") for k, v in galaxies.DISTILLED.items()}}
parts = [
    sky[sky.solver.isin(of)].assign(kind=kind, title=lambda t, of=of: t.solver.map(of)) for kind, of in kinds.items()
]
least = pd.concat(parts).groupby(["title", "kind", "nfe"]).rmse.min().unstack("kind")
figure, axes = plt.subplots(1, len(galaxies.HANDCRAFTED), figsize=(12.5, 2.9), sharey=True)
for ax, title in zip(axes, galaxies.HANDCRAFTED.values(), strict=True):
    line = least.loc[title]
    ax.plot(line.index, line.plain, "o:", color="C0", markerfacecolor="white", label="plain")
    ax.plot(line.index, line.distilled, "o-", color="C0", label="distilled")
    plots.log_axes(ax, list(line.index), f"RMSE, n = {sky.n.max()}" if ax is axes[0] else "")
    ax.set(title=title, xlabel="NFE")
axes[0].legend(fontsize=8)
plt.show()

# %% tags=["hide-input"]
over = [
    {"NFE": nfe}
    | {f"best {kind}": f"{part[kind].idxmin()[0]} {part[kind].min():.4f}" for kind in kinds}
    | {"nearer distilled": f"{(part.distilled < part.plain).sum()} of {len(part)}"}
    for nfe, part in least.groupby("nfe")
]
plots.listing(pd.DataFrame(over))

# %% [markdown]
# It helps iPNDM at every NFE, and DDIM from 4 evaluations on. The four others are farther distilled at every NFE, so the best plain solver is ahead of the best distilled one throughout. D-DDIM with 5 evaluations is nearer than DDIM on all seven networks of galaxies, and nearer than every plain solver on two (Roman, quasars).

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
# | the paper (Section 4.2) | here, on the network's own grid |
# |---|---|
# | D-ODE solvers are ahead, most for smaller NFE | holds with 5 and 10 evaluations (9 for EDM) on the data-predicting network |
# | D-DDIM with 25 is comparable to DDIM with 250 | 250 was not run; D-DDIM with 10 is ahead of DDIM with 50 on the data-predicting network |
# | around NFE 2 DDIM "occasionally" wins "slightly" | differs: it wins clearly, on both networks |
# | both come to the same FID as NFE grows | the gain shrinks from 10 to 25: with data prediction 0.22 and 0.53 of DDIM's distance, 0.41 and 0.67 with noise prediction; 50 was measured of DDIM alone |
#
# - **Beyond what grid and order give** (orange), with data prediction. With 5 evaluations the best plain solver is ahead of the best distilled one by both Fréchet distances, and they are level in RMSE. With 10 the best distilled solver is slightly ahead by the distance to the reference and in RMSE.
# - **The grid** decides as much as the fit. Without the idle evaluation D-DDIM with 5 comes from 1.17 to 0.67, plain (3M) from 1.24 to 0.49. EDM on steps uniform in time is far ahead of D-EDM on the network's own, and there distillation makes it farther at 3, 5 and 9.
# - **D-EDM with NFE 3 is D-DDIM with 2**: both are farther than plain DDIM with 2, which is D-EDM with $\lambda = (0, -1, 0)$. The fit finds (0, -0.998, 0.023). D-DDIM's second number with 2 is near 40: it multiplies the tiny change of the idle evaluation.
# - **The later solvers**, on the network's own grid, lose by the distance to the data at 5, and gain at 10. In RMSE all three gain at 5, and (2M) loses at 10 ([Limitations](limits)).
# - **The dashed line** is the reference solution's own distance, of other seeds (0.343 with data prediction). On the first block of seeds here the same solver has 0.250, beside D-DDIM's 0.242 with 25: the seeds move this distance by more than solvers with 25 evaluations differ. Its distance to the reference's samples is 0.082 there, where as many normal draws are 0.045 apart. So solvers are compared on the same seeds, and lower than the line does not mean more exact.
#
# ## Limits
#
# One small data set and its networks, and one of galaxies; 50 evaluations of DDIM alone, no 100 or 250; one block of seeds for other grids, (3M), UniPC-3 and 25 evaluations.

# %% tags=["hide-input"]
live = experiments.Live("figure_4", plan.preset, where)
checked = rows.query("solver == 'ddim' and nfe == 5 and block == 0 and variant in ['plain', 'd-ode']")
for _, row in checked.iterrows():
    live.check(row, experiments.fidelity, "fd_reference")
live.show("")

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
