"""Labelled pictures: a folder of class folders, a list file, WebDataset shards, or CIFAR-10, all as one list of samples.

A dataset is a list of places, not of pictures: nothing is read before it is asked for, and any sample at any time.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import Error, ImageError
from ..files import reason
from ..images import MAX_BYTES, SUFFIXES, open_image
from ..labels import Labels, resolver
from ..labels import imagenet as imagenet_labels  # `imagenet` is a module of this package


@dataclass(frozen=True, slots=True)
class Sample:
    """One labelled picture: a file, or a part of one."""

    name: str  # what it is called in results; relative to the dataset
    target: int  # the index of its class
    path: str
    offset: int = 0  # bytes
    size: int = -1  # bytes; -1: to the end of the file

    def read(self) -> bytes:
        """The picture's file as bytes. Raises ImageError where it can't be read, or is larger than 256 MiB."""
        try:
            with Path(self.path).open("rb") as file:
                size = os.fstat(file.fileno()).st_size - self.offset if self.size < 0 else self.size
                if size > MAX_BYTES:
                    raise ImageError(f"{self.name}: is {size / 2**20:.0f} MiB large; at most {MAX_BYTES // 2**20} are read")
                file.seek(self.offset)
                content = file.read(size)
        except OSError as error:
            raise ImageError(f"{self.name}: {reason(error)}") from None
        if len(content) < size:
            raise ImageError(f"{self.name}: {self.path} is cut short")
        return content

    def picture(self) -> Image.Image:
        """The picture, RGB. Raises ImageError where it can't be read, or is none."""
        return open_image(self.read(), self.name)


@dataclass(frozen=True)
class Dataset:
    """Labelled pictures in a fixed order."""

    name: str
    samples: Sequence[Sample]

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    def digest(self) -> str:
        """SHA-256 over names, classes and sizes: two datasets with the same one are taken for the same."""
        total = hashlib.sha256()
        for one in self.samples:
            size = one.size if one.size >= 0 or not os.path.exists(one.path) else os.path.getsize(one.path)
            total.update(f"{one.name}\0{one.target}\0{size}\n".encode(errors="surrogateescape"))
        return total.hexdigest()


def open(place: str | Path, classes: int = 1000, labels: Labels | None = None) -> Dataset:
    """The labelled pictures at a place.

    Args:
        place: a folder with a folder of pictures for each class, named by WordNet id or by the class's name; a text file with
            a picture and its class on each line; a `.tar` shard, or a folder of them; a `.bin` file of CIFAR-10, or the
            folder cifar-10-batches-bin, which stands for its training files.
        classes: how many the network has.
        labels: their names. Without them, class folders stand for 0, 1, 2 … in the order of their names, as in torchvision's
            ImageFolder, and lists and shards must give numbers.

    Raises:
        Error: there is nothing there, no pictures are in it, or a class is unknown, has two meanings, or is there twice.
    """
    from . import cifar, folders, shards

    path = Path(place)
    if labels is not None and len(labels) != classes:
        raise Error(f"{len(labels)} labels for a network of {classes} classes")
    try:
        if cifar.is_here(path):
            if classes != len(cifar.NAMES):
                raise Error(f"{path}: is CIFAR-10, which has 10 classes; the model has {classes}")
            read = cifar.read(sorted(path.glob(cifar.TRAIN)) if path.is_dir() else [path])
        elif path.is_dir():
            tars = sorted(path.glob("*.tar"))
            read = shards.read(tars, resolver(classes, labels)) if tars else folders.class_folders(path, classes, labels)
        elif path.suffix == ".tar":
            read = shards.read([path], resolver(classes, labels))
        else:
            read = folders.list_file(path, resolver(classes, labels))
    except OSError as error:
        raise Error(f"{error.filename or path}: {reason(error)}") from None
    if not read:
        raise Error(f"{path}: has no pictures in it")
    return Dataset(str(place), read)


def unlabelled(place: str | Path) -> Dataset:
    """The images in a folder or in shards, without classes. Raises Error if there are none."""
    from . import cifar, shards

    path = Path(place)
    if tars := sorted(path.glob("*.tar")) or [path] * (path.suffix == ".tar"):
        return Dataset(str(path), shards.read(tars, None))
    if not path.is_dir() or cifar.is_here(path):
        return open(path, *classes_of(path))
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise Error(f"{path}: has no images in it")
    return Dataset(str(path), [Sample(str(file.relative_to(path)), -1, str(file)) for file in files])


def classes_of(place: str | Path) -> tuple[int, Labels | None]:
    """How many classes the pictures at a place have, and their names, for a network that is yet to be made.

    Class folders are classes in the order of their names, and so are the names that a list or shards give; where these are
    numbers, the classes have no names. Where all names are WordNet ids of ImageNet's, they get ImageNet's names, too.

    Raises:
        Error: as `open` does; or numbers are left out.
    """
    from . import cifar, folders, shards

    path, found = Path(place), dict[str, int]()

    def collect(name: str) -> int:
        return found.setdefault(name, len(found))

    try:
        if cifar.is_here(path):
            return len(cifar.NAMES), Labels(cifar.NAMES)
        tars = sorted(path.glob("*.tar")) if path.is_dir() else [path] if path.suffix == ".tar" else []
        if path.is_dir() and not tars:
            return _named(folders.class_names(path))
        if tars:
            shards.read(tars, collect)
        else:
            folders.list_file(path, collect)
    except OSError as error:
        raise Error(f"{error.filename or path}: {reason(error)}") from None
    if not found:
        raise Error(f"{path}: has no pictures in it")
    if not all(name.isdecimal() for name in found):
        return _named(sorted(found))
    numbers = set(map(int, found))
    if len(numbers) <= max(numbers):
        raise Error(f"{path}: has {len(numbers)} classes, whose numbers go up to {max(numbers)}; they must be 0, 1, 2 …")
    return len(numbers), None


def _named(names: Sequence[str]) -> tuple[int, Labels]:
    """How many classes of these names there are, with ImageNet's names where these are its WordNet ids."""
    known = dict(zip(imagenet_labels().wnids or (), imagenet_labels().names, strict=True))
    if all(name in known for name in names):
        return len(names), Labels(tuple(known[name] for name in names), tuple(names))
    return len(names), Labels(tuple(names))
