"""Run the workflow on this machine, or where a profile says, with a line for each finished job.

Snakemake's own words go to ``.jobs/snakemake.log`` beside the executed pages, those of each job to a log beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from book import kernels
from book.jobs import DONE, FAILED, UNCHANGED, Jobs
from book.pages import ROOT, BookError

PATIENCE = 10  # seconds that a stopped workflow has to put things away


def command(jobs: Jobs, profile: str | None, gpus: int) -> list[str]:
    """What starts Snakemake."""
    config = {"preset": jobs.preset, "folder": str(jobs.folder.resolve()), "pages": ",".join(jobs.pages), **jobs.more}
    config |= {"force": "1"} if jobs.force else {}
    config |= {} if jobs.sharded is None else {"sharded": "1" if jobs.sharded else "0"}
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    words += ["--directory", str(jobs.folder / ".jobs"), "--nolock"]  # instead of its lock, which outlives a kill: ours
    words += ["--config", *(f"{k}={v}" for k, v in config.items())]
    words += ["--workflow-profile", str(Path(profile or ROOT / "workflow" / "profiles" / "default").resolve())]
    if profile is None:
        words += ["--cores", str(len(os.sched_getaffinity(0)))]
        words += ["--default-resources", "gpu=1", "--resources", f"gpu={gpus}", "sharing=1"] if gpus else []
    return words


def last_line(path: Path) -> str:
    """The last whole line of a log, or nothing."""
    try:
        with open(path, "rb") as f:
            f.seek(max(0, path.stat().st_size - 4096))
            text = f.read().decode(errors="replace")
    except OSError:
        return ""
    lines = text.rpartition("\n")[0].replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[IO[str]]:
    """Keep ``folder`` to one run at a time, with a lock that ends with the processes which hold its file.

    If that is a workflow whose run was killed, it is ended, and this run goes on in its place.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            owner, _, workflow = lock.read().partition(" ")
            if not workflow or Path("/proc", owner).exists():
                raise BookError(f"another run is at work on {folder.parent}; wait for it, or stop it") from None
            stop(int(workflow))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def stop(group: int) -> None:
    """End a workflow and what it started: first as Ctrl-C does, then by force."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        until = time.monotonic() + PATIENCE
        with contextlib.suppress(ProcessLookupError):  # there is none left
            os.killpg(group, number)
            while time.monotonic() < until:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(-group, os.WNOHANG)
                os.killpg(group, 0)
                time.sleep(0.1)
            continue
        return


def duration(seconds: float) -> str:
    """Seconds in words: ``"50 s"``, ``"7 min"``, ``"1.5 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Progress:
    """The lines of a run, and how long the rest takes.

    The estimate is what the pages took before, scaled by what the finished ones took now.  There is none on a cluster
    (``cores`` is 0) or if the seconds of less than half of the jobs are known.
    """

    def __init__(self, jobs: Jobs, todo: Iterable[str], cores: int) -> None:
        self.jobs, self.cores, self.start = jobs, cores, time.monotonic()
        self.todo = list(todo)
        self.done = [name for name in jobs.pages if name not in self.todo]
        known = {name: seconds for name, seconds in jobs.seconds.items() if name in self.todo}
        usual = sum(known.values()) / len(known) if cores and len(known) * 2 > len(self.todo) else 0
        self.expected = {name: known.get(name, usual) if usual else 0 for name in self.todo}
        self.outcomes, self.took = dict[str, str](), dict[str, int]()
        self.width = max(map(len, self.done + self.todo), default=0)

    def remaining(self) -> str:
        """How long the rest takes, in words; empty if nothing is known."""
        if not any(self.expected.values()):
            return ""
        finished = sum(self.expected[name] for name in self.took)
        scale = sum(self.took.values()) / finished if finished else 1
        left = sum(self.expected.values()) * scale / self.cores - (time.monotonic() - self.start)
        return f"about {duration(max(10, round(left, -1)))}"

    def first_lines(self) -> None:
        """Print how much there is to do, and what is done already."""
        if self.todo:
            print(", ".join(filter(None, [f"pages to run: {len(self.jobs.stale)}", self.remaining()])), flush=True)
        for name in self.done:
            self.report(name, UNCHANGED)

    def report(self, name: str, outcome: str) -> None:
        """Print what came of one job, and how long the rest takes."""
        self.outcomes[name] = outcome
        seconds = re.fullmatch(rf"{DONE} (\d+) s", outcome)
        if seconds and name in self.jobs.pages:
            self.took[name] = int(seconds[1])
            self.jobs.measured.write_text(json.dumps(self.jobs.seconds | self.took, indent=1) + "\n")
        shown = f"{seconds[1] + ' s':>6}" if seconds else UNCHANGED if outcome == UNCHANGED else "FAILED"
        total = len(self.done + self.todo)
        left = self.remaining() if seconds and len(self.outcomes) < total else ""
        line = f"[{len(self.outcomes):>{len(str(total))}}/{total}] {name:<{self.width}}  {shown}"
        print(line + (f"   {left} left" if left else ""), flush=True)


def run(jobs: Jobs, *, profile: str | None = None, gpus: int = 0) -> None:
    """Do what is to be done, going on after a failure.

    Raises
    ------
    BookError
        What failed, one line each.
    """
    with alone(jobs.folder / ".jobs") as lock, contextlib.ExitStack() as stack:
        jobs.forget()
        for name in jobs.pages:  # what a page had open when it was killed
            for scratch in jobs.folder.glob(f".{name}.*/"):
                shutil.rmtree(scratch)
        logs = jobs.logs()
        progress = Progress(jobs, logs, 0 if profile else len(os.sched_getaffinity(0)))
        progress.first_lines()
        if not logs:
            return
        for path in logs.values():
            path.unlink(missing_ok=True)
        if profile is None and not gpus and len(jobs.stale) > 2:  # a fork cannot use CUDA
            stack.enter_context(kernels.warm_kernels())
        journal = jobs.folder / ".jobs" / "snakemake.log"
        with open(journal, "w") as log:
            process = subprocess.Popen(
                command(jobs, profile, gpus), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, pass_fds=[lock.fileno()],
            )  # fmt: skip
        lock.truncate(0)
        print(os.getpid(), process.pid, file=lock, flush=True)
        try:
            follow(process, logs, progress)
        except BaseException:
            stop(process.pid)
            raise
        if process.returncode:
            raise BookError(explain(logs, progress.outcomes, journal))


def follow(process: subprocess.Popen[bytes], logs: dict[str, Path], progress: Progress) -> None:
    """Report each job when its log says that it is finished, until the workflow ends."""
    running = True
    while running:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            running = False
        for name in [name for name in logs if name not in progress.outcomes]:
            if (line := last_line(logs[name])).startswith((DONE, UNCHANGED, FAILED)):
                progress.report(name, line)


def explain(logs: dict[str, Path], outcomes: dict[str, str], journal: Path) -> str:
    """What failed, or never came to an end, a line each."""
    lost = {name: last_line(path) for name, path in logs.items() if name not in outcomes}
    lines = [outcome.removeprefix(FAILED).strip() for outcome in outcomes.values() if outcome.startswith(FAILED)]
    lines += [
        f"{name}: ended without a word; see {logs[name]}" if not what else f"{name}: {what}"
        for name, what in lost.items()
        if logs[name].is_file()
    ]
    if waiting := [name for name in lost if not logs[name].is_file()]:
        lines.append(f"not run for that: {', '.join(waiting)}")
    if not lines or waiting == list(logs):
        return f"the workflow did not start; see {journal}: {last_line(journal)}"
    return "\n".join(lines)
