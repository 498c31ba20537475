"""From the tensors of a published file to those of a network here: names, shapes and the order of numbers.

What published networks do differently in storage alone vanishes here, once, when a file is read: queries, keys and
values lie in another order or apart (:func:`qkv`), sines come before cosines (:func:`swapped`), 1x1 convolutions are
flat, more channels come out than an image has (:func:`cut`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple, TypeVar

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
    shapes: tuple[Shape, ...]  # there; ones at the end do not matter
    join: Callable[..., Tensor]  # from the tensors there, of these shapes, to ours


def same(ours: str, name: str, tensor: Tensor) -> Key:
    """The same numbers under another name."""
    return Key(ours, (name,), (tuple(tensor.shape),), lambda found: found)


def swapped(ours: str, name: str, tensor: Tensor) -> Key:
    """Columns for sines, then for cosines, where ours are the other way round."""
    return Key(ours, (name,), (tuple(tensor.shape),), lambda found: found.roll(found.shape[1] // 2, 1))


def cut(ours: str, name: str, tensor: Tensor, channels: int) -> Key:
    """The first of ``channels`` outputs, of which a network that learned variances too has more."""
    return Key(ours, (name,), ((channels, *tensor.shape[1:]),), lambda found: found[: len(tensor)].clone())


def qkv(ours: str, name: str, tensor: Tensor, heads: int, order: str) -> Key:
    """Channels that lie as ``order`` says, slowest first: h heads, t query, key and value, c channels; ours "thc"."""
    sizes = dict(h=heads, t=3, c=len(tensor) // 3 // heads)

    def join(found: Tensor) -> Tensor:
        apart = found.reshape(*(sizes[axis] for axis in order), *found.shape[1:])
        return apart.movedim([order.index(axis) for axis in "thc"], (0, 1, 2)).reshape(found.shape)

    return Key(ours, (name,), (tuple(tensor.shape),), join)


def unused(names: Iterable[str], shape: Shape) -> list[Key]:
    """What a file must have, of one shape, and nothing here needs."""
    return [Key("", (name,), (shape,), lambda found: found) for name in names]


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
