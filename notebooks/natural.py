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
checkpoint = None  # a name or imagenet32; None: the data-predicting network, at standard and full both
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images of each solver are shown; None: 12

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dode
from dode import experiments, plots
from dode.experiments import fits, learned, transfer

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
names = experiments.checkpoints(checkpoint or ("imagenet32" if p.kept else "imagenet32-data"))[::-1]
nfes = (3, 5) if p.kept else (3,)
CRAFTED = [m for m in learned.HANDCRAFTED if p.kept or m in ("ddim", "deis")]
LEARNED = ["d-ode", "gauss-newton"]
word = lambda name: name.rsplit("-", 1)[1]  # noqa: E731  "noise" or "data"

# %% [markdown]
# ## What the networks draw
#
# With 50 calls of DDIM, seeds not selected.

# %% tags=["hide-input"] mystnb={"figure": {"name": "natural-samples", "caption": "DDIM with 50 network calls, seeds not selected."}}
figure, axes = plt.subplots(len(names), 1, figsize=(9, 2.5 * len(names)), squeeze=False)
for ax, name in zip(axes[:, 0], names, strict=True):
    model, noise = experiments.seeded(dode.load(name, device=where), experiments.held_out_seeds(48))
    plots.show(ax, dode.sample(model, dode.solvers.ddim(model.grid(50)), noise), 16, f"{word(name)} prediction")
plt.show()

# %% [markdown]
# ## Few calls
#
# Handcrafted solvers, each on the grid that is best for it there, and two learned ones: D-DDIM, one number a step in closed form, and the [second-order fit](second_order) of a whole table, whose eyes are a critic and an observer of these classes. The distance is to samples of a long run of the same network from other seeds,
# so it says what the *solver* does wrong.

# %%
rows = list[dict]()
for name in names:
    rows += learned.compare(p, where, [name], nfes, [*CRAFTED, "start", *LEARNED], experiments.jobs(where))[0]
print(f"{len(rows)} solvers, n = {int(rows[0]['n']):,} images each, {rows[0]['n_rmse']} for RMSE")

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "natural-pictures", "caption": "The same seeds through DDIM, its distilled version and the second-order fit, each with so few calls, and through the many-step solution that all aim at."}}
few, count = max(nfes), seeds or 12
figure, axes = plt.subplots(4 * len(names), 1, figsize=(9, 3.1 * len(names)), squeeze=False)
for k, name in enumerate(names):
    model, noise = experiments.seeded(dode.load(name, device=where), experiments.held_out_seeds(count))
    solvers = {f"DDIM, {few}": dode.solvers.ddim(model.grid(few))}
    solvers |= {f"{plots.NAMES[m]}, {few}": fits.fit(p, name, where, m, few) for m in LEARNED}
    solvers |= {f"DDIM, {p.reference_steps}": dode.solvers.ddim(model.grid(p.reference_steps))}
    for ax, (label, solver) in zip(axes[4 * k :, 0], solvers.items(), strict=False):
        plots.strip(ax, dode.sample(model, solver, noise), label)
    axes[4 * k, 0].set_title(f"{word(name)} prediction")
plt.show()

# %% tags=["hide-input"]
found = pd.DataFrame(rows).astype(dict(fd_reference=float, fd_data=float, rmse=float, nfe=int, n=int))
crafted = found[found.method.isin(CRAFTED)]
best = crafted.loc[crafted.groupby(["checkpoint", "nfe"]).fd_reference.idxmin()].set_index(["checkpoint", "nfe"])
found = found.join(best.fd_reference.rename("best"), on=["checkpoint", "nfe"])
shown = found.assign(
    solver=found.method.map(plots.NAMES),
    ratio=(found.fd_reference / found.best).map("{:.2f}".format),
)
shown = shown.rename(columns=dict(fd_reference="FD to the long run", fd_data="FD to the data", rmse="RMSE"))
columns = ["solver", "grid", "FD to the long run", "ratio", "FD to the data", "RMSE", "n"]
plots.listing(shown[["checkpoint", "nfe", *columns]].rename(columns={"ratio": "over the best handcrafted"}))

# %% tags=["hide-input"]
for (name, nfe), part in found.groupby(["checkpoint", "nfe"], sort=False):
    at = part.set_index("method")
    print(
        f"{word(name)} prediction, {nfe} calls: best handcrafted {plots.NAMES[best.method[name, nfe]]} {best.fd_reference[name, nfe]:.3f}; "
        + ", ".join(f"{plots.NAMES[m]} {at.fd_reference[m]:.3f}" for m in LEARNED)
    )

# %% [markdown]
# ## Solvers made for garments
#
# A solver is a table of numbers, so it may be taken elsewhere: here are the solvers of the other pages, made for a network of *garments* in grey, on the network of natural images that predicts the same thing on the same noise levels. Nothing is fitted anew. If what is learned belonged to the noise levels alone, these tables
# would do as well as those made for the network that samples.

# %% tags=["hide-input"]
KIN = {name: f"fashion-mnist-{word(name)}" for name in names}
MOVED = ["gauss-newton"] if not p.kept else ["d-ode", "ld3", "gauss-newton"]
cells = [
    transfer.transfer_cell(p, where, name, KIN[name], m, nfe, nfe, p.images)
    for name in names
    for nfe in nfes
    for m in MOVED
]
moved = pd.DataFrame(transfer.carry(p, where, cells)).astype(
    dict(fd_reference=float, fd_data=float, rmse=float, nfe=int)
)
own = found.set_index(["checkpoint", "nfe", "method"])
lines = []
for row in moved.itertuples():
    line = {"network": word(row.checkpoint), "NFE": row.nfe, "solver": plots.NAMES[row.method]}
    line["made for garments: FD to the long run"] = f"{row.fd_reference:.3f}"
    key = (row.checkpoint, row.nfe, row.method)
    line["made for this network"] = f"{own.fd_reference[key]:.3f}" if key in own.index else ""
    line["the start"] = f"{own.fd_reference[row.checkpoint, row.nfe, 'start']:.3f}"
    line["best handcrafted"] = f"{best.fd_reference[row.checkpoint, row.nfe]:.3f}"
    lines.append(line | {"n": row.n})
plots.listing(pd.DataFrame(lines))

# %% tags=["nbval-check-output", "hide-input"]
tables = [transfer.table_of(p, where, KIN[name], m, nfe) for name in names for nfe in nfes for m in MOVED]
fall = all(bool((table.sigmas.diff() < 0).all()) for table in tables)
whole = all(np.allclose(table.parts.sum(1), 1) for table in tables)
print(f"{len(tables)} tables made for garments: levels fall: {fall}; the parts of each row sum to one: {whole}")

# %% [markdown]
# ## Agreement
#
# The committed run is a small one (`quick`, $n$ = 300, three calls, the data-predicting network): it shows the direction and no more. In it the second-order fit is far nearer to the long run than the handcrafted solvers that were tried, as on garments, and D-DDIM, which begins at DDIM,
# is no nearer than the best of them. The second-order table made for garments is between the two: ahead of the handcrafted ones, and several times as far as the table made for this network. So part of what is learned belongs to the noise levels, and the rest to the images.

# %% tags=["remove-input"]
plots.provenance(experiments.origin([*rows, *moved.astype(str).to_dict("records")]))
