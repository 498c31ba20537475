"""What :func:`~dode.diffusers.from_diffusers` reproduces.  Everything else of diffusers is refused.

Each pipeline gives its network something else beside latents and time: masks, sizes, outputs of an adapter, a guidance
embedding.  A denoiser that leaves that out is silently wrong, so only pipelines are accepted whose own sampling loop
the tests compare with :func:`dode.sample`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PIPELINES = (
    "DDPMPipeline", "LDMPipeline", "DiTPipeline", "StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline",
    "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
)  # fmt: skip
NETWORKS = (
    "UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel",
)  # fmt: skip
SCHEDULERS = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "EDMEulerScheduler",
    "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler", "DodeScheduler",
)  # fmt: skip
# Arguments of a call that a pipeline remembers, and that change what its network or its text encoders are given.
REMEMBERED = ("guidance_rescale", "clip_skip", "cross_attention_kwargs", "joint_attention_kwargs", "denoising_end")
# Inputs of U-Nets that no accepted pipeline gives them.
OPTIONS: Mapping[str, tuple[Any, ...]] = dict(
    time_cond_proj_dim=(None,), class_embed_type=(None,), addition_embed_type=(None, "text_time"),
    encoder_hid_dim_type=(None, "text_proj"),
)  # fmt: skip


def check_pipeline(pipeline: Any) -> None:
    """ValueError for a pipeline whose class, or last call, is not reproduced."""
    kind, module = type(pipeline).__name__, type(pipeline).__module__
    if not module.startswith("diffusers."):  # a subclass of theirs may do anything
        kind = f"{module}.{kind}"
    _tested(kind, PIPELINES)
    for name in REMEMBERED:
        if value := getattr(pipeline, f"_{name}", None):
            told = f"this pipeline was last called with {name}={value}"
            raise ValueError(f"{told}, which from_diffusers does not reproduce; call it once without")


def check_network(network: Any, shape: Sequence[int] | None, alone: bool) -> None:
    """ValueError for a network of diffusers that is not known, or takes inputs that are not reproduced.

    Among these is the size that a pipeline would tell it: Stable Diffusion XL's, unless it is given ``alone``.
    """
    kind, config = type(network).__name__, network.config
    if not type(network).__module__.startswith("diffusers."):
        return  # somebody's own: it says by its arguments what it takes
    _tested(kind, NETWORKS)
    for option, values in OPTIONS.items():
        if (value := config.get(option)) not in values:
            raise ValueError(f"a {kind} with {option}={value!r} takes inputs that from_diffusers does not reproduce")
    adapters = ("encoder_hid_proj", "image_proj")
    if config.get("encoder_hid_dim_type") is None and any(getattr(network, a, None) is not None for a in adapters):
        raise ValueError("from_diffusers does not reproduce image prompts (IP-Adapter); unload the adapter")
    side, sized = config.get("sample_size"), config.get("addition_embed_type") == "text_time"
    if sized and not alone and shape and tuple(shape[1:]) != (side, side):
        raise ValueError(
            f"this network is given the size of its image, which from_diffusers does for latents of {side} x {side} "
            "alone; leave shape= out, or give the unet by itself, with conditions= as tensors"
        )


def check_scheduler(scheduler: Any, config: Mapping[str, Any], network: Any) -> None:
    """ValueError for a scheduler of diffusers whose process is not known, or times that the network does not take."""
    own = scheduler is not config and not type(scheduler).__module__.startswith(("diffusers.", "dode."))
    kind = str(config.get("_class_name") or "") if scheduler is config else type(scheduler).__name__
    if kind and not own:
        _tested(kind, SCHEDULERS)
    if type(network).__module__.startswith("diffusers.") and config.get("num_train_timesteps") == 1:
        raise ValueError("a scheduler with times of 0..1 (num_train_timesteps=1) does not fit networks of diffusers")


def _tested(kind: str, names: Sequence[str]) -> None:
    if kind not in names:
        raise ValueError(f"from_diffusers does not reproduce {kind}; it is tested for {', '.join(names)}")
