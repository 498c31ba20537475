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
from IPython.display import Markdown

import dode
from dode import experiments
from dode.experiments import fits, galaxies, plots

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
run = experiments.Run(p, where)
small = preset == "smoke"
many = min(p.reference_steps, 60)  # its own error is a tenth of what is shown
chosen = experiments.committed("figure_4").query("checkpoint == 'fashion-mnist-data' and solver == 'ddim' and nfe == 5")
fd = chosen.groupby("variant").fd.mean()
result = (
    "```{admonition} In short\n"
    "Asked: do a few fitted numbers make a few-step solver better? They do. With 5 NFE the Fréchet distance of DDIM falls "
    f"from {fd['plain']:.2f} to {fd['d-ode']:.2f} (Fashion-MNIST, n = {chosen.n.max():,}, mean of "
    f"{chosen.block.nunique()} blocks of seeds; features of a classifier, not FID).\n```"
)
pictures = dict[str, dict]()
first = "galaxies-hsc-32" if small else galaxies.FIRST
for name in dict.fromkeys([first if find_spec("galaxygrad") else "imagenet32-data", checkpoint]):
    model, noise = experiments.seeded(dode.load(name, device=where), experiments.held_out_seeds(seeds or 6))
    plain = dode.solvers.ddim(model.grid(5))
    solvers = {"DDIM, 5 NFE": plain, "D-DDIM, 5 NFE": experiments.distilled(model, plain, p.live.fit_images)}
    if not small:
        fitted = next(iter(galaxies.GAUSS_NEWTON)) if name == galaxies.FIRST else "gauss-newton"
        solvers["Gauss-Newton, 5 NFE"] = fits.fit(run, name, fitted, 5)
    solvers[f"reference, {many} NFE"] = run.on_grid(name, "dpm_solver_pp:order=2", "Karras", many)
    drawn = {label: dode.sample(model, solver, noise) for label, solver in solvers.items()}
    pictures[name] = {label: (images, model.images) for label, images in drawn.items()}

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
Markdown(result)

# %% [markdown]
# A diffusion model draws an image by solving an ordinary differential equation. Each step of the solver costs one network
# evaluation (NFE). With many steps the image is right and slow; with few it is fast and wrong.
#
# A **D-ODE solver** {cite:p}`kim2024dode` is a few-step solver with one more number a step, $\lambda_t$. The numbers are
# fitted once to a many-step solver, the teacher. The network does not change, the fit has a closed form, and the result
# is a table of numbers in a small file.

# %% tags=["remove-input", "thumbnail"] mystnb={"figure": {"name": "front", "caption": "The same seeds through solvers of 5 NFE and through the reference solution. Left: galaxies, by a network that astronomers published ([Galaxies](galaxies)), fluxes in an asinh stretch. Right: Fashion-MNIST, by a network of this project."}}
lines = len(next(iter(pictures.values())))
figure, axes = plt.subplots(lines, len(pictures), figsize=(5.2 * len(pictures), 0.92 * lines), squeeze=False)
for k, rows in enumerate(pictures.values()):
    for ax, (name, (images, kind)) in zip(axes[:, k], rows.items(), strict=True):
        plots.strip(ax, images, "" if k else name, kind)
plt.show()

# %% [markdown]
# The same in ten lines. The networks are part of the package:

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
