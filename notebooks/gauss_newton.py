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
# # The Gauss-Newton solver
#
# **Not from either paper.** A solver of three calls has about a dozen numbers, so all of them can be fitted at once to the *last* image by Gauss-Newton's method (`dode.distillation.gauss_newton`).
#
# **What was known**: a trust region for the grid alone {cite:p}`xue2024dmn`; weights by least squares, step by step {cite:p}`duan2023olss,zhang2024iia,kim2024dode`; Levenberg and Marquardt's damping within a step of sampling {cite:p}`wang2025lml`.
# **What is ours**: Gauss-Newton steps on the error of the last image in weights, levels and input levels together, with a network that is evaluated and never differentiated.
#
# **Measured here**: how the fit goes, what it changes in a solver, and which of its parts help. Distances are Fréchet distances in the features of a small classifier (**not** FID), to the samples of a long run and to the data, and the RMSE to
# that long run's images from the same seeds. The fit sees neither that classifier nor those seeds.

# %% tags=["parameters"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist-data"  # or another name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many samples behind a Fréchet distance; None: the preset's number

# %% tags=["hide-input"]
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from dode import distillation, experiments
from dode.experiments import fits, learned, plots
from dode.tableau import Tableau

plots.style()
p = experiments.preset(preset)
p = replace(p, images=seeds or p.images)
where = experiments.device(device)
run = experiments.Run(p, where)
small = preset == "smoke"  # fewer variants, no handcrafted solvers
NFE = 3
USUAL = "gauss-newton"
VARIANTS = {
    USUAL: "as usual",
    "gauss-newton:residual=raw": "images not clipped",
    "gauss-newton:bias=0": "mean error not weighed",
    "gauss-newton:residual=seen-observer": "the observer and pixels alone",
    "gauss-newton:residual=seen-averaged": "random features and pixels alone",
    "gauss-newton:images=32": "32 seeds",
    "gauss-newton:path=0.1": "the way minded too",
    "gauss-newton:limit=5": "errors of single images bounded",
    "gauss-newton:near=4": "begun at the fit of 4 calls",
    "gauss-newton:near=2": "begun at the fit of 2 calls",
    "gauss-newton:base=dpm_solver_pp": "begun at DPM-Solver++(3M)",
    "gauss-newton:base=gits": "begun at GITS",
    "gauss-newton:afs=False": "no analytical first step",
    "dlms:base=gauss-newton": "a DLMS designer on top of it",
}
VARIANTS = dict(list(VARIANTS.items())[: 2 if small else None])

# %% [markdown]
# ## How it goes
#
# - **The numbers** are the weights as parts that sum to one, the levels, and the levels told to the network (`dode.distillation.Space`). The levels are logarithms of gaps, so they fall whatever the numbers are: no step of the fit can make a solver that goes back up.
#   With an analytical first step (AFS) the first level moves too, and with it the length of that step, which costs no call.
# - **The error** is that of the last image against a 40-call teacher's, *clipped* to the range that a file holds, in the features of two other classifiers (the critic and the observer), in random features averaged over the image, and in pixels. What all images'
#   errors have in common, their mean, counts six times as much, because a distance between distributions is mostly that.
# - **The Jacobian** is taken by forward differences. The first rows of a walk do not feel a number of a later row, so each number is walked again only from the first row that it touches.
# - **The step** solves the damped normal equations. If the error does not fall the damping grows and the step is tried again, shorter: a trust region. No number moves by more than one in a step.
# - **The end**: an eighth of the seeds is held back, the solver that is best on them is returned, and the fit stops when they have gained nothing for three steps, or after ten.

# %% tags=["hide-input"]
listed = []
for calls in (3, 4, 5, 6, 8, 10):
    table, _ = fits.initial_solver(run, checkpoint, USUAL, calls)
    space = distillation.Space(table, first_level=True)
    kinds = {kind: space.kinds.count(kind) for kind in ("weight", "level", "level_in")}
    listed.append({
        "calls": calls, "weights": kinds["weight"], "levels": kinds["level"], "levels told": kinds["level_in"], "together": len(space.kinds),
        "calls of a Jacobian, an image": space.jacobian_calls, "if all were walked from the start": calls * (1 + len(space.kinds)),
    })  # fmt: skip
counts = pd.DataFrame(listed)
plots.listing(counts)

# %% tags=["nbval-check-output", "hide-input"]
first = counts.iloc[0]
print(
    f"{first['calls']} calls: {first['together']} numbers, a Jacobian in {first['calls of a Jacobian, an image']} calls an image in place of {first['if all were walked from the start']}"
)

# %% [markdown]
# **Why differences.** A column of the Jacobian by differences costs one more walk. Forward-mode differentiation would give it without an error of the difference:

# %% tags=["hide-input"]
timed = pd.read_csv(experiments.home() / "results" / "jacobian.csv").set_index("checkpoint")
row = timed.loc[checkpoint]
print(
    f"torch.func.jvp of this network costs {row.ratio:.1f} times its forward pass ({row.ratio_min:.1f} to {row.ratio_max:.1f} in {row.rounds} rounds, "
    f"batch {row.batch}, {row.threads} thread): a difference is {row.ratio:.1f} times as cheap, and off by {100 * row.difference_error:.0f}% of the tangent in a random direction."
)

# %% [markdown]
# That is the network alone (`benchmarks/jacobian.py`). The networks of this book lie in memory channels last, where torch's group norm has no forward-mode derivative, so the tangent is of a copy in the usual order. An inexact Jacobian makes a step a little
# worse, not the result: a step that does not lower the error is not taken.
#
# ## A fit


# %% tags=["hide-input"]
crafted = () if small else learned.HANDCRAFTED  # at smoke none: its grid would have to be chosen
rows = learned.compare(run, {checkpoint: [*crafted, "start", *VARIANTS]}, [NFE])
solvers = {method: fits.fit(run, checkpoint, method, NFE) for method in VARIANTS}
tables = {method: table for method, table in solvers.items() if isinstance(table, Tableau)}  # one for all images
print(f"{len(rows)} solvers of {NFE} calls measured on {p.images:,} samples")

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "gauss-newton-fit", "caption": "Left: the cost on the held-back seeds against the iteration, divided by that of the usual start, for the fits that compare the same and differ in where they start, what may move, or whether the way counts too; the circle is the solver that is returned. A rise is overfitting, which the held-back seeds see. Right: the levels of the usual fit, before and after; the hollow mark is where the analytical first step begins."}}
OTHER = ("residual=", "images=", "bias=", "limit=")  # another cost: not comparable
SAME = [m for m in tables if not any(option in m for option in OTHER)]
figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), width_ratios=[3, 2])
for k, method in enumerate(SAME):
    cost = np.array(tables[method].metadata["cost"]) / tables[USUAL].metadata["cost"][0]
    best = int(cost.argmin())
    left.plot(cost, color=f"C{k}", label=VARIANTS[method], linewidth=2.5 if method == USUAL else 1.2)
    left.plot(best, cost[best], "o", color=f"C{k}", markerfacecolor="white", zorder=5)
left.set(xlabel="iteration", ylabel="cost / cost of the usual start", yscale="log")
plots.plain_ticks(left.yaxis)
left.legend(fontsize=7, loc="upper right", ncols=2)
before, after = fits.initial_solver(run, checkpoint, USUAL, NFE)[0], tables[USUAL]
for y, (table, look) in enumerate(((before, dict(color="grey")), (after, dict(color="C0")))):
    right.plot(table.sigmas[:NFE], [y] * NFE, "o", markersize=9, **look)
    right.plot(table.sigmas_in, [y - 0.12] * NFE, "^", markersize=6, **look)
    right.plot(run.model(checkpoint).sigma_max, y, "o", markerfacecolor="white", markersize=9, **look)
right.set(xscale="log", xlabel=r"$\sigma$ (triangles: told to the network)", ylim=(-0.5, 1.5))
right.xaxis.set_major_formatter(plt.FuncFormatter(lambda v, _: f"{v:g}"))
right.set_yticks([0, 1], ["before", "after"])
plt.show()

# %% [markdown]
# Its numbers, before and after: the parts of each row (of the starting output, then of the calls), the levels, and the levels told over the levels.

# %% tags=["hide-input"]
space, listed = distillation.Space(before, first_level=True), []
names = {"weight": "part", "level": "level", "level_in": "level told / level"}
for row in range(NFE):
    parts = zip(before.normalised_weights[row].tolist(), after.normalised_weights[row].tolist(), strict=True)
    listed += [
        {"call": row + 1, "number": f"part of output {j - 1}" if j else "part of D = 0", "before": f"{a:.3f}", "after": f"{b:.3f}"}
        for j, (a, b) in enumerate(parts)
        if j <= row + 1
    ]  # fmt: skip
    for label, a, b in (
        ("level", before.sigmas[row], after.sigmas[row]),
        ("level told / level", before.sigmas_in[row] / before.sigmas[row], after.sigmas_in[row] / after.sigmas[row]),
    ):
        listed.append({"call": row + 1, "number": label, "before": f"{float(a):.3f}", "after": f"{float(b):.3f}"})
plots.listing(pd.DataFrame(listed))

# %% tags=["nbval-check-output", "hide-input"]
for method, table in tables.items():
    falls = bool((table.sigmas.diff() < 0).all())
    lower = min(table.metadata["cost"]) < table.metadata["cost"][0]
    print(f"{VARIANTS[method]}: levels fall: {falls}; the cost on held-back seeds fell: {lower}")

# %% [markdown]
# ## What helped and what did not
#
# One change at a time, and what it does to the three distances.

# %% tags=["hide-input"] mystnb={"figure": {"name": "gauss-newton-variants", "caption": "Each variant of the fit at three calls, divided by the usual one (dotted line): Fréchet distance in classifier features (not FID) to the samples of the long run (filled) and to the data (open), and RMSE to the long run's images (square). To the right: worse."}}
measures = {"fd_reference": "FD to the long run", "fd_data": "FD to the data", "rmse": "RMSE"}
results = rows.assign(variant=rows.method.map(VARIANTS | {"start": "the start, not fitted"}))
if not small:
    crafted = results[results.method.isin(learned.HANDCRAFTED)]
    crafted = crafted.loc[[crafted.fd_reference.idxmin()]]
    crafted = crafted.assign(variant=[f"best handcrafted: {m}, {g} grid" for m, g in zip(crafted.method, crafted.grid, strict=True)])  # fmt: skip
    results = pd.concat([results, crafted])
order = [*VARIANTS.values(), "the start, not fitted", *([] if small else crafted.variant)]
values = results.dropna(subset="variant").set_index("variant").loc[order]
ratios = values[list(measures)] / values.loc["as usual", list(measures)]
figure, ax = plt.subplots(figsize=(9, 1.2 + 0.34 * len(order)))
LOOKS = {
    "fd_reference": dict(marker="o", color="C0"),
    "fd_data": dict(marker="o", color="C0", markerfacecolor="white", markeredgewidth=1.6),
    "rmse": dict(marker="s", color="C1"),
}
for column, look in LOOKS.items():
    ax.plot(ratios[column], range(len(order)), linestyle="", markersize=8, label=measures[column], **look)
ax.axvline(1, color="grey", linestyle=":")
ax.set(xscale="log", xlabel="distance / that of the usual fit")
ax.set_yticks(range(len(order)), order)
ax.invert_yaxis()
plots.plain_ticks(ax.xaxis)
ax.legend(loc="best", fontsize=9)
plt.show()

# %% tags=["hide-input"]
listed = values.reset_index()[["variant"]].assign(**{label: values[column].map("{:.3f}".format).to_numpy() for column, label in measures.items()})  # fmt: skip
listed["FD to the long run / usual"] = ratios.fd_reference.map("{:.2f}".format).to_numpy()
listed["evaluations of the fit"] = values.evaluations.map(lambda v: f"{v:,}" if v else "").to_numpy()
listed["seconds"] = values.seconds.map(lambda v: f"{v:.0f}" if v else "").to_numpy()
plots.listing(listed)

# %% tags=["hide-input"]
for column, label in measures.items():
    changed = ratios[column].loc[list(VARIANTS.values())[1:]]
    say = lambda part: "; ".join(f"{k} {v:.2f}" for k, v in part.sort_values(ascending=False).items()) or "none"  # noqa: E731
    print(
        f"{label}, over the usual fit's. Worse: {say(changed[changed > 1.05])}. Better: {say(changed[changed < 0.95])}."
    )
gain = ratios.loc["the start, not fitted"]
print(
    f"The usual fit divides the start's FD to the long run by {gain.fd_reference:.1f}, its FD to the data by {gain.fd_data:.1f} and its RMSE by {gain.rmse:.1f}."
)
if not small:
    gain = ratios.loc[order[-1]]
    print(f"The {order[-1]}: {gain.fd_reference:.1f}, {gain.fd_data:.1f} and {gain.rmse:.1f} times the usual fit's.")

# %% [markdown]
# ## Agreement
#
# From the committed run (`results/learned.standard.csv`: three calls on the data-predicting network, 5,000 samples, one block of seeds, fits on 191 seeds). There is no claim of a paper to agree with.
#
# - **The fit.** A solver of three calls has 12 numbers, and a Jacobian takes 19 calls an image in place of 39. The usual fit divides the start's distance to the long run by 16.2, that to the data by 5.1 and the RMSE by 1.2.
#   The best handcrafted solver of three calls, DEIS on the grid uniform in time, is 14.2, 5.0 and 1.5 times as far. All this takes 47,438 network evaluations (of one image each), the teacher's included: a tenth of what DLMS trains with, as its budget says (`dode.distillation.problem.BUDGET`).
#   Forward mode would cost four to five times a forward pass where a difference costs one; it is not worth it here.
# - **What is looked at** is worth most. Of images that are not clipped the fit ends 2.68 times as far: a few steps leave black at -1.1 as easily as at -0.9, no file shows the first, and a fit that is to undo both spends its few numbers on it.
#   Through the observer's eyes alone (with pixels) it ends at 1.06, through random features alone, without any classifier, at 1.68.
# - **Seeds.** With 32 in place of 191: 1.99, for 4,600 evaluations.
# - **What errors count.** The mean error not weighed: 1.39. The states on the way minded too: 1.10. Each image's error bounded: 1.32; that is for fits of fewer than 128 images, where one can be half of the error.
# - **Where it begins.** At DPM-Solver++(3M): 1.16. Without the analytical first step: 1.70. At its own fit of two calls: 1.12, of four: 1.32. At GITS, whose grid was made by dynamic programming for another solver: 2.17. So continuation from another number of calls is no gain.
# - **A designer on top**, trained as DLMS is: 2.21. Its losses hold each step to the teacher's path, which the fit had left on purpose.
# - **How sure this is.** One fit each, on one block. The same recipe with 176 seeds in place of 191, on the noise-predicting network, ends at 0.89 of the distance: differences of a fifth mean little. And clipping, the observer and the weight of the mean were chosen after some twenty
#   trials with these very distances in view; [other blocks of seeds](carried) say what remains of the gain.
# - **The price**: RMSE is taken of images as the solver leaves them, not clipped, and the fit lets go of what lies beyond black and white.

# %% tags=["hide-input"]
live = experiments.Live("gauss_newton", p, where)
if live.active:
    row = rows.query("method == @USUAL").iloc[0]
    live.check(row, learned.learned, "fd_reference", p.again)  # as committed
    live.check(rows.query("method == 'gauss-newton:images=32'").iloc[0], learned.learned, "fd_reference")  # fitted now
live.show()

# %% tags=["remove-input"]
plots.provenance(experiments.origin(rows))
