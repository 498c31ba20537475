"""A network of diffusers as the ``F(input, label, **conditions)`` that dode's denoisers take, and what it is given.

Conditions are rows of tensors (:mod:`dode.denoisers.conditioning`) by the network's own argument names, "outer.inner"
for an entry of a dictionary.

Flux's transformer is put in the same form.  Its pipeline carries latents packed, ``(B, H W / 4, 4 C)``: a token for
each square of four.  Packing only moves numbers, so a solver's table is the same for both, and
:class:`~dode.diffusers.DodeScheduler` walks them as they come.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F

from dode.denoisers.conditioning import Conditioning

Rows = Mapping[str, Tensor]
Conditions = str | int | Sequence[str] | Sequence[int] | Tensor | Mapping[str, Tensor]
PATCH = 2  # side of the square that is a token of Flux


class Network(nn.Module):
    """``F(x, label, **conditions)``; with a ``guidance`` scale, two halves of one doubled batch.

    Classifier-free guidance (Ho and Salimans 2022), as in diffusers: ``F = F_without + scale (F_with - F_without)``.
    Each image's condition is then a pair ``(2, ...)``, without and with.  One call of this is one network evaluation,
    of as many images as ``x`` holds: what papers count.
    """

    def __init__(self, network: nn.Module, channels: int, guidance: float | None = None, sign: float = 1.0) -> None:
        super().__init__()
        self.network, self.channels, self.guidance, self.sign = network, channels, guidance, sign

    @property
    def mid_block(self) -> nn.Module | None:
        """The bottleneck, for solvers that read it; none where guidance doubles what passes through it."""
        return None if self.guidance else getattr(self.network, "mid_block", None)

    def forward(self, x: Tensor, label: Tensor, **conditions: Tensor) -> Tensor:
        if self.guidance:
            x, label = torch.cat([x, x]), torch.cat([label, label])
            conditions = {name: pairs.transpose(0, 1).flatten(0, 1) for name, pairs in conditions.items()}
        rows = {name: v.to(x.dtype) if v.is_floating_point() else v for name, v in conditions.items()}
        found = self.network(x, timestep=label, **_nested(rows), return_dict=False)[0]
        found = found[:, : self.channels]  # without a learned variance
        if self.guidance:
            plain, conditional = found.chunk(2)
            found = plain + self.guidance * (conditional - plain)
        return found if self.sign == 1 else self.sign * found


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """``{"a": x, "b.c": y}`` as ``{"a": x, "b": {"c": y}}``."""
    found = dict[str, Any]()
    for name, value in flat.items():
        outer, _, inner = name.rpartition(".")
        (found.setdefault(outer, {}) if outer else found)[inner] = value
    return found


def pack(latents: Tensor) -> Tensor:
    """``(B, C, H, W)``, both sides even, to tokens ``(B, H W / 4, 4 C)``."""
    return F.pixel_unshuffle(latents, PATCH).flatten(2).mT.contiguous()


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`pack`."""
    return F.pixel_shuffle(tokens.mT.contiguous().unflatten(2, (height // PATCH, width // PATCH)), PATCH)


class Flux(nn.Module):
    """Flux's transformer as :class:`Network` calls networks: latents, labels of 0..1000, text by name.

    ``guidance`` is the input of a guidance-distilled network, which is not run twice; None for the others.  ValueError
    where there is none and it is needed.
    """

    def __init__(self, transformer: Any, guidance: float | None) -> None:
        super().__init__()
        embedded = bool(transformer.config.get("guidance_embeds"))
        if embedded and guidance is None:
            raise ValueError("this network takes its guidance as an input: give guidance_scale= (FluxPipeline has 3.5)")
        self.transformer, self.guidance = transformer, guidance if embedded else None

    @property
    def config(self) -> Any:
        return self.transformer.config

    def forward(
        self, sample: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, pooled_projections: Tensor,
        return_dict: bool = False,
    ) -> tuple[Tensor]:  # fmt: skip
        batch, _, height, width = sample.shape
        rows, columns = torch.arange(height // PATCH), torch.arange(width // PATCH)
        places = torch.cartesian_prod(torch.zeros(1), rows.float(), columns.float()).to(sample)
        guidance = None if self.guidance is None else timestep.new_full((batch,), self.guidance)
        (found,) = self.transformer(
            hidden_states=pack(sample), timestep=timestep / 1000, guidance=guidance,
            encoder_hidden_states=encoder_hidden_states, pooled_projections=pooled_projections, img_ids=places,
            txt_ids=torch.zeros(encoder_hidden_states.shape[1], 3).to(sample), return_dict=False,
        )  # fmt: skip
        return (unpack(found, height, width),)


def arguments(network: Any) -> tuple[set[str], list[str], int]:
    """The arguments that a network has a use for, the conditions it cannot do without, its classes (0: no labels)."""
    config, known = getattr(network, "config", {}), inspect.signature(network.forward).parameters
    classes = int(config.get("num_class_embeds") or 0)
    if isinstance(network, DiTTransformer2DModel):
        classes = int(config["num_embeds_ada_norm"]) + 1  # with that of no class
    needed = [k for k, p in known.items() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    needed = [k for k in needed[1:] if k != "timestep"] + ["class_labels"] * bool(classes)  # the first is the sample
    unused = {"class_labels"} if getattr(network, "class_embedding", 0) is None else set[str]()
    return known.keys() - unused, needed, classes


def _complete(network: Any, conditions: Rows) -> None:
    """ValueError for a condition that the network cannot do without, does not know, or has no such class of."""
    kind, (known, needed, classes) = type(network).__name__, arguments(network)
    given = {name.partition(".")[0] for name in conditions}
    if missing := [name for name in needed if name not in given]:
        raise ValueError(f"{kind} wants {missing[0]}: give conditions= (prompts, labels or tensors)")
    if foreign := sorted(given - known):
        raise ValueError(f"{kind} takes no {foreign[0]}; leave it out of the conditions")
    labels = conditions.get("class_labels")
    if labels is None or not classes or labels.is_floating_point():
        return
    if wrong := [label for label in labels.flatten().tolist() if not 0 <= label < classes]:
        raise ValueError(f"{kind} has the classes 0 to {classes - 1}, not {wrong[0]}")


def translate(
    pipeline: Any, network: Any, conditions: Conditions | None, negative: Conditions | None, guided: bool
) -> Conditioning:
    """Conditions as rows by the network's arguments; guided, as pairs of what is without and with them.

    Prompts go through ``pipeline.encode_prompt`` once; ``negative`` not given is the pipeline's own empty prompt.
    Whole numbers are class labels; ``negative`` is then the label of no class, which DiT's networks know themselves.
    A float tensor ``(K, L, C)`` is what cross-attention sees; a mapping has the network's own argument names.

    ValueError for prompts without a pipeline that can read them, guidance without its counterpart, rows that disagree,
    or a network that wants a condition that is not there or has no such class.
    """
    given: Rows = {}
    without: Rows | None = None
    config = getattr(network, "config", {})
    if conditions is None:
        if guided:
            raise ValueError("guidance sets a condition against none: give conditions=, or leave guidance_scale out")
    elif prompts := _texts(conditions):
        if negative is not None and not _texts(negative):
            raise ValueError("the negative of prompts is a prompt")
        given, without = encode(pipeline, network, prompts, _texts(negative), guided)
    else:
        given = _tensors(conditions)
        if guided and negative is None and isinstance(network, DiTTransformer2DModel):
            negative = int(config["num_embeds_ada_norm"])  # trained with labels left out: one more
        if guided and negative is None:
            raise ValueError("guidance needs negative=: the label of no class, or tensors as of an empty prompt")
        without = _tensors(negative) if guided else None
    found = Conditioning({name: rows.detach() for name, rows in given.items()})
    if without is not None:
        for name in given:
            if name not in without or len(without[name]) not in (1, found.count):
                raise ValueError(f"guidance needs {name} without a condition: one row, or {found.count}")
        same = {name: without[name].detach().expand(found.count, *without[name].shape[1:]) for name in given}
        found = Conditioning({name: torch.stack([same[name], rows], dim=1) for name, rows in found.rows.items()})
    _complete(network, given)
    return found


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
        refused = f"prompts of {type(pipeline).__name__} are not known here"
        raise ValueError(f"{refused}; give conditions= as tensors by the network's argument names")
    found = pipeline.encode_prompt(prompts, device=pipeline.device, **options)
    pairs = {"encoder_hidden_states": found[:2]}  # with it, without
    if three:
        pairs["pooled_projections"] = found[2:4]
    elif kind == "text_time":
        side, width = network.config.sample_size * pipeline.vae_scale_factor, int(found[2].shape[-1])
        square, told = (side, side), dict(dtype=found[0].dtype, text_encoder_projection_dim=width)
        sizes = pipeline._get_add_time_ids(square, (0, 0), square, **told)  # cropped at the corner in between
        pairs["added_cond_kwargs.text_embeds"] = found[2:4]
        pairs["added_cond_kwargs.time_ids"] = (sizes.repeat(len(prompts), 1),) * 2
    given, without = ({name: pair[k] for name, pair in pairs.items()} for k in (0, 1))
    return given, (without if guided else None)


def _flux(pipeline: Any, prompts: list[str]) -> dict[str, Tensor]:
    text, pooled, _ = pipeline.encode_prompt(prompts, None, device=pipeline.device)
    return {"encoder_hidden_states": text, "pooled_projections": pooled}
