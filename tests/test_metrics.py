"""Metrics against clean-fid, against closed forms, and against careless use."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid import fid
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dode import metrics, zoo
from dode.metrics import Features, Moments, frechet_distance, kernel_distance
from dode.utils.files import FileError, save_tensors
from dode.zoo.classifiers import Classifier, Critic
from dode.zoo.datasets import to_signal

# torch deprecates TorchScript, which is what Inception is published as; scipy, an argument of clean-fid's
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `disp` argument:DeprecationWarning"),
]


def gaussian(n: int, d: int, seed: int) -> np.ndarray:
    """Correlated features, float32 as a network gives them, with a mean and a wide spectrum."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((d, d)) * np.geomspace(1, 0.05, d)
    return (rng.standard_normal((n, d)) @ mix.T / math.sqrt(d) + rng.standard_normal(d)).astype(np.float32)


def of(features: np.ndarray | Tensor, name: str = "test") -> Moments:
    return Moments(name, features.shape[1]).update(features)


def pixels(n: int, channels: int = 1, size: int = 28, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, channels, size, size), generator=g, dtype=torch.uint8)


# --- moments -------------------------------------------------------------------------------------

ROWS = gaussian(60, 7, 0) + 100.0  # a large mean: the naive sum of squares would lose digits


@settings(max_examples=30)
@given(cuts=st.lists(st.integers(0, 60), max_size=12), shards=st.integers(1, 4))
def test_any_split_gives_numpys_moments(cuts: list[int], shards: int) -> None:
    edges = [0, *sorted(cuts), 60]
    parts = [Moments("test", 7, f"shard {k}") for k in range(shards)]
    for k, (a, b) in enumerate(itertools.pairwise(edges)):
        parts[k % shards].update(ROWS[a:b])  # may be empty
    merged = parts[0]
    for part in reversed(parts[1:]):
        merged.merge(part)
    assert merged.n == 60 and merged.source == " + ".join(f"shard {k}" for k in (0, *range(shards - 1, 0, -1)))
    rows = ROWS.astype(np.float64)
    torch.testing.assert_close(merged.mean, torch.from_numpy(rows.mean(0)), rtol=0, atol=1e-10)
    torch.testing.assert_close(merged.cov, torch.from_numpy(np.cov(rows, rowvar=False)), rtol=0, atol=1e-10)


def test_moments_file_round_trip(tmp_path: Path) -> None:
    m = Moments("inception-clean", 7, source="training images").update(ROWS)
    back = Moments.load(m.save(tmp_path / "m.safetensors"))
    assert (back.features, back.dim, back.n, back.source) == ("inception-clean", 7, 60, "training images")
    assert torch.equal(back.mean, m.mean) and torch.equal(back.cov, m.cov)
    back.update(ROWS[:5])  # a loaded file can go on
    assert back.n == 65


def test_files_of_another_kind(tmp_path: Path) -> None:
    odd = {"mean": torch.zeros(3), "scatter": torch.zeros(2, 2)}
    moments = save_tensors(tmp_path / "odd.safetensors", odd, "moments", dict(features="x", n=4, source=""))
    network = save_tensors(tmp_path / "network.safetensors", odd, "network", dict(config={}))
    for load, path, message in (
        (Moments.load, moments, r"odd\.safetensors does not hold a mean and a covariance"),
        (Moments.load, network, "holds a network, not a moments"),
        (metrics.classifier_features, network, "does not hold a classifier"),
        (zoo.load_evaluator, zoo.CHECKPOINTS / "fashion-mnist-noise.safetensors", "does not hold a classifier"),
        (zoo.load_denoiser, zoo.CHECKPOINTS / "fashion-mnist-classifier.safetensors", "does not hold a denoiser"),
        (zoo.load_denoiser, zoo.CHECKPOINTS / "fashion-mnist-moments.safetensors", "holds a moments, not a network"),
        (metrics.classifier_features, tmp_path / "none.safetensors", r"none\.safetensors does not exist"),
    ):
        with pytest.raises(FileError, match=message):
            load(path)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_features_are_named(bad: float) -> None:
    x = ROWS.copy()
    x[4, 2] = bad
    m = of(ROWS)
    with pytest.raises(ValueError, match="features of image 64 are not finite"):
        m.update(x)
    assert m.n == 60 and torch.isfinite(m.cov).all()  # untouched
    with pytest.raises(ValueError, match="features of image 4 are not finite"):
        kernel_distance(x, ROWS)


# --- the Frechet distance ------------------------------------------------------------------------


SIZES = [(500, 400, 64), (40, 50, 64), (40, 300, 64), (600, 500, 256), (100, 150, 256)]  # more and fewer images than d


@pytest.mark.parametrize(("n", "m", "d"), SIZES)
def test_frechet_distance_is_clean_fids(n: int, m: int, d: int) -> None:
    a, b = gaussian(n, d, 1), gaussian(m, d, 2)
    stats = [v for x in (a, b) for v in (np.mean(x, 0, dtype=np.float64), np.cov(x.astype(np.float64), rowvar=False))]
    expected = fid.frechet_distance(*stats)
    assert frechet_distance(of(a), of(b)) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(of(b), of(a)) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_closed_forms() -> None:
    a, b = gaussian(50, 7, 1).astype(np.float64), gaussian(40, 7, 2).astype(np.float64)
    scaled, variance = 3 * a + 2, np.cov(a, rowvar=False).trace()
    expected = np.square((a - scaled).mean(0)).sum() + 4 * variance  # the deviations differ by a factor of 3
    assert frechet_distance(of(a), of(scaled)) == pytest.approx(expected)
    assert 0 <= frechet_distance(of(a), of(a)) < 1e-9 * variance
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((7, 7)))[0]  # of both changes nothing; of one, it does
    both, one = (frechet_distance(of(x), of(b @ turn)) for x in (a @ turn, a))
    assert both == pytest.approx(frechet_distance(of(a), of(b))) and one > both + 0.1
    ones, zeros = of(torch.ones(5, 3)), of(torch.zeros(4, 3))  # all images alike: covariance zero
    assert frechet_distance(ones, zeros) == pytest.approx(3.0)


# --- the kernel distance -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m", "size", "subsets"), [(200, 150, 1000, 7), (300, 300, 50, 7), (1500, 1500, 1500, 1)])
def test_kernel_distance_is_clean_fids(n: int, m: int, size: int, subsets: int) -> None:
    """Of the same random subsets; and of all rows, where the draw is only an order (and more than one chunk)."""
    a, b = gaussian(n, 64, 1).astype(np.float64), gaussian(m, 64, 2).astype(np.float64)
    np.random.seed(5)
    expected = fid.kernel_distance(a, b, num_subsets=subsets, max_subset_size=size)
    ours = kernel_distance(a, b) if subsets == 1 else kernel_distance(a, b, subsets=subsets, subset_size=size, seed=5)
    assert ours == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_is_unbiased() -> None:
    """Uneven sizes, by the definition."""
    a, b = (torch.from_numpy(gaussian(n, 5, n)).double() for n in (9, 6))
    k = lambda x, y: float((x @ y / 5 + 1) ** 3)  # noqa: E731
    xx = sum(k(a[i], a[j]) for i in range(9) for j in range(9) if i != j) / 72
    yy = sum(k(b[i], b[j]) for i in range(6) for j in range(6) if i != j) / 30
    xy = sum(k(x, y) for x in a for y in b) / 54
    assert kernel_distance(a, b) == pytest.approx(xx + yy - 2 * xy, rel=1e-12)


def refused() -> Iterator[tuple[Callable[[], Any], str]]:
    a, other = of(ROWS, "inception-clean"), of(ROWS, "classifier")
    yield lambda: Moments("test", 7).update(ROWS[:, :6]), "test has 7 dimensions, got features of 6"
    yield lambda: Moments("test", 7).update(ROWS[0]), r"features must be \(images, dimension\), got shape \(7,\)"
    yield lambda: Moments("test", 7).mean, "no images yet"
    yield lambda: frechet_distance(a, other), "'inception-clean' .* and 'classifier'"
    yield lambda: a.merge(other), "cannot be compared"
    yield lambda: frechet_distance(a, of(ROWS[:, :5], a.features)), r"\(7 dimensions\) and 'inception-clean' \(5\)"
    yield lambda: frechet_distance(a, of(ROWS[:1], a.features)), "two images or more, got n = 1"
    yield lambda: kernel_distance(ROWS, ROWS[:, :5]), "different dimensions: 7 and 5"
    yield lambda: kernel_distance(ROWS[:1], ROWS), "two images or more on each side, got 1 and 60"
    yield lambda: kernel_distance(ROWS, ROWS, subsets=0), "one subset or more, got 0"
    yield lambda: metrics.rmse(torch.zeros(2, 3), torch.zeros(1, 3)), "two equal shapes"
    yield lambda: metrics.moments(torch.full((3, 1, 4, 4), math.nan), MEAN), "NaN or infinite pixels"
    for images in (torch.zeros(2, 1, 28, 28), pixels(2)[0], pixels(2, channels=3)):
        yield lambda: metrics.classifier_features()(images), r"takes uint8 images \(B, 1, H, W\)"  # noqa: B023
    yield lambda: metrics.inception_features("legacy_pytorch"), "mode must be 'clean' or 'legacy_tensorflow', got 'leg"
    yield lambda: zoo.load_evaluator("fashion-mnist-noise"), "no checkpoint named 'fashion-mnist-noise'; the nearest:"


def test_what_cannot_be_compared_is_refused_in_one_line() -> None:
    for call, message in refused():
        with pytest.raises(ValueError, match=message) as info:
            call()
        assert "\n" not in str(info.value)


# --- feature extractors --------------------------------------------------------------------------


def write_classifier(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = Classifier(width=4, features=8)
    half = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    return save_tensors(path, half, "network", dict(name="tiny", config=model.config))


def test_classifier_features(tmp_path: Path) -> None:
    f = metrics.classifier_features(write_classifier(tmp_path / "c.safetensors"))
    images, out = pixels(5), f(pixels(5))
    assert out.shape == (5, f.dim) == (5, 8) and out.dtype == torch.float32 and not out.requires_grad
    torch.testing.assert_close(f(images[2:3]), out[2:3])  # evaluation mode: no image sees its batch
    other = metrics.classifier_features(write_classifier(tmp_path / "d.safetensors", seed=1))
    assert f.name.startswith("tiny-") and f.name != other.name  # so that they cannot be compared


@pytest.mark.parametrize(("role", "dim"), [("classifier", 64), ("critic", 96)])
def test_shipped_evaluators_and_their_moments(role: str, dim: int) -> None:
    """Each has moments of its own weights, and passes gradients on to the pixels."""
    name = f"fashion-mnist-{role}"
    f, (network, stored) = metrics.classifier_features(name), zoo.load_evaluator(name)
    assert f.dim == dim and f.name == stored and stored.startswith(f"{name}-") and f.label == f"FD ({role} features)"
    assert isinstance(network, Critic if role == "critic" else Classifier) and not network.training
    assert not any(p.requires_grad for p in network.parameters())
    x = pixels(3).float().requires_grad_()
    network.features(x).square().sum().backward()
    assert x.grad is not None and torch.isfinite(x.grad).all() and (x.grad.flatten(1).abs().amax(1) > 0).all()
    assert torch.equal(f(pixels(3)), network.features(pixels(3).float()).detach())
    moments = zoo.CHECKPOINTS / f"fashion-mnist-{'critic-' if role == 'critic' else ''}moments.safetensors"
    reference = Moments.load(moments)
    assert (reference.features, reference.dim, reference.n) == (f.name, f.dim, 60_000)


def mean_feature(images: Tensor) -> Tensor:
    x = images.double().flatten(1)
    return torch.stack([x.mean(1), x.std(1), x[:, 0]], 1)


MEAN = Features("mean", 3, "FD (pixels)", (1,), mean_feature)


def test_measure() -> None:
    images = pixels(50)
    reference = metrics.moments(pixels(70, seed=1), MEAN)
    result = metrics.measure(images, MEAN, reference, batch_size=7)
    expected = frechet_distance(of(mean_feature(images), "mean"), reference)
    assert result == dict(fd=pytest.approx(expected), n=50, n_reference=70, features="mean", label="FD (pixels)")
    # the same images in -1..1, slightly disturbed, and as a stream: an image file would not know
    signal = to_signal(images) + 0.003 * torch.rand(images.shape).sub(0.5)
    assert metrics.measure(signal, MEAN, reference)["fd"] == pytest.approx(expected)
    assert metrics.measure(iter(images.split(11)), MEAN, reference, batch_size=4)["fd"] == pytest.approx(expected)


# --- Inception: the real path around a small network ---------------------------------------------


class Layers(nn.Module):
    """Inception's interface: (B, 3, 299, 299) to (B, 2048); here 2,048 of the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2048] if x.shape[2] == 299 else x.mean(dim=(2, 3)).repeat(1, 683)[:, :2048]


class Stand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = Layers()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        return self.layers(x)


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DODE_CACHE", str(tmp_path))
    path = tmp_path / "inception-2015-12-05.pt"
    torch.jit.script(Stand()).save(str(path))
    monkeypatch.setattr(metrics, "INCEPTION_DIGEST", f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}")
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_inception_features_are_clean_fids(stand_in: Path, channels: int) -> None:
    f, resize = metrics.inception_features("clean"), build_resizer("clean")
    images = pixels(3, channels)
    resized = np.stack([resize(x) for x in images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()])
    with torch.no_grad():
        expected = InceptionV3W(str(stand_in.parent), download=False)(torch.from_numpy(resized.transpose(0, 3, 1, 2)))
    assert (f.name, f.dim, f.label) == ("inception-clean", 2048, "FID") and expected.shape == (3, 2048)
    torch.testing.assert_close(f(images), expected, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"\(B, 1 or 3, H, W\)"):
        f(pixels(2, channels=2))


def test_legacy_resizing_is_left_to_the_network(stand_in: Path) -> None:
    f = metrics.inception_features("legacy_tensorflow")
    images = pixels(2, 3, size=32)
    out = f(images)
    assert f.name == "inception-legacy_tensorflow" and out.shape == (2, 2048)
    torch.testing.assert_close(out[:, :3], images.float().mean(dim=(2, 3)))


def test_missing_or_wrong_inception_is_never_loaded(stand_in: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads = list[object]()
    monkeypatch.setattr(torch.jit, "load", lambda *a, **k: loads.append(a))
    monkeypatch.setattr(
        metrics, "INCEPTION_DIGEST", "sha256:of another file"
    )  # this one loads well, but is not Inception
    with pytest.raises(FileError, match="is not the published file"):
        metrics.inception_features()
    stand_in.unlink()
    with pytest.raises(FileError, match=f"{re.escape(str(stand_in))}.*classifier_features") as info:
        metrics.inception_features()
    assert not loads and "\n" not in str(info.value)


# --- paths ---------------------------------------------------------------------------------------


def test_rmse_and_trajectory_distance() -> None:
    a = torch.zeros(3, 2, 1, 2, 2)
    b = a.clone()
    b[1, 0] = 2.0  # image 0 is off by 2 everywhere, image 1 by 0: 1 on average
    b[2, :, 0, 0, 0] = 4.0  # one pixel of four: 2
    torch.testing.assert_close(metrics.trajectory_distance(a, b), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64))
    assert metrics.rmse(a[1], b[1]) == 1.0
