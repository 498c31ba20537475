"""Files of published networks become denoisers, or are refused in one line."""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from published_parts import (
    ADM,
    DDPM,
    GUIDED,
    SIGMA,
    VE,
    VP,
    X,
    expand,
    precond,
    randomised,
    refuses,
)
from test_pickles import Nvidia
from torch import nn

import dode
from dode.denoisers import EDMPrediction, NoisePrediction, VEPrediction
from dode.schedules import VPDiscrete, cosine
from dode.zoo import Card, download, load_noisy_classifier, load_published
from dode.zoo.ddpm import Model
from dode.zoo.loading import BODIES
from dode.zoo.nvidia import DhariwalUNet, SongUNet
from dode.zoo.openai import UNetModel


@pytest.mark.parametrize("architecture", ["vp", "ve", "adm"])
def test_an_edm_pickle(tmp_path: Path, nvidia: Nvidia, architecture: str) -> None:
    """``D = c_skip x + c_out F(c_in x, ln(sigma) / 4)``, with one-hot classes and no augmentation."""
    config = dict(vp=VP, ve=VE, adm=ADM)[architecture] | dict(label_dim=10, dropout=0.13)
    body = BODIES["DhariwalUNet" if architecture == "adm" else "SongUNet"](**config)
    randomised(body)
    facts = dict(sigma_min=0, sigma_max=float("inf"), sigma_data=0.5, label_dim=10)
    saved = precond(nvidia, body, "EDMPrecond", config=config, **facts)
    path = nvidia.dump(tmp_path / "tiny.pkl", dict(ema=saved, augment_pipe=None))
    model = load_published(path, labels=[3, 9])
    assert isinstance(model, EDMPrediction) and model.shape == (3, 8, 8) and model.name == "tiny"
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.002, 80.0, 0.5)
    s = expand(SIGMA)
    with torch.no_grad():
        raw = body(X / (s**2 + 0.25).sqrt(), SIGMA.log().float() / 4, torch.tensor([3, 9]))
    expected = 0.25 / (s**2 + 0.25) * X + 0.5 * s / (s**2 + 0.25).sqrt() * raw
    torch.testing.assert_close(model(X, SIGMA), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(load_published(path, labels=3)(X, 0.3)[0], expected[0], rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in model.network.parameters()) and not model.network.training
    assert model.nfe == 1


def test_the_other_preconditionings(tmp_path: Path, nvidia: Nvidia) -> None:
    s = expand(SIGMA)
    body = SongUNet(**VP)
    randomised(body)
    facts = dict(beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5, sigma_min=0.001, sigma_max=152.0)
    path = nvidia.dump(tmp_path / "vp.pkl", dict(ema=precond(nvidia, body, "VPPrecond", config=VP, **facts)))
    model = load_published(path)
    t = ((0.1**2 + 2 * 19.9 * (1 + SIGMA**2).log()).sqrt() - 0.1) / 19.9
    assert isinstance(model, NoisePrediction) and 0.01 < model.sigma_min < 0.011 and 152 < model.sigma_max < 153
    raw = body(X / (1 + s**2).sqrt(), (999 * t).float())
    torch.testing.assert_close(model(X, SIGMA), X - s * raw, rtol=1e-4, atol=1e-4)

    body = SongUNet(**VE)
    randomised(body)
    facts = dict(sigma_min=0.02, sigma_max=100)
    model = load_published(nvidia.dump(tmp_path / "ve.pkl", precond(nvidia, body, "VEPrecond", config=VE, **facts)))
    assert isinstance(model, VEPrediction) and (model.sigma_min, model.sigma_max) == (0.02, 100.0)
    raw = body(X, (SIGMA / 2).log().float())
    torch.testing.assert_close(model(X, SIGMA), X + s * raw, rtol=1e-4, atol=1e-4)

    config = ADM | dict(out_channels=6)
    body = DhariwalUNet(**config)
    randomised(body)
    facts = dict(C_1=0.001, C_2=0.008, M=1000, sigma_min=0.0064, sigma_max=2e4)
    saved = precond(nvidia, body, "iDDPMPrecond", config=config, **facts)
    saved.state["_buffers"] = dict(u=torch.zeros(1001))
    model = load_published(nvidia.dump(tmp_path / "iddpm.pkl", dict(ema=saved)))
    level = float(cosine(1000).sigmas[400])
    raw = body(X / (1 + level**2) ** 0.5, torch.full((2,), 400.0))[:, :3]
    torch.testing.assert_close(model(X, level), X - level * raw, rtol=1e-4, atol=1e-4)


def test_edm_pickles_that_do_not_fit(tmp_path: Path, nvidia: Nvidia) -> None:
    facts = dict(sigma_min=0, sigma_max=float("inf"), sigma_data=0.5)
    body, path = SongUNet(**VP), tmp_path / "n.pkl"
    write = lambda saved: nvidia.dump(path, dict(ema=saved))  # noqa: E731
    saved = precond(nvidia, body, "EDMPrecond", config=VP | dict(model_channels=64), **facts)
    refuses("does not fit SongUNet: 'dec.4x4_block0.affine.bias' has shape (64,), not (128,) (", write(saved))
    saved = precond(nvidia, body, "EDMPrecond", config=VP | dict(num_blocks=2), **facts)
    refuses("does not fit SongUNet: no 'dec.4x4_block2.affine.bias' (", write(saved))
    saved = precond(nvidia, body, "EDMPrecond", config=VP | dict(augment_dim=0), **facts)
    refuses("does not fit SongUNet: 'map_augment.weight' has no place", write(saved))
    for config in (dict(rho=3), dict(channel_mult=()), dict(channel_mult="wide"), dict(encoder_type="skip")):
        saved = precond(nvidia, body, "EDMPrecond", config=VP | config, **facts)
        refuses("dode cannot build", write(saved))
    refuses("preconditioning 'Precond'", write(precond(nvidia, body, "Precond", config=VP, **facts)))
    saved = precond(nvidia, body, "EDMPrecond", config=VP, **facts)
    saved.state["_modules"]["model"].kind = "UNet"
    refuses("network 'UNet'", write(saved))
    saved = precond(nvidia, body, "EDMPrecond", config=VP, sigma_min=0)
    refuses("'sigma_max'", write(saved))
    refuses("in a form that dode does not know", write(nvidia.module(nn.Linear(2, 2), "Linear")))
    saved = precond(nvidia, body, "EDMPrecond", config=VP, **facts)
    refuses("edm-cifar10-32x32-uncond-vp has others", write(saved), like="edm-cifar10-32x32-uncond-vp")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_guided_checkpoint(tmp_path: Path, rows: Callable[..., Card], zipped: bool) -> None:
    """The first three of six channels, labels 0..1000 for 4000 steps."""
    row = rows("tiny", "iddpm-imagenet-64", network=GUIDED, file="tiny.pt")
    body = UNetModel(**GUIDED)
    randomised(body)
    path = tmp_path / "mine.pt"
    torch.save(body.state_dict(), path, _use_new_zipfile_serialization=zipped)
    model = load_published(path, like="tiny")
    assert isinstance(model, NoisePrediction) and model.name == "tiny" and model.schedule == row.schedule
    level = float(row.schedule.sigmas[1200])
    with torch.no_grad():
        raw = body(X / (1 + level**2) ** 0.5, torch.full((2,), 300.0))
    assert raw.shape == (2, 6, 8, 8)
    torch.testing.assert_close(model(X, level), X - level * raw[:, :3], rtol=1e-4, atol=1e-4)
    part = model.affine(X, level)
    torch.testing.assert_close(part.raw, raw[:, :3], rtol=1e-4, atol=1e-5)
    download.cache().mkdir()
    path.rename(download.place(row))
    torch.testing.assert_close(load_published("tiny")(X, level), model(X, level))  # by name, from the cache


def test_classes_of_a_guided_checkpoint(tmp_path: Path, rows: Callable[..., Card]) -> None:
    network = GUIDED | dict(num_classes=10)
    rows("tiny", "adm-imagenet-64", network=network, file="tiny.pt", classes=10)
    body = UNetModel(**network)
    randomised(body)
    torch.save(body.state_dict(), tmp_path / "tiny.pt")
    refuses("draws one of 10 classes; give labels=", tmp_path / "tiny.pt", error=ValueError)
    load = lambda labels: load_published(tmp_path / "tiny.pt", labels=labels)  # noqa: E731  the file's name says which
    both, mixed = load(4)(X, 2.0), load([4, 5])(X, 2.0)
    torch.testing.assert_close(load([4, 4])(X, 2.0), both)
    assert torch.equal(mixed[0], both[0]) and not torch.allclose(mixed[1], both[1])


def test_consistency_s_edm_checkpoint(tmp_path: Path, rows: Callable[..., Card]) -> None:
    """EDM's preconditioning with labels 250 ln(sigma)."""
    flags = dict(learn_sigma=False, flat_attention=False, use_new_attention_order=True, use_scale_shift_norm=False)
    rows("tiny", "edm-lsun-bedroom-256", network=GUIDED | flags, file="tiny.pt")
    body = UNetModel(**GUIDED, **flags)
    randomised(body)
    torch.save(body.state_dict(), tmp_path / "tiny.pt")
    model = load_published(tmp_path / "tiny.pt")
    assert isinstance(model, EDMPrediction)
    s = expand(SIGMA)
    raw = body(X / (s**2 + 0.25).sqrt(), 250 * SIGMA.log().float())
    expected = 0.25 / (s**2 + 0.25) * X + 0.5 * s / (s**2 + 0.25).sqrt() * raw
    torch.testing.assert_close(model(X, SIGMA), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", ["with averages", "without", "alone"])
def test_ddim_s_checkpoint(tmp_path: Path, rows: Callable[..., Card], form: str) -> None:
    """[network, optimizer, epoch, step, averages]; the network was trained inside DataParallel."""
    row = rows("tiny", "ddim-celeba-64", network=DDPM, file="tiny.pth")
    body, averages = Model(**DDPM), Model(**DDPM)
    randomised(body), randomised(averages, seed=5)
    optimizer = torch.optim.Adam(body.requires_grad_(True).parameters())
    sum(p.sum() for p in body.parameters()).backward()
    optimizer.step()
    states = [nn.DataParallel(body).state_dict(), optimizer.state_dict(), 3, 1000, averages.state_dict()]
    saved = {"with averages": states, "without": states[:4], "alone": states[4]}[form]
    torch.save(saved, tmp_path / "tiny.pth")
    expected = body if form == "without" else averages
    model = load_published(tmp_path / "tiny.pth")
    assert model.schedule == VPDiscrete()
    level = float(row.schedule.sigmas[250])
    with torch.no_grad():
        raw = expected(X / (1 + level**2) ** 0.5, torch.full((2,), 250.0))
    torch.testing.assert_close(model(X, level), X - level * raw, rtol=1e-4, atol=1e-4)


LATENT: dict[str, Any] = GUIDED | dict(learn_sigma=False, use_scale_shift_norm=False)


def lightning_module() -> ModuleType:
    """A program that is not there when its states are read, whose classes would leave a trace."""
    found = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    exec("class ModelCheckpoint:\n    def __reduce__(self): return ModelCheckpoint, ()", vars(found))
    return found


def training_state(body: UNetModel, averages: UNetModel | None, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """As latent diffusion's program writes it: the state of everything, and objects of Lightning's."""
    state = {f"model.diffusion_model.{name}": value for name, value in body.state_dict().items()}
    state |= {"betas": torch.rand(1000), "first_stage_model.decoder.conv_in.weight": torch.rand(4, 4)}
    for name, value in averages.state_dict().items() if averages else ():
        state["model_ema." + f"diffusion_model.{name}".replace(".", "")] = value
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, "pytorch_lightning.callbacks", ModuleType("pytorch_lightning.callbacks"))
        module = lightning_module()
        patch.setitem(sys.modules, module.__name__, module)
        callback = module.ModelCheckpoint
        file = io.BytesIO()
        torch.save(dict(state_dict=state, global_step=3, callbacks={callback: dict(best=callback())}), file)
    return file.getvalue()


@pytest.mark.parametrize("averaged", [True, False])
def test_latent_diffusion_s_training_state(
    tmp_path: Path, rows: Callable[..., Card], monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    """Out of its zip file, by name or by path: the averaged denoiser, and nothing of the program that wrote it."""
    row = rows("tiny", "ldm-lsun-bedroom-256", network=LATENT, file="tiny.zip")
    body, averages = UNetModel(**LATENT), UNetModel(**LATENT)
    randomised(body), randomised(averages, seed=5)
    written = training_state(body, averages if averaged else None, monkeypatch)
    place = download.place(row)
    place.parent.mkdir()
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.ckpt", written)
    model = load_published("tiny")
    level = float(row.schedule.sigmas[250])
    with torch.no_grad():
        raw = (averages if averaged else body)(X / (1 + level**2) ** 0.5, torch.full((2,), 250.0))
    torch.testing.assert_close(model(X, level), X - level * raw, rtol=1e-4, atol=1e-4)
    assert model.schedule.config["kind"] == "scaled_linear" and "pytorch_lightning" not in sys.modules
    assert sorted(path.name for path in place.parent.iterdir()) == ["tiny.ckpt", "tiny.zip"]
    (tmp_path / "mine.ckpt").write_bytes(written)
    torch.testing.assert_close(load_published(tmp_path / "mine.ckpt", like="tiny")(X, level), model(X, level))


def test_training_states_that_do_not_fit(
    tmp_path: Path, rows: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows("tiny", "ldm-lsun-bedroom-256", network=LATENT, file="tiny.zip")
    path = tmp_path / "tiny.zip"

    def zipped(**members: bytes) -> None:
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in members.items():
                archive.writestr(name.replace("_", "."), raw)

    def saved(found: object) -> bytes:
        file = io.BytesIO()
        torch.save(found, file)
        return file.getvalue()

    refuses("does not exist", path)
    zipped(readme_txt=b"hello")
    refuses("holds no model.ckpt, but readme.txt", path)
    for raw, why in (
        (b"hello", "is not a file of weights alone"), (saved({"a": torch.ones(1)}), "has no 'state_dict' of tensors"),
        (saved(dict(state_dict={"a": torch.ones(1)})), "holds no denoiser"),
        (saved(dict(state_dict={"model.diffusion_model.a": torch.ones(1)})), "does not fit UNetModel: no "),
        (saved(dict(state_dict={"a": torch.ones(1)}, callbacks=Trap(tmp_path / "sprung"))), "GLOBAL"),
    ):  # fmt: skip
        zipped(model_ckpt=raw)
        refuses(why, path)
    assert not (tmp_path / "sprung").exists()
    whole = training_state(UNetModel(**LATENT), None, monkeypatch)
    zipped(model_ckpt=whole)
    damaged = bytearray(path.read_bytes())
    damaged[len(whole) // 2] ^= 255
    path.write_bytes(damaged)
    (tmp_path / "tiny.ckpt").unlink()
    refuses("is damaged", path)
    assert not (tmp_path / "tiny.ckpt").exists() and not list(tmp_path.glob(".tiny*"))


def test_torch_files_that_do_not_fit(tmp_path: Path, rows: Callable[..., Card]) -> None:
    rows("tiny", "ddim-celeba-64", network=DDPM, file="tiny.pth")
    path = tmp_path / "tiny.pth"
    refuses("does not exist", path)
    for raw in (b"", b"hello", b"PK\x03\x04"):
        path.write_bytes(raw)
        refuses("is not a file of weights alone", path)
    state = Model(**DDPM).state_dict()
    for other in ([1, 2], {}, [], 3, {"a": 1}, state | {"more": 3}):
        torch.save(other, path)
        refuses("does not hold the weights of one network", path)
    torch.save({k: v for k, v in state.items() if k != "conv_in.bias"}, path)
    refuses("does not fit Model: no 'conv_in.bias'", path)
    torch.save(state | {"foreign": torch.ones(1)}, path)
    refuses("'foreign' has no place", path)
    torch.save(state | {"conv_in.bias": torch.ones(3)}, path)
    refuses("'conv_in.bias' has shape (3,), not (32,)", path)
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    refuses("is not a file of weights alone", path)
    refuses("say which network", path.rename(tmp_path / "unknown.pth"), error=ValueError)


class Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_torch_file_runs_nothing(tmp_path: Path, rows: Callable[..., Card], zipped: bool) -> None:
    rows("tiny", "ddim-celeba-64", network=DDPM, file="tiny.pth")
    torch.save(
        {"conv_in.bias": Trap(tmp_path / "sprung")}, tmp_path / "tiny.pth", _use_new_zipfile_serialization=zipped
    )
    refuses("GLOBAL", tmp_path / "tiny.pth")
    assert not (tmp_path / "sprung").exists()


def test_names(rows: Callable[..., Card]) -> None:
    refuses("no published checkpoint named 'edm-cifar'; the nearest: edm-", "edm-cifar", error=ValueError)
    refuses("no published checkpoint named 'x'", "some.pt", error=ValueError, like="x")
    wanted = "pipeline of diffusers: dode.from_diffusers(diffusers.DiffusionPipeline.from_pretrained('goog"
    refuses(wanted, "google/ddpm-cifar10-32", error=ValueError)
    with pytest.raises(ValueError, match="is a pipeline of diffusers"):
        dode.zoo.digest("google/ddpm-cifar10-32")
    row = rows("tiny", "adm-imagenet-64-classifier", file="tiny.pt", url="http://127.0.0.1:9/tiny.pt")
    refuses("is a classifier; load it with", "tiny", error=ValueError)  # before anything is fetched
    assert not download.place(row).parent.exists()
    with pytest.raises(ValueError, match="not known as a classifier"):
        load_noisy_classifier("some.pt", like="ddim-celeba-64")


def test_device_and_dtype(tmp_path: Path, rows: Callable[..., Card]) -> None:
    rows("tiny", "ddim-celeba-64", network=DDPM, file="tiny.pth")
    body = Model(**DDPM)
    randomised(body)
    torch.save(body.half().state_dict(), tmp_path / "tiny.pth")
    model = load_published(tmp_path / "tiny.pth")
    assert next(model.network.parameters()).dtype == torch.float32  # stored in half precision, widened
    half = load_published(tmp_path / "tiny.pth", dtype=torch.bfloat16)
    assert half(X.double(), 2.0).dtype == torch.float64
    torch.testing.assert_close(half(X, 2.0), model(X, 2.0), rtol=0.1, atol=0.5)
    auto = load_published(tmp_path / "tiny.pth", autocast=torch.bfloat16)
    torch.testing.assert_close(auto(X, 2.0), model(X, 2.0), rtol=0.1, atol=0.5)
    refuses("cannot use device 'nowhere'", tmp_path / "tiny.pth", "nowhere", error=ValueError)


def test_solvers_need_nothing_else(tmp_path: Path, nvidia: Nvidia) -> None:
    """From a pickle to distilled samples."""
    body = SongUNet(**VP)
    randomised(body)
    facts = dict(sigma_min=0, sigma_max=float("inf"), sigma_data=0.5)
    path = nvidia.dump(tmp_path / "n.pkl", dict(ema=precond(nvidia, body, "EDMPrecond", config=VP, **facts)))
    model = load_published(path)
    table = dode.solvers.ddim(model.grid(3))
    learned = dode.distillation.d_ode(model, table, dode.initial_noise(model.shape, range(4)), scale=2)
    out = dode.sample(model, learned, dode.initial_noise(model.shape, range(100, 103)))
    assert out.shape == (3, 3, 8, 8) and torch.isfinite(out).all()
