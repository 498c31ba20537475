"""Designed solvers: they begin as their bases, learn by the gradient of their own losses, and are kept in files."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import MIXTURE, network_file, refused
from torch import Tensor, nn

import dode
from dode import distillation, schedules, solvers
from dode.denoisers import Denoiser, MixtureDenoiser, NoisePrediction
from dode.distillation import AMED, DISTILLERS, DLMS, Designed, Problem, objectives, pixels, train
from dode.distillation.amed import begin_amed, vp_time
from dode.distillation.dense import DensePath
from dode.distillation.designer import Designer, bottleneck, feature_size, watched
from dode.distillation.dlms import begin_dlms
from dode.distillation.objectives import LastImages, OnlineTeacher, Paths, StoredPaths
from dode.distillation.teachers import Examples
from dode.metrics import rmse
from dode.sampling import Step, initial_noise, sample, trajectory
from dode.tableau import Tableau
from dode.utils.files import FileError, load_tensors, save_tensors

NOISE = initial_noise((3,), range(12), dtype=torch.float64)
OTHERS = initial_noise((3,), range(1000, 1200), dtype=torch.float64)
ZERO, END = schedules.karras(4, 0.02, 20.0, final="zero"), schedules.karras(4, 0.02, 20.0)
BASES = {
    "as published": solvers.deis(ZERO, variable="log_rho", basis="data", afs=True),
    "as published, to sigma_min": solvers.deis(END, variable="log_rho", basis="data", afs=True),
    "without AFS": solvers.deis(ZERO, variable="log_rho", basis="data"),
    "low order": solvers.ddim(ZERO, basis="data", afs=True),
    "ddim": solvers.ddim(ZERO),
    "ipndm": solvers.ipndm(END),
    "ipndm, AFS": solvers.ipndm(ZERO, afs=True),
    "one call": solvers.ddim(ZERO[[0, -1]], basis="data"),
    "one call after AFS": solvers.ddim(ZERO[[0, 2, -1]], basis="data", afs=True),
}
STEPS = [name for name in BASES if not name.startswith("one call")]


def shaken(solver: Any, size: float = 0.2, seed: int = 0) -> Any:
    """The solver with random numbers, in float64: its designer is changed."""
    generator = torch.Generator().manual_seed(seed)
    table = solver.designer.double().table
    with torch.no_grad():
        table.copy_(size * torch.randn(table.shape, generator=generator, dtype=torch.float64))
    return solver


def dlms(name: str, **options: Any) -> DLMS:
    return begin_dlms(MIXTURE, BASES[name], features=False, **options)


def karras(n: int) -> Tensor:
    return schedules.karras(n, 0.02, 20.0)


def amed(nfe: int, levels: Any = karras) -> AMED:
    """As files had it before, and Algorithm 1 trains it: without a scale."""
    grid = levels((nfe + 1) // 2)
    return AMED(solvers.ddim(grid), Designer(len(grid) - 1, 2), dict(afs=bool(nfe % 2)))


def near(found: Tensor, wanted: Tensor, rtol: float = 1e-12, atol: float = 1e-12) -> None:
    torch.testing.assert_close(found.detach(), wanted.detach(), rtol=rtol, atol=atol)


# --- DLMS: where it starts, and what its numbers do -------------------------------------------------


@pytest.mark.parametrize("base", BASES.values(), ids=BASES)
@pytest.mark.parametrize("options", [{}, dict(window=5), dict(scaling=False), dict(adaptive=False)], ids=str)
def test_a_fresh_solver_samples_as_its_base(base: Tableau, options: dict[str, Any]) -> None:
    fresh = begin_dlms(MIXTURE, base, features=False, **options)
    assert fresh.nfe == base.nfe and not fresh.reads
    MIXTURE.reset()
    found = trajectory(MIXTURE, fresh, NOISE)
    assert base.nfe == MIXTURE.nfe
    near(found, trajectory(MIXTURE, base, NOISE))


@settings(max_examples=30)
@given(st.sampled_from(list(BASES)), st.integers(0, 2**31), st.floats(0.01, 0.7), st.booleans(), st.booleans())
def test_a_frozen_designer_has_the_same_states(
    name: str, seed: int, size: float, scaling: bool, adaptive: bool
) -> None:
    solver = shaken(dlms(name, scaling=scaling, adaptive=adaptive), size, seed)
    table = solver.freeze()
    assert (table.sigmas[1:] < table.sigmas[:-1]).all() and table.sigmas[-1] == solver.base.sigmas[-1]
    assert table.inconsistency() < 1e-9 and table.basis == solver.base.basis and table.nfe == solver.nfe
    walked = trajectory(MIXTURE, solver, NOISE)
    near(walked, trajectory(MIXTURE, table, NOISE), rtol=1e-9, atol=1e-10 * float(walked.detach().abs().max()))
    assert adaptive or torch.equal(table.sigmas, solver.base.sigmas)
    assert scaling or torch.equal(table.sigmas_in, table.sigmas[:-1])


def moved(name: str, row: int, column: int, by: float) -> Tableau:
    """The frozen table where one number of the designer is ``by``."""
    solver = dlms(name)
    with torch.no_grad():
        solver.designer.table[row, column] = by
    return solver.freeze()


def test_a_part_is_taken_from_the_newest_output_and_an_input_level_is_a_factor() -> None:
    table = BASES["as published"]
    before = table.normalised_weights
    for row in range(3):
        changed, factors = moved("as published", row, -1, 0.3), torch.ones(table.nfe).double()
        factors[row] = math.exp(0.3)
        near(changed.sigmas_in, table.sigmas_in * factors, rtol=1e-7)
        near(changed.sigmas, table.sigmas)
        for column in range(min(row + 1, 3)):
            wanted = before.clone()
            wanted[row, row - column] += 0.25  # the first column of parts is output -1
            wanted[row, row + 1] -= 0.25
            near(moved("as published", row + 1, column, 0.25).normalised_weights, wanted)


def test_a_level_is_a_share_of_what_is_left() -> None:
    """A designed level moves the later ones, but not their shares of the way left, nor the end."""
    for name in ("as published", "as published, to sigma_min"):
        table = BASES[name]
        s = table.sigmas
        end = s[-1].log() if s[-1] > 0 else s[-2].log() - 1
        shares = lambda t, end=end: t.sigmas[:-1].log().diff() / (end - t.sigmas[:-2].log())  # noqa: E731
        for row in range(1, table.nfe):
            changed = moved(name, row, -2, 0.5)
            wanted = shares(table)
            wanted[row - 1] = (wanted[row - 1].logit() + 0.5).sigmoid()
            near(shares(changed), wanted)
            near(changed.sigmas[:row], s[:row])
            assert changed.sigmas[row] < s[row] and changed.sigmas[-1] == s[-1]
        assert float(moved(name, 0, -2, 0.5).sigmas[0] / s[0]) == pytest.approx(math.exp(0.5))
    near(moved("without AFS", 0, -2, 0.5).sigmas, BASES["without AFS"].sigmas)


# --- the teacher that runs along ------------------------------------------------------------------


def fine(stops: list[float], points: int) -> Tensor:
    """The levels that the teacher walks on its way through ``stops``: ``points`` equal steps to each."""
    ways = [torch.linspace(*way, points + 1, dtype=torch.float64)[1:] for way in pairwise(stops)]
    return torch.cat([torch.tensor(stops[:1], dtype=torch.float64), *ways])


@pytest.mark.parametrize("points", [2, 5])
@pytest.mark.parametrize("stops", [[80.0, 9.0, 0.6, 0.01], [80.0, 9.0, 0.6, 0.0], [80.0, 3.0, 0.0015, 0.0]], ids=str)
def test_the_teacher_is_the_solver_of_the_zoo(stops: list[float], points: int) -> None:
    levels = fine(stops, points)
    states = trajectory(MIXTURE, solvers.deis(levels, variable="log_rho", basis="data"), NOISE)
    teacher = OnlineTeacher(MIXTURE, NOISE, stops[0], points)
    MIXTURE.reset()
    for k, stop in enumerate(stops[1:], 1):
        found = teacher.run_to(torch.full((len(NOISE),), stop, dtype=torch.float64, requires_grad=True))
        near(found, states[k * points], rtol=1e-9, atol=1e-9)
        assert MIXTURE.nfe == k * points and not found.requires_grad


def test_images_at_levels_of_their_own_do_not_mix() -> None:
    shares = torch.rand(12, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.8 + 0.1
    stops = torch.cat([20.0 * shares.cumprod(1), torch.zeros(12, 1)], dim=1)

    def run(pick: Tensor) -> Tensor:
        teacher = OnlineTeacher(MIXTURE, NOISE[pick], 20.0, 3)
        return torch.stack([teacher.run_to(level) for level in stops[pick].T], dim=1)

    whole, order = run(torch.arange(12)), torch.randperm(12, generator=torch.Generator().manual_seed(1))
    near(run(order), whole[order])
    near(torch.cat([run(torch.tensor([k])) for k in range(12)]), whole)
    for k in (0, 7):  # and each is where the zoo's solver brings it
        levels = fine([20.0, *stops[k].tolist()], 3)
        alone = sample(MIXTURE, solvers.deis(levels, variable="log_rho", basis="data"), NOISE[k : k + 1])
        near(whole[k : k + 1, -1], alone, rtol=1e-9, atol=1e-9)


# --- AMED -----------------------------------------------------------------------------------------


def two_stages(grid: Tensor, first: Tensor | None, share: Tensor, length: Tensor) -> Tensor:
    """AMED written out: a middle level and a length for each step; ``first``: the noise of an analytical first step."""
    x = grid[0] * NOISE
    for n, (s, t) in enumerate(pairwise(grid)):
        noise = first if first is not None and n == 0 else (x - MIXTURE(x, s)) / s
        middle = s ** share[n] * t ** (1 - share[n])
        there = x + (middle - s) * noise
        x = x + length[n] * (t - s) * (there - MIXTURE(there, middle)) / middle
    return x.detach()


@pytest.mark.parametrize("nfe", [2, 3, 4, 5, 8])
def test_amed_is_its_two_stages(nfe: int) -> None:
    """Fresh, the geometric middle and the whole length; with other numbers, the paper's formula."""
    solver, steps, first = amed(nfe), (nfe + 1) // 2, NOISE if nfe % 2 else None
    half, one = torch.full((steps,), 0.5).double(), torch.ones(steps).double()
    MIXTURE.reset()
    found = sample(MIXTURE, solver, NOISE)
    assert MIXTURE.nfe == solver.nfe == nfe and MIXTURE.evaluations == nfe * len(NOISE)
    near(found, two_stages(karras(steps), first, half, one))
    if nfe % 2 == 0:
        near(found, sample(MIXTURE, solvers.dpm_2(karras(steps)), NOISE))
    numbers = shaken(solver, 1.0).designer.table.detach()
    share, length = numbers[:, 0].sigmoid(), 1 + numbers[:, 1].tanh() / 2
    near(sample(MIXTURE, solver, NOISE), two_stages(karras(steps), first, share, length), 1e-9, 1e-9)


def numbers_of(solver: AMED, feature: Tensor | None, n: int) -> tuple[Tensor, Tensor]:
    """``r`` and ``c`` of step ``n``."""
    found = solver.designer(feature, torch.zeros(len(NOISE) if feature is None else len(feature)), n).double()
    return found[:, 0].sigmoid(), 1 + solver.options["scale"] * (2 * found[:, 1].sigmoid() - 1)


@pytest.mark.parametrize("nfe", [2, 3, 4, 5, 8])
def test_amed_as_released_is_its_two_stages(nfe: int) -> None:
    """From numbers that are random at first; without a call, the first noise is ``x / sqrt(1 + sigma^2)``."""
    solver, steps = begin_amed(MIXTURE, karras, nfe, features=False, scale=0.2), (nfe + 1) // 2
    first = 20.0 * NOISE / math.sqrt(1 + 20.0**2) if nfe % 2 else None
    share, length = torch.tensor(
        [[k[0].item() for k in numbers_of(solver, None, n)] for n in range(steps)], dtype=torch.float64
    ).T
    found = sample(MIXTURE, solver, NOISE)
    near(found, two_stages(karras(steps), first, share, length), 1e-9, 1e-9)
    assert (abs(length - 1) < 0.2).all() and (abs(share - 0.5) > 1e-3).all()
    other = begin_amed(MIXTURE, karras, nfe, features=False, scale=0.2, seed=1)
    assert not torch.equal(sample(MIXTURE, other, NOISE), found)


def test_ameds_grid_is_uniform_in_the_time_of_a_vp_process() -> None:
    grid = vp_time(3, 0.002, 80.0)  # numbers of the released program
    near(grid, torch.tensor([80.0, 6.9502, 1.2867, 0.002]).double(), rtol=1e-4)
    near(vp_time(6, 0.002, 80.0)[::2], grid, rtol=1e-9)


def test_what_amed_cannot_do() -> None:
    with pytest.raises(ValueError, match=r"two calls a step.*got 1 in all, take 2"):
        begin_amed(MIXTURE, karras, 1, features=False)
    with pytest.raises(ValueError, match=r"none lies between one and 0; end at sigma_min"):
        begin_amed(MIXTURE, lambda n: schedules.karras(n, 0.02, 20.0, final="zero"), 4, features=False)


# --- the losses -----------------------------------------------------------------------------------

EXAMPLES = Examples.make(MIXTURE, NOISE, solvers.ddim(MIXTURE.grid(20)), pixels, 1.0)


def losses(solver: Designed, **options: Any) -> list[Tensor]:
    objective = objectives.Paths(points=3)
    objective.prepare(MIXTURE, replace(EXAMPLES, **options))
    objective.top = 20.0
    return objective.losses(solver, MIXTURE, NOISE)


def slopes(solver: Designed) -> list[Tensor]:
    """Of each loss, on the designer's table."""
    table = solver.designer.table
    found = [torch.autograd.grad(loss, table, retain_graph=True, allow_unused=True)[0] for loss in losses(solver)]
    return [torch.zeros_like(table) if g is None else g for g in found]


@pytest.mark.parametrize(
    "solver", [dlms("as published"), dlms("ipndm"), amed(4), amed(5)], ids=["afs", "not", "4", "5"]
)
def test_step_losses_are_distances_to_an_online_teacher(solver: Designed) -> None:
    shaken(solver)
    weighed = lambda x: x * torch.tensor([1.0, 2.0, -3.0])  # noqa: E731
    teacher, wanted = OnlineTeacher(MIXTURE, NOISE, 20.0, 3), list[Tensor]()
    for state, _ in solver.walk(MIXTURE, NOISE):
        if state.row and solver.matched(state.row - 1):
            gap = state.x - teacher.run_to(state.level)
            wanted.append((gap.square().mean(1) / (1 + state.level**2)).mean())
    wanted[-1] = weighed(gap).square().sum(1).mean()
    near(torch.stack(losses(solver, residual=weighed)), torch.stack(wanted), rtol=1e-9)
    assert len(wanted) == (solver.base.nfe if isinstance(solver, AMED) else solver.nfe)


class Still:
    """A teacher that waits: then a loss is a function of the designs alone."""

    def __init__(self, denoiser: Denoiser, noise: Tensor, top: float, points: int) -> None:
        self.x = noise

    def run_to(self, following: Tensor) -> Tensor:
        return 0.5 * self.x


def differences(solver: Designed, row: int, column: int) -> Tensor:
    """Central ones, of each loss."""
    found = list[Tensor]()
    with torch.no_grad():
        for by in (1e-5, -2e-5):
            solver.designer.table[row, column] += by
            found.append(torch.stack(losses(solver)))
        solver.designer.table[row, column] += 1e-5
    return (found[0] - found[1]) / 2e-5


@pytest.mark.parametrize("solver", [*map(dlms, STEPS), amed(4), amed(5)], ids=[*STEPS, "amed 4", "amed 5"])
def test_the_gradient_is_that_of_the_losses(solver: Designed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objectives, "OnlineTeacher", Still)
    shaken(solver, 0.1)
    last = solver.nfe - 1
    for row, slope in enumerate(slopes(solver)):
        numbers = [(row + 1, k) for k in range(3)] + [(row, k) for k in (0, 1, 2, -1)]
        numbers += [(row, -2)] if row == last else []  # before that, a level moves the next, which is held fixed
        others = torch.tensor([k not in (row, row + 1) for k in range(len(slope))])
        assert not slope[others].any()  # a loss knows two designs at most, and of the later one the parts alone
        assert isinstance(solver, AMED) or not slope[row + 1, 3:].any()
        for where in [(row, 0), (row, 1)] if isinstance(solver, AMED) else numbers:
            wanted = differences(solver, *where)[row]
            near(slope[where], wanted, rtol=1e-5, atol=1e-7 * float(slope.abs().max()))


@pytest.mark.parametrize("distances", [False, True])
def test_a_stored_path_is_known_at_every_level(distances: bool) -> None:
    """Its slope is the ODE's; losses on it are those of the online teacher's path, and a level's gradient is theirs."""
    noise, level = NOISE[:6], torch.tensor([19.0, 3.0, 1.0, 0.3, 0.021, 0.0], dtype=torch.float64)
    record = lambda nfe: DensePath.record(MIXTURE, teacher_of(nfe), noise, size=4)  # noqa: E731
    coarse, fine = record(80), record(1_000)
    near(coarse.at(level), fine.at(level), atol=5e-3)
    near(fine.at(level)[-1], sample(MIXTURE, teacher_of(1_000), noise)[-1])
    near(coarse.at(coarse.levels[3].expand(6)), coarse.states[:, 3], rtol=1e-12)
    moved = level[:5].clone().requires_grad_()
    (slope,) = torch.autograd.grad(fine.of(torch.arange(5)).at(moved).sum(), moved)
    x = fine.at(level)[:5]
    near(slope, ((x - MIXTURE(x, level[:5])) / level[:5, None]).sum(1), rtol=1e-2, atol=1e-3)
    solver, objective = shaken(dlms("as published"), 0.1), StoredPaths(pool=12, distances=distances, moving=True)
    objective.prepare(MIXTURE, EXAMPLES)
    path = DensePath.record(MIXTURE, teacher_of(400), NOISE)
    online = objectives.Paths(points=400, distances=distances)
    online.prepare(MIXTURE, EXAMPLES)
    found = lambda: objective.losses(solver, MIXTURE, NOISE, path.at)  # noqa: E731
    near(torch.stack(found()), torch.stack(online.losses(solver, MIXTURE, NOISE)), rtol=1e-2, atol=1e-4)
    table = solver.designer.table
    for row, loss in enumerate(found()[:-1]):
        (slope,) = torch.autograd.grad(loss, table, retain_graph=True)
        assert float(slope[row + 1, -2]) == pytest.approx(change(table, (row + 1, -2), found, row), rel=1e-4, abs=1e-8)


def teacher_of(nfe: int) -> Tableau:
    return solvers.deis(MIXTURE.grid, nfe=nfe, variable="log_rho", basis="data")


def change(table: Tensor, where: tuple[int, int], losses: Any, row: int) -> float:
    """The central difference of a loss."""
    with torch.no_grad():
        found = list[float]()
        for by in (1e-5, -2e-5):
            table[where] += by
            found.append(float(losses()[row]))
        table[where] += 1e-5
    return (found[0] - found[1]) / 2e-5


def test_the_gradient_of_the_last_image_passes_through_all_rows() -> None:
    """Against central differences of the whole run, of the weights, levels and input levels of every row."""
    solver = shaken(dlms("as published"), 0.1)
    objective = LastImages(pool=4)
    objective.prepare(MIXTURE, EXAMPLES)
    goal = objective.goal + torch.arange(3.0)
    (value,) = objective.losses(solver, MIXTURE, objective.noise.double(), goal)
    table = solver.designer.table
    (slope,) = torch.autograd.grad(value, table)
    again = lambda: objective.losses(solver, MIXTURE, objective.noise.double(), goal)  # noqa: E731
    for row, column in [(0, -2), (0, -1), (1, 0), (1, -2), (1, -1), (2, 0), (2, 1), (2, -2), (3, 2), (3, -1)]:
        wanted = change(table, (row, column), again, 0)
        assert float(slope[row, column]) == pytest.approx(wanted, rel=1e-4, abs=1e-7), (row, column)
    assert slope.abs().sum(1).gt(0).all()


# --- training -------------------------------------------------------------------------------------

CHECK = initial_noise((3,), range(40), dtype=torch.float64)
TEACHER = solvers.deis(MIXTURE.grid, nfe=40, variable="log_rho", basis="data")
START = solvers.deis(MIXTURE.grid, nfe=4, variable="log_rho", basis="data", afs=True)


def fit(
    folder: Path | None = None, solver: Designed | None = None, points: int = 5, trajectories: int = 320, **given: Any
) -> Designed:
    """Twenty steps, four checks."""
    problem = Problem(MIXTURE, START, CHECK, folder=folder, method="test", **dict(teacher=TEACHER) | given)
    solver = solver or begin_dlms(MIXTURE, START, features=False)
    aim = Paths(points)
    return train(problem, solver, aim, trajectories=trajectories, batch_size=16, rate=2e-2, checks=4)


@pytest.fixture(scope="module")
def whole() -> Designed:
    return fit()


def same(one: Designed, two: Designed) -> bool:
    a, b = one.designer.state_dict(), two.designer.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_few_steps_bring_it_nearer(whole: Designed) -> None:
    start = begin_dlms(MIXTURE, START, features=False)
    again = fit(solver=start)
    assert same(whole, again) and again.metadata == whole.metadata  # no chance in it
    assert not start.designer.table.any() and start.designer.table.requires_grad and not start.metadata  # as it was
    assert not whole.designer.table.requires_grad
    truth = sample(MIXTURE, TEACHER, OTHERS)
    assert rmse(sample(MIXTURE, whole, OTHERS), truth) < 0.5 * rmse(sample(MIXTURE, START, OTHERS), truth)
    cost = whole.metadata["cost"]
    assert len(cost) == 5 and min(cost) < 0.2 * cost[0]
    assert [len(row) for row in whole.metadata["losses"]] == [4] * 4


def test_amed_comes_nearer_too() -> None:
    learned = fit(solver=amed(5, lambda n: schedules.karras(n, 0.002, 80.0)))
    assert learned.metadata["teacher_nfe"] == 5 * 3  # five to each of its three whole steps
    cost = learned.metadata["cost"]
    assert min(cost) < 0.95 * cost[0] and isinstance(learned, AMED) and len(learned.metadata["losses"][0]) == 3


@pytest.mark.parametrize("nfe", [4, 5])
def test_ameds_batch_is_an_update_a_step(nfe: int, model: Denoiser) -> None:
    """The released training written out: two batches of it, on a network whose bottleneck is read."""
    images, steps, rate = 6, (nfe + 1) // 2, 5e-3
    problem = Problem(model, solvers.ddim(model.grid, nfe=nfe), noise_of(model, range(4)), method="amed")
    found = DISTILLERS["amed"].fit(problem, trajectories=2 * images, batch=images)
    solver = begin_amed(model, lambda n: vp_time(n, model.sigma_min, model.sigma_max), nfe)
    adam = torch.optim.Adam(solver.designer.parameters(), lr=rate)  # betas 0.9 and 0.999
    grid, fine = (vp_time(n, model.sigma_min, model.sigma_max) for n in (steps, 2 * steps))
    shape = lambda numbers: numbers.float()[:, None, None, None]  # noqa: E731
    eps = lambda x, s: (x - model(x, s)) / (shape(s) if s.ndim else float(s))  # noqa: E731
    for batch in range(2):
        noise = torch.randn((images, *model.shape), generator=torch.Generator().manual_seed(batch))
        states = [80.0 * noise]
        for s, t in pairwise(fine):  # Heun
            slope = eps(states[-1], s)
            ahead = states[-1] + float(t - s) * slope
            states.append(states[-1] + float(t - s) / 2 * (slope + eps(ahead, t)))
        for n, (s, t) in enumerate(pairwise(grid)):
            x, aim = states[2 * n], states[2 * n + 2]  # the teacher's
            with watched(model, True) as seen:
                slope = x / math.sqrt(1 + float(s) ** 2) if nfe % 2 and n == 0 else eps(x, s)
            share, length = numbers_of(solver, seen[-1] if seen else torch.zeros(images, 16), n)
            middle = s**share * t ** (1 - share)
            mean = eps(x + shape(middle - s) * slope, middle)
            loss = (x + shape(length * (t - s)) * mean - aim).square().sum((1, 2, 3)).mean()
            adam.zero_grad()
            loss.backward()
            adam.step()
    before = begin_amed(model, lambda n: vp_time(n, model.sigma_min, model.sigma_max), nfe).designer.state_dict()
    for name, wanted in solver.designer.state_dict().items():
        assert name.startswith("time") or float((wanted - before[name]).abs().max()) > rate
        near(found.designer.state_dict()[name], wanted, rtol=0, atol=0.02 * rate)
    assert found.metadata["kept"] == found.metadata["cost"][-1] and found.metadata["teacher_nfe"] == 4 * steps


class Killed(BaseException):
    """As from the keyboard."""


class Deadly:
    """A residual that a training asks twice a step, and that kills it the ``last`` time; checks need no gradient."""

    def __init__(self, last: int) -> None:
        self.left = last

    def __call__(self, images: Tensor) -> Tensor:
        self.left -= torch.is_grad_enabled()
        if self.left <= 0:
            raise Killed
        return pixels(images)


def test_the_best_on_the_noise_held_back_is_kept(whole: Designed, tmp_path: Path) -> None:
    """Where the goal on that noise is the start's, the start; where it is that of half way, half way."""
    assert isinstance(whole, DLMS)
    found = fit(solver=whole, teacher=whole.freeze())
    assert same(found, whole) and found.metadata["cost"][0] < 1e-20 < 1e-9 < min(found.metadata["cost"][1:])
    with pytest.raises(Killed):
        fit(tmp_path, residual=Deadly(21))  # in the eleventh step, after two checks
    (file,) = tmp_path.iterdir()
    half_way = replace(whole, designer=type(whole.designer)(**whole.designer.config))
    half_way.designer.load_state_dict({"table": load_tensors(file, "training state")[0]["best.table"]})
    found = fit(teacher=half_way.freeze())
    assert same(found, half_way) and found.metadata["cost"][2] < 1e-20 and len(found.metadata["cost"]) == 5
    held = Examples.make(MIXTURE, CHECK, TEACHER, pixels, 1.0)
    assert held.check(MIXTURE, whole) == pytest.approx(min(whole.metadata["cost"]))  # of the very images


def test_what_a_training_says_of_itself() -> None:
    MIXTURE.reset()
    facts = fit(points=3).metadata
    assert facts["network_evaluations"] == MIXTURE.evaluations + 2 * 4 * 16 * 20  # a backward pass is two calls
    assert MIXTURE.evaluations > 4 * 16 * 20 + 3 * 4 * 16 * 20 + 40 * 40  # student, its teacher, and that of the check
    assert facts["trajectories"] == 320 and facts["teacher_nfe"] == 3 * 4
    with pytest.raises(FloatingPointError):
        fit(residual=lambda x: x / 0 * 0)


def ended_the_same(one: Designed, two: Designed) -> bool:
    return same(one, two) and all(one.metadata[k] == two.metadata[k] for k in ("cost", "losses"))


@pytest.mark.parametrize(("call", "left"), [(1, 20), (29, 10), (35, 5)])  # asked twice a step; saved in each fifth
def test_killed_in_a_step_and_resumed_it_ends_the_same(call: int, left: int, tmp_path: Path, whole: Designed) -> None:
    with pytest.raises(Killed):
        fit(tmp_path, residual=Deadly(call))
    rest = Deadly(100)
    assert ended_the_same(fit(tmp_path, residual=rest), whole) and rest.left == 100 - 2 * left
    assert same(fit(tmp_path, residual=rest), whole) and rest.left == 100 - 2 * left  # finished: nothing is left


@pytest.mark.parametrize("other", [dict(points=2), dict(residual=lambda x: 2 * x)], ids=["points", "residual"])
def test_a_folder_does_not_pass_one_training_off_as_another(
    other: dict[str, Any], tmp_path: Path, whole: Designed
) -> None:
    fit(tmp_path)
    try:
        found = fit(tmp_path, **other)
    except ValueError:
        return
    assert found.metadata["cost"] != whole.metadata["cost"] or not same(found, whole)


# --- on a network that it reads -------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> dode.denoisers.NetworkDenoiser:
    return dode.load(network_file(tmp_path_factory.mktemp("small"), "fashion-mnist-data"))


def reading(model: Denoiser, kind: str, size: float = 0.05) -> Any:
    """A solver that looks at the network, with small random weights everywhere."""
    if kind == "dlms":
        table = solvers.deis(model.grid, nfe=4, variable="log_rho", basis="data", afs=True)
        solver: Designed = begin_dlms(model, table)
    else:
        solver, size = (
            begin_amed(model, lambda n: vp_time(n, model.sigma_min, model.sigma_max), 5, scale=0.2),
            10 * size,
        )
    generator = torch.Generator().manual_seed(3)
    for weight in solver.designer.requires_grad_(False).parameters():
        weight.copy_(size * torch.randn(weight.shape, generator=generator))
    return solver


@pytest.fixture(scope="module", params=["dlms", "amed"])
def solver(request: pytest.FixtureRequest, model: Denoiser) -> Designed:
    return reading(model, request.param)


def noise_of(model: Denoiser, seeds: range | list[int]) -> Tensor:
    return initial_noise(model.shape, seeds)


def test_the_feature_is_the_channel_mean_of_the_bottleneck(model: Denoiser) -> None:
    counted = model.nfe, model.evaluations
    assert feature_size(model) == 16 and (model.nfe, model.evaluations) == counted
    noise, kept = noise_of(model, range(2)), list[Tensor]()
    handle = bottleneck(model).register_forward_hook(lambda module, inputs, output: kept.append(output))
    with watched(model, True) as seen, watched(model, False) as nothing:
        model(noise, 1.0)
    handle.remove()
    near(seen[-1], kept[-1].mean(1).flatten(1))
    assert not nothing and not bottleneck(model)._forward_hooks


def test_an_image_depends_on_its_seed_alone(model: Denoiser, solver: Designed) -> None:
    noise = noise_of(model, [4, 7, 9, 11, 2])
    whole = sample(model, solver, noise)
    near(sample(model, solver, noise, batch_size=2), whole, rtol=0, atol=2e-4)
    near(sample(model, solver, noise_of(model, [9, 4])), whole[[2, 0]], rtol=0, atol=2e-4)
    assert whole.dtype == torch.float32 and (whole[0] - whole[1]).abs().max() > 0.1
    exact = sample(model, solver, noise.double())
    assert exact.dtype == torch.float64
    near(exact.float(), whole, rtol=0, atol=1e-3)


def test_a_callback_sees_every_step_at_its_mean_level(model: Denoiser, solver: Designed) -> None:
    noise, seen = noise_of(model, range(3)), list[Step]()
    final = sample(model, solver, noise, callback=seen.append)
    states = [replace(state) for state, _ in solver.walk(model, noise)]
    assert [step.index for step in seen] == list(range(solver.nfe)) and len(states) == solver.nfe + 1
    for step, state in zip(seen, states, strict=False):
        assert step.sigma == pytest.approx(float(state.level.mean())) and torch.equal(step.x, state.x)
        assert step.batch == slice(0, 3) and step.output.shape == noise.shape
    assert torch.equal(states[-1].x, final) and torch.equal(trajectory(model, solver, noise)[-1], final)
    differ = [float(state.level.std()) > 1e-4 * float(state.level.mean()) for state in states[:-1]]
    assert any(differ) and not differ[0]  # images have levels of their own, once something was seen


def test_nothing_stays_on_the_network(model: Denoiser, solver: Designed) -> None:
    def stop(step: Step) -> None:
        raise Killed

    with pytest.raises(Killed):
        sample(model, solver, noise_of(model, range(1)), callback=stop)
    assert not bottleneck(model)._forward_hooks
    broken = replace(solver, designer=reading(model, type(solver).__name__.lower(), math.nan).designer)
    with pytest.raises(FloatingPointError, match="in step "):
        sample(model, broken, noise_of(model, range(1)))
    assert not bottleneck(model)._forward_hooks


def test_it_is_for_one_model_and_shape(model: Denoiser, solver: Designed) -> None:
    with pytest.raises(ValueError, match="distilled for 'other'"):
        sample(model, replace(solver, metadata=dict(model="other")), noise_of(model, range(1)))
    free = replace(solver, metadata=dict(model="other", shape=[3, 8, 8], method="dlms")).unbind()
    assert free.metadata == dict(method="dlms") and type(free) is type(solver)
    assert torch.equal(sample(model, free, noise_of(model, range(1))), sample(model, solver, noise_of(model, range(1))))


@pytest.mark.parametrize("name", ["mid_block", "middle_block", "elsewhere"])
def test_the_bottlenecks_of_others_are_known_or_refused(name: str) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            setattr(self, name, nn.AvgPool2d(4))
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, label: Tensor) -> Tensor:
            return x * getattr(self, name)(x).mean()

    other = NoisePrediction(Other(), (2, 8, 12), schedules.vp_linear(), name="other")
    if name != "elsewhere":
        assert feature_size(other) == 2 * 3
        return
    for begin in (lambda: begin_dlms(other, BASES["ddim"]), lambda: begin_amed(MIXTURE, karras, 4)):
        with pytest.raises(ValueError, match=r"has no bottleneck that is known; take features=False$"):
            begin()


# --- files ----------------------------------------------------------------------------------------


def test_a_file_holds_all_of_it(model: Denoiser, solver: Designed, tmp_path: Path) -> None:
    solver = replace(solver, metadata=dict(model="fashion-mnist-data", cost=[1 / 3, 0.1], seeds=None))
    file = solver.save(tmp_path / "deep" / "s.safetensors")
    again = Designed.load(file)
    assert type(again) is type(solver) and same(again, solver) and again.designer.config == solver.designer.config
    assert again.options == solver.options and again.metadata == solver.metadata and again.nfe == solver.nfe
    for name in ("basis", "sigmas", "sigmas_in", "full"):
        one, two = getattr(again.base, name), getattr(solver.base, name)
        assert one == two if name == "basis" else torch.equal(one, two)
    assert again.save(tmp_path / "t.safetensors").read_bytes() == file.read_bytes()
    assert not any(p.requires_grad for p in again.designer.parameters())
    noise = noise_of(model, range(2))
    assert torch.equal(sample(model, again, noise), sample(model, solver, noise))


def test_a_file_that_holds_no_solver_is_refused_in_one_line(tmp_path: Path) -> None:
    file = amed(3).save(tmp_path / "s.safetensors")
    tensors, facts = load_tensors(file, "designed solver")
    assert type(distillation.load_solver(file)) is AMED
    wrong: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, dict(style="Designed")), ({}, dict(config=dict(rows=9, outputs=2))), ({}, dict(basis="both")),
        ({"base.sigmas": torch.tensor([1.0, 2.0, 0.1])}, {}), ({"designer.extra": torch.zeros(1)}, {}),
        ({}, dict(metadata=None)), ({}, dict(options=None)),
    ]  # fmt: skip
    for changed, said in wrong:
        known = {k: v for k, v in (facts | said).items() if v is not None}
        path = save_tensors(tmp_path / "wrong.safetensors", tensors | changed, "designed solver", known)
        with refused("wrong.safetensors does not hold a valid designed solver; distil it again", FileError):
            distillation.load_solver(path)


# --- recipes --------------------------------------------------------------------------------------


def task(model: Denoiser, images: int, afs: bool = False, **options: Any) -> Problem:
    """Three calls of the usual start."""
    make = partial(solvers.deis, variable="log_rho", basis="data")
    noise = initial_noise(model.shape, range(images), dtype=torch.float32 if len(model.shape) == 3 else torch.float64)
    return Problem(model, make(model.grid, nfe=3, afs=afs), noise, make, **dict(seeds=range(images)) | options)


def checked(name: str, given: Problem, tmp_path: Path, **options: Any) -> Any:
    """What holds for every method."""
    given.denoiser.reset()
    found = DISTILLERS[name].fit(given, **options | (dict(trajectories=64) if name in TRAINED else {}))
    spent, facts = given.denoiser.evaluations, found.metadata
    solver = dict(amed="amed-ddim").get(name, f"{DISTILLERS[name].prefix or name}-deis")
    wanted = dict(solver=solver, method=name, nfe=3, model=given.denoiser.name, shape=list(given.denoiser.shape))
    assert found.nfe == 3 and facts.items() >= wanted.items()
    assert facts["network_evaluations"] > spent if DISTILLERS[name].needs_gradient else spent > 0
    assert "cost" not in facts or min(facts["cost"]) <= facts["cost"][0]
    given.denoiser.reset()
    with torch.no_grad():
        images = sample(given.denoiser, found, given.noise[:2])
    assert given.denoiser.nfe == 3 and torch.isfinite(images).all()
    again = distillation.load_solver(found.save(tmp_path / "found.safetensors"))
    assert torch.equal(sample(given.denoiser, again, given.noise[:2]), images)
    return found


TRAINED = ("dlms", "amed")
TABLES = [name for name, method in DISTILLERS.items() if not method.designs]


@pytest.mark.parametrize("afs", [False, True], ids=["", "afs"])
@pytest.mark.parametrize("name", TABLES)
def test_a_method_gives_a_table_and_moves_what_it_says(name: str, afs: bool, tmp_path: Path) -> None:
    given = task(MIXTURE, 16, afs)
    found = checked(name, given, tmp_path)
    assert found.metadata["network_evaluations"] == 60 * 16 or name != "gits" or afs  # which tries levels
    start, make = given.table, given.make if found.metadata.get("afs") else given.family
    moved = {
        "first level": (found.sigmas[:1], start.sigmas[:1]), "levels": (found.sigmas, start.sigmas),
        "input levels": (found.sigmas_in, found.sigmas[:-1]),
        "weights": (found.full, make(found.sigmas).to_basis(found.basis).full),
    }  # fmt: skip
    says = set(DISTILLERS[name].moves) | ({"first level"} if afs and name == "gits" else set())
    found_moved = {what for what, (got, was) in moved.items() if float((got - was).abs().max()) > 1e-6}
    assert found_moved == (says if afs else says - {"first level"})


@pytest.mark.parametrize("name", ["dlms", "amed", "amed on a grid"])
def test_a_method_gives_a_designer(name: str, model: Denoiser, tmp_path: Path) -> None:
    options = dict(levels=lambda n: schedules.log_snr(n, 0.1, 50.0)) if "grid" in name else {}
    name = name.split()[0]
    given = task(model, 4, folder=tmp_path)
    found = checked(name, given, tmp_path, **options)
    usual = vp_time(2, model.sigma_min, model.sigma_max)
    levels = options["levels"](2) if options else given.table.sigmas if name == "dlms" else usual
    near(found.base.sigmas, levels)
    assert type(found) is {"dlms": DLMS, "amed": AMED}[name] and found.reads
    assert found.metadata["trajectories"] == 64 and found.metadata["check_seeds"] == [0, 1, 2, 3]
    assert len(found.metadata["cost"]) == (3 if name == "dlms" else 2) and any(
        file.name.startswith(f"{name}-3-") for file in tmp_path.iterdir()
    )


def test_what_is_trained_long_is_trained_on_the_fast_model(tmp_path: Path) -> None:
    fast = MixtureDenoiser(MIXTURE.means, MIXTURE.stds)
    MIXTURE.reset()
    given = task(MIXTURE, 8, autocast=fast)
    DISTILLERS["s4s"].fit(given)
    DISTILLERS["dlms"].fit(given, features=False, trajectories=64)
    assert MIXTURE.evaluations == 0 < fast.evaluations
    fast.reset()
    DISTILLERS["gits"].fit(given)
    assert fast.evaluations == 0 < MIXTURE.evaluations
