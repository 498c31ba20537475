"""Exact denoisers against autograd; network wrappers against one exact denoiser."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dode.denoisers import (
    Coefficients,
    DataPrediction,
    Denoiser,
    EDMPrediction,
    FlowPrediction,
    GaussianDenoiser,
    MixtureDenoiser,
    NetworkDenoiser,
    NoisePrediction,
    VPrediction,
    expand,
)
from dode.schedules import EDM, Flow, VPContinuous, time_uniform, vp_linear

SHAPE = (2, 3, 1)
G = torch.Generator().manual_seed(0)
MEANS = torch.randn(4, *SHAPE, generator=G, dtype=torch.float64)
STDS = torch.tensor([0.2, 0.5, 1.0, 0.05], dtype=torch.float64)
WEIGHTS = torch.tensor([1.0, 2.0, 3.0, 0.5], dtype=torch.float64)
X = torch.randn(5, *SHAPE, generator=G, dtype=torch.float64)
VP = vp_linear()
LEVELS = VP.sigmas[torch.tensor([0, 100, 400, 700, 999])]  # on the chain: labels are integers


def mixture() -> MixtureDenoiser:
    return MixtureDenoiser(MEANS, STDS, WEIGHTS, VP)


# --- exact denoisers -----------------------------------------------------------------------------


def log_density(x: Tensor, means: Tensor, stds: Tensor, weights: Tensor, sigma: float) -> Tensor:
    """Log density ``(B,)`` of the mixture blurred by noise of ``sigma``."""
    x, means = x.flatten(1), means.flatten(1)
    var = stds**2 + sigma**2
    square = (x[:, None] - means[None]).square().sum(-1)
    logs = (weights / weights.sum()).log() - square / (2 * var) - x.shape[1] / 2 * (2 * math.pi * var).log()
    return logs.logsumexp(1)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 1.0, 20.0])
@pytest.mark.parametrize("components", [1, 2, 4])
def test_mixture_is_tweedies_formula(sigma: float, components: int) -> None:
    """Tweedie: D = x + sigma^2 grad log p, by autograd of the exact log density."""
    parts = MEANS[:components], STDS[:components], WEIGHTS[:components]
    x = (MEANS[:1] + (1 + sigma) * X).requires_grad_()
    (score,) = torch.autograd.grad(log_density(x, *parts, sigma).sum(), x)
    expected = x.detach() + sigma**2 * score
    torch.testing.assert_close(MixtureDenoiser(*parts)(x.detach(), sigma), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 50.0])
def test_one_component_is_the_gaussian(sigma: float) -> None:
    gaussian = GaussianDenoiser(MEANS[1], 0.5)
    torch.testing.assert_close(MixtureDenoiser(MEANS[1:2], STDS[1:2])(X, sigma), gaussian(X, sigma), rtol=0, atol=1e-12)
    # four equal components are one
    four = MixtureDenoiser(MEANS[1:2].expand(4, *SHAPE), STDS[1:2].expand(4), WEIGHTS)
    torch.testing.assert_close(four(X, sigma), gaussian(X, sigma), rtol=0, atol=1e-12)


def test_limits_of_the_noise() -> None:
    d = mixture()
    torch.testing.assert_close(d(X, 1e-7), X, rtol=0, atol=1e-10)  # no noise: nothing to remove
    mean = (WEIGHTS / WEIGHTS.sum()) @ MEANS.flatten(1)
    torch.testing.assert_close(d(X, 1e6).flatten(1), mean.expand(5, -1), rtol=0, atol=1e-4)  # all noise: the mean


def test_weights_need_no_sum() -> None:
    torch.testing.assert_close(
        mixture()(X, 0.7), MixtureDenoiser(MEANS, STDS, 10 * WEIGHTS)(X, 0.7), rtol=0, atol=1e-14
    )
    uniform = MixtureDenoiser(MEANS, STDS, torch.ones(4).double())
    torch.testing.assert_close(MixtureDenoiser(MEANS, STDS)(X, 0.7), uniform(X, 0.7), rtol=0, atol=1e-14)


def test_gaussian_solution_solves_the_ode() -> None:
    """Its slope is (x - D) / sigma, by central differences; and two legs are one."""
    d = GaussianDenoiser(MEANS[0], 0.4)
    h = 1e-5
    for sigma in (0.1, 1.0, 10.0):
        x = d.solution(X, 10.0, sigma)
        slope = (d.solution(X, 10.0, sigma + h) - d.solution(X, 10.0, sigma - h)) / (2 * h)
        torch.testing.assert_close(slope, (x - d(x, sigma)) / sigma, rtol=0, atol=1e-8)
        torch.testing.assert_close(d.solution(x, sigma, 0.0), d.solution(X, 10.0, 0.0), rtol=0, atol=1e-12)


# --- wrappers: one exact denoiser, told in every prediction type ---------------------------------


class Exact(nn.Module):
    """A network that answers exactly: from its input and label it recovers x, sigma and D."""

    def __init__(self, answer: Callable[[Tensor, Tensor, Tensor], Tensor], unscale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.answer, self.unscale = mixture(), answer, unscale
        self.dtype = nn.Parameter(torch.zeros(1, dtype=torch.float64))  # runs in float64
        self.labels: list[Tensor] = []

    def forward(self, scaled: Tensor, label: Tensor) -> Tensor:
        assert scaled.dtype == torch.float64 and label.shape == (len(scaled),)
        self.labels.append(label)
        sigma = self.unscale(label)
        s = expand(sigma, scaled)
        x = scaled * (1 + s**2).sqrt()  # alpha = 1 / sqrt(1 + sigma^2)
        return self.answer(x, self.inner(x, sigma), s)


def noise(x: Tensor, d: Tensor, s: Tensor) -> Tensor:
    return (x - d) / s


def clean(x: Tensor, d: Tensor, s: Tensor) -> Tensor:
    return d


def velocity(x: Tensor, d: Tensor, s: Tensor) -> Tensor:
    alpha = (1 + s**2).rsqrt()
    return alpha * noise(x, d, s) - alpha * s * d


TYPES = [(NoisePrediction, noise), (DataPrediction, clean), (VPrediction, velocity)]


@pytest.mark.parametrize("sigma", LEVELS.tolist())
@pytest.mark.parametrize(("wrapper", "answer"), TYPES)
def test_every_prediction_type_is_the_same_denoiser(
    wrapper: type[NetworkDenoiser], answer: Callable[[Tensor, Tensor, Tensor], Tensor], sigma: float
) -> None:
    x = (1 + sigma) * X
    expected = mixture()(x, sigma)
    d = wrapper(Exact(answer, VP.sigma), SHAPE, VP)
    torch.testing.assert_close(d(x, sigma), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("wrapper", "answer"), TYPES)
def test_network_sees_integer_labels(
    wrapper: type[NetworkDenoiser], answer: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    network = Exact(answer, VP.sigma)
    wrapper(network, SHAPE, VP)(X, LEVELS)
    assert network.labels[0].tolist() == [0, 100, 400, 700, 999]


def test_between_labels_and_on_the_continuous_schedule() -> None:
    """Labels travel in float32: off the integers the noise level is told to seven digits."""
    continuous = VPContinuous()
    for schedule, sigma in [(VP, 0.777), (VP, 33.3), (continuous, 0.777), (continuous, 33.3)]:
        d = NoisePrediction(Exact(noise, schedule.sigma), SHAPE, schedule)
        torch.testing.assert_close(d(X, sigma), mixture()(X, sigma), rtol=0, atol=1e-4)


@pytest.mark.parametrize("power", [-3.0, -0.5, 0.0, 1.0, 3.5])
def test_edm_prediction(power: float) -> None:
    """The network that solves EDM's eq. 7 for F gives back D; labels ln(sigma) / 4."""
    sigma = math.exp(power)  # label power / 4 is exact in float32
    d2 = 0.3**2

    class F(Exact):
        def forward(self, scaled: Tensor, label: Tensor) -> Tensor:
            s = (4 * label.double()).exp()
            assert torch.equal(label, torch.full_like(label, power / 4))
            x = scaled * expand((s**2 + d2).sqrt(), scaled)
            skip, out = d2 / (s**2 + d2), s * 0.3 / (s**2 + d2).sqrt()
            return (self.inner(x, s) - expand(skip, x) * x) / expand(out, x)

    d = EDMPrediction(F(clean, VP.sigma), SHAPE, EDM(), sigma_data=0.3)
    torch.testing.assert_close(d((1 + sigma) * X, sigma), mixture()((1 + sigma) * X, sigma), rtol=0, atol=1e-10)


@pytest.mark.parametrize("t", [0.001, 0.3, 0.5, 0.96])
def test_flow_prediction(t: float) -> None:
    """The network sees ``x_t = (1 - t) x_0 + t eps``, and answers ``eps - x_0``."""

    class F(Exact):
        def forward(self, scaled: Tensor, label: Tensor) -> Tensor:
            torch.testing.assert_close(label, torch.full_like(label, 1000 * t))
            d = self.inner(scaled / (1 - t), sigma)
            return (scaled - (1 - t) * d) / t - d  # eps - x_0

    sigma = t / (1 - t)
    x, model = (1 + sigma) * X, FlowPrediction(F(clean, VP.sigma), SHAPE, Flow())
    torch.testing.assert_close(model(x, sigma), mixture()(x, sigma), rtol=0, atol=1e-9)
    assert model.prediction == "flow"


def test_grid_of_a_flow() -> None:
    """Uniform in the label, and shifted: from ``t = 0.999`` to 0."""
    model = FlowPrediction(nn.Identity(), SHAPE, Flow(shift=3.0))
    t = 0.999 * (1 - torch.arange(5, dtype=torch.float64) / 4)
    torch.testing.assert_close(model.grid(4), 3 * t / (1 - t))
    plain = FlowPrediction(nn.Identity(), SHAPE, Flow())
    assert torch.equal(plain.grid(4), time_uniform(4, 1 / 999, 999, Flow(), final="zero"))


def test_edm_coefficients() -> None:
    """EDM, appendix B.6: unit variance of input and target, and the least amplified error."""
    sigma = torch.logspace(-3, 2, 20, dtype=torch.float64)
    sd = 0.5
    c = EDMPrediction(nn.Identity(), SHAPE, EDM(), sigma_data=sd).coefficients(sigma)
    one = torch.ones_like(sigma)
    torch.testing.assert_close(c.inp**2 * (sigma**2 + sd**2), one, rtol=1e-12, atol=0)
    target = ((1 - c.skip) ** 2 * sd**2 + c.skip**2 * sigma**2) / c.out**2  # variance of (x_0 - c_skip x) / c_out
    torch.testing.assert_close(target, one, rtol=1e-12, atol=0)
    torch.testing.assert_close(c.skip, sd**2 * c.inp**2, rtol=1e-12, atol=0)  # the minimum over c_skip
    torch.testing.assert_close(c.out, sigma * sd * c.inp, rtol=1e-12, atol=0)
    torch.testing.assert_close(c.label, sigma.log() / 4, rtol=1e-12, atol=0)


# --- what all share ------------------------------------------------------------------------------


def denoisers() -> list[Denoiser]:
    wrapped = [wrapper(Exact(answer, VP.sigma), SHAPE, VP) for wrapper, answer in TYPES]
    return [GaussianDenoiser(MEANS[0], 0.3), mixture(), *wrapped]


@pytest.mark.parametrize("k", range(5))
def test_one_sigma_for_each_sample(k: int) -> None:
    d = denoisers()[k]
    together = d(X, LEVELS)
    for i, sigma in enumerate(LEVELS):
        torch.testing.assert_close(together[i : i + 1], d(X[i : i + 1], sigma), rtol=0, atol=1e-12)
    torch.testing.assert_close(d(X, LEVELS[2].expand(5)), d(X, float(LEVELS[2])), rtol=0, atol=1e-12)


@pytest.mark.parametrize("k", range(5))
def test_counters(k: int) -> None:
    d = denoisers()[k]
    assert (d.nfe, d.evaluations) == (0, 0)
    d(X, 1.0)
    d(X[:2], LEVELS[:2])
    assert (d.nfe, d.evaluations) == (2, 7)
    d.reset()
    assert (d.nfe, d.evaluations) == (0, 0)


@pytest.mark.parametrize("k", range(5))
def test_wrong_shape_is_one_line_and_no_evaluation(k: int) -> None:
    d = denoisers()[k]
    for bad in (X[:, :1], X[0], X[..., None]):
        with pytest.raises(ValueError, match=r"takes samples of shape \(2, 3, 1\), got") as info:
            d(bad, 1.0)
        assert "\n" not in str(info.value)
    assert d.nfe == 0


def test_state_keeps_its_dtype() -> None:
    """A float64 sampler may drive a float32 network; a float32 one stays float32."""
    seen: list[torch.dtype] = []

    def network(x: Tensor, label: Tensor) -> Tensor:
        seen.extend([x.dtype, label.dtype])
        return torch.zeros_like(x)

    d = NoisePrediction(network, SHAPE, VP)
    assert torch.equal(d(X, LEVELS), X)  # no noise predicted: x itself, untouched by the network's float32
    assert d(X.float(), LEVELS).dtype == torch.float32
    assert set(seen) == {torch.float32}
    assert mixture()(X.float(), 1.0).dtype == GaussianDenoiser(MEANS[0], 0.3)(X.float(), LEVELS).dtype == torch.float32


def test_range_and_names() -> None:
    d = NoisePrediction(nn.Identity(), SHAPE, VP, name="mine")
    assert (d.shape, d.prediction, d.name) == (SHAPE, "noise", "mine")
    assert (d.sigma_min, d.sigma_max) == (VP.sigma_min, VP.sigma_max)
    assert [w(nn.Identity(), SHAPE, VP).prediction for w, _ in TYPES] == ["noise", "data", "v"]
    assert GaussianDenoiser(MEANS[0], 0.3).prediction == "exact"
    with pytest.raises(ValueError, match="mine takes samples"):
        d(X[:, :1], 1.0)


def test_gradients_flow() -> None:
    """Distillation differentiates through every denoiser."""
    for d in denoisers():
        x = X.clone().requires_grad_()
        (g,) = torch.autograd.grad(d(x, LEVELS[2]).sum(), x)
        assert torch.isfinite(g).all() and g.abs().max() > 0


# --- the parts of D, as a solver's loop asks for them --------------------------------------------


@pytest.mark.parametrize("k", range(5))
def test_the_parts_are_the_whole(k: int) -> None:
    d = denoisers()[k]
    for sigma in LEVELS.tolist():
        whole = d(X, sigma)
        skip, out, raw = d.affine(X, sigma)
        assert type(skip) is float and type(out) is float
        torch.testing.assert_close(skip * X + out * raw, whole, rtol=0, atol=1e-14)
    assert (d.nfe, d.evaluations) == (10, 50)
    with pytest.raises(ValueError, match="takes samples of shape"):
        d.affine(X[:, :1], 1.0)
    assert d.nfe == 10


def test_coefficients_are_computed_once_a_level() -> None:
    asked: list[float] = []

    class Counting(NoisePrediction):
        def coefficients(self, sigma: Tensor) -> Coefficients:
            asked.append(float(sigma))
            return super().coefficients(sigma)

    d = Counting(lambda x, label: x, SHAPE, VP)
    for sigma in (0.5, 2.0, 0.5, 2.0):
        d.affine(X, sigma)
    assert asked == [0.5, 2.0]
    copy.deepcopy(d).affine(X, 3.0)
    assert asked == [0.5, 2.0, 3.0]
    d.affine(X, 3.0)  # the copy has levels of its own
    assert asked == [0.5, 2.0, 3.0, 3.0]


def test_sigma_is_differentiable() -> None:
    """Through the schedule's alpha and label and the coefficients, backwards and forwards."""

    def network(x: Tensor, label: Tensor) -> Tensor:
        return torch.sin(x + label[:, None, None, None] / 100)

    wrappers = (NoisePrediction, DataPrediction, VPrediction, EDMPrediction)
    for d in (GaussianDenoiser(MEANS[0], 0.3), *(wrapper(network, SHAPE, VP) for wrapper in wrappers)):
        sigma = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
        value = d(X, sigma).square().sum()
        (g,) = torch.autograd.grad(value, sigma)
        run = lambda s, d=d: d(X, s).square().sum()  # noqa: E731
        _, forward = torch.func.jvp(run, (sigma.detach(),), (torch.ones_like(sigma),))
        torch.testing.assert_close(g, forward, rtol=1e-4, atol=0)  # the network is float32
        quotient = (run(sigma.detach() + 1e-3) - run(sigma.detach() - 1e-3)) / 2e-3
        torch.testing.assert_close(g, quotient, rtol=1e-3, atol=0)
        assert g != 0
