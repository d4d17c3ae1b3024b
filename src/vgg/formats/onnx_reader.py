"""ONNX files: what they say of themselves, and our own as a Network, mapped.

Fields by number, from onnx.proto. ModelProto: ir_version 1, producer_name 2, producer_version 3, graph 7, opset_import 8,
metadata_props 14. GraphProto: initializer 5, input 11, output 12.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from ..errors import ModelError
from ..files import map_file
from ..network import Network
from . import metadata, onnx_wire
from .onnx_wire import Buffer, Tensor, Value, fields, span, text

# TensorProto.DataType
DTYPES: Mapping[int, Any] = {
    1: np.float32, 2: np.uint8, 3: np.int8, 6: np.int32, 7: np.int64, 10: np.float16, 11: np.float64,
    16: ml_dtypes.bfloat16,
}  # fmt: skip


@dataclass
class Port:
    """An input or output of a graph."""

    name: str
    data_type: int = 0
    shape: list[int | str] = field(default_factory=list)


@dataclass
class OnnxFile:
    """What an ONNX file holds, without its numbers."""

    mapped: Buffer
    ir_version: int = 0
    opset: int = 0
    producer: str = ""
    producer_version: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)

    def array(self, name: str) -> np.ndarray[Any, Any]:
        """A tensor as a view of the file. Raises ValueError when it is not stored raw or not as long as its shape."""
        found = self.tensors[name]
        dtype = np.dtype(DTYPES[found.data_type])
        if not found.raw or found.end - found.begin != math.prod(found.dims) * dtype.itemsize:
            raise ValueError(f"tensor {name} is not stored as it should be")
        return np.frombuffer(self.mapped, dtype, math.prod(found.dims), found.begin).reshape(found.dims)


def scan(path: Path) -> OnnxFile:
    """What is in an ONNX file; its numbers are not read. Raises ModelError when it is none."""
    model = OnnxFile(map_file(path))
    try:
        _model(model)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ModelError(f"{path}: is not an ONNX file, or a damaged or truncated one ({error})") from None
    if not (model.ir_version and model.opset and model.outputs):
        raise ModelError(f"{path}: is not an ONNX file, or a damaged or truncated one")
    return model


def read(path: Path) -> Network:
    """The network in an ONNX file that this package wrote. Raises ModelError when it can't be read, or is another's."""
    model = scan(path)
    if metadata.ARCHITECTURE not in model.metadata:
        who = f"{model.producer} {model.producer_version}".strip() or "another program"
        raise ModelError(
            f"{path}: is an ONNX file of opset {model.opset} by {who}; only those that vgg wrote are read. Convert the "
            "weights that it was made from: torch, Keras and safetensors files are read"
        )
    try:
        tensors = {name: model.array(name) for name in model.tensors}
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path}: is a damaged ONNX file ({error})") from None
    return metadata.build(path, model.metadata, tensors)


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
        if number == 5:
            found = onnx_wire.tensor(buffer, value)
            model.tensors[found.name] = found
        elif number in (11, 12):
            (model.inputs if number == 11 else model.outputs).append(_port(buffer, value))
    model.inputs = [port for port in model.inputs if port.name not in model.tensors]


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
