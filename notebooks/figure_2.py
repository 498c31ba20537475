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
# # Figure 2: cosine similarity of denoiser outputs

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist"  # a data set, all, or one name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images; None: the preset's number

# %% tags=["remove-input"]
import matplotlib.pyplot as plt
import torch

import dode
from dode import experiments, solvers
from dode.experiments import plots, quality

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
word = lambda name: name.removeprefix("fashion-mnist-")  # noqa: E731


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
least = {name: float(torch.diagonal(m, len(m) // 10).min()) for name, m in matrices.items()}
short = (
    "Asked: are neighbouring denoiser outputs redundant, as the D-ODE paper says (Section 3.1)? They are nearly collinear. But that does not say where a fitted number helps: it helps most at high noise levels, where outputs are most alike on one network and least alike on the other.\n"
    f"Least cosine of outputs a tenth of a {sizes.reference_steps}-step DDIM run apart, n = {count}: {', '.join(f'{word(k)} {v:.2f}' for k, v in least.items())}."
)

# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "figure-2", "caption": "Top: how far neighbouring outputs of a ten-step solver are from collinear (1 - cosine), against the noise level. Bottom: share of a step's squared error that the fitted lambda of D-DDIM removes, NFE 10, on the 100 seeds of the fit. Noise levels fall from left to right. The first step of D-DDIM on the data-predicting network has no number to fit."}}
figure, axes = plt.subplots(2, 1, figsize=(7, 5.4), sharex=True)
of_steps = quality.committed_rows("limits")
shares = {}
for k, (name, matrix) in enumerate(matrices.items()):
    levels = dode.load(name).grid(sizes.reference_steps)[
        : sizes.reference_steps : max(1, sizes.reference_steps // SHOWN)
    ]
    tenth = len(matrix) // 10
    axes[0].plot(levels[: len(matrix) - tenth], (1 - torch.diagonal(matrix, tenth)).clamp(min=1e-6), color=f"C{k}", label=f"{word(name)} prediction")  # fmt: skip
    fit = of_steps.query("checkpoint == @name and solver == 'ddim' and variant == 'd-ode' and nfe == 10")
    for row in fit.itertuples():
        plain, fitted = (torch.tensor(experiments.numbers(v)) for v in (row.plain_rmse, row.fit_rmse))
        shares[name] = 1 - (fitted / plain) ** 2
        first = len(experiments.numbers(row.levels)) - 1 - len(plain)
        axes[1].plot(experiments.numbers(row.levels)[first:-1], shares[name], "o-", color=f"C{k}")
axes[0].set(xscale="log", yscale="log", ylabel="1 - cosine")
axes[1].set(xlabel="noise level", ylabel="error removed", ylim=(-0.03, 1.03))
axes[0].invert_xaxis()
axes[0].legend()
plt.show()

# %% [markdown]
# ## The measurement
#
# The paper's Figure 2 shows the cosine similarity between all denoiser outputs of one 1000-step DDIM run, for a noise-predicting and for a data-predicting network, and finds similarities close to one between neighbours. It concludes that the outputs are redundant {cite:p}`kim2024dode`. The same matrices here:

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-2-matrix", "caption": "Cosine similarity between the network's outputs along a DDIM run, noise first. Each network has its own grid, so equal steps are not equal noise levels."}}
figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 4), squeeze=False)
for ax, (name, matrix) in zip(axes[0], matrices.items(), strict=True):
    image = ax.imshow(
        matrix,
        cmap="viridis",
        vmin=min(0.75, float(matrix.min())),
        vmax=1,
        extent=(0, sizes.reference_steps, sizes.reference_steps, 0),
    )
    ax.set(xlabel="DDIM step", ylabel="DDIM step", title=f"{name.rsplit('-', 1)[1]} prediction")
    ax.grid(False)
figure.colorbar(image, ax=axes, label="cosine similarity", shrink=0.85)
plt.show()

# %% [markdown]
# The mean similarity of outputs that lie a tenth of the run apart (the neighbours of a ten-step solver) in the first tenth, the middle and the last tenth of the run, and of the first output and the last:

# %% tags=["hide-input"]
titles = {"similarity_first": "first tenth", "similarity_middle": "middle", "similarity_last": "last tenth", "similarity_ends": "first against last"}  # fmt: skip
plots.listing(rows[["checkpoint", "n", "steps", *titles]].rename(columns=titles))

# %% tags=["nbval-check-output", "hide-input"]
for name, matrix in matrices.items():
    tenth = len(matrix) // 10
    apart = torch.diagonal(matrix, tenth)
    print(
        f"{name}, {count} images: outputs a tenth of the run apart have 1 - cosine {1 - apart.mean():.3f} on average, "
        f"{1 - apart.min():.2f} at most"
    )

# %% [markdown]
# ## What comes out
#
# - **As in the paper**, neighbouring outputs are nearly collinear for both predictions, at each noise level.
# - **Where the fitted number helps is another matter.** On both networks it removes more than half of a step's squared error above noise level 9, and at most a fifth in the last three steps; the first step of the data-predicting network has no number to fit. At high noise levels the outputs of the noise-predicting network are most alike, and those of the data-predicting one least alike. Collinear outputs do not make the needed correction parallel to their difference; the paper does not say that they do.
# - **Which end changes** cannot be told apart from the grid here: each network has its own, and in the last tenth of Karras's the noise level is below 0.02.
#
# ## Limits
#
# Cosines compare directions, not norms. One data set; the share of error is of D-DDIM with NFE 10, on the seeds of the fit.

# %% tags=["hide-input"]
live = experiments.Live("figure_2", p, where)
for _, stored in rows.iterrows():
    live.check(stored, likeness, "similarity_ends", n=count, block=0)
live.show(f"Figure ({count} images, {sizes.reference_steps} steps)", "Table")

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
