"""Random crops, colour changes, erasing, mixup and CutMix.

The random numbers of a crop are drawn from the seed, the image's index in the dataset and the number of the view, so any
process gets the same crop, in any order, in a resumed run too. What is computed in batches on the device uses torch's
generator, which the loop seeds for each part of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..arrays import Array
from . import policies
from .recipes import Recipe

ASPECTS = (3 / 4, 4 / 3)  # width / height of random areas, as in torchvision and Gluon
TRIES = 10  # to draw an area that fits the image, as there
DRAWS = 3 + 2 * TRIES  # random numbers for a crop: position, mirroring, and size
MIRRORING = 2  # index of the number that decides whether a crop is mirrored: it is if the number is below 0.5
EVERY_VIEW = 2**32  # in place of a view's number, for what is the same in all views of an image
ERASED = (0.02, 0.33)  # share of the image's area that is erased, as in torchvision
ERASED_ASPECTS = (0.3, 1 / 0.3)  # height / width of what is erased; Zhong et al., section 4
# Principal components of ImageNet's RGB values of 0..1, and their standard deviations; Krizhevsky et al. 2012. The numbers are
# from fb.resnet.torch; Gluon's RandomLighting has the same.
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
DEVIATIONS = (0.2175, 0.0188, 0.0045)


def draws(seed: int, view: int | Array, indices: Sequence[int] | Array, count: int = DRAWS) -> Array:
    """Random numbers for a view of each image, 0 <= x < 1, [images, count]; a function of seed, view and index only.

    They are a hash, SplitMix64 (Steele, Lea & Flood 2014): creating a generator for each image takes longer than cropping a
    small image.

    Args:
        seed: random seed.
        view: number of the view, or one for each image.
        indices: of the images in the dataset.
        count: random numbers for each image; more of them begin with the same.
    """
    state: Any = np.zeros(1, np.uint64)
    for number in ([seed], np.atleast_1d(view), indices):
        state = _hash(state + np.asarray(number, np.uint64))
    numbers = _hash(state[:, None] + np.arange(count, dtype=np.uint64)) >> np.uint64(11)
    return np.asarray(numbers * 2.0**-53)


def drawn_for(recipe: Recipe, seed: int, view: int | Array, indices: Sequence[int] | Array) -> list[list[float]]:
    """The random numbers that `random_view` takes for a view of each image; arguments as for `draws`."""
    drawn = draws(seed, view, indices, DRAWS + policies.draws_of(recipe))
    if recipe.flip == "alternating":  # half a turn further in each view
        first = draws(seed, EVERY_VIEW, indices)[:, MIRRORING]
        drawn[:, MIRRORING] = (first + np.asarray(view) / 2) % 1
    return list(drawn.tolist())


def _hash(state: Array) -> Array:
    state = (state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def random_view(image: Array, recipe: Recipe, side: int, drawn: Sequence[float]) -> Array:
    """A random view of an image by the recipe, cropped, mirrored and changed: uint8 [side, side, 3].

    Args:
        image: RGB, uint8 [height, width, 3], of any size.
        recipe: its fields of crops, flips and operations.
        side: of the crop, in pixels.
        drawn: random numbers of `drawn_for`.
    """
    crop = _random_crop(image, recipe, side, drawn[:DRAWS])
    if recipe.flip != "none" and drawn[MIRRORING] < 0.5:
        crop = crop[:, ::-1]
    return crop if recipe.policy == "none" else policies.augmented(crop, recipe, drawn[DRAWS:])


def _random_crop(image: Array, recipe: Recipe, side: int, drawn: Sequence[float]) -> Array:
    height, width = image.shape[:2]
    down, across, _, *others = drawn
    if recipe.crop == "pad":
        if (height, width) != (side, side):
            short = min(height, width)
            left, top = (width - short) / 2, (height - short) / 2
            box = (left, top, left + short, top + short)
            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box))
        padding = int(recipe.crop_range[0])
        row, column = (int(share * (2 * padding + 1)) - padding for share in (down, across))
        if recipe.border == "reflect":
            return image.take(_reflected(row, side), 0).take(_reflected(column, side), 1)
        crop = np.zeros((side, side, 3), np.uint8)
        if max(abs(row), abs(column)) < side:
            crop[max(-row, 0) : side - row, max(-column, 0) : side - column] = image[
                max(row, 0) : side + row, max(column, 0) : side + column
            ]
    else:
        size = _random_area(width, height, recipe.crop_range, others) if recipe.crop == "area" else None
        if size is None:
            low, high = (pixels * side / 224 for pixels in (recipe.crop_range if recipe.crop == "side" else (256, 256)))
            short = max(low + (high - low) * others[0], side)
            part = side * min(width, height) / short  # becomes `side` pixels when the short side is resized to `short`
            size = (part, part)
        left, top = (width - size[0]) * across, (height - size[1]) * down
        box = (left, top, left + size[0], top + size[1])
        crop = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR, box))
    return crop


def _reflected(start: int, side: int) -> Array:
    """The indices of `side` rows from `start` on in an image of as many rows that its mirror images continue."""
    rows = np.arange(start, start + side) % (2 * side - 2)
    return np.minimum(rows, 2 * side - 2 - rows)


def _random_area(width: int, height: int, shares: tuple[float, ...], drawn: Sequence[float]) -> tuple[float, float] | None:
    """Width and height of a random area as in torchvision's RandomResizedCrop; None if no drawn area fits the image."""
    low, high = map(log, ASPECTS)
    for share, shape in zip(drawn[:TRIES], drawn[TRIES:], strict=True):
        area, aspect = width * height * (shares[0] + (shares[1] - shares[0]) * share), exp(low + (high - low) * shape)
        across, down = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < across <= width and 0 < down <= height:
            return across, down
    return None


class Colours:
    """Moves batches of pixels to a device, and changes their colours by the recipe."""

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        self._recipe, self._device = recipe, device
        self._jitter = None
        if recipe.jitter:
            from kornia.augmentation import ColorJitter

            self._jitter = ColorJitter(recipe.jitter, recipe.jitter, recipe.jitter)

    def __call__(self, pixels: Array, training: bool = False) -> torch.Tensor:
        """Images float32 [batch, 3, side, side] from pixels [batch, side, side, 3], both RGB, 0..255.

        Colours change only with `training`.
        """
        batch = torch.from_numpy(pixels)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        batch = batch.permute(0, 3, 1, 2).float()
        if training and (self._jitter or self._recipe.lighting):
            batch = batch / 255
            if self._jitter:
                batch = self._jitter(batch)
            if self._recipe.lighting:
                batch = batch + self._lighting(len(batch))
            batch = batch.clamp(0, 1) * 255
        return batch

    def _lighting(self, count: int) -> torch.Tensor:
        """A random shift of the colours of each image, [count, 3, 1, 1]."""
        components, deviations = (torch.tensor(values, device=self._device) for values in (COMPONENTS, DEVIATIONS))
        strength = torch.randn(count, 3, device=self._device) * self._recipe.lighting * deviations
        return (strength @ components.T)[:, :, None, None]


def erase(images: torch.Tensor, probability: float) -> torch.Tensor:
    """Random erasing (Zhong et al., arXiv 1708.04896): a rectangle of some images becomes noise, the paper's best filling.

    Args:
        images: [batch, 3, height, width], RGB, 0..255.
        probability: that a rectangle of an image is erased. No rectangle is if none of ten that are drawn fits the image.
    """
    count, _, height, width = images.shape

    def uniform(columns: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        return torch.empty(count, columns, device=images.device).uniform_(low, high)

    area = uniform(TRIES, *ERASED) * height * width
    aspect = uniform(TRIES, *map(log, ERASED_ASPECTS)).exp()
    rows, columns = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (rows < height) & (columns < width)
    first = fits.int().argmax(1, keepdim=True)
    rows, columns = rows.gather(1, first), columns.gather(1, first)
    erased = fits.any(1, keepdim=True) & (uniform(1) < probability)
    inside = [  # of rows and of columns: those of the rectangle, bool [batch, side]
        (at >= start) & (at < start + size)
        for size, side in ((rows, height), (columns, width))
        for start in [(uniform(1) * (side - size + 1)).floor()]
        for at in [torch.arange(side, device=images.device)]
    ]
    mask = erased[..., None] & inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(mask[:, None], torch.rand_like(images) * 255, images)


@dataclass(frozen=True)
class Mix:
    """How the images of a batch are mixed with each other: mixup blends them; CutMix copies a part of another image."""

    other: torch.Tensor  # int64 [batch], the image that each one is mixed with
    share: float  # of the image itself in the scores
    box: tuple[slice, slice] | None = None  # rows and columns of the other image; None: mixup

    def images(self, images: torch.Tensor) -> torch.Tensor:
        """Images [batch, 3, height, width], mixed."""
        if self.box is None:
            return self.scores(images)
        mixed = images.clone()
        mixed[:, :, *self.box] = images[self.other][:, :, *self.box]
        return mixed

    def scores(self, scores: torch.Tensor) -> torch.Tensor:
        """Target scores [batch, classes] of the mixed images."""
        return torch.lerp(scores[self.other], scores, self.share)


def mixing(images: torch.Tensor, recipe: Recipe) -> Mix | None:
    """The way to mix a batch of images [batch, 3, height, width] by the recipe's `mixup` and `cutmix`, drawn at random.

    The batch shares one blending factor or rectangle, drawn as in the papers; kornia draws it uniformly. A rectangle is centred
    anywhere in the image, so a part of it may be outside; the scores are mixed by the area inside.
    """
    if not (recipe.mixup or recipe.cutmix):
        return None
    cut = bool(recipe.cutmix) and (not recipe.mixup or float(torch.rand(())) < 0.5)
    strength = recipe.cutmix if cut else recipe.mixup
    share = float(torch.distributions.Beta(strength, strength).sample())
    other = torch.randperm(len(images)).to(images.device)
    if not cut:
        return Mix(other, share)
    box, inside = [], 1.0
    for side in images.shape[2:]:
        size = round(side * (1 - share) ** 0.5)
        start = int(torch.randint(side, ())) - size // 2
        part = slice(max(start, 0), min(start + size, side))
        box.append(part)
        inside *= (part.stop - part.start) / side
    return Mix(other, 1 - inside, (box[0], box[1]))
