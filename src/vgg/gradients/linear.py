"""The linear layers of a head in NumPy: forward at each position of a map, and products with rows of a weight.

A weight is read a few rows at a time, as it is stored.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ..architectures import NORM_ROLES, Layer
from ..arrays import Array
from ..heads import ACTIVATIONS
from ..network import Network
from ..parameters import BLOCK_BYTES, LowRank, Parameter, blocks, expanded
from .functions import FUNCTIONS


def at_positions(network: Network, pool5: Array) -> Array:
    """The logits of a head with global average pooling at each position, as if the whole map were equal to it.

    Args:
        network: with such a head.
        pool5: float32 [channels, rows, columns].

    Returns:
        float [units, rows, columns].
    """
    value, names = pool5.reshape(len(pool5), -1), [layer.value for layer in network.architecture.layers]
    for layer in network.architecture.layers[names.index("flatten") :]:
        value = applied(network, layer, value)
    return value.reshape(-1, *pool5.shape[1:])


def before(network: Network, values: Mapping[str, Array], head: Sequence[Layer]) -> Array:
    """The input of the last of these layers, [units], computed from the last layer output before it."""
    start = max(index for index, layer in enumerate(head[:-1]) if layer.value in values)
    value = values[head[start].value].reshape(-1, 1)
    for layer in head[start + 1 : -1]:
        value = applied(network, layer, value)
    return value[:, 0]


def applied(network: Network, layer: Layer, value: Array) -> Array:
    """The output of a layer of the head for values [inputs, positions]."""
    if layer.operation == "linear":
        bias = expanded(network.parameters[f"{layer.name}.bias"]).astype(np.float32)
        return _times(network.parameters[f"{layer.name}.weight"], value) + bias[:, None]
    if layer.operation == "batch_norm":
        factor, offset = normalisation(network, layer)
        return value * factor[:, None] + offset[:, None]
    return FUNCTIONS[layer.operation](value, layer.number or 0.0) if layer.operation in ACTIVATIONS else value


def normalisation(network: Network, layer: Layer) -> tuple[Array, Array]:
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


def product(signal: Array, weight: Parameter, rows: Array) -> Array:
    """signal [sums, rows] times these rows of a weight: [sums, inputs]. A few rows are in memory at a time."""
    if isinstance(weight, LowRank):
        return product(product(signal, weight.left, rows), weight.right, np.arange(weight.right.shape[0]))
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
