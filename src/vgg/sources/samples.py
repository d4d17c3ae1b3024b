"""Samples and datasets: references to images, which are read when they are needed."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from PIL import Image

from ..errors import ImageError
from ..files import open_file, reason
from ..images import MAX_BYTES, open_image
from . import stores

UNLABELLED = -1  # the target of an image without a class


@dataclass(frozen=True, slots=True)
class Sample:
    """An image in a file, a part of a file, or at a URL."""

    name: str  # in results; relative to the dataset
    target: int  # index of the class, or UNLABELLED
    path: str  # or URL
    offset: int = 0  # bytes
    size: int = -1  # bytes; -1: to the end of the file
    held: object = field(default=None, repr=False, compare=False)  # the local copy that `path` is in, kept as long as this
    # Indices of the classes in a list where an image may have any number of them.
    several: tuple[int, ...] | None = field(default=None, kw_only=True)
    group: str | None = field(default=None, kw_only=True)  # such as a patient, if the list has groups

    @property
    def classes(self) -> tuple[int, ...]:
        """The indices of the classes; one, unless the list allows any number."""
        return (self.target,) if self.several is None else self.several

    def read(self) -> bytes:
        """The image's file.

        Raises:
            ImageError: it is missing, can't be read, or exceeds 256 MiB.
            Error: the store at its URL keeps failing.
        """
        self._check(self.size)
        if stores.is_url(self.path):
            content: bytes = stores.patiently(self.path, lambda system, path: system.cat_file(path))
            return content
        try:
            with open_file(self.path) as file:
                size = os.fstat(file.fileno()).st_size - self.offset if self.size < 0 else self.size
                self._check(size)
                file.seek(self.offset)
                content = file.read(size)
        except OSError as error:
            raise ImageError(f"{self.name}: {reason(error)}") from None
        if len(content) < size:
            raise ImageError(f"{self.name}: {self.path} is truncated")
        return content

    def image(self) -> Image.Image:
        """The image, 8-bit RGB. Raises ImageError if it can't be read or decoded."""
        return open_image(self.read(), self.name)

    def _check(self, size: int) -> None:
        if size > MAX_BYTES:
            raise ImageError(f"{self.name}: is {size / 2**20:.0f} MiB; the limit for images is {MAX_BYTES // 2**20} MiB")


@dataclass(frozen=True, slots=True)
class Unreadable(Sample):
    """A container that can't be read, as an image with an error."""

    error: str = ""

    def read(self) -> bytes:
        raise ImageError(self.error)


@dataclass(frozen=True)
class Dataset:
    """Images in a fixed order."""

    name: str
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def digest(self) -> str:
        """SHA-256 of names, classes, groups and file sizes. Datasets with the same digest are considered equal."""
        total = hashlib.sha256()
        for one in self.samples:
            size = one.size if one.size >= 0 or not os.path.exists(one.path) else os.path.getsize(one.path)
            classes = one.target if one.several is None else one.several
            group = "" if one.group is None else f"\0{one.group}"
            total.update(f"{one.name}\0{classes}\0{size}{group}\n".encode(errors="surrogateescape"))
        return total.hexdigest()
