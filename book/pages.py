"""One page: from its source in ``notebooks/`` to an executed notebook, whole or not at all.

The sources are never written to.  Each is converted by jupytext and executed by papermill in a folder of its own; what
came of it takes its place in one move.  Torch is not imported here: the jobs of the workflow start many times.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import papermill
import yaml
from nbformat import NotebookNode
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
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


def fingerprint(name: str, preset: str, **more: str) -> str:
    """Digest everything a page is made from, ``more`` parameters too; an executed page with the same is still good."""
    passing = tuple(f".{p}.csv" for p in {*TRANSIENT, preset})
    inputs = [source(name), ROOT / "requirements.lock", *sorted((ROOT / "dode").rglob("*"))]
    inputs += [p for p in sorted((ROOT / "results").glob("*.csv")) if not p.name.endswith(passing)]
    digest = hashlib.sha256((preset + "".join(f"\n{k}={v}" for k, v in sorted(more.items()))).encode())
    for path in inputs:
        if path.is_file() and path.suffix != ".pyc":
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def is_current(name: str, preset: str, folder: Path, **more: str) -> bool:
    """Whether ``folder`` has the executed page, made from what there is now."""
    target = folder / f"{name}.ipynb"
    made = nbformat.read(target, as_version=4).metadata.get("dode") if target.is_file() else None
    return made is not None and made == {"preset": preset, "inputs": fingerprint(name, preset, **more)}


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


def execute(name: str, preset: str, folder: Path, *, force: bool = False, **more: str) -> bool:
    """Run one notebook, with ``more`` parameters, into ``folder`` unless it is there already; return whether it ran.

    Raises
    ------
    BookError
        The notebook failed; what there is of it is kept in ``_build/failed/`` to be looked at.
    """
    if not force and is_current(name, preset, folder, **more):
        return False
    inputs, parameters = fingerprint(name, preset, **more), {"preset": preset, **more}
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f".{name}.") as scratch:
        plain, executed = Path(scratch, "plain.ipynb"), Path(scratch, "executed.ipynb")
        nbformat.write(read_source(name), plain)
        try:
            papermill.execute_notebook(
                plain, executed, parameters, cwd=ROOT, progress_bar=False, extra_arguments=[QUIET_KERNEL]
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
        os.replace(plain, folder / f"{name}.ipynb")
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
