"""The command line's side of :mod:`dode.diffusers`: a folder or a hub's name into a denoiser and its decoder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from diffusers.utils import logging
from torch import Tensor

from dode.denoisers import NetworkDenoiser
from dode.diffusers.pipelines import decode, from_diffusers


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
        reason = str(error).strip().split("\n")[0].split(". ")[0] or type(error).__name__
        if Path(name).exists():
            raise ValueError(f"--diffusers {name} holds no pipeline that diffusers can load: {reason}") from None
        missing = "is no folder here, and the hub gives no such pipeline; check the name, and the network"
        raise ValueError(f"--diffusers {name} {missing} ({reason})") from None
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def opened(args: argparse.Namespace, device: str) -> tuple[NetworkDenoiser, Callable[[Tensor], Tensor]]:
    """The denoiser of ``--diffusers``, told what the options say, and what makes images of its samples."""
    if args.prompt and args.class_label:
        raise ValueError("a pipeline is told --prompt or --class-label, not both")
    if args.negative_prompt is not None and not args.prompt:
        raise ValueError("--negative-prompt needs a --prompt to lead away from")
    pipeline = load(args.diffusers)
    pipeline.to(device)
    model = from_diffusers(
        pipeline, guidance_scale=args.guidance_scale, conditions=args.prompt or args.class_label,
        negative=args.negative_prompt,
    )  # fmt: skip
    return model, partial(decode, pipeline)
