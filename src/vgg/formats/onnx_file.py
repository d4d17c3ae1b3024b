"""The content of ONNX files, without the tensors' numbers, which are mapped on demand.

Fields by number, from onnx.proto. ModelProto: ir_version 1, producer_name 2, producer_version 3, graph 7, opset_import 8,
metadata_props 14. GraphProto: node 1, initializer 5, input 11, output 12. NodeProto: input 1, output 2, name 3, op_type 4,
attribute 5, domain 7. AttributeProto: name 1, f 2, i 3, s 4, t 5, floats 7, ints 8, type 20. TensorProto: dims 1, data_type
2, float_data 4, int32_data 5, int64_data 7, name 8, raw_data 9, double_data 10, external_data 13, data_location 14.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from ..parameters import from_int4
from .layouts import reading
from .nodes import Node
from .protobuf import Buffer, Value, fields, floats, integers, last, lenient_text, message, number, numbers, span, text

PRODUCER = "vgg"  # in the files that vgg writes
NEWEST, NEWEST_IR = 28, 14  # opset and IR version whose operators and messages were compared with this package
# TensorProto.DataType
DTYPES: Mapping[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 4: np.uint16, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16,
    11: np.float64, 12: np.uint32, 13: np.uint64, 16: ml_dtypes.bfloat16, 17: ml_dtypes.float8_e4m3fn,
    19: ml_dtypes.float8_e5m2, 21: ml_dtypes.uint4, 22: ml_dtypes.int4,
}  # fmt: skip
_INT4 = (21, 22)
_FUNCTIONS = 25  # a field of ModelProto
_INT32S, _INT64S = 5, 7
_DATA = (4, _INT32S, _INT64S, 9, 10)  # the fields of a TensorProto that can contain its numbers


@dataclass(frozen=True)
class Tensor:
    """A TensorProto: its numbers are at `begin`..`end` of the file, unless they are in another file."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    begin: int
    end: int
    kind: int  # the field that contains the numbers
    external: dict[str, str]  # of another file: location, offset, length


@dataclass(frozen=True)
class Port:
    """An input or output of a graph."""

    name: str
    data_type: int
    shape: list[int | str]


@dataclass(frozen=True)
class OnnxFile:
    """The content of an ONNX file, without its numbers."""

    path: Path
    mapped: Buffer
    ir_version: int
    opset: int
    producer: str
    producer_version: str
    metadata: dict[str, str]
    nodes: list[Node]
    tensors: dict[str, Tensor]
    inputs: list[Port]
    outputs: list[Port]
    outside: dict[Path, Buffer] = field(default_factory=dict)  # other files with numbers, mapped

    def array(self, tensor: str | Tensor) -> Array:
        """A tensor as a view of the file; see `_numbers`."""
        tensor = self.tensors[tensor] if isinstance(tensor, str) else tensor
        return _numbers(tensor, *self.bytes_of(tensor))

    def companions(self) -> dict[str, Path]:
        """The files with external data, by their names relative to this file. Raises ModelError as `array` does."""
        attributes = [value for node in self.nodes for value in node.attributes.values() if isinstance(value, Tensor)]
        external = [tensor.external for tensor in (*self.tensors.values(), *attributes) if tensor.external]
        return {name: self._companion(name) for name in dict.fromkeys(one.get("location", "") for one in external)}

    def _companion(self, location: str) -> Path:
        """A file with external data: in the folder of this file or below it.

        It may be a link to a file in the folder that this file, if it is a link, leads to: in the cache of a download program,
        both are links into one folder, that of the contents. ONNX Runtime has the same rule.
        """
        folder, name = self.path.parent.resolve(), PurePath(location)
        file = (folder / name).resolve()
        inside = any(file.is_relative_to(one) for one in (folder, self.path.resolve().parent))
        if name.is_absolute() or ".." in name.parts or not inside:
            raise ModelError(f"{self.path}: its external data {location!r} is outside its folder, where vgg reads no file")
        if not file.is_file():
            raise ModelError(f"{self.path}: its external data {location!r} is missing; put that file beside it")
        return file

    def bytes_of(self, tensor: Tensor) -> tuple[Buffer, int, int]:
        """The file of a tensor's numbers, and their start and end there."""
        if not tensor.external:
            return self.mapped, tensor.begin, tensor.end
        file = self._companion(tensor.external.get("location", ""))
        if file not in self.outside:
            self.outside[file] = map_file(file)
        buffer = self.outside[file]
        begin = int(tensor.external.get("offset", 0))
        end = begin + int(tensor.external["length"]) if "length" in tensor.external else len(buffer)
        if not 0 <= begin <= end <= len(buffer):
            raise ValueError(f"tensor {tensor.name} extends beyond {file.name}")
        return buffer, begin, end


def _numbers(tensor: Tensor, buffer: Buffer, begin: int, end: int) -> Array:
    """A view of the numbers of a tensor at `begin`..`end`. Raises ValueError if their length doesn't fit its shape."""
    if tensor.data_type not in DTYPES:
        raise ValueError(f"tensor {tensor.name} has the unknown type {tensor.data_type}")
    dtype, count = np.dtype(DTYPES[tensor.data_type]), math.prod(tensor.dims)
    if tensor.data_type in _INT4 and tensor.kind == _INT32S:  # two numbers in each
        packed = integers(buffer, begin, end, np.uint8, (count + 1) // 2)
        return from_int4(packed, dtype, count).reshape(tensor.dims)
    if tensor.data_type in _INT4 and end - begin == (count + 1) // 2:
        packed = np.frombuffer(buffer, np.uint8, end - begin, begin)
        return from_int4(packed, dtype, count).reshape(tensor.dims)
    if tensor.kind in (_INT32S, _INT64S):
        # Floats of 8 and 16 bits are stored as integers with the same bits.
        stored = dtype if dtype.kind in "iub" else np.dtype(f"u{dtype.itemsize}")
        decoded = integers(buffer, begin, end, stored, count)
        return np.asarray(decoded.view(dtype).reshape(tensor.dims))
    if end - begin != count * dtype.itemsize:
        raise ValueError(f"tensor {tensor.name} has {end - begin} bytes, not {count * dtype.itemsize}")
    return np.frombuffer(buffer, dtype, count, begin).reshape(tensor.dims)


def tensor(data: bytes) -> tuple[str, Array]:
    """The name and the numbers of a TensorProto alone. Raises ValueError if it is damaged or has its numbers elsewhere."""
    found = _tensor(data, (0, len(data)))
    if found.external:
        raise ValueError("its numbers are in another file")
    return found.name, _numbers(found, data, found.begin, found.end)


def companions(path: Path) -> dict[str, Path]:
    """See `OnnxFile.companions`."""
    return scan(path).companions()


def scan(path: Path) -> OnnxFile:
    """The content of an ONNX file; its numbers are not read.

    Raises:
        ModelError: the file can't be read or is not an ONNX file.
    """
    mapped: Buffer = map_file(path)
    with reading(path, "ONNX"):
        if any(number == _FUNCTIONS for number, _ in fields(mapped, 0, len(mapped))):
            from .onnx_inlining import inlined

            mapped = inlined(path)
        model = message(mapped, (0, len(mapped)), {1: number, 2: text, 3: text, 7: _graph, 8: _opset, 14: _entry})
        graph = last(model[7], {part: [] for part in (1, 5, 11, 12)})
        opset = last([version for domain, version in model[8] if domain in ("", "ai.onnx")], 0)
        tensors = {tensor.name: tensor for tensor in graph[5]}
        inputs = [port for port in graph[11] if port.name not in tensors]
        if not (model[1] and opset and graph[12]):
            raise ValueError("no version, opset or output")
        return OnnxFile(
            path, mapped, model[1][-1], opset, last(model[2], ""), last(model[3], ""), dict(model[14]), graph[1], tensors,
            inputs, graph[12],
        )  # fmt: skip


def _graph(buffer: Buffer, value: Value) -> dict[int, list[Any]]:
    return message(buffer, value, {1: _node, 5: _tensor, 11: _port, 12: _port})


def _opset(buffer: Buffer, value: Value) -> tuple[str, int]:
    """OperatorSetIdProto: domain 1, version 2."""
    content = message(buffer, value, {1: text, 2: number})
    return last(content[1], ""), last(content[2], 0)


def _entry(buffer: Buffer, value: Value) -> tuple[str, str]:
    """StringStringEntryProto: key 1, value 2."""
    content = message(buffer, value, {1: text, 2: text})
    return last(content[1], ""), last(content[2], "")


def _node(buffer: Buffer, value: Value) -> Node:
    content = message(buffer, value, {1: text, 2: text, 4: text, 5: _attribute, 7: text})
    operator, domain = last(content[4], ""), last(content[7], "")
    domain = "" if domain == "ai.onnx" else domain
    return Node(operator, tuple(content[1]), tuple(content[2]), dict(content[5]), domain)


def _attribute(buffer: Buffer, value: Value) -> tuple[str, Any]:
    """An attribute's name and content: a number, text, a Tensor or a list of numbers; None for any other kind."""
    decoders = {1: text, 2: floats, 3: number, 4: lenient_text, 5: _tensor, 7: floats, 8: numbers}
    content = message(buffer, value, decoders)
    several = [one for part in content[7] for one in part.tolist()] + [one for part in content[8] for one in part]
    single = [one for part in content[2] for one in part.tolist()] + content[3] + content[4] + content[5]
    return last(content[1], ""), several or last(single, None)


def _tensor(buffer: Buffer, value: Value) -> Tensor:
    content = message(buffer, value, {1: numbers, 2: number, 8: text, 13: _entry, **dict.fromkeys(_DATA, span)})
    name, dims = last(content[8], ""), tuple(side for part in content[1] for side in part)
    if min(dims, default=0) < 0:
        raise ValueError(f"tensor {name} has a negative dimension")
    begin, end, kind = last([(*content[kind][-1], kind) for kind in _DATA if content[kind]], (0, 0, 0))
    return Tensor(name, last(content[2], 0), dims, begin, end, kind, dict(content[13]))


def _port(buffer: Buffer, value: Value) -> Port:
    """ValueInfoProto: name 1, type 2; TypeProto: tensor_type 1."""
    content = message(buffer, value, {1: text, 2: lambda buffer, value: message(buffer, value, {1: _tensor_type})[1]})
    return Port(last(content[1], ""), *last(last(content[2], []), (0, [])))


def _tensor_type(buffer: Buffer, value: Value) -> tuple[int, list[int | str]]:
    """TypeProto.Tensor: elem_type 1, shape 2; TensorShapeProto: dim 1."""
    content = message(buffer, value, {1: number, 2: lambda buffer, value: message(buffer, value, {1: _dimension})[1]})
    return last(content[1], 0), last(content[2], [])


def _dimension(buffer: Buffer, value: Value) -> int | str:
    """Dimension: dim_value 1, dim_param 2."""
    content = message(buffer, value, {1: number, 2: text})
    side: int | str = (*content[1], *content[2], "?")[0]
    return side
