"""WebDataset shards: tar files in which each image, `KEY.jpg`, is next to its class, `KEY.cls`.

The layout is that of the webdataset package: members whose paths agree up to the first dot of the file name are one sample.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import Error
from ..files import open_file, reason
from ..images import SUFFIXES
from ..labels import Resolve
from .samples import UNLABELLED, Sample

LONGEST_LABEL = 256  # bytes
BLOCK = 512  # bytes; the unit of a tar file


def read(path: Path, resolve: Resolve | None = None) -> list[Sample]:
    """The images in a shard, which are located and not read. Without `resolve`, classes are ignored.

    Raises Error if the shard is damaged, an image has no class, or a class is unknown.
    """
    images: dict[str, tuple[str, int, int]] = {}
    targets: dict[str, int] = {}
    for member, shard in members(path):
        folder, slash, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        key, suffix = folder + slash + stem, suffix.lower()
        if not member.isreg() or (f".{suffix}" not in SUFFIXES and (suffix != "cls" or resolve is None)):
            continue
        if key in (targets if suffix == "cls" else images):
            raise Error(f"{path}: {key} has two {'classes' if suffix == 'cls' else 'images'}, the second in {member.name}")
        if suffix == "cls" and resolve:
            shard.seek(member.offset_data)
            try:
                targets[key] = resolve(shard.read(min(member.size, LONGEST_LABEL)).decode("utf-8", "replace").strip())
            except ValueError as error:
                raise Error(f"{path}: {member.name}: {error}") from None
        else:
            images[key] = member.name, member.offset_data, member.size
    for key, (name, _, _) in images.items():
        if resolve and key not in targets:
            raise Error(f"{path}: {name} has no class; {key}.cls is missing")
    return [Sample(name, targets.get(key, UNLABELLED), str(path), *part) for key, (name, *part) in images.items()]


def write(file: BinaryIO, samples: Iterable[tuple[str, bytes, int]]) -> None:
    """Write a shard of samples: key, JPEG file, class index. Equal samples give equal bytes."""
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for key, image, target in samples:
            for name, content in ((f"{key}.jpg", image), (f"{key}.cls", str(target).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            tar.members = []  # type: ignore[attr-defined]


def members(path: Path, start: int = 0, size: int | None = None) -> Iterator[tuple[tarfile.TarInfo, BinaryIO]]:
    """The members of a tar file, with the open file in which a member's bytes begin at `offset_data`. Only headers are read.

    Args:
        path: a tar file, not compressed.
        start: position of a tar file inside it, in bytes, to be read instead.
        size: size of that tar file in bytes; by default all that follows.

    Raises:
        Error: it is not a tar file, truncated, or damaged. tarfile itself takes a damaged header for the end.
    """
    try:
        with open_file(path) as file:
            end = file.seek(0, 2) if size is None else start + size
            file.seek(start)
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.offset_data + member.size > end:
                        raise tarfile.ReadError(f"{member.name!r} exceeds the file")
                    yield member, file
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
                stopped: int = tar.offset
                file.seek(stopped)
                if file.read(min(BLOCK, max(end - stopped, 0))).strip(b"\0"):
                    raise tarfile.ReadError(f"invalid header at byte {stopped:,}")
    except (tarfile.TarError, EOFError) as error:
        raise Error(f"{path}: is damaged, truncated, or not a tar file ({error})") from None
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
