"""Rows of results: stored one by one, shared by processes, whole or measured again, and refused where damaged."""

from __future__ import annotations

import csv
import multiprocessing
from pathlib import Path

import pytest

from dode import experiments
from dode.experiments import Sweep, kept
from dode.experiments.measurements import known
from dode.experiments.rows import typed
from dode.utils.files import FileError

RESULTS = Path(__file__).parents[1] / "results"
HEAD = "a,b,value\n"


def power(a: int, b: int) -> dict[str, int]:
    return dict(value=a**b)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def test_a_sweep_stores_each_row_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    path, cells, done = tmp_path / "s.csv", [dict(a=i, b="x") for i in range(4)], []

    def work(a: int, b: str) -> dict[str, object]:
        if a == 2 and len(done) == 2:
            raise KeyboardInterrupt
        done.append(a)
        return dict(value=a * a)

    with pytest.raises(KeyboardInterrupt):
        Sweep(path, ["a", "b"]).run(cells, work)
    assert len(path.read_text().splitlines()) == 3
    done.append(-1)
    sweep = Sweep(path, ["a", "b"]).run(cells, work)
    assert done == [0, 1, -1, 2, 3] and names(tmp_path) == ["s.csv"]
    assert path.read_text() == HEAD + "".join(f"{i},x,{i * i}\n" for i in range(4))
    assert sweep.select(cells[::-1]).to_dict("list") == dict(a=[3, 2, 1, 0], b=["x"] * 4, value=[9, 4, 1, 0])


@pytest.mark.slow
def test_processes_find_the_same_rows_and_lose_none_when_one_fails(tmp_path: Path) -> None:
    cells = [dict(a=i, b=5) for i in (1, 2, 3)]
    with pytest.raises(ZeroDivisionError):
        Sweep(tmp_path / "s.csv", ["a", "b"]).run([*cells, dict(a=0, b=-1)], power, jobs=2)
    sweep = Sweep(tmp_path / "s.csv", ["a", "b"])
    assert set(sweep.select(cells).value) <= {1, 32, 243} and len(sweep.rows) >= 2
    sweep.run(cells, power)
    assert sweep.select(cells).value.tolist() == [1, 32, 243]


def add_rows(path: Path, first: int) -> None:
    sweep = Sweep(path, ["a"])
    for a in range(first, first + 30):
        sweep.add(dict(a=a, value=1))


@pytest.mark.slow
def test_two_processes_that_write_one_file_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=add_rows, args=(tmp_path / "s.csv", first)) for first in (0, 20, 50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    rows = Sweep(tmp_path / "s.csv", ["a"]).rows
    assert sorted(int(row["a"]) for row in rows) == list(range(80))


def test_two_that_opened_one_file_together_keep_each_others_rows(tmp_path: Path) -> None:
    first, second = (Sweep(tmp_path / "s.csv", ["a"]) for _ in range(2))
    first.add(dict(a=1, value=1))
    second.add(dict(a=1, value=2), dict(a=2, value=2))
    assert [row["value"] for row in Sweep(first.path, ["a"]).rows] == ["1", "2"]  # what is there stays
    first.add(dict(a=1, value=3), replace=True)
    assert first.path.read_text() == "a,value\n2,2\n1,3\n"
    first.run([dict(a=2)], lambda a: pytest.fail("measured again"))


def test_a_full_disk_keeps_the_rows_there_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tmp_path / "s.csv", ["a"])
    sweep.add(dict(a=1))
    before = sweep.path.read_text()

    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        sweep.add(dict(a=2))
    assert sweep.path.read_text() == before and names(tmp_path) == ["s.csv"]


@pytest.mark.parametrize("cut", ["2,x", "2,x,", "2,x,4", '2,"x', "2,x\n", "2,x,\n"])
def test_a_row_that_is_not_whole_is_measured_again(tmp_path: Path, cut: str) -> None:
    (tmp_path / "s.csv").write_text(f"{HEAD}1,x,1\n{cut}")
    sweep = Sweep(tmp_path / "s.csv", ["a", "b"], gives=["value"])
    assert [sweep.done(dict(a=a, b="x")) for a in (1, 2)] == [True, False]
    sweep.run([dict(a=a, b="x") for a in (1, 2)], lambda a, b: dict(value=a * 9))
    assert sweep.path.read_text() == HEAD + "1,x,1\n2,x,18\n"


@pytest.mark.parametrize(
    ("raw", "line"),
    [
        (HEAD.encode() + b"1,x,1\ndd\xefm,x,1\n", 3),
        ((HEAD + "1,x,1\n").encode("utf-16"), 1),
        ((HEAD + "1,x,1\n").encode("utf-16-le"), 1),
        (HEAD.encode() + b"1,x,1\n" + b"x" * 200_000 + b",1,1\n", 3),
        (HEAD.encode() + b"1,x,1,7,8\n", 2),
        (HEAD.encode() + b"<<<<<<< HEAD\n1,x,1\n=======\n1,x,2\n>>>>>>> x\n", 2),
        (HEAD.encode() + b"1,x,1\n2,x,2\n1,x,3\n", 4),
        (HEAD.encode() + b'1,"x"y,1\n', 2),
        (b"no table", 1),
    ],
)
def test_a_damaged_file_is_named_with_its_line_and_left_alone(tmp_path: Path, raw: bytes, line: int) -> None:
    path = tmp_path / "s.csv"
    good = Sweep(path, ["a", "b"])
    path.write_bytes(raw)
    for use in (lambda: Sweep(path, ["a", "b"]), lambda: good.add(dict(a=5, b="x", value=1))):
        with pytest.raises(FileError) as caught:
            use()
        assert str(caught.value).startswith(f"{path}, line {line}, ") and "\n" not in str(caught.value)
    assert path.read_bytes() == raw


def test_a_file_of_another_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("other\n1\n")
    with pytest.raises(FileError, match="no column 'a'"):
        Sweep(tmp_path / "s.csv", ["a"])


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*.csv")), ids=lambda path: path.name)
def test_committed_rows_are_read_and_written_again_byte_for_byte(path: Path, tmp_path: Path) -> None:
    """By the measurement that they are of, or by all their columns; and none of them counts as not whole."""
    of = dict.fromkeys(("figure_3", "figure_4"), "fidelity") | {"natural_pixels": "limits"}
    of |= dict.fromkeys(("table_1_solvers", "ablations", "natural"), "fd")
    name = path.name.split(".")[0]
    found = known().get(of.get(name, name))
    with open(path, newline="", encoding="utf-8") as f:
        lines = list(csv.reader(f))
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    sweep = Sweep(copy, found.keys if found else lines[0], gives=found.gives if found else ())
    assert len(sweep.rows) == len(lines) - 1
    sweep.add()
    assert copy.read_bytes() == path.read_bytes()
    if found and not name.startswith("table_1"):
        assert {found.cell(row)["checkpoint"] for row in sweep.rows} == {row["checkpoint"] for row in sweep.rows}


def test_numbers_are_numbers_and_names_are_text(tmp_path: Path) -> None:
    sweep = Sweep(tmp_path / "s.csv", ["a"])
    sweep.add(dict(a=1, weights="674759e9", fd="0.50000", seeds="0-3", grid=""), dict(a=2, fd="nan", grid="time"))
    frame = typed(sweep.rows)
    assert frame.a.tolist() == [1, 2] and frame.fd[0] == 0.5 and frame.fd.isna()[1]
    assert frame.weights.tolist() == ["674759e9", ""] and frame.grid.tolist() == ["", "time"]


def make(path: Path) -> str:
    with open(path.parent / "calls", "a") as f:
        f.write("x")
    path.write_text("made")
    return "made"


def read(path: Path) -> str:
    if not path.is_file():
        raise FileError("not there")
    return path.read_text()


@pytest.mark.slow
def test_what_is_kept_is_made_once_by_however_many_ask(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    asking = [context.Process(target=kept, args=(tmp_path / "f", read, make)) for _ in range(4)]
    for one in asking:
        one.start()
    for one in asking:
        one.join()
    assert (tmp_path / "calls").read_text() == "x" and kept(tmp_path / "f", read, make) == "made"


def test_quick_shows_rows_and_adds_none() -> None:
    run = experiments.Run(experiments.preset("quick"))
    sweep = experiments.fd.sweep(run.preset, "figure_4")
    before, first = sweep.path.read_bytes(), sweep.rows[0]
    assert experiments.fd.rows(run, [first], "figure_4").fd[0] == float(first["fd"])
    with pytest.raises(FileError, match=r"no row of .*nfe 7.*; the preset quick shows rows"):
        experiments.fd.rows(run, [first | dict(nfe=7)], "figure_4")
    assert sweep.path.name == "figure_4.standard.csv" and sweep.path.read_bytes() == before
