"""The comparison of learned solvers: its cells, its grids, its rows, and what the page says of them."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import dode
from dode import distillation, experiments, solvers
from dode.distillation import losses
from dode.distillation.teachers import default_teacher
from dode.experiments import dlms_study, fits, gradients, learned, paths
from dode.experiments.rows import typed
from dode.experiments.run import GRIDS, grid_function
from dode.metrics import frechet_distance, moments, rmse
from dode.tableau import Tableau

DATA = "fashion-mnist-data"
RESULTS = Path(__file__).parents[1] / "results"
SMALL = dict(images=24, learn_images=4, trajectories=16, zoo_images=2, reference_steps=20)
P = replace(experiments.preset("smoke"), **SMALL)
NFES = learned.NFES
RUN = experiments.Run(P)


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


# --- rows ------------------------------------------------------------------------------------------


def test_seeds_that_choose_fit_measure_or_stand_for_the_truth_are_disjoint() -> None:
    most = experiments.preset("paper").images
    sets = [range(learned.REFERENCE_SEEDS, learned.REFERENCE_SEEDS + most)]
    sets += [experiments.held_out_seeds(most, block) for block in (*range(5), learned.SELECTION_BLOCK)]
    sets += [experiments.fit_seeds(1000, block) for block in range(5)]
    assert len(set().union(*sets)) == sum(map(len, sets))


@pytest.mark.slow
def test_a_comparison_measures_what_it_says_and_resumes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = lambda: learned.compare(RUN, {DATA: ("ddim", "start", "gits")}, (2,))  # noqa: E731
    rows = ask()
    ddim, start, gits = (row for _, row in rows.iterrows())
    assert [ddim.method, start.method, gits.method] == ["ddim", "start", "gits"]
    chosen = typed(learned.grid_distance.sweep(P).rows).query("solver == 'ddim'")
    assert len(chosen) == 4 and ddim.grid == chosen.grid[chosen.fd_reference.idxmin()] and gits.grid == ""
    assert ddim.evaluations == start.evaluations == 0 < gits.evaluations

    model = dode.load(DATA)
    table = solvers.ddim(grid_function(ddim.grid, model, to_zero=False), nfe=2)
    (features, data), (critic, _) = RUN.evaluators(DATA)
    images = dode.sample(model, table, dode.initial_noise(model.shape, range(1_000_000, 1_000_000 + P.images)))
    began = learned.REFERENCE_SEEDS
    long = dode.sample(
        model,
        default_teacher(model, P.reference_calls),
        dode.initial_noise(model.shape, range(began, began + P.images)),
    )
    close = lambda v: pytest.approx(v, rel=2e-3)  # noqa: E731
    assert ddim.fd_data == close(frechet_distance(moments(images, features), data))
    for judge, word in ((features, ""), (critic, "_critic")):
        expected = frechet_distance(moments(images, judge), moments(long, judge))
        assert ddim[f"fd_reference{word}"] == close(expected)
    truth = RUN.reference_images(DATA, P.zoo_images, P.reference_steps)
    assert ddim.rmse == close(rmse(images[: P.zoo_images], truth))

    monkeypatch.setattr(learned.learned, "function", lambda *_, **__: pytest.fail("measured again"))
    monkeypatch.setattr(fits.DistillerInfo, "fit", lambda *_, **__: pytest.fail("fitted again"))
    assert ask().equals(rows)
    assert fits.fit(RUN, DATA, "gits", 2).nfe == 2  # from its file


@pytest.mark.slow
def test_no_grid_is_chosen_where_no_solver_needs_one(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DODE_RESULTS", str(tmp_path))
    assert learned.compare(RUN, {DATA: ("start",)}, (2,)).method.tolist() == ["start"]
    assert [path.name for path in tmp_path.glob("*.csv")] == ["learned.smoke.csv"]
    assert learned.best_grid(RUN, DATA, "ddim", 2) in GRIDS  # asked for, it is measured
    assert len(learned.grid_distance.sweep(P).rows) == len(GRIDS)


@pytest.mark.slow
def test_every_block_has_its_own_seeds_and_the_same_solver(project: Path) -> None:
    rows = learned.compare(RUN, {DATA: ("deis", "gits")}, (2,), blocks=(0, 2))
    assert list(zip(rows.method, rows.block, strict=True)) == [("deis", 0), ("deis", 2), ("gits", 0), ("gits", 2)]
    assert rows.grid[1] == rows.grid[0] and rows.seeds[1] == "3000000-3000023"
    assert rows.fd_reference[0] != rows.fd_reference[1] and rows.evaluations[2] == rows.evaluations[3]
    assert rows.rmse.notna().tolist() == [True, False, True, False]  # exact images are known of one block's seeds


@pytest.mark.slow
def test_a_fit_may_begin_at_that_of_another_number_of_calls(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = fits.fit(RUN, DATA, "gauss-newton", 2)
    monkeypatch.setattr(fits.DistillerInfo, "fit", lambda self, task, **options: task.table)  # where it begins
    began = fits.fit(RUN, DATA, "gauss-newton:near=2", 3)
    assert isinstance(near, Tableau) and isinstance(began, Tableau) and began.nfe == 3
    assert torch.equal(began.full, distillation.resampled(near, 3).full)
    with pytest.raises(ValueError, match="designs its table for each image"):
        fits.fit(RUN, DATA, "dlms:near=2", 3)  # said before anything is trained
    assert not fits.solver_file(P, DATA, "dlms", 2).exists()


# --- the committed run -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", learned.FITTED)
def test_every_learned_row_has_its_solver(method: str) -> None:
    run = experiments.Run(experiments.preset("quick"))
    for row in learned.compare(run, {DATA: [method]}, NFES).itertuples():
        solver = distillation.load_solver(fits.solver_file(run.preset, DATA, method, row.nfe))
        assert solver.nfe == row.nfe and solver.metadata["weights"] == row.weights
        assert row.evaluations == solver.metadata["network_evaluations"] > 0
        assert isinstance(solver, distillation.Designed) == (method == "amed")


# --- paths -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_distances_to_the_path_shrink_with_the_steps_and_begin_at_zero() -> None:
    """Many steps stay on the path, few leave it, and more the fewer they are; both begin on it."""
    grid = grid_function("time", dode.load(DATA))
    made = {n: solvers.deis(grid, nfe=n, variable="log_rho", basis="data") for n in (3, 6, 24)}
    found = {n: paths.path_distances(RUN, DATA, table, 2) for n, table in made.items()}
    for n, (levels, apart) in found.items():
        assert torch.allclose(levels, made[n].sigmas) and apart[0] == 0 and apart.shape == (n + 1,)
    assert 3 * found[24][1][-1] < found[6][1][-1] < found[3][1][-1]
    noise = dode.initial_noise((1, 28, 28), experiments.held_out_seeds(2))
    ends, truth = (dode.sample(dode.load(DATA), made[n], noise) for n in (3, 24))
    apart = float((ends - truth).flatten(1).norm(dim=1).mean())
    assert float(found[3][1][-1]) == pytest.approx(apart, rel=0.1)


def test_a_designed_solver_has_a_path_too_and_begins_as_its_base() -> None:
    model, (table, _) = dode.load(DATA), fits.initial_solver(RUN, DATA, "dlms", 4)
    designed = distillation.begin_dlms(model, table)  # as it begins, it is the table
    levels, apart = paths.path_distances(RUN, DATA, designed, 2, points=4)
    same, distance = paths.path_distances(RUN, DATA, table, 2, points=4)
    assert torch.allclose(levels, same, rtol=1e-4) and torch.allclose(apart, distance, rtol=1e-3)
    assert apart[0] > 0  # the analytical first step has left the path by then


# --- what fits look at -----------------------------------------------------------------------------


def test_no_loss_uses_the_evaluation_classifier() -> None:
    honest = {kind: mix for kind, mix in losses.LOSSES.items() if kind != "judge"}
    assert all("judge" not in mix for mix in honest.values()) and fits.EXTRACTORS["judge"] == "classifier"
    names = {zoo_name: dode.zoo.load_evaluator(f"fashion-mnist-{zoo_name}")[1] for zoo_name in fits.EXTRACTORS.values()}
    assert len(set(names.values())) == 3  # three networks, each with weights of its own
    assert RUN.evaluators(DATA)[0][0].name == names["classifier"]


def test_mixes_are_what_they_say() -> None:
    model = dode.load(DATA)
    x = 1.5 * torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sizes = dict(pixels=784, random=2560, averaged=160, critic=96, observer=80, judge=64)
    for kind, mix in losses.LOSSES.items():
        if "own" in mix:  # tests/test_own_features.py
            continue
        found = fits.loss(model, kind)(x)
        assert found.shape == (2, sum(sizes[word] for word in mix)), kind
        clipped = fits.loss(model, f"seen-{kind}")
        assert torch.equal(clipped(x), fits.loss(model, kind)(x.clamp(-1, 1)))
    ours, raw = fits.loss(model, "seen"), fits.loss(model, "raw")
    assert torch.equal(ours(x), raw(x.clamp(-1, 1))) and not torch.allclose(ours(x), raw(x))
    with pytest.raises(ValueError, match="no residual named 'pixel'; there are all, seen, raw, pixels, random,"):
        fits.loss(model, "pixel")


@pytest.mark.slow
@pytest.mark.parametrize("images", (5, 18))
def test_a_gauss_newton_fit_stays_within_its_budget(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it pays for few images: then it grows with them."""
    module = importlib.import_module("dode.distillation.gauss_newton")
    monkeypatch.setattr(module, "CALLS", 700)
    model, (table, _) = dode.load(DATA), fits.initial_solver(RUN, DATA, "gauss-newton", 2)
    paid = module.images_within_budget(table)
    assert 5 < paid < 18
    fitted = distillation.gauss_newton(model, table, dode.initial_noise(model.shape, range(images)))
    spent = fitted.metadata["network_evaluations"]
    assert 0.4 * 1400 * images / paid < spent < 1.05 * 1400 * max(1, images / paid)


# --- one fit on top of another ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_designer_stands_on_a_table_that_was_fitted_before(project: Path) -> None:
    below = fits.fit(RUN, DATA, "gauss-newton", 2)
    found = fits.fit(RUN, DATA, "dlms:base=gauss-newton", 2)
    assert isinstance(found, distillation.Designed) and isinstance(below, dode.Tableau)
    assert torch.equal(found.base.full, below.full) and torch.equal(found.base.sigmas, below.sigmas)
    assert found.metadata["cost"][0] >= min(found.metadata["cost"])
    with pytest.raises(ValueError, match="dlms designs its table for each image; a base is one table for all"):
        fits.fit(RUN, DATA, "gauss-newton:base=dlms", 2)


# --- floors ----------------------------------------------------------------------------------------


def test_floors_are_rows(project: Path) -> None:
    (row,) = learned.floor.rows(RUN, learned.floor_cells(P)).itertuples()
    aim, _ = learned.reference_moments(RUN, DATA)
    assert row.fd_data == pytest.approx(frechet_distance(aim, RUN.evaluators(DATA)[0][1]), abs=1e-5)
    assert 0 < row.fd_reference < row.fd_data and (row.n, row.preset) == (P.images, "smoke")


def test_floors_are_in_the_arithmetic_of_the_rows_beside_them() -> None:
    columns = ["checkpoint", "weights", "n", "reference_calls", "network"]
    files = ("floors", "learned", "figure_3", "figure_4")
    floors, *rows = (pd.read_csv(RESULTS / f"{name}.standard.csv")[columns] for name in files)
    assert len(floors) == len(floors.merge(pd.concat(rows).drop_duplicates())) == 6


def test_gradients_of_step_losses_beside_the_last_images(project: Path) -> None:
    """Held fixed or not, the level of a loss enters the gradient of levels alone."""
    cells = gradients.gradient_cells(P)
    rows = gradients.gradients.rows(RUN, cells).set_index(["objective", "head"])
    assert len(rows) == 6 and rows.cosine.abs().max() <= 1
    for head in gradients.HEADS:
        fixed, moving = (rows.loc[(objective, head)] for objective in gradients.OBJECTIVES)
        assert (fixed.by_design == moving.by_design) == (head != "levels")
    assert gradients.cosine(torch.tensor([1.0, 0.0]), torch.tensor([-2.0, 0.0])) == -1


# --- several fits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("word", [dlms_study.ENDS, dlms_study.GAUSS_NEWTON, dlms_study.fitted("s4s-alt", "own")])
def test_fits_from_other_noises_are_one_line_and_no_other_training_is_in_it(word: str) -> None:
    words = [dlms_study.again(word, k) for k in range(3)]
    assert len(set(words)) == 3
    others = ["start", dlms_study.trained("last", dlms_study.SHORT), dlms_study.fitted("ld3", "own") + ",fit=1"]
    numbers = dict.fromkeys(("fd_reference_transformer", "fd_data", "rmse", "kept", "ended", "evaluations"), 1.0)
    rows = [
        dict(checkpoint=DATA, nfe=3, method=m, fd_reference=float(k), **numbers) for k, m in enumerate(words + others)
    ]
    found = dlms_study.together(pd.DataFrame(rows)).fd_reference
    line = found.loc[DATA, 3, dlms_study.again(word, 0).removesuffix(",fit=0")]
    assert line.to_dict() == {"mean": 1.0, "min": 0.0, "max": 2.0, "count": 3} and len(found) == 4


def test_every_word_of_the_study_is_one_that_a_fit_takes() -> None:
    p = experiments.preset("standard")
    for cell in dlms_study.dlms_cells(p):
        name = cell["method"].partition(":")[0]
        if name in distillation.DISTILLERS:
            known = (*fits.CELL_OPTIONS, *distillation.DISTILLERS[name].options)
            assert solvers.parse_options(cell["method"], known)[0] == name
