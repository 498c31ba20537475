"""The workflow: one job a page, pieces of sweeps where they pay, and runs that fail, go on, and can be killed."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from book import build, jobs, pages, runner
from book.jobs import Jobs
from dode import experiments
from dode.experiments import plans, shard

ROOT = pages.ROOT
PROFILES = ROOT / "workflow" / "profiles"
PAGES = pages.pages()


def dry_run(folder: Path, *words: str) -> str:
    """What Snakemake would do in the repository, with no results there."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--directory", str(folder), "--nolock"]
    command += ["--snakefile", str(ROOT / "workflow" / "Snakefile"), *words]
    environment = {**os.environ, "DODE_RESULTS": str(folder / "results"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


def count(said: str) -> dict[str, int]:
    """How often each rule would run, from Snakemake's table."""
    return {name: int(n) for name, n in re.findall(r"^(\w+) +(\d+)$", said, re.MULTILINE)}


# -- which jobs there are --------------------------------------------------------------------------


def test_at_small_presets_a_page_is_one_job(tmp_path: Path) -> None:
    assert list(Jobs("quick", tmp_path).logs()) == PAGES


@pytest.mark.slow
def test_on_a_cluster_the_pieces_come_first_and_each_has_a_gpu(tmp_path: Path) -> None:
    profile = str(PROFILES / "slurm")
    said = dry_run(tmp_path, "--workflow-profile", profile, "--config", "preset=full", "pages=figure_3,index")
    assert count(said) == {"all": 1, "page_figure_3": 1, "page_index": 1, "shard": 27, "total": 30}
    jobs = [part for part in re.split(r"^\[.*\]\n", said, flags=re.MULTILINE) if part.startswith("rule ")]
    assert len(jobs) == 30 and all(re.search(r"resources: .*\bgpu=1\b", job) for job in jobs)
    assert max(int(n) for job in jobs for n in re.findall(r"threads: (\d+)", job) or [1]) <= 4
    (page,) = (job for job in jobs if job.startswith("rule page_figure_3:"))
    (inputs,) = re.findall(r"input: (.*)", page)
    assert inputs.count(".csv") == 27


@pytest.mark.slow
def test_at_paper_there_are_two_pages(tmp_path: Path) -> None:
    found = count(dry_run(tmp_path, "--config", "preset=paper", "checkpoint=fashion-mnist-noise", "--cores", "1"))
    assert found == {"all": 1, "page_figure_3": 1, "page_figure_4": 1, "shard": 30, "total": 33}
    assert Jobs("paper", tmp_path).pages == list(plans.PLANS)


def test_a_preset_of_two_pages_borrows_the_others(tmp_path: Path) -> None:
    stage = build.stage(tmp_path / "stage", committed=False)
    build.fill_missing_pages(stage, set(PAGES) - set(Jobs("paper", stage).pages))
    there = {path.stem for path in (stage / "book").glob("*.ipynb")}
    assert there == set(PAGES) - set(plans.PLANS)
    assert {path.stem for path in (stage / "book" / "images").glob("thumb_*")} <= {f"thumb_{name}" for name in there}


def test_the_profiles_say_the_same_but_where() -> None:
    here, there = (yaml.safe_load((PROFILES / name / "config.yaml").read_text()) for name in ("default", "slurm"))
    assert there["executor"] == "slurm" and "executor" not in here
    for word in ("scheduler", "keep-going", "rerun-incomplete", "rerun-triggers"):
        assert here[word] == there[word]


def test_what_is_done_is_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DODE_RESULTS", str(tmp_path / "results"))
    plan = experiments.plan("figure_4", "standard")
    first, second, *others = shard.shards(plan)
    plan.sweep().add(*(dict(cell, fd="1") for cell in first.cells))
    todo = Jobs("standard", tmp_path, names=("figure_4",))
    assert todo.shards("figure_4") == [todo.shard_file(s) for s in (second, *others)]
    for piece in (first, second):  # one that was merged, one that waits for its page
        Path(todo.shard_file(piece)).parent.mkdir(parents=True, exist_ok=True)
        Path(todo.shard_file(piece)).touch()
    stamp = Path(todo.stamp("figure_4"))
    stamp.touch()
    todo.forget()
    assert not stamp.exists() and not Path(todo.shard_file(first)).exists() and Path(todo.shard_file(second)).exists()
    assert len(todo.logs()) == len(others) + 1
    assert not Jobs("quick", tmp_path, names=("figure_4",)).shards("figure_4")
    assert len(Jobs("smoke", tmp_path, names=("figure_4",), sharded=True).shards("figure_4")) == 6


def test_the_command_line_of_a_run_gives_its_jobs_back(tmp_path: Path) -> None:
    given = Jobs("paper", tmp_path, True, {"checkpoint": "a.safetensors"}, ("figure_3",), False)
    words = runner.command(given, None, 2)
    config = dict(word.split("=", 1) for word in words[words.index("--config") + 1 : words.index("--workflow-profile")])
    assert Jobs.of(config) == given
    assert words[-5:] == ["--default-resources", "gpu=1", "--resources", "gpu=2", "sharing=1"]
    assert "--cores" not in runner.command(given, str(PROFILES / "slurm"), 2)
    assert given.options == ["--checkpoint", "a.safetensors", "--force"]
    with pytest.raises(pages.BookError, match="^no page named figure_7; there are: index, "):
        _ = Jobs("quick", tmp_path, names=("figure_7",)).pages
    assert set(jobs.EARLY) | set(jobs.SHARE) | set(jobs.AFTER_KEPT).union(*jobs.AFTER_KEPT.values()) <= set(PAGES)


def test_pages_that_write_one_file_take_turns(tmp_path: Path) -> None:
    """Each file of results that several pages write, from the sources, has its pages in turn or one at a time."""
    writers: dict[str, set[str]] = {}
    for name in PAGES:
        text = pages.source(name).read_text(encoding="utf-8")
        written = re.findall(r'(?:results_file|experiments\.(?:results|plan))\(\s*"(\w+)"', text)
        written += ["learned"] * ("learned.compare(" in text)
        for file in written:
            writers.setdefault(file, set()).add(name)
    shared = {file: names for file, names in writers.items() if len(names) > 1}
    assert shared == {"learned": set(jobs.SHARE), "figure_4": {"figure_4", "table_1"}}
    assert "figure_4" in jobs.AFTER["table_1"]
    todo = Jobs("standard", tmp_path)
    assert todo.before("limits") == [todo.stamp("figure_3"), todo.stamp("figure_4")]
    assert Jobs("quick", tmp_path).before("limits") == []
    for name in ("default", "slurm"):
        assert "sharing=1" in yaml.safe_load((PROFILES / name / "config.yaml").read_text())["resources"]


@pytest.mark.parametrize(
    ("text", "last"), [("", ""), ("a\ndone in 3 s\n", "done in 3 s"), ("a\ndone in", "a"), ("1%\r 2%\nb\n\n", "b")]
)
def test_half_a_line_is_no_line(text: str, last: str, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(text)
    assert runner.last_line(tmp_path / "log") == last
    assert runner.last_line(tmp_path / "none") == ""


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
from book import runner
from book.jobs import Jobs
from book.pages import BookError
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as book/build.py does
try:
    runner.run(Jobs("smoke", Path("out"), **json.loads(sys.argv[1])))
except KeyboardInterrupt:
    sys.exit("stopped")
except BookError as error:
    sys.exit(f"error: {error}")
"""
PIECES = """
from dode import experiments
plan = experiments.plan("figure_4", preset, checkpoint)
rows = plan.sweep().select(plan.cells)
assert len(rows) == len(plan.cells) == 4, rows
"""


@pytest.fixture
def book(tmp_path: Path) -> Path:
    """A project with the workflow of this one and no pages yet."""
    shutil.copytree(ROOT / "workflow", tmp_path / "workflow")
    (tmp_path / "book").mkdir()
    for path in (ROOT / "book").glob("*.py"):
        shutil.copy(path, tmp_path / "book")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "requirements.lock").touch()
    return tmp_path


def write(book: Path, **sources: str) -> None:
    for name, source in sources.items():
        (book / "notebooks" / f"{name}.py").write_text(HEADER + source)
    names = sorted(path.stem for path in (book / "notebooks").glob("*.py"))
    toc = {"root": f"book/{names[0]}", "chapters": [{"file": f"book/{name}"} for name in names[1:]]}
    (book / "_toc.yml").write_text(yaml.safe_dump(toc))


def start(book: Path, **options: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{book}:{ROOT}", "DODE_RESULTS": str(book / "results")}
    command = [sys.executable, "-c", DRIVER, json.dumps(options)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=book, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, list[str], str]:
    """Exit status, a line a job with the seconds and what is left replaced, and what was said on stderr."""
    out, err = process.communicate(timeout=240)
    lines = [line for line in out.splitlines() if line.startswith("[")]
    return process.returncode, [re.sub(r" +", " ", re.sub(r"\d+ s( .* left)?$", "N s", line)) for line in lines], err


@pytest.mark.slow
def test_a_run_goes_on_after_a_failure_and_the_next_one_does_what_is_left(book: Path) -> None:
    """One page fails; another waits for a piece of its sweep, and finds the rows."""
    write(book, bad='raise ValueError(f"no {preset}\\nmore")', figure_4=PIECES)
    (book / "out" / ".figure_4.killed").mkdir(parents=True)
    options = {"sharded": True, "more": {"checkpoint": "fashion-mnist-noise"}}
    code, lines, err = finish(start(book, **options))
    piece = "figure_4: fashion-mnist-noise, ddim, block 0 N s"
    assert code == 1 and sorted(line[6:] for line in lines) == sorted(["bad FAILED", piece, "figure_4 N s"]), err
    assert err == "error: notebooks/bad.py: ValueError: no smoke\n"
    assert sorted(p.name for p in (book / "out").iterdir()) == [".jobs", "figure_4.ipynb"]
    assert (book / "_build" / "failed" / "bad.ipynb").is_file()
    assert (book / "results" / "figure_4.smoke.csv").read_text().count("\n") == 5
    assert not list((book / "out").rglob("*.csv"))  # merged, so gone: who deletes the results measures again
    assert "page_bad" in (book / "out" / ".jobs" / "snakemake.log").read_text()  # its noise stays there
    write(book, bad="import os; print(os.environ['DODE_JOBS'])")
    assert finish(start(book, **options)) == (0, ["[1/2] figure_4 unchanged", "[2/2] bad N s"], "")
    before = (book / "out" / ".jobs" / "snakemake.log").stat().st_mtime_ns
    assert finish(start(book, **options)) == (0, ["[1/2] bad unchanged", "[2/2] figure_4 unchanged"], "")
    assert (book / "out" / ".jobs" / "snakemake.log").stat().st_mtime_ns == before  # it was not even started


@pytest.mark.slow
def test_a_killed_run_and_a_stopped_one_go_on(book: Path) -> None:
    """Killed without a chance to put things away, or stopped: what was finished stays, nothing half-written counts."""
    wait = "import pathlib, time\nwhile not pathlib.Path('go').exists(): time.sleep(0.1)"
    write(book, one="1 + 1", two=wait)
    killed = start(book)
    until(lambda: (book / "out" / "one.ipynb").is_file() and list((book / "out").glob(".two.*/plain.ipynb")))
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    stopped = start(book)  # it ends what the killed one left running
    lock = book / "out" / ".jobs" / "lock"
    at_work = lambda: lock.read_text().startswith(f"{stopped.pid} ") and [*(book / "out").glob(".two.*/plain.ipynb")]  # noqa: E731
    until(lambda: stopped.poll() is not None or at_work())
    stopped.send_signal(signal.SIGTERM)
    code, _, err = finish(stopped)
    assert (code, err) == (1, "stopped\n") and not list((book / "out").glob(".two.*"))
    (book / "go").touch()
    assert finish(start(book)) == (0, ["[1/2] one unchanged", "[2/2] two N s"], "")
    assert sorted(p.name for p in (book / "out").iterdir()) == [".jobs", "one.ipynb", "two.ipynb"]


def test_what_is_left_is_reckoned_from_what_pages_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    todo = Jobs("smoke", tmp_path, names=("index", "tableau", "unified", "learned"))
    todo.measured.parent.mkdir()
    todo.measured.write_text(json.dumps({"index": 100, "tableau": 100, "unified": 100, "ablations": 9}))
    now = 0.0
    monkeypatch.setattr(runner.time, "monotonic", lambda: now)
    progress = runner.Progress(todo, todo.pages, cores=2)
    progress.first_lines()
    now = 50.0
    progress.report("index", "done in 50 s")  # twice as fast as before: 200 s of one core in all
    progress.report("tableau", "failed: notebooks/tableau.py: ValueError")
    now = 95.0
    progress.report("learned", "done in 45 s")
    progress.report("unified", "done in 45 s")
    first, *lines = (re.sub(" +", " ", line) for line in capsys.readouterr().out.splitlines())
    assert first == "pages to run: 4, about 3 min"
    assert lines[:2] == ["[1/4] index 50 s about 50 s left", "[2/4] tableau FAILED"]
    assert lines[2:] == ["[3/4] learned 45 s about 10 s left", "[4/4] unified 45 s"]
    assert todo.seconds["index"] == 50 and todo.seconds["ablations"] == 9
    assert runner.Progress(todo, ["limits", "dlms"], cores=2).remaining() == ""  # nothing is known
    assert runner.Progress(todo, todo.pages, cores=0).remaining() == ""


def until(there: Callable[[], object]) -> None:
    for _ in range(1200):
        if there():
            return
        time.sleep(0.1)
    pytest.fail("it did not come to that in two minutes")


def test_two_runs_of_one_book_do_not_meet(tmp_path: Path) -> None:
    with runner.alone(tmp_path / ".jobs") as lock:
        print(os.getpid(), 2**30, file=lock, flush=True)
        with (
            pytest.raises(pages.BookError, match=r"^another run is at work on .*; wait for it, or stop it$"),
            runner.alone(tmp_path / ".jobs"),
        ):
            pass
    with runner.alone(tmp_path / ".jobs"):
        pass
