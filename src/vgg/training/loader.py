"""The data loader: threads decode and crop images ahead of their use."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from ..arrays import Array
from ..errors import ImageError
from ..parallel import ahead
from ..preprocessing import Preprocessing
from ..sources import Dataset
from .augmentation import drawn_for, random_view
from .recipes import Recipe

MEMORY = 2**30  # bytes of decoded images kept in memory, so that a small dataset is decoded once

# Fields of a recipe that decide a view of an image.
VIEWS = ("crop", "crop_range", "border", "flip", "policy", "operations", "magnitude", "repeats", "progressive")

Indices = Sequence[int] | Array  # of images in a dataset


@dataclass(frozen=True)
class Batch:
    """Images of a dataset, ready for the device."""

    indices: Array  # int64 [batch], in the dataset; images that can't be read are left out
    targets: Array  # int64 [batch], classes; -1 if unlabelled. If images have several labels, bool [batch, classes]
    inputs: Array  # pixels [batch, side, side, 3], RGB, 0..255, mostly uint8; of a `Cache`, values float32 [batch, …]


class Loader:
    """Loads batches of a dataset's images. `errors` has the images that can't be read, by name.

    Args:
        dataset: the images.
        recipe: random views: crops, flips, operations, and the number of views of each image.
        preprocessing: size of the input, and the crop for evaluation.
        seed: random seed of the crops.
        workers: number of threads.
        several: number of classes of which an image may have any number; 0 if it has one.
    """

    def __init__(
        self, dataset: Dataset, recipe: Recipe, preprocessing: Preprocessing, seed: int, workers: int, several: int = 0
    ) -> None:
        self.dataset, self._several = dataset, several
        self.errors: dict[str, str] = {}
        self.side = preprocessing.crop
        self._recipe, self._preprocessing, self._seed, self._workers = recipe, preprocessing, seed, workers
        self._decoded: dict[int, Array] = {}
        self._ahead = False  # whether `decode` was called
        self._room = MEMORY

    def key(self) -> dict[str, Any]:
        """Everything that decides the views, as JSON."""
        views = {name: getattr(self._recipe, name) for name in VIEWS}
        preprocessing = asdict(self._preprocessing)
        return {"images": self.dataset.digest(), "preprocessing": preprocessing, "seed": self._seed, **views}

    def batches(self, parts: Iterable[Indices], view: int | None = None) -> Iterator[Batch]:
        """A batch for each sequence of indices, in order.

        Args:
            parts: indices in the dataset.
            view: number of the random view of each image, of which `repeats` are in the batch; None for the crop of
                evaluation.
        """
        return ahead(lambda indices: self._batch(indices, view), parts, self._workers, self._workers + 1)

    def decode(self, indices: Array) -> None:
        """Decode images before they are used, as many as are kept in memory; once."""
        if self._ahead:
            return
        self._ahead = True

        def decode(part: Array) -> bool:
            for index in map(int, part):
                with suppress(ImageError):  # it is reported when the image is used
                    self._image(index)
                    if index not in self._decoded:  # there is no room for it
                        return False
            return True

        parts = np.array_split(indices, -(-len(indices) // 64))  # a thread decodes 64 at once
        for kept in ahead(decode, parts, self._workers, self._workers):
            if not kept:
                break

    def _batch(self, indices: Indices, view: int | None) -> Batch:
        readable, pixels = [], []
        repeats, side = (1, self.side) if view is None else (self._recipe.repeats, self._recipe.side(self.side, view))
        drawn = None
        if view is not None:
            views = np.tile(view * repeats + np.arange(repeats), len(indices))
            drawn = drawn_for(self._recipe, self._seed, views, np.repeat(indices, repeats))
        for position, index in enumerate(map(int, indices)):
            try:
                image = self._image(index)
            except ImageError as error:
                self.errors[self.dataset.samples[index].name] = str(error)
                continue
            readable += [index] * repeats
            if drawn is None:
                pixels.append(self._preprocessing.place(Image.fromarray(image)))
            else:
                own = drawn[position * repeats :][:repeats]
                pixels += [random_view(image, self._recipe, side, numbers) for numbers in own]
        inputs = np.stack(pixels) if pixels else np.zeros((0, side, side, 3), np.uint8)
        return Batch(np.array(readable, np.int64), self.targets(readable), inputs)

    def targets(self, indices: Indices) -> Array:
        """The classes of images, as in a `Batch`."""
        samples = [self.dataset.samples[index] for index in indices]
        if not self._several:
            return np.array([one.target for one in samples], np.int64)
        found = np.zeros((len(samples), self._several), np.bool_)
        for row, one in zip(found, samples, strict=True):
            row[[target for target in one.classes if target >= 0]] = True
        return found

    def _image(self, index: int) -> Array:
        """uint8 [height, width, 3]."""
        image = self._decoded.get(index)
        if image is None:
            image = np.asarray(self.dataset.samples[index].image())
            if image.nbytes <= self._room:
                self._room -= image.nbytes
                self._decoded[index] = image
        return image
