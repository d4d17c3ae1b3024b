"""JSON of untrusted clients, read within limits: nothing is parsed before its values are counted."""

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from ..arrays import Array
from . import limits
from .refusals import Refusal

CHUNK = 2**16  # bytes of numbers that are parsed at once, so that other threads can run in between
COUNTED = 2**20  # bytes in which commas are counted at once
STRUCTURE = re.compile(rb"[\s,\[\]]*+")
LINES_AS_BLANKS = bytes.maketrans(b"\r\n\t", b"   ")
MISSING = msgspec.Raw()  # of a field that is absent
BLANK = np.isin(np.arange(256), list(b" \t\r\n"))  # of each byte
COMMA, END_OF_ROW = re.compile(rb","), re.compile(rb"\]")


def parse(text: bytes | bytearray | memoryview, kind: Any) -> Any:
    """JSON as a type that msgspec knows. Raises msgspec.ValidationError for another type, and Refusal for invalid JSON.

    Strings may have line breaks: `base64` writes them, and shells put its output into JSON. They are read as blanks.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        spaced = bytes(text).translate(LINES_AS_BLANKS)
        if spaced != text:
            return parse(spaced, kind)
        raise Refusal(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Refusal("the body is not valid JSON: nested too deeply") from None


def parse_value(text: bytes | bytearray, name: str = "the body") -> Any:
    """Any JSON of few values.

    Raises:
        Refusal: the text is not JSON, contains NaN or Infinity, or has more than `limits.JSON_VALUES` values.
    """
    # Every value follows a bracket or a comma; commas in strings are counted too.
    if sum(text.count(mark) for mark in (b",", b"[", b"{")) > limits.JSON_VALUES:
        raise Refusal(f"{name} has more than {limits.JSON_VALUES:,} JSON values")
    try:
        return parse(text, Any)
    except msgspec.ValidationError as error:
        raise Refusal(f"the body is not valid JSON: {error}") from None


def parse_object(body: bytes | bytearray) -> dict[str, Any]:
    """A JSON object of few values. Raises Refusal as `parse_value`, or if it is not an object."""
    record = parse_value(body)
    if not isinstance(record, dict):
        raise Refusal("the body must be a JSON object")
    return record


def parse_numbers(text: memoryview, shape: Sequence[int]) -> Array:
    """A float32 array from JSON: a list of numbers, or nested lists whose innermost rows have equal lengths.

    Args:
        text: valid JSON.
        shape: the expected shape, of one number at least.

    Raises:
        Refusal: the text has other values than numbers, or not as many as the shape needs.
    """
    size = math.prod(shape)
    count = 1 + _count(text, ",")
    if count != size:
        raise Refusal(f"shape {list(shape)} needs {size} values, not {count}")
    array = np.empty(size, np.float32)
    place = done = length = 0
    while (place := _end(STRUCTURE.match(text, place), place)) < len(text):
        end = _end(END_OF_ROW.search(text, place), len(text) + 1) - 1
        start = done
        while place < end:
            # A chunk ends at a comma, or at the end of the row.
            stop = min(end, _end(COMMA.search(text, place + CHUNK), len(text) + 1) - 1) if place + CHUNK < end else end
            values = _floats(text[place:stop])
            if done + len(values) > size:
                raise Refusal(f"shape {list(shape)} needs {size} values, not more")
            with np.errstate(over="ignore"):
                array[done : done + len(values)] = values
            done, place = done + len(values), stop + 1
        length = length or done - start
        if done - start != length or length % shape[-1]:
            raise Refusal(f"`data` must be flat, or have rows of {shape[-1]} values")
    if done != size:
        raise Refusal(f"shape {list(shape)} needs {size} values, not {done}")
    return array.reshape(shape)


def measure(text: memoryview, depth: int) -> list[int]:
    """The shape of nested lists of numbers: the lengths of the first list of each level. `parse_numbers` checks their sum.

    Raises:
        Refusal: the lists are not nested `depth` deep.
    """
    opening = STRUCTURE.match(text)
    if opening is None or opening[0].count(b"[") != depth:
        raise Refusal(f"the numbers must be in lists nested {depth} deep")
    shape: list[int] = []
    closed = 0  # brackets up to the end of the first list of the level below
    for level in range(1, depth + 1):
        end = _end_of_list(text, level)
        if not end:
            raise Refusal(f"the numbers must be in lists nested {depth} deep")
        if level == 1:
            shape.append(1 + _count(text[:end], ","))
            closed = 1
        else:
            brackets = _count(text[:end], "]")
            shape.append((brackets - 1) // closed)
            closed = brackets
    return shape[::-1]


def _end_of_list(text: memoryview, level: int) -> int:
    """The place after the first of `level` closing brackets with nothing but white space between them; 0 without them."""
    run = 0  # closing brackets up to here
    for at in range(0, len(text), COUNTED):
        part = np.frombuffer(text[at : at + COUNTED], np.uint8)
        places = np.flatnonzero(~BLANK[part])
        if len(places):
            order = np.arange(len(places))
            runs = order - np.maximum.accumulate(np.where(part[places] == ord("]"), -1 - run, order))
            found = np.flatnonzero(runs >= level)
            if len(found):
                return at + int(places[found[0]]) + 1
            run = int(runs[-1])
    return 0


def _count(text: memoryview, mark: str) -> int:
    places = range(0, len(text), COUNTED)
    return sum(int(np.count_nonzero(np.frombuffer(text[at : at + COUNTED], np.uint8) == ord(mark))) for at in places)


def _end(found: "re.Match[bytes] | None", otherwise: int) -> int:
    return found.end() if found else otherwise


def _floats(text: memoryview) -> list[float]:
    if len(text) > CHUNK + limits.DIGITS:
        raise Refusal(f"`data` has a number of more than {limits.DIGITS:,} digits")
    try:
        return msgspec.json.decode(b"[%b]" % bytes(text), type=list[float])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Refusal("`data` must contain only numbers, flat or in nested lists") from None


def format_numbers(values: Array) -> bytes:
    """A flat JSON list of a float32 array. Raises Refusal for values that JSON can't represent."""
    if not np.isfinite(values).all():
        raise Refusal("the output has values that are not finite, which JSON can't represent; request binary data")
    flat = values.ravel()
    parts = (msgspec.json.encode(flat[at : at + CHUNK].tolist())[1:-1] for at in range(0, flat.size, CHUNK))
    return b"[%b]" % b",".join(parts)
