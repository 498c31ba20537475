"""Denoisers: ``D(x, sigma) -> estimate of x_0``, the one thing a solver asks of a model.

``x`` is ``(B, ...)`` in the coordinates ``x / alpha``; ``sigma`` a number, a 0-d or a ``(B,)`` tensor.
Every kind of network becomes a denoiser by four coefficients that depend on sigma alone,

    D(x, sigma) = c_skip x + c_out F(c_in x, label)

so prediction types are one line each.  Network evaluations are counted here and nowhere else.

A solver's loop asks for the parts of ``D`` instead (:meth:`Denoiser.affine`): at one level for the whole
batch the coefficients are plain numbers, computed once, and what the solver needs (``D``, or the noise
``(x - D) / sigma``, which for a noise-predicting network is ``F`` itself) costs at most one pass or two.
"""

from dode.denoisers.base import Affine as Affine, Coefficients as Coefficients, Denoiser as Denoiser, expand as expand
from dode.denoisers.exact import GaussianDenoiser as GaussianDenoiser, MixtureDenoiser as MixtureDenoiser
from dode.denoisers.images import PICTURES as PICTURES, Images as Images
from dode.denoisers.networks import (
    ConsistencyPrediction as ConsistencyPrediction, DataPrediction as DataPrediction, EDMPrediction as EDMPrediction,
    FlowPrediction as FlowPrediction, NetworkDenoiser as NetworkDenoiser, NoisePrediction as NoisePrediction,
    VEPrediction as VEPrediction, VPrediction as VPrediction,
)  # fmt: skip
