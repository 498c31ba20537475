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
# # dode
#
# A diffusion model draws an image by solving a differential equation, and each step of the solver calls the
# network once. Few steps are fast and wrong, many are right and slow. A **D-ODE solver** {cite:p}`kim2024dode`
# is a few-step solver with one extra number a step, $\lambda_t$, fitted *once* so that it follows a solver of many
# steps: the network stays as it is, the fit has a closed form and takes seconds, and the result is a table of
# numbers that you can save, print and send. The picture below shows the same noise, the same network and the
# same number of calls, with and without these numbers.

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist-data"
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images of each network; None: 6

# %% tags=["remove-input"]
import matplotlib.pyplot as plt

import dode
from dode import experiments
from dode.experiments import plots

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
many = min(p.reference_steps, 100)  # its own error is a tenth of what is shown
pictures = dict[str, dict]()
for name in dict.fromkeys([checkpoint, "imagenet32-data"]):
    model, noise = experiments.seeded(dode.load(name, device=where), experiments.held_out_seeds(seeds or 6))
    plain, teacher = dode.solvers.ddim(model.grid(5)), dode.solvers.ddim(model.grid(many))
    pictures[name] = {
        "DDIM, 5 calls": dode.sample(model, plain, noise),
        "D-DDIM, 5 calls": dode.sample(model, experiments.distilled(model, plain, p.live.fit_images), noise),
        f"DDIM, {many} calls": dode.sample(model, teacher, noise),
    }

# %% tags=["remove-input", "thumbnail"] mystnb={"figure": {"name": "front", "caption": "The same seeds through DDIM at 5 network calls, its distilled version at 5, and the many-step solution that both aim at: a small network of garments, and one of natural images, of which it has learned texture more than things."}}
figure, axes = plt.subplots(3, len(pictures), figsize=(5.2 * len(pictures), 2.75), squeeze=False)
for k, rows in enumerate(pictures.values()):
    for ax, (name, images) in zip(axes[:, k], rows.items(), strict=True):
        plots.strip(ax, images, "" if k else name)
plt.show()

# %% [markdown]
# In ten lines, with nothing to download:

# %% tags=["nbval-check-output"]
import dode

model = dode.load("fashion-mnist-data")
solver = dode.solvers.ddim(model.grid(5))
noise = dode.initial_noise(model.shape, range(32), device=model.device)
learned = dode.distillation.d_ode(model, solver, noise)  # seconds
learned.save("_build/d-ddim-5.safetensors")
images = dode.sample(model, dode.Tableau.load("_build/d-ddim-5.safetensors"), noise)
print(learned)
print("lambda:", [round(v, 2) for v in learned.metadata["lambdas"]])

# %% [markdown]
# Go on with [Start here](start_here), see how [a solver is a table](tableau), or look through the [gallery](gallery).
# The figures of the paper are remade one by one, each with what the paper shows, what was measured here,
# and where they differ.

# %% tags=["remove-input"]
plots.provenance(
    dict(
        preset=preset,
        checkpoints=", ".join(pictures),
        seeds="held out from the fit",
        **experiments.provenance(where),
    )
)
