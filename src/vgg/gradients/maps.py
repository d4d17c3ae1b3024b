"""Gradients of the layers of a trunk in NumPy: each function takes the gradient at a layer's output to its input.

`signal` is the gradient at the output, float32 [sums, channels, rows, columns]; the result is that at the input.
"""

import math

import numpy as np

from ..architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE
from ..arrays import Array
from ..parameters import Parameter, expanded

PRODUCT_BYTES = 8 * 2**20  # of the products of a convolution that are in memory at once; larger ones are not faster


def convolution(signal: Array, weight: Parameter) -> Array:
    """Through a convolution with padding: the products of a few rows of positions with all weights, added where they belong."""
    kernels = expanded(weight).astype(np.float32, copy=False)
    units, channels, side, _ = kernels.shape
    matrix, pad = kernels.reshape(units, -1).T, side // 2
    height, width = signal.shape[2:]
    rows = max(1, PRODUCT_BYTES // (4 * channels * side * side * width))
    result = np.zeros((len(signal), channels, height + 2 * pad, width + 2 * pad), np.float32)
    for one, total in zip(signal, result, strict=True):
        for top in range(0, height, rows):
            products = matrix @ one[:, top : top + rows].reshape(units, -1)
            products = products.reshape(channels, side, side, -1, width)
            for down, across in np.ndindex(side, side):
                part = products[:, down, across]
                total[:, top + down : top + down + part.shape[1], across : across + width] += part
    return result[:, :, pad : pad + height, pad : pad + width]


def max_pool(signal: Array, value: Array) -> Array:
    """Through pooling by 2 of `value` [channels, rows, columns]: to the maximum, of equal ones the first, as in torch."""
    rows, columns = signal.shape[2:]
    corners = [np.s_[..., down : 2 * rows : 2, across : 2 * columns : 2] for down, across in np.ndindex(2, 2)]
    highest = np.maximum.reduce([value[corner] for corner in corners])
    result = np.zeros((len(signal), *value.shape), np.float32)
    free = np.ones(highest.shape, bool)
    for corner in corners:
        chosen = (value[corner] == highest) & free
        result[corner] = signal * chosen
        free &= ~chosen
    return result


def global_max_pool(signal: Array, value: Array) -> Array:
    """Through the maximum over the positions of `value` [channels, rows, columns]; of equal ones the first, as in torch."""
    result = np.zeros((len(signal), len(value), value[0].size), np.float32)
    result[:, np.arange(len(value)), value.reshape(len(value), -1).argmax(1)] = signal.reshape(len(signal), -1)
    return result.reshape(len(signal), *value.shape)


def average_pool(signal: Array, value: Array, side: int = 1) -> Array:
    """Through the means of `side` x `side` parts of `value` [channels, rows, columns], which may overlap."""
    result = np.zeros((len(signal), *value.shape), np.float32)
    rows, columns = (
        [slice(one * size // side, -(-(one + 1) * size // side)) for one in range(side)] for size in value.shape[1:]
    )
    signal = signal.reshape(len(signal), len(value), side, side)
    for row, column in np.ndindex(side, side):
        part = result[:, :, rows[row], columns[column]]
        part += signal[:, :, row, column, None, None] / math.prod(part.shape[2:])
    return result


def lrn(signal: Array, value: Array) -> Array:
    """Through local response normalisation of `value` [channels, rows, columns]."""
    alpha = LRN_ALPHA / LRN_SIZE
    sums = LRN_K + alpha * _windows(np.square(value))
    power = sums**-LRN_BETA
    return np.asarray(signal * power - 2 * alpha * LRN_BETA * value * _windows(signal * value * power / sums))


def _windows(values: Array) -> Array:
    """For each channel, the sum over it and its neighbours, [..., channels, rows, columns]."""
    reach, channels = LRN_SIZE // 2, values.shape[-3]
    padded = np.pad(values, [(0, 0)] * (values.ndim - 3) + [(reach, reach), (0, 0), (0, 0)])
    return np.asarray(sum(padded[..., start : start + channels, :, :] for start in range(LRN_SIZE)))
