"""``dode run``: what is missing, measured in parts that share one file; measurements are found where they stand."""

from __future__ import annotations

import os
import textwrap
from dataclasses import replace
from pathlib import Path

import pytest

from dode import experiments
from dode.cli import main
from dode.experiments import measurements, plans, sweeps
from dode.experiments.rows import typed

DATA = "fashion-mnist-data"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DODE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("DODE_JOBS", "1")
    return tmp_path / "results"


def test_the_committed_rows_are_of_the_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    for figure in plans.PLANS:
        plan = experiments.plan(figure, "standard")
        assert not plan.sweep().missing(plan.cells) and len(plan.sweep().rows) == len(plan.cells) > 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure_7"], "no plan named 'figure_7'; there are: figure_3, figure_4, "),
        (["figure_4", "--preset", "papper"], "no preset named 'papper'; the nearest: paper"),
        (["figure_3", "--checkpoint", "no.safetensors"], "no.safetensors does not exist; check the path"),
        (["figure_4", "--preset", "smoke", "--solver", "dim"], "figure_4 has no cell of solver dim"),
        (["figure_4", "--solver", "heun", "--block", "7"], "figure_4 has no cell of solver heun, block 7"),
    ],
)
def test_what_cannot_be_run_is_one_line(words: list[str], message: str, capsys, results: Path) -> None:
    assert main(["run", *words]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not results.exists()


def test_parts_are_listed_and_measured_into_one_file(results: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(sweeps.PRESETS["smoke"], images=16, fit_images=4, repeats=2)
    monkeypatch.setitem(sweeps.PRESETS, "smoke", small)
    asked = ["run", "figure_4", "--preset", "smoke"]
    assert main(asked) == 0
    listed = capsys.readouterr().out.splitlines()
    assert f"--checkpoint {DATA} --solver ddim --block 1   4 cells, 224 evaluations" in listed
    assert "cells are missing" in listed[-1]
    for block in ("0", "1"):
        assert main([*asked, "--checkpoint", DATA, "--solver", "ddim", "--block", block, "--device", "cpu"]) == 0
        assert capsys.readouterr().out.startswith("4 of 4 cells measured")
    rows = typed(experiments.fd.sweep(small, "figure_4").rows)
    assert sorted(zip(rows.nfe, rows.variant, rows.block, strict=True)) == [
        (nfe, variant, block) for nfe in small.nfes for variant in ("d-ode", "plain") for block in (0, 1)
    ]
    assert main([*asked, "--checkpoint", DATA, "--solver", "ddim"]) == 0  # nothing is measured again
    assert capsys.readouterr().out.startswith("0 of 8 cells measured")


def test_a_new_measurement_is_one_function_in_one_file(
    results: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found, listed, measured and refused by name without a word elsewhere."""
    (tmp_path / "brightness.py").write_text(
        textwrap.dedent('''
            from dode import sample
            from dode.experiments.measurements import measurement
            from dode.experiments.run import base_solver, held_out_seeds, seeded

            def cells(p, checkpoint):
                return brightness.cells(checkpoint=checkpoint or "fashion-mnist-data", nfe=p.nfes, block=[0, 1])

            @measurement(planned=cells)
            def brightness(run, *, checkpoint: str, nfe: int, block: int):
                """Mean of all pixels."""
                model, noise = seeded(run.model(checkpoint), held_out_seeds(2, block))
                images = sample(model, base_solver("ddim", model, nfe), noise)
                return dict(brightness=float(images.mean()), seeds=held_out_seeds(2, block))
        ''')
    )
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    monkeypatch.setattr(measurements, "MEASUREMENTS", dict(measurements.MEASUREMENTS))
    assert main(["run"]) == 0
    assert "brightness         Mean of all pixels." in capsys.readouterr().out.splitlines()
    assert main(["run", "brightness", "--preset", "smoke", "--block", "1"]) == 0
    head, *lines = (results / "brightness.smoke.csv").read_text().splitlines()
    assert head == ("checkpoint,weights,nfe,block,brightness,seeds,network,preset,device,torch,python,commit")
    assert len(lines) == 2 and all(",2000000-2000001,float32,smoke," in line for line in lines)


def test_the_number_of_processes_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DODE_JOBS", raising=False)
    assert experiments.jobs("cpu") == len(os.sched_getaffinity(0)) and experiments.jobs("cuda") == 1
    monkeypatch.setenv("DODE_JOBS", "3")
    assert experiments.jobs("cpu") == 3 and experiments.jobs("cuda:1") == 1
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("DODE_JOBS", wrong)
        with pytest.raises(ValueError, match=f"^DODE_JOBS is '{wrong}'; make it a number of processes, or unset it$"):
            experiments.jobs("cpu")
