"""The images in folders and below, and notes of what was left out."""

import os
import warnings
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

from .. import image_formats
from ..errors import Notice, counted
from . import cifar, stores
from .ignored import is_within_ignored
from .samples import UNLABELLED, Sample

SHARD = ".tar"
LINK = "broken link"


class Walk:
    """A walk through the folders of one place. Links are followed, and each folder is listed once."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._root = os.path.realpath(place)  # of links, which URLs don't have
        self._seen: set[object] = set()
        self._left: Counter[str] = Counter()

    def images(self, folder: str, base: str | None, target: int = UNLABELLED) -> Iterator[Sample]:
        """The images and containers in a folder and below; nothing if it was listed before."""
        identity = stores.identity(folder)
        if identity in self._seen:
            return
        self._seen.add(identity)
        found = stores.entries(folder)
        records = cifar.kind_in(one.name for one in found)
        for one in found:
            if one.is_folder:
                if not self.is_repeated(one):
                    yield from self.images(one.place, base, target)
            elif one.is_link and self.is_broken(one.place):
                continue
            elif kind := image_formats.left_out(one.name):
                self._left[kind] += 1
            elif (
                image_formats.suffix_of(one.name) in image_formats.SUFFIXES
                or one.name.endswith(SHARD)
                or (records and fnmatch(one.name, records.train))
            ):
                yield sample(one.place, base, target, one.size)

    def is_broken(self, place: str) -> bool:
        """Whether a place is a link to nothing, which is counted."""
        if broken := os.path.islink(place) and not os.path.exists(place):
            self._left[LINK] += 1
        return broken

    def is_repeated(self, one: stores.Entry) -> bool:
        """Whether a folder is a link to one that is listed without it, because it is in this place."""
        if not one.is_link:
            return False
        real = Path(os.path.realpath(one.place))
        return real.is_relative_to(self._root) and not is_within_ignored(real.relative_to(self._root).as_posix())

    def report(self) -> None:
        """Warn of what was left out."""
        links, heic = self._left.pop(LINK, 0), self._left.pop(image_formats.HEIC, 0)
        if heic:
            self._note(f"left out {counted(heic, f'{image_formats.HEIC} file')}: {image_formats.heic_requirement()}")
        if self._left:
            others = [counted(count, f"{kind} file") for kind, count in sorted(self._left.items())]
            self._note(f"left out {', '.join(others)}: unsupported formats; convert the images to JPEG or PNG")
        if links:
            self._note(f"left out {counted(links, 'broken link')}")

    def _note(self, text: str) -> None:
        warnings.warn(Notice(f"{self._place}: {text}"), stacklevel=3)


def sample(place: str, base: str | None = None, target: int = UNLABELLED, size: int = stores.UNKNOWN) -> Sample:
    """The sample of a file. Its name is relative to the folder `base`, if there is one."""
    return Sample(place.removeprefix(stores.join(base, "")) if base else place, target, place, size=size)
