"""Files: mapped for reading, replaced as a whole when written."""

import csv
import errno
import hashlib
import io
import mmap
import os
import stat
import struct
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from .errors import Error, ModelError

_UMASK = threading.Lock()


def open_file(path: str | Path) -> BufferedReader:
    """A file, open for reading.

    Raises OSError if it can't be read. A pipe, socket or device counts as unreadable: opening or reading one can last for ever.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    # Without O_NONBLOCK, opening a pipe lasts until another process writes to it. It has no effect on files.
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # `open` itself refuses a folder
        os.close(descriptor)
        raise OSError("is not a regular file")
    return descriptor


def map_file(path: Path) -> mmap.mmap:
    """A file's bytes, mapped read-only: pages are read when they are accessed, and nothing is copied."""
    try:
        with open_file(path) as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:
        raise ModelError(f"{path}: is empty") from None
    except OSError as error:
        raise ModelError(f"{path}: {reason(error)}") from None


def stored(mapped: mmap.mmap, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Start and end of an entry in a mapped zip file. Raises ValueError if it is compressed or exceeds the file."""
    head = mapped[entry.header_offset + 26 : entry.header_offset + 30]
    if entry.compress_type != zipfile.ZIP_STORED or len(head) != 4:
        raise ValueError(f"{entry.filename} is compressed or missing")
    begin = entry.header_offset + 30 + sum(struct.unpack("<HH", head))
    if begin + entry.file_size > len(mapped):
        raise ValueError(f"{entry.filename} exceeds the file")
    return begin, begin + entry.file_size


def digest(path: Path, algorithm: str = "sha256") -> str:
    """The hexadecimal digest of a file's bytes."""
    with open_file(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file, open for writing, that replaces `path` when the block succeeds and is deleted when it fails."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    except OSError as error:
        raise Error(f"{path}: can't be written: {reason(error)}") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        os.chmod(name, 0o666 & ~_umask())  # mkstemp's are stricter than an ordinary file's
        os.replace(name, path)
    except OSError as error:
        raise Error(f"{path}: can't be written: {reason(error)}") from None
    finally:
        Path(name).unlink(missing_ok=True)


def _umask() -> int:
    """The permissions that new files don't get. They can only be read by changing them, which concerns all threads."""
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    return mask


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """Replace a CSV file. Bytes of file names that are not UTF-8 are escaped with backslashes."""
    with replacing(path) as file:
        text = io.TextIOWrapper(file, "utf-8", "backslashreplace", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        text.detach()


def reason(error: OSError) -> str:
    """The reason of a system error in plain words."""
    plain = {
        errno.ENOENT: "file or folder not found",
        errno.EISDIR: "is a folder",
        errno.EACCES: "permission denied",
        errno.ENOSPC: "the disk is full",
        errno.ENXIO: "is not a regular file",  # a socket
    }
    return plain.get(error.errno or 0, error.strerror or str(error))


def cache_folder() -> Path:
    """The folder for what can be downloaded or computed again: `$VGG_HOME`, else `vgg` in the platform's cache folder."""
    from platformdirs import user_cache_path

    given = os.environ.get("VGG_HOME")
    return Path(given).expanduser() if given else user_cache_path("vgg", appauthor=False)


def reserve(path: Path, start: int) -> None:
    """Reserve the disk space of a sparse file whose bytes from `start` on are 0. Raises OSError if the disk is full."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
            return
        file.seek(start)  # where the system can't reserve space, it has to be written
        for begin in range(start, size, 2**20):
            file.write(bytes(min(2**20, size - begin)))
