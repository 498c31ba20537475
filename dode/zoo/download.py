"""Files that others publish: fetched once (by pooch) or in an installed package, checked, and never half there."""

from __future__ import annotations

import hashlib
import os
import zipfile
from importlib import metadata
from pathlib import Path

from dode.utils.environment import need
from dode.utils.files import FileError, atomic, present
from dode.zoo.catalogue import Card

RETRIES = 3  # after a broken connection, each from the beginning, 1, 2 and 3 seconds later


def cache() -> Path:
    """The folder of what is downloaded: ``DODE_CACHE``, or ``~/.cache/dode``."""
    return Path(os.environ.get("DODE_CACHE") or "~/.cache/dode").expanduser()


def place(card: Card) -> Path:
    """Where the file of a card is, or would be."""
    return cache() / card.file


def fetch(card: Card, *, progress: bool = True) -> Path:
    """The file of a card: :func:`fetched` or :func:`packaged`, with their errors.

    ValueError for a pipeline of diffusers, which has no file of its own.
    """
    if card.hub:
        pipeline = f"diffusers.DiffusionPipeline.from_pretrained({card.hub!r})"
        raise ValueError(f"{card.name} is a pipeline of diffusers: dode.from_diffusers({pipeline})")
    if card.package:
        return packaged(card)
    path = place(card)
    if not card.url and not path.is_file():
        raise FileError(f"{card.name} has to be fetched by hand: open {card.page} and save the file as {path}")
    return fetched(path, card.url, card.digest, card.size, progress=progress)


def fetched(path: Path, url: str, digest: str = "", size: int = 0, *, progress: bool = True) -> Path:
    """``path``, downloaded if it is not there, and checked; ``digest`` and ``size`` as of a :class:`Card`.

    FileError for a file of other bytes than it should have (one that was there is kept, a download is not), or one that
    is not there and cannot be fetched: a line that says which file to put where.
    """
    if path.is_file():
        return checked(path, digest, size)
    pooch = need("pooch", "cli", f"fetching {path.name}")
    pooch.get_logger().setLevel("ERROR")
    known = dict(registry={path.name: digest or None}, urls={path.name: url})
    try:
        pooch.create(path.parent, url, **known, retry_if_failed=RETRIES).fetch(
            path.name, downloader=pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 20)
        )
        path.chmod(0o644)  # pooch makes private files
    except need("requests", "cli", "fetching files").RequestException as error:
        wanted = f"put the file from {url} at {path}"
        raise FileError(f"{path.name} is not here and could not be fetched ({error}); {wanted}") from None
    except OSError as error:
        raise FileError(f"{path.name} cannot be stored at {path} ({error.strerror or error})") from None
    except ValueError:
        raise FileError(f"{url} sent other bytes than expected ({digest}); nothing was kept") from None
    return path


def checked(path: Path, digest: str, size: int = 0) -> Path:
    """``path``, if it is there as published; FileError if not."""
    if size and path.stat().st_size != size:
        raise FileError(f"{path} has {path.stat().st_size:,} bytes, not {size:,}; delete it and fetch it again")
    algorithm, _, expected = digest.partition(":")
    with path.open("rb") as file:
        if expected and hashlib.file_digest(file, algorithm).hexdigest() != expected:
            raise FileError(f"{path} is not the published file ({digest}); delete it and fetch it again")
    return path


def packaged(card: Card, where: str | Path = "") -> Path:
    """The file of a card that is in a Python package, which is not imported.

    ``where`` it is: the package's folder or wheel; by default what ``DODE_GALAXYGRAD`` names (for ``galaxygrad``), else
    the cache, else the installed package.  The file in a wheel is stored in the cache.

    FileError for a package that is not there or is another version, a damaged wheel, or a file of other bytes.
    """
    name, _, version = card.package.partition("==")
    variable, get = f"DODE_{name.upper()}", f"pip install --no-deps {card.package}"
    if given := where or os.environ.get(variable):
        path = Path(given).expanduser()
        if path.is_dir():
            inside = path / name / card.file
            return checked(present(inside if inside.is_file() else path / card.file), card.digest, card.size)
        return unpacked(present(path), f"{name}/{card.file}", card)
    if place(card).is_file():
        return checked(place(card), card.digest, card.size)
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        other = f"name its wheel or folder in {variable}"
        raise FileError(f"{card.name} is in the package {name}, which is not here: {get}, or {other}") from None
    if found.version != version:
        raise FileError(f"{name} {found.version} is installed, and {card.name} is in {version}: {get}")
    return checked(present(str(found.locate_file(f"{name}/{card.file}"))), card.digest, card.size)


def unpacked(wheel: Path, member: str, card: Card) -> Path:
    """A card's file out of a wheel, in the cache.  FileError for a damaged wheel, or one that lacks it as published."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            whole = archive.getinfo(member).file_size == card.size
            raw = archive.read(member) if whole else b""
    except KeyError:
        raise FileError(f"{wheel} holds no {member}; {card.name} is in {card.package}") from None
    except (zipfile.BadZipFile, zipfile.zlib.error, EOFError, OSError, RuntimeError) as error:  # type: ignore[attr-defined]
        raise FileError(f"{wheel} is no whole wheel ({error}); get it again") from None
    algorithm, _, expected = card.digest.partition(":")
    if hashlib.new(algorithm, raw).hexdigest() != expected:
        raise FileError(f"{member} in {wheel} is not the published file ({card.digest}); get {card.package}")
    with atomic(place(card)) as temporary:
        temporary.write_bytes(raw)
    return place(card)
