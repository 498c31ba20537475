"""Network distillation: its targets are the teacher's steps, a killed run ends the same, and it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import MIXTURE
from torch import Tensor

from dode import schedules, solvers
from dode.denoisers import ConsistencyPrediction
from dode.experiments import network_distillation
from dode.sampling import initial_noise, sample
from dode.training import Training, build_denoiser, describe
from dode.utils.files import load_tensors, save_tensors
from dode.utils.optimisation import Run

IMAGES = torch.randint(256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def tiny(name: str = "fashion-mnist-data") -> network_distillation.NetworkDenoiser:
    torch.manual_seed(0)
    return build_denoiser(Training(name, network=dict(widths=(8, 16))))


@pytest.fixture
def teacher(tmp_path: Path) -> str:
    """A tiny untrained data-predicting network on disk."""
    d = tiny()
    meta = describe(d) | dict(name="tiny", config=d.network.config)
    return str(save_tensors(tmp_path / "tiny.safetensors", d.network.state_dict(), "network", meta))


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is saved, and arithmetic is float32."""
    made = lambda *args, **kwargs: Training(*args, **(kwargs | dict(save_every=1, bf16=False)))  # noqa: E731
    monkeypatch.setattr(network_distillation, "Training", made)


def test_one_step_with_the_target_ends_where_the_teachers_two_end() -> None:
    grid = schedules.karras(4, 0.02, 20.0, final="zero")
    noise = initial_noise((3,), range(6), dtype=torch.float64)
    index = torch.tensor([0, 2, 0, 2, 0, 2])
    x, sigma, middle, to = noise * grid[index][:, None], grid[index], grid[index + 1], grid[index + 2]
    estimate = network_distillation.two_steps_in_one(MIXTURE, x, sigma, middle, to)  # type: ignore[arg-type]
    student = network_distillation.ddim_step(x, estimate, sigma, to)
    for start in (0, 2):
        two = solvers.ddim(grid[start : start + 3])
        chosen = index == start
        torch.testing.assert_close(student[chosen], sample(MIXTURE, two, noise[chosen]), rtol=1e-12, atol=1e-12)


def test_heuns_step_is_the_solvers() -> None:
    grid = torch.tensor([3.0, 1.2], dtype=torch.float64)
    noise = initial_noise((3,), range(6), dtype=torch.float64)
    found = network_distillation.heun_step(MIXTURE, noise * 3, grid[0].expand(6), grid[1].expand(6))  # type: ignore[arg-type]
    torch.testing.assert_close(found, sample(MIXTURE, solvers.heun(grid), noise), rtol=1e-12, atol=1e-12)


def test_a_consistency_model_leaves_the_lowest_level_alone() -> None:
    d = tiny()
    model = ConsistencyPrediction(d.network, d.shape, d.schedule, sigma_data=d.sigma_data)
    x = torch.randn(2, *d.shape)
    assert torch.equal(model(x, model.sigma_min), x)
    far = model(x, torch.tensor([1.0, 80.0], dtype=torch.float64))
    near = d(x, torch.tensor([1.0, 80.0], dtype=torch.float64))  # the two meet where sigma_min is nothing
    torch.testing.assert_close(far, near, rtol=2e-2, atol=2e-2)


def test_two_calls_start_again_from_the_first_answer() -> None:
    class Shrink(network_distillation.NetworkDenoiser):
        levels: list[float]

        def __call__(self, x: Tensor, sigma: Tensor | float) -> Tensor:
            self.levels.append(float(sigma))
            return x / 2

    model = Shrink(lambda x, label: x, (3,), schedules.EDM())
    model.levels = []
    noise, fresh = initial_noise((3,), range(4)), initial_noise((3,), range(4, 8))
    found = network_distillation.consistency_sample(model, noise, [(0.5, fresh)])
    torch.testing.assert_close(found, (noise * 40 + (0.25 - 0.002**2) ** 0.5 * fresh) / 2)
    assert model.levels == [80.0, 0.5]


def test_a_students_grid_is_every_second_level_of_its_teachers() -> None:
    d, grid = tiny(), network_distillation.progressive_grid
    assert all(torch.equal(grid(d, nfe), grid(d, 2 * nfe)[::2]) for nfe in (32, 16, 8, 4, 2, 1))
    with pytest.raises(ValueError, match="64 steps cannot be halved down to 5"):
        grid(d, 5)


def progressive(teacher: str, folder: Path, steps: int = 2) -> list[network_distillation.Student]:
    return list(network_distillation.progressive(teacher, IMAGES, folder, steps, first=4, batch=3))


def consistency(teacher: str, folder: Path) -> list[network_distillation.Student]:
    return list(network_distillation.consistency(teacher, IMAGES, folder, [1, 3], levels=4, batch=3))


@pytest.mark.parametrize("method", [progressive, consistency])
def test_killed_and_taken_up_again_is_the_same(method, teacher: str, tmp_path: Path, monkeypatch) -> None:
    whole = method(teacher, tmp_path / "whole")
    calls, real = iter(range(100)), network_distillation.prediction_loss

    def dies(*args: Tensor) -> Tensor:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(network_distillation, "prediction_loss", dies)
    with pytest.raises(KeyboardInterrupt):
        method(teacher, tmp_path / "killed")
    resumed = method(teacher, tmp_path / "killed")
    for a, b in zip(whole, resumed, strict=True):
        assert (a.nfe, a.evaluations) == (b.nfe, b.evaluations)
        one, other = (load_tensors(s.file, "network")[0] for s in (a, b))
        assert all(torch.equal(one[k], other[k]) for k in one)
    monkeypatch.delattr(Run, "train")
    assert method(teacher, tmp_path / "killed") == resumed  # nothing is trained twice
    assert sorted((tmp_path / "killed").iterdir()) == sorted(s.file for s in resumed)  # no state is left


def test_what_a_student_cost_is_counted(teacher: str, tmp_path: Path) -> None:
    halves = progressive(teacher, tmp_path)
    assert [(s.nfe, s.evaluations) for s in halves] == [(2, 2 * 3 * 5), (1, 2 * 2 * 3 * 5)]
    assert halves[0].seconds < halves[1].seconds
    assert [s.evaluations for s in consistency(teacher, tmp_path)] == [1 * 3 * 6, 3 * 3 * 6]
    with pytest.raises(ValueError, match="is of another recipe or version; remove it"):
        progressive(teacher, tmp_path, steps=3)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "left"), [("progressive", 0.5), ("consistency", 0.8)])  # one's target moves
def test_both_losses_can_be_learnt(kind: str, left: float, teacher: str, tmp_path: Path) -> None:
    wrapper = ConsistencyPrediction if kind == "consistency" else network_distillation.EDMPrediction
    r = Training("any", 40, batch=6, rate=3e-3, bf16=False)
    student, guide = network_distillation._pair(teacher, r, "cpu", wrapper)
    grid = schedules.karras(8, 0.002, 80.0, final="zero" if kind == "progressive" else "sigma_min")
    loss = getattr(network_distillation, f"{kind}_loss")(student, guide, grid, IMAGES, r)
    first = loss(torch.Generator().manual_seed(1)).item()
    optimizer = torch.optim.Adam(student.network.parameters(), lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        loss(torch.Generator().manual_seed(1)).backward()
        optimizer.step()
    assert loss(torch.Generator().manual_seed(1)).item() < left * first
