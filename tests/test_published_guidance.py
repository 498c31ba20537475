"""Classifier guidance and the noisy classifiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from published_parts import CLASSIFIER, X, expand, linear, network, state
from torch import nn

import dode
from dode.denoisers import EDMPrediction, NoisePrediction
from dode.denoisers.conditioning import class_labels
from dode.schedules import VPDiscrete
from dode.zoo import Card, ClassifierGuidance, load_noisy_classifier


def test_classifier(tmp_path: Path, rows: Callable[..., Card]) -> None:
    rows("tiny", "adm-imagenet-64-classifier", network=CLASSIFIER, file="tiny.pt", classes=10)
    body = network("classifier")
    torch.save(state("classifier"), tmp_path / "tiny.pt")
    found = load_noisy_classifier(tmp_path / "tiny.pt")
    label = torch.tensor([3.0, 400.0])
    logits = found(X, label)
    assert logits.shape == (2, 10) and not any(p.requires_grad for p in found.parameters())
    torch.testing.assert_close(logits, body(X, label))
    pool = body.head[2]
    h = torch.randn(2, 64, 4, 4)
    flat = h.flatten(2)
    flat = torch.cat([flat.mean(2, keepdim=True), flat], 2) + pool.positional_embedding
    query = nn.MultiheadAttention(64, 4, batch_first=True)  # torch's own, with the same weights
    query.load_state_dict(
        {"in_proj_weight": linear(pool.qkv_proj.weight), "in_proj_bias": pool.qkv_proj.bias,
         "out_proj.weight": torch.eye(64), "out_proj.bias": torch.zeros(64)}
    )  # fmt: skip
    tokens = flat.transpose(1, 2)
    answer = query(tokens[:, :1], tokens, tokens)[0][:, 0]
    torch.testing.assert_close(pool(h), answer @ linear(pool.c_proj.weight).T + pool.c_proj.bias, rtol=1e-4, atol=1e-5)


def guided_pair(classes: int = 0) -> tuple[NoisePrediction, nn.Module]:
    body, given = network("guided", num_classes=classes), class_labels(classes, 2 if classes else None)
    return NoisePrediction(body, (3, 8, 8), VPDiscrete(), conditioning=given, name="tiny"), network("classifier")


def test_guidance_shifts_the_noise() -> None:
    """``eps - sqrt(1 - alpha_bar) s grad log p``; the gradient against central differences in float64."""
    model, classifier = guided_pair()
    classifier.double()
    guided = ClassifierGuidance(model, classifier, labels=[3, 7], scale=2.5)
    sigmas = model.schedule.sigmas[[100, 600]]
    alpha = expand((1 + sigmas**2).rsqrt())
    x_t, label = (alpha * X).double(), torch.tensor([100.0, 600.0])
    log = lambda at: classifier(at, label).log_softmax(1)[[0, 1], [3, 7]]  # noqa: E731
    direction = torch.randn(X.shape, dtype=torch.float64)
    slope = (log(x_t + 1e-4 * direction) - log(x_t - 1e-4 * direction)) / 2e-4
    gradient = guided.gradient(x_t, label)
    torch.testing.assert_close((gradient * direction).sum((1, 2, 3)), slope, rtol=1e-4, atol=1e-6)
    noise = (X - model(X, sigmas)) / expand(sigmas)
    shifted = (X - guided(X, sigmas)) / expand(sigmas)
    root = (1 - alpha**2).sqrt()
    torch.testing.assert_close(shifted, noise - 2.5 * root * gradient.float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(guided.affine(X, float(sigmas[0])).raw[0], shifted[0], rtol=1e-3, atol=1e-4)
    assert guided.nfe == 2 and model.nfe == 1 and guided.prediction == "noise"
    assert torch.equal(ClassifierGuidance(model, classifier.float(), labels=5, scale=0)(X, 1.0), model(X, 1.0))


def test_guidance_and_gradients() -> None:
    """No graph is kept where none is wanted; where one is, it is the derivative of what was computed."""
    model, classifier = guided_pair(classes=10)
    guided = ClassifierGuidance(model, classifier)  # the denoiser's own labels
    assert guided.conditioning is model.conditioning and not guided(X, 1.0).requires_grad
    with torch.no_grad():
        quiet = guided(X, 1.0)
    torch.testing.assert_close(quiet, guided(X, 1.0))
    model.network.double()
    classifier.double()
    x, direction = X.double().requires_grad_(), torch.randn(X.shape, dtype=torch.float64)
    out = torch.randn(X.shape, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((guided(x, 1.0) * out).sum(), x)
    value = lambda at: (guided(at.detach(), 1.0) * out).sum()  # noqa: E731
    slope = (value(x + 1e-5 * direction) - value(x - 1e-5 * direction)) / 2e-5
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-4, atol=1e-6)


def test_guidance_needs_a_noise_prediction_and_labels() -> None:
    model, classifier = guided_pair()
    with pytest.raises(ValueError, match="tiny has no class to draw; give labels="):
        ClassifierGuidance(model, classifier)
    edm = EDMPrediction(model.network, (3, 8, 8), dode.schedules.EDM(), name="edm")
    with pytest.raises(ValueError, match="edm predicts something else"):
        ClassifierGuidance(edm, classifier, labels=1)  # type: ignore[arg-type]
    conditional, classifier = guided_pair(classes=10)
    guided = ClassifierGuidance(conditional, classifier, labels=[4, 6])
    out = dode.sample(guided, dode.solvers.ddim(guided.grid(2)), dode.initial_noise((3, 8, 8), range(2)))
    assert torch.isfinite(out).all() and guided.nfe == 2 and conditional.conditions == 1
