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
# # Galaxies

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = None  # one of the seven networks; None: galaxies-hsc-64, at smoke galaxies-hsc-32
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images of each solver are shown; None: 6

# %% tags=["remove-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dode
from dode import experiments
from dode.experiments import fits, galaxies, plots
from dode.experiments.morphology import QUANTITIES

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
run = experiments.Run(p, where)
small = preset == "smoke"
FIRST = checkpoint or ("galaxies-hsc-32" if small else galaxies.FIRST)
NFE = 3 if small else 5
TITLES, FITTED = galaxies.TITLES, "Gauss-Newton, AFS"
rows = galaxies.galaxies.rows(run, galaxies.galaxies_cells(p, FIRST if small or checkpoint else None))
rows = rows.assign(grid=rows.grid.fillna(""), title=rows.solver.map(TITLES))
over_blocks = rows.groupby(["checkpoint", "nfe", "solver", "grid", "title"], sort=False)
found = over_blocks.agg(
    rmse=("rmse", "mean"), spread=("rmse", "std"), flux_error=("flux_error", "mean"), n=("n", "sum"),
    blocks=("block", "size"), evaluations=("evaluations", "first"), reference_calls=("reference_calls", "first"),
).reset_index()  # fmt: skip
best = found.loc[found.groupby(["checkpoint", "nfe", "title"], sort=False).rmse.idxmin()]  # of the grids, the better
crafted = best[best.solver.isin(galaxies.HANDCRAFTED)]
at = best.query("checkpoint == @FIRST and nfe == @NFE").set_index("title")
handcrafted = at[at.solver.isin(galaxies.HANDCRAFTED)].reset_index().sort_values("rmse").iloc[0]
lines = [
    f"Asked: can {NFE} network evaluations stand for {handcrafted.reference_calls} when a prior of galaxies is sampled a million times? On {FIRST}, n = {handcrafted.n:,}:",
    f"the best handcrafted solver ({handcrafted.title}) misses the reference image by an RMSE of {handcrafted.rmse:.3f} and its total flux by {handcrafted.flux_error:.1%} (median)",
]
if FITTED in at.index:
    own = at.loc[FITTED]
    lines[1] += f"; the Gauss-Newton solver by {own.rmse:.3f} and {own.flux_error:.1%}"
short = "" + "\n".join(lines) + "."

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% tags=["remove-input", "thumbnail"] mystnb={"figure": {"name": "galaxies-pictures", "caption": "The same noise through solvers of few network evaluations, and through the reference solution; seeds not selected. Fluxes in an asinh stretch, as astronomers show them."}}
count = seeds or 6
model, noise = experiments.seeded(dode.load(FIRST, device=where), experiments.held_out_seeds(count))
shown = {f"DDIM, {NFE} NFE": run.on_grid(FIRST, "ddim", "time", NFE)}
if not small:
    shown[f"D-DDIM, {NFE} NFE"] = fits.fit(run, FIRST, at.solver["D-DDIM"], NFE)
    shown[f"Gauss-Newton, {NFE} NFE"] = fits.fit(run, FIRST, at.solver[FITTED], NFE)
calls = min(60, p.live.reference_steps)
shown[f"reference, {calls} NFE"] = run.on_grid(FIRST, "dpm_solver_pp:order=2", "Karras", calls)
strips = {label: dode.sample(model, solver, noise) for label, solver in shown.items()}
figure, axes = plt.subplots(len(strips), 1, figsize=(1.45 * count + 1, 1.5 * len(strips)))
for ax, (label, images) in zip(axes, strips.items(), strict=True):
    plots.strip(ax, images, label, model.images)
plt.show()

# %% [markdown]
# ## The networks
#
# Seven score networks of galaxy images, trained and published by astronomers as priors for deblending, in the package `galaxygrad` 0.2.1: each an MLP-Mixer {cite:p}`tolstikhin2021mixer` on a variance-preserving process, for images of one survey at one size. Nobody in this project trained or changed them. With their
# files at hand (`pip install --no-deps galaxygrad==0.2.1`), `dode.load("galaxies-hsc-64")` is the denoiser. A prior like these is evaluated a million times in an inference, so each evaluation counts.

# %% tags=["nbval-check-output", "hide-input"]
parameters = sum(part.numel() for part in model.network.parameters())
print(f"{FIRST}: samples {tuple(model.shape)}, {parameters:,} parameters, {model.prediction} prediction")

# %% [markdown]
# A solver's image is compared with the reference solution from the same noise: DPM-Solver++(2M) on Karras's grid. The measures are the RMSE of what the network draws ($y = 10\,\ln(1 + x)$ of the flux $x$) and what astronomers take from an image: its total flux, and its morphology.
#
# ## Error against NFE
#
# Each handcrafted solver, and each distilled one, is on the better of two grids, uniform in time or Karras's (that choice is made on the images that are measured here, to their advantage). The Gauss-Newton solver begins as DEIS on the first, with an analytical first step (AFS) or without one. It is fitted to pixels, because these samples are measured, not looked at.

# %% tags=["hide-input"] mystnb={"figure": {"name": "galaxies-nfe", "caption": "RMSE (left) and relative error of the total flux (right, median) against NFE; lower is better. Dotted: handcrafted solvers. Solid, same colour: their distilled versions. Each on the better of two grids. Black: fits of all weights and noise levels; the Gauss-Newton solver with an analytical first step, at NFE 5 without it too, and there DLMS. n = 200 images, at NFE 5 five times 200."}}
curves = best[best.checkpoint == FIRST]
figure, axes = plt.subplots(1, 2, figsize=(11, 4.4))
plain = list(galaxies.HANDCRAFTED.values())
for ax, column, label in zip(axes, ("rmse", "flux_error"), ("RMSE", "relative error of the flux"), strict=True):
    for title, part in curves.groupby("title", sort=False):
        fitted = title.startswith(("Gauss-Newton", "DLMS"))
        k = len(plain) * title.startswith("DLMS") if fitted else plain.index(title.removeprefix("D-"))
        look = dict(color="black", linewidth=2.6) if fitted else dict(color=f"C{k}", linewidth=1.4)
        look |= dict(linestyle=":", markerfacecolor="white") if title in plain else {}
        part = part.sort_values("nfe")
        ax.plot(part.nfe, part[column], marker="osD^vP*"[k], markersize=5, label=title, **look)
    plots.log_axes(ax, sorted(curves.nfe.unique()), label)
figure.legend(handles=axes[0].get_lines(), loc="outside lower center", ncols=5, fontsize=8)
plt.show()

# %% tags=["hide-input"]
wide = curves.assign(value=curves.rmse.map("{:.3f}".format) + " / " + curves.flux_error.map("{:.1%}".format))
wide = wide.pivot(index="title", columns="nfe", values="value").reindex(
    curves.sort_values(["nfe", "rmse"]).title.unique()
)
print(
    f"RMSE / median error of the flux, {FIRST}, n = {int(curves.n.min())}; with NFE {NFE} n = {int(curves.n.max()):,}"
)
plots.listing(
    wide.rename(columns=lambda nfe: f"NFE {nfe}").rename_axis(columns=None).reset_index(names="solver").fillna("")
)

# %% [markdown]
# ## All seven networks
#
# The same protocol, with no setting changed. Each column: RMSE / median error of the flux.

# %% tags=["hide-input"]
listed = []
for name, part in best[best.nfe == NFE].groupby("checkpoint", sort=False):
    cells, say = part.set_index("title"), lambda row: f"{row.rmse:.3f} / {row.flux_error:.1%}"
    top = part[part.solver.isin(galaxies.HANDCRAFTED)].sort_values("rmse").iloc[0]
    row = {"network": name.removeprefix("galaxies-"), "n": f"{top.n:,}", "DDIM": say(cells.loc["DDIM"])}
    row |= {"best handcrafted": f"{say(top)} ({top.title}, {top.grid})"}
    shown = ["D-DDIM", *galaxies.GAUSS_NEWTON.values(), *galaxies.DESIGNED.values()]
    listed.append(row | {title: say(cells.loc[title]) for title in shown if title in cells.index})
print(f"NFE {NFE}")
plots.listing(pd.DataFrame(listed).fillna(""))

# %% [markdown]
# The learned solvers' RMSE over the best handcrafted solver's, and what their fits took:

# %% tags=["hide-input"]
listed = []
for name, part in best[best.nfe == NFE].groupby("checkpoint", sort=False):
    top = part[part.solver.isin(galaxies.HANDCRAFTED)].rmse.min()
    line = {"network": name.removeprefix("galaxies-")}
    for own in part[part.solver.isin([*galaxies.GAUSS_NEWTON, *galaxies.DESIGNED])].itertuples():
        line |= {own.title: f"{own.rmse / top:.2f}", f"{own.title}: evaluations": f"{int(own.evaluations):,}"}
    listed.append(line)
plots.listing(pd.DataFrame(listed).fillna(""))

# %% [markdown]
# ## What comes out
#
# - **On HSC the learned solvers of the whole table are nearest**, in RMSE and in flux. The Gauss-Newton solver with 5 evaluations is as near as the best handcrafted solver with 8. DLMS, with a row for each image, 1,200 noises and four times the evaluations, is level with it at both sizes.
# - **Where a fit begins matters.** In one fit each an analytical first step helps on HSC and hurts on ZTF-64 and LSST: there Gauss-Newton fits with one end behind the best handcrafted solver. So both should be tried, and held-out images should say which to keep. The fit on quasar-72 with it gained nothing on held-back images, and its flux error (6.8%) is above the best handcrafted solver's (2.8%).
# - **ZTF-32.** With 256 images and no bound on single images' errors the fit's RMSE is 0.029 (UniPC-3 0.045), with 64 and a bound 0.049; which of the two changes does it was not tested, and on HSC-32 neither does. Its flux error (1.8%), and DLMS's (1.9%), are larger than UniPC-3's (1.3%). One fit each.
# - **Step-by-step distillation** (D-): on the time-uniform grid of HSC-64 it lowers DDIM's RMSE from 5 evaluations on, though its flux error rises at 5 (18% to 29%). It lowers iPNDM's always and raises that of the other solvers. On Karras's grid it is mixed. On the largest network, Roman, D-DDIM is far ahead of all handcrafted solvers; no whole table was fitted there.
# - **What fails**: iPNDM is further off than DDIM, and with 5 evaluations DEIS on clean images, on Karras's grid, has a median flux error of 213% (with 8: 7%).
#
# With 5 evaluations no fit on HSC came below 0.42 of the best handcrafted solver's RMSE.
#
# ## Morphology
#
# What an astronomer would measure of such an image {cite:p}`rodriguezgomez2019statmorph`: half-light radius, concentration, asymmetry, Gini coefficient, M20 and ellipticity. We suspect that few evaluations blur, which would make a galaxy rounder and more symmetric; the rows have no sign.
#
# Two errors of each quantity, both in units of its standard deviation over the reference solution's images: of one image (the median difference to the reference image of the same noise), and of the distribution (the Wasserstein-1 distance). The second has a floor: what two sets of reference images from different seeds are apart.

# %% tags=["hide-input"] mystnb={"figure": {"name": "galaxies-morphology", "caption": "Errors of six morphological quantities with few network evaluations, in standard deviations of the reference solution. Left: median difference of an image. Right: distance of the distributions (grey: two sets of reference images). Marks: mean over five blocks of 200 seeds, bars: their range."}}
shapes = galaxies.morphology.rows(run, galaxies.morphology_cells(p, FIRST if small or checkpoint else None))
shapes = shapes.assign(title=shapes.solver.map(TITLES))
part = shapes[shapes.checkpoint == FIRST]
floor = galaxies.morphology_floor.rows(run, galaxies.floor_cells(p, FIRST if small or checkpoint else None))
floor = floor.set_index("checkpoint").loc[FIRST]
figure, axes = plt.subplots(1, 2, figsize=(11, 3.9), sharey=True)
order = [TITLES[solver] for solver in TITLES if solver in set(part.solver)]
for ax, ending in zip(axes, ("", "_distance"), strict=True):
    for k, title in enumerate(order):
        each = part[part.title == title]
        values = each[[q + ending for q in QUANTITIES]]
        spots = np.arange(len(QUANTITIES)) + 0.11 * (k - (len(order) - 1) / 2)
        error = np.stack([values.mean() - values.min(), values.max() - values.mean()])
        ax.errorbar(spots, values.mean(), yerr=error, fmt="osD^vP"[k], color=f"C{k}" if title != FITTED else "black", label=title)  # fmt: skip
    ax.set_xticks(range(len(QUANTITIES)), [q.replace("_", " ") for q in QUANTITIES], rotation=25)
axes[1].plot(np.arange(len(QUANTITIES)), floor[[f"{q}_distance" for q in QUANTITIES]].astype(float), "_", color="0.5", markersize=30, label="reference, other seeds")  # fmt: skip
axes[0].set_ylabel("standard deviations of the reference")
axes[0].set_title("one image")
axes[1].set_title("the distribution")
axes[1].legend(fontsize=8)
axes[0].set_ylim(bottom=0)
plt.show()
print(f"{FIRST}: {part.block.nunique()} block(s) of seeds, n = {int(part.n.max())} images each")

# %% tags=["hide-input"]
columns = {q: q.replace("_", " ") for q in QUANTITIES} | {f"{q}_distance": q.replace("_", " ") + ", distribution" for q in QUANTITIES}  # fmt: skip
table = part.groupby("title", sort=False)[[*columns, "failed"]].mean().reset_index()
table[list(columns)] = table[list(columns)].map("{:.2f}".format)
table["failed"] = table.failed.map("{:.1f}".format)
plots.listing(table.rename(columns={"title": "solver", "failed": "not measurable"} | columns))

# %% [markdown]
# The Gauss-Newton solver and DLMS have less error of an image in each of the six quantities than the others, and are the only ones whose distributions are nearer than the floor in all six (they share the reference's noise, so they can be below a floor of other seeds). The best handcrafted solvers get fluxes nearly right and shapes not: the asymmetry of an image, and its distribution, are off by a third of a standard deviation.
#
# *Not measurable*: images, mean over blocks, of which `statmorph` could not measure the solver's or the reference's; they are left out.

# %% tags=["hide-input"]
live = experiments.Live("galaxies", p, where)
if live.active:
    row = rows.query("checkpoint == @FIRST and nfe == @NFE and solver == 'ddim' and grid == 'time'").iloc[0]
    live.check(row, galaxies.galaxies, "rmse")
    row = rows.query("checkpoint == @FIRST and nfe == @NFE and title == @FITTED").iloc[0]
    live.check(row, galaxies.galaxies, "rmse", p.again)  # as committed
live.show()

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
