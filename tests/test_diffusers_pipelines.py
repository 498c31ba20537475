"""Whole pipelines of diffusers, tiny and untrained, with DodeScheduler: each gives what :func:`dode.sample` gives.

Their noise is drawn as the pipeline draws it.  ``dode.sample`` walks in float64 around the same float32 network, so
what is left is the rounding of the pipeline's own float32 state.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LDMPipeline,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)
from torch import Tensor

import dode
from dode import solvers
from dode.cli.models import load_pipeline
from dode.denoisers import NetworkDenoiser
from dode.diffusers import DodeScheduler, decode, from_diffusers
from dode.tableau import Tableau
from tests import letters

TOLERANCE = 2e-5  # of the largest entry
FLOW = 1e-4  # where levels reach sigma = 3,000
SCALED = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
PROMPTS = ["a red fox", "two plums"]
UNET = dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4)


def distance(a: Tensor, b: Tensor) -> float:
    return float((a.double() - b.double()).abs().max() / b.abs().max())


def with_other_sigma_in(table: Tableau) -> Tableau:
    """The table, with noise levels given to the network that differ from those of the state."""
    factors = torch.linspace(0.9, 1.1, table.nfe, dtype=torch.float64)
    return Tableau(
        table.basis, table.sigmas, table.weights, table.noise_weights, factors * table.sigmas_in, table.metadata
    )


def distilled(model: NetworkDenoiser) -> Tableau:
    noise = dode.initial_noise(model.shape, range(2 * model.conditions))
    return dode.distillation.d_ode(model, solvers.ipndm(model.grid, nfe=3, order=2), noise, scale=2)


TABLES: dict[str, Callable[[NetworkDenoiser], Tableau]] = {
    "ddim": lambda m: solvers.ddim(m.grid, nfe=4),
    "dpm-solver++": lambda m: solvers.dpm_solver_pp(m.grid, nfe=5, order=3),
    "unipc": lambda m: solvers.unipc(m.grid, nfe=5, order=3),
    "heun": lambda m: solvers.heun(m.grid, nfe=5),
    "two calls a step": lambda m: solvers.dpm_2(m.grid, nfe=4, final="sigma_min"),
    "afs": lambda m: solvers.ipndm(m.grid, nfe=4, afs=True),
    "other_sigma_in": lambda m: with_other_sigma_in(solvers.deis(m.grid, nfe=4)),
    "distilled": distilled,
}


def tables(*names: str) -> pytest.MarkDecorator:
    """Two a pipeline, all of them between the pipelines; that each is walked right, test_diffusers_scheduler shows."""
    return pytest.mark.parametrize("table", names)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


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


def drawn(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Noise as a pipeline draws it from a generator."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).double()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- pixels, without a condition -------------------------------------------------------------------


@functools.cache
def pixels() -> UNet2DModel:
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2)
    return UNet2DModel(sample_size=8, in_channels=3, out_channels=3, **blocks, **UNET)


PROCESSES = {
    "epsilon": DDPMScheduler(),
    "sample": DDPMScheduler(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
    "v_prediction": DDPMScheduler(prediction_type="v_prediction", beta_schedule="scaled_linear"),
    "flow_prediction": FlowMatchEulerDiscreteScheduler(shift=2.0),
    "edm": EDMEulerScheduler(),
}


def run_pixels(table: str, process: str, folder: Path | None = None) -> None:
    pipe = quiet(DDPMPipeline(pixels(), PROCESSES[process]))
    model = from_diffusers(pipe)
    solver = TABLES[table](model)
    pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
    if folder is not None:
        pipe.save_pretrained(folder)
        pipe = quiet(DDPMPipeline.from_pretrained(folder))
    seen = watched(pipe.scheduler)
    images = pipe(batch_size=3, generator=generator(), output_type="np").images  # 1000 steps, if it were a DDPM
    assert len(seen) == solver.nfe
    noise = drawn((3, 3, 8, 8)) / pipe.scheduler.init_noise_sigma  # this pipeline starts from plain noise
    wanted = dode.sample(model, solver, noise)
    assert distance(seen[-1], wanted) < TOLERANCE
    clipped = (wanted / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(
        torch.from_numpy(images).double(), clipped, rtol=0, atol=TOLERANCE * float(wanted.abs().max())
    )


@tables("dpm-solver++", "two calls a step")
def test_ddpm_pipeline(table: str) -> None:
    run_pixels(table, "epsilon")


@pytest.mark.parametrize("process", PROCESSES)
def test_every_prediction_type(process: str) -> None:
    run_pixels("unipc", process)


@tables("afs", "other_sigma_in")
def test_a_stored_pipeline_keeps_its_solver(table: str, tmp_path: Path) -> None:
    run_pixels(table, "v_prediction", tmp_path)
    config = json.loads((tmp_path / "scheduler/scheduler_config.json").read_text(encoding="utf-8"))
    assert config["_class_name"] == "DodeScheduler" and config["beta_schedule"] == "scaled_linear"


# --- latents, without a condition ------------------------------------------------------------------


@tables("heun", "distilled")
def test_unconditional_latent_diffusion(table: str, tmp_path: Path) -> None:
    """What latent LSUN and CelebA-HQ become once they are converted: a quantised autoencoder, and its own betas."""
    torch.manual_seed(0)
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    coder = VQModel(
        latent_channels=3, num_vq_embeddings=64, scaling_factor=0.5, sample_size=16, **blocks, **UNET
    ).eval()
    process = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195, clip_sample=False)
    LDMPipeline(coder, pixels(), process).save_pretrained(tmp_path)
    pipe = quiet(load_pipeline(str(tmp_path)))
    assert isinstance(pipe, LDMPipeline)
    model = from_diffusers(pipe)
    assert (model.shape, model.name) == ((3, 8, 8), tmp_path.name)
    solver = TABLES[table](model)
    pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
    seen = watched(pipe.scheduler)
    images = torch.from_numpy(pipe(batch_size=2, generator=generator(), output_type="np").images)
    assert len(seen) == solver.nfe
    assert distance(seen[-1], dode.sample(model, solver, drawn((2, 3, 8, 8)))) < TOLERANCE
    decoded = (decode(pipe, seen[-1]) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(images, decoded, rtol=0, atol=1e-6)


# --- latents and class labels, guided --------------------------------------------------------------


def autoencoder(**more: Any) -> AutoencoderKL:
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    return AutoencoderKL(
        latent_channels=4, block_out_channels=(4, 8), norm_num_groups=2, sample_size=16, **blocks, **more
    )


@functools.cache
def dit() -> DiTPipeline:
    torch.manual_seed(0)
    sizes = dict(num_attention_heads=2, attention_head_dim=4, num_layers=1, sample_size=8, norm_num_groups=2)
    transformer = DiTTransformer2DModel(
        in_channels=4, out_channels=8, num_embeds_ada_norm=1000, **sizes
    )  # and variance
    for weight in transformer.parameters():  # its last layers start small
        torch.nn.init.normal_(weight, std=0.2)
    return quiet(DiTPipeline(transformer.eval(), autoencoder().eval(), DDIMScheduler()))


@pytest.mark.parametrize(("table", "scale"), [("ddim", 1.0), ("other_sigma_in", 4.0)])
def test_dit_pipeline(table: str, scale: float) -> None:
    pipe, labels = dit(), [7, 300, 7]
    pipe.register_modules(scheduler=DDIMScheduler())
    model = from_diffusers(pipe, guidance_scale=scale, conditions=labels)
    assert model.shape == (4, 8, 8) and model.conditions == 3
    solver = TABLES[table](model)
    pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
    seen = watched(pipe.scheduler)
    images = pipe(labels, guidance_scale=scale, generator=generator(), output_type="np").images
    wanted = dode.sample(model, solver, drawn((3, 4, 8, 8)) / pipe.scheduler.init_noise_sigma)
    assert distance(seen[-1][:3], wanted) < TOLERANCE
    decoded = (decode(pipe, wanted) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(images), decoded, rtol=0, atol=1e-3)


# --- text to image -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, Any]]:
    """A tokenizer of single letters and an untrained text model, of the class asked for."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("tokenizer")

    def make(kind: str = "CLIPTextModel", **more: Any) -> tuple[Any, Any]:
        tokenizer, words = letters.tokenizer(folder)
        config = transformers.CLIPTextConfig(
            vocab_size=words, hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=2,
            max_position_embeddings=12, bos_token_id=words - 2, eos_token_id=words - 1,
            pad_token_id=words - 1, projection_dim=8, **more,
        )  # fmt: skip
        torch.manual_seed(0)
        return tokenizer, getattr(transformers, kind)(config).eval()

    return make


def cross_attention(**more: Any) -> UNet2DConditionModel:
    torch.manual_seed(0)
    blocks = dict(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )
    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=more.pop("cross_attention_dim", 8),
        attention_head_dim=2, **blocks, **UNET, **more,
    ).eval()  # fmt: skip


def stable_diffusion(clip: Callable[..., tuple[Any, Any]], kind: str = "StableDiffusionPipeline", **parts: Any) -> Any:
    import diffusers

    tokenizer, text = clip()
    usual = dict(
        vae=autoencoder().eval(), text_encoder=text, tokenizer=tokenizer, unet=cross_attention(),
        scheduler=DDIMScheduler(**SCALED, clip_sample=False, steps_offset=1), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return quiet(getattr(diffusers, kind)(**usual | parts))


@tables("unipc", "distilled")
def test_stable_diffusion(table: str, clip: Callable[..., tuple[Any, Any]]) -> None:
    pipe = stable_diffusion(clip)
    for scale, negative in ((1.0, None), (5.0, None), (5.0, "grey")):
        model = from_diffusers(pipe, guidance_scale=scale, conditions=PROMPTS, negative=negative)
        solver = TABLES[table](model)
        pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
        against = None if negative is None else [negative] * 2
        options = dict(guidance_scale=scale, negative_prompt=against, output_type="latent")
        got = pipe(PROMPTS, generator=generator(), **options).images  # 50 steps, if it were another scheduler
        model.reset()
        assert distance(got, dode.sample(model, solver, drawn((2, 4, 8, 8)))) < TOLERANCE
        assert model.evaluations == 2 * model.nfe  # as many as there are images, guided or not
    pipe(PROMPTS, num_inference_steps=solver.nfe, output_type="latent")
    with pytest.raises(ValueError, match=f"num_inference_steps={solver.nfe}, not 30"):
        pipe(PROMPTS, num_inference_steps=30)


@pytest.mark.parametrize("strength", [1.0, 0.4])
def test_image_to_image(strength: float, clip: Callable[..., tuple[Any, Any]]) -> None:
    """From row ``k`` on it is the solver of the levels that are left: DEIS in ln sigma has the rows that lack."""
    pipe = stable_diffusion(clip, "StableDiffusionImg2ImgPipeline")
    model = from_diffusers(pipe, guidance_scale=5.0, conditions=PROMPTS)
    sigmas = model.grid(5)
    make = functools.partial(solvers.deis, variable="log_rho", order=3)
    pipe.scheduler = DodeScheduler.from_tableau(make(sigmas), pipe.scheduler.config)
    image = 0.5 * drawn((2, 4, 8, 8), seed=1).float()  # latents: they are not encoded
    options = dict(image=image, strength=strength, guidance_scale=5.0, output_type="latent")
    got = pipe(PROMPTS, num_inference_steps=5, generator=generator(), **options).images
    begin = 5 - int(5 * strength)
    left = make(sigmas[begin:], order=min(3, 5 - begin))
    noise = drawn((2, 4, 8, 8)) + image / sigmas[begin]
    assert distance(got, dode.sample(model, left, noise)) < TOLERANCE
    with pytest.raises(ValueError, match="num_inference_steps=5, not 50"):  # it would begin in a wrong place
        pipe(PROMPTS, **options)
    with pytest.raises(ValueError, match="no row 5 to begin with"):
        pipe(PROMPTS, num_inference_steps=5, **options | dict(strength=0.1))


def test_stable_diffusion_xl(clip: Callable[..., tuple[Any, Any]]) -> None:
    diffusers = pytest.importorskip("diffusers")
    (tokenizer, text), (tokenizer_2, text_2) = clip(), clip("CLIPTextModelWithProjection")
    more = dict(addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=32)
    pipe = quiet(
        diffusers.StableDiffusionXLPipeline(
            vae=autoencoder().eval(), text_encoder=text, text_encoder_2=text_2, tokenizer=tokenizer,
            tokenizer_2=tokenizer_2, unet=cross_attention(cross_attention_dim=16, **more),
            scheduler=DDIMScheduler(**SCALED, clip_sample=False, steps_offset=1),
        )
    )  # fmt: skip
    for scale in (1.0, 5.0):
        model = from_diffusers(pipe, guidance_scale=scale, conditions=PROMPTS)
        solver = TABLES["dpm-solver++"](model)
        pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
        got = pipe(PROMPTS, guidance_scale=scale, generator=generator(), output_type="latent").images
        assert distance(got, dode.sample(model, solver, drawn((2, 4, 8, 8)))) < TOLERANCE
    assert from_diffusers(pipe, conditions="a fox", shape=(4, 8, 8)).shape == (4, 8, 8)
    with pytest.raises(ValueError, match="given the size of its image, which from_diffusers does for latents of 8 x 8"):
        from_diffusers(pipe, conditions="a fox", shape=(4, 16, 16))


# --- flow matching -----------------------------------------------------------------------------------


def flow_transformer() -> SD3Transformer2DModel:
    torch.manual_seed(0)
    found = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=4, num_attention_heads=2,
        joint_attention_dim=20, caption_projection_dim=8, pooled_projection_dim=16, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    for weight in found.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return found.eval()


@tables("heun", "afs")
def test_stable_diffusion_3(table: str, clip: Callable[..., tuple[Any, Any]]) -> None:
    diffusers = pytest.importorskip("diffusers")
    (tokenizer, text), (tokenizer_2, text_2) = (clip("CLIPTextModelWithProjection") for _ in range(2))
    pipe = quiet(
        diffusers.StableDiffusion3Pipeline(
            transformer=flow_transformer(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
            vae=autoencoder().eval(), text_encoder=text, tokenizer=tokenizer, text_encoder_2=text_2,
            tokenizer_2=tokenizer_2, text_encoder_3=None, tokenizer_3=None,
        )
    )  # fmt: skip
    for scale in (1.0, 4.0):
        model = from_diffusers(pipe, guidance_scale=scale, conditions=PROMPTS)
        solver = TABLES[table](model)
        pipe.scheduler = DodeScheduler.from_tableau(solver, pipe.scheduler.config)
        latents = (
            drawn((2, 4, 8, 8)) * pipe.scheduler.init_noise_sigma
        ).float()  # of itself it starts from plain noise
        got = pipe(PROMPTS, guidance_scale=scale, latents=latents, output_type="latent").images
        assert distance(got, dode.sample(model, solver, drawn((2, 4, 8, 8)))) < FLOW


@tables("other_sigma_in", "distilled")
def test_a_flow_with_a_text(table: str) -> None:
    """Stable Diffusion 3's network and loop, guided, given tensors: what runs without a text encoder too."""
    transformer = flow_transformer()
    text = {"encoder_hidden_states": drawn((2, 5, 20)).float(), "pooled_projections": drawn((2, 16)).float()}
    none = {name: torch.zeros_like(rows) for name, rows in text.items()}
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    model = from_diffusers(transformer, scheduler, guidance_scale=4.0, conditions=text, negative=none)
    solver = TABLES[table](model)
    ours = DodeScheduler.from_tableau(solver, scheduler)
    both = {name: torch.cat([none[name], text[name]]) for name in text}
    noise = drawn((2, 4, 8, 8))
    x = (noise * ours.init_noise_sigma).float()
    ours.set_timesteps(solver.nfe, device="cpu")
    for t in ours.timesteps:
        said = transformer(hidden_states=torch.cat([x, x]), timestep=t.expand(4), **both, return_dict=False)[0]
        plain, conditioned = said.chunk(2)
        x = ours.step(plain + 4.0 * (conditioned - plain), t, x, return_dict=False)[0]
    assert distance(x, dode.sample(model, solver, noise)) < FLOW


# --- what is refused ---------------------------------------------------------------------------------


class Mine(DDPMPipeline):
    """Somebody's own: it may give its network anything."""


def unlisted(kind: str, clip: Callable[..., tuple[Any, Any]]) -> Any:
    """A tiny pipeline that is not among those above."""
    import diffusers

    sizes = dict(sample_size=8, num_layers=1, attention_head_dim=4, num_attention_heads=2, norm_num_groups=1)
    if kind in ("DDIMPipeline", "Mine"):
        return (Mine if kind == "Mine" else diffusers.DDIMPipeline)(pixels(), DDIMScheduler())
    if kind == "StableDiffusionControlNetPipeline":
        net = cross_attention()
        control = diffusers.ControlNetModel.from_unet(net, conditioning_embedding_out_channels=(8, 8))
        return stable_diffusion(clip, kind, unet=net, controlnet=control)
    if kind == "StableDiffusionAdapterPipeline":
        adapter = diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2)
        return stable_diffusion(clip, kind, adapter=adapter)
    if kind in ("StableDiffusionPAGPipeline", "StableDiffusionInpaintPipeline"):
        return stable_diffusion(clip, kind)
    tokenizer, text = clip()
    parts = dict(tokenizer=tokenizer, text_encoder=text, vae=autoencoder())
    if kind == "PixArtSigmaPipeline":  # masks
        network = diffusers.PixArtTransformer2DModel(
            in_channels=4, out_channels=8, cross_attention_dim=8, caption_channels=8, **sizes
        )
        return diffusers.PixArtSigmaPipeline(**parts, transformer=network, scheduler=DDIMScheduler())
    network = diffusers.AuraFlowTransformer2DModel(  # times of 0..1
        sample_size=8, in_channels=4, out_channels=4, num_mmdit_layers=1, num_single_dit_layers=1, attention_head_dim=4,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=8, pos_embed_max_size=64,
    )  # fmt: skip
    return diffusers.AuraFlowPipeline(**parts, transformer=network, scheduler=FlowMatchEulerDiscreteScheduler())


@pytest.mark.parametrize(
    "kind",
    [
        "DDIMPipeline", "Mine", "StableDiffusionControlNetPipeline", "StableDiffusionAdapterPipeline",
        "StableDiffusionPAGPipeline", "StableDiffusionInpaintPipeline", "PixArtSigmaPipeline", "AuraFlowPipeline",
    ],
)  # fmt: skip
def test_a_pipeline_that_is_not_compared_is_refused(kind: str, clip: Callable[..., tuple[Any, Any]]) -> None:
    with pytest.raises(
        ValueError, match=rf"from_diffusers does not reproduce \S*{kind}; it is tested for DDPMPip"
    ) as e:
        from_diffusers(unlisted(kind, clip), conditions=PROMPTS)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("kind", ["PixArtSigmaPipeline", "AuraFlowPipeline"])
def test_so_is_the_network_alone(kind: str, clip: Callable[..., tuple[Any, Any]]) -> None:
    pipe = unlisted(kind, clip)
    with pytest.raises(ValueError, match="does not reproduce (PixArt|AuraFlow)Transformer2DModel; it is tested for UN"):
        from_diffusers(pipe.transformer, pipe.scheduler, conditions=torch.zeros(1, 3, 8))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(time_cond_proj_dim=8), "UNet2DConditionModel with time_cond_proj_dim=8 takes inputs that"),
        (
            dict(class_embed_type="timestep"),
            "UNet2DConditionModel with class_embed_type='timestep' takes inputs that from_diffusers does not reproduce",
        ),
        (
            dict(addition_embed_type="image", encoder_hid_dim=8),
            "UNet2DConditionModel with addition_embed_type='image' takes inputs",
        ),
        (
            dict(encoder_hid_dim_type="image_proj", encoder_hid_dim=8),
            "UNet2DConditionModel with encoder_hid_dim_type='image_proj' takes inputs",
        ),
    ],
)
def test_a_network_with_other_inputs_is_refused(
    options: dict[str, Any], message: str, clip: Callable[..., tuple[Any, Any]]
) -> None:
    pipe = stable_diffusion(clip, unet=cross_attention(**options))
    for model, more in ((pipe, {}), (pipe.unet, dict(scheduler=pipe.scheduler))):
        with pytest.raises(ValueError, match=message):
            from_diffusers(model, conditions="a fox" if model is pipe else torch.zeros(1, 3, 8), **more)


def test_an_image_prompt_is_refused(clip: Callable[..., tuple[Any, Any]]) -> None:
    pipe = stable_diffusion(clip)
    pipe.unet.encoder_hid_proj = torch.nn.Linear(8, 8)  # as load_ip_adapter leaves it
    with pytest.raises(ValueError, match="does not reproduce image prompts"):
        from_diffusers(pipe, conditions="a fox")


def test_arguments_of_the_last_call_that_are_not_reproduced(clip: Callable[..., tuple[Any, Any]]) -> None:
    pipe = stable_diffusion(clip)
    options = dict(num_inference_steps=1, output_type="latent")
    pipe("a fox", guidance_rescale=0.7, **options)
    with pytest.raises(ValueError, match=r"last called with guidance_rescale=0.7, which .* does not rep"):
        from_diffusers(pipe, conditions="a fox")
    pipe("a fox", **options)
    assert from_diffusers(pipe, conditions="a fox").shape == (4, 8, 8)


@pytest.mark.parametrize("kind", ["LCMScheduler", "TCDScheduler", "KarrasVeScheduler", "DDIMInverseScheduler"])
def test_a_scheduler_that_is_not_compared_is_refused(kind: str) -> None:
    import diffusers

    scheduler = getattr(diffusers, kind)()
    with pytest.raises(ValueError, match=f"from_diffusers does not reproduce {kind}; it is tested for DDIMSched"):
        from_diffusers(pixels(), scheduler)
    with pytest.raises(ValueError, match=f"from_diffusers does not reproduce {kind}; it is tested for DDIMSched"):
        from_diffusers(pixels(), dict(scheduler.config) | dict(_class_name=kind))


def test_times_of_0_to_1_are_refused() -> None:
    with pytest.raises(ValueError, match=r"times of 0..1 \(num_train_timesteps=1\) does not fit"):
        from_diffusers(pixels(), FlowMatchEulerDiscreteScheduler(num_train_timesteps=1))


def test_an_autoencoder_with_moments_of_its_own_is_refused(clip: Callable[..., tuple[Any, Any]]) -> None:
    pipe = stable_diffusion(clip, vae=autoencoder(latents_mean=[0.1] * 4, latents_std=[0.5] * 4).eval())
    with pytest.raises(ValueError, match="an autoencoder with latents_mean= is not supported"):
        decode(pipe, torch.zeros(1, 4, 8, 8))
