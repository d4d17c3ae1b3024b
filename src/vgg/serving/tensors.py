"""Tensors of the Open Inference Protocol: as JSON, or as bytes after the JSON (Triton's binary tensor extension)."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..engines import check_batch
from ..errors import ModelError
from ..network import Network
from .bodies import parse_object
from .refusals import Refusal, Unsupported

INPUT, OUTPUT, DATATYPE = "data", "logits", "FP32"
MAX_SIDE = 1024  # maximum height and width; fully convolutional networks accept any size of at least 32
HEADER = "inference-header-content-length"


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for."""

    name: str
    binary: bool = False
    classes: int = 0  # number of best classes to return as text; 0: return the values


@dataclass(frozen=True)
class Inference:
    """A request for inference."""

    batch: Array  # float32 [batch, 3, height, width]
    outputs: tuple[RequestedOutput, ...]
    id: str = ""
    timeout: float | None = None  # seconds


@dataclass(frozen=True)
class Tensor:
    """A tensor of a response: float32, or texts."""

    name: str
    values: Array | list[str]
    shape: tuple[int, ...]

    @property
    def datatype(self) -> str:
        return DATATYPE if isinstance(self.values, np.ndarray) else "BYTES"

    def raw(self) -> bytes:
        """The values as bytes: little-endian float32, or each UTF-8 text after its length as uint32."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values, "<f4").tobytes()
        return b"".join(struct.pack("<I", len(text)) + text for text in (one.encode() for one in self.values))


def read_request(body: bytes, header_length: str | None, architecture: Architecture) -> Inference:
    """The inference request in a body.

    Args:
        body: JSON, followed by the bytes of binary tensors.
        header_length: length of the JSON in bytes; None: the whole body.
        architecture: of the requested model.

    Raises:
        Refusal: the request is invalid.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and int(header_length) <= length):
            raise Refusal(f"invalid Inference-Header-Content-Length {header_length!r} for a body of {length} bytes")
        length = int(header_length)
    record = parse_object(body[:length])
    identity = record.get("id", "")
    if not isinstance(identity, str):
        raise Refusal("`id` must be text")
    parameters = _object(record, "parameters")
    batch = _input(record.get("inputs"), memoryview(body)[length:], architecture)
    timeout = parameters.get("timeout") or None
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise Refusal("`timeout` must be an integer, in microseconds")
    outputs = _outputs(record.get("outputs"), parameters.get("binary_data_output") is True, architecture.values[-1])
    architecture.check_values(one.name for one in outputs)
    return Inference(batch, outputs, identity, timeout and timeout / 1e6)


def make_batch(name: Any, datatype: Any, shape: Any, values: Array, architecture: Architecture) -> Array:
    """The batch of an input tensor, float32 [batch, 3, height, width]. Raises Refusal if the tensor is invalid."""
    if name != INPUT:
        raise Refusal(f"unknown input {name!r}; the input is {INPUT!r}")
    if datatype != DATATYPE:
        raise Refusal(f"unsupported datatype {datatype!r}; the input is {DATATYPE}")
    if not (isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)):
        raise Refusal("`shape` must be a list of integers of 0 or more")
    if values.size != math.prod(shape):
        raise Refusal(f"shape {shape} needs {math.prod(shape)} values, not {values.size}")
    batch = np.asarray(values, np.float32).reshape(shape)
    try:
        check_batch(architecture, batch)
    except ModelError as error:
        raise Refusal(str(error)) from None
    if not len(batch):
        raise Refusal("the batch is empty")
    if max(batch.shape[2:]) > MAX_SIDE:
        raise Refusal(f"height and width must be at most {MAX_SIDE}")
    if not np.isfinite(batch).all():
        raise Refusal("the input has values that are not finite")
    return batch


def _object(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = record.get(key, {})
    if not isinstance(value, dict):
        raise Refusal(f"`{key}` must be an object")
    return value


def _input(inputs: Any, binary: memoryview, architecture: Architecture) -> Array:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refusal(f"`inputs` must be a list of one input, {INPUT!r}")
    one = inputs[0]
    parameters = _object(one, "parameters")
    size = parameters.get("binary_data_size")
    if "shared_memory_region" in parameters:
        raise Unsupported("shared memory is not supported; send the tensor's bytes")
    if size is None:
        if len(binary):
            raise Refusal("bytes follow the JSON, but the input has no `binary_data_size`")
        values = _numbers(one.get("data"))
    else:
        if "data" in one:
            raise Refusal("an input must have either `data` or `binary_data_size`, not both")
        if type(size) is not int or size != len(binary) or size % 4:
            raise Refusal(f"`binary_data_size` is {size!r}, but {len(binary)} bytes follow the JSON")
        values = np.frombuffer(binary, "<f4")
    return make_batch(one.get("name"), one.get("datatype"), one.get("shape"), values, architecture)


def _numbers(data: Any) -> Array:
    """An array from flat or nested lists of numbers. Raises Refusal."""
    if not isinstance(data, list):
        raise Refusal("an input needs `data` (a list) or `binary_data_size`")
    try:
        array = np.asarray(data)
    except ValueError:
        raise Refusal("`data` has rows of different lengths") from None
    if array.size and array.dtype.kind not in "iuf":
        raise Refusal("`data` must contain only numbers")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _outputs(outputs: Any, binary: bool, default: str) -> tuple[RequestedOutput, ...]:
    if outputs is None or outputs == []:
        return (RequestedOutput(default, binary),)
    if not isinstance(outputs, list) or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in outputs):
        raise Refusal("`outputs` must be a list of objects with a `name`")
    requested = []
    for one in outputs:
        parameters = _object(one, "parameters")
        if "shared_memory_region" in parameters:
            raise Unsupported("shared memory is not supported; request the tensor's bytes")
        classes = parameters.get("classification", 0)
        requested.append(requested_output(one["name"], parameters.get("binary_data", binary) is True, classes))
    if len({one.name for one in requested}) < len(requested):
        raise Refusal("`outputs` has duplicate names")
    return tuple(requested)


def requested_output(name: str, binary: bool, classes: Any) -> RequestedOutput:
    """A requested output. Raises Refusal if `classes` is invalid."""
    if type(classes) is not int or classes < 0:
        raise Refusal("`classification` must be a number of classes")
    if classes and name != OUTPUT:
        raise Refusal(f"only the output {OUTPUT!r} supports `classification`")
    return RequestedOutput(name, binary, classes)


def encode_outputs(values: Mapping[str, Array], outputs: Sequence[RequestedOutput], network: Network) -> list[Tensor]:
    """The tensors of a response: values, or the best classes in Triton's format `value:index:label`."""
    tensors, labels = [], network.class_names
    for one in outputs:
        array = values[one.name]
        if one.classes:
            if network.architecture.output == "binary":  # the logit is that of the second of two classes
                array = np.concatenate([-array, array], 1)
            best = np.argsort(-array, axis=1, kind="stable")[:, : one.classes]
            texts = [
                f"{array[row, index]:f}:{index}" + (f":{labels.names[index]}" if labels else "")
                for row, indices in enumerate(best)
                for index in indices.tolist()
            ]
            tensors.append(Tensor(one.name, texts, tuple(best.shape)))
        else:
            tensors.append(Tensor(one.name, array, tuple(array.shape)))
    return tensors


def write_response(
    head: Mapping[str, Any], tensors: Sequence[Tensor], outputs: Sequence[RequestedOutput]
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON if binary tensors follow.

    Raises:
        Refusal: an output has values that JSON can't represent.
    """
    entries, raws = [], []
    for tensor, one in zip(tensors, outputs, strict=True):
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if one.binary:
            raws.append(tensor.raw())
            entry["parameters"] = {"binary_data_size": len(raws[-1])}
        else:
            entry["data"] = tensor.values.ravel().tolist() if isinstance(tensor.values, np.ndarray) else tensor.values
        entries.append(entry)
    try:
        text = json.dumps({**head, "outputs": entries}, allow_nan=False).encode()
    except ValueError:
        raise Refusal("the output has values that are not finite, which JSON can't represent; request binary data") from None
    return b"".join([text, *raws]), len(text) if raws else None
