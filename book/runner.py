"""Run the workflow on this machine, or where a profile says, and tell in one line a job how it went.

Snakemake's own words go to ``.jobs/snakemake.log`` beside the executed pages, those of each job to a log beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

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


def run(jobs: Jobs, *, profile: str | None = None, gpus: int = 0) -> None:
    """Do what is to be done, going on after a failure.

    Raises
    ------
    BookError
        What failed, one line each.
    """
    with alone(jobs.folder / ".jobs") as lock:
        jobs.forget()
        for name in jobs.pages:  # what a page had open when it was killed
            for scratch in jobs.folder.glob(f".{name}.*/"):
                shutil.rmtree(scratch)
        logs, told = jobs.logs(), dict[str, str]()
        names = [*(name for name in jobs.pages if name not in logs), *logs]
        width = max(map(len, names), default=0)

        def tell(name: str, what: str) -> None:
            told[name] = what
            shown = f"{what.removeprefix(DONE):>8}" if what.startswith(DONE) else what.partition(":")[0].upper()
            line = f"[{len(told)}/{len(names)}] {name:<{width}}  "
            print(line + (UNCHANGED if what == UNCHANGED else shown), flush=True)

        for name in names[: len(names) - len(logs)]:
            tell(name, UNCHANGED)
        if not logs:
            return
        for path in logs.values():
            path.unlink(missing_ok=True)
        journal = jobs.folder / ".jobs" / "snakemake.log"
        with open(journal, "w") as log:
            process = subprocess.Popen(
                command(jobs, profile, gpus), cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True, pass_fds=[lock.fileno()],
            )  # fmt: skip
        lock.truncate(0)
        print(os.getpid(), process.pid, file=lock, flush=True)
        try:
            running = True
            while running:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(0.2)
                    running = False
                for name in [name for name in logs if name not in told]:
                    if (said := last_line(logs[name])).startswith((DONE, UNCHANGED, FAILED)):
                        tell(name, said)
        except BaseException:
            stop(process.pid)
            raise
        if process.returncode:
            raise BookError(explain(logs, told, journal))


def explain(logs: dict[str, Path], told: dict[str, str], journal: Path) -> str:
    """What failed, or never came to an end, a line each."""
    lost = {name: last_line(path) for name, path in logs.items() if name not in told}
    lines = [what.removeprefix(FAILED).strip() for what in told.values() if what.startswith(FAILED)]
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
