"""Sources of images: the images that a command or a call works on, wherever they are.

All verbs accept the same places: files, folders, globs, list files (.txt), WebDataset shards (.tar), CIFAR, and URLs of
these in object stores and on web servers. `find` returns any images, `open` labelled ones. Images are read when they are used.
Hidden files and folders, and what systems leave in folders (`ignored`), are only images if their name is given.
"""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import Error, ImageError
from ..images import ImageLike
from ..labels import Labels, resolver
from ..labels import imagenet as imagenet_labels  # `imagenet` is a module of this package
from . import cifar, listing, numbering, stores
from .samples import UNLABELLED, Dataset, Sample

__all__ = [
    "UNLABELLED",
    "Dataset",
    "Sample",
    "Splits",
    "classes_of",
    "find",
    "folds",
    "is_cifar",
    "is_folder",
    "is_single",
    "open",
    "splits",
    "unlabelled",
]


def find(images: Any) -> list[tuple[str, ImageLike]]:
    """Images with their names.

    Args:
        images: one image or several, as `Classifier.classify` takes them: a place, see above; a file's bytes, an open file, a
            PIL image, or an array [height, width, channels]; an array [count, height, width, channels]; or a list of these, of
            samples, or of pairs as returned here. A file that is missing and a shard that is damaged are returned as well;
            reading them is an error.

    Raises:
        ImageError: there are none.
        Error: a folder or store can't be listed.
    """
    if isinstance(images, str | Path):
        return [(one.name, one) for one in _found(stores.normalised(images), keep_unreadable=True)]
    if is_single(images):
        return [(images.name if isinstance(images, Sample) else "image", images)]
    found: list[tuple[str, ImageLike]] = []
    for index, image in enumerate(images):
        if isinstance(image, str | Path | Sample):
            found += find(image)
        else:
            found.append(image if isinstance(image, tuple) else (f"image {index}", image))
    if not found:
        raise ImageError("no images given")
    return found


def is_single(images: Any) -> bool:
    """Whether `images`, as `find` takes them, are one image and not a list, folder or the like."""
    import numpy as np
    from PIL import Image

    if isinstance(images, str | Path):
        place = stores.normalised(images)
        return listing.is_image(place) if stores.is_url(place) else not listing.is_collection(place) and os.path.isfile(place)
    return (
        isinstance(images, bytes | bytearray | memoryview | Image.Image | Sample)
        or (isinstance(images, np.ndarray) and images.ndim != 4)
        or hasattr(images, "read")  # an open file
    )


def is_folder(place: str | Path) -> bool:
    """Whether a place is a folder."""
    return listing.is_folder(stores.normalised(place))


def unlabelled(place: str | Path) -> Dataset:
    """The images at a place, without classes; names are relative to it.

    Raises:
        ImageError: there are none, or a shard is missing or damaged.
        Error: a folder or store can't be listed.
    """
    path = stores.normalised(place)
    return Dataset(str(place), _found(path, _base(path)))


def open(place: str | Path, classes: int = 1000, labels: Labels | None = None, *, several: bool = False) -> Dataset:
    """The labelled images at a place.

    Args:
        place: a folder with a folder of images for each class, named by WordNet id or class name; a list file with an image
            and its class on each line; a table of these (.csv, .tsv, .jsonl); a WebDataset shard (.tar), or a folder of
            them; a file of CIFAR-10 or CIFAR-100 (.bin), or the folder cifar-10-batches-bin or cifar-100-binary, which means
            its training files; or a URL of one of these.
        classes: number of classes of the network.
        labels: their names. Without them, lists and shards must hold numbers. Class folders whose names are numbers are the
            classes with these numbers, and others are 0, 1, 2 … in alphabetical order, as in torchvision's ImageFolder. If
            `class_10` comes before `class_2`, so that programs differ, a notice says which class is meant.
        several: whether an image in a list or table may have any number of classes. A table has them in a cell, separated by
            `|`, `;`, `,` or spaces, or has a column for each class with 0 or 1.

    Raises:
        Error: there are no images, a class is unknown, ambiguous, or repeated, or there is not one label for each class.
    """
    if labels is not None and len(labels) != classes:
        raise Error(f"{len(labels)} labels for a network of {classes} classes")
    path = stores.normalised(place)
    found = list(
        listing.unpack(listing.labelled(path, classes, labels, _base(path), several=several), resolver(classes, labels))
    )
    if not found:
        raise Error(f"{path}: has no images in it")
    return Dataset(str(place), found)


def classes_of(place: str | Path, *, several: bool = False) -> tuple[int, Labels | None]:
    """The number of classes of the labelled images at a place, and their names, for a new network.

    Class folders are classes in alphabetical order or, if all of them are numbers, in that of the numbers, and so are the names
    in lists and shards. If lists or shards hold numbers, the classes have no names. If all names are WordNet ids of ImageNet,
    the classes get ImageNet's names as well. With `several`, as for `open`, the names in a cell are separated by `|`, `;` or
    `,`, since a name may have spaces.

    Raises:
        Error: as `open`, or if numbers are missing.
    """
    path = stores.normalised(place)
    containers, folders = listing.parts(path)
    if batches := [one.path for one in containers if one.path.endswith(listing.CIFAR)]:
        labels = cifar.labels_of(batches[0])
        return len(labels), labels
    seen = dict.fromkeys(folders, 0)

    def collect(name: str) -> int:
        numbers = " " in name and name.replace(" ", "").isdecimal()
        if several and (numbers or any(mark in name for mark in "|;,")):
            raise ValueError("several names")  # which are then tried one by one
        return seen.setdefault(name, len(seen))

    if not folders:
        for _ in listing.unpack(containers or listing.list_file(path, collect, several=several), collect):
            pass
    names = numbering.in_order(seen)
    if not names:
        raise Error(f"{path}: has no images in it")
    if not folders and all(name.isdecimal() for name in names):
        numbers = set(map(int, names))
        if len(numbers) <= max(numbers):
            raise Error(f"{path}: has {len(numbers)} classes with numbers up to {max(numbers)}; they must be 0, 1, 2 …")
        return len(numbers), None
    known = dict(zip(imagenet_labels().wnids or (), imagenet_labels().names, strict=True))
    if all(name in known for name in names):
        return len(names), Labels(tuple(known[name] for name in names), tuple(names))
    return len(names), Labels(tuple(names))


class Splits(NamedTuple):
    """The places of the parts of a dataset; None if a part is not separate."""

    train: str
    val: str | None = None
    test: str | None = None


def splits(place: str | Path) -> Splits:
    """The places of the training, validation and test images of a dataset.

    They are the folders train, val and test in a folder; of CIFAR-10 the folder and its file test_batch.bin, of CIFAR-100 the
    folder and test.bin.
    """
    path = stores.normalised(place)
    inside = {one.name: one for one in stores.entries(path)} if listing.is_folder(path) else {}
    folders = {name: inside[name].place for name in Splits._fields if name in inside and inside[name].is_folder}
    if "train" in folders:
        return Splits(**folders)
    kind = cifar.kind_in(inside)
    return Splits(path, test=inside[kind.test].place if kind and kind.test in inside else None)


def folds(place: str | Path) -> list[str]:
    """The places of the folds of a dataset: the folders fold-1, fold-2 … in a folder that has no others; else none."""
    path = stores.normalised(place)
    inside = [one for one in stores.entries(path) if one.is_folder] if listing.is_folder(path) else []
    numbers = {one.place: int(one.name[5:]) for one in inside if re.fullmatch(r"fold-[1-9]\d*", one.name)}
    return sorted(numbers, key=lambda one: numbers[one]) if 1 < len(numbers) == len(inside) else []


def is_cifar(place: str | Path) -> bool:
    """Whether a place is the folder of CIFAR-10 or CIFAR-100, or one of their files."""
    path = stores.normalised(place)
    inside = stores.entries(path) if listing.is_folder(path) else []
    return path.endswith(listing.CIFAR) or cifar.kind_in(one.name for one in inside) is not None


def _found(place: str, base: str | None = None, *, keep_unreadable: bool = False) -> list[Sample]:
    found = list(listing.unpack(listing.images(place, base, check=False), keep_unreadable=keep_unreadable))
    if not found:
        raise ImageError(f"{place}: has no images in it")
    return found


def _base(place: str) -> str:
    """The folder that names of a dataset's images are relative to."""
    return place if listing.is_folder(place) else stores.parent(place)
