"""Checkpoints that are pickles, read without running anything in them.

A pickle is a program: it names functions and calls them.  NVIDIA's networks (Karras et al. 2022) even carry
their own source code, which unpickling executes.  Here no name is ever looked up.  Reading has two steps:

1. The pickle machine of the standard library builds *records*: where the program says "call this global with
   these arguments", a :class:`Record` notes the name and the arguments, and nothing is called.  Names that are
   not on the list :data:`ADMITTED` are refused, and so are the opcodes that these files have no use for.
2. :func:`network` reads the records it knows (tensors, numpy scalars, modules) into plain Python values by
   rules written below, and ignores the source code.

Bytes that torch has written inside the pickle go through ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from dode.utils.files import FileError, first_line, present

PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
CONTAINERS = ("ModuleDict", "ModuleList", "Sequential")
# Out of reach: the registry of extension codes skips `find_class` once it is warm, persistent ids and buffers come
# from outside the file, INST and OBJ are older spellings of a call, BYTEARRAY8 allocates before it reads.
NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
OPCODES = NAMES.keys() - {
    code[0]
    for code in (
        pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER,
        pickle.READONLY_BUFFER, pickle.BYTEARRAY8, pickle.INST, pickle.OBJ,
    )
}  # fmt: skip


class Refused(Exception):
    """What the file asked for, in words that follow "it"."""


class Record:
    """One object as the pickle describes it: arguments, state and items, none of them acted upon."""

    name: ClassVar[str]
    args: tuple[Any, ...]
    state: Any
    items: dict[Any, Any]

    def __new__(cls, *args: Any) -> Record:
        self = super().__new__(cls)
        self.args, self.state, self.items = args, None, {}
        return self

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.items[key] = value


class Reader(pickle._Unpickler):
    """The pickle machine, with records for globals.  Each reader makes its own record types: nothing is shared."""

    dispatch: ClassVar = {code: action for code, action in pickle._Unpickler.dispatch.items() if code in OPCODES}

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.types: dict[str, type[Record]] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        full = f"{module}.{name}"
        if full not in ADMITTED:
            raise Refused(f"asks for {full!r}, which no network needs")
        if full not in self.types:
            self.types[full] = type("Record", (Record,), {"name": full})
        return self.types[full]


@dataclass(frozen=True)
class Module:
    """A pickled module: the name of its class, and its attributes."""

    kind: str  # e.g. "EDMPrecond"
    state: dict[str, Any]  # the instance's ``__dict__``: plain values, tensors, and more :class:`Module`

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the module was built with, positional and by keyword."""
        return tuple(self.state.get("_init_args") or ()), dict(self.state.get("_init_kwargs") or {})

    @property
    def children(self) -> dict[str, Module]:
        return {k: v for k, v in self.state.get("_modules", {}).items() if v is not None}

    def tensors(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and persistent buffers by name, as ``torch.nn.Module.state_dict`` would give them."""
        passing = self.state.get("_non_persistent_buffers_set", set())
        found = self.state.get("_parameters", {}) | {
            k: v for k, v in self.state.get("_buffers", {}).items() if k not in passing
        }
        own = {prefix + name: value for name, value in found.items() if value is not None}
        for name, child in self.children.items():
            own |= child.tensors(f"{prefix}{name}.")
        return own


def _storage(raw: bytes) -> torch.storage.TypedStorage:
    """The bytes that torch wrote for one storage."""
    try:
        found = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = f"for {name[1]!r}" if name else f"to read bytes that torch cannot ({first_line(error)})"
        raise Refused(f"asks, inside a tensor, {reason}") from None
    if not isinstance(found, torch.storage.TypedStorage):
        raise Refused(f"has a {type(found).__name__} where a tensor's numbers belong")
    return found


def _tensor(storage: torch.storage.TypedStorage, offset: int, size: tuple, stride: tuple, *rest: Any) -> Tensor:
    """A view of a storage, inside its bounds; ``rest`` (gradients wanted, hooks) does not matter here."""
    numbers, dtype = storage._untyped_storage, storage.dtype
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if all(size) else offset - 1
    if min((offset, *size, *stride)) < 0 or (last + 1) * dtype.itemsize > numbers.nbytes():
        raise Refused(f"has a tensor of shape {size} that reaches beyond its numbers")
    return torch.empty(0, dtype=dtype).set_(numbers, offset, size, stride)


def _dtype(record: Record) -> np.dtype:
    """A plain number's numpy type: its code, and the byte order in its state."""
    code, order = record.args[0], record.state[1] if record.state else "="
    if not re.fullmatch("[biuf][1248]", code):
        raise Refused(f"has numpy values of type {code!r}, which are not numbers")
    return np.dtype(order.replace("|", "=") + code)


class Tree:
    """Records to values.  Each record is read once, so that what was shared in the file stays shared."""

    def __init__(self) -> None:
        self.seen: dict[int, Any] = {}

    def value(self, node: Any) -> Any:
        if isinstance(node, type) and issubclass(node, Record):
            raise Refused(f"has {node.name!r} where a value belongs")
        if not isinstance(node, (Record, dict, list, tuple, set)):
            return node
        if id(node) not in self.seen:
            self.seen[id(node)] = self._read(node)
        return self.seen[id(node)]

    def _read(self, node: Any) -> Any:
        if isinstance(node, Record):
            return READERS[node.name](self, node)
        if isinstance(node, dict):
            return {self.value(k): self.value(v) for k, v in node.items()}
        return type(node)(self.value(v) for v in node)

    def mapping(self, record: Record) -> dict[Any, Any]:
        """An ``OrderedDict`` or ``EasyDict``: pairs among the arguments, or items set one by one."""
        return {**dict(*self.value(record.args)), **self.value(record.items)}

    def scalar(self, record: Record) -> float | int | bool:
        dtype, raw = self.value(record.args)
        return np.frombuffer(raw, dtype, count=1)[0].item()

    def array(self, record: Record) -> np.ndarray:
        """``_reconstruct`` makes an empty array; its state has version, shape, dtype, order and bytes."""
        _, shape, dtype, fortran, raw = self.value(record.state)
        return np.frombuffer(raw, dtype).reshape(shape, order="F" if fortran else "C")

    def container(self, record: Record) -> Module:
        return Module(record.name.rpartition(".")[2], self.value(record.state))

    def persistent(self, record: Record) -> Module:
        """NVIDIA's ``persistence``: type, version, source code, class name and state.  The source is not used."""
        meta = self.value(record.args[0])
        if meta["type"] != "class":
            raise Refused(f"has a persistent {meta['type']!r}, not a class")
        return Module(str(meta["class_name"]), dict(meta["state"] or {}))


READERS: dict[str, Callable[[Tree, Record], Any]] = {
    PERSISTENT: Tree.persistent,
    "dnnlib.util.EasyDict": Tree.mapping,
    "collections.OrderedDict": Tree.mapping,
    "builtins.set": lambda tree, record: set(*tree.value(record.args)),
    "torch.storage._load_from_bytes": lambda tree, record: _storage(*record.args),
    "torch._utils._rebuild_tensor_v2": lambda tree, record: _tensor(*tree.value(record.args)),
    "torch._utils._rebuild_parameter": lambda tree, record: tree.value(record.args[0]),
    "numpy.dtype": lambda tree, record: _dtype(record),
    "numpy.ndarray": lambda tree, record: None,  # an argument of `_reconstruct`
    **{f"{core}.multiarray.scalar": Tree.scalar for core in ("numpy.core", "numpy._core")},
    **{f"{core}.multiarray._reconstruct": Tree.array for core in ("numpy.core", "numpy._core")},
    **{f"torch.nn.modules.container.{name}": Tree.container for name in CONTAINERS},
}
ADMITTED = frozenset(READERS)


def read(path: str | Path) -> Any:
    """The pickle as records: containers, numbers, text, bytes and :class:`Record`.  Nothing has been called.

    FileError for a file that is missing, a folder or no pickle, ends early, or asks for what is not on the list.
    """
    path = present(path)
    with path.open("rb") as file:
        if file.peek(1)[:1] != pickle.PROTO:  # a zip file of torch's, a web page
            raise FileError(f"{path} is no pickle of protocol 2 or newer; get it again")
        try:
            return Reader(file).load()
        except Refused as refusal:
            raise FileError(f"{path} is refused: it {refusal}; nothing in it was run") from None
        except KeyError as error:  # the machine looks opcodes up by number
            code = error.args[0]
            foreign = code in NAMES and code not in OPCODES
            what = f"uses the pickle opcode {NAMES[code]}, which no network needs" if foreign else "is damaged"
            raise FileError(f"{path} is refused: it {what}; nothing in it was run") from None
        except Exception as error:  # whatever a damaged program does to the machine
            raise FileError(f"{path} is not a whole pickle ({first_line(error)}); get it again") from None


def network(path: str | Path) -> Module:
    """The module in a checkpoint of NVIDIA's: the entry "ema" of a dictionary or ``EasyDict``, or a module alone.

    Parameters and buffers are CPU tensors in the file's dtype.
    FileError as of :func:`read`, and for a file that holds no module.
    """
    node = read(path)
    try:
        if isinstance(node, Record) and READERS[node.name] is Tree.mapping:  # of a training state only this is read
            node = dict(*node.args) | node.items
        node = node.get("ema") if isinstance(node, dict) else node
        if isinstance(node, Record) and node.name == PERSISTENT:
            return Tree().value(node)
    except Refused as refusal:
        raise FileError(f"{path} is refused: it {refusal}; nothing in it was run") from None
    except Exception as error:
        raise FileError(f"{path} does not describe a network ({first_line(error)}); get it again") from None
    raise FileError(f"{path} is a pickle, but holds no network of NVIDIA's under 'ema'")
