"""``dode sample``: draw images with a solver file, or a handcrafted solver by its name, as a PNG or as numbers."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dode import distillation, solvers, zoo
from dode.cli.distill import build
from dode.cli.models import open_model
from dode.denoisers import Images, NetworkDenoiser
from dode.denoisers.images import sheet
from dode.sampling import initial_noise, sample
from dode.tableau import Tableau
from dode.utils.environment import need
from dode.utils.files import atomic, names_a_file, nearest

MODULES = {  # what writes a kind of file, the extra that brings it, and for what
    ".png": ("PIL.Image", "cli", "sample"), ".fits": ("astropy.io.fits", "galaxies", "a FITS file"),
}  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """``dode sample``."""
    checkpoint, stored = args.checkpoint, names_a_file(args.solver)
    if (kind := args.out.suffix.lower()) in MODULES:
        need(*MODULES[kind])  # before the work, not after it
    check_solver(args, stored)
    solver: Tableau | distillation.Designed | None = distillation.load_solver(args.solver) if stored else None
    if solver and not (checkpoint or args.diffusers) and not zoo.local(checkpoint := solver.metadata.get("model")):
        which = f"is for {checkpoint}, which does not ship with dode" if checkpoint else "names no network"
        raise ValueError(f"{args.solver} {which}; give one with --checkpoint or --diffusers")
    model = open_model(args, checkpoint)
    if kind == ".png":
        check_pictures(model)
    solver = solver or build(args, model)[0]
    if solver.metadata.get("model", model.name) not in (None, model.name):
        raise ValueError(f"{args.solver} is for {solver.metadata['model']}, not {model.name}; distil one for that")
    noise = initial_noise(model.shape, args.seeds, device=model.device)
    samples = sample(model.of(args.seeds), solver, noise, batch_size=args.batch_size, progress=True)
    with atomic(args.out) as temporary:
        write(temporary, kind, model.images, samples, args)
    print(f"wrote {args.out}: {len(samples)} images by {solver.metadata.get('solver', 'solver')}, NFE {solver.nfe}")


def write(path: Path, kind: str, images: Images, samples: Tensor, args: argparse.Namespace) -> None:
    """All samples in one file: a picture, or what they stand for (:meth:`Images.values`), float32 ``(B, C, H, W)``.

    In FITS an image of one channel has no axis for it.
    """
    if kind == ".png":
        pixels = torch.cat([images.to_uint8(part) for part in samples.split(args.batch_size)])
        return picture(pixels, args.columns).save(path, format="PNG")
    values = images.values(samples).float().cpu().numpy()
    if kind == ".npy":
        with path.open("wb") as file:  # a path without the suffix would get one
            return np.save(file, values)
    fits = need(*MODULES[kind])
    cube = fits.PrimaryHDU(values.squeeze(1) if values.ndim == 4 and values.shape[1] == 1 else values)
    fits.HDUList([cube, fits.BinTableHDU.from_columns([fits.Column("seed", "K", array=args.seeds)])]).writeto(
        path, overwrite=True, output_verify="exception"
    )


def check_pictures(model: NetworkDenoiser) -> None:
    """ValueError for a model whose samples are no pictures."""
    made = model.images.picture(torch.zeros(1, *model.shape, device=model.device)).shape[1:]
    if len(made) != 3 or made[0] not in (1, 3):
        raise ValueError(f"{model.name} makes samples of shape {tuple(made)}; a picture needs one channel or three")


def check_solver(args: argparse.Namespace, stored: bool) -> None:
    """ValueError for options that do not go with a file, or are missing beside a name."""
    if stored and (args.nfe or args.order or args.afs or args.grid != "default"):
        raise ValueError(f"{args.solver} is a finished solver; leave out --nfe, --order, --grid and --afs")
    if not stored and (name := args.solver.partition(":")[0]) not in solvers.SOLVERS:
        near = nearest(name, solvers.SOLVERS)
        raise ValueError(f"no solver named {name!r}; the nearest: {near}; a solver file ends in .safetensors")
    if not stored and (args.nfe is None or not (args.checkpoint or args.diffusers)):
        needs = "it needs --nfe and --checkpoint or --diffusers"
        raise ValueError(f"--solver {args.solver} is a name, not a file: {needs}")


def picture(images: Tensor, columns: int) -> Any:
    """uint8 ``(B, C, H, W)`` as one ``PIL.Image.Image``, grey or RGB, with a white line between images."""
    image = need("PIL.Image", "cli", "writing a picture")
    return image.fromarray(sheet(images, min(columns, len(images))))
