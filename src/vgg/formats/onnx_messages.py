"""ONNX models as bytes, in protobuf's order of fields; `onnx_file`, which reads them, has the numbers of the fields."""

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from .nodes import Node
from .onnx_file import DTYPES, Port
from .protobuf import field, varint

FLOAT, UINT8, INT64, FLOAT16, DOUBLE = 1, 2, 7, 10, 11  # TensorProto.DataType
DATA_TYPES: Mapping[Any, int] = {np.dtype(dtype): number for number, dtype in DTYPES.items()}
# The IR version of the files of each opset, by the first opset; from onnx/docs/Versioning.md. In version 3, which files below
# opset 7 have, every initializer is an input.
_IR_VERSIONS = {0: 3, 7: 4, 10: 5, 11: 6, 12: 7, 15: 8, 19: 9, 21: 10, 23: 11, 24: 12, 25: 13, 28: 14}
_DENOTATIONS = {"B": b"DATA_BATCH", "C": b"DATA_CHANNEL", "F": b"DATA_FEATURE"}


@dataclass(frozen=True)
class Graph:
    """A model without its initializers."""

    name: str
    opset: int
    nodes: Sequence[Node]
    inputs: Sequence[Port]  # the first is the images
    outputs: Sequence[Port]
    axes: str  # the meaning of the images' axes: B for batch, C for channel, F for height or width
    types: Mapping[str, int]  # the data types of values that can't be inferred, by name

    def body(self, tensors: Iterable[bytes] = (), inputs: Iterable[Port] = ()) -> bytes:
        """The GraphProto, with initializers and further inputs."""
        parts = [field(1, _node(one)) for one in self.nodes]
        parts += [
            field(2, self.name.encode()),
            *(field(5, one) for one in tensors),
            field(11, _port(self.inputs[0], self.axes)),
        ]
        parts += [field(11, _port(one)) for one in (*self.inputs[1:], *inputs)]
        parts += [field(12, _port(one)) for one in self.outputs]
        parts += [field(13, field(1, name.encode()) + field(2, _type(kind))) for name, kind in self.types.items()]
        return b"".join(parts)

    def head(self, **texts: str) -> bytes:
        """The fields of the ModelProto besides the graph; `texts` are of `producer`, `version` and `doc`."""
        numbers = {"producer": 2, "version": 3, "doc": 6}
        names = b"".join(field(number, texts[name].encode()) for name, number in numbers.items() if name in texts)
        ir_version = _IR_VERSIONS[max(first for first in _IR_VERSIONS if first <= self.opset)]
        return field(1, ir_version) + names + field(8, field(1, b"") + field(2, self.opset))

    def model(self, tensors: Iterable[bytes] = (), inputs: Iterable[Port] = ()) -> bytes:
        """The ModelProto, with initializers and further inputs."""
        return self.head() + field(7, self.body(tensors, inputs))


def tensor(name: str, array: Array) -> bytes:
    """A TensorProto with its numbers."""
    return tensor_head(name, DATA_TYPES[array.dtype], array.shape) + field(9, np.ascontiguousarray(array).tobytes())


def external_tensor(name: str, data_type: int, dims: Sequence[int], location: str) -> bytes:
    """A TensorProto whose numbers are elsewhere."""
    entry = field(1, b"location") + field(2, location.encode())
    return tensor_head(name, data_type, dims) + field(13, entry) + field(14, 1)


def tensor_head(name: str, data_type: int, dims: Sequence[int]) -> bytes:
    """The fields of a TensorProto before its numbers."""
    start = b"".join(field(1, side) for side in dims) + field(2, data_type)
    return start + field(8, name.encode()) if name else start


def _node(one: Node) -> bytes:
    """A NodeProto, named after its first output."""
    parts = [field(1, name.encode()) for name in one.inputs] + [field(2, name.encode()) for name in one.outputs]
    parts += [field(3, one.outputs[0].encode()), field(4, one.operator.encode())]
    parts += [field(5, _attribute(name, value)) for name, value in sorted(one.attributes.items())]
    return b"".join(parts)


def _attribute(name: str, value: Any) -> bytes:
    """An AttributeProto: its content, and in field 20 the type of that."""
    if isinstance(value, float):
        kind, content = 1, varint(2 << 3 | 5) + struct.pack("<f", value)
    elif isinstance(value, int):
        kind, content = 2, field(3, value)
    elif isinstance(value, str):
        kind, content = 3, field(4, value.encode())
    elif isinstance(value, np.ndarray):
        kind, content = 4, field(5, tensor("", value))
    else:
        kind, content = 7, b"".join(field(8, one) for one in value)
    return field(1, name.encode()) + content + field(20, kind)


def _port(port: Port, axes: str = "") -> bytes:
    """A ValueInfoProto."""
    dims = []
    for place, side in enumerate(port.shape):
        content = field(1, side) if isinstance(side, int) else field(2, side.encode())
        dims.append(field(1, content + field(3, _DENOTATIONS[axes[place]]) if axes else content))
    content = _type(port.data_type, field(2, b"".join(dims))) + (field(6, b"IMAGE") if axes else b"")
    return field(1, port.name.encode()) + field(2, content)


def _type(data_type: int, shape: bytes = b"") -> bytes:
    """A TypeProto of a tensor; its shape is a field, or left open."""
    return field(1, field(1, data_type) + shape)
