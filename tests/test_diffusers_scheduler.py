"""DodeScheduler by itself: its processes, a run that begins in the middle, its files, and what it refuses."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from small import refused
from torch import Tensor, nn

import dode
from dode import solvers
from dode.denoisers import NetworkDenoiser
from dode.diffusers import DodeScheduler, from_diffusers
from dode.diffusers.scheduler import Process
from dode.diffusers.support import SCHEDULERS as SUPPORTED
from dode.schedules import Flow, log_snr, vp_linear
from tests.tiny import SCALED, distance, with_other_sigma_in

Config = dict[str, Any]
SHAPE = (3, 4)
NOISE = dode.initial_noise(SHAPE, range(5), dtype=torch.float64)
# name -> a scheduler of diffusers; between them every schedule and every prediction type
SCHEDULERS: dict[str, Any] = {
    "linear": DDIMScheduler(),
    "clean image": diffusers.DDPMScheduler(prediction_type="sample"),
    "scaled linear": diffusers.EulerDiscreteScheduler(**SCALED, prediction_type="v_prediction"),
    "cosine": UniPCMultistepScheduler(beta_schedule="squaredcos_cap_v2"),
    "trained": DDIMScheduler(trained_betas=[0.001 + 0.0004 * k for k in range(50)], num_train_timesteps=50),
    "zero SNR": diffusers.DPMSolverMultistepScheduler(
        **SCALED, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    ),
    "EDM": EDMEulerScheduler(sigma_data=0.6),
    "EDM's v": EDMEulerScheduler(prediction_type="v_prediction"),
    "flow": FlowMatchEulerDiscreteScheduler(shift=3.0),
    "another flow": UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=2.0),
}
schedulers = pytest.mark.parametrize("name", SCHEDULERS)


class Smooth(nn.Module):
    """A network whose answer depends on its input and its label, gently."""

    def __init__(self) -> None:
        super().__init__()
        self.config = dict(in_channels=3, sample_size=4)
        self.mix = nn.Parameter(torch.linspace(-0.4, 0.5, 9).view(3, 3))

    def forward(self, sample: Tensor, timestep: Tensor, return_dict: bool = True) -> tuple[Tensor]:
        label = (torch.as_tensor(timestep, dtype=torch.float32) / 300).reshape(-1, 1, 1)
        return (torch.tanh(torch.einsum("ij,bjk->bik", self.mix, sample.float()) + torch.sin(label)),)


def denoiser(name: str) -> NetworkDenoiser:
    return from_diffusers(SMOOTH, SCHEDULERS[name], shape=SHAPE)


SMOOTH = Smooth()
GRID = denoiser("linear").grid


def linear(table: dode.Tableau) -> DodeScheduler:
    return DodeScheduler.from_tableau(table, SCHEDULERS["linear"])


def walk(scheduler: DodeScheduler, noise: Tensor, begin: int = 0) -> Tensor:
    """The loop of a pipeline: the last sample."""
    x = noise
    for t in scheduler.timesteps[begin:]:
        said = SMOOTH(scheduler.scale_model_input(x, t), t)[0]
        x = scheduler.step(said, t, x).prev_sample
    return x


# --- processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler",
    [*SCHEDULERS.values(), *(getattr(diffusers, kind)() for kind in SUPPORTED if kind != "DodeScheduler")],
    ids=lambda scheduler: type(scheduler).__name__,
)
def test_the_process_of_every_scheduler_that_is_accepted(scheduler: Any) -> None:
    """The scheduler's own reading of a config is that of dode's schedules and prediction types.

    Its noise levels are those that diffusers computes itself, and it is accepted as an object and as a config.
    """
    process, model = Process(scheduler.config), from_diffusers(SMOOTH, scheduler, shape=SHAPE)
    if process.kind == "vp":
        bar, sigmas = scheduler.alphas_cumprod.double(), torch.from_numpy(process.sigmas)
        torch.testing.assert_close(sigmas, ((1 - bar) / bar).sqrt(), rtol=1e-3, atol=0)
        torch.testing.assert_close(sigmas, model.schedule.sigmas, rtol=1e-9, atol=0)  # type: ignore[attr-defined]
        assert [process.at(s).label for s in sigmas.tolist()] == pytest.approx([*range(len(bar))], abs=1e-6)
    elif process.kind == "edm":
        assert float(scheduler.sigmas.max()) == pytest.approx(model.sigma_max, rel=1e-6)
    turned = (process.kind, process.prediction) == ("edm", "v_prediction")  # there the network's answer is turned round
    for sigma in log_snr(20, 0.003, min(model.sigma_max, 500.0)).tolist():
        skip, out, *told = process.at(sigma)
        assert [skip, -out if turned else out, *told] == pytest.approx([*model.level(sigma)], rel=1e-9, abs=1e-9)
    named = dict(scheduler.config) | dict(_class_name=type(scheduler).__name__)
    assert from_diffusers(SMOOTH, named, shape=SHAPE).schedule == model.schedule


@schedulers
@pytest.mark.parametrize("afs", [False, True])
def test_every_process_gives_dodes_samples(name: str, afs: bool) -> None:
    model = denoiser(name)
    for table in (
        solvers.heun(model.grid, nfe=7 - afs, afs=afs),
        solvers.dpm_solver_pp(model.grid, nfe=5, order=3, afs=afs),
        solvers.unipc(model.grid, nfe=5, order=3, basis="noise", afs=afs),
        with_other_sigma_in(solvers.ddim(model.grid, nfe=5, afs=afs)),  # levels that learned solvers tell the network
    ):
        scheduler = DodeScheduler.from_tableau(table, SCHEDULERS[name])
        assert scheduler.timesteps.dtype == torch.float32 and len(scheduler.timesteps) == table.nfe
        got = walk(scheduler, NOISE * scheduler.init_noise_sigma)
        assert distance(got, dode.sample(model, table, NOISE)) < 1e-5


@pytest.mark.parametrize("name", ["flow", "EDM"])
def test_ddim_is_diffusers_own_euler(name: str) -> None:
    """Euler's method in ``t`` for flow matching, and in EDM's coordinates, as diffusers has them."""
    theirs, flow = SCHEDULERS[name], name == "flow"
    theirs.set_timesteps(**dict(sigmas=torch.linspace(0.99, 0.2, 6).tolist()) if flow else dict(num_inference_steps=6))
    levels = theirs.sigmas.double()
    x = theirs.sigmas[0] * NOISE.float()
    for t in theirs.timesteps:
        x = theirs.step(SMOOTH(x if flow else theirs.scale_model_input(x, t), t)[0], t, x).prev_sample
    ours = DodeScheduler.from_tableau(solvers.ddim(levels / (1 - levels) if flow else levels), theirs)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-5, atol=0)
    assert distance(walk(ours, ours.init_noise_sigma * NOISE.float()), x) < 1e-5


def test_a_flows_shift_is_of_its_grid() -> None:
    model = from_diffusers(SMOOTH, SCHEDULERS["flow"], shape=SHAPE)
    assert model.schedule == Flow(shift=3.0)
    t = 0.999 * (1 - torch.arange(5, dtype=torch.float64) / 5)  # uniform times, from 0.999 to 0
    torch.testing.assert_close(model.schedule.label(model.grid(5)[:-1]), 1000 * 3 * t / (1 + 2 * t))
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15)
    for tokens, mu in ((256, 0.5), (4096, 1.15), ((256 + 4096) // 2, (0.5 + 1.15) / 2)):
        model = from_diffusers(SMOOTH, dynamic, shape=(3, tokens))
        assert model.schedule.config["shift"] == pytest.approx(math.exp(mu))


# --- a run that begins in the middle ------------------------------------------------------------------


@pytest.mark.parametrize("basis", ["noise", "data"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("begin", [1, 2, 4])
def test_it_is_the_solver_of_the_grid_that_is_left(basis: str, order: int, begin: int) -> None:
    """DEIS in ln sigma: its rows without history are the lower orders, by the same extrapolation."""
    model, options = denoiser("linear"), dict(variable="log_rho", basis=basis, order=order)
    sigmas = model.grid(7)
    scheduler = linear(solvers.deis(sigmas, **options))
    scheduler.set_timesteps(7)
    scheduler.set_begin_index(begin)
    clean = 0.3 * NOISE.roll(1, 0)
    x = scheduler.add_noise(clean, NOISE, scheduler.timesteps[begin : begin + 1].repeat(len(NOISE)))
    got = walk(scheduler, x, begin)
    left = solvers.deis(sigmas[begin:], **options | dict(order=min(order, 7 - begin)))
    assert distance(got, dode.sample(model, left, NOISE + clean / sigmas[begin])) < 1e-5


@pytest.mark.parametrize("afs", [False, True])
@pytest.mark.parametrize("solver", solvers.SOLVERS)
def test_rows_stay_consistent_wherever_a_run_begins(solver: str, afs: bool) -> None:
    """A network that always sees the same image leads to it from any row, with any history missing."""
    config = dict(beta_schedule="linear", prediction_type="sample")
    table = solvers.get(solver).make(vp_linear().sigmas[[999, 700, 480, 250, 90, 20]], final="zero", afs=afs)
    image = torch.linspace(-1, 1, 12, dtype=torch.float64).view(1, *SHAPE)
    scheduler = DodeScheduler.from_tableau(table, config)
    for begin in range(int(afs), table.nfe):  # the first row of an analytical first step takes the image for noise
        scheduler.set_timesteps()
        scheduler.set_begin_index(begin)
        x = scheduler.add_noise(image, NOISE[:1], scheduler.timesteps[begin:])
        for t in scheduler.timesteps[begin:]:
            x = scheduler.step(image, t, x).prev_sample
        torch.testing.assert_close(x, image, rtol=0, atol=1e-10)


def test_without_a_beginning_it_is_found_by_the_timestep() -> None:
    scheduler = linear(solvers.ipndm(GRID, nfe=5))
    assert scheduler.step_index is None and scheduler.begin_index is None
    got = walk(scheduler, NOISE, begin=2)
    assert scheduler.step_index == 5
    scheduler.set_timesteps()
    scheduler.set_begin_index(2)
    assert torch.equal(got, walk(scheduler, NOISE, begin=2))


def test_noise_is_added_at_the_level_of_the_run() -> None:
    scheduler = linear(solvers.ddim(GRID, nfe=5))
    levels = [float(s) for s in scheduler.config.levels]
    x, n = torch.full((2, *SHAPE), 0.5), torch.ones(2, *SHAPE)
    wanted = lambda i: (0.5 + levels[i]) / math.hypot(1, levels[i])  # noqa: E731
    each = scheduler.add_noise(x, n, scheduler.timesteps[[1, 3]])  # before a run: where it is told
    assert each[0, 0, 0] == pytest.approx(wanted(1)) and each[1, 0, 0] == pytest.approx(wanted(3))
    scheduler.set_begin_index(2)
    assert scheduler.add_noise(x, n, scheduler.timesteps[:1])[0, 0, 0] == pytest.approx(wanted(2))
    scheduler.step(n, scheduler.timesteps[2], x)
    assert scheduler.add_noise(x, n, scheduler.timesteps[:1])[0, 0, 0] == pytest.approx(wanted(3))  # inpainting
    assert scheduler.add_noise(x.half(), n.half(), scheduler.timesteps[:1]).dtype == torch.float16


# --- arithmetic and files ------------------------------------------------------------------------


def test_half_precision_is_kept_and_reckoned_in_float32() -> None:
    scheduler = linear(solvers.ipndm(GRID, nfe=8))
    full = walk(scheduler, NOISE.float())
    scheduler.set_timesteps()
    half = walk(scheduler, NOISE.half())
    assert half.dtype == torch.float16 and distance(half, full) < 5e-3
    assert all(d.dtype == torch.float32 for d in scheduler._outputs.values())


def test_a_learned_variance_is_left_out() -> None:
    plain, twice = (linear(solvers.ddim(GRID, nfe=2)) for _ in range(2))
    t, said = plain.timesteps[0], torch.ones(2, *SHAPE)
    (other,) = twice.step(torch.cat([said, 7 * said], 1), t, said, return_dict=False)
    assert torch.equal(plain.step(said, t, said).prev_sample, other)


def test_many_steps_take_little_room() -> None:
    scheduler = linear(solvers.ipndm(GRID(1000)))
    assert max(len(row) for row in scheduler.config.weights) == 4
    x, outputs = NOISE, list[int]()
    for t in scheduler.timesteps[:20]:
        x = scheduler.step(NOISE, t, x).prev_sample
        outputs.append(len(scheduler._outputs))
    assert max(outputs) == 3  # none outlives the last row that uses it


@schedulers
def test_the_file_holds_every_number(name: str, tmp_path: Path) -> None:
    model = denoiser(name)
    table = solvers.unipc(model.grid, nfe=4, order=2, basis="noise", afs=True)
    table = with_other_sigma_in(table.with_full(table.full, solver="mine", seeds=[1, 2]))
    scheduler = DodeScheduler.from_tableau(table, SCHEDULERS[name])
    scheduler.save_pretrained(tmp_path)
    again = DodeScheduler.from_pretrained(tmp_path)
    for name in ("_rows", "_levels", "_coefficients"):
        assert getattr(again, name) == getattr(scheduler, name)
    assert again._levels == table.sigmas.tolist() and again.config.levels_told == table.sigmas_in.tolist()
    assert again.config.metadata == table.metadata
    twice = DodeScheduler.from_tableau(table, again.config)  # the process outlives the solver
    said = lambda s: {k: v for k, v in s.config.items() if not k.startswith("_")}  # noqa: E731
    assert said(twice) == said(scheduler) == said(again)
    assert from_diffusers(SMOOTH, again, shape=SHAPE).schedule == model.schedule
    assert torch.equal(walk(again, NOISE), walk(scheduler, NOISE))


def test_other_schedulers_can_take_the_process_back() -> None:
    """``UniPCMultistepScheduler.from_config(pipe.scheduler.config)`` goes on as if dode had never been there."""
    for name in ("scaled linear", "zero SNR", "trained", "cosine", "another flow"):
        old = SCHEDULERS[name].config
        scheduler = DodeScheduler.from_tableau(solvers.ddim(denoiser(name).grid, nfe=3), old)
        new = UniPCMultistepScheduler.from_config(scheduler.config).config
        keys = ("beta_schedule", "trained_betas", "rescale_betas_zero_snr", "prediction_type", "use_flow_sigmas")
        assert [new[k] for k in keys] == [old.get(k, False) for k in keys]


def test_the_file_stands_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One file, without dode: it can be put beside a pipeline's weights."""
    scheduler = linear(solvers.deis(GRID, nfe=4, afs=True))
    scheduler.save_pretrained(tmp_path)
    source = Path(sys.modules[DodeScheduler.__module__].__file__ or "")
    copy = tmp_path / "alone.py"
    copy.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    for name in [name for name in sys.modules if name.split(".")[0] == "dode"]:
        monkeypatch.setitem(sys.modules, name, None)
    spec = importlib.util.spec_from_file_location("alone", copy)
    assert spec is not None and spec.loader is not None
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    again = alone.DodeScheduler.from_pretrained(tmp_path)
    assert torch.equal(walk(again, NOISE), walk(scheduler, NOISE))


# --- what is refused -----------------------------------------------------------------------------

CONFIG: Config = dict(beta_schedule="linear", prediction_type="epsilon")
# of CosineDPMSolverMultistepScheduler, which needs torchsde to be made
COSINE = dict(sigma_data=1.0, sigma_max=500.0, prediction_type="v_prediction", solver_order=2, solver_type="midpoint")
TABLE = solvers.ddim(vp_linear().sigmas[[900, 500, 100]], final="zero")
NO_PROCESS = "neither betas, nor EDM's sigma_data, nor a flow's shift"
REFUSED = [
    (CONFIG | dict(prediction_type="score"), "unknown prediction_type 'score' for vp: take epsilon or sample or v"),
    (diffusers.SCMScheduler(), "unknown prediction_type 'trigflow' for edm: take epsilon or v_prediction"),
    (dict(beta_schedule="sigmoid"), "beta_schedule 'sigmoid' is unknown; give the betas themselves as trained_betas"),
    *((config, NO_PROCESS) for config in (dict(num_train_timesteps=1000), diffusers.IPNDMScheduler(), COSINE)),
    (CONFIG | dict(thresholding=True), "thresholding=True does what no table of a solver can"),
    (CONFIG | dict(timestep_type="continuous"), "timestep_type='continuous' does what no table"),
    (FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "invert_sigmas=True does what no table"),
    (CONFIG | SCALED, "the solver starts at sigma = 60.8223, and this scheduler's levels end at 14.6146"),
    (EDMEulerScheduler(sigma_max=60.0), "this scheduler's levels end at 60; make one for this model"),
    ("scaled_linear", "from_tableau takes a dode.Tableau, not a solver that designs its steps, and a scheduler"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_a_process_that_does_not_fit(config: Any, message: str) -> None:
    with refused(message):
        DodeScheduler.from_tableau(TABLE, config)


@pytest.mark.parametrize(
    "change",
    [
        *(dict(levels=levels) for levels in ([10.0, 5.0], [10.0, 5.0, 6.0, 0.0], [10.0, 5.0, 0.0, 0.0])),
        *(dict(levels_told=levels) for levels in ([10.0, 5.0], [10.0, 5.0, -1.0])),
        *(dict(weights=rows) for rows in ([], [[1.0, 2.0], [1.0], [1.0]], [[math.nan], [1.0], [1.0]])),
        dict(basis="velocity"),
        dict(start=[0.0]),
    ],
)
def test_numbers_that_are_no_table(change: Config) -> None:
    numbers = dict(basis="noise", levels=[10.0, 5.0, 1.0, 0.0], weights=[[-5.0], [-4.0], [-1.0]])
    assert len(DodeScheduler(**CONFIG, **numbers).timesteps) == 3
    with pytest.raises(ValueError, match="are no table of a solver; save it anew"):
        DodeScheduler(**CONFIG, **numbers | change)


def test_steps_rows_and_shapes_that_are_not_there() -> None:
    scheduler = DodeScheduler.from_tableau(TABLE, CONFIG)
    scheduler.set_timesteps(3)
    scheduler.set_timesteps()
    with pytest.raises(ValueError, match=r"here is no solver: DodeScheduler.from_tableau\(table, pipe"):
        DodeScheduler.from_config(CONFIG)
    with pytest.raises(ValueError, match="this solver makes 3 calls: num_inference_steps=3, not 50"):
        scheduler.set_timesteps(50)
    for row in (-1, 3):
        with pytest.raises(ValueError, match=f"no row {row} to begin with; set num_inference_steps=3"):
            scheduler.set_begin_index(row)
    with pytest.raises(ValueError, match="timestep 7 is none of this solver's"):
        scheduler.step(NOISE, 7, NOISE)
    walk(scheduler, NOISE)
    with pytest.raises(ValueError, match="has made its 3 steps; set_timesteps begins a new run"):
        scheduler.step(NOISE, scheduler.timesteps[0], NOISE)
    table = TABLE.with_full(TABLE.full, model="theirs", shape=[1, 28, 28])
    scheduler = DodeScheduler.from_tableau(table, CONFIG)
    with pytest.raises(ValueError, match=r"for samples of shape \(1, 28, 28\), not \(3, 4\); use tableau.unbind"):
        walk(scheduler, NOISE)
    walk(DodeScheduler.from_tableau(table.unbind(), CONFIG), NOISE)
