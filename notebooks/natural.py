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
# # Natural images
#
# Both papers measure on photographs {cite:p}`kim2024dode,liang2025lms`; the other pages of this book measure on ten kinds of garments in grey. Here are two more networks, of the same two kinds, for 32 x 32 pixels in colour and 200 classes of
# ImageNet {cite:p}`deng2009imagenet`: what of the other pages holds for them? Each was trained for about an hour on one CPU core ([How the checkpoints were made](checkpoints)), so their pictures are texture more than things, and far from the
# state of the art. That does not matter to what is asked: how near does a solver come, with few calls, to what *this* network draws with many?
#
# An image's class is that of its seed: seed $k$ draws class $k$ modulo 200. The measure is the Fréchet distance in the features of a small classifier of these 200 classes (**not** FID, and no number here compares with one on garments); $n$ stands beside it.

# %% tags=["parameters"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = None  # a name or imagenet32; None: both networks, at smoke the data-predicting one
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images of each solver are shown, at most; None: 12

# %% tags=["hide-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML

import dode
from dode import experiments
from dode.experiments import fits, learned, plans, plots, possible_nfe
from dode.experiments.quality import OWN, greedy_error, greedy_error_cells

plots.style()
p = experiments.preset(preset)
if "standard" in (preset, p.rows_of):
    p = replace(p, images=2_000, zoo_images=32)  # a call of these networks costs several of the other ones'
elif preset == "smoke":
    p = replace(p, images=24, fit_images=4, learn_images=2, zoo_images=2, path_images=4, reference_steps=20)
small = replace(p.live, images=64, zoo_images=12, path_images=8, fit_images=16, reference_steps=30) if p.rows_of else p
where = experiments.device(device)
run = experiments.Run(p, where)
names = experiments.checkpoints(checkpoint or ("imagenet32" if p.kept else "imagenet32-data"))[::-1]
NFES, BLOCKS = ((3, 5, 10), (0, 1, 2)) if p.kept else ((3,), (0,))  # calls; blocks of seeds
CRAFTED = list(learned.HANDCRAFTED) if p.kept else ["deis"]
LEARNED = ["d-ode", "gauss-newton"]
FEW = (5, 10) if p.kept else (5,)  # calls of the other solvers that are distilled
OTHERS = {"noise": plans.FOUR[1:] + plans.LATER, "data": ("heun", *plans.LATER)}  # of Figure 3, of Figure 4
if not p.kept:
    OTHERS = {kind: solvers[:1] for kind, solvers in OTHERS.items()}
word = lambda name: name.rsplit("-", 1)[1]  # noqa: E731  "noise" or "data"
KIN = {name: f"fashion-mnist-{word(name)}" for name in names}  # the network of garments that predicts the same

# %% [markdown]
# ## What the networks draw
#
# With 50 calls of DDIM, seeds not selected.

# %% tags=["hide-input"] mystnb={"figure": {"name": "natural-samples", "caption": "DDIM with 50 network calls, seeds not selected."}}
figure, axes = plt.subplots(len(names), 1, figsize=(9, 2.5 * len(names)), squeeze=False)
for ax, name in zip(axes[:, 0], names, strict=True):
    model, noise = experiments.seeded(
        dode.load(name, device=where), experiments.held_out_seeds(min(48, small.path_images))
    )
    plots.show(ax, dode.sample(model, dode.solvers.ddim(model.grid(50)), noise), 16, f"{word(name)} prediction")
plt.show()

# %% [markdown]
# ## DDIM and D-DDIM
#
# The D-ODE paper's own comparison ([Figure 4](figure_4) has it on garments): DDIM beside its distilled version, one number a step in closed form. The distance is to the training images, so beyond some number of calls what the *network* does wrong is all that is left.

# %% tags=["hide-input"] mystnb={"figure": {"name": "natural-ddim", "caption": "Fréchet distance to the training images against network calls: DDIM dotted, its distilled version solid."}}
calls = {(name, "ddim"): [nfe for nfe in p.nfes if p.kept or nfe <= 10] for name in names}
calls |= {(name, solver): [possible_nfe(solver, nfe) for nfe in FEW] for name in names for solver in OTHERS[word(name)]}
drawn = experiments.fd.rows(run, experiments.fd_cells(replace(p, repeats=1), calls), "natural")
paired = drawn[drawn.solver == "ddim"]
figure, axes = plt.subplots(1, len(names), figsize=(max(5.5, 4.5 * len(names)), 3.6), squeeze=False, sharey=True)
for ax, name in zip(axes[0], names, strict=True):
    for variant in ("plain", "d-ode"):
        line = paired[(paired.checkpoint == name) & (paired.variant == variant)]
        plots.curve(ax, line.nfe, line.fd, "ddim", variant == "d-ode")
    plots.log_axes(ax, sorted(set(line.nfe)), f"FD to the data, n = {int(line.n.max()):,}" if ax is axes[0, 0] else "")
    ax.set_title(f"{word(name)} prediction")
    ax.legend()
plt.show()

# %% tags=["hide-input"]
both = paired.set_index(["checkpoint", "nfe", "variant"]).fd.unstack()
for name in names:
    ratios = (both["d-ode"] / both.plain)[name]
    print(f"{word(name)} prediction, distilled / plain with {', '.join(map(str, ratios.index))} calls:")
    print(f"  {', '.join(map('{:.2f}'.format, ratios))}")

# %% [markdown]
# ## The other solvers, distilled
#
# What the same distillation is worth to other solvers, here and on garments: those of [Figure 3](figure_3) for the noise-predicting network, those of [Figure 4](figure_4) for the other, the same grids, the same measure to each data set's own images. EDM's Heun makes 9 calls of 10.

# %% tags=["hide-input"] mystnb={"figure": {"name": "natural-others", "caption": "Fréchet distance to the training images, the distilled solver's over the plain one's: natural images filled (n in the table below), garments hollow (committed run, n = 5,000, three blocks of seeds). Left of 1 distillation is worth it."}}
cell = ["checkpoint", "solver", "nfe"]


def worth(table: pd.DataFrame) -> pd.DataFrame:
    """Plain, distilled and their ratio, means over blocks."""
    fd = table.groupby([*cell, "variant"]).fd.mean().unstack()[["plain", "d-ode"]]
    return fd.assign(ratio=fd["d-ode"] / fd.plain).rename_axis(columns=None)


there = worth(experiments.committed("figure_3", "figure_4")).ratio
here = worth(drawn).reset_index()
here = here[here.nfe.between(FEW[0], FEW[-1])]
here["garments"] = [there[KIN[name], solver, nfe] for name, solver, nfe in here[cell].itertuples(index=False)]
figure, axes = plt.subplots(1, len(names), figsize=(max(5.5, 4.8 * len(names)), 4.2), squeeze=False, sharex=True)
for ax, name in zip(axes[0], names, strict=True):
    solvers = [solver for network, solver in calls if network == name]
    part = here[here.checkpoint == name]
    for j, nfe in enumerate(FEW):
        few = part[part.nfe.isin([nfe, possible_nfe("heun", nfe)])]
        at = few.solver.map(solvers.index) + 0.26 * (j - (len(FEW) - 1) / 2)
        look = dict(marker="os"[j], color=f"C{j}", linestyle="")
        ax.plot(few.ratio, at, label=f"natural images, {nfe} calls", **look)
        ax.plot(few.garments, at, label=f"garments, {nfe} calls", markerfacecolor="white", **look)
    ax.axvline(1, color="0.3", linewidth=0.8)
    ax.set(xscale="log", xlabel="distilled / plain", title=f"{word(name)} prediction")
    ax.set_xticks([], minor=True)
    ax.set_xticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"])
    ax.set_yticks(range(len(solvers)), [plots.NAMES[solver] for solver in solvers])
    ax.set_ylim(len(solvers) - 0.5, -0.5)
figure.legend(handles=ax.get_lines()[: 2 * len(FEW)], loc="outside lower center", ncols=2, fontsize=8)
plt.show()

# %% tags=["hide-input"]
wanted = list[dict]()
for name in names:
    wanted += greedy_error_cells([name], ["ddim", *OTHERS[word(name)]], FEW, p.zoo_images, p.reference_steps)
wanted = [asked for asked in wanted if asked["variant"] != OWN]
measured = greedy_error.rows(run, wanted, "natural_pixels")
rmse = measured.set_index([*cell, "variant"]).rmse.unstack()
order = {solver: k for k, (_, solver) in enumerate(calls)}
told = here.sort_values(["checkpoint", "solver", "nfe"], key=lambda c: c.map(order) if c.name == "solver" else c)
told["ratio in RMSE"] = list((rmse["d-ode"] / rmse.plain)[pd.MultiIndex.from_frame(told[cell])])
told = told.replace({"solver": plots.NAMES})
numbers = list(told.columns[3:])
told[numbers] = told[numbers].map("{:.2f}".format)
titles = {"nfe": "NFE", "d-ode": "distilled", "garments": "ratio on garments"}
print(f"Fréchet distance to the training images, n = {int(drawn.n.max()):,}, one block of seeds;")
print("ratio: distilled / plain;")
print(f"ratio in RMSE: to the images of a long run from the same seeds, n = {p.zoo_images}")
plots.listing(told.rename(columns=titles))

# %% [markdown]
# ## Few calls
#
# The handcrafted solvers of [Learned solvers compared](learned), each on the grid that is best for it here; *the start*, which is handcrafted too; and two learned ones, D-DDIM and the [Gauss-Newton solver](gauss_newton) of a whole table, whose eyes are a critic and an observer of these classes. Settings are those of the
# other pages; none was chosen on these images. The distance is to samples of a long run of the same network from other seeds, so it says what the *solver* does wrong.

# %% tags=["hide-input"]
methods = [*CRAFTED, "start", *LEARNED]
every = learned.compare(run, dict.fromkeys(names, methods), NFES, BLOCKS)
found = every[every.block == 0].astype(dict(n_rmse=int))
n, n_rmse = found.n.max(), found.n_rmse.max()
print(f"{len(found)} solvers, blocks of seeds: {len(BLOCKS)}, n = {n:,} images each; {n_rmse} for RMSE")

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "natural-pictures", "caption": "The same seeds through DDIM, its distilled version and the Gauss-Newton solver, each with so few calls, and through a long run."}}
few, count = max(nfe for nfe in NFES if nfe <= 5), min(seeds or 12, small.zoo_images)
figure, axes = plt.subplots(4 * len(names), 1, figsize=(9, 3.1 * len(names)), squeeze=False)
for k, name in enumerate(names):
    model, noise = experiments.seeded(dode.load(name, device=where), experiments.held_out_seeds(count))
    solvers = {f"DDIM, {few}": dode.solvers.ddim(model.grid(few))}
    solvers |= {f"{plots.NAMES[m]}, {few}": fits.fit(run, name, m, few) for m in LEARNED}
    strips = {label: dode.sample(model, solver, noise) for label, solver in solvers.items()}
    long = run.reference_images(name, small.zoo_images, small.reference_steps)[:count]
    strips |= {f"long run, {small.reference_steps}": long}
    for ax, (label, images) in zip(axes[4 * k :, 0], strips.items(), strict=False):
        plots.strip(ax, images, label)
    axes[4 * k, 0].set_title(f"{word(name)} prediction")
plt.show()

# %% tags=["hide-input"] mystnb={"figure": {"name": "natural-nfe", "caption": "Distance against network calls; lower is better. Left: Fréchet distance to samples of a long run (dashed: what two sets of n normal draws with its moments are apart). Middle: to the training images (dashed: of the long run itself). Right: RMSE to the long run's images from the same seeds. Grey: handcrafted solvers, each on its best grid. Dotted: where the Gauss-Newton solver begins."}}
MEASURES = {
    "fd_reference": f"FD to the long run, n = {n:,}",
    "fd_data": f"FD to the data, n = {n:,}",
    "rmse": f"RMSE, n = {n_rmse}",
}
floors = learned.floor.cells(checkpoint=names, n=p.images, reference_calls=p.reference_calls)
floors = learned.floor.rows(run, floors).set_index("checkpoint")
figure, axes = plt.subplots(len(names), 3, figsize=(11, 3.9 * len(names)), squeeze=False)
for line, name in zip(axes, names, strict=True):
    for ax, (column, label) in zip(line, MEASURES.items(), strict=True):
        plots.against_calls(ax, found[found.checkpoint == name], column, label, floors.loc[name].get(column))
    line[1].set_title(f"{word(name)} prediction")
    print(f"{word(name)}: the long run is {floors.fd_data[name]:.2f} from the training images")
figure.legend(handles=axes[0, 2].get_lines(), loc="outside lower center", ncols=4, fontsize=8)
plt.show()

# %% [markdown]
# Fréchet distance to the long run. **Bold**: the nearest at that NFE. After a handcrafted solver its grid stands as a letter: t uniform in time, q quadratic, K Karras's, s log SNR.

# %% tags=["hide-input"]
captioned = {name: f"{word(name)} prediction, n = {n:,}" for name in names}
listings = [plots.calls_table(found[found.checkpoint == name], "fd_reference", captioned[name]) for name in names]
HTML("".join(listing.data for listing in listings))

# %% [markdown]
# Over the best handcrafted solver of the same seeds, on each block of them:

# %% tags=["hide-input"]
cell = ["checkpoint", "nfe", "block"]
best = every[every.method.isin(CRAFTED)].groupby(cell).fd_reference.min()
gain = every.set_index([*cell, "method"]).fd_reference / best
lines = []
for name in names:
    for method in ("start", *LEARNED):
        each = {f"NFE {k}": ", ".join(f"{gain[name, k, block, method]:.2f}" for block in BLOCKS) for k in NFES}
        lines.append({"network": word(name), "solver": plots.NAMES[method]} | each)
plots.listing(pd.DataFrame(lines))

# %% tags=["hide-input"]
for name in names:
    spent = found[(found.checkpoint == name) & (found.method == "gauss-newton")].set_index("nfe").evaluations
    print(
        f"{word(name)}: evaluations of the Gauss-Newton solver, {', '.join(f'{k} calls {v:,}' for k, v in spent.items())}"
    )

# %% [markdown]
# ## Solvers made for garments
#
# A solver is a table of numbers, so it may be taken elsewhere: here are the solvers of the other pages, made for a network of *garments* in grey, on the network of natural images that predicts the same thing on the same noise levels. Nothing is fitted anew. If what is learned belonged to the noise levels alone, these tables
# would do as well as those made for the network that samples.

# %% tags=["hide-input"]
MOVED = ["d-ode", "ld3", "gauss-newton"] if p.kept else ["gauss-newton"]
cells = [
    learned.transfer_cell(run, name, KIN[name], m, nfe, nfe, p.images) for name in names for nfe in NFES for m in MOVED
]
moved = learned.transfer.rows(run, cells, jobs=1)
carried = moved.set_index(["checkpoint", "nfe", "method"]).fd_reference
own = found.set_index(["checkpoint", "nfe", "method"]).fd_reference
lines = []
for name in names:
    for solver, values in {
        **{f"{plots.NAMES[m]}, made for garments": carried[name].xs(m, level="method") for m in MOVED},
        **{f"{plots.NAMES[m]}, made for this network": own[name].xs(m, level="method") for m in LEARNED},
        "the start": own[name].xs("start", level="method"),
        "the best handcrafted": best[name].xs(0, level="block"),
    }.items():
        lines.append({"network": word(name), "solver": solver} | {f"NFE {k}": f"{values[k]:.3f}" for k in NFES})
print(f"Fréchet distance to the long run, n = {n:,}")
plots.listing(pd.DataFrame(lines))

# %% tags=["nbval-check-output", "hide-input"]
tables = [learned.table_of(run, KIN[name], m, nfe) for name in names for nfe in NFES for m in MOVED]
fall = all(bool((table.sigmas.diff() < 0).all()) for table in tables)
whole = all(np.allclose(table.normalised_weights.sum(1), 1) for table in tables)
print(f"{len(tables)} tables made for garments: levels fall: {fall}; the parts of each row sum to one: {whole}")

# %% [markdown]
# ## Agreement
#
# From the committed run ($n$ = 2,000 for each Fréchet distance, 32 for RMSE; the other pages have 5,000 and 128):
#
# - **The Gauss-Newton solver leads here too.** On the data-predicting network it has 0.06 to 0.07 of the best handcrafted distance with 3 calls, 0.24 to 0.26 with 5 and 0.80 to 0.83 with 10, on the noise-predicting one 0.29 to 0.32, 0.11 to 0.12 and 0.47 to 0.49, on three blocks of seeds by which nothing was chosen.
#   (The 0.8: iPNDM too is near what two sets of so many draws are apart, dashed.) With 3 calls it is nearer to the long run than every handcrafted solver with 5. It is the nearest in RMSE in all six cases, and to the training images with 3 and 5 calls: with 5 on the data-predicting network as near to them as DDIM with 50
#   (12.60 and 12.74). With 10 calls UniPC-3 is nearer to those images on the data-predicting network and D-DDIM on the other, there nearer than the long run itself (dashed), which is where a solver should come out. A fit takes 44 to 159 thousand evaluations.
# - **D-DDIM** keeps the paper's promise on the data-predicting network: with 2, 5, 10, 25 and 50 calls its distance to the training images is 1.00, 0.45, 0.35, 0.71 and 0.92 of DDIM's on the same grid. On the noise-predicting network it is 0.36, 0.93, 0.82, 1.13 and 1.20, so from 25 calls on it loses;
#   DDIM itself is nearest there with 25 calls, not with 50 (12.05 and 13.23).
# - **The other solvers gain more often than on garments.** With 5 and with 10 calls each of the paper's four is better distilled on the noise-predicting network, those by far that diverge undistilled (iPNDM, DPM-Solver-3 and DEIS-3 have 0.05 to 0.35 of the distance), and so is EDM on the other (0.28 and 0.53).
#   The three that were published later gain there too (0.70 to 0.87), though on garments (3M) and UniPC-3 lose with as many calls. On the data-predicting network (2M) loses with 5 and with 10 calls (1.45 and 1.06), and (3M) with 5 (1.29); UniPC-3 gains (0.73 and 0.48). What (2M) loses it loses by greed, for its images are farther
#   from the long run's as well (1.37 and 1.53), what (3M) loses by the measure, for its images are nearer (0.75). Who loses is a matter of the network; that some solver does is found again.
# - **Once distilled, it hardly matters from which solver one came**: all seven of the noise-predicting network are at 20.5 to 21.6 with 5 calls and at 11.5 to 12.6 with 10, since all have one teacher. (The long run itself is at 15.53 there: the nearest to the training images is not the most exact.)
# - **To the long run D-DDIM is not ahead**: it is behind the best handcrafted solver in all six cases, and on the noise-predicting network behind DDIM itself: 24.3 to 7.4 with 5 calls, on the same grid, though its RMSE is about half (0.109 to 0.205). Nearer image by image is not nearer as a crowd, and nearer to the training images is not nearer to what the network draws.
# - **Which handcrafted solver is best** is another one than on garments: iPNDM on the data-predicting network, on the other DPM-Solver++(3M) with 3 calls, DDIM with 5 and DEIS with 10. The start, which is among the best there, is far behind here. The fit begins there all the same.
# - **A table made for garments is no substitute.** The Gauss-Newton ones are far ahead of the start that they were made from (0.05 to 0.44 of its distance), so part of what they learned belongs to the noise levels, and the more the more calls there are: they are 5.7 to 18.1 times as far as the table made for the network that samples with 3 calls, 4.8 to 6.7 with 5 and 1.2 to 1.8 with 10. They are behind the best handcrafted solver in four of six cases.
# - **Differences of setting**: the networks are small and draw texture; the classifier behind the distances is of the same size; the papers have larger networks and FIDs of 50,000 images.

# %% tags=["hide-input"]
live = experiments.Live("natural", p, where)
if live.active:
    name, again = names[0], replace(small, name=p.name, rows_of=p.rows_of)  # the latter: with the committed solvers
    ddim = "checkpoint == @name and solver == 'ddim' and variant == 'd-ode' and nfe == 5"
    live.check(drawn.query(ddim).iloc[0], experiments.fd, "fd", small)  # fitted now
    fewer = dict(n=small.zoo_images, reference_calls=small.reference_steps)
    live.check(measured.query(ddim).iloc[0], greedy_error, "rmse", small, **fewer)
    fitted = "checkpoint == @name and method == 'gauss-newton' and nfe == 3"
    live.check(found.query(fitted).iloc[0], learned.learned, "fd_reference", again)
    live.check(moved.query(fitted).iloc[0], learned.transfer, "fd_reference", again, n=again.images)
    fewer = dict(n=again.images, reference_calls=again.reference_calls)
    live.check(floors.reset_index().query("checkpoint == @name").iloc[0], learned.floor, "fd_data", again, **fewer)
live.show()

# %% tags=["remove-input"]
plots.provenance(experiments.origin(pd.concat([every, drawn, moved])))
