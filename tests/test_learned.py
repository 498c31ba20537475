"""The comparison of learned solvers: its cells, its grids, its rows, and what the page says of them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from told import page

import dode
from dode import distillation, experiments, solvers
from dode.distillation import losses
from dode.experiments import comparisons, fits, learned, papers
from dode.metrics import frechet_distance, moments, rmse
from dode.tableau import Tableau

DATA, NOISE = "fashion-mnist-data", "fashion-mnist-noise"
RESULTS = Path(__file__).parents[1] / "results"
P = experiments.preset("smoke")
NFES = papers.TABLE_5
PROVENANCE = ("seeds", "network", "preset", "device", "torch", "python", "commit")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own, so that references, fits and rows land there."""
    (tmp_path / "_toc.yml").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DODE_RESULTS", str(tmp_path / "results"))
    return tmp_path


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
    (features, data), (critic, _) = fits.yardsticks("cpu")
    images = dode.sample(model, table, dode.initial_noise(model.shape, range(1_000_000, 1_000_064)))
    start = learned.REFERENCE_SEEDS
    long = dode.sample(
        model,
        learned.reference_table(model, P.reference_calls),
        dode.initial_noise(model.shape, range(start, start + 64)),
    )
    close = lambda v: pytest.approx(v, rel=2e-3)  # noqa: E731
    assert float(rows[0]["fd_data"]) == close(frechet_distance(moments(images, features), data))
    for judge, word in ((features, ""), (critic, "_critic")):
        expected = frechet_distance(moments(images, judge), moments(long, judge))
        assert float(rows[0][f"fd_reference{word}"]) == close(expected)
    truth = comparisons.reference(DATA, "cpu", P.zoo_images, P.reference_steps)
    assert float(rows[0]["rmse"]) == close(rmse(images[: P.zoo_images], truth))

    def never(*_: object, **__: object) -> None:
        raise AssertionError("measured or fitted again")

    monkeypatch.setattr(learned, "distances", never)
    monkeypatch.setattr(fits, "_fit", never)
    assert ask() == (rows, chosen)
    assert fits.fit(P, DATA, "cpu", "gits", 2).nfe == 2  # from its file


def test_no_grid_is_chosen_where_no_solver_needs_one(project: Path) -> None:
    rows, chosen = learned.compare(P, "cpu", [DATA], (2,), ("start",), 1)
    assert [r["method"] for r in rows] == ["start"] and chosen == []
    assert not (project / "results" / "grids.smoke.csv").exists()


def test_every_block_has_its_own_seeds_and_the_same_solver(project: Path) -> None:
    once = learned.compare(P, "cpu", [DATA], (2,), ("deis",), 1)[0]
    rows = learned.compare(P, "cpu", [DATA], (2,), ("deis", "gits"), 1, blocks=(0, 2))[0]
    assert [(r["method"], r["block"]) for r in rows] == [("deis", "0"), ("deis", "2"), ("gits", "0"), ("gits", "2")]
    assert rows[0] == once[0] and rows[1]["grid"] == rows[0]["grid"]
    assert [r["seeds"] for r in rows[:2]] == ["1000000-1000063", "3000000-3000063"]
    assert rows[0]["fd_reference"] != rows[1]["fd_reference"] and rows[2]["evaluations"] == rows[3]["evaluations"]
    assert rows[0]["rmse"] and not rows[1].get("rmse")  # the exact images are known of one block's seeds


def test_a_fit_may_begin_at_that_of_another_number_of_calls(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near = fits.fit(P, DATA, "cpu", "gauss-newton", 2)
    monkeypatch.setattr(fits, "_fit", lambda name, task, options: task.table)  # where it begins
    began = fits.fit(P, DATA, "cpu", "gauss-newton:near=2", 3)
    assert isinstance(near, Tableau) and isinstance(began, Tableau) and began.nfe == 3
    assert torch.equal(began.full, distillation.resampled(near, 3).full)
    with pytest.raises(ValueError, match="designs its table for each image"):
        fits.fit(P, DATA, "cpu", "dlms:near=2", 3)  # said before anything is trained
    assert not fits.solver_file(P, DATA, "dlms", 2).exists()


def test_a_fit_may_mind_the_way(project: Path) -> None:
    plain, held = (fits.fit(P, DATA, "cpu", f"gauss-newton{option}", 2) for option in ("", ":path=10"))
    assert isinstance(plain, Tableau) and isinstance(held, Tableau)
    assert (plain.full - held.full).abs().max() > 1e-3
    assert held.metadata["network_evaluations"] > plain.metadata["network_evaluations"] * 0.5


# --- the committed run -----------------------------------------------------------------------------


def committed(checkpoint: str = DATA) -> dict[tuple[str, int], dict[str, str]]:
    """The rows of a network by method and NFE: every method that the book compares on it."""
    sweep = experiments.Sweep(RESULTS / "learned.standard.csv", learned.LEARNED_KEYS)
    nfes, chosen_for = learned.asked("standard")
    rows = sweep.select(learned.learned_cells([checkpoint], nfes, chosen_for[checkpoint]))
    found = {(r["method"], int(r["nfe"])): r for r in rows}
    assert set(found) == {(m, nfe) for m in chosen_for[checkpoint] for nfe in NFES}, "rows are missing"
    return found


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


@pytest.mark.parametrize("method", fits.LEARNED)
def test_every_learned_row_has_its_solver(method: str) -> None:
    p, rows = experiments.preset("standard"), committed()
    for nfe in NFES:
        solver = distillation.load(fits.solver_file(p, DATA, method, nfe))
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


def test_what_the_readme_says() -> None:
    sweep = experiments.Sweep(RESULTS / "learned.standard.csv", learned.LEARNED_KEYS)
    said = " ".join((RESULTS.parent / "README.md").read_text(encoding="utf-8").split())
    for checkpoint, words in (
        (DATA, "{}, {} and {} of the best handcrafted solver's"),
        (NOISE, "{}, {} and {} (n = 5,000"),
    ):
        methods = (*learned.HANDCRAFTED, "gauss-newton")
        rows = sweep.select(learned.learned_cells([checkpoint], (3, 4, 5), methods))
        far = {(r["method"], int(r["nfe"])): float(r["fd_reference"]) for r in rows}
        gains = [far["gauss-newton", n] / min(far[m, n] for m in learned.HANDCRAFTED) for n in (3, 4, 5)]
        assert words.format(*(f"{gain:.2f}" for gain in gains)) in said


class Rows:
    """The committed rows of a network, as the page reads them."""

    def __init__(self, checkpoint: str) -> None:
        self.rows = committed(checkpoint)
        self.methods = {method for method, _ in self.rows}
        self.by_hand = {nfe: min(self.far(m, nfe) for m in learned.HANDCRAFTED) for nfe in NFES}

    def far(self, method: str, nfe: int, column: str = "fd_reference") -> float:
        return float(self.rows[method, nfe][column])

    def gain(self, method: str, nfe: int, column: str = "fd_reference") -> float:
        return self.far(method, nfe, column) / min(self.far(m, nfe, column) for m in learned.HANDCRAFTED)

    def nearest(self, nfe: int, column: str) -> str:
        return min(self.methods, key=lambda m: self.far(m, nfe, column))

    def nearer_than_all_with(self, nfe: int) -> int:
        """The largest NFE up to which no handcrafted solver is as near as the second-order fit."""
        return max(k for k in NFES if all(self.far("gauss-newton", nfe) < self.by_hand[n] for n in NFES if n <= k))


@pytest.fixture(scope="module")
def data() -> Rows:
    return Rows(DATA)


@pytest.fixture(scope="module")
def noise() -> Rows:
    return Rows(NOISE)


def test_what_the_page_says_of_the_second_order_fit(data: Rows, noise: Rows) -> None:
    said, goals = page("learned"), {3: 0.2, 5: 0.4}
    gains = [f"{rows.gain('gauss-newton', nfe):.2f}" for rows in (data, noise) for nfe in goals]
    words = "{} and {} of the best handcrafted distance to the long run on the data-predicting network and {} and {} on"
    assert words.format(*gains) in said
    assert all(rows.gain("gauss-newton", nfe) <= goal for rows in (data, noise) for nfe, goal in goals.items())
    assert all(rows.nearest(nfe, "fd_reference") == "gauss-newton" for rows in (data, noise) for nfe in NFES)
    three, five = (data.nearer_than_all_with(nfe) for nfe in (3, 5))
    assert f"with 3 calls than every handcrafted solver with {three}, and with 5 than with {five}" in said
    three, five = (noise.nearer_than_all_with(nfe) for nfe in (3, 5))
    assert f"nearer with 3 than every one with {three} and with 5 than with {five}" in said


def test_in_what_else_the_second_order_fit_is_nearest(data: Rows, noise: Rows) -> None:
    """RMSE: "but with 3 calls, and on the noise-predicting network with 4 and 7"; to the data: up to 8, and to 7."""
    others = {
        (rows is noise, column, nfe): rows.nearest(nfe, column)
        for rows in (data, noise)
        for column in ("rmse", "fd_data")
        for nfe in NFES
        if rows.nearest(nfe, column) != "gauss-newton"
    }
    assert others == {
        (False, "rmse", 3): "s4s-alt", (True, "rmse", 4): "s4s-alt", (True, "rmse", 7): "s4s-alt",
        (False, "fd_data", 9): "ld3", **{(True, "fd_data", nfe): "dpm_solver_pp" for nfe in (8, 9, 10)},
    }  # fmt: skip


def test_what_the_page_says_of_costs(data: Rows, noise: Rows) -> None:
    said = page("learned")
    cost = {
        (rows, method, nfe): int(rows.rows[method, nfe]["evaluations"])
        for rows in (data, noise)
        for method in ("gauss-newton", "dlms")
        for nfe in NFES
    }
    ours = [value / 1000 for (_, method, _), value in cost.items() if method == "gauss-newton"]
    ratios = [value / cost[rows, "dlms", nfe] for (rows, m, nfe), value in cost.items() if m == "gauss-newton"]
    assert f"{min(ours):.0f} to {max(ours):.0f} thousand evaluations" in said
    assert f"{min(ratios):.1f} to {max(ratios):.1f} times those of this short training" in said
    assert experiments.preset("standard").trajectories == 1600
    sweep = experiments.Sweep(RESULTS / "learned.standard.csv", learned.LEARNED_KEYS)
    (long,) = sweep.select(learned.learned_cells([DATA], [5], ["dlms:residual=seen,trajectories=20000"]))
    assert f"DLMS of 5 calls takes {int(long['evaluations']):,}" in said
    fives = [cost[rows, "gauss-newton", 5] for rows in (data, noise)]
    assert max(fives) <= 0.1 * int(long["evaluations"])
    assert f"the fit's {min(fives):,} and {max(fives):,} are a tenth of that or less" in said


def test_what_the_page_says_of_dlms(data: Rows, noise: Rows) -> None:
    said = page("learned")
    first, second = ([f"{rows.gain('dlms', nfe):.2f}" for nfe in (3, 4, 5, 6)] for rows in (data, noise))
    assert f"with 3 calls ({first[0]} of the best one's distance, {second[0]} on" in said
    assert f"and, just, with 4 ({first[1]}; on two other blocks it is not)" in said
    assert f"*behind* with 5 ({first[2]}) and with 6 ({first[3]})" in said
    assert f"with 4, 5 and 6 ({second[1]}, {second[2]} and {second[3]})" in said
    assert max(map(float, first[:2])) < 1 < min(map(float, first[2:])) and min(map(float, second[1:])) > 1
    for rows in (data, noise):
        for nfe in (7, 8, 9, 10):
            assert rows.by_hand[nfe] < rows.far("dlms", nfe) < rows.far("start", nfe)
    assert data.by_hand[5] == data.far("dpm_solver_pp", 5)
    assert [f"{data.far(m, 5, 'rmse'):.2f}" for m in ("dpm_solver_pp", "dlms")] == ["0.20", "0.08"]
    assert all(data.gain("dlms", nfe, column) < 1 for nfe in (5, 6) for column in ("rmse", "fd_reference_critic"))


def test_what_the_page_says_of_others(data: Rows, noise: Rows) -> None:
    for nfe in (7, 8, 9):
        assert sorted(data.methods, key=lambda m: data.far(m, nfe))[:2] == ["gauss-newton", "ld3"]
    for nfe in (3, 4, 5, 6):
        assert data.far("gits", nfe) > data.far("ipndm", nfe)
        assert data.far("amed", nfe) == max(data.far(m, nfe) for m in data.methods)
    shares = [
        int(data.rows["s4s-alt", n]["evaluations"]) / int(data.rows["gauss-newton", n]["evaluations"])
        for n in (3, 4, 5, 6, 7)
    ]
    assert all(data.gain("s4s-alt", nfe) < 1 for nfe in (3, 4, 5, 6, 7))
    assert f"for {min(shares):.1f} to {max(shares):.1f} of them" in page("learned")
    for rows in (data, noise):  # no solver of ours is behind its start with 8 calls or more
        for method in ("dlms", "s4s-alt", "gauss-newton", *(("dlms-fixed", "s4s") if rows is data else ())):
            assert all(rows.far(method, nfe) < rows.far("start", nfe) for nfe in (8, 9, 10))


# --- paths -----------------------------------------------------------------------------------------


def test_distances_to_the_path_shrink_with_the_steps_and_begin_at_zero() -> None:
    """Many steps stay on the path, few leave it, and more the fewer they are; both begin on it."""
    grid = fits.grid_of("time", DATA, "cpu")
    made = {n: solvers.deis(grid, nfe=n, variable="log_rho", basis="data") for n in (5, 10, 40)}
    found = {n: learned.path_distances(DATA, "cpu", table, 4) for n, table in made.items()}
    for n, (levels, apart) in found.items():
        assert torch.allclose(levels, made[n].sigmas) and apart[0] == 0 and apart.shape == (n + 1,)
    assert 3 * found[40][1][-1] < found[10][1][-1] < found[5][1][-1]
    ends = dode.sample(dode.load(DATA), made[5], dode.initial_noise((1, 28, 28), experiments.held_out_seeds(4)))
    truth = dode.sample(dode.load(DATA), made[40], dode.initial_noise((1, 28, 28), experiments.held_out_seeds(4)))
    apart = float((ends - truth).flatten(1).norm(dim=1).mean())
    assert float(found[5][1][-1]) == pytest.approx(apart, rel=0.1)


def test_a_designed_solver_has_a_path_too() -> None:
    model, (table, _) = dode.load(DATA), fits.start("dlms", DATA, "cpu", 4)
    designed = distillation.begin_dlms(model, table)  # as it begins, it is the table
    levels, apart = learned.path_distances(DATA, "cpu", designed, 4)
    same, distance = learned.path_distances(DATA, "cpu", table, 4)
    assert torch.allclose(levels, same, rtol=1e-4) and torch.allclose(apart, distance, rtol=1e-3)
    assert apart[0] > 0  # the analytical first step has left the path by then


# --- what fits look at -----------------------------------------------------------------------------


def test_a_fit_never_looks_through_the_eyes_that_measure() -> None:
    honest = {kind: mix for kind, mix in losses.MIXES.items() if kind != "judge"}
    assert all("judge" not in mix for mix in honest.values()) and losses.JUDGES["judge"] == "classifier"
    names = {zoo_name: dode.zoo.load_classifier(f"fashion-mnist-{zoo_name}")[1] for zoo_name in losses.JUDGES.values()}
    assert len(set(names.values())) == 3  # three networks, each with weights of its own
    assert fits.yardsticks("cpu")[0][0].name == names["classifier"]


def test_mixes_are_what_they_say() -> None:
    x = 1.5 * torch.randn(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    sizes = dict(pixels=784, random=2560, averaged=160, critic=96, observer=80, judge=64)
    for kind, mix in losses.MIXES.items():
        found = fits.residual("cpu", kind)(x)
        assert found.shape == (2, sum(sizes[word] for word in mix)), kind
        clipped = fits.residual("cpu", f"seen-{kind}")
        assert torch.equal(clipped(x), fits.residual("cpu", kind)(x.clamp(-1, 1)))
    ours, raw = fits.residual("cpu", "seen"), fits.residual("cpu", "raw")
    assert torch.equal(ours(x), raw(x.clamp(-1, 1))) and not torch.allclose(ours(x), raw(x))
    with pytest.raises(ValueError, match="no residual named 'pixel'; there are all, seen, raw, pixels, random,"):
        fits.residual("cpu", "pixel")


def test_a_second_order_fit_has_the_seeds_that_its_budget_pays() -> None:
    p, table = experiments.preset("standard"), lambda nfe: fits.start("gauss-newton", DATA, "cpu", nfe)[0]
    found = {nfe: fits._images(p, "gauss-newton", table(nfe)) for nfe in (3, 5, 6, 10)}
    assert found == {3: 191, 5: 136, 6: 116, 10: 72} and fits._images(p, "s4s", table(3)) == 128
    assert fits._images(experiments.preset("smoke"), "gauss-newton", table(3)) == 16  # twice the others'


@pytest.mark.parametrize("images", (8, 40))
def test_a_second_order_fit_stays_within_its_budget(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where it pays for few images: then it grows with them."""
    monkeypatch.setattr(distillation.problem, "BUDGET", 1000)
    model, (table, make) = dode.load(DATA), fits.start("gauss-newton", DATA, "cpu", 2)
    paid = distillation.problem.affordable(table)
    assert 8 < paid < 40
    task = distillation.problem.Task(
        model, table, make, dode.initial_noise(model.shape, range(images)), seeds=range(images)
    )
    spent = distillation.problem.second_order(task).metadata["network_evaluations"]
    assert 0.4 * 2000 * images / paid < spent < 1.05 * 2000 * max(1, images / paid)


# --- one fit on top of another ---------------------------------------------------------------------


def test_a_designer_stands_on_a_table_that_was_fitted_before(project: Path) -> None:
    below = fits.fit(P, DATA, "cpu", "gauss-newton", 2)
    found = fits.fit(P, DATA, "cpu", "dlms:base=gauss-newton", 2)
    assert isinstance(found, distillation.Designed) and isinstance(below, dode.Tableau)
    assert torch.equal(found.base.full, below.full) and torch.equal(found.base.sigmas, below.sigmas)
    assert found.metadata["cost"][0] >= min(found.metadata["cost"])
    with pytest.raises(ValueError, match="dlms designs its table for each image; a base is one table for all"):
        fits.fit(P, DATA, "cpu", "gauss-newton:base=dlms", 2)
