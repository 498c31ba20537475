"""What is installed and what the machine has: optional packages, and bf16.

``pip install dode`` brings torch, numpy and safetensors alone; what else is missing is said in one line.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def need(module: str, extra: str, what: str) -> Any:
    """Import ``module``, which ``pip install 'dode[extra]'`` brings.

    ImportError if it is not installed; the message says ``what`` needs it, and the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:  # it is there, and broken: not for us to explain
            raise
        raise ImportError(f"{what} needs {error.name}: pip install 'dode[{extra}]'", name=error.name) from None


class Silent(nullcontext[Any]):
    """A progress bar that shows nothing; has the part of tqdm that dode uses."""

    def __init__(self, iterable: Iterable[Any] = (), **_: Any) -> None:
        super().__init__(self)
        self.iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return iter(self.iterable)

    def update(self, n: float = 1) -> None:
        """A step is done."""

    def close(self) -> None:
        """The work is done."""


try:
    tqdm: Any = need("tqdm", "cli", "a progress bar").tqdm
except ImportError:
    tqdm = Silent


def has_bf16(device: str | torch.device) -> bool:
    """Whether ``device`` has bf16 instructions; every GPU that torch runs on counts as one that has.

    A processor without them emulates them: the shipped networks take some seven times as long there as in float32.
    """
    import torch  # here, so that the command line can ask for the other names without it

    if torch.device(device).type != "cpu":
        return True
    has: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every version of torch
    return any(there for what, there in has.items() if "bf16" in what)
