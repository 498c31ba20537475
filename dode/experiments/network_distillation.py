"""What solver distillation is compared with: distilling the network itself (the D-ODE paper's Table 1).

*Progressive distillation* (Salimans and Ho, ICLR 2022): a student network learns to take two of its teacher's
DDIM steps in one, becomes the teacher, and so on; each round halves the steps.  *Consistency distillation*
(Song et al., ICML 2023): the network learns to give the same clean image at both ends of a teacher's step, so
that one call goes the whole way.  Both start from the teacher's weights, and store students that
:func:`dode.load` reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dode import zoo
from dode.denoisers import ConsistencyPrediction, EDMPrediction, NetworkDenoiser, expand
from dode.schedules import karras
from dode.training import Training, describe, prediction_loss
from dode.utils.environment import has_bf16
from dode.utils.files import load_tensors
from dode.utils.optimisation import BACKWARD, Loss, Run
from dode.zoo import datasets

# Of the network for an image and step: the teacher's two, the student's own, its gradient, consistency's target.
PASSES = {"progressive": 2 + 1 + BACKWARD, "consistency": 2 + 1 + BACKWARD + 1}


@dataclass(frozen=True)
class Student:
    """A distilled network on disk."""

    file: Path
    nfe: int  # what it is made for
    seconds: float  # of all training up to it
    evaluations: int  # in that: images times forward passes, a backward pass as two


def ddim_step(x: Tensor, estimate: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """From ``sigma`` to ``to`` (each ``(B,)``) with the clean image estimated as ``estimate``."""
    ratio = expand(to / sigma, x)
    return ratio * x + (1 - ratio) * estimate


@torch.no_grad()
def two_steps_in_one(teacher: NetworkDenoiser, x: Tensor, sigma: Tensor, middle: Tensor, to: Tensor) -> Tensor:
    """The estimate at ``sigma`` with which one DDIM step ends where the teacher's two end (PD, eq. 8)."""
    half = ddim_step(x, teacher(x, sigma), sigma, middle)
    end = ddim_step(half, teacher(half, middle), middle, to)
    ratio = expand(to / sigma, x)
    return (end - ratio * x) / (1 - ratio)


@torch.no_grad()
def heun_step(teacher: NetworkDenoiser, x: Tensor, sigma: Tensor, to: Tensor) -> Tensor:
    """One step of Heun's method along ``dx/dsigma = (x - D) / sigma``; levels ``(B,)``, ``to`` above zero."""
    slope = (x - teacher(x, sigma)) / expand(sigma, x)
    guess = x + expand(to - sigma, x) * slope
    return x + expand(to - sigma, x) * (slope + (guess - teacher(guess, to)) / expand(to, x)) / 2


def _noised(images: Tensor, levels: Tensor, recipe: Training, device: torch.device, g: torch.Generator) -> Any:
    """A batch at random levels: ``x``, its level and the index of that level."""
    x0 = datasets.to_signal(images[torch.randint(len(images), (recipe.batch,), generator=g)]).to(device)
    index = torch.randint(len(levels), (recipe.batch,), generator=g)
    noise = torch.randn(x0.shape, generator=g).to(device)
    sigma = levels[index].to(device)
    return x0 + expand(sigma, x0) * noise, sigma, index


def progressive_loss(
    student: NetworkDenoiser, teacher: NetworkDenoiser, grid: Tensor, images: Tensor, recipe: Training
) -> Loss:
    """One round: ``grid`` ``(2 N + 1,)`` is the teacher's, the student keeps every other level.

    The raw output's squared error is the loss of the clean image with the weight "SNR + 1" of the paper.
    """

    def loss(generator: torch.Generator) -> Tensor:
        x, sigma, k = _noised(images, grid[:-1:2], recipe, student.device, generator)
        middle, to = (grid[2 * k + j].to(x.device) for j in (1, 2))
        return prediction_loss(student, x, sigma, two_steps_in_one(teacher, x, sigma, middle, to))

    return loss


def consistency_loss(
    student: NetworkDenoiser, teacher: NetworkDenoiser, grid: Tensor, images: Tensor, recipe: Training
) -> Loss:
    """Neighbouring levels of ``grid`` (which ends above zero) give one clean image; the target has no gradient.

    The distance is the squared one, weighted by ``1 / c_out^2`` as EDM weights its own, where the paper's weight is
    constant: so the upper levels do not drown the lowest, from which all others learn.  (Its LPIPS needs a network
    of natural images.)
    """

    def loss(generator: torch.Generator) -> Tensor:
        x, sigma, k = _noised(images, grid[:-1], recipe, student.device, generator)
        to = grid[k + 1].to(x.device)
        with torch.no_grad():
            target = student(heun_step(teacher, x, sigma, to), to)
        return prediction_loss(student, x, sigma, target)

    return loss


def progressive_grid(denoiser: NetworkDenoiser, nfe: int, first: int = 64) -> Tensor:
    """The ``(nfe + 1,)`` levels that a student of ``nfe`` steps was made for: Karras's ``first``, halved and halved."""
    if nfe < 1 or first % nfe:
        raise ValueError(f"{first} steps cannot be halved down to {nfe}")
    return karras(first, denoiser.sigma_min, denoiser.sigma_max, final="zero")[:: first // nfe]


def _recipe(name: str, steps: int, batch: int, rate: float, ema: float, device: str) -> Training:
    warmup = max(1, steps // 20)
    return Training(name, steps, batch, rate, warmup, ema, bf16=has_bf16(device), save_every=50)


def _pair(
    teacher: str, recipe: Training, device: str, wrapper: type[EDMPrediction] = EDMPrediction
) -> tuple[EDMPrediction, NetworkDenoiser]:
    """A student, the copy of a data-predicting denoiser whose network can learn, and the teacher, which stays."""
    found, guide = (zoo.load_denoiser(teacher, device) for _ in range(2))
    if not isinstance(found, EDMPrediction):
        raise ValueError(f"{teacher} does not predict data with EDM's preconditioning; take fashion-mnist-data")
    assert isinstance(found.network, nn.Module)
    found.network.requires_grad_(True).train()
    student = wrapper(found.network, found.shape, found.schedule, sigma_data=found.sigma_data, name=found.name)
    student.images = guide.images
    student.autocast = guide.autocast = torch.bfloat16 if recipe.bf16 else None
    return student, guide


def _students(
    recipe: Training, student: EDMPrediction, loss: Loss, files: Mapping[int, Path], start: Student, method: str
) -> Iterator[Student]:
    """The student after each number of steps in ``files``: of an earlier run of the same recipe, or trained now.

    ``start`` is the student of no steps, with what it cost.
    """
    known = datasets.DATA_SETS.get(student.images.evaluators)
    run = Run(recipe, student.network, next(iter(files.values())).parent)  # type: ignore[arg-type]
    for steps, file in files.items():
        if file.is_file():
            facts = load_tensors(file, "network")[1]
            recipe.check(file, facts["recipe"])
        else:
            run.train(loss, until=steps)
            spent = start.evaluations + steps * recipe.batch * PASSES[method]
            facts = dict(method=method, nfe=start.nfe, seconds=start.seconds + run.seconds, evaluations=spent)
            facts["data"] = known.source if known else ""
            run.publish(file, describe(student) | facts)
        yield Student(file, facts["nfe"], facts["seconds"], facts["evaluations"])
    if run.state_file:
        run.state_file.unlink(missing_ok=True)


def progressive(
    teacher: str, images: Tensor, folder: Path, steps: int, device: str = "cpu", first: int = 64, batch: int = 128
) -> Iterator[Student]:
    """Students of ``first / 2``, ``first / 4``, ..., 1 DDIM steps on Karras's grid, as each is ready.

    ``teacher`` is a data-predicting checkpoint's name or file, ``images`` ``(N, C, H, W)`` uint8 to train on, ``steps``
    Adam's in each round; ``folder`` keeps the students and the state of an unfinished round, from which the same call
    goes on.
    """
    found = Student(Path(teacher), first, 0.0, 0)
    while found.nfe > 1:
        start = replace(found, nfe=found.nfe // 2)
        recipe = _recipe(f"{Path(teacher).stem}-progressive-{start.nfe}", steps, batch, 5e-4, 0.99, device)
        student, guide = _pair(str(found.file), recipe, device)
        loss = progressive_loss(student, guide, progressive_grid(guide, found.nfe, first), images, recipe)
        files = {steps: folder / f"{recipe.name}.safetensors"}
        (found,) = _students(recipe, student, loss, files, start, "progressive")
        yield found


def consistency(
    teacher: str,
    images: Tensor,
    folder: Path,
    stops: list[int],
    device: str = "cpu",
    levels: int = 18,
    batch: int = 128,
) -> Iterator[Student]:
    """The student after each number of Adam's steps in ``stops``, on a Karras grid of ``levels`` levels.

    The other arguments are those of :func:`progressive`.  A student draws with :func:`consistency_sample`.
    """
    recipe = _recipe(f"{Path(teacher).stem}-consistency", stops[-1], batch, 4e-4, 0.995, device)
    student, guide = _pair(teacher, recipe, device, ConsistencyPrediction)
    grid = karras(levels - 1, guide.sigma_min, guide.sigma_max)
    loss = consistency_loss(student, guide, grid, images, recipe)
    files = {stop: folder / f"{recipe.name}-{stop}.safetensors" for stop in stops}
    yield from _students(recipe, student, loss, files, Student(Path(teacher), 1, 0.0, 0), "consistency")


@torch.no_grad()
def consistency_sample(denoiser: NetworkDenoiser, noise: Tensor, again: Sequence[tuple[float, Tensor]] = ()) -> Tensor:
    """One call from the top level, and one for each ``(sigma, fresh unit noise)`` of ``again`` (CM, algorithm 1).

    ``noise`` is ``(B, *shape)`` of unit variance; images in -1..1 come back.
    """
    x = denoiser(noise * denoiser.sigma_max, denoiser.sigma_max)
    for sigma, fresh in again:
        up = (sigma**2 - denoiser.sigma_min**2) ** 0.5
        x = denoiser(x + up * fresh, sigma)
    return x
