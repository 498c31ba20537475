"""How the shipped networks were trained: ``python -m dode.training fashion-mnist-noise``.

A run is a :class:`Recipe` (what), a loss (:mod:`dode.training.losses`) and a :class:`Run`, which resumes;
:func:`train` puts them together for the networks that dode ships, by the rows of :data:`RECIPES`.
"""

from dode.training.losses import (
    accuracy,
    classifier_loss,
    denoiser_loss,
    denoising_loss,
    draw_sigma,
    prediction_loss,
)
from dode.training.networks import describe, missing, reference_moments, ship, train
from dode.training.recipes import RECIPES, Recipe, build_classifier, build_denoiser, recipe_named
from dode.utils.optimisation import BACKWARD, Run

__all__ = [
    "BACKWARD",
    "RECIPES",
    "Recipe",
    "Run",
    "accuracy",
    "build_classifier",
    "build_denoiser",
    "classifier_loss",
    "denoiser_loss",
    "denoising_loss",
    "describe",
    "draw_sigma",
    "missing",
    "prediction_loss",
    "recipe_named",
    "reference_moments",
    "ship",
    "train",
]
