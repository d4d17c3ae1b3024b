"""Networks with 8-bit activations in NumPy: exact sums of integers, and one rounding, half to even, of each in float32.

The arithmetic is that of ONNX's QLinearConv, written for a network and the quantizations of its layer outputs.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from vgg.architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE
from vgg.parameters import Quantized, expanded

ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}


def steps(quotient, form):
    """Values divided by a scale as integers less their zero point, in the range of a quantization."""
    low = -128 if form.dtype == "int8" else 0
    return (np.rint(quotient) + form.zero_point).clip(low, low + 255) - form.zero_point


def windows(x, kernel):
    """[batch, channels, height, width] as [batch, height, width, channels * kernel * kernel]; the border is 0."""
    padded = np.pad(x, ((0, 0), (0, 0), *[(kernel // 2, kernel // 2)] * 2))
    seen = sliding_window_view(padded, (kernel, kernel), (2, 3)).transpose(0, 2, 3, 1, 4, 5)
    return seen.reshape(*seen.shape[:3], -1)


def normalised(x):
    """ONNX's LRN with the numbers of A-LRN."""
    squares = np.pad(x.astype(np.float64) ** 2, ((0, 0), (LRN_SIZE // 2, LRN_SIZE // 2), (0, 0), (0, 0)))
    sums = sliding_window_view(squares, LRN_SIZE, 1).sum(-1)
    return np.float32(x / (LRN_K + LRN_ALPHA / LRN_SIZE * sums) ** LRN_BETA)


def run(graph, batch):
    """Each layer output of a `QuantizedGraph`, float32, by name."""
    network, found = graph.network, {}
    value, form = batch, None  # float32; or integers less their zero point, with their quantization
    layers = [layer for layer in network.architecture.layers if layer.operation not in ("dropout", "flatten")]

    def floats():
        return np.float32(value) if form is None else np.float32(value) * np.float32(form.scale)

    def rounded(name):
        nonlocal value, form
        for one in graph.activations.get(name, ()):
            if one != form:
                value, form = steps(floats() / np.float32(one.scale), one), one

    rounded("data")
    for layer, after in zip(layers, [*layers[1:], None], strict=True):
        if layer.operation == "max_pool":
            value = value.reshape(*value.shape[:2], value.shape[2] // 2, 2, value.shape[3] // 2, 2).max((3, 5))
        elif layer.operation == "global_max_pool":
            value = value.max((2, 3))
        elif layer.operation == "average_pool":
            value, form = floats().mean((2, 3), dtype=np.float64), None
        elif layer.operation == "lrn":
            value, form = normalised(floats()), None
        if layer.operation in ("max_pool", "global_max_pool", "average_pool", "lrn"):
            rounded(layer.value)
            found[layer.value] = floats()
        if layer.operation not in ("convolution", "linear"):
            continue
        activation = after.operation if after and after.operation in ACTIVATIONS else ""
        name = after.value if activation else layer.value
        weight, bias = (network.parameters[f"{layer.name}.{role}"] for role in ("weight", "bias"))
        value = value.reshape(len(value), -1) if layer.operation == "linear" else windows(value, weight.shape[-1])
        if form is not None and isinstance(weight, Quantized) and weight.values.dtype.name in ("int8", "uint8"):
            zero = 0 if weight.zero_point is None else weight.zero_point.astype(np.float64)[:, None]
            scale = np.float32(form.scale) * weight.scale
            matrix = weight.values.reshape(len(weight.values), -1).astype(np.float64) - zero
            value = value @ matrix.T + np.rint(bias / scale)  # exact: float64 holds these integers
            form = next(iter(graph.activations.get(name, ())), None)
            if form and activation in ("", "relu"):
                value = np.float32(value) * (scale / np.float32(form.scale))
                value = steps(np.maximum(value, 0) if activation else value, form)
            else:
                value, form = np.float32(value) * scale, None
        else:
            matrix = expanded(weight).reshape(weight.shape[0], -1)
            value, form = floats().astype(np.float64) @ matrix.T + bias, None
        if activation and form is None:
            value = ACTIVATIONS[activation](value)
        value = value if layer.operation == "linear" else value.transpose(0, 3, 1, 2)
        rounded(name)
        found[name] = floats()
    return found
