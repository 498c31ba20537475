"""The published notebooks are executed and current, and their sources run and give the same numbers twice."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import nbformat
import pytest
from nbformat import NotebookNode
from sphinx_external_toc.parsing import parse_toc_yaml

from book import build, jobs, pages, runner

ROOT = pages.ROOT
SANITIZE = ROOT / "tests" / "nbval_sanitize.cfg"
PAGES = pages.pages()
KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def cells_as_written(notebook: NotebookNode) -> list[tuple[str, str]]:
    return [(c.cell_type, c.source.strip()) for c in notebook.cells if "injected-parameters" not in tags(c)]


# -- the table of contents, the sources, the published pages ------------------------------------------


def test_every_page_has_a_source_and_every_source_a_page() -> None:
    files = [Path(file).name for file in parse_toc_yaml(ROOT / "_toc.yml")]
    sources, prose = ({path.stem for path in ROOT.glob(pattern)} for pattern in ("notebooks/*.py", "book/*.md"))
    assert sorted(files) == sorted([*sources, *prose]), "a page has no source, or both prose and a notebook"
    gallery = (ROOT / "book" / "gallery.md").read_text(encoding="utf-8")
    assert re.findall(r"^:link: (\w+)$", gallery, re.MULTILINE) == [name for name in PAGES if name != "index"]


@pytest.mark.parametrize("name", PAGES)
def test_a_source_has_a_kernel_and_one_cell_of_parameters(name: str) -> None:
    notebook = pages.read_source(name)
    assert notebook.metadata.kernelspec.name == "python3"
    (cell,) = (c for c in notebook.cells if "parameters" in tags(c))
    for parameter in ("preset", "checkpoint", "device", "seeds"):
        assert re.search(rf"^{parameter}\b.*=", cell.source, re.MULTILINE), f"{name} has no parameter {parameter!r}"
    assert re.search(r'^preset.*= "quick"', cell.source, re.MULTILINE)


@pytest.mark.parametrize("name", PAGES)
def test_the_published_page_is_executed_and_current(name: str) -> None:
    path = ROOT / "book" / f"{name}.ipynb"
    assert path.is_file(), f"{name} is not published; run: make publish"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert cells_as_written(notebook) == cells_as_written(pages.read_source(name)), f"{name} is stale: make publish"
    cells = code_cells(notebook)
    assert cells and all(c.execution_count for c in cells), f"{name} has cells that were not run"
    outputs = [o for c in cells for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"], f"{name} warns or fails"
    assert outputs, f"{name} shows nothing"
    assert notebook.metadata.dode.preset in build.PRESETS
    assert not [key for c in notebook.cells for key in ("papermill", "execution") if key in c.metadata]


def test_nothing_is_published_unless_every_page_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither if a page fails, nor if the pages that ran do not build."""
    published: list[Path] = []
    stage, failed = tmp_path / "stage", pages.BookError("one page")
    monkeypatch.setattr(sys, "argv", ["book/build.py", "run", "--publish"])
    for step in ("run", "build_html"):
        with monkeypatch.context() as patch:
            patch.setattr(build, "stage", lambda *_, committed: stage)
            patch.setattr(build.runner, "run", lambda *_, **__: None)
            patch.setattr(build, "publish", published.append)
            patch.setattr(build.runner if step == "run" else build, step, Mock(side_effect=failed))
            with pytest.raises(SystemExit, match="^error: one page$"):
                build.main()
    assert not published


def test_progress_bars_and_times_do_not_reach_a_page() -> None:
    cell = nbformat.v4.new_code_cell("1", execution_count=1, metadata={"execution": {}, "papermill": {}})
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="\r  0%|          | 0/3\r100%|██████████| 3/3 [00:00]\n"),
        nbformat.v4.new_output("stream", name="stderr", text="\n 40%|####  | 2/5 [00:01<00:02]\x1b[A"),
        nbformat.v4.new_output("stream", name="stdout", text="50%\r100%\nkept\n"),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": KERNEL, "papermill": {}})
    tidied = pages.tidy(notebook, "smoke")
    assert [o.text for o in tidied.cells[0].outputs] == ["100%\nkept\n"]
    assert not tidied.cells[0].metadata and "papermill" not in tidied.metadata


# -- the sources, freshly run --------------------------------------------------------------------


def fresh_results(folder: Path) -> Path:
    """Copy the committed results: a page may read the papers' numbers, but must measure its own at ``smoke``."""
    (folder / "results").mkdir(parents=True, exist_ok=True)
    for path in (ROOT / "results").glob("*"):
        if path.is_file() and not path.name.endswith(tuple(f".{p}.csv" for p in jobs.TRANSIENT)):
            shutil.copy(path, folder / "results")
    return folder / "results"


def nbval(folder: Path) -> str:
    """Run every notebook in ``folder`` again, compare the cells tagged ``nbval-check-output``; what was said."""
    command = [sys.executable, "-m", "pytest", "--nbval-lax", "-p", "no:python", "-p", "no:cacheprovider", "-v"]
    command += ["--rootdir", str(folder), "-c", os.devnull, "--nbval-sanitize-with", str(SANITIZE), str(folder)]
    environment = {**os.environ, "DODE_RESULTS": str(fresh_results(folder)), "DODE_JOBS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return done.stdout.decode()


def words(cell: NotebookNode) -> set[str]:
    """Of a cell's printed output and values."""
    texts = (o.get("text", "") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)
    return set(re.findall("[A-Za-z]{3,}", "\n".join(texts)))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every notebook run at ``smoke``, away from the repository's own results."""
    folder = tmp_path_factory.mktemp("fresh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DODE_RESULTS", str(fresh_results(folder)))
        runner.run(folder, {"preset": "smoke"})
    return folder


@pytest.mark.slow
def test_fresh_notebooks_say_what_the_published_ones_say(fresh: Path) -> None:
    """Numbers are of another preset, and there may be fewer rows; but no cell has new words, or none at all."""
    for name in jobs.chosen("smoke"):
        made, kept = (nbformat.read(folder / f"{name}.ipynb", as_version=4) for folder in (fresh, ROOT / "book"))
        assert all(cell.execution_count for cell in code_cells(made)), f"{name} has cells that were not run"
        published = {cell.source: words(cell) for cell in code_cells(kept)}
        checked = [cell for cell in code_cells(made) if "nbval-check-output" in tags(cell)]
        assert any(map(words, checked)), f"no cell of {name} tagged nbval-check-output has an output"
        for cell in checked:
            assert words(cell) <= published.get(cell.source, set()) | {"none"}, f"{name}: {cell.source}"


@pytest.mark.slow
def test_nbval_finds_the_same_again_and_notices_a_changed_output(fresh: Path, tmp_path: Path) -> None:
    """On one page without a network and one with; a comparison is worth nothing if it cannot fail."""
    cells = 0
    for name in ("unified", "figure_2"):
        shutil.copy(fresh / f"{name}.ipynb", tmp_path)
        cells += len(code_cells(nbformat.read(fresh / f"{name}.ipynb", as_version=4)))
    output = nbformat.v4.new_output("stream", name="stdout", text="5\n")
    metadata = {"tags": ["nbval-check-output"]}
    cell = nbformat.v4.new_code_cell("print(2 + 2)", outputs=[output], execution_count=1, metadata=metadata)
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": KERNEL})
    nbformat.write(notebook, tmp_path / "changed.ipynb")
    said = nbval(tmp_path)
    assert re.findall(r"^FAILED (\w+)\.ipynb", said, re.MULTILINE) == ["changed"], said[-5000:]
    assert f"1 failed, {cells} passed" in said, said[-2000:]
