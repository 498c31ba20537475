"""A network of diffusers as the ``F(input, label)`` that dode's denoisers take: conditions and guidance inside.

Conditions are rows of tensors, one row a condition, given to the network under its own argument names: of ``K`` rows,
image ``i`` of a run gets row ``i mod K`` (:mod:`dode.denoisers.conditioning`).
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiTTransformer2DModel
from torch import Tensor, nn

from dode.denoisers.conditioning import Conditioning, Images

Rows = Mapping[str, Tensor]  # argument of the network ("outer.inner" for an entry of a dictionary) -> (K, ...)


class Conditioned(nn.Module):
    """``F(x, label)`` of a conditional network; guided, two halves of one doubled batch.

    Classifier-free guidance (Ho and Salimans 2022), as in diffusers: ``F = F_without + scale (F_with - F_without)``.
    One call of this is one network evaluation, of as many images as ``x`` holds: what papers count.

    ValueError if rows disagree, the network wants a condition that is not there or has no such class, or a batch has
    other images than :meth:`of` was given.
    """

    def __init__(
        self, network: nn.Module, channels: int, conditions: Rows, without: Rows | None, scale: float, sign: float = 1.0
    ) -> None:
        super().__init__()
        self.network, self.channels, self.scale, self.sign = network, channels, scale, sign
        self.conditioning = Conditioning(_count(conditions))
        self.names = list(conditions)
        for k, name in enumerate(self.names):
            self.register_buffer(f"with_{k}", conditions[name].detach())
            if without is not None:
                if name not in without or len(without[name]) not in (1, self.conditioning.rows):
                    raise ValueError(f"guidance needs {name} without a condition: one row, or {self.conditioning.rows}")
                self.register_buffer(
                    f"without_{k}", without[name].detach().expand(self.conditioning.rows, *without[name].shape[1:])
                )
        self.guided = without is not None
        _complete(network, conditions)

    @property
    def mid_block(self) -> nn.Module | None:
        """The bottleneck, for solvers that read it; none where guidance doubles what passes through it."""
        return None if self.guided else getattr(self.network, "mid_block", None)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        halves = ["without", "with"] if self.guided else ["with"]
        rows = {name: torch.cat([self._rows(f"{half}_{k}", x) for half in halves]) for k, name in enumerate(self.names)}
        if self.guided:
            x, label = torch.cat([x, x]), torch.cat([label, label])
        found = self.network(x, timestep=label, **_nested(rows), return_dict=False)[0]
        found = found[:, : self.channels]  # without a learned variance
        if self.guided:
            plain, conditional = found.chunk(2)
            found = plain + self.scale * (conditional - plain)
        return found if self.sign == 1 else self.sign * found

    def of(self, images: Images) -> Conditioned:
        """The same network, for a batch that holds these images of a run."""
        found = copy.copy(self)
        found.conditioning = self.conditioning.of(images)
        return found

    def _rows(self, name: str, x: Tensor) -> Tensor:
        """The condition of each image, on its device and, if it is no label, in its dtype."""
        rows = self.get_buffer(name).to(x.device)
        rows = rows.to(x.dtype) if rows.is_floating_point() else rows
        return rows[self.conditioning.places(len(x), x.device)]


def _count(conditions: Rows) -> int:
    counts = {len(v) for v in conditions.values()}
    if len(counts) > 1 or 0 in counts:
        each = ", ".join(f"{name} {len(v)}" for name, v in conditions.items())
        raise ValueError(f"every condition needs the same number of rows, one or more: {each}")
    return counts.pop() if counts else 1


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
