"""Noise schedules against their definitions; grids against the papers' numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from small import refused
from torch import Tensor

from dode import schedules
from dode.schedules import EDM, Flow, Schedule, VPContinuous, VPDiscrete, discrete, karras, refine, time_uniform

LINEAR, COSINE, SCALED = schedules.vp_linear(), schedules.cosine(), schedules.scaled_linear()
CONTINUOUS = VPContinuous()
TRAINED = VPDiscrete(5, "trained", betas=(0.01, 0.02, 0.05, 0.1, 0.3))
SHORT, FLOW, SHIFTED = schedules.vp_linear(50), Flow(), Flow(shift=3.0)
ALL: list[Schedule] = [LINEAR, COSINE, CONTINUOUS, EDM(), SHORT, SCALED, TRAINED, FLOW, SHIFTED]
GRIDS = [karras, schedules.log_snr, schedules.polyexponential, time_uniform, schedules.time_quadratic]
grids = pytest.mark.parametrize("grid", GRIDS)
spacings = pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])


def f64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# --- schedules -----------------------------------------------------------------------------------


def squared_cosine(k: int) -> float:
    return math.cos((k / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2


BETAS: dict[str, tuple[VPDiscrete, Callable[[int], float]]] = {
    "linear": (LINEAR, lambda k: 1e-4 + k * (0.02 - 1e-4) / 999),
    "scaled linear": (SCALED, lambda k: (0.00085**0.5 + k * (0.012**0.5 - 0.00085**0.5) / 999) ** 2),
    "cosine": (COSINE, lambda k: min(1 - squared_cosine(k + 1) / squared_cosine(k), 0.999)),
    "trained": (TRAINED, lambda k: (0.01, 0.02, 0.05, 0.1, 0.3)[k]),
    "as trained": (VPDiscrete(9, "trained", betas=tuple(0.01 * k for k in range(1, 10))), lambda k: 0.01 * (k + 1)),
}


@pytest.mark.parametrize("kind", BETAS)
def test_levels_are_those_of_the_betas(kind: str) -> None:
    chain, beta = BETAS[kind]
    for label in (0, 1, chain.steps // 2, chain.steps - 2, chain.steps - 1):
        bar = math.prod(1 - beta(k) for k in range(label + 1))
        sigma = chain.sigma(f64(label))
        assert float(sigma) == pytest.approx(math.sqrt((1 - bar) / bar), rel=1e-9)
        assert float(chain.alpha(sigma)) == pytest.approx(math.sqrt(bar), rel=1e-9)
    if kind in (printed := {"linear": 157.4073, "scaled linear": 14.6146}):  # Stable Diffusion's is scaled
        assert chain.sigma_max == pytest.approx(printed[kind], abs=1e-4)


@pytest.mark.parametrize("schedule", [LINEAR, COSINE, SHORT, SCALED, TRAINED])
def test_integer_labels_are_exact(schedule: VPDiscrete) -> None:
    k = torch.arange(schedule.steps, dtype=torch.float64)
    assert torch.equal(schedule.sigma(k), schedule.sigmas)
    assert torch.equal(schedule.label(schedule.sigmas), k)
    assert torch.equal(schedule.label(schedule.sigmas.flip(0)[::3]), k.flip(0)[::3])  # another place in the vector
    assert (schedule.sigmas.diff() > 0).all()


@settings(max_examples=40)
@given(st.floats(1, 999))
def test_real_labels_round_trip(label: float) -> None:
    for schedule in (LINEAR, COSINE, CONTINUOUS, FLOW, SHIFTED):
        assert float(schedule.label(schedule.sigma(f64(label)))[0]) == pytest.approx(label, rel=1e-10, abs=1e-8)


def test_labels_are_clamped_and_reach_zero() -> None:
    assert torch.equal(LINEAR.label(f64(1e-9, 1e9)), f64(0, 999))
    assert torch.equal(LINEAR.sigma(f64(-1)), f64(0))
    assert float(LINEAR.sigma(f64(-0.5))) == pytest.approx(LINEAR.sigma_min / 2)


def test_vp_continuous_known_values() -> None:
    """At t = 1, ln alpha = -(beta_max + beta_min) / 4 (Song et al. 2021)."""
    assert CONTINUOUS.sigma_max == pytest.approx(math.sqrt(math.expm1(10.05)))
    assert CONTINUOUS.sigma_min == pytest.approx(math.sqrt(math.expm1(1e-3 * 0.1 + 1e-6 * 19.9 / 2)), rel=1e-6)
    # the discrete chain is its discretisation, and a finer one is nearer
    coarse, fine = (VPDiscrete(n, beta_min=0.1 / n, beta_max=20 / n).sigmas[n // 2 - 1] for n in (1_000, 10_000))
    exact = CONTINUOUS.sigma(f64(999 / 2))[0]
    assert float(CONTINUOUS.alpha(exact)) == pytest.approx(1 / math.hypot(1, float(exact)))
    assert abs(coarse / exact - 1) < 1e-2 and abs(fine / exact - 1) < 1e-3


def test_edm_label() -> None:
    s = EDM()
    assert torch.equal(s.alpha(f64(3.0)), f64(1.0))
    assert float(s.label(f64(math.e**2))) == pytest.approx(0.5)
    torch.testing.assert_close(s.sigma(s.label(f64(0.002, 80))), f64(0.002, 80))


def test_flow_known_values() -> None:
    """``x_t = (1 - t) x_0 + t eps``: alpha and sigma_t of every label, and a shift that leaves the process alone."""
    labels = f64(1, 250, 500, 750, 999)
    sigma = FLOW.sigma(labels)
    torch.testing.assert_close(sigma, f64(1 / 999, 1 / 3, 1, 3, 999))
    torch.testing.assert_close(FLOW.alpha(sigma), 1 - labels / 1000)
    assert (FLOW.sigma_min, FLOW.sigma_max) == (pytest.approx(1 / 999), pytest.approx(999))
    torch.testing.assert_close(SHIFTED.label(sigma), labels)
    t = torch.tensor([FLOW.sigma_max, FLOW.sigma_min]) / (1 + torch.tensor([FLOW.sigma_max, FLOW.sigma_min]))
    shifted = 3 * t / (1 + 2 * t)  # Stable Diffusion 3's
    torch.testing.assert_close(SHIFTED.label(f64(SHIFTED.sigma_max, SHIFTED.sigma_min)), 1000 * shifted.double())
    assert SHIFTED.sigma(0) == 0 and FLOW.label(f64(0)) == 0


@pytest.mark.parametrize("schedule", ALL)
def test_config_round_trip(schedule: Schedule) -> None:
    assert schedules.from_config(json.loads(json.dumps(schedule.config))) == schedule
    assert schedule.sigma_min < schedule.sigma_max


# --- grids: the papers' numbers ------------------------------------------------------------------

EDM10 = karras(10, 0.002, 80, final="zero")


def test_karras_is_edms_grid() -> None:
    """EDM, eq. 5, and the levels it gives for ten steps."""
    paper = [(80 ** (1 / 7) + i / 9 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(10)] + [0]
    torch.testing.assert_close(EDM10, f64(*paper), rtol=1e-12, atol=0)
    printed = f64(42.4, 21.1, 9.72, 4.07, 1.50, 0.470, 0.117, 0.0204, 0.002, 0)
    torch.testing.assert_close(EDM10[1:], printed, rtol=5e-3, atol=0)  # three printed digits


def test_index_aligned_teacher() -> None:
    """The released D-ODE code re-spaces the levels above zero: noisier than the student's at each index."""
    teacher = refine(EDM10, 10, align="index")
    torch.testing.assert_close(teacher, karras(100, 0.002, 80, final="zero"), rtol=1e-10, atol=0)
    printed = f64(45.0, 24.1, 12.1, 5.65, 2.40, 0.907, 0.292, 0.0756, 0.0141, 0)
    torch.testing.assert_close(teacher[10::10], printed, rtol=5e-3, atol=0)
    assert (teacher[10:-1:10] > EDM10[1:-1]).all()
    torch.testing.assert_close(refine(karras(5, 0.01, 100), 4), karras(20, 0.01, 100), rtol=1e-12, atol=0)


def test_spacings() -> None:
    lo, hi = LINEAR.sigma_min, LINEAR.sigma_max
    torch.testing.assert_close(discrete(10), time_uniform(10, lo, hi, final="zero"))
    steps = time_uniform(7, lo, hi)
    torch.testing.assert_close(LINEAR.label(steps), torch.linspace(999, 0, 8, dtype=torch.float64), rtol=0, atol=1e-9)
    roots = (LINEAR.label(schedules.time_quadratic(7, lo, hi)) + 1).sqrt()  # label -1 is time zero
    torch.testing.assert_close(roots.diff(), roots.diff()[:1].expand(7), rtol=1e-9, atol=0)
    logs = schedules.log_snr(7, 0.01, 100).log()
    torch.testing.assert_close(logs.diff(), f64(-math.log(1e4) / 7).expand(7), rtol=1e-12, atol=0)
    labels = CONTINUOUS.label(time_uniform(4, 0.02, 10, schedule=CONTINUOUS))
    torch.testing.assert_close(labels.diff(), labels.diff()[:1].expand(4), rtol=1e-9, atol=0)


def test_k_diffusions_grids() -> None:
    """Its get_sigmas_polyexponential, and get_sigmas_exponential where rho is 1, which put 0 after n levels."""
    ramp, (high, low) = torch.linspace(1, 0, 7, dtype=torch.float64), (math.log(80), math.log(0.002))
    for rho in (0.5, 1.0, 2.0):
        theirs = torch.exp(ramp**rho * (high - low) + low)
        ours = schedules.polyexponential(7, 0.002, 80, rho, final="zero")
        torch.testing.assert_close(ours[:-1], theirs, rtol=1e-12, atol=0)
    assert torch.equal(schedules.exponential(7, 0.002, 80), schedules.log_snr(7, 0.002, 80))
    torch.testing.assert_close(schedules.exponential(7, 0.002, 80), schedules.polyexponential(7, 0.002, 80))


# --- grids on the chain's own labels -------------------------------------------------------------


def labels(grid: Tensor, chain: VPDiscrete = LINEAR) -> list[float]:
    """The labels that a discrete grid evaluates at (its last level is only arrived at)."""
    return chain.label(grid[:-1]).tolist()


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers and numpy 2
@spacings
def test_discrete_labels_are_diffusers(spacing: str) -> None:
    """From the least to the most steps that DDIM's scheduler takes; of other schedulers a few; some with an offset.

    Only the first n are compared: ``arange(1000, 0, -1000 / 61)`` has 62 entries, by rounding, the last of them -1.
    """
    ddim, euler = DDIMScheduler(timestep_spacing=spacing), EulerDiscreteScheduler(timestep_spacing=spacing)
    shifted = DDIMScheduler(timestep_spacing=spacing, steps_offset=1)
    for n in (*range(2, 32), 61, *range(40, 990, 37), *range(990, 1001)):
        ours = labels(discrete(n, spacing=spacing))[:n]
        ddim.set_timesteps(n)
        assert ours == ddim.timesteps.tolist()[:n]
        if spacing == "leading" and n < 1000:
            shifted.set_timesteps(n)
            assert labels(discrete(n, spacing=spacing, offset=1)) == shifted.timesteps.tolist()
        if n in (3, 5, 8, 10, 20, 61, 336):
            euler.set_timesteps(n)
            between = 0.5001 if spacing == "linspace" else 0  # Euler alone does not round to whole labels
            assert np.abs(euler.timesteps.numpy()[:n] - ours).max() <= between
            for final in ("zero", "sigma_min"):
                dpm = DPMSolverMultistepScheduler(timestep_spacing=spacing, final_sigmas_type=final)
                dpm.set_timesteps(n)
                grid = discrete(n, spacing=spacing, final="sigma_min")
                assert labels(grid) == dpm.timesteps.tolist()[:n]
                theirs, levels = dpm.sigmas.double(), grid[-1:] if final == "sigma_min" else f64(0)
                torch.testing.assert_close(grid[:n], theirs[:n], rtol=5e-4, atol=0)  # 1 - float32 near 1
                torch.testing.assert_close(levels, theirs[-1:], rtol=5e-4, atol=0)


@spacings
@pytest.mark.parametrize("chain", [LINEAR, COSINE, SHORT], ids=["linear", "cosine", "50"])
@settings(max_examples=20)
@given(data=st.data())
def test_discrete_grids(chain: VPDiscrete, spacing: str, data: st.DataObject) -> None:
    kind = data.draw(final)
    n = data.draw(st.integers(1 if kind == "sigma_min" or spacing == "trailing" else 2, 33))
    offset = data.draw(st.integers(0, 10)) if spacing == "leading" and chain.steps > 50 else 0
    grid = discrete(n, chain, spacing, offset, kind)
    assert grid.shape == (n + 1,) and grid.dtype == torch.float64
    assert (grid.diff() < 0).all()
    where = chain.label(grid)
    assert torch.equal(where, where.round())
    assert torch.equal(grid[:-1], chain.sigmas[where[:-1].long()])
    assert float(grid[-1]) == (0 if kind == "zero" else chain.sigma_min)
    if spacing != "leading":
        assert float(grid[0]) == chain.sigma_max


@spacings
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_too_many_steps_for_the_chain(spacing: str, final: str) -> None:
    chain, most = SHORT, 50 if final == "zero" else 49
    if (spacing, final) == ("trailing", "sigma_min"):
        most = 33  # 34 steps would reach label 0 before the end
    assert len(discrete(most, chain, spacing, final=final)) == most + 1
    for n in (most + 1, 10**6):
        with pytest.raises(ValueError, match=f"^{n} steps do not fit on 50 labels with {spacing}.*most {most} do$"):
            discrete(n, chain, spacing, final=final)


# --- grids: what holds for all -------------------------------------------------------------------

ends = st.tuples(st.floats(0.0101, 1.0), st.floats(1.5, 150.0))  # inside the linear chain's range
final = st.sampled_from(["sigma_min", "zero"])
Grid = Callable[..., Tensor]


@grids
@settings(max_examples=20)
@given(n=st.integers(1, 40), ends=ends, final=final)
def test_grids_have_their_ends(grid: Grid, n: int, ends: tuple[float, float], final: str) -> None:
    lo, hi = ends
    g = grid(n, lo, hi, final=final)
    assert g.shape == (n + 1,) and g.dtype == torch.float64
    assert (g.diff() < 0).all()
    assert float(g[0]) == hi
    if final == "zero":
        assert float(g[-1]) == 0
        if grid not in (time_uniform, schedules.time_quadratic) and n > 1:
            assert float(g[-2]) == pytest.approx(lo, rel=1e-12)
    else:
        assert float(g[-1]) == pytest.approx(lo, rel=1e-12)


@settings(max_examples=20)
@given(st.integers(1, 20), ends, final, st.integers(1, 12), st.sampled_from([karras, time_uniform]))
def test_time_aligned_teacher_meets_the_student(
    n: int, ends: tuple[float, float], final: str, scale: int, kind: Grid
) -> None:
    student = kind(n, *ends, final=final)
    for align in ("time", "index"):
        teacher = refine(student, scale, align=align)
        assert teacher.shape == (scale * n + 1,) and (teacher.diff() < 0).all()
        assert teacher[0] == student[0] and teacher[-1] == student[-1]
    assert torch.equal(refine(student, scale)[::scale], student)  # bit for bit
    if final == "sigma_min":
        assert torch.equal(refine(student, scale, align="index"), refine(student, scale))


# --- errors: one line each, and the entry by name ------------------------------------------------


@grids
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(n=0), "one step or more, got n = 0"),
        (dict(n=2.5), "one step or more, got n = 2.5"),
        (dict(sigma_min=100, sigma_max=0.01), "0 < sigma_min < sigma_max, got 100 and 0.01"),
        (dict(sigma_min=0), "0 < sigma_min < sigma_max, got 0 and 100"),
        (dict(sigma_min=math.nan), "0 < sigma_min < sigma_max, got nan and 100"),
        (dict(final="Zero"), "final must be 'sigma_min' or 'zero', got 'Zero'"),
    ],
)
def test_grid_arguments(grid: Grid, arguments: dict[str, Any], message: str) -> None:
    with refused(message):
        grid(**dict(n=5, sigma_min=0.01, sigma_max=100) | arguments)


LEADING = dict(n=4, spacing="leading")
OFFSET = "offset must be 0, or for leading spacing a whole number above, got "
REFUSED: list[tuple[Callable[..., Any], dict[str, Any], str]] = [
    (VPDiscrete, dict(kind="sigmoid"), "kind must be 'linear', 'scaled_linear', 'cosine' or 'trained', got 'sigmoid'"),
    (VPDiscrete, dict(kind="trained"), "a chain of 1000 labels has as many betas"),
    (VPDiscrete, dict(steps=2, betas=(0.1, 0.2)), "got 2 for 'linear'"),
    (VPDiscrete, dict(steps=2, kind="trained", betas=(0.1, 1.0)), "trained betas must lie between 0 and 1"),
    (schedules.from_config, dict(config=dict(schedule="sde")), "unknown schedule 'sde'; known: vp_discrete, vp_contin"),
    (schedules.check_grid, dict(sigmas=f64(1, 2, 0.5)), "must decrease strictly, but sigma[1] = 2 follows 1"),
    (schedules.check_grid, dict(sigmas=f64(3, math.nan, 1)), "non-finite noise level at index 1"),
    (schedules.check_grid, dict(sigmas=f64(3, 2, -1)), "must not be negative, got -1 at the end"),
    (schedules.check_grid, dict(sigmas=f64(3)), "at least two noise levels in one dimension, got shape (1,)"),
    (refine, dict(sigmas=f64(3, 2, 2), scale=2), "must decrease strictly, but sigma[2] = 2 follows 2"),
    (refine, dict(sigmas=EDM10, scale=1.5), "scale must be a whole number of one or more, got 1.5"),
    (refine, dict(sigmas=EDM10, scale=2, align="space"), "align must be 'time' or 'index', got 'space'"),
    (discrete, dict(n=5, final="Zero"), "final must be 'sigma_min' or 'zero', got 'Zero'"),
    (discrete, dict(n=5, spacing="karras"), "spacing must be 'trailing', 'leading' or 'linspace', got 'karras'"),
    (discrete, dict(n=5, schedule=EDM()), "needs a chain of labels (VPDiscrete), got EDM"),
    (discrete, LEADING | dict(offset=250), "offset 250 leaves the chain's labels 0 to 999; at most 249 fits"),
    (discrete, LEADING | dict(offset=0.5), f"{OFFSET}0.5"),
    (discrete, dict(n=4, spacing="trailing", offset=1), f"{OFFSET}1"),
    (discrete, dict(n=1, spacing="leading"), "one step of leading spacing would start at label 0"),
]


@pytest.mark.parametrize(("make", "arguments", "message"), REFUSED, ids=[message for *_, message in REFUSED])
def test_arguments_that_are_refused(make: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
    with refused(message):
        make(**arguments)
