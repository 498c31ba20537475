"""Run the notebooks and build the book; ``make book``, ``make html`` and ``make publish`` call this.

The sources are ``notebooks/*.py``.  The workflow executes them (:mod:`book.runner`, :mod:`book.pages`) into a *stage*,
``_build/stage/<preset>/``, beside copies of the configuration and the prose; Jupyter Book builds the stage.  So the
repository stays as it was, and a notebook that failed or was killed leaves nothing half-written.  Only ``--publish``
copies executed notebooks and thumbnails back to ``book/``, where the committed book lives.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import nbformat
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for `python book/build.py`

from book import jobs, runner
from book.pages import BUILD, ROOT, BookError, execute, pages, picture
from book.progress import duration
from dode import experiments

PRESETS = tuple(experiments.PRESETS)


def stage(folder: Path, *, committed: bool) -> Path:
    """Lay out what Jupyter Book reads: configuration, prose and, if ``committed``, the published notebooks."""
    left_out = ("*.py", "__pycache__") if committed else ("*.py", "__pycache__", "*.ipynb", "thumb_*")
    if committed:
        shutil.rmtree(folder, ignore_errors=True)
        if missing := [name for name in pages() if not (ROOT / "book" / f"{name}.ipynb").is_file()]:
            raise BookError(f"not published yet: {', '.join(missing)}; run: make publish")
    shutil.copytree(ROOT / "book", folder / "book", ignore=shutil.ignore_patterns(*left_out), dirs_exist_ok=True)
    for name in ("_config.yml", "_toc.yml"):
        shutil.copy(ROOT / name, folder)
    return folder


def copy_pages(names: Iterable[str], source: Path, target: Path) -> None:
    """Copy executed pages that are there, and their thumbnails, from one folder to another."""
    (target / "images").mkdir(parents=True, exist_ok=True)
    for path in (Path(path) for name in names for path in (f"{name}.ipynb", f"images/thumb_{name}.png")):
        if (source / path).is_file():
            shutil.copy(source / path, target / path)


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
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout)  # colours are for terminals
    log.write_text(text, encoding="utf-8")
    if done.returncode or not index.is_file():
        problems = re.findall(r"^.*(?:WARNING|CRITICAL|ERROR|Error:).*$", text, re.MULTILINE)
        raise BookError("\n".join(problems or text.splitlines()[-5:]) + f"\nthe book was not built; see {log}")
    return index


def update_pages(names: list[str], preset: str) -> None:
    """Run ``names`` and replace these committed pages alone; the others stay as they are."""
    folder = BUILD / "stage" / preset
    for name in names:
        execute(name, preset, folder / "book")
    publish(folder, names)
    print(f"published in book/: {', '.join(names)}; look at `git diff --stat`, then commit")


def publish(folder: Path, names: list[str] | None = None) -> None:
    """Replace the committed notebooks and thumbnails by those of a stage: all of them, or ``names`` alone."""
    committed = ROOT / "book"
    if names is None:
        for old in [*committed.glob("*.ipynb"), *committed.glob("images/thumb_*.png")]:
            old.unlink()
    copy_pages(names or pages(), folder / "book", committed)
    if front := picture(nbformat.read(committed / "index.ipynb", as_version=4)):
        (committed / "images" / "front.png").write_bytes(front)  # the README shows it


def gpus() -> str:
    """The GPUs of this machine that may be used: ``"0,1"``; empty if there is none."""
    every = ",".join(map(str, range(torch.cuda.device_count())))
    return every and os.environ.get("CUDA_VISIBLE_DEVICES", every)


def main() -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="book/build.py", description="Run the notebooks and build the book.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run the notebooks, then build the book from them")
    run.add_argument("--preset", default="quick", choices=PRESETS)
    run.add_argument("--publish", action="store_true", help="replace the committed notebooks in book/")
    run.add_argument("--force", action="store_true", help="run notebooks again whose inputs have not changed")
    run.add_argument("--profile", metavar="FOLDER", help="of Snakemake: where to run them (default: this machine)")
    commands.add_parser("html", help="build the committed book as it is")
    page = commands.add_parser("page", help="run some notebooks and replace the committed ones in book/")
    page.add_argument("names", nargs="+", choices=pages(), metavar="NAME", help=", ".join(pages()))
    page.add_argument("--preset", default="quick", choices=PRESETS)
    arguments, start = parser.parse_args(), time.monotonic()

    for number in (signal.SIGTERM, signal.SIGHUP):  # as Ctrl-C: what was started is ended, too
        signal.signal(number, signal.default_int_handler)
    try:
        if arguments.command == "page":
            return update_pages(arguments.names, arguments.preset)
        if arguments.command == "run":
            folder = stage(BUILD / "stage" / arguments.preset, committed=False)
            borrowed = set(pages()) - set(jobs.chosen(arguments.preset))  # at "paper", which has two pages
            copy_pages(borrowed, ROOT / "book", folder / "book")
            config, profile = {"preset": arguments.preset}, arguments.profile or None
            runner.run(folder / "book", config, force=arguments.force, profile=profile, gpus=gpus())
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
    print(f"the book, in {duration(time.monotonic() - start)}: {index}")


if __name__ == "__main__":
    main()
