"""WebDataset shards: tar files in which a picture, `KEY.jpg`, and its class, `KEY.cls`, stand beside each other.

The layout is that of the webdataset package: members with the same path up to the first dot of the file's name are one sample.
"""

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import Error
from ..images import SUFFIXES
from ..labels import Resolve
from . import Sample
from .tars import members

LONGEST_LABEL = 256  # bytes


def read(paths: Sequence[Path], resolve: Resolve | None) -> list[Sample]:
    """The samples in shards, with the places of the pictures in the tar files, which are not read.

    Without `resolve`, classes are passed over, and every sample's is -1.

    Raises Error where a shard is damaged, a picture has no class, or a class is unknown.
    """
    return [sample for path in paths for sample in _samples(path, resolve)]


def _samples(path: Path, resolve: Resolve | None) -> Iterable[Sample]:
    pictures: dict[str, tuple[str, int, int]] = {}
    targets: dict[str, int] = {}
    for member, shard in members(path):
        folder, slash, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        key, suffix = folder + slash + stem, suffix.lower()
        if not member.isreg() or (f".{suffix}" not in SUFFIXES and (suffix != "cls" or resolve is None)):
            continue
        if key in (targets if suffix == "cls" else pictures):
            raise Error(f"{path}: {key} has two {'classes' if suffix == 'cls' else 'pictures'}, the second as {member.name}")
        if suffix == "cls" and resolve:
            shard.seek(member.offset_data)
            try:
                targets[key] = resolve(shard.read(min(member.size, LONGEST_LABEL)).decode("utf-8", "replace").strip())
            except ValueError as error:
                raise Error(f"{path}: {member.name}: {error}") from None
        else:
            pictures[key] = member.name, member.offset_data, member.size
    for key, (name, offset, size) in pictures.items():
        if resolve and key not in targets:
            raise Error(f"{path}: {name} has no class beside it ({key}.cls)")
        yield Sample(f"{path.name}/{name}", targets.get(key, -1), str(path), offset, size)


def write(file: BinaryIO, samples: Iterable[tuple[str, bytes, int]]) -> None:
    """Write a shard: each sample's key, its picture as a JPEG file, and its class's index. The same samples, the same bytes."""
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.USTAR_FORMAT) as tar:
        for key, picture, target in samples:
            for name, content in ((f"{key}.jpg", picture), (f"{key}.cls", str(target).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
            tar.members = []  # type: ignore[attr-defined]
