"""Pipelines of diffusers, tiny and untrained, and how their samples are compared with those of dode."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel
from torch import Tensor, nn

import dode
from dode import solvers
from dode.denoisers import NetworkDenoiser
from dode.diffusers import DodeScheduler, from_diffusers
from dode.tableau import Tableau

UNET = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, sample_size=8)
BLOCKS = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
CODER = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16)
PROMPTS = ["a red fox", "two plums"]
SCALED = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest entry."""
    return float((a.double() - b.double()).abs().max() / b.abs().max())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Noise as a pipeline draws it from a generator."""
    return torch.randn(shape, generator=generator(seed)).double()


def randomised(network: Any, std: float = 0.2) -> Any:
    """The network with weights that matter: the last layers of transformers start small."""
    for weight in network.parameters():
        nn.init.normal_(weight, std=std)
    return network.eval()


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def unet(channels: int = 3, **more: Any) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(**dict(in_channels=channels, out_channels=channels) | UNET | BLOCKS | more)


def crossed(channels: int = 4, **more: Any) -> UNet2DConditionModel:
    """A U-Net that attends to texts of 8 numbers a token."""
    torch.manual_seed(0)
    blocks = dict(down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
    blocks["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D")
    sizes = dict(in_channels=channels, out_channels=channels, cross_attention_dim=8, attention_head_dim=2)
    return UNet2DConditionModel(**UNET | blocks | sizes | more).eval()


def autoencoder(**more: Any) -> AutoencoderKL:
    return AutoencoderKL(latent_channels=4, block_out_channels=(4, 8), norm_num_groups=2, **CODER | more).eval()


@functools.cache
def tokenizer() -> tuple[Any, int]:
    """CLIP's, of single letters, for 12 tokens at most; and how many it knows, begin and end being the last two."""
    transformers = pytest.importorskip("transformers")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n")
        return transformers.CLIPTokenizer.from_pretrained(folder, model_max_length=12), len(words)


def text_model(kind: str = "CLIPTextModel") -> Any:
    """An untrained text model of CLIP for :func:`tokenizer`, or T5's."""
    transformers, (_, words) = pytest.importorskip("transformers"), tokenizer()
    torch.manual_seed(0)
    sizes = dict(vocab_size=words, eos_token_id=words - 1, pad_token_id=words - 1)
    if kind == "T5EncoderModel":
        sizes |= dict(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        config = transformers.T5Config(**sizes)
    else:
        config = transformers.CLIPTextConfig(
            hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2, projection_dim=8,
            max_position_embeddings=12, bos_token_id=words - 2, **sizes,
        )  # fmt: skip
    return getattr(transformers, kind)(config).eval()


def texts(first: str = "CLIPTextModel", second: str | None = None) -> dict[str, Any]:
    """A pipeline's tokenizers and text models."""
    found = dict(tokenizer=tokenizer()[0], text_encoder=text_model(first))
    return found | dict(tokenizer_2=tokenizer()[0], text_encoder_2=text_model(second)) if second else found


def with_other_sigma_in(table: Tableau) -> Tableau:
    """The table, with noise levels given to the network that differ from those of the state."""
    given = torch.linspace(0.9, 1.1, table.nfe, dtype=torch.float64) * table.sigmas_in
    return Tableau(table.basis, table.sigmas, table.weights, table.noise_weights, given, table.metadata)


def distilled(model: NetworkDenoiser) -> Tableau:
    noise = dode.initial_noise(model.shape, range(2 * model.conditions))
    return dode.distillation.d_ode(model, solvers.ipndm(model.grid, nfe=3, order=2), noise, scale=2)


TABLES: dict[str, Any] = {
    "ddim": lambda m: solvers.ddim(m.grid, nfe=4),
    "dpm-solver++": lambda m: solvers.dpm_solver_pp(m.grid, nfe=5, order=3),
    "unipc": lambda m: solvers.unipc(m.grid, nfe=5, order=3),
    "heun": lambda m: solvers.heun(m.grid, nfe=5),
    "two calls a step": lambda m: solvers.dpm_2(m.grid, nfe=4, final="sigma_min"),
    "afs": lambda m: solvers.ipndm(m.grid, nfe=4, afs=True),
    "other_sigma_in": lambda m: with_other_sigma_in(solvers.deis(m.grid, nfe=4)),
    "distilled": distilled,
}


def put(pipe: Any, table: str, **conditions: Any) -> tuple[NetworkDenoiser, Tableau]:
    """The pipeline as a denoiser, and a solver of :data:`TABLES` that now stands in place of its scheduler."""
    model = from_diffusers(pipe, **conditions)
    solver = TABLES[table](model)
    pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
    return model, solver
