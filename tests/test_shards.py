"""Sweeps in pieces: every cell in one piece, and the merged pieces the same as one run; the paper's preset; moments."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import dode
from dode import experiments, zoo
from dode.experiments import plans, shard
from dode.metrics import Moments, embed, frechet_distance
from dode.utils.files import FileError, load_tensors, save_tensors

DATA = "fashion-mnist-data"
MEASURED = ("fd", "n", "seeds", "lambdas", "evaluations", "network", *experiments.FD_KEYS)


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DODE_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("DODE_JOBS", "1")
    return tmp_path / "results"


# -- plans and their pieces ------------------------------------------------------------------------


@pytest.mark.parametrize("figure", plans.PLANS)
@pytest.mark.parametrize("preset", experiments.PRESETS)
def test_each_cell_is_in_one_piece(figure: str, preset: str) -> None:
    plan = experiments.plan(figure, preset)
    pieces = shard.shards(plan)
    key = lambda cell: tuple(map(str, cell.values()))  # noqa: E731
    assert sorted(key(c) for piece in pieces for c in piece.cells) == sorted(map(key, plan.cells))
    assert len({key(c) for c in plan.cells}) == len(plan.cells)
    assert len({piece.path for piece in pieces}) == len(pieces)
    assert sum(piece.evaluations for piece in pieces) == plan.evaluations
    alone = {name: experiments.plan(figure, preset, name) for name in plan.checkpoints}  # as the command line has it
    for piece in pieces:
        same = replace(piece, plan=alone[piece.checkpoint])
        assert (same.cells, same.path) == (piece.cells, piece.path)


def test_a_piece_measured_otherwise_is_another_file() -> None:
    plan = experiments.plan("figure_4", "smoke")
    (first, *_), (other, *_) = (shard.shards(p) for p in (plan, replace(plan, preset=replace(plan.preset, images=65))))
    assert first.path.parent == other.path.parent and first.path != other.path
    assert first.path == shard.shards(experiments.plan("figure_4", "smoke"))[0].path


def test_the_committed_rows_are_of_the_plans() -> None:
    for figure in plans.PLANS:
        plan = experiments.plan(figure, "standard")
        sweep = plan.sweep(Path(__file__).parents[1] / "results" / f"{figure}.standard.csv")
        assert len(sweep.select(plan.cells)) == len(sweep.rows) > 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure_5"], "no plan named 'figure_5'; there are: figure_3, figure_4"),
        (["figure_4", "--preset", "papper"], "no preset named 'papper'; the nearest: paper"),
        (["figure_3", "--checkpoint", "no.safetensors"], "no.safetensors does not exist; check the path"),
        (["figure_3", "--checkpoint", "fashion"], "no checkpoint named 'fashion'; the nearest"),
        (["figure_4", "--preset", "smoke", "--solver", "ddim", "--out", "x.csv"], "2 pieces of figure_4 are meant"),
    ],
)
def test_a_wrong_piece_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert shard.main(words) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not Path("x.csv").exists()


def test_the_pieces_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert shard.main(["figure_3", "--preset", "paper"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9 * 3
    assert lines[0] == "--checkpoint fashion-mnist-noise --solver ddim --block 0   44,200,000 evaluations"


# -- measuring and merging -------------------------------------------------------------------------


@pytest.mark.slow
def test_pieces_measure_what_one_run_measures(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = experiments.plan("figure_4", "smoke", DATA)
    cells = tuple(c for c in plan.cells if c["solver"] == "ddim" or (c["solver"] == "heun" and c["nfe"] < 5))
    plan = replace(plan, cells=cells, preset=replace(plan.preset, images=16, fit_images=4))
    files = [tmp_path / f"{solver}.csv" for solver in ("ddim", "heun")]
    whole = plan.sweep(tmp_path / "whole.csv").run(plan.cells, plan.row("cpu")).select(plan.cells)
    for piece, out in zip(shard.shards(plan), files, strict=True):
        piece.run(out, "cpu")
    merged = shard.merge(plan, reversed(files))
    assert merged.path == results / "figure_4.smoke.csv"
    assert [[r[k] for k in MEASURED] for r in plan.sweep().rows] == [[r[k] for k in MEASURED] for r in whole]
    out = tmp_path / "again.csv"  # of what has its rows, nothing is measured again
    ddim = ["figure_4", "--preset", "smoke", "--checkpoint", DATA, "--solver", "ddim", "--block", "0"]
    assert shard.main([*ddim, "--device", "cpu", "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("0 numbers\ndone in ") and out.read_text() == ""


def fake_row(p: object, device: str, *, nfe: int, block: int, variant: str, **_: object) -> dict[str, object]:
    return dict(fd=f"{nfe + block / 10 + len(variant) / 100:.5f}")


def test_a_stopped_piece_goes_on_and_is_whole_or_absent(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    def work(*args: object, **cell: int) -> dict[str, object]:
        if len(done) == 1:
            done.append(-1)
            raise KeyboardInterrupt
        done.append(cell["nfe"])
        return dict(fd=1)

    monkeypatch.setattr(plans, "fd_row", work)
    piece = shard.shards(experiments.plan("figure_4", "smoke", DATA))[0]
    out = results / piece.path
    with pytest.raises(KeyboardInterrupt):
        piece.run(out, "cuda")
    assert [p.name for p in out.parent.iterdir()] == [f"{out.name}.part"]
    piece.run(out, "cuda")
    assert done == [2, -1, 2, 5, 5] and [p.name for p in out.parent.iterdir()] == [out.name]


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[plans.Plan, list[Path]]]:
    folder = tmp_path_factory.mktemp("pieces")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plans, "fd_row", fake_row)
        patch.setenv("DODE_RESULTS", str(folder / "none"))
        plan = experiments.plan("figure_4", "standard")
        files = [folder / piece.path for piece in shard.shards(plan)]
        for piece, out in zip(shard.shards(plan), files, strict=True):
            piece.run(out, "cuda")
    yield plan, files


@pytest.mark.slow
@settings(max_examples=15)
@given(st.randoms(use_true_random=False), st.integers(0, 40))
def test_the_order_of_the_pieces_does_not_matter(
    pieces: tuple[plans.Plan, list[Path]], chance: random.Random, there: int
) -> None:
    """Merged at once or one by one, in any order, onto any rows that were there: the same rows, the old ones first."""
    (plan, files), found = pieces, []
    mine = [dict(cell, fd="old") for cell in chance.sample(plan.cells, there)]
    shuffled = chance.sample(files, len(files))
    for batches in ([files], [shuffled], [[file] for file in shuffled]):
        with pytest.MonkeyPatch.context() as patch:
            folder = files[0].parents[3] / "merged"
            shutil.rmtree(folder, ignore_errors=True)
            patch.setenv("DODE_RESULTS", str(folder))
            if mine:
                plan.sweep().add(*mine)
            for batch in batches:
                shard.merge(plan, batch)
            rows = plan.sweep().rows
            assert [r["fd"] for r in rows[:there]] == ["old"] * there
            assert "old" not in {r["fd"] for r in rows[there:]} and len(rows) == len(plan.cells)
            found.append([rows, (folder / "figure_4.standard.csv").read_text()])
    assert found[0] == found[1]
    line = lambda row: sorted(row.items())  # noqa: E731
    assert sorted(found[2][0], key=line) == sorted(found[0][0], key=line)


def test_a_foreign_or_missing_piece_leaves_the_results(
    pieces: tuple[plans.Plan, list[Path]], results: Path, tmp_path: Path
) -> None:
    plan, files = pieces
    shard.merge(plan, files[:1])
    before = (results / "figure_4.standard.csv").read_text()
    with pytest.raises(FileError, match=r"away\.csv does not exist; make it with python -m dode.experiments.shard$"):
        shard.merge(plan, [files[1], tmp_path / "away.csv"])
    (tmp_path / "other.csv").write_text(files[1].read_text().replace("000\n", "001\n", 1))
    with pytest.raises(FileError, match="have different rows of one cell; remove one of them$"):
        shard.merge(plan, [*files, tmp_path / "other.csv"])
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FileError, match="it is of another sweep"):
        shard.merge(plan, [tmp_path / "foreign.csv"])
    assert (results / "figure_4.standard.csv").read_text() == before


def test_the_number_of_processes_can_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DODE_JOBS", raising=False)
    assert experiments.jobs("cpu") == len(os.sched_getaffinity(0)) and experiments.jobs("cuda") == 1
    monkeypatch.setenv("DODE_JOBS", "3")
    assert experiments.jobs("cpu") == 3 and experiments.jobs("cuda:1") == 1
    for wrong in ("0", "-1", "two", "1.5"):
        monkeypatch.setenv("DODE_JOBS", wrong)
        with pytest.raises(ValueError, match=f"^DODE_JOBS is '{wrong}'; make it a number of processes, or unset it$"):
            experiments.jobs("cpu")


@pytest.mark.parametrize("visible", [None, "4,7"])
def test_jobs_side_by_side_have_a_gpu_each(
    visible: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with two; a third job has to share."""
    first, second = (visible or "0,1").split(",")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    seen = lambda: os.environ.get("CUDA_VISIBLE_DEVICES")  # noqa: E731
    with shard.one_gpu():
        assert seen() == first
        with pytest.MonkeyPatch.context() as patch:  # another job's environment
            patch.setenv("CUDA_VISIBLE_DEVICES", visible) if visible else patch.delenv("CUDA_VISIBLE_DEVICES")
            with shard.one_gpu():
                assert seen() == second
                with pytest.MonkeyPatch.context() as third:
                    third.setenv("CUDA_VISIBLE_DEVICES", f"{first},{second}")
                    with shard.one_gpu():
                        assert seen() == f"{first},{second}"
    assert seen() == visible
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")  # a scheduler has chosen
    with shard.one_gpu():
        assert seen() == "5"


# -- the paper's preset ----------------------------------------------------------------------------


def test_the_preset_of_the_paper_is_the_papers() -> None:
    three, four = (experiments.plan(figure, "paper") for figure in plans.PLANS)
    for plan in (three, four):
        assert (plan.preset.images, plan.preset.fit_images, plan.preset.bf16) == (50_000, 100, False)
        assert {cell["block"] for cell in plan.cells if cell["nfe"] > 200} == {0, 1, 2}
        assert plan.preset.fid == "legacy_tensorflow" and plan.preset.kept
    nfes = (5, 10, 25, 50, 100, 250)
    assert three.calls["fashion-mnist-noise", "ddim"] == (2, *nfes)
    assert three.calls["fashion-mnist-noise", "dpm_solver"] == (3, *nfes)
    assert four.calls[DATA, "ddim"] == (2, *nfes)
    assert four.calls[DATA, "heun"] == (3, 5, 9, 25, 49, 99, 249)
    assert (round(three.evaluations / 1e9, 1), round(four.evaluations / 1e9, 1)) == (1.4, 0.8)  # as plans.py says
    longest = max(piece.evaluations for plan in (three, four) for piece in shard.shards(plan))
    assert round(longest / 10_000 / 60) == 111


def renamed(path: Path, name: str) -> Path:
    tensors, card = load_tensors(zoo.checkpoint_file(DATA), "network")
    return save_tensors(path, tensors, "network", card | {"name": name})


@pytest.mark.parametrize("figure", plans.PLANS)
def test_a_file_can_stand_for_a_checkpoint(figure: str, tmp_path: Path) -> None:
    path = str(renamed(tmp_path / "mine.safetensors", "mine"))
    named, filed = (experiments.plan(figure, "paper", which) for which in (DATA, path))
    assert filed.checkpoints == (path,)
    strip = lambda cell: {k: v for k, v in cell.items() if k not in ("checkpoint", "weights")}  # noqa: E731
    assert list(map(strip, filed.cells)) == list(map(strip, named.cells))
    assert {cell["weights"] for cell in filed.cells} == {zoo.digest(path)}
    assert all(piece.path.parts[:2] == (figure, "mine") for piece in shard.shards(filed))


def test_another_network_is_measured_with_inception_at_paper_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(renamed(tmp_path / "file.safetensors", "mine"))
    reference = experiments.fashion_moments("cpu")
    assert experiments.quality.evaluator(experiments.preset("paper"), DATA, "cpu") is reference
    assert experiments.quality.evaluator(experiments.preset("standard"), path, "cpu") is reference
    monkeypatch.setenv("DODE_CACHE", str(tmp_path))
    with pytest.raises(FileError, match=r"mine\.inception-legacy_tensorflow\.safetensors does not exist; make it from"):
        experiments.quality.evaluator(experiments.preset("paper"), path, "cpu")


# -- moments ---------------------------------------------------------------------------------------


def test_one_shard_is_seven(tmp_path: Path) -> None:
    """Mean, covariance and FD of features in shards of any size, through files, to 1e-10."""
    features, reference = experiments.fashion_moments("cpu")
    rows = torch.cat(list(embed(dode.initial_noise((1, 28, 28), range(140)), features)))
    whole = Moments(features.name, features.dim).update(rows)
    bounds = [0, 3, 4, 40, 41, 90, 139, 140]
    files = [
        Moments(features.name, features.dim).update(rows[a:b]).save(tmp_path / f"{a}.safetensors")
        for a, b in pairwise(bounds)
    ]
    assert len(files) == 7
    for order in (files, files[::-1]):
        merged = Moments(features.name, features.dim)
        for file in order:
            merged.merge(Moments.load(file))
        assert merged.n == whole.n == 140
        torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(merged.cov, whole.cov, rtol=1e-10, atol=1e-10)
        fd = frechet_distance(merged, reference)
        assert fd == pytest.approx(frechet_distance(whole, reference), rel=1e-10) and fd > 1
        again = Moments.load(merged.save(tmp_path / "merged.safetensors"))
        assert torch.equal(again.mean, merged.mean) and torch.equal(again.cov, merged.cov)
    with pytest.raises(ValueError, match="different features cannot be compared"):
        Moments("other", features.dim).merge(whole)
