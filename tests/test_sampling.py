"""The loop: orders, seeds, batches, gradients, bad input."""

from __future__ import annotations

import gc
import weakref
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import dode
from dode import schedules, solvers
from dode.denoisers import DataPrediction, EDMPrediction, MixtureDenoiser, NoisePrediction, VPrediction
from dode.sampling import blend, combine, evaluate, initial_noise, initial_state, sample, trajectory, walk

MEANS = torch.tensor([[-1.5, 0.0], [1.0, 1.0], [1.0, -1.5]], dtype=torch.float64)
MIXTURE = MixtureDenoiser(MEANS, torch.tensor([0.3, 0.5, 0.4]))
NOISE = initial_noise((2,), range(32), dtype=torch.float64)


def test_an_image_depends_on_its_seed_alone() -> None:
    grid = schedules.karras(5, 0.01, 20.0, final="zero")
    table = solvers.ipndm(grid)
    together = sample(MIXTURE, table, NOISE)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(1))
    shuffled = sample(MIXTURE, table, initial_noise((2,), order.tolist(), dtype=torch.float64), batch_size=5)
    torch.testing.assert_close(shuffled, together[order], rtol=1e-12, atol=1e-12)
    assert torch.equal(initial_noise((2,), [7]), initial_noise((2,), [3, 7])[1:])


def test_callback_and_trajectory_see_the_same_states() -> None:
    table, seen = solvers.heun(schedules.karras(4, 0.1, 20.0, final="zero")), []
    final = sample(MIXTURE, table, NOISE, callback=seen.append, batch_size=20)
    states = trajectory(MIXTURE, table, NOISE)
    assert [s.index for s in seen] == 2 * list(range(table.nfe)) and seen[-1].batch == slice(20, 32)
    torch.testing.assert_close(torch.stack([s.x for s in seen[: table.nfe]]), states[:-1, :20])
    torch.testing.assert_close(states[-1], final)
    assert states.shape == (table.nfe + 1, *NOISE.shape)


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


def test_wrong_noise_is_one_line() -> None:
    with pytest.raises(ValueError, match="no seeds"):
        initial_noise((2,), [])
    with pytest.raises(ValueError, match="floating-point"):
        sample(MIXTURE, solvers.ddim(schedules.karras(2, 0.1, 1.0)), torch.ones(2, 2, dtype=torch.long))
    for noise, size in ((torch.ones(0, 2), None), (torch.ones(2, 2), 0), (torch.ones(2, 2), -1)):
        with pytest.raises(ValueError, match="one"):
            sample(MIXTURE, solvers.ddim(schedules.karras(2, 0.1, 1.0)), noise, batch_size=size)


# --- what the loop costs, and what it leaves alone -----------------------------------------------

VP = schedules.vp_linear()
WRAPPERS = (NoisePrediction, DataPrediction, VPrediction, EDMPrediction)
GRID = schedules.karras(6, 0.05, 20.0, final="zero")


def tables(grid=GRID):
    """Noise and data basis, single- and multistep, a ratio of zero at the end, weight on the starting noise."""
    ddim = solvers.ddim(grid)
    leaning = dode.distillation.corrected(solvers.ipndm(grid), [0.1] * ddim.nfe)
    return [ddim, solvers.ipndm(grid), solvers.heun(grid), ddim.to_basis("data"), solvers.dpm_solver_pp(grid), leaning]


class Net(nn.Module):
    """A small smooth network in float64, of its input and label."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2, dtype=torch.float64)
        with torch.no_grad():
            self.linear.weight.copy_(torch.tensor([[0.6, -0.3], [0.2, 0.5]]))
            self.linear.bias.copy_(torch.tensor([0.1, -0.2]))

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.linear(x) + label[:, None] / 1000)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("k", range(6))
def test_the_loop_is_the_same_for_a_denoiser_and_for_its_bare_function(wrapper, k) -> None:
    """A plain callable is only asked for D; a denoiser's outputs are formed from the network's answer."""
    model, table = wrapper(Net(), (2,), VP), tables()[k]
    plain = sample(lambda x, sigma: model(x, sigma), table, NOISE)
    torch.testing.assert_close(sample(model, table, NOISE), plain, rtol=1e-11, atol=1e-11)
    assert model.nfe == 2 * table.nfe and model.evaluations == 2 * 32 * table.nfe


def test_the_noise_a_network_predicts_is_kept_without_a_pass_over_memory() -> None:
    answer = torch.randn(32, 2, dtype=torch.float64)
    for wrapper, basis in ((NoisePrediction, "noise"), (DataPrediction, "data")):
        row = solvers.ddim(GRID, basis=basis).rows[0]
        assert evaluate(wrapper(lambda x, label: answer, (2,), VP), row, initial_state(row, NOISE)) is answer


@pytest.mark.parametrize("k", range(6))
def test_the_loop_writes_into_no_tensor_that_another_holds(k) -> None:
    table, held = tables()[k], list[tuple[torch.Tensor, torch.Tensor]]()
    hold = lambda *tensors: held.extend((t, t.clone()) for t in tensors)  # noqa: E731

    def network(x, label):
        answer = torch.tanh(x)
        hold(x, answer, label)
        return answer

    def identity(x, sigma):
        hold(x)
        return x

    hold(NOISE)
    for denoiser in (*(w(network, (2,), VP) for w in WRAPPERS), identity):
        watch = lambda step: hold(step.x, step.output)  # noqa: E731
        hold(*trajectory(denoiser, table, NOISE), sample(denoiser, table, NOISE, callback=watch))
    assert len(held) > 100 and all(torch.equal(now, then) for now, then in held)


def test_combine() -> None:
    x, d = torch.randn(3, 2, dtype=torch.float64), {j: torch.randn(3, 2, dtype=torch.float64) for j in (-1, 0, 1)}
    assert combine([], d, x) is x
    for ratio in (0.0, 0.3, 1.0, 1.7):
        for terms in ([], [(1, 0.5)], [(1, 1.0), (0, -0.2)], [(0, -ratio), (1, 0.1), (-1, 2.0)]):
            expected = ratio * x + sum((w * d[j] for j, w in terms), torch.zeros_like(x))
            torch.testing.assert_close(combine(terms, d, x, ratio), expected, rtol=1e-14, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # of torch's own making
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("k", range(6))
def test_gradients_forwards_and_backwards_agree(wrapper, k) -> None:
    """<w, J v> by jvp is <J^T w, v> by backward, and both are the difference quotient."""
    model, table, noise = wrapper(Net(), (2,), VP), tables()[k], NOISE[:4]
    run = partial(sample, model, table)
    v, w = torch.randn(2, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(k)).unbind()
    out, forward = torch.func.jvp(run, (noise,), (v,))
    leaf = noise.clone().requires_grad_()
    result = run(leaf)
    (backward,) = torch.autograd.grad(result, leaf, w)
    h = 1e-6
    quotient = (run(noise + h * v) - run(noise - h * v)) / (2 * h)
    assert torch.equal(out, result)
    torch.testing.assert_close((w * forward).sum(), (backward * v).sum(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(forward, quotient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("k", range(6))
def test_vmap_over_noise_and_over_networks(wrapper, k) -> None:
    """The first row too, where only the new output has the ensemble's dimension."""
    network, table = Net(), tables()[k]
    weights = {n: torch.stack([p.detach(), 0.5 * p.detach()]) for n, p in network.named_parameters()}

    def run(parameters, noise):
        def call(x, label):
            return torch.func.functional_call(network, parameters, (x.double(), label))

        *_, (end, _) = walk(wrapper(call, (2,), VP), table.rows, noise)
        return end.x

    each = [{n: p[m] for n, p in weights.items()} for m in range(2)]
    together = torch.func.vmap(run, in_dims=(0, None))(weights, NOISE[:3])
    torch.testing.assert_close(together, torch.stack([run(p, NOISE[:3]) for p in each]))
    noises = torch.stack([NOISE[:3], NOISE[3:6]])
    together = torch.func.vmap(run, in_dims=(None, 0))(each[0], noises)
    torch.testing.assert_close(together, torch.stack([run(each[0], z) for z in noises]))


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a host wait for a device: reading a tensor there, copying memory there or back."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        inputs = [a for a in args if isinstance(a, torch.Tensor)]
        if any(t.is_meta for t in (*inputs, *([result] if isinstance(result, torch.Tensor) else []))):
            name = str(func)
            assert "local_scalar_dense" not in name and "nonzero" not in name and "equal" not in name, name
            assert all(t.is_meta or t.ndim == 0 for t in inputs), f"{name} mixes devices"
            assert "copy" not in name or all(t.is_meta for t in inputs), f"{name} copies to the device"
        return result


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("k", range(6))
def test_the_host_never_waits_for_the_device_inside_the_loop(wrapper, k) -> None:
    """On a device without memory, where reading a value or mixing devices is an error anywhere."""
    model, table = wrapper(lambda x, label: x * label[:, None], (2,), VP), tables()[k]
    noise = NOISE.float().to("meta")
    with NoWaiting():
        *_, (state, _) = walk(model, table.rows, noise)
        model(state.x, table.sigmas_in[0])  # one level as a tensor, as a plain callable is given it
    assert state.x.is_meta and state.row == table.nfe


@pytest.mark.parametrize("make", [solvers.ddim, solvers.ipndm, solvers.dpm_solver_pp])
def test_memory_does_not_grow_with_the_steps(make) -> None:
    alive, peak = weakref.WeakSet[torch.Tensor](), list[int]()

    def network(x, label):
        answer = torch.tanh(x)
        alive.update((x, answer))  # the answer is in the basis and the dtype of the state: the loop keeps it as it is
        peak.append(len(alive))
        return answer

    gc.disable()  # what is forgotten must be gone at once, not at the next collection
    try:
        for n in (10, 100, 1000):
            peak.clear()
            table = make(schedules.karras(n, 0.05, 20.0))
            wrapper = NoisePrediction if table.basis == "noise" else DataPrediction
            sample(wrapper(network, (2,), VP), table, NOISE.float())
            assert max(peak) == peak[6] <= 6 and (make is solvers.ddim or max(peak) > 3)
    finally:
        gc.enable()


def test_the_state_keeps_its_dtype_and_shape_whatever_a_callable_returns() -> None:
    for table in tables():
        for dtype in (torch.float32, torch.float64):
            expected = sample(lambda x, sigma: torch.full_like(x, 0.5), table, NOISE.to(dtype))
            for answer in (torch.full((2,), 0.5), torch.full((32, 2), 0.5).double(), torch.full((32, 2), 0.5).half()):
                found = sample(lambda x, sigma, answer=answer: answer, table, NOISE.to(dtype))
                assert torch.equal(found, expected) and found.dtype == dtype


def test_a_large_sample_is_not_an_error() -> None:
    """Finite entries whose sum is not."""
    table = solvers.ddim(schedules.karras(2, 0.1, 1.0, final="zero"))
    found = sample(lambda x, sigma: torch.full_like(x, 3e38), table, NOISE.float())
    assert torch.isfinite(found).all() and not torch.isfinite(found.sum())


def test_bf16_networks_run_under_the_same_loop() -> None:
    exact = dode.load("fashion-mnist-noise")
    table, noise = solvers.dpm_solver_pp(exact.grid(3)), initial_noise(exact.shape, range(2))
    expected = sample(exact, table, noise)
    for model in (
        dode.load("fashion-mnist-noise", autocast=torch.bfloat16),
        dode.load("fashion-mnist-noise", dtype=torch.bfloat16),
    ):
        found = sample(model, table, noise)
        error = float((found - expected).square().mean().sqrt())
        assert found.dtype == torch.float32 and 0 < error < 0.1, error


@pytest.mark.parametrize("a", [0.0, 1e-71, 1e-35, 0.3, 1.0, -2.5])
@pytest.mark.parametrize("b", [1.0, 12.07, -0.3])
def test_two_tensors_are_blended_whatever_the_factors(a: float, b: float) -> None:
    """A search may try a level so near 0 that the quotient of the factors is beyond float32."""
    x, y = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blend(a, x, b, y).double(), a * x.double() + b * y.double(), rtol=1e-5, atol=1e-6)
