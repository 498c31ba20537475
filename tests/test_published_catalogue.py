"""The catalogue, and its downloads."""

from __future__ import annotations

import hashlib
import http.server
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pooch
import pytest
from published_parts import refuses
from small import refused

import dode
from dode.utils.files import FileError
from dode.zoo import CATALOGUE, Card, download


@pytest.mark.parametrize("row", CATALOGUE.values(), ids=list(CATALOGUE))
def test_rows_are_whole(row: Card) -> None:
    assert row.licence and row.source and len(row.shape) == 3 and row.shape[1] == row.shape[2]
    assert bool(row.hub) == (row.family == "diffusers") != bool(row.file)
    assert not row.url or re.fullmatch(r"https://[\w.-]+/[\w./?=-]+", row.url)
    assert bool(row.url) + bool(row.page) + bool(row.hub) + bool(row.package) == 1
    assert re.fullmatch("|sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", row.digest)
    assert row.family in ("nvidia", "diffusers") or row.schedule is not None
    assert row.settings.get("classifier", row.name) in CATALOGUE


def test_files_have_names_of_their_own() -> None:
    files = [row.file for row in CATALOGUE.values() if row.file]
    assert len(set(files)) == len(files)


def test_the_page_lists_every_network() -> None:
    """Each row of the table of files has the names that it reads, and no other."""
    page = (Path(__file__).parents[1] / "notebooks" / "papers_scale.py").read_text()
    listed = re.findall(r"^# \|[^|]*\|[^|]*\|([^|]*)\|[^|]*\|$", page, re.MULTILINE)
    patterns = [pattern for names in listed for pattern in re.findall(r"`([^`]+)`", names)]
    names = [card.name for card in CATALOGUE.values() if card.file]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert [pattern for pattern in patterns if not any(fnmatch(name, pattern) for name in names)] == []


# --- downloads ----------------------------------------------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Sends ``payload``; its class attributes say how it misbehaves."""

    payload, cuts, status, asked = b"", list[int](), 200, 0

    def do_GET(self) -> None:
        cls = type(self)
        cls.asked += 1
        self.send_response(cls.status)
        self.send_header("Content-Length", str(len(cls.payload)))
        self.end_headers()
        self.wfile.write(cls.payload[: cls.cuts.pop(0)] if cls.cuts else cls.payload)  # and hangs up

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pooch.core, "time", SimpleNamespace(sleep=lambda seconds: None))


@pytest.fixture
def server() -> Iterator[tuple[str, type[Server]]]:
    own = type("Own", (Server,), dict(payload=bytes(range(256)) * 40, cuts=[]))
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), own)
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/tiny.pt", own
    httpd.shutdown()
    httpd.server_close()


def digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def fetch_fails(card: Card, match: str) -> None:
    """One line, and nothing in the cache."""
    with refused(match, FileError):
        download.fetch(card, progress=False)
    assert not list(download.cache().glob("*")) if download.cache().exists() else True


@pytest.fixture
def served(rows: Callable[..., Card], server: tuple[str, type[Server]]) -> tuple[Card, type[Server]]:
    """A card whose file the server has, and what it should be."""
    card = rows("tiny", "adm-imagenet-64", file="tiny.pt", url=server[0])
    return replace(card, digest=digest(server[1].payload)), server[1]


def test_a_download_is_checked_and_kept(served: tuple[Card, type[Server]]) -> None:
    card, own = served
    card = replace(card, size=10_240)
    path = download.fetch(card)
    assert path == download.place(card) and path.read_bytes() == own.payload
    assert download.fetch(card) == path and own.asked == 1  # the second time from the cache
    assert [p.name for p in path.parent.iterdir()] == ["tiny.pt"] and path.stat().st_mode & 0o777 == 0o644


def test_a_broken_connection_is_tried_again(served: tuple[Card, type[Server]]) -> None:
    card, own = served
    own.cuts = [5000, 3000]
    assert download.fetch(card, progress=False).read_bytes() == own.payload and own.asked == 3


def test_a_download_that_fails_leaves_nothing(served: tuple[Card, type[Server]]) -> None:
    card, own = served
    own.cuts = [1000] * 20
    fetch_fails(card, f"; put the file from {card.url} at {download.place(card)}")
    own.cuts = []
    fetch_fails(replace(card, digest=digest(b"other")), f"{card.url} sent other bytes than expected")
    own.status = 404
    fetch_fails(card, "could not be fetched (404")


def test_offline(rows: Callable[..., Card], capfd: pytest.CaptureFixture[str]) -> None:
    """One line that says which file to put where, and nothing before it; and there it is found."""
    row = rows("tiny", "adm-imagenet-64", file="tiny.pt", url="http://127.0.0.1:9/tiny.pt")
    with pytest.raises(FileError):
        download.fetch(row, progress=True)
    assert capfd.readouterr() == ("", "")
    fetch_fails(row, f"put the file from http://127.0.0.1:9/tiny.pt at {download.place(row)}")
    refuses("tiny.pt is not here and could not be fetched", "tiny")
    by_hand = rows("other", "ddim-celeba-64", file="other.pth")
    fetch_fails(by_hand, f"save the file as {download.place(by_hand)}")


def test_an_altered_file_is_refused_and_kept(rows: Callable[..., Card]) -> None:
    row = replace(rows("tiny", "adm-imagenet-64", file="tiny.pt"), digest=digest(b"as published"), size=12)
    path = download.place(row)
    path.parent.mkdir()
    path.write_bytes(b"as published")
    assert download.fetch(row) == path
    path.write_bytes(b"as_published")
    with pytest.raises(FileError, match="is not the published file"):
        download.fetch(row)
    path.write_bytes(b"as publ")
    with pytest.raises(FileError, match="has 7 bytes, not 12"):
        download.fetch(row)
    assert path.read_bytes() == b"as publ"  # it may be somebody's: theirs to delete


def test_a_cache_that_cannot_be_written(served: tuple[Card, type[Server]], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(FileError, match="cannot be stored at"):
        download.fetch(served[0], progress=False)


def test_the_cache_s_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DODE_CACHE", str(tmp_path))
    assert download.cache() == tmp_path
    monkeypatch.delenv("DODE_CACHE")
    assert download.cache().name == "dode"


def test_the_names_of_the_catalogue_are_names_of_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DODE_CACHE", str(tmp_path))
    where = tmp_path / "ddim-celeba-64.pth"
    for ask in (dode.load, dode.zoo.digest):
        with pytest.raises(FileError, match=f"has to be fetched by hand: open https.* and save the file as {where}"):
            ask("ddim-celeba-64")
    where.write_bytes(b"half a file")
    with pytest.raises(FileError, match="nothing in it was run"):
        dode.load("ddim-celeba-64")
    assert dode.zoo.digest("ddim-celeba-64") == hashlib.sha256(b"half a file").hexdigest()[:8]
