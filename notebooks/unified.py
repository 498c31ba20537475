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
# # One formula

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = "fashion-mnist"  # a data set, all, or one name
device = "auto"  # cpu, cuda or auto
seeds = None  # how many images; None: 4, or 1 at smoke

# %% tags=["hide-input"]
import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

import dode
from dode import distillation, experiments, schedules, solvers
from dode.denoisers import MixtureDenoiser
from dode.experiments import plots

plots.style()
experiments.preset(preset)
where = experiments.device(device)
names = experiments.checkpoints(checkpoint)
count = seeds or {"smoke": 1}.get(preset, 4)

# %% [markdown]
# ```{admonition} In short
# Asked: are DDIM, DPM-Solver++(2M, 3M), DEIS, UniPC-3, iPNDM and D-DDIM one formula with different weights? They are, in two bases: a loop of a dozen lines that is given only their weights agrees with `dode.sample` to rounding (15 tables, NFE 5, four seeds: 6e-15 in float64, 1.2e-4 on networks in float32). Heun's method and PNDM's warm-up are outside.
# ```
#
# DLMS writes the linear multistep solvers of diffusion models as one formula and learns its coefficients, time steps and time scaling {cite:p}`liang2025lms`. The abstract says so; the equations are known second-hand, from an independent reimplementation that numbers them (8) and (9). With $x_t = \alpha_t x_0 + \sigma_t \varepsilon$, times $t_0 > t_1 > \dots > t_N$, and $h_n$ the step in $\ln(\alpha/\sigma)$:
#
# $$\begin{aligned}
# \bar D_n &= \sum_{k=1}^{\min(n,p)} a_k^{(n)}\, x_\theta(x_{n-k},\, s_{n-k} t_{n-k}), \qquad \sum_k a_k^{(n)} = 1, \\
# x_n &= \frac{\sigma_n}{\sigma_{n-1}} x_{n-1} - \alpha_n (e^{-h_n} - 1)\, \bar D_n .
# \end{aligned}$$
#
# ## Normalised weights
#
# In the coordinates $x/\alpha$ of [the tableau](tableau), with $t = \sigma/\alpha$, eq. (9) is row $i = n - 1$ of a tableau in the data basis: $x_n = \frac{t_n}{t_{n-1}} x_{n-1} + \left(1 - \frac{t_n}{t_{n-1}}\right) \bar D_n$.
# The bracket is the row sum, and $a_k^{(n)}$ is the weight on the $k$-th newest output over the row sum. `Tableau.normalised_weights` holds these quotients, below for DPM-Solver++(2M); its first column belongs to the starting noise $z$. `Tableau.sigmas_in` holds $s_n t_n$, the noise level passed to the
# network. In the noise basis the same parts average noise estimates, and $x_n = x_{n-1} + (t_n - t_{n-1})\, \bar\varepsilon_n$: the same formula for noise predictions.

# %% tags=["nbval-check-output"]
grid = schedules.karras(5, 0.002, 80.0)
table = solvers.dpm_solver_pp(grid, order=2, lower_order_final=False)
print(table.normalised_weights.numpy().round(3) + 0.0)  # z, D_0, D_1, ...
print("rows sum to one:", bool((table.normalised_weights.sum(1) - 1).abs().max() < 1e-12))

# %% [markdown]
# ## The formula in a dozen lines
#
# `alpha` is the only trace of the noise schedule: a function for a variance-preserving chain, and 1 for EDM {cite:p}`karras2022edm`. The state is the paper's $x$. (A denoiser of `dode` takes $x/\alpha$ and a level. A network of a
# variance-preserving chain gets it times the $\alpha$ of the level that is passed to it.)


# %%
def formula(network, a, t, s, alpha, x, basis):
    """From x at t[0] to x at t[-1]; a[n - 1] are the a_k of step n."""
    alpha, h, outputs = alpha(t), torch.log(t.roll(1) / t), []
    sigma = alpha * t
    for n in range(1, len(t)):
        D = network(x / alpha[n - 1], s[n - 1] * t[n - 1])
        epsilon = (x - alpha[n - 1] * D) / sigma[n - 1]
        outputs = [D if basis == "data" else epsilon, *outputs]
        mean = sum(map(torch.mul, a[n - 1], outputs))  # (8)
        if basis == "data":
            ratio = sigma[n] / sigma[n - 1]
            x = ratio * x - alpha[n] * torch.expm1(-h[n]) * mean  # (9)
        else:
            x = alpha[n] * (x / alpha[n - 1] + (t[n] - t[n - 1]) * mean)
    return x


# %% [markdown]
# It is given the normalised weights of each solver and nothing else of it. DPM-Solver++ {cite:p}`lu2022dpmsolverpp`, UniPC {cite:p}`zhao2023unipc`, iPNDM and DEIS {cite:p}`zhang2023deis` are members.
# So is UniPC's corrector: it adds one more output to the average, so UniPC-3 has $p = 4$.
# D-DDIM, the distilled solver of the first paper {cite:p}`kim2024dode`, is a member with $p = 2$. In the last row $a$ and $s$ are drawn at random, as a test of the formula alone: the two loops agree on all of them. They run on a mixture of three points in the plane in float64, and on the networks in float32.


# %% tags=["hide-input"]
def members(grid):
    """The members in a fixed order, each a table on ``grid``."""
    full = dict(lower_order_final=False)
    vp = schedules.VPContinuous()  # whose time DEIS's polynomials live in
    return {
        "DDIM": solvers.ddim(grid, basis="data"),
        "DPM-Solver++(2M)": solvers.dpm_solver_pp(grid, order=2, **full),
        "DPM-Solver++(3M)": solvers.dpm_solver_pp(grid, order=3, **full),
        "DEIS on clean images, 3": solvers.deis(grid, order=3, variable="log_rho", basis="data"),
        "UniP-3": solvers.unipc(grid, order=3, corrector=False, **full),
        "UniPC-3": solvers.unipc(grid, order=3, **full),
        "DDIM on noise estimates": solvers.ddim(grid),
        "iPNDM-2": solvers.ipndm(grid, order=2),
        "iPNDM-3": solvers.ipndm(grid, order=3),
        "iPNDM-4": solvers.ipndm(grid, order=4),
        "DEIS tAB2": solvers.deis(grid, order=3, schedule=vp),
        "DEIS tAB3": solvers.deis(grid, order=4, schedule=vp),
        "LMS-4 (rhoAB)": solvers.lms(grid, order=4),
        "D-DDIM, all λ = 0.3": distillation.corrected(solvers.ddim(grid), [0.3] * (len(grid) - 1), first_step="none"),
    }


def coefficients(table):
    """a_1, a_2, ... of each step, up to the last that is not 0."""
    newest_first = [row[1 : n + 1].flip(0) for n, row in enumerate(table.normalised_weights, 1)]
    return [a[: int(a.nonzero().max()) + 1] for a in newest_first]


def window(table):
    """The p of a table: how many of the last outputs its rows use."""
    return max(map(len, coefficients(table)))


def difference(network, table, noise, alpha):
    """The largest between the formula and the package's loop, anywhere in any image."""
    t, s = table.sigmas, table.sigmas_in / table.sigmas[:-1]
    start = alpha(t[0]) * t[0] * noise
    end = formula(network, coefficients(table), t, s, alpha, start, table.basis) / alpha(t[-1])
    return float((end - dode.sample(network, table, noise)).abs().max())


def at_random(grid):
    """No solver: weights that sum to one, and scalings from 0.9 to 1.1, drawn for p = 4."""
    n, draw = len(grid) - 1, np.random.default_rng(0)
    parts = np.tril(np.triu(draw.normal(size=(n, n)), -3)) * 0.5
    parts = parts + np.diag(1 - parts.sum(1))
    start = solvers.ddim(grid, basis="data")
    levels_in = grid[:-1] * torch.from_numpy(draw.uniform(0.9, 1.1, n))
    return dode.Tableau("data", grid, torch.from_numpy(parts) * start.row_sums[:, None], sigmas_in=levels_in)


# %% tags=["hide-input"]
mixture = MixtureDenoiser(
    torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]], dtype=torch.float64), torch.tensor([0.3, 0.5, 0.4])
)
problems = {
    "exact denoiser, float64": (mixture, schedules.VPContinuous(), schedules.karras(5, 0.002, 80.0, final="zero"))
}
for name in names:
    model = dode.load(name, device=where)
    kind = "α = 1" if isinstance(model.schedule, schedules.EDM) else "VP chain"
    problems[f"{name.rsplit('-', 1)[1]} network ({kind}), float32"] = (model, model.schedule, model.grid(5))
columns = {}
for label, (network, schedule, grid) in problems.items():
    dtype = torch.float64 if network is mixture else torch.float32
    noise = dode.initial_noise(network.shape, range(count), dtype=dtype, device=network.device)
    tables = members(grid) | {"a and s at random": at_random(grid)}
    columns |= dict(member=list(tables), basis=[t.basis for t in tables.values()], p=[*map(window, tables.values())])
    columns[label] = [difference(network, t, noise, schedule.alpha) for t in tables.values()]
agreement = pd.DataFrame(columns)
plots.listing(agreement.map(lambda v: f"{v:.1e}" if isinstance(v, float) else v))

# %% [markdown]
# The largest difference of any pixel with NFE 5, on each network's own grid. It is rounding, in both columns of float32 too: the noise network's grid starts at $\sigma = 157$, and
# float32 numbers of the size of its starting noise are 15 to 61 millionths apart.

# %% tags=["nbval-check-output", "hide-input"]
for label, (network, _, _) in problems.items():
    bound = 1e-12 if network is mixture else 1e-3
    print(f"{label}: below {bound:g} for all: {bool((agreement[label] < bound).all())}")

# %% [markdown]
# ## The weights, as their papers write them
#
# Below, $u$ is the step so far in $\ln(\alpha/\sigma)$, $r_0 = h_{n-1}/h_n$, $r_1 = h_{n-2}/h_n$, and $D_j = x_\theta(x_j, t_j)$.
#
# | member | $a_1, a_2, \dots$ of a step of full order |
# |---|---|
# | DDIM | $1$ |
# | DPM-Solver++(2M), UniP-2 | $1 + \frac{1}{2 r_0},\ -\frac{1}{2 r_0}$ |
# | DPM-Solver++(3M) | of $D_{n-1} + \beta D^{(1)} + \gamma D^{(2)}$, with $\beta = \frac{1}{1 - e^{-h}} - \frac1h$ and $\gamma = \frac{1}{2(1 - e^{-h})} - \frac{\beta}{h}$ |
# | DEIS on clean images, UniP-3 | $\sum_k a_k u_k^m = \langle u^m \rangle$ for $m < p$: the mean over the step with weight $e^u$, exact for a parabola through the outputs |
# | UniPC-3 | UniP-3's, and $\frac{t_n}{t_{n-1}} \frac{1 - e^{-h_{n-1}}}{1 - e^{-h_n}}$ times what the corrector changes in the step before: the same mean, through the new output too, less the predictor's |
# | iPNDM | $\frac{3, -1}{2}$; $\frac{23, -16, 5}{12}$; $\frac{55, -59, 37, -9}{24}$ |
# | DEIS tAB | $\sum_k a_k \tau_k^m = \langle \tau^m \rangle$: the mean over $\sigma$ of a polynomial in the network's time $\tau$ |
# | LMS | the same in $\sigma$ itself |
# | D-DDIM | $1 + \lambda,\ -\lambda$ |
#
# In 3M, $D^{(1)} = d_0 + \frac{r_0}{r_0 + r_1}(d_0 - d_1)$ and $D^{(2)} = \frac{d_0 - d_1}{r_0 + r_1}$, where $d_0 = (D_{n-1} - D_{n-2})/r_0$ and $d_1 = (D_{n-2} - D_{n-3})/r_1$.
# The first steps have fewer outputs and take the member of that order. Where UniPC has a line through two outputs, its code takes the middle of the step, $h/2$, for the mean $\langle u \rangle$, as 2M does. The cell
# computes all this from the grid of eight steps alone, without the package's solvers.


# %% tags=["hide-input"]
def weigh(nodes, means):
    """The a_k of the polynomial through outputs at ``nodes``: sum_k a_k u_k^m = <u^m>."""
    return np.linalg.solve(np.vander(nodes, increasing=True).T, means[: len(nodes)])


def closed_forms(grid, lam=0.3):
    """a_1, a_2, ... of every member and step of order min(n, p), from the grid alone; it must not end at 0."""
    t = np.asarray(grid)
    log, h = -np.log(t), np.diff(-np.log(t))  # h[n - 1] is the papers' h_n
    steps = range(1, len(t))
    lines = [[1], [3 / 2, -1 / 2], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]

    def way(n):  # <u^m> over step n under the weight e^u, by parts
        means = [1.0]
        for m in (1, 2, 3):
            means.append(h[n - 1] ** m / -math.expm1(-h[n - 1]) - m * means[-1])
        return means

    def through(n, newest, order):  # step n, a polynomial through the outputs newest, newest - 1, ...
        return weigh(log[newest - np.arange(order)] - log[n - 1], way(n))

    def unip(n, newest, order):  # the same, but for two outputs the middle of the step is taken for its mean
        nodes = log[newest - np.arange(order)] - log[n - 1]
        return weigh(nodes, [1, h[n - 1] / 2] if order == 2 else way(n))

    def dpm(n, order):
        half = h[n - 1] / (2 * h[n - 2])  # 1 / (2 r0)
        if order < 3:
            return [1.0] if order == 1 else [1 + half, -half]
        g, (r1, r0) = -math.expm1(-h[n - 1]), h[n - 3 : n - 1] / h[n - 1]
        newer, older = np.array([1, -1, 0]) / r0, np.array([0, 1, -1]) / r1
        first = newer + r0 / (r0 + r1) * (newer - older)
        second = (newer - older) / (r0 + r1)
        beta = 1 / g - 1 / h[n - 1]
        return np.array([1, 0, 0]) + beta * first + (1 / (2 * g) - beta / h[n - 1]) * second

    def unipc(n):
        a, order = np.zeros(4), min(n, 3)
        a[:order] = unip(n, n - 1, order)
        if n > 1:
            before = min(n - 1, 3)
            share = t[n] / t[n - 1] * math.expm1(-h[n - 2]) / math.expm1(-h[n - 1])
            a[: before + 1] += share * unip(n - 1, n - 1, before + 1)
            a[1 : before + 1] -= share * unip(n - 1, n - 2, before)
        return a[:n]

    def in_sigma(n, order):
        return weigh((t[n - 1 - np.arange(order)] - t[n - 1]) / (t[n] - t[n - 1]), [1 / (m + 1) for m in range(order)])

    def in_time(n, order):  # <tau^m> by Simpson's rule
        time = lambda s: schedules.VPContinuous().label(torch.as_tensor(s)).numpy() / 999  # noqa: E731
        simpson = np.r_[1, np.tile([4, 2], 1000)[:-1], 1] / 6000
        inside = time(np.linspace(t[n - 1], t[n], 2001)) - time(t[n - 1])
        return weigh(time(t[n - 1 - np.arange(order)]) - time(t[n - 1]), [simpson @ inside**m for m in range(order)])

    return {
        "DDIM": [[1.0] for n in steps],
        "DPM-Solver++(2M)": [dpm(n, min(n, 2)) for n in steps],
        "DPM-Solver++(3M)": [dpm(n, min(n, 3)) for n in steps],
        "DEIS on clean images, 3": [through(n, n - 1, min(n, 3)) for n in steps],
        "UniP-3": [unip(n, n - 1, min(n, 3)) for n in steps],
        "UniPC-3": [unipc(n) for n in steps],
        "DDIM on noise estimates": [[1.0] for n in steps],
        **{f"iPNDM-{p}": [lines[min(n, p) - 1] for n in steps] for p in (2, 3, 4)},
        **{f"DEIS tAB{p - 1}": [in_time(n, min(n, p)) for n in steps] for p in (3, 4)},
        "LMS-4 (rhoAB)": [in_sigma(n, min(n, 4)) for n in steps],
        f"D-DDIM, all λ = {lam}": [[1 + lam, -lam][:n] if n > 1 else [1.0] for n in steps],
    }


def gap(a, b):
    """The largest difference between two lists of coefficients."""
    return max(float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(a, b, strict=True))


# %% tags=["hide-input"]
eight = schedules.karras(8, 0.002, 80.0)
tables, forms = members(eight), closed_forms(eight)
checked = pd.DataFrame(
    [
        dict(member=k, basis=v.basis, p=window(v), difference=gap(coefficients(v), forms[k]))
        | {f"a_{j} of the last step": f"{a:.3f}" for j, a in enumerate(forms[k][-1], 1)}
        for k, v in tables.items()
    ]
).fillna("")
plots.listing(checked.assign(difference=checked.difference.map(lambda v: f"{v:.0e}" if v else "0")))

# %% tags=["nbval-check-output", "hide-input"]
print("closed forms and parts differ by less than 1e-11:", bool((checked.difference < 1e-11).all()))

# %% [markdown]
# ## The weights in a picture

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "unified-weights", "caption": "The weights of eight members on one grid (Karras's, from 80 to 0.002, NFE 8): a panel a solver, a line for each of the last four outputs, the newest first. In every step they sum to one. Above: averages of clean images. Below: averages of noise estimates. DDIM, which is not shown, has a₁ = 1 throughout."}}
shown = ["DPM-Solver++(2M)", "DPM-Solver++(3M)", "DEIS on clean images, 3", "UniPC-3"]
shown += ["iPNDM-4", "DEIS tAB2", "DEIS tAB3", "LMS-4 (rhoAB)"]
figure, axes = plt.subplots(2, 4, figsize=(10, 6), sharex=True, sharey=True)
for ax, member in zip(axes.flat, shown, strict=True):
    ax.axhline(0, color="0.5", linewidth=1)
    for k, mark in enumerate("os^D", 1):
        line = [(n, float(a[k - 1])) for n, a in enumerate(coefficients(tables[member]), 1) if len(a) >= k]
        if line:
            ax.plot(
                *zip(*line, strict=True), marker=mark, markersize=6, linewidth=2, color=f"C{k - 1}", label=f"$a_{k}$"
            )
    ax.set_title(f"{member}, p = {window(tables[member])}", fontsize=10)
for row, label in zip(axes, ("data basis\nweight", "noise basis\nweight"), strict=True):
    row[0].set_ylabel(label)
for ax in axes[1]:
    ax.set_xlabel("step n")
    ax.set_xticks(range(1, 9))
handles, labels = axes[0, 3].get_legend_handles_labels()
axes[1, 3].legend(handles, labels, loc="lower center", ncols=2)
plt.show()

# %% [markdown]
# All of them extrapolate: from the second step on, $a_1$ is above one and $a_2$ below zero. iPNDM's lines are flat from the fourth step on, because its weights do not depend on the grid. The others do, differently in the two bases:
# on this grid each step is longer than the last in $\ln(\alpha/\sigma)$, so the weights on clean images grow, and shorter than the last in $\sigma$, so the weights on noise estimates go back to DDIM's. In the last step
# $a_1$ is 3.05 for DEIS on clean images, and 1.11 for LMS-4.
#
# The basis matters: on the data-predicting network with NFE 10 and Karras's grid, DEIS on clean images has an RMSE of 0.202, and DEIS in the logarithm of $\rho$, of noise estimates, 0.045 ([The solver zoo](solver_zoo)). `distillation.Space(table).pack(table)` gives these weights and the noise levels as one vector, which the Gauss-Newton solver fits.
#
# ## What is not in it
#
# **A corrector row.** Heun's corrector keeps $\sigma$ and changes $x$. Its row sum is 0, so it has no normalised weights; PNDM {cite:p}`liu2022pndm` warms up with such a row. Single-step methods whose stages
# go down are members, with each stage a step: DPM-Solver-2 and -3 {cite:p}`lu2022dpmsolver` for noise predictions, DPM-Solver++(2S) and (3S) for clean images. Their weights use no output of an earlier step.

# %% tags=["hide-input"]
karras = lambda n: schedules.karras(n, 0.002, 80.0)  # noqa: E731
single = {
    "Heun": solvers.heun(karras, nfe=8),
    "PNDM, Heun's warm-up": solvers.pndm(karras, nfe=8),
    "DPM-Solver-2": solvers.dpm_solver(karras, nfe=8, order=2),
    "DPM-Solver-3": solvers.dpm_solver(karras, nfe=8, order=3),
    "DPM-Solver++(2S)": solvers.dpm_solver_pp_singlestep(karras, nfe=8, order=2),
    "DPM-Solver++(3S)": solvers.dpm_solver_pp_singlestep(karras, nfe=8, order=3),
}
noise = dode.initial_noise((2,), range(count), dtype=torch.float64)
rows = []
for title, table in single.items():
    stay = int((table.row_sums == 0).sum())
    inside = dict(p="–", difference="–")
    if not stay:
        far = difference(mixture, table, noise, schedules.VPContinuous().alpha)
        inside = dict(p=window(table), difference=f"{far:.0e}")
    rows.append({"solver": title, "basis": table.basis, "NFE": table.nfe, "corrector rows": stay} | inside)
plots.listing(pd.DataFrame(rows))

# %% [markdown]
# **Analytical first step (AFS).** It takes $D_0 = 0$, that is the starting noise for the first noise estimate, and saves an evaluation. That zero has an $a_k$ of its own, and the weights of the evaluations no longer sum to one.
# In a table it is the first column. D-DDIM fitted in the noise basis uses it too, in its first row.

# %% tags=["nbval-check-output"]
saved = solvers.dpm_solver_pp(eight, order=2, afs=True)
zero, call = saved.normalised_weights[0, :2].tolist()
print(f"2M after such a step: {zero:.3f} on D_0 = 0, {call:.3f} on the evaluation")

# %% [markdown]
# **The other basis, with p limited.** Any consistent table can be rewritten in the other basis, so without a limit on $p$ both bases hold the same solvers. The rewritten rows use *all* outputs so far: a noise estimate
# $(x - D)/\sigma$ brings the state $x$ with it, and in $x$ are all outputs before. (They do not use the starting noise.) The weights on the outputs before the last four
# reach from 0.01 for LMS-4 to 601 for DEIS on clean images. So with $p = 4$ and NFE 5 or more the two are different families; with
# four or fewer they are one. DDIM alone has $p = 1$ in both.


# %% tags=["hide-input"]
def used(table):
    """How many outputs each row uses, the starting noise included, rounding left out."""
    return (table.normalised_weights.abs() > 1e-9).sum(1).tolist()


rows = []
for member in ["DDIM", *shown]:
    table = tables[member]
    twin = table.to_basis("data" if table.basis == "noise" else "noise")
    old = twin.normalised_weights[:, 1:].tril(-4).abs().max()
    rows.append({
        "member": member, "its basis": table.basis, "outputs used in step 8": used(table)[-1],
        "in the other basis": used(twin)[-1], "largest weight there on outputs before the last 4": f"{old:.2f}",
    })  # fmt: skip
twins = pd.DataFrame(rows)
plots.listing(twins)

# %% [markdown]
# ## What is learned
#
# DLMS learns everything that the formula leaves open: $a$, the times $t$, and the scalings $s$. A small network, the designer, gives them for each step and image, from the bottleneck of the last evaluation (second-hand; [DLMS](dlms)). These are the numbers of one solver for all images with NFE $N$ and $p = 4$. Each step has $\min(n, 4)$ weights, of which the sum fixes one; both ends of the grid and $s_0 = 1$ are given. An analytical first step adds a step without an evaluation.


# %% tags=["hide-input"]
def numbers(calls, p=4, afs=False):
    """The free weights, times and scalings of the formula."""
    steps = calls + afs
    return dict(weights=sum(min(n, p) - 1 for n in range(1, steps + 1)), times=steps - 1, scalings=steps - 1)


rows = []
for calls in (3, 5, 8, 10):
    plain, start = numbers(calls), solvers.ipndm(schedules.karras(calls, 0.002, 80.0))
    rows.append({
        "NFE": calls, **plain, "together": sum(plain.values()), "with an analytical first step": sum(numbers(calls, afs=True).values()),
        "free in distillation.Space": len(distillation.Space(start).pack(start)), "D-DDIM": calls,
    })  # fmt: skip
counts = pd.DataFrame(rows)
plots.listing(counts)

# %% [markdown]
# NFE 5 has 9 weights, 4 times and 4 scalings: 17 numbers. D-DDIM has one an evaluation. DLMS gives them for each image, by a network of thousands of parameters. `dode.distillation.Space`, in which this package fits, lets the first three rows use the starting noise and frees $s_0$ too: four numbers more.

# %% tags=["remove-input"]
plots.provenance(
    dict(preset=preset, checkpoint=checkpoint, seeds=count, **experiments.provenance(experiments.device(device)))
)
