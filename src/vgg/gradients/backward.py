"""The backward pass of a network in NumPy, from the layer outputs that an engine returned.

A ReLU's zeros need no weights, so these are skipped, and a linear layer's weight is read a few rows at a time, as it is stored.
"""

from collections.abc import Mapping

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..network import Network
from . import maps
from .functions import AFTER, BEFORE
from .linear import before, normalisation, product

INPUT = "data"  # the name of a network's input


def needed(architecture: Architecture, start: str = INPUT) -> tuple[str, ...]:
    """The layer outputs from which `gradient` computes: `start`, unless it is the input, and all after it.

    Raises ModelError if the network has no such layer output.
    """
    values = architecture.values
    if start == INPUT:
        return values
    architecture.check_values([start])
    return values[values.index(start) :]


def gradient(network: Network, values: Mapping[str, Array], signal: Array, start: str = INPUT) -> Array:
    """The gradient of sums of logits at a layer output, or at the input.

    Args:
        network: with a head.
        values: the outputs `needed` for one image, without the batch axis.
        signal: the factor of each logit in each sum, float32 [sums, units].
        start: name of a layer output that is a map, `conv1_1` … `pool5`, or `data` for the input.

    Returns:
        float32 [sums, channels, rows, columns].

    Raises:
        ModelError: the network has no such layer output.
    """
    if start != INPUT:
        network.check_values([start])
    layers = network.architecture.layers
    first = next((place for place, layer in enumerate(layers) if layer.value == start), -1)
    for place in range(len(layers) - 1, first, -1):
        layer, number = layers[place], layers[place].number or 0.0
        if layer.operation == "linear":
            active = np.flatnonzero(signal.any(0))  # the other rows of the weight are not read
            signal = product(signal[:, active], network.parameters[f"{layer.name}.weight"], active)
        elif layer.operation == "convolution":
            signal = maps.convolution(signal, network.parameters[f"{layer.name}.weight"])
        elif layer.operation == "batch_norm":
            factor, _ = normalisation(network, layer)
            signal = signal * factor.reshape(-1, *[1] * (signal.ndim - 2))
        elif layer.operation in AFTER:
            signal = signal * AFTER[layer.operation](values[layer.value], number).astype(np.float32)
        elif layer.operation in BEFORE:
            value = before(network, values, layers[: place + 1]).astype(np.float64)
            signal = signal * BEFORE[layer.operation](value, number).astype(np.float32)
        elif layer.operation == "max_pool":
            value = values[layers[place - 1].value]
            signal = maps.max_pool(signal.reshape(len(signal), len(value), *(side // 2 for side in value.shape[1:])), value)
        elif layer.operation == "global_max_pool":
            signal = maps.global_max_pool(signal, values[layers[place - 1].value])
        elif layer.operation in ("average_pool", "adaptive_pool"):
            signal = maps.average_pool(signal, values[layers[place - 1].value], int(number) or 1)
        elif layer.operation == "lrn":
            signal = maps.lrn(signal, values[layers[place - 1].value])
    return signal.reshape(len(signal), *values[start].shape) if start in values else signal
