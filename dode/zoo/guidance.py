"""Guidance by a classifier, or without one, as one more noise-predicting denoiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dode.denoisers import Coefficients, NoisePrediction, expand
from dode.denoisers.conditioning import Conditioning, Labels, class_labels
from dode.denoisers.networks import first_parameter


class ClassifierGuidance(NoisePrediction):
    """``eps - sqrt(1 - alpha_bar) * scale * grad log p(y | x_t)`` instead of ``eps``.

    Dhariwal and Nichol 2021, section 4.2, algorithm 2.

    ``x_t = alpha x`` is what both networks see, ``sqrt(1 - alpha_bar) = alpha sigma``; so ``D`` grows by
    ``alpha sigma^2 scale`` times the gradient.  ``nfe`` counts calls of the denoising network, as papers do; each of
    them comes with one pass of the classifier, forward and back.

    The gradient is taken in the classifier's own dtype, image by image (the classifier must not mix its batch).
    Where the sampler is differentiated, it is differentiated too (a second derivative of the classifier);
    otherwise no graph is kept, under ``torch.no_grad`` or not.

    Parameters
    ----------
    denoiser
        A noise-predicting one on a variance-preserving schedule, conditional or not.
    classifier
        ``(x_t, label) -> logits (B, classes)``, trained on noisy images with the same labels:
        :func:`dode.zoo.load_noisy_classifier`.
    labels
        The class to draw, or several in turn; by default the denoiser's, which is conditioned on it too.
    scale
        1 is Bayes' rule; a conditional denoiser usually takes about 1, an unconditional one up to 10.

    ValueError for another kind of denoiser, no labels, or labels that the network does not know.
    """

    def __init__(
        self, denoiser: NoisePrediction, classifier: nn.Module | Callable[[Tensor, Tensor], Tensor], *,
        labels: Labels = None, scale: float = 1.0,
    ) -> None:  # fmt: skip
        classes = getattr(denoiser.network, "classes", None)
        if not isinstance(denoiser, NoisePrediction) or classes is None:
            raise ValueError(f"classifier guidance shifts a predicted noise; {denoiser.name} predicts something else")
        if labels is None:
            conditioning = denoiser.conditioning
        elif classes:
            conditioning = class_labels(classes, labels)
        else:
            conditioning = Conditioning({"classes": torch.as_tensor(labels).reshape(-1).to(torch.int64)})
        if not conditioning.rows:
            raise ValueError(f"{denoiser.name} has no class to draw; give labels=, one for all or several in turn")
        super().__init__(
            denoiser.network, denoiser.shape, denoiser.schedule, conditioning=conditioning, autocast=denoiser.autocast,
            name=f"{denoiser.name}, guided {scale:g}",
        )  # fmt: skip
        self.classifier, self.scale, self.conditional, self.images = classifier, scale, bool(classes), denoiser.images

    def log_likelihood(self, x_t: Tensor, label: Tensor) -> Tensor:
        """``log p(y | x_t)``, ``(B,)``."""
        labels = self.conditioning(len(x_t), x_t.device)["classes"]
        logits = self.classifier(x_t, label)
        logs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
        return logs.gather(1, labels[:, None])[:, 0]

    def gradient(self, x_t: Tensor, label: Tensor) -> Tensor:
        """Of :meth:`log_likelihood` by ``x_t``, each image's own."""
        keep = torch.is_grad_enabled() and x_t.requires_grad
        # The fused kernels of attention have no second derivative; the plain formula has.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH) if keep else nullcontext():
            at = x_t if keep else x_t.detach().requires_grad_()
            (found,) = torch.autograd.grad(self.log_likelihood(at, label).sum(), at, create_graph=keep)
        return found

    def raw(self, x: Tensor, c: Coefficients, given: Mapping[str, Tensor] | None = None) -> Tensor:
        noise = super().raw(x, c, given if self.conditional else {})
        if not self.scale:
            return noise
        label = torch.as_tensor(c.label, dtype=torch.float32, device=x.device).expand(len(x))
        slope = self.gradient((x * expand(c.inp, x)).to(first_parameter(self.classifier).dtype), label)
        return noise - (self.scale * expand(-c.out * c.inp, x) * slope).to(noise.dtype)


class ClassifierFreeGuidance(NoisePrediction):
    """``eps(any) + scale * (eps(class) - eps(any))`` (Ho and Salimans 2022), of a network trained with both.

    ``nfe`` counts the two passes of the network as one, as papers do; ``scale`` 1 guides nothing.

    ValueError for another kind of denoiser than a class-conditional one that predicts the noise.
    """

    def __init__(self, denoiser: NoisePrediction, *, scale: float) -> None:
        if not isinstance(denoiser, NoisePrediction) or "classes" not in denoiser.conditioning.rows:
            raise ValueError(f"classifier-free guidance shifts the noise that a class has; {denoiser.name} has none")
        super().__init__(
            denoiser.network, denoiser.shape, denoiser.schedule, conditioning=denoiser.conditioning,
            autocast=denoiser.autocast, name=f"{denoiser.name}, guided {scale:g}",
        )  # fmt: skip
        self.scale, self.images = scale, denoiser.images

    def raw(self, x: Tensor, c: Coefficients, given: Mapping[str, Tensor] | None = None) -> Tensor:
        without, drawn = super().raw(x, c, {}), super().raw(x, c, given)
        return without + self.scale * (drawn - without)
