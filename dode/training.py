"""How the shipped networks were trained: ``python -m dode.training fashion-mnist-noise``.

Every random number of step ``k`` is drawn from a generator seeded by ``(seed, k)``, so a run that
was killed and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import argparse
import csv
import math
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dode import data, metrics
from dode.denoisers import EDMPrediction, NetworkDenoiser, NoisePrediction, expand
from dode.extras import tqdm
from dode.networks import UNet
from dode.schedules import EDM, VPDiscrete, vp_linear
from dode.storage import atomic, load_tensors, save_tensors
from dode.zoo import CLASSIFIERS

BACKWARD = 2  # a backward pass is counted as this many network calls
FASHION_SIGMA_DATA = 0.706  # standard deviation of Fashion-MNIST's training pixels in -1..1


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run."""

    name: str
    steps: int = 6_500
    batch: int = 128
    rate: float = 1.5e-3
    warmup: int = 300
    ema: float = 0.999
    seed: int = 0
    bf16: bool = True
    save_every: int = 500
    flips: bool = False  # a classifier sees half of its images mirrored


def build_denoiser(name: str, network: nn.Module | None = None) -> NetworkDenoiser:
    """The untrained denoiser of a shipped name (or around a given ``network``)."""
    if name == "fashion-mnist-noise":
        net = network or UNet(widths=(32, 64, 128), label_scale=1.0)
        return NoisePrediction(net, (1, 28, 28), vp_linear(), name=name)
    if name == "fashion-mnist-data":
        net = network or UNet(widths=(32, 64, 128), label_scale=250.0)
        return EDMPrediction(net, (1, 28, 28), EDM(), sigma_data=FASHION_SIGMA_DATA, name=name)
    raise ValueError(f"no recipe named {name!r}; known: fashion-mnist-noise, fashion-mnist-data")


def describe(denoiser: NetworkDenoiser) -> dict[str, Any]:
    """What :func:`dode.load` needs to wrap a network again."""
    return dict(
        prediction=denoiser.prediction, wrapper=type(denoiser).__name__, schedule=denoiser.schedule.config,
        shape=list(denoiser.shape), sigma_data=getattr(denoiser, "sigma_data", None),
    )  # fmt: skip


def draw_sigma(denoiser: NetworkDenoiser, n: int, generator: torch.Generator) -> Tensor:
    """Training noise levels ``(n,)``: DDPM's uniform labels, or EDM's log-normal (-1.2, 1.2)."""
    if isinstance(denoiser.schedule, VPDiscrete):
        labels = torch.randint(denoiser.schedule.steps, (n,), generator=generator)
        return denoiser.schedule.sigmas[labels]
    return (-1.2 + 1.2 * torch.randn(n, generator=generator, dtype=torch.float64)).exp()


def prediction_loss(denoiser: NetworkDenoiser, x: Tensor, sigma: Tensor, estimate: Tensor) -> Tensor:
    """Mean squared error of the raw output at ``x`` when ``D(x, sigma)`` ought to be ``estimate``."""
    c = denoiser.coefficients(sigma)
    target = (estimate - expand(c.skip, x) * x) / expand(c.out, x)
    return F.mse_loss(denoiser.raw(x, c).float(), target)


def denoising_loss(denoiser: NetworkDenoiser, x0: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error of the raw network output.

    With the target ``(x_0 - c_skip x) / c_out`` this is DDPM's simple loss for noise prediction and
    EDM's weighted loss (``lambda(sigma) = 1 / c_out^2``) for data prediction.
    """
    return prediction_loss(denoiser, x0 + expand(sigma, x0) * noise, sigma, x0)


class Run:
    """A resumable optimisation: model, its moving average, Adam's moments and the step count."""

    def __init__(self, recipe: Recipe, model: nn.Module, folder: Path) -> None:
        self.recipe, self.model, self.folder = recipe, model, folder
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.optimizer = torch.optim.Adam(model.parameters(), lr=recipe.rate, betas=(0.9, 0.99))
        self.step, self.seconds, self.log = 0, 0.0, list[tuple[int, float, float]]()

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.recipe.name}.state.safetensors"

    def save(self) -> None:
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"average.{k}": v for k, v in self.average.items()}
        for (name, _), state in zip(self.model.named_parameters(), self.optimizer.state.values(), strict=True):
            tensors |= {f"adam.{k}.{name}": v for k, v in state.items()}
        meta = dict(recipe=asdict(self.recipe), step=self.step, seconds=self.seconds, log=self.log)
        save_tensors(self.state_file, tensors, "training state", meta)

    def resume(self) -> bool:
        """Load the saved state of the same recipe, if there is one."""
        if not self.state_file.is_file():
            return False
        tensors, meta = load_tensors(self.state_file, "training state")
        if meta["recipe"] != asdict(self.recipe):
            raise ValueError(f"{self.state_file} is of another recipe; remove it or choose another folder")
        device = next(self.model.parameters()).device
        pick = lambda prefix: {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}  # noqa: E731
        self.model.load_state_dict(pick("model."))
        self.average = {k: v.to(device) for k, v in pick("average.").items()}
        for name, parameter in self.model.named_parameters():
            moments = {k: tensors[f"adam.{k}.{name}"].to(device) for k in ("exp_avg", "exp_avg_sq")}
            count = tensors[f"adam.step.{name}"]  # stays on the CPU, where Adam keeps it
            self.optimizer.state[parameter] = {"step": count, **moments}
        self.step, self.seconds = meta["step"], meta["seconds"]
        self.log = [tuple(row) for row in meta["log"]]
        return True

    def rate(self) -> float:
        """Linear warm-up, then half a cosine to zero."""
        r = self.recipe
        return r.rate * min((self.step + 1) / r.warmup, 0.5 + 0.5 * math.cos(math.pi * self.step / r.steps))

    def train(self, loss: Callable[[torch.Generator], Tensor], until: int | None = None, progress: bool = True) -> None:
        """Minimise ``loss(generator)`` up to the recipe's last step (or ``until``)."""
        r, recent = self.recipe, list[float]()
        stop = r.steps if until is None else min(until, r.steps)
        bar = partial(tqdm, desc=r.name, initial=self.step, total=r.steps, mininterval=10, disable=not progress)
        for _ in bar(range(self.step, stop)):
            started = time.perf_counter()
            generator = torch.Generator().manual_seed(r.seed * 1_000_003 + self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate()
            value = loss(generator)
            self.optimizer.zero_grad(set_to_none=True)
            value.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()
            self._average()
            self.step += 1
            self.seconds += time.perf_counter() - started
            recent.append(value.item())
            if not math.isfinite(recent[-1]):
                raise FloatingPointError(f"{r.name}: loss is {recent[-1]} at step {self.step}; lower the rate")
            if self.step % 100 == 0:
                self.log.append((self.step, sum(recent) / len(recent), self.seconds))
                recent.clear()
            if self.step % r.save_every == 0 or self.step == stop:
                self.save()

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.model.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - keep)
            else:
                self.average[name].copy_(value)

    def publish(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the averaged weights in half precision as a network of :func:`dode.load`."""
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.average.items()}
        save_tensors(path, half, "network", facts)

    def write_log(self, path: Path) -> None:
        with atomic(path) as temporary, open(temporary, "w", newline="") as f:
            writer = csv.writer(f)
            writer.writerow(["step", "loss", "seconds"])
            writer.writerows((s, f"{v:.6f}", f"{t:.1f}") for s, v, t in self.log)


def denoiser_loss(denoiser: NetworkDenoiser, images: Tensor, recipe: Recipe) -> Callable[[torch.Generator], Tensor]:
    """The loss closure of a denoiser on uint8 ``images``."""
    denoiser.autocast = torch.bfloat16 if recipe.bf16 else None

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (recipe.batch,), generator=generator)
        x0 = data.to_signal(images[pick])
        sigma = draw_sigma(denoiser, recipe.batch, generator)
        noise = torch.randn(x0.shape, generator=generator)
        device = next(denoiser.network.parameters()).device  # type: ignore[union-attr]
        return denoising_loss(denoiser, x0.to(device), sigma.to(device), noise.to(device))

    return loss


def classifier_loss(model: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> Callable[..., Tensor]:
    """Cross-entropy with random shifts of two pixels, and mirrored images where the recipe has them."""

    def loss(generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (recipe.batch,), generator=generator)
        device = next(model.parameters()).device
        x = F.pad(images[pick].float(), (2, 2, 2, 2)).to(device)
        dy, dx = torch.randint(5, (2,), generator=generator).tolist()
        x = x[:, :, dy : dy + 28, dx : dx + 28]
        if recipe.flips:
            x = torch.where((torch.rand(recipe.batch, 1, 1, 1, generator=generator) < 0.5).to(device), x.flip(3), x)
        return F.cross_entropy(model(x), labels[pick].to(device), label_smoothing=0.05)

    return loss


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The part of ``images`` (uint8) whose label the classifier ranks first."""
    device = next(model.parameters()).device
    model.eval()
    hits = [
        (model(x.to(device)).argmax(1).cpu() == y).sum()
        for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return float(sum(hits)) / len(images)


RECIPES = {
    "fashion-mnist-noise": Recipe("fashion-mnist-noise"),
    "fashion-mnist-data": Recipe("fashion-mnist-data"),
    "fashion-mnist-classifier": Recipe("fashion-mnist-classifier", steps=2_000, rate=2e-3, warmup=100, bf16=False),
    "fashion-mnist-critic": Recipe("fashion-mnist-critic", 5_000, rate=3e-3, seed=1, bf16=False, flips=True),
}


def train(name: str, folder: Path, device: str = "cpu", until: int | None = None, recipe: Recipe | None = None) -> Run:
    """Train one shipped network, or go on where a killed run stopped; writes into ``folder``."""
    recipe = recipe or RECIPES[name]
    images, labels = data.fashion_mnist("train")
    torch.manual_seed(recipe.seed)
    loss: Callable[[torch.Generator], Tensor]
    if name in CLASSIFIERS:
        model: nn.Module = CLASSIFIERS[name]().to(device)
        loss = classifier_loss(model, images, labels, recipe)
        info: dict[str, Any] = dict(architecture=type(model).__name__)
    else:
        denoiser = build_denoiser(name).to(device)
        assert isinstance(denoiser.network, nn.Module)
        model = denoiser.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        loss = denoiser_loss(denoiser, images, recipe)
        info = describe(denoiser)
    run = Run(recipe, model, folder)
    if run.resume():
        print(f"resuming {name} at step {run.step}")
    run.train(loss, until)
    if run.step == recipe.steps:
        info |= dict(
            name=name, config=getattr(model, "config", {}), recipe=asdict(recipe),
            data="Fashion-MNIST, 60,000 training images", licence="MIT (data: MIT, Zalando Research)",
            seconds=round(run.seconds), threads=torch.get_num_threads(), device=device,
            final_loss=run.log[-1][1] if run.log else None, torch=torch.__version__, python=platform.python_version(),
        )  # fmt: skip
        if name in CLASSIFIERS:
            model.load_state_dict(run.average)
            info["test_accuracy"] = accuracy(model, *data.fashion_mnist("test"))
        run.publish(folder / f"{name}.safetensors", info)
        run.write_log(folder / f"{name}.csv")
    return run


def reference_moments(folder: Path, name: str = "fashion-mnist-classifier") -> Path:
    """Mean and covariance of a trained classifier's features over all training images: FD's other side."""
    features = metrics.classifier_features(folder / f"{name}.safetensors")
    images, _ = data.fashion_mnist("train")
    found = metrics.moments(images, features, source="Fashion-MNIST, 60,000 training images")
    return found.save(folder / f"{name.removesuffix('-classifier')}-moments.safetensors")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dode.training", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder for the state and the result")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="CPU threads (default: all)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        train(args.name, args.out, args.device)
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"error: {str(error).splitlines()[0]}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped; the same command goes on from the last saved step") from None
    if args.name in CLASSIFIERS:
        reference_moments(args.out, args.name)
    print(f"wrote {args.out / args.name}.safetensors")


if __name__ == "__main__":
    main()
