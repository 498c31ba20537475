"""Files are whole or absent, and a bad one is refused in one line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small import refusal
from test_pickles import Trap

from dode.utils.files import atomic, load_tensors, save_tensors, write_text

TENSORS = {
    "weights": torch.randn(3, 3, dtype=torch.float64),
    "half": torch.randn(2).half(),
    "count": torch.tensor(7),
    "view": torch.arange(6.0).reshape(2, 3).T,  # not contiguous
}
METADATA = {"name": "ipndm", "order": 4, "grid": [1.5, 0.25], "note": 'a "quoted"\nline', "none": None}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_tensors(tmp_path / "deep" / "er" / "t.safetensors", TENSORS, "tableau", METADATA)


def test_round_trip(saved: Path) -> None:
    tensors, metadata = load_tensors(saved, "tableau")
    assert metadata == METADATA and tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype
    assert os.listdir(saved.parent) == ["t.safetensors"]


def test_what_is_not_such_a_file_is_refused(saved: Path, tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.safetensors", load_tensors, "tableau")
    assert "is a folder; name a file" in refusal(tmp_path, load_tensors, "tableau")
    assert "holds a tableau, not a network" in refusal(saved, load_tensors, "network")
    whole = saved.read_bytes()
    for keep in (0, 4, 8, 40, -1):
        saved.write_bytes(whole[:keep])
        assert "not a readable safetensors file" in refusal(saved, load_tensors, "tableau")
    for header in (None, {"format": "pt"}, {"dode": "{"}, {"dode": "1"}, {"dode": '{"kind": "tableau"}'}):
        save_file({"w": torch.ones(2)}, saved, header)
        assert ("damaged header" if "dode" in (header or {}) else "was not written by dode") in refusal(
            saved, load_tensors, "tableau"
        )


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "trap.safetensors"
    trap = Trap(Path.touch, sprung)
    for write in (lambda: path.write_bytes(pickle.dumps(trap)), lambda: torch.save({"w": trap}, path)):
        write()
        assert "not a readable safetensors file" in refusal(path, load_tensors, "tableau") and not sprung.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_atomic_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "result.csv"
    write_text(path, "old")
    with pytest.raises(type(error)), atomic(path) as temporary:
        temporary.write_text("half a li")
        assert temporary.parent == path.parent and path.read_text() == "old"
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.csv"]


def test_what_cannot_be_written_leaves_what_was_there(saved: Path, tmp_path: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        save_tensors(saved, TENSORS, "tableau", {"schedule": object()})
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["t.safetensors"]
    with pytest.raises(RuntimeError), atomic(tmp_path / "new" / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path / "new") == []


def test_a_reader_never_sees_a_half_written_file(tmp_path: Path) -> None:
    """The old file is replaced by another, not overwritten: who has it open reads on undisturbed."""
    path = tmp_path / "result.csv"
    write_text(path, "old and longer")
    with path.open() as reader:
        write_text(path, "new é")
        assert reader.read() == "old and longer"
    assert path.read_text(encoding="utf-8") == "new é" and path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["result.csv"]
