"""The command line on somebody's own pipeline: what the library does, and one line for what cannot be done."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, DiTPipeline, DiTTransformer2DModel
from small import tiles
from test_cli import run

import dode
from dode import solvers
from dode.cli import models
from dode.cli.options import parser
from dode.diffusers import decode, from_diffusers
from dode.zoo.datasets import to_uint8
from tests.tiny import autoencoder, crossed, unet


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline in pixel space, one of classes and latents, and folders that are wrong in different ways."""
    folder = tmp_path_factory.mktemp("pipelines")
    chain = DDPMScheduler(prediction_type="v_prediction")
    pixels = DDPMPipeline(unet(1), chain)
    pixels.save_pretrained(folder / "pixels")
    transformer = DiTTransformer2DModel(2, 4, 4, 8, num_layers=1, sample_size=8, norm_num_groups=2)
    DiTPipeline(transformer, autoencoder(), DDIMScheduler()).save_pretrained(folder / "classes")
    DDPMPipeline(unet(2), chain).save_pretrained(folder / "two-channels")
    DDPMPipeline(unet(1, num_class_embeds=3), chain).save_pretrained(folder / "labels")
    pixels.save_pretrained(folder / "pickled", safe_serialization=False)
    (folder / "empty").mkdir()
    return folder


@pytest.fixture
def here(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with ``pipelines`` beside the command, and no hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pipelines").symlink_to(store)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_a_pipeline_in_pixel_space(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--diffusers pipelines/pixels --solver ipndm --order 2 --nfe 3 --images 4 --scale 2 --batch-size 2"
    assert run(f"distill {options} --out fitted.safetensors") == 0
    model = from_diffusers(DDPMPipeline.from_pretrained("pipelines/pixels"))
    assert model.name == "pixels" and model.prediction == "v"
    noise = dode.initial_noise(model.shape, range(4))
    table = dode.distillation.d_ode(
        model, solvers.ipndm(model.grid, nfe=3, order=2), noise, scale=2, batch_size=2, seeds=range(4)
    )
    assert (here / "fitted.safetensors").read_bytes() == table.save("library.safetensors").read_bytes()
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("sample with it: dode ")
    assert command.endswith("--seeds 1000-1003 --diffusers pipelines/pixels --out fitted.png")
    assert run(command) == 0
    assert capsys.readouterr().out == "wrote fitted.png: 4 images by d-ipndm, NFE 3\n"
    images = dode.sample(model, table, dode.initial_noise(model.shape, range(1000, 1004)))
    assert torch.equal(tiles(here / "fitted.png", 8), to_uint8(images))
    assert run("sample --diffusers pipelines/pixels --solver heun --nfe 3 --seeds 5 --out heun.png") == 0
    images = dode.sample(model, solvers.heun(model.grid, nfe=3), dode.initial_noise(model.shape, [5]))
    assert torch.equal(tiles(here / "heun.png", 8), to_uint8(images))


def test_a_pipeline_of_classes_guided_and_decoded(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = "--diffusers pipelines/classes --guidance-scale 3.0 --class-label 7 --class-label 9"
    assert run(f"distill {told} --solver ddim --nfe 2 --images 4 --scale 2 --out c.safetensors") == 0
    command = capsys.readouterr().out.splitlines()[-1].removeprefix("sample with it: dode ")
    assert run(command) == 0
    table = dode.Tableau.load("c.safetensors")
    assert table.metadata["class_label"] == [7, 9] and table.metadata["guidance_scale"] == 3.0
    assert table.metadata["model"] == "classes" and "prompt" not in table.metadata
    pipe = DiTPipeline.from_pretrained("pipelines/classes")
    model = from_diffusers(pipe, guidance_scale=3.0, conditions=[7, 9])
    images = decode(pipe, dode.sample(model, table, dode.initial_noise(model.shape, range(1000, 1008))))
    found = tiles(here / "c.png", 16)
    assert found.shape == (8, 3, 16, 16)
    assert (found.int() - to_uint8(images).int()).abs().max() <= 1
    assert run(f"sample {told} --solver c.safetensors --seeds 1003-1005 --batch-size 2 --out d.png") == 0
    assert (tiles(here / "d.png", 16).int() - found[3:6].int()).abs().max() <= 1  # each told its seed's class


@pytest.mark.parametrize("method", ["s4s", "gits"])
def test_other_methods(method: str, here: Path) -> None:
    told = "--diffusers pipelines/pixels --solver ddim --nfe 2 --images 4"
    assert run(f"distill {told} --method {method} --out o.safetensors") == 0
    assert dode.Tableau.load("o.safetensors").metadata["method"] == method


NOBODY = "nobody/nothing is no folder here"
FIT = "distill --solver ddim --nfe 2 --images 4 --out o.safetensors"
DRAW = "sample --solver ddim --nfe 2 --seeds 0 --out o.png"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (FIT, "one of the arguments --checkpoint --diffusers is required; see dode distill --help"),
        (f"{FIT} --diffusers nobody/nothing", f"{NOBODY}, and the hub gives no such pipeline; check"),
        (f"{FIT} --diffusers pipelines/empty", "pipelines/empty holds no pipeline that diffusers can load: Error no"),
        (f"{FIT} --diffusers pipelines/pickled", "pipelines/pickled holds no pipeline that diffusers can load"),
        (f"{FIT} --diffusers pipelines/pixels --prompt fox", "--prompt: DDPMPipeline takes no prompts; leave it out\n"),
        (f"{FIT} --diffusers pipelines/classes", "DiTPipeline is conditional: give --class-label\n"),
        (f"{FIT} --diffusers pipelines/classes --prompt fox", "--prompt: DiTPipeline takes no prompts; take --class-l"),
        (f"{FIT} --diffusers pipelines/classes --class-label -2", "DiTTransformer2DModel has the classes 0 to 1000, n"),
        (
            f"{FIT} --diffusers pipelines/labels --class-label 1 --guidance-scale 3",
            "--guidance-scale: DDPMPipeline has no known label of no class; leave it out, or give negat",
        ),
        (f"{FIT} --diffusers pipelines/classes --class-label 1 --prompt fox", "--prompt or --class-label, not both"),
        (
            f"{FIT} --diffusers pipelines/classes --class-label 1 --negative-prompt fox",
            "--negative-prompt needs a --pr",
        ),
        (f"{FIT} --diffusers pipelines/pixels --guidance-scale 2", "--guidance-scale: DDPMPipeline is unconditional"),
        (f"{FIT} --diffusers pipelines/pixels --guidance-scale 0.5", "'0.5' is not a number of 1 (no guidance) or m"),
        (f"{FIT} --checkpoint fashion-mnist-noise --prompt fox", "--prompt is an option of --diffusers; leave it out"),
        (f"{DRAW} --diffusers pipelines/two-channels", "makes samples of shape (2, 8, 8); a picture needs one channel"),
    ],
)
def test_one_line_says_what_is_wrong(
    command: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command) == 2
    said = capsys.readouterr()
    assert said.out == "" and message in said.err and said.err.count("\n") == 1
    assert said.err.startswith("dode: ") and [p.name for p in here.iterdir()] == ["pipelines"]


class StableDiffusion:
    """What is asked of a pipeline before its prompts are read."""

    def __init__(self, **config: Any) -> None:
        self.unet = crossed()
        self.unet.register_to_config(**config)

    def encode_prompt(self) -> None: ...


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({}, "", "StableDiffusion is conditional: give --prompt"),
        ({}, "--guidance-scale 3", "StableDiffusion is conditional: give --prompt"),
        ({}, "--class-label 3", "--class-label: StableDiffusion is not class-conditional; take --prompt"),
        (dict(guidance_embeds=True), "--prompt fox", "takes the guidance scale as an input; give --guidance-scale, us"),
    ],
)
def test_a_pipeline_of_prompts_needs_prompts(config: dict[str, Any], options: str, message: str) -> None:
    args = parser().parse_args(shlex.split(f"{FIT} --diffusers x {options}"))
    with pytest.raises(ValueError) as error:
        models.check_conditioning(args, StableDiffusion(**config))
    assert message in str(error.value) and "=" not in str(error.value)
    told = parser().parse_args(shlex.split(f"{FIT} --diffusers x --prompt fox --guidance-scale 3.5"))
    models.check_conditioning(told, StableDiffusion(**config))


def test_without_diffusers(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [name for name in sys.modules if name.startswith("dode.diffusers")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert run(f"{FIT} --diffusers pipelines/pixels") == 2
    line = "dode.diffusers needs diffusers: pip install 'dode[diffusers]'"
    assert capsys.readouterr().err == f"dode: --diffusers: {line}\n"


def test_the_verbosity_of_diffusers_is_left_alone(here: Path) -> None:
    from diffusers.utils import logging

    before: Any = logging.get_verbosity(), logging.is_progress_bar_enabled()
    run(f"{FIT} --diffusers pipelines/empty")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
