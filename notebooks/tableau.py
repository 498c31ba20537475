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
# # The solver is a tableau
#
# ```{admonition} In short
# DDIM, Heun's method, iPNDM and distilled solvers with the same numbers for all images are one object: a basis, a grid
# of noise levels and a triangular matrix of weights. One loop runs them all; written in either basis, four of them agree
# to 1e-10 (n = 32). Stochastic and adaptive solvers, and those with numbers for each image (DLMS), are outside.
# ```
#
# Divide $x$ by $\alpha$; the probability-flow ODE then depends on $\sigma$ alone {cite:p}`karras2022edm`,
#
# $$\frac{\mathrm dx}{\mathrm d\sigma} = \varepsilon(x, \sigma) = \frac{x - D(x, \sigma)}{\sigma},$$
#
# and DDIM {cite:p}`song2021ddim` is Euler's method for it. A solver steps through a grid $\sigma_0 > \dots > \sigma_N$.
# Row $i$ of its **tableau** evaluates the denoiser once, keeps the output $d_i$, and adds a weighted sum of the outputs so far:
#
# | basis | output | next state | row sum |
# |---|---|---|---|
# | noise | $d_i = (x_i - D_i)/\sigma_i$ | $x_{i+1} = x_i + \sum_j W_{ij} d_j$ | $\sigma_{i+1} - \sigma_i$ |
# | data | $d_i = D_i$ | $x_{i+1} = \frac{\sigma_{i+1}}{\sigma_i} x_i + \sum_j W_{ij} d_j$ | $1 - \sigma_{i+1}/\sigma_i$ |
#
# The row sum is the condition of *consistency*: a constant output is integrated exactly. The starting noise $z$ counts as
# an output before the first one. A first step that uses it in place of a network evaluation is the *analytical first step* (AFS).

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist-noise"
device = "auto"  # cpu, cuda or auto
seeds = None  # images behind the measured orders; None: 32

# %% tags=["remove-input"]
import math

import matplotlib.pyplot as plt
import torch

import dode
from dode import experiments, schedules, solvers
from dode.denoisers import MixtureDenoiser
from dode.experiments import plots

plots.style()
p = experiments.preset(preset)
model = dode.load(checkpoint, device=experiments.device(device))
grid = model.grid(5)

# %% [markdown]
# ## Four solvers
#
# Weights as shares of their row: blue goes the way of the step, red against it. DDIM uses the newest output only. iPNDM
# {cite:p}`zhang2023deis` extrapolates from the last four. Heun's method {cite:p}`karras2022edm` has two rows a step:
# the second corrects the first and does not change the noise level.

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "tables", "caption": "Tableaux on a five-step grid; rows are network evaluations (NFE) with the noise levels they lead from and to, columns are the outputs they use. Heun's method needs 9 NFE for five steps."}}
figure, axes = plt.subplots(2, 2, figsize=(10, 7))
learned = experiments.distilled(model, solvers.ddim(grid, basis=model.prediction), p.live.fit_images)
for ax, table, title in [
    (axes[0, 0], solvers.ddim(grid), "DDIM"),
    (axes[0, 1], solvers.ipndm(grid), "iPNDM (order 4)"),
    (axes[1, 0], solvers.heun(grid), "Heun"),
    (axes[1, 1], learned, "D-DDIM, distilled"),
]:
    plots.table(ax, table, title)
plt.show()

# %% [markdown]
# D-DDIM is DDIM with a second diagonal. Eq. (10) of the paper, $O_t = d_t + \lambda_t (d_t - d_{t+1})$, moves weight from
# the previous output to the newest one. In the first row the starting noise stands for the previous output, as in the
# released code. The row sum does not change.
#
# ## The two bases hold the same solvers
#
# Every state is a linear combination of the starting noise and the denoiser's outputs. A tableau can therefore be written
# in the other basis exactly. For any denoiser the states agree up to rounding:

# %% tags=["nbval-check-output"]
mixture = MixtureDenoiser(
    torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]], dtype=torch.float64), torch.tensor([0.3, 0.5, 0.4])
)
noise = dode.initial_noise((2,), range(seeds or 32), dtype=torch.float64)
for table in (solvers.ddim(grid), solvers.ipndm(grid), solvers.heun(grid), learned):
    table = table.unbind()
    other = table.to_basis("data" if table.basis == "noise" else "noise")
    gap = (dode.sample(mixture, table, noise) - dode.sample(mixture, other, noise)).abs().max()
    print(
        f"{table.metadata['solver']:7s} states agree to 1e-10: {bool(gap < 1e-10)}   rows consistent: {table.inconsistency() < 1e-12}"
    )

# %% [markdown]
# ## Orders, measured
#
# For a mixture of Gaussians the denoiser is known exactly. For a method of order $p$, twice as many steps divide the error
# by $2^p$. The weights of iPNDM are those of equal steps. On Karras's grid the steps are not equal, and iPNDM does not
# reach its fourth order: its slope is about 2.5 between 40 and 80 steps, and 2.0 after. [The solver zoo](solver_zoo) separates the grid from the low-order start.

# %% tags=["hide-input"] mystnb={"figure": {"name": "orders", "caption": "Error against network evaluations (NFE) on a mixture of three Gaussians (Karras grid, 20 to 0.01, float64), n = 32 points; lower is better. The slope is that of the last two points; dotted: slopes 1, 2 and 4."}}
steps = [20, 40, 80, 160] if preset != "smoke" else [20, 40, 80]
karras = lambda n: schedules.karras(n, 0.01, 20.0)  # noqa: E731
reference = dode.sample(mixture, solvers.heun(karras(1500)), noise)
figure, ax = plt.subplots(figsize=(6, 4))
slopes = {}
for name, make in (("ddim", solvers.ddim), ("heun", solvers.heun), ("ipndm", solvers.ipndm)):
    errors = [float((dode.sample(mixture, make(karras(n)), noise) - reference).square().mean().sqrt()) for n in steps]
    slopes[name] = math.log2(errors[-2] / errors[-1])
    ax.plot(
        [make(karras(n)).nfe for n in steps],
        errors,
        color=plots.COLOURS[name],
        marker=plots.MARKERS[name],
        label=f"{plots.NAMES[name]}: slope {slopes[name]:.2f}",
    )
for order in (1, 2, 4):
    ax.plot([steps[0], steps[-1]], [2e-2, 2e-2 * (steps[0] / steps[-1]) ** order], color="0.7", linestyle=":", zorder=0)
ax.set(xscale="log", yscale="log", xlabel="NFE", ylabel="RMSE to Heun at 1500 steps")
ax.set_xticks([*steps, 2 * steps[-1]], [str(n) for n in [*steps, 2 * steps[-1]]])
ax.minorticks_off()
ax.legend()
plt.show()

# %% tags=["nbval-check-output"]
for name, slope in slopes.items():
    print(f"{name:6s} measured order {slope:.2f}")

# %% tags=["remove-input"]
plots.provenance(dict(preset=preset, checkpoint=checkpoint, **experiments.provenance(experiments.device(device))))
