"""Latent diffusion (Rombach et al. 2022): OpenAI's U-Net in a training state of PyTorch Lightning's.

A card's network is the denoiser of latents alone; the autoencoder stays out.
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dode.denoisers import NetworkDenoiser
from dode.schedules import VPDiscrete
from dode.utils.files import FileError, atomic, present
from dode.zoo.catalogue import Card, family
from dode.zoo.families import openai
from dode.zoo.states import is_state, load

MEMBER = "model.ckpt"  # in the zip files
PLAIN, AVERAGED = "model.diffusion_model.", "model_ema."
CONVERT = "diffusers converts such files, and dode.from_diffusers takes its pipelines"
# What a training state may name: Lightning's and OmegaConf's classes, the types in every container of OmegaConf's, and
# numpy's scalars, which schedulers of the learning rate leave behind.
TYPES = ("dict", "list", "tuple", "str", "bytes", "bool", "int", "float", "type", "object")
TRAINING = (
    "pytorch_lightning.", "lightning.", "lightning_fabric.", "omegaconf.", "typing.", "numpy.",
    "collections.defaultdict", *(f"builtins.{name}" for name in TYPES),
)  # fmt: skip


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The denoiser in a training state, or in the zip file that has one, with its embedding of classes.

    The weights are the averaged ones, with which the authors sample, if they are there: they are stored under the
    parameter's name without its dots.  FileError for a file that holds no such denoiser, or is none of torch's.
    """
    found = load(unpacked(path), TRAINING)
    state = found.get("state_dict") if isinstance(found, dict) else None
    if state is None or not is_state(state):
        raise FileError(f"{path} is no training state of latent diffusion: it has no 'state_dict' of tensors")
    names = [name.removeprefix(PLAIN) for name in state if name.startswith(PLAIN)]
    if not names:
        raise FileError(f"{path} holds no denoiser: none of its names begins with {PLAIN!r}")
    averaged = {name: AVERAGED + ("diffusion_model." + name).replace(".", "") for name in names}
    tensors = {name: state.get(averaged[name], state[PLAIN + name]) for name in names}
    if any(f".{openai.INNER}." in name for name in names):
        if openai.EMBEDDING not in state:
            raise FileError(f"{path} attends to a text or a layout, whose encoder is not read here; {CONVERT}")
        tensors[openai.EMBEDDING] = state[openai.EMBEDDING]
    return tensors


def unpacked(path: Path) -> Path:
    """The training state in a zip file, unpacked beside it once, whole or not at all; another file as it is.

    FileError for a missing file, or a zip file that holds no such state or is damaged.
    """
    if not zipfile.is_zipfile(present(path)):
        return path
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/data.pkl") for name in names):  # one of torch's own, which are zip files too
            return path
        if MEMBER not in names:
            raise FileError(f"{path} holds no {MEMBER}, but {', '.join(names[:3]) or 'nothing'}; get it again")
        state = path.with_suffix(".ckpt")
        if not state.is_file() or state.stat().st_mtime_ns <= path.stat().st_mtime_ns:  # of an earlier zip file
            try:
                with atomic(state) as temporary, archive.open(MEMBER) as packed, temporary.open("wb") as file:
                    shutil.copyfileobj(packed, file)
            except (zipfile.BadZipFile, zipfile.zlib.error, EOFError) as error:  # type: ignore[attr-defined]
                raise FileError(f"{path} is damaged ({error}); delete it and get it again") from None
    return state


def _card(name: str, file: str, beta_max: float = 0.0195, channels: int = 3, side: int = 64, *, url: str = "",
          settings: Mapping[str, Any] | None = None, **network: Any) -> Card:  # fmt: skip
    """Latents of a quarter or an eighth of the image's side."""
    own: dict[str, Any] = dict(image_size=side, in_channels=channels, num_res_blocks=2, learn_sigma=False)
    return Card(
        name=name, file=file, licence="MIT", source="Rombach et al. 2022",
        url=f"https://ommer-lab.com/files/latent-diffusion/{url or file}", shape=(channels, side, side),
        schedule=VPDiscrete(kind="scaled_linear", beta_min=0.0015, beta_max=beta_max),
        network=own | network, settings=settings or dict(steps=200), classes=network.get("num_classes", 0),
    )  # fmt: skip


VQ: dict[str, Any] = dict(num_channels=224, channel_mult=(1, 2, 3, 4), attention_resolutions=(32, 16, 8),
                          num_head_channels=32, use_scale_shift_norm=False)  # fmt: skip
CLASSES: dict[str, Any] = dict(num_classes=1000, context_dim=512, attention_resolutions=(32, 16, 8),
                               use_scale_shift_norm=False)  # fmt: skip
CARDS = (
    _card("ldm-lsun-bedroom-256", "lsun_bedrooms.zip", **VQ),
    _card("ldm-celebahq-256", "celeba.zip", **VQ),
    _card("ldm-ffhq-256", "ffhq.zip", **VQ),
    _card("ldm-lsun-church-256", "lsun_churches.zip", 0.0155, 4, 32, settings=dict(steps=400), num_channels=192,
          channel_mult=(1, 2, 2, 4, 4), attention_resolutions=(32, 16, 8, 4), num_heads=8, resblock_updown=True),
    # Without guidance "any" is no class that the second of them knows: its file has 1000 rows, the first's 1001.
    _card("ldm-imagenet-256", "cin256-v2.ckpt", url="nitro/cin/model.ckpt", num_channels=192, channel_mult=(1, 2, 3, 5),
          num_heads=1, n_classes=1001, settings=dict(steps=250, guidance_scale=1.5), **CLASSES),
    _card("ldm-imagenet-256-vq8", "cin.zip", 0.0195, 4, 32, num_channels=256, channel_mult=(1, 2, 4),
          num_head_channels=32, **CLASSES),
)  # fmt: skip


@family("latent", *CARDS)
def read(path: Path, card: Card) -> NetworkDenoiser:
    """As :func:`.openai.read`, from a training state or the zip file that has one."""
    return openai.read(path, card, tensors_of(path))
