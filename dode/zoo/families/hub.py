"""Models of the Hugging Face hub, which :mod:`dode.diffusers` reads: here they are listed only."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from dode.zoo.catalogue import Card, family


def _card(hub: str, side: int, licence: str, source: str, channels: int = 3, **settings: Any) -> Card:
    return Card(name=hub, hub=hub, licence=licence, source=source, shape=(channels, side, side), settings=settings)


CARDS = (
    _card("google/ddpm-cifar10-32", 32, "Apache 2.0", "Ho et al. 2020"),
    _card("google/ddpm-bedroom-256", 256, "Apache 2.0", "Ho et al. 2020"),
    _card("google/ddpm-celebahq-256", 256, "Apache 2.0", "Ho et al. 2020"),
    _card("CompVis/ldm-celebahq-256", 64, "Apache 2.0", "Rombach et al. 2022"),
    _card("stable-diffusion-v1-5/stable-diffusion-v1-5", 64, "CreativeML OpenRAIL-M", "Rombach et al. 2022", 4,
          guidance_scale=7.5),
)  # fmt: skip


@family("diffusers", *CARDS)
def read(path: Path, card: Card) -> NoReturn:
    """ValueError: none is a file."""
    raise ValueError(f"{card.name} is a pipeline of diffusers, and {path} is a file")
