"""The members of a tar file, or of one that lies inside another, read with care."""

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import Error
from ..files import reason

BLOCK = 512  # bytes; what a tar file is made of


def members(path: Path, start: int = 0, size: int | None = None) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """Each member, with the open file in which its bytes begin at `offset_data`; nothing is read but the headers.

    Args:
        path: a tar file, not compressed.
        start, size: where in it the tar file to be read lies, in bytes; all of it when not given.

    Raises:
        Error: it is no tar file, cut short, or damaged. tarfile itself takes a damaged header for the end.
    """
    try:
        with path.open("rb") as file:
            end = file.seek(0, 2) if size is None else start + size
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError(f"{member.name!r} reaches beyond its end")
                    yield member, file
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                stopped: int = tar.offset
                file.seek(stopped)
                if file.read(min(BLOCK, max(end - stopped, 0))).strip(b"\0"):
                    raise tarfile.ReadError(f"no header where one should be, at byte {stopped:,}")
    except (tarfile.TarError, EOFError) as error:
        raise Error(f"{path}: is damaged, cut short, or no tar file ({error})") from None
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
