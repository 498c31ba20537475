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
# # Start here

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist-noise"  # or fashion-mnist-data
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images to draw; None: 16

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
import pandas as pd

from dode import experiments
from dode.experiments import plots

rows = pd.read_csv(experiments.home() / "results" / "limits.standard.csv")
rows = rows[(rows.checkpoint == checkpoint) & (rows.solver == "ddim") & (rows.nfe == 5)].set_index("variant")
found = (
    f" The RMSE to the reference solution falls from {rows.rmse['plain']:.2f} to {rows.rmse['d-ode']:.2f} "
    f"(n = {rows.n['plain']} held-out seeds)."
    if len(rows)
    else ""
)
plots.in_short(
    "This page loads a network, samples with DDIM, distils DDIM into D-DDIM, saves it and samples with it. "
    f"Both take 5 network evaluations (NFE) an image, and the fit 100 images x 55 evaluations: seconds.{found}"
)

# %% [markdown]
# ## A denoiser
#
# A denoiser is a function $D(x, \sigma)$. It takes a noisy image and its noise level, and returns an estimate of the clean
# image. It knows what its network predicts (noise, data or $v$), how it labels time and how it scales its input.

# %%
from pathlib import Path

import matplotlib.pyplot as plt

import dode
from dode import experiments
from dode.experiments import plots

plots.style()
p = experiments.preset(preset)
model = dode.load(checkpoint, device=experiments.device(device))
print(
    model.name,
    "| predicts",
    model.prediction,
    "| shape",
    model.shape,
    f"| sigma {model.sigma_max:.3g} to {model.sigma_min:.3g}",
)

# %% [markdown]
# ## A solver
#
# A solver is a table of numbers on a *grid* of noise levels. `model.grid(n)` is the usual grid of the model: uniform in
# time for a variance-preserving process, that of Karras et al. otherwise. Image $k$ depends on seed $k$ alone.

# %%
noise = dode.initial_noise(model.shape, range(1_000_000, 1_000_000 + (seeds or 16)), device=model.device)
solver = dode.solvers.ddim(model.grid(5))
images = dode.sample(model, solver, noise)
print(solver)

# %% [markdown]
# ## Distil it
#
# The teacher is DDIM with ten times as many steps. Teacher and student start from the same 100 noises. At each step
# the student's next state is linear in its $\lambda$, so least squares gives the best $\lambda$ in one division. Step 0 has no earlier output; as in the released code the starting noise
# takes its place. (Without it the Fréchet distance is 11% lower on this network: [Ablations](ablations).)

# %%
fit_noise = dode.initial_noise(model.shape, range(p.fit_images), device=model.device)
learned = dode.distillation.d_ode(model, solver, fit_noise, seeds=range(p.fit_images), progress=True)

# %% tags=["nbval-check-output"]
for i, value in enumerate(learned.metadata["lambdas"]):
    before, after = learned.metadata["plain_rmse"][i], learned.metadata["fit_rmse"][i]
    print(
        f"step {i}: lambda {value:+.3f}   RMSE of x / alpha to the teacher after this step: without lambda {before:.3f}, with {after:.3f}"
    )

# %% [markdown]
# ## Save, load, sample
#
# The file holds 41 numbers: 6 noise levels, 5 levels that are passed to the network, and 30 weights. Five were fitted. Its header names the method, the teacher, the network and the seeds.

# %%
path = learned.save(Path("_build") / "start-here.safetensors")
again = dode.Tableau.load(path)
print(f"{path.name}: {path.stat().st_size} bytes")
print({k: again.metadata[k] for k in ("solver", "model", "teacher", "teacher_nfe", "images", "network_evaluations")})

# %% tags=["hide-input"] mystnb={"figure": {"name": "start-here", "caption": "Six held-out seeds through DDIM, D-DDIM read from its file, and the reference solution (DDIM with many steps); below each image its RMSE to the reference. D-DDIM is not always nearer: an image can become another object."}}
many = min(p.reference_steps, 100)  # its own error is a tenth of what is shown
exact = dode.sample(model, dode.solvers.ddim(model.grid(many)), noise)
rows = {"DDIM, 5 NFE": images, "D-DDIM, 5 NFE": dode.sample(model, again, noise), f"reference, DDIM {many} NFE": exact}
figure, axes = plt.subplots(3, 1, figsize=(7.5, 4.4))
for ax, (label, drawn) in zip(axes, rows.items(), strict=True):
    plots.strip(ax, drawn[:6], label)
    ax.grid(False)
    apart = (drawn - exact)[:6].flatten(1).square().mean(1).sqrt().tolist()
    width = ax.get_images()[0].get_array().shape[1] / len(apart)
    if drawn is not exact:
        ax.set_xticks([width * (k + 0.5) for k in range(len(apart))], [f"{v:.2f}" for v in apart])
plt.show()

# %% tags=["nbval-check-output"]
from dode.metrics import rmse

print(
    f"RMSE to the reference solution, {len(noise)} held-out seeds: DDIM {rmse(images, exact):.3f}, D-DDIM {rmse(dode.sample(model, again, noise), exact):.3f}"
)

# %% [markdown]
# ## What it costs
#
# A fit costs one run of the teacher and one of the student. The table has the time of `d_ode` divided by the time of the
# same network evaluations alone (`benchmarks/distillation_cost.py`: median and range over rounds in one process).

# %% tags=["hide-input"]
import pandas as pd

cost = pd.read_csv(experiments.home() / "results" / "distillation_cost.csv")
over = [f"{c.ratio_median:.2f} ({c.ratio_min:.2f} to {c.ratio_max:.2f})" for c in cost.itertuples()]
cost = cost.replace({"solver": plots.NAMES}).assign(over=over)[
    ["checkpoint", "solver", "batches", "evaluations", "over", "rounds"]
]
plots.listing(
    cost.rename(columns={"evaluations": "network evaluations", "over": "time / that of the evaluations alone"})
)

# %% [markdown]
# ## Your own model
#
# Any callable `D(x, sigma)` is a denoiser. `dode.denoisers` has one wrapper for each kind of prediction, for example
# `NoisePrediction(network, shape, schedule)`. [Your own model](your_model) trains a network and distils a solver for it.

# %% tags=["remove-input"]
plots.provenance(dict(preset=preset, checkpoint=checkpoint, **experiments.provenance(experiments.device(device))))
