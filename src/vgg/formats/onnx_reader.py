"""ONNX files: what they say of themselves, and the network in them, mapped.

Fields by number, from onnx.proto. ModelProto: ir_version 1, producer_name 2, producer_version 3, graph 7, opset_import 8,
metadata_props 14. GraphProto: node 1, initializer 5, input 11, output 12. NodeProto: input 1, output 2, name 3, op_type 4,
attribute 5, domain 7. AttributeProto: name 1, f 2, i 3, s 4, t 5, floats 7, ints 8.
"""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..architectures import Architecture
from ..errors import ModelError, Notice
from ..files import map_file
from ..network import Network
from ..parameters import Parameter, Part, from_int4
from . import metadata, onnx_wire, walk
from .constants import Node
from .layouts import Bare
from .onnx_wire import Buffer, Tensor, Value, fields, span, text

# TensorProto.DataType
DTYPES: Mapping[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64,
    16: ml_dtypes.bfloat16, 21: ml_dtypes.uint4, 22: ml_dtypes.int4,
}  # fmt: skip
_INT4 = (21, 22)
_QUANTIZING = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinear", "QGemm", "ConvInteger", "MatMulInteger")
_DOMAINS = ("", "ai.onnx", "com.microsoft")  # whose operators are known by their bare names


@dataclass
class Port:
    """An input or output of a graph."""

    name: str
    data_type: int = 0
    shape: list[int | str] = field(default_factory=list)


@dataclass
class OnnxFile:
    """What an ONNX file holds, without its numbers."""

    path: Path
    mapped: Buffer
    ir_version: int = 0
    opset: int = 0
    producer: str = ""
    producer_version: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    outside: dict[Path, Buffer] = field(default_factory=dict)  # files with further numbers, mapped

    def array(self, tensor: str | Tensor) -> np.ndarray[Any, Any]:
        """A tensor as a view of the file. Raises ValueError when it is not as long as its shape."""
        found = self.tensors[tensor] if isinstance(tensor, str) else tensor
        if found.data_type not in DTYPES:
            raise ValueError(f"tensor {found.name} is of the unknown type {found.data_type}")
        dtype, count = np.dtype(DTYPES[found.data_type]), math.prod(found.dims)
        buffer, begin, end = (self.mapped, found.begin, found.end) if not found.external else self._outside(found)
        if found.data_type in _INT4 and end - begin == (count + 1) // 2 and found.kind != onnx_wire.INT32S:
            packed = np.frombuffer(buffer, np.uint8, end - begin, begin)
            return from_int4(packed, dtype, count).reshape(found.dims)
        if found.kind in (onnx_wire.INT32S, onnx_wire.INT64S):
            halves = dtype.itemsize == 2  # 16-bit floats stand there as whole numbers with the same bits
            decoded = onnx_wire.integers(buffer, begin, end, np.uint16 if halves else dtype, count)
            return np.asarray(decoded.view(dtype).reshape(found.dims))
        if end - begin != count * dtype.itemsize:
            raise ValueError(f"tensor {found.name} is not stored as it should be")
        return np.frombuffer(buffer, dtype, count, begin).reshape(found.dims)

    def _outside(self, tensor: Tensor) -> tuple[Buffer, int, int]:
        """Where a tensor's numbers lie in another file, which must be in the same folder or below it."""
        folder = self.path.parent.resolve()
        file = (folder / tensor.external.get("location", "")).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            where = tensor.external.get("location", "")
            raise ModelError(f"{self.path}: keeps its numbers in {where!r}, which is no file in its folder or below")
        if file not in self.outside:
            self.outside[file] = map_file(file)
        buffer = self.outside[file]
        begin = int(tensor.external.get("offset", 0))
        end = begin + int(tensor.external["length"]) if "length" in tensor.external else len(buffer)
        if not 0 <= begin <= end <= len(buffer):
            raise ValueError(f"tensor {tensor.name} reaches beyond {file.name}")
        return buffer, begin, end


def scan(path: Path) -> OnnxFile:
    """What is in an ONNX file; its numbers are not read. Raises ModelError when it is none."""
    model = OnnxFile(path, map_file(path))
    try:
        _model(model)
    except (ValueError, KeyError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path}: is not an ONNX file, or a damaged or truncated one ({error})") from None
    if not (model.ir_version and model.opset and model.outputs):
        raise ModelError(f"{path}: is not an ONNX file, or a damaged or truncated one")
    return model


def read(path: Path) -> Network | Bare:
    """The network in an ONNX file: whole in one of ours, architecture and parameters in another's.

    Ours are read by the names of their tensors; another's, or one of ours that a tool has changed, by its graph. Raises
    ModelError when the file can't be read, or is no VGG.
    """
    model = scan(path)
    said = metadata.architecture(path, model.metadata) if metadata.ARCHITECTURE in model.metadata else None
    try:
        if said and metadata.is_whole(said, model.tensors.keys()):
            return metadata.build(path, model.metadata, {name: model.array(name) for name in model.tensors})
        architecture, parameters, softmax = _walk(model, said is not None)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        raise ModelError(f"{path}: is a damaged ONNX file ({error})") from None
    if said:
        same = said.parameters == architecture.parameters
        return metadata.complete(path, model.metadata, said if same else architecture, parameters)
    if softmax:
        warnings.warn(Notice(f"{path}: ends in a softmax, which was taken off; writing can put it back"), stacklevel=2)
    return architecture, parameters


def quantized_activations(path: Path) -> tuple[bool, bool] | None:
    """Of an ONNX file with quantized activations: whether it is in the QDQ format, and whether it ends in a softmax."""
    operators = [node.operator for node in scan(path).nodes]
    if not any(one.startswith(_QUANTIZING) for one in operators):
        return None
    qdq = not any(one.startswith(_QUANTIZING[1:]) for one in operators)
    return qdq, any(one.endswith("Softmax") for one in operators[-3:])


def usual_preset(path: Path) -> str:
    """The preset of the files of this file's producer, by the names in it."""
    model = scan(path)
    names = " ".join((model.producer, *model.tensors)).lower()
    if "caffe" in names or "conv1_1_w" in names:
        return "caffe"
    if "conv0_weight" in names:  # MXNet's; those of the zoo that were quantized were measured with another recipe
        return "onnxrt" if any("quant" in name for name in model.tensors) else "zoo"
    return "torchvision"


def _walk(model: OnnxFile, ours: bool) -> tuple[Architecture, dict[str, Parameter], bool]:
    start = model.inputs[0].name if model.inputs else ""
    if ours:  # which may begin with preprocessing
        start = next((name for node in model.nodes for name in node.outputs if name in ("data", "data_0")), start)
    if len(model.inputs) != 1:
        found = ", ".join(port.name for port in model.inputs) or "none"
        raise ModelError(f"{model.path}: is not a VGG network: expected one input, found {found}")
    constants: dict[str, Part] = {name: model.array(name) for name in model.tensors}
    nodes = []
    for node in model.nodes:
        held = {key: model.array(value) for key, value in node.attributes.items() if isinstance(value, Tensor)}
        nodes.append(replace(node, attributes={**node.attributes, **held}))
    return walk.recognise(model.path, nodes, constants, start, [port.name for port in model.outputs])


def _model(model: OnnxFile) -> None:
    buffer = model.mapped
    for number, value in fields(buffer, 0, len(buffer)):
        if number == 1 and isinstance(value, int):
            model.ir_version = value
        elif number == 2:
            model.producer = text(buffer, value)
        elif number == 3:
            model.producer_version = text(buffer, value)
        elif number == 7:
            _graph(model, value)
        elif number == 8:
            entry = dict(fields(buffer, *span(value)))  # domain 1, version 2
            version = entry.get(2, 0)
            if isinstance(version, int) and text(buffer, entry.get(1, (0, 0))) in ("", "ai.onnx"):
                model.opset = version
        elif number == 14:
            entry = dict(fields(buffer, *span(value)))  # key 1, value 2
            model.metadata[text(buffer, entry[1])] = text(buffer, entry.get(2, (0, 0)))


def _graph(model: OnnxFile, graph: Value) -> None:
    buffer = model.mapped
    for number, value in fields(buffer, *span(graph)):
        if number == 1:
            model.nodes.append(_node(buffer, value))
        elif number == 5:
            found = onnx_wire.tensor(buffer, value)
            model.tensors[found.name] = found
        elif number in (11, 12):
            (model.inputs if number == 11 else model.outputs).append(_port(buffer, value))
    model.inputs = [port for port in model.inputs if port.name not in model.tensors]


def _node(buffer: Buffer, value: Value) -> Node:
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Any] = {}
    operator = domain = ""
    for number, part in fields(buffer, *span(value)):
        if number in (1, 2):
            (inputs if number == 1 else outputs).append(text(buffer, part))
        elif number == 4:
            operator = text(buffer, part)
        elif number == 5:
            key, content = _attribute(buffer, part)
            attributes[key] = content
        elif number == 7:
            domain = text(buffer, part)
    return Node(operator if domain in _DOMAINS else f"{domain}.{operator}", tuple(inputs), tuple(outputs), attributes)


def _attribute(buffer: Buffer, value: Value) -> tuple[str, Any]:
    """An attribute's name and content: a number, text, a Tensor or a list of numbers; None for any other kind."""
    name, content = "", None
    for number, part in fields(buffer, *span(value)):
        if number == 1:
            name = text(buffer, part)
        elif number == 2:
            content = onnx_wire.floats(buffer, part).tolist()[0]
        elif number == 3:
            content = onnx_wire.number(part)
        elif number == 4:
            content = bytes(buffer[slice(*span(part))]).decode(errors="replace")
        elif number == 5:
            content = onnx_wire.tensor(buffer, part)
        elif number == 7:
            content = (content or []) + onnx_wire.floats(buffer, part).tolist()
        elif number == 8:
            content = (content or []) + onnx_wire.numbers(buffer, part)
    return name, content


def _port(buffer: Buffer, value: Value) -> Port:
    """ValueInfoProto name 1, type 2; TypeProto tensor_type 1; Tensor elem_type 1, shape 2; dim 1: dim_value 1, dim_param 2."""
    port = Port("")
    for number, info in fields(buffer, *span(value)):
        if number == 1:
            port.name = text(buffer, info)
        elif number == 2:
            for kind, tensor_type in fields(buffer, *span(info)):
                for part, inner in fields(buffer, *span(tensor_type)) if kind == 1 else ():
                    if part == 1 and isinstance(inner, int):
                        port.data_type = inner
                    elif part == 2:
                        port.shape = [_dimension(buffer, dim) for _, dim in fields(buffer, *span(inner))]
    return port


def _dimension(buffer: Buffer, value: Value) -> int | str:
    for number, dim in fields(buffer, *span(value)):
        if number == 1 and isinstance(dim, int):
            return dim
        if number == 2:
            return text(buffer, dim)
    return "?"
