"""DISTS: the similarity of structure and texture of two images.

K. Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", IEEE TPAMI 2020, arXiv 2004.07728: VGG-16
with L2 pooling. For each channel of the image and of five layer outputs, the means are compared, and the variances with the
covariance, as in SSIM; a weighted sum over all channels is subtracted from 1.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..arrays import Array
from .tiles import Box

C1 = C2 = 1e-6
ROWS = 256  # whose moments are computed at once


def distances(moments: Mapping[str, Array], counts: Mapping[str, int], weights: Mapping[str, Array]) -> Array:
    """The distance of each pair, float64 [pairs]; 0 for equal images.

    Args:
        moments: by layer output, float64 [pairs, 5, channels]: sums over all positions of a, b, a*a, b*b and a*b.
        counts: number of positions by layer output.
        weights: by layer output, [2, channels]: alpha of the means and beta of the structure, with a sum of 1 over all.
    """
    total = np.zeros(len(next(iter(moments.values()))))
    for name, (alpha, beta) in weights.items():
        mean_a, mean_b, square_a, square_b, product = np.moveaxis(moments[name] / counts[name], 1, 0)
        variances = (square_a - mean_a**2) + (square_b - mean_b**2)
        covariance = product - mean_a * mean_b
        # 1 - S1 and 1 - S2 of the paper's equations 6 and 7; their numerators are exactly 0 for equal images.
        texture = (mean_a - mean_b) ** 2 / (mean_a**2 + mean_b**2 + C1)
        structure = (variances - 2 * covariance) / (variances + C2)
        total += texture @ np.float64(alpha) + structure @ np.float64(beta)
    return total


def image_moments(images: Sequence[Array], pairs: Sequence[tuple[int, int]], box: Box) -> Array:
    """The moments of a part of pairs of images, scaled to 0..1, float64 [pairs, 5, 3]; see `distances`.

    Args:
        images: [height, width, 3], 0..255.
        pairs: indices of images.
        box: the part in pixels: top, left, bottom, right.
    """
    top, left, bottom, right = box
    found = np.zeros((len(pairs), 5, 3))
    for start in range(top, bottom, ROWS):
        parts = [one[start : min(start + ROWS, bottom), left:right].reshape(-1, 3) / 255.0 for one in images]
        for number, (first, second) in enumerate(pairs):
            a, b = parts[first], parts[second]
            found[number] += (a.sum(0), b.sum(0), (a * a).sum(0), (b * b).sum(0), (a * b).sum(0))
    return found
