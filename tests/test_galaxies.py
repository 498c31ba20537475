"""The networks of galaxies: equal to the original, read wherever they are, refused in one line; flux and pictures."""

from __future__ import annotations

import importlib.util
import io
import pickle
import re
import shlex
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import galaxies_original as original
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import refusal, refused, tiles
from torch import Tensor

import dode
from dode import cli
from dode.distillation.own_features import own_features
from dode.experiments import fits
from dode.utils.files import FileError
from dode.zoo import CATALOGUE, Card, load_published
from dode.zoo.download import fetch, packaged, place
from dode.zoo.families.galaxies import ScoreMixer, arrays, flux, from_flux, stored

ROOT = Path(__file__).parents[1]
NAMES = [name for name, card in CATALOGUE.items() if card.family == "galaxies"]


def have() -> bool:
    try:
        return bool(fetch(CATALOGUE["galaxies-hsc-32"]))
    except FileError:
        return False


published = pytest.mark.skipif(not have(), reason="not here: pip install --no-deps galaxygrad==0.2.1")


# --- the published networks -------------------------------------------------------------------------------------------


def test_the_cards_are_those_of_the_original() -> None:
    assert {name: f"eqx_{file}.eqx" for name, file in original.FILES.items()} == {n: CATALOGUE[n].file for n in NAMES}
    assert all(CATALOGUE[name].size and CATALOGUE[name].licence == "no licence stated" for name in NAMES)


def test_the_package_is_pinned_by_its_hash() -> None:
    """And from whatever index pip has: none is named."""
    (line,) = (row for row in (ROOT / "requirements-galaxies.lock").read_text().splitlines() if row[0] != "#")
    assert re.fullmatch(r"galaxygrad==0\.2\.1 --hash=sha256:[0-9a-f]{64}", line)
    assert {CATALOGUE[name].package for name in NAMES} == {line.split()[0]} and line.split()[0] in REQUIRED
    assert "-r requirements-galaxies.lock" in (ROOT / "Makefile").read_text()


def scores(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Of the inputs of the original's script."""
    model = dode.load(name, dtype=dtype)
    x, t = torch.tensor(original.inputs(model.shape[1])), torch.tensor(original.TIMES)
    return model.network.score(x.to(dtype), t.to(dtype))  # type: ignore[operator, union-attr]


@published
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_original_s(name: str) -> None:
    """To float32 rounding, at 20 times from 0.01 to 10: as far as float32 here is from float64 here."""
    expected = original.expected()[name]
    for dtype in (torch.float32, torch.float64):
        found = original.summary(scores(name, dtype).numpy())
        np.testing.assert_array_less(np.abs(found - expected) / expected[:, :1], 2e-5)


@published
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_pixel_is_the_original_s_where_jax_is(name: str) -> None:
    for package in ("jax", "equinox", "einops"):
        pytest.importorskip(package)
    expected = torch.tensor(original.original(name)(original.inputs(CATALOGUE[name].shape[1]), original.TIMES))
    scale = expected.square().mean((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(scores(name) / scale, expected / scale, rtol=0, atol=3e-5)


@published
def test_the_noise_is_the_score_on_the_whole_range() -> None:
    """``D = (y + sigma_t^2 s(y, t)) / alpha`` with ``alpha = exp(-t / 2)``; sigma from 0.1 to 148.4."""
    model = dode.load("galaxies-hsc-32")
    t = torch.tensor(original.TIMES).double()
    alpha, variance = (-t / 2).exp().view(-1, 1, 1, 1), -torch.expm1(-t).view(-1, 1, 1, 1)
    sigma = (variance.sqrt() / alpha).flatten()
    assert (model.sigma_min, model.sigma_max) == pytest.approx((float(sigma[0]), float(sigma[-1])))
    torch.testing.assert_close(model.schedule.label(sigma), 99.9 * t)
    y = torch.tensor(original.inputs(32)).double()
    found = model(y / alpha, sigma)
    torch.testing.assert_close(alpha * found, y + variance * scores(model.name).double(), rtol=1e-4, atol=1e-4)


@published
def test_the_package_is_not_imported() -> None:
    assert dode.load("galaxies-ztf-32").name == "galaxies-ztf-32" and "galaxygrad" not in sys.modules
    found = Path(str(metadata.distribution("galaxygrad").locate_file("galaxygrad")))
    assert load_published(found, like="galaxies-ztf-32").shape == (1, 32, 32)
    assert load_published(found / "eqx_ZTF_ScoreNet32.eqx").shape == (1, 32, 32)


# --- a small network in a file, a package and a wheel -----------------------------------------------------------------


def content(side: int = 8, seed: int = 0) -> list[np.ndarray]:
    """The arrays of a file, made up."""
    generator = np.random.default_rng(seed)
    shapes = [shape for _, shape in stored(ScoreMixer(side))][:-1]
    return [*(0.1 * generator.standard_normal(shape).astype(np.float32) for shape in shapes), np.array(10.0)]


def as_bytes(values: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    for value in values:
        np.save(file, value)
    return file.getvalue()


WHOLE = as_bytes(content())
HUGE = WHOLE[:128].replace(b"(64, ", b"(64000000000, ").replace(9 * b" " + b"\n", b"\n")
MEMBER, REQUIRED = "galaxygrad/tiny.eqx", "pip install --no-deps galaxygrad==0.2.1"


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Card:
    """A card of a small network, with an empty cache, and no package that is installed or named."""
    monkeypatch.setenv("DODE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DODE_GALAXYGRAD", raising=False)

    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    facts = dict(name="galaxies-tiny-8", file="tiny.eqx", shape=(1, 8, 8), size=len(WHOLE))
    found = replace(CATALOGUE["galaxies-hsc-32"], **facts, digest=f"sha256:{sha256(WHOLE).hexdigest()}")
    monkeypatch.setitem(CATALOGUE, found.name, found)  # type: ignore[arg-type]
    return found


@pytest.fixture
def wheel(tmp_path: Path) -> Callable[..., Path]:
    def make(raw: bytes = WHOLE, member: str = MEMBER) -> Path:
        path = tmp_path / "galaxygrad-0.2.1-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, raw)
        return path

    return make


@given(side=st.sampled_from([4, 8, 12, 20]), seed=st.integers(0, 9))
def test_a_file_is_a_network_of_any_side(tmp_path_factory: pytest.TempPathFactory, side: int, seed: int) -> None:
    values = content(side, seed)
    path = tmp_path_factory.mktemp("any") / "n.eqx"
    path.write_bytes(as_bytes(values))
    card = replace(CATALOGUE["galaxies-hsc-32"], shape=(1, side, side))
    model = dode.zoo.FAMILIES["galaxies"].read(path, card)
    assert sum(p.numel() for p in model.network.parameters()) == sum(v.size for v in values) - 1
    found = model(torch.randn(2, 1, side, side), 1.0)
    assert found.shape == (2, 1, side, side) and found.isfinite().all()


def test_a_transposed_convolution_is_turned(tmp_path: Path) -> None:
    """Equinox's kernel ``(out, in, k, k)`` is a correlation's: its last row and column meet the patch's first."""
    path = tmp_path / "n.eqx"
    path.write_bytes(WHOLE)
    model = dode.zoo.FAMILIES["galaxies"].read(path, replace(CATALOGUE["galaxies-hsc-32"], shape=(1, 8, 8)))
    h = torch.randn(1, 64, 2, 2)
    kernel, bias = (torch.tensor(value) for value in content()[2:4])
    expected = torch.einsum("bchw,ocij->bohiwj", h, kernel.flip(2, 3)).reshape(1, 1, 8, 8) + bias
    torch.testing.assert_close(model.network.conv_out(h), expected)


def changed(**new: np.ndarray) -> bytes:
    """The file with other arrays in some places."""
    values = content()
    for place_, value in new.items():
        values[int(place_[1:])] = value
    return as_bytes(values)


@pytest.mark.parametrize(
    ("raw", "why"),
    {
        "empty": (b"", "no whole sequence"),
        "a part of a header": (WHOLE[:60], "'conv_in.weight'"),
        "a part of an array": (WHOLE[:-200], "no whole sequence"),
        "an array too few": (as_bytes(content()[:-1]), "at 't1'"),
        "longer": (WHOLE + b"\0", "is longer"),
        "another order": (as_bytes(content()[1:] + content()[:1]), "'conv_in.weight' is float32 (64, 1, 1)"),
        "another side": (as_bytes(content(12)), "'blocks.0.over_patches.0.weight' is float32 (512, 9)"),
        "whole numbers": (changed(_0=np.zeros((64, 2, 4, 4), int)), "is int64 (64, 2, 4, 4), not float"),
        "objects": (changed(_0=np.full((64, 2, 4, 4), None)), "is object"),
        "more than memory": (HUGE, "is float32 (64000000000, 2, 4, 4)"),
        "other times": (changed(_54=np.array(1.0)), "times up to 1, not 10"),
        "a pickle": (pickle.dumps(print), "nothing in it was run"),
        "a state of torch's": (b"PK\3\4 no sequence", "nothing in it was run"),
    }.values(),
)
def test_other_files_are_refused(card: Card, tmp_path: Path, raw: bytes, why: str) -> None:
    path = tmp_path / "tiny.eqx"
    path.write_bytes(raw)
    assert why in refusal(path, load_published)


@given(at=st.integers(0, 1400), byte=st.integers(0, 255))
def test_a_damaged_header_is_read_as_it_was_or_refused(
    tmp_path_factory: pytest.TempPathFactory, at: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "n.eqx"
    path.write_bytes(WHOLE[:at] + bytes([byte]) + WHOLE[at + 1 :])
    try:
        found = arrays(path, ScoreMixer(8))
    except FileError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert [tuple(value.shape) for value in found.values()] == [shape for _, shape in stored(ScoreMixer(8))]


def test_without_the_package_a_line_says_what_to_install(card: Card) -> None:
    with refused(REQUIRED, FileError):
        dode.load(card.name)
    with refused("DODE_GALAXYGRAD", FileError):
        dode.zoo.digest(card.name)


def test_another_version_is_refused(card: Card, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "galaxygrad").mkdir()
    (tmp_path / MEMBER).write_bytes(WHOLE)
    found = SimpleNamespace(version="0.3.0", locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(metadata, "distribution", lambda name: found)
    with refused("galaxygrad 0.3.0 is installed", FileError):
        dode.load(card.name)
    found.version = "0.2.1"
    assert dode.load(card.name).shape == (1, 8, 8)
    (tmp_path / MEMBER).write_bytes(as_bytes(content(seed=1)))
    with refused("is not the published file", FileError):
        dode.load(card.name)
    (tmp_path / MEMBER).unlink()
    with refused("does not exist", FileError):
        dode.load(card.name)


def test_a_folder_or_a_wheel_may_be_named(
    card: Card, wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    for where in (tmp_path / "whole" / "galaxygrad", tmp_path / "flat"):
        where.mkdir(parents=True, exist_ok=True)
        (where / "tiny.eqx").write_bytes(WHOLE)
        assert load_published(where, like=card.name).name == card.name
    assert packaged(card, tmp_path / "whole") == tmp_path / "whole" / MEMBER and not place(card).exists()
    monkeypatch.setenv("DODE_GALAXYGRAD", str(wheel()))
    assert dode.load(card.name).name == card.name and place(card).read_bytes() == WHOLE
    monkeypatch.delenv("DODE_GALAXYGRAD")
    assert dode.load(card.name).name == card.name  # from the cache
    with refused("does not exist", FileError):
        packaged(card, tmp_path / "cache" / "..")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda wheel: wheel(as_bytes(content(seed=1))), "is not the published file"),
        (lambda wheel: wheel(bytes(1_000_000)), "is not the published file"),
        (lambda wheel: wheel(member="galaxygrad/other.eqx"), "holds no galaxygrad/tiny.eqx"),
        (lambda wheel: cut(wheel(), 0.5), "is no whole wheel"),
        (lambda wheel: cut(wheel(), 0.0), "is no whole wheel"),
        (lambda wheel: damaged(wheel()), "is no whole wheel"),
    ],
)
def test_a_wheel_that_is_not_whole_is_refused(card: Card, wheel: Any, make: Callable[[Any], Path], why: str) -> None:
    path = make(wheel)
    with refused(why, FileError):
        load_published(path, like=card.name)
    assert not place(card).exists()


def cut(path: Path, share: float) -> Path:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    return path


def damaged(path: Path) -> Path:
    raw = path.read_bytes()
    middle = len(raw) // 2
    path.write_bytes(raw[:middle] + bytes(64) + raw[middle + 64 :])
    return path


# --- flux and pictures ------------------------------------------------------------------------------------------------


@given(st.floats(-5, 30, width=32))
def test_flux_and_back(y: float) -> None:
    values = torch.tensor([y])
    assert float(from_flux(flux(values))) == pytest.approx(y, abs=1e-5)
    assert float(flux(values)) == pytest.approx(np.expm1(0.1 * y), rel=1e-5, abs=1e-7)


def test_pictures_are_stretched_and_nothing_else_is_clipped() -> None:
    images = CATALOGUE["galaxies-hsc-64"].images
    y = torch.linspace(-3, 20, 64).view(1, 1, 8, 8)
    assert torch.equal(images.clip(y), y) and torch.equal(images.values(y), flux(y))
    pixels = images.to_uint8(torch.cat([y, y + 5]))
    assert torch.equal(pixels[:1], images.to_uint8(y))  # one sample is one picture
    assert (pixels.flatten(1).diff() >= 0).all() and pixels.min() == 0 and pixels.max() == 255
    grey = images.to_uint8(from_flux(torch.tensor([0.0, 0.01, 0.05, 1.0, 7.0]).view(1, 1, 1, 5))).flatten().tolist()
    assert grey == [0, 14, 61, 255, 255]
    sky = CATALOGUE["galaxies-lsst-60"].images
    assert int(sky.to_uint8(from_flux(torch.ones(1, 1, 1, 1)))) == 0  # of an empty pixel


# --- learning and the command -----------------------------------------------------------------------------------------


@pytest.fixture
def tiny(card: Card, wheel: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a small network that is had."""
    monkeypatch.setenv("DODE_GALAXYGRAD", str(wheel()))
    return card.name


def test_its_blocks_are_its_own_features(tiny: str) -> None:
    model = dode.load(tiny)
    found = own_features(model)
    assert found.blocks == tuple(f"blocks.{k}" for k in range(4))
    images = 5 * torch.randn(6, *model.shape)
    assert fits.loss(model, "own").bound(model, images)(images).shape == (6, 8 * 8 + 4 * 64 * 4)  # type: ignore[attr-defined]


def run(command: str) -> int:
    return cli.main(shlex.split(command))


def test_distil_and_sample(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start = "--method gauss-newton --solver deis:variable=log_rho,basis=data --nfe 2 --images 8 --steps 1 --compare own"
    solver, png, npy = (tmp_path / f"g.{kind}" for kind in ("safetensors", "png", "npy"))
    assert run(f"distill --checkpoint {tiny} {start} --out {solver}") == 0
    assert "sample --solver" in capsys.readouterr().out
    for file in (png, npy):
        assert run(f"sample --solver {solver} --seeds 3-5 --columns 3 --out {file}") == 0
    values = np.load(npy)
    assert values.dtype == np.float32 and values.shape == (3, 1, 8, 8)
    images = CATALOGUE[tiny].images
    assert torch.equal(tiles(png, 8), images.to_uint8(from_flux(torch.tensor(values))))
    model, table = dode.load(tiny), dode.Tableau.load(solver)
    samples = dode.sample(model, table, dode.initial_noise(model.shape, range(3, 6)))
    np.testing.assert_array_equal(values, flux(samples).numpy())


def test_fits_files(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"sample --checkpoint {tiny} --solver ddim --nfe 2 --seeds 3,7 --out"
    if importlib.util.find_spec("astropy") is None:
        assert run(f"{command} {tmp_path / 'g.fits'}") == 2
        assert capsys.readouterr().err == "dode: a FITS file needs astropy: pip install 'dode[galaxies]'\n"
        return
    from astropy.io import fits as files

    assert [run(f"{command} {tmp_path / f'g.{kind}'}") for kind in ("fits", "npy")] == [0, 0]
    with files.open(tmp_path / "g.fits") as found:
        np.testing.assert_array_equal(found[0].data, np.load(tmp_path / "g.npy")[:, 0])
        assert found[1].data["seed"].tolist() == [3, 7]


def test_the_command_without_the_package(card: Card, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"sample --checkpoint {card.name} --solver ddim --nfe 2 --seeds 0 --out {tmp_path / 'g.png'}") == 2
    error = capsys.readouterr().err
    assert REQUIRED in error and error.count("\n") == 1
    assert run(f"sample --checkpoint {card.name} --solver ddim --nfe 2 --seeds 0 --out g.txt") == 2
    assert "must end in .png or .npy or .fits" in capsys.readouterr().err
