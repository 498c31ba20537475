"""One page: from its source in ``notebooks/`` to an executed notebook, whole or not at all.

The sources are never written to.  Each is converted by jupytext and executed by papermill.  One page as a job of the
workflow is ``python -m book.pages NAME PRESET FOLDER [PARAMETER=VALUE ...]``; torch is not imported for it.
"""

from __future__ import annotations

import base64
import ctypes
import io
import os
import re
import signal
import sys
from pathlib import Path

import jupytext
import nbformat
import papermill
from nbformat import NotebookNode
from PIL import Image, ImageOps
from sphinx_external_toc.parsing import parse_toc_yaml

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"
os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else each kernel warns about its debugger
THUMBNAIL = (480, 320)
QUIET_KERNEL = "--IPKernelApp.log_level=50"  # its errors come as messages; its log would tear the progress lines
PROGRESS_BAR = re.compile(r"^.*\d+%\|.*\|.*$\n?", re.MULTILINE)
CURSOR_UP = "\x1b[A"  # what a bar below another leaves behind


class BookError(Exception):
    """What went wrong, in one line for the person at the terminal."""


def pages() -> list[str]:
    """The names of the pages that are notebooks, in reading order."""
    return [name for file in parse_toc_yaml(ROOT / "_toc.yml") if source(name := Path(file).name).is_file()]


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


def tidy(notebook: NotebookNode, preset: str) -> NotebookNode:
    """Drop what differs from run to run without meaning: times, progress bars, versions of the kernel."""
    notebook.metadata = NotebookNode(
        kernelspec=notebook.metadata.kernelspec,
        language_info={"name": "python", "pygments_lexer": "ipython3"},
        dode={"preset": preset},
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


def execute(name: str, preset: str, folder: Path, **more: str) -> None:
    """Run one notebook, with ``more`` parameters beside the preset, into ``folder``.

    Raises
    ------
    BookError
        The notebook failed; what there is of it is kept in ``_build/failed/`` to be looked at.
    """
    partial = BUILD / "failed" / f"{name}.ipynb"
    for parent in (partial.parent, folder):
        parent.mkdir(parents=True, exist_ok=True)
    parameters, options = {"preset": preset, **more}, {"progress_bar": False, "extra_arguments": [QUIET_KERNEL]}
    try:
        notebook = papermill.execute_notebook(read_source(name), partial, parameters, cwd=ROOT, **options)
    except Exception as error:  # a failing cell, a dead kernel, a full disk: all end this page alone
        kind, text = getattr(error, "ename", type(error).__name__), str(getattr(error, "evalue", error)).strip()
        raise BookError(f"notebooks/{name}.py: {kind}: {text.splitlines()[0] if text else ''}") from error
    partial.unlink(missing_ok=True)
    notebook = tidy(notebook, preset)
    thumbnail(notebook, folder / "images" / f"thumb_{name}.png")
    nbformat.write(notebook, folder / f"{name}.ipynb")


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


def end_with_parent(number: int) -> None:
    """Have Linux send this process a signal when the process that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(1, number)  # PR_SET_PDEATHSIG


def main() -> None:
    """Run one page as a job; if it fails, the last line on stderr says why."""
    name, preset, folder, *more = sys.argv[1:]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    end_with_parent(signal.SIGTERM)
    try:
        execute(name, preset, Path(folder), **dict(pair.split("=", 1) for pair in more))
    except (BookError, OSError) as error:
        sys.exit(" ".join(str(error).split()))
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
