"""Pictures and WebDataset shards in folders and object stores: listed in a fixed order, and read with patience.

A place is a path, or a URL of any kind that fsspec knows (`s3://`, `gs://`, `https://` …). All listing is by folder, so that
what it takes of memory is one folder's names.
"""

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Error, ImageError, one_line
from ..files import reason
from ..images import MAX_BYTES, SUFFIXES
from ..labels import Labels, Resolve, resolver
from ..sources import Sample, cifar, folders, shards

Got = TypeVar("Got")

TRIES = 4  # at reading from a store, with 1, 2 and 4 seconds between them
UNKNOWN = -1  # the class of a picture, or the size of a file


def filesystem(place: str) -> tuple[Any, str]:
    """The file system of a place, and the place's path in it. Raises Error where there is none for it."""
    try:
        import pyarrow  # noqa: F401
        from fsspec.core import url_to_fs
    except ModuleNotFoundError as error:
        raise Error(f"work in parts needs {error.name}; `pip install 'vgg[scale]'` brings it") from None
    try:
        # Listings are not kept: those of ten million pictures would fill the memory.
        system, path = url_to_fs(place, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise Error(f"{place}: {one_line(error)}") from None
    return system, path


def is_url(place: str) -> bool:
    return "://" in place


def is_shard(sample: Sample) -> bool:
    return sample.path.endswith(".tar")


def pictures(places: Sequence[str]) -> Iterator[Sample]:
    """The pictures and shards at some places: files, folders, which are walked, and globs. A shard is one sample.

    Raises Error where there is none at one of them.
    """
    for place in places:
        yield from _some(place, _found(place))


def labelled(place: str, classes: int, labels: Labels | None) -> Iterator[Sample]:
    """The pictures of a folder of class folders or a list, with their classes; or shards, whose classes are in them.

    Raises Error where there is nothing, or a class is unknown; see `vgg.sources.open`.
    """
    system, path = filesystem(place)
    if path.endswith(".tar"):
        yield from _some(place, _found(place))
        return
    with asking(place):
        is_folder = system.isdir(path)
    if is_folder:
        with asking(place):
            yield from _in_folder(system, path, place, classes, labels)
    elif is_url(place):
        raise Error(f"{place}: is no folder, and no .tar shard")
    elif cifar.is_here(Path(path)):
        raise Error(f"{place}: CIFAR-10's binary version is small; it is not for runs in parts")
    else:
        yield from _listed(Path(path), resolver(classes, labels))


def _in_folder(system: Any, path: str, place: str, classes: int, labels: Labels | None) -> Iterator[Sample]:
    """The shards of a folder, or the pictures of its class folders."""
    entries = _entries(system, path)
    if tars := [one for one in entries if one["name"].endswith(".tar")]:
        yield from (_sample(system, one) for one in tars)
        return
    inside = {Path(one["name"]).name: one["name"] for one in entries if one["type"] == "directory"}
    names = [name for name in inside if not name.startswith(".")]
    if not names:
        raise Error(f"{place}: has no class folders in it, nor .tar shards")
    for name, target in folders.targets(place, names, classes, labels).items():
        yield from (replace(one, target=target) for one in _walk(system, inside[name]) if not is_shard(one))


def _listed(path: Path, resolve: Resolve) -> Iterator[Sample]:
    try:
        for one in folders.list_file(path, resolve):
            yield Sample(one.path, one.target, one.path)
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None


def _some(place: str, found: Iterator[Sample]) -> Iterator[Sample]:
    """What was found. Raises Error when that is nothing."""
    first = next(found, None)
    if first is None:
        raise Error(f"{place}: has no images or .tar shards in it")
    yield first
    yield from found


def _found(place: str) -> Iterator[Sample]:
    import fsspec.core

    system, path = filesystem(place)
    with asking(place):
        # Whether a URL is a folder is known to its store alone; a web server sends the whole file to say so.
        if not (is_url(place) and _is_picture(path)) and system.isdir(path):
            yield from _walk(system, path)
        elif system.exists(path):
            yield _sample(system, {"name": path})
        elif fsspec.core.has_magic(path):
            for match in sorted(system.glob(path)):
                yield from _walk(system, match) if system.isdir(match) else [_sample(system, {"name": match})]
        else:
            raise Error(f"{place}: file or folder not found")


@contextmanager
def asking(place: str) -> Iterator[None]:
    """Raises Error where a store doesn't answer."""
    try:
        yield
    except Error:
        raise
    except Exception as error:  # stores raise what they like
        raise Error(f"{place}: can't be listed: {one_line(error) or type(error).__name__}") from None


def _is_picture(path: str) -> bool:
    """Whether a file is called as a picture or a shard is."""
    return Path(path).suffix.lower() in (*SUFFIXES, ".tar")


def _walk(system: Any, folder: str) -> Iterator[Sample]:
    for one in _entries(system, folder):
        if one["type"] == "directory":
            yield from _walk(system, one["name"])
        elif _is_picture(one["name"]):
            yield _sample(system, one)


def _entries(system: Any, folder: str) -> list[dict[str, Any]]:
    """What is in a folder, by name. Object stores may list a folder in itself, as an object without content."""
    entries = (one for one in system.ls(folder, detail=True) if one["name"].rstrip("/") != folder.rstrip("/"))
    return sorted(entries, key=lambda one: str(one["name"]))


def _sample(system: Any, entry: dict[str, Any]) -> Sample:
    name = entry["name"] if is_local(system) else system.unstrip_protocol(entry["name"])
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Error(f"{name}: its name is not UTF-8; results couldn't bear it") from None
    size = UNKNOWN if is_local(system) or entry.get("size") is None else entry["size"]
    return sample(name, UNKNOWN, size)


def is_local(system: Any) -> bool:
    """Whether a file system is this machine's, or looks like it."""
    return "file" in ((system.protocol,) if isinstance(system.protocol, str) else system.protocol)


def sample(name: str, target: int, size: int) -> Sample:
    """The sample at a path or URL."""
    return (Stored if is_url(name) else Sample)(name, target, name, 0, size)


@dataclass(frozen=True, slots=True)
class Stored(Sample):
    """A picture in a store, at a URL."""

    def read(self) -> bytes:
        """The picture's file. Raises ImageError where it is missing or too large; Error where the store doesn't answer."""
        if self.size > MAX_BYTES:
            raise ImageError(f"{self.name}: is {self.size / 2**20:.0f} MiB large; at most {MAX_BYTES // 2**20} are read")
        content: bytes = _patiently(self.name, lambda system, path: system.cat_file(path))
        return content


@dataclass(frozen=True, slots=True)
class Broken(Sample):
    """A shard that can't be read."""

    why: str = ""

    def read(self) -> bytes:
        raise ImageError(self.why)


@contextmanager
def opened(group: Sequence[Sample], resolve: Resolve | None) -> Iterator[Sequence[Sample]]:
    """The pictures of a part: as they are, or those in its shard, which is fetched to a temporary file when it is far.

    A shard that can't be read is one broken picture. Raises Error where a store doesn't answer, or this machine doesn't see
    the folders that the pictures are in.
    """
    if not any(is_url(one.path) or Path(one.path).parent.is_dir() for one in group):
        where = f"{Path(group[0].path).parent}: there is no such folder on {platform.node()}"
        raise Error(f"{where}; every machine must see the pictures under the same path")
    if not is_shard(group[0]):
        yield group
        return
    [shard] = group
    with tempfile.TemporaryDirectory(prefix="vgg-") as near:
        try:
            found = _members(shard, near, resolve)
        except ImageError as error:
            found = [Broken(shard.name, UNKNOWN, shard.path, why=str(error))]
        yield found


def _members(shard: Sample, near: str, resolve: Resolve | None) -> list[Sample]:
    """The pictures in a shard. Raises ImageError where it is missing or damaged."""
    path = Path(shard.path)
    if is_url(shard.path):
        path = Path(near, path.name)
        _patiently(shard.path, lambda system, far: system.get_file(far, str(path)))
    try:
        found = shards.read([path], resolve)
    except Error as error:
        raise ImageError(str(error).replace(str(path), shard.path)) from None
    if not found:
        raise ImageError(f"{shard.path}: has no pictures in it")
    return [replace(one, name=shard.path.removesuffix(path.name) + one.name) for one in found]


def _patiently(place: str, read: Callable[[Any, str], Got]) -> Got:
    """What a store gives. Raises ImageError where there is nothing at a place, Error where the store keeps failing.

    The one says something of the picture, the other nothing: such a picture must be asked for again.
    """
    system, path = filesystem(place)
    for wait in (*(2**n for n in range(TRIES - 1)), None):
        try:
            return read(system, path)
        except FileNotFoundError:
            raise ImageError(f"{place}: file or folder not found") from None
        except Exception as error:  # stores raise what they like
            if wait is None:
                raise Error(f"{place}: can't be read, after {TRIES} tries: {one_line(error) or type(error).__name__}") from None
            time.sleep(wait)
    raise AssertionError
