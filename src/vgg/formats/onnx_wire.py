"""Protobuf's wire format, as much of it as finds the tensors in an ONNX file without copying them, and writes them.

A message is a row of fields: a varint of number * 8 + type, then a varint (type 0), 8 bytes (1), a length and as many
bytes (2), or 4 bytes (5). See protobuf.dev/programming-guides/encoding. Field numbers are those of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

Buffer = mmap.mmap | bytes
Value = int | tuple[int, int]  # a number, or where the bytes begin and end


@dataclass(frozen=True)
class Tensor:
    """A TensorProto: its numbers lie at `begin`..`end` of the file when they are stored raw."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    begin: int
    end: int
    raw: bool


def fields(buffer: Buffer, begin: int, end: int) -> Iterator[tuple[int, Value]]:
    """The fields of a message: their numbers and values. Raises ValueError where the bytes are no message."""
    while begin < end:
        key, begin = _varint(buffer, begin, end)
        kind = key & 7
        if kind == 0:
            value, begin = _varint(buffer, begin, end)
            yield key >> 3, value
            continue
        size = 8 if kind == 1 else 4
        if kind == 2:
            size, begin = _varint(buffer, begin, end)
        elif kind not in (1, 5):
            raise ValueError(f"no field has the type {kind}")
        if begin + size > end:
            raise ValueError("a field reaches beyond its message")
        yield key >> 3, (begin, begin + size)
        begin += size


def span(value: Value) -> tuple[int, int]:
    """The place of a field's bytes. Raises ValueError when it is a number."""
    if isinstance(value, int):
        raise ValueError("a number stands where bytes should")
    return value


def text(buffer: Buffer, value: Value) -> str:
    """A field's bytes as text."""
    begin, end = span(value)
    return bytes(buffer[begin:end]).decode()


def tensor(buffer: Buffer, value: Value) -> Tensor:
    """A TensorProto's head. Fields: dims 1, data_type 2, name 8, raw_data 9."""
    dims: list[int] = []
    data_type, name, place, raw = 0, "", (0, 0), False
    for number, field in fields(buffer, *span(value)):
        if number == 1 and isinstance(field, int):
            dims.append(field)
        elif number == 1:
            begin, end = span(field)
            while begin < end:
                dim, begin = _varint(buffer, begin, end)
                dims.append(dim)
        elif number == 2 and isinstance(field, int):
            data_type = field
        elif number == 8:
            name = text(buffer, field)
        elif number == 9:
            place, raw = span(field), True
    return Tensor(name, data_type, tuple(dims), *place, raw)


def varint(value: int) -> bytes:
    """A number as a varint."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, value: int | bytes) -> bytes:
    """One field: a number, or bytes with their length before them."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return prefix(number, len(value)) + value


def prefix(number: int, length: int) -> bytes:
    """What stands before the bytes of a field."""
    return varint(number << 3 | 2) + varint(length)


def _varint(buffer: Buffer, begin: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if begin >= end:
            break
        byte = buffer[begin]
        begin += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, begin
    raise ValueError("a number is cut short")
