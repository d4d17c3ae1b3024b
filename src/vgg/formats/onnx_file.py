"""The content of ONNX files, without the tensors' numbers, which are mapped on demand.

Fields by number, from onnx.proto. ModelProto: ir_version 1, producer_name 2, producer_version 3, graph 7, opset_import 8,
metadata_props 14. GraphProto: node 1, initializer 5, input 11, output 12. NodeProto: input 1, output 2, name 3, op_type 4,
attribute 5, domain 7. AttributeProto: name 1, f 2, i 3, s 4, t 5, floats 7, ints 8. TensorProto: dims 1, data_type 2,
float_data 4, int32_data 5, int64_data 7, name 8, raw_data 9, double_data 10, external_data 13.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from ..parameters import from_int4
from . import protobuf
from .layouts import reading
from .nodes import Node
from .protobuf import Buffer, Value, fields, span, text

# TensorProto.DataType
DTYPES: Mapping[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16, 11: np.float64,
    16: ml_dtypes.bfloat16, 21: ml_dtypes.uint4, 22: ml_dtypes.int4,
}  # fmt: skip
_INT4 = (21, 22)
_FLOATS, _INT32S, _INT64S, _RAW, _DOUBLES = 4, 5, 7, 9, 10  # the fields of a TensorProto that can contain its numbers
_DOMAINS = ("", "ai.onnx", "com.microsoft")  # of operators that are known without their domain


@dataclass(frozen=True)
class Tensor:
    """A TensorProto: its numbers are at `begin`..`end` of the file, unless they are in another file."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    begin: int = 0
    end: int = 0
    kind: int = 0  # the field that contains the numbers
    external: dict[str, str] = field(default_factory=dict)  # of another file: location, offset, length


@dataclass
class Port:
    """An input or output of a graph."""

    name: str
    data_type: int = 0
    shape: list[int | str] = field(default_factory=list)


@dataclass
class OnnxFile:
    """The content of an ONNX file, without its numbers."""

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
    outside: dict[Path, Buffer] = field(default_factory=dict)  # other files with numbers, mapped

    def array(self, tensor: str | Tensor) -> Array:
        """A tensor as a view of the file. Raises ValueError if its length doesn't fit its shape."""
        tensor = self.tensors[tensor] if isinstance(tensor, str) else tensor
        if tensor.data_type not in DTYPES:
            raise ValueError(f"tensor {tensor.name} has the unknown type {tensor.data_type}")
        dtype, count = np.dtype(DTYPES[tensor.data_type]), math.prod(tensor.dims)
        buffer, begin, end = self._outside(tensor) if tensor.external else (self.mapped, tensor.begin, tensor.end)
        if tensor.data_type in _INT4 and end - begin == (count + 1) // 2 and tensor.kind != _INT32S:
            packed = np.frombuffer(buffer, np.uint8, end - begin, begin)
            return from_int4(packed, dtype, count).reshape(tensor.dims)
        if tensor.kind in (_INT32S, _INT64S):
            halves = dtype.itemsize == 2  # 16-bit floats are stored as integers with the same bits
            decoded = protobuf.integers(buffer, begin, end, np.uint16 if halves else dtype, count)
            return np.asarray(decoded.view(dtype).reshape(tensor.dims))
        if end - begin != count * dtype.itemsize:
            raise ValueError(f"tensor {tensor.name} has {end - begin} bytes, not {count * dtype.itemsize}")
        return np.frombuffer(buffer, dtype, count, begin).reshape(tensor.dims)

    def _outside(self, tensor: Tensor) -> tuple[Buffer, int, int]:
        """The place of a tensor's numbers in another file, which must be in the same folder or below it."""
        folder, location = self.path.parent.resolve(), tensor.external.get("location", "")
        file = (folder / location).resolve()
        if not file.is_relative_to(folder) or not file.is_file():
            raise ModelError(f"{self.path}: its external data {location!r} is no file in its folder or below")
        if file not in self.outside:
            self.outside[file] = map_file(file)
        buffer = self.outside[file]
        begin = int(tensor.external.get("offset", 0))
        end = begin + int(tensor.external["length"]) if "length" in tensor.external else len(buffer)
        if not 0 <= begin <= end <= len(buffer):
            raise ValueError(f"tensor {tensor.name} extends beyond {file.name}")
        return buffer, begin, end


def scan(path: Path) -> OnnxFile:
    """The content of an ONNX file; its numbers are not read.

    Raises:
        ModelError: the file can't be read or is no ONNX file.
    """
    model = OnnxFile(path, map_file(path))
    with reading(path, "ONNX"):
        _model(model)
        if not (model.ir_version and model.opset and model.outputs):
            raise ValueError("no version, opset or output")
    return model


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
            domain, version = _pair(buffer, value)
            if isinstance(version, int) and text(buffer, domain) in ("", "ai.onnx"):
                model.opset = version
        elif number == 14:
            key, content = _pair(buffer, value)
            model.metadata[text(buffer, key)] = text(buffer, content)


def _graph(model: OnnxFile, graph: Value) -> None:
    buffer = model.mapped
    for number, value in fields(buffer, *span(graph)):
        if number == 1:
            model.nodes.append(_node(buffer, value))
        elif number == 5:
            tensor = _tensor(buffer, value)
            model.tensors[tensor.name] = tensor
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
            name, content = _attribute(buffer, part)
            attributes[name] = content
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
            content = protobuf.floats(buffer, part).tolist()[0]
        elif number == 3:
            content = protobuf.number(part)
        elif number == 4:
            content = bytes(buffer[slice(*span(part))]).decode(errors="replace")
        elif number == 5:
            content = _tensor(buffer, part)
        elif number == 7:
            content = (content or []) + protobuf.floats(buffer, part).tolist()
        elif number == 8:
            content = (content or []) + protobuf.numbers(buffer, part)
    return name, content


def _tensor(buffer: Buffer, value: Value) -> Tensor:
    dims: list[int] = []
    data_type, name, place, kind = 0, "", (0, 0), 0
    external: dict[str, str] = {}
    for part, content in fields(buffer, *span(value)):
        if part == 1:
            dims += protobuf.numbers(buffer, content)
        elif part == 2:
            data_type = protobuf.number(content)
        elif part == 8:
            name = text(buffer, content)
        elif part in (_FLOATS, _INT32S, _INT64S, _RAW, _DOUBLES):
            place, kind = span(content), part
        elif part == 13:
            key, entry = _pair(buffer, content)
            external[text(buffer, key)] = text(buffer, entry)
    if min(dims, default=0) < 0:
        raise ValueError(f"tensor {name} has a negative dimension")
    return Tensor(name, data_type, tuple(dims), *place, kind, external)


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


def _pair(buffer: Buffer, value: Value) -> tuple[Value, Value]:
    """The fields 1 and 2 of a message: a key with its value, or a domain with its version."""
    entry = dict(fields(buffer, *span(value)))
    return entry.get(1, (0, 0)), entry.get(2, (0, 0))
