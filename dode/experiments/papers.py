"""The papers' own experiments as parameter sets: what a notebook takes at the preset "paper" to run a row of theirs.

    papermill NOTEBOOK OUT.ipynb -p preset paper -p checkpoint CHECKPOINT -p device cuda

All of them: 50,000 images behind each distance, FID with the resizing of the original implementation.  The statistics
of the training images are the user's to make, once (:func:`dode.experiments.quality.evaluator` says how and where).
The grid is the checkpoint's own (:meth:`dode.denoisers.Denoiser.grid`): uniform in time on a VP chain, Karras's from
80 to 0 with rho = 7 for EDM's networks.  The notebook ``learned`` gives each handcrafted solver the best of four.
"""

from __future__ import annotations

from dataclasses import dataclass

from dode.distillation import DISTILLERS
from dode.solvers import SOLVERS

KIM, LIANG = "Kim et al. 2024", "Liang et al. 2025"
DDIM, TABLE_5 = (2, 5, 10, 25, 50, 100, 250), (3, 4, 5, 6, 7, 8, 9, 10)

HANDCRAFTED = tuple(info.name for info in SOLVERS.values() if info.compared)
METHODS = (*HANDCRAFTED, "start", *DISTILLERS)  # of the notebook ``learned``


@dataclass(frozen=True)
class Parameters:
    """One row of a paper's figure or table."""

    source: str  # paper, figure or table
    notebook: str  # what runs it
    data: str  # the paper's name for it: the statistics of FID are of these training images
    checkpoint: str  # a name of :data:`dode.zoo.CATALOGUE`; with "@SCALE", guided by its classifier
    nfes: tuple[int, ...]  # third-order solvers begin at 3, Heun takes odd numbers
    fit_images: int = 100  # |B|, the noises that D-ODE solvers are fitted on
    blocks: int = 3  # of 50,000 seeds each


ROWS = (
    Parameters(f"{KIM}, figure 3", "figure_3", "CIFAR-10", "ddpm-cifar10-32", DDIM),
    Parameters(f"{KIM}, figure 3", "figure_3", "CelebA-64", "ddim-celeba-64", DDIM),
    Parameters(f"{KIM}, figure 3", "figure_3", "ImageNet-64", "iddpm-imagenet-64", DDIM),
    Parameters(f"{KIM}, figure 3", "figure_3", "ImageNet-128", "adm-imagenet-128@1.25", DDIM),
    Parameters(f"{KIM}, figure 3", "figure_3", "LSUN-Bedroom", "adm-lsun-bedroom", DDIM, fit_images=25),
    Parameters(f"{KIM}, figure 4", "figure_4", "CIFAR-10", "edm-cifar10-32x32-uncond-vp", DDIM),
    Parameters(f"{KIM}, figure 4", "figure_4", "FFHQ-64", "edm-ffhq-64x64-uncond-vp", DDIM),
    Parameters(f"{KIM}, figure 4", "figure_4", "ImageNet-64", "edm-imagenet-64x64-cond-adm", DDIM),
    Parameters(f"{LIANG}, table 5", "learned", "CIFAR-10", "edm-cifar10-32x32-uncond-vp", TABLE_5, blocks=1),
    Parameters(f"{LIANG}, table 5", "learned", "FFHQ-64", "edm-ffhq-64x64-uncond-vp", TABLE_5, blocks=1),
    Parameters(f"{LIANG}, table 5", "learned", "ImageNet-64", "edm-imagenet-64x64-cond-adm", TABLE_5, blocks=1),
)


def fit_images(checkpoint: str, otherwise: int) -> int:
    """|B| of a checkpoint at the preset "paper"."""
    return next((row.fit_images for row in ROWS if row.checkpoint == checkpoint), otherwise)
