"""What is minimised: the papers' denoising losses, and cross-entropy.

A loss takes a generator on the images' device and draws everything from it, so that nothing waits for another device.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode.denoisers import NetworkDenoiser, expand
from dode.schedules import VPDiscrete
from dode.training.recipes import Training
from dode.utils.optimisation import Loss
from dode.zoo import datasets

SHIFT = 2  # pixels by which a classifier's images are shifted at most


def draw_sigma(denoiser: NetworkDenoiser, n: int, generator: torch.Generator) -> Tensor:
    """Training noise levels ``(n,)`` on the generator's device: DDPM's uniform labels, or EDM's ln N(-1.2, 1.2)."""
    device = generator.device
    if isinstance(denoiser.schedule, VPDiscrete):
        labels = torch.randint(denoiser.schedule.steps, (n,), generator=generator, device=device)
        return denoiser.schedule.sigmas_on(device)[labels]
    return (-1.2 + 1.2 * torch.randn(n, generator=generator, dtype=torch.float64, device=device)).exp()


def prediction_loss(
    denoiser: NetworkDenoiser, x: Tensor, sigma: Tensor, estimate: Tensor, given: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Mean squared error of the raw output at ``x`` when ``D(x, sigma)`` ought to be ``estimate``.

    ``given``: the classes of this batch, as in :meth:`~dode.denoisers.NetworkDenoiser.raw`.
    """
    c = denoiser.coefficients(sigma)
    target = (estimate - expand(c.skip, x) * x) / expand(c.out, x)
    return F.mse_loss(denoiser.raw(x, c, given).float(), target)


def denoising_loss(
    denoiser: NetworkDenoiser, x0: Tensor, sigma: Tensor, noise: Tensor, given: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Mean squared error of the raw network output.

    With the target ``(x_0 - c_skip x) / c_out`` this is DDPM's simple loss for noise prediction and
    EDM's weighted loss (``lambda(sigma) = 1 / c_out^2``) for data prediction.
    """
    return prediction_loss(denoiser, x0 + expand(sigma, x0) * noise, sigma, x0, given)


def mirrored(x: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images ``(B, C, H, W)``, drawn, as in a mirror."""
    turned = torch.rand(len(x), 1, 1, 1, generator=generator, device=x.device) < 0.5
    return torch.where(turned, x.flip(3), x)


def denoiser_loss(denoiser: NetworkDenoiser, images: Tensor, labels: Tensor, recipe: Training) -> Loss:
    """The loss of a denoiser on uint8 ``images`` ``(N, C, H, W)`` and, where it is class-conditional, their ``labels``.

    Images, labels and network live on one device.
    """
    denoiser.autocast = torch.bfloat16 if recipe.bf16 else None
    device, classes = images.device, recipe.data.classes if recipe.data.class_conditional else 0

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (recipe.batch,), generator=generator, device=device)
        x0 = datasets.to_signal(images[pick])
        sigma = draw_sigma(denoiser, recipe.batch, generator)
        noise = torch.randn(x0.shape, generator=generator, device=device)
        if recipe.flips:
            x0 = mirrored(x0, generator)
        given = None
        if classes:
            hidden = torch.rand(recipe.batch, generator=generator, device=device) < recipe.drop
            given = dict(classes=torch.where(hidden, classes, labels[pick]))
        return denoising_loss(denoiser, x0, sigma, noise, given)

    return loss


def classifier_loss(model: nn.Module, images: Tensor, labels: Tensor, recipe: Training) -> Loss:
    """Cross-entropy with random shifts of two pixels, and mirrored images where the recipe has them."""
    height, width = images.shape[2:]

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (recipe.batch,), generator=generator, device=images.device)
        x = F.pad(images[pick].float(), (SHIFT,) * 4)
        dy, dx = torch.randint(2 * SHIFT + 1, (2,), generator=generator, device=images.device).tolist()
        x = x[:, :, dy : dy + height, dx : dx + width]
        if recipe.flips:
            x = mirrored(x, generator)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=recipe.bf16):
            scores = model(x)
        return F.cross_entropy(scores.float(), labels[pick], label_smoothing=0.05)

    return loss


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The part of ``images`` (uint8) whose label the classifier ranks first."""
    device = next(model.parameters()).device
    model.eval()
    found = torch.cat([model(part.to(device)).argmax(1).cpu() for part in images.split(500)])
    return float((found == labels).sum()) / len(images)
