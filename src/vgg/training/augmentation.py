"""Random crops, colour changes and mixup.

All random numbers of an image are drawn from the seed, its index in the dataset and the number of the view, so any process
gets the same image, in any order, in a resumed run too.
"""

from collections.abc import Callable, Sequence
from math import exp, log
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..arrays import Array
from .recipes import Recipe

ASPECTS = (3 / 4, 4 / 3)  # width / height of random areas, as in torchvision and Gluon
TRIES = 10  # to draw an area that fits the image, as there
DRAWS = 3 + 2 * TRIES  # random numbers for a crop: position, mirroring, and size
# Principal components of ImageNet's RGB values of 0..1, and their standard deviations; Krizhevsky et al. 2012. The numbers are
# from fb.resnet.torch; Gluon's RandomLighting has the same.
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
DEVIATIONS = (0.2175, 0.0188, 0.0045)


def draws(seed: int, view: int, indices: Sequence[int] | Array) -> list[list[float]]:
    """Random numbers for a view of each image, 0 <= x < 1, [images][DRAWS]; a function of seed, view and index only.

    They are a hash, SplitMix64 (Steele, Lea & Flood 2014): creating a generator for each image takes longer than cropping a
    small image.
    """
    state: Any = np.zeros(1, np.uint64)
    for number in ([seed], [view], indices):
        state = _hash(state + np.asarray(number, np.uint64))
    numbers = _hash(state[:, None] + np.arange(DRAWS, dtype=np.uint64)) >> np.uint64(11)
    return list((numbers * 2.0**-53).tolist())


def _hash(state: Array) -> Array:
    state = (state + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


def random_crop(image: Array, recipe: Recipe, side: int, drawn: Sequence[float]) -> Array:
    """A random crop of an image by the recipe: uint8 [side, side, 3] from uint8 [height, width, 3].

    Args:
        image: RGB, of any size.
        recipe: its fields `crop`, `crop_range` and `flip`.
        side: of the crop, in pixels.
        drawn: random numbers of `draws`.
    """
    height, width = image.shape[:2]
    down, across, mirrored, *others = drawn
    if recipe.crop == "pad":
        if (height, width) != (side, side):
            image = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR))
        padding = int(recipe.crop_range[0])
        row, column = (int(share * (2 * padding + 1)) - padding for share in (down, across))
        crop = np.zeros((side, side, 3), np.uint8)
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
    return crop[:, ::-1] if recipe.flip and mirrored < 0.5 else crop


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


def mixup(count: int, strength: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Mixup (Zhang et al., arXiv 1710.09412): blends each of `count` images, or target scores, with another one.

    The batch shares one blending factor, drawn from a beta distribution as in the paper; kornia draws it uniformly.

    Returns:
        A function that blends the rows of a tensor; with strength 0, the identity.
    """
    if not strength:
        return lambda values: values
    share = float(torch.distributions.Beta(strength, strength).sample())
    other = torch.randperm(count)
    return lambda values: torch.lerp(values[other.to(values.device)], values, share)
