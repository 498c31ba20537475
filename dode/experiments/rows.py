"""Rows of results: a CSV file a sweep, one row a finished cell, which any number of processes may fill together.

Each row is written at once, under the file's lock and after those that others have written since, so a sweep that is
killed goes on where it stopped and nobody's row is lost.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import multiprocessing
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dode.utils.environment import need, tqdm
from dode.utils.files import FileError, write_text

if TYPE_CHECKING:
    import pandas as pd

T = TypeVar("T")
# Text, though it may look like a number: digests, and lists of numbers of which there is one.
TEXT = {
    "weights", "made_for_weights", "solver", "commit",
    "lambdas", "plain_rmse", "fit_rmse", "path", "levels", "distances",
}  # fmt: skip
MARKS = ("<<<<<<<", "=======", ">>>>>>>")  # of a merge conflict


def locked(path: Path) -> contextlib.AbstractContextManager[Any]:
    """Keeps other processes out of what concerns ``path`` while a block runs; who is killed lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock: Any = need("filelock", "book", "a file that several processes write")
    return lock.FileLock(path.with_name(f".{path.name}.lock"))


def kept(path: Path, read: Callable[[Path], T], make: Callable[[Path], T]) -> T:
    """What ``read(path)`` finds, or, where that is a FileError, what ``make(path)`` returns and leaves there.

    Two processes never make one file at the same time: the second waits and reads what the first has made.
    """
    with contextlib.suppress(FileError):
        return read(path)
    with locked(path):
        with contextlib.suppress(FileError):
            return read(path)
        return make(path)


def numbers(text: str) -> list[float]:
    """A column of several numbers, ``"0.1 0.2"``, read back."""
    return [float(v) for v in text.split()]


def joined(values: Iterable[float], form: str = ".5f") -> str:
    """Several numbers in one column."""
    return " ".join(format(float(v), form) for v in values)


def typed(rows: Iterable[Mapping[str, str]]) -> pd.DataFrame:
    """Rows as a frame: columns of numbers as int or float (NaN where a row has none), all else as text."""
    import pandas as pd

    frame = pd.DataFrame(list(rows), dtype=object)
    for column in frame.columns.difference([*TEXT]):
        with contextlib.suppress(ValueError):
            found = pd.to_numeric(frame[column].mask(frame[column].isin(["", "nan"])))
            if found.notna().any():
                frame[column] = found
    return frame


class Sweep:
    """The rows of a CSV file.

    Parameters
    ----------
    path
        The file; made with the first row, and replaced whole with each.
    keys
        The columns that identify a cell.
    frozen
        Rows are shown, and none is added.
    gives
        Columns without which a row is not whole.

    A row that is not whole, cut short or without a value that it should have, counts as not there: it is measured
    again.  FileError, with file and line, for a file that is damaged: not UTF-8, a row that is too long, marks of a
    merge conflict, two rows of one cell, a field of more than 128 kB; or that has no such columns.
    """

    def __init__(self, path: str | Path, keys: Iterable[str], frozen: bool = False, gives: Iterable[str] = ()) -> None:
        self.path, self.keys, self.frozen, self.gives = Path(path), tuple(keys), frozen, tuple(gives)
        self._rows = self._read()

    @property
    def rows(self) -> list[dict[str, str]]:
        """All rows, as they are written."""
        return list(self._rows.values())

    def select(self, cells: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """The rows of ``cells``, in their order: what this run is about, whatever else the file holds."""
        return typed(self._rows[key] for key in map(self._key, cells) if key in self._rows)

    def done(self, cell: Mapping[str, Any]) -> bool:
        """Whether ``cell`` has its row."""
        return self._key(cell) in self._rows

    def missing(self, cells: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Those of ``cells`` without a row."""
        return [dict(cell) for cell in cells if not self.done(cell)]

    def add(self, *rows: Mapping[str, Any], replace: bool = False) -> None:
        """Append rows to the file as it is now; a cell that has its row there keeps it, or loses it to ``replace``."""
        with locked(self.path):
            self._rows = self._read()
            for row in rows:
                if replace:
                    self._rows.pop(self._key(row), None)
                self._rows.setdefault(self._key(row), {k: " ".join(str(v).splitlines()) for k, v in row.items()})
            columns = list(dict.fromkeys(k for row in self._rows.values() for k in row))
            self._rows = {key: {k: row.get(k, "") for k in columns} for key, row in self._rows.items()}
            buffer = io.StringIO()
            writer = csv.DictWriter(buffer, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(self._rows.values())
            write_text(self.path, buffer.getvalue())

    def run(self, cells: Iterable[Mapping[str, Any]], work: Callable[..., Mapping[str, Any]], jobs: int = 1) -> Sweep:
        """Call ``work(**cell)`` for each cell without a row, and add ``cell | work(**cell)``; returns self.

        With ``jobs`` above one, in that many processes of one thread each; ``work`` must then be a function
        of a module.  FileError if the rows are frozen and one is missing.
        """
        todo = self.missing(cells)
        if self.frozen and todo:
            missing = ", ".join(f"{k} {v}" for k, v in todo[0].items())
            raise FileError(f"{self.path} has no row of {missing}; the preset quick shows rows, standard measures them")
        with contextlib.ExitStack() as stack:
            each: Any = map
            if jobs > 1:
                spawn = multiprocessing.get_context("spawn")
                pool = ProcessPoolExecutor(jobs, spawn, initializer=torch.set_num_threads, initargs=(1,))
                each = stack.enter_context(pool).map  # an error cancels what waits
            measured = each(functools.partial(self._measure, work), todo)
            for _ in tqdm(measured, total=len(todo), desc=self.path.name, disable=not todo):
                pass  # who has measured a row has written it
        self._rows = self._read()  # also what others have
        return self

    def _measure(self, work: Callable[..., Mapping[str, Any]], cell: Mapping[str, Any]) -> None:
        if not self.done(cell):  # by another process in the meantime
            self.add({**cell, **work(**cell)})

    def _key(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(row[k]) for k in self.keys)

    def _read(self) -> dict[tuple[str, ...], dict[str, str]]:
        """The whole rows of the file, by cell; what follows the last end of a line was cut short."""
        rows, lines, header = dict[tuple[str, ...], dict[str, str]](), dict[tuple[str, ...], int](), list[str]()
        content = self.path.read_bytes() if self.path.is_file() else b""
        if content and b"\n" not in content:
            raise self._damaged(1, "is cut short")
        for number, line in enumerate(content.split(b"\n")[:-1], 1):
            try:
                text = line.decode().removesuffix("\r")
                fields = next(csv.reader([text], strict=True), [])
            except (UnicodeDecodeError, csv.Error) as error:
                raise self._damaged(number, f"cannot be read ({error})") from None
            if "\0" in text or text.startswith(MARKS):
                raise self._damaged(number, "holds zero bytes" if "\0" in text else "is the mark of a merge conflict")
            if not header:
                header = fields
                if missing := [k for k in self.keys if k not in header]:
                    raise FileError(f"{self.path} has no column {missing[0]!r}; it is of another sweep: move it away")
                continue
            if len(fields) > len(header):
                raise self._damaged(number, f"has {len(fields)} fields, and the head {len(header)}")
            row = dict(zip(header, fields, strict=False))
            if len(fields) < len(header) or not all(row.get(k) for k in self.gives):
                continue
            if (key := self._key(row)) in rows:
                raise self._damaged(number, f"is another row of the cell in line {lines[key]}")
            rows[key], lines[key] = row, number
        return rows

    def _damaged(self, line: int, what: str) -> FileError:
        return FileError(f"{self.path}, line {line}, {what}; correct it, or remove the line and measure its cell again")
