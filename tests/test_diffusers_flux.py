"""Flux, tiny and untrained: its packed pipeline with DodeScheduler draws what :func:`dode.sample` draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from torch import Tensor

import dode
from dode import solvers
from dode.diffusers import DodeScheduler, decode, from_diffusers
from dode.diffusers.flux import pack, unpack
from dode.schedules import Flow
from tests import letters

PROMPTS = ["a red fox", "two plums"]
DYNAMIC = dict(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64, base_shift=0.5, max_shift=1.15)
TABLES = {
    "dpm-solver++": lambda m: solvers.dpm_solver_pp(m.grid, nfe=5, order=3),
    "distilled": lambda m: dode.distillation.d_ode(
        m, solvers.ipndm(m.grid, nfe=3, order=2), dode.initial_noise(m.shape, range(4)), scale=2
    ),
}


def transformer(embedded: bool = True) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    found = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=embedded, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    for weight in found.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return found.eval()


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Tokenizers of single letters and untrained text models, CLIP's and T5's."""
    transformers = pytest.importorskip("transformers")
    tokenizer, words = letters.tokenizer(tmp_path_factory.mktemp("tokenizer"))
    sizes = dict(vocab_size=words, eos_token_id=words - 1, pad_token_id=words - 1)
    torch.manual_seed(0)
    clip = transformers.CLIPTextConfig(
        hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, max_position_embeddings=12,
        bos_token_id=words - 2, projection_dim=8, **sizes,
    )  # fmt: skip
    t5 = transformers.T5Config(d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0, **sizes)
    return dict(
        tokenizer=tokenizer, text_encoder=transformers.CLIPTextModel(clip).eval(), tokenizer_2=tokenizer,
        text_encoder_2=transformers.T5EncoderModel(t5).eval(),
    )  # fmt: skip


def pipeline(texts: dict[str, Any], embedded: bool = True) -> FluxPipeline:
    torch.manual_seed(1)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    vae = AutoencoderKL(
        latent_channels=4, block_out_channels=(4, 8), norm_num_groups=2, shift_factor=0.1, scaling_factor=0.4, **blocks
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    pipe = FluxPipeline(scheduler=scheduler, vae=vae.eval(), transformer=transformer(embedded), **texts)
    pipe.default_sample_size = 8
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(seed: int = 0) -> Tensor:
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(seed)).double()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.abs().max())


def test_packing_is_flux_s_own() -> None:
    x = torch.randn(2, 4, 6, 8)
    tokens = FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack(x), tokens) and torch.equal(unpack(tokens, 6, 8), x)
    assert torch.equal(unpack(tokens, 6, 8), FluxPipeline._unpack_latents(tokens, 48, 64, 8))


@pytest.mark.parametrize("table", TABLES)
def test_flux_pipeline(table: str, texts: dict[str, Any], tmp_path: Path) -> None:
    pipe = pipeline(texts)
    model = from_diffusers(pipe, guidance_scale=3.5, conditions=PROMPTS)
    assert model.shape == (4, 8, 8) and model.prediction == "flow" and model.conditions == 2
    assert isinstance(model.schedule, Flow) and model.schedule.shift == pytest.approx(torch.e**0.5)  # 16 tokens
    solver = TABLES[table](model)
    pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
    latents = pack(drawn() * pipe.scheduler.init_noise_sigma).float()  # of itself it starts from plain noise
    options = dict(guidance_scale=3.5, latents=latents, height=16, width=16)  # 28 steps, if it were another scheduler
    got = pipe(PROMPTS, output_type="latent", **options).images
    model.reset()
    wanted = dode.sample(model, solver, drawn())
    assert (model.nfe, model.evaluations) == (solver.nfe, 2 * solver.nfe)  # guidance is an input: nothing is doubled
    assert distance(unpack(got, 8, 8), wanted) < 1e-4
    images = pipe(PROMPTS, output_type="pt", **options).images
    torch.testing.assert_close(images, (decode(pipe, wanted) / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-3)
    other = from_diffusers(pipe, pipeline(texts).scheduler, guidance_scale=1.0, conditions=PROMPTS)
    assert distance(dode.sample(other, solver, drawn()), wanted) > 1e-3  # it does hear it


def test_flux_without_embedded_guidance(texts: dict[str, Any]) -> None:
    """Two halves of a batch, as for other pipelines; its pipeline calls that true guidance."""
    pipe = pipeline(texts, embedded=False)
    for scale, negative in ((1.0, None), (4.0, "grey")):
        model = from_diffusers(pipe, guidance_scale=scale, conditions=PROMPTS, negative=negative)
        solver = TABLES["dpm-solver++"](model)
        pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
        latents = pack(drawn() * pipe.scheduler.init_noise_sigma).float()
        against = dict(negative_prompt=[negative] * 2, true_cfg_scale=scale) if negative else {}
        got = pipe(PROMPTS, latents=latents, height=16, width=16, output_type="latent", **against).images
        assert distance(unpack(got, 8, 8), dode.sample(model, solver, drawn())) < 1e-4


def test_one_line_says_what_is_wrong(texts: dict[str, Any]) -> None:
    scheduler, text = FlowMatchEulerDiscreteScheduler(), torch.zeros(1, 3, 8)
    rows = {"encoder_hidden_states": text, "pooled_projections": torch.zeros(1, 8)}
    alone = dict(scheduler=scheduler, conditions=rows, guidance_scale=2.0)
    assert from_diffusers(transformer(), shape=(4, 4, 6), **alone)(torch.zeros(1, 4, 4, 6), 1.0).shape == (1, 4, 4, 6)
    for options, message in (
        (dict(), "a Flux transformer alone gives no sample size; give shape="),
        (dict(shape=(4, 5, 6)), r"takes latents of \(4, even, even\), not \(4, 5, 6\)"),
        (dict(shape=(16, 4, 4)), r"takes latents of \(4, even, even\)"),
        (dict(shape=(4, 4, 4), guidance_scale=None), "takes its guidance as an input: give guidance_scale="),
        (dict(shape=(4, 4, 4), conditions=text), "Flux wants pooled_projections: give conditions="),
    ):
        with pytest.raises(ValueError, match=message):
            from_diffusers(transformer(), **alone | options)
    table = solvers.ddim(from_diffusers(transformer(), shape=(4, 4, 4), **alone).grid, nfe=2)
    bound = table.with_full(table.full, shape=[4, 4, 4])
    ours = DodeScheduler.from_tableau(bound, scheduler)
    ours.step(torch.zeros(1, 4, 16), ours.timesteps[0], torch.zeros(1, 4, 16))
    ours.set_timesteps()
    with pytest.raises(ValueError, match=r"distilled for samples of shape \(4, 4, 4\), not \(16, 4\)"):
        ours.step(torch.zeros(1, 16, 4), ours.timesteps[0], torch.zeros(1, 16, 4))
