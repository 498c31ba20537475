"""Files: whole or absent, tensors only, and one clear line when something is wrong.

Everything dode writes goes through :func:`atomic`, so a full disk or a kill leaves the old file
or none, never half of a new one.  Tensors are stored as safetensors with a JSON header; nothing
here opens a pickle, and nothing anywhere in dode runs one (:mod:`dode.zoo.pickles` reads some as data).
Importing this module imports no torch: the command line checks names with it before it needs any.
"""

from __future__ import annotations

import difflib
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from torch import Tensor

SUFFIX = ".safetensors"


class FileError(ValueError):
    """A file that cannot be used; the message says which, why and what to do."""


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; rename it there on success, delete it on failure."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)  # mkstemp makes private files; these are meant to be shared
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` to ``path``, whole or not at all."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], kind: str, metadata: Mapping[str, Any]) -> Path:
    """Store tensors and JSON-serialisable ``metadata`` as one safetensors file.

    ``kind`` names what the file is ("tableau", "network"); :func:`load_tensors` checks it.
    """
    from safetensors.torch import save

    header = {"dode": json.dumps({"kind": kind, "metadata": dict(metadata)}, sort_keys=True)}  # one key: stable bytes
    blob = save({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}, header)
    with atomic(path) as temporary:
        temporary.write_bytes(blob)
    return Path(path)


def present(path: str | Path) -> Path:
    """The path of a file that is there.  FileError if it is not, or is a folder."""
    path = Path(path)
    if path.is_dir():
        raise FileError(f"{path} is a folder; name a file")
    if not path.is_file():
        raise FileError(f"{path} does not exist; check the path")
    return path


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of :func:`save_tensors`: ``(tensors, metadata)``.

    FileError for a file that is missing, a folder, truncated, not safetensors, not dode's, or of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = present(path)
    try:
        with safe_open(path, framework="pt") as f:
            header = f.metadata() or {}
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        message = f"{path} is not a readable safetensors file ({error}); it may be truncated: make it again"
        raise FileError(message) from None
    if "dode" not in header:
        raise FileError(f"{path} was not written by dode (no 'dode' in its header)")
    try:
        facts = json.loads(header["dode"])
        found, metadata = facts["kind"], dict(facts["metadata"])
    except (KeyError, TypeError, ValueError):
        raise FileError(f"{path} has a damaged header; make it again") from None
    if found != kind:
        raise FileError(f"{path} holds a {found}, not a {kind}")
    return tensors, metadata


def nearest(name: str, known: Iterable[str], most: int = 2) -> str:
    """Those of ``known`` that begin so, or else those most like it, as ``"a, b"``."""
    known = list(known)
    begun = [one for one in known if name and one.startswith(name)]
    return ", ".join(difflib.get_close_matches(name, begun or known, n=most, cutoff=0.0))


def one_of(name: str, value: object, choices: Any) -> None:
    """ValueError unless the argument ``name`` is one of ``choices``, a ``Literal``."""
    *others, last = known = get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be {', '.join(map(repr, others))} or {last!r}, got {value!r}")


def first_line(error: Exception) -> str:
    """What an error says first, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def names_a_file(name: str | Path) -> bool:
    """Whether this names a file of tensors, there or not: by its ending, in small letters or capitals."""
    return str(name).lower().endswith(SUFFIX)
