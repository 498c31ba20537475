"""Files of torch's as weights by name.

Everything goes through ``torch.load(weights_only=True)``, which looks up no name and calls nothing but what makes a
tensor.  A training state names classes of its program as well; in their place stands an object that ignores its
arguments.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dode.utils.files import FileError, present


class Ignored:
    """In the place of an object of the training program, or of a type that it names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def filled(*args: Any) -> dict[Any, Any]:
    """In the place of a dictionary that torch does not know: a plain one, which may be filled."""
    return {}


def load(path: Path, ignored: tuple[str, ...] = ()) -> Any:
    """What torch finds in a file.

    Objects whose names are among ``ignored``, or begin with one of them that ends with a dot, may be there, as
    :class:`Ignored`.

    FileError for a file that is missing, a folder, not torch's, damaged, or asks for more than tensors.
    """
    whole = zipfile.is_zipfile(present(path))
    try:
        # files of the older format, which are no zip files, cannot be asked for their names
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path) if ignored and whole else []
        modules = tuple(name for name in ignored if name.endswith("."))
        stand_ins: list[Any] = [
            (filled if name == "collections.defaultdict" else Ignored, name)
            for name in names if name in ignored or name.startswith(modules)
        ]  # fmt: skip
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=whole)
    except Exception as error:
        reasons = [line.strip() for line in str(error).splitlines() if "GLOBAL" in line] or [str(error).split("\n")[0]]
        raise FileError(f"{path} is not a file of weights alone ({reasons[0][:200]}); nothing in it was run") from None


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The state dictionary in a file; of the lists that DDIM's program writes, the averaged weights.

    FileError as of :func:`load`, and for a file that holds anything else.
    """
    state = load(path)
    if isinstance(state, (list, tuple)) and state:  # network, optimizer, epoch, step, and averages if there are any
        state = state[4] if len(state) > 4 else state[0]
    if not is_state(state):
        raise FileError(f"{path} does not hold the weights of one network")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def is_state(found: Any) -> bool:
    """Whether it is a dictionary of tensors, and not empty."""
    return isinstance(found, dict) and bool(found) and all(isinstance(value, Tensor) for value in found.values())
