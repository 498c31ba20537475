"""How the shipped networks were trained: ``dode train fashion-mnist-noise``.

A run is a :class:`Training` (what), a loss (:mod:`dode.training.losses`) and a :class:`dode.utils.optimisation.Run`,
which resumes; :func:`train` puts them together for the networks that dode ships, by the rows of :data:`TRAININGS`.
"""

from dode.training.losses import (
    classifier_loss as classifier_loss, denoiser_loss as denoiser_loss, denoising_loss as denoising_loss,
    draw_sigma as draw_sigma, prediction_loss as prediction_loss,
)  # fmt: skip
from dode.training.networks import describe as describe, train as train
from dode.training.recipes import (
    TRAININGS as TRAININGS, Training as Training, build_classifier as build_classifier,
    build_denoiser as build_denoiser, trainings as trainings,
)  # fmt: skip
