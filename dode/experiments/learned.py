"""Learned solvers measured: fitted once, kept as files, and compared on seeds that no fit saw.

Every row has three distances: Fréchet to the training images, Fréchet to the samples of a reference solution from other
seeds, and RMSE to its images from the same seeds.  The critic's features enter fits; the classifier's measure.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from dode import distillation, solvers, zoo
from dode.denoisers import Denoiser
from dode.distillation.designer_training import OnlineTeacher
from dode.experiments import comparisons, papers
from dode.experiments.fits import evaluators, grid_of, solver_of
from dode.experiments.quality import draw, held_out_seeds, load_autocast, load_cached, seeded
from dode.experiments.sweeps import ARITHMETIC, Preset, autocast, checkpoints, home, provenance, results
from dode.metrics import Moments, frechet_distance, rmse
from dode.metrics import moments as moments_of
from dode.sampling import sample, trajectory
from dode.tableau import Tableau
from dode.utils.files import FileError

HANDCRAFTED = ("ddim", "ipndm", "deis", "dpm_solver_pp", "unipc")
LEARNED_KEYS = ("checkpoint", "weights", "method", "nfe", "block")
FLOOR_KEYS = ("checkpoint", "weights", "n", "reference_calls")
PATH_KEYS = ("checkpoint", "weights", "method", "nfe", "n")
GRID_KEYS = ("checkpoint", "weights", "solver", "grid", "nfe")
EVERYWHERE = (*HANDCRAFTED, "start", *(name for name, d in distillation.DISTILLERS.items() if d.everywhere))
SMALL = {
    "smoke": ("deis", "start", "gits", "gauss-newton"),
}
REFERENCE_SEEDS = 50_000_000  # the first of the reference solution's own; nothing else uses them
SELECTION_BLOCK = 7  # whose held-out seeds choose grids, and measure nothing


def asked(preset: str, checkpoint: str | None = None) -> tuple[tuple[int, ...], dict[str, list[str]]]:
    """What the book compares at a preset: numbers of calls, and for each network, the first one first, its methods.

    ``checkpoint`` is a name, a data set, "all" or a file; by default both networks of Fashion-MNIST, at a small preset
    one.
    """
    methods = SMALL.get(preset, papers.METHODS)
    names = checkpoints(checkpoint or ("fashion-mnist-data" if preset in SMALL else "fashion-mnist"))[::-1]
    of = {name: [m for m in methods if name == names[0] or m in EVERYWHERE] for name in names}
    return (3,) if preset in SMALL else papers.TABLE_5, of


def reference_solver(denoiser: Denoiser, calls: int) -> Tableau:
    """The reference solution: UniP-3 on the denoiser's own grid."""
    return solvers.deis(denoiser.grid, nfe=calls, variable="log_rho", basis="data")


@functools.cache
def reference_moments(p: Preset, device_name: str, checkpoint: str) -> tuple[Moments, Moments]:
    """Moments of the reference solution's samples in both networks' features; kept in the project's ``_build``."""
    folder = home() / "_build" / "references"
    n, calls, model = p.images, p.reference_calls, load_autocast(p, checkpoint, device_name)
    arithmetic = ARITHMETIC[model.autocast].split()[0]
    word = f"{checkpoint}-{zoo.digest(checkpoint)}-{n}-{calls}-{arithmetic}"
    both = evaluators(device_name, checkpoint)
    files = [folder / f"moments-{word}-{features.name}.safetensors" for features, _ in both]
    try:
        first, second = (Moments.load(file) for file in files)
        return first, second
    except FileError:
        pass
    seeds = range(REFERENCE_SEEDS, REFERENCE_SEEDS + n)
    images = torch.cat([x.cpu() for x in draw(model, reference_solver(model, calls), seeds)])
    found = [moments_of(images, features, source=f"{checkpoint}, {calls} calls") for features, _ in both]
    for part, file in zip(found, files, strict=True):
        part.save(file)
    return found[0], found[1]


def floor_row(
    p: Preset, device_name: str, *, checkpoint: str, weights: str, n: int, reference_calls: int
) -> dict[str, Any]:
    """The floors of the distances, by column of the rows; ``n`` and the calls are the preset's.

    ``fd_reference``: what two sets of ``n`` normal draws with the moments of its features are apart.
    ``fd_data``: how far the reference solution itself is from the training images: the error of the *network*.
    """
    aim, _ = reference_moments(p, device_name, checkpoint)
    values, vectors = torch.linalg.eigh(aim.cov)
    root, draws = vectors * values.clamp(min=0).sqrt(), torch.Generator().manual_seed(0)
    one, other = (
        Moments("normal", aim.dim).update(torch.randn(n, aim.dim, generator=draws, dtype=torch.float64) @ root.T)
        for _ in range(2)
    )
    data = evaluators(device_name, checkpoint)[0][1]
    return dict(
        fd_reference=f"{frechet_distance(one, other):.5f}", fd_data=f"{frechet_distance(aim, data):.5f}",
        seeds=f"{REFERENCE_SEEDS}-{REFERENCE_SEEDS + n - 1}", network=ARITHMETIC[autocast(p, device_name)],
        preset=p.name, **provenance(device_name),
    )  # fmt: skip


def floor_cell(p: Preset, checkpoint: str) -> dict[str, Any]:
    """The cell of :func:`floor_row` that a preset has of a checkpoint."""
    return dict(
        checkpoint=checkpoint, weights=zoo.digest(checkpoint), n=p.images, reference_calls=p.reference_calls
    )  # fmt: skip


def floors(p: Preset, device_name: str, checkpoints: Iterable[str]) -> dict[str, dict[str, float]]:
    """By checkpoint the distances of :func:`floor_row`, measured where there is no row."""
    cells = [floor_cell(p, name) for name in checkpoints]
    rows = results("floors", p, FLOOR_KEYS).run(cells, functools.partial(floor_row, p, device_name)).select(cells)
    return {row["checkpoint"]: {k: float(row[k]) for k in ("fd_reference", "fd_data")} for row in rows}


# --- handcrafted solvers, each on its best grid ----------------------------------------------------


def grid_cells(checkpoints: Iterable[str], nfes: Iterable[int]) -> list[dict[str, Any]]:
    """Every handcrafted solver on every grid."""
    return [
        dict(checkpoint=name, weights=zoo.digest(name), solver=solver, grid=where, nfe=nfe)
        for name in checkpoints
        for nfe in nfes
        for solver in HANDCRAFTED
        for where in comparisons.GRIDS
    ]


def grid_row(
    p: Preset, device_name: str, *, checkpoint: str, weights: str, solver: str, grid: str, nfe: int
) -> dict[str, Any]:
    """Fréchet distance to the reference solution's samples, from few seeds that choose the grid and measure nothing."""
    table = solvers.get(solver).make(grid_of(grid, checkpoint, device_name), nfe=nfe)
    n = min(500, max(p.images // 5, 64))
    seeds = held_out_seeds(n, SELECTION_BLOCK)
    found = moments_of(
        draw(load_autocast(p, checkpoint, device_name), table, seeds), evaluators(device_name, checkpoint)[0][0]
    )
    aim, _ = reference_moments(p, device_name, checkpoint)
    return dict(
        fd_reference=f"{frechet_distance(found, aim):.5f}", n=n, seeds=f"{seeds.start}-{seeds.stop - 1}",
        preset=p.name, **provenance(device_name),
    )  # fmt: skip


def best_grids(rows: Iterable[dict[str, str]]) -> dict[tuple[str, str, int], str]:
    """(checkpoint, solver, NFE) to the grid that was nearest in the rows of :func:`grid_row`."""
    best = dict[tuple[str, str, int], tuple[float, str]]()
    for row in rows:
        key, found = (row["checkpoint"], row["solver"], int(row["nfe"])), (float(row["fd_reference"]), row["grid"])
        best[key] = min(best.get(key, found), found)
    return {key: name for key, (_, name) in best.items()}


# --- measurements ----------------------------------------------------------------------------------


def learned_cells(
    checkpoints: Iterable[str], nfes: Iterable[int], methods: Iterable[str], blocks: Iterable[int] = (0,)
) -> list[dict[str, Any]]:
    """Every method at every number of calls, on every block of held-out seeds; cheap ones first."""
    names, methods, blocks = list(checkpoints), list(methods), list(blocks)
    return [
        dict(checkpoint=name, weights=zoo.digest(name), method=method, nfe=nfe, block=block)
        for nfe in nfes
        for name in names
        for method in methods
        for block in blocks
    ]


def distances(
    p: Preset, device_name: str, checkpoint: str, solver: Tableau | distillation.Designed, block: int = 0
) -> dict[str, Any]:
    """The three distances of a solver, and the Fréchet ones in the critic's features too.

    RMSE is of the first block's seeds, whose exact images are known; rows of others have none.
    """
    quick = load_autocast(p, checkpoint, device_name)
    seeds = held_out_seeds(p.images, block)
    images = torch.cat([x.cpu() for x in draw(quick, solver, seeds)])
    aims = reference_moments(p, device_name, checkpoint)
    found = dict[str, Any]()
    for (features, data), aim, word in zip(evaluators(device_name, checkpoint), aims, ("", "_critic"), strict=True):
        seen = moments_of(images, features)
        found[f"fd_data{word}"] = f"{frechet_distance(seen, data):.5f}"
        found[f"fd_reference{word}"] = f"{frechet_distance(seen, aim):.5f}"
    if block == 0:
        model, noise = seeded(load_cached(checkpoint, device_name), held_out_seeds(p.zoo_images))
        end = sample(model, solver, noise, batch_size=100).cpu()
        truth: Tensor = comparisons.reference_images(checkpoint, device_name, p.zoo_images, p.reference_steps)
        found |= dict(rmse=f"{rmse(end, truth):.5f}", n_rmse=p.zoo_images)
    return found | dict(
        n=p.images, reference_calls=p.reference_calls, seeds=f"{seeds.start}-{seeds.stop - 1}",
        network=ARITHMETIC[quick.autocast], preset=p.name,
    )  # fmt: skip


@torch.no_grad()
def path_distances(
    checkpoint: str, device_name: str, solver: Tableau | distillation.Designed, count: int = 64, points: int = 16
) -> tuple[Tensor, Tensor]:
    """Mean level ``(N + 1,)`` of each state of a solver, and how far it is from the exact path of the same noise there.

    The path is that of DLMS's online teacher with ``points`` steps to each of the solver's; the distance is the mean
    over ``count`` held-out images of the Euclidean one, over ``sqrt(1 + sigma^2)``, the size of a state.
    """
    model, noise = seeded(load_cached(checkpoint, device_name), held_out_seeds(count))
    teacher, found = OnlineTeacher(model, noise, model.sigma_max, points), list[tuple[float, float]]()
    if isinstance(solver, Tableau):
        states: Iterable[tuple[Any, Tensor]] = zip(solver.sigmas, trajectory(model, solver, noise), strict=True)
    else:
        states = ((state.level, state.x) for state, _ in solver.walk(model, noise))
    for level, x in states:
        level = level.to(noise.device).double().expand(count)
        aim = teacher.run_to(level) if (level < teacher.level).any() else teacher.state.x
        apart = (x - aim).flatten(1).norm(dim=1) / (1 + level**2).sqrt()
        found.append((float(level.mean()), float(apart.mean())))
    levels, distances = torch.tensor(found, dtype=torch.float64).T
    return levels, distances


def compared_solver(
    p: Preset, device_name: str, grids: dict[tuple[str, str, int], str], checkpoint: str, method: str, nfe: int
) -> Tableau | distillation.Designed:
    """A handcrafted solver on the grid that ``grids`` says, the start, or a learned one (fitted if not there)."""
    if method not in HANDCRAFTED:
        return solver_of(p, checkpoint, device_name, method, nfe)
    return solvers.get(method).make(grid_of(grids[checkpoint, method, nfe], checkpoint, device_name), nfe=nfe)


def path_row(
    p: Preset, device_name: str, grids: dict[tuple[str, str, int], str], *, checkpoint: str, weights: str,
    method: str, nfe: int, n: int,
) -> dict[str, Any]:  # fmt: skip
    """:func:`path_distances` of a solver on ``n`` images; ``image`` is the last of them."""
    solver = compared_solver(p, device_name, grids, checkpoint, method, nfe)
    levels, apart = (v.tolist() for v in path_distances(checkpoint, device_name, solver, n))
    return dict(
        image=f"{apart[-1]:.5f}", levels=" ".join(f"{v:.5g}" for v in levels),
        distances=" ".join(f"{v:.5g}" for v in apart), network="float32", preset=p.name, **provenance(device_name),
    )  # fmt: skip


def paths(
    p: Preset, device_name: str, grids: dict[tuple[str, str, int], str], methods: dict[str, list[str]], nfe: int, n: int
) -> list[dict[str, str]]:
    """The rows of :func:`path_row` for each network's methods, measured where there are none."""
    cells = [
        dict(checkpoint=name, weights=zoo.digest(name), method=method, nfe=nfe, n=n)
        for name, some in methods.items()
        for method in some
    ]
    return results("paths", p, PATH_KEYS).run(cells, functools.partial(path_row, p, device_name, grids)).select(cells)


def learned_row(
    p: Preset, device_name: str, grids: dict[tuple[str, str, int], str], *, checkpoint: str, weights: str,
    method: str, nfe: int, block: int,
) -> dict[str, Any]:  # fmt: skip
    """Measure one cell; ``weights`` only names it."""
    solver = compared_solver(p, device_name, grids, checkpoint, method, nfe)
    where = grids[checkpoint, method, nfe] if method in HANDCRAFTED else "time" if method == "start" else ""
    facts = solver.metadata
    return dict(
        **distances(p, device_name, checkpoint, solver, block), grid=where,
        evaluations=facts.get("network_evaluations", 0), seconds=facts.get("seconds", 0), **provenance(device_name),
    )  # fmt: skip


def compare(
    p: Preset, device_name: str, checkpoints: Iterable[str], nfes: Iterable[int], methods: Iterable[str], jobs: int,
    blocks: Iterable[int] = (0,),
) -> tuple[list[dict[str, str]], list[dict[str, str]]]:  # fmt: skip
    """The rows of :func:`learned_row` for everything asked, and those of :func:`grid_row` that chose the grids.

    Where no handcrafted solver is asked for, no grid is chosen.
    """
    names, calls, methods = list(checkpoints), list(nfes), list(methods)
    choosing = grid_cells(names, calls) if set(methods) & set(HANDCRAFTED) else []
    cells, sweep = learned_cells(names, calls, methods, blocks), results("learned", p, LEARNED_KEYS)
    chosen = results("grids", p, GRID_KEYS)
    todo = [c for part, of in ((choosing, chosen), (cells, sweep)) for c in part if not of.done(c)]
    for name in dict.fromkeys(cell["checkpoint"] for cell in todo):  # once, before the workers ask for them
        reference_moments(p, device_name, name)
        comparisons.reference_images(name, device_name, p.zoo_images, p.reference_steps)
    chosen.run(choosing, functools.partial(grid_row, p, device_name), jobs=jobs)
    work = functools.partial(learned_row, p, device_name, best_grids(chosen.select(choosing)))
    for block in dict.fromkeys(cell["block"] for cell in cells):  # in turn: two processes must not fit one solver
        sweep.run([cell for cell in cells if cell["block"] == block], work, jobs=jobs)
    return sweep.select(cells), chosen.select(choosing)
