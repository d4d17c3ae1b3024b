"""Protobuf's wire format, as much of it as finds the tensors in a file without copying them, and writes them.

A message is a row of fields: a varint of number * 8 + type, then a varint (type 0), 8 bytes (1), a length and as many
bytes (2), or 4 bytes (5). See protobuf.dev/programming-guides/encoding. Field numbers are those of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from dataclasses import field as default
from typing import Any

import numpy as np

Buffer = mmap.mmap | bytes
Value = int | tuple[int, int]  # a number, or where the bytes begin and end

# The fields of a TensorProto that can hold its numbers.
FLOATS, INT32S, INT64S, RAW, DOUBLES = 4, 5, 7, 9, 10
BLOCK = 2**20


@dataclass(frozen=True)
class Tensor:
    """A TensorProto: its numbers lie at `begin`..`end` of the file, unless they are in another one."""

    name: str
    data_type: int
    dims: tuple[int, ...]
    begin: int = 0
    end: int = 0
    kind: int = 0  # the field that they stand in
    external: dict[str, str] = default(default_factory=dict)  # the other file: location, offset, length


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


def number(value: Value) -> int:
    """A field's number as a signed one. Raises ValueError when it is bytes."""
    if not isinstance(value, int):
        raise ValueError("bytes stand where a number should")
    return value - 2**64 if value >= 2**63 else value


def numbers(buffer: Buffer, value: Value) -> list[int]:
    """The numbers of a repeated field: one, or many that are packed."""
    if isinstance(value, int):
        return [number(value)]
    begin, end = value
    found = []
    while begin < end:
        one, begin = _varint(buffer, begin, end)
        found.append(number(one))
    return found


def floats(buffer: Buffer, value: Value) -> Any:
    """The float32 numbers of a repeated field, one or packed, as a view of the file."""
    begin, end = span(value)
    if (end - begin) % 4:
        raise ValueError("floats are cut short")
    return np.frombuffer(buffer, "<f4", (end - begin) // 4, begin)


def integers(buffer: Buffer, begin: int, end: int, dtype: Any, count: int) -> Any:
    """`count` packed varints as an array, decoded in blocks. Raises ValueError where there are more or fewer."""
    if count > end - begin or (np.dtype(dtype).itemsize > 2 and count > BLOCK):
        raise ValueError(f"{count} numbers can't be stored in {end - begin} bytes")
    result, done = np.empty(count, dtype), 0
    while begin < end:
        part = np.frombuffer(buffer, np.uint8, min(BLOCK, end - begin), begin)
        last = np.flatnonzero(part < 128)
        lengths = np.diff(last, prepend=-1)
        if not len(last) or lengths.max() > 10 or done + len(last) > count:
            raise ValueError("numbers are cut short")
        part = part[: last[-1] + 1]
        starts = last - lengths + 1
        shifts = 7 * (np.arange(len(part)) - np.repeat(starts, lengths)).astype(np.uint64)
        decoded = np.add.reduceat((part & 127).astype(np.uint64) << shifts, starts)
        result[done : done + len(last)] = decoded.astype(dtype)
        done += len(last)
        begin += len(part)
    if done != count:
        raise ValueError("numbers are missing")
    return result


def tensor(buffer: Buffer, value: Value) -> Tensor:
    """A TensorProto's head. Fields: dims 1, data_type 2, name 8, external_data 13, and those for the numbers."""
    dims: list[int] = []
    data_type, name, place, kind = 0, "", (0, 0), 0
    external: dict[str, str] = {}
    for part, field in fields(buffer, *span(value)):
        if part == 1:
            dims += numbers(buffer, field)
        elif part == 2:
            data_type = number(field)
        elif part == 8:
            name = text(buffer, field)
        elif part in (FLOATS, INT32S, INT64S, RAW, DOUBLES):
            place, kind = span(field), part
        elif part == 13:
            entry = dict(fields(buffer, *span(field)))  # key 1, value 2
            external[text(buffer, entry.get(1, (0, 0)))] = text(buffer, entry.get(2, (0, 0)))
    if min(dims, default=0) < 0:
        raise ValueError(f"tensor {name} has a negative dimension")
    return Tensor(name, data_type, tuple(dims), *place, kind, external)


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
