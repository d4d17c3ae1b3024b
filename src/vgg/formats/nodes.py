"""The operators of a graph, and their results where all inputs are constant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..parameters import Part, Quantized, expanded, is_int4, shaped


@dataclass(frozen=True)
class Node:
    """An operator of a graph. Its attributes are numbers, text, lists of numbers, or arrays."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def __str__(self) -> str:
        return f"{self.operator} (node {self.outputs[0] if self.outputs else ''!r})"


def transposed(value: Part) -> Part:
    """A matrix with its axes exchanged; as floats if scales in groups prevent that."""
    if not isinstance(value, Quantized):
        return value.T
    if value.group or value.values.ndim != 2:
        return value.dequantize().T
    values = value.values.T
    if all((along == along[0]).all() for along in (value.scale, value.zero_point) if along is not None and len(along)):
        zero_point = None if value.zero_point is None else value.zero_point[0]
        return quantized(values, value.scale[:1], zero_point, 0)  # a single scale can run along any axis
    return Quantized(values, value.scale, value.zero_point, 1 - value.axis)


def quantized(values: Array, scale: Array, zero_point: Array | None, axis: int, group: int = 0) -> Part:
    """Integers with scales along an axis, or a single scale; as floats if a `Quantized` can't hold them."""
    if values.ndim == 0:
        raise ValueError("a scalar instead of a tensor")
    axis %= values.ndim
    if group and (axis, values.ndim) != (1, 2):  # groups that don't run along rows

        def each(along: Array) -> Array:
            return np.repeat(along, group, axis).take(range(values.shape[axis]), axis).astype(np.float32)

        floats: Array = (values.astype(np.float32) - (0 if zero_point is None else each(zero_point))) * each(scale)
        return floats
    if not group:
        spread = (values.shape[axis],)
        scale = np.broadcast_to(scale.reshape(-1), spread)
        zero_point = None if zero_point is None else np.broadcast_to(zero_point.reshape(-1), spread)
    if zero_point is not None:
        zero_point = zero_point.astype(values.dtype) if zero_point.any() else None
    result = Quantized(values, scale.astype(np.float32), zero_point, axis, group)
    return result if is_int4(values) or values.dtype.name in ("int8", "uint8") else result.dequantize()


def folded(node: Node, inputs: list[Part | None]) -> Part | None:
    """A node's result for constant inputs; None if no layer could read it."""
    attributes = node.attributes
    if node.operator == "Constant":
        content = next((value for key, value in attributes.items() if key.startswith("value") and value is not None), None)
        return None if content is None or isinstance(content, str) else np.asarray(content)
    first, *others = inputs or [None]
    if node.operator in ("Identity", "Cast") or first is None:
        return first
    if node.operator == "ConstantOfShape":
        value = np.asarray(attributes.get("value", np.zeros(1, np.float32)))
        return np.broadcast_to(value.reshape(()), expanded(first).tolist())
    if node.operator == "Transpose":
        permutation = attributes.get("perm") or list(range(len(first.shape)))[::-1]
        return transposed(first) if permutation == [1, 0] else expanded(first).transpose(permutation)
    arrays = [None if value is None else expanded(value) for value in (first, *others)]
    if node.operator == "Reshape" and len(arrays) == 2 and arrays[1] is not None:
        return shaped(first, tuple(arrays[1].tolist()))
    if node.operator in ("DequantizeLinear", "QuantizeLinear"):
        values, scale, zero_point = (*arrays, None)[:3]
        if values is None or scale is None:
            return None
        axis = int(attributes.get("axis", 1)) if scale.ndim else 0
        if node.operator == "DequantizeLinear":
            return quantized(values, scale, zero_point, axis, int(attributes.get("block_size", 0)))
        zero_point = np.zeros((), np.uint8) if zero_point is None else zero_point
        along = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)]
        limits = np.iinfo(zero_point.dtype)
        rounded = np.rint(values / scale.reshape(along)) + zero_point.reshape(along)
        return np.asarray(rounded.clip(limits.min, limits.max).astype(zero_point.dtype))
    return None
