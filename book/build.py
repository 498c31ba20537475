"""Run the notebooks and build the book; ``make book``, ``make html`` and ``make publish`` call this.

The sources are ``notebooks/*.py`` and are never written to.  Each is converted by jupytext and executed by papermill
into a *stage*, ``_build/stage/<preset>/``, beside copies of the configuration and the prose; Jupyter Book builds the
stage.  So the repository stays as it was, and a notebook that failed or was killed leaves nothing half-written.  Only
``--publish`` copies executed notebooks and thumbnails back to ``book/``, where the committed book lives.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import yaml
from nbformat import NotebookNode
from PIL import Image, ImageOps

from dode import experiments

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
PRESETS = tuple(experiments.PRESETS)
TRANSIENT = ("smoke", "quick")  # presets whose results are not committed
THUMBNAIL = (480, 320)
QUIET_KERNEL = "--IPKernelApp.log_level=50"  # its errors come as messages; its log would tear the progress lines
PROGRESS_BAR = re.compile(r"^.*\d+%\|.*\|.*$\n?", re.MULTILINE)
CURSOR_UP = "\x1b[A"  # what a bar below another leaves behind


class BookError(Exception):
    """What went wrong, in one line for the person at the terminal."""


def toc_files(entry: dict[str, Any]) -> Iterator[str]:
    """Every file that ``_toc.yml`` names, in reading order."""
    if name := entry.get("root") or entry.get("file"):
        yield name
    for key in ("parts", "chapters", "sections"):
        for child in entry.get(key, []):
            yield from toc_files(child)


def pages() -> list[str]:
    """The names of the pages that are notebooks, in reading order."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    return [name for name in (Path(f).name for f in toc_files(toc)) if source(name).is_file()]


def source(name: str) -> Path:
    """Where the notebook of a page is edited."""
    return ROOT / "notebooks" / f"{name}.py"


def read_source(name: str) -> NotebookNode:
    """Convert a source to a notebook, with the same cell ids each time so that diffs stay small."""
    notebook = jupytext.read(source(name))
    for i, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{i:02d}"
        cell.metadata.pop("lines_to_next_cell", None)
    return notebook


def fingerprint(name: str, preset: str) -> str:
    """Digest everything a page is made from; an executed page with the same one is still good."""
    passing = tuple(f".{p}.csv" for p in {*TRANSIENT, preset})
    inputs = [source(name), ROOT / "requirements.lock", *sorted((ROOT / "dode").rglob("*"))]
    inputs += [p for p in sorted((ROOT / "results").glob("*.csv")) if not p.name.endswith(passing)]
    digest = hashlib.sha256(preset.encode())
    for path in inputs:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def tidy(notebook: NotebookNode, preset: str, inputs: str) -> NotebookNode:
    """Drop what differs from run to run without meaning: times, progress bars, versions of the kernel."""
    notebook.metadata = NotebookNode(
        kernelspec=notebook.metadata.kernelspec,
        language_info={"name": "python", "pygments_lexer": "ipython3"},
        dode={"preset": preset, "inputs": inputs},
    )
    inherited: list[str] = []
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags:
            inherited = [t for t in tags if t != "parameters"]
        if "injected-parameters" in tags:  # papermill's own cell: hidden exactly when the one above it is
            cell.id = f"{notebook.cells[0].id[:-2]}parameters"
            cell.metadata.tags = ["injected-parameters", *inherited]
        for output in cell.get("outputs", []):
            if output.output_type == "stream":  # what a terminal would show after the last carriage return
                text = "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in output.text.split("\n"))
                output.text = PROGRESS_BAR.sub("", text).replace(CURSOR_UP, "") if output.name == "stderr" else text
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.output_type != "stream" or o.text.strip()]
    return notebook


def execute(name: str, preset: str, folder: Path, *, force: bool = False) -> bool:
    """Run one notebook into ``folder`` unless it is there already; say whether it ran.

    Raises
    ------
    BookError
        The notebook failed; what there is of it is kept in ``_build/failed/`` to be looked at.
    """
    target, inputs = folder / f"{name}.ipynb", fingerprint(name, preset)
    if target.is_file() and not force:
        previous = nbformat.read(target, as_version=4).metadata.get("dode", {})
        if previous == {"preset": preset, "inputs": inputs}:
            return False
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
        plain, executed = Path(scratch, "plain.ipynb"), Path(scratch, "executed.ipynb")
        nbformat.write(read_source(name), plain)
        try:
            papermill.execute_notebook(
                plain, executed, {"preset": preset}, cwd=ROOT, progress_bar=False, extra_arguments=[QUIET_KERNEL]
            )
        except Exception as error:  # a failing cell, a dead kernel, a full disk: all end this page alone
            if executed.is_file():
                (BUILD / "failed").mkdir(parents=True, exist_ok=True)
                shutil.copy(executed, BUILD / "failed" / f"{name}.ipynb")
            kind, text = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error)).strip()
            raise BookError(f"notebooks/{name}.py: {kind}: {text.splitlines()[0] if text else ''}") from error
        notebook = tidy(nbformat.read(executed, as_version=4), preset, inputs)
        nbformat.write(notebook, plain)
        thumbnail(notebook, folder / "images" / f"thumb_{name}.png")
        os.replace(plain, target)
    return True


def picture(notebook: NotebookNode) -> bytes | None:
    """Find the picture that stands for a page: of the cell tagged ``thumbnail``, else the first there is; PNG."""
    cells = sorted(notebook.cells, key=lambda cell: "thumbnail" not in cell.metadata.get("tags", []))
    pictures = (o.data["image/png"] for c in cells for o in c.get("outputs", []) if "image/png" in o.get("data", {}))
    found = next(pictures, None)
    return None if found is None else base64.b64decode(found)


def thumbnail(notebook: NotebookNode, target: Path) -> None:
    """Write the gallery's small version of a page's picture."""
    if (content := picture(notebook)) is None:
        return
    with Image.open(io.BytesIO(content)) as image:
        small = ImageOps.pad(image.convert("RGB"), THUMBNAIL, Image.Resampling.LANCZOS, color="white")
    target.parent.mkdir(parents=True, exist_ok=True)
    small.quantize(64).save(target, optimize=True)


def execute_all(preset: str, folder: Path, *, force: bool = False) -> None:
    """Run every notebook into ``folder``, one line each; go on after a failure, and report them all."""
    names, failures = pages(), []
    width = max(map(len, names), default=0)
    for i, name in enumerate(names, 1):
        print(f"[{i}/{len(names)}] {name:<{width}}  ", end="", flush=True)
        start = time.perf_counter()
        try:
            ran = execute(name, preset, folder, force=force)
            print(f"{time.perf_counter() - start:5.0f} s" if ran else "unchanged", flush=True)
        except BookError as error:
            failures.append(str(error))
            print("FAILED", flush=True)
    if failures:
        raise BookError("\n".join(failures) + "\n(as far as they came: _build/failed/)")


def stage(folder: Path, *, committed: bool) -> Path:
    """Lay out what Jupyter Book reads: configuration, prose and, if ``committed``, the published notebooks."""
    mine = ("*.py", "__pycache__") if committed else ("*.py", "__pycache__", "*.ipynb", "thumb_*")
    if committed:
        shutil.rmtree(folder, ignore_errors=True)
        if missing := [name for name in pages() if not (ROOT / "book" / f"{name}.ipynb").is_file()]:
            raise BookError(f"not published yet: {', '.join(missing)}; run: make publish")
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns(*mine), dirs_exist_ok=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, folder)
    return folder


def build_html(folder: Path, output: Path = ROOT) -> Path:
    """Build a stage into ``output/_build/html``, every warning an error; return its ``index.html``."""
    build = output / "_build"
    for old in (build / "html", build / ".doctrees"):
        shutil.rmtree(old, ignore_errors=True)
    build.mkdir(parents=True, exist_ok=True)
    program = str(Path(sys.executable).with_name("jupyter-book"))
    command = [program, "build", "-W", "-n", "--keep-going", "--path-output", str(output), str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log, index = build / "book.log", build / "html" / "index.html"
    said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)  # colours are for terminals
    log.write_text(said, encoding="utf-8")
    if done.returncode or not index.is_file():
        told = re.findall(r"^.*(?:WARNING|CRITICAL|ERROR|Error:).*$", said, re.MULTILINE)
        raise BookError("\n".join(told or said.splitlines()[-5:]) + f"\nthe book was not built; see {log}")
    return index


def renew(names: list[str], preset: str) -> None:
    """Run ``names`` and replace these committed pages alone; the others stay as they are."""
    experiments.preset(preset)
    if unknown := sorted(set(names) - set(pages())):
        raise BookError(f"no page named {', '.join(unknown)}; there are: {', '.join(pages())}")
    folder = BUILD / "stage" / preset
    for name in names:
        execute(name, preset, folder / "book")
    publish(folder, names)
    print(f"published in book/: {', '.join(names)}; look at `git diff --stat`, then commit")


def publish(folder: Path, names: list[str] | None = None) -> None:
    """Replace the committed notebooks and thumbnails by those of a stage: all of them, or ``names`` alone."""
    if names is None:
        for old in [*(ROOT / "book").glob("*.ipynb"), *(ROOT / "book" / "images").glob("thumb_*.png")]:
            old.unlink()
    (ROOT / "book" / "images").mkdir(exist_ok=True)
    for name in names or pages():
        shutil.copy(folder / "book" / f"{name}.ipynb", ROOT / "book")
        if (small := folder / "book" / "images" / f"thumb_{name}.png").is_file():
            shutil.copy(small, ROOT / "book" / "images")
    if front := picture(nbformat.read(ROOT / "book" / "index.ipynb", as_version=4)):
        (ROOT / "book" / "images" / "front.png").write_bytes(front)  # the README shows it


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="book/build.py", description="Run the notebooks and build the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks, then build the book from them")
    run.add_argument("--preset", default="quick", help=", ".join(PRESETS))
    run.add_argument("--publish", action="store_true", help="replace the committed notebooks in book/")
    run.add_argument("--force", action="store_true", help="run notebooks again whose inputs have not changed")
    commands.add_parser("html", help="build the committed book as it is")
    page = commands.add_parser("page", help="run some notebooks and replace the committed ones in book/")
    page.add_argument("names", nargs="+", metavar="NAME", help=", ".join(pages()))
    page.add_argument("--preset", default="quick", help=", ".join(PRESETS))
    arguments = parser.parse_args()

    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else each kernel warns about its debugger
    try:
        if arguments.command == "page":
            return renew(arguments.names, arguments.preset)
        if arguments.command == "run":
            experiments.preset(arguments.preset)
            folder = stage(BUILD / "stage" / arguments.preset, committed=False)
            execute_all(arguments.preset, folder / "book", force=arguments.force)
        else:
            folder = stage(BUILD / "stage" / "committed", committed=True)
        print("building the pages", flush=True)
        index = build_html(folder)
        if arguments.command == "run" and arguments.publish:
            publish(folder)
            print("published in book/: look at `git diff --stat`, then commit")
    except (BookError, ValueError, OSError) as error:  # OSError: a full disk, say
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; finished notebooks are kept, the same command goes on from there")
    print(f"the book: {index}")


if __name__ == "__main__":
    main()
