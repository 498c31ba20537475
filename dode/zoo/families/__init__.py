"""Families of checkpoints, a file each: how its files are read, and the cards of those that are known.

A file in this folder registers itself with :func:`dode.zoo.catalogue.family`; nothing else has to name it.
"""

from importlib import import_module
from pkgutil import iter_modules


def discover() -> None:
    """Import every file of this folder."""
    for module in iter_modules(__path__):
        import_module(f"{__name__}.{module.name}")


discover()
