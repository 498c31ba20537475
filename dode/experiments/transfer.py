"""A learned solver where it was not learned: on another network, or with another number of calls."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from typing import Any

from dode import distillation, zoo
from dode.experiments import comparisons
from dode.experiments.fits import evaluators, solver_of
from dode.experiments.learned import reference_moments
from dode.experiments.quality import draw, held_out_seeds, load_autocast, load_cached, seeded
from dode.experiments.sweeps import ARITHMETIC, Preset, autocast, provenance, results
from dode.metrics import frechet_distance, rmse
from dode.metrics import moments as moments_of
from dode.sampling import sample
from dode.tableau import Tableau

TRANSFER_KEYS = ("checkpoint", "weights", "made_for", "made_for_weights", "method", "solver", "made_nfe", "nfe", "n")


def table_of(p: Preset, device_name: str, made_for: str, method: str, nfe: int) -> Tableau:
    """The table that a method, or "start", makes for a network; ValueError if it designs one for each image."""
    found = solver_of(p, made_for, device_name, method, nfe)
    if not isinstance(found, Tableau):
        raise ValueError(f"{method} designs its table for each image of {made_for}; no other network can be given it")
    return found


def transfer_cell(
    p: Preset, device_name: str, checkpoint: str, made_for: str, method: str, made_nfe: int, nfe: int, n: int
) -> dict[str, Any]:
    """What a table that was made for ``made_for`` and ``made_nfe`` calls does on ``checkpoint`` with ``nfe``.

    The cell names the numbers of the table: a new fit is a new row.
    """
    solver = "" if method == "start" else table_of(p, device_name, made_for, method, made_nfe).digest
    return dict(
        checkpoint=checkpoint, weights=zoo.digest(checkpoint), made_for=made_for, method=method,
        made_for_weights=zoo.digest(made_for), solver=solver, made_nfe=made_nfe, nfe=nfe, n=n,
    )  # fmt: skip


def transfer_row(
    p: Preset,
    device_name: str,
    *,
    checkpoint: str,
    made_for: str,
    method: str,
    made_nfe: int,
    nfe: int,
    n: int,
    **_: str,
) -> dict[str, Any]:
    """The distances of a cell: Fréchet to the training images and to the reference's samples, RMSE to its images."""
    table = table_of(p, device_name, made_for, method, made_nfe)
    table = (table if nfe == made_nfe else distillation.resampled(table, nfe)).unbind()
    features, data = evaluators(device_name, checkpoint)[0]
    aim, _critic = reference_moments(p, device_name, checkpoint)
    drawn = held_out_seeds(n)
    seen = moments_of(draw(load_autocast(p, checkpoint, device_name), table, drawn), features)
    truth = comparisons.reference_images(checkpoint, device_name, p.zoo_images, p.reference_steps)
    model, noise = seeded(load_cached(checkpoint, device_name), held_out_seeds(p.zoo_images))
    end = sample(model, table, noise, batch_size=100).cpu()
    return dict(
        fd_data=f"{frechet_distance(seen, data):.5f}", fd_reference=f"{frechet_distance(seen, aim):.5f}",
        rmse=f"{rmse(end, truth):.5f}", n_rmse=p.zoo_images, seeds=f"{drawn.start}-{drawn.stop - 1}",
        network=ARITHMETIC[autocast(p, device_name)], preset=p.name, **provenance(device_name),
    )  # fmt: skip


def measure(p: Preset, device_name: str, cells: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of :func:`transfer_cell`'s cells, measured where there are none."""
    cells = list(cells)
    work = functools.partial(transfer_row, p, device_name)
    return results("transfer", p, TRANSFER_KEYS).run(cells, work).select(cells)
