"""Attributions from the logits of changed images: occlusion and Score-CAM. They need no gradient."""

import numpy as np

from ..arrays import Array
from ..engines import Model
from ..progress import Progress, silent

BATCH = 8  # images that are computed together


def occlusion(model: Model, image: Array, signal: Array, window: int, progress: Progress = silent) -> Array:
    """Occlusion: the decrease of sums of logits where a square is covered. Zeiler & Fergus, arXiv 1311.2901, section 4.2.

    The square moves by half its side, and covers with zeros, the mean colour if the preprocessing subtracts it. A pixel has
    the mean of all squares that cover it, as in captum. The paper shows the class's probability under the square instead.

    Args:
        model: a network with a head, on an engine.
        image: its input, float32 [3, height, width].
        signal: the factor of each logit in each sum, float32 [sums, units].
        window: side of the square in pixels.
        progress: called after each batch of squares.

    Returns:
        float32 [sums, height, width]; negative where the sum increases.
    """
    height, width = image.shape[1:]
    stride = max(1, window // 2)
    starts = [[one * stride for one in range(1 - (window - side) // stride)] for side in (height, width)]
    squares = [np.s_[top : top + window, left : left + window] for top in starts[0] for left in starts[1]]
    whole = model.engine.logits(image[None]) @ signal.T
    total, count = np.zeros((len(signal), height, width), np.float32), np.zeros((height, width), np.float32)
    for start in range(0, len(squares), BATCH):
        some = squares[start : start + BATCH]
        batch = np.repeat(image[None], len(some), 0)
        for one, square in zip(batch, some, strict=True):
            one[:, *square] = 0
        for change, square in zip(whole - model.engine.logits(batch) @ signal.T, some, strict=True):
            total[:, *square] += change[:, None, None]
            count[square] += 1
        progress("Occlusion", start + len(some), len(squares))
    return total / count


def score_cam(model: Model, image: Array, channels: Array, signal: Array, progress: Progress = silent) -> Array:
    """Score-CAM: channels weighted by the sums of logits of the image that each of them masks. Wang et al., arXiv 1910.01279.

    A mask is the channel, enlarged by linear interpolation with aligned corners, as in the package grad-cam, and scaled to
    0..1. The weights are the softmax over the channels. A channel of zeros masks everything, so these are computed once.

    Args:
        model: a network with a head, on an engine.
        image: its input, float32 [3, height, width].
        channels: a layer output for the image, float32 [channels, rows, columns].
        signal: the factor of each logit in each sum, float32 [sums, units].
        progress: called after each batch of masks.

    Returns:
        float32 [sums, rows, columns].
    """
    down, across = (_enlarging(*sides) for sides in zip(channels.shape[1:], image.shape[1:], strict=True))
    active = np.flatnonzero(channels.any((1, 2)))
    found = np.repeat(model.engine.logits(np.zeros_like(image)[None]) @ signal.T, len(channels), 0)
    for start in range(0, len(active), BATCH):
        some = active[start : start + BATCH]
        masks = down @ channels[some] @ across.T
        low, high = masks.min((1, 2), keepdims=True), masks.max((1, 2), keepdims=True)
        masks = (masks - low) / (high - low + 1e-8)
        found[some] = model.engine.logits(masks[:, None] * image) @ signal.T
        progress("Score-CAM", start + len(some), len(active))
    weights = np.exp(found - found.max(0))
    return np.asarray(np.tensordot((weights / weights.sum(0)).T, channels, 1))


def _enlarging(count: int, wanted: int) -> Array:
    """Linear interpolation of `count` values to `wanted`, of which the first and the last stay: float32 [wanted, count]."""
    position = np.linspace(0, count - 1, wanted)
    return np.asarray(np.maximum(0, 1 - np.abs(position[:, None] - np.arange(count))), np.float32)
