"""What all tests share: property tests that can be repeated, and a catalogue of published networks with rows added."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from test_pickles import Nvidia

    from dode.zoo import Row

# The same examples each time, so that a red run can be repeated.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture
def nvidia() -> Nvidia:
    from test_pickles import Nvidia

    return Nvidia()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Row]:
    """Puts rows into the catalogue, and the cache into a folder of the test."""
    from dode.zoo import CATALOGUE

    monkeypatch.setenv("DODE_CACHE", str(tmp_path / "cache"))

    def add(name: str, like: str, **changes: Any) -> Row:
        row = replace(CATALOGUE[like], name=name, shape=(3, 8, 8), digest="", size=0, **changes)
        monkeypatch.setitem(CATALOGUE, name, row)  # type: ignore[arg-type]
        return row

    return add
