r"""A scheduler of diffusers that walks any tableau.  This file stands alone: it needs torch and diffusers, not dode.

Row ``i`` evaluates the network once at ``x_i`` (in the coordinates ``x / alpha``), level ``sigma_i``, and keeps an
output ``d_i``, the noise ``(x_i - D_i) / sigma_i`` or the clean image ``D_i``; then

    x_{i+1} = ratio_i x_i + sum_j W_ij d_j          ratio_i = 1 (noise) or sigma_{i+1} / sigma_i (data)

A pipeline's ``sample`` is always ``x_i`` as the network wants to see it, scaled for the level *given* to the network:
times ``alpha`` on a VP chain, ``1 / sqrt(sigma^2 + sigma_data^2)`` for EDM (Karras et al. 2022, table 1), ``1 - t`` for
flow matching.  So ``scale_model_input`` changes nothing, and pipelines that never call it (``DDPMPipeline``, Stable
Diffusion 3's) run every table too.  After the last row it is ``x_N`` itself.  Nothing is clipped or thresholded.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils import logging
from torch import Tensor


class Coefficients(NamedTuple):
    """What a network is given at one level, and makes of it: ``D = skip x + out F(scale x, label)``."""

    skip: float
    out: float
    scale: float
    label: float


class Process:
    """The forward process and the prediction type that the config of any diffusers scheduler describes.

    ``kind`` is "vp" (with ``betas`` and ``sigmas``, one a label), "edm" (with ``sigma_data``) or "flow"; ``sigma_max``
    is the highest level.  ValueError for a process that is none of these.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        get = config.get
        self.steps, self.prediction = int(get("num_train_timesteps") or 1000), get("prediction_type") or "epsilon"
        chain = get("beta_schedule") is not None or get("trained_betas") is not None
        angles = "solver_order" in config and "algorithm_type" not in config  # what CosineDPMSolver tells its network
        if get("use_flow_sigmas") or self.prediction == "flow_prediction" or ("shift" in config and not chain):
            self.kind, self.sigma_max = "flow", math.inf
            self.prediction = get("prediction_type") or "flow_prediction"
        elif chain:
            self.kind, self.betas = "vp", betas(config, self.steps)
            bar = np.cumprod(1 - self.betas)
            self.sigmas = np.sqrt((1 - bar) / bar)
            self.sigma_max = float(self.sigmas[-1])
        elif get("sigma_data") and "prediction_type" in config and not angles:
            self.kind, self.sigma_max = "edm", get("sigma_max") or math.inf
            self.sigma_data = float(config["sigma_data"])
        else:
            raise ValueError("this scheduler's config has neither betas, nor EDM's sigma_data, nor a flow's shift")
        usual = dict(thresholding=False, invert_sigmas=False, timestep_type="discrete", snr_shift_scale=1.0)
        if odd := [f"{k}={get(k)!r}" for k, v in usual.items() if get(k, v) not in (v, None)]:
            raise ValueError(f"a scheduler with {odd[0]} does what no table of a solver can; give another config")
        self.at(1.0)

    def at(self, sigma: float) -> Coefficients:
        """The network's coefficients at ``sigma``."""
        if self.kind == "edm":
            norm, label = math.hypot(sigma, self.sigma_data), math.log(sigma) / 4
            scale, skip, out = 1 / norm, (self.sigma_data / norm) ** 2, sigma * self.sigma_data / norm
            known = dict(epsilon=(skip, out), v_prediction=(skip, -out))
        elif self.kind == "flow":  # F = eps - x_0, so x_0 = x_t - t F
            scale, label = 1 / (1 + sigma), self.steps * sigma / (1 + sigma)
            known = dict(flow_prediction=(scale, -scale * sigma), sample=(0.0, 1.0))
        else:  # between labels ln sigma is linear; v = alpha eps - sigma_t x_0 (Salimans and Ho 2022)
            label = float(np.interp(math.log(sigma), np.log(self.sigmas), np.arange(len(self.sigmas))))
            scale = 1 / math.hypot(1, sigma)
            known = dict(epsilon=(1.0, -sigma), sample=(0.0, 1.0), v_prediction=(scale**2, -scale * sigma))
        if self.prediction not in known:
            raise ValueError(f"unknown prediction_type {self.prediction!r} for {self.kind}: take {' or '.join(known)}")
        return Coefficients(*known[self.prediction], scale, label)


def betas(config: Mapping[str, Any], steps: int) -> np.ndarray:
    """The betas of a VP chain, float64 ``(steps,)``."""
    kind, first, last = config.get("beta_schedule"), config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    known = dict(
        linear=np.linspace(first, last, steps), scaled_linear=np.linspace(first**0.5, last**0.5, steps) ** 2,
        squaredcos_cap_v2=np.minimum(1 - bar[1:] / bar[:-1], 0.999),
    )  # fmt: skip
    if (trained := config.get("trained_betas")) is None and kind not in known:
        raise ValueError(f"beta_schedule {kind!r} is unknown; give the betas themselves as trained_betas")
    found = np.asarray(known[str(kind)] if trained is None else trained, dtype=np.float64)
    if not config.get("rescale_betas_zero_snr"):
        return found
    root = np.sqrt(np.cumprod(1 - found))  # Lin et al. 2024, Algorithm 1
    bar = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    bar[-1] = 2.0**-24  # for 0, as diffusers' own solvers have it: sigma is 4096 there, not infinite
    return 1 - bar / np.concatenate([[1.0], bar[:-1]])


def usual_steps() -> int | None:
    """The calling pipeline's own ``num_inference_steps``; None for one that counts with it (has a ``strength``)."""
    from diffusers import DiffusionPipeline  # who calls has it already; to others it is a slow import

    frame = inspect.currentframe()
    while frame := frame.f_back if frame else None:
        pipe = frame.f_locals.get("self") if frame.f_code.co_name == "__call__" else None
        if isinstance(pipe, DiffusionPipeline):
            options = inspect.signature(type(pipe).__call__).parameters
            return None if "strength" in options else getattr(options.get("num_inference_steps"), "default", None)
    return None


class DodeScheduler(SchedulerMixin, ConfigMixin):
    """Any tableau as a scheduler; make one with :meth:`from_tableau`.

    One timestep a network call, so a pipeline's ``num_inference_steps`` is the table's NFE, or left out.  Timesteps are
    float32, and real-valued where a level falls between the labels that the network was trained with.

    A run may begin in the middle (img2img: ``set_begin_index``).  A row that wants an output from before the beginning
    takes in its place the straight line in ``ln sigma`` through the run's two oldest outputs, or the oldest where there
    is but one.  Rows stay consistent by that: Euler's step first, second order from then on, and the table's own row as
    soon as all it wants is there.  The starting noise of an analytical first step is the first sample over its level;
    a run that begins later has none, and the oldest output takes its weight.

    The config holds the process as diffusers' own do, and ``basis``, ``levels`` (N + 1), ``levels_told`` (N), each
    row's ``weights``, the newest output's first, as far back as it reaches, those of the starting noise (``start``, N),
    the table's ``metadata``.  ValueError for numbers that are no table, or levels above the process's highest.
    """

    order = 1

    @register_to_config
    def __init__(
        self, num_train_timesteps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02,
        beta_schedule: str | None = "linear", trained_betas: list[float] | None = None,
        rescale_betas_zero_snr: bool = False, prediction_type: str = "epsilon", use_flow_sigmas: bool = False,
        flow_shift: float = 1.0, sigma_data: float | None = None, sigma_min: float | None = None,
        sigma_max: float | None = None, basis: str = "noise",
        levels: list[float] | None = None, levels_told: list[float] | None = None,
        weights: list[list[float]] | None = None, start: list[float] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if levels is None or weights is None:
            raise ValueError("here is no solver: DodeScheduler.from_tableau(table, pipe.scheduler.config) makes one")
        levels_in, start = levels_told or levels[:-1], start or [0.0] * len(weights)
        _check(basis, levels, levels_in, weights, start)
        process = Process(self.config)
        if levels[0] > process.sigma_max * (1 + 1e-3):
            wrong = f"the solver starts at sigma = {levels[0]:g}, and this scheduler's levels end at"
            raise ValueError(f"{wrong} {process.sigma_max:g}; make one for this model")
        self._basis, self._levels, self._coefficients = basis, levels, [process.at(sigma) for sigma in levels_in]
        self._rows = [{i - k: w for k, w in enumerate(row) if w} for i, row in enumerate(weights)]
        for row, w in zip(self._rows, start, strict=True):
            row.update({-1: w} if w and basis == "noise" else {})
        self._shape, self.num_inference_steps = tuple((metadata or {}).get("shape") or ()), len(weights)
        self.init_noise_sigma = self._coefficients[0].scale * levels[0]
        self.set_timesteps()

    @classmethod
    def from_tableau(cls, tableau: Any, config: Any) -> DodeScheduler:
        """``tableau`` for the process of ``config``: ``pipe.scheduler.config``, or the scheduler itself.

        Pipelines that start from plain noise (Stable Diffusion 3 and other flows, ``DDPMPipeline``) ignore
        ``init_noise_sigma``.  With an analytical first step that is well below 1: give them noise times that.
        """
        config = getattr(config, "config", config)
        if not isinstance(config, Mapping) or not hasattr(tableau, "weights"):
            raise ValueError("from_tableau takes a dode.Tableau, not a solver that designs its steps, and a scheduler")
        process = Process(config)
        known = {k: v for k, v in config.items() if k in inspect.signature(cls.__init__).parameters}
        found = cls(**dict(beta_schedule=None, flow_shift=config.get("shift", 1.0)) | known | dict(
            prediction_type=process.prediction, use_flow_sigmas=process.kind == "flow", basis=tableau.basis,
            levels=tableau.sigmas.tolist(), levels_told=tableau.sigmas_in.tolist(),
            start=tableau.noise_weights.tolist(),
            weights=[np.trim_zeros(row[i::-1], "b").tolist() for i, row in enumerate(tableau.weights.numpy())],
            metadata=dict(tableau.metadata),
        ))  # fmt: skip
        if process.kind == "flow" and (spread := found.init_noise_sigma) < 0.99:
            logging.get_logger(__name__).warning(f"this table starts from latents=noise * {spread:.4f}; pass them")
        return found

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, mu: Any = None) -> None:
        """Begin a run (a flow's ``mu`` is not used); ValueError for another number of steps."""
        rows = len(self._rows)
        if num_inference_steps not in (None, rows) and num_inference_steps != usual_steps():
            raise ValueError(f"this solver makes {rows} calls: num_inference_steps={rows}, not {num_inference_steps}")
        self.timesteps = torch.tensor([c.label for c in self._coefficients], dtype=torch.float32).to(device)
        self.step_index: int | None = None
        self.begin_index: int | None = None
        self._first, self._outputs = 0, dict[int, Tensor]()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Let the run begin with this row."""
        if not 0 <= begin_index < len(self._rows):
            rows = len(self._rows)
            raise ValueError(f"no row {begin_index} to begin with; set num_inference_steps={rows} and another strength")
        self.begin_index = begin_index

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample: it already is what the network wants to see."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Clean images ``(B, ...)`` as a sample where the run begins (img2img) or is; before it, at ``timesteps``."""
        here = self.begin_index if self.step_index is None else self.step_index
        rows = [self._find(t) for t in timesteps] if here is None else [min(here, len(self._rows) - 1)]
        scales = [(self._coefficients[i].scale, self._levels[i]) for i in rows]
        at = torch.tensor([[scale, scale * level] for scale, level in scales]).to(noise)
        image, spread = at.T.reshape(2, -1, *[1] * (noise.ndim - 1))
        return (image * original_samples + spread * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """:meth:`add_noise`, as flow-matching pipelines call it."""
        return self.add_noise(sample, noise, timestep)

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, generator: Any = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor]:  # fmt: skip
        """The next row: ``sample`` and what the network said of it, both ``(B, ...)``, to the next sample.

        Reckoned in float32 at least; returned in the sample's dtype.  Of twice as many channels (a learned variance)
        the first half counts; ``generator`` is not used.  ValueError after the last row, or for samples of a shape that
        the solver was not distilled for.
        """
        x = sample.to(torch.promote_types(sample.dtype, torch.float32))
        i = self._begin(timestep, x) if self.step_index is None else self.step_index
        if i == len(self._rows):
            raise ValueError(f"this solver has made its {i} steps; set_timesteps begins a new run")
        said = model_output[:, : x.shape[1]] if model_output.shape[1] == 2 * x.shape[1] else model_output
        c, level = self._coefficients[i], self._levels[i]
        ahead = 1.0 if i + 1 == len(self._coefficients) else self._coefficients[i + 1].scale
        skip, out, ratio = c.skip / c.scale, c.out, self._levels[i + 1] / level
        if self._basis == "noise":  # (x - D) / sigma
            skip, out, ratio = (1 - c.skip) / (level * c.scale), -out / level, 1.0
        row = self._weights(i)
        own = row.pop(i, 0.0)  # by way of x and F: at high levels the state and its own output nearly cancel
        following = (ahead * (ratio / c.scale + own * skip) * x).add_(said.to(x), alpha=ahead * own * out)
        for j, weight in row.items():
            following.add_(self._outputs[j], alpha=ahead * weight)
        if self._last.get(i, i) > i:
            self._outputs[i] = (skip * x).add_(said.to(x), alpha=out)
        self._outputs = {j: d for j, d in self._outputs.items() if self._last[j] > i}
        self.step_index, following = i + 1, following.to(sample.dtype)
        return SchedulerOutput(prev_sample=following) if return_dict else (following,)

    def _find(self, timestep: float | Tensor) -> int:
        """The first row with this timestep."""
        gap = (self.timesteps - torch.as_tensor(timestep).to(self.timesteps)).abs()
        if gap.min() > 1e-3:
            raise ValueError(f"timestep {float(timestep):g} is none of this solver's: {self.timesteps.tolist()}")
        return int(gap.argmin())

    def _begin(self, timestep: float | Tensor, x: Tensor) -> int:
        """The row of the first step; with the starting noise, and the last row that uses each output."""
        if self._shape not in ((), x.shape[1:]) and _packed(self._shape) != x.shape[1:]:
            wrong = f"this solver was distilled for samples of shape {self._shape}, not {tuple(x.shape[1:])}"
            raise ValueError(f"{wrong}; use tableau.unbind() to try it anyway")
        first = self._first = self._find(timestep) if self.begin_index is None else self.begin_index
        self._last = {j: i for i in range(first, len(self._rows)) for j in self._weights(i)}
        if first == 0 and -1 in self._last:
            self._outputs[-1] = x / (self._coefficients[0].scale * self._levels[0])
        return first

    def _weights(self, i: int) -> dict[int, float]:
        """Row ``i`` by output; in place of those that were never made, the line through the run's two oldest."""
        row, level, first = self._rows[i], self._levels, self._first
        found = {j: w for j, w in row.items() if j >= first or first == 0}
        gap = math.log(level[first + 1] / level[first]) if i > first else 0.0
        for j in row.keys() - found.keys():
            share = math.log(level[j] / level[first]) / gap if gap and j >= 0 else 0.0  # of the second-oldest
            found[first] = found.get(first, 0.0) + (1 - share) * row[j]
            if share:
                found[first + 1] = found.get(first + 1, 0.0) + share * row[j]
        return found


def _packed(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Latents ``(C, H, W)`` as Flux's pipeline carries them: a token for four."""
    return (shape[1] * shape[2] // 4, 4 * shape[0]) if len(shape) == 3 else ()


def _check(basis: str, levels: list[float], inner: list[float], weights: list[list[float]], start: list[float]) -> None:
    """ValueError for numbers that are no table."""
    n, numbers = len(weights), [*levels, *inner, *start, *(w for row in weights for w in row)]
    if not (
        basis in ("noise", "data")
        and n == len(inner) == len(start) == len(levels) - 1 > 0
        and all(math.isfinite(v) for v in numbers)
        and levels == sorted(levels, reverse=True)
        and min(levels[-2], *inner) > 0 <= levels[-1]
        and all(len(row) <= i + 1 for i, row in enumerate(weights))
    ):
        raise ValueError("the levels and weights in this scheduler's config are no table of a solver; save it anew")
