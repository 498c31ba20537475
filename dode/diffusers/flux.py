"""Flux's transformer on latents ``(B, C, H, W)``: packed for it two by two, and unpacked again.

Its pipeline carries latents packed, ``(B, H W / 4, 4 C)``: a token for each square of four.  Packing only moves
numbers, so a solver's table is the same for both, and :class:`~dode.diffusers.DodeScheduler` walks them as they come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

PATCH = 2


def pack(latents: Tensor) -> Tensor:
    """``(B, C, H, W)``, both sides even, to tokens ``(B, H W / 4, 4 C)``."""
    squares = latents.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # (B, C, H/2, 2, W/2, 2)
    return squares.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of :func:`pack`."""
    squares = tokens.unflatten(2, (-1, PATCH, PATCH)).unflatten(1, (height // PATCH, width // PATCH))
    return squares.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


class Flux(nn.Module):
    """The transformer as :mod:`dode.diffusers.networks` calls networks: latents, labels of 0..1000, text by name.

    ``guidance`` is the input of a guidance-distilled network, which is not run twice; None for the others.
    """

    def __init__(self, transformer: Any, guidance: float | None) -> None:
        super().__init__()
        self.transformer, self.guidance = transformer, guidance

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


def wrapped(transformer: Any, guidance_scale: float | None) -> tuple[Flux, bool]:
    """The network, and whether guidance is still to be done outside of it.

    ValueError where the guidance is an input and there is none.
    """
    embedded = bool(transformer.config.get("guidance_embeds"))
    if embedded and guidance_scale is None:
        raise ValueError(
            "this network takes its guidance as an input: give guidance_scale= (FluxPipeline's own is 3.5)"
        )
    return Flux(transformer, guidance_scale if embedded else None), not embedded and (guidance_scale or 1) > 1


def latent_shape(transformer: Any, pipeline: Any, shape: Sequence[int] | None) -> tuple[int, ...]:
    """``shape``, or ``(C, H, W)`` of the pipeline's usual image; ValueError for a size that is unknown or odd."""
    channels, out = transformer.config.in_channels, transformer.config.out_channels or transformer.config.in_channels
    if out != channels:
        raise ValueError(f"a Flux of {channels} channels in and {out} out sees more than it denoises; not supported")
    side: Any = getattr(pipeline, "default_sample_size", None)
    if shape is None and side is None:
        raise ValueError("a Flux transformer alone gives no sample size; give shape=(channels, height, width)")
    found = tuple(shape) if shape is not None else (channels // PATCH**2, side - side % PATCH, side - side % PATCH)
    if len(found) != 3 or found[0] != channels // PATCH**2 or found[1] % PATCH or found[2] % PATCH:
        raise ValueError(f"this Flux takes latents of ({channels // PATCH**2}, even, even), not {found}")
    return found
