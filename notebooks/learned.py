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
# # Learned solvers compared

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = None  # a name, or all; None: both networks, at smoke the data-predicting one
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images are measured; None: the preset's number

# %% tags=["remove-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import pandas as pd
import torch
from IPython.display import HTML, display
from matplotlib.lines import Line2D

import dode
from dode import experiments
from dode.experiments import dlms_study, fits, learned, paths, plots

plots.style()
p = experiments.preset(preset)
p = replace(p, images=seeds or p.images)
where = experiments.device(device)
run = experiments.Run(p, where)
TITLES = {m: plots.NAMES[m] for m in learned.METHODS} | {"dlms": "DLMS, last image", "start": "initial solver"}
nfes, chosen_for = learned.asked(preset, checkpoint)
names = list(chosen_for)
ENDS, designed = dlms_study.ENDS, [nfe for nfe in dlms_study.NFES if nfe in nfes]
found = learned.compare(run, chosen_for, nfes)
if designed:
    extra = learned.compare(run, {name: [ENDS] for name in names}, designed)
    found = pd.concat([found, extra.assign(method="dlms")], ignore_index=True)
methods = [*chosen_for[names[0]], "dlms"]  # all; on the other network some
fitted = [m for m in plots.LEARNED if m in methods]
word = lambda name: name.rsplit("-", 1)[1]  # noqa: E731  "noise" or "data"
by_hand = found[found.method.isin(learned.HANDCRAFTED)]
best = by_hand.loc[by_hand.groupby(["checkpoint", "nfe"]).fd_reference.idxmin()].set_index(["checkpoint", "nfe"])
found = found.join(best.fd_reference.rename("fd_best"), on=["checkpoint", "nfe"])
found["gain"] = found.fd_reference / found.fd_best
n = int(found.n.max())
floors = learned.floors(run, names)
wide = found.set_index(["checkpoint", "nfe", "method"])
NFE = max(nfe for nfe in nfes if nfe <= 5)
said = "; ".join(
    f"{word(name)} prediction {wide.fd_reference[name, NFE, 'gauss-newton']:.3f}, best handcrafted {best.fd_reference[name, NFE]:.3f}"
    for name in names
)
short = (
    "Asked: which solver of few network evaluations comes nearest to the reference solution? In Fréchet distance the Gauss-Newton solver, or DLMS on the last image where it was trained. With data prediction both are at the floor from NFE 5 on, other solvers from 9. In RMSE S4S-Alt is nearest in three cells.\n"
    f"Fréchet distance to the reference solution, NFE {NFE}, n = {n:,}, one fit each: {said}."
)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "learned-nfe", "caption": "Fréchet distance (not FID) to samples of the reference solution against NFE; lower is better. Grey: the best of five handcrafted solvers, each on the best of four grids. Shaded: what two sets of n normal draws with these moments are apart; differences there may be chance. LD3 with noise prediction and NFE 3 (2.86) is above the panel."}}
shown = [m for m in ("ld3", "s4s-alt", "dlms", "gauss-newton") if m in fitted]
figure, axes = plt.subplots(1, len(names), figsize=(5.6 * len(names) + 0.5, 4.2), sharey=True, squeeze=False)
for ax, name in zip(axes[0], names, strict=True):
    ax.axhspan(1e-3, floors.fd_reference[name], color="0.9", zorder=0)
    part = best.loc[name]
    ax.plot(part.index, part.fd_reference, color="0.55", marker="o", linewidth=3, label="best handcrafted")
    for method in shown:
        part = found[(found.checkpoint == name) & (found.method == method)].sort_values("nfe")
        ax.plot(part.nfe, part.fd_reference, linewidth=2, label=TITLES[method], **plots.LEARNED_LOOKS[method])
    plots.log_axes(ax, nfes, f"FD to the reference solution, n = {n:,}")
    low = min(floors.fd_reference.min(), found.fd_reference.min())
    ax.set(title=f"{word(name)} prediction", ylim=(0.7 * low, None))
axes[0, -1].legend(fontsize=9)
plt.show()

# %% [markdown]
# ## The distances
#
# Fréchet distance to the reference solution: 60 evaluations of UniP-3 from other seeds. (For RMSE the reference is 1,000 of DPM-Solver++(2M) from the same seeds.) **Bold**: the nearest at that NFE. After a handcrafted solver's its grid stands as a letter: t uniform in time, q quadratic, K Karras's, s log SNR.

# %% tags=["hide-input"]
captioned = {name: f"{word(name)} prediction, FD to the reference solution, n = {n:,}; floor {floors.fd_reference[name]:.3f}" for name in names}  # fmt: skip
listings = [plots.calls_table(found[found.checkpoint == name], "fd_reference", captioned[name], TITLES) for name in names]  # fmt: skip
HTML("".join(listing.data for listing in listings))

# %% [markdown]
# RMSE to the reference solution of the same seeds, of images before clipping. The two measures disagree: a low Fréchet distance says that the images are like the reference's as a set, a low RMSE that each is near its own.

# %% tags=["hide-input"]
captioned = {name: f"{word(name)} prediction, RMSE, n = {found.n_rmse.max():.0f}" for name in names}
listings = [plots.calls_table(found[found.checkpoint == name], "rmse", captioned[name], TITLES) for name in names]
HTML("".join(listing.data for listing in listings))

# %% tags=["nbval-check-output", "hide-input"]
print(f"every solver has both distances: {bool(found[['fd_reference', 'fd_data']].notna().all(axis=None))}")

# %% tags=["hide-input"]
for name in names:
    part = found[found.checkpoint == name]
    for column, label in (("fd_reference", "FD"), ("rmse", "RMSE")):
        nearest = part.loc[part.groupby("nfe")[column].idxmin()].set_index("nfe").method.map(TITLES)
        print(f"{word(name)}, least {label}: " + "; ".join(f"NFE {nfe} {title}" for nfe, title in nearest.items()))

# %% [markdown]
# A fit returns the epoch that is best on held-back images. Most fits of S4S-Alt and LD3 are best early: 15 of 16 of S4S-Alt by epoch 6 of 20, and 11 of these 32 end worse than they began. S4S-Alt with data prediction and NFE 8, and with noise prediction and NFE 5, moved its weights only. So these rows show fits that were stopped early, not the limit of the methods. Fits that returned their initial solver, which count as no gain:

# %% tags=["hide-input"]
same = []
for row in found[found.method.isin(fitted) & ~found.method.isin(["d-ode", "olss", "gits"])].itertuples():
    solver = fits.fit(run, row.checkpoint, ENDS if row.method == "dlms" else row.method, row.nfe)
    cost = solver.metadata.get("cost") or [1.0, 0.0]
    if min(cost) == cost[0]:
        same.append(f"{TITLES[row.method]}, {word(row.checkpoint)} prediction, NFE {row.nfe}")
print("returned the initial solver: " + ("; ".join(same) or "none"))

# %% [markdown]
# ## What is compared
#
# Five handcrafted solvers run on four grids (uniform in time, quadratic in time, Karras's, uniform in log SNR). The grid is chosen at each NFE by 500 images of other seeds, in the features that measure: that favours the handcrafted ones. D-DDIM stays on the network's own grid, whose last evaluation with data prediction, at 0.002, changes almost nothing. The learned ones:
#
# | solver | what is learned | how | initial solver | loss of the last image |
# |---|---|---|---|---|
# | D-DDIM {cite:p}`kim2024dode` | one number a step | least squares, step by step | DDIM | none: pixels of states |
# | OLSS {cite:p}`duan2023olss` | levels and weights, the starting noise's too | bisection, then least squares | DDIM | none: pixels of states |
# | GITS {cite:p}`chen2024gits` | levels | dynamic programming | iPNDM | none |
# | AMED {cite:p}`zhou2024amed` | one level and one length a step, for each image | gradient, step by step | random numbers | none: pixels of states |
# | LD3 {cite:p}`tong2025ld3` | levels, input levels | gradient through the sampler | UniPC | critic (theirs: LPIPS) |
# | S4S {cite:p}`frankel2025s4s` | weights | gradient through the sampler | Adams-Bashforth, AFS | critic |
# | S4S-Alt (the same) | weights, then levels and input levels, in turn | gradient through the sampler | Adams-Bashforth, AFS | critic |
# | DyWeight {cite:p}`zhao2026dyweight` | weights whose sums move the levels, input levels | gradient through the sampler | iPNDM | critic (theirs: Inception features) |
# | DLMS {cite:p}`liang2025lms`, last image | weights, levels, input levels, for each image | gradient through the sampler | Adams-Bashforth, AFS | critic and observer, clipped |
# | Gauss-Newton (ours) | weights, levels, input levels | Gauss-Newton steps | Adams-Bashforth, AFS | critic and observer, clipped |
#
# *Adams-Bashforth, AFS*: in $\ln\sigma$ on clean images, uniform in time, with an analytical first step. *Critic*, *observer*: classifiers that enter losses and do not measure; the fits add random features and some pixels. [DLMS](dlms) by its published step losses has a page of its own. How the others differ from their authors' programs is in their docstrings.
#
# **What this comparison cannot say.** The last two solvers have another loss than LD3, S4S, S4S-Alt and DyWeight, and that loss was chosen with this evaluation classifier in view. So their lead over those four is of loss and optimiser together; losses and optimisers are crossed on the page [DLMS](dlms). Numbers of seeds differ: Gauss-Newton fits use 72 to 191, GITS 256, AMED 10,112, DLMS 1,200, the others 128.
# Each solver is one fit: two fits of one recipe differ by up to 40% at NFE 3 on the noise-predicting network. Dual-Solver {cite:p}`park2026dualsolver` is not among them: its formulas were not at hand.
#
# ## What comes out
#
# - **Gauss-Newton and DLMS on the last image** are nearest in Fréchet distance on both networks. With NFE 3 DLMS is the nearer of the two on the noise-predicting network. Elsewhere they differ by less than two fits of one recipe do, or are at the floor ([DLMS](dlms) has three fits of each). DLMS takes 2.6 to 5 times the evaluations. On the data-predicting network Gauss-Newton is at the floor from NFE 5 on, DyWeight from 9, UniPC-3 at 10.
# - **Learned solvers with a loss of the last image** (LD3, S4S, S4S-Alt, DyWeight) are ahead of all handcrafted ones at some NFE. Those without (D-DDIM, OLSS, GITS, AMED) are nowhere ahead of all handcrafted ones by more than chance: D-DDIM is level with the best at NFE 9.
# - **To the training images** a solver can be nearer than the reference solution of its network is. Its error then offsets the network's, which is no merit of a solver; those distances are in the rows (`results/learned.standard.csv`, column `fd_data`).
#
# The paper's abstract reports FID 3.23 for DLMS with 5 evaluations on CIFAR-10, and an acceleration by two against handcrafted solvers. No number here can be set beside it. In its Table 5 (quoted second-hand) DLMS is behind UniPC on FFHQ with 10 evaluations.
#
# ## What a fit costs
#
# Network evaluations, image by image: the teacher's, the student's, and a backward pass as two. The seconds were taken on a machine that was busy with other work: an order of magnitude.

# %% tags=["hide-input"]
spent = found[found.method.isin(plots.LEARNED)]
costs = pd.DataFrame({"solver": [TITLES[m] for m in fitted]})
for nfe in nfes:
    part = spent[(spent.checkpoint == names[0]) & (spent.nfe == nfe)].set_index("method").reindex(fitted)
    costs[f"NFE {nfe}"] = [
        "" if pd.isna(part.evaluations[m]) else f"{part.evaluations[m] / 1000:,.0f} k ({part.seconds[m]:,.0f} s)"
        for m in fitted
    ]
plots.listing(costs)

# %% [markdown]
# ## What was learned
#
# With 5 network evaluations (at smoke 3).

# %% tags=["hide-input"]
at, word_of = NFE, dict(dlms=ENDS)


@torch.no_grad()
def levels_of(name: str, solver: object, count: int = 64) -> torch.Tensor:
    """The levels that a network evaluation is made at, their geometric mean over images."""
    if isinstance(solver, dode.Tableau):
        return solver.sigmas[:-1]
    model = experiments.load_cached(name, where)
    noise = dode.initial_noise(model.shape, experiments.held_out_seeds(count), device=model.device)
    levels = [state.level.expand(count) for state, _ in solver.walk(model, noise)]
    return torch.stack(levels)[:-1].log().mean(1).exp().cpu()


tables = {
    name: {m: learned.compared_solver(run, name, word_of.get(m, m), at) for m in [*chosen_for[name], "dlms"]}
    for name in names
}

# %% tags=["hide-input"] mystnb={"figure": {"name": "learned-levels", "caption": "The noise levels at which each solver calls the network, handcrafted ones on their best grids. For solvers that design a table for each image (DLMS, AMED): the geometric mean over 64 images, whose spread over images is in a table on DLMS's page."}}
figure, axes = plt.subplots(
    1, len(names), figsize=(max(8.5, 5.5 * len(names)), 0.3 * len(methods) + 1.2), squeeze=False, sharey=True
)
ordered = [m for m in TITLES if m in methods]
for ax, name in zip(axes[0], names, strict=True):
    for height, method in ((h, m) for h, m in enumerate(ordered) if m in tables[name]):
        mean = levels_of(name, tables[name][method])
        colour = plots.LEARNED_LOOKS.get(method, dict(color="black" if method == "start" else "0.5"))["color"]
        ax.plot(mean, [height] * len(mean), "o-", color=colour, linewidth=0.6, markersize=6)
    ax.set(
        xscale="log",
        xlabel=f"noise level of each evaluation, NFE {at}",
        yticks=range(len(ordered)),
        title=f"{word(name)} prediction",
    )
    ax.set_yticklabels([TITLES[m] for m in ordered])
    ax.invert_xaxis()
axes[0, 0].invert_yaxis()
plt.show()

# %% tags=["hide-input"] mystnb={"figure": {"name": "learned-parts", "caption": "Weights of each step, as shares of the row: of the newest output (a_1) and of the three before it. Thin, dotted: the initial solver of the other three (Adams-Bashforth, AFS); LD3 starts from UniPC, which is not drawn. An analytical first step counts as an output of 0. Last panel: the level given to the network over that of the state."}}
name = names[0]
drawn = [m for m in ("ld3", "s4s", "s4s-alt", "gauss-newton") if m in methods]
across = 3 if len(drawn) > 1 else len(drawn) + 1
down = -(-(len(drawn) + 1) // across)
figure, axes = plt.subplots(down, across, figsize=(11, 2.9 * down), squeeze=False)
for ax in axes.flat[len(drawn) + 1 :]:
    ax.set_axis_off()


def draw_parts(ax: plt.Axes, table: dode.Tableau, **look: object) -> None:
    newest = [row[: i + 2].flip(0) for i, row in enumerate(table.normalised_weights)]
    for k, mark in enumerate("os^D"):
        line = [(i + 1, float(row[k])) for i, row in enumerate(newest) if len(row) > k]
        if line:
            ax.plot(*zip(*line, strict=True), marker=mark, color=f"C{k}", label=f"$a_{k + 1}$", **look)


first = fits.initial_solver(run, name, "dlms", at)[0]
for ax, method in zip(axes.flat, drawn, strict=False):
    draw_parts(ax, first, linewidth=0.8, markersize=3, linestyle=":")
    draw_parts(ax, tables[name][method], linewidth=1.8, markersize=6)
    ax.set(title=TITLES[method], xlabel="step", xticks=range(1, at + 1))
keys = [Line2D([], [], color=f"C{k}", marker=mark, label=f"$a_{k + 1}$") for k, mark in enumerate("os^D")]
figure.legend(handles=keys, loc="outside lower center", ncols=4)
ax = axes.flat[len(drawn)]
for method in drawn:
    table = tables[name][method]
    ax.plot(
        range(1, at + 1),
        table.sigmas_in / table.sigmas[:-1],
        **plots.LEARNED_LOOKS[method],
        label=TITLES[method],
    )
ax.axhline(1, color="0.6", linewidth=1, zorder=0)
ax.set(title="input level / noise level", xlabel="step", xticks=range(1, at + 1))
ax.legend(fontsize=8)
plt.show()

# %% [markdown]
# **The path.** The exact path of the same noise is followed to each of a solver's own levels, and the two states are compared there. Most fitted solvers move away from the path step by step. DyWeight on the data-predicting network comes back (3.2 to 1.6), Gauss-Newton on the other a little (2.2 to 1.9). One fit each, n = 64.

# %% tags=["hide-input"] mystnb={"figure": {"name": "learned-paths", "caption": "Mean Euclidean distance of a solver's states to the exact path of the same noise, divided by $\\sqrt{1+\\sigma^2}$, against the noise level. The last point of a line, at the right, is the image itself. Grey: handcrafted solvers; dotted: the initial solver."}}
count = min(64, p.zoo_images)
cells = list[dict]()
for name in names:
    asked = [word_of.get(m, m) for m in ordered if m in tables[name] and m != "amed"]
    cells += paths.paths.cells(checkpoint=name, method=asked, nfe=at, n=count)
followed = paths.paths.rows(run, cells, jobs=1).replace({"method": {ENDS: "dlms"}})
figure, axes = plt.subplots(1, len(names), figsize=(max(7, 5.5 * len(names)), 4.2), sharey=True, squeeze=False)
ends = {}
for ax, name in zip(axes[0], names, strict=True):
    floor = 0.5 * min(float(t.sigmas[-2]) for t in tables[name].values() if isinstance(t, dode.Tableau))
    for method, *columns in followed[followed.checkpoint == name][["method", "levels", "distances"]].itertuples(
        index=False
    ):
        levels, apart = (torch.tensor(experiments.numbers(column)) for column in columns)
        ends[name, method] = apart
        grey = method in learned.HANDCRAFTED
        look = dict(linewidth=1, markersize=4) if grey else dict(linewidth=1.8, markersize=6)
        look |= plots.LEARNED_LOOKS.get(method, dict(color="0.7" if grey else "black", marker="."))
        keep = apart > 0
        ax.plot(
            levels.clamp(min=floor)[keep], apart[keep], label=TITLES[method],
            linestyle=":" if method == "start" else "-", **look,
        )  # fmt: skip
    ax.set(xscale="log", yscale="log", xlabel=f"noise level, NFE {at}; last: 0", title=f"{word(name)} prediction")
    ax.invert_xaxis()
axes[0, 0].set_ylabel(f"distance to the path, n = {count}")
axes[0, -1].legend(handles=axes[0, 0].get_lines(), fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# ## Two neighbours as their authors released them
#
# **GITS.** How far is its grid due to its settings? The released ones: a step costs what it adds to the deviation from a straight line, and the costs of later steps grow by 1.15; the teacher is iPNDM in 60 steps. Each row below changes what it names.

# %% tags=["hide-input"]
GITS = {
    "as released": "gits", "costs do not grow": "gits:growth=1", "cost: distance to the teacher": "gits:cost=l2",
    "teacher DDIM": "gits:teacher=ddim", "all three": "gits:cost=l2,teacher=ddim,growth=1",
}  # fmt: skip
if preset != "smoke" and "gits" in methods:
    variants = learned.compare(run, {names[0]: GITS.values()}, [5, 8]).set_index(["method", "nfe"])
    listed = pd.DataFrame({"GITS": list(GITS)})
    for nfe in (5, 8):
        for column, title in (("fd_reference", "FD"), ("rmse", "RMSE")):
            listed[f"{title}, NFE {nfe}"] = [f"{variants[column][m, nfe]:.3f}" for m in GITS.values()]
    by_hand = found[(found.checkpoint == names[0]) & (found.method == "ipndm")].set_index("nfe")
    listed.loc[len(listed)] = ["iPNDM on the best of four grids"] + [
        f"{by_hand[c][nfe]:.3f}" for nfe in (5, 8) for c in ("fd_reference", "rmse")
    ]
    display(plots.listing(listed.assign(n=f"{n:,}; RMSE {found.n_rmse.max()}")))

# %% [markdown]
# **AMED.** Is its training unsteady? Root mean square over all images and pixels (so not the RMSE of the tables) to a solution of 40 evaluations on 128 noises held back, as the training sees more noises (`benchmarks/amed_stability.py`). Its teacher is Heun's method on the same grid, with two steps to each of the student's.

# %% tags=["hide-input"] mystnb={"figure": {"name": "learned-amed", "caption": "AMED's error as its training goes on, 5 NFE, on the data-predicting network. Solid: as released; dashed: by Algorithm 1 of DLMS, from DPM-Solver-2 on Karras's grid. A line a seed; dotted: AMED's own teacher."}}
steadiness = pd.read_csv(experiments.home() / "results" / "amed_stability.csv")
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True)
for ax, (total, part) in zip(
    axes, steadiness[steadiness.images >= 0].query("trajectories > 0").groupby("trajectories"), strict=True
):
    for (method, seed), line in part.groupby(["method", "seed"]):
        look = dict(linestyle="-" if method == "released" else "--", color="C0" if method == "released" else "0.4")
        ax.plot(line.images, line.rmse, linewidth=1.4, label=f"{method}" if seed == 0 else None, **look)
    teacher = steadiness[steadiness.method == "teacher"].rmse.iloc[0]
    ax.axhline(teacher, color="black", linestyle=":", label="its teacher")
    batch = ", ".join(f"{m}: {b}" for m, b in part.groupby("method").batch.first().items())
    ax.set(xlabel="noises seen", title=f"{total:,} noises (batches: {batch})", ylim=(0, None))
    ax.title.set_fontsize(9)
axes[0].set_ylabel("RMSE, n = 128")
axes[0].legend(fontsize=8)
plt.show()

# %% [markdown]
# AMED's released training was steady in two seeds: its error falls to that of its teacher within the first 130 noises of small batches, or the first 1,200 of the released ones, and then stays. More training does not help. We suspect that its teacher limits it; no better teacher was tried.

# %% [markdown]
# ## What is published
#
# FIDs (50,000 images) of Table 5 of the DLMS paper as an independent reimplementation transcribed them, and of its neighbours, from the sources in `results/published_dlms.csv`. They differ in protocol: diff-sampler, with which most were made, thresholds DPM-Solver++ and UniPC dynamically, which nothing in this book does; LD3's and S4S-Alt's are from GAS's table.
# iPNDM, the best handcrafted solver on CIFAR-10 with 5 evaluations, is not in the paper's table; its points are from diff-sampler's README.

# %% tags=["hide-input"] mystnb={"figure": {"name": "learned-published", "caption": "Published FIDs against network calls. Grey: the handcrafted solvers of the DLMS paper's table. Nothing in this figure was measured here."}}
published = pd.read_csv(experiments.home() / "results" / "published_dlms.csv")
OTHERS = {
    "LD3 (best)": "ld3", "S4S-Alt": "s4s-alt", "iPNDM + GITS": "gits", "iPNDM + AMED-Plugin": "amed",
    "DyWeight": "dyweight",
}  # fmt: skip
figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), sharey=True)
for ax, dataset in zip(axes, ("CIFAR-10", "FFHQ-64", "ImageNet-64"), strict=True):
    for (solver, part), mark in zip(
        published[published.dataset == dataset].groupby("solver", sort=False), "osDPX^v<>hd*", strict=False
    ):
        method = {"DLMS": "dlms", **OTHERS}.get(solver)
        look = plots.LEARNED_LOOKS[method] if method else dict(color="0.6", marker=mark)
        part = part.sort_values("nfe")
        ax.plot(part.nfe, part.fid, label=solver, linewidth=2.2 if method == "dlms" else 1.3, markersize=5, **look)
    plots.log_axes(ax, range(3, 11), "FID, as published" if ax is axes[0] else "")
    ax.set_title(dataset)
handles = {h.get_label(): h for ax in axes for h in ax.get_lines()}
figure.legend(handles=list(handles.values()), loc="outside lower center", ncols=8, fontsize=8)
plt.show()

# %% tags=["hide-input"]
table5 = published[published.source.str.startswith("DLMS Table 5")].pivot_table(
    index="nfe", columns=["dataset", "solver"], values="fid"
)
for dataset in table5.columns.levels[0]:
    own, rest = table5[dataset].DLMS, table5[dataset].drop(columns="DLMS").min(axis=1)
    behind = [str(nfe) for nfe in own.index if own[nfe] >= rest[nfe]]
    reach = {nfe: next((str(k) for k in rest.index if rest[k] <= own[nfe]), "more than 10") for nfe in (4, 5, 6)}
    print(
        f"{dataset}: DLMS with 4, 5, 6 calls is reached by the best handcrafted with {', '.join(reach.values())}; "
        + (f"DLMS is not ahead at NFE {', '.join(behind)}" if behind else "DLMS is ahead at every NFE")
    )

# %% tags=["hide-input"]
live = experiments.Live("learned", p, where)
name = names[0]
if live.active:
    row = found[(found.checkpoint == name) & (found.method == "deis") & (found.nfe == 3)].iloc[0]
    live.check(row, learned.learned, "fd_reference", p.again)  # as committed
    row = found.query("checkpoint == @name and method == 'gauss-newton' and nfe == 3").iloc[0]
    live.check(row, learned.learned, "fd_reference", method="gauss-newton:images=16")  # fitted now
    deis = learned.grid_distance.cells(checkpoint=name, solver="deis", variant="plain", grid="time", nfe=3)
    live.check(learned.grid_distance.rows(run, deis).iloc[0], learned.grid_distance, "fd_reference", p.again)
    fewer = dict(n=p.again.images, reference_calls=p.again.reference_calls)
    live.check(floors.reset_index().query("checkpoint == @name").iloc[0], learned.floor, "fd_data", p.again, **fewer)
    row = followed.query("checkpoint == @name and method == 'dlms'").iloc[0]
    live.check(row, paths.paths, "image", p.again, n=8, method=ENDS)
live.show()

# %% tags=["remove-input"]
plots.provenance(experiments.origin(found))
