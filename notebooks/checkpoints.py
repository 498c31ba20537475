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

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "all"  # or one name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images to draw; None: 50, or 10 at quick and smoke

# %% tags=["remove-input"]
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display

import dode
from dode import experiments, zoo
from dode.experiments import plots
from dode.experiments.quality import real_cells, real_images

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
names = experiments.checkpoints(checkpoint)
count = seeds or (10 if preset in ("smoke", "quick") else 50)
word = lambda name: name.rsplit("-", 1)[1]  # noqa: E731  "noise" or "data"
cards = {name: zoo.metadata(name) for name in names}
stored = experiments.committed("figure_4", "natural").query("nfe == 50 and solver == 'ddim' and variant == 'plain'")
stored = stored[stored.checkpoint.isin(names)]
quality = stored.groupby(["checkpoint", "n"], sort=False).fd.agg(["mean", "std", "size"]).reset_index()
real = real_images.rows(experiments.Run(p, where), real_cells(p)) if p.kept else None
short = "Asked: what are the networks of this book, and how good? Four small U-Nets, trained for about an hour each on one CPU core.\n"
if p.kept:
    drawn = "; ".join(f"{row.checkpoint} {row.mean_:.2f} (n = {row.n:,})" for row in quality.rename(columns={"mean": "mean_"}).itertuples())  # fmt: skip
    short += f"Fréchet distance to the training images, DDIM, NFE 50, in classifier features: {drawn}; test images {', '.join(map('{:.2f}'.format, real.fd))}.\n"

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% [markdown]
# Four denoisers ship with dode, so nothing here needs a data set, a download or a GPU. On each of two data sets one predicts the noise, on DDPM's 1000-step
# variance-preserving chain {cite:p}`ho2020ddpm`, and the other the clean image, with EDM's preconditioning {cite:p}`karras2022edm`. All are
# U-Nets on pixel-unshuffled images, trained in bf16: two on Fashion-MNIST {cite:p}`xiao2017fashion`, which the book measures unless it says otherwise, and two class-conditional ones on
# the 200 classes of Tiny ImageNet {cite:p}`deng2009imagenet` at 32 x 32 pixels ([its page](natural)).

# %% tags=["hide-input"]
listed = []
for name in [*names, *zoo.CLASSIFIERS]:
    card = cards.get(name) or zoo.metadata(zoo.CHECKPOINTS / f"{name}.safetensors")
    recipe, accuracy = card["recipe"], card.get("test_accuracy")
    listed.append({
        "network": name, "test accuracy": "" if accuracy is None else f"{accuracy:.1%}",
        "steps x images": f"{recipe['steps']:,} x {recipe['batch']}", "minutes": f"{card['seconds'] / 60:.0f}",
        "threads": card["threads"],
    })  # fmt: skip
plots.listing(pd.DataFrame(listed))

# %% tags=["hide-input", "nbval-check-output"]
for name in names:
    network, size = dode.load(name).network, zoo.checkpoint_file(name).stat().st_size / 1e6
    print(f"{name}: {sum(w.numel() for w in network.parameters()) / 1e6:.2f} M parameters, {size:.1f} MB")

# %% [markdown]
# ## Samples

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "samples", "caption": "DDIM with 50 network evaluations, seeds not selected. The noise-predicting network of Tiny ImageNet is visibly oversaturated."}}
columns = min(2, len(names))
rows = -(-len(names) // columns)
figure, axes = plt.subplots(rows, columns, figsize=(5 * columns, (0.4 + 0.05 * count) * rows), squeeze=False)
for ax, name in zip(axes.flat, names, strict=False):
    model = dode.load(name, device=where)
    conditioned, noise = experiments.seeded(model, experiments.held_out_seeds(count))
    plots.show(ax, dode.sample(conditioned, dode.solvers.ddim(model.grid(50)), noise), 10, name)
plt.show()

# %% [markdown]
# ## Quality
#
# In the features of each data set's own classifier (**not** FID, and no two data sets compare). *Test images*: real ones to the training images, which no network can be asked to better. The test images of Tiny ImageNet are among the 50,000 that distances are taken to, so their distance is too small a floor; its n is 5,000, the networks' 2,000.

# %% tags=["hide-input"]
if p.kept:
    kind = dict(zip(real.checkpoint.map(lambda c: zoo.data_set_of(c).name), real.itertuples(), strict=True))
    listed = quality.assign(data=quality.checkpoint.map(lambda c: zoo.data_set_of(c).name))
    lines = [
        {"images": f"{row.checkpoint}, DDIM, NFE 50", "FD": plots.plus_minus(row["mean"], row["std"]), "n x blocks": f"{row.n:,} x {row['size']}"}
        for _, row in listed.iterrows()
    ]  # fmt: skip
    lines += [{"images": f"{name}, test images", "FD": f"{row.fd:.3f}", "n x blocks": f"{row.n:,} x 1"} for name, row in kind.items()]  # fmt: skip
    display(plots.listing(pd.DataFrame(lines)))
    print("after a ±: standard deviation over blocks of seeds, where there are three")

# %% [markdown]
# **Classifiers.** The *evaluation classifier* of each data set measures, and no loss uses it, but for one marked bound ([The network as its own critic](own_features)). Two others, the *critic* and the *observer*, are of other architectures and seeds; they may enter the loss of a fit. A vision transformer of Fashion-MNIST measures beside the first
# where losses and trainings are compared ([The network as its own critic](own_features), [DLMS](dlms)); no loss, no grid and no setting used it.

# %% [markdown]
# ## Loss
#
# Each training step draws its randomness from its own number, so a run that was killed and resumed ends with the same weights. The length of the run was
# fixed beforehand, and the rate falls to zero with it. This is the training loss; no validation loss was kept, and no longer run was compared.

# %% tags=["hide-input"] mystnb={"figure": {"name": "loss", "caption": "Training loss (mean over 100 steps) against training images seen. The losses of noise and data are weighted differently and cannot be compared with each other."}}
figure, axes = plt.subplots(rows, columns, figsize=(4.6 * columns, 3 * rows), squeeze=False)
for ax, name in zip(axes.flat, names, strict=False):
    log = pd.read_csv(zoo.CHECKPOINTS / f"{name}.csv")
    ax.plot(log.step * cards[name]["recipe"]["batch"] / 1000, log.loss)
    ax.set(xlabel="thousand images", ylabel="loss", yscale="log", title=name)
plt.show()

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
# ## Training the 32x32 networks
#
# The images are under ImageNet's terms (non-commercial research), and so are the networks that have learned from them. dode neither holds nor fetches the images: `DODE_DATA` names a folder with
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
# A training that is stopped, as by `timeout -s INT 9m`, goes on from its last saved step with the same command. These networks are measured by classifiers of their own images.

# %% tags=["remove-input"]
plots.provenance(dict(preset=preset, **experiments.provenance(where)))
