"""Files are whole or absent, and a bad one is refused in one line."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dode.utils.files import FileError, atomic, load_tensors, save_tensors, write_text

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


def refusal(path: Path, kind: str = "tableau") -> str:
    """The message of the FileError: one line that names the file."""
    with pytest.raises(FileError) as info:
        load_tensors(path, kind)
    message = str(info.value)
    assert str(path) in message and "\n" not in message
    return message


def test_round_trip(saved: Path) -> None:
    tensors, metadata = load_tensors(saved, "tableau")
    assert metadata == METADATA and tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert torch.equal(tensors[name], value) and tensors[name].dtype == value.dtype
    assert os.listdir(saved.parent) == ["t.safetensors"]


def test_missing(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.safetensors")
    assert "is a folder; name a file" in refusal(tmp_path)


def test_wrong_kind(saved: Path) -> None:
    assert "holds a tableau, not a network" in refusal(saved, "network")


@pytest.mark.parametrize("keep", [0, 4, 8, 40, -1])
def test_truncated(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    assert "not a readable safetensors file" in refusal(saved)


def test_foreign_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"w": torch.ones(2)}, path)
    assert "was not written by dode" in refusal(path)
    save_file({"w": torch.ones(2)}, path, {"format": "pt"})
    assert "was not written by dode" in refusal(path)


@pytest.mark.parametrize("header", [{"dode": "{"}, {"dode": "1"}, {"dode": '{"kind": "tableau"}'}])
def test_damaged_header(tmp_path: Path, header: dict[str, str]) -> None:
    path = tmp_path / "damaged.safetensors"
    save_file({"w": torch.ones(2)}, path, header)
    assert "damaged header" in refusal(path)


class Trap:
    """Unpickling one creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    pickle.loads(trap)
    assert sprung.exists()  # the trap works
    sprung.unlink()
    plain, zipped = tmp_path / "plain.safetensors", tmp_path / "zipped.safetensors"
    plain.write_bytes(trap)
    torch.save({"w": Trap(sprung)}, zipped)
    for path in (plain, zipped):
        assert "not a readable safetensors file" in refusal(path)
    assert not sprung.exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_atomic_keeps_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "result.csv"
    write_text(path, "old")
    with pytest.raises(type(error)), atomic(path) as temporary:
        temporary.write_text("half a li")
        assert temporary.parent == path.parent and path.read_text() == "old"
        raise error
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["result.csv"]


def test_atomic_leaves_nothing_where_nothing_was(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic(tmp_path / "new" / "x") as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path / "new") == []


def test_unwritable_metadata_keeps_the_old_file(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(TypeError):
        save_tensors(saved, TENSORS, "tableau", {"schedule": object()})
    assert saved.read_bytes() == before and os.listdir(saved.parent) == ["t.safetensors"]


def test_atomic_replaces_and_is_readable(tmp_path: Path) -> None:
    path = tmp_path / "result.csv"
    write_text(path, "old and longer")
    write_text(path, "new é")
    assert path.read_text(encoding="utf-8") == "new é"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["result.csv"]


def test_a_reader_never_sees_a_half_written_file(tmp_path: Path) -> None:
    """The old file is replaced by another, not overwritten: who has it open reads on undisturbed."""
    path = tmp_path / "result.csv"
    write_text(path, "old")
    with path.open() as reader:
        write_text(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"
