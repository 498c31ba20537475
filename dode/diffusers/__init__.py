"""Solvers of dode in pipelines of diffusers, and pipelines as denoisers to distil solvers for.

>>> import dode
>>> from diffusers import StableDiffusionPipeline
>>> pipe = StableDiffusionPipeline.from_pretrained("stable-diffusion-v1-5/stable-diffusion-v1-5")
>>> prompts = ["a photo of a red fox", "a bowl of plums"]
>>> model = dode.from_diffusers(pipe, guidance_scale=7.5, conditions=prompts)
>>> solver = dode.solvers.dpm_solver_pp(model.grid, nfe=5, order=2)
>>> learned = dode.distillation.d_ode(model, solver, dode.initial_noise(model.shape, range(16)))
>>> learned.save("d-dpm-solver-5.safetensors")
>>> pipe.scheduler = dode.DodeScheduler.from_tableau(learned, pipe.scheduler.config)
>>> image = pipe("a photo of an astronaut", guidance_scale=7.5).images[0]  # five calls

``pipe.save_pretrained`` stores the solver with the pipeline, as numbers in ``scheduler_config.json``; whoever loads it
imports ``dode.diffusers`` first.  ``dode.sample(model, learned, noise)`` gives the same latents, and
:func:`~dode.diffusers.pipelines.decode` their images.
"""

from dode.utils.environment import need

need("diffusers", "diffusers", "dode.diffusers")  # before what imports it with no such line

from dode.diffusers.pipelines import decode as decode, from_diffusers as from_diffusers  # noqa: E402
from dode.diffusers.scheduler import DodeScheduler as DodeScheduler  # noqa: E402
