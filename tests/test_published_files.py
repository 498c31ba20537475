"""Files of published networks become denoisers, or are refused in one line."""

from __future__ import annotations

import io
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from published_parts import SIGMA, SMALL, X, expand, network, precond, refuses, state, tree
from test_pickles import Nvidia, Trap
from torch import nn

import dode
from dode.denoisers import ConsistencyPrediction, EDMPrediction, NoisePrediction, VEPrediction
from dode.schedules import cosine
from dode.zoo import Card, ClassifierFreeGuidance, download, load_noisy_classifier, load_published
from dode.zoo.families.openai import EMBEDDING
from dode.zoo.unet import UNet


@pytest.mark.parametrize("kind", ["vp", "ve", "adm"])
def test_an_edm_pickle(tmp_path: Path, nvidia: Nvidia, kind: str) -> None:
    """``D = c_skip x + c_out F(c_in x, ln(sigma) / 4)``, with one-hot classes and no augmentation."""
    body = network(kind, label_dim=10)
    saved = precond(nvidia, kind, more=dict(label_dim=10), said=dict(dropout=0.13))
    path = nvidia.dump(tmp_path / "tiny.pkl", dict(ema=saved, augment_pipe=None))
    model = load_published(path, labels=[3, 9])
    assert isinstance(model, EDMPrediction) and model.shape == (3, 8, 8) and model.name == "tiny"
    assert (model.sigma_min, model.sigma_max, model.sigma_data) == (0.002, 80.0, 0.5)
    s = expand(SIGMA)
    for labels, classes in (("none", None), ([3, 9], torch.tensor([3, 9]))):  # no class: zeros
        raw = body(X / (s**2 + 0.25).sqrt(), SIGMA.log().float() / 4, classes)
        expected = 0.25 / (s**2 + 0.25) * X + 0.5 * s / (s**2 + 0.25).sqrt() * raw
        torch.testing.assert_close(load_published(path, labels=labels)(X, SIGMA), expected, rtol=1e-4, atol=1e-5)
    assert not any(p.requires_grad for p in model.network.parameters()) and not model.network.training
    alone = load_published(path, labels=3)
    torch.testing.assert_close(alone(X, 0.3)[0], expected[0], rtol=1e-4, atol=1e-5)
    table = dode.solvers.ddim(alone.grid(3))  # solvers need nothing else
    learned = dode.distillation.d_ode(alone, table, dode.initial_noise(model.shape, range(4)), scale=2)
    assert torch.isfinite(dode.sample(alone, learned, dode.initial_noise(model.shape, range(100, 103)))).all()


def test_the_other_preconditionings(tmp_path: Path, nvidia: Nvidia) -> None:
    s = expand(SIGMA)
    facts: dict[str, Any] = dict(beta_d=19.9, beta_min=0.1, M=1000, epsilon_t=1e-5, sigma_min=0.001, sigma_max=152.0)
    model = load_published(nvidia.dump(tmp_path / "vp.pkl", dict(ema=precond(nvidia, "vp", "VPPrecond", **facts))))
    t = ((0.1**2 + 2 * 19.9 * (1 + SIGMA**2).log()).sqrt() - 0.1) / 19.9
    assert isinstance(model, NoisePrediction) and 0.01 < model.sigma_min < 0.011 and 152 < model.sigma_max < 153
    raw = network("vp")(X / (1 + s**2).sqrt(), (999 * t).float())
    torch.testing.assert_close(model(X, SIGMA), X - s * raw, rtol=1e-4, atol=1e-4)

    saved = precond(nvidia, "ve", "VEPrecond", sigma_min=0.02, sigma_max=100)  # a module alone
    model = load_published(nvidia.dump(tmp_path / "ve.pkl", saved))
    assert isinstance(model, VEPrediction) and (model.sigma_min, model.sigma_max) == (0.02, 100.0)
    raw = network("ve")(X, (SIGMA / 2).log().float())
    torch.testing.assert_close(model(X, SIGMA), X + s * raw, rtol=1e-4, atol=1e-4)

    more = dict(out_channels=6)  # of which the first three are the noise
    facts = dict(C_1=0.001, C_2=0.008, M=1000, sigma_min=0.0064, sigma_max=2e4)
    saved = precond(nvidia, "adm", "iDDPMPrecond", more, **facts)
    saved.state["_buffers"] = dict(u=torch.zeros(1001))
    model = load_published(nvidia.dump(tmp_path / "iddpm.pkl", dict(ema=saved)))
    level = float(cosine(1000).sigmas[400])
    raw = network("adm", **more)(X / (1 + level**2) ** 0.5, torch.full((2,), 400.0))
    torch.testing.assert_close(model(X, level), X - level * raw, rtol=1e-4, atol=1e-4)


def test_an_edm2_pickle(tmp_path: Path, nvidia: Nvidia) -> None:
    """As their training writes it: half precision, an ``EasyDict``; the network's arguments are its own."""
    tensors = {name: value.half() for name, value in state("edm2").items()}
    outer, body = nn.Module(), tree(tensors)
    outer.add_module("unet", body)
    outer.add_module("logvar_linear", nn.Linear(128, 1, bias=False))
    saved = nvidia.module(outer, "Precond", use_fp16=True, **SMALL["edm2"])
    saved.state |= dict(img_resolution=8, img_channels=3, label_dim=10, use_fp16=True, sigma_data=0.6)
    saved.state["_modules"]["unet"] = nvidia.module(body, "UNet", **SMALL["edm2"], dropout=0.1)
    path = nvidia.dump(tmp_path / "tiny.pkl", nvidia.easy(encoder=nvidia.persistent("Encoder", {}), ema=saved))
    model = load_published(path, labels=[3, 9])
    assert isinstance(model, EDMPrediction) and (model.sigma_min, model.sigma_max) == (0.002, 80.0)
    s = expand(SIGMA)
    raw = network("edm2", tensors)(X / (s**2 + 0.36).sqrt(), SIGMA.log().float() / 4, torch.tensor([3, 9]))
    expected = 0.36 / (s**2 + 0.36) * X + 0.6 * s / (s**2 + 0.36).sqrt() * raw
    torch.testing.assert_close(model(X, SIGMA), expected, rtol=1e-4, atol=1e-5)
    saved.state["_modules"]["unet"] = nvidia.module(body, "UNet", **SMALL["edm2"] | dict(num_blocks=2))
    refuses("does not fit UNet: no 'dec.4x4_block2", nvidia.dump(path, nvidia.easy(ema=saved)))
    saved.state["_modules"]["unet"] = nvidia.module(body, "SongUNet", **SMALL["edm2"])
    refuses("network 'SongUNet'", nvidia.dump(path, nvidia.easy(ema=saved)))


def test_edm_pickles_that_do_not_fit(tmp_path: Path, nvidia: Nvidia) -> None:
    write = lambda saved: nvidia.dump(tmp_path / "n.pkl", dict(ema=saved))  # noqa: E731
    for said, why in (
        (dict(model_channels=64), "does not fit SongUNet: 'dec.4x4_block0.affine.bias' has shape (64,), not (128,) ("),
        (dict(num_blocks=2), "does not fit SongUNet: no 'dec.4x4_block2.affine.bias' ("),
        (dict(augment_dim=0), "does not fit SongUNet: 'map_augment.weight' has no place"),
        *((said, "dode cannot build") for said in (
            dict(rho=3), dict(channel_mult=()), dict(channel_mult="wide"), dict(decoder_type="skip"),
            dict(out_channels=2))),
    ):  # fmt: skip
        refuses(why, write(precond(nvidia, "vp", said=said)))
    refuses("holds Precond in a form that dode does not know: 'unet'", write(precond(nvidia, "vp", "Precond")))
    refuses("preconditioning 'Postcond'", write(precond(nvidia, "vp", "Postcond")))
    saved = precond(nvidia, "vp")
    refuses("edm-cifar10-32x32-uncond-vp has others", write(saved), like="edm-cifar10-32x32-uncond-vp")
    saved.state["_modules"]["model"].kind = "UNet"
    refuses("network 'UNet'", write(saved))
    refuses("'sigma_max'", write(precond(nvidia, "vp", sigma_min=0)))
    refuses("in a form that dode does not know", write(nvidia.module(nn.Linear(2, 2), "Linear")))


# --- state dictionaries ---------------------------------------------------------------------------------------------


class Folder:
    """Where a file is ``tiny.pt``, and "tiny" a card of the catalogue that says what it is."""

    def __init__(self, path: Path, rows: Callable[..., Card]) -> None:
        self.file, self.rows = path / "tiny.pt", rows

    def __call__(self, kind: str, like: str, saved: Any = None, classes: int = 0, **more: Any) -> Card:
        """A network of that kind, or what is ``saved`` in its place, with the rest of the card ``like``."""
        torch.save(state(kind, **more) if saved is None else saved, self.file)
        return self.rows("tiny", like, network=SMALL[kind] | more, file="tiny.pt", classes=classes)

    def predicts(self, body: UNet, card: Card, step: int, label: float) -> None:
        """The file holds this network: it predicts the noise, and is told ``label`` at a step of the chain."""
        level = float(card.schedule.sigmas[step])  # type: ignore[union-attr]
        raw = body(X / (1 + level**2) ** 0.5, torch.full((2,), label))
        model = load_published(self.file, like="tiny")
        assert isinstance(model, NoisePrediction) and model.name == "tiny" and model.schedule == card.schedule
        torch.testing.assert_close(model(X, level), X - level * raw, rtol=1e-4, atol=1e-4)


@pytest.fixture
def tiny(tmp_path: Path, rows: Callable[..., Card]) -> Folder:
    return Folder(tmp_path, rows)


def test_a_guided_checkpoint(tiny: Folder) -> None:
    """The first three of six channels, labels 0..1000 for 4000 steps."""
    card = tiny("guided", "iddpm-imagenet-64")
    tiny.predicts(network("guided"), card, 1200, 300.0)
    torch.save(state("guided"), tiny.file, _use_new_zipfile_serialization=False)
    tiny.predicts(network("guided"), card, 1200, 300.0)
    model = load_published(tiny.file)  # the file's name says which
    download.cache().mkdir()
    tiny.file.rename(download.place(card))
    torch.testing.assert_close(load_published("tiny")(X, 2.0), model(X, 2.0))  # by name, from the cache


def test_classes_of_a_guided_checkpoint(tiny: Folder) -> None:
    tiny("guided", "adm-imagenet-64", classes=10, num_classes=10)
    refuses("draws one of 10 classes; give labels=", tiny.file, error=ValueError)
    load = lambda labels: load_published(tiny.file, labels=labels)  # noqa: E731
    both, mixed = load(4)(X, 2.0), load([4, 5])(X, 2.0)
    torch.testing.assert_close(load([4, 4])(X, 2.0), both)
    assert torch.equal(mixed[0], both[0]) and not torch.allclose(mixed[1], both[1])


def test_an_own_run_of_another_size(tiny: Folder) -> None:
    """``network=`` has the flags that differ from those of the card's program; everything else is the card's."""
    torch.save(state("guided", num_classes=10), tiny.file)
    flags = SMALL["guided"] | dict(num_classes=10)
    model = load_published(tiny.file, like="iddpm-imagenet-64", labels=[3, 9], network=flags)
    body, level = network("guided", state("guided", num_classes=10), num_classes=10), float(model.schedule.sigmas[1200])
    assert (model.shape, model.name, model.conditions) == ((3, 8, 8), "tiny", 2)
    raw = body(X / (1 + level**2) ** 0.5, torch.full((2,), 300.0), torch.tensor([3, 9]))
    torch.testing.assert_close(model(X, level), X - level * raw, rtol=1e-4, atol=1e-4)
    torch.save(state("ddpm"), tiny.file)
    assert load_published(tiny.file, like="ddpm-cifar10-32", network=SMALL["ddpm"]).shape == (3, 8, 8)
    refuses("does not fit UNetModel", tiny.file, like="adm-imagenet-64", network=flags)
    refuses("unexpected keyword argument 'chanels'", tiny.file, like="adm-imagenet-64", network=dict(chanels=3))
    for like in ("edm-cifar10-32x32-cond-vp", "google/ddpm-cifar10-32"):
        refuses("leave out network=", tiny.file, like=like, network={}, error=ValueError)
    refuses("leave out network=", tiny.file.with_suffix(".pkl"), network={}, error=ValueError)


def test_a_first_multiplier_of_a_half(tiny: Folder) -> None:
    """The 512 x 512 networks begin with half the channels; the sinusoids and the embedding do not."""
    more = dict(channel_mult=(0.5, 1), num_channels=64)
    card = tiny("guided", "adm-imagenet-256-uncond", **more)
    tiny.predicts(network("guided", **more), card, 250, 250.0)
    found = state("guided", **more)
    assert found["input_blocks.0.0.weight"].shape == (32, 3, 3, 3) and found["time_embed.0.weight"].shape == (256, 64)


@pytest.mark.parametrize(("like", "distilled"), [("edm-lsun-bedroom-256", False), ("cd-lsun-cat-256-l2", True)])
def test_a_consistency_model(tiny: Folder, like: str, distilled: bool) -> None:
    """Their program tells the network 250 ln(sigma); a distilled one leaves a sample at ``sigma_min`` as it is."""
    more = dict(learn_sigma=False, use_new_attention_order=True, use_scale_shift_norm=False)
    tiny("guided", like, **more)
    model, low = load_published(tiny.file, like="tiny"), 0.002 if distilled else 0.0
    s, body = expand(SIGMA), network("guided", state("guided", **more), **more)
    raw = body(X / (s**2 + 0.25).sqrt(), 250 * SIGMA.log().float())
    expected = 0.25 / ((s - low) ** 2 + 0.25) * X + 0.5 * (s - low) / (s**2 + 0.25).sqrt() * raw
    torch.testing.assert_close(model(X, SIGMA), expected, rtol=1e-4, atol=1e-4)
    assert isinstance(model, ConsistencyPrediction) == distilled
    assert torch.equal(model(X, 0.002), X) == distilled


@pytest.mark.parametrize("form", ["with averages", "without", "alone"])
def test_ddim_s_checkpoint(tiny: Folder, form: str) -> None:
    """[network, optimizer, epoch, step, averages]; the network was trained inside DataParallel."""
    optimizer = torch.optim.Adam([nn.Parameter(torch.ones(3))]).state_dict()
    states = [{f"module.{k}": v for k, v in state("ddpm").items()}, optimizer, 3, 1000, state("ddpm", seed=5)]
    card = tiny("ddpm", "ddim-celeba-64", {"with averages": states, "without": states[:4], "alone": states[4]}[form])
    tiny.predicts(network("ddpm", state("ddpm", seed=0 if form == "without" else 5)), card, 250, 250.0)


LATENT: dict[str, Any] = dict(learn_sigma=False, use_scale_shift_norm=False)


def training_state(averaged: bool, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """As latent diffusion's program writes it: the state of everything, and objects of Lightning's.

    That program is not there when its states are read; its classes would leave a trace.
    """
    found = {f"model.diffusion_model.{name}": value for name, value in state("guided", **LATENT).items()}
    found |= {"betas": torch.rand(1000), "first_stage_model.decoder.conv_in.weight": torch.rand(4, 4)}
    for name, value in state("guided", seed=5, **LATENT).items() if averaged else ():
        found["model_ema." + f"diffusion_model.{name}".replace(".", "")] = value
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    exec("class ModelCheckpoint:\n    def __reduce__(self): return ModelCheckpoint, ()", vars(module))
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
            patch.setitem(sys.modules, name, ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        callback = module.ModelCheckpoint
        return saved(dict(state_dict=found, global_step=3, callbacks={callback: dict(best=callback())}))


def saved(found: object) -> bytes:
    file = io.BytesIO()
    torch.save(found, file)
    return file.getvalue()


def zipped(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, raw in members.items():
            archive.writestr(name.replace("_", "."), raw)


@pytest.mark.parametrize("averaged", [True, False])
def test_latent_diffusion_s_training_state(
    tiny: Folder, rows: Callable[..., Card], monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    """Out of its zip file, by name or by path: the averaged denoiser, and nothing of the program that wrote it."""
    card = rows("tiny", "ldm-lsun-bedroom-256", network=SMALL["guided"] | LATENT, file="tiny.zip")
    written, place = training_state(averaged, monkeypatch), download.place(card)
    place.parent.mkdir()
    zipped(place, model_ckpt=written)
    tiny.file.write_bytes(written)
    body = network("guided", state("guided", seed=5 if averaged else 0, **LATENT), **LATENT)
    tiny.predicts(body, card, 250, 250.0)
    model = load_published("tiny")
    torch.testing.assert_close(model(X, 2.0), load_published(tiny.file, like="tiny")(X, 2.0))
    assert model.schedule.config["kind"] == "scaled_linear" and "pytorch_lightning" not in sys.modules
    assert sorted(path.name for path in place.parent.iterdir()) == ["tiny.ckpt", "tiny.zip"]


def test_a_training_state_with_omegaconf_s_containers(
    tiny: Folder, rows: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each names ``typing.Any``, ``collections.defaultdict`` and types of Python's; none is looked up, none is made."""
    rows("tiny", "ldm-lsun-bedroom-256", network=SMALL["guided"] | LATENT, file="tiny.ckpt")
    module, nodes = ModuleType("omegaconf.dictconfig"), ModuleType("omegaconf.nodes")
    module.DictConfig = type("DictConfig", (), dict(__module__=module.__name__))  # type: ignore[attr-defined]
    nodes.AnyNode = type("AnyNode", (), dict(__module__=nodes.__name__))  # type: ignore[attr-defined]
    written, cache = module.DictConfig(), defaultdict(dict, oc={"seed": 3})
    vars(written).update(ref_type=Any, object_type=dict, element_type=int, flags=[list, str], resolver_cache=cache)
    vars(written).update(_content=dict(size=nodes.AnyNode()))
    found = {f"model.diffusion_model.{name}": value for name, value in state("guided", **LATENT).items()}
    whole = dict(state_dict=found, hyper_parameters=written, lr_schedulers=[dict(_last_lr=[np.float64(1e-4)])])
    with monkeypatch.context() as patch:
        for made in (ModuleType("omegaconf"), module, nodes):
            patch.setitem(sys.modules, made.__name__, made)
        torch.save(whole, tiny.file)
        torch.save(whole | dict(more=eval), tiny.file.with_name("more.pt"))
    model = load_published(tiny.file, like="tiny")
    label = model.schedule.label(torch.tensor([2.0], dtype=torch.float64)).float()
    expected = network("guided", state("guided", **LATENT), **LATENT)(X / 5**0.5, label)
    torch.testing.assert_close(model(X, 2.0), X - 2 * expected, rtol=1e-4, atol=1e-4)
    refuses("GLOBAL eval", tiny.file.with_name("more.pt"), like="tiny")


def test_latent_diffusion_with_classes(tiny: Folder, rows: Callable[..., Card]) -> None:
    """Its embedding of classes is beside the denoiser; its last row is that of none, and guides."""
    card = rows("tiny", "ldm-imagenet-256", network=SMALL["latent"], file="tiny.ckpt", classes=10)
    found = {("" if k == EMBEDDING else "model.diffusion_model.") + k: v for k, v in state("latent").items()}
    download.cache().mkdir()
    torch.save(dict(state_dict=found | {"first_stage_model.a": torch.ones(1)}), download.place(card))
    model, body = load_published("tiny", labels=[3, 9]), network("latent")
    level = float(model.schedule.sigmas[250])
    drawn, none = (
        X - level * body(X / (1 + level**2) ** 0.5, torch.full((2,), 250.0), classes)
        for classes in (torch.tensor([3, 9]), None)
    )
    torch.testing.assert_close(model(X, level), drawn, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(load_published("tiny", labels="none")(X, level), none, rtol=1e-4, atol=1e-4)
    guided = ClassifierFreeGuidance(model, scale=1.5)
    torch.testing.assert_close(guided(X, level), 1.5 * drawn - 0.5 * none, rtol=1e-4, atol=1e-4)
    named = dode.load("tiny@1.5")
    assert isinstance(named, ClassifierFreeGuidance) and (named.name, named.conditions) == ("tiny@1.5", 10)
    place = next(k for k in range(10) if named.of([k]).conditioning(1, named.device)["classes"] == 3)
    torch.testing.assert_close(named.of([place])(X[:1], level), guided(X, level)[:1])
    assert (guided.nfe, guided.scale, guided.shape) == (2, 1.5, (3, 8, 8)) and model.nfe == 1
    own = load_published(download.place(card), like="ldm-imagenet-256", labels=3, network=SMALL["latent"])
    torch.testing.assert_close(own(X, level)[0], drawn[0], rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="classifier-free guidance shifts the noise that a class has; tiny has none"):
        ClassifierFreeGuidance(NoisePrediction(body, (3, 8, 8), model.schedule, name="tiny"), scale=2)


def test_training_states_that_do_not_fit(
    tmp_path: Path, rows: Callable[..., Card], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows("tiny", "ldm-lsun-bedroom-256", network=SMALL["guided"] | LATENT, file="tiny.zip")
    path, one = tmp_path / "tiny.zip", {"a": torch.ones(1)}
    zipped(path, readme_txt=b"hello")
    refuses("holds no model.ckpt, but readme.txt", path)
    for raw, why in (
        (saved(one), "has no 'state_dict' of tensors"), (saved(dict(state_dict=one)), "holds no denoiser"),
        (saved(dict(state_dict={"model.diffusion_model.a": torch.ones(1)})), "does not fit UNetModel: no "),
        (saved(dict(state_dict={"model.diffusion_model.middle_block.1.transformer_blocks.0.norm1.bias": one["a"]})),
         "attends to a text or a layout, whose encoder is not read here; diffusers converts such files"),
        (saved(dict(state_dict=one, callbacks=Trap(Path.touch, tmp_path / "sprung"))), "GLOBAL"),
    ):  # fmt: skip
        zipped(path, model_ckpt=raw)
        refuses(why, path)
    assert not (tmp_path / "sprung").exists()
    whole = training_state(False, monkeypatch)
    zipped(path, model_ckpt=whole)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 255
    path.write_bytes(damaged)
    (tmp_path / "tiny.ckpt").unlink()
    refuses("is damaged", path)
    assert not (tmp_path / "tiny.ckpt").exists() and not list(tmp_path.glob(".tiny*"))


def test_torch_files_that_do_not_fit(tiny: Folder) -> None:
    refuses("does not exist", tiny.file, like="ddim-celeba-64")
    given = state("ddpm")
    tiny("ddpm", "ddim-celeba-64")
    whole = tiny.file.read_bytes()
    for raw in (b"", b"hello", b"PK\x03\x04", whole[:-1000]):
        tiny.file.write_bytes(raw)
        refuses("is not a file of weights alone", tiny.file)
    sprung = tiny.file.with_name("sprung")
    for new in (True, False):  # a trap in the format of today and in that of before 1.6
        torch.save({"conv_in.bias": Trap(Path.touch, sprung)}, tiny.file, _use_new_zipfile_serialization=new)
        refuses("GLOBAL", tiny.file)
        assert not sprung.exists()
    for other, why in (
        *((other, "does not hold the weights of one network") for other in ([1, 2], {}, [], 3, given | {"more": 3})),
        ({k: v for k, v in given.items() if k != "conv_in.bias"}, "does not fit Model: no 'conv_in.bias'"),
        (given | {"foreign": torch.ones(1)}, "'foreign' has no place"),
        (given | {"conv_in.bias": torch.ones(32).long()}, "'conv_in.bias' holds torch.int64"),
        (given | {"conv_in.bias": torch.ones(3)}, "'conv_in.bias' has shape (3,), not (32,)"),
        (given | {"mid.attn_1.k.weight": torch.ones(64, 3)}, "'mid.attn_1.k.weight' has shape (64, 3), not (64, 64"),
    ):  # fmt: skip
        torch.save(other, tiny.file)
        refuses(why, tiny.file)
    refuses("say which network", tiny.file.rename(tiny.file.with_name("unknown.pth")), error=ValueError)


def test_names(rows: Callable[..., Card]) -> None:
    refuses("no published checkpoint named 'edm-cifar'; the nearest: edm-", "edm-cifar", error=ValueError)
    refuses("no published checkpoint named 'x'", "some.pt", error=ValueError, like="x")
    wanted = "pipeline of diffusers: dode.from_diffusers(diffusers.DiffusionPipeline.from_pretrained('goog"
    refuses(wanted, "google/ddpm-cifar10-32", error=ValueError)
    refuses(
        "is a pipeline of diffusers, and some.pt is a file",
        "some.pt",
        error=ValueError,
        like="CompVis/ldm-celebahq-256",
    )
    row = rows("tiny", "adm-imagenet-64-classifier", file="tiny.pt", url="http://127.0.0.1:9/tiny.pt")
    refuses("is a classifier; load it with", "tiny", error=ValueError)  # before anything is fetched
    assert not download.place(row).parent.exists()
    with pytest.raises(ValueError, match="not known as a classifier"):
        load_noisy_classifier("some.pt", like="ddim-celeba-64")


def test_device_and_dtype(tiny: Folder) -> None:
    tiny("ddpm", "ddim-celeba-64", {name: value.half() for name, value in state("ddpm").items()})
    model = load_published(tiny.file)
    assert next(model.network.parameters()).dtype == torch.float32  # stored in half precision, widened
    half = load_published(tiny.file, dtype=torch.bfloat16)
    assert half(X.double(), 2.0).dtype == torch.float64
    auto = load_published(tiny.file, autocast=torch.bfloat16)
    for other in (half, auto):
        torch.testing.assert_close(other(X, 2.0), model(X, 2.0), rtol=0.1, atol=0.5)
    refuses("cannot use device 'nowhere'", tiny.file, "nowhere", error=ValueError)
