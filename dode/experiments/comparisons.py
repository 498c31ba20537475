"""The zoo compared: which solvers, on which grids, how far from a reference solution on the same seeds."""

from __future__ import annotations

from collections.abc import Iterable

from dode.experiments.measurements import Cell, Value, measurement
from dode.experiments.run import GRIDS as GRIDS
from dode.experiments.run import Run, held_out_seeds, on_grid, possible_nfe
from dode.experiments.run import grid_function as grid_function
from dode.experiments.sweeps import Preset, checkpoints
from dode.solvers import SOLVERS

# What a page calls an entry -> the solver, as one word.  No order: its usual one, or what a short grid carries.
ENTRIES = {
    label: info.name + ":" * bool(options) + ",".join(f"{k}={v}" for k, v in options.items())
    for info in SOLVERS.values()
    for label, options in info.entries.items()
}


def rmse_cells(names: Iterable[str], nfes: Iterable[int], n: int, reference_calls: int) -> list[Cell]:
    """Every entry on every grid; an NFE that a solver cannot make is replaced by the next one below."""
    cells = {
        (checkpoint, entry, grid, possible_nfe(spec, nfe)): None
        for checkpoint in names
        for nfe in sorted(nfes)
        for entry, spec in ENTRIES.items()
        for grid in GRIDS
    }
    return [
        rmse.cell(dict(checkpoint=name, solver=entry, grid=grid, nfe=nfe, n=n, reference_calls=reference_calls))
        for name, entry, grid, nfe in cells
    ]


def zoo_cells(p: Preset, checkpoint: str | None) -> list[Cell]:
    """What the page of all solvers measures at a preset."""
    return rmse_cells(checkpoints(checkpoint or "fashion-mnist"), p.zoo_nfes, p.zoo_images, p.reference_steps)


@measurement(name="solver_zoo", gives=["rmse"], adds=["network"], planned=zoo_cells)
def rmse(
    run: Run, *, checkpoint: str, solver: str, grid: str, nfe: int, n: int, reference_calls: int
) -> dict[str, Value]:
    """Root mean squared distance of a solver's images to the reference solution's, in pixels of -1..1."""
    table = on_grid(ENTRIES[solver], grid_function(grid, run.model(checkpoint)), nfe)
    return dict(rmse=run.rmse(checkpoint, table, n, reference_calls), seeds=held_out_seeds(n))
