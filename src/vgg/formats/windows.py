"""The windows of adaptive average pooling."""

import numpy as np

from ..arrays import Array


def windows(side: int, positions: int) -> Array:
    """The share of each of `side` places in the mean of each of `positions` windows, float64 [positions, side]."""
    shares = np.zeros((positions, side))
    for index in range(positions):
        begin, end = index * side // positions, -(-(index + 1) * side // positions)
        shares[index, begin:end] = 1 / (end - begin)
    return shares
