"""ONNX files, written in one stream: the graph by the onnx package, the numbers block by block behind it.

`graph` says what is to be computed and which parameters it needs; `write` makes a file of it; the ONNX Runtime engine
hands both to a session without a file between.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .. import architectures
from ..architectures import Architecture, Layer, Shape
from ..errors import ModelError, Notice
from ..files import replacing
from ..network import Network, Parameter, ParametersHash, Quantized, blocks
from . import metadata
from .onnx_wire import field, prefix

OLDEST, DEFAULT, NEWEST = 7, 17, onnx.defs.onnx_opset_version()
PER_AXIS, BLOCKED = 13, 21  # the opsets in which DequantizeLinear learned scales along an axis, and in groups
ALIGNMENT = 64  # bytes; big tensors begin on such a boundary of the file, where every vector load is aligned
BIG = 4096
LARGEST = 2**31 - 1  # protobuf's limit on a message


@dataclass(frozen=True)
class Initializer:
    """A tensor of the file: `value`, written as `dtype` with the shape `dims`."""

    name: str
    value: Parameter
    dtype: Any
    dims: Shape

    @property
    def nbytes(self) -> int:
        size: int = np.dtype(self.dtype).itemsize
        return math.prod(self.dims) * size

    @property
    def data_type(self) -> int:
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))


def graph(network: Network, opset: int, outputs: Sequence[str]) -> tuple[onnx.GraphProto, list[Initializer]]:
    """The graph that computes `outputs` of a network from `data`, without its initializers, and those it needs.

    Raises:
        ModelError: an output is unknown.
    """
    architecture = network.architecture
    architecture.check_values(outputs)
    wanted = [name for name in architecture.values if name in outputs]
    nodes: list[onnx.NodeProto] = []
    initializers: list[Initializer] = []
    value = "data"
    for layer in architecture.layers:
        inputs = [value]
        for role, shape in layer.parameters.items():
            name = f"{layer.name}.{role}"
            dims = (shape[0], math.prod(shape[1:])) if (layer.operation, role) == ("linear", "weight") else shape
            inputs.append(_parameter(name, network.parameters[name], dims, opset, nodes, initializers))
        nodes.append(_node(architecture, layer, inputs))
        value = layer.value
        if value == wanted[-1]:
            break
    side = architecture.input_size if architecture.head == "fc" else None
    ports = [_port("data", ["batch", 3, side or "height", side or "width"], image=True)]
    made = helper.make_graph(nodes, architecture.name, ports, [_port(name, _shape(architecture, name)) for name in wanted])
    return made, initializers


def write(network: Network, path: Path, opset: int | None = None, outputs: Sequence[str] = ()) -> None:
    """Write a network as an ONNX file, deterministic to the byte; see `Network.write`."""
    opset = DEFAULT if opset is None else opset
    if not OLDEST <= opset <= NEWEST:
        raise ModelError(f"{path}: opset {opset} can't be written: {OLDEST} to {NEWEST} can, with onnx {onnx.__version__}")
    made, initializers = graph(network, opset, ("logits", *outputs))
    expanded = [one.name for one in initializers if isinstance(one.value, Quantized)]
    if expanded:
        warnings.warn(
            Notice(
                f"{path}: {len(expanded)} quantized weights were expanded to float32; opset {PER_AXIS} keeps those of 8 bits "
                f"with scales along an axis, opset {BLOCKED} those in groups"
            ), stacklevel=2,
        )  # fmt: skip
    head, heads = _layout(made, initializers, opset)
    total = ParametersHash()
    with replacing(path) as file:
        file.write(head)
        for one, start in zip(initializers, heads, strict=True):
            file.write(start)
            stored = one.value.values if isinstance(one.value, Quantized) else one.value
            total.begin(one.name, np.broadcast_to(np.zeros((), one.dtype), stored.shape))
            for block in blocks(one.value, one.dtype):
                total.update(block)
                file.write(block.view(np.uint8).data)
        text = {**metadata.describe(network, expanded), **_image(network), metadata.SHA256: total.hexdigest()}
        for key, value in sorted(text.items()):
            file.write(field(14, field(1, key.encode()) + field(2, value.encode())))


def _layout(made: onnx.GraphProto, initializers: list[Initializer], opset: int) -> tuple[bytes, list[bytes]]:
    """The bytes before the first initializer, and those before each one's numbers."""
    body = made.SerializeToString(deterministic=True)
    place, heads = len(body), []
    for one in initializers:
        heads.append(_aligned(one, place))
        place += len(heads[-1]) + one.nbytes
    ir = max(4, helper.find_min_ir_version_for([helper.make_opsetid("", opset)]))
    model = onnx.ModelProto(ir_version=ir, producer_name="vgg", producer_version=_version())
    model.opset_import.append(helper.make_opsetid("", opset))
    if place > LARGEST:
        raise ModelError(f"{made.name} needs {place / 2**30:.1f} GiB; an ONNX file holds at most 2")
    before = prefix(7, place)
    start = model.SerializeToString(deterministic=True)
    # The text before the graph is as long as it must be for the graph to begin on a boundary.
    room = -(len(start) + len(before) + 2) % ALIGNMENT
    model.doc_string = "VGG".ljust(room if room >= 3 else room + ALIGNMENT)
    return model.SerializeToString(deterministic=True) + before + body, heads


def _aligned(one: Initializer, place: int) -> bytes:
    """A tensor's head, which stands at `place`: when the tensor is big, a blank doc_string brings its numbers to a boundary."""
    dims = b"".join(field(1, dim) for dim in one.dims)
    start = dims + field(2, one.data_type) + field(8, one.name.encode())
    for room in range(-1, ALIGNMENT + 2):
        inner = start + (field(12, b" " * room) if room >= 0 else b"") + prefix(9, one.nbytes)
        head = prefix(5, len(inner) + one.nbytes) + inner
        if one.nbytes < BIG or (place + len(head)) % ALIGNMENT == 0:
            return head
    raise AssertionError("some padding always fits")


def _parameter(
    name: str, value: Parameter, dims: Shape, opset: int, nodes: list[onnx.NodeProto], initializers: list[Initializer]
) -> str:
    """Add a parameter's tensors; the name of what a node reads."""
    if not isinstance(value, Quantized) or not _kept(value, dims, opset):
        initializers.append(Initializer(name, value, np.float32, dims))
        return name
    initializers.append(Initializer(name, value.values, value.values.dtype, dims))
    initializers.append(Initializer(f"{name}.scale", value.scale, np.float32, value.scale.shape))
    inputs = [name, f"{name}.scale"]
    if value.zero_point is not None:
        inputs.append(f"{name}.zero_point")
        initializers.append(Initializer(inputs[-1], value.zero_point, value.zero_point.dtype, value.zero_point.shape))
    attributes: dict[str, Any] = {"axis": value.axis, "block_size": value.group} if value.group else {"axis": value.axis}
    nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.float"], f"{name}.float", **attributes))
    return f"{name}.float"


def _kept(value: Quantized, dims: Shape, opset: int) -> bool:
    """Whether DequantizeLinear can say what a quantized parameter says, in this opset and with these dimensions."""
    as_it_is = dims == value.shape or (value.axis == 0 and not value.group)  # scales within a map don't outlive its flattening
    return as_it_is and value.values.dtype.name in ("int8", "uint8") and opset >= (BLOCKED if value.group else PER_AXIS)


def _node(architecture: Architecture, layer: Layer, inputs: list[str]) -> onnx.NodeProto:
    operators: dict[str, tuple[str, dict[str, Any]]] = {
        "convolution": ("Conv", {}),
        "batch_norm": ("BatchNormalization", {"epsilon": architecture.epsilon}),
        "lrn": ("LRN", {
            "size": architectures.LRN_SIZE, "alpha": architectures.LRN_ALPHA,
            "beta": architectures.LRN_BETA, "bias": architectures.LRN_K,
        }),
        "relu": ("Relu", {}),
        "max_pool": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
        "average_pool": ("GlobalAveragePool", {}),
        "flatten": ("Flatten", {"axis": 1}),
        "linear": ("Gemm", {"transB": 1}),
    }  # fmt: skip
    kind, attributes = operators[layer.operation]
    if layer.operation == "convolution":
        kernel = layer.parameters["weight"][2]
        attributes = {"kernel_shape": [kernel, kernel], "pads": [kernel // 2] * 4}
    return helper.make_node(kind, inputs, [layer.value], layer.value, **attributes)


def _port(name: str, shape: Sequence[int | str], image: bool = False) -> onnx.ValueInfoProto:
    denotation = ["DATA_BATCH", "DATA_CHANNEL", "DATA_FEATURE", "DATA_FEATURE"] if image else None
    port = helper.make_tensor_value_info(name, TensorProto.FLOAT, shape, shape_denotation=denotation)
    if image:
        port.type.denotation = "IMAGE"
    return port


def _shape(architecture: Architecture, value: str) -> list[int | str]:
    """The shape of a named value, as far as it is fixed."""
    shape: list[int | str] = ["batch", 3, architecture.input_size, architecture.input_size]
    free = architecture.head == "gap"
    for layer in architecture.layers:
        if layer.operation == "convolution":
            shape[1] = layer.parameters["weight"][0]
        elif layer.operation == "max_pool":
            shape[2:] = [side // 2 for side in shape[2:] if isinstance(side, int)]
        elif layer.operation == "average_pool":
            shape[2:], free = [1, 1], False
        elif layer.operation == "linear":
            shape, free = ["batch", layer.parameters["weight"][0]], False
        if layer.value == value:
            break
    return [*shape[:2], f"{value}_height", f"{value}_width"] if free else shape


def _image(network: Network) -> dict[str, str]:
    """The keys that the ONNX standard gives image models (onnx/docs/MetadataProps.md)."""
    return {
        "Image.BitmapPixelFormat": "Rgb8" if network.preprocessing.channels == "RGB" else "Bgr8",
        "Image.ColorSpaceGamma": "SRGB",
        "Image.NominalPixelRange": "NominalRange_0_255" if network.preprocessing.scale == 1 else "Normalized_0_1",
    }


def _version() -> str:
    from importlib.metadata import version

    return version("vgg")
