"""Table 1's bookkeeping and the ablations' lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dode import experiments, solvers, zoo
from dode.experiments import ablations, costs, network_distillation
from dode.experiments.quality import VARIANT_OPTIONS
from dode.utils.files import FileError

DATA = "fashion-mnist-data"


@pytest.mark.parametrize("name", experiments.PRESETS)
def test_both_network_distillations_cost_the_same(name: str) -> None:
    p = experiments.preset(name)
    assert costs.stops(p)[-1] * 6 == len(costs.ROUNDS) * p.student_steps * 5
    stages = [cell["stage"] for cell in costs.cost_cells(p, DATA, {"heun": [5]}) if cell["method"] != "d-ode heun"]
    assert stages == [*costs.ROUNDS, *costs.stops(p)]


@pytest.mark.slow
def test_a_fit_is_paid_for_with_its_teacher() -> None:
    p = replace(experiments.preset("smoke"), fit_images=4)
    row = costs.cost_row(p, "cpu", checkpoint=DATA, weights="", method="d-ode ddim", stage=2)
    assert row["evaluations"] == p.fit_images * (2 + 2 * 10)
    assert 0 < float(row["units"]) < 1  # 88 evaluations against 500,000


@pytest.mark.parametrize("has", [False, True])
def test_the_unit_is_timed_in_arithmetic_that_the_processor_has(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)
    used = set()
    monkeypatch.setattr(costs.quality, "draw", lambda model, *_: used.add(model.autocast) or iter([torch.zeros(1)]))
    costs.unit_seconds(experiments.preset("standard"), DATA, "cpu", 1)
    assert used == {torch.bfloat16 if has else None}


def test_a_student_without_its_cost_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "folder", lambda p: tmp_path)
    with pytest.raises(ValueError, match="has no cost of progressive 4; remove its students"):
        costs.cost_row(experiments.preset("smoke"), "cpu", checkpoint=DATA, weights="", method="progressive", stage=4)


def test_a_students_evaluations_are_priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    p = experiments.preset("smoke")
    monkeypatch.setattr(costs, "folder", lambda p: tmp_path)
    monkeypatch.setattr(costs, "time_of_an_evaluation", lambda *_: 2.0)
    experiments.Sweep(tmp_path / f"{DATA}-progressive.csv", ["stage"]).add(
        dict(stage=4, seconds=7, evaluations=250_000)
    )
    row = costs.cost_row(p, "cpu", checkpoint=DATA, weights="", method="progressive", stage=4)
    assert float(row["units"]) == 1.0 and row["seconds"] == 7.0


@pytest.mark.slow
def test_an_evaluation_in_training_is_timed_against_one_in_sampling() -> None:
    costs.time_of_an_evaluation.cache_clear()
    p = replace(experiments.preset("smoke"), images=4)
    assert 0.05 < costs.time_of_an_evaluation(p, DATA, "cpu", "consistency") < 50


def test_where_rows_are_frozen_no_student_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "train_students", lambda *_: pytest.fail("trained"))
    spent, quality = (
        experiments.Sweep(tmp_path / f"{keys[-1]}.csv", keys, frozen=True)
        for keys in (costs.COST_KEYS, costs.STUDENT_KEYS)
    )
    with pytest.raises(FileError, match="no row of .*progressive, stage 32"):
        costs.measure_students(experiments.preset("quick"), DATA, "cpu", spent, quality, jobs=1)


def test_without_downloads_students_learn_from_the_teachers_samples() -> None:
    p = replace(experiments.preset("smoke"), images=5)
    images = costs.training_images(p, DATA, "cpu")
    assert images.shape == (5, 1, 28, 28) and images.dtype == torch.uint8
    assert images.float().std() > 30  # pictures, not a grey


def test_the_students_drawn_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load_denoiser(DATA)
    drawn = list(costs._draw_student(model, "progressive", 2, range(3)))
    assert model.nfe == 2 and drawn[0].shape == (3, 1, 28, 28)
    calls: list[int] = []
    monkeypatch.setattr(
        network_distillation, "consistency_sample", lambda d, noise, again: calls.append(len(again)) or noise
    )
    for k in (1, 2):
        list(costs._draw_student(model, "consistency", k, range(3)))
    assert calls == [0, 1]


def test_every_ablation_has_the_usual_fit_in_its_middle() -> None:
    for name in ("fashion-mnist-noise", "fashion-mnist-data"):
        for axis, values in ablations.axes(name).items():
            assert list(values.values()).count("d-ode") == 1, axis
            for variant in values.values():
                assert solvers.parse_options(variant, VARIANT_OPTIONS)[0] == "d-ode"
    assert ablations.spec(scale=10, images=100) == "d-ode"
    assert ablations.spec(scale=20, teacher="same") == "d-ode:scale=20,teacher=same"


def test_a_spread_row_is_a_fit_on_its_own_batch() -> None:
    p = experiments.preset("smoke")
    cells = ablations.spread_cells(["fashion-mnist-noise"], 2, [3], 2)
    rows = [ablations.spread_row(p, "cpu", **cell) for cell in cells]
    assert [row["seeds"] for row in rows] == ["0-2", "1000-1002"]
    assert rows[0]["lambdas"] != rows[1]["lambdas"] and len(rows[0]["lambdas"].split()) == 2
