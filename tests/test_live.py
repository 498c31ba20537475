"""The live share of quick pages: what is recomputed is compared with what is expected, and the comparison can fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from dode import experiments
from dode.experiments import Live, Run, Sweep, fits, measurement
from dode.experiments.live import BLOCKS, LIVE_KEYS
from dode.utils.files import FileError

COMMITTED = dict(checkpoint="fashion-mnist-data", nfe=5, block=2, fd=1.9, evaluations=5900, n=5000)
FOUND = dict(fd=0.0, evaluations=1888, n=200)


@measurement(name="of a test")
def work(run: Run, *, checkpoint: str, nfe: int, block: int) -> dict[str, float]:
    return FOUND | dict(fd=FOUND["fd"] or nfe + 0.1 * block)


@measurement(name="counted by a test")
def counted(run: Run, *, nfe: int) -> dict[str, float]:
    return FOUND


@pytest.fixture
def live(project: Path, monkeypatch: pytest.MonkeyPatch):
    def make(preset: str = "quick", record: bool = False) -> Live:
        monkeypatch.setenv("DODE_RECORD", "1" * record)
        return Live("page", experiments.preset(preset), "cpu")

    make(record=True).check(COMMITTED, work, "fd")
    return make


def test_expected_values_are_means_over_blocks(live, tmp_path: Path, monkeypatch) -> None:
    (row,) = Sweep(tmp_path / "results" / "live.csv", LIVE_KEYS).rows
    assert (row["expected"], row["spread"], row["blocks"], row["n"]) == ("5.20000", "0.15811", str(BLOCKS), "200")
    monkeypatch.setitem(FOUND, "fd", 7.0)
    live(record=True).check(COMMITTED, work, "fd")  # replaces it
    (row,) = Sweep(tmp_path / "results" / "live.csv", LIVE_KEYS).rows
    assert (row["expected"], row["spread"]) == ("7.00000", "0.00000")


@pytest.mark.parametrize(("value", "inside"), [(5.0, True), (5.67, True), (5.68, False), (4.0, False)])
def test_a_number_outside_three_spreads_ends_the_page(live, value: float, inside: bool, capsys, monkeypatch) -> None:
    monkeypatch.setitem(FOUND, "fd", value)
    page = live()
    page.check(COMMITTED, work, "fd")
    if inside:
        page.show()
    else:
        with pytest.raises(
            ValueError, match=f"not as expected: fd: fashion-mnist-data, NFE 5: {value:.3f}, expected 5.200"
        ):
            page.show()
    assert "the 1 numbers below" in capsys.readouterr().out


def test_a_counted_number_must_be_equal(live, capsys, monkeypatch) -> None:
    live(record=True).check(COMMITTED, counted, "evaluations", rounding=0)
    page = live()
    page.check(COMMITTED, counted, "evaluations")
    page.show("", "Table")
    assert "csv). The 1 numbers below: computed now" in capsys.readouterr().out
    monkeypatch.setitem(FOUND, "evaluations", 1889)
    page.check(COMMITTED, counted, "evaluations")
    with pytest.raises(ValueError, match="NFE 5: 1889"):
        page.show()


def test_other_presets_recompute_nothing(live, capsys) -> None:
    page = live("smoke")
    page.check(COMMITTED, work, "fd")
    page.show()
    assert not page.checks and not capsys.readouterr().out


def test_what_was_never_recorded_is_refused_and_the_order_of_words_does_not_matter(live, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no value of page: checkpoint fashion-mnist-data, nfe 6; DODE_RECORD=1"):
        live().check(COMMITTED, work, "fd", nfe=6)
    file = tmp_path / "results" / "live.csv"
    file.write_text(
        file.read_text().replace("checkpoint fashion-mnist-data, nfe 5", "nfe 5, checkpoint fashion-mnist-data")
    )
    live().check(COMMITTED, work, "fd")


def test_what_is_measured_again_has_the_committed_solvers() -> None:
    p = experiments.preset("quick")
    again, shown = (fits.fit(Run(one), "fashion-mnist-data", "gauss-newton", 3) for one in (p.again, p))
    assert again.digest == shown.digest
    assert p.again.images == p.live.images and not fits.solver_file(p.live, "a", "b", 3).is_relative_to("results")
    assert experiments.preset("standard").again == experiments.preset("standard")
