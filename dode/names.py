"""Names that somebody typed: the nearest of those there are, and whether it is a file's."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

SUFFIX = ".safetensors"


def nearest(name: str, known: Iterable[str], most: int = 2) -> str:
    """Those of ``known`` that begin so, or else those most like it, as ``"a, b"``."""
    known = list(known)
    begun = [one for one in known if name and one.startswith(name)]
    return ", ".join(difflib.get_close_matches(name, begun or known, n=most, cutoff=0.0))


def names_a_file(name: str | Path) -> bool:
    """Whether this names a file of tensors, there or not: by its ending, in small letters or capitals."""
    return str(name).lower().endswith(SUFFIX)
