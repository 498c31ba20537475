"""Each solver against the scheduler of diffusers that bears its name: same noise, levels and model, same x_0.

Both sides run in float64 and on the same levels, so they agree to :data:`TOLERANCE`.  Left alone, diffusers
keeps its levels in float32, and three schedulers the sample too; :func:`reference` and :class:`Double` keep
them wide, and :func:`test_as_shipped` leaves the schedulers alone.  Both sides also start from one state,
``sigma x noise`` in x / alpha: on a VP chain pipelines start from ``noise`` in x, which at sigma_max is the same
to 1 / (2 sigma_max^2).

Where a scheduler does something else than its paper, :mod:`dode` follows the paper; the end of the file shows how.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import diffusers as hf
import pytest
import torch
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


class IPNDM(hf.IPNDMScheduler):
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


class Singlestep(hf.DPMSolverSinglestepScheduler):
    """With the paper's second stage in a step of order 3: :func:`test_inner_stages_in_log_snr`."""

    def singlestep_dpm_solver_second_order_update(self, *args: Any, **kwargs: Any) -> Tensor:
        stage = self.order_list[self.step_index + 1 : self.step_index + 2] == [3]
        with solver_type(self, "heun" if stage else self.config.solver_type):
            return super().singlestep_dpm_solver_second_order_update(*args, **kwargs)


class UniPC(hf.UniPCMultistepScheduler):
    """With a step to 0 for "bh1" too: :func:`test_unipc_bh1_cannot_reach_zero`."""

    def multistep_uni_p_bh_update(self, *args: Any, **kwargs: Any) -> Tensor:
        with solver_type(self, "bh2" if self.sigmas[self.step_index + 1] == 0 else self.config.solver_type):
            return super().multistep_uni_p_bh_update(*args, **kwargs)


ON_THE_CHAIN = (hf.DDIMScheduler, hf.PNDMScheduler)  # these know levels by label only
EDMS = (hf.EDMEulerScheduler, hf.EDMDPMSolverMultistepScheduler)
NARROW = (hf.EulerDiscreteScheduler, hf.EDMEulerScheduler, hf.DPMSolverMultistepScheduler)
UNSCALED = (*EDMS, *(getattr(hf, f"{name}DiscreteScheduler") for name in ("Euler", "Heun", "KDPM2", "LMS")))


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
    if isinstance(scheduler, hf.IPNDMScheduler):
        scheduler.alphas = (1 + sigmas**2).rsqrt()
        scheduler.betas = sigmas * scheduler.alphas
        return
    old = scheduler.sigmas
    if isinstance(scheduler, hf.HeunDiscreteScheduler):  # it keeps a level once for each evaluation
        sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    assert sigmas.shape == old.shape
    scheduler.sigmas = sigmas


def level(scheduler: Scheduler, timestep: Tensor) -> Tensor:
    """Sigma of the evaluation that the scheduler now asks for."""
    if isinstance(scheduler, ON_THE_CHAIN):
        alpha_bar = scheduler.alphas_cumprod[timestep].double()
        return ((1 - alpha_bar) / alpha_bar).sqrt()
    i = scheduler.step_index or 0
    if isinstance(scheduler, hf.IPNDMScheduler):
        return scheduler.betas[i] / scheduler.alphas[i]
    if isinstance(scheduler, hf.KDPM2DiscreteScheduler) and not scheduler.state_in_first_order:
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
    scheduler = reference(hf.DPMSolverMultistepScheduler, 8, solver_order=3)
    right, wrong = (solvers.dpm_solver_pp(levels(scheduler), order=k) for k in (3, 2))
    assert distance(right, scheduler) < TOLERANCE
    scheduler = reference(hf.DPMSolverMultistepScheduler, 8, solver_order=3)
    assert distance(wrong, scheduler) > 1e-3


# --- every solver and its scheduler ----------------------------------------------------------------

FALLS = dict(lower_order_final=(True, False))
TYPES = dict(solver_order=(1, 2, 3), solver_type=("midpoint", "heun"))
UNIPC = dict(solver_order=(1, 2, 3), solver_type=("bh1", "bh2"), corrector=(True, False))
NOISE_BASIS = dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min")
ENDS = dict(final_sigmas_type=("zero", "sigma_min"))
# a scheduler, its options in diffusers' words (a tuple: each of them in turn), and the solver of that name
FAMILIES: list[tuple[type, dict[str, Any], Any]] = [
    (hf.EulerDiscreteScheduler, dict(timestep_spacing="trailing") | ENDS, solvers.ddim),
    (hf.EDMEulerScheduler, {}, solvers.ddim),
    (hf.HeunDiscreteScheduler, dict(prediction_type=("epsilon", "sample")), solvers.heun),
    (hf.DEISMultistepScheduler, dict(solver_order=(1, 2, 3)) | FALLS, solvers.deis),
    (hf.DPMSolverMultistepScheduler, TYPES | FALLS | ENDS, solvers.dpm_solver_pp),
    (hf.DPMSolverMultistepScheduler, dict(solver_order=2, euler_at_final=True) | ENDS, solvers.dpm_solver_pp),
    (hf.DPMSolverMultistepScheduler, TYPES | FALLS | NOISE_BASIS, solvers.dpm_solver_multistep),
    (hf.EDMDPMSolverMultistepScheduler, TYPES | dict(lower_order_final=True), solvers.dpm_solver_pp),
    (Singlestep, TYPES | ENDS, solvers.dpm_solver_pp_singlestep),
    (Singlestep, TYPES | NOISE_BASIS, solvers.dpm_solver),
    (UniPC, UNIPC | ENDS, solvers.unipc),
    (hf.UniPCMultistepScheduler, UNIPC | FALLS | dict(predict_x0=False, final_sigmas_type="sigma_min"), solvers.unipc),
]


def cases() -> Iterator[Any]:
    for kind, config, make in FAMILIES:
        choices = [value if isinstance(value, tuple) else (value,) for value in config.values()]
        for values in itertools.product(*choices):
            words = (kind.__name__, make.__name__, *map(str, values))
            yield pytest.param(kind, dict(zip(config, values, strict=True)), make, id=" ".join(words))


def both(make: Any, config: dict[str, Any], n: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the scheduler and what the solver is told, for ``n`` steps."""
    theirs, ours = dict(config), dict[str, Any]()
    if "solver_order" in config:
        ours["order"] = config["solver_order"]
    if "solver_type" in config:
        ours["variant" if make is solvers.unipc else "solver_type"] = config["solver_type"]
    if "lower_order_final" in config:  # but for UniPC, from 15 steps on diffusers lets no order fall before sigma = 0
        ours["lower_order_final"] = config["lower_order_final"] and (make is solvers.unipc or n < 15)
    if "prediction_type" in config:
        ours["basis"] = "data" if config["prediction_type"] == "sample" else "noise"
    if make is solvers.deis:
        ours["variable"] = "log_rho"  # the only one that diffusers has
    if make is solvers.unipc:
        ours["corrector"] = theirs.pop("corrector")
        ours["basis"] = "data" if config.get("predict_x0", True) else "noise"
        theirs["disable_corrector"] = [] if ours["corrector"] else list(range(n))
    if make in (solvers.dpm_solver, solvers.dpm_solver_pp_singlestep):
        ours["inner"] = "grid"  # diffusers evaluates inside a step at the next levels of the grid
        whole = ours["order"] < 3 and n % ours["order"] == 0 and config["final_sigmas_type"] == "sigma_min"
        theirs["lower_order_final"] = not whole  # with which it splits n calls as the paper does
    return theirs, ours


@pytest.mark.parametrize(("kind", "config", "make"), [*cases()])
def test_a_solver_is_its_scheduler(kind: type, config: dict[str, Any], make: Any) -> None:
    for n in NFE:
        theirs, ours = both(make, config, n)
        scheduler = reference(kind, n, **theirs)
        if kind in EDMS:
            torch.testing.assert_close(levels(scheduler), karras(n, 0.002, 80, final="zero"), rtol=1e-5, atol=0)
        prediction = config.get("prediction_type", "epsilon")
        assert distance(make(levels(scheduler), **ours), scheduler, prediction=prediction) < TOLERANCE


@pytest.mark.parametrize("betas", CHAINS)  # for DDIM alone: to the others a chain is a grid like any other
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_ddim(betas: str, spacing: str, prediction: str) -> None:
    for n in NFE if spacing == "leading" else NFE[1:]:  # trailing with n = 3: test_ddim_steps_by_whole_parts
        table = solvers.ddim(discrete(n, CHAINS[betas], spacing), basis="data" if prediction == "sample" else "noise")
        config = dict(timestep_spacing=spacing, set_alpha_to_one=True, clip_sample=False, prediction_type=prediction)
        assert distance(table, reference(hf.DDIMScheduler, n, betas, **config), prediction=prediction) < TOLERANCE


@finals
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_lms_and_ipndm(final: str, order: int) -> None:
    """On the chain's levels: iPNDM's own start at infinity."""
    for n in (n for n in NFE if n >= order):
        grid, velocity = discrete(n, LINEAR, final=final), dict(prediction="v_prediction")
        lms, ipndm = (reference(kind, n, sigmas=grid) for kind in (hf.LMSDiscreteScheduler, IPNDM))
        assert distance(solvers.lms(grid, order=order), lms, order=order) < TOLERANCE
        assert distance(solvers.ipndm(grid, order=order), ipndm, order=order, **velocity) < TOLERANCE


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
        assert distance(table, reference(hf.PNDMScheduler, n, **config)) < TOLERANCE


@pytest.mark.parametrize("make", [solvers.dpm_solver, solvers.dpm_solver_pp_singlestep])
@pytest.mark.parametrize("solver_type", TYPES["solver_type"])
@pytest.mark.parametrize("order", TYPES["solver_order"])
def test_inner_stages_in_log_snr(make: Any, order: int, solver_type: str) -> None:
    """The paper's stages, which are at the grid's levels where those are even in ln sigma.

    DPM-Solver-3 integrates its first slope exactly on the way to the second stage (algorithm 2 of the paper); the
    scheduler takes half of the step there instead, as DPM-Solver-2 does, unless it is told ``heun``.
    """
    algorithm = "dpmsolver" if make is solvers.dpm_solver else "dpmsolver++"
    config = NOISE_BASIS | dict(algorithm_type=algorithm, solver_order=order, solver_type=solver_type)
    for n in NFE:
        grid, (theirs, ours) = log_snr(n, 0.01, 100), both(make, config, n)
        table = make(grid, **ours | dict(inner="log_snr"))
        assert distance(table, reference(Singlestep, n, sigmas=grid, **theirs)) < TOLERANCE
        gap = distance(table, reference(hf.DPMSolverSinglestepScheduler, n, sigmas=grid, **theirs))
        assert gap > 1e-5 if (order, solver_type) == (3, "midpoint") and n > 3 else gap < TOLERANCE


# --- schedulers left alone -----------------------------------------------------------------------

INNER = dict(order=2, inner="grid")
SHIPPED: list[tuple[type, dict[str, Any], Any, dict[str, Any]]] = [
    (hf.DDIMScheduler, dict(clip_sample=False), solvers.ddim, {}),
    (hf.EulerDiscreteScheduler, dict(timestep_spacing="trailing"), solvers.ddim, {}),
    (hf.LMSDiscreteScheduler, {}, solvers.lms, {}),
    (hf.PNDMScheduler, dict(skip_prk_steps=True, set_alpha_to_one=True), solvers.pndm, {}),
    (hf.PNDMScheduler, dict(set_alpha_to_one=True), solvers.pndm, dict(warm_up="runge_kutta")),
    (hf.DEISMultistepScheduler, {}, solvers.deis, dict(order=2, variable="log_rho", lower_order_final=True)),
    (hf.DPMSolverMultistepScheduler, {}, solvers.dpm_solver_pp, dict(order=2)),
    (hf.DPMSolverMultistepScheduler, NOISE_BASIS, solvers.dpm_solver_multistep, dict(order=2)),
    (hf.DPMSolverSinglestepScheduler, dict(lower_order_final=True), solvers.dpm_solver_pp_singlestep, INNER),
    (hf.UniPCMultistepScheduler, {}, solvers.unipc, dict(order=2)),
    (hf.HeunDiscreteScheduler, {}, solvers.heun, {}),
    (hf.KDPM2DiscreteScheduler, {}, solvers.dpm_2, {}),
    (hf.EDMEulerScheduler, {}, solvers.ddim, {}),
    (hf.EDMDPMSolverMultistepScheduler, {}, solvers.dpm_solver_pp, dict(order=2)),
]


@pytest.mark.parametrize(("kind", "config", "make", "options"), SHIPPED, ids=[kind.__name__ for kind, *_ in SHIPPED])
def test_as_shipped(kind: type, config: dict[str, Any], make: Any, options: dict[str, Any]) -> None:
    """Nothing replaced, everything in float32: the solvers agree to its rounding."""
    scheduler = kind(**config)
    scheduler.set_timesteps(10)
    grid = discrete(10, spacing="leading") if kind in ON_THE_CHAIN else levels(scheduler)
    theirs, calls = solve(scheduler, grid, noise=NOISE.float())
    table = make(grid, **options)
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
        assert distance(solvers.ddim(grid), reference(hf.DDIMScheduler, n, **config)) > 1e-4
        scheduler = reference(hf.EulerDiscreteScheduler, n, sigmas=grid)
        assert distance(solvers.ddim(grid), scheduler) < TOLERANCE


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


@pytest.mark.parametrize("corrector", [True, False])
def test_unipc_bh1_cannot_reach_zero(corrector: bool) -> None:
    """B(h) = h is infinite there, and the scheduler multiplies it by no terms: NaN.  The step is DDIM's, as for bh2."""
    config = dict(solver_type="bh1", disable_corrector=[] if corrector else list(range(5)))
    scheduler = reference(hf.UniPCMultistepScheduler, 5, **config)
    assert solve(scheduler, levels(scheduler))[0].isnan().any()
    table = solvers.unipc(levels(scheduler), order=2, variant="bh1", corrector=corrector)
    assert distance(table, reference(UniPC, 5, **config)) < TOLERANCE
