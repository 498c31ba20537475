"""Whole pipelines of diffusers, tiny and untrained, with DodeScheduler: each gives what :func:`dode.sample` gives.

Their noise is drawn as the pipeline draws it.  ``dode.sample`` walks in float64 around the same float32 network, so
what is left is the rounding of the pipeline's own float32 state.  Each pipeline is walked with two tables or so, and
all of them between the pipelines; that each is walked right, test_diffusers_scheduler shows.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, FlowMatchEulerDiscreteScheduler, LDMPipeline
from torch import Tensor

import dode
from dode import solvers
from dode.cli.models import load_pipeline
from dode.diffusers import DodeScheduler, decode, from_diffusers
from dode.diffusers.networks import pack, unpack
from dode.schedules import Flow
from tests import tiny
from tests.tiny import PROMPTS, autoencoder, crossed, distance, drawn, generator, put, quiet, randomised, texts, unet

TOLERANCE = 2e-5  # of the largest entry
FLOW = 1e-4  # where levels reach sigma = 3,000
NOISE = drawn(2, 4, 8, 8)


def watched(scheduler: DodeScheduler) -> list[Tensor]:
    """Every sample that the scheduler gives back: pipelines in pixel space clip the last."""
    seen, step = list[Tensor](), scheduler.step

    @functools.wraps(step)
    def watch(*args: Any, **options: Any) -> Any:
        found = step(*args, **options)
        seen.append(found[0] if isinstance(found, tuple) else found.prev_sample)
        return found

    scheduler.step = watch  # type: ignore[method-assign]
    return seen


def picture(x: Tensor) -> Tensor:
    """What a pipeline makes of -1..1 for ``output_type="np"``."""
    return (x / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


# --- pixels, latents and classes -------------------------------------------------------------------

PROCESSES = {
    "epsilon": DDPMScheduler(),
    "sample": DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
    "v_prediction": DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear"),
    "flow_prediction": FlowMatchEulerDiscreteScheduler(shift=2.0),
    "edm": diffusers.EDMEulerScheduler(),
}


@pytest.mark.parametrize(
    ("process", "table"),
    [
        *(("epsilon", "dpm-solver++"), ("epsilon", "two calls a step"), ("v_prediction", "afs")),
        *(("v_prediction", "other_sigma_in"), *((process, "unipc") for process in PROCESSES)),
    ],
)
def test_pixels_of_every_prediction_type_also_from_a_stored_pipeline(process: str, table: str, tmp_path: Path) -> None:
    pipe = quiet(DDPMPipeline(unet(), PROCESSES[process]))
    model, solver = put(pipe, table)
    pipe.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text(encoding="utf-8"))
    assert config["_class_name"] == "DodeScheduler"
    pipe = quiet(DDPMPipeline.from_pretrained(tmp_path))
    seen = watched(pipe.scheduler)
    images = pipe(batch_size=3, generator=generator(), output_type="np").images  # 1000 steps, if it were a DDPM
    assert len(seen) == solver.nfe
    noise = drawn(3, 3, 8, 8) / pipe.scheduler.init_noise_sigma  # this pipeline starts from plain noise
    wanted = dode.sample(model, solver, noise)
    assert distance(seen[-1], wanted) < TOLERANCE
    atol = TOLERANCE * float(wanted.abs().max())
    torch.testing.assert_close(torch.from_numpy(images).double(), picture(wanted), rtol=0, atol=atol)


@pytest.mark.parametrize("table", ["heun", "distilled"])
def test_unconditional_latent_diffusion(table: str, tmp_path: Path) -> None:
    """What latent LSUN and CelebA-HQ become once they are converted: a quantised autoencoder, and its own betas."""
    sizes = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)
    coder = diffusers.VQModel(latent_channels=3, num_vq_embeddings=64, scaling_factor=0.5, **sizes, **tiny.CODER).eval()
    process = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False)
    LDMPipeline(coder, unet(), process).save_pretrained(tmp_path)
    pipe = quiet(load_pipeline(str(tmp_path)))
    assert isinstance(pipe, LDMPipeline)
    model, solver = put(pipe, table)
    assert (model.shape, model.name) == ((3, 8, 8), tmp_path.name)
    seen = watched(pipe.scheduler)
    images = torch.from_numpy(pipe(batch_size=2, generator=generator(), output_type="np").images)
    assert len(seen) == solver.nfe
    assert distance(seen[-1], dode.sample(model, solver, drawn(2, 3, 8, 8))) < TOLERANCE
    torch.testing.assert_close(images, picture(decode(pipe, seen[-1])), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("table", "scale"), [("ddim", 1.0), ("other_sigma_in", 4.0)])
def test_dit_pipeline(table: str, scale: float) -> None:
    """Latents of classes, guided; and a network that answers with a variance too."""
    sizes = dict(num_attention_heads=2, attention_head_dim=4, num_layers=1, sample_size=8, norm_num_groups=2)
    torch.manual_seed(0)
    transformer = diffusers.DiTTransformer2DModel(in_channels=4, out_channels=8, num_embeds_ada_norm=1000, **sizes)
    pipe, labels = quiet(diffusers.DiTPipeline(randomised(transformer), autoencoder(), DDIMScheduler())), [7, 300, 7]
    model, solver = put(pipe, table, guidance_scale=scale, conditions=labels)
    assert model.shape == (4, 8, 8) and model.conditions == 3
    seen = watched(pipe.scheduler)
    images = pipe(labels, guidance_scale=scale, generator=generator(), output_type="np").images
    wanted = dode.sample(model, solver, drawn(3, 4, 8, 8) / pipe.scheduler.init_noise_sigma)
    assert distance(seen[-1][:3], wanted) < TOLERANCE
    torch.testing.assert_close(torch.from_numpy(images), picture(decode(pipe, wanted)), rtol=0, atol=1e-3)


# --- text to image -----------------------------------------------------------------------------------


def stable_diffusion(kind: str = "StableDiffusionPipeline", **parts: Any) -> Any:
    usual = dict(
        vae=autoencoder(), unet=crossed(), scheduler=DDIMScheduler(**tiny.SCALED, clip_sample=False, steps_offset=1),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False, **texts(),
    )  # fmt: skip
    return quiet(getattr(diffusers, kind)(**usual | parts))


def stable_diffusion_xl() -> Any:
    more = dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32)
    scheduler = DDIMScheduler(**tiny.SCALED, clip_sample=False, steps_offset=1)
    parts = dict(vae=autoencoder(), unet=crossed(cross_attention_dim=16, **more), scheduler=scheduler)
    words = texts("CLIPTextModel", "CLIPTextModelWithProjection")
    return quiet(diffusers.StableDiffusionXLPipeline(**parts, **words))


def flow_transformer() -> diffusers.SD3Transformer2DModel:
    torch.manual_seed(0)
    return randomised(diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=20, caption_projection_dim=8, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=8,
    ))  # fmt: skip


def stable_diffusion_3() -> Any:
    words = texts(*["CLIPTextModelWithProjection"] * 2) | dict(text_encoder_3=None, tokenizer_3=None)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = dict(transformer=flow_transformer(), scheduler=scheduler, vae=autoencoder())
    return quiet(diffusers.StableDiffusion3Pipeline(**parts, **words))


@pytest.mark.parametrize(
    ("make", "table"),
    [
        *((stable_diffusion, "unipc"), (stable_diffusion, "distilled"), (stable_diffusion_xl, "dpm-solver++")),
        *((stable_diffusion_3, "heun"), (stable_diffusion_3, "afs")),
    ],
)
def test_text_to_image(make: Any, table: str) -> None:
    pipe, flow = make(), make is stable_diffusion_3
    for scale, negative in ((1.0, None), (5.0, None), (5.0, "grey")):
        model, solver = put(pipe, table, guidance_scale=scale, conditions=PROMPTS, negative=negative)
        options: dict[str, Any] = dict(guidance_scale=scale, output_type="latent", generator=generator())
        if flow:  # of itself it starts from plain noise
            options["latents"] = (NOISE * pipe.scheduler.init_noise_sigma).float()
        if negative:
            options["negative_prompt"] = [negative] * 2
        got = pipe(PROMPTS, **options).images  # 50 steps, if it were another scheduler
        model.reset()
        assert distance(got, dode.sample(model, solver, NOISE)) < (FLOW if flow else TOLERANCE)
        assert model.evaluations == 2 * model.nfe  # as many as there are images, guided or not


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_image_to_image(strength: float) -> None:
    """From row ``k`` on it is the solver of the levels that are left: DEIS in ln sigma has the rows that lack."""
    pipe = stable_diffusion("StableDiffusionImg2ImgPipeline")
    model = from_diffusers(pipe, guidance_scale=5.0, conditions=PROMPTS)
    sigmas = model.grid(5)
    make = functools.partial(solvers.deis, variable="log_rho", order=3)
    pipe.scheduler = DodeScheduler.from_tableau(make(sigmas), pipe.scheduler.config)
    image = 0.5 * drawn(2, 4, 8, 8, seed=1).float()  # latents: they are not encoded
    options = dict(image=image, strength=strength, guidance_scale=5.0, output_type="latent")
    got = pipe(PROMPTS, num_inference_steps=5, generator=generator(), **options).images
    begin = 5 - int(5 * strength)
    left = make(sigmas[begin:], order=min(3, 5 - begin))
    assert distance(got, dode.sample(model, left, NOISE + image / sigmas[begin])) < TOLERANCE
    with pytest.raises(ValueError, match="num_inference_steps=5, not 50"):  # it would begin in a wrong place
        pipe(PROMPTS, **options)


# --- Flux: packed latents ----------------------------------------------------------------------------

DYNAMIC = dict(use_dynamic_shifting=True, base_image_seq_len=16, max_image_seq_len=64, base_shift=0.5, max_shift=1.15)


def flux_transformer(embedded: bool = True) -> diffusers.FluxTransformer2DModel:
    torch.manual_seed(0)
    return randomised(diffusers.FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=8, pooled_projection_dim=8, guidance_embeds=embedded, axes_dims_rope=(2, 2, 4),
    ))  # fmt: skip


def flux(embedded: bool = True) -> diffusers.FluxPipeline:
    vae = autoencoder(shift_factor=0.1, scaling_factor=0.4)
    scheduler, words = FlowMatchEulerDiscreteScheduler(**DYNAMIC), texts("CLIPTextModel", "T5EncoderModel")
    pipe = quiet(diffusers.FluxPipeline(scheduler=scheduler, vae=vae, transformer=flux_transformer(embedded), **words))
    pipe.default_sample_size = 8
    return pipe


def test_packing_is_flux_s_own() -> None:
    x = torch.randn(2, 4, 6, 8)
    tokens = diffusers.FluxPipeline._pack_latents(x, 2, 4, 6, 8)
    assert torch.equal(pack(x), tokens) and torch.equal(unpack(tokens, 6, 8), x)
    assert torch.equal(unpack(tokens, 6, 8), diffusers.FluxPipeline._unpack_latents(tokens, 48, 64, 8))


@pytest.mark.parametrize("table", ["dpm-solver++", "distilled"])
def test_flux_pipeline(table: str) -> None:
    pipe = flux()
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
    other = from_diffusers(pipe, flux().scheduler, guidance_scale=1.0, conditions=PROMPTS)
    assert distance(dode.sample(other, solver, NOISE), wanted) > 1e-3  # it does hear it


def test_flux_without_embedded_guidance() -> None:
    """Two halves of a batch, as for other pipelines; its pipeline calls that true guidance."""
    pipe = flux(embedded=False)
    for scale, negative in ((1.0, None), (4.0, "grey")):
        model, solver = put(pipe, "dpm-solver++", guidance_scale=scale, conditions=PROMPTS, negative=negative)
        latents = pack(NOISE * pipe.scheduler.init_noise_sigma).float()
        against = dict(negative_prompt=[negative] * 2, true_cfg_scale=scale) if negative else {}
        got = pipe(PROMPTS, latents=latents, height=16, width=16, output_type="latent", **against).images
        assert distance(unpack(got, 8, 8), dode.sample(model, solver, NOISE)) < 1e-4


# --- what is refused ---------------------------------------------------------------------------------


class Mine(DDPMPipeline):
    """Somebody's own: it may give its network anything."""


def pixart() -> Any:
    sizes = dict(sample_size=8, num_layers=1, attention_head_dim=4, num_attention_heads=2, norm_num_groups=1)
    channels = dict(in_channels=4, out_channels=8, cross_attention_dim=8, caption_channels=8)
    parts = dict(transformer=diffusers.PixArtTransformer2DModel(**channels, **sizes), scheduler=DDIMScheduler())
    return diffusers.PixArtSigmaPipeline(**texts(), vae=autoencoder(), **parts)


UNLISTED = {
    "DDIMPipeline": lambda: diffusers.DDIMPipeline(unet(), DDIMScheduler()),
    "Mine": lambda: Mine(unet(), DDIMScheduler()),
    "StableDiffusionInpaintPipeline": lambda: stable_diffusion("StableDiffusionInpaintPipeline"),
    "PixArtSigmaPipeline": pixart,
}


def refuses(message: str, *args: Any, **options: Any) -> None:
    with pytest.raises(ValueError, match=message) as error:
        from_diffusers(*args, **options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", UNLISTED)
def test_a_pipeline_that_is_not_compared_is_refused(kind: str) -> None:
    pipe = UNLISTED[kind]()
    refuses(rf"from_diffusers does not reproduce \S*{kind}; it is tested for DDPMPip", pipe, conditions=PROMPTS)
    if hasattr(pipe, "transformer"):  # nor its network alone
        message = f"does not reproduce {type(pipe.transformer).__name__}; it is tested for UN"
        refuses(message, pipe.transformer, pipe.scheduler, conditions=torch.zeros(1, 3, 8))


@pytest.mark.parametrize(
    "inputs",
    [
        dict(time_cond_proj_dim=8),
        dict(class_embed_type="timestep"),
        dict(addition_embed_type="image", encoder_hid_dim=8),
        dict(encoder_hid_dim_type="image_proj", encoder_hid_dim=8),
    ],
)
def test_a_network_with_other_inputs_is_refused(inputs: dict[str, Any]) -> None:
    pipe, (name, value) = stable_diffusion(unet=crossed(**inputs)), next(iter(inputs.items()))
    message = f"UNet2DConditionModel with {name}={value!r} takes inputs that from_diffusers does not reproduce"
    refuses(message, pipe, conditions="a fox")
    refuses(message, pipe.unet, scheduler=pipe.scheduler, conditions=torch.zeros(1, 3, 8))


@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler", "KarrasVeScheduler", "DDIMInverseScheduler"])
def test_a_scheduler_that_is_not_compared_is_refused(kind: str) -> None:
    scheduler = getattr(diffusers, kind)()
    for process in (scheduler, dict(scheduler.config) | dict(_class_name=kind)):
        refuses(f"from_diffusers does not reproduce {kind}; it is tested for DDIMSched", unet(), process)


def test_what_a_pipeline_was_given_that_is_not_reproduced() -> None:
    pipe, options = stable_diffusion(), dict(num_inference_steps=1, output_type="latent")
    pipe("a fox", guidance_rescale=0.7, **options)
    refuses(r"last called with guidance_rescale=0.7, which .* does not rep", pipe, conditions="a fox")
    pipe("a fox", **options)
    assert from_diffusers(pipe, conditions="a fox").shape == (4, 8, 8)
    pipe.unet.encoder_hid_proj = torch.nn.Linear(8, 8)  # as load_ip_adapter leaves it
    refuses("does not reproduce image prompts", pipe, conditions="a fox")
    pipe = stable_diffusion_xl()
    assert from_diffusers(pipe, conditions="a fox", shape=(4, 8, 8)).shape == (4, 8, 8)
    message = "given the size of its image, which from_diffusers does for latents of 8 x 8"
    refuses(message, pipe, conditions="a fox", shape=(4, 16, 16))
    message = r"times of 0..1 \(num_train_timesteps=1\) does not fit"
    refuses(message, unet(), FlowMatchEulerDiscreteScheduler(num_train_timesteps=1))
    pipe = stable_diffusion(vae=autoencoder(latents_mean=[0.1] * 4, latents_std=[0.5] * 4))
    with pytest.raises(ValueError, match="an autoencoder with latents_mean= is not supported"):
        decode(pipe, torch.zeros(1, 4, 8, 8))


def test_flux_alone() -> None:
    scheduler, text = FlowMatchEulerDiscreteScheduler(), torch.zeros(1, 3, 8)
    rows = {"encoder_hidden_states": text, "pooled_projections": torch.zeros(1, 8)}
    alone = dict(scheduler=scheduler, conditions=rows, guidance_scale=2.0)
    x = torch.zeros(1, 4, 4, 6)
    assert from_diffusers(flux_transformer(), shape=x.shape[1:], **alone)(x, 1.0).shape == x.shape
    for options, message in (
        (dict(), "a Flux transformer alone gives no sample size; give shape="),
        (dict(shape=(4, 5, 6)), r"takes latents of \(4, even, even\), not \(4, 5, 6\)"),
        (dict(shape=(4, 4, 4), guidance_scale=None), "takes its guidance as an input: give guidance_scale="),
        (dict(shape=(4, 4, 4), conditions=text), "Flux wants pooled_projections: give conditions="),
    ):
        refuses(message, flux_transformer(), **alone | options)
