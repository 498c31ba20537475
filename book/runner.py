"""Run the workflow on this machine, or where a profile says, with a line for each finished job (:mod:`book.progress`).

Snakemake's own words go to ``.jobs/snakemake.log`` beside the executed pages, those of each job to a log beside it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout

from book import jobs, kernels
from book.pages import ROOT, BookError, end_with_parent
from book.progress import last_line

PATIENCE = 10  # seconds that a stopped workflow has to put things away


def command(folder: Path, config: Mapping[str, str], force: bool, profile: str | None, gpus: str) -> list[str]:
    """What starts Snakemake."""
    config = {**config, "folder": str(folder), "progress": "1", "gpus": gpus}
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "workflow" / "Snakefile")]
    words += ["--directory", str(folder / ".jobs"), "--nolock"]  # its lock outlives a kill
    words += ["--workflow-profile", str(Path(profile or ROOT / "workflow" / "profiles" / "default").resolve())]
    words += ["--forceall"] * force + ["--config", *(f"{k}={v}" for k, v in config.items())]
    if profile is None:
        words += ["--cores", str(jobs.cores())]
        limits = ["--resources", f"gpu={len(gpus.split(','))}", "sharing=1"]
        words += ["--default-resources", "gpu=1", *limits] if gpus else []
    return words


def run(
    folder: Path, config: Mapping[str, str], *, force: bool = False, profile: str | None = None, gpus: str = ""
) -> None:
    """Execute pages into ``folder``, going on after a failure.

    Parameters
    ----------
    folder, config
        Where the pages go; what ``workflow/Snakefile`` lists: the preset, and more.
    force
        Whether pages that are unchanged run, too.
    profile, gpus
        Snakemake's profile, by default this machine; the GPUs of this machine, as ``"0,1"``, one for each job.

    Raises
    ------
    BookError
        Not all pages are there; what failed has been printed.
    """
    folder = folder.resolve()
    journal = folder / ".jobs" / "snakemake.log"
    journal.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(FileLock(folder / ".jobs" / "lock", timeout=0))
        except Timeout:
            raise BookError(f"another run is at work on {folder}; wait for it, or stop it") from None
        here = profile is None and not gpus  # a fork cannot use CUDA
        environment = stack.enter_context(kernels.warm_kernels()) if here else None
        process = subprocess.Popen(
            command(folder, config, force, profile, gpus), cwd=ROOT, env=environment,
            stdin=subprocess.DEVNULL, stderr=stack.enter_context(open(journal, "w")), start_new_session=True,
            preexec_fn=functools.partial(end_with_parent, signal.SIGKILL),
        )  # fmt: skip
        try:
            process.wait()
        except BaseException:
            stop(process)
            raise
    if process.returncode:
        raise BookError(f"{last_line(journal)}\n(see what failed above, in _build/failed/ and in {journal})")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a workflow and what it has started: first as Ctrl-C does, then by force."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
            return
