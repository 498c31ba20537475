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
# # Running the papers' experiments

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard, full or paper
checkpoint = None  # not used: nothing is drawn
device = "auto"  # cpu, cuda or auto
seeds = None  # not used: nothing is drawn

# %% tags=["remove-input"]
import matplotlib.pyplot as plt
import pandas as pd

from dode import experiments, zoo
from dode.experiments import plans, plots

plots.style()
where = experiments.device(device)
prices = {row.notebook: plans.price(row) for row in plans.ROWS}
short = (
    "Asked: what does it take to repeat the papers' experiments? "
    f"{len(zoo.CATALOGUE)} published checkpoints have names here; the seven of galaxies are run in this book, the readers of the others were compared with their authors' code on random weights. With 50,000 images and three blocks of seeds, {prices['figure_3'] / 1e9:.2f} billion network evaluations for one network of the D-ODE paper's Figure 3 and {prices['figure_4'] / 1e9:.2f} billion for one of its Figure 4.\n"
    "None of the papers' experiments has been run: no number on this page is a result."
)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% [markdown]
# ## The checkpoints
#
# `dode.zoo.load_published(name)` fetches a file once, checks it, keeps it in a cache folder (`DODE_CACHE`) and gives a denoiser. **No pickle is executed**: NVIDIA's files are read by an unpickler that knows tensors and arguments and refuses the rest. The numbers go into networks that are written here. Where a digest is published the file must have it; the others are checked by their format, each parameter's name and shape. (NVIDIA's baselines carry the licences of the networks that they are derived from, too; `dode.zoo.CATALOGUE` has all of it.)

# %% tags=["hide-input"]
listed = [
    {
        "name": row.name, "side": row.shape[1], "classes": row.classes or "",
        "paper": row.source, "licence": row.licence.partition(",")[0].partition(" (")[0],
        "digest": row.digest.partition(":")[0],
    }
    for row in zoo.CATALOGUE.values()
]  # fmt: skip
plots.listing(pd.DataFrame(listed))

# %% tags=["nbval-check-output", "hide-input"]
digests = sum(bool(row.digest) for row in zoo.CATALOGUE.values())
print(f"{len(zoo.CATALOGUE)} checkpoints, {digests} of them with a published digest")

# %% [markdown]
# ```python
# import dode.zoo
#
# model = dode.zoo.load_published("edm-cifar10-32x32-uncond-vp", device="cuda")
# solver = dode.solvers.deis(model.grid, nfe=5, variable="log_rho", basis="data", afs=True)
# learned = dode.distillation.gauss_newton(model, solver, dode.initial_noise(model.shape, range(128), device="cuda"))
# learned.save("cifar10-5.safetensors")
# ```
#
# ### Which files are read
#
# Each name below is one of `load_published(name)`. A path in its place is a file of your own: a pickle says everything itself, for the others `like=` names the card with the same program and noise schedule, and `network=` has the flags that differ, for example
# `load_published("ema_0.9999_200000.pt", like="iddpm-cifar10-32", network=dict(image_size=64, channel_mult=(1, 2, 3, 4)))`.
# Flags have the names of the program's scripts; `attention_resolutions` are sides of maps, and `num_classes` stands for `class_cond`.
#
# | networks | file | by name | files of your own |
# |---|---|---|---|
# | EDM: DDPM++, NCSN++ (encoder standard, residual or skip), ADM, in VP, VE, EDM or iDDPM form | pickle: a `dict`, an `EasyDict`, or the network alone | `edm-cifar10-*`, `edm-ffhq-*`, `edm-afhqv2-*`, `edm-imagenet-64x64-*`, `baseline-*` | path |
# | EDM2 | the same | `edm2-*` (`edm2-img512-*` draws latents) | path |
# | guided-diffusion, to 512 x 512, and its noisy classifiers | state dictionary | `adm-*` | `like=`, `network=` |
# | improved-diffusion | state dictionary | `iddpm-*` | `like=`, `network=` |
# | consistency models, and the EDM networks they were distilled from | state dictionary | `cd-*`, `ct-*`, `edm-imagenet-64`, `edm-lsun-*` | `like=`, `network=` |
# | DDPM in PyTorch: DDIM's CelebA, pesser's conversions | state dictionary, or DDIM's list of states | `ddim-*`, `ddpm-*` | `like=`, `network=` |
# | latent diffusion, unconditional or of classes (the decoder is not loaded) | training state of Lightning, also with OmegaConf's containers; the `.zip` that has one | `ldm-*` | `like=`, `network=` |
# | score networks of galaxies (MLP-Mixer in jax), from the wheel of `galaxygrad` 0.2.1: `pip install --no-deps galaxygrad==0.2.1` | arrays of equinox (`.eqx`) | `galaxies-*` | `like=`, also the wheel or its folder |
# | `dode train` | `.safetensors` | the four that ship | path, with `dode.load` |
#
# Everything else is refused in one line. Not read are: upsamplers, which take a small image too; latent diffusion of a text or a layout, and Stable Diffusion, which diffusers converts (`dode.from_diffusers`); NCSN++ with a decoder other than standard; a training state of Lightning in torch's format before 1.6.
#
# Without a network the error says which file to put where. Models of diffusers come by `dode.from_diffusers` ([Your own model](your_model)).
#
# A class-conditional network is swept with all its classes: with `dode.load(name)` image $k$ gets class $k$ mod $K$ of $K$ classes, however the run is cut into batches or over machines; `model.of(seeds)` is the denoiser for these images. `NAME@1.25` is guided by the classifier that is
# published with the network, or where it was trained without classes too (`ldm-imagenet-256`), by the difference that the class makes. `load_published(name, labels=)` draws one class, several in turn, or with `"none"` any.

# %% [markdown]
# ## What it costs
#
# The preset `paper` has the papers' numbers: 50,000 images behind each distance, three blocks of seeds, 2 to 250 calls, FID in the resizing of the original implementation. One evaluation is one image through the network once.

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "papers-scale", "caption": "Network evaluations that a figure takes at each of the larger presets, without fits (a few per cent of these). Standard: 2,000 images, of three blocks up to 10 evaluations; full: 50,000; paper: 50,000 and more NFEs. Counted from the plans that the workflow runs, for the networks that ship."}}
counted = []
for figure in plans.PLANS:
    for name in ("standard", "full", "paper"):
        plan = plans.plan(figure, name)
        counted.append(
            dict(figure=figure.replace("_", " "), preset=name, cells=len(plan.cells), evaluations=plan.evaluations)
        )
counted = pd.DataFrame(counted)
figure, ax = plt.subplots(figsize=(7.5, 3))
for shift, (name, part) in enumerate(counted.groupby("figure")):
    ax.barh([y + 0.38 * shift for y in range(len(part))], part.evaluations, height=0.36, label=name)
ax.set_yticks([y + 0.19 for y in range(3)], counted.preset.unique())
ax.set(xscale="log", xlabel="network evaluations")
ax.invert_yaxis()
ax.legend()
plt.show()

# %% [markdown]
# Hours are these evaluations over a network's evaluations a second on your machine: time one forward pass of it. Outside the network the loop takes less than one per cent (`results/loop_network.csv`). Networks differ by a factor of a hundred and more, so no hours are given here.

# %% [markdown]
# ## The papers' rows
#
# What each row of the two papers takes (`dode.experiments.plans`): a notebook, a checkpoint, the NFEs. The grid is the checkpoint's own. Evaluations are those of the samples. Fits are left out: a few per cent in `figure_3` and `figure_4`; in `learned` an eighth or more. So are the passes of the classifier that guides (`@1.25`, forward and back).

# %% tags=["hide-input"]
listed = [
    {
        "notebook": row.notebook, "data": row.data, "-p checkpoint": row.checkpoint,
        "NFE": f"{row.nfes[0]} to {row.nfes[-1]}", "blocks": row.blocks,
        "|B|": row.fit_images if row.notebook in plans.PLANS else "",
        "evaluations": f"{plans.price(row) / 1e6:,.0f} million",
    }
    for row in plans.ROWS
]  # fmt: skip
plots.listing(pd.DataFrame(listed))

# %% [markdown]
# `figure_3` and `figure_4` are those of the D-ODE paper {cite:p}`kim2024dode`, `learned` has the data sets and NFEs of Table 5 of the DLMS paper {cite:p}`liang2025lms` (second-hand), and more solvers: five handcrafted ones, each on the best of four grids, and ten learned ones. Figures 3 and 4 have solvers here that the paper's do not, so the price is not the paper's. For CIFAR-10 in Figure 4 the unconditional EDM network is taken; the authors' launch script has a conditional one. A row is one command:
#
#     .venv/bin/jupytext --to ipynb notebooks/figure_4.py -o f.ipynb
#     .venv/bin/papermill f.ipynb out.ipynb -p preset paper \
#         -p checkpoint edm-cifar10-32x32-uncond-vp -p device cuda
#
# Rows go to `results/figure_4.paper.csv` as they are measured; a killed run goes on from there. FID wants two files in the cache folder: Inception, and the moments of its features on the training images (`NAME.inception-legacy_tensorflow.safetensors`; `learned` measures with clean-fid's resizing too, `NAME.inception-clean.safetensors`).
# Without them an error says how to make them. Fits on these networks compare pixels and random features: no second classifier knows such images, and Inception measures.
#
# Not among the rows: latent LSUN-Bedroom, which Table 5 has too. `ldm-lsun-bedroom-256` is its denoiser, and solvers can be distilled for it (`dode distill --checkpoint ldm-lsun-bedroom-256`). But it draws latents, and the sweeps here measure images: the decoder is not loaded.
# A latent model of diffusers brings its own decoder with it ([Your own model](your_model)).

# %% [markdown]
# ## Many machines
#
# The sweeps are a Snakemake workflow (`workflow/Snakefile`), with one job for each network, solver and block of seeds. `make book` runs it on one machine; on a cluster:
#
#     make book PRESET=full PROFILE=workflow/profiles/slurm
#     snakemake --workflow-profile workflow/profiles/slurm --config preset=paper checkpoint=NAME
#
# A GPU is a resource of a job (`gpu=1` in the profile), several GPUs of one machine are several jobs. The results do not depend on the number of workers. Other executors of Snakemake
# (Kubernetes, the clouds) take the same workflow by their own options.
