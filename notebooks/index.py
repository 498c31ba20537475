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
# # dode: fast diffusion sampling with distilled solvers

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist-data"
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images of each network; None: 6

# %% tags=["remove-input"]
from importlib.util import find_spec

import matplotlib.pyplot as plt
import pandas as pd

import dode
from dode import experiments
from dode.experiments import fits, galaxies, plots, quality

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
run = experiments.Run(p, where)
small = preset == "smoke"
many = min(p.reference_steps, 60)  # its own error is a tenth of what is shown
found = quality.committed_rows("galaxies")
found = found.query("checkpoint == @galaxies.FIRST and nfe == 5").assign(title=lambda t: t.solver.map(galaxies.TITLES))
each = found.fillna({"grid": ""}).groupby(["title", "solver", "grid"])
each = each.agg(rmse=("rmse", "mean"), flux_error=("flux_error", "mean"), n=("n", "sum"), seconds=("seconds", "first"))
each = each.reset_index().sort_values("rmse").drop_duplicates("title").set_index("title")  # each on its better grid
crafted = each[each.solver.isin(galaxies.HANDCRAFTED)].iloc[0]
SHOWN = ["DDIM", crafted.name, "D-DDIM", "Gauss-Newton, AFS"]
result = (
    "Asked: do a few fitted numbers make a few-step solver better? They do if all numbers are fitted. With 5 network evaluations (NFE) a galaxy is off its "
    f"reference image by an RMSE of {each.rmse[SHOWN[-1]]:.3f} with a fitted solver, and by {crafted.rmse:.3f} with the best handcrafted one "
    f"({crafted.name}; n = {crafted.n:,})."
)
pictures = dict[str, dict]()
first = "galaxies-hsc-32" if small else galaxies.FIRST
for name in dict.fromkeys([first if find_spec("galaxygrad") else "imagenet32-data", checkpoint]):
    model, noise = experiments.seeded(dode.load(name, device=where), experiments.held_out_seeds(seeds or 6))
    plain = dode.solvers.ddim(model.grid(5))
    solvers = {"DDIM, 5 NFE": plain, "UniPC-3, 5 NFE": run.on_grid(name, "unipc", "time", 5)}
    solvers["D-DDIM, 5 NFE"] = experiments.distilled(model, plain, p.live.fit_images)
    if not small:
        fitted = next(iter(galaxies.GAUSS_NEWTON)) if name == galaxies.FIRST else "gauss-newton"
        solvers["Gauss-Newton, 5 NFE"] = fits.fit(run, name, fitted, 5)
    solvers[f"reference, {many} NFE"] = run.on_grid(name, "dpm_solver_pp:order=2", "Karras", many)
    drawn = {label: dode.sample(model, solver, noise) for label, solver in solvers.items()}
    pictures[name] = {label: (images, model.images) for label, images in drawn.items()}

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(result)

# %% [markdown]
# A diffusion model draws an image by solving an ordinary differential equation. Each step of the solver costs one network
# evaluation (NFE). With few steps the discretisation error is visible; with many it is not, and sampling is slow.
#
# A learned solver has numbers that are fitted once to a many-step solver, the teacher. The network does not change, and the result is a file of some 2 kB. This book is about three kinds:
#
# - A **D-ODE solver** {cite:p}`kim2024dode` has one more number a step, fitted step by step in closed form.
# - **DLMS** {cite:p}`liang2025lms` trains a small network that chooses all numbers of a multistep solver (for each image its own: known from a reimplementation).
# - The **Gauss-Newton solver** (of this project) fits all numbers of one table jointly to the final image.

# %% tags=["remove-input", "thumbnail"] mystnb={"figure": {"name": "front", "caption": "The same seeds through solvers of 5 NFE and through the reference solution. Left: galaxies, by a network that astronomers published ([Galaxies](galaxies)), fluxes in an asinh stretch. Right: Fashion-MNIST, by a network of this project. Look at faint outskirts and thin straps: the Gauss-Newton row has them, DDIM's does not."}}
lines = len(next(iter(pictures.values())))
figure, axes = plt.subplots(lines, len(pictures), figsize=(5.2 * len(pictures), 0.92 * lines), squeeze=False)
for k, rows in enumerate(pictures.values()):
    for ax, (name, (images, kind)) in zip(axes[:, k], rows.items(), strict=True):
        plots.strip(ax, images, "" if k else name, kind)
plt.show()

# %% [markdown]
# What that takes, on the network of the left half. *Fit*: seconds on one core, once. Handcrafted solvers and D-DDIM are on the better of two grids by RMSE. D-DDIM is behind UniPC-3, which is not fitted, and its flux error is larger than DDIM's.

# %% tags=["remove-input"]
listed = each.loc[SHOWN].reset_index()
listed = pd.DataFrame({
    "solver, 5 NFE": listed.title, "RMSE": listed.rmse.map("{:.3f}".format),
    "error of the flux": listed.flux_error.map("{:.1%}".format), "n": listed.n.map("{:,}".format),
    "fit": listed.seconds.map(lambda s: f"{s:.0f} s" if s else ""),
})  # fmt: skip
plots.listing(listed)

# %% [markdown]
# **For whom.** For those who sample a diffusion or flow model many times with few evaluations, and for reviewers of the two papers. **What has not been run**: the papers' networks and FID ([what it takes](papers_scale)). **What holds** of the papers' claims here, and what does not: [one table](claims).
#
# `pip install '.[cli]'` in a copy of the project; then, with a network that is part of the package:

# %% tags=["nbval-check-output"]
import dode

model = dode.load("fashion-mnist-data")
solver = dode.solvers.ddim(model.grid(5))
noise = dode.initial_noise(model.shape, range(32), device=model.device)  # image k depends on seed k alone
learned = dode.distillation.d_ode(model, solver, noise)  # seconds
learned.save("_build/d-ddim-5.safetensors")
others = dode.initial_noise(model.shape, range(1000, 1016), device=model.device)  # not those of the fit
images = dode.sample(model, dode.Tableau.load("_build/d-ddim-5.safetensors"), others)
print(learned)
print("lambda:", [round(v, 2) for v in learned.metadata["lambdas"]])

# %% [markdown]
# The first number is 0: with data prediction the first step has no earlier output to correct. The last is near 0: the grid of EDM ends in 0.17, 0.002, 0, and the step from 0.002 changes nothing.
#
# [Start here](start_here) explains these lines one by one. [The solver is a tableau](tableau) has the mathematics.
# The [gallery](gallery) lists all pages: each figure and table of the two papers, with what the paper shows, what was
# measured here and where they differ.

# %% tags=["remove-input"]
plots.provenance(
    dict(
        preset=preset,
        checkpoints=", ".join(pictures),
        seeds="held out from the fit",
        **experiments.provenance(where),
    )
)
