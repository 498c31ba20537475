"""The comparison of learned solvers: its cells, its grids, its rows, and what the page says of them."""

from __future__ import annotations

import csv
import functools
import importlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dode
from dode import distillation, experiments, solvers
from dode.distillation import losses
from dode.experiments import comparisons, fits, learned, papers
from dode.metrics import frechet_distance, moments, rmse
from dode.tableau import Tableau

DATA, NOISE = "fashion-mnist-data", "fashion-mnist-noise"
RESULTS = Path(__file__).parents[1] / "results"
SMALL = dict(images=24, learn_images=4, trajectories=16, zoo_images=2, reference_steps=20)
P = replace(experiments.preset("smoke"), **SMALL)
NFES = papers.TABLE_5
PROVENANCE = ("seeds", "network", "preset", "device", "torch", "python", "commit")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of its own, so that references, fits and rows land there; each is made once for all tests here."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "_toc.yml").write_text("")
    return folder


@pytest.fixture
def project(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(place)
    monkeypatch.setenv("DODE_RESULTS", str(place / "results"))
    return place


# --- cells and grids -------------------------------------------------------------------------------


def test_cells_are_what_was_asked_and_no_two_are_one() -> None:
    cells = learned.learned_cells([DATA, NOISE], (3, 5), ("ddim", "start", "gits"))
    assert len({tuple(c.values()) for c in cells}) == len(cells) == 2 * 2 * 3
    assert all(tuple(c) == learned.LEARNED_KEYS for c in cells)
    assert [c["nfe"] for c in cells] == [3] * 6 + [5] * 6  # cheap ones first
    assert all(c["weights"] == dode.zoo.digest(c["checkpoint"]) for c in cells)
    grids = learned.grid_cells([DATA], (3, 5))
    assert len({tuple(c.values()) for c in grids}) == len(grids) == 2 * 5 * 4
    assert all(tuple(c) == learned.GRID_KEYS for c in grids)
    assert {c["solver"] for c in grids} == set(learned.HANDCRAFTED) <= set(solvers.SOLVERS)


def test_the_grid_that_is_nearest_is_chosen_for_each_network_solver_and_nfe() -> None:
    def row(solver: str, grid: str, fd: float, checkpoint: str = DATA, nfe: int = 3) -> dict[str, str]:
        return dict(checkpoint=checkpoint, solver=solver, grid=grid, nfe=str(nfe), fd_reference=f"{fd:.5f}")

    rows = [
        row("ddim", "time", 10.0), row("ddim", "Karras", 9.0), row("ddim", "log SNR", 9.5),
        row("unipc", "time", 0.5), row("unipc", "Karras", 0.7), row("ddim", "time", 1.0, NOISE),
        row("ddim", "time", 1.0, nfe=5), row("ddim", "Karras", 1.5, nfe=5),
    ]  # fmt: skip
    found = learned.best_grids(rows)
    assert found == {
        (DATA, "ddim", 3): "Karras", (DATA, "unipc", 3): "time", (NOISE, "ddim", 3): "time", (DATA, "ddim", 5): "time",
    }  # fmt: skip
    assert found == learned.best_grids(reversed(rows))  # 10 is more than 9: they are compared as numbers


@pytest.mark.parametrize("grid", comparisons.GRIDS)
def test_a_handcrafted_solver_makes_its_calls_on_every_grid(grid: str) -> None:
    for name in ("fashion-mnist-noise", "fashion-mnist-data"):
        top = dode.load(name).sigma_max
        for solver in learned.HANDCRAFTED:
            table = solvers.get(solver).make(fits.grid_of(grid, name, "cpu"), nfe=3)
            assert table.nfe == 3 and float(table.sigmas[0]) == pytest.approx(top)


# --- rows ------------------------------------------------------------------------------------------


def test_seeds_that_choose_fit_measure_or_stand_for_the_truth_are_disjoint() -> None:
    full = experiments.preset("full")
    sets = [
        experiments.held_out_seeds(500, learned.SELECTION_BLOCK), experiments.held_out_seeds(full.images),
        experiments.fit_seeds(full.learn_images),
        range(learned.REFERENCE_SEEDS, learned.REFERENCE_SEEDS + full.images),
    ]  # fmt: skip
    assert len(set().union(*sets)) == sum(map(len, sets))


@pytest.mark.slow
def test_a_comparison_measures_what_it_says_and_resumes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = lambda: learned.compare(P, "cpu", [DATA], (2,), ("ddim", "start", "gits"), 1)  # noqa: E731
    rows, chosen = ask()
    assert [r["method"] for r in rows] == ["ddim", "start", "gits"] and len(chosen) == 20
    for column in (*PROVENANCE, "n", "weights", "reference_calls"):
        assert all(r[column] for r in rows), column
    assert rows[0]["grid"] == learned.best_grids(chosen)[DATA, "ddim", 2] and rows[2]["grid"] == ""
    assert rows[0]["evaluations"] == rows[1]["evaluations"] == "0" and int(rows[2]["evaluations"]) > 0

    model = dode.load(DATA)
    table = solvers.ddim(fits.grid_of(rows[0]["grid"], DATA, "cpu"), nfe=2)
    (features, data), (critic, _) = fits.evaluators("cpu")
    images = dode.sample(model, table, dode.initial_noise(model.shape, range(1_000_000, 1_000_000 + P.images)))
    start = learned.REFERENCE_SEEDS
    long = dode.sample(
        model,
        learned.reference_solver(model, P.reference_calls),
        dode.initial_noise(model.shape, range(start, start + P.images)),
    )
    close = lambda v: pytest.approx(v, rel=2e-3)  # noqa: E731
    assert float(rows[0]["fd_data"]) == close(frechet_distance(moments(images, features), data))
    for judge, word in ((features, ""), (critic, "_critic")):
        expected = frechet_distance(moments(images, judge), moments(long, judge))
        assert float(rows[0][f"fd_reference{word}"]) == close(expected)
    truth = comparisons.reference_images(DATA, "cpu", P.zoo_images, P.reference_steps)
    assert float(rows[0]["rmse"]) == close(rmse(images[: P.zoo_images], truth))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured or fitted again")

    monkeypatch.setattr(learned, "distances", never)
    monkeypatch.setattr(fits.DistillerInfo, "fit", never)
    assert ask() == (rows, chosen)
    assert fits.fit(P, DATA, "cpu", "gits", 2).nfe == 2  # from its file


@pytest.mark.slow
def test_no_grid_is_chosen_where_no_solver_needs_one(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DODE_RESULTS", str(tmp_path))
    rows, chosen = learned.compare(P, "cpu", [DATA], (2,), ("start",), 1)
    assert [r["method"] for r in rows] == ["start"] and chosen == []
    assert [path.name for path in tmp_path.iterdir()] == ["learned.smoke.csv"]


@pytest.mark.slow
def test_every_block_has_its_own_seeds_and_the_same_solver(project: Path) -> None:
    once = learned.compare(P, "cpu", [DATA], (2,), ("deis",), 1)[0]
    rows = learned.compare(P, "cpu", [DATA], (2,), ("deis", "gits"), 1, blocks=(0, 2))[0]
    assert [(r["method"], r["block"]) for r in rows] == [("deis", "0"), ("deis", "2"), ("gits", "0"), ("gits", "2")]
    assert rows[0] == once[0] and rows[1]["grid"] == rows[0]["grid"]
    assert [r["seeds"] for r in rows[:2]] == ["1000000-1000023", "3000000-3000023"]
    assert rows[0]["fd_reference"] != rows[1]["fd_reference"] and rows[2]["evaluations"] == rows[3]["evaluations"]
    assert rows[0]["rmse"] and not rows[1].get("rmse")  # the exact images are known of one block's seeds


@pytest.mark.slow
def test_a_fit_may_begin_at_that_of_another_number_of_calls(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = fits.fit(P, DATA, "cpu", "gauss-newton", 2)
    monkeypatch.setattr(fits.DistillerInfo, "fit", lambda self, task, **options: task.table)  # where it begins
    began = fits.fit(P, DATA, "cpu", "gauss-newton:near=2", 3)
    assert isinstance(near, Tableau) and isinstance(began, Tableau) and began.nfe == 3
    assert torch.equal(began.full, distillation.resampled(near, 3).full)
    with pytest.raises(ValueError, match="designs its table for each image"):
        fits.fit(P, DATA, "cpu", "dlms:near=2", 3)  # said before anything is trained
    assert not fits.solver_file(P, DATA, "dlms", 2).exists()


@pytest.mark.slow
def test_a_fit_may_mind_the_way(project: Path) -> None:
    plain, held = (fits.fit(P, DATA, "cpu", f"gauss-newton{option}", 2) for option in ("", ":path=10"))
    assert isinstance(plain, Tableau) and isinstance(held, Tableau)
    assert (plain.full - held.full).abs().max() > 1e-3
    assert held.metadata["network_evaluations"] > plain.metadata["network_evaluations"] * 0.5


# --- the committed run -----------------------------------------------------------------------------


@functools.cache
def committed(checkpoint: str = DATA) -> dict[tuple[str, int], dict[str, str]]:
    """The rows of a network by method and NFE: every method that the book compares on it."""
    sweep = experiments.Sweep(RESULTS / "learned.standard.csv", learned.LEARNED_KEYS)
    nfes, chosen_for = learned.asked("standard")
    rows = sweep.select(learned.learned_cells([checkpoint], nfes, chosen_for[checkpoint]))
    found = {(r["method"], int(r["nfe"])): r for r in rows}
    assert set(found) == {(m, nfe) for m in chosen_for[checkpoint] for nfe in NFES}, "rows are missing"
    return found


@pytest.mark.slow
def test_every_number_says_where_it_comes_from() -> None:
    for row in committed().values():
        assert all(row[c] for c in PROVENANCE)
        assert (row["preset"], row["n"], row["seeds"]) == ("standard", "5000", "1000000-1004999")
    chosen = experiments.Sweep(RESULTS / "grids.standard.csv", learned.GRID_KEYS)
    rows = chosen.select(learned.grid_cells([DATA], NFES))
    assert len(rows) == len(NFES) * 20 and {r["seeds"] for r in rows} == {"8000000-8000499"}
    grids = learned.best_grids(rows)
    for (method, nfe), row in committed().items():
        if method in learned.HANDCRAFTED:
            assert row["grid"] == grids[DATA, method, nfe]


@pytest.mark.parametrize("method", distillation.DISTILLERS)
def test_every_learned_row_has_its_solver(method: str) -> None:
    p, rows = experiments.preset("standard"), committed()
    for nfe in NFES:
        solver = distillation.load_solver(fits.solver_file(p, DATA, method, nfe))
        assert solver.nfe == nfe and solver.metadata["weights"] == dode.zoo.digest(DATA)
        assert int(rows[method, nfe]["evaluations"]) == solver.metadata["network_evaluations"] > 0
        assert isinstance(solver, distillation.Designed) == (method in ("dlms", "amed"))


def test_the_published_numbers_name_their_source() -> None:
    with open(RESULTS / "published_dlms.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    assert all(row["source"] and float(row["fid"]) > 1 for row in rows)
    fid = {(r["dataset"], r["solver"], int(r["nfe"])): float(r["fid"]) for r in rows}
    assert len(fid) == len(rows)
    handcrafted = ("DEIS", "DPM-Solver++", "UniPC")
    assert fid["CIFAR-10", "DLMS", 5] == 3.23 and min(fid["CIFAR-10", s, 5] for s in handcrafted) == 14.39
    behind = {
        (data, nfe)
        for data in ("CIFAR-10", "FFHQ-64", "ImageNet-64")
        for nfe in range(4, 11)
        if fid[data, "DLMS", nfe] >= min(fid[data, s, nfe] for s in handcrafted)
    }
    assert behind == {("FFHQ-64", 10)}


# --- paths -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_distances_to_the_path_shrink_with_the_steps_and_begin_at_zero() -> None:
    """Many steps stay on the path, few leave it, and more the fewer they are; both begin on it."""
    grid = fits.grid_of("time", DATA, "cpu")
    made = {n: solvers.deis(grid, nfe=n, variable="log_rho", basis="data") for n in (3, 6, 24)}
    found = {n: learned.path_distances(DATA, "cpu", table, 2) for n, table in made.items()}
    for n, (levels, apart) in found.items():
        assert torch.allclose(levels, made[n].sigmas) and apart[0] == 0 and apart.shape == (n + 1,)
    assert 3 * found[24][1][-1] < found[6][1][-1] < found[3][1][-1]
    noise = dode.initial_noise((1, 28, 28), experiments.held_out_seeds(2))
    ends, truth = (dode.sample(dode.load(DATA), made[n], noise) for n in (3, 24))
    apart = float((ends - truth).flatten(1).norm(dim=1).mean())
    assert float(found[3][1][-1]) == pytest.approx(apart, rel=0.1)


def test_a_designed_solver_has_a_path_too() -> None:
    model, (table, _) = dode.load(DATA), fits.initial_solver("dlms", DATA, "cpu", 4)
    designed = distillation.begin_dlms(model, table)  # as it begins, it is the table
    levels, apart = learned.path_distances(DATA, "cpu", designed, 2, points=4)
    same, distance = learned.path_distances(DATA, "cpu", table, 2, points=4)
    assert torch.allclose(levels, same, rtol=1e-4) and torch.allclose(apart, distance, rtol=1e-3)
    assert apart[0] > 0  # the analytical first step has left the path by then


# --- what fits look at -----------------------------------------------------------------------------


def test_no_loss_uses_the_evaluation_classifier() -> None:
    honest = {kind: mix for kind, mix in losses.LOSSES.items() if kind != "judge"}
    assert all("judge" not in mix for mix in honest.values()) and fits.EXTRACTORS["judge"] == "classifier"
    names = {zoo_name: dode.zoo.load_evaluator(f"fashion-mnist-{zoo_name}")[1] for zoo_name in fits.EXTRACTORS.values()}
    assert len(set(names.values())) == 3  # three networks, each with weights of its own
    assert fits.evaluators("cpu")[0][0].name == names["classifier"]


def test_mixes_are_what_they_say() -> None:
    x = 1.5 * torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sizes = dict(pixels=784, random=2560, averaged=160, critic=96, observer=80, judge=64)
    for kind, mix in losses.LOSSES.items():
        found = fits.loss("cpu", kind)(x)
        assert found.shape == (2, sum(sizes[word] for word in mix)), kind
        clipped = fits.loss("cpu", f"seen-{kind}")
        assert torch.equal(clipped(x), fits.loss("cpu", kind)(x.clamp(-1, 1)))
    ours, raw = fits.loss("cpu", "seen"), fits.loss("cpu", "raw")
    assert torch.equal(ours(x), raw(x.clamp(-1, 1))) and not torch.allclose(ours(x), raw(x))
    with pytest.raises(ValueError, match="no residual named 'pixel'; there are all, seen, raw, pixels, random,"):
        fits.loss("cpu", "pixel")


def test_a_second_order_fit_has_the_seeds_that_its_budget_pays() -> None:
    images = lambda p, method, nfe: len(fits.task(experiments.preset(p), DATA, "cpu", method, nfe)[1].noise)  # noqa: E731
    found = {nfe: images("standard", "gauss-newton", nfe) for nfe in (3, 5, 6, 10)}
    assert found == {3: 191, 5: 136, 6: 116, 10: 72} and images("standard", "s4s", 3) == 128
    assert images("smoke", "gauss-newton", 3) == 8  # twice the others'


@pytest.mark.slow
@pytest.mark.parametrize("images", (5, 18))
def test_a_second_order_fit_stays_within_its_budget(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it pays for few images: then it grows with them."""
    module = importlib.import_module("dode.distillation.gauss_newton")
    monkeypatch.setattr(module, "CALLS", 700)
    model, (table, _) = dode.load(DATA), fits.initial_solver("gauss-newton", DATA, "cpu", 2)
    paid = module.images_within_budget(table)
    assert 5 < paid < 18
    fitted = distillation.gauss_newton(model, table, dode.initial_noise(model.shape, range(images)))
    spent = fitted.metadata["network_evaluations"]
    assert 0.4 * 1400 * images / paid < spent < 1.05 * 1400 * max(1, images / paid)


# --- one fit on top of another ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_designer_stands_on_a_table_that_was_fitted_before(project: Path) -> None:
    below = fits.fit(P, DATA, "cpu", "gauss-newton", 2)
    found = fits.fit(P, DATA, "cpu", "dlms:base=gauss-newton", 2)
    assert isinstance(found, distillation.Designed) and isinstance(below, dode.Tableau)
    assert torch.equal(found.base.full, below.full) and torch.equal(found.base.sigmas, below.sigmas)
    assert found.metadata["cost"][0] >= min(found.metadata["cost"])
    with pytest.raises(ValueError, match="dlms designs its table for each image; a base is one table for all"):
        fits.fit(P, DATA, "cpu", "gauss-newton:base=dlms", 2)


# --- rates, paths and floors -----------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1e-3, 5e-3])
def test_the_trainings_at_other_rates_are_kept(rate: float) -> None:
    found = fits.fit(experiments.preset("quick"), DATA, "cpu", f"dlms:rate={rate:g},trajectories=1600", 6)
    assert found.metadata["trajectories"] == 1600 and min(found.metadata["cost"]) < found.metadata["cost"][0]


def test_a_rate_reaches_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = list[float]()

    def train(given: object, start: distillation.Designed, rate: float, trajectories: int) -> distillation.Designed:
        rates.append(rate)
        return start

    monkeypatch.setattr(importlib.import_module("dode.distillation.dlms"), "train", train)
    for options in ("", ":features=False", ":rate=0.003"):
        info, given, own = fits.task(P, DATA, "cpu", f"dlms{options}", 3)
        info.fit(given, **own)
    assert rates == [2.5e-4, 2e-3, 3e-3]


@pytest.mark.slow
def test_rows_of_paths_are_what_is_measured(project: Path) -> None:
    (row,) = learned.paths(P, "cpu", {(DATA, "deis", 3): "time"}, {DATA: ["deis"]}, 3, 2)
    table = solvers.deis(fits.grid_of("time", DATA, "cpu"), nfe=3)
    levels, apart = learned.path_distances(DATA, "cpu", table, 2)
    assert [float(v) for v in row["levels"].split()] == pytest.approx(levels.tolist(), rel=1e-4)
    assert [float(v) for v in row["distances"].split()] == pytest.approx(apart.tolist(), rel=1e-4)
    assert float(row["image"]) == pytest.approx(float(apart[-1]), abs=1e-5)


def test_floors_are_rows(project: Path) -> None:
    found = learned.floors(P, "cpu", [DATA])[DATA]
    aim, _ = learned.reference_moments(P, "cpu", DATA)
    assert found["fd_data"] == pytest.approx(frechet_distance(aim, fits.evaluators("cpu", DATA)[0][1]), abs=1e-5)
    assert 0 < found["fd_reference"] < found["fd_data"]  # of draws with one set of moments
    sweep = experiments.results("floors", P, learned.FLOOR_KEYS)
    assert sweep.done(learned.floor_cell(P, DATA)) and len(sweep.rows) == 1


def test_floors_are_in_the_arithmetic_of_the_rows_beside_them() -> None:
    columns = ("checkpoint", "weights", "n", "reference_calls", "network")
    read = lambda name: experiments.Sweep(RESULTS / f"{name}.standard.csv", columns).rows  # noqa: E731
    floors = [tuple(row[c] for c in columns) for row in read("floors")]
    assert len(floors) == 4 and set(floors) <= {tuple(row[c] for c in columns) for row in read("learned")}
