"""What every notebook shares: presets, plans, sweeps that resume, provenance, the measurements of several figures."""

from dode.experiments.live import Live as Live
from dode.experiments.measurements import Measurement as Measurement, measurement as measurement
from dode.experiments.plans import Plan as Plan, plan as plan
from dode.experiments.quality import (
    committed as committed, fd as fd, fd_cells as fd_cells, fidelity as fidelity,
)  # fmt: skip
from dode.experiments.rows import Sweep as Sweep, kept as kept, numbers as numbers
from dode.experiments.run import (
    Run as Run, base_solver as base_solver, data_moments as data_moments, draw as draw, fit_seeds as fit_seeds,
    held_out_seeds as held_out_seeds, load_cached as load_cached, possible_nfe as possible_nfe, seeded as seeded,
)  # fmt: skip
from dode.experiments.sweeps import (
    PRESETS as PRESETS, Preset as Preset, checkpoints as checkpoints, device as device, home as home, jobs as jobs,
    origin as origin, preset as preset, provenance as provenance,
)  # fmt: skip
from dode.experiments.variants import distilled as distilled, variant_of as variant_of
