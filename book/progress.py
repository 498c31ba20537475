"""What a run of the workflow says: a line for each finished job, and how long the rest takes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from snakemake.common import NOTHING_TO_BE_DONE_MSG

from book.pages import ROOT


def duration(seconds: float) -> str:
    """Seconds in words: ``"50 s"``, ``"7 min"``, ``"1.5 h"``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def last_line(path: Path) -> str:
    """The last line of a job's log, which says why it failed."""
    lines = path.read_text(errors="replace").splitlines() if path.is_file() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), f"ended without a word; see {path}")


class Progress(logging.Handler):
    """Prints in few words what Snakemake logs as events.

    The estimate is what the pages took before (here, else on the project's own two cores), scaled by what the finished
    ones took now.  There is none on a cluster, or if the seconds of less than half of the jobs are known.

    Parameters
    ----------
    folder
        Where the seconds of each page are kept for the next run.
    preset, pages
        The preset, and how many pages it has.
    """

    def __init__(self, folder: Path, preset: str, pages: int) -> None:
        super().__init__()
        self.measured, self.pages = folder / "seconds.json", pages
        files = (ROOT / "workflow" / f"seconds.{preset}.json", self.measured)
        self.seconds = {k: s for path in files if path.is_file() for k, s in json.loads(path.read_text()).items()}
        self.cores, self.total, self.start, self.width = 0, 0, 0.0, 0
        self.expected, self.took = dict[str, float](), dict[str, int]()
        self.jobs, self.done, self.failed = dict[int, dict[str, Any]](), set[str](), set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        """Print a line when the run begins or a job ends."""
        facts: dict[str, Any] = vars(record)  # they differ from event to event
        match facts.get("event"):
            case "resources_info":
                self.cores = facts.get("cores") or self.cores
            case "run_info":
                self.begin(facts["stats"], record.created)
            case "job_info" if facts["rule_msg"]:  # not the rule `all`
                self.jobs[facts["jobid"]] = facts
            case "job_finished" if job := self.jobs.get(facts["job_id"]):
                self.finished(job, record.created)
            case "job_error" if (job := self.jobs.get(facts["jobid"])) and job["rule_msg"] not in self.failed:
                self.failed.add(job["rule_msg"])  # Snakemake says it again at the end
                self.line(job["rule_msg"], "FAILED", last_line(Path(job["log"][0])))
            case None if record.msg == NOTHING_TO_BE_DONE_MSG:
                print(f"pages to run: 0 of {self.pages}", flush=True)

    def begin(self, stats: dict[str, int], now: float) -> None:
        """Say how many pages there are to run; ``stats`` has the number of jobs of each rule."""
        names = [rule.removeprefix("page_") for rule in stats if rule.startswith("page_")]
        self.start, self.total, self.width = now, stats["total"] - stats.get("all", 0), max(map(len, names), default=0)
        known = {name: self.seconds[name] for name in names if name in self.seconds}
        if self.cores and len(known) * 2 > self.total:
            self.expected = {name: known.get(name, sum(known.values()) / len(known)) for name in names}
        print(", ".join(filter(None, [f"pages to run: {len(names)} of {self.pages}", self.remaining(now)])), flush=True)

    def remaining(self, now: float) -> str:
        """How long the rest takes, in words; empty if nothing is known."""
        if not any(self.expected.values()):
            return ""
        finished = sum(self.expected[name] for name in self.took)
        scale = sum(self.took.values()) / finished if finished else 1
        left = sum(self.expected.values()) * scale / self.cores - (now - self.start)
        return f"about {duration(max(10, round(left, -1)))}"

    def finished(self, job: dict[str, Any], now: float) -> None:
        """Say how long a job took; if it is a page, keep that for the next run."""
        name, seconds = job["rule_msg"], round(now - job["created"])
        self.failed.discard(name)  # it was tried again
        self.done.add(name)
        if job["rule_name"] == f"page_{name}":
            self.took[name] = seconds
            self.measured.write_text(json.dumps(self.seconds | self.took, indent=1) + "\n")
        left = self.remaining(now) if len(self.done | self.failed) < self.total else ""
        self.line(name, f"{f'{seconds} s':>6}", left and f"{left} left")

    def line(self, name: str, outcome: str, rest: str) -> None:
        """Print what came of a job."""
        count = f"[{len(self.done | self.failed):>{len(str(self.total))}}/{self.total}]"
        print(f"{count} {name:<{self.width}}  {outcome}   {rest}".rstrip(), flush=True)
