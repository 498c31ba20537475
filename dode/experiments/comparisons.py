"""The zoo compared: which solvers, on which grids, how far from a reference solution on the same seeds."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from dode import experiments, schedules, solvers, zoo
from dode.denoisers import Denoiser
from dode.metrics import rmse
from dode.sampling import sample
from dode.tableau import Tableau
from dode.utils.files import FileError, load_tensors, save_tensors

# What a page calls an entry -> solver and options.  No order: the solver's usual one, or what a short grid carries.
ENTRIES: dict[str, tuple[str, dict[str, Any]]] = {
    "DDIM": ("ddim", {}),
    "iPNDM-4": ("ipndm", {}),
    "PNDM": ("pndm", {}),
    "LMS-4": ("lms", {}),
    "DEIS tAB2": ("deis", {}),
    "DEIS log-rho": ("deis", dict(variable="log_rho")),
    "DPM-Solver-3": ("dpm_solver", {}),
    "Heun": ("heun", {}),
    "DPM-2": ("dpm_2", {}),
    "DPM-Solver++(2M)": ("dpm_solver_pp", dict(order=2)),
    "DPM-Solver++(3M)": ("dpm_solver_pp", {}),
    "DPM-Solver++(3S)": ("dpm_solver_pp_singlestep", {}),
    "DEIS data": ("deis", dict(variable="log_rho", basis="data")),
    "UniPC-2": ("unipc", dict(order=2)),
    "UniPC-3": ("unipc", {}),
}

# Each from a denoiser to a grid function; all end at 0.
GRIDS: dict[str, Callable[..., Tensor]] = {
    "time": schedules.time_uniform,
    "quadratic": schedules.time_quadratic,
    "Karras": schedules.karras,
    "log SNR": schedules.log_snr,
}


def grid_function(name: str, denoiser: Denoiser) -> Callable[[int], Tensor]:
    """The grid called ``name`` over the denoiser's noise range, with a last step to 0.

    The time is that of the denoiser's schedule if it is a VP chain or a flow, else of the linear chain.
    """
    options: dict[str, Any] = dict(sigma_min=denoiser.sigma_min, sigma_max=denoiser.sigma_max, final="zero")
    if name in ("time", "quadratic") and isinstance(denoiser.schedule, (schedules.VPDiscrete, schedules.Flow)):
        options["schedule"] = denoiser.schedule
    return functools.partial(GRIDS[name], **options)


def build(entry: str, grid: Tensor | Callable[[int], Tensor], nfe: int | None = None) -> Tableau:
    """The entry on a grid, or on a grid function with ``nfe`` evaluations."""
    name, options = ENTRIES[entry]
    return solvers.get(name).make(grid, nfe=nfe, **options)


def possible_nfe(entry: str, nfe: int) -> int:
    """The largest number of evaluations, ``nfe`` at most, that the entry can make on a grid to 0."""
    name, options = ENTRIES[entry]
    return solvers.get(name).most_calls(nfe, options)


def reference_images(checkpoint: str, device: str, n: int, calls: int) -> Tensor:
    """Images of the first ``n`` held-out seeds, ``(n, C, H, W)``: ``calls`` calls of DPM-Solver++(2M) on Karras's grid.

    Of second order, so that its own error is small beside what is measured.  Kept in the project's ``_build``.
    """
    facts = dict(checkpoint=checkpoint, weights=zoo.digest(checkpoint), n=n, calls=calls)
    file = experiments.home() / "_build" / "references" / ("-".join(str(v) for v in facts.values()) + ".safetensors")
    try:
        return load_tensors(file, "images")[0]["images"]
    except FileError:
        pass
    model = zoo.load_denoiser(checkpoint, device)
    tableau = build("DPM-Solver++(2M)", grid_function("Karras", model), calls)
    conditioned, noise = experiments.seeded(model, experiments.held_out_seeds(n))
    images = sample(conditioned, tableau, noise, batch_size=100, progress=True).cpu()
    save_tensors(file, dict(images=images), "images", facts)
    return images


RMSE_KEYS = ("checkpoint", "weights", "solver", "grid", "nfe", "n", "reference_calls")


def rmse_cells(checkpoints: Iterable[str], nfes: Iterable[int], n: int, reference_calls: int) -> list[dict[str, Any]]:
    """Every entry on every grid; an NFE that a solver cannot make is replaced by the next one below."""
    cells = {
        (checkpoint, entry, grid, possible_nfe(entry, nfe)): None
        for checkpoint in checkpoints
        for nfe in sorted(nfes)
        for entry in ENTRIES
        for grid in GRIDS
    }
    return [
        dict(
            checkpoint=checkpoint, weights=zoo.digest(checkpoint), solver=entry, grid=grid, nfe=nfe, n=n,
            reference_calls=reference_calls,
        )
        for checkpoint, entry, grid, nfe in cells
    ]  # fmt: skip


def rmse_row(
    device: str, *, checkpoint: str, weights: str, solver: str, grid: str, nfe: int, n: int, reference_calls: int
) -> dict[str, Any]:
    """Measure one cell of :func:`rmse_cells`: root mean squared distance to :func:`reference`, in pixels of -1..1."""
    model = experiments.load_cached(checkpoint, device)
    seeds = experiments.held_out_seeds(n)
    conditioned, noise = experiments.seeded(model, seeds)
    images = sample(conditioned, build(solver, grid_function(grid, model), nfe), noise, batch_size=100).cpu()
    truth = reference_images(checkpoint, device, n, reference_calls)
    return dict(rmse=f"{rmse(images, truth):.5f}", seeds=f"{seeds.start}-{seeds.stop - 1}", network="float32") | (
        experiments.provenance(device)
    )
