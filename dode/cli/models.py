"""The model of ``--checkpoint`` or ``--diffusers``."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from dode import zoo
from dode.cli.options import refuse_conditioning
from dode.denoisers import NetworkDenoiser
from dode.utils.files import first_line


def choose_device(device: str) -> str:
    """The GPU if ``device`` is "auto" and there is one."""
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise ValueError("--device cuda: torch finds no CUDA device; take --device cpu, or leave it out")
    return ("cuda" if cuda else "cpu") if device == "auto" else device


def open_model(args: argparse.Namespace, checkpoint: str | None) -> NetworkDenoiser:
    """The denoiser of a checkpoint or of ``--diffusers``."""
    device = choose_device(args.device)
    if args.diffusers is not None:
        return open_pipeline(args, device)
    refuse_conditioning(args)
    checkpoint = checkpoint or args.checkpoint
    if (row := zoo.published(checkpoint)) and row.hub:
        raise ValueError(f"{checkpoint} is a pipeline of diffusers; take --diffusers {row.hub} and no --checkpoint")
    return zoo.load_denoiser(checkpoint, device)


def sentence(error: Exception) -> str:
    """The first sentence of what went wrong, without asides in parentheses."""
    plain = re.sub(r"\s+\([^()]*\)", "", first_line(error))
    return plain.split(". ")[0].rstrip(". ") or type(error).__name__


def load_pipeline(name: str) -> Any:
    """The pipeline in a folder or on the hub; weights from safetensors only, never from a pickle.

    ValueError, one line, for anything that is no such pipeline, or a hub that cannot be reached.
    """
    from diffusers import DiffusionPipeline
    from diffusers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        return DiffusionPipeline.from_pretrained(name, use_safetensors=True, low_cpu_mem_usage=False)
    except Exception as error:  # a broken folder or a hub out of reach can raise anything
        reason = sentence(error)
        if Path(name).exists():
            raise ValueError(f"--diffusers {name} holds no pipeline that diffusers can load: {reason}") from None
        missing = "is no folder here, and the hub gives no such pipeline; check the name and the connection"
        raise ValueError(f"--diffusers {name} {missing} ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def check_conditioning(args: argparse.Namespace, pipeline: Any) -> None:
    """ValueError, in terms of the options, for conditioning that the pipeline does not take or lacks."""
    from diffusers import DiTTransformer2DModel

    from dode.diffusers.networks import arguments

    network: Any = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if not isinstance(network, nn.Module) or not hasattr(network, "config"):
        return  # from_diffusers says so
    kind, config = type(pipeline).__name__, cast(Mapping[str, Any], network.config)
    known, needed, _ = arguments(network)
    can = {"--prompt": hasattr(pipeline, "encode_prompt"), "--class-label": "class_labels" in known}
    options = " or ".join(option for option in can if can[option])
    given = "--prompt" if args.prompt else "--class-label" if args.class_label else None
    guided = args.guidance_scale is not None and args.guidance_scale > 1
    if given and not can[given]:
        what = "takes no prompts" if given == "--prompt" else "is not class-conditional"
        raise ValueError(f"{given}: {kind} {what}; {f'take {options}' if options else 'leave it out'}")
    if guided and not options:
        raise ValueError(f"--guidance-scale: {kind} is unconditional; leave it out")
    if not given and options and (guided or can["--prompt"] or needed):
        raise ValueError(f"{kind} is conditional: give {options}")
    if guided and given == "--class-label" and not isinstance(network, DiTTransformer2DModel):
        other = "leave it out, or give negative= to dode.from_diffusers"
        raise ValueError(f"--guidance-scale: {kind} has no known label of no class; {other}")
    if config.get("guidance_embeds") and args.guidance_scale is None:
        raise ValueError(
            f"{kind}: its network takes the guidance scale as an input; give --guidance-scale, usually 3.5"
        )


def open_pipeline(args: argparse.Namespace, device: str) -> NetworkDenoiser:
    """The denoiser of ``--diffusers`` with its conditioning."""
    try:
        from dode.diffusers import from_diffusers  # diffusers takes seconds to import, and may not be there
        from dode.diffusers.support import check_pipeline
    except ImportError as error:
        raise ValueError(f"--diffusers: {error}") from None
    if args.prompt and args.class_label:
        raise ValueError("a pipeline takes --prompt or --class-label, not both")
    if args.negative_prompt is not None and not args.prompt:
        raise ValueError("--negative-prompt needs a --prompt")
    pipeline = load_pipeline(args.diffusers)
    check_pipeline(pipeline)
    check_conditioning(args, pipeline)
    pipeline.to(device)
    try:
        return from_diffusers(
            pipeline, guidance_scale=args.guidance_scale, conditions=args.prompt or args.class_label,
            negative=args.negative_prompt,
        )  # fmt: skip
    except ValueError as error:
        more = "; these are arguments of dode.from_diffusers" if re.search(r"\w=", str(error)) else ""
        raise ValueError(f"--diffusers {args.diffusers}: {error}{more}") from None
