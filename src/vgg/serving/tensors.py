"""Tensors as the Open Inference Protocol sends them: as JSON, or behind it as bytes (Triton's binary tensor extension)."""

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
from ..labels import Labels
from .bodies import parse_object
from .refusals import Refusal, Unsupported

INPUT, OUTPUT, DATATYPE = "data", "logits", "FP32"
MAX_SIDE = 1024  # pixels of a tensor; a network without the paper's head takes any size from 32 on
HEADER = "inference-header-content-length"


@dataclass(frozen=True)
class Wanted:
    """An output that was asked for."""

    name: str
    binary: bool = False
    classes: int = 0  # so many of the best classes as text instead of all values; 0: the values


@dataclass(frozen=True)
class Inference:
    """A request for inference."""

    batch: Array  # float32 [batch, 3, height, width]
    outputs: tuple[Wanted, ...]
    id: str = ""
    timeout: float | None = None  # seconds


@dataclass(frozen=True)
class Tensor:
    """A tensor on its way out: float32, or text of UTF-8."""

    name: str
    values: Array | list[str]
    shape: tuple[int, ...]

    @property
    def datatype(self) -> str:
        return DATATYPE if isinstance(self.values, np.ndarray) else "BYTES"

    def raw(self) -> bytes:
        """As bytes, little-endian; each text behind its length."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values, "<f4").tobytes()
        return b"".join(struct.pack("<I", len(text)) + text for text in (one.encode() for one in self.values))


def read_request(body: bytes, header_length: str | None, architecture: Architecture) -> Inference:
    """A request's body as what it asks for.

    Args:
        body: JSON, and behind it the bytes of binary tensors.
        header_length: how long the JSON is, where it is not all.
        architecture: of the network that is asked.

    Raises:
        Refusal: something about it is wrong; the line says what.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit() and int(header_length) <= length):
            raise Refusal(f"Inference-Header-Content-Length {header_length!r} is no length within the body")
        length = int(header_length)
    record = parse_object(body[:length])
    identity = record.get("id", "")
    if not isinstance(identity, str):
        raise Refusal("`id` must be text")
    parameters = _object(record, "parameters")
    batch = _input(record.get("inputs"), memoryview(body)[length:], architecture)
    timeout = parameters.get("timeout") or None
    if timeout is not None and (type(timeout) is not int or timeout < 0):
        raise Refusal("`timeout` must be whole microseconds")
    outputs = _outputs(record.get("outputs"), parameters.get("binary_data_output") is True)
    architecture.check_values(one.name for one in outputs)
    return Inference(batch, outputs, identity, timeout and timeout / 1e6)


def check_input(name: Any, datatype: Any, shape: Any) -> int:
    """The number of values of an input that fits. Raises Refusal when it doesn't."""
    if name != INPUT:
        raise Refusal(f"the input is called {INPUT!r}, not {name!r}")
    if datatype != DATATYPE:
        raise Refusal(f"the input is of datatype {DATATYPE}, not {datatype!r}")
    if not (isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)):
        raise Refusal("`shape` must be a list of whole numbers")
    return math.prod(shape)


def check_values(batch: Array, architecture: Architecture) -> None:
    """Raises Refusal unless a batch has the shape that the network takes, and nothing but numbers."""
    try:
        check_batch(architecture, batch)
    except ModelError as error:
        raise Refusal(str(error)) from None
    if not len(batch):
        raise Refusal("the batch is empty")
    if max(batch.shape[2:]) > MAX_SIDE:
        raise Refusal(f"height and width are at most {MAX_SIDE}")
    if not np.isfinite(batch).all():
        raise Refusal("the input has values that are no finite numbers")


def _object(record: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = record.get(key, {})
    if not isinstance(found, dict):
        raise Refusal(f"`{key}` must be an object")
    return found


def _input(inputs: Any, binary: memoryview, architecture: Architecture) -> Array:
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refusal(f"`inputs` must be a list with one input, {INPUT!r}")
    one = inputs[0]
    count = check_input(one.get("name"), one.get("datatype"), one.get("shape"))
    parameters = _object(one, "parameters")
    size = parameters.get("binary_data_size")
    if "shared_memory_region" in parameters:
        raise Unsupported("shared memory is not supported; send the tensor's bytes")
    if size is None:
        if len(binary):
            raise Refusal("there are bytes behind the JSON, but the input has no `binary_data_size`")
        values = _numbers(one.get("data"))
    else:
        if "data" in one:
            raise Refusal("an input has either `data` or `binary_data_size`")
        if type(size) is not int or size != len(binary) or size % 4:
            raise Refusal(f"`binary_data_size` is {size!r}, and {len(binary)} bytes are there")
        values = np.frombuffer(binary, "<f4")
    if values.size != count:
        raise Refusal(f"shape {one['shape']} means {count} values; there are {values.size}")
    batch = np.asarray(values, np.float32).reshape(one["shape"])
    check_values(batch, architecture)
    return batch


def _numbers(data: Any) -> Array:
    """Nested or flat lists of numbers as an array. Raises Refusal."""
    if not isinstance(data, list):
        raise Refusal("an input needs `data`, a list, or `binary_data_size`")
    try:
        found = np.asarray(data)
    except ValueError:
        raise Refusal("`data` has rows of different lengths") from None
    if found.size and found.dtype.kind not in "iuf":
        raise Refusal("`data` must be numbers")
    with np.errstate(over="ignore"):
        return found.astype(np.float32)


def _outputs(outputs: Any, binary: bool) -> tuple[Wanted, ...]:
    if outputs is None or outputs == []:
        return (Wanted(OUTPUT, binary),)
    if not isinstance(outputs, list) or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in outputs):
        raise Refusal("`outputs` must be a list of objects with a `name`")
    found = []
    for one in outputs:
        parameters = _object(one, "parameters")
        if "shared_memory_region" in parameters:
            raise Unsupported("shared memory is not supported; take the tensor's bytes")
        classes = parameters.get("classification", 0)
        found.append(wanted(one["name"], parameters.get("binary_data", binary) is True, classes))
    if len({one.name for one in found}) < len(found):
        raise Refusal("an output is asked for twice")
    return tuple(found)


def wanted(name: str, binary: bool, classes: Any) -> Wanted:
    """An output that may be asked for. Raises Refusal."""
    if type(classes) is not int or classes < 0:
        raise Refusal("`classification` must be how many classes")
    if classes and name != OUTPUT:
        raise Refusal(f"only {OUTPUT} are classes")
    return Wanted(name, binary, classes)


def answers(found: Mapping[str, Array], outputs: Sequence[Wanted], labels: Labels | None) -> list[Tensor]:
    """What is sent back: the values, or the best classes as Triton writes them, `value:index:label`."""
    tensors = []
    for one in outputs:
        values = found[one.name]
        if one.classes:
            best = np.argsort(-values, axis=1, kind="stable")[:, : one.classes]
            texts = [
                f"{values[row, index]:f}:{index}" + (f":{labels.names[index]}" if labels else "")
                for row, indices in enumerate(best)
                for index in indices.tolist()
            ]
            tensors.append(Tensor(one.name, texts, tuple(best.shape)))
        else:
            tensors.append(Tensor(one.name, values, tuple(values.shape)))
    return tensors


def write_response(head: Mapping[str, Any], tensors: Sequence[Tensor], outputs: Sequence[Wanted]) -> tuple[bytes, int | None]:
    """A response's body, and how long its JSON is where that is not all.

    Raises Refusal when a value can't be said in JSON.
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
        raise Refusal("the output is no finite number, which JSON can't say; take it as binary data") from None
    return b"".join([text, *raws]), len(text) if raws else None
