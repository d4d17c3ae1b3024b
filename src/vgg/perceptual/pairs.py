"""Pairs of images, read ahead and put together in batches of one size."""

import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import Error, ImageError
from ..images import ImageLike, open_image
from ..parallel import ahead, cores
from ..sources import Dataset, Sample, stores

SMALLEST = 32  # pixels of an image's sides: five poolings
AHEAD, KEPT = 8, 16  # pairs that are read ahead; decoded images that are kept for other pairs

Named = tuple[str, ImageLike]  # an image with its name
NamedPair = tuple[Named, Named]


@dataclass
class Batch:
    """Consecutive pairs of images of one size, each image once; or one pair that can't be compared."""

    names: list[tuple[str, str]] = field(default_factory=list)  # of the images of each pair
    pairs: list[tuple[int, int]] = field(default_factory=list)  # indices of `images`
    images: list[Array] = field(default_factory=list)  # RGB [height, width, 3], 0..255, uint8 or float32
    error: str | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images."""
        height, width = self.images[0].shape[:2]
        return height, width


@dataclass(frozen=True)
class _Pair:
    """Two images, or an error."""

    names: tuple[str, str]
    numbers: tuple[int, int]  # equal for the same image
    images: tuple[Array, ...] = ()
    error: str | None = None


def matched(first: Sequence[Named], second: Sequence[Named]) -> list[NamedPair]:
    """Images in pairs: equally many, or one for all. Raises Error for other numbers."""
    if len(first) != len(second) and 1 not in (len(first), len(second)):
        raise Error(f"can't compare {len(first)} images with {len(second)}; give equally many, or one for all")
    count = max(len(first), len(second))
    return list(zip([*first] * (count // len(first)), [*second] * (count // len(second)), strict=True))


def batches(pairs: Sequence[NamedPair], pixels: int) -> Iterator[Batch]:
    """Pairs in order, in batches of at most `pixels` pixels or of one pair."""
    batch, places = Batch(), dict[int, int]()
    for pair in _read(pairs):
        if pair.error:
            if batch.pairs:
                yield batch
            yield Batch([pair.names], error=pair.error)
            batch, places = Batch(), {}
            continue
        height, width = pair.images[0].shape[:2]
        count = len({*pair.numbers} | places.keys())
        if batch.pairs and (batch.size != (height, width) or count * height * width > pixels):
            yield batch
            batch, places = Batch(), {}
        for number, image in zip(pair.numbers, pair.images, strict=True):
            if number not in places:
                places[number] = len(batch.images)
                batch.images.append(image)
        batch.names.append(pair.names)
        batch.pairs.append((places[pair.numbers[0]], places[pair.numbers[1]]))
    if batch.pairs:
        yield batch


def _read(pairs: Sequence[NamedPair]) -> Iterator[_Pair]:
    """The pixels of pairs, read ahead in threads."""
    numbers: dict[Any, int] = {}
    images: list[Named] = []
    numbered = []
    for pair in pairs:
        for image in pair:
            if numbers.setdefault(_key(image), len(images)) == len(images):
                images.append(image)
        numbered.append((pair, (numbers[_key(pair[0])], numbers[_key(pair[1])])))

    locks = [threading.Lock() for _ in images]  # an image file can't be decoded in two threads at once

    @lru_cache(KEPT)
    def cached(number: int) -> Array:
        return _pixels(*images[number])

    def opened(number: int) -> Array:
        with locks[number]:
            return cached(number)

    def read(item: tuple[NamedPair, tuple[int, int]]) -> _Pair:
        ((first, _), (second, _)), both = item
        try:
            one, other = (opened(number) for number in both)
            _check(f"{first} and {second}", one, other)
        except ImageError as error:
            return _Pair((first, second), both, error=str(error))
        return _Pair((first, second), both, (one, other))

    return ahead(read, numbered, cores(), AHEAD)


def _key(image: Named) -> Any:
    """What is equal for the same image."""
    return image[1] if isinstance(image[1], Sample) else id(image[1])


def _pixels(name: str, image: ImageLike) -> Array:
    """RGB [height, width, 3] of 0..255: uint8, or float32 of an array of floats."""
    if not isinstance(image, np.ndarray) or image.dtype.kind != "f":
        return np.asarray(open_image(image, name))
    if image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ImageError(f"{name}: an array of floats must be [height, width, 3], not {list(image.shape)}")
    if not (image.min() >= 0 and image.max() <= 1):  # also if there is a NaN
        raise ImageError(f"{name}: an array of floats must have values of 0..1, without NaN")
    return np.asarray(image, np.float32) * np.float32(255)


def _check(names: str, one: Array, other: Array) -> None:
    (height, width), (tall, wide) = one.shape[:2], other.shape[:2]
    if (height, width) != (tall, wide):
        raise ImageError(f"{names}: sizes differ, {width}x{height} and {wide}x{tall} pixels; resize one of them")
    if min(height, width) < SMALLEST:
        raise ImageError(f"{names}: are {width}x{height}; images must have {SMALLEST}x{SMALLEST} pixels or more")


def by_name(first: Dataset, second: Dataset) -> tuple[list[NamedPair], list[str]]:
    """The images of two places that have the same name, or the same name but for the suffix; and the places of the others.

    An image in a shard has a place, too: `gen/00.tar/a.png`, where `Sample.path` is the shard's.
    """
    partners = {one.name: one for one in second}
    pairs = {one: partners.pop(one.name) for one in first if one.name in partners}
    stems = [
        Counter(os.path.splitext(name)[0] for name in names)
        for names in ([one.name for one in first if one not in pairs], partners)
    ]
    by_stem = {os.path.splitext(name)[0]: one for name, one in partners.items()}
    for one in first:
        stem = os.path.splitext(one.name)[0]
        if one not in pairs and all(counts[stem] == 1 for counts in stems):
            pairs[one] = partners.pop(by_stem[stem].name)
    ours, theirs = (stores.normalised(dataset.name) for dataset in (first, second))
    found: list[NamedPair] = [
        ((stores.join(ours, one.name), one), (stores.join(theirs, pairs[one].name), pairs[one]))
        for one in first
        if one in pairs
    ]
    alone = [stores.join(ours, one.name) for one in first if one not in pairs] + [stores.join(theirs, one) for one in partners]
    return found, alone
