"""Access to folders and files on this machine and at URLs.

A place is a path, or a URL of any kind that fsspec supports (`s3://`, `gs://`, `https://` …). Paths need no other package.
Folders are listed one at a time, so that listing takes the memory of one folder's names.
"""

import os
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path, PurePosixPath
from typing import Any, TextIO, TypeVar

from ..errors import Error, ImageError, one_line
from ..extras import require
from ..files import open_file, reason
from .ignored import is_ignored

Result = TypeVar("Result")

TEMPORARY = (408, 425, 429)  # statuses of HTTP below 500 after which another attempt may succeed
REFUSED = ("AccessDenied", "InvalidObjectState")  # S3's codes for one object, such as an archived one
TRIES = 4  # attempts at reading from a store, with 1, 2 and 4 seconds between them
UNKNOWN = -1  # the size of a file


@dataclass(frozen=True, slots=True)
class Entry:
    """A file or folder in a folder."""

    name: str
    place: str
    is_folder: bool
    size: int  # bytes; UNKNOWN for local files
    is_link: bool = False


def normalised(place: str | Path) -> str:
    """A place without redundant separators; a file:// URL as a path, `~` as the home folder.

    Raises ImageError if it is empty.
    """
    place = str(place)
    if not place:
        raise ImageError("an empty name; the current folder is `.`")
    if place.startswith("file://"):
        from urllib.request import url2pathname  # which is slow to import

        place = url2pathname(place.removeprefix("file://"))
    if is_url(place):
        return place.rstrip("/")
    return str(Path(portable(place if os.path.lexists(place) else os.path.expanduser(place))))


def portable(path: str) -> str:
    """A path with slashes if it was written with the backslashes of Windows: a file whose name has them doesn't exist."""
    return path.replace("\\", os.sep) if "\\" in path and not os.path.lexists(path) else path


def is_url(place: str) -> bool:
    return "://" in place


def join(folder: str, name: str) -> str:
    """The place of a name in a folder; the name itself if it is absolute or a URL."""
    if is_url(name):
        return name
    return f"{folder}/{name}" if is_url(folder) else os.path.join("" if folder == "." else folder, name)


def parent(place: str) -> str:
    return place.rpartition("/")[0] if is_url(place) else os.path.dirname(place)


def parents(place: str) -> Iterator[str]:
    """The folders that a place is in, from the inside out."""
    while (folder := parent(place)) not in ("", place):
        yield folder
        place = folder


def filesystem(place: str) -> tuple[Any, str]:
    """fsspec's file system of a place, and the path in it. Raises Error if there is none."""
    require("access to URLs", "scale", "fsspec")
    from fsspec.core import url_to_fs

    try:
        # No cache of listings: those of ten million images would fill the memory.
        options: dict[str, Any] = {"client_kwargs": {"trust_env": True}} if place.startswith("http") else {}  # proxies
        system, path = url_to_fs(place, use_listings_cache=False, **options)
    except (ValueError, ImportError) as error:
        raise Error(f"{place}: {one_line(error)}") from None
    return system, path


@contextmanager
def reported(place: str, what: str = "can't be listed") -> Iterator[None]:
    """Raise an Error for anything that fails at a place."""
    try:
        yield
    except Error:
        raise
    except Exception as error:  # the exceptions of stores have no common base
        local = isinstance(error, OSError) and not is_url(place)
        why = reason(error) if local else f"{what}: {one_line(error) or type(error).__name__}"  # type: ignore[arg-type]
        raise Error(f"{place}: {why}") from None


def is_folder(place: str) -> bool:
    return _ask(place, "isdir") if is_url(place) else os.path.isdir(place)


def exists(place: str) -> bool:
    return _ask(place, "exists") if is_url(place) else os.path.exists(place)


def _ask(url: str, question: str) -> bool:
    with reported(url):
        system, path = filesystem(url)
        return bool(getattr(system, question)(path))


def identity(folder: str) -> object:
    """A value that is the same for all paths to a local folder, through whichever links."""
    if is_url(folder):
        return folder
    with reported(folder):
        status = os.stat(folder)
    return status.st_dev, status.st_ino


def entries(folder: str, *, ignored: bool = False) -> list[Entry]:
    """The contents of a folder, sorted by name, without what is `ignored`. Raises Error if it can't be listed."""
    with reported(folder):
        if is_url(folder):
            system, path = filesystem(folder)
            found = [
                Entry(PurePosixPath(one["name"]).name, system.unstrip_protocol(one["name"]), one["type"] == "directory", size)
                for one in system.ls(path, detail=True)
                for size in [UNKNOWN if one.get("size") is None else one["size"]]
                if one["name"].rstrip("/") != path.rstrip("/")  # some stores list a folder in itself, as an empty object
            ]
        else:
            with os.scandir(folder) as local:
                found = [
                    # `DirEntry.is_dir` raises an error for a link to itself.
                    Entry(one.name, join(folder, one.name), os.path.isdir(one) if link else one.is_dir(), UNKNOWN, link)
                    for one in local
                    for link in [one.is_symlink()]
                ]
    return sorted((one for one in found if ignored or not is_ignored(one.name)), key=lambda one: one.name)


@contextmanager
def opened(place: str) -> Iterator[TextIO]:
    """A UTF-8 text file, open for reading. Raises Error if it can't be read; UnicodeDecodeError if it is not UTF-8."""
    copy = Copy(place) if is_url(place) else None
    try:
        with TextIOWrapper(open_file(copy.path if copy else place), "utf-8-sig") as text:
            yield text
    except OSError as error:
        raise Error(f"{place}: {reason(error)}") from None


class Copy:
    """A copy of the file at a URL in the folder for temporary files, deleted when the object is.

    Raises ImageError if the file is missing, Error if the store keeps failing.
    """

    def __init__(self, url: str) -> None:
        descriptor, self.path = tempfile.mkstemp(prefix="vgg-", suffix=PurePosixPath(url).suffix)
        os.close(descriptor)
        weakref.finalize(self, Path(self.path).unlink, missing_ok=True)
        patiently(url, lambda system, path: system.get_file(path, self.path))


def patiently(url: str, get: Callable[[Any, str], Result]) -> Result:
    """The result of `get`, after several attempts if need be.

    A file that is missing, or that the server refuses for good, is an ImageError, which concerns one image. A store that keeps
    failing is an Error: it says nothing about the image, which must be requested again.
    """
    system, path = filesystem(url)
    for attempt in range(TRIES):
        try:
            return get(system, path)
        except FileNotFoundError:
            raise ImageError(f"{url}: file or folder not found") from None
        except Exception as error:  # the exceptions of stores have no common base
            why = one_line(error) or type(error).__name__
            if _is_refusal(error):
                raise ImageError(f"{url}: can't be read: {why}") from None
            if attempt == TRIES - 1:
                raise Error(f"{url}: can't be read, after {TRIES} attempts: {why}") from None
            time.sleep(2**attempt)
    raise AssertionError


def _is_refusal(error: Exception) -> bool:
    """Whether a server refuses one file for good: by the status of HTTP, or by S3's code in the cause of s3fs's error."""
    status, response = getattr(error, "status", 0), getattr(error.__cause__, "response", None)
    if isinstance(status, int) and 400 <= status < 500:
        return status not in TEMPORARY
    return isinstance(response, dict) and response.get("Error", {}).get("Code") in REFUSED
