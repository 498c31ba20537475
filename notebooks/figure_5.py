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
# # Figure 5: on or off the trajectory
#
# **The paper shows** the norm of $x_t$, and the path of two pixels, for ten-step solvers and their distilled versions against 1000-step
# DDIM, averaged over 1,000 samples: the distilled ones stay near the long trajectory {cite:p}`kim2024dode`.

# %% tags=["parameters"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "all"  # or one name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images; None: the preset's number

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import pandas as pd
import torch

import dode
from dode import experiments, plots
from dode.metrics import rmse, trajectory_distance

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
names = experiments.checkpoints(checkpoint)
count = seeds or p.path_images
PIXELS = [(14, 14), (9, 19)]
SEEDS = f"{experiments.held_out_seeds(1).start} and up"


def paths(name: str) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Levels and states of each solver on the same seeds, in the coordinates of unit variance."""
    model = dode.load(name, device=where)
    noise = dode.initial_noise(model.shape, experiments.held_out_seeds(count), device=where)
    plain = experiments.base_solver("ddim", model, 10)
    refined = dode.distillation.make_teacher(plain, scale=p.reference_steps // 10)  # passes through the ten levels
    found = {}
    for label, solver in {
        "teacher": refined,
        "ddim": plain,
        "d-ddim": experiments.distilled(model, plain, p.fit_images),
    }.items():
        states = dode.trajectory(model, solver, noise).cpu()
        keep = slice(None, None, p.reference_steps // 10) if label == "teacher" else slice(None)
        sigmas = solver.sigmas[keep]
        found[label] = (sigmas, states[keep] / (1 + sigmas[:, None, None, None, None] ** 2).sqrt().float())
    return found


runs = {name: paths(name) for name in names}

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "figure-5", "caption": "Ten steps of DDIM and D-DDIM against the many-step trajectory at the same noise levels, in coordinates of unit variance. Left: mean norm of the state relative to the trajectory's. Middle and right: two pixels of one image."}}
STYLES = {
    "teacher": dict(color=plots.COLOURS["teacher"], linewidth=3, alpha=0.5),
    "ddim": dict(color=plots.COLOURS["ddim"], linestyle=":", marker="o", markerfacecolor="white"),
    "d-ddim": dict(color=plots.COLOURS["ddim"], marker="o"),
}
LABELS = {"teacher": f"DDIM, {p.reference_steps} steps", "ddim": "DDIM, 10 steps", "d-ddim": "D-DDIM, 10 steps"}
figure, axes = plt.subplots(len(names), 3, figsize=(11, 3.3 * len(names)), squeeze=False)
for row, (name, found) in zip(axes, runs.items(), strict=True):
    norms = {label: states.flatten(2).norm(dim=2).mean(1) for label, (_, states) in found.items()}
    for label in found:
        row[0].plot(range(11), norms[label] / norms["teacher"], label=LABELS[label], **STYLES[label])
        for ax, (y, x) in zip(row[1:], PIXELS, strict=True):
            ax.plot(range(11), found[label][1][:, 0, 0, y, x], **STYLES[label])
            ax.set(xlabel="step", title=f"pixel ({y}, {x})", ylabel="value")
    row[0].set(xlabel="step", ylabel="norm / norm on the trajectory", title=f"{name.rsplit('-', 1)[1]} prediction")
figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plt.show()

# %% [markdown]
# **Measured here**: how far the states are from the trajectory at the same noise level, halfway and at the end.

# %% tags=["hide-input"]
sweep = experiments.Sweep(experiments.results_file("figure_5", preset), ["checkpoint", "weights", "solver", "n"])


def row(checkpoint: str, weights: str, solver: str, n: int) -> dict:
    truth, states = runs[checkpoint]["teacher"][1], runs[checkpoint][solver][1]
    norm = states[-1].flatten(1).norm(dim=1).mean() / truth[-1].flatten(1).norm(dim=1).mean()
    distance = trajectory_distance(states, truth)
    found = dict(
        rmse_step_5=f"{distance[5]:.4f}",
        rmse_end=f"{rmse(states[-1], truth[-1]):.4f}",
        norm_ratio_end=f"{float(norm):.4f}",
    )
    return found | dict(reference_steps=p.reference_steps, preset=preset, seeds=SEEDS) | experiments.provenance(where)


cells = [
    dict(checkpoint=name, weights=dode.zoo.digest(name), solver=solver, n=count)
    for name in names
    for solver in ("ddim", "d-ddim")
]
rows = sweep.run(cells, row).select(cells)
plots.listing(pd.DataFrame(rows)[["checkpoint", "solver", "n", "rmse_step_5", "rmse_end", "norm_ratio_end"]])

# %% tags=["nbval-check-output", "hide-input"]
for name, found in runs.items():
    gaps = {label: rmse(states[-1], found["teacher"][1][-1]) for label, (_, states) in found.items()}
    print(f"{name}: RMSE to the trajectory's end: DDIM {gaps['ddim']:.2f}, D-DDIM {gaps['d-ddim']:.2f}")

# %% [markdown]
# **Agreement.** The distilled paths end nearer to the long trajectory than the plain ones, in both predictions, as in the paper.
# Following it *on average* is what was fitted: one scalar for all pixels and all images cannot mend the path of each.

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
