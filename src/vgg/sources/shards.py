"""WebDataset shards: tar files in which each image, `KEY.jpg`, is next to its class, `KEY.cls`.

The layout is that of the webdataset package: members whose paths agree up to the first dot of the file name are one sample.
"""

import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ..errors import Error
from ..files import open_file, reason
from ..image_formats import SUFFIXES, suffix_of
from ..labels import Resolve
from .ignored import is_within_ignored
from .samples import UNLABELLED, Sample

LONGEST_LABEL = 256  # bytes
BLOCK = 512  # bytes; the unit of a tar file


def read(path: Path, resolve: Resolve | None = None) -> list[Sample]:
    """The images in a shard, which are located and not read.

    With `resolve`, files belong together as in WebDataset, if their names are equal up to the first dot. Without it, classes
    are ignored, and all images are listed.

    Raises Error if the shard is damaged, an image has no class, or a class is unknown.
    """
    images: list[tuple[str, Sample]] = []
    keys: set[str] = set()
    targets: dict[str, int] = {}
    for member, shard in members(path):
        folder, slash, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        key, suffix = folder + slash + stem, suffix.lower()
        is_image = (f".{suffix}" if resolve else suffix_of(file)) in SUFFIXES
        if not member.isreg() or not (is_image or (suffix == "cls" and resolve)):
            continue
        if resolve and key in (targets if suffix == "cls" else keys):
            raise Error(f"{path}: {key} has two {'classes' if suffix == 'cls' else 'images'}, the second in {member.name}")
        if suffix == "cls" and resolve:
            shard.seek(member.offset_data)
            try:
                targets[key] = resolve(shard.read(min(member.size, LONGEST_LABEL)).decode("utf-8", "replace").strip())
            except ValueError as error:
                raise Error(f"{path}: {member.name}: {error}") from None
        else:
            keys.add(key)
            images.append((key, Sample(member.name, UNLABELLED, str(path), member.offset_data, member.size)))
    for key, sample in images if resolve else ():
        if key not in targets:
            raise Error(f"{path}: {sample.name} has no class; {key}.cls is missing")
    return [replace(sample, target=targets[key]) if resolve else sample for key, sample in images]


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

    What is `ignored` is left out: macOS's tar adds `._a.jpg` to `a.jpg`.

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
                    if not 0 <= member.size <= end - member.offset_data:
                        raise tarfile.ReadError(f"{member.name!r} exceeds the file")
                    if not is_within_ignored(member.name):
                        yield member, file
                    tar.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
                stopped: int = tar.offset
                file.seek(stopped)
                if file.read(min(BLOCK, max(end - stopped, 0))).strip(b"\0"):
                    raise tarfile.ReadError(f"invalid header at byte {stopped:,}")
    # Fields that are no numbers, and names of any length, are ValueError, OverflowError and MemoryError in tarfile.
    except (tarfile.TarError, EOFError, ValueError, OverflowError, MemoryError, RecursionError) as error:
        raise Error(f"{path}: is damaged, truncated, or not a tar file ({error})") from None
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
