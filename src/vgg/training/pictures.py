"""Pictures on their way into a training: decoded and cropped by threads ahead of their use, coloured on the device.

Whatever is random about a picture is drawn from the seed, its place in the dataset and the epoch, so the same pictures come
whoever prepares them, in whichever order, and wherever a run was cut and resumed.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..arrays import Array
from ..errors import ImageError
from ..parallel import ahead
from ..preprocessing import Preprocessing
from ..sources import Dataset
from .recipes import Recipe

MEMORY = 2**30  # bytes of decoded pictures that are kept, so that a small dataset is decoded once
ASPECTS = (3 / 4, 4 / 3)  # of random areas: torchvision's and Gluon's
TRIES = 10  # to find an area that fits into the picture, as there
DRAWS = 3 + 2 * TRIES  # random numbers for a look: where, whether mirrored, and how large
# Principal components of ImageNet's RGB values of 0..1, and their standard deviations; Krizhevsky et al. 2012. The numbers are
# those of fb.resnet.torch, which Gluon's RandomLighting has as well.
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
DEVIATIONS = (0.2175, 0.0188, 0.0045)


@dataclass(frozen=True)
class Batch:
    """Pictures of a dataset, ready for the device."""

    places: Array  # int64 [batch], in the dataset; pictures that can't be read are left out
    targets: Array  # int64 [batch]
    pixels: Array  # [batch, side, side, 3], RGB, 0..255, mostly uint8


class Pictures:
    """A dataset's pictures as batches. `errors` tells of those that couldn't be read, by name; `waited` is in seconds."""

    def __init__(self, dataset: Dataset, recipe: Recipe, preprocessing: Preprocessing, seed: int, workers: int) -> None:
        self.dataset = dataset
        self.errors: dict[str, str] = {}
        self.waited = 0.0
        self.side = preprocessing.crop
        self._recipe, self._preprocessing, self._seed, self._workers = recipe, preprocessing, seed, workers
        self._decoded: dict[int, Array] = {}
        self._room = MEMORY

    def key(self) -> list[Any]:
        """All that decides the looks, as JSON."""
        recipe = self._recipe
        return [self.dataset.digest(), asdict(self._preprocessing), recipe.crop, recipe.crop_range, recipe.flip, self._seed]

    def batches(self, parts: Iterable[Sequence[int]], look: int | None = None) -> Iterator[Batch]:
        """A batch for each part of the dataset, in order.

        `look` is the number of the random look that is taken at each picture; without it, all is as in evaluation.
        """
        return timed(ahead(lambda places: self._batch(places, look), parts, self._workers, self._workers + 1), self)

    def _batch(self, places: Sequence[int], look: int | None) -> Batch:
        good, pixels = [], []
        drawn = None if look is None else draws(self._seed, look, places)
        for index, place in enumerate(map(int, places)):
            try:
                picture = self._picture(place)
            except ImageError as error:
                self.errors[self.dataset.samples[place].name] = str(error)
                continue
            good.append(place)
            if drawn is None:
                pixels.append(self._preprocessing.place(Image.fromarray(picture)))
            else:
                pixels.append(glimpse(picture, self._recipe, self._preprocessing.crop, drawn[index]))
        targets = np.array([self.dataset.samples[place].target for place in good], np.int64)
        return Batch(
            np.array(good, np.int64), targets, np.stack(pixels) if pixels else np.zeros((0, self.side, self.side, 3), np.uint8)
        )

    def _picture(self, place: int) -> Array:
        """uint8 [height, width, 3]."""
        picture = self._decoded.get(place)
        if picture is None:
            sample = self.dataset.samples[place]
            picture = np.asarray(sample.image())
            if picture.nbytes <= self._room:
                self._room -= picture.nbytes
                self._decoded[place] = picture
        return picture


def timed(batches: Iterator[Batch], owner: Any) -> Iterator[Batch]:
    """The same batches; the seconds for which they are waited for are added to the owner's `waited`."""
    while True:
        started = time.perf_counter()
        batch = next(batches, None)
        owner.waited += time.perf_counter() - started
        if batch is None:
            return
        yield batch


def draws(seed: int, look: int, places: Sequence[int]) -> list[list[float]]:
    """Random numbers for a look at each of the pictures, 0 <= x < 1; they depend on the seed, the look and the picture alone.

    A hash of what they depend on, SplitMix64's (Steele, Lea & Flood 2014): a generator for each picture takes longer to set up
    than a small picture to crop.
    """
    state: Any = np.zeros(1, np.uint64)
    for number in ([seed], [look], places):
        state = _hash(state + np.asarray(number, np.uint64))
    numbers = _hash(state[:, None] + np.arange(DRAWS, dtype=np.uint64)) >> np.uint64(11)
    return list((numbers * 2.0**-53).tolist())


def _hash(state: Array) -> Array:
    state = (state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def glimpse(picture: Array, recipe: Recipe, side: int, drawn: Sequence[float]) -> Array:
    """A look at a picture, uint8 [height, width, 3] of any size, by the recipe and the numbers drawn: uint8 [side, side, 3]."""
    height, width = picture.shape[:2]
    down, across, mirrored, *others = drawn
    if recipe.crop == "pad":
        if (height, width) != (side, side):
            picture = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR))
        frame = int(recipe.crop_range[0])
        row, column = (int(share * (2 * frame + 1)) - frame for share in (down, across))
        seen = np.zeros((side, side, 3), np.uint8)
        seen[max(-row, 0) : side - row, max(-column, 0) : side - column] = picture[
            max(row, 0) : side + row, max(column, 0) : side + column
        ]
    else:
        box_size = _area(width, height, recipe.crop_range, others) if recipe.crop == "area" else None
        if box_size is None:
            low, high = (size * side / 224 for size in (recipe.crop_range if recipe.crop == "side" else (256, 256)))
            short = max(low + (high - low) * others[0], side)
            part = side * min(width, height) / short  # what becomes `side` pixels when the short side becomes `short`
            box_size = (part, part)
        left, top = (width - box_size[0]) * across, (height - box_size[1]) * down
        box = (left, top, left + box_size[0], top + box_size[1])
        seen = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BILINEAR, box))
    return seen[:, ::-1] if recipe.flip and mirrored < 0.5 else seen


def _area(width: int, height: int, shares: tuple[float, ...], drawn: Sequence[float]) -> tuple[float, float] | None:
    """The width and height of a random part of a picture, as torchvision's RandomResizedCrop; None where no part drawn fits."""
    low, high = map(log, ASPECTS)
    for share, shape in zip(drawn[:TRIES], drawn[TRIES:], strict=True):
        area, aspect = width * height * (shares[0] + (shares[1] - shares[0]) * share), exp(low + (high - low) * shape)
        across, down = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            return across, down
    return None


class Colours:
    """Batches of pixels as pictures on a device; in training with the recipe's changes of colour."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe, self._device = recipe, device
        self._jitter = None
        if recipe.jitter:
            from kornia.augmentation import ColorJitter

            self._jitter = ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter)

    def __call__(self, pixels: Array, training: bool = False) -> torch.Tensor:
        """float32 [batch, 3, side, side] from pixels [batch, side, side, 3], both RGB, 0..255."""
        batch = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        batch = batch.permute(0, 3, 1, 2).float()
        if training and (self._jitter or self._recipe.lighting):
            batch = batch / 255
            if self._jitter:
                batch = self._jitter(batch)
            if self._recipe.lighting:
                batch = batch + self._light(len(batch))
            batch = batch.clamp(0, 1) * 255
        return batch

    def _light(self, count: int) -> torch.Tensor:
        """A shift of the colours for each picture, [count, 3, 1, 1]."""
        components = torch.tensor(COMPONENTS, device=self._device)
        strength = (
            torch.randn(count, 3, device=self._device) * self._recipe.lighting * torch.tensor(DEVIATIONS).to(self._device)
        )
        return (strength @ components.T)[:, :, None, None]


def normalised(pictures: torch.Tensor, preprocessing: Preprocessing) -> torch.Tensor:
    """Pictures [batch, 3, side, side], RGB, 0..255, as the network takes them that was trained with this preprocessing."""
    mean, std = (
        torch.tensor(value, device=pictures.device)[:, None, None] for value in (preprocessing.mean, preprocessing.std)
    )
    batch = pictures.flip(1) if preprocessing.channels == "BGR" else pictures
    return (batch * preprocessing.scale - mean) / std


Mix = Callable[[torch.Tensor], torch.Tensor]


def mixing(count: int, strength: float) -> Mix:
    """Mixup (Zhang et al., arXiv 1710.09412): each of `count` pictures, or their scores, blended with another one's.

    One share a batch, drawn from a beta distribution as there; kornia draws it evenly.
    """
    share = float(torch.distributions.Beta(strength, strength).sample())
    other = torch.randperm(count)
    return lambda values: torch.lerp(values[other.to(values.device)], values, share)
