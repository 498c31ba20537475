"""What every notebook shares: presets, plans, sweeps that resume, provenance, the measurements of several figures."""

from dode.experiments.live import Live
from dode.experiments.plans import Plan, plan
from dode.experiments.quality import (
    FD_KEYS, base_solver, committed, data_moments, distilled, draw, fashion_moments, fd_cells, fd_row, fit_seeds,
    held_out_seeds, load_cached, seeded, variant_of,
)  # fmt: skip
from dode.experiments.sweeps import (
    PRESETS, Preset, Sweep, checkpoints, device, home, jobs, origin, preset, processor, provenance, results,
    results_file,
)  # fmt: skip

__all__ = [
    "FD_KEYS", "PRESETS", "Live", "Plan", "Preset", "Sweep", "base_solver", "checkpoints", "committed", "data_moments",
    "device", "distilled", "draw", "fashion_moments", "fd_cells", "fd_row", "fit_seeds", "held_out_seeds", "home",
    "jobs", "load_cached", "origin", "plan", "preset", "processor", "provenance", "results", "results_file", "seeded",
    "variant_of",
]  # fmt: skip
