"""The live share of quick pages: what is recomputed is compared with what is expected, and the comparison can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from dode import experiments
from dode.experiments import Live, Sweep, fits
from dode.experiments.live import BLOCKS, LIVE_KEYS
from dode.utils.files import FileError

CELL = dict(checkpoint="c", weights="w", nfe=5, block=2)
COMMITTED = CELL | dict(fd=1.9, n=5000)


def work(*, nfe: int, block: int, **_: object) -> dict[str, object]:
    return dict(fd=nfe + 0.1 * block, n=200)


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "_toc.yml").touch()
    monkeypatch.chdir(tmp_path)

    def make(preset: str = "quick", record: bool = False) -> Live:
        monkeypatch.setenv("DODE_RECORD", "1" * record)
        return Live("page", experiments.preset(preset), "cpu")

    make(record=True).check(COMMITTED, CELL, work, "fd")
    return make


def test_expected_values_are_means_over_blocks(live, tmp_path: Path) -> None:
    (row,) = Sweep(tmp_path / "results" / "live.csv", LIVE_KEYS).rows
    assert (row["expected"], row["spread"], row["blocks"], row["n"]) == ("5.20000", "0.15811", str(BLOCKS), "200")
    live(record=True).check(COMMITTED, CELL, lambda **_: dict(fd=7.0, n=200), "fd")  # replaces it
    (row,) = Sweep(tmp_path / "results" / "live.csv", LIVE_KEYS).rows
    assert (row["expected"], row["spread"]) == ("7.00000", "0.00000")


@pytest.mark.parametrize(("value", "inside"), [(5.0, True), (5.67, True), (5.68, False), (4.0, False)])
def test_a_number_outside_three_spreads_ends_the_page(live, value: float, inside: bool, capsys) -> None:
    page = live()
    page.check(COMMITTED, CELL, lambda **_: dict(fd=value, n=200), "fd")
    if inside:
        page.show()
    else:
        with pytest.raises(ValueError, match=f"not as expected: fd: c, NFE 5: {value:.3f}, expected 5.200"):
            page.show()
    assert "the 1 numbers below" in capsys.readouterr().out


def test_a_counted_number_must_be_equal(live, capsys) -> None:
    cell, committed = dict(checkpoint="c", nfe=9), dict(evaluations=5900)
    live(record=True).check(committed, cell, lambda **_: dict(evaluations=1888), "evaluations", rounding=0)
    page = live()
    page.check(committed, cell, lambda **_: dict(evaluations=1888), "evaluations")
    page.show("", "Table")
    assert "csv). The 1 numbers below: computed now" in capsys.readouterr().out
    page.check(committed, cell, lambda **_: dict(evaluations=1889), "evaluations")
    with pytest.raises(ValueError, match="NFE 9: 1889"):
        page.show()


def test_other_presets_recompute_nothing(live, capsys) -> None:
    page = live("smoke")
    page.check(COMMITTED, CELL, lambda **_: pytest.fail("measured"), "fd")
    page.show()
    assert not capsys.readouterr().out


def test_what_was_never_recorded_is_refused(live) -> None:
    with pytest.raises(FileError, match="no value of page: checkpoint c, nfe 6; DODE_RECORD=1"):
        live().check(COMMITTED, CELL | dict(nfe=6), work, "fd")


def test_quick_shows_rows_and_adds_none() -> None:
    p = experiments.preset("quick")
    sweep = experiments.results("figure_4", p, experiments.FD_KEYS)
    assert sweep.path.name == "figure_4.standard.csv"
    before = sweep.path.read_bytes()
    cell = {k: sweep.rows[0][k] for k in experiments.FD_KEYS}
    assert sweep.run([cell], lambda **_: pytest.fail("measured")).select([cell]) == [sweep.rows[0]]
    with pytest.raises(FileError, match=r"no row of .*nfe 7.*; the preset quick shows rows"):
        sweep.run([cell | dict(nfe=7)], lambda **_: pytest.fail("measured"))
    assert sweep.path.read_bytes() == before
    with pytest.raises(FileError):
        fits.fit(p, "fashion-mnist-data", "cpu", "gauss-newton", 77)
    assert p.live.images < 1000 < p.images and experiments.preset("standard").live.images == p.images


def test_what_is_measured_again_has_the_committed_solvers() -> None:
    p = experiments.preset("quick")
    found = fits.fit(p.again, "fashion-mnist-data", "cpu", "gauss-newton", 3)
    assert found.digest == fits.fit(p, "fashion-mnist-data", "cpu", "gauss-newton", 3).digest
    assert p.again.images == p.live.images and not fits.solver_file(p.live, "a", "b", 3).is_relative_to("results")
    assert experiments.preset("standard").again == experiments.preset("standard")
