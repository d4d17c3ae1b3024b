"""The head of a network in NumPy: the gradient of its logits, and its logits at each position of a map.

Both are for explanations. The gradient is computed from the layer outputs that an engine returned, so a ReLU's zeros need no
weights; a weight is read a few rows at a time, as it is stored.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .architectures import NORM_ROLES, Architecture, Layer
from .arrays import Array
from .heads import ACTIVATIONS
from .network import Network
from .parameters import BLOCK_BYTES, LowRank, Parameter, blocks, expanded

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


def needed(architecture: Architecture) -> tuple[str, ...]:
    """The layer outputs from which `pool5_gradient` computes: those of the head, and pool5 if it is an input."""
    values = architecture.values
    recomputed = any(layer.operation in BEFORE for layer in layers(architecture))
    return values[values.index("pool5") + (not recomputed) :]


def layers(architecture: Architecture) -> tuple[Layer, ...]:
    """The last pooling of the trunk, and the layers of the head."""
    values = [layer.value for layer in architecture.layers]
    return architecture.layers[values.index("pool5") :]


def pool5_gradient(network: Network, values: Mapping[str, Array], signal: Array) -> Array:
    """The gradient of sums of logits at pool5, summed over positions.

    Args:
        network: with a head.
        values: the outputs `needed` for one image, without the batch axis.
        signal: the factor of each logit in each sum, float32 [sums, units].

    Returns:
        float32 [sums, channels].
    """
    head = layers(network.architecture)
    for index in range(len(head) - 1, 0, -1):
        layer = head[index]
        if layer.operation == "linear":
            active = np.flatnonzero(signal.any(0))  # the other rows of the weight are not read
            signal = _product(signal[:, active], network.parameters[f"{layer.name}.weight"], active)
        elif layer.operation == "batch_norm":
            signal = signal * _normalisation(network, layer)[0]
        elif layer.operation in AFTER:
            signal = signal * AFTER[layer.operation](values[layer.value], layer.number or 0.0).astype(np.float32)
        elif layer.operation in BEFORE:
            value = _before(network, values, head[: index + 1]).astype(np.float64)
            signal = signal * BEFORE[layer.operation](value, layer.number or 0.0).astype(np.float32)
    # A mean divides its gradient among its positions, and a maximum passes it to one of them: neither changes their sum.
    channels = next(layer for layer in reversed(network.architecture.layers) if layer.operation == "convolution")
    return np.asarray(signal.reshape(len(signal), channels.parameters["weight"][0], -1).sum(-1))


def at_positions(network: Network, pool5: Array) -> Array:
    """The logits of a head with global average pooling at each position, as if the whole map were equal to it.

    Args:
        network: with such a head.
        pool5: float32 [channels, rows, columns].

    Returns:
        float [units, rows, columns].
    """
    value = pool5.reshape(len(pool5), -1)
    for layer in layers(network.architecture)[2:]:
        value = _applied(network, layer, value)
    return value.reshape(-1, *pool5.shape[1:])


def _before(network: Network, values: Mapping[str, Array], head: Sequence[Layer]) -> Array:
    """The input of the last of these layers, [units], computed from the last layer output before it."""
    start = max(index for index, layer in enumerate(head[:-1]) if layer.value in values)
    value = values[head[start].value].reshape(-1, 1)
    for layer in head[start + 1 : -1]:
        value = _applied(network, layer, value)
    return value[:, 0]


def _applied(network: Network, layer: Layer, value: Array) -> Array:
    """The output of a layer of the head for values [inputs, positions]."""
    if layer.operation == "linear":
        bias = expanded(network.parameters[f"{layer.name}.bias"]).astype(np.float32)
        return _times(network.parameters[f"{layer.name}.weight"], value) + bias[:, None]
    if layer.operation == "batch_norm":
        factor, offset = _normalisation(network, layer)
        return value * factor[:, None] + offset[:, None]
    return FUNCTIONS[layer.operation](value, layer.number or 0.0) if layer.operation in ACTIVATIONS else value


def _normalisation(network: Network, layer: Layer) -> tuple[Array, Array]:
    """A batch normalisation as a factor and an offset, float32 [units]."""
    scale, bias, mean, variance = (
        expanded(network.parameters[f"{layer.name}.{role}"]).astype(np.float64) for role in NORM_ROLES
    )
    factor = scale / np.sqrt(variance + network.architecture.epsilon)
    return factor.astype(np.float32), (bias - mean * factor).astype(np.float32)


def _times(weight: Parameter, value: Array) -> Array:
    """A weight times values [inputs, positions]: [units, positions]."""
    if isinstance(weight, LowRank):
        return _times(weight.left, _times(weight.right, value))
    return np.concatenate([block.reshape(len(block), -1) @ value for block in blocks(weight, np.float32)])


def _product(signal: Array, weight: Parameter, rows: Array) -> Array:
    """signal [sums, rows] times these rows of a weight: [sums, inputs]. A few rows are in memory at a time."""
    if isinstance(weight, LowRank):
        return _product(_product(signal, weight.left, rows), weight.right, np.arange(weight.right.shape[0]))
    if isinstance(weight, np.ndarray) and weight.dtype == np.float32 and not weight.flags.c_contiguous:
        order = np.argsort(weight.strides)[::-1]
        lying = weight.transpose(order)
        if lying.flags.c_contiguous and order[-1] == 0:  # as in Keras's files: one column per unit; whole rows are read
            whole = np.zeros((weight.shape[0], len(signal)), np.float32)
            whole[rows] = signal.T
            found = (lying.reshape(-1, len(whole)) @ whole).reshape(*lying.shape[:-1], -1)
            return found.transpose(-1, *np.argsort(order[:-1])).reshape(len(signal), -1)
    inputs = math.prod(weight.shape[1:])
    total = np.zeros((len(signal), inputs), np.float32)
    step = max(1, BLOCK_BYTES // (4 * inputs))
    for start in range(0, len(rows), step):
        # Not `@`: BLAS would start threads beside the engine's, and copy rows that are read once.
        total += np.einsum("kr,ri->ki", signal[:, start : start + step], _rows(weight, rows[start : start + step]))
    return total


def _rows(weight: Parameter, rows: Array) -> Array:
    """Some rows of a weight as a matrix, float32 [rows, inputs]."""
    chosen = slice(rows[0], rows[-1] + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows  # a slice copies nothing
    part = weight[chosen] if isinstance(weight, np.ndarray) else weight.take(chosen)
    return part.reshape(len(rows), -1).astype(np.float32, copy=False)
