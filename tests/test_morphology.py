"""What is measured of galaxies: total flux, morphology, and how far two solvers' images are apart in them."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import refused
from test_galaxies import published
from torch import Tensor

from dode import metrics
from dode.distillation.designer import feature_size
from dode.experiments import PRESETS, Run
from dode.experiments import galaxies as module
from dode.experiments.morphology import QUANTITIES, compared, morphologies, total_flux, wasserstein
from dode.experiments.run import TRAINING_BLOCK
from dode.experiments.sweeps import images_of
from dode.zoo.families.galaxies import from_flux, sky_of

there = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("statmorph", "photutils"))), reason="not here: pip install 'dode[galaxies]'"
)
NUMBERS = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=9)


def disc(radius: float, axis_ratio: float = 1.0, sky: float = 0.0) -> Tensor:
    """An exponential disc in samples, ``(1, 1, 64, 64)``; without sky its flux is 2 pi axis_ratio radius^2."""
    y, x = torch.meshgrid(2 * [torch.arange(64, dtype=torch.float64) - 32], indexing="ij")
    return from_flux(sky + (-(x**2 + (y / axis_ratio) ** 2).sqrt() / radius).exp())[None, None]


@pytest.mark.parametrize("sky", [0.0, 1.0])
def test_the_total_flux_is_counted_from_the_sky(sky: float) -> None:
    assert float(total_flux(disc(4, sky=sky), sky)) == pytest.approx(2 * math.pi * 16, rel=0.02)
    assert [sky_of(f"galaxies-{name}") for name in ("hsc-64", "lsst-60")] == [0, 1]


@given(NUMBERS, st.floats(-5, 5), st.randoms(use_true_random=False))
def test_the_distance_of_two_samples(values: list[float], shift: float, random: object) -> None:
    a = torch.tensor(values, dtype=torch.float64)
    other = torch.tensor(sorted(values), dtype=torch.float64) + shift
    assert wasserstein(a, other) == pytest.approx(abs(shift)) and wasserstein(other, a) == wasserstein(a, other)


def test_failures_are_left_out_and_counted() -> None:
    reference = torch.arange(30.0).view(5, 6)
    found = reference + 6
    found[1, 2] = reference[4, 0] = float("nan")
    columns = compared(found, reference)
    assert columns["failed"] == 2 and set(columns) == {"failed"} | {
        n + e for n in QUANTITIES for e in ("", "_distance")
    }
    spread = torch.tensor([0.0, 12.0, 18.0]).std()
    assert columns["gini"] == columns["gini_distance"] == pytest.approx(6 / float(spread))
    assert compared(found[1:2], reference[1:2])["failed"] == 1


@there
def test_morphology_of_discs() -> None:
    """A round disc has no ellipticity, a flat one its own; half the light is within 1.68 lengths of an exponential."""
    noise = 0.01 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    found = morphologies(torch.cat([disc(4) + noise, disc(2.5, 0.5) + noise, torch.zeros(1, 1, 64, 64)]))
    assert found.shape == (3, 6) and found[2].isnan().all()  # an empty image
    radius, asymmetry, ellipticity = (found[:, list(QUANTITIES).index(n)] for n in (
        "half_light_radius", "asymmetry", "ellipticity"))  # fmt: skip
    assert float(radius[0]) == pytest.approx(1.68 * 4, rel=0.1) and float(asymmetry[:2].abs().max()) < 0.02
    assert ellipticity[:2].tolist() == pytest.approx([0, 0.5], abs=0.03)
    raised = morphologies(disc(4, sky=1.0) + noise / 2, sky=1.0)
    torch.testing.assert_close(raised[0], found[0], rtol=0.02, atol=0.02)


@pytest.mark.skipif(importlib.util.find_spec("statmorph") is not None, reason="statmorph is here")
def test_without_the_extra_a_line_names_it() -> None:
    with refused("pip install 'dode[galaxies]'", ImportError):
        morphologies(disc(4))


@there
@published
def test_the_measurement(project: Path) -> None:
    """Of the reference solution itself no error is left; of few evaluations there is some."""
    preset = replace(PRESETS["smoke"], images=75, reference_calls=8)
    cell = dict(checkpoint="galaxies-hsc-32", grid="Karras", block=0)
    same = module.morphology(Run(preset), solver="dpm_solver_pp:order=2", nfe=8, **cell)
    found = module.morphology(Run(preset), solver="ddim", nfe=2, **cell)
    for column in ("rmse", "flux_error"):
        assert float(found[column]) > 100 * float(same[column])
    references = list((project / "_build" / "references").glob("morphology-*.safetensors"))
    assert same["n"] == found["n"] == "3" and same["failed"] == "0" and len(references) == 1
    planned = module.morphology_cells(PRESETS["smoke"], "galaxies-hsc-32")
    assert [cell["solver"] for cell in planned] == ["ddim"]


@there
@published
@pytest.mark.parametrize(("kind", "columns"), [("classifier", 6), ("critic", 16)])
def test_pages_measure_galaxies_by_features(kind: str, columns: int, project: Path) -> None:
    """Distances are in units of the spread of what is measured; what cannot be measured has no row."""
    run, name = Run(replace(PRESETS["smoke"], images=75, reference_calls=8)), "galaxies-hsc-32"
    features, known = run.evaluator(name, kind)
    assert (known.dim, features.dim) == (columns, columns) and images_of(run.preset, name) == 3
    torch.testing.assert_close(known.cov.diag(), torch.ones(columns, dtype=torch.float64))
    images = run.reference_images(name, 32, 8, TRAINING_BLOCK)
    assert metrics.measure(images, features, known)["fd"] == pytest.approx(0, abs=1e-9)
    empty = metrics.measure(torch.full((3, 1, 32, 32), -1.0), features, known)
    assert math.isnan(empty["fd"]) == (kind == "classifier") and empty["n"] == (0 if kind == "classifier" else 3)
    with refused("takes float images (B, 1, H, W)"):
        features(torch.zeros(1, 1, 32, 32, dtype=torch.uint8))
    assert feature_size(run.model(name)) == 64  # a designer reads each patch
