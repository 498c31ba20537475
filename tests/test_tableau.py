"""The table itself: checks, change of basis, files; that solvers give consistent ones, test_solvers shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_solvers import MIXTURE, NOISE

from dode import schedules, solvers
from dode.sampling import sample
from dode.tableau import Tableau


def test_the_starting_noise_changes_basis_with_the_rest() -> None:
    table = solvers.ddim(schedules.karras(4, 0.1, 10.0))
    full = table.full
    full[0, 0], full[0, 1] = full[0, 1] / 3, full[0, 1] * 2 / 3
    table = table.with_full(full)
    assert table.inconsistency() < 1e-12
    torch.testing.assert_close(sample(MIXTURE, table.to_basis("data"), NOISE), sample(MIXTURE, table, NOISE))
    torch.testing.assert_close(table.to_basis("data").to_basis("noise").full, table.full)


def test_files_keep_every_bit_and_all_metadata(tmp_path: Path) -> None:
    table = solvers.ipndm(schedules.karras(7, 0.01, 80.0))
    table = table.with_full(table.full, model="m", seeds=[1, 2], lambdas=[0.1])
    again = Tableau.load(table.save(tmp_path / "t.safetensors"))
    for name in ("sigmas", "sigmas_in", "weights", "noise_weights"):
        assert torch.equal(getattr(again, name), getattr(table, name))
    assert again.basis == table.basis and again.metadata == table.metadata


def test_only_a_consistent_table_changes_basis() -> None:
    table = solvers.ddim(schedules.karras(3, 0.1, 10.0))
    with pytest.raises(ValueError, match="only a consistent tableau"):
        table.with_full(table.full * 1.2).to_basis("data")


EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(basis="v", sigmas=[2.0, 1.0, 0.0], weights=EYE), "basis"),
        (dict(basis="noise", sigmas=[1.0, 2.0, 0.0], weights=EYE), "increase"),
        (dict(basis="noise", sigmas=[2.0, 1.0], weights=EYE), "shape"),
        (dict(basis="noise", sigmas=[2.0, 0.0, 0.0], weights=EYE), "positive"),
        (dict(basis="noise", sigmas=[2.0, 1.0, 0.0], weights=EYE * float("nan")), "finite"),
        (dict(basis="noise", sigmas=[2.0, 1.0, 0.0], weights=torch.ones(2, 2)), "diagonal"),
        (dict(basis="noise", sigmas=[2.0], weights=torch.zeros(0, 0)), "one row"),
        (dict(basis="noise", sigmas=2.0, weights=1.0), "shape"),
    ],
)
def test_bad_tables_are_refused_in_one_line(arguments, message) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Tableau(**arguments)
    assert "\n" not in str(caught.value)


def test_a_digest_is_of_the_numbers_alone(tmp_path: Path) -> None:
    table = solvers.ddim(schedules.karras(4, 0.1, 10.0))
    kept = Tableau.load(table.save(tmp_path / "t.safetensors"))
    assert table.digest == kept.digest == table.with_full(table.full, solver="another name").digest
    moved = table.full.clone()
    moved[3, 2] += 1e-9
    sigmas_in = table.sigmas_in * (1 + 1e-12)
    others = [table.with_full(moved), Tableau("data", table.sigmas, table.weights)]
    others.append(Tableau(table.basis, table.sigmas, table.weights, sigmas_in=sigmas_in))
    assert len({table.digest, *(other.digest for other in others)}) == 4
