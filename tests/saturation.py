"""A QOperator file computed in NumPy, with exact sums or with those of the instruction vpmaddubsw.

Processors without VNNI multiply bytes with this instruction. It takes unsigned activations a and signed weights w, in pairs of
neighbours in memory, and returns a1 * w1 + a2 * w2 in 16 bits, saturated. Intel's manual, volume 2, PMADDUBSW. Signed
activations are made unsigned first, by adding 128 to them and to their zero point, as ONNX Runtime does to a QDQ file
(QDQS8ToU8Transformer) and oneDNN to its source.
"""

from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from onnx import helper, numpy_helper

Array = np.ndarray


def product(left: Array, right: Array, saturating: bool) -> Array:
    """uint8 [rows, k] times int8 [k, columns], int32 [rows, columns]."""
    if not saturating:
        return (left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64)
    if left.shape[1] % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))
    found = np.zeros((len(left), right.shape[1]), np.int64)
    for k in range(0, left.shape[1], 2):
        pair = left[:, k : k + 2].astype(np.int32) @ right[k : k + 2].astype(np.int32)
        found += pair.clip(-(2**15), 2**15 - 1)
    return found


def run(path: Path, data: Array, saturating: bool) -> Array:
    """The logits of a QOperator file, float32 [batch, classes]."""
    graph = onnx.load(path).graph
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer} | {"data": data}
    for node in graph.node:
        given = [values[name] if name else None for name in node.input]
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        values[node.output[0]] = OPERATORS[node.op_type](given, attributes, saturating)
    return values[graph.output[0].name]


def _quantize(given, attributes, saturating):
    value, scale, zero = given
    limits = np.iinfo(zero.dtype)
    return (np.rint(value / scale) + zero).clip(limits.min, limits.max).astype(zero.dtype)


def _dequantize(given, attributes, saturating):
    value, scale, zero = given
    return (value.astype(np.float32) - zero) * scale


def _scaled(sums, scales, bias, scale, zero):
    return _quantize([(sums + bias) * scales, scale, zero], {}, False)


def _unsigned(x, zero):
    """Activations and their zero point as uint8."""
    return (x, zero) if x.dtype == np.uint8 else (x.view(np.uint8) ^ 128, np.uint8(int(zero) + 128))


def _conv(given, attributes, saturating):
    x, x_scale, x_zero, w, w_scale, w_zero, scale, zero, bias = given
    assert not np.any(w_zero)
    x, x_zero = _unsigned(x, x_zero)
    pad = attributes["pads"][0]
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)), constant_values=x_zero)
    windows = sliding_window_view(padded, w.shape[2:], (2, 3)).transpose(0, 2, 3, 4, 5, 1)  # channels are neighbours
    count, height, width = windows.shape[:3]
    matrix = w.transpose(2, 3, 1, 0).reshape(-1, len(w))
    sums = product(windows.reshape(-1, len(matrix)), matrix, saturating) - int(x_zero) * matrix.sum(0, dtype=np.int64)
    found = _scaled(sums, x_scale * w_scale, bias, scale, zero)
    return found.reshape(count, height, width, -1).transpose(0, 3, 1, 2)


def _gemm(given, attributes, saturating):
    x, x_scale, x_zero, w, w_scale, w_zero, bias, *output = given
    assert attributes["transB"]
    assert not np.any(w_zero)
    x, x_zero = _unsigned(x, x_zero)
    sums = product(x, w.T, saturating) - int(x_zero) * w.sum(1, dtype=np.int64)
    scales = x_scale * w_scale
    return _scaled(sums, scales, bias, *output) if output else ((sums + bias) * scales).astype(np.float32)


def _pool(given, attributes, saturating):
    (x,) = given
    return x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).max((3, 5))


OPERATORS = {
    "QuantizeLinear": _quantize, "DequantizeLinear": _dequantize, "QLinearConv": _conv, "QGemm": _gemm, "MaxPool": _pool,
    "Flatten": lambda given, attributes, saturating: given[0].reshape(len(given[0]), -1),
}  # fmt: skip
