"""How the shipped networks were trained: ``dode train fashion-mnist-noise``.

A run is a :class:`Training` (what), a loss (:mod:`dode.training.losses`) and a :class:`Run`, which resumes;
:func:`train` puts them together for the networks that dode ships, by the rows of :data:`TRAININGS`.
"""

from dode.training.losses import accuracy, classifier_loss, denoiser_loss, denoising_loss, draw_sigma, prediction_loss
from dode.training.networks import describe, missing, ship, train, write_moments
from dode.training.recipes import TRAININGS, Training, build_classifier, build_denoiser, training_named
from dode.utils.optimisation import BACKWARD, Run

__all__ = [
    "BACKWARD", "TRAININGS", "Run", "Training", "accuracy", "build_classifier", "build_denoiser", "classifier_loss",
    "denoiser_loss", "denoising_loss", "describe", "draw_sigma", "missing", "prediction_loss", "ship", "train",
    "training_named", "write_moments",
]  # fmt: skip
