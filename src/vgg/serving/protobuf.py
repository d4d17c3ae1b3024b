"""Protobuf messages of untrusted clients: their values are counted before they are parsed."""

from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError, Message

from . import limits
from .refusals import Refusal

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # wire types
FLAT = (FieldDescriptor.TYPE_BYTES, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_FLOAT, FieldDescriptor.TYPE_DOUBLE)
PACKED = 500  # bytes of packed integers that count as one value


def parse(kind: type[Message], content: bytes) -> Any:
    """A message.

    Raises:
        Refusal: the content is no such message, or has more than `limits.MESSAGE_VALUES` values. Text, bytes and packed
            floats, whose values need no more memory than their bytes, are one value, as are `PACKED` bytes of integers.
    """
    try:
        _count(memoryview(content), kind.DESCRIPTOR, limits.MESSAGE_VALUES)
        return kind.FromString(content)
    except (DecodeError, IndexError):
        raise Refusal("the message is not valid") from None


def _count(content: memoryview, descriptor: Descriptor, left: int) -> int:
    """How many of `left` values remain after a message."""
    place = 0
    while place < len(content):
        key, place = _varint(content, place)
        field, wire = descriptor.fields_by_number.get(key >> 3), key & 7
        left -= 1
        if wire == VARINT:
            _, place = _varint(content, place)
        elif wire in (FIXED64, FIXED32):
            place += 8 if wire == FIXED64 else 4
        elif wire == LENGTH:
            size, place = _varint(content, place)
            if field and field.message_type:
                left = _count(content[place : place + size], field.message_type, left)
            elif field and field.type not in FLAT:  # packed integers: a byte may become eight
                left -= size // PACKED
            place += size
        else:
            raise DecodeError
        if left < 0:
            raise Refusal(f"the message has more than {limits.MESSAGE_VALUES:,} values")
    return left


def _varint(content: memoryview, place: int) -> tuple[int, int]:
    """A number of at most ten bytes, and the place after it. Raises IndexError if the content ends before."""
    value = 0
    for shift in range(0, 70, 7):
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise DecodeError
