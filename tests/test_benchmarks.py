"""The benchmarks run, and keep what is measured where it belongs."""

from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from dode.experiments import sweeps

ROOT = Path(__file__).resolve().parents[1]
ONE = ["--checkpoint", "fashion-mnist-data"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "file", "rows", "column"),
    [
        ("throughput", ONE, "throughput", 12, "bare_over_sample"),
        ("loop", ["--solvers", "DDIM", "UniPC-3"], "loop", 2, "ratio"),
        ("network_share", ONE, "loop_network", 4, "value"),
        ("bf16", ONE, "bf16", 2, "fd_bf16"),
        ("distillation_cost", ONE, "distillation_cost", 4, "seconds"),
    ],
)
def test_a_benchmark_runs(
    name: str, options: list[str], file: str, rows: int, column: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a folder where results are not kept; one of them as a program, as a person starts it."""
    script = str(ROOT / "benchmarks" / f"{name}.py")
    monkeypatch.setenv("DODE_COMMIT", "abc")
    monkeypatch.setattr(sweeps, "_commit", lambda: "abc")  # which is kept
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    if name == "loop":
        subprocess.run([sys.executable, script, "--smoke", *options], check=True, capture_output=True)
    else:
        monkeypatch.setattr(sys, "argv", [script, "--smoke", *options])
        monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
        module = importlib.import_module(name)
        for size in ("STEPS", "BATCH"):
            monkeypatch.setattr(module, size, 3, raising=False)
        module.main()
    with (project / "_build" / "benchmarks" / f"{file}.csv").open() as f:
        found = list(csv.DictReader(f))
    assert len(found) == rows and all(float(row[column]) > 0 for row in found)
    assert {row["commit"] for row in found} == {"abc"} and all(row["torch"] and row["device"] for row in found)
    assert not (project / "results").exists()


def test_rows_of_a_gpu_stand_beside_those_of_the_cpu(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import timing

    for device, seconds in (("cpu", 1), ("cuda", 2), ("cuda:0", 3)):
        timing.Rows("it", ["solver"], device, smoke=False).add(dict(solver="ddim", seconds=seconds))
    files = {p.name: p.read_text() for p in (project / "results").glob("*.csv")}
    assert files == {"it.csv": "solver,seconds\nddim,1\n", "it.gpu.csv": "solver,seconds\nddim,3\n"}
    turns: list[str] = []
    found = timing.in_turn({k: lambda k=k: turns.append(k) for k in "ab"}, "cpu", 3)
    assert turns == list("ab" * 4) and {k: len(v) for k, v in found.items()} == {"a": 3, "b": 3}
