"""Each solver against the scheduler of diffusers that bears its name: same noise, levels and model, same x_0.

Both sides run in float64 and on the same levels, so they agree to :data:`TOLERANCE`.  Left alone, diffusers
keeps its levels in float32, and three schedulers the sample too; :func:`reference` and :class:`Double` keep
them wide, and :func:`test_as_shipped` leaves the schedulers alone.  Both sides also start from one state,
``sigma x noise`` in x / alpha: on a VP chain pipelines start from ``noise`` in x, which at sigma_max is the same
to 1 / (2 sigma_max^2).

Where a scheduler does something else than its paper, :mod:`dode` follows the paper; the end of the file shows how.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    DPMSolverSinglestepScheduler,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    IPNDMScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from dode import solvers
from dode.denoisers import MixtureDenoiser
from dode.sampling import initial_noise, sample, trajectory
from dode.schedules import cosine, discrete, karras, log_snr, vp_linear
from dode.tableau import Tableau

TOLERANCE = 1e-9  # relative to the largest entry
NFE = (3, 8, 20)
CHAINS = {"linear": vp_linear(), "squaredcos_cap_v2": cosine()}
LINEAR = CHAINS["linear"]

MEANS = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(0)).double()
MODEL = MixtureDenoiser(MEANS, torch.tensor([0.1, 0.2, 0.4, 0.6]))
NOISE = initial_noise((3, 2), range(6), dtype=torch.float64)

Scheduler = Any
chains = pytest.mark.parametrize("betas", CHAINS)  # for DDIM alone: to the others a chain is a grid like any other
orders = pytest.mark.parametrize("order", [1, 2, 3])
types = pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
finals = pytest.mark.parametrize("final", ["zero", "sigma_min"])
pytestmark = [  # of numpy 2 and of names that diffusers means to drop
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

# --- the loop of diffusers -----------------------------------------------------------------------


class Double(Tensor):
    """Float64, also where the schedulers :data:`NARROW` say ``sample.to(torch.float32)``."""

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        return self if torch.float32 in args else super().to(*args, **kwargs)


class IPNDM(IPNDMScheduler):
    """With a lower order for those who want it: the scheduler looks at how many outputs it has."""

    def step(self, *args: Any, order: int = 4, **kwargs: Any) -> Any:
        self.ets = self.ets[max(len(self.ets) - order + 1, 0) :]
        return super().step(*args, **kwargs)


@contextmanager
def solver_type(scheduler: Scheduler, kind: str) -> Iterator[None]:
    """The scheduler with this ``solver_type`` for a while."""
    own = scheduler.config.solver_type
    scheduler.register_to_config(solver_type=kind)
    yield
    scheduler.register_to_config(solver_type=own)


class Singlestep(DPMSolverSinglestepScheduler):
    """With the paper's second stage in a step of order 3: :func:`test_the_second_stage_of_three`."""

    def singlestep_dpm_solver_second_order_update(self, *args: Any, **kwargs: Any) -> Tensor:
        stage = self.order_list[self.step_index + 1 : self.step_index + 2] == [3]
        with solver_type(self, "heun" if stage else self.config.solver_type):
            return super().singlestep_dpm_solver_second_order_update(*args, **kwargs)


class UniPC(UniPCMultistepScheduler):
    """With a step to 0 for "bh1" too: :func:`test_unipc_bh1_cannot_reach_zero`."""

    def multistep_uni_p_bh_update(self, *args: Any, **kwargs: Any) -> Tensor:
        with solver_type(self, "bh2" if self.sigmas[self.step_index + 1] == 0 else self.config.solver_type):
            return super().multistep_uni_p_bh_update(*args, **kwargs)


ON_THE_CHAIN = (DDIMScheduler, PNDMScheduler)  # these know levels by label only
EDMS = (EDMEulerScheduler, EDMDPMSolverMultistepScheduler)
NARROW = (EulerDiscreteScheduler, EDMEulerScheduler, DPMSolverMultistepScheduler)
UNSCALED = (EulerDiscreteScheduler, HeunDiscreteScheduler, KDPM2DiscreteScheduler, LMSDiscreteScheduler, *EDMS)


def reference(kind: type, n: int, betas: str = "linear", sigmas: Tensor | None = None, **config: Any) -> Scheduler:
    """The scheduler after ``set_timesteps(n)``, on its own levels or on ``sigmas`` (``n + 1`` levels), in float64."""
    if kind in EDMS or kind is IPNDM:
        scheduler = kind(**config)
    else:
        scheduler = kind(beta_schedule=betas, beta_start=1e-4, beta_end=0.02, **config)
        alpha_bar = 1 / (1 + CHAINS[betas].sigmas ** 2)
        torch.testing.assert_close(scheduler.alphas_cumprod.double(), alpha_bar, rtol=1e-4, atol=0)
        scheduler.alphas_cumprod = alpha_bar
    if kind in ON_THE_CHAIN:
        scheduler.final_alpha_cumprod = torch.ones(()).double() if scheduler.config.set_alpha_to_one else alpha_bar[0]
    scheduler.set_timesteps(n)
    if kind not in ON_THE_CHAIN:
        put_levels(scheduler, levels(scheduler) if sigmas is None else sigmas)
        scheduler.set_begin_index(0)  # else it looks for the first timestep, and takes the second of two
    return scheduler


def levels(scheduler: Scheduler) -> Tensor:
    """The grid that a scheduler walks."""
    return torch.unique_consecutive(scheduler.sigmas.double())


def put_levels(scheduler: Scheduler, sigmas: Tensor) -> None:
    """Replace a scheduler's levels by as many others."""
    if isinstance(scheduler, IPNDMScheduler):
        scheduler.alphas = (1 + sigmas**2).rsqrt()
        scheduler.betas = sigmas * scheduler.alphas
        return
    old = scheduler.sigmas
    if isinstance(scheduler, HeunDiscreteScheduler):  # these two keep a level once for each evaluation
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    elif isinstance(scheduler, KDPM2DiscreteScheduler):
        twice = lambda s: torch.cat([s[:1], s[1:].repeat_interleave(2), s[-1:]])  # noqa: E731
        scheduler.sigmas_interpol = twice(sigmas.log().lerp(sigmas.roll(1).log(), 0.5).exp())
        sigmas = twice(sigmas)
    assert sigmas.shape == old.shape
    scheduler.sigmas = sigmas


def level(scheduler: Scheduler, timestep: Tensor) -> Tensor:
    """Sigma of the evaluation that the scheduler now asks for."""
    if isinstance(scheduler, ON_THE_CHAIN):
        alpha_bar = scheduler.alphas_cumprod[timestep].double()
        return ((1 - alpha_bar) / alpha_bar).sqrt()
    i = scheduler.step_index or 0
    if isinstance(scheduler, IPNDMScheduler):
        return scheduler.betas[i] / scheduler.alphas[i]
    if isinstance(scheduler, KDPM2DiscreteScheduler) and not scheduler.state_in_first_order:
        return scheduler.sigmas_interpol[i]
    return scheduler.sigmas[i].double()


def network(scheduler: Scheduler, seen: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """What a perfect network answers to the input it is shown."""
    edm = isinstance(scheduler, EDMS)
    data = scheduler.config.sigma_data if edm else 1.0
    x = seen * (sigma**2 + data**2).sqrt()
    clean = MODEL(x, sigma)
    if edm:
        return (clean - data**2 / (sigma**2 + data**2) * x) * (sigma**2 + data**2).sqrt() / (sigma * data)
    noise, alpha = (x - clean) / sigma, (1 + sigma**2).rsqrt()
    return {"epsilon": noise, "sample": clean, "v_prediction": alpha * (noise - sigma * clean)}[prediction]


def solve(
    scheduler: Scheduler, grid: Tensor, prediction: str = "epsilon", noise: Tensor = NOISE, **options: Any
) -> tuple[Tensor, int]:
    """What the loop of a diffusers pipeline ends with, as x / alpha, and how often it called the network."""
    alpha = lambda sigma: 1.0 if isinstance(scheduler, UNSCALED) else float((1 + sigma**2).rsqrt())  # noqa: E731
    x = alpha(grid[0]) * grid[0] * noise
    if isinstance(scheduler, NARROW) and x.dtype == torch.float64:
        x = x.as_subclass(Double)
    for t in scheduler.timesteps:
        sigma = level(scheduler, t)
        output = network(scheduler, scheduler.scale_model_input(x, t).as_subclass(Tensor), sigma, prediction)
        x = scheduler.step(output, t, x, **options).prev_sample
    assert x.dtype == noise.dtype
    return x.as_subclass(Tensor) / alpha(grid[-1]), len(scheduler.timesteps)


def distance(table: Tableau, scheduler: Scheduler, **options: Any) -> float:
    """Largest difference of the two x_0, relative to the largest entry; the calls must agree."""
    theirs, calls = solve(scheduler, table.sigmas, **options)
    assert calls == table.nfe
    return float((sample(MODEL, table, NOISE) - theirs).abs().max() / theirs.abs().max())


def test_the_comparison_can_fail() -> None:
    scheduler = reference(DPMSolverMultistepScheduler, 8, solver_order=3)
    right, wrong = (solvers.dpm_solver_pp(levels(scheduler), order=k) for k in (3, 2))
    assert distance(right, scheduler) < TOLERANCE
    scheduler = reference(DPMSolverMultistepScheduler, 8, solver_order=3)
    assert distance(wrong, scheduler) > 1e-3


# --- one evaluation a step, noise basis ----------------------------------------------------------


@chains
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddim(betas: str, spacing: str, prediction: str) -> None:
    for n in NFE if spacing == "leading" else NFE[1:]:  # trailing with n = 3: test_ddim_steps_by_whole_parts
        table = solvers.ddim(discrete(n, CHAINS[betas], spacing), basis="data" if prediction == "sample" else "noise")
        config = dict(timestep_spacing=spacing, set_alpha_to_one=True, clip_sample=False, prediction_type=prediction)
        assert distance(table, reference(DDIMScheduler, n, betas, **config), prediction=prediction) < TOLERANCE


@finals
def test_ddim_is_euler(final: str) -> None:
    for n in NFE:
        scheduler = reference(EulerDiscreteScheduler, n, timestep_spacing="trailing", final_sigmas_type=final)
        assert distance(solvers.ddim(levels(scheduler)), scheduler) < TOLERANCE


def test_ddim_is_edms_euler() -> None:
    for n in NFE:
        scheduler = reference(EDMEulerScheduler, n)
        torch.testing.assert_close(levels(scheduler), karras(n, 0.002, 80, final="zero"), rtol=1e-5, atol=0)
        assert distance(solvers.ddim(levels(scheduler)), scheduler) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms(order: int) -> None:
    """iPNDM_v and DEIS's rhoAB are the same table: all integrate the polynomial in sigma exactly."""
    for n in (n for n in NFE if n >= order):
        scheduler = reference(LMSDiscreteScheduler, n)
        table = solvers.lms(levels(scheduler), order=order)
        assert distance(table, scheduler, order=order) < TOLERANCE
        for twin in (
            solvers.ipndm_v(table.sigmas, order=order),
            solvers.deis(table.sigmas, order=order, variable="rho"),
        ):
            torch.testing.assert_close(twin.weights, table.weights, rtol=1e-12, atol=0)


@finals
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_ipndm(final: str, order: int) -> None:
    """On the chain's levels: the scheduler's own cannot be walked (:func:`test_ipndms_grid_starts_at_infinity`)."""
    for n in (n for n in NFE if n >= order):
        grid = discrete(n, LINEAR, final=final)
        scheduler = reference(IPNDM, n, sigmas=grid)
        table = solvers.ipndm(grid, order=order)
        assert distance(table, scheduler, prediction="v_prediction", order=order) < TOLERANCE
        if order == 4:
            assert torch.equal(solvers.pndm(grid, warm_up="none").weights, table.weights)


@finals
@pytest.mark.parametrize(("warm_up", "steps"), [("heun", (2, 7, 19)), ("runge_kutta", (4, 10, 20))])
def test_pndm(final: str, warm_up: str, steps: tuple[int, ...]) -> None:
    """3 to 20 calls after Heun's step; with Runge-Kutta n + 9 calls, and n for which 1000 // n is even."""
    offset = 0 if final == "zero" else 1  # Stable Diffusion's settings, which end on label 0
    for n in steps:
        grid = discrete(n, LINEAR, "leading", offset)
        if final == "sigma_min":
            grid[-1] = LINEAR.sigma_min
        config = dict(skip_prk_steps=warm_up == "heun", set_alpha_to_one=final == "zero", steps_offset=offset)
        table = solvers.pndm(grid, warm_up=warm_up, schedule=LINEAR)
        assert distance(table, reference(PNDMScheduler, n, **config)) < TOLERANCE


@orders
@pytest.mark.parametrize("falls", [True, False])
def test_deis(order: int, falls: bool) -> None:
    """In ln rho, the only variable that diffusers has; from 15 steps on it lets no order fall."""
    for n in NFE:
        scheduler = reference(DEISMultistepScheduler, n, solver_order=order, lower_order_final=falls)
        options = dict(variable="log_rho", lower_order_final=falls and n < 15)
        assert distance(solvers.deis(levels(scheduler), order=order, **options), scheduler) < TOLERANCE


# --- exponential integrators ---------------------------------------------------------------------


@orders
@types
@finals
@pytest.mark.parametrize("falls", [True, False])
def test_dpm_solver_pp(order: int, solver_type: str, final: str, falls: bool) -> None:
    """From 15 steps on diffusers lets no order fall, but for a last step to 0."""
    for n in NFE:
        config = dict(solver_order=order, solver_type=solver_type, final_sigmas_type=final, lower_order_final=falls)
        scheduler = reference(DPMSolverMultistepScheduler, n, **config)
        options = dict(order=order, solver_type=solver_type, lower_order_final=falls and n < 15)
        assert distance(solvers.dpm_solver_pp(levels(scheduler), **options), scheduler) < TOLERANCE


@orders
@types
@pytest.mark.parametrize("falls", [True, False])
def test_dpm_solver_multistep(order: int, solver_type: str, falls: bool) -> None:
    for n in NFE:
        config = dict(solver_order=order, solver_type=solver_type, lower_order_final=falls)
        config.update(algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
        scheduler = reference(DPMSolverMultistepScheduler, n, **config)
        options = dict(order=order, solver_type=solver_type, lower_order_final=falls and n < 15)
        assert distance(solvers.dpm_solver_multistep(levels(scheduler), **options), scheduler) < TOLERANCE


def test_euler_at_final_is_a_falling_order() -> None:
    """For order 2 and many steps: its only difference is the step before the last, and that has order 2 anyway."""
    config = dict(solver_order=2, euler_at_final=True, final_sigmas_type="sigma_min")
    scheduler = reference(DPMSolverMultistepScheduler, 20, **config)
    assert distance(solvers.dpm_solver_pp(levels(scheduler), order=2), scheduler) < TOLERANCE


@orders
@types
def test_edms_dpm_solver(order: int, solver_type: str) -> None:
    for n in NFE:
        scheduler = reference(EDMDPMSolverMultistepScheduler, n, solver_order=order, solver_type=solver_type)
        options = dict(order=order, solver_type=solver_type, lower_order_final=n < 15)
        assert distance(solvers.dpm_solver_pp(levels(scheduler), **options), scheduler) < TOLERANCE


def falling(order: int, n: int, final: str) -> bool:
    """The ``lower_order_final`` with which diffusers splits ``n`` calls as the paper does."""
    return order == 3 or n % order > 0 or final == "zero"


@orders
@types
@finals
def test_dpm_solver_pp_singlestep(order: int, solver_type: str, final: str) -> None:
    """Diffusers evaluates inside a step at the next levels of the grid."""
    for n in NFE:
        config = dict(solver_order=order, solver_type=solver_type, final_sigmas_type=final)
        scheduler = reference(Singlestep, n, lower_order_final=falling(order, n, final), **config)
        options = dict(order=order, solver_type=solver_type, inner="grid")
        assert distance(solvers.dpm_solver_pp_singlestep(levels(scheduler), **options), scheduler) < TOLERANCE


@orders
@types
def test_dpm_solver(order: int, solver_type: str) -> None:
    for n in NFE:
        config = dict(algorithm_type="dpmsolver", solver_order=order, solver_type=solver_type)
        config.update(final_sigmas_type="sigma_min", lower_order_final=falling(order, n, "sigma_min"))
        scheduler = reference(Singlestep, n, **config)
        options = dict(order=order, solver_type=solver_type, inner="grid")
        assert distance(solvers.dpm_solver(levels(scheduler), **options), scheduler) < TOLERANCE


@orders
@types
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_inner_stages_in_log_snr(algorithm: str, order: int, solver_type: str) -> None:
    """The paper's stages, which are at the grid's levels where those are even in ln sigma."""
    for n in NFE:
        grid = log_snr(n, 0.01, 100)
        config = dict(algorithm_type=algorithm, solver_order=order, solver_type=solver_type)
        config.update(final_sigmas_type="sigma_min", lower_order_final=falling(order, n, "sigma_min"))
        make = solvers.dpm_solver if algorithm == "dpmsolver" else solvers.dpm_solver_pp_singlestep
        scheduler = reference(Singlestep, n, sigmas=grid, **config)
        assert distance(make(grid, order=order, solver_type=solver_type), scheduler) < TOLERANCE


@orders
@finals
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc(order: int, final: str, variant: str, corrector: bool) -> None:
    for n in NFE:
        off = [] if corrector else list(range(n))
        config = dict(solver_order=order, solver_type=variant, final_sigmas_type=final, disable_corrector=off)
        scheduler = reference(UniPC, n, **config)
        options = dict(order=order, variant=variant, corrector=corrector)
        assert distance(solvers.unipc(levels(scheduler), **options), scheduler) < TOLERANCE


@orders
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("corrector", [True, False])
@pytest.mark.parametrize("falls", [True, False])
def test_unipc_noise(order: int, variant: str, corrector: bool, falls: bool) -> None:
    for n in NFE:
        config = dict(solver_order=order, solver_type=variant, predict_x0=False, final_sigmas_type="sigma_min")
        config.update(disable_corrector=[] if corrector else list(range(n)), lower_order_final=falls)
        scheduler = reference(UniPCMultistepScheduler, n, **config)
        options = dict(order=order, variant=variant, corrector=corrector, lower_order_final=falls)
        assert distance(solvers.unipc(levels(scheduler), basis="noise", **options), scheduler) < TOLERANCE


# --- two evaluations a step ----------------------------------------------------------------------

STEPS = (2, 5, 11)  # 3, 9, 21 calls


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_heun(prediction: str) -> None:
    for n in STEPS:
        scheduler = reference(HeunDiscreteScheduler, n, prediction_type=prediction)
        table = solvers.heun(levels(scheduler), basis="noise" if prediction == "epsilon" else "data")
        assert table.nfe == 2 * n - 1
        assert distance(table, scheduler, prediction=prediction) < TOLERANCE


def test_dpm_2() -> None:
    """Also DPM-Solver-2, on a grid where every second level is free."""
    for n in STEPS:
        scheduler = reference(KDPM2DiscreteScheduler, n)
        assert distance(solvers.dpm_2(levels(scheduler)), deepcopy(scheduler)) < TOLERANCE
        own = levels(scheduler)
        between = torch.lerp(own[:-2], own[1:-1], 0.3)
        grid = torch.cat([torch.stack([own[:-2], between], 1).ravel(), own[-2:]])
        assert distance(solvers.dpm_solver(grid, order=2), scheduler) < TOLERANCE


# --- schedulers left alone -----------------------------------------------------------------------

SHIPPED: list[tuple[type, dict[str, Any], Any]] = [
    (DDIMScheduler, dict(clip_sample=False), lambda s: solvers.ddim(s)),
    (EulerDiscreteScheduler, dict(timestep_spacing="trailing"), lambda s: solvers.ddim(s)),
    (LMSDiscreteScheduler, {}, lambda s: solvers.lms(s)),
    (PNDMScheduler, dict(skip_prk_steps=True, set_alpha_to_one=True), lambda s: solvers.pndm(s)),
    (PNDMScheduler, dict(set_alpha_to_one=True), lambda s: solvers.pndm(s, warm_up="runge_kutta")),
    (DEISMultistepScheduler, {}, lambda s: solvers.deis(s, order=2, variable="log_rho", lower_order_final=True)),
    (DPMSolverMultistepScheduler, {}, lambda s: solvers.dpm_solver_pp(s, order=2)),
    (DPMSolverMultistepScheduler, dict(solver_order=3), lambda s: solvers.dpm_solver_pp(s, order=3)),
    (
        DPMSolverMultistepScheduler,
        dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
        lambda s: solvers.dpm_solver_multistep(s, order=2),
    ),
    (
        DPMSolverSinglestepScheduler,
        dict(lower_order_final=True),
        lambda s: solvers.dpm_solver_pp_singlestep(s, order=2, inner="grid"),
    ),
    (UniPCMultistepScheduler, {}, lambda s: solvers.unipc(s, order=2)),
    (HeunDiscreteScheduler, {}, lambda s: solvers.heun(s)),
    (KDPM2DiscreteScheduler, {}, lambda s: solvers.dpm_2(s)),
    (EDMEulerScheduler, {}, lambda s: solvers.ddim(s)),
    (EDMDPMSolverMultistepScheduler, {}, lambda s: solvers.dpm_solver_pp(s, order=2)),
]


@pytest.mark.parametrize(("kind", "config", "make"), SHIPPED, ids=[kind.__name__ for kind, *_ in SHIPPED])
def test_as_shipped(kind: type, config: dict[str, Any], make: Any) -> None:
    """Nothing replaced, everything in float32: the solvers agree to its rounding."""
    n = 10
    scheduler = kind(**config)
    scheduler.set_timesteps(n)
    grid = discrete(n, spacing="leading") if kind in ON_THE_CHAIN else levels(scheduler)
    theirs, calls = solve(scheduler, grid, noise=NOISE.float())
    table = make(grid)
    assert calls == table.nfe
    torch.testing.assert_close(sample(MODEL, table, NOISE.float()), theirs, rtol=1e-3, atol=1e-3)


# --- where diffusers does something else ---------------------------------------------------------


def test_ddim_steps_by_whole_parts() -> None:
    """DDIM goes from each label to the next one (Song et al., eq. 13); the scheduler goes down by 1000 // n, always.

    Where the labels are not so far apart, it evaluates at a level where it is not.  Euler's scheduler
    goes to the next label.
    """
    for n, spacing in ((3, "trailing"), (8, "linspace")):
        grid = discrete(n, spacing=spacing)
        config = dict(set_alpha_to_one=True, clip_sample=False, timestep_spacing=spacing)
        assert distance(solvers.ddim(grid), reference(DDIMScheduler, n, **config)) > 1e-4
        scheduler = reference(EulerDiscreteScheduler, n, sigmas=grid)
        assert distance(solvers.ddim(grid), scheduler) < TOLERANCE


@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler])
def test_the_last_call_is_wasted_without_alpha_one(kind: type) -> None:
    """From label 0 to label 0, unless ``set_alpha_to_one`` or an offset is set: a grid of ours may not stand still."""
    extra = dict(clip_sample=False) if kind is DDIMScheduler else dict(skip_prk_steps=True)
    scheduler = reference(kind, 5, set_alpha_to_one=False, **extra)
    grid = torch.cat([discrete(5, spacing="leading")[:-1], LINEAR.sigmas[:1]])
    assert grid[-1] == grid[-2]
    whole, _ = solve(scheduler, grid)
    scheduler = reference(kind, 5, set_alpha_to_one=False, **extra)
    scheduler.timesteps = scheduler.timesteps[:-1]
    short, calls = solve(scheduler, grid)
    torch.testing.assert_close(whole, short, rtol=1e-12, atol=1e-12)
    make = solvers.ddim if kind is DDIMScheduler else solvers.pndm
    assert calls == make(grid[:-1]).nfe
    torch.testing.assert_close(sample(MODEL, make(grid[:-1]), NOISE), short, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_edms_last_step_to_sigma_min_stands_still(kind: type) -> None:
    """EDM's grid of n levels ends at sigma_min already; the schedulers add that level again."""
    scheduler = kind(final_sigmas_type="sigma_min")
    scheduler.set_timesteps(6)
    torch.testing.assert_close(scheduler.sigmas[-1], scheduler.sigmas[-2], rtol=1e-5, atol=0)
    torch.testing.assert_close(scheduler.sigmas[:-1].double(), karras(5, 0.002, 80), rtol=1e-5, atol=0)


def test_prk_needs_an_even_part() -> None:
    """The Runge-Kutta step evaluates in the middle of two labels; with 1000 // 8 odd the scheduler lands beside it."""
    grid = discrete(8, spacing="leading")
    middles = PNDMScheduler(set_alpha_to_one=True)
    middles.set_timesteps(8)
    assert middles.timesteps[:4].tolist() == [875, 812, 812, 750]  # told 812, but 62 below 875 is 813
    table = solvers.pndm(grid, warm_up="runge_kutta")
    assert float(LINEAR.label(table.sigmas[1])) == 812.5
    assert 1e-5 < distance(table, reference(PNDMScheduler, 8, set_alpha_to_one=True)) < 1e-2


def test_ipndms_grid_starts_at_infinity() -> None:
    """Its time is an angle, and the first one is a right angle: sigma_t = 1 and alpha = 0."""
    scheduler = IPNDMScheduler()
    scheduler.set_timesteps(10)
    assert scheduler.betas[0] == 1 and scheduler.alphas[0] == 0
    angles = torch.atan2(scheduler.betas, scheduler.alphas).double()
    assert (angles.diff() < 0).all() and angles[-1] == 0
    inside = (scheduler.betas / scheduler.alphas).double()[1:]
    again = reference(IPNDM, 9, sigmas=inside)
    assert distance(solvers.ipndm(inside), again, prediction="v_prediction") < TOLERANCE


def test_deis_in_diffusers_is_not_the_papers() -> None:
    """The paper's tAB has polynomials in the time t; diffusers has them in ln rho alone, which agree at order 1."""
    for order in (1, 2, 3):
        scheduler = reference(DEISMultistepScheduler, 8, solver_order=order, lower_order_final=False)
        theirs, _ = solve(scheduler, levels(scheduler))
        for variable in ("t", "rho"):
            ours = sample(
                MODEL, solvers.deis(levels(scheduler), order=order, variable=variable, schedule=LINEAR), NOISE
            )
            gap = float((ours - theirs).abs().max())
            assert gap < TOLERANCE if order == 1 else gap > 1e-3


def test_deis_in_t_by_hand() -> None:
    """The paper's tAB in x / alpha: the polynomial in the label, integrated over sigma (here by midpoints)."""
    grid = discrete(5)
    table = solvers.deis(grid, order=2, schedule=LINEAR)
    for i in range(1, 4):
        edges = torch.linspace(float(grid[i]), float(grid[i + 1]), 100_001, dtype=torch.float64)
        label, (before, here) = LINEAR.label((edges[1:] + edges[:-1]) / 2), LINEAR.label(grid[i - 1 : i + 1])
        older = (label - here) / (before - here) * edges.diff()
        newer = (label - before) / (here - before) * edges.diff()
        expected = torch.stack([older.sum(), newer.sum()])
        torch.testing.assert_close(table.weights[i, i - 1 : i + 1], expected, rtol=1e-6, atol=0)


def test_the_second_stage_of_three() -> None:
    """DPM-Solver-3 integrates its first slope exactly on the way to the second stage (algorithm 2 of the paper).

    The scheduler takes half of the step there instead, as DPM-Solver-2 does, unless it is told ``heun``.
    """
    grid = log_snr(8, 0.01, 100)
    options: dict[str, Any] = dict(final_sigmas_type="sigma_min", solver_order=3, lower_order_final=True)
    for kind, make in (("dpmsolver", solvers.dpm_solver), ("dpmsolver++", solvers.dpm_solver_pp_singlestep)):
        for solver_type in ("midpoint", "heun"):
            config = dict(options, algorithm_type=kind, solver_type=solver_type)
            table = make(grid, order=3, solver_type=solver_type)
            assert distance(table, reference(Singlestep, 8, sigmas=grid, **config)) < TOLERANCE
            gap = distance(table, reference(DPMSolverSinglestepScheduler, 8, sigmas=grid, **config))
            assert gap < TOLERANCE if solver_type == "heun" else gap > 1e-3


def test_the_second_stage_by_hand() -> None:
    """Algorithm 2 of the DPM-Solver paper, typed in: one step of three calls."""
    s, t = 2.0, 0.5
    h = math.log(s / t)
    r1, r2 = 1 / 3, 2 / 3
    u1, u2 = s * math.exp(-r1 * h), s * math.exp(-r2 * h)
    eps = lambda x, sigma: (x - MODEL(x, sigma)) / sigma  # noqa: E731
    x = s * NOISE
    e0 = eps(x, s)
    x1 = x - u1 * math.expm1(r1 * h) * e0
    d1 = eps(x1, u1) - e0
    x2 = x - u2 * math.expm1(r2 * h) * e0 - u2 * r2 / r1 * (math.expm1(r2 * h) / (r2 * h) - 1) * d1
    d2 = eps(x2, u2) - e0
    x3 = x - t * math.expm1(h) * e0 - t / r2 * (math.expm1(h) / h - 1) * d2
    # a grid of three calls is split 2, 1; four calls make a step of three and one more
    table = solvers.dpm_solver(torch.tensor([s, u1, u2, t, t / 2]).double(), order=3)
    states = trajectory(MODEL, table, NOISE)
    torch.testing.assert_close(states[1:4], torch.stack([x1, x2, x3]), rtol=1e-12, atol=1e-12)


def test_an_even_number_of_calls_needs_no_falling_order() -> None:
    """DPM-Solver-2 makes n / 2 steps of two calls; the scheduler's ``lower_order_final`` makes the last two single."""
    config = dict(solver_order=2, final_sigmas_type="sigma_min")
    assert DPMSolverSinglestepScheduler(**config, lower_order_final=True).get_order_list(8) == [1, 2, 1, 2, 1, 2, 1, 1]
    scheduler = reference(DPMSolverSinglestepScheduler, 8, lower_order_final=True, **config)
    table = solvers.dpm_solver_pp_singlestep(levels(scheduler), order=2, inner="grid")
    assert distance(table, scheduler) > 1e-5


def test_the_noise_basis_reaches_zero() -> None:
    """With a step of order 1; DPM-Solver's scheduler refuses, UniPC's gives NaN."""
    with pytest.raises(ValueError, match="not supported"):
        DPMSolverMultistepScheduler(algorithm_type="dpmsolver", final_sigmas_type="zero")
    scheduler = reference(UniPCMultistepScheduler, 5, predict_x0=False)
    assert solve(scheduler, levels(scheduler))[0].isnan().any()
    for make in (solvers.unipc, solvers.dpm_solver_multistep, solvers.dpm_solver, solvers.deis):
        options = dict(basis="noise") if make is solvers.unipc else {}
        options = dict(variable="log_rho") if make is solvers.deis else options
        assert torch.isfinite(sample(MODEL, make(levels(scheduler), **options), NOISE)).all()


@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_bh1_cannot_reach_zero(corrector: bool) -> None:
    """B(h) = h is infinite there, and the scheduler multiplies it by no terms: NaN.  The step is DDIM's, as for bh2."""
    config = dict(solver_type="bh1", disable_corrector=[] if corrector else list(range(5)))
    scheduler = reference(UniPCMultistepScheduler, 5, **config)
    assert solve(scheduler, levels(scheduler))[0].isnan().any()
    table = solvers.unipc(levels(scheduler), order=2, variant="bh1", corrector=corrector)
    assert distance(table, reference(UniPC, 5, **config)) < TOLERANCE


def test_where_pipelines_start() -> None:
    """DDIM's from ``noise`` in x, which is sqrt(1 + sigma^2) x noise in x / alpha; Euler's too, with leading spacing.

    Ours start from sigma x noise, as EDM does.
    """
    for spacing in ("leading", "trailing", "linspace"):
        scheduler = EulerDiscreteScheduler(timestep_spacing=spacing)
        scheduler.set_timesteps(10)
        top = scheduler.sigmas[0]
        expected = (1 + top**2).sqrt() if spacing == "leading" else top
        torch.testing.assert_close(scheduler.init_noise_sigma, expected)
    assert DDIMScheduler().init_noise_sigma == 1
