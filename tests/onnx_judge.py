"""An independent judge of ONNX files: each operator in NumPy, as onnx/docs/Changelog.md defines it at the file's own opset.

ONNX Runtime promises nothing below opset 7, and onnx.reference lacks the old operators. This one knows VGG's, refuses any
attribute or input that the operator does not have at that opset, and leaves nothing to a default that would be training.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

Array = np.ndarray


def run(path: str | Path, inputs: Mapping[str, Array]) -> list[Array]:
    """What a file computes, in float64 except where it says otherwise; all its outputs, in order."""
    model = onnx.load(path)
    opset = next(one.version for one in model.opset_import if one.domain in ("", "ai.onnx"))
    initializers = {one.name: numpy_helper.to_array(one) for one in model.graph.initializer}
    ports = [port.name for port in model.graph.input]
    if model.ir_version < 4:
        assert set(initializers) <= set(ports), "IR 3 knows no initializer that is not an input"
    values: dict[str, Array] = {"": None, **initializers, **inputs}
    assert set(ports) <= set(values), "an input is missing"
    for node in model.graph.node:
        attributes = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        schema = onnx.defs.get_schema(node.op_type, opset, node.domain)
        assert set(attributes) <= set(schema.attributes), (node.op_type, schema.since_version, set(attributes))
        required = {name for name, one in schema.attributes.items() if one.required}
        assert required <= set(attributes), (node.op_type, required)
        assert schema.min_input <= len(node.input) <= schema.max_input, node.op_type
        operator = OPERATORS[node.op_type]
        values[node.output[0]] = operator(opset, attributes, *[values[name] for name in node.input])
    return [values[port.name] for port in model.graph.output]


def conv(opset: int, attributes: dict, x: Array, weight: Array, bias: Array | None = None) -> Array:
    top, left, bottom, right = attributes.get("pads", [0, 0, 0, 0])
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    assert attributes.get("kernel_shape", list(weight.shape[2:])) == list(weight.shape[2:])
    assert attributes.get("strides", [1, 1]) == attributes.get("dilations", [1, 1]) == [1, 1]
    assert attributes.get("group", 1) == 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], axis=(2, 3))
    result = np.tensordot(windows, weight, ((1, 4, 5), (1, 2, 3))).transpose(0, 3, 1, 2)
    return result if bias is None else result + bias[:, None, None]


def batch_normalization(opset: int, attributes: dict, x: Array, *parameters: Array) -> Array:
    if opset < 7:
        assert attributes.get("is_test") == 1, "without is_test, this is training"
    assert attributes.get("spatial", 1) == 1
    assert attributes.get("training_mode", 0) == 0
    scale, bias, mean, variance = (value[:, None, None] for value in parameters)
    return (x - mean) / np.sqrt(variance + np.float32(attributes.get("epsilon", 1e-5))) * scale + bias


def lrn(opset: int, attributes: dict, x: Array) -> Array:
    size, channels = attributes["size"], x.shape[1]
    below, above = (size - 1) // 2, -(-(size - 1) // 2)
    squares = np.stack(
        [np.sum(x[:, max(0, c - below) : min(channels, c + above + 1)].astype(np.float64) ** 2, 1) for c in range(channels)], 1
    )
    alpha, beta, bias = attributes.get("alpha", 1e-4), attributes.get("beta", 0.75), attributes.get("bias", 1.0)
    return x / (bias + alpha / size * squares) ** beta


def max_pool(opset: int, attributes: dict, x: Array) -> Array:
    assert attributes["kernel_shape"] == attributes["strides"] == [2, 2]
    assert not any(attributes.get("pads", []))
    height, width = (side // 2 for side in x.shape[2:])
    return x[:, :, : height * 2, : width * 2].reshape(*x.shape[:2], height, 2, width, 2).max((3, 5))


def gemm(opset: int, attributes: dict, a: Array, b: Array, c: Array | None = None) -> Array:
    a = a.T if attributes.get("transA") else a
    b = b.T if attributes.get("transB") else b
    assert a.ndim == b.ndim == 2
    result = attributes.get("alpha", 1.0) * (a @ b)
    if opset < 7:
        assert c.shape == result.shape or attributes.get("broadcast") == 1, "below opset 7, C is not broadcast by itself"
    return result if c is None else result + attributes.get("beta", 1.0) * c


def softmax(opset: int, attributes: dict, x: Array) -> Array:
    if opset < 13:
        axis = attributes.get("axis", 1)
        rows = x.reshape(int(np.prod(x.shape[:axis])), -1)
        return softmax(13, {"axis": 1}, rows).reshape(x.shape)
    axis = attributes.get("axis", -1)
    shifted = np.exp(x - x.max(axis, keepdims=True))
    return shifted / shifted.sum(axis, keepdims=True)


def cast(opset: int, attributes: dict, x: Array) -> Array:
    to = attributes["to"]
    if opset < 6:
        assert isinstance(to, bytes), "below opset 6, the type is a word"
        to = onnx.TensorProto.DataType.Value(to.decode())
    return x.astype(helper.tensor_dtype_to_np_dtype(to))


def reshape(opset: int, attributes: dict, x: Array, shape: Array | None = None) -> Array:
    wanted = attributes["shape"] if opset < 5 else shape.tolist()
    return x.reshape([x.shape[place] if side == 0 else side for place, side in enumerate(wanted)])


def dequantize_linear(opset: int, attributes: dict, x: Array, scale: Array, zero_point: Array | None = None) -> Array:
    axis, block = attributes.get("axis", 1), attributes.get("block_size", 0)
    assert opset >= (21 if block else 13 if scale.ndim else 10)

    def spread(value: Array) -> Array:
        if block:
            return np.repeat(value, block, axis).take(np.arange(x.shape[axis]), axis)
        return value.reshape([-1 if place == axis else 1 for place in range(x.ndim)]) if value.ndim else value

    zero = 0 if zero_point is None else spread(zero_point).astype(np.float32)
    return (x.astype(np.float32) - zero) * spread(scale)


OPERATORS: dict[str, Callable[..., Array]] = {
    "BatchNormalization": batch_normalization,
    "Cast": cast,
    "Conv": conv,
    "DequantizeLinear": dequantize_linear,
    "Dropout": lambda opset, attributes, x: x if opset >= 7 or attributes.get("is_test") else None,
    "Flatten": lambda opset, attributes, x: x.reshape(int(np.prod(x.shape[: attributes.get("axis", 1)])), -1),
    "Gemm": gemm,
    "GlobalAveragePool": lambda opset, attributes, x: x.mean((2, 3), keepdims=True),
    "LRN": lrn,
    "MaxPool": max_pool,
    "Relu": lambda opset, attributes, x: np.maximum(x, 0),
    "Reshape": reshape,
    "Softmax": softmax,
    "Transpose": lambda opset, attributes, x: x.transpose(attributes["perm"]),
}


def error(path: str | Path, data: Array, expected: Array) -> float:
    """The largest error of a file's first output, as a share of the largest value, after onnx's checker has passed it.

    ONNX Runtime judges from opset 7 on, where it promises something; `run` does below 13, and where ONNX Runtime is behind.
    """
    import onnxruntime

    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path, load_external_data=False)
    opset = model.opset_import[0].version
    name = next(port.name for port in model.graph.input if port.name not in {one.name for one in model.graph.initializer})
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    found = [run(path, {name: data})[0]] if opset < 13 or quantized else []
    if opset >= 7 and not (quantized and opset > 25):  # ONNX Runtime 1.32 runs DequantizeLinear of opset 25, not yet of 28
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        found.append(session.run(None, {name: data})[0])
    return max(float(np.abs(one - expected).max() / np.abs(expected).max()) for one in found)
