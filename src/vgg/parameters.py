"""Parameters as they are stored: arrays, integers with scales, or products of two matrices."""

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

    There is one scale for each index along `axis`; or, with a `group`, one for every `group` neighbours in each row. A row is
    everything with the same first index, flattened.

    Raises:
        ModelError: the scales or zero points have another shape.
    """

    values: Array  # the parameter's shape; int8 or uint8, or int4 or uint4 of ml_dtypes
    scale: Array  # float32: [n] along `axis`; with a group, [rows, numbers in a row / group, rounded up]
    zero_point: Array | None = None  # the values' dtype, the scale's shape; 0 if None
    axis: int = 0  # of scales without a group
    group: int = 0  # 0: no groups

    def __post_init__(self) -> None:
        expected: Shape = (self.values.shape[self.axis],)
        if self.group:
            expected = (self.shape[0], -(-math.prod(self.shape[1:]) // self.group))
        if self.scale.shape != expected or (self.zero_point is not None and self.zero_point.shape != expected):
            raise ModelError(f"a quantized parameter of shape {list(self.shape)} needs scales of shape {list(expected)}")

    @property
    def shape(self) -> Shape:
        return tuple(self.values.shape)

    def dequantize(self) -> Array:
        """The parameter as float32."""
        return self.take(slice(None))

    def take(self, rows: slice | Array) -> Array:
        """The rows with these indices, as float32."""
        values = self.values[rows]
        result = values.astype(np.float32).reshape(len(values), -1) if self.group else values.astype(np.float32)

        def spread(along: Array) -> Array:
            if self.group:
                return np.repeat(along[rows], min(self.group, result.shape[1]), 1)[:, : result.shape[1]]
            along = along.reshape([-1 if d == self.axis else 1 for d in range(values.ndim)])
            return along if self.axis else along[rows]

        if self.zero_point is not None:
            result -= spread(self.zero_point).astype(np.float32)
        result *= spread(self.scale)
        return result.reshape(values.shape)


@dataclass(frozen=True)
class LowRank:
    """A linear layer's weight as a product: weight = left @ right.

    Raises:
        ModelError: the ranks differ.
    """

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
        return self.take(slice(None))

    def take(self, rows: slice | Array) -> Array:
        """The rows with these indices, as float32."""
        left = self.left.take(rows) if isinstance(self.left, Quantized) else self.left[rows]
        right = expanded(self.right).astype(np.float32, copy=False)
        product: Array = left.astype(np.float32, copy=False) @ right.reshape(len(right), -1)
        return product.reshape(-1, *self.shape[1:])


Part = Array | Quantized
Parameter = Part | LowRank


def expanded(value: Parameter) -> Array:
    """A parameter as an array of floats."""
    return value if isinstance(value, np.ndarray) else value.dequantize()


def shaped(value: Part, shape: Shape) -> Part:
    """A parameter in another shape; as floats if its scales don't fit that shape."""
    if isinstance(value, np.ndarray):
        return value.reshape(shape)
    values = value.values.reshape(shape)
    kept = values.shape[:1] == value.shape[:1] and (value.group or value.axis == 0)
    return replace(value, values=values) if kept else value.dequantize().reshape(shape)


def blocks(value: Parameter, dtype: Any = None) -> Iterator[Array]:
    """A parameter in blocks of whole rows, each contiguous, little-endian and a few MiB large; `Quantized` as float32.

    Only one block is in memory at a time, so mapped parameters of any size and strides can be written or hashed. All blocks
    but the last have an even number of rows, so that 4-bit numbers fill whole bytes.
    """
    rows = max(2, BLOCK_BYTES // (8 * max(1, math.prod(value.shape[1:]))) * 2)
    if isinstance(value, LowRank):
        value = value.dequantize()
    for start in range(0, value.shape[0], rows):
        part = value.take(slice(start, start + rows)) if isinstance(value, Quantized) else value[start : start + rows]
        kind = np.dtype(dtype or part.dtype).newbyteorder("<")
        if not part.flags.c_contiguous:
            part = part.copy(order="K")  # in its own order, which is fast to read; reordering is fast in the cache
        yield np.ascontiguousarray(part, kind)


@np.errstate(over="ignore", invalid="ignore")
def is_finite(value: Parameter) -> bool:
    """Whether all numbers of a parameter are finite."""
    if isinstance(value, LowRank):
        return is_finite(value.left) and is_finite(value.right)
    if isinstance(value, Quantized):  # the integers are; their products with a scale are smaller than this one
        return bool(np.isfinite(value.scale.astype(np.float32) * np.float32(256)).all())
    return all(np.isfinite(block).all() for block in blocks(value, np.float32))


def as_bytes(block: Array) -> Array:
    """The bytes of a contiguous little-endian array in a file, uint8: two 4-bit numbers per byte, the lower half first."""
    flat = block.reshape(-1).view(np.uint8)
    if not is_int4(block):
        return flat
    packed = flat[::2].copy()
    packed[: len(flat) // 2] |= flat[1::2] << 4
    return packed


def from_int4(packed: Array, dtype: Any, count: int) -> Array:
    """4-bit numbers from the bytes that `as_bytes` returns."""
    flat = np.empty(2 * len(packed), np.uint8)
    np.bitwise_and(packed, 15, out=flat[::2])
    np.right_shift(packed, 4, out=flat[1::2])
    return flat[:count].view(dtype)


def is_int4(array: Array) -> bool:
    """Whether an array's numbers have 4 bits."""
    return array.dtype.name in ("int4", "uint4")


def contiguous(value: Parameter, dtype: Any = None) -> Array:
    """A parameter as one contiguous array; not copied if it is one already."""
    if isinstance(value, np.ndarray) and value.flags.c_contiguous and (dtype is None or value.dtype == dtype):
        return value
    return np.concatenate(list(blocks(value, dtype)))
