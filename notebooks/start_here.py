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
#
# Load a denoiser, sample, distil a solver, save it, load it, sample again.

# %% tags=["parameters"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist-noise"  # or fashion-mnist-data
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images to draw; None: 16

# %% [markdown]
# ## A denoiser
#
# A denoiser is a function $D(x, \sigma)$ that takes a noisy image and its noise level and returns its guess of the
# clean one. Everything else (what the network was trained to predict, its time labels, its scaling) is inside.

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
# A solver is a table made from a *grid* of noise levels. `model.grid(n)` is the customary one for the model: uniform
# in time for a variance-preserving chain, Karras's otherwise. Image $k$ of a batch depends on seed $k$ alone.

# %%
noise = dode.initial_noise(model.shape, experiments.held_out_seeds(seeds or 16), device=model.device)
solver = dode.solvers.ddim(model.grid(5))
images = dode.sample(model, solver, noise)
print(solver)

# %% [markdown]
# ## Distil it
#
# One batch of 100 noises is walked by a teacher of ten times as many steps and by the student side by side. At each step
# the student's next state is a straight line in its $\lambda$, so the best $\lambda$ is one division.

# %%
fit_noise = dode.initial_noise(model.shape, experiments.fit_seeds(p.fit_images), device=model.device)
learned = dode.distillation.d_ode(model, solver, fit_noise, seeds=experiments.fit_seeds(p.fit_images), progress=True)

# %% tags=["nbval-check-output"]
for i, value in enumerate(learned.metadata["lambdas"]):
    before, after = learned.metadata["plain_rmse"][i], learned.metadata["fit_rmse"][i]
    print(f"step {i}: lambda {value:+.3f}   distance to the teacher {before:.3f} -> {after:.3f}")

# %% [markdown]
# ## Save, load, sample
#
# The file holds a few hundred numbers and says in its header what they are.

# %%
path = learned.save(Path("_build") / "start-here.safetensors")
again = dode.Tableau.load(path)
print(f"{path.name}: {path.stat().st_size} bytes")
print({k: again.metadata[k] for k in ("solver", "model", "teacher", "teacher_nfe", "images", "network_evaluations")})

# %% tags=["hide-input"] mystnb={"figure": {"name": "start-here", "caption": "Held-out seeds: the plain solver, the distilled one read back from its file, and the many-step solution."}}
many = min(p.reference_steps, 100)  # its own error is a tenth of what is shown
exact = dode.sample(model, dode.solvers.ddim(model.grid(many)), noise)
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2))
plots.show(axes[0], images, 4, "DDIM, 5 NFE")
plots.show(axes[1], dode.sample(model, again, noise), 4, "D-DDIM, 5 NFE")
plots.show(axes[2], exact, 4, f"DDIM, {many} NFE")
plt.show()

# %% tags=["nbval-check-output"]
from dode.metrics import rmse

print(
    f"RMSE to the many-step solution: DDIM {rmse(images, exact):.3f}, D-DDIM {rmse(dode.sample(model, again, noise), exact):.3f}"
)

# %% [markdown]
# ## What it costs
#
# One run of the teacher and one of the student over the batch, and hardly anything else: the time of `d_ode` over the time of the bare
# network calls of both, measured in turn in one process (`benchmarks/distillation_cost.py`; median, and range over rounds).

# %% tags=["hide-input"]
import pandas as pd

cost = pd.DataFrame(experiments.Sweep(experiments.home() / "results" / "distillation_cost.csv", ["checkpoint"]).rows)
plots.listing(
    cost[["checkpoint", "solver", "batches", "evaluations", "ratio_median", "ratio_min", "ratio_max", "rounds"]]
)

# %% [markdown]
# ## Your own model
#
# Any callable `D(x, sigma)` will do. A network that predicts noise, data or $v$ becomes one with
# `dode.denoisers.NoisePrediction(network, shape, schedule)` and its siblings.

# %% tags=["remove-input"]
plots.provenance(dict(preset=preset, checkpoint=checkpoint, **experiments.provenance(experiments.device(device))))
