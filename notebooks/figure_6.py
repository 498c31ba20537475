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
# # Figure 6: the images

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist"  # a data set, all, or one name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images in each grid; None: 9

# %% tags=["remove-input"]
from dataclasses import replace
from functools import cache

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.patches import Rectangle

import dode
from dode import experiments, zoo
from dode.denoisers import Images
from dode.experiments import greedy, plots
from dode.experiments.run import possible_nfe

plots.style()
p = experiments.preset(preset)
fewer = {"smoke": 4, "quick": 8}  # images of a fit
sizes = replace(p.live, fit_images=fewer.get(preset, p.fit_images))  # of the pictures; at quick the table is committed
where = experiments.device(device)
run = experiments.Run(sizes, where)
names = experiments.checkpoints(checkpoint)
count = seeds or 9
models = {name: dode.load(name, device=where) for name in names}
HIGHER = {"noise": ["ipndm", "dpm_solver", "deis:order=4"], "data": ["dpm_solver_pp:order=2", "unipc"]}
drawn = {  # the NFEs of each solver's pictures; a third-order solver wants three
    (name, solver): [possible_nfe(solver, nfe) for nfe in ([2] * (solver == "ddim") + [3, 5, 10]) if p.kept or nfe <= 5]
    for name in names
    for solver in ["ddim", *["heun"] * (models[name].prediction == "data"), *HIGHER[models[name].prediction]]
}


def sample(name: str, tableau: dode.Tableau) -> torch.Tensor:
    """The page's seeds through ``tableau``."""
    model, noise = experiments.seeded(models[name], experiments.held_out_seeds(count))
    return dode.sample(model, tableau, noise)


def samples(name: str, solver: str, nfe: int) -> dict[str, torch.Tensor]:
    """The pictures of a solver and of its D- version."""
    variants = {solver: "plain", f"d-{solver}": "d-ode"}
    return {k: sample(name, experiments.variant_of(run, name, solver, v, nfe)) for k, v in variants.items()}


exact = {
    name: sample(name, dode.solvers.dpm_solver_pp(models[name].grid(sizes.reference_steps), order=2)) for name in names
}
todo = [(name, solver, nfe) for (name, solver), nfes in drawn.items() for nfe in nfes]
todo.sort(key=lambda job: (job[0], job[2]))  # solvers with the same levels share their teacher's run
pictures = {job: samples(*job) for job in todo}


measured = greedy.greedy_error.rows(run=experiments.Run(p, where), cells=[
    cell for (name, solver), nfes in drawn.items() for nfe in [*nfes, *[25] * p.kept]
    for cell in greedy.greedy_error.cells(
        checkpoint=name, solver=solver, variant=["plain", "d-ode"], nfe=possible_nfe(solver, nfe), n=p.zoo_images,
        reference_calls=p.reference_steps,
    )
])  # fmt: skip
by = measured.set_index(["checkpoint", "solver", "nfe", "variant"]).rmse.unstack()
few = drawn[names[0], "ddim"][-1]
said = ", ".join(f"{name.removeprefix('fashion-mnist-')} {by.plain[name, 'ddim', few]:.3f} and {by['d-ode'][name, 'ddim', few]:.3f}" for name in names)  # fmt: skip
short = (
    "Asked: what does distillation do to the images (Section 5.2 of the D-ODE paper)? With 5 and 10 network evaluations it removes blur from DDIM's and noise from those of solvers of higher order; D-DDIM with 2 and 3 and D-EDM with 3 and 5 give blurred images.\n"
    f"RMSE to the reference solution of the same seed, DDIM and D-DDIM with NFE {few}, n = {p.zoo_images} images: {said}."
)


classifier = cache(lambda data: zoo.load_evaluator(f"{data}-classifier", where)[0])


@torch.no_grad()
def classes(kind: Images, images: torch.Tensor) -> torch.Tensor:
    """What the classifier of these images takes each for; where there is none, all are of one class."""
    if not kind.evaluators:
        return torch.zeros(len(images))
    return classifier(kind.evaluators)(kind.pixel_values(images)).argmax(1).cpu()


def grid_of_samples(
    samples: dict[str, dict[str, torch.Tensor]], kind: Images, columns: int = 3, width: float = 9.0
) -> plt.Figure:
    """Rows (solvers) by columns (NFEs) of mosaics; ``samples[row][column]`` is ``(B, C, H, W)``, ``kind`` the model's.

    A frame is around each image that the classifier takes for another class than that of the last column.
    """
    heads = list(dict.fromkeys(c for row in samples.values() for c in row))
    count = -(-len(next(iter(next(iter(samples.values())).values()))) // columns)
    height = width / len(heads) * len(samples) * count / columns + 0.4
    figure, axes = plt.subplots(len(samples), len(heads), squeeze=False, figsize=(width, height))
    for r, (name, row) in enumerate(samples.items()):
        known = classes(kind, row[heads[-1]])
        for c, head in enumerate(heads):
            ax = axes[r, c]
            ax.set(xticks=[], yticks=[])
            sns.despine(ax=ax, left=True, bottom=True)
            if head in row:
                ax.imshow(kind.mosaic(row[head], columns), cmap="gray", vmin=0, vmax=255)
                h, w = (side + 1 for side in row[head].shape[-2:])
                for k in (classes(kind, row[head]) != known).nonzero().flatten().tolist():
                    corner = (k % columns * w, k // columns * h)
                    ax.add_patch(Rectangle(corner, w, h, fill=False, edgecolor="C3", linewidth=1.5))
            else:
                ax.set_axis_off()
            if r == 0:
                ax.set_title(head)
            if c == 0:
                ax.set_ylabel(name)
    return figure


def draw(prediction: str, solvers: list[str], images: int = count) -> None:
    """The grid of some solvers on one network, if this run has them."""
    for name in (n for n in names if models[n].prediction == prediction):
        rows = {
            plots.NAMES[label].replace("-Solver", "-\nSolver"): {
                f"{nfe} NFE": pictures[name, solver, nfe][label][:images] for nfe in drawn[name, solver]
            }
            | {f"reference, {sizes.reference_steps}": exact[name][:images]}
            for solver in solvers
            for label in (solver, f"d-{solver}")
        }
        grid_of_samples(rows, models[name].images).suptitle(f"{prediction} prediction", fontsize="medium")
        plt.show()


# %% tags=["remove-input"] mystnb={"markdown_format": "myst"}
plots.in_short(short)

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "figure-6", "caption": "The noise-predicting network: the same seeds through DDIM (top) and D-DDIM, with the NFE above; last column: the reference solution. Red frame: the evaluation classifier takes the image for another class than the reference's."}}
draw("noise", ["ddim"])

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-6-data", "caption": "DDIM (top) and D-DDIM on the data-predicting network."}}
draw("data", ["ddim"])

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-6-heun", "caption": "Heun's method (top) and D-EDM on the data-predicting network. With NFE 5 D-EDM is blurred."}}
draw("data", ["heun"])

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-6-higher", "caption": "Solvers of higher order on the noise-predicting network: the first six of the same seeds."}}
draw("noise", HIGHER["noise"], images=6)

# %% tags=["hide-input"] mystnb={"figure": {"name": "figure-6-higher-data", "caption": "Solvers of higher order on the data-predicting network: the first six of the same seeds."}}
draw("data", HIGHER["data"], images=6)

# %% [markdown]
# ## Every number
#
# The paper shows samples of DDIM, D-DDIM, EDM and D-EDM on data-predicting networks of ImageNet and FFHQ {cite:p}`kim2024dode`; the noise-predicting network and the other solvers are additions. RMSE to the reference solution (DPM-Solver++(2M), 1000 steps) of the same seed, before clipping, of the seeds that the grids begin with.

# %% tags=["hide-input"]
word = lambda name: name.removeprefix("fashion-mnist-")  # noqa: E731
listed = by.reset_index().rename_axis(columns=None)
listed["ratio"] = (listed["d-ode"] / listed.plain).map("{:.2f}".format)
listed[["plain", "d-ode"]] = listed[["plain", "d-ode"]].map("{:.3f}".format)
listed["checkpoint"] = listed.checkpoint.map(word)
print(f"RMSE, n = {p.zoo_images}")
plots.listing(listed.replace({"solver": plots.NAMES}).rename(columns={"checkpoint": "network", "nfe": "NFE", "d-ode": "distilled"}))  # fmt: skip

# %% tags=["nbval-check-output", "hide-input"]
print("NFEs at which the distilled images are nearer to the reference solution:")
for (name, solver), part in by.groupby(["checkpoint", "solver"], sort=False):
    nearer = part[part["d-ode"] < part.plain].index.get_level_values("nfe")
    print(f"  {word(name)}, {plots.NAMES[solver]}: {', '.join(map(str, nearer)) or 'none'} of {', '.join(map(str, part.index.get_level_values('nfe')))}")  # fmt: skip

# %% [markdown]
# ## What the paper says, and what came out
#
# - **More realistic with few evaluations** (Figure 6 of the paper): with 5 and 10 D-DDIM has contrast and outline where DDIM is washed out. Some images with 5 show another object (red frames); such an image has a large RMSE whatever its quality.
# - **"Relatively clear objects even at 5"** for D-EDM (Section 5.2): not here. Its images with 5 are blurred, and some are other objects.
# - **Solvers of higher order**: DPM-Solver-3 with 3 and 5 evaluations draws noise on the noise-predicting network, iPNDM and DEIS-3 draw recognisable but noisy images; on the other network UniPC-3 with 5 is saturated. Their distilled versions are images.
# - **With 25 evaluations** (not drawn) D-DDIM is nearer on both networks; with noise prediction D-iPNDM and D-DEIS-3 are farther than their plain versions, with data prediction D-(2M) and D-UniPC-3, and D-(2M) with 10 too.

# %% tags=["hide-input"]
live = experiments.Live("figure_6", p, where)
fewer = dict(n=p.live.zoo_images, reference_calls=p.live.reference_steps)
for _, row in measured.query("solver == 'heun' and nfe == 9").iterrows():
    live.check(row, greedy.greedy_error, "rmse", **fewer)
live.show(f"Images (fits of {sizes.fit_images} images, reference solution of {sizes.reference_steps} steps)", "Table")

# %% tags=["remove-input"]
plots.provenance(experiments.origin(measured))
