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
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..architectures import Architecture
from ..extras import require
from ..files import replacing
from ..formats import metadata, onnx_builder
from ..formats.onnx_builder import OnnxOptions
from ..formats.onnx_file import PRODUCER
from ..formats.onnx_writer import entries
from ..formats.protobuf import prefix
from ..heads import ACTIVATIONS
from ..network import Network
from ..parameters import Quantized, contiguous
from .weights import INT8, check_floats, integers

if TYPE_CHECKING:
    import onnx

REDUCED = 64  # the largest weight that never overflows
# The operators that are quantized. Others, such as those of a GELU, stay float, and so does what they read.
OPERATORS = ("Conv", "Relu", "MaxPool", "GlobalAveragePool", "Flatten", "Gemm")

PACKAGES = ("onnx", "onnxruntime")

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
) -> "onnx.ModelProto":
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
        Error: ONNX Runtime or the onnx package is missing.
        ModelError: a weight is already quantized.
    """
    require("quantization of activations", "quantize", *PACKAGES)
    import onnx
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    check_floats(network)
    network = network.fold_batch_norm()
    architecture = network.architecture
    built, initializers = onnx_builder.build(network, OnnxOptions(outputs=architecture.values[-1:]))
    model = onnx.ModelProto.FromString(built.model())
    graph, owners = model.graph, {layer.value: layer.name for layer in architecture.layers}
    limit, stored = REDUCED if reduce_range else INT8, {}
    for one in initializers:
        array = contiguous(one.value, np.float32).reshape(one.dims) if isinstance(one.value, np.ndarray) else None
        assert array is not None, one.name
        if one.name.endswith(".weight") and one.name.removesuffix(".weight") not in float_layers:
            stored[one.name] = found = integers(array, limit)
            array = (found.scale * limit).reshape(-1, *[1] * (array.ndim - 1))
        graph.initializer.append(numpy_helper.from_array(array, one.name))
    graph.value_info.extend(_value_infos(graph))
    # A ReLU at the end as well: its quantizer would leave it out, since 8 bits unsigned have no negative values.
    floats = [node for node in graph.node if node.op_type not in OPERATORS or (node.op_type, node.name) == ("Relu", "logits")]
    inputs = {value for node in floats for value in node.input}
    with tempfile.TemporaryDirectory() as folder, _quietly():
        from onnxruntime.quantization.calibrate import save_tensors_data

        cache, output = Path(folder) / "ranges.json", Path(folder) / "quantized.onnx"
        save_tensors_data(_completed(ranges, architecture), cache)
        quantize(
            model, output, None, quant_format=QuantFormat.QDQ if method == "qdq" else QuantFormat.QOperator, per_channel=True,
            reduce_range=reduce_range, activation_type=QuantType.QUInt8 if activations == "u8" else QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=[node.name for node in graph.node if node in floats or owners.get(node.name) in float_layers],
            calibrate_method=ranges.calibration_method, calibration_cache_path=cache,
        )  # fmt: skip
        model = onnx.load(output)
    _insert(model, stored)
    for layer in architecture.layers:
        if layer.operation == "linear" and layer.value in ("logits", *inputs):
            _keep_floats(model.graph, layer.value)
    return model


def write(model: "onnx.ModelProto", network: Network, path: Path) -> None:
    """Write a model from `quantize_static` with the network's metadata, whole or not at all."""
    import onnx

    head = onnx.ModelProto(ir_version=model.ir_version, producer_name=PRODUCER, producer_version=version("vgg"))
    head.opset_import.extend(model.opset_import)
    graph = model.graph.SerializeToString(deterministic=True)
    # In the order of vgg's other files, by which the reader recognises a truncated one.
    parts = head.SerializeToString(deterministic=True), prefix(7, len(graph)), graph, entries(metadata.describe(network))
    with replacing(path) as file:
        file.writelines(parts)


def _value_infos(graph: "onnx.GraphProto") -> Iterator["onnx.ValueInfoProto"]:
    """The type of each layer output, which can't be inferred from the stand-in's shapes."""
    from onnx import TensorProto, helper

    for node in graph.node[:-1]:
        yield helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, None)


def _completed(ranges: Any, architecture: Architecture) -> Any:
    """The ranges with those of outputs that no engine returns: the input of an activation has the range of its output.

    For a ReLU that is exact; the inputs of others stay float.
    """
    found, layers = dict(ranges.items()), architecture.layers
    for layer, following in pairwise(layers):
        if following.operation in ACTIVATIONS:
            found[layer.value] = found[following.value]
        elif following.operation == "flatten":
            found[following.value] = found[layer.value]
    return type(ranges)(ranges.calibration_method, found)


def _insert(model: "onnx.ModelProto", stored: dict[str, Quantized]) -> None:
    """Replace the stand-ins by the integers."""
    for one in model.graph.initializer:
        if found := stored.get(one.name.removesuffix("_quantized")):
            del one.dims[:]
            rows = found.values.reshape(len(found.values), -1) if one.name.startswith("fc") else found.values
            one.dims.extend(rows.shape)
            one.raw_data = np.ascontiguousarray(rows).tobytes()
    del model.graph.value_info[:]


def _keep_floats(graph: "onnx.GraphProto", value: str) -> None:
    """Keep a linear layer's output in floats; of logits in 8 bits, those of different classes would be equal."""
    producers = {node.output[0]: node for node in graph.node}
    last = producers[value]
    if last.op_type != "DequantizeLinear":  # a float operator, whose output another one would read in 8 bits
        pairs = [node for node in graph.node if node.op_type == "QuantizeLinear" and value in node.input]
        pairs += [node for node in graph.node if pairs and pairs[0].output[0] in node.input]
        for node in graph.node:
            node.input[:] = [value if pairs and one == pairs[1].output[0] else one for one in node.input]
    else:
        before, pairs = producers[last.input[0]], [last]
        if before.op_type == "QuantizeLinear":
            producers[before.input[0]].output[0] = value
            pairs.append(before)
        else:  # an integer operator, which returns floats if it has no output scale
            before.output[0] = value
            del before.input[-2:]
    for node in pairs:
        graph.node.remove(node)
    for one in [one for one in graph.initializer if pairs and one.name in (f"{value}_scale", f"{value}_zero_point")]:
        graph.initializer.remove(one)


@contextmanager
def _quietly() -> Iterator[None]:
    """Suppress the quantizer's advice to preprocess the graph, which needs none."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)
