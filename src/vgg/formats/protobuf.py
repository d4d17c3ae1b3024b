"""Protobuf's wire format: enough of it to find the tensors in a file without copying them, and to write them.

A message is a sequence of fields: a varint of number * 8 + type, then a varint (type 0), 8 bytes (1), a length and that many
bytes (2), or 4 bytes (5). See protobuf.dev/programming-guides/encoding.
"""

import mmap
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

Buffer = mmap.mmap | bytes
Value = int | tuple[int, int]  # a number, or the start and end of the bytes

BLOCK = 2**20


def fields(buffer: Buffer, begin: int, end: int) -> Iterator[tuple[int, Value]]:
    """The numbers and values of a message's fields. Raises ValueError if the bytes are no message."""
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
            raise ValueError(f"unknown field type {kind}")
        if begin + size > end:
            raise ValueError("a field extends beyond its message")
        yield key >> 3, (begin, begin + size)
        begin += size


def message(buffer: Buffer, value: Value, decoders: Mapping[int, Callable[[Buffer, Value], Any]]) -> dict[int, list[Any]]:
    """The fields of a message by number, decoded, in order; fields without a decoder are left out."""
    decoded: dict[int, list[Any]] = {number: [] for number in decoders}
    for number, content in fields(buffer, *span(buffer, value)):
        if number in decoders:
            decoded[number].append(decoders[number](buffer, content))
    return decoded


def last(values: list[Any], default: Any) -> Any:
    """The value of a field that should occur once."""
    return values[-1] if values else default


# Decoders. They raise ValueError if a field is of another type.


def span(buffer: Buffer, value: Value) -> tuple[int, int]:
    """The start and end of a field's bytes."""
    if isinstance(value, int):
        raise ValueError("a field is a number instead of bytes")
    return value


def text(buffer: Buffer, value: Value) -> str:
    begin, end = span(buffer, value)
    return bytes(buffer[begin:end]).decode()


def lenient_text(buffer: Buffer, value: Value) -> str:
    """Bytes that may be no text."""
    begin, end = span(buffer, value)
    return bytes(buffer[begin:end]).decode(errors="replace")


def number(buffer: Buffer, value: Value) -> int:
    """A signed number."""
    if not isinstance(value, int):
        raise ValueError("a field is bytes instead of a number")
    return value - 2**64 if value >= 2**63 else value


def numbers(buffer: Buffer, value: Value) -> list[int]:
    """One occurrence of a repeated field: a single number, or packed ones."""
    if isinstance(value, int):
        return [number(buffer, value)]
    begin, end = value
    values = []
    while begin < end:
        one, begin = _varint(buffer, begin, end)
        values.append(number(buffer, one))
    return values


def floats(buffer: Buffer, value: Value, dtype: str = "<f4") -> Any:
    """The numbers of a repeated field of floats, one or packed, as a view of the file."""
    (begin, end), size = span(buffer, value), np.dtype(dtype).itemsize
    if (end - begin) % size:
        raise ValueError("truncated floats")
    return np.frombuffer(buffer, dtype, (end - begin) // size, begin)


def integers(buffer: Buffer, begin: int, end: int, dtype: Any, count: int) -> Any:
    """`count` packed varints as an array, decoded in blocks. Raises ValueError if there are more or fewer."""
    if count > end - begin or (np.dtype(dtype).itemsize > 2 and count > BLOCK):
        raise ValueError(f"{count} numbers in {end - begin} bytes")
    result, done = np.empty(count, dtype), 0
    while begin < end:
        part = np.frombuffer(buffer, np.uint8, min(BLOCK, end - begin), begin)
        last = np.flatnonzero(part < 128)
        lengths = np.diff(last, prepend=-1)
        if not len(last) or lengths.max() > 10 or done + len(last) > count:
            raise ValueError("truncated numbers")
        part = part[: last[-1] + 1]
        starts = last - lengths + 1
        shifts = 7 * (np.arange(len(part)) - np.repeat(starts, lengths)).astype(np.uint64)
        decoded = np.add.reduceat((part & 127).astype(np.uint64) << shifts, starts)
        result[done : done + len(last)] = decoded.astype(dtype)
        done += len(last)
        begin += len(part)
    if done != count:
        raise ValueError("missing numbers")
    return result


def varint(value: int) -> bytes:
    """A number as a varint."""
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    return bytes([*encoded, value])


def field(number: int, value: int | bytes) -> bytes:
    """One field: a number, or bytes after their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return prefix(number, len(value)) + value


def prefix(number: int, length: int) -> bytes:
    """The bytes of a field that precede its content of this length."""
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
    raise ValueError("a truncated number")
