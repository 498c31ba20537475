"""What fits look through: mixes of pixels, random features, and the features of classifiers that ship with dode.

The *critic* and the *observer* enter fits, the *classifier* measures (:mod:`dode.experiments.learned`): a solver that
is fitted with the features that measure it would be measured by its own loss.
"""

from __future__ import annotations

from dode import lms, zoo
from dode.data import DataSet
from dode.metrics import Moments

JUDGES = {"critic": "critic", "observer": "observer", "judge": "classifier"}
OURS = dict(pixels=0.1, averaged=0.5, critic=0.5, observer=1.0)
# What the errors of pixels, of features and of random ones (on a mesh, or averaged over the image) count in a fit.
MIXES: dict[str, dict[str, float]] = {
    "all": dict(pixels=0.1, random=3.0, critic=1.0), "seen": OURS, "raw": OURS, "pixels": dict(pixels=1.0),
    "random": dict(pixels=0.1, random=3.0), "averaged": dict(pixels=0.1, averaged=1.0),
    **{word: {"pixels": 0.1, word: 1.0} for word in JUDGES},
}  # fmt: skip


def usual(method: str) -> str:
    """The mix of a method of :data:`dode.lms.RECIPES`: "seen" for the second-order fit, "all" for the others."""
    return "seen" if method == "gauss-newton" else "all"


def residual(kind: str, data: DataSet | None, channels: int, device: str = "cpu") -> lms.Residual:
    """One of :data:`MIXES`, features in units of their spread over the training images.

    "all" is what every method but ours looks at.  "seen" is what ours does: of clipped images (:func:`dode.lms.seen`),
    through more eyes; "raw" is the same of images as they are, "seen-KIND" another mix of clipped ones.  "judge", the
    features that measure, no honest fit may use: it shows what the others miss.

    Parameters
    ----------
    data
        The data set whose classifiers know the images, of ``channels`` channels; None: pixels and random features are
        what is left of a mix.

    Raises
    ------
    ValueError
        No such mix, or it is of a classifier's features alone and there is no data set.
    """
    if kind.startswith("seen-"):
        return lms.seen(residual(kind.removeprefix("seen-"), data, channels, device))
    if kind not in MIXES:
        raise ValueError(f"no residual named {kind!r}; there are {', '.join(MIXES)}, and seen-KIND")
    if data is None and kind in JUDGES:
        raise ValueError(f"no {kind} knows these images; take the residual pixels, random or all")
    terms = list[tuple[float, lms.Residual]]()
    for word, weight in MIXES[kind].items():
        if word == "pixels":
            terms.append((weight, lms.pixels))
        elif word in ("random", "averaged"):
            terms.append((weight, lms.random_features(channels, mesh=4 if word == "random" else 1)))
        elif data:
            name = f"{data.name}-{JUDGES[word]}"
            network, _ = zoo.load_classifier(name, device)
            spread = Moments.load(zoo.CHECKPOINTS / zoo.moments_file(name)).cov.trace()
            terms.append((weight, lms.features(network, float(spread) ** -0.5)))
    return lms.seen(lms.stack(*terms)) if kind == "seen" else lms.stack(*terms)
