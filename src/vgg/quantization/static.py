"""Weights and activations as integers, by `onnxruntime.quantization`, in either of its formats.

Its quantizer holds several copies of a model's floats in memory. So it gets a stand-in: the same graph, whose weights have
one number a row, the one that makes it find the scale that `integers` found; afterwards the integers take their places.

On processors without VNNI, products of unsigned 8-bit activations and signed 8-bit weights are added in pairs in 16 bits
(vpmaddubsw), which overflow where both are large: 2 * 255 * 127 is more than 32767. Weights therefore go from -64 to 64:
2 * 255 * 64 = 32640 never overflows, on any processor and in any runtime. Signed activations overflow as well, since runtimes
make them unsigned first, and are less accurate; docs/quantization.md has the measurements.
"""

import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..files import replacing
from ..formats import metadata, onnx_builder
from ..formats.onnx_builder import OnnxOptions
from ..network import Network
from ..parameters import Quantized, contiguous
from .weights import INT8, check_floats, integers

REDUCED = 64  # the largest weight that can't overflow

StaticFormat = Literal["qdq", "qoperator"]
Activations = Literal["u8", "s8"]


def quantize_static(
    network: Network,
    ranges: Any,
    format: StaticFormat = "qdq",
    *,
    activations: Activations = "u8",
    reduced: bool = True,
    floats: Collection[str] = (),
) -> onnx.ModelProto:
    """The ONNX model of a network whose weights, per output channel, and activations, per value, are 8-bit integers.

    Args:
        network: in floats; batch normalisation is folded.
        ranges: of its values, from `calibration.ranges`.
        format: `qdq`, QuantizeLinear and DequantizeLinear around float operators, which runtimes fuse; `qoperator`,
            operators of integers, some of which only ONNX Runtime has.
        activations: `u8`, or `s8`.
        reduced: weights from -64 to 64, instead of -127 to 127.
        floats: layers that stay in float32.

    Raises:
        ModelError: a weight is quantized already.
    """
    from onnxruntime.quantization import QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    check_floats(network)
    network = network.fold_batch_norm()
    model, initializers = onnx_builder.build(network, OnnxOptions())
    graph = model.graph
    limit, stored = REDUCED if reduced else INT8, {}
    for one in initializers:
        array = contiguous(one.value, np.float32).reshape(one.dims) if isinstance(one.value, np.ndarray) else None
        assert array is not None, one.name
        if one.name.endswith(".weight") and one.name.removesuffix(".weight") not in floats:
            stored[one.name] = found = integers(array, limit)
            array = (found.scale * limit).reshape(-1, *[1] * (array.ndim - 1))
        graph.initializer.append(numpy_helper.from_array(array, one.name))
    graph.value_info.extend(_value_infos(graph))
    with tempfile.TemporaryDirectory() as folder, _quietly():
        from onnxruntime.quantization.calibrate import save_tensors_data

        cache, made = Path(folder) / "ranges.json", Path(folder) / "made.onnx"
        save_tensors_data(_completed(ranges, graph), cache)
        quantize(
            model, made, None, quant_format=QuantFormat.QDQ if format == "qdq" else QuantFormat.QOperator, per_channel=True,
            reduce_range=reduced, activation_type=QuantType.QUInt8 if activations == "u8" else QuantType.QInt8,
            weight_type=QuantType.QInt8, nodes_to_exclude=[node.name for node in graph.node if _layer(node.name) in floats],
            calibrate_method=ranges.calibration_method, calibration_cache_path=cache,
        )  # fmt: skip
        model = onnx.load(made)
    _put(model, stored)
    _leave_logits(model.graph)
    return model


def write(model: onnx.ModelProto, network: Network, path: Path) -> None:
    """Write what `quantize_static` made of a network, with the network's description, whole or not at all."""
    del model.metadata_props[:]
    helper.set_model_props(model, dict(sorted(metadata.describe(network).items())))
    with replacing(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def _value_infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """The type of each value between input and output, which the stand-in's shapes don't tell."""
    for node in graph.node[:-1]:
        yield helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)


def _completed(ranges: Any, graph: onnx.GraphProto) -> Any:
    """The ranges with those of values that no engine gives: before a ReLU it is enough to know the range behind it."""
    found = dict(ranges.items())
    for node in graph.node:
        if node.op_type == "Relu":
            found[node.input[0]] = found[node.output[0]]
        elif node.op_type == "Flatten":
            found[node.output[0]] = found[node.input[0]]
    return type(ranges)(ranges.calibration_method, found)


def _put(model: onnx.ModelProto, stored: dict[str, Quantized]) -> None:
    """Put the integers in the stand-ins' places."""
    for one in model.graph.initializer:
        if found := stored.get(one.name.removesuffix("_quantized")):
            del one.dims[:]
            rows = found.values.reshape(len(found.values), -1) if one.name.startswith("fc") else found.values
            one.dims.extend(rows.shape)
            one.raw_data = np.ascontiguousarray(rows).tobytes()
    del model.graph.value_info[:]


def _leave_logits(graph: onnx.GraphProto) -> None:
    """Give the logits as the last layer's sums have them; rounded to 8 bits, they would make classes equal."""
    made = {node.output[0]: node for node in graph.node}
    last = made["logits"]
    if last.op_type != "DequantizeLinear":
        return
    before = made[last.input[0]]
    if before.op_type == "QuantizeLinear":
        made[before.input[0]].output[0] = "logits"
        graph.node.remove(before)
    else:  # an operator of integers, which gives floats when no scale is asked of it
        before.output[0] = "logits"
        del before.input[-2:]
    graph.node.remove(last)
    for one in [one for one in graph.initializer if one.name in ("logits_scale", "logits_zero_point")]:
        graph.initializer.remove(one)


def _layer(node: str) -> str:
    """The layer that an operator belongs to, by its name."""
    return "fc8" if node == "logits" else node.removesuffix(".raw")


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what the quantizer says of preparations that this graph doesn't need."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)
