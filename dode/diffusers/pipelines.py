"""A pipeline of diffusers, or its network alone, as a denoiser; and its decoder, where it has one."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from dode import denoisers as kinds
from dode.denoisers import Images, NetworkDenoiser
from dode.diffusers import support
from dode.diffusers.networks import PATCH, Conditions, Flux, Network, translate
from dode.diffusers.scheduler import Process
from dode.schedules import EDM, Flow, Schedule, VPDiscrete
from dode.schedules.noise import Betas

WRAPPERS: dict[str, type[NetworkDenoiser]] = dict(
    epsilon=kinds.NoisePrediction, sample=kinds.DataPrediction, v_prediction=kinds.VPrediction,
    flow_prediction=kinds.FlowPrediction,
)  # fmt: skip
KINDS: dict[str, Betas] = dict(linear="linear", scaled_linear="scaled_linear", squaredcos_cap_v2="cosine")


def from_diffusers(
    pipeline: Any, scheduler: Any = None, guidance_scale: float | None = None, conditions: Conditions | None = None, *,
    negative: Conditions | None = None, shape: Sequence[int] | None = None, autocast: torch.dtype | None = None,
    name: str | None = None,
) -> NetworkDenoiser:  # fmt: skip
    """The denoiser of a pipeline: its U-Net or transformer, its scheduler's process, in its latent space.

    The network is frozen and put in eval mode.  ``nfe`` counts calls, ``evaluations`` the images in them; a guided call
    doubles its batch inside and counts once, as papers count.

    Parameters
    ----------
    pipeline
        A diffusers pipeline, or its ``unet`` or ``transformer`` alone.
    scheduler
        A scheduler, or its config, in place of the pipeline's own; a network alone needs one.
    guidance_scale
        Of classifier-free guidance; None or 1: none.  A guidance-distilled network (Flux) takes it as an input.
    conditions
        A prompt or several, a class label or several, text embeddings ``(K, L, C)``, or tensors ``(K, ...)`` by the
        network's argument names.  Of ``K`` conditions, image ``i`` of a run gets the one at ``i mod K``: see
        :mod:`dode.denoisers.conditioning`.
    negative
        What guidance sets against them, likewise; the pipeline's empty prompt or DiT's empty class by itself.
    shape
        Of one sample, where the network's config does not say, or for another size.
    autocast
        e.g. ``torch.bfloat16``; by default the network runs in its own dtype.
    name
        For the files of solvers made for it; by default the hub's name, or the folder's.

    ValueError for no network, a process or prediction type that is unknown, conditions that do not fit; or a pipeline,
    network, scheduler or option that is not reproduced (:mod:`dode.diffusers.support`).
    """
    alone = isinstance(pipeline, nn.Module)
    network: Any = pipeline if alone else getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if not isinstance(network, nn.Module) or not hasattr(network, "config"):
        kind = type(pipeline).__name__
        raise ValueError(f"{kind} has no unet and no transformer of diffusers; give the network itself")
    scheduler = scheduler if scheduler is not None else getattr(pipeline, "scheduler", None)
    config = getattr(scheduler, "config", scheduler)
    if not isinstance(config, Mapping):
        raise ValueError("a network alone needs scheduler=: the scheduler it was trained for, or its config")
    if not alone:
        support.check_pipeline(pipeline)
    support.check_network(network, shape, alone)
    support.check_scheduler(scheduler, config, network)
    if guidance_scale is not None and not (guidance_scale >= 1 and math.isfinite(guidance_scale)):
        raise ValueError(f"guidance_scale is 1 (none) or more, got {guidance_scale:g}")
    guided = guidance_scale is not None and guidance_scale > 1
    if isinstance(network, FluxTransformer2DModel):
        shape, network = flux_shape(network, pipeline, shape), Flux(network, guidance_scale)
        guided = guided and network.guidance is None
    shape = tuple(shape) if shape is not None else latent_shape(network)
    process = Process(config)
    given = translate(None if alone else pipeline, network, conditions, negative, guided)
    network.eval().requires_grad_(False)
    edm = process.kind == "edm"
    sign = -1.0 if edm and process.prediction == "v_prediction" else 1.0  # diffusers' EDM: v is minus what EDM predicts
    inner = Network(network, shape[0], guidance_scale if guided else None, sign)
    options: dict[str, Any] = dict(conditioning=given, autocast=autocast, name=name or checkpoint_name(pipeline))
    patch = PATCH if isinstance(network, Flux) else int(network.config.get("patch_size") or 1)
    own = schedule(process, config, math.prod(shape[1:]) // patch**2)
    if edm:
        options["sigma_data"] = process.sigma_data
    found = (kinds.EDMPrediction if edm else WRAPPERS[process.prediction])(inner, shape, own, **options)
    if (vae := autoencoder(pipeline)) is not None:
        found.images = Images(to_picture=functools.partial(decoded, vae))
    return found


def schedule(process: Process, config: Mapping[str, Any], tokens: int = 0) -> Schedule:
    """The process as one of dode's schedules; ``tokens`` of an image decide a flow's shift, where that is dynamic."""
    if process.kind == "flow":
        return Flow(process.steps, _shift(config, tokens))
    if process.kind == "edm":
        return EDM(float(config.get("sigma_min") or 0.002), float(config.get("sigma_max") or 80.0))
    if config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        return VPDiscrete(len(process.betas), "trained", betas=tuple(process.betas.tolist()))
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    return VPDiscrete(process.steps, KINDS[config["beta_schedule"]], first, last)


def _shift(config: Mapping[str, Any], tokens: int) -> float:
    """A flow's shift; a dynamic one lies on a line through two sizes of image, as pipelines have it."""
    if not config.get("use_dynamic_shifting"):
        return float(config.get("flow_shift") or config.get("shift") or 1.0)
    low, high = config["base_image_seq_len"], config["max_image_seq_len"]
    mu = config["base_shift"] + (config["max_shift"] - config["base_shift"]) * (tokens - low) / (high - low)
    return mu if config.get("time_shift_type") == "linear" else math.exp(mu)


def latent_shape(network: Any) -> tuple[int, ...]:
    """``(C, H, W)`` of one sample, as the network's config has it; ValueError where that is not what it denoises."""
    config, kind, size = network.config, type(network).__name__, network.config.get("sample_size")
    channels, out = config.get("in_channels"), config.get("out_channels") or config.get("in_channels")
    if size is None or channels is None:
        raise ValueError(f"the config of {kind} gives no sample size; give shape=(channels, height, width)")
    if out not in (channels, 2 * channels):
        raise ValueError(f"a network of {channels} channels in and {out} out denoises a part of what it sees")
    height, width = (size, size) if isinstance(size, int) else size
    return (int(channels), int(height), int(width))


def flux_shape(transformer: Any, pipeline: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    """``shape``, or that of the pipeline's usual image; ValueError for a size that is unknown or odd."""
    tokens: int = transformer.config.in_channels
    side: Any = getattr(pipeline, "default_sample_size", None)
    if (out := transformer.config.out_channels or tokens) != tokens:
        raise ValueError(f"a Flux of {tokens} channels in and {out} out denoises a part of what it sees")
    if shape is None and side is None:
        raise ValueError("a Flux transformer alone gives no sample size; give shape=(channels, height, width)")
    channels = tokens // PATCH**2
    found = tuple(shape) if shape is not None else (channels, side - side % PATCH, side - side % PATCH)
    if len(found) != 3 or found[0] != channels or found[1] % PATCH or found[2] % PATCH:
        raise ValueError(f"this Flux takes latents of ({channels}, even, even), not {found}")
    return found


def checkpoint_name(pipeline: Any) -> str:
    """What the hub calls it, or its folder is called, or its class."""
    known = getattr(pipeline, "name_or_path", None) or getattr(pipeline.config, "_name_or_path", None)
    if not known:
        return type(pipeline).__name__
    return Path(known).resolve().name if Path(known).is_dir() else str(known)


def decode(pipeline: Any, latents: Tensor) -> Tensor:
    """Images ``(B, C, H, W)`` in -1..1, float32, of a pipeline's latents; in pixel space they are images already."""
    vae = autoencoder(pipeline)
    return latents.float() if vae is None else decoded(vae, latents)


def autoencoder(pipeline: Any) -> Any:
    """A pipeline's, None in pixel space."""
    return getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)


@torch.no_grad()
def decoded(vae: Any, latents: Tensor) -> Tensor:
    """As :func:`decode`, by the autoencoder alone."""
    config, own = vae.config, next(vae.parameters())
    if config.get("latents_mean") is not None:
        raise ValueError("an autoencoder with latents_mean= is not supported; decode with the pipeline's own vae")
    latents = latents / config.get("scaling_factor", 1.0) + (config.get("shift_factor") or 0.0)
    return vae.decode(latents.to(own)).sample.float()
