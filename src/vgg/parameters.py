"""Parameters as they may be stored: arrays, integers with scales, products of two smaller ones."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .architectures import Shape
from .arrays import Array
from .errors import ModelError

BLOCK_BYTES = 2 * 2**20


@dataclass(frozen=True)
class Quantized:
    """A parameter stored as integers: value = (values - zero_point) * scale.

    Scales run along `axis`, one each index; or, with a `group`, along each row, one for every `group` neighbours in it. A row
    is all that has the same first index, flattened.
    """

    values: Array  # int8 or uint8, or int4 or uint4 as ml_dtypes has them; the parameter's shape
    scale: Array  # float32: [n] along `axis`; with a group, [rows, numbers in a row / group, rounded up]
    zero_point: Array | None = None  # of the values' dtype and the scale's shape; none means 0
    axis: int = 0  # of scales without a group
    group: int = 0  # 0: no groups

    def __post_init__(self) -> None:
        wanted: Shape = (self.values.shape[self.axis],)
        if self.group:
            wanted = (self.shape[0], -(-math.prod(self.shape[1:]) // self.group))
        if self.scale.shape != wanted or (self.zero_point is not None and self.zero_point.shape != wanted):
            raise ModelError(f"a quantized parameter of shape {list(self.shape)} needs scales of shape {list(wanted)}")

    @property
    def shape(self) -> Shape:
        return tuple(self.values.shape)

    def dequantize(self) -> Array:
        """The parameter as float32."""
        return self.rows(0, len(self.values))

    def rows(self, start: int, stop: int) -> Array:
        """Some rows of the parameter as float32."""
        return self.take(slice(start, stop))

    def take(self, rows: slice | Array) -> Array:
        """The rows of the parameter with these indices, as float32."""
        values = self.values[rows]
        result = values.astype(np.float32).reshape(len(values), -1) if self.group else values.astype(np.float32)

        def spread(along: Array) -> Array:
            if self.group:
                return np.repeat(along[rows], self.group, 1)[:, : result.shape[1]]
            along = along.reshape([-1 if d == self.axis else 1 for d in range(values.ndim)])
            return along if self.axis else along[rows]

        if self.zero_point is not None:
            result -= spread(self.zero_point).astype(np.float32)
        result *= spread(self.scale)
        return result.reshape(values.shape)


@dataclass(frozen=True)
class LowRank:
    """A linear layer's weight as a product of two smaller ones: weight = left @ right."""

    left: Array | Quantized  # [units, rank]
    right: Array | Quantized  # [rank, inputs], or for fc6 [rank, channels, height, width]

    def __post_init__(self) -> None:
        if self.left.shape[1:] != self.right.shape[:1]:
            raise ModelError(f"{list(self.left.shape)} and {list(self.right.shape)} can't be multiplied")

    @property
    def shape(self) -> Shape:
        return (self.left.shape[0], *self.right.shape[1:])

    def dequantize(self) -> Array:
        """The parameter as float32."""
        return self.rows(0, self.shape[0])

    def rows(self, start: int, stop: int) -> Array:
        """Some rows of the parameter as float32."""
        return self.take(slice(start, stop))

    def take(self, rows: slice | Array) -> Array:
        """The rows of the parameter with these indices, as float32."""
        left = self.left.take(rows) if isinstance(self.left, Quantized) else self.left[rows]
        right = expanded(self.right)
        product: Array = left @ right.reshape(len(right), -1)
        return product.reshape(-1, *self.shape[1:])


Part = Array | Quantized
Parameter = Part | LowRank


def expanded(value: Parameter) -> Array:
    """A parameter as plain floats."""
    return value if isinstance(value, np.ndarray) else value.dequantize()


def shaped(value: Part, shape: Shape) -> Part:
    """A parameter in another shape; as floats where its scales would not outlive that."""
    if isinstance(value, np.ndarray):
        return value.reshape(shape)
    values = value.values.reshape(shape)
    kept = values.shape[:1] == value.shape[:1] and (value.group or value.axis == 0)
    return replace(value, values=values) if kept else value.dequantize().reshape(shape)


def blocks(value: Parameter, dtype: Any = None) -> Iterator[Array]:
    """A parameter in pieces of whole rows, each contiguous, little-endian and of a few MiB; `Quantized` as float32.

    Only a piece is in memory at a time, so a mapped parameter of any size and any strides can be written or hashed. All but
    the last have an even number of rows, so that 4-bit numbers fill whole bytes.
    """
    rows = max(2, BLOCK_BYTES // (8 * max(1, math.prod(value.shape[1:]))) * 2)
    if isinstance(value, LowRank):
        value = value.dequantize()
    for start in range(0, value.shape[0], rows):
        part = value.rows(start, start + rows) if isinstance(value, Quantized) else value[start : start + rows]
        kind = np.dtype(dtype or part.dtype).newbyteorder("<")
        if not part.flags.c_contiguous:
            part = part.copy(order="K")  # as it lies, which is fast to read; turning it is fast once it is in the cache
        yield np.ascontiguousarray(part, kind)


def as_bytes(block: Array) -> Array:
    """A contiguous little-endian array as files hold it, uint8: 4-bit numbers two a byte, the lower half first."""
    flat = block.reshape(-1).view(np.uint8)
    if not is_int4(block):
        return flat
    packed = flat[::2].copy()
    packed[: len(flat) // 2] |= flat[1::2] << 4
    return packed


def from_int4(packed: Array, dtype: Any, count: int) -> Array:
    """4-bit numbers out of the bytes that `as_bytes` makes of them."""
    flat = np.empty(2 * len(packed), np.uint8)
    np.bitwise_and(packed, 15, out=flat[::2])
    np.right_shift(packed, 4, out=flat[1::2])
    return flat[:count].view(dtype)


def is_int4(array: Array) -> bool:
    """Whether an array's numbers have 4 bits."""
    return array.dtype.name in ("int4", "uint4")


def contiguous(value: Parameter, dtype: Any = None) -> Array:
    """A parameter as one contiguous array: itself where it is one already, which copies nothing."""
    if isinstance(value, np.ndarray) and value.flags.c_contiguous and (dtype is None or value.dtype == dtype):
        return value
    return np.concatenate(list(blocks(value, dtype)))
