"""Tensors of the Open Inference Protocol: what REST (rest_tensors) and gRPC (grpc_tensors) share."""

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
from . import datatypes, json_text, limits
from .base64_text import image_bytes
from .bodies import EncodedImage
from .datatypes import BYTES, DATATYPES, FP32
from .memory import Reservation
from .refusals import Refusal, TooLarge

INPUT, OUTPUT = "data", "logits"
HEADER = "inference-header-content-length"
BINARY_VALUE, JSON_VALUE = 4, 24  # bytes of a value of a response, at most

Items = Array | tuple[EncodedImage, ...]  # of a request: float32 [batch, 3, height, width], or images to be decoded


@dataclass(frozen=True)
class RequestedOutput:
    """An output that a request asks for."""

    name: str
    binary: bool = False
    classes: int = 0  # number of best classes to return as text; 0: return the values


@dataclass(frozen=True)
class Inference:
    """A request for inference."""

    items: Items
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
        return FP32.name if isinstance(self.values, np.ndarray) else BYTES

    def raw(self) -> bytes:
        """The values as bytes: little-endian float32, or each UTF-8 text after its length as uint32."""
        if isinstance(self.values, np.ndarray):
            return np.ascontiguousarray(self.values, "<f4").tobytes()
        return b"".join(struct.pack("<I", len(text)) + text for text in (one.encode() for one in self.values))


@dataclass(frozen=True)
class InputTensor:
    """The input tensor of a request, before its values are read."""

    datatype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """The number of values."""
        return math.prod(self.shape)

    @property
    def encoded(self) -> bool:
        """Whether it is a batch of encoded images: BYTES, or UINT8 [batch, length], as DALI's clients send them."""
        return self.datatype == BYTES or len(self.shape) == 2

    def parse_raw(self, raw: bytes | bytearray | memoryview) -> Items:
        """The items in the bytes of the tensor. Raises Refusal if they are not as many as the shape needs."""
        if self.datatype == BYTES:
            return images_of(_split(memoryview(raw), self))
        dtype = DATATYPES[self.datatype].dtype
        if len(raw) != self.count * dtype.itemsize:
            raise Refusal(
                f"shape {list(self.shape)} of {self.datatype} needs {self.count * dtype.itemsize} bytes, not {len(raw)}"
            )
        return self.parse_array(np.frombuffer(raw, dtype))

    def parse_array(self, values: Array) -> Items:
        """The items in an array of the datatype with as many values as the shape needs."""
        if self.encoded:
            return images_of([row.tobytes() for row in values.reshape(self.shape)])
        return datatypes.to_float32(values, DATATYPES[self.datatype]).reshape(self.shape)


def check_input(name: Any, datatype: Any, shape: Any, architecture: Architecture, max_images: int) -> InputTensor:
    """An input tensor.

    Raises:
        Refusal: the network takes no such tensor.
        TooLarge: it has more images than `max_images`.
    """
    if name != INPUT:
        raise Refusal(f"unknown input {name!r}; the input is {INPUT!r}" if isinstance(name, str) else "an input needs a `name`")
    if not isinstance(datatype, str):
        raise Refusal("an input needs a `datatype`")
    if datatype not in DATATYPES and datatype != BYTES:
        raise Refusal(f"unsupported datatype {datatype!r:.50}; the input is {datatypes.NAMES}, or {BYTES} for encoded images")
    if not (isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)):
        raise Refusal("`shape` must be a list of integers of 0 or more")
    tensor = InputTensor(datatype, tuple(shape))
    if datatype == BYTES and len(shape) != 1 and shape[1:] != [1]:
        raise Refusal(f"`shape` of {BYTES} must be [batch] or [batch, 1]")
    if datatype != BYTES and len(shape) != 4 and not (datatype == "UINT8" and len(shape) == 2):
        raise Refusal(f"`shape` must be [batch, 3, height, width], not {len(shape)} integers")
    if not shape[0]:
        raise Refusal("the batch is empty")
    if shape[0] > max_images:
        raise TooLarge(f"{shape[0]} images in one request; the maximum is {max_images}")
    if not tensor.encoded:
        check_images(shape, architecture)
    return tensor


def check_images(shape: Sequence[int], architecture: Architecture) -> None:
    """Raise Refusal if a network doesn't take images of a shape, [batch, 3, height, width]."""
    if max(shape[1:]) > limits.SIDE:
        raise Refusal(f"height and width must be at most {limits.SIDE}")
    try:
        check_batch(architecture, np.broadcast_to(np.float32(0), shape))
    except ModelError as error:
        raise Refusal(str(error)) from None


def images_of(contents: Sequence[bytes]) -> tuple[EncodedImage, ...]:
    """Images from the elements of a tensor."""
    names = ["image"] if len(contents) == 1 else [f"image {index}" for index in range(len(contents))]
    return tuple(EncodedImage(name, image_bytes(data)) for name, data in zip(names, contents, strict=True))


def _split(raw: memoryview, tensor: InputTensor) -> list[bytes]:
    """The elements of a BYTES tensor, each after its length as uint32."""
    elements, place = [], 0
    for _ in range(tensor.count):
        (length,) = struct.unpack_from("<I", raw, place) if place + 4 <= len(raw) else (2**32,)
        elements.append(raw[place + 4 : place + 4 + length])
        place += 4 + length
    if place != len(raw):
        raise Refusal(f"a {BYTES} tensor must be {tensor.count} elements, each after its length in 4 bytes, little-endian")
    return [bytes(one) for one in elements]


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


def check_outputs(inference: Inference, network: Network, max_size: int, memory: Reservation) -> None:
    """Reserve memory for the outputs of a request.

    Raises:
        TooLarge: the response would be larger than `max_size` bytes.
        Busy: there is not enough memory now.
    """
    items, side = inference.items, network.preprocessing.crop
    batch, _, height, width = items.shape if isinstance(items, np.ndarray) else (len(items), 3, side, side)
    size = 0
    for one in inference.outputs:
        each = BINARY_VALUE if one.binary else JSON_VALUE
        size += math.prod(network.architecture.shape(one.name, batch, height, width)) * each
    if size > max_size:
        raise TooLarge(f"the outputs may have {size >> 20} MiB, more than {max_size >> 20} MiB; request fewer, or binary data")
    memory.take(3 * size)  # from the engine, stacked, and as a response
