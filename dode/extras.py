"""What dode does without where it is not installed: ``pip install dode`` brings torch, numpy and safetensors alone."""

from __future__ import annotations

import importlib
from typing import Any


def need(module: str, extra: str, what: str) -> Any:
    """Import ``module``, which ``pip install 'dode[extra]'`` brings.

    Raises
    ------
    ImportError
        It is not installed; the message says ``what`` needs it, and the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:  # it is there, and broken: not for us to explain
            raise
        raise ImportError(f"{what} needs {error.name}: pip install 'dode[{extra}]'", name=error.name) from None


class Silent:
    """A progress bar that shows nothing; has the part of tqdm that dode uses."""

    def __init__(self, iterable: Any = None, **_: Any) -> None:
        self.iterable = () if iterable is None else iterable

    def __iter__(self) -> Any:
        return iter(self.iterable)

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """A step is done."""

    def close(self) -> None:
        """The work is done."""


def _bar() -> Any:
    try:
        return need("tqdm", "cli", "a progress bar").tqdm
    except ImportError:
        return Silent


tqdm = _bar()
