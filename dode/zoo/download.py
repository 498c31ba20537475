"""Files of published checkpoints: fetched once, checked, and never half there.

They live in the folder named by ``DODE_CACHE``, or in pooch's cache folder for dode.  A broken connection is taken
up where it broke, a few times; what arrives is checked before it gets its name.
"""

from __future__ import annotations

import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from dode.utils.environment import need, tqdm
from dode.utils.files import FileError
from dode.zoo.catalogue import Card

TRIES = 5  # connections for one file
PAUSE = 1.0  # seconds before the second; each further one waits as much longer
CHUNK = 1 << 20
TIMEOUT = 60.0


def _pooch() -> Any:
    return need("pooch", "cli", "fetching a published checkpoint")


def cache() -> Path:
    """The folder: ``DODE_CACHE``, or pooch's for dode (``~/.cache/dode`` on Linux)."""
    return Path(os.environ.get("DODE_CACHE") or _pooch().os_cache("dode")).expanduser()


def place(row: Card) -> Path:
    """Where the file of a row is, or would be."""
    return cache() / row.file


def fetch(row: Card, *, progress: bool = True) -> Path:
    """The file of a row, downloaded if it is not there, and checked.

    ValueError for a pipeline of diffusers, which has no file of its own.  FileError for a file of other bytes than it
    should have (one that was there is kept, a download is not), or one that is not there and cannot be fetched: a line
    that says which file to put where.
    """
    if row.hub:
        pipeline = f"diffusers.DiffusionPipeline.from_pretrained({row.hub!r})"
        raise ValueError(f"{row.name} is a pipeline of diffusers: dode.from_diffusers({pipeline})")
    path = place(row)
    if path.is_file():
        check(row, path)
        return path
    if not row.url:
        raise FileError(f"{row.name} has to be fetched by hand: open {row.page} and save the file as {path}")
    try:
        with quiet(_pooch().get_logger()):  # the bar says the same
            _pooch().retrieve(
                row.url, row.digest or None, fname=path.name, path=path.parent, downloader=resuming(row, progress)
            )
    except Incomplete as error:
        raise FileError(
            f"{row.name} is not here and could not be fetched ({error}); put the file from {row.url} at {path}"
        ) from None
    except OSError as error:
        raise FileError(f"{row.name} cannot be stored at {path} ({error.strerror or error})") from None
    except ValueError:  # pooch, of the digest
        raise FileError(f"{row.url} sent other bytes than expected ({row.digest}); nothing was kept") from None
    return path


@contextmanager
def quiet(logger: logging.Logger) -> Iterator[None]:
    """Nothing below a warning from ``logger``."""
    level = logger.level
    logger.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        logger.setLevel(level)


def check(row: Card, path: Path) -> None:
    """Size and digest, as far as they are known.  FileError if they differ."""
    if row.size and path.stat().st_size != row.size:
        raise FileError(f"{path} has {path.stat().st_size:,} bytes, not {row.size:,}; delete it and fetch it again")
    if row.digest:
        algorithm, _, expected = row.digest.partition(":")
        if _pooch().file_hash(str(path), alg=algorithm) != expected:
            raise FileError(f"{path} is not the published file ({row.digest}); delete it and fetch it again")


class Incomplete(Exception):
    """Why a file did not arrive."""


def resuming(row: Card, progress: bool) -> Callable[[str, str, Any], None]:
    """A downloader for pooch that goes on where a connection broke.  pooch removes what is incomplete."""

    def download(url: str, output: str, _: Any) -> None:
        with open(output, "wb") as file, tqdm(
            desc=row.file, total=row.size or None, unit="B", unit_scale=True, disable=not progress,
            delay=1e-3,  # so it is not shown before something has come, and an error before that stands alone
        ) as bar:  # fmt: skip
            for attempt in range(TRIES):
                try:
                    if _receive(url, file, bar):
                        return
                    reason = f"the connection ended after {file.tell():,} bytes"
                except urllib.error.HTTPError as error:  # the server answered: no use in asking again
                    raise Incomplete(f"{error.code} {error.reason}") from None
                except (OSError, HTTPException, ValueError) as error:
                    reason = str(getattr(error, "reason", error)) or type(error).__name__
                    if not file.tell():  # nothing ever came
                        raise Incomplete(reason) from None
                if attempt < TRIES - 1:
                    time.sleep(PAUSE * (attempt + 1))
            raise Incomplete(reason)

    return download


def _receive(url: str, file: BinaryIO, bar: Any) -> bool:
    """Append the rest of ``url`` to ``file``; whether all of it is there."""
    have = file.tell()
    asked = {"User-Agent": "dode", "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(urllib.request.Request(url, headers=asked), timeout=TIMEOUT) as answer:
        if have and answer.status != 206:  # the server begins again
            file.seek(have := 0)
            file.truncate()
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else None
        if total:
            bar.total = total
        bar.n = have
        while block := answer.read(CHUNK):
            file.write(block)
            bar.update(len(block))
    return total is None or file.tell() == total
