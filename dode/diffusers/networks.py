"""A network of diffusers as the ``F(input, label, **conditions)`` that dode's denoisers take, and what it is given.

Conditions are rows of tensors (:mod:`dode.denoisers.conditioning`) by the network's own argument names, "outer.inner"
for an entry of a dictionary.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from dode.denoisers.conditioning import Conditioning

Rows = Mapping[str, Tensor]


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


def conditioning(network: Any, given: Rows, without: Rows | None) -> Conditioning:
    """The rows of :class:`Network`; with those of guidance, pairs ``(K, 2, ...)`` of what is without and with them.

    ValueError if rows disagree, or the network wants a condition that is not there or has no such class.
    """
    found = Conditioning({name: rows.detach() for name, rows in given.items()})
    if without is not None:
        for name in given:
            if name not in without or len(without[name]) not in (1, found.count):
                raise ValueError(f"guidance needs {name} without a condition: one row, or {found.count}")
        both = {name: (without[name].detach().expand_as(rows), rows) for name, rows in found.rows.items()}
        found = Conditioning({name: torch.stack(pair, dim=1) for name, pair in both.items()})
    _complete(network, given)
    return found


def _nested(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """``{"a": x, "b.c": y}`` as ``{"a": x, "b": {"c": y}}``."""
    found = dict[str, Any]()
    for name, value in flat.items():
        outer, _, inner = name.partition(".")
        if inner:
            found.setdefault(outer, {})[inner] = value
        else:
            found[name] = value
    return found


def takes(network: Any, name: str) -> bool:
    """Whether the network has an argument of this name, and a use for it."""
    unused = name == "class_labels" and getattr(network, "class_embedding", 0) is None
    return name in inspect.signature(network.forward).parameters and not unused


def needs(network: Any) -> list[str]:
    """The conditions that the network cannot do without."""
    known, config = inspect.signature(network.forward).parameters, getattr(network, "config", {})
    found = [k for k, p in known.items() if p.default is p.empty and p.kind == p.POSITIONAL_OR_KEYWORD]
    found = [k for k in found[1:] if k != "timestep"]  # the first is the sample
    if config.get("num_class_embeds") or isinstance(network, DiTTransformer2DModel):
        found.append("class_labels")
    return found


def _complete(network: Any, conditions: Rows) -> None:
    """ValueError for a condition that the network cannot do without, does not know, or has no such class of."""
    given = {name.partition(".")[0] for name in conditions}
    if missing := [name for name in needs(network) if name not in given]:
        raise ValueError(f"{type(network).__name__} wants {missing[0]}: give conditions= (prompts, labels or tensors)")
    if foreign := sorted(name for name in given if not takes(network, name)):
        raise ValueError(f"{type(network).__name__} takes no {foreign[0]}; leave it out of the conditions")
    labels, classes = conditions.get("class_labels"), _classes(network)
    if labels is None or not classes or labels.is_floating_point():
        return
    if wrong := [label for label in labels.flatten().tolist() if not 0 <= label < classes]:
        raise ValueError(f"{type(network).__name__} has the classes 0 to {classes - 1}, not {wrong[0]}")


def _classes(network: Any) -> int:
    """How many labels the network knows, that of no class among them; 0 where its config does not say."""
    config = getattr(network, "config", {})
    if isinstance(network, DiTTransformer2DModel):
        return int(config.get("num_embeds_ada_norm") or -1) + 1
    return int(config.get("num_class_embeds") or 0)
