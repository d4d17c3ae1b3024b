"""The activation functions of a head and their derivatives, in NumPy."""

import math
from collections.abc import Callable

import numpy as np

from ..arrays import Array

Function = Callable[[Array, float], Array]  # of an array and the activation's number
CUBE, SLOPE = 0.044715, math.sqrt(2 / math.pi)  # of GELU's approximation by tanh
_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 + np.tanh(x / 2) / 2)  # which doesn't overflow


def _bell(x: Array) -> Array:
    """The derivative of the sigmoid, which isn't rounded to 0 where that is rounded to 1."""
    small = np.exp(-np.abs(x))
    return np.asarray(small / (1 + small) ** 2)


def _normal(x: Array) -> Array:
    """The standard normal distribution's cumulative probability."""
    return np.asarray(0.5 + _erf(x / math.sqrt(2)) / 2)


def _tanh(x: Array) -> Array:
    return np.asarray(np.tanh(SLOPE * (x + CUBE * x**3)))


FUNCTIONS: dict[str, Function] = {
    "relu": lambda x, _: np.maximum(x, 0),
    "leaky_relu": lambda x, slope: np.where(x > 0, x, slope * x),
    "elu": lambda x, factor: np.where(x > 0, x, factor * np.expm1(np.minimum(x, 0))),
    "gelu": lambda x, _: x * _normal(x),
    "gelu_tanh": lambda x, _: x * (0.5 + _tanh(x) / 2),
    "silu": lambda x, _: x * _sigmoid(x),
    "tanh": lambda x, _: np.tanh(x),
    "sigmoid": lambda x, _: _sigmoid(x),
}
# Derivatives as functions of the value after the activation.
AFTER: dict[str, Function] = {
    "relu": lambda y, _: y > 0,
    "leaky_relu": lambda y, slope: np.where(y > 0, 1, slope),
}
# The others are functions of the value before it: after it, two of these can be equal, or are when they are rounded.
BEFORE: dict[str, Function] = {
    "elu": lambda x, factor: np.where(x > 0, 1, factor * np.exp(np.minimum(x, 0))),
    "tanh": lambda x, _: 4 * _bell(2 * x),
    "sigmoid": lambda x, _: _bell(x),
    "gelu": lambda x, _: _normal(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi),
    "gelu_tanh": lambda x, _: 0.5 + _tanh(x) / 2 + x / 2 * (1 - _tanh(x) ** 2) * SLOPE * (1 + 3 * CUBE * x**2),
    "silu": lambda x, _: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
}
