"""Files of published checkpoints: fetched once, checked, and never half there.

They live in the folder named by ``DODE_CACHE``, or in pooch's cache folder for dode.  A broken connection is taken
up where it broke, a few times; what arrives is checked before it gets its name.
"""

from __future__ import annotations

import hashlib
import os
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any, BinaryIO

from dode.utils.environment import need, tqdm
from dode.utils.files import FileError, atomic
from dode.zoo.catalogue import Card

TRIES = 5  # connections for one file
PAUSE = 1.0  # seconds before the second; each further one waits as much longer
CHUNK = 1 << 20
TIMEOUT = 60.0


def cache() -> Path:
    """The folder: ``DODE_CACHE``, or pooch's for dode (``~/.cache/dode`` on Linux)."""
    own = os.environ.get("DODE_CACHE") or need("pooch", "cli", "fetching a published checkpoint").os_cache("dode")
    return Path(own).expanduser()


def place(card: Card) -> Path:
    """Where the file of a card is, or would be."""
    return cache() / card.file


def fetch(card: Card, *, progress: bool = True) -> Path:
    """The file of a card, downloaded if it is not there, and checked.

    ValueError for a pipeline of diffusers, which has no file of its own.  FileError for a file of other bytes than it
    should have (one that was there is kept, a download is not), or one that is not there and cannot be fetched: a line
    that says which file to put where.
    """
    if card.hub:
        pipeline = f"diffusers.DiffusionPipeline.from_pretrained({card.hub!r})"
        raise ValueError(f"{card.name} is a pipeline of diffusers: dode.from_diffusers({pipeline})")
    path = place(card)
    if path.is_file():
        size = path.stat().st_size
        if card.size and size != card.size:
            raise FileError(f"{path} has {size:,} bytes, not {card.size:,}; delete it and fetch it again")
        if not _as_published(card, path):
            raise FileError(f"{path} is not the published file ({card.digest}); delete it and fetch it again")
        return path
    if not card.url:
        raise FileError(f"{card.name} has to be fetched by hand: open {card.page} and save the file as {path}")
    try:
        with atomic(path) as temporary:
            _download(card, temporary, progress)
            if not _as_published(card, temporary):
                raise FileError(f"{card.url} sent other bytes than expected ({card.digest}); nothing was kept")
    except Incomplete as error:
        raise FileError(
            f"{card.name} is not here and could not be fetched ({error}); put the file from {card.url} at {path}"
        ) from None
    except OSError as error:
        raise FileError(f"{card.name} cannot be stored at {path} ({error.strerror or error})") from None
    return path


def _as_published(card: Card, path: Path) -> bool:
    """Whether a file has the card's digest, if that is known."""
    algorithm, _, expected = card.digest.partition(":")
    if not expected:
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest() == expected


class Incomplete(Exception):
    """Why a file did not arrive."""


def _download(card: Card, path: Path, progress: bool) -> None:
    """Fetch into ``path``, going on where a connection broke."""
    with path.open("wb") as file, tqdm(
        desc=card.file, total=card.size or None, unit="B", unit_scale=True, disable=not progress,
        delay=1e-3,  # so it is not shown before something has come, and an error before that stands alone
    ) as bar:  # fmt: skip
        for attempt in range(TRIES):
            try:
                if _receive(card.url, file, bar):
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
