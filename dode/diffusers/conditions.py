"""Conditioning of a pipeline's network: prompts through the pipeline's own text encoders, labels, tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel
from torch import Tensor

from dode.diffusers.flux import Flux

Conditions = str | int | Sequence[str] | Sequence[int] | Tensor | Mapping[str, Tensor]


def translate(
    pipeline: Any, network: Any, conditions: Conditions | None, negative: Conditions | None, guided: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Conditions as rows under the network's argument names, and what guidance sets against them.

    Prompts go through ``pipeline.encode_prompt`` once; ``negative`` not given is the pipeline's own empty prompt.
    Whole numbers are class labels; ``negative`` is then the label of no class, which DiT's networks know themselves.
    A float tensor ``(K, L, C)`` is what cross-attention sees; a mapping has the network's own argument names.

    ValueError for prompts without a pipeline that can read them, or guidance without its counterpart.
    """
    if conditions is None:
        if guided:
            raise ValueError("guidance sets a condition against none: give conditions=, or leave guidance_scale out")
        return {}, None
    if prompts := _texts(conditions):
        if negative is not None and not _texts(negative):
            raise ValueError("the negative of prompts is a prompt")
        return encode(pipeline, network, prompts, _texts(negative), guided)
    tensors = _tensors(conditions)
    if not guided:
        return tensors, None
    classes = network.config.get("num_embeds_ada_norm")
    if negative is None and isinstance(network, DiTTransformer2DModel):
        negative = int(classes)  # trained with labels left out: one more than there are
    if negative is None:
        raise ValueError("guidance needs negative=: the label of no class, or tensors as of an empty prompt")
    return tensors, _tensors(negative)


def _texts(conditions: Any) -> list[str]:
    """The prompts, or none if these are no prompts."""
    texts = [conditions] if isinstance(conditions, str) else conditions
    if isinstance(texts, Sequence) and texts and all(isinstance(text, str) for text in texts):
        return list(texts)
    return []


def _tensors(conditions: Any) -> dict[str, Tensor]:
    if isinstance(conditions, Mapping):
        return {name: torch.as_tensor(value) for name, value in conditions.items()}
    try:
        rows = torch.as_tensor(conditions)
    except (TypeError, ValueError, RuntimeError):
        rows = torch.empty(0)
    if rows.numel() == 0:
        raise ValueError("conditions are prompts, class labels, a tensor of text embeddings, or tensors by name")
    if rows.is_floating_point():
        return {"encoder_hidden_states": rows}
    return {"class_labels": rows.reshape(-1)}


@torch.no_grad()
def encode(
    pipeline: Any, network: Any, prompts: list[str], negative: list[str], guided: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor] | None]:
    """Prompts as Stable Diffusion 1 and 2, XL or 3, or Flux put them to their networks."""
    if not hasattr(pipeline, "encode_prompt"):
        raise ValueError(f"{type(pipeline).__name__} reads no prompts; give conditions as tensors or class labels")
    if len(negative) > 1 and len(negative) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts take one negative prompt or {len(prompts)}, got {len(negative)}")
    against = negative * (len(prompts) // len(negative)) if negative else None
    if isinstance(network, Flux):
        return _flux(pipeline, prompts), (_flux(pipeline, against or [""]) if guided else None)
    options = dict(num_images_per_prompt=1, do_classifier_free_guidance=guided, negative_prompt=against)
    kind = getattr(network.config, "addition_embed_type", None)
    three = isinstance(network, SD3Transformer2DModel)
    if three:
        options |= dict(prompt_2=None, prompt_3=None)
    elif not hasattr(network.config, "cross_attention_dim") or kind not in (None, "text_time"):
        raise ValueError(
            f"prompts of {type(pipeline).__name__} are not known here; "
            "give conditions= as tensors by the network's argument names"
        )
    found = pipeline.encode_prompt(prompts, device=pipeline.device, **options)
    with_it, without = {"encoder_hidden_states": found[0]}, {"encoder_hidden_states": found[1]}
    if three:
        with_it["pooled_projections"], without["pooled_projections"] = found[2], found[3]
    elif kind == "text_time":
        with_it["added_cond_kwargs.text_embeds"], without["added_cond_kwargs.text_embeds"] = found[2], found[3]
        side = network.config.sample_size * pipeline.vae_scale_factor
        width = int(found[2].shape[-1])
        sizes = pipeline._get_add_time_ids(  # the size, where it was cropped, the size again
            (side, side), (0, 0), (side, side), dtype=found[0].dtype, text_encoder_projection_dim=width
        )
        with_it["added_cond_kwargs.time_ids"] = sizes.repeat(len(prompts), 1)
        without["added_cond_kwargs.time_ids"] = with_it["added_cond_kwargs.time_ids"]
    return with_it, (without if guided else None)


def _flux(pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    text, pooled, _ = pipeline.encode_prompt(prompts, None, device=pipeline.device)
    return {"encoder_hidden_states": text, "pooled_projections": pooled}
