"""What all tests share: how they use the machine, repeatable property tests, and rows for the published catalogue."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from test_pickles import Nvidia

    from dode.zoo import Card

# A core each: torch is not imported yet, and the processes that tests start inherit this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples each time, so that a red run can be repeated.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.register_profile("fast", settings.get_profile("repeatable"), max_examples=10)  # make test-fast
settings.load_profile("repeatable")


def pytest_xdist_auto_num_workers() -> int:
    """A process for each core that this process may use (xdist counts those of the whole machine)."""
    return min(8, len(os.sched_getaffinity(0)))  # torch takes about 1 GB of memory in each


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that have slow tests come first, so that no process is left alone with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, and the folder we are in: references, fits and rows land there."""
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def nvidia() -> Nvidia:
    from test_pickles import Nvidia

    return Nvidia()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Card]:
    """Puts rows into the catalogue, and the cache into a folder of the test."""
    from dode.zoo import CATALOGUE

    monkeypatch.setenv("DODE_CACHE", str(tmp_path / "cache"))

    def add(name: str, like: str, **changes: Any) -> Card:
        row = replace(CATALOGUE[like], name=name, shape=(3, 8, 8), digest="", size=0, **changes)
        monkeypatch.setitem(CATALOGUE, name, row)  # type: ignore[arg-type]
        return row

    return add
