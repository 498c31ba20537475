"""Exact denoisers against autograd; network wrappers against one exact denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from dode.denoisers import Denoiser, GaussianDenoiser, Images, MixtureDenoiser, NetworkDenoiser, expand
from dode.denoisers.networks import DataPrediction, EDMPrediction, FlowPrediction, NoisePrediction, VPrediction
from dode.schedules import EDM, Flow, VPContinuous, vp_linear

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
    if components == 1:
        gaussian = GaussianDenoiser(MEANS[0], float(STDS[0]))
        torch.testing.assert_close(gaussian(x.detach(), sigma), expected, rtol=0, atol=1e-10)


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


Answer = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x, D and sigma
noise: Answer = lambda x, d, s: (x - d) / s  # noqa: E731
clean: Answer = lambda x, d, s: d  # noqa: E731
velocity: Answer = lambda x, d, s: (1 + s**2).rsqrt() * ((x - d) / s - s * d)  # noqa: E731
TYPES = [(NoisePrediction, noise), (DataPrediction, clean), (VPrediction, velocity)]


@pytest.mark.parametrize("sigma", LEVELS.tolist())
@pytest.mark.parametrize(("wrapper", "answer"), TYPES)
def test_every_prediction_type_is_the_same_denoiser(
    wrapper: type[NetworkDenoiser], answer: Answer, sigma: float
) -> None:
    x = (1 + sigma) * X
    expected = mixture()(x, sigma)
    d = wrapper(Exact(answer, VP.sigma), SHAPE, VP)
    torch.testing.assert_close(d(x, sigma), expected, rtol=0, atol=1e-10)
    assert float(d.network.labels[0][0]) == (0, 100, 400, 700, 999)[LEVELS.tolist().index(sigma)]  # type: ignore[union-attr, index]


def test_between_labels_and_on_the_continuous_schedule() -> None:
    """Labels travel in float32: off the integers the noise level is told to seven digits."""
    continuous = VPContinuous()
    for schedule, sigma in [(VP, 0.777), (VP, 33.3), (continuous, 0.777), (continuous, 33.3)]:
        d = NoisePrediction(Exact(noise, schedule.sigma), SHAPE, schedule)
        torch.testing.assert_close(d(X, sigma), mixture()(X, sigma), rtol=0, atol=1e-4)


class Solved(Exact):
    """A network that solves ``D = skip x + out F`` for F, of coefficients written out here."""

    def __init__(self, sigma: float, skip: float, out: float, inp: float, label: float) -> None:
        super().__init__(clean, VP.sigma)
        self.numbers = sigma, skip, out, inp, label

    def forward(self, scaled: Tensor, label: Tensor) -> Tensor:
        sigma, skip, out, inp, wanted = self.numbers
        torch.testing.assert_close(label, torch.full_like(label, wanted))
        x = scaled / inp
        return (self.inner(x, sigma) - skip * x) / out


@pytest.mark.parametrize("sigma", [0.05, 0.6, 1.0, 33.0])
def test_edm_and_flow_prediction(sigma: float) -> None:
    """EDM's table 1; and ``F = eps - x_0`` of ``x_t = (1 - t) x_0 + t eps``."""
    norm, t, x = math.hypot(sigma, 0.3), sigma / (1 + sigma), (1 + sigma) * X
    edm = Solved(sigma, (0.3 / norm) ** 2, sigma * 0.3 / norm, 1 / norm, math.log(sigma) / 4)
    flow = Solved(sigma, 1 - t, -t, 1 - t, 1000 * t)
    for model in (EDMPrediction(edm, SHAPE, EDM(), sigma_data=0.3), FlowPrediction(flow, SHAPE, Flow())):
        torch.testing.assert_close(model(x, sigma), mixture()(x, sigma), rtol=0, atol=1e-8)
    assert model.prediction == "flow"


# --- what all share ------------------------------------------------------------------------------


def denoisers() -> list[Denoiser]:
    wrapped = [wrapper(Exact(answer, VP.sigma), SHAPE, VP) for wrapper, answer in TYPES]
    return [GaussianDenoiser(MEANS[0], 0.3), mixture(), *wrapped]


@pytest.mark.parametrize("k", range(5))
def test_one_level_for_each_sample_or_for_all_in_parts(k: int) -> None:
    d = denoisers()[k]
    together = d(X, LEVELS)
    for i, sigma in enumerate(LEVELS.tolist()):
        whole, (skip, out, raw) = d(X, sigma), d.affine(X, sigma)
        torch.testing.assert_close(together[i], whole[i], rtol=0, atol=1e-12)
        assert type(skip) is float and type(out) is float
        torch.testing.assert_close(skip * X + out * raw, whole, rtol=0, atol=1e-14)
    d(X[:2], LEVELS[:2])
    assert (d.nfe, d.evaluations) == (12, 57)
    d.reset()
    for bad in (X[:, :1], X[0], X[..., None]):
        for ask in (d, d.affine):
            with pytest.raises(ValueError, match=r"takes samples of shape \(2, 3, 1\), got"):
                ask(bad, 1.0)
    assert (d.nfe, d.evaluations) == (0, 0)


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


def test_what_is_no_picture_yet_becomes_one_and_is_not_clipped() -> None:
    flux, y = Images(low=0.0, high=10.0, to_picture=lambda y: 10 * y / (1 + y)), torch.tensor([-0.4, 9.5])
    assert flux.to_uint8(torch.tensor([0.0, 1.0, 1e9])).tolist() == [0, 128, 255] and torch.equal(flux.clip(y), y)
