"""Classes with different numbers of images: weights of the loss, or a choice of images, that give them equal parts.

Both minimise the same mean loss. Weights use each image once in an epoch. Choosing images at random repeats those of rare
classes, with one crop in an epoch and another one in the next, so that no step has a large gradient of a single image.
"""

from collections.abc import Sequence

import numpy as np

from ..arrays import Array
from ..heads import Output


def loss_weights(classes: Sequence[Sequence[int]], count: int, output: Output | None) -> Array:
    """Weights of images by class, inversely proportional to the classes' frequencies.

    Their mean over the images is 1 if every class has images.

    Args:
        classes: of each training image.
        count: number of classes.
        output: of the network. If it is `sigmoid`, the images with a class and those without it are weighted, for each class.

    Returns:
        float32 [classes]; for `sigmoid` [2, classes]: of images without the class, and with it.
    """
    found = _frequencies(classes, count)
    if output == "sigmoid":
        return np.stack([_inverse(len(classes) - found, len(classes), 2), _inverse(found, len(classes), 2)])
    return _inverse(found, len(classes), count)


def probabilities(classes: Sequence[Sequence[int]], count: int) -> Array:
    """The probability of drawing each image that makes all classes equally frequent, float64 [images]; their sum is 1.

    Args:
        classes: of each training image, one.
        count: number of classes.
    """
    found = 1 / _frequencies(classes, count)[[target for (target,) in classes]]
    return np.asarray(found / found.sum())


def _frequencies(classes: Sequence[Sequence[int]], count: int) -> Array:
    return np.bincount([target for one in classes for target in one], minlength=count)


def _inverse(found: Array, images: int, count: int) -> Array:
    return np.asarray(images / (count * np.maximum(found, 1)), np.float32)
