"""Table 1's bookkeeping and the ablations' lists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dode import experiments, solvers, zoo
from dode.experiments import ablations, costs, network_distillation
from dode.experiments.quality import VARIANT_OPTIONS

DATA = "fashion-mnist-data"


@pytest.mark.parametrize("name", experiments.PRESETS)
def test_both_network_distillations_cost_the_same(name: str) -> None:
    p = experiments.preset(name)
    assert costs.stops(p)[-1] * 6 == len(costs.ROUNDS) * p.student_steps * 5
    stages = [cell["stage"] for cell in costs.cost_cells(p, DATA, {"heun": [5]}) if cell["method"] != "d-ode heun"]
    assert stages == [*costs.ROUNDS, *costs.stops(p)]


def test_a_fit_is_paid_for_with_its_teacher() -> None:
    p = experiments.preset("smoke")
    row = costs.cost_row(p, "cpu", checkpoint=DATA, weights="", method="d-ode ddim", stage=2)
    assert row["evaluations"] == p.fit_images * (2 + 2 * 10)
    assert 0 < float(row["units"]) < 1  # 352 evaluations against 500,000


@pytest.mark.parametrize("has", [False, True])
def test_the_unit_is_timed_in_arithmetic_that_the_processor_has(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)
    used = set()
    monkeypatch.setattr(costs, "draw", lambda model, *_: used.add(model.autocast) or iter([torch.zeros(1)]))
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


def test_an_evaluation_in_training_is_timed_against_one_in_sampling() -> None:
    costs.time_of_an_evaluation.cache_clear()
    assert 0.05 < costs.time_of_an_evaluation(experiments.preset("smoke"), DATA, "cpu", "consistency") < 50


def test_without_downloads_students_learn_from_the_teachers_samples() -> None:
    p = replace(experiments.preset("smoke"), images=5)
    images = costs.training_images(p, DATA, "cpu")
    assert images.shape == (5, 1, 28, 28) and images.dtype == torch.uint8
    assert images.float().std() > 30  # pictures, not a grey


def test_the_students_drawn_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load(DATA)
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
    assert ablations.word(scale=10, images=100) == "d-ode"
    assert ablations.word(scale=20, teacher="same") == "d-ode:scale=20,teacher=same"


def test_a_spread_row_is_a_fit_on_its_own_batch() -> None:
    p = experiments.preset("smoke")
    cells = ablations.spread_cells(["fashion-mnist-noise"], 2, [3], 2)
    rows = [ablations.spread_row(p, "cpu", **cell) for cell in cells]
    assert [row["seeds"] for row in rows] == ["0-2", "1000-1002"]
    assert rows[0]["lambdas"] != rows[1]["lambdas"] and len(rows[0]["lambdas"].split()) == 2


# --- what the pages say ---------------------------------------------------------------------------

RESULTS = Path(__file__).parents[1] / "results"


def test_what_the_ablations_page_says() -> None:
    found = experiments.Sweep(RESULTS / "ablations.standard.csv", experiments.FD_KEYS).rows
    assert {row["n"] for row in found} == {"2000"}

    def fd(name: str, solver: str = "ddim", **options: object) -> list[float]:
        variant = options.pop("variant", None) or ablations.word(**options)
        key = (f"fashion-mnist-{name}", solver, variant)
        values = [float(r["fd"]) for r in found if (r["checkpoint"], r["solver"], r["variant"]) == key]
        assert len(values) == 3, key
        return values

    mean = lambda *a, **k: sum(fd(*a, **k)) / 3  # noqa: E731
    for name in ("noise", "data"):
        usual, plain = mean(name), mean(name, variant="plain")
        assert 0.9 < mean(name, scale=50) / usual < 1 and 0.98 < mean(name, images=500) / usual < 1.02
        assert mean(name, images=5) < usual + 0.25 * (plain - usual)
        assert 0.95 < mean(name, equation=9) / mean(name, equation=8) < 1.05
        assert max(fd(name, model=ablations.other_model(f"fashion-mnist-{name}"))) < min(fd(name, variant="plain"))
    assert mean("noise", equation=9) < 0.7 * mean("noise") and mean("noise", equation=8) < 0.72 * mean("noise")
    assert all(1.2 < mean("data", equation=e) / mean("data") < 1.3 for e in (8, 9))
    assert min(fd("data", align="index")) > max(fd("data", variant="plain"))
    assert 0.85 < mean("noise", first_step="none") / mean("noise") < 0.95
    for solver in ("ipndm", "deis:order=4"):
        assert mean("noise", solver, teacher="same") == pytest.approx(mean("noise", solver), rel=0.01)
    assert 1.05 < mean("noise", model="fashion-mnist-data") / mean("noise") < 1.12
    assert 1.8 < mean("data", model="fashion-mnist-noise") / mean("data") < 2.1


def test_what_table_1_says() -> None:
    """The claims of the page's last section, on the committed run."""
    spent = experiments.Sweep(RESULTS / "table_1_costs.standard.csv", costs.COST_KEYS).rows
    units = {(r["method"], int(r["stage"])): float(r["units"]) for r in spent}
    students = experiments.Sweep(RESULTS / "table_1.standard.csv", costs.STUDENT_KEYS).rows
    solved = experiments.Sweep(RESULTS / "figure_4.standard.csv", experiments.FD_KEYS).rows

    def mean(values: list[str]) -> float:
        assert len(values) == 3
        return sum(map(float, values)) / 3

    points = {
        (m, stage, calls): mean([r["fd"] for r in students if (r["method"], int(r["stage"]), int(r["calls"])) == key])
        for key in {(r["method"], int(r["stage"]), int(r["calls"])) for r in students}
        for m, stage, calls in [key]
    }
    cost = {key: units[key[:2]] + key[2] / 10 for key in points}
    fd = lambda solver, nfe: mean(  # noqa: E731
        [
            r["fd"]
            for r in solved
            if (r["checkpoint"], r["solver"], r["nfe"], r["variant"]) == (DATA, solver, nfe, "d-ode")
        ]
    )
    for method in costs.METHODS:
        cheapest = min(cost[key] for key, value in points.items() if key[0] == method and value <= fd("heun", "9"))
        assert 4 < cheapest / (units["d-ode heun", 9] + 0.9) < 6
    assert min(points.values()) > max(fd("heun", "25"), fd("ddim", "10"))
    assert all(value < 0.15 for (method, nfe), value in units.items() if method.startswith("d-ode") and nfe <= 25)
    assert units["d-ode ddim", 10] + 1.0 < units["d-ode heun", 25] + 2.5
    assert f"{units['d-ode heun', 25] + 2.5:.2f}" == "2.55"
    plain = [r["fd"] for r in solved if (r["solver"], r["nfe"], r["variant"]) == ("heun", "25", "plain")]
    assert mean(plain) < min(points.values())
    assert sum(value < 2.5 for value in cost.values()) < len(cost) / 2
    few = [units[k[:2]] / (0.9 - k[2] / 10) for k, v in points.items() if v <= fd("heun", "9") and k[2] < 3]
    assert 2 < min(few) < 20  # times 50,000 images
