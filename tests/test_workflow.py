"""The workflow: one job a page, sweeps in pieces where they pay, and runs that fail, go on, and can be killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from logging import makeLogRecord
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from jupyter_client.manager import start_new_kernel
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from book import build, jobs, kernels, pages, progress, runner
from dode import experiments

ROOT = pages.ROOT
PROFILES = ROOT / "workflow" / "profiles"
PAGES = pages.pages()


def until(there: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, f"it did not come to that in {seconds} s"
        time.sleep(0.1)


# -- which jobs there are --------------------------------------------------------------------------


@pytest.mark.slow
def test_on_a_cluster_the_pieces_come_first_and_each_has_a_gpu(tmp_path: Path) -> None:
    profile = PROFILES / "slurm"
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--directory", str(tmp_path), "--nolock"]
    command += ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--workflow-profile", str(profile)]
    command += ["--config", "preset=paper", "checkpoint=fashion-mnist-noise"]
    environment = {**os.environ, "DODE_RESULTS": str(tmp_path / "results")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    counts = {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE)}
    assert counts == {"all": 1, "page_figure_3": 1, "page_figure_4": 1, "piece": 30, "total": 33}
    there, here = (yaml.safe_load((path / "config.yaml").read_text()) for path in (profile, PROFILES / "default"))
    assert there["executor"] == "slurm" and "gpu=1" in there["default-resources"]
    for word in ("resources", "scheduler", "keep-going", "rerun-incomplete", "rerun-triggers"):
        assert here[word] == there[word]


def test_a_preset_of_two_pages_borrows_the_others(tmp_path: Path) -> None:
    build.copy_pages(set(PAGES) - set(jobs.chosen("paper")), ROOT / "book", tmp_path)
    assert {path.stem for path in tmp_path.glob("*.ipynb")} == set(PAGES) - set(jobs.SWEPT)


def test_what_has_its_rows_is_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DODE_RESULTS", str(tmp_path / "results"))
    first, *others = jobs.pieces("figure_4", "standard")
    plan = experiments.plan("figure_4", "standard")
    cells = [cell for cell in plan.cells if (cell["checkpoint"], cell["solver"], cell["block"]) == first]
    sweep = plan.sweep()
    sweep.add(*(dict.fromkeys(sweep.gives, "1") | cell for cell in cells))
    assert jobs.pieces("figure_4", "standard") == others


def test_pages_that_write_one_file_take_turns() -> None:
    """Each file of results that several pages write, from the sources, has its pages in turn or one at a time."""
    writers: dict[str, set[str]] = {}
    for name in jobs.chosen("smoke"):
        text = pages.source(name).read_text(encoding="utf-8")
        written = re.findall(r'(?:\.rows\([^"\n]*, |experiments\.plan\()"(\w+)"', text)
        for file in written + ["learned"] * ("learned.compare(" in text):
            writers.setdefault(file, set()).add(name)
    shared = {file: names for file, names in writers.items() if len(names) > 1}
    assert shared == {"learned": set(jobs.SHARE), "figure_3": {"figure_3", "limits"}}
    assert "figure_3" in jobs.AFTER["limits"]
    named = set(jobs.EARLY) | set(jobs.SHARE) | set(jobs.AFTER).union(*jobs.AFTER.values())
    assert named <= set(PAGES) and set(jobs.SWEPT) == set(experiments.plans.PLANS)


def test_a_name_that_no_page_has() -> None:
    with pytest.raises(pages.BookError, match="^no page named figure_7; there are: index, "):
        jobs.chosen("quick", ["figure_7"])


# -- runs of a small book --------------------------------------------------------------------------

HEADER = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---
# %% tags=["parameters"]
preset = "quick"
checkpoint = "fashion-mnist-noise"
# %%
"""
DRIVER = """
import json, signal, sys
from pathlib import Path
from book import pages, runner
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as book/build.py does
try:
    runner.run(Path("out"), {"preset": "smoke", **json.loads(sys.argv[1])}, gpus=sys.argv[2])
except KeyboardInterrupt:
    sys.exit("stopped")
except pages.BookError as error:
    sys.exit(f"error: {error}")
"""
PIECES = """
from dode import experiments
plan = experiments.plan("figure_4", preset, checkpoint)
rows = plan.sweep().select(plan.cells)
assert len(rows) == len(plan.cells) == 4, rows
"""
SLOW = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.1)"


class Book:
    """A project with the workflow of this one and pages of a line each."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.started = folder, folder / "out", list[subprocess.Popen[str]]()
        shutil.copytree(ROOT / "workflow", folder / "workflow")
        shutil.copytree(ROOT / "book", folder / "book", ignore=lambda _, names: [n for n in names if n[-3:] != ".py"])
        for name in ("notebooks", "dode"):
            (folder / name).mkdir()
        (folder / "requirements.lock").touch()

    def write(self, **sources: str) -> None:
        for name, source in sources.items():
            (self.folder / "notebooks" / f"{name}.py").write_text(HEADER + source)
        first, *others = (f"book/{p.stem}" for p in sorted((self.folder / "notebooks").glob("*.py")))
        toc = {"format": "jb-book", "root": first, "chapters": [{"file": name} for name in others]}
        (self.folder / "_toc.yml").write_text(yaml.safe_dump(toc))

    def start(self, gpus: str = "", **config: str) -> subprocess.Popen[str]:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{self.folder}:{ROOT}",
            "DODE_RESULTS": str(self.folder / "results"),
        }
        command, pipe = [sys.executable, "-c", DRIVER, json.dumps(config), gpus], subprocess.PIPE
        process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=pipe, stderr=pipe, text=True)
        self.started.append(process)
        return process

    def run(self, gpus: str = "", **config: str) -> tuple[int, list[str], str]:
        """The exit status, a line a job without the seconds, and what was said on stderr."""
        process = self.start(gpus, **config)
        out, err = process.communicate(timeout=240)
        lines = [re.sub(r" +", " ", re.sub(r"\d+ s( .* left)?$", "N s", line)) for line in out.splitlines()]
        return process.returncode, [lines[0].partition(",")[0], *sorted(line[6:] for line in lines[1:])], err

    def printed(self, name: str) -> str:
        return json.loads((self.out / f"{name}.ipynb").read_text())["cells"][-1]["outputs"][0]["text"][0]


@pytest.fixture
def book(tmp_path: Path) -> Iterator[Book]:
    yield (book := Book(tmp_path))
    for process in book.started:
        process.kill()  # so that a test that fails leaves nothing at work


@pytest.mark.slow
def test_a_run_goes_on_after_a_failure_and_the_next_one_does_what_is_left(book: Book) -> None:
    """One page fails; another waits for a piece of its sweep, and finds the rows."""
    book.write(bad='raise ValueError(f"no {preset}\\nmore")', figure_4=PIECES)
    sweep = {"sharded": "1", "checkpoint": "fashion-mnist-noise"}
    code, lines, err = book.run(**sweep)
    piece = "figure_4: fashion-mnist-noise, ddim, block 0 N s"
    assert lines == [
        "pages to run: 2 of 2",
        "bad FAILED notebooks/bad.py: ValueError: no smoke",
        "figure_4 N s",
        piece,
    ], err
    assert code == 1 and err.startswith("error: ") and err.count("\n") == 2
    assert [p.name for p in book.out.iterdir() if p.name[0] != "."] == ["figure_4.ipynb"]
    assert (book.folder / "_build" / "failed" / "bad.ipynb").is_file()
    assert (book.folder / "results" / "figure_4.smoke.csv").read_text().count("\n") == 5
    book.write(bad="1 + 1")
    assert book.run(**sweep) == (0, ["pages to run: 1 of 2", "bad N s"], "")


@pytest.mark.slow
def test_a_page_runs_again_when_what_it_is_made_from_changes(book: Book) -> None:
    """Its source or the package; a file that was only touched, or results of small presets, change nothing."""
    book.write(one="import os; print(os.environ['DODE_JOBS'])", two="1 + 1")
    assert book.run()[1] == ["pages to run: 2 of 2", "one N s", "two N s"]
    (book.folder / "notebooks" / "one.py").touch()
    (book.folder / "results").mkdir()
    (book.folder / "results" / "figure_4.smoke.csv").touch()
    assert book.run() == (0, ["pages to run: 0 of 2"], "")
    book.write(two="2 + 2")
    assert book.run()[1] == ["pages to run: 1 of 2", "two N s"]
    (book.folder / "dode" / "new.py").touch()
    assert book.run()[1][0] == "pages to run: 2 of 2"
    assert book.printed("one") == f"{max(1, jobs.cores() // 2)}\n"  # processes that its own sweep may use


@pytest.mark.slow
def test_a_killed_run_and_a_stopped_one_go_on(book: Book) -> None:
    """Killed without a chance to put things away, or stopped: what was finished stays, nothing half-written counts."""
    book.write(index="1 + 1", two=SLOW)  # in this order, on one core too
    partial = book.folder / "_build" / "failed" / "two.ipynb"
    killed = book.start()
    assert killed.stdout and [killed.stdout.readline() for _ in range(2)][1].startswith("[1/2] index")
    until(partial.is_file)
    killed.kill()
    killed.communicate()
    stopped = book.start()
    assert stopped.stdout and stopped.stdout.readline().startswith("pages to run: 1 of 2")
    partial.unlink()  # of the killed page, which has ended
    until(partial.is_file)
    stopped.send_signal(signal.SIGTERM)
    assert stopped.communicate()[1] == "stopped\n" and not (book.out / "two.ipynb").exists()
    (book.folder / "go").touch()
    assert book.run() == (0, ["pages to run: 1 of 2", "two N s"], "")


@pytest.mark.slow
@pytest.mark.skipif(jobs.cores() < 2, reason="two jobs side by side")
def test_jobs_side_by_side_have_a_gpu_each(book: Book) -> None:
    show = "import os, pathlib, time; pathlib.Path(NAME).touch(); print(os.environ['CUDA_VISIBLE_DEVICES'])\n"
    wait = "while not all(map(os.path.exists, 'ab')): time.sleep(0.1)"
    book.write(one=show.replace("NAME", "'a'") + wait, two=show.replace("NAME", "'b'") + wait)
    assert book.run(gpus="5,7")[0] == 0
    assert {book.printed("one"), book.printed("two")} == {"5\n", "7\n"}


def test_two_runs_of_one_book_do_not_meet(tmp_path: Path) -> None:
    (tmp_path / ".jobs").mkdir()
    with (
        FileLock(tmp_path / ".jobs" / "lock"),
        pytest.raises(pages.BookError, match=r"^another run is at work on .*; wait for it, or stop it$"),
    ):
        runner.run(tmp_path, {"preset": "smoke"})


def test_what_is_left_is_reckoned_from_what_pages_took(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seconds = {"index": 100, "tableau": 100, "unified": 100, "ablations": 9}
    (tmp_path / "seconds.json").write_text(json.dumps(seconds))
    lines, numbers = progress.Progress(tmp_path, "smoke", 21), {"index": 1, "tableau": 2, "unified": 3, "learned": 4}

    def say(event: str, now: float, **facts: object) -> None:
        lines.emit(makeLogRecord({"event": event, "created": now, **facts}))

    say("resources_info", 0, cores=2)
    say("run_info", 0, stats={"all": 1, "total": 5} | {f"page_{name}": 1 for name in numbers})
    for name, n in numbers.items():
        say("job_info", 0 if n < 3 else 50, jobid=n, rule_msg=name, rule_name=f"page_{name}", log=[tmp_path / "none"])
    say("job_finished", 50, job_id=1)  # twice as fast as before: 200 s of one core in all
    say("job_error", 50, jobid=2)
    say("job_finished", 95, job_id=4)
    say("job_error", 95, jobid=2)  # at the end Snakemake says so again
    say("job_finished", 95, job_id=3)
    assert [re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines()] == [
        "pages to run: 4 of 21, about 3 min",
        "[1/4] index 50 s about 50 s left",
        f"[2/4] tableau FAILED ended without a word; see {tmp_path / 'none'}",
        "[3/4] learned 45 s about 10 s left",
        "[4/4] unified 45 s",
    ]
    assert json.loads((tmp_path / "seconds.json").read_text()) == seconds | {"index": 50, "learned": 45, "unified": 45}


# -- warm kernels ------------------------------------------------------------------------------------

CELL = """
import os, sys
import matplotlib.pyplot as plt
print(os.environ["MARK"], os.getcwd(), plt.get_backend(), "dode.experiments.plots" in sys.modules, flush=True)
plt.plot([1, 2])
plt.show()
"""


def outputs(folder: Path) -> list[dict]:
    notebook = new_notebook(cells=[new_code_cell(CELL)])
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook.cells[0].outputs


@pytest.mark.slow
def test_a_warm_kernel_is_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", "before")
    usual = outputs(tmp_path)
    with kernels.warm_kernels() as environment:
        monkeypatch.setenv("JUPYTER_PATH", environment["JUPYTER_PATH"])
        monkeypatch.setenv("MARK", "within")
        warm = outputs(tmp_path)
        manager, client = start_new_kernel(cwd=str(tmp_path))
        client.execute_interactive("import os; open('pid', 'w').write(str(os.getpid()))")
        kernel = Path("/proc", (tmp_path / "pid").read_text())
        assert kernel.exists()
        manager.shutdown_kernel(now=True)  # kills what it has started
        until(lambda: not kernel.exists())
        manager, client = start_new_kernel()
        client.execute("import os; os.kill(os.getpid(), 9)")
        until(lambda: not manager.is_alive())
    assert usual[0].text.strip() == f"before {tmp_path} module://matplotlib_inline.backend_inline False"
    assert warm[0].text.strip() == f"within {tmp_path} module://matplotlib_inline.backend_inline True"
    assert warm[1] == usual[1]  # the picture, bit for bit


@pytest.mark.slow
def test_without_a_server_the_client_is_a_usual_kernel(tmp_path: Path) -> None:
    command = [sys.executable, "-S", kernels.__file__, "client", str(tmp_path / "none"), "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and re.fullmatch(r"\d+\.\d+\.\S+\s*", done.stdout), done.stderr
