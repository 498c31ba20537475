"""From the tensors of a published file to those of a network here: names, shapes and the order of numbers.

What published networks do differently in storage alone vanishes here, once, when a file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dode.utils.files import FileError, first_line
from dode.zoo.blocks import NoiseEmbedding, Resample

Shape = tuple[int, ...]
Network = TypeVar("Network", bound=nn.Module)


class Key(NamedTuple):
    """Where a tensor of a network is in a file; ``ours`` is "" for what the file must have and nothing needs."""

    ours: str
    names: tuple[str, ...]
    shapes: tuple[Shape, ...]  # there; ones at the end do not matter, so 1x1 convolutions may be flat
    join: Callable[..., Tensor]  # from the tensors there, of these shapes, to ours


def keys_of(
    net: nn.Module, places: Mapping[str, str], parts: Mapping[str, str], own: Iterable[Key] = (), *, order: str = "",
    outputs: int = 0, sines_first: bool = False,
) -> Iterator[Key]:  # fmt: skip
    """All of a file's tensors.

    Parameters
    ----------
    places, parts
        Names there of modules of the network, and of what is in them: ``PLACE.PART.weight``.
    own
        What is not found so.
    order
        How queries, keys and values of an attention lie there, slowest first: h heads, t the three, c channels (ours
        are "thc"); "" for a layer q, k and v each.
    outputs
        Channels of the last convolution there, of which the first are an image's; 0 for as many as here.
    sines_first
        In the sinusoids of the label; here cosines come first.
    """
    own = list(own)
    yield from own
    known = {key.ours for key in own}
    for ours, t in net.state_dict().items():
        if ours in known:
            continue
        name, shape = renamed(ours, places, parts), tuple(t.shape)
        join: Callable[..., Tensor] = _same
        if ".qkv." in ours and not order:
            names, third = tuple(name.replace("qkv.", f"{part}.") for part in "qkv"), (len(t) // 3, *shape[1:])
            yield Key(ours, names, (third, third, third), lambda *found: torch.cat(found))
            continue
        if ".qkv." in ours:
            heads: Any = net.get_submodule(ours.rpartition(".qkv.")[0]).heads
            join = partial(_ordered, order=order, sizes=dict(h=heads, t=3, c=len(t) // 3 // heads))
        elif ours.startswith("head.2.") and outputs:
            shape, join = (outputs, *shape[1:]), partial(_first, count=len(t))
        elif ours == "embed.mlp.0.weight" and sines_first:
            join = halves_swapped
        yield Key(ours, (name,), (shape,), join)


def _same(found: Tensor) -> Tensor:
    return found


def _ordered(found: Tensor, order: str, sizes: Mapping[str, int]) -> Tensor:
    apart = found.reshape(*(sizes[axis] for axis in order), *found.shape[1:])
    return apart.movedim([order.index(axis) for axis in "thc"], (0, 1, 2)).reshape(found.shape)


def _first(found: Tensor, count: int) -> Tensor:
    return found[:count].clone()


def halves_swapped(found: Tensor) -> Tensor:
    """The columns for sines and for cosines, in the other order."""
    return found.roll(found.shape[1] // 2, 1)


def unused(names: Iterable[str], shape: Shape) -> list[Key]:
    """What a file must have, of one shape, and nothing here needs."""
    return [Key("", (name,), (shape,), _same) for name in names]


def renamed(name: str, places: Mapping[str, str], parts: Mapping[str, str]) -> str:
    """``PLACE.PART.weight`` there: the longest place that is known, and its parts by their names in ``parts``."""
    *path, kind = name.split(".")
    for k in range(len(path), 0, -1):
        if (place := ".".join(path[:k])) in places:
            rest = ".".join(path[k:])
            return ".".join(filter(None, (places[place], parts.get(rest, rest), kind)))
    raise KeyError(name)


def build(
    title: str, make: Callable[[], tuple[Network, Iterable[Key]]], tensors: Mapping[str, Tensor], path: Path
) -> Network:
    """A network that holds exactly these tensors, those of the keys that ``make`` gives beside it.

    FileError if a name or a shape does not fit, or none can be made.
    """
    try:
        with torch.device("meta"):  # shapes alone: nothing is initialised only to be overwritten
            network, keys = make()
            found = list(keys)
    except Exception as error:  # the arguments may come from the file
        raise FileError(f"{path} holds a network that dode cannot build ({first_line(error)})") from None
    wanted = {name: shape for key in found for name, shape in zip(key.names, key.shapes, strict=True)}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    lacking, foreign = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & given.keys() if _bare(wanted[name]) != _bare(given[name]))
    if lacking or foreign or other:
        first = (
            f"no {lacking[0]!r}" if lacking
            else f"{foreign[0]!r} has no place" if foreign
            else f"{other[0]!r} has shape {given[other[0]]}, not {wanted[other[0]]}"
        )  # fmt: skip
        many = len(lacking) + len(foreign) + len(other)
        raise FileError(f"{path} does not fit {title}: {first}" + (f" ({many} such)" if many > 1 else ""))
    for name, t in tensors.items():
        if not t.is_floating_point() or t.layout is not torch.strided or t.is_meta:
            raise FileError(f"{path} does not fit {title}: {name!r} holds {t.dtype} ({t.layout}), no plain numbers")
    state = {
        key.ours: key.join(*(tensors[n].reshape(s) for n, s in zip(key.names, key.shapes, strict=True)))
        for key in found if key.ours
    }  # fmt: skip
    network.load_state_dict(state, assign=True)
    for module in network.modules():
        if isinstance(module, (NoiseEmbedding, Resample)):
            module.fill()
    return network


def _bare(shape: Shape) -> Shape:
    """Without ones at the end."""
    return _bare(shape[:-1]) if shape and shape[-1] == 1 else shape
