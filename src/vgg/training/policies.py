"""TrivialAugment and RandAugment: random operations on the pixels of a crop.

The operations and their ranges are those of torchvision, whose references apply them as here: after the crop and the flip, with
the nearest pixel, and with black where an operation leaves a part of the crop empty.
"""

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ..arrays import Array
from .recipes import LEVELS, Recipe

DRAWS = 3  # random numbers for an operation: which one, its strength, its direction

Operation = Callable[[Image.Image, float], Image.Image]  # of a crop, with a strength


def _affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Pixel (x, y) from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix)


# Each operation with its largest strength in TrivialAugment's wide space (Müller & Hutter, arXiv 2103.10158) and in
# RandAugment's (Cubuk et al., arXiv 1909.13719), and whether it has two directions.
OPERATIONS: dict[str, tuple[Operation, float, float, bool]] = {
    "identity": (lambda image, _: image, 0, 0, False),
    "shear-x": (lambda image, slope: _affine(image, 1, slope, 0, 0, 1, 0), 0.99, 0.3, True),
    "shear-y": (lambda image, slope: _affine(image, 1, 0, 0, slope, 1, 0), 0.99, 0.3, True),
    # In pixels; in RandAugment those of a crop of 331.
    "translate-x": (lambda image, pixels: _affine(image, 1, 0, -int(pixels), 0, 1, 0), 32, 150, True),
    "translate-y": (lambda image, pixels: _affine(image, 1, 0, 0, 0, 1, -int(pixels)), 32, 150, True),
    "rotate": (lambda image, degrees: image.rotate(degrees), 135, 30, True),
    "brightness": (lambda image, change: ImageEnhance.Brightness(image).enhance(1 + change), 0.99, 0.9, True),
    "colour": (lambda image, change: ImageEnhance.Color(image).enhance(1 + change), 0.99, 0.9, True),
    "contrast": (lambda image, change: ImageEnhance.Contrast(image).enhance(1 + change), 0.99, 0.9, True),
    "sharpness": (lambda image, change: ImageEnhance.Sharpness(image).enhance(1 + change), 0.99, 0.9, True),
    "posterize": (lambda image, bits: ImageOps.posterize(image, 8 - round(bits)), 6, 4, False),
    "solarize": (lambda image, levels: ImageOps.solarize(image, 255 - int(levels)), 255, 255, False),
    "autocontrast": (lambda image, _: ImageOps.autocontrast(image), 0, 0, False),
    "equalize": (lambda image, _: ImageOps.equalize(image), 0, 0, False),
}  # fmt: skip
NAMES = tuple(OPERATIONS)


def draws_of(recipe: Recipe) -> int:
    """Number of random numbers that `augmented` takes for an image."""
    return {"none": 0, "trivial": 1, "rand": recipe.operations}[recipe.policy] * DRAWS


def augmented(crop: Array, recipe: Recipe, drawn: Sequence[float]) -> Array:
    """A crop after the recipe's operations: uint8 [side, side, 3], as the crop.

    Args:
        crop: RGB.
        recipe: its fields `policy`, `operations` and `magnitude`.
        drawn: random numbers, 0 <= x < 1, as many as `draws_of` says.
    """
    image = Image.fromarray(crop)
    for start in range(0, len(drawn), DRAWS):
        which, strength, direction = drawn[start : start + DRAWS]
        level = int(strength * (LEVELS + 1)) if recipe.policy == "trivial" else recipe.magnitude
        name = NAMES[int(which * len(NAMES))]
        operation, *largest, signed = OPERATIONS[name]
        amount = largest[recipe.policy == "rand"] * level / LEVELS
        if recipe.policy == "rand" and name.startswith("translate"):
            amount *= len(crop) / 331
        image = operation(image, -amount if signed and direction < 0.5 else amount)
    return np.asarray(image)
