"""Static quantization: integer weights and activations, by `onnxruntime.quantization`, in either of its formats.

Its quantizer holds several float copies of a model in memory. It is therefore given a stand-in: the same graph, whose weights
have one value per row, from which it computes the scale that `integers` found. Afterwards the integers replace the stand-ins.

On processors without VNNI, products of unsigned 8-bit activations and signed 8-bit weights are added in pairs in 16 bits
(vpmaddubsw), which overflow if both are large: 2 * 255 * 127 is more than 32767. Weights are therefore limited to -64..64:
2 * 255 * 64 = 32640 never overflows, on any processor and in any runtime. Signed activations overflow as well, since runtimes
convert them to unsigned ones, and are less accurate; docs/quantization.md has the measurements.
"""

import logging
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..files import replacing
from ..formats import metadata, onnx_builder
from ..formats.onnx_builder import OnnxOptions
from ..formats.onnx_file import PRODUCER
from ..formats.onnx_writer import entries
from ..formats.protobuf import prefix
from ..network import Network
from ..parameters import Quantized, contiguous
from .weights import INT8, check_floats, integers

REDUCED = 64  # the largest weight that never overflows

StaticMethod = Literal["qdq", "qoperator"]
Activations = Literal["u8", "s8"]


def quantize_static(
    network: Network,
    ranges: Any,
    method: StaticMethod = "qdq",
    *,
    activations: Activations = "u8",
    reduce_range: bool = True,
    float_layers: Collection[str] = (),
) -> onnx.ModelProto:
    """The ONNX model of a network with 8-bit weights, one scale per output channel, and activations, one scale per output.

    Args:
        network: with float parameters; batch normalisation is folded.
        ranges: of its layer outputs, from `calibration.ranges`.
        method: `qdq`, QuantizeLinear and DequantizeLinear around float operators, which runtimes fuse; `qoperator`, integer
            operators, some of which only ONNX Runtime supports.
        activations: `u8` (unsigned) or `s8` (signed).
        reduce_range: weights from -64 to 64, instead of -127 to 127.
        float_layers: layers that stay float32.

    Raises:
        ModelError: a weight is already quantized.
    """
    from onnxruntime.quantization import QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    check_floats(network)
    network = network.fold_batch_norm()
    model, initializers = onnx_builder.build(network, OnnxOptions())
    graph = model.graph
    limit, stored = REDUCED if reduce_range else INT8, {}
    for one in initializers:
        array = contiguous(one.value, np.float32).reshape(one.dims) if isinstance(one.value, np.ndarray) else None
        assert array is not None, one.name
        if one.name.endswith(".weight") and one.name.removesuffix(".weight") not in float_layers:
            stored[one.name] = found = integers(array, limit)
            array = (found.scale * limit).reshape(-1, *[1] * (array.ndim - 1))
        graph.initializer.append(numpy_helper.from_array(array, one.name))
    graph.value_info.extend(_value_infos(graph))
    with tempfile.TemporaryDirectory() as folder, _quietly():
        from onnxruntime.quantization.calibrate import save_tensors_data

        cache, output = Path(folder) / "ranges.json", Path(folder) / "quantized.onnx"
        save_tensors_data(_completed(ranges, graph), cache)
        quantize(
            model, output, None, quant_format=QuantFormat.QDQ if method == "qdq" else QuantFormat.QOperator, per_channel=True,
            reduce_range=reduce_range, activation_type=QuantType.QUInt8 if activations == "u8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in graph.node if _layer(node.name) in float_layers],
            calibrate_method=ranges.calibration_method, calibration_cache_path=cache,
        )  # fmt: skip
        model = onnx.load(output)
    _insert(model, stored)
    _keep_logits(model.graph)
    return model


def write(model: onnx.ModelProto, network: Network, path: Path) -> None:
    """Write a model from `quantize_static` with the network's metadata, whole or not at all."""
    head = onnx.ModelProto(ir_version=model.ir_version, producer_name=PRODUCER, producer_version=version("vgg"))
    head.opset_import.extend(model.opset_import)
    graph = model.graph.SerializeToString(deterministic=True)
    # In the order of vgg's other files, by which the reader recognises a truncated one.
    parts = head.SerializeToString(deterministic=True), prefix(7, len(graph)), graph, entries(metadata.describe(network))
    with replacing(path) as file:
        file.writelines(parts)


def _value_infos(graph: onnx.GraphProto) -> Iterator[onnx.ValueInfoProto]:
    """The type of each layer output, which can't be inferred from the stand-in's shapes."""
    for node in graph.node[:-1]:
        yield helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)


def _completed(ranges: Any, graph: onnx.GraphProto) -> Any:
    """The ranges with those of outputs that no engine returns: the input of a ReLU has the range of its output."""
    found = dict(ranges.items())
    for node in graph.node:
        if node.op_type == "Relu":
            found[node.input[0]] = found[node.output[0]]
        elif node.op_type == "Flatten":
            found[node.output[0]] = found[node.input[0]]
    return type(ranges)(ranges.calibration_method, found)


def _insert(model: onnx.ModelProto, stored: dict[str, Quantized]) -> None:
    """Replace the stand-ins by the integers."""
    for one in model.graph.initializer:
        if found := stored.get(one.name.removesuffix("_quantized")):
            del one.dims[:]
            rows = found.values.reshape(len(found.values), -1) if one.name.startswith("fc") else found.values
            one.dims.extend(rows.shape)
            one.raw_data = np.ascontiguousarray(rows).tobytes()
    del model.graph.value_info[:]


def _keep_logits(graph: onnx.GraphProto) -> None:
    """Keep the logits in floats; rounded to 8 bits, those of different classes would be equal."""
    producers = {node.output[0]: node for node in graph.node}
    last = producers["logits"]
    if last.op_type != "DequantizeLinear":
        return
    before = producers[last.input[0]]
    if before.op_type == "QuantizeLinear":
        producers[before.input[0]].output[0] = "logits"
        graph.node.remove(before)
    else:  # an integer operator, which returns floats if it has no output scale
        before.output[0] = "logits"
        del before.input[-2:]
    graph.node.remove(last)
    for one in [one for one in graph.initializer if one.name in ("logits_scale", "logits_zero_point")]:
        graph.initializer.remove(one)


def _layer(node: str) -> str:
    """The layer of an operator, by the operator's name."""
    return "fc8" if node == "logits" else node.removesuffix(".raw")


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the quantizer's advice to preprocess the graph, which needs none."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
