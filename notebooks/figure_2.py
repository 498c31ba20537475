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
# # Figure 2: how alike the denoiser's outputs are
#
# **The paper shows** the cosine similarity between all denoiser outputs of one 1000-step DDIM run, for a noise-predicting and
# for a data-predicting network, and finds neighbours nearly equal. That is what makes D-ODE solvers possible: outputs
# that are nearly collinear can be corrected by a scalar times their difference {cite:p}`kim2024dode`.

# %% tags=["parameters"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist"  # a data set, all, or one name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images; None: the preset's number

# %% tags=["hide-input"]
import matplotlib.pyplot as plt
import torch

import dode
from dode import experiments, solvers
from dode.experiments import plots

plots.style()
p = experiments.preset(preset)
where = experiments.device(device)
sizes = p.live  # of what is computed here; at quick they are small, and the table is the committed run's
count = seeds or sizes.path_images
SHOWN = 100  # about as many outputs are kept of each run, evenly spaced
SEEDS = f"{experiments.held_out_seeds(1).start} and up"


def similarity(name: str, block: int = 0) -> torch.Tensor:
    """Mean over images of the cosine similarity between outputs, (kept, kept)."""
    model = dode.load(name, device=where)
    solver = solvers.ddim(model.grid(sizes.reference_steps), basis=model.prediction)
    stride, kept = max(1, sizes.reference_steps // SHOWN), []

    def keep(step):
        if step.index % stride == 0:
            kept.append(step.output.flatten(1).cpu())

    noise = dode.initial_noise(model.shape, experiments.held_out_seeds(count, block), device=where)
    dode.sample(model, solver, noise, callback=keep)
    outputs = torch.nn.functional.normalize(torch.stack(kept).double(), dim=2)
    return torch.einsum("tbi,sbi->ts", outputs, outputs) / count


names = experiments.checkpoints(checkpoint)
matrices = {name: similarity(name) for name in names}

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "figure-2", "caption": "Cosine similarity between the network's outputs along a DDIM run, noise first. Left to right and top to bottom the sample becomes clean."}}
figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 4), squeeze=False)
for ax, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
    image = ax.imshow(
        matrix,
        cmap="viridis",
        vmin=min(0, float(matrix.min())),
        vmax=1,
        extent=(0, sizes.reference_steps, sizes.reference_steps, 0),
    )
    ax.set(xlabel="DDIM step", ylabel="DDIM step", title=f"{name.rsplit('-', 1)[1]} prediction")
    ax.grid(False)
figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.85)
plt.show()

# %% [markdown]
# **Measured here**: the table gives the mean similarity of outputs that lie one tenth of the run apart (the neighbours of a ten-step
# solver) in the first tenth, the middle and the last tenth of the run.


# %% tags=["hide-input"]
@experiments.measurement(name="figure_2", adds=[])
def likeness(run: experiments.Run, *, checkpoint: str, n: int, block: int = 0) -> dict:
    matrix = similarity(checkpoint, block) if block else matrices[checkpoint]
    last, tenth = len(matrix) - 1, len(matrix) // 10
    at = {"first": 0, "middle": len(matrix) // 2, "last": last - tenth}
    found = {f"similarity_{k}": f"{float(matrix[i, i + tenth]):.4f}" for k, i in at.items()}
    found["similarity_ends"] = f"{float(matrix[0, last]):.4f}"
    return found | dict(steps=sizes.reference_steps, preset=preset, seeds=SEEDS)


cells = likeness.cells(checkpoint=names, n=seeds or p.path_images)
rows = likeness.rows(experiments.Run(p, where), cells, jobs=1)
plots.listing(
    rows[["checkpoint", "n", "steps", "similarity_first", "similarity_middle", "similarity_last", "similarity_ends"]]
)

# %% tags=["nbval-check-output", "hide-input"]
for name, matrix in matrices.items():
    tenth = len(matrix) // 10
    apart = torch.diagonal(matrix, tenth)
    print(
        f"{name}, {count} images: outputs a tenth of the run apart have similarity {apart.mean():.2f} on average, "
        f"{apart.min():.2f} at least"
    )

# %% [markdown]
# **Agreement.** Neighbouring outputs are nearly collinear along most of the path for both predictions, as the paper says. The exceptions are
# visible at the ends: a noise-predicting network's outputs change direction at the very end of the run, where almost no noise is left to
# predict; a data-predicting network's first guesses, blurred averages, have the least in common with its last. There the
# difference of two outputs is not small, and $\lambda$ has real work to do.

# %% tags=["hide-input"]
live = experiments.Live("figure_2", p, where)
for _, stored in rows.iterrows():
    live.check(stored, likeness, "similarity_ends", n=count, block=0)
live.show(f"Figure ({count} images, {sizes.reference_steps} steps)", "Table")

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
