"""The images and numbers in requests of TensorFlow Serving's REST interface."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ..arrays import Array
from ..network import Network
from . import base64_text, json_text, limits, tensors
from .datatypes import FP32, from_json
from .json_text import MISSING
from .memory import Reservation
from .refusals import Refusal, TooLarge
from .tensors import Items

IMAGE_NAMES = ("b64", "image_bytes", "image", "data", "input")  # of the value, among several of an instance
FORMS = 'send {"instances": [{"b64": "…"}]}, or numbers [batch, 3, height, width] or [batch, height, width, 3]'
FIRST = re.compile(rb"[\s\[]*+(.?)", re.DOTALL)  # the first value in nested lists
Object = dict[str, msgspec.Raw]


class _Body(msgspec.Struct):
    """The fields of a request as unparsed JSON."""

    instances: msgspec.Raw = MISSING
    inputs: msgspec.Raw = MISSING
    examples: msgspec.Raw = MISSING


@dataclass(frozen=True)
class Instances:
    """The images or numbers of a request."""

    items: Items
    columns: bool  # whether the request has `inputs`, and so expects `outputs`


class Reader:
    """Reads the instances of a request.

    Args:
        network: of the requested model.
        max_images: maximum number of instances.
        memory: reserved for what is computed from the body.
    """

    def __init__(self, network: Network, max_images: int, memory: Reservation) -> None:
        self._architecture, self._max_images, self._memory = network.architecture, max_images, memory

    def read(self, body: bytes | bytearray, *names: str) -> Instances:
        """The instances in one of several fields of a body. Raises Refusal if there are none, or they are invalid."""
        if body and body[0] > 127:
            raise Refusal(f"the body is not JSON; {FORMS}. Send an image as it is to POST /v1/classify")
        try:
            record = json_text.parse(body, _Body)
        except msgspec.ValidationError:
            raise Refusal(f"the body must be a JSON object; {FORMS}") from None
        given = [name for name in names if getattr(record, name) is not MISSING]
        if len(given) != 1:
            raise Refusal(f"the body must have {' or '.join(f'`{name}`' for name in names)}; {FORMS}")
        text = memoryview(getattr(record, given[0]))
        if given == ["inputs"]:
            text = _only_column(text)
        if bytes(text[:1]) != b"[":
            raise Refusal(f"`{given[0]}` must be a list; {FORMS}")
        return Instances(self._items(text), given == ["inputs"])

    def _items(self, text: memoryview) -> Items:
        found = FIRST.match(text)
        first = found[1] if found else b""
        if first == b'"':
            self._memory.take(3 * len(text))  # the texts, a copy that is decoded, and what they encode
            return self._images(_flat(json_text.parse_value(bytes(text))))
        if first == b"{":
            return self._objects(text, nested=found is not None and found[0].count(b"[") > 1)
        if first == b"]":
            raise Refusal("the request contains no image")
        return self._numbers(text, 4)

    def _objects(self, text: memoryview, nested: bool) -> Items:
        """Instances that are objects, with the text of an image or with numbers; `nested`: texts in lists of their own."""
        content = bytes(text)
        if max(content.count(mark) for mark in (b"{", b":", b'"', *((b",", b"[") if nested else ()))) > limits.JSON_VALUES:
            raise Refusal(f"the instances have more than {limits.JSON_VALUES:,} JSON values")
        values = [_value(one) for one in _flat(_parse(content, list[list[Object]] if nested else list[Object]))]
        if all(bytes(value[:1]) == b'"' for value in values):
            self._memory.take(3 * len(text))
            return self._images([_parse(value, str) for value in values])
        self._check_number(len(values))
        rows = [self._numbers(value, 3) for value in values]
        if len({row.shape for row in rows}) > 1:
            raise Refusal("the instances must have the same shape")
        return np.concatenate(rows)

    def _images(self, texts: Sequence[Any]) -> Items:
        if not all(isinstance(text, str) for text in texts):
            raise Refusal(f"an instance must be base64 text; {FORMS}")
        self._check_number(len(texts))
        return tensors.images_of([base64_text.decode(text, f"instance {index}") for index, text in enumerate(texts)])

    def _numbers(self, text: memoryview, depth: int) -> Array:
        """Nested lists of numbers, of one image or of a batch, as float32 [batch, 3, height, width]."""
        shape = [1, 1, *json_text.measure(text, depth)][-4:]
        self._check_number(shape[0])
        last = shape[1] != 3 and shape[3] == 3  # channels
        tensors.check_images([shape[0], shape[3], *shape[1:3]] if last else shape, self._architecture)
        self._memory.take(8 * min(int(np.prod(shape)), len(text)))
        values = from_json(json_text.parse_numbers(text, shape), FP32)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if last else values

    def _check_number(self, count: int) -> None:
        if count > self._max_images:
            raise TooLarge(f"{count} images in one request; the maximum is {self._max_images}")


def _only_column(text: memoryview) -> memoryview:
    """The values of `inputs`: a list, or an object with one named list, or with one value as base64."""
    if bytes(text[:1]) != b"{":
        return text
    content = bytes(text)
    if max(content.count(mark) for mark in (b":", b'"')) > limits.JSON_VALUES:
        raise Refusal(f"`inputs` has more than {limits.JSON_VALUES:,} JSON values")
    value = _value(_parse(content, Object))
    return value if bytes(value[:1]) == b"[" else memoryview(b"[%b]" % bytes(value))


def _value(instance: Mapping[str, msgspec.Raw]) -> memoryview:
    """The JSON of the image or the numbers of an instance, which may be in an object of its own: `{"image": {"b64": …}}`."""
    for _ in range(2):
        names = [name for name in IMAGE_NAMES if name in instance] or list(instance)
        if len(names) != 1 and len(instance) != 1:
            raise Refusal(f"an instance must have one value, or one that is called {' or '.join(IMAGE_NAMES)}; {FORMS}")
        value = memoryview(instance[names[0]])
        if bytes(value[:1]) != b"{":
            return value
        instance = _parse(value, Object)
    raise Refusal(f"an instance has more than two nested objects; {FORMS}")


def _parse(text: bytes | memoryview, kind: Any) -> Any:
    try:
        return json_text.parse(text, kind)
    except msgspec.ValidationError:
        raise Refusal(f"the instances must all have the same form; {FORMS}") from None


def _flat(values: Sequence[Any]) -> list[Any]:
    """Values that may be in lists of their own, as in a batch of shape [batch, 1]."""
    return [value for one in values for value in (one if isinstance(one, list) else [one])]
