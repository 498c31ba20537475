"""The command line's side of :mod:`dode.diffusers`: a folder or a hub's name into a denoiser and its decoder."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from diffusers import DiffusionPipeline, DiTTransformer2DModel
from diffusers.utils import logging
from torch import Tensor, nn

from dode.denoisers import NetworkDenoiser
from dode.diffusers.networks import needs, takes
from dode.diffusers.pipelines import decode, from_diffusers


def sentence(error: Exception) -> str:
    """The first sentence of what went wrong, without asides in parentheses."""
    line = str(error).strip().split("\n")[0]
    plain = re.sub(r"\s+\([^()]*\)", "", line)
    return plain.split(". ")[0].rstrip(". ") or type(error).__name__


def load(name: str) -> Any:
    """The pipeline in a folder, or of the hub; its weights as safetensors only, for no pickle is opened.

    ValueError, one line, for anything that is no such pipeline, or a hub that cannot be reached.
    """
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        return DiffusionPipeline.from_pretrained(name, use_safetensors=True, low_cpu_mem_usage=False)
    except Exception as error:  # whatever diffusers comes upon in a folder that is broken, or on the way to the hub
        reason = sentence(error)
        if Path(name).exists():
            raise ValueError(f"--diffusers {name} holds no pipeline that diffusers can load: {reason}") from None
        missing = "is no folder here, and the hub gives no such pipeline; check the name, and the network"
        raise ValueError(f"--diffusers {name} {missing} ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def agree(args: argparse.Namespace, pipeline: Any) -> None:
    """ValueError, in the words of the options, where they are not what the pipeline is told."""
    network: Any = getattr(pipeline, "unet", None) or getattr(pipeline, "transformer", None)
    if not isinstance(network, nn.Module) or not hasattr(network, "config"):
        return  # from_diffusers says so
    kind, config = type(pipeline).__name__, cast(Mapping[str, Any], network.config)
    can = {"--prompt": hasattr(pipeline, "encode_prompt"), "--class-label": takes(network, "class_labels")}
    options = " or ".join(option for option in can if can[option])
    given = "--prompt" if args.prompt else "--class-label" if args.class_label else None
    guided = args.guidance_scale is not None and args.guidance_scale > 1
    if given and not can[given]:
        what = "reads no prompts" if given == "--prompt" else "is told no classes"
        raise ValueError(f"{given}: {kind} {what}; {f'take {options}' if options else 'leave it out'}")
    if guided and not options:
        raise ValueError(f"--guidance-scale: {kind} is told nothing that it could be guided to; leave it out")
    if not given and options and (guided or can["--prompt"] or needs(network)):
        raise ValueError(f"{kind} is told what to draw: give {options}")
    if guided and given == "--class-label" and not isinstance(network, DiTTransformer2DModel):
        other = "leave it out, or give negative= to dode.from_diffusers"
        raise ValueError(f"--guidance-scale: {kind} has no label known to stand for no class; {other}")
    if config.get("guidance_embeds") and args.guidance_scale is None:
        raise ValueError(f"the network of {kind} is told its guidance: give --guidance-scale, usually 3.5")


def opened(args: argparse.Namespace, device: str) -> tuple[NetworkDenoiser, Callable[[Tensor], Tensor]]:
    """The denoiser of ``--diffusers``, told what the options say, and what makes images of its samples."""
    if args.prompt and args.class_label:
        raise ValueError("a pipeline is told --prompt or --class-label, not both")
    if args.negative_prompt is not None and not args.prompt:
        raise ValueError("--negative-prompt needs a --prompt to lead away from")
    pipeline = load(args.diffusers)
    agree(args, pipeline)
    pipeline.to(device)
    try:
        model = from_diffusers(
            pipeline, guidance_scale=args.guidance_scale, conditions=args.prompt or args.class_label,
            negative=args.negative_prompt,
        )  # fmt: skip
    except ValueError as error:
        more = "; these are arguments of dode.from_diffusers" if re.search(r"\w=", str(error)) else ""
        raise ValueError(f"--diffusers {args.diffusers}: {error}{more}") from None
    return model, partial(decode, pipeline)
