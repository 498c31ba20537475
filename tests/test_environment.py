"""The three files that describe the environment stay in step: pyproject.toml, requirements.lock, environment.yml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import dode

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = sorted(re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"])))


def pins(python: str) -> dict[str, str]:
    """Name -> version that the lock gives a Linux machine with this Python."""
    found: dict[str, str] = {}
    machine = dict(
        python_version=python, python_full_version=f"{python}.7", sys_platform="linux", platform_system="Linux"
    )
    for line in LOCK.splitlines():
        if not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate(machine):
                name = canonicalize_name(requirement.name)
                assert name not in found, f"{name} is pinned twice for Python {python}"
                found[name] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_pins_every_dependency_to_an_allowed_version(python: str) -> None:
    locked = pins(python)
    for text in [*PROJECT["dependencies"], *(d for extra in EXTRAS.values() for d in extra)]:
        wanted = Requirement(text)
        name = canonicalize_name(wanted.name)
        assert name in locked, f"{name} is not in requirements.lock; run: make lock"
        assert wanted.specifier.contains(locked[name]), (
            f"{name} {locked[name]} is not {wanted.specifier}; run: make lock"
        )


def test_the_lock_holds_exact_versions_and_no_address() -> None:
    for line in LOCK.splitlines():
        assert line.startswith("#") or re.match(r"[a-z0-9._-]+==[0-9][0-9a-z.]*( ; [^;]+)?$", line), line
    assert not re.search(r"/|--|\.whl| @ ", LOCK)


def test_torch_and_torchvision_are_one_pair() -> None:
    """Torchvision 0.N is built for torch 2.(N - 15); a mixed pair fails when clean-fid is imported."""
    for python in PYTHONS:
        locked = pins(python)
        assert int(locked["torchvision"].split(".")[1]) - int(locked["torch"].split(".")[1]) == 15


def test_conda_has_the_same_names_and_the_same_lock() -> None:
    (pip,) = (d["pip"] for d in CONDA["dependencies"] if isinstance(d, dict))
    assert CONDA["name"] == PROJECT["name"]
    assert "-r requirements.lock" in pip
    (editable,) = (line for line in pip if line.startswith("-e "))
    assert set(re.findall(r"\w+", editable)) - {"e"} == set(EXTRAS)


def test_the_python_versions_agree() -> None:
    allowed = SpecifierSet(PROJECT["requires-python"])
    (conda,) = (d.split("=")[1] for d in CONDA["dependencies"] if isinstance(d, str) and d.startswith("python="))
    assert conda in PYTHONS
    assert all(allowed.contains(python) for python in PYTHONS)
    assert allowed.contains("3.11") and not allowed.contains("3.10")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "version_info < (3, 11)" in makefile and "--python-version 3.11" in makefile


def test_the_version_is_the_one_to_cite_and_has_its_changes() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == dode.__version__
    changes = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes[0] == dode.__version__
