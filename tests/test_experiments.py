"""Presets, sweeps that survive a kill, the registry, and the committed numbers."""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import dode
from book import prose
from dode import experiments, zoo
from dode.experiments import sweeps
from dode.utils.files import FileError, load_tensors, save_tensors
from dode.zoo.datasets import data_set

ROOT = Path(__file__).resolve().parents[1]
FASHION = ("fashion-mnist-noise", "fashion-mnist-data")
COMMITTED = ROOT / "results" / "figure_4.standard.csv"


def power(a: int, b: int) -> dict[str, int]:
    return dict(value=a**b)


def rows() -> list[dict[str, str]]:
    with open(COMMITTED, newline="") as f:
        return list(csv.DictReader(f))


def test_a_sweep_stores_each_row_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    path, cells, done = tmp_path / "s.csv", [dict(a=i, b="x") for i in range(4)], []

    def work(a: int, b: str) -> dict[str, object]:
        if a == 2 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(a)
        return dict(value=a * a)

    with pytest.raises(KeyboardInterrupt):
        experiments.Sweep(path, ["a", "b"]).run(cells, work)
    assert len(path.read_text().splitlines()) == 3
    done.append(-1)
    sweep = experiments.Sweep(path, ["a", "b"]).run(cells, work)
    assert done == [0, 1, -1, 2, 3]
    assert [(r["a"], r["value"]) for r in sweep.rows] == [("0", "0"), ("1", "1"), ("2", "4"), ("3", "9")]
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]


def test_processes_find_the_same_rows(tmp_path: Path) -> None:
    cells = [dict(a=i, b=5) for i in range(3)]
    sweep = experiments.Sweep(tmp_path / "s.csv", ["a"]).run(cells, power, jobs=2)
    assert sorted((r["a"], r["value"]) for r in sweep.rows) == [("0", "0"), ("1", "1"), ("2", "32")]


def test_a_full_disk_keeps_the_rows_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = experiments.Sweep(tmp_path / "s.csv", ["a"])
    sweep.add(dict(a=1))
    before = sweep.path.read_text()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        sweep.add(dict(a=2))
    assert sweep.path.read_text() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.csv"]


def test_a_foreign_results_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("other\n1\n")
    with pytest.raises(FileError, match="no column 'a'"):
        experiments.Sweep(tmp_path / "s.csv", ["a"])


@pytest.mark.parametrize(
    ("call", "wrong", "nearest"),
    [
        (experiments.preset, "quik", "quick"),
        (dode.load, "fashion-mnist-nois", "fashion-mnist-noise"),
        (experiments.checkpoints, "fashion-data", "fashion-mnist-data"),
    ],
)
def test_an_unknown_name_gets_the_nearest_ones(call, wrong: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"nearest: {nearest}") as caught:
        call(wrong)
    assert "\n" not in str(caught.value)


def test_damaged_and_foreign_checkpoints_are_refused_in_one_line(tmp_path: Path) -> None:
    good = zoo.checkpoint_file("fashion-mnist-noise").read_bytes()
    for name, content in (("cut", good[: len(good) // 2]), ("text", b"hello"), ("empty", b"")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(FileError) as caught:
            dode.load(tmp_path / f"{name}.safetensors")
        assert "\n" not in str(caught.value)
    with pytest.raises(FileError, match="does not hold a denoiser"):
        dode.load(zoo.CHECKPOINTS / "fashion-mnist-classifier.safetensors")
    with pytest.raises(FileError, match="holds a moments, not a network"):
        dode.load(zoo.CHECKPOINTS / "fashion-mnist-moments.safetensors")


@pytest.mark.parametrize(
    "change", [dict(wrapper="torch"), dict(name=None), dict(shape=3), dict(schedule={"schedule": "x"}), dict(config={})]
)
def test_a_checkpoint_with_a_wrong_header_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    tensors, card = load_tensors(zoo.checkpoint_file("fashion-mnist-noise"), "network")
    changed = {k: v for k, v in {**card, **change}.items() if v is not None}
    path = save_tensors(tmp_path / "x.safetensors", tensors, "network", changed)
    with pytest.raises(FileError, match="does not hold a denoiser") as caught:
        dode.load(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_device_is_one_line() -> None:
    with pytest.raises(ValueError, match="cannot use device 'gpu'"):
        dode.load("fashion-mnist-noise", device="gpu")


@pytest.mark.parametrize("name", zoo.NAMES)
def test_a_shipped_checkpoint_is_small_and_documented(name: str) -> None:
    path, card = zoo.checkpoint_file(name), zoo.metadata(name)
    assert path.stat().st_size <= (8e6 if name in FASHION else 16e6)
    model = dode.load(name)
    assert sum(p.numel() for p in model.network.parameters()) <= (3e6 if name in FASHION else 15e6)
    assert not any(p.requires_grad for p in model.network.parameters()) and model.shape == data_set(name).shape
    assert {"data", "licence", "recipe", "seconds", "final_loss"} <= card.keys()
    assert path.with_suffix(".csv").is_file()
    assert path.with_suffix(".md").read_text() == prose.model_card(name)


def test_predictions_and_ranges() -> None:
    noise, data = (dode.load(name) for name in FASHION)
    assert (noise.prediction, data.prediction) == ("noise", "data")
    assert (data.sigma_min, data.sigma_max) == (0.002, 80.0)
    assert noise.sigma_max == pytest.approx(157.407, abs=1e-2)


def test_seeds_of_fit_and_test_never_meet() -> None:
    blocks = range(5)
    fit = {s for b in blocks for s in experiments.fit_seeds(1000, b)}
    test = [set(experiments.held_out_seeds(50_000, b)) for b in blocks]
    assert len(fit) == 5000 and sum(map(len, test)) == len(set().union(*test)) and not fit & set().union(*test)


def test_committed_rows_name_their_origin() -> None:
    for row in rows():
        for key in (
            "checkpoint",
            "n",
            "seeds",
            "features",
            "network",
            "device",
            "torch",
            "python",
            "commit",
            "preset",
            "weights",
        ):
            assert row[key] not in ("", "unknown"), (key, row)
        assert int(row["n"]) >= 5000
        assert row["weights"] == zoo.digest(row["checkpoint"]), "measured with other weights"
    _, reference = experiments.fashion_reference()
    assert {row["features"] for row in rows()} == {reference.features}


WINS = [(name, "ddim", nfe) for name in FASHION for nfe in (5, 10, 25)]
WINS += [("fashion-mnist-data", "heun", nfe) for nfe in (5, 9)]


def fds(checkpoint: str, solver: str, nfe: int, variant: str) -> list[float]:
    key = (checkpoint, solver, str(nfe), variant)
    return [float(r["fd"]) for r in rows() if (r["checkpoint"], r["solver"], r["nfe"], r["variant"]) == key]


@pytest.mark.parametrize(("checkpoint", "solver", "nfe"), WINS)
def test_the_committed_run_says_that_distilling_helps(checkpoint: str, solver: str, nfe: int) -> None:
    plain, learned = (fds(checkpoint, solver, nfe, variant) for variant in ("plain", "d-ode"))
    assert len(plain) == len(learned) == 3
    assert max(learned) < min(plain)


@pytest.mark.parametrize(
    ("device", "has", "expected"),
    [
        ("cpu", {"avx2": True, "avx512_bf16": False}, None),
        ("cpu", {"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ("cpu", {}, None),
        ("cuda", {"avx512_bf16": False}, torch.bfloat16),
    ],
)
def test_bf16_only_where_the_device_has_it(
    device: str, has: dict[str, bool], expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert sweeps.autocast(experiments.preset("standard"), device) == expected
    assert sweeps.autocast(experiments.preset("smoke"), device) is None


def test_the_winner_is_the_same_in_float32_as_in_bf16() -> None:
    found = experiments.Sweep(ROOT / "results" / "bf16.csv", ["checkpoint", "variant"]).rows
    for name in FASHION:
        for precision in ("fd_float32", "fd_bf16"):
            fd = {r["variant"]: float(r[precision]) for r in found if r["checkpoint"] == name}
            assert fd["d-ode"] < 0.8 * fd["plain"]


def test_what_the_figure_4_page_says_against_distilling() -> None:
    for name in FASHION:  # plain DDIM wins at NFE 2
        assert max(fds(name, "ddim", 2, "plain")) < min(fds(name, "ddim", 2, "d-ode"))
    for ddim, heun in ((5, 5), (10, 9)):  # D-DDIM beats D-EDM at few calls, and not at 25
        assert max(fds(FASHION[1], "ddim", ddim, "d-ode")) < min(fds(FASHION[1], "heun", heun, "d-ode"))
    assert max(fds(FASHION[1], "heun", 25, "d-ode")) < min(fds(FASHION[1], "ddim", 25, "d-ode"))
    for row in rows():  # Heun's corrector is mostly taken back at three and five calls
        if (row["solver"], row["variant"]) == ("heun", "d-ode") and row["nfe"] in ("3", "5"):
            assert all(float(v) < -0.9 for v in row["lambdas"].split()[1::2])


def test_what_the_figure_4_page_says_of_later_solvers() -> None:
    fd = lambda solver, nfe, variant: fds(FASHION[1], solver, nfe, variant)  # noqa: E731
    mean = lambda *cell: sum(fd(*cell)) / len(fd(*cell))  # noqa: E731
    later = ("dpm_solver_pp:order=2", "dpm_solver_pp", "unipc")
    for solver in later:
        assert len(fd(solver, 5, "d-ode")) == len(fd(solver, 10, "plain")) == 3
        assert mean(solver, 5, "d-ode") > mean(solver, 5, "plain")
        assert mean(solver, 10, "d-ode") < mean(solver, 10, "plain")
    lost = lambda solver, nfe: round(mean(solver, nfe, "d-ode") / mean(solver, nfe, "plain"), 2)  # noqa: E731
    assert [lost(solver, 25) for solver in later] == [0.99, 1.05, 1.13]
    assert min(lost(solver, 50) for solver in later) == 1
    assert all(mean(later[0], 5, "plain") < mean(solver, 5, "d-ode") for solver in ("ddim", "heun", *later))
    assert max(fd(later[0], 10, "d-ode")) < min(fd("ddim", 10, "d-ode") + fd(later[0], 10, "plain"))
    assert all(min(fd(s, 10, v)) > 3 * max(fd(later[0], 10, v)) for s in later[1:] for v in ("plain", "d-ode"))


@pytest.mark.parametrize(("checkpoint", "solver"), [("fashion-mnist-noise", "ddim"), ("fashion-mnist-data", "ddim")])
def test_a_committed_fit_can_be_made_again(checkpoint: str, solver: str) -> None:
    (row,) = (
        r
        for r in rows()
        if (r["checkpoint"], r["solver"], r["variant"], r["nfe"], r["block"]) == (checkpoint, solver, "d-ode", "5", "0")
    )
    model = dode.load(checkpoint)
    again = experiments.distilled(model, experiments.base_solver(solver, model, 5), 100)
    stored = torch.tensor([float(v) for v in row["lambdas"].split()])
    torch.testing.assert_close(torch.tensor(again.metadata["lambdas"]), stored, rtol=2e-3, atol=2e-3)


def test_a_committed_distance_can_be_measured_again() -> None:
    """A tenth of one row's seeds, against the rest of the file only in order of magnitude and order of solvers."""
    features, reference = experiments.fashion_reference()
    model = dode.load("fashion-mnist-noise")
    plain = experiments.base_solver("ddim", model, 5)
    seeds = experiments.held_out_seeds(500)
    found = [
        dode.metrics.measure(experiments.draw(model, table, seeds), features, reference)["fd"]
        for table in (plain, experiments.distilled(model, plain, 100))
    ]
    stored = {
        r["variant"]: float(r["fd"])
        for r in rows()
        if (r["checkpoint"], r["solver"], r["nfe"], r["block"]) == ("fashion-mnist-noise", "ddim", "5", "0")
    }
    assert found[1] < found[0] and stored["d-ode"] < stored["plain"]
    assert found[0] == pytest.approx(stored["plain"], rel=0.25)


def test_the_readme_table_is_the_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    between = re.search(r"<!-- table: begin[^\n]*-->\n(.*)<!-- table: end -->", text, re.DOTALL)
    assert between and between.group(1).strip() == prose.readme_table().strip()


def test_the_readme_example_runs_as_it_stands(tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert code
    program = code.group(1) + "\nassert images.shape == (16, 1, 28, 28)"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_what_the_figure_6_page_says() -> None:
    cells = experiments.Sweep(ROOT / "results" / "figure_6.standard.csv", ["checkpoint", "solver", "nfe"]).rows
    lost = {
        (r["checkpoint"].rsplit("-", 1)[1], r["solver"], r["nfe"])
        for r in cells
        if float(r["rmse_distilled"]) > float(r["rmse_plain"])
    }
    assert {cell for cell in lost if cell[1] in ("ddim", "heun")} == {
        ("noise", "ddim", "2"), ("data", "heun", "25"), ("data", "heun", "49"),
    }  # fmt: skip
    assert {cell for cell in lost if cell[1] not in ("ddim", "heun")} == {
        ("noise", "ipndm", "25"), ("noise", "deis:order=4", "25"),
        *(("data", "dpm_solver_pp:order=2", nfe) for nfe in ("10", "25")),
    }  # fmt: skip


# -- variants of a distilled solver ----------------------------------------------------------------


def test_a_variant_is_written_in_one_word() -> None:
    p = experiments.preset("smoke")
    make = lambda variant, solver="ddim": experiments.variant_of(p, "cpu", FASHION[0], solver, variant, 3, 0)  # noqa: E731
    model = dode.load(FASHION[0])
    assert torch.equal(make("plain").full, experiments.base_solver("ddim", model, 3).full)
    usual = make("d-ode:scale=2,images=4").metadata
    assert usual["scale"] == 2 and usual["seeds"] == [0, 1, 2, 3] and usual["teacher"] == "ddim"
    other = make("d-ode:scale=2,images=4,teacher=same,align=index,equation=9,first_step=none", "unipc:order=2").metadata
    assert (other["teacher"], other["align"], other["equation"], other["first_step"]) == ("unipc", "index", 9, "none")
    borrowed = make(f"d-ode:scale=2,images=4,model={FASHION[1]}")
    assert "model" not in borrowed.metadata  # so that this model may use it
    assert not torch.allclose(borrowed.full, make("d-ode:scale=2,images=4").to_basis(borrowed.basis).full)
    for wrong, message in (("d-odd", "no variant named 'd-odd'"), ("d-ode:C=3", "has no option 'C=3'; it has images")):
        with pytest.raises(ValueError, match=message):
            make(wrong)


def test_what_the_figure_3_page_says() -> None:
    found = experiments.Sweep(ROOT / "results" / "figure_3.standard.csv", experiments.FD_KEYS).rows
    assert {row["n"] for row in found} == {"5000"}

    def fd(solver: str, nfe: int, variant: str = "d-ode") -> list[float]:
        return [float(r["fd"]) for r in found if (r["solver"], r["nfe"], r["variant"]) == (solver, str(nfe), variant)]

    mean = lambda *cell: sum(fd(*cell)) / len(fd(*cell))  # noqa: E731
    own, later = "d-ode:basis=own", ("dpm_solver_pp", "unipc")
    everyone = ("ddim", "ipndm", "dpm_solver", "deis:order=4", "dpm_solver_pp:order=2", *later)
    stages = ("dpm_solver:order=2", "heun")
    for solver in everyone[:4]:
        assert all(max(fd(solver, nfe)) < min(fd(solver, nfe, "plain")) for nfe in (5, 10))
    assert all(max(fd("ddim", 3, "plain")) < min(fd(solver, 3)) for solver in everyone + stages)
    assert all(max(fd("ddim", 3, "plain")) < min(fd(solver, 3, own)) for solver in everyone[4:])
    ten = lambda solver, nfe: nfe - (solver == "heun" and nfe == 10)  # noqa: E731
    for nfe in (5, 10):
        assert mean("ddim", nfe) == min(mean(solver, ten(solver, nfe)) for solver in everyone + stages)
    told = {s: mean(s, 25) / mean(s, 25, "plain") for s in everyone + stages}
    assert [s for s, ratio in told.items() if ratio < 0.98] == ["ddim"]
    for nfe, least, most in ((25, 1.06, 1.17), (50, 1.08, 1.12)):
        late = [mean(s, nfe, v) / mean(s, nfe, "plain") for s in everyone[4:] for v in ("d-ode", own)]
        assert (round(min(late), 2), round(max(late), 2)) == (least, most)
    worth = lambda solver, nfe: round(mean(solver, nfe) / mean(solver, nfe, "plain"), 2)  # noqa: E731
    assert [worth(stages[0], nfe) for nfe in (5, 10, 25, 50)] == [0.10, 0.62, 1.05, 1.10]
    assert [worth(stages[1], nfe) for nfe in (5, 9, 25, 49)] == [0.13, 1.34, 1.34, 1.09]
    for solver in later:
        assert all(mean(solver, nfe) > mean(solver, nfe, "plain") for nfe in (3, 5, 10))
        assert 0.93 < mean(solver, 3, own) / mean(solver, 3, "plain") < 0.97
        assert min(fd(solver, 5, own)) > max(fd(solver, 5, "plain"))
    assert mean("unipc", 5, own) > 1.5 * mean("unipc", 5, "plain")
    for variant in ("d-ode", own):
        assert all(mean(everyone[4], nfe, variant) < mean(everyone[4], nfe, "plain") for nfe in (5, 10))
    assert mean("unipc", 10, own) > 1.1 * mean("unipc", 10, "plain")
    assert mean("ddim", 25) < 0.75 * mean("ddim", 25, "plain")
    assert all(0.95 < mean(solver, 25) / mean(solver, 25, "plain") < 1.05 for solver in everyone[1:4])
    for nfe in (25, 50):
        asked = [(s, v) for s in everyone + stages[:1] for v in ("plain", "d-ode")] + [(s, own) for s in everyone[4:]]
        assert all(len(fd(solver, nfe, variant)) == 3 for solver, variant in asked)
    late = {solver: mean(solver, 50) / mean(solver, 50, "plain") for solver in everyone[:4]}
    assert all(0.95 < late[solver] < 1.05 for solver in ("ddim", "ipndm", "deis:order=4"))
    assert round(1 / (late["dpm_solver"] - 1)) == 12
    assert all(mean(s, nfe) / mean(s, nfe, "plain") > 0.95 for s in everyone + stages for nfe in (50 - (s == "heun"),))
    distilled = [fd(solver, 5) for solver in everyone] + [fd(solver, 5, own) for solver in everyone[4:]]
    assert max(fd("unipc", 5, "plain")) < min(map(min, distilled))
    assert min(fd("unipc", 10, "plain")) < max(fd("ddim", 10)) and min(fd("ddim", 10)) < max(fd("unipc", 10, "plain"))
