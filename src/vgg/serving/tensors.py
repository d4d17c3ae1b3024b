"""Tensors of the Open Inference Protocol: as JSON, or as bytes after the JSON (Triton's binary tensor extension)."""

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..engines import check_batch
from ..errors import ModelError
from ..network import Network
from . import json_text, limits
from .memory import Reservation
from .refusals import Refusal, TooLarge, Unsupported

INPUT, OUTPUT, DATATYPE = "data", "logits", "FP32"
HEADER = "inference-header-content-length"
BINARY_VALUE, JSON_VALUE = 4, 24  # bytes of a value of a response, at most
MISSING = msgspec.Raw()


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


class _Request(msgspec.Struct):
    """The fields of a request as unparsed JSON."""

    id: msgspec.Raw = MISSING
    parameters: msgspec.Raw = MISSING
    inputs: msgspec.Raw = MISSING
    outputs: msgspec.Raw = MISSING


class _Input(msgspec.Struct):
    """The fields of an input as unparsed JSON."""

    name: msgspec.Raw = MISSING
    datatype: msgspec.Raw = MISSING
    shape: msgspec.Raw = MISSING
    parameters: msgspec.Raw = MISSING
    data: msgspec.Raw = MISSING


def read_request(
    body: bytes | bytearray, header_length: str | None, architecture: Architecture, max_images: int, memory: Reservation
) -> Inference:
    """The inference request in a body.

    Args:
        body: JSON, followed by the bytes of binary tensors.
        header_length: length of the JSON in bytes; None: the whole body.
        architecture: of the requested model.
        max_images: maximum size of the batch.
        memory: reserved for what is computed from the body.

    Raises:
        Refusal: the request is invalid.
    """
    length = len(body)
    if header_length is not None:
        valid = header_length.isascii() and header_length.isdigit() and len(header_length) < 20
        if not valid or int(header_length) > length:
            raise Refusal(f"invalid Inference-Header-Content-Length {header_length!r:.50} for a body of {length} bytes")
        length = int(header_length)
    content = memoryview(body)
    try:
        request = json_text.parse(content[:length], _Request)
    except msgspec.ValidationError:
        raise Refusal("the body must be a JSON object") from None
    identity = _field(request, "id", "")
    if not isinstance(identity, str):
        raise Refusal("`id` must be text")
    parameters = _object(_field(request, "parameters", {}), "parameters")
    timeout = parameters.get("timeout") or None
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise Refusal("`timeout` must be an integer, in microseconds")
    outputs = _outputs(_field(request, "outputs", None), parameters.get("binary_data_output") is True, architecture.values[-1])
    architecture.check_values(one.name for one in outputs)
    batch = _input(request.inputs, content[length:], architecture, max_images, memory)
    # A timeout beyond any deadline has no effect, and might not fit into a float.
    return Inference(batch, outputs, identity, timeout and min(timeout, 10**12) / 1e6)


def check_input(name: Any, datatype: Any, shape: Any, architecture: Architecture, max_images: int) -> int:
    """The number of values of an input tensor.

    Raises:
        Refusal: the network takes no such tensor.
        TooLarge: it has more images than `max_images`.
    """
    if name != INPUT:
        raise Refusal(f"unknown input {name!r}; the input is {INPUT!r}" if isinstance(name, str) else "an input needs a `name`")
    if datatype != DATATYPE:
        raise Refusal(
            f"unsupported datatype {datatype!r}; the input is {DATATYPE}"
            if isinstance(datatype, str)
            else "an input needs a `datatype`"
        )
    if not (isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)):
        raise Refusal("`shape` must be a list of integers of 0 or more")
    if len(shape) != 4:
        raise Refusal(f"`shape` must be [batch, 3, height, width], not {len(shape)} integers")
    if not shape[0]:
        raise Refusal("the batch is empty")
    if shape[0] > max_images:
        raise TooLarge(f"{shape[0]} images in one request; the maximum is {max_images}")
    if max(shape[1:]) > limits.SIDE:
        raise Refusal(f"height and width must be at most {limits.SIDE}")
    try:
        check_batch(architecture, np.broadcast_to(np.float32(0), shape))
    except ModelError as error:
        raise Refusal(str(error)) from None
    return math.prod(shape)


def make_batch(values: Array, shape: Sequence[int]) -> Array:
    """The batch of an input tensor, float32 [batch, 3, height, width]. Raises Refusal if the shape needs other values."""
    if values.size != math.prod(shape):
        raise Refusal(f"shape {list(shape)} needs {math.prod(shape)} values, not {values.size}")
    batch = np.asarray(values, np.float32).reshape(shape)
    if not np.isfinite(batch).all():
        raise Refusal("the input has values that are not finite")
    return batch


def _field(record: msgspec.Struct, name: str, otherwise: Any) -> Any:
    """A field of few values."""
    raw = getattr(record, name)
    if raw is MISSING:
        return otherwise
    text = memoryview(raw)
    if len(text) > limits.JSON_HEAD:
        raise Refusal(f"`{name}` is larger than {limits.JSON_HEAD >> 10} KiB")
    return json_text.parse_value(bytes(text), f"`{name}`")


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Refusal(f"`{name}` must be an object")
    return value


def _input(inputs: msgspec.Raw, binary: memoryview, architecture: Architecture, max_images: int, memory: Reservation) -> Array:
    if inputs is MISSING:
        raise Refusal(f"`inputs` must be a list of one input, {INPUT!r}")
    try:
        (one,) = json_text.parse(memoryview(inputs), tuple[_Input])  # a tuple of one element: parsing ends at a second one
    except msgspec.ValidationError:
        raise Refusal(f"`inputs` must be a list of one input, {INPUT!r}") from None
    parameters = _object(_field(one, "parameters", {}), "parameters")
    size = parameters.get("binary_data_size")
    if "shared_memory_region" in parameters:
        raise Unsupported("shared memory is not supported; send the tensor's bytes")
    shape = _field(one, "shape", None)
    count = check_input(_field(one, "name", None), _field(one, "datatype", None), shape, architecture, max_images)
    if size is None:
        if len(binary):
            raise Refusal("bytes follow the JSON, but the input has no `binary_data_size`")
        data = memoryview(one.data)
        if bytes(data[:1]) != b"[":
            raise Refusal("an input needs `data` (a list) or `binary_data_size`")
        memory.take(4 * count)
        return make_batch(json_text.parse_numbers(data, shape), shape)
    if one.data is not MISSING:
        raise Refusal("an input must have either `data` or `binary_data_size`, not both")
    if type(size) is not int:
        raise Refusal("`binary_data_size` must be an integer")
    if size != len(binary) or size % 4:
        raise Refusal(f"`binary_data_size` is {size}, but {len(binary)} bytes follow the JSON")
    return make_batch(np.frombuffer(binary, "<f4"), shape)


def _outputs(outputs: Any, binary: bool, default: str) -> tuple[RequestedOutput, ...]:
    if outputs is None or outputs == []:
        return (RequestedOutput(default, binary),)
    if not isinstance(outputs, list) or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in outputs):
        raise Refusal("`outputs` must be a list of objects with a `name`")
    requested = []
    for one in outputs:
        parameters = _object(one.get("parameters", {}), "parameters")
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
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}
        if one.binary:
            raws.append(tensor.raw())
            entry["parameters"] = {"binary_data_size": len(raws[-1])}
        elif isinstance(tensor.values, np.ndarray):
            entry["data"] = msgspec.Raw(json_text.format_numbers(tensor.values))
        else:
            entry["data"] = tensor.values
        entries.append(entry)
    text = msgspec.json.encode({**head, "outputs": entries})
    return b"".join([text, *raws]), len(text) if raws else None


def check_outputs(inference: Inference, architecture: Architecture, max_size: int, memory: Reservation) -> None:
    """Reserve memory for the outputs of a request.

    Raises:
        TooLarge: the response would be larger than `max_size` bytes.
        Busy: there is not enough memory now.
    """
    batch, _, height, width = inference.batch.shape
    size = 0
    for one in inference.outputs:
        each = BINARY_VALUE if one.binary else JSON_VALUE
        size += math.prod(architecture.shape(one.name, batch, height, width)) * each
    if size > max_size:
        raise TooLarge(f"the outputs may have {size >> 20} MiB, more than {max_size >> 20} MiB; request fewer, or binary data")
    memory.take(3 * size)  # from the engine, stacked, and as a response
