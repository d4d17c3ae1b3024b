"""Requests of the Open Inference Protocol over REST: JSON, and tensors as bytes after the JSON (Triton's extension)."""

from typing import Any

import msgspec

from ..architectures import Architecture
from . import base64_text, json_text, limits, tensors
from .datatypes import BYTES, DATATYPES, FP32, from_json
from .json_text import MISSING
from .memory import Reservation
from .refusals import Refusal, Unsupported
from .tensors import INPUT, Inference, InputTensor, Items, RequestedOutput


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
    items = _input(request.inputs, content[length:], architecture, max_images, memory)
    # A timeout beyond any deadline has no effect, and might not fit into a float.
    return Inference(items, outputs, identity, timeout and min(timeout, 10**12) / 1e6)


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


def _input(inputs: msgspec.Raw, binary: memoryview, architecture: Architecture, max_images: int, memory: Reservation) -> Items:
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
    tensor = tensors.check_input(_field(one, "name", None), _field(one, "datatype", None), shape, architecture, max_images)
    if size is None:
        if len(binary):
            raise Refusal("bytes follow the JSON, but the input has no `binary_data_size`")
        return _parse_data(memoryview(one.data), tensor, memory)
    if one.data is not MISSING:
        raise Refusal("an input must have either `data` or `binary_data_size`, not both")
    if type(size) is not int:
        raise Refusal("`binary_data_size` must be an integer")
    if size != len(binary):
        raise Refusal(f"`binary_data_size` is {size}, but {len(binary)} bytes follow the JSON")
    if tensor.datatype != FP32.name:
        memory.take(4 * len(binary))  # a byte may become a float32
    return tensor.parse_raw(binary)


def _parse_data(data: memoryview, tensor: InputTensor, memory: Reservation) -> Items:
    """The items in the JSON of a tensor."""
    if bytes(data[:1]) != b"[":
        raise Refusal("an input needs `data` (a list) or `binary_data_size`")
    if tensor.datatype == BYTES:
        memory.take(3 * len(data))  # the texts, a copy that is decoded, and what they encode
        texts = json_text.parse_value(bytes(data), "`data`")
        texts = [text for one in texts for text in (one if isinstance(one, list) else [one])]
        if not all(isinstance(text, str) for text in texts):
            raise Refusal(f"`data` of {BYTES} must be base64 text")
        if len(texts) != tensor.count:
            raise Refusal(f"shape {list(tensor.shape)} needs {tensor.count} values, not {len(texts)}")
        return tensors.images_of([base64_text.decode(text, f"`data` {index}") for index, text in enumerate(texts)])
    memory.take(4 * min(tensor.count, len(data)))
    if not tensor.count:
        raise Refusal(f"shape {list(tensor.shape)} has no values")
    datatype = DATATYPES[tensor.datatype]
    values = from_json(json_text.parse_numbers(data, tensor.shape), datatype)
    return tensor.parse_array(values.astype(datatype.dtype)) if tensor.encoded else values


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
        requested.append(tensors.requested_output(one["name"], parameters.get("binary_data", binary) is True, classes))
    if len({one.name for one in requested}) < len(requested):
        raise Refusal("`outputs` has duplicate names")
    return tuple(requested)
