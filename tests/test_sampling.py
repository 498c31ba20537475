"""The loop: orders, seeds, batches, gradients, bad input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import dode
from dode import schedules, solvers
from dode.denoisers import GaussianDenoiser, MixtureDenoiser
from dode.sampling import initial_noise, sample, trajectory

MEANS = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]], dtype=torch.float64)
MIXTURE = MixtureDenoiser(MEANS, torch.tensor([0.3, 0.5, 0.4]))
NOISE = initial_noise((2,), range(32), dtype=torch.float64)


@pytest.mark.parametrize(("make", "order"), [(solvers.ddim, 1), (solvers.heun, 2)])
def test_the_error_falls_with_the_order_on_a_mixture(make, order) -> None:
    reference = sample(MIXTURE, solvers.heun(schedules.karras(1500, 0.01, 20.0)), NOISE)
    errors = [
        float((sample(MIXTURE, make(schedules.karras(n, 0.01, 20.0)), NOISE) - reference).square().mean().sqrt())
        for n in (50, 100, 200)
    ]
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(slope - order) < 0.12 for slope in slopes), slopes


def test_heun_meets_the_exact_solution_of_a_gaussian() -> None:
    gauss = GaussianDenoiser(torch.tensor([0.5, -0.2], dtype=torch.float64), 0.7)
    final = sample(gauss, solvers.heun(schedules.karras(2000, 0.01, 20.0)), NOISE)
    torch.testing.assert_close(final, gauss.solution(20.0 * NOISE, 20.0, 0.01), rtol=1e-5, atol=1e-6)


def test_heun_is_edms_algorithm() -> None:
    """Algorithm 1 of Karras et al. without churn, written out."""
    grid = schedules.karras(6, 0.01, 20.0, final="zero")
    x = grid[0] * NOISE
    for s, t in itertools.pairwise(grid):
        d = (x - MIXTURE(x, s)) / s
        euler = x + (t - s) * d
        x = euler if t == 0 else x + (t - s) / 2 * (d + (euler - MIXTURE(euler, t)) / t)
    torch.testing.assert_close(sample(MIXTURE, solvers.heun(grid), NOISE), x, rtol=1e-12, atol=1e-12)
    assert solvers.heun(grid).nfe == 11


def test_ipndm_is_adams_bashforth() -> None:
    grid = schedules.karras(7, 0.01, 20.0)
    x, old = grid[0] * NOISE, []
    for s, t in itertools.pairwise(grid):
        old.insert(0, (x - MIXTURE(x, s)) / s)
        weights = {1: [1], 2: [3, -1], 3: [23, -16, 5], 4: [55, -59, 37, -9]}[min(len(old), 4)]
        x = x + (t - s) * sum(w * d for w, d in zip(weights, old, strict=False)) / sum(weights)
    torch.testing.assert_close(sample(MIXTURE, solvers.ipndm(grid), NOISE), x, rtol=1e-12, atol=1e-12)


def test_an_image_depends_on_its_seed_alone() -> None:
    grid = schedules.karras(5, 0.01, 20.0, final="zero")
    table = solvers.ipndm(grid)
    together = sample(MIXTURE, table, NOISE)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    shuffled = sample(MIXTURE, table, initial_noise((2,), order.tolist(), dtype=torch.float64), batch_size=5)
    torch.testing.assert_close(shuffled, together[order], rtol=1e-12, atol=1e-12)
    assert torch.equal(initial_noise((2,), [7]), initial_noise((2,), [3, 7])[1:])


@pytest.mark.parametrize("name", dode.zoo.NAMES)
def test_a_shipped_network_depends_on_the_seed_alone_to_rounding(name) -> None:
    model = dode.load(name)
    table = solvers.ddim(model.grid(3))
    together = sample(model, table, initial_noise(model.shape, range(6)))
    alone = torch.cat([sample(model, table, initial_noise(model.shape, [k])) for k in range(6)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_the_state_keeps_the_dtype_of_the_noise() -> None:
    model = dode.load("fashion-mnist-data")
    table = solvers.ddim(model.grid(3))
    narrow = sample(model, table, initial_noise(model.shape, range(2)))
    wide = sample(model, table, initial_noise(model.shape, range(2), dtype=torch.float64))
    assert narrow.dtype == torch.float32 and wide.dtype == torch.float64
    torch.testing.assert_close(narrow.double(), wide, rtol=1e-3, atol=1e-3)


def test_the_sampler_is_differentiable() -> None:
    noise = NOISE.clone().requires_grad_()
    sample(MIXTURE, solvers.heun(schedules.karras(4, 0.1, 20.0)), noise).sum().backward()
    assert noise.grad is not None and torch.isfinite(noise.grad).all() and noise.grad.any()
    assert not sample(
        dode.load("fashion-mnist-data"), solvers.ddim(schedules.karras(2, 0.1, 20.0)), torch.randn(1, 1, 28, 28)
    ).requires_grad


def test_callback_and_trajectory_see_the_same_states() -> None:
    table, seen = solvers.heun(schedules.karras(4, 0.1, 20.0, final="zero")), []
    final = sample(MIXTURE, table, NOISE, callback=seen.append, batch_size=20)
    states = trajectory(MIXTURE, table, NOISE)
    assert [s.index for s in seen] == 2 * list(range(table.nfe)) and seen[-1].batch == slice(20, 32)
    torch.testing.assert_close(torch.stack([s.x for s in seen[: table.nfe]]), states[:-1, :20])
    torch.testing.assert_close(states[-1], final)
    assert states.shape == (table.nfe + 1, *NOISE.shape)


def test_nfe_is_counted() -> None:
    MIXTURE.reset()
    sample(MIXTURE, solvers.heun(schedules.karras(4, 0.1, 20.0, final="zero")), NOISE)
    assert MIXTURE.nfe == 7 and MIXTURE.images == 7 * 32


def test_a_nan_is_named_with_step_and_sigma() -> None:
    grid = schedules.karras(5, 0.1, 20.0)
    broken = lambda x, sigma: x * float("nan") if float(sigma) < 1 else MIXTURE(x, sigma)  # noqa: E731
    step = int((grid < 1).nonzero()[0])
    with pytest.raises(FloatingPointError, match=rf"step {step} at sigma = {float(grid[step]):g}"):
        sample(broken, solvers.ddim(grid), NOISE)


def test_a_solver_of_another_model_or_shape_is_refused() -> None:
    table = solvers.ddim(schedules.karras(2, 0.1, 20.0))
    for facts, message in ((dict(model="other"), "unbind"), (dict(shape=[1, 28, 28]), "shape")):
        bound = table.with_full(table.full, **facts)
        with pytest.raises(ValueError, match=message):
            sample(MIXTURE, bound, NOISE)
        sample(MIXTURE, bound.unbind(), NOISE)


@pytest.mark.parametrize("nfe", [0, -1])
def test_no_evaluations_is_an_error(nfe) -> None:
    with pytest.raises(ValueError, match="NFE must be one or more"):
        solvers.steps_for_nfe("ddim", nfe)
    with pytest.raises(ValueError, match="one step or more"):
        schedules.karras(nfe, 0.1, 1.0)


def test_heun_names_the_nearest_nfe_it_can_make() -> None:
    with pytest.raises(ValueError, match="try 5 or 7"):
        solvers.steps_for_nfe("heun", 6)
    assert [solvers.steps_for_nfe("heun", n) for n in (3, 5, 9, 25, 49)] == [2, 3, 5, 13, 25]


def test_wrong_noise_is_one_line() -> None:
    with pytest.raises(ValueError, match="no seeds"):
        initial_noise((2,), [])
    with pytest.raises(ValueError, match="floating-point"):
        sample(MIXTURE, solvers.ddim(schedules.karras(2, 0.1, 1.0)), torch.ones(2, 2, dtype=torch.long))
    for noise, size in ((torch.ones(0, 2), None), (torch.ones(2, 2), 0), (torch.ones(2, 2), -1)):
        with pytest.raises(ValueError, match="one"):
            sample(MIXTURE, solvers.ddim(schedules.karras(2, 0.1, 1.0)), noise, batch_size=size)
    with pytest.raises(ValueError, match="orders 1 to 4"):
        solvers.ipndm(schedules.karras(2, 0.1, 1.0), order=5)
