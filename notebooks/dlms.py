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
# # DLMS: a designer for each step
#
# **The paper** trains a small network, the designer, that looks into the large one after each call and writes the next step of the solver: the weights, the level to go to and the level to tell the network there
# {cite:p}`liang2025lms`. It reports FID 3.23 on CIFAR-10 with five calls, and takes out its six techniques one at a time: each of them helps at 4 calls, the adaptive schedule most of all.
#
# **Measured here**: what such a training looks like on the small networks of this book, what the designer has moved at the end, and the same six techniques taken out. Distances are Fréchet distances in the
# features of a classifier (**not** FID), so what can be compared with the paper is what a technique is worth, not its numbers. The table of the paper is quoted second-hand: there is no code of its authors.

# %% tags=["parameters"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist-data"  # or another name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many samples behind a Fréchet distance; None: the preset's number

# %% tags=["hide-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import display

import dode
from dode import distillation, experiments
from dode.experiments import fits, learned, plots

plots.style()
p = experiments.preset(preset)
p = replace(p, images=seeds or p.images)
where = experiments.device(device)
run = experiments.Run(p, where)
small = preset == "smoke"  # fewer variants, no handcrafted solvers
NFES = (3,) if small else (4, 6, 8, 10)
AT = NFES[0] if small else 6  # where other rates are tried
TRAJECTORIES = min(1600, p.trajectories)
FULL = "dlms" if p.trajectories <= 1600 else "dlms:trajectories=1600"
VARIANTS = {
    "DLMS": "",
    "without AFS": "afs=False",
    "without the bottleneck feature": "features=False",
    "without high-order initialisation": "base=ddim",
    "without the feature distance": "residual=pixels",
    "without time scaling": "scaling=False",
    "without the adaptive schedule": "adaptive=False",
}
if small:
    VARIANTS = {k: VARIANTS[k] for k in list(VARIANTS)[:3:2]}
VARIANTS = {k: FULL + (":" if FULL == "dlms" and v else "," if v else "") + v for k, v in VARIANTS.items()}

# %% [markdown]
# ## The method in short
#
# - **The designer** reads the bottleneck of the U-Net, averaged over channels, with the level and the number of the step, and gives the parts $a$ of eq. (8), the next level $t$ and the scaling $s$ on the page [One formula](unified).
# - **The start** is a good handcrafted solver: Adams-Bashforth in $\ln \sigma$ on clean images, levels uniform in time, $s = 1$, and an analytical first step (AFS), which takes the starting noise for the first output and saves a call.
# - **The teacher** runs along, because the student's levels move: from the same noise, on its own path, with four more levels in each of the student's steps.
# - **The losses**: after every step the student's state is compared with the teacher's at the same level, after the last step in the features of a network. One step of Adam follows the sum.
# - **Stop-gradients**: the state that a step starts from counts as fixed, but for the design that made it; so does the level at which a loss is taken, and the feature that the designer reads. No graph is longer than two steps, and the frozen network
#   is differentiated once a call.
#
# What is ours. A table of one line a step stands beside the designer's network and is added to it, so that "without the feature" is the same solver with the network left out. The best designer on held-back
# seeds is returned, not the last (early selection). The teacher's steps are exact for parabolas in $\ln \sigma$, and equal in $\sigma$. Distances between states are divided by $\sqrt{1 + \sigma^2}$, or the first steps would drown the others. The features at the end are a
# classifier's, random ones and some of the pixels, and never those that measure. The rate of Adam is $2.5 \cdot 10^{-4}$ where the paper has $5 \cdot 10^{-3}$, for a reason that the next figure shows.

# %% tags=["nbval-check-output"]
table, _ = fits.initial_solver(run, checkpoint, "dlms", 4)
solver = distillation.begin_dlms(run.model(checkpoint), table)
count = {name: sum(v.numel() for v in part.parameters()) for name, part in solver.designer.named_children()}
print(
    f"numbers of a designer for 4 calls: {solver.designer.table.numel()} in the table, {sum(count.values())} beside it"
)

# %% [markdown]
# ## Training
#
# Every variant is trained once and kept as a file; the distances are measured on seeds that no training saw.


# %% tags=["hide-input"]
def measured(methods: list[str]) -> pd.DataFrame:
    """A row for each method and NFE: at smoke no handcrafted solver, whose grid would have to be chosen."""
    asked = [*(() if small else learned.HANDCRAFTED), "start", *methods]
    return learned.compare(run, {checkpoint: asked}, NFES)


rows = measured(list(VARIANTS.values()))
print(f"{len(rows)} solvers measured on {p.images:,} samples, each variant trained on {TRAJECTORIES:,} trajectories")

# %% tags=["hide-input"]
RATES = (5e-3,) if small else (1e-3, 5e-3)

trained = {2.5e-4: fits.fit(run, checkpoint, VARIANTS["DLMS"], AT)}
for rate in RATES:
    trained[rate] = fits.fit(run, checkpoint, f"dlms:rate={rate:g},trajectories={TRAJECTORIES}", AT)


def seen(solver: distillation.Designed) -> np.ndarray:
    """How many trajectories had been seen at each check."""
    steps, checks = solver.metadata["trajectories"] // 32, len(solver.metadata["cost"])
    return 32 * np.minimum(np.arange(checks) * max(1, steps // 20), steps)


# %% tags=["hide-input"] mystnb={"figure": {"name": "dlms-training", "caption": "Left: the cost on the held-back seeds (squared distance of the last image to the teacher's in the features that the training sees) at each check, divided by that of the start, for three rates of Adam; the circle is the designer that is kept. Middle and right: the loss of each step in the batch before the check, divided by its first, at the usual rate and at the paper's."}}
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6))
for k, (rate, solver) in enumerate(trained.items()):
    cost = np.array(solver.metadata["cost"]) / solver.metadata["cost"][0]
    best = int(cost.argmin())
    axes[0].plot(seen(solver), cost, color=f"C{k}", label=f"rate {rate:g}")
    axes[0].plot(seen(solver)[best], cost[best], "o", color=f"C{k}", markerfacecolor="white", zorder=5)
axes[0].axhline(1, color="grey", linestyle=":", linewidth=1)
axes[0].set(xlabel="trajectories", ylabel="cost / cost of the start", yscale="log", title=f"{AT} calls")
axes[0].legend()
for ax, rate in zip(axes[1:], (2.5e-4, 5e-3), strict=True):
    losses = np.array(trained[rate].metadata["losses"])
    for row, line in enumerate((losses / losses[0]).T):
        shade = plt.colormaps["viridis"](row / len(losses.T))
        ax.plot(seen(trained[rate])[1:], line, color=shade, label=f"step {row + 1}")
    ax.axhline(1, color="grey", linestyle=":", linewidth=1)
    ax.set(xlabel="trajectories", yscale="log", title=f"losses, rate {rate:g}")
axes[1].set_ylabel("loss / first loss")
axes[2].sharey(axes[1])
axes[1].legend(fontsize=8, ncols=2)
for ax in axes:
    ax.yaxis.set_major_formatter(plt.FuncFormatter(lambda v, _: f"{v:g}"))
    ax.yaxis.set_minor_formatter(plt.FuncFormatter(lambda v, _: ""))
plt.show()

# %% tags=["hide-input"]
for rate, solver in trained.items():
    cost = np.array(solver.metadata["cost"]) / solver.metadata["cost"][0]
    print(
        f"{AT} calls, rate {rate:g}: least {cost.min():.2f} of the start's cost after {seen(solver)[cost.argmin()]:,} trajectories, {cost[-1]:.2f} at the end"
    )

# %% [markdown]
# ## What the designer has moved
#
# The trained solvers on 64 held-out seeds. A level, a scaling or a weight of a designed solver is another one for each image; the spread over images is what the bottleneck feature does, the rest could stand in a table.


# %% tags=["hide-input"]
def designs(solver: distillation.DLMS, images: int) -> dict[str, torch.Tensor]:
    """For each image the levels ``(B, N)``, the levels told over them and the newest parts of each row."""
    model, plans = run.model(checkpoint), []
    noise = dode.initial_noise(model.shape, experiments.held_out_seeds(images), device=model.device)
    watched, plan = replace(solver), solver.plan
    watched.plan = lambda *given, **named: plans.append(plan(*given, **named)) or plans[-1]
    with torch.no_grad():
        level, told = solver.begin(noise, {})
        dode.sample(model, watched, noise)
    levels = torch.stack([level, *(q.following for q in plans[:-1])], 1)
    scales = torch.stack([told, *(q.sigma_in for q in plans[:-1])], 1) / levels
    newest = torch.stack([q.shares[0][1] for q in plans], 1)
    return dict(levels=levels.cpu(), scales=scales.cpu(), newest=newest.cpu())


images = 8 if preset == "smoke" else 64
full = {nfe: fits.fit(run, checkpoint, VARIANTS["DLMS"], nfe) for nfe in NFES}
found = {nfe: designs(solver, images) for nfe, solver in full.items()}

# %% tags=["hide-input"] mystnb={"figure": {"name": "dlms-levels", "caption": "The level of each call before training (grey) and after (blue: one dot an image, 64 held-out seeds; the dots of one call are spread vertically for sight). The open grey circle at the right is where the solver starts before its analytical first step."}}
figure, ax = plt.subplots(figsize=(9, 1.1 + 0.9 * len(NFES)))
for k, (nfe, solver) in enumerate(full.items()):
    start = solver.base.sigmas[:nfe].tolist()
    ax.plot(start, [k + 0.18] * nfe, "s", color="grey", markersize=7, label="before" if k == 0 else "")
    ax.plot(run.model(checkpoint).sigma_max, k + 0.18, "o", color="grey", markerfacecolor="white")
    for call, levels in enumerate(found[nfe]["levels"].T):
        jitter = k - 0.18 + 0.1 * np.linspace(-1, 1, len(levels))
        ax.plot(levels, jitter, ".", color="C0", markersize=4, label="after" if k == call == 0 else "")
ax.set(xscale="log", xlabel=r"$\sigma$", ylim=(-0.5, len(NFES) - 0.5))
ax.set_yticks(range(len(NFES)), [f"{nfe} calls" for nfe in NFES])
ax.legend(loc="upper left", ncols=2)
plt.show()

# %% tags=["hide-input"]
plain = lambda v: f"{v:.3g}"  # noqa: E731
spread = lambda v: f"{v.mean():.3f} ± {v.std():.3f}"  # noqa: E731
listed = []
for nfe, solver in full.items():
    base = solver.base
    for row in range(nfe):
        levels = found[nfe]["levels"][:, row]
        listed.append({
            "calls": nfe, "call": row + 1, "level before": plain(base.sigmas[row]),
            "after (geometric mean)": plain(levels.log().mean().exp()), "spread over images": f"{100 * levels.log().std():.2f}%",
            "level told / level": spread(found[nfe]["scales"][:, row]), "newest weight before": plain(base.normalised_weights[row, row + 1]),
            "after": spread(found[nfe]["newest"][:, row]),
        })  # fmt: skip
plots.listing(pd.DataFrame(listed))

# %% tags=["nbval-check-output", "hide-input"]
falling = all(bool((found[nfe]["levels"].diff(dim=1) < 0).all()) for nfe in NFES)
kept = all(min(s.metadata["cost"]) <= s.metadata["cost"][0] for s in full.values())
print(f"levels fall from call to call, for every image: {falling}; nothing worse than the start is kept: {kept}")

# %% [markdown]
# A schedule collapses when calls end up at one level: two calls then buy one. The least ratio of neighbouring levels:

# %% tags=["hide-input"]
for nfe, solver in full.items():
    before = float((solver.base.sigmas[: nfe - 1] / solver.base.sigmas[1:nfe]).min())
    after = found[nfe]["levels"][:, :-1] / found[nfe]["levels"][:, 1:]
    print(f"{nfe} calls: {before:.2f} before, {float(after.min()):.2f} after in the worst of {images} images")

# %% [markdown]
# ## The ablation
#
# "Without the bottleneck feature" is trained at a rate eight times as high, as tables allow; "without the feature distance" compares pixels at the end; everything else of a variant is as in the full method.

# %% tags=["hide-input"]
measures = {"fd_reference": "FD to the long run", "fd_data": "FD to the data", "rmse": "RMSE"}
words = {method: name for name, method in VARIANTS.items()} | {"start": "the start, untrained"}
results = rows.assign(variant=rows.method.map(words))
if not small:  # the handcrafted solver that is nearest to the long run, at each NFE
    crafted = results[results.method.isin(learned.HANDCRAFTED)]
    crafted = crafted.loc[crafted.groupby("nfe").fd_reference.idxmin()].assign(variant="best handcrafted")
    results = pd.concat([results, crafted])
values = results.dropna(subset="variant").set_index(["variant", "nfe"])
published = pd.read_csv(experiments.home() / "results" / "published_dlms_ablation.csv")
fid = published.set_index(["variant", "nfe"]).fid
names = [*VARIANTS, "the start, untrained", *([] if small else ["best handcrafted"])]

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "dlms-ablation", "caption": "What taking out a technique costs: the distance without it over that of the full method (dotted line). Circles: Fréchet distances here, to the samples of the long run (filled) and to the data (open), in classifier features; diamonds: the paper's FID on CIFAR-10 at the same number of calls, where it has one. To the right: worse without it."}}
figure, axes = plt.subplots(1, len(NFES), figsize=(11, 4.4), sharex=True, sharey=True, squeeze=False)
LOOKS = dict(fd_reference=dict(color="C0"), fd_data=dict(color="C0", markerfacecolor="white", markeredgewidth=1.6))
for ax, nfe in zip(axes[0], NFES, strict=True):
    for y, name in enumerate(names):
        for column, look in LOOKS.items():
            ratio = values.loc[(name, nfe), column] / values.loc[("DLMS", nfe), column]
            ax.plot(ratio, y, "o", markersize=8, **look, label=measures[column] if y == 0 else "")
        if (name, nfe) in fid:
            ratio = fid[name, nfe] / fid["DLMS", nfe]
            ax.plot(ratio, y + 0.22, "D", color="C1", markersize=6, label="FID, the paper" if y == 0 else "")
    ax.axvline(1, color="grey", linestyle=":")
    ax.set(xscale="log", title=f"{nfe} calls")
    plots.plain_ticks(ax.xaxis)
axes[0, 0].set_yticks(range(len(names)), names)
axes[0, 0].invert_yaxis()
figure.supxlabel("distance / that of the full method", fontsize=11)
handles, labels = axes[0, 0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=3)
plt.show()

# %% tags=["hide-input"]
listed = []
for nfe in NFES:
    for name in names:
        own = values.loc[(name, nfe)]
        listed.append({
            "calls": nfe, "variant": name, **{label: f"{own[column]:.3f}" for column, label in measures.items()},
            "FD to the long run / full": f"{own.fd_reference / values.loc[('DLMS', nfe), 'fd_reference']:.2f}",
            "FID, the paper": f"{fid[name, nfe]:.2f}" if (name, nfe) in fid else "",
            "FID / full": f"{fid[name, nfe] / fid['DLMS', nfe]:.2f}" if (name, nfe) in fid else "",
        })  # fmt: skip
plots.listing(pd.DataFrame(listed))

# %% [markdown]
# The paper's table in full, FID on CIFAR-10 (fifty thousand samples, Inception features, another network and other data: nothing to set beside the distances above but the order of the rows):

# %% tags=["hide-input"]
wide = published.pivot(index="variant", columns="nfe", values="fid").loc[published.variant.unique()]
plots.listing(wide.rename(columns="{} calls".format).reset_index())

# %% tags=["hide-input"]
for nfe in NFES:
    own = values.xs(nfe, level="nfe").loc[[*VARIANTS]]
    ratio = own.fd_reference / own.loc["DLMS", "fd_reference"]
    worse, better = ratio[ratio > 1.02], ratio[ratio < 0.98]
    say = lambda part: ", ".join(f"{k} {v:.2f}" for k, v in part.sort_values(ascending=False).items()) or "none"  # noqa: E731
    print(f"{nfe} calls, FD to the long run over the full method's; worse: {say(worse)}; better: {say(better)}")
    gain = values.loc[("the start, untrained", nfe), "fd_reference"] / own.loc["DLMS", "fd_reference"]
    print(f"{nfe} calls: training divides the start's FD to the long run by {gain:.2f}")

# %% [markdown]
# ## Beside a table fitted by Gauss-Newton
#
# A designer gives each image a table of its own. One table for all images, all of its numbers fitted at once [by Gauss-Newton steps](gauss_newton):

# %% tags=["hide-input"]
BEYOND = {
    FULL: "DLMS",
    "gauss-newton": "Gauss-Newton, one table",
}
more = measured(list(BEYOND))
more = more[more.method.isin(BEYOND)].set_index(["nfe", "method"])
listed = []
for nfe in NFES:
    if not small:
        best = values.loc[("best handcrafted", nfe)]
        listed.append({"calls": nfe, "solver": "best handcrafted", **{label: f"{best[k]:.3f}" for k, label in measures.items()}, "evaluations": "0"})  # fmt: skip
    for method, title in BEYOND.items():
        own = more.loc[(nfe, method)]
        listed.append({
            "calls": nfe, "solver": title, **{label: f"{own[k]:.3f}" for k, label in measures.items()},
            "evaluations": f"{own.evaluations:,}",
        })  # fmt: skip
plots.listing(pd.DataFrame(listed))

# %% [markdown]
# ## What was tried to bring it ahead
#
# As published it is not ahead of everything made by hand. So, one at a time and together: the loss of the Gauss-Newton solver, at the last step and in the early selection; another start, DPM-Solver++(3M) without an analytical first step on the grid where it is best with 5 calls; training on 6,400 noises, or as long as the paper does on 20,000, in place of 1,600; and a designer on top of the Gauss-Newton solver.

# %% tags=["hide-input"] mystnb={"figure": {"name": "dlms-tried", "caption": "Fréchet distance of DLMS to the long run over the best handcrafted solver's with the same calls; below 1 it is ahead. Longer trainings were not made at every number of calls."}}
TRIED = {
    "": "as published",
    "residual=seen": "the same loss",
    "afs=False,residual=seen": "no AFS, the same loss",
    "afs=False,base=dpm_solver_pp,grid=BEST": "begun at DPM-Solver++(3M)",
    "afs=False,base=dpm_solver_pp,grid=BEST,residual=seen": "begun there, the same loss",
    "trajectories=20000": "20,000 noises",
    "residual=seen,trajectories=20000": "20,000 noises, the same loss",
    "afs=False,residual=seen,trajectories=6400": "no AFS, 6,400 noises, the same loss",
    "afs=False,residual=seen,trajectories=20000": "no AFS, 20,000 noises, the same loss",
    "base=gauss-newton,residual=seen": "on the Gauss-Newton solver, the same loss",
}
NETWORKS = experiments.checkpoints("fashion-mnist")[::-1]
BEST_GRID = {"fashion-mnist-noise": "quadratic"}  # of DPM-Solver++(3M) with 5 calls; else Karras's
LONG = {  # which of the longer trainings were made
    "trajectories=20000": [("fashion-mnist-noise", 5)],
    "residual=seen,trajectories=20000": [("fashion-mnist-data", 5), ("fashion-mnist-noise", 5)],
    "afs=False,residual=seen,trajectories=6400": [(name, nfe) for name in NETWORKS for nfe in (4, 5, 6)],
    "afs=False,residual=seen,trajectories=20000": [("fashion-mnist-noise", 5)],
}


def gains(name: str, nfe: int, methods: list[str], block: int = 0) -> dict[str, float]:
    """FD to the long run over the best handcrafted solver's on the same block of seeds, by method."""
    asked = [*learned.HANDCRAFTED, *methods]
    far = learned.compare(run, {name: asked}, [nfe], [block]).set_index("method").fd_reference
    return {method: far[method] / far[list(learned.HANDCRAFTED)].min() for method in methods}


def tried(name: str, nfe: int) -> dict[str, float]:
    """The gain of each change."""
    cells = {
        title: f"dlms:{change}".rstrip(":").replace("BEST", BEST_GRID.get(name, "Karras"))
        for change, title in TRIED.items()
        if "trajectories" not in change or ((name, nfe) in LONG[change] and p.trajectories < 20_000)
    }
    gain = gains(name, nfe, list(cells.values()))
    return {title: gain[method] for title, method in cells.items()}


if not small:
    ratios = pd.DataFrame({(name, nfe): tried(name, nfe) for name in NETWORKS for nfe in (4, 5, 6)})
    ratios = ratios.reindex(list(TRIED.values()))
    figure, axes = plt.subplots(1, len(NETWORKS), figsize=(11, 3.4), sharex=True, sharey=True)
    for ax, name in zip(axes, NETWORKS, strict=True):
        for k, nfe in enumerate((4, 5, 6)):
            ax.plot(ratios[name, nfe], np.arange(len(ratios)) + 0.18 * (k - 1), "osD"[k], color=f"C{k}", label=f"{nfe} calls")  # fmt: skip
        ax.axvline(1, color="grey", linestyle=":")
        ax.set(
            xscale="log",
            xlabel=f"FD / best handcrafted FD, n = {p.images:,}",
            title=f"{name.rsplit('-', 1)[1]} prediction",
        )
        plots.plain_ticks(ax.xaxis)
    axes[0].set_yticks(range(len(ratios)), ratios.index)
    axes[0].invert_yaxis()
    axes[-1].legend()
    plt.show()

# %% tags=["hide-input"]
if not small:
    shown = ratios.map(lambda v: "" if np.isnan(v) else f"{v:.2f}")
    shown.columns = [f"{name.rsplit('-', 1)[1]}, {nfe} calls" for name, nfe in shown.columns]
    display(plots.listing(shown.rename_axis("DLMS").reset_index()))

# %% [markdown]
# The figure is of one block of seeds, and the best of many trials on one block may owe it something. So the one that came nearest on both networks without a fit of ours below it is measured on two more blocks, by which nothing was chosen:

# %% tags=["hide-input"]
if not small and p.trajectories < 20_000:
    nearest = "dlms:afs=False,residual=seen,trajectories=6400"
    lines = []
    for name in NETWORKS:
        for nfe in (4, 5, 6):
            each = {f"block {block}": f"{gains(name, nfe, [nearest], block)[nearest]:.2f}" for block in (0, 1, 2)}
            lines.append({"checkpoint": name, "NFE": nfe} | each)
    print(f"no AFS, 6,400 noises, the same loss: FD / best handcrafted FD, n = {p.images:,}")
    display(plots.listing(pd.DataFrame(lines)))

# %% [markdown]
# ## Agreement
#
# **The paper's claim**: every technique helps, the adaptive schedule most of all, and what they are worth shrinks as calls grow: at 4 calls all but the bottleneck feature and the initialisation are worth more than at any larger number. The best handcrafted
# solver of its table has 5.7 times the FID of the full method at 4 calls.
#
# **Measured here** (`results/learned.standard.csv`: 5,000 samples, one block of seeds, 1,600 trajectories; the data-predicting network unless said):
#
# - **Training helps.** The full method is at 3 calls 2.3 times as near to the long run as its start, at 5 calls 2.5 times, at 10 1.7 times. At 4 calls it is 1.2 times as near: the cost is least after a few checks and then grows, at our rate too, and only early selection keeps a solver that is better than its start.
# - **No schedule collapses**, at 8 and 10 calls neither.
# - **Not as in the paper**, it does not beat the handcrafted solvers throughout. The best of five, each on its best of four grids, is farther from the long run at 3 and 4 calls, and nearer from 5 on.
# - **The ablation.** The feature distance helps at every number of calls (without it 1.23, 1.48, 1.39 and 1.31 times as far with 4, 6, 8 and 10), and so do time scaling (1.10, 1.24, 1.51, 1.23) and the high-order initialisation (1.25, 1.62, 1.07, 1.24). AFS does from 6 on (1.14, 1.01, 1.20); at 4 the solver without it is by far the *nearest* of all (0.50 of the full method's distance).
#   The adaptive schedule, worth most in the paper, is worth little (0.86, 1.04, 1.17, 1.03), and so is the bottleneck feature (1.18, 0.84, 1.21, 0.95). What they are worth does not shrink as calls grow.
# - **What was tried.** On the data-predicting network the loss of the Gauss-Newton solver bring it ahead at 4 and 6 calls (0.55 and 0.81 of the best handcrafted distance), and with the paper's length of training at 5 (0.78). On the noise-predicting one they bring it level at 4 (1.05) and not at 5 and 6 (3.31, 2.68); without AFS it comes nearer at 5 and 6 (1.14, 1.47 and 1.09); with
#   AFS the long training makes it worse (2.45 in place of 1.55, with that loss 3.44). **The three together, no AFS, that loss and 6,400 noises, bring it ahead with 4 and 6 calls on both networks, and not with 5**: on the data-predicting one 0.27, 0.92 and 0.39 with 4, 5 and 6 calls, on the noise-predicting one 0.71, 1.07 and 0.71. On two blocks by which nothing was chosen it is ahead with 4 and 6 as well, 0.29 to 0.85, and with 5 behind, 1.07 to 1.27; there 20,000 noises do not help (1.08 in place of 1.07). The eyes alone (6 calls) and with the paper's length (5 calls) are ahead on one of these two blocks each, on the data-predicting network. Begun at DPM-Solver++(3M) it is ahead with 4 calls on the data-predicting network (0.53 with the same loss); else the training leads away from that solver, to a greater distance than its own. On top of the Gauss-Newton solver a designer is ahead of everything made by hand, 0.05 to 0.34 on the two networks, and ahead of the fit itself with 4 and 6 calls on the noise-predicting one, nowhere else.
# - **Beside a table that is one for all images**: the Gauss-Newton solver is nearer than DLMS at each of these numbers of calls ([the next page](gauss_newton)).
#
# **Differences of setting**: a twelfth of the paper's 20,000 trajectories where nothing else is said, a lower rate, a small network and easy data.

# %% tags=["hide-input"]
live = experiments.Live("dlms", p, where)
if live.active:
    shorter = f"{FULL}:trajectories=96"
    for sizes, method, like in (
        (p.again, "start", "start"),
        (p.again, VARIANTS["without AFS"], VARIANTS["without AFS"]),
        (p.live, shorter, FULL),  # trained now
    ):
        row = rows[(rows.method == like) & (rows.nfe == NFES[0])].iloc[0]
        live.check(row, learned.learned, "fd_reference", sizes, method=method)
live.show()

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
