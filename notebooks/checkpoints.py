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
# # How the checkpoints were made
#
# Four denoisers ship with dode, so that nothing here needs a data set, a download or a GPU. Of each of two data sets one predicts the noise on DDPM's 1000-step
# variance-preserving chain {cite:p}`ho2020ddpm`, the other the clean image with EDM's preconditioning {cite:p}`karras2022edm`. All are
# small U-Nets on pixel-unshuffled images, trained in bf16 on one CPU core each: two on Fashion-MNIST {cite:p}`xiao2017fashion`, which the book measures unless it says otherwise, and two, told the class, on
# 200 classes of ImageNet {cite:p}`deng2009imagenet` in 32 x 32 pixels ([Natural images](natural)).
# A small classifier of each data set supplies the features behind every "FD (classifier features)".

# %% tags=["parameters"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "all"  # or one name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images to draw; None: 50, or 10 at quick and smoke

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd

import dode
from dode import experiments, zoo
from dode.experiments import plots

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
names = experiments.checkpoints(checkpoint)
count = seeds or (10 if preset in ("smoke", "quick") else 50)

# %% tags=["hide-input", "nbval-check-output"]
cards = {name: zoo.metadata(name) for name in names}
for name, card in cards.items():
    network = dode.load(name).network
    size = zoo.checkpoint_file(name).stat().st_size / 1e6
    recipe = card["recipe"]
    print(
        f"{name}: {sum(w.numel() for w in network.parameters()) / 1e6:.2f} M parameters, {size:.1f} MB, {recipe['steps']} steps of {recipe['batch']} images"
    )

# %% [markdown]
# ## Loss
#
# Each training step draws its randomness from its own number, so a run that was killed and resumed ends with the same weights. The length of the run was
# fixed beforehand (the rate falls to zero with it); the curves are nearly flat at their ends, but a longer run was not compared.

# %% tags=["hide-input"] mystnb={"figure": {"name": "loss", "caption": "Training loss (mean over 100 steps) against training images seen. The losses of noise and data are weighted differently and cannot be compared with each other."}}
columns = min(2, len(names))
rows = -(-len(names) // columns)
figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3 * rows), squeeze=False)
for ax, name in zip(axes.flat, names, strict=False):
    log = pd.read_csv(zoo.CHECKPOINTS / f"{name}.csv")
    ax.plot(log.step * cards[name]["recipe"]["batch"] / 1000, log.loss)
    ax.set(xlabel="thousand images", ylabel="loss", yscale="log", title=name)
plt.show()

# %% [markdown]
# ## Samples at 50 network calls

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "samples", "caption": "DDIM at 50 network calls, seeds not selected."}}
figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, (0.4 + 0.05 * count) * rows), squeeze=False)
for ax, name in zip(axes.flat, names, strict=False):
    model = dode.load(name, device=where)
    conditioned, noise = experiments.seeded(model, experiments.held_out_seeds(count))
    plots.show(ax, dode.sample(conditioned, dode.solvers.ddim(model.grid(50)), noise), 10, name)
plt.show()

# %% [markdown]
# ## Quality, and the classifier that measures it
#
# A second classifier, the *critic*, is of another architecture and was trained from another seed, with mirrored images. Its features may enter the
# fit of a solver ([Learned solvers compared](learned)), and so may those of a third, the *observer*, of yet another architecture and seed; the first one measures, and no fit sees it. A vision transformer of Fashion-MNIST measures beside it
# where losses are compared ([The network as its own critic](own_features)): no fit, no grid and no setting uses it.

# %% tags=["hide-input"]
stored = experiments.committed("figure_4", "natural")
stored = stored[(stored.nfe == 50) & stored.checkpoint.isin(names)]
blocks = stored.groupby(["checkpoint", "solver", "variant", "n"], sort=False).fd
shown = blocks.agg(plots.spread)
print("Fréchet distance to the training images with 50 calls: mean and spread over blocks of n,")
print("in the features of each data set's own classifier: not FID, and no two data sets compare")
table = shown.unstack("variant").rename_axis(columns=None).reset_index()
plots.listing(table.assign(solver=table.solver.map(plots.NAMES)).rename(columns={"d-ode": "distilled"}))

# %% tags=["hide-input"]
for name in zoo.CLASSIFIERS:
    card = zoo.metadata(zoo.CHECKPOINTS / f"{name}.safetensors")
    print(f"{name}: {card['test_accuracy']:.1%} of the test images right")
    print(
        f"{name}: {card['recipe']['steps']} steps of {card['recipe']['batch']} images, {card['seconds'] / 60:.0f} minutes on {card['threads']} thread(s)"
    )
for name in names:
    print(
        f"{name}: {cards[name]['seconds'] / 60:.0f} minutes on {cards[name]['threads']} thread(s), torch {cards[name]['torch']}"
    )

# %% [markdown]
# ## Reproduce them
#
# ```
# dode train fashion-mnist-noise --out runs
# dode train fashion-mnist-data --out runs
# dode train fashion-mnist-classifier --out runs
# dode train fashion-mnist-critic --out runs
# dode train fashion-mnist-observer --out runs
# dode train fashion-mnist-transformer --out runs
# ```
#
# The data are read from the folder named by `DODE_DATA`, or fetched from their publisher and checked by digest. The images are under the MIT licence
# (Zalando Research), and so are the checkpoints. A killed run resumes with the same command.
#
# ## Natural images
#
# The images are under ImageNet's terms (research without commerce), and so are the networks that have learned from them. dode neither holds nor fetches the images: `DODE_DATA` names a folder with
# `imagenet32/<wnid>.png`, 200 sheets of 10 rows and 25 columns; each class's last row is kept from the classifiers.
#
# ```
# dode train imagenet32 --out runs                              # classifier, critic, observer, data and noise network, one after the other
# dode train imagenet32-data --out runs                         # one of them
# ```
#
# A larger recipe wants a GPU: 7.8 M parameters (15.6 MB in half precision) on whole pixels, compiled. It has not been run at its size.
#
# ```
# make natural DODE_DATA=FOLDER                                 # trains the larger denoisers, ships and measures them
# dode train imagenet32-data --large --device cuda --out runs
# ```
#
# A training that is stopped, as by `timeout -s INT 9m`, goes on from its last saved step with the same command. Networks of natural images are
# measured in the features of their own classifier, and fits see their own critic and observer: the judges of garments never look at them.

# %% tags=["remove-input"]
plots.provenance(dict(preset=preset, **experiments.provenance(where)))
