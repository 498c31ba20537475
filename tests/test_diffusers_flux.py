"""Flux, tiny and untrained: its packed pipeline with DodeScheduler draws what :func:`dode.sample` draws."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

import dode
from dode import solvers
from dode.diffusers import DodeScheduler, decode, from_diffusers
from dode.diffusers.flux import pack, unpack
from dode.schedules import Flow
from tests.tiny import PROMPTS, autoencoder, distance, drawn, put, quiet, randomised, texts

DYNAMIC = dict(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64, base_shift=0.5, max_shift=1.15)
NOISE = drawn(2, 4, 8, 8)


def transformer(embedded: bool = True) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return randomised(FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=embedded, axes_dims_rope=(2, 2, 4),
    ))  # fmt: skip


def pipeline(embedded: bool = True) -> FluxPipeline:
    vae = autoencoder(shift_factor=0.1, scaling_factor=0.4)
    scheduler, words = FlowMatchEulerDiscreteScheduler(**DYNAMIC), texts("CLIPTextModel", "T5EncoderModel")
    pipe = quiet(FluxPipeline(scheduler=scheduler, vae=vae, transformer=transformer(embedded), **words))
    pipe.default_sample_size = 8
    return pipe


def test_packing_is_flux_s_own() -> None:
    x = torch.randn(2, 4, 6, 8)
    tokens = FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack(x), tokens) and torch.equal(unpack(tokens, 6, 8), x)
    assert torch.equal(unpack(tokens, 6, 8), FluxPipeline._unpack_latents(tokens, 48, 64, 8))


@pytest.mark.parametrize("table", ["dpm-solver++", "distilled"])
def test_flux_pipeline(table: str) -> None:
    pipe = pipeline()
    model, solver = put(pipe, table, guidance_scale=3.5, conditions=PROMPTS)
    assert model.shape == (4, 8, 8) and model.prediction == "flow" and model.conditions == 2
    assert isinstance(model.schedule, Flow) and model.schedule.shift == pytest.approx(torch.e**0.5)  # 16 tokens
    latents = pack(NOISE * pipe.scheduler.init_noise_sigma).float()  # of itself it starts from plain noise
    options = dict(guidance_scale=3.5, latents=latents, height=16, width=16)  # 28 steps, if it were another scheduler
    got = pipe(PROMPTS, output_type="latent", **options).images
    model.reset()
    wanted = dode.sample(model, solver, NOISE)
    assert (model.nfe, model.evaluations) == (solver.nfe, 2 * solver.nfe)  # guidance is an input: nothing is doubled
    assert distance(unpack(got, 8, 8), wanted) < 1e-4
    images = pipe(PROMPTS, output_type="pt", **options).images
    torch.testing.assert_close(images, (decode(pipe, wanted) / 2 + 0.5).clamp(0, 1), rtol=0, atol=1e-3)
    other = from_diffusers(pipe, pipeline().scheduler, guidance_scale=1.0, conditions=PROMPTS)
    assert distance(dode.sample(other, solver, NOISE), wanted) > 1e-3  # it does hear it


def test_flux_without_embedded_guidance() -> None:
    """Two halves of a batch, as for other pipelines; its pipeline calls that true guidance."""
    pipe = pipeline(embedded=False)
    for scale, negative in ((1.0, None), (4.0, "grey")):
        model, solver = put(pipe, "dpm-solver++", guidance_scale=scale, conditions=PROMPTS, negative=negative)
        latents = pack(NOISE * pipe.scheduler.init_noise_sigma).float()
        against = dict(negative_prompt=[negative] * 2, true_cfg_scale=scale) if negative else {}
        got = pipe(PROMPTS, latents=latents, height=16, width=16, output_type="latent", **against).images
        assert distance(unpack(got, 8, 8), dode.sample(model, solver, NOISE)) < 1e-4


def test_one_line_says_what_is_wrong() -> None:
    scheduler, text = FlowMatchEulerDiscreteScheduler(), torch.zeros(1, 3, 8)
    rows = {"encoder_hidden_states": text, "pooled_projections": torch.zeros(1, 8)}
    alone = dict(scheduler=scheduler, conditions=rows, guidance_scale=2.0)
    assert from_diffusers(transformer(), shape=(4, 4, 6), **alone)(torch.zeros(1, 4, 4, 6), 1.0).shape == (1, 4, 4, 6)
    for options, message in (
        (dict(), "a Flux transformer alone gives no sample size; give shape="),
        (dict(shape=(4, 5, 6)), r"takes latents of \(4, even, even\), not \(4, 5, 6\)"),
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
