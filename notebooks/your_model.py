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
# A solver is distilled for one network, and the network can be yours. This page trains one from nothing, a small one for points in the plane, wraps it in one line and distils two solvers for it; then it does the same
# for a pipeline of diffusers. What it needs of a model is a function of a noisy sample and a noise level.

# %% tags=["parameters"]
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
print(
    f"{sum(v.numel() for v in model.network.parameters()):,} parameters, {steps:,} steps, last loss {loss.item():.2f}"
)

# %% [markdown]
# ## Two solvers for it
#
# Both start from Adams-Bashforth in $\ln \sigma$ with four calls. D-ODE fits one number a step, each step for itself; the Gauss-Newton solver moves all numbers of the table at once, so that the last point is right.

# %%
calls, fit_noise = 4, dode.initial_noise(model.shape, range(256), device=model.device)
plain = solvers.deis(model.grid, nfe=calls, variable="log_rho", basis="data")
d_ode = dode.distillation.d_ode(model, plain, fit_noise)
fitted = distillation.gauss_newton(model, plain, fit_noise)

# %% [markdown]
# Held-out noise, and the same network with a hundred times the calls for the truth:

# %% tags=["hide-input", "thumbnail"] mystnb={"figure": {"name": "your-model", "caption": "Points drawn by one network of two dimensions: with 400 calls, and with four calls by a plain solver, its D- version and its Gauss-Newton solver, from the same noise. Colour: the angle of the noise, so that a point can be followed from panel to panel. RMSE to the points of 400 calls."}}
noise = dode.initial_noise(model.shape, range(10_000, 10_000 + count), device=model.device)
truth = dode.sample(model, solvers.dpm_solver_pp(model.grid, nfe=400, order=2), noise).cpu()
drawn = {"plain": plain, "D-ODE": d_ode, "Gauss-Newton": fitted}
points = {name: dode.sample(model, table, noise).cpu() for name, table in drawn.items()}
colour = torch.atan2(noise[:, 1], noise[:, 0]).cpu()
figure, axes = plt.subplots(1, 4, figsize=(11, 3.1), sharex=True, sharey=True)
for ax, (name, found) in zip(axes, {"400 calls": truth, **points}.items(), strict=True):
    ax.scatter(found[:, 0], found[:, 1], s=2, c=colour, cmap="twilight")
    far = "" if name == "400 calls" else f", RMSE {rmse(found, truth):.3f}"
    ax.set(title=name + far, xlim=(-1.3, 1.3), ylim=(-1.3, 1.3), aspect="equal")
plt.show()

# %% tags=["nbval-check-output", "hide-input"]
errors = {name: rmse(found, truth) for name, found in points.items()}
print("nearest to 400 calls:", min(errors, key=errors.get))

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
# is distilled in the latent space; Flux's, too, whose pipeline carries latents packed and whose network is told its guidance. A table goes back into the pipeline as its scheduler. The pipeline below is a tiny one with random weights, made on the spot, so that the page needs nothing from anywhere; with a model from a hub the same lines do.

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
    "calls",
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
# `--prompt`, `--class-label` and `--guidance-scale` say what the pipeline is told. {doc}`papers_scale` has the checkpoints of the papers.

# %% [markdown]
# ## Which method
#
# - **D-ODE** needs no choice and no budget: one run of a teacher, a division a step. It helps most where a solver is of low order and steps are few.
# - **The Gauss-Newton solver** is worth its price where calls are few. Its residual is pixels unless you give another: `residual=distillation.features(network)` with a classifier of your domain, `distillation.stack` for several. For large latents begin with fewer noises, and look at
#   the cost on the held-back ones (`metadata["cost"]`).
# - **DLMS** (`distillation.DLMS`, `--method dlms`) designs a table for each image from the U-Net's bottleneck; it trains longer ([DLMS](dlms)).
