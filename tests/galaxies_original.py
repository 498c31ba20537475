"""The networks of galaxies as their authors run them, in jax, and what they answer: ``galaxies_expected.csv``.

    pip install jax equinox einops && pip install --no-deps galaxygrad==0.2.1
    python tests/galaxies_original.py        # without jax the committed file is what the tests compare with

The committed file was written with Python 3.11, jax 0.10.2, equinox 0.13.8, einops 0.8.2 and numpy 2.4.6, on a CPU.
The package cannot be imported on Linux (it opens a file by another name than it has), so the module that defines the
network is loaded from its file alone.
"""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

EXPECTED = Path(__file__).with_name("galaxies_expected.csv")
FILES = {  # by the names of dode's cards
    "galaxies-hsc-32": "hsc_ScoreNet32", "galaxies-hsc-64": "hsc_ScoreNet64", "galaxies-ztf-32": "ZTF_ScoreNet32",
    "galaxies-ztf-64": "ZTF_ScoreNet64", "galaxies-lsst-60": "lsst_ScoreNet60", "galaxies-quasar-72": "quasar_lens72",
    "galaxies-roman-120": "roman_Scorenet120",
}  # fmt: skip
TIMES = np.geomspace(0.01, 10, 20).astype(np.float32)
PLACES = ((0.5, 0.5), (0.4, 0.6), (0.1, 0.9))  # of the pixels that are kept, in units of the side


def inputs(side: int) -> np.ndarray:
    """A noisy blob at each of ``TIMES``, float32 ``(20, 1, side, side)``, the same wherever it is made."""
    radius = np.hypot(*np.meshgrid(*2 * [np.arange(side) - side / 2])) / side
    blob, noise = 9 * np.exp(-radius / 0.1), np.random.RandomState(side).standard_normal((len(TIMES), side, side))
    t = TIMES.astype(np.float64)[:, None, None]
    return (np.exp(-t / 2) * blob + np.sqrt(-np.expm1(-t)) * noise).astype(np.float32)[:, None]


def summary(scores: np.ndarray) -> np.ndarray:
    """Of each score its root mean square and some pixels, ``(20, 4)``."""
    scores = np.asarray(scores, np.float64)[:, 0]
    kept = [scores[:, int(row * scores.shape[1]), int(column * scores.shape[2])] for row, column in PLACES]
    return np.stack([np.sqrt((scores**2).mean((1, 2))), *kept], axis=1)


def original(name: str) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """The network with its weights, in jax: images ``(B, 1, H, W)`` and times ``(B,)`` to scores."""
    import equinox
    import jax

    folder = Path(str(metadata.distribution("galaxygrad").locate_file("galaxygrad")))
    spec = importlib.util.spec_from_file_location("galaxygrad_models", folder / "models_eqx.py")
    assert spec and spec.loader
    models: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    side = int(name.rpartition("-")[2])
    empty = models.ScoreNet((1, side, side), 4, 64, 512, 512, 4, 10.0, key=jax.random.PRNGKey(0))
    network = equinox.tree_deserialise_leaves(folder / f"eqx_{FILES[name]}.eqx", empty)
    return lambda images, times: np.asarray(jax.vmap(network)(images, times))


def expected() -> dict[str, np.ndarray]:
    """The committed answers by name, ``(20, 4)`` each: :func:`summary`."""
    found = dict[str, list[list[float]]]()
    with EXPECTED.open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row.pop("network"), []).append([float(v) for k, v in row.items() if k != "t"])
    return {name: np.array(rows) for name, rows in found.items()}


def main() -> None:
    """Write the expected answers."""
    with EXPECTED.open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(["network", "t", "rms", *(f"at_{row}_{column}" for row, column in PLACES)])
        for name in FILES:
            scores = original(name)(inputs(int(name.rpartition("-")[2])), TIMES)
            for t, values in zip(TIMES, summary(scores), strict=True):
                rows.writerow([name, f"{t:.6g}", *(f"{v:.8g}" for v in values)])


if __name__ == "__main__":
    main()
