"""The checkpoints that papers on fast sampling use: where they are, whose they are, and with what settings.

A digest is given where public material states it; a row without one says so, and its file is checked by its format
alone: parameter names and shapes must all fit.  Nothing here is fetched before it is asked for by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from dode.schedules import EDM, Schedule, VPDiscrete
from dode.utils.files import nearest

Kind = Literal["edm", "guided", "guided-edm", "classifier", "latent", "ddpm", "diffusers"]
NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/"
OPENAI = "https://openaipublic.blob.core.windows.net/"
HEIBOX = "https://heibox.uni-heidelberg.de/f/"
NON_COMMERCIAL = "CC BY-NC-SA 4.0"


@dataclass(frozen=True, kw_only=True)
class Card:
    """One checkpoint.

    ``kind`` says what reads it: "edm" NVIDIA's pickles; "guided" OpenAI's diffusion networks, "guided-edm" the same
    with EDM's preconditioning, "classifier" their noisy classifiers; "latent" the same network in a training state of
    latent diffusion, without the autoencoder; "ddpm" DDPM's U-Net in PyTorch; "diffusers" a model of the hub, which
    :mod:`dode.diffusers` reads. ``settings`` are those with which the authors sample: ``sigma_min``, ``sigma_max``,
    ``rho``, ``steps``, ``solver``; the stochastic ``S_churn``, ``S_min``, ``S_max``, ``S_noise``; ``classifier`` (a
    card's name) and ``classifier_scale``; ``guidance_scale`` (classifier-free).
    """

    name: str
    kind: Kind
    licence: str  # of the weights
    source: str  # the paper
    shape: tuple[int, int, int]  # (C, H, W) of one image, or of one latent
    file: str = ""
    url: str = ""
    page: str = ""  # where a person finds it, if a program cannot fetch it
    digest: str = ""  # "sha256:..." or "md5:...", or "" if it is not known
    size: int = 0  # in bytes, 0 if it is not known
    classes: int = 0  # 0 for an unconditional network
    network: Mapping[str, Any] = field(default_factory=dict)  # its arguments; NVIDIA's pickles carry their own
    schedule: Schedule | None = None  # None where the file says it (NVIDIA) or the hub does
    label_scale: float = 1.0  # multiplies the schedule's label before the network sees it
    hub: str = ""  # the model's id on the Hugging Face hub
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def check(self) -> str:
        """How a file is known to be the right one."""
        return self.digest or "digest not known: the file is checked by its format alone"


CLASSES = dict(cifar10=10, imagenet=1000)
SONG: dict[str, Any] = dict(augment_dim=9, model_channels=128)
# What the names of NVIDIA's files stand for.
ARCHITECTURES: dict[str, dict[str, Any]] = dict(
    vp=SONG | dict(embedding_type="positional", encoder_type="standard", resample_filter=(1, 1)),
    ve=SONG | dict(
        embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=(1, 3, 3, 1)
    ),
    adm=dict(model_channels=192),
)  # fmt: skip


def _edm(stem: str, steps: int, digest: str = "", size: int = 0, **stochastic: float) -> Card:
    """One of NVIDIA's networks (config F), from its name: data set, size, condition and architecture."""
    _, data, sides, condition, architecture = stem.split("-")
    side, classes = int(sides.partition("x")[0]), CLASSES[data] if condition == "cond" else 0
    widths = (1, 2, 3, 4) if architecture == "adm" else (2, 2, 2) if side == 32 else (1, 2, 2, 2)
    network: dict[str, Any] = dict(
        img_resolution=side, in_channels=3, out_channels=3, label_dim=classes, channel_mult=widths
    )
    return Card(
        name=stem, kind="edm", file=f"{stem}.pkl", url=f"{NVIDIA}{stem}.pkl", digest=digest, size=size,
        licence=NON_COMMERCIAL, source="Karras et al. 2022", shape=(3, side, side), classes=classes,
        network=network | ARCHITECTURES[architecture],
        settings=dict(solver="heun", steps=steps, sigma_min=0.002, sigma_max=80.0, rho=7.0) | stochastic,
    )  # fmt: skip


def _baseline(stem: str, side: int, origin: str, classes: int = 0) -> Card:
    """The networks that EDM compares with (config A), in the same wrapping."""
    return Card(
        name=stem, kind="edm", file=f"{stem}.pkl", url=f"{NVIDIA}baseline/{stem}.pkl", classes=classes,
        licence=f"{NON_COMMERCIAL}, derived from {origin}", source="Karras et al. 2022", shape=(3, side, side),
    )  # fmt: skip


ADM: dict[str, Any] = dict(attention_resolutions=(32, 16, 8), resblock_updown=True)
MULTIPLES = {
    32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4), 256: (1, 1, 2, 2, 4, 4),
}  # fmt: skip


def _openai(
    name: str, kind: Kind, file: str, side: int, channels: int, blocks: int, *, source: str = "", classes: int = 0,
    digest: str = "", size: int = 0, schedule: Schedule | None = None, label_scale: float = 1.0,
    settings: Mapping[str, Any] | None = None, **flags: Any,
) -> Card:  # fmt: skip
    """OpenAI's networks; ``file`` is the path at their address."""
    network = dict(image_size=side, num_channels=channels, num_res_blocks=blocks, channel_mult=MULTIPLES[side])
    return Card(
        name=name, kind=kind, file=file.rpartition("/")[2], url=OPENAI + file, digest=digest, size=size, licence="MIT",
        source=source or "Dhariwal and Nichol 2021", shape=(3, side, side), classes=classes, label_scale=label_scale,
        network=network | flags | (dict(num_classes=classes) if classes else {}), schedule=schedule or VPDiscrete(),
        settings=settings or {},
    )  # fmt: skip


JULY, MARCH, IDDPM = "diffusion/jul-2021/", "diffusion/march-2021/", "Nichol and Dhariwal 2021"
COSINE = VPDiscrete(steps=4000, kind="cosine")
HEADS: dict[str, Any] = dict(num_head_channels=64)


def _guidance(side: int, scale: float) -> dict[str, Any]:
    return dict(classifier=f"adm-imagenet-{side}-classifier", classifier_scale=scale)


def _ddpm(name: str, side: int, mult: tuple[int, ...], **where: Any) -> Card:
    """DDPM's U-Net, betas linear from 1e-4 to 0.02 in 1000 steps."""
    where = dict(licence="MIT (github.com/pesser/pytorch_diffusion)", source="Ho et al. 2020") | where
    return Card(
        name=name, kind="ddpm", shape=(3, side, side), schedule=VPDiscrete(),
        network=dict(image_size=side, ch=128, ch_mult=mult, num_res_blocks=2, attn_resolutions=(16,)), **where,
    )  # fmt: skip


def _hub(hub: str, side: int, licence: str, source: str, channels: int = 3, **settings: Any) -> Card:
    return Card(
        name=hub, kind="diffusers", hub=hub, licence=licence, source=source, shape=(channels, side, side),
        settings=settings,
    )  # fmt: skip


ROWS: tuple[Card, ...] = (
    _edm("edm-cifar10-32x32-cond-vp", 18),
    _edm("edm-cifar10-32x32-cond-ve", 18),
    _edm("edm-cifar10-32x32-uncond-vp", 18, "sha256:4d5dcc1f1d0d41c8934ad21626eeddbdc0460182becf9fc059a0631b1eedb4da"),
    _edm("edm-cifar10-32x32-uncond-ve", 18),
    _edm("edm-ffhq-64x64-uncond-vp", 40, "sha256:f6f8f24a2b46ae79807b0f919e2550c6ed37cc3f8b7a2100629092cad9b5d2f5",
         247_513_128),
    _edm("edm-ffhq-64x64-uncond-ve", 40),
    _edm("edm-afhqv2-64x64-uncond-vp", 40),
    _edm("edm-afhqv2-64x64-uncond-ve", 40),
    _edm("edm-imagenet-64x64-cond-adm", 256, S_churn=40.0, S_min=0.05, S_max=50.0, S_noise=1.003),
    _baseline("baseline-cifar10-32x32-uncond-vp", 32, "Song et al. 2021 (Apache 2.0)"),
    _baseline("baseline-cifar10-32x32-uncond-ve", 32, "Song et al. 2021 (Apache 2.0)"),
    _baseline("baseline-imagenet-64x64-cond-adm", 64, "Dhariwal and Nichol 2021 (MIT)", 1000),
    _openai("adm-imagenet-64", "guided", f"{JULY}64x64_diffusion.pt", 64, 192, 3, classes=1000,
            schedule=VPDiscrete(kind="cosine"), settings=_guidance(64, 1.0), use_new_attention_order=True,
            **ADM, **HEADS),
    # The paper on D-ODE solvers guides the 128 x 128 network with a scale of 1.25.
    _openai("adm-imagenet-128", "guided", f"{JULY}128x128_diffusion.pt", 128, 256, 2, classes=1000,
            settings=_guidance(128, 0.5), num_heads=4, **ADM),
    _openai("adm-imagenet-256", "guided", f"{JULY}256x256_diffusion.pt", 256, 256, 2, classes=1000,
            settings=_guidance(256, 1.0), **ADM, **HEADS),
    _openai("adm-imagenet-256-uncond", "guided", f"{JULY}256x256_diffusion_uncond.pt", 256, 256, 2,
            digest="sha256:a37c32fffd316cd494cf3f35b339936debdc1576dad13fe57c42399a5dbc78b1", size=2_211_383_297,
            settings=_guidance(256, 10.0), **ADM, **HEADS),
    *(_openai(f"adm-lsun-{what}", "guided", f"{JULY}lsun_{what}.pt", 256, 256, 2, settings=dict(steps=1000), **ADM,
              **HEADS) for what in ("bedroom", "cat", "horse")),
    _openai("adm-imagenet-64-classifier", "classifier", f"{JULY}64x64_classifier.pt", 64, 128, 4, classes=1000,
            schedule=VPDiscrete(kind="cosine"), **ADM),
    *(_openai(f"adm-imagenet-{side}-classifier", "classifier", f"{JULY}{side}x{side}_classifier.pt", side, 128, 2,
              classes=1000, **ADM) for side in (128, 256)),
    _openai("edm-lsun-bedroom-256", "guided-edm", "consistency/edm_bedroom256_ema.pt", 256, 256, 2,
            source="Song et al. 2023", schedule=EDM(), label_scale=1000.0, learn_sigma=False, flat_attention=False,
            digest="sha256:5947bb5ae7b664feef1796ebe0a531efcf689d76e81d03ba88159dd8019b674f", size=2_105_395_349,
            use_scale_shift_norm=False, use_new_attention_order=True, **ADM, **HEADS,
            settings=dict(solver="heun", steps=40, sigma_min=0.002, sigma_max=80.0, rho=7.0)),
    # Labels run over 0..1000 whatever the number of steps, but for the class-conditional network.
    _openai("iddpm-imagenet-64", "guided", f"{MARCH}imagenet64_uncond_100M_1500K.pt", 64, 128, 3, source=IDDPM,
            schedule=COSINE, label_scale=0.25),
    _openai("iddpm-imagenet-64-cond", "guided", f"{MARCH}imagenet64_cond_270M_250K.pt", 64, 192, 3, source=IDDPM,
            schedule=COSINE, classes=1000),
    _openai("iddpm-cifar10-32", "guided", f"{MARCH}cifar10_uncond_50M_500K.pt", 32, 128, 3, source=IDDPM,
            schedule=COSINE, label_scale=0.25),
    _openai("iddpm-lsun-bedroom-256", "guided", f"{MARCH}lsun_uncond_100M_1200K_bs128.pt", 256, 128, 2, source=IDDPM,
            num_heads=1, use_scale_shift_norm=False, attention_resolutions=(16,)),
    _ddpm("ddim-celeba-64", 64, (1, 2, 2, 2, 4), file="ddim-celeba-64.pth", licence="MIT",
          source="Song et al. 2021 (DDIM)", page="https://drive.google.com/file/d/1R_H-fJYXSH79wfSKs9D-fuKQVan5L-GR/view"),
    _ddpm("ddpm-cifar10-32", 32, (1, 2, 2, 2), file="ema_diffusion_cifar10_model-790000.ckpt",
          url=f"{HEIBOX}2e4f01e2d9ee49bab1d5/?dl=1", digest="md5:1fa350b952534ae442b1d5235cce5cd3"),
    _ddpm("ddpm-lsun-bedroom-256", 256, (1, 1, 2, 2, 4, 4), file="ema_diffusion_lsun_bedroom_model-2388000.ckpt",
          url=f"{HEIBOX}b95206528f384185889b/?dl=1", digest="md5:1921fa46b66a3665e450e42f36c2720f"),
    # Latents of a VQ autoencoder, a quarter of the image's side.
    Card(name="ldm-lsun-bedroom-256", kind="latent", file="lsun_bedrooms.zip", licence="MIT",
        source="Rombach et al. 2022", url="https://ommer-lab.com/files/latent-diffusion/lsun_bedrooms.zip",
        shape=(3, 64, 64), schedule=VPDiscrete(kind="scaled_linear", beta_min=0.0015, beta_max=0.0195),
        network=dict(image_size=64, num_channels=224, num_res_blocks=2, channel_mult=(1, 2, 3, 4), learn_sigma=False,
                     attention_resolutions=(32, 16, 8), num_head_channels=32, use_scale_shift_norm=False),
        settings=dict(steps=200)),
    _hub("google/ddpm-cifar10-32", 32, "Apache 2.0", "Ho et al. 2020"),
    _hub("google/ddpm-bedroom-256", 256, "Apache 2.0", "Ho et al. 2020"),
    _hub("google/ddpm-celebahq-256", 256, "Apache 2.0", "Ho et al. 2020"),
    _hub("CompVis/ldm-celebahq-256", 64, "Apache 2.0", "Rombach et al. 2022"),
    _hub("stable-diffusion-v1-5/stable-diffusion-v1-5", 64, "CreativeML OpenRAIL-M", "Rombach et al. 2022", 4,
         guidance_scale=7.5),
)  # fmt: skip
CATALOGUE: Mapping[str, Card] = {row.name: row for row in ROWS}


def find(name: str) -> Card:
    """The row of a name.  ValueError with the nearest names if there is none."""
    if name not in CATALOGUE:
        raise ValueError(f"no published checkpoint named {name!r}; the nearest: {nearest(name, CATALOGUE)}")
    return CATALOGUE[name]
