"""A new solver, a new distiller and a new card are one file each: dropped into a copy of the package, they are seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import dode

SOLVER = '''"""A toy solver."""

from torch import Tensor

from dode.solvers.base import solver
from dode.solvers.rows import multistep, orders_of_steps
from dode.tableau import Tableau


@solver("Averages", "noise", [1], "Nobody 2026", compared=True)
def averages(sigmas: Tensor, share: float = 0.5) -> Tableau:
    """Each step by a mean of the last two outputs."""
    s = sigmas.tolist()
    parts = {1: [1.0], 2: [share, 1 - share]}
    return multistep("noise", s, orders_of_steps(s, 2, False), lambda i, p: [w * (s[i + 1] - s[i]) for w in parts[p]])
'''
DISTILLER = '''"""Random search."""

from __future__ import annotations

import torch

from dode.distillation.problem import Problem, distiller
from dode.distillation.space import GridSpace
from dode.distillation.teachers import Examples
from dode.tableau import Tableau


@distiller("Random grids", source="Nobody 2026", start="ddim", moves=("levels",), everywhere=True)
def random_search(problem: Problem, *, tries: int = 8, width: float = 0.2) -> Tableau:
    """The solver on the best of some random grids.

    Parameters
    ----------
    tries
        Grids that are drawn; the solver's own is one more.
    width
        How far their levels are from those of the solver.
    """
    space = GridSpace(problem.table, make=problem.make, levels_in=False)
    examples = Examples.make(problem.denoiser, problem.noise, problem.guide, problem.residual, held_back=0.5)
    vector, generator = space.pack(problem.table), torch.Generator().manual_seed(0)
    noise = torch.randn(tries, len(vector), generator=generator, dtype=torch.float64)
    tables = [problem.table, *(space.table(vector + width * shift) for shift in noise)]
    return min(tables, key=lambda table: examples.check(problem.denoiser, table))
'''
CARD = '''"""A toy network."""

import torch
from torch import nn

from dode.denoisers import Images, NoisePrediction
from dode.schedules import VPDiscrete
from dode.zoo.catalogue import Card, family


class Mixer(nn.Module):
    classes = 0

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x, label):
        return self.weight * x


FLUX = Images(low=0.0, high=10.0)


@family("flux", Card(name="flux-8", licence="?", source="?", shape=(1, 8, 8), file="flux.pt", page="?", images=FLUX))
def read(path, card):
    return NoisePrediction(Mixer(torch.load(path, weights_only=True)), card.shape, VPDiscrete())
'''
SEEN = r"""
import contextlib, io
from pathlib import Path
import dode
from dode import cli, distillation, experiments
from dode.experiments import fits, learned, plots, quality

def said(command):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        with contextlib.suppress(SystemExit):
            cli.main(command.split())
    return out.getvalue()

text = said("distill --help")
assert "  random-search (Nobody 2026) The solver on the best of some random grids\n" in text
assert "--tries N" in text and "random-search: Grids that are drawn (default: 8)" in " ".join(text.split())
fit = "distill --checkpoint fashion-mnist-data --solver ddim --nfe 3 --images 4 --out d.safetensors --method "
assert said(fit + "ld3 --tries 3") == "dode: --method ld3 has no option --tries; leave it out\n"
assert said(fit + "random-search --epochs 3") == "dode: --method random-search has no option --epochs; leave it out\n"
assert "wrote d.safetensors: random-search-ddim, NFE 3" in said(fit + "random-search --tries 2 --compare pixels")

model = dode.load("fashion-mnist-data")
noise = dode.initial_noise(model.shape, range(4))
options = dict(tries=2, seeds=range(4))
one = distillation.random_search(model, dode.solvers.ddim, noise, nfe=3, **options)
two = distillation.random_search(model, dode.solvers.ddim(model.grid(3)), noise, batch_size=100, **options)
assert one.save("one.safetensors").read_bytes() == two.save("two.safetensors").read_bytes()
assert one.save("one.safetensors").read_bytes() == Path("d.safetensors").read_bytes()

run = experiments.Run(experiments.preset("smoke"))
learnt = fits.fit(run, "fashion-mnist-data", "random-search:tries=2,residual=pixels", 3)
assert learnt.metadata["network_evaluations"] == 4 * 40 + 3 * 2 * 3
assert learned.METHODS[-1] == "random-search" in learned.EVERYWHERE and plots.NAMES["random-search"] == "Random grids"
assert len({look["color"] for look in plots.LEARNED_LOOKS.values()}) == len(distillation.DISTILLERS) == 11

assert "averages" in said("solvers") and "Nobody 2026" in said("solvers")
assert quality.ENTRIES["Averages"] == "averages" in learned.HANDCRAFTED and plots.NAMES["averages"] == "Averages"
assert dode.solvers.parse("averages:share=0.7")[1] == {"share": 0.7} and dode.solvers.averages(model.grid(3)).nfe == 3
fit = fit.replace("fashion-mnist-data --solver ddim", "flux-8 --solver averages:share=0.7")
assert "wrote d.safetensors: random-search-averages, NFE 3" in said(fit + "random-search --tries 2 --compare pixels")
model, drawn = dode.load("flux-8"), "sample --solver d.safetensors --checkpoint flux-8 --seeds 0-3 --out d.png"
assert (model.images.low, model.images.high, model.shape) == (0.0, 10.0, (1, 8, 8)) and "wrote d.png" in said(drawn)
"""


@pytest.mark.slow
def test_a_new_solver_a_new_distiller_and_a_new_card_are_one_file_each(tmp_path: Path) -> None:
    """The command, its help and refusals, the public call, the words of sweeps and the comparison page know them."""
    source = Path(dode.__file__).parent
    shutil.copytree(source, tmp_path / "dode", ignore=shutil.ignore_patterns("checkpoints", "__pycache__"))
    (tmp_path / "dode/checkpoints").symlink_to(source / "checkpoints")
    files = {"solvers/averages": SOLVER, "distillation/random_search": DISTILLER, "zoo/families/flux": CARD}
    for name, text in files.items():
        (tmp_path / "dode" / f"{name}.py").write_text(text)
    (tmp_path / "_toc.yml").write_text("")
    program = "import torch; torch.save(torch.ones(1), 'flux.pt')\n" + SEEN
    environment = os.environ | {"DODE_CACHE": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
