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
# # Your own model
#
# ```{admonition} In short
# Asked: how do I distil a solver for my own network? Wrap the network in one line, call a distiller, and sample with what comes back. The network is not changed.
# ```
#
# For a network that predicts noise on a discrete VP chain the whole of it is:
#
#     import dode
#     from dode import distillation, solvers
#     from dode.denoisers import NoisePrediction        # DataPrediction, VPrediction, FlowPrediction, EDMPrediction
#
#     model = NoisePrediction(network, (3, 32, 32), dode.schedules.VPDiscrete())
#     noise = dode.initial_noise(model.shape, range(128))
#     start = solvers.deis(model.grid, nfe=5, variable="log_rho", basis="data")
#     solver = distillation.gauss_newton(model, start, noise)
#     images = dode.sample(model, solver, dode.initial_noise(model.shape, range(1000, 1064)))
#
# ## Which method
#
# | method | what it costs | what it needs | when |
# |---|---|---|---|
# | `d_ode` | a run of a teacher and one least-squares number a step | nothing; its teacher, images and alignment are [choices](ablations) | a first try; DDIM gains most surely, from 5 evaluations on ([Limitations](limits)) |
# | `gauss_newton` | 16,000 network evaluations for each of the solver's | a loss of final images; pixels if you give none | 3 to 10 evaluations; many solvers are at the floor by 9 or 10 ([The Gauss-Newton solver](gauss_newton)) |
# | `dlms` | some 140,000 evaluations with gradients at NFE 5 | the bottleneck of a U-Net, or `features=False` | a row for each image ([DLMS](dlms)) |
#
# A loss in the features of a classifier of your images is `residual=distillation.features(classifier)`; without one, `distillation.own_features(model)` uses the network itself ([The network as its own critic](own_features)). `gauss_newton` and `dlms` keep back some noise and return the solver that is best there: where `metadata["cost"]` is least at its first entry, it returned the initial solver, and there is no gain.
#
# The rest of this page trains a small network from scratch, for points in the plane, and distils two solvers for it; then it does the same for a pipeline of diffusers.

# %% tags=["parameters", "remove-input"]
preset = "quick"  # smoke, quick, standard or full
checkpoint = None  # not used: this page makes its own network
device = "auto"  # cpu, cuda or auto
seeds = None  # how many points are drawn; None: 2,000, fewer at smoke

# %% tags=["hide-input"]
import itertools
import math
import warnings

import matplotlib.pyplot as plt
import torch
from torch import nn

import dode
from dode import distillation, experiments, solvers
from dode.denoisers import EDMPrediction
from dode.experiments import plots
from dode.metrics import rmse
from dode.schedules import EDM
from dode.training import denoising_loss

plots.style()
warnings.filterwarnings("ignore", message="IProgress not found")  # a progress bar of diffusers that is not shown
p = experiments.preset(preset)
where = experiments.device(device)
torch.set_num_threads(1)  # for so small a network threads only wait for each other
steps = 100 if preset == "smoke" else 2000
count = seeds or (200 if preset == "smoke" else 2000)

# %% [markdown]
# ## A network
#
# Any module that takes a scaled sample `(B, ...)` and a label `(B,)`. This one is a perceptron of three layers.


# %%
class Perceptron(nn.Module):
    """``F(x, label)`` for points in the plane; both enter by sines and cosines too."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.register_buffer("waves", 2.0 ** torch.arange(-2, 4))
        sizes = [2 + 2 * 3 * 6, width, width, width]
        layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.SiLU())]
        self.body = nn.Sequential(*layers, nn.Linear(width, 2))

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        angles = (torch.cat([x, label[:, None]], dim=1)[:, :, None] * self.waves).flatten(1)
        return self.body(torch.cat([x, angles.sin(), angles.cos()], dim=1))


def spiral(count: int, generator: torch.Generator) -> torch.Tensor:
    """``(count, 2)``: two turns, a little blurred."""
    turn = torch.rand(count, generator=generator).sqrt()
    points = torch.stack([(4 * math.pi * turn).cos(), (4 * math.pi * turn).sin()], dim=1) * turn[:, None]
    return points + 0.015 * torch.randn(count, 2, generator=generator)


# %% [markdown]
# ## A denoiser, in one line
#
# The wrapper says what the network predicts: here $D = c_\text{skip}\, x + c_\text{out}\, F(c_\text{in}\, x, \text{label})$ with EDM's coefficients. There is one for noise, for clean data, for $v$ and for flow matching; a function that is $D(x, \sigma)$ already needs none.

# %%
torch.manual_seed(0)
model = EDMPrediction(Perceptron(), (2,), EDM(sigma_min=0.005, sigma_max=20.0), sigma_data=0.5, name="spiral").to(where)

generator = torch.Generator().manual_seed(0)
optimizer = torch.optim.Adam(model.network.parameters(), lr=5e-3)
decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
for _ in range(steps):
    x0, noise = spiral(256, generator), torch.randn(256, 2, generator=generator)
    sigma = (torch.randn(256, generator=generator) * 1.6 - 2).exp().clamp(0.005, 20)
    loss = denoising_loss(model, x0.to(where), sigma.to(where), noise.to(where))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    decay.step()
model.network.eval().requires_grad_(False)
print(f"{sum(v.numel() for v in model.network.parameters()):,} parameters, {steps:,} steps")

# %% [markdown]
# ## Two solvers for it
#
# Both start from Adams-Bashforth in $\ln \sigma$ with 4 evaluations. D-ODE fits one number a step, step by step. The Gauss-Newton solver fits all numbers of the table at once to the last point.

# %%
calls, fit_noise = 4, dode.initial_noise(model.shape, range(256), device=model.device)
plain = solvers.deis(model.grid, nfe=calls, variable="log_rho", basis="data")
d_ode = dode.distillation.d_ode(model, plain, fit_noise)
fitted = distillation.gauss_newton(model, plain, fit_noise)

# %% [markdown]
# Held-out noise; the reference solution has 400 evaluations. DPM-Solver++(2M) stands beside them as a usual baseline:

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "your-model", "caption": "Points drawn by one network from the same noise: the reference solution (400 NFE), and four solvers of 4 NFE. Colour: the angle of the noise, so that a point can be followed from panel to panel. Above each: RMSE to the reference solution."}}
noise = dode.initial_noise(model.shape, range(10_000, 10_000 + count), device=model.device)
truth = dode.sample(model, solvers.dpm_solver_pp(model.grid, nfe=400, order=2), noise).cpu()
multistep = solvers.dpm_solver_pp(model.grid, nfe=calls, order=2)
drawn = {"DPM-Solver++(2M)": multistep, "Adams-Bashforth": plain, "D-ODE": d_ode, "Gauss-Newton": fitted}
points = {name: dode.sample(model, table, noise).cpu() for name, table in drawn.items()}
colour = torch.atan2(noise[:, 1], noise[:, 0]).cpu()
figure, axes = plt.subplots(1, 5, figsize=(13, 3.1), sharex=True, sharey=True)
for ax, (name, found) in zip(axes, {"reference": truth, **points}.items(), strict=True):
    ax.scatter(found[:, 0], found[:, 1], s=2, c=colour, cmap="hsv")
    far = "400 NFE" if name == "reference" else f"RMSE {rmse(found, truth):.3f}"
    ax.set(title=f"{name}\n{far}", xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
plt.show()
print(f"{calls} NFE, n = {count:,} points")

# %% tags=["nbval-check-output", "hide-input"]
errors = {name: rmse(found, truth) for name, found in points.items()}
print("nearest to the reference solution:", min(errors, key=errors.get))

# %% [markdown]
# A solver is saved as numbers, with the network's name, and refuses another network or another shape:

# %%
from pathlib import Path
from tempfile import TemporaryDirectory

with TemporaryDirectory() as folder:
    file = fitted.save(Path(folder) / "spiral-4.safetensors")
    again = dode.Tableau.load(file)
    print(
        f"{file.stat().st_size:,} bytes; the same points: {torch.equal(dode.sample(model, again, noise).cpu(), points['Gauss-Newton'])}"
    )
    try:
        dode.sample(dode.load("fashion-mnist-data"), again, dode.initial_noise((1, 28, 28), range(2)))
    except ValueError as error:
        print("another network:", error)

# %% [markdown]
# ## A pipeline of diffusers
#
# `dode.from_diffusers` makes a denoiser of a pipeline: the U-Net or transformer with its prediction type, its scheduler's noise levels, prompts or labels as conditions, classifier-free guidance in one doubled batch. The autoencoder is left out: the solver
# is distilled in the latent space. Flux (packed latents, embedded guidance) is supported. A table goes back into the pipeline as its scheduler. The pipeline below is a tiny one with random weights, made here, so that the page needs no download; no model of a hub is run in this book.

# %%
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

torch.manual_seed(0)
unet = UNet2DModel(
    sample_size=16, in_channels=3, out_channels=3, block_out_channels=(32, 32), layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
)  # fmt: skip
pipe = DDPMPipeline(unet.to(where), DDPMScheduler())
pipe.set_progress_bar_config(disable=True)

wrapped = dode.from_diffusers(pipe)
table = solvers.dpm_solver_pp(wrapped.grid, nfe=5, order=2)
learned = dode.distillation.d_ode(wrapped, table, dode.initial_noise(wrapped.shape, range(8), device=wrapped.device))
pipe.scheduler = dode.DodeScheduler.from_tableau(learned, pipe.scheduler.config)
images = pipe(batch_size=2, generator=torch.Generator(where).manual_seed(1), output_type="np").images
print(
    wrapped.prediction,
    "prediction,",
    wrapped.shape,
    "|",
    images.shape,
    "in",
    pipe.scheduler.num_inference_steps,
    "evaluations",
)

# %% tags=["nbval-check-output", "hide-input"]
start = torch.randn((2, 3, 16, 16), generator=torch.Generator(where).manual_seed(1), device=where)
same = dode.sample(wrapped, learned, start / pipe.scheduler.init_noise_sigma)
apart = (same.cpu() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy() - images
print("dode.sample and the pipeline draw the same images:", bool(abs(apart).max() < 1e-4))

# %% [markdown]
# The same from the command line, for a folder of `save_pretrained` or a name on the hub:
#
#     python -m dode distill --diffusers FOLDER_OR_NAME --solver dpm_solver_pp --order 2 --nfe 5 --out d.safetensors
#     python -m dode sample --diffusers FOLDER_OR_NAME --solver d.safetensors --seeds 0-15 --out d.png
#
# `--prompt`, `--class-label` and `--guidance-scale` are the conditioning. {doc}`papers_scale` has the checkpoints of the papers.
