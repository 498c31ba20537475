"""Table 1's bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dode import experiments, zoo
from dode.experiments import Run, costs, network_distillation

DATA = "fashion-mnist-data"
SMOKE = experiments.preset("smoke")


@pytest.mark.parametrize("name", experiments.PRESETS)
def test_both_network_distillations_cost_the_same(name: str) -> None:
    p = experiments.preset(name)
    assert costs.stops(p)[-1] * 6 == len(costs.ROUNDS) * p.student_steps * 5
    stages = [cell["stage"] for cell in costs.cost_cells(p, DATA, {"heun": [5]}) if cell["method"] != "d-ode heun"]
    assert stages == [*costs.ROUNDS, *costs.stops(p)]


@pytest.mark.slow
def test_a_fit_is_paid_for_with_its_teacher() -> None:
    p = replace(SMOKE, fit_images=4)
    row = costs.cost(Run(p), checkpoint=DATA, method="d-ode ddim", stage=2)
    assert row["evaluations"] == str(p.fit_images * (2 + 2 * 10))
    assert 0 < float(row["units"]) < 1  # 88 evaluations against 500,000


@pytest.mark.parametrize("has", [False, True])
def test_the_unit_is_timed_in_arithmetic_that_the_processor_has(has: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has}, raising=False)
    used = set()
    monkeypatch.setattr(costs, "draw", lambda model, *_: used.add(model.autocast) or iter([torch.zeros(1)]))
    costs.unit_seconds(Run(experiments.preset("standard")), DATA)
    assert used == {torch.bfloat16 if has else None}


@pytest.mark.slow
def test_students_are_trained_once_counted_and_priced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(replace(SMOKE, images=4))
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(costs, "time_of_an_evaluation", lambda *_: 2.0)
    row = costs.cost(run, checkpoint=DATA, method="consistency", stage=2)
    assert float(row["units"]) == pytest.approx(2 * int(row["evaluations"]) / 500_000, abs=1e-5)
    assert sorted(path.name for path in tmp_path.rglob("*-[0-9].safetensors")) == [
        f"{DATA}-consistency-{stop}.safetensors" for stop in costs.stops(run.preset)[:2]
    ]
    costs.student.cache_clear()
    monkeypatch.setattr(network_distillation.Run, "train", lambda *_: pytest.fail("trained again"))
    assert costs.cost(run, checkpoint=DATA, method="consistency", stage=2)["seconds"] == row["seconds"]


def test_without_downloads_students_learn_from_the_teachers_samples() -> None:
    images = costs.training_images(Run(replace(SMOKE, images=5)), DATA)
    assert images.shape == (5, 1, 28, 28) and images.dtype == torch.uint8
    assert images.float().std() > 30  # pictures, not a grey


def test_the_students_drawn_are_those_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    model = zoo.load_denoiser(DATA)
    drawn = list(costs.draw_student(model, "progressive", 2, range(3)))
    assert model.nfe == 2 and drawn[0].shape == (3, 1, 28, 28)
    calls: list[int] = []
    monkeypatch.setattr(
        network_distillation, "consistency_sample", lambda d, noise, again: calls.append(len(again)) or noise
    )
    for k in (1, 2):
        list(costs.draw_student(model, "consistency", k, range(3)))
    assert calls == [0, 1]
