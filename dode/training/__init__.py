"""How the shipped networks were trained: ``dode train fashion-mnist-noise``.

A run is a :class:`Training` (what), a loss (:mod:`dode.training.losses`) and a :class:`dode.utils.optimisation.Run`,
which resumes; :func:`train` puts them together for the networks that dode ships, by the rows of :data:`TRAININGS`.
"""

from dode.training.losses import classifier_loss, denoiser_loss, denoising_loss, draw_sigma, prediction_loss
from dode.training.networks import describe, train
from dode.training.recipes import TRAININGS, Training, build_classifier, build_denoiser, trainings

__all__ = [
    "TRAININGS", "Training", "build_classifier", "build_denoiser", "classifier_loss", "denoiser_loss", "denoising_loss",
    "describe", "draw_sigma", "prediction_loss", "train", "trainings",
]  # fmt: skip
