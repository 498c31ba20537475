"""What a page says: its source as one line of words, for tests that hold sentences to rows."""

from __future__ import annotations

from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def page(name: str) -> str:
    """The source of a notebook, comment marks and line ends made spaces."""
    return " ".join((NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8").replace("\n# ", " ").split())
