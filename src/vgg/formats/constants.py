"""What nodes make of constants: numbers that stand in the file, quantized or in other shapes than a layer reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..arrays import Array
from ..parameters import Part, Quantized, expanded, shaped


@dataclass(frozen=True)
class Node:
    """An operator of a graph. Its attributes are numbers, text, lists of numbers, or arrays."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


def transposed(value: Part) -> Part:
    """A matrix with its axes exchanged; as floats where scales in groups would not outlive that."""
    if not isinstance(value, Quantized):
        return value.T
    if value.group or value.values.ndim != 2:
        return value.dequantize().T
    turned = value.values.T
    if all((along == along[0]).all() for along in (value.scale, value.zero_point) if along is not None and len(along)):
        zero_point = None if value.zero_point is None else value.zero_point[0]
        return quantized(turned, value.scale[:1], zero_point, 0)  # one scale for all may run along any axis
    return Quantized(turned, value.scale, value.zero_point, 1 - value.axis)


def quantized(values: Array, scale: Array, zero_point: Array | None, axis: int, group: int = 0) -> Part:
    """Integers with their scales along an axis, or one for all; as floats where a `Quantized` can't hold them."""
    if values.ndim == 0:
        raise ValueError("a number stands where a tensor should")
    axis %= values.ndim
    if group and (axis, values.ndim) != (1, 2):  # groups that aren't neighbours in a row

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
    made = Quantized(values, scale.astype(np.float32), zero_point, axis, group)
    return made if values.dtype.name in ("int8", "uint8", "int4", "uint4") else made.dequantize()


def folded(node: Node, inputs: list[Part | None]) -> Part | None:
    """What a node makes of constants; None where it makes nothing that a layer could read."""
    attributes = node.attributes
    if node.operator == "Constant":
        found = next((value for key, value in attributes.items() if key.startswith("value") and value is not None), None)
        return None if found is None or isinstance(found, str) else np.asarray(found)
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
        axis = int(attributes.get("axis", 1)) if scale is not None and scale.ndim else 0
        if values is None or scale is None:
            return None
        if node.operator == "DequantizeLinear":
            return quantized(values, scale, zero_point, axis, int(attributes.get("block_size", 0)))
        zero_point = np.zeros((), np.uint8) if zero_point is None else zero_point
        along = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)]
        limits = np.iinfo(zero_point.dtype)
        rounded = np.rint(values / scale.reshape(along)) + zero_point.reshape(along)
        return np.asarray(rounded.clip(limits.min, limits.max).astype(zero_point.dtype))
    return None
