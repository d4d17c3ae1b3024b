"""The operators of a graph, and their results where all inputs are constant."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from typing import Any

import ml_dtypes
import numpy as np

from ..arrays import Array
from ..parameters import Part, Quantized, expanded, from_int4, is_int4, shaped
from .functions import LARGEST, OPERATORS, TooLarge, check_broadcast

VERSION = "\0"  # follows the name of a value for each time that it was replaced
DOMAINS = ("", "com.microsoft")  # of the operators that are known
BLOCKED = "ONNX Runtime arranged its weights for one processor; save the graph at the optimisation level extended"
INTEGERS = (2, 3, 4, 5, 6, 7, 12, 13)  # the types of ONNX that hold integers
FILLED = 2**27  # numbers of a constant that a file gives by its shape alone; fc6 of VGG has 1.03e8
FOLDED = 2**24  # numbers that operators on constants compute
_FEW = 64  # numbers of an argument such as a shape; NumPy has at most as many dimensions


@dataclass(frozen=True)
class Node:
    """An operator of a graph. Its attributes are numbers, text, lists of numbers, or arrays."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    domain: str = ""  # of its operator, if that is not ONNX's

    def __str__(self) -> str:
        name = self.outputs[0].partition(VERSION)[0] if self.outputs else ""
        return f"{self.domain}{'.' * bool(self.domain)}{self.operator} (node {name!r})"


def numbered(nodes: Iterable[Node], outputs: Sequence[str]) -> tuple[list[Node], list[str]]:
    """Nodes, and the graph's outputs, with one name for each value: in Caffe, operators can replace their input."""
    versions: dict[str, str] = {}  # those so far
    renamed = []
    for node in nodes:
        inputs = tuple(versions.setdefault(name, name) for name in node.inputs)
        for name in node.outputs:
            versions[name] = f"{versions[name]}{VERSION}" if name in versions else name
        renamed.append(replace(node, inputs=inputs, outputs=tuple(versions[name] for name in node.outputs)))
    return renamed, [versions.get(name, name) for name in outputs]


def in_order(nodes: list[Node]) -> list[Node]:
    """Nodes in the order of execution, which some tools don't keep. Raises ValueError if there is none."""
    producers = {name: place for place, node in enumerate(nodes) for name in node.outputs if name}
    before = {place: [producers[name] for name in node.inputs if name in producers] for place, node in enumerate(nodes)}
    if all(one < place for place, several in before.items() for one in several):
        return nodes
    return [nodes[place] for place in TopologicalSorter(before).static_order()]


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
    if values.ndim == 0:  # such as the factor of a GELU
        number = values.astype(np.float32) - (0 if zero_point is None else zero_point.reshape(-1)[:1].astype(np.float32))
        return np.asarray(number * scale.reshape(-1)[:1], np.float32).reshape(())
    axis %= values.ndim
    exact = zero_point is None or zero_point.dtype.kind != "f" or bool((zero_point == zero_point.astype(values.dtype)).all())
    if group:
        blocks = tuple(-(-size // group) if place == axis else size for place, size in enumerate(values.shape))
        if any(one is not None and one.shape != blocks for one in (scale, zero_point)):
            raise ValueError(f"scales of shape {list(scale.shape)} in groups of {group} of {list(values.shape)}")
        group = min(group, values.shape[axis])
    if group and ((axis, values.ndim) != (1, 2) or not exact):  # groups that don't run along rows

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


def unpacked(packed: Array, bits: int, count: int, signed: bool = False) -> Array:
    """The first `count` numbers of 4 or 8 bits in each row of bytes; `signed` ones less half of their range."""
    packed = packed ^ np.uint8(0x88 if bits == 4 else 0x80) if signed else packed
    if bits == 8:
        return packed.view(np.int8 if signed else np.uint8)[:, :count]
    values = from_int4(packed.reshape(-1), ml_dtypes.int4 if signed else ml_dtypes.uint4, 2 * packed.size)
    return values.reshape(len(packed), -1)[:, :count]


def multiplied(value: Part, factor: Array) -> Part:
    """A weight [out, ...] times one number, or one for each of its first axis."""
    if not isinstance(value, Quantized):
        return np.asarray(value * factor.reshape(-1, *[1] * (value.ndim - 1)), np.float32)
    along = value.scale * factor.reshape(-1, *[1] * (value.scale.ndim - 1))
    if factor.size > 1 and value.axis != 0 and not value.group:
        return multiplied(value.dequantize(), factor)
    return replace(value, scale=along.astype(np.float32))


def few(numbers: Any) -> list[Any]:
    """The numbers of an argument such as a shape. Raises ValueError if there are more than that can have."""
    found = np.asarray(numbers)
    if found.size > _FEW:
        raise ValueError(f"an argument of {found.size} numbers")
    return list(found.reshape(-1).tolist())


def filled(shape: Sequence[int], value: Any) -> Array:
    """A constant of equal numbers, which takes no memory. Raises TooLarge if a copy of it would take too much."""
    if math.prod(shape) > FILLED:
        raise TooLarge(f"makes {math.prod(shape)} numbers")
    return np.broadcast_to(value, shape)


def _check_folding(node: Node, values: list[Array | None]) -> None:
    """Raise TooLarge if one of FOLDING computes too many numbers; those that return a view compute none."""
    sizes = [value.size for value in values if value is not None]
    count = sum(sizes) if node.operator in ("Concat", "Floor", "ReduceProd") else 0
    first, places = (*values, None)[:2]
    if node.operator == "Gather" and first is not None and places is not None:
        count = places.size * (first.size // max(1, first.shape[node.attributes.get("axis", 0)]))
    if count > FOLDED:
        raise TooLarge(f"computes {count} numbers")


def folded(node: Node, inputs: list[Part | None]) -> Part | None:
    """A node's result for constant inputs; None if no layer could read it. Raises TooLarge for too many numbers."""
    attributes = node.attributes
    if node.operator == "Constant":
        content = next((value for key, value in attributes.items() if key.startswith("value") and value is not None), None)
        return None if content is None or isinstance(content, str) else np.asarray(content)
    first, *others = inputs or [None]
    if node.operator == "Identity" or first is None:
        return first
    if node.operator == "Cast":
        if attributes.get("to") not in INTEGERS:
            return first
        if math.prod(first.shape) > FOLDED:
            raise TooLarge(f"computes {math.prod(first.shape)} numbers")
        return expanded(first).astype(np.int64)
    if node.operator == "Transpose":
        permutation = attributes.get("perm") or list(range(len(first.shape)))[::-1]
        return transposed(first) if permutation == [1, 0] else expanded(first).transpose(permutation)
    arrays = [None if value is None else expanded(value) for value in others]
    if node.operator == "Reshape" and arrays and arrays[0] is not None:
        return shaped(first, tuple(few(arrays[0])))
    if node.operator in ("DequantizeLinear", "QuantizeLinear"):
        return _scaled(node, expanded(first), *(*arrays, None, None)[:2])
    if node.operator in FOLDING:
        _check_folding(node, [expanded(first), *arrays])
        return np.asarray(FOLDING[node.operator](attributes, expanded(first), *arrays))
    if node.operator in OPERATORS and max(math.prod(value.shape) for value in (first, *others) if value is not None) <= LARGEST:
        check_broadcast([value.shape for value in (first, *others) if value is not None], attributes)
        result = OPERATORS[node.operator](attributes, expanded(first), *arrays)
        return np.asarray(result).astype(expanded(first).dtype)  # integers divided give integers
    return None


def _scaled(node: Node, values: Array, scale: Array | None, zero_point: Array | None) -> Part | None:
    """The result of (De)QuantizeLinear."""
    if scale is None:
        return None
    axis = int(node.attributes.get("axis", 1)) if scale.ndim else 0
    if node.operator == "DequantizeLinear":
        return quantized(values, scale, zero_point, axis, int(node.attributes.get("block_size", 0)))
    zero_point = np.zeros((), np.uint8) if zero_point is None else zero_point
    length = values.shape[axis % values.ndim] if values.ndim else 1
    if scale.size not in (1, length) or zero_point.size not in (1, scale.size):
        raise ValueError(f"scales of shape {list(scale.shape)} for {list(values.shape)}")
    along = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)]
    limits = np.iinfo(zero_point.dtype)
    rounded = np.rint(values / scale.reshape(along)) + zero_point.reshape(along)
    return np.asarray(rounded.clip(limits.min, limits.max).astype(zero_point.dtype))


# Operators by name that compute shapes, or change the shape of a constant; functions of attributes and inputs.


def axes_of(attributes: Mapping[str, Any], given: Array | None) -> Array | None:
    """The axes of an operator, which are an attribute in older opsets and an input in newer ones."""
    if given is None and attributes.get("axes") is None:
        return None
    return np.asarray(few(attributes["axes"] if given is None else given), np.int64)


def _squeeze(attributes: Mapping[str, Any], value: Array, axes: Array | None = None) -> Array:
    found = axes_of(attributes, axes)
    return np.squeeze(value, None if found is None else tuple(found.tolist()))


def _unsqueeze(attributes: Mapping[str, Any], value: Array, axes: Array | None = None) -> Array:
    found = axes_of(attributes, axes)
    return value if found is None else np.expand_dims(value, tuple(found.tolist()))


def slices(attributes: Mapping[str, Any], rank: int, *given: Array | None) -> tuple[slice, ...]:
    """The slice along each dimension that a Slice takes."""
    starts, ends, axes, steps = (
        None if one is None else few(one)
        for one in (
            attributes.get(name, (*given, *[None] * 4)[place]) for place, name in enumerate(("starts", "ends", "axes", "steps"))
        )
    )
    if starts is None or ends is None:
        raise ValueError("a Slice without limits")
    found = [slice(None)] * rank
    for start, end, axis, step in zip(starts, ends, axes or range(rank), steps or [1] * len(starts), strict=False):
        found[axis] = slice(start, None if step < 0 and end < -(2**30) else end, step)
    return tuple(found)


def _range(attributes: Mapping[str, Any], *limits: Array) -> Array:
    start, limit, delta = (float(one) for one in limits)
    if abs(limit - start) > LARGEST * abs(delta):
        raise ValueError("a Range of too many numbers")
    return np.arange(start, limit, delta).astype(limits[0].dtype)


def _constant_of_shape(attributes: Mapping[str, Any], shape: Array) -> Array:
    value = np.asarray(attributes.get("value", np.zeros(1, np.float32)))
    return filled(few(shape), value.reshape(()))


FOLDING: dict[str, Callable[..., Any]] = {
    "ConstantOfShape": _constant_of_shape,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Shape": lambda attributes, value: np.array(value.shape, np.int64),
    "Flatten": lambda attributes, value: value.reshape(math.prod(value.shape[: attributes.get("axis", 1)]), -1),
    "Gather": lambda attributes, value, places: value.take(places, attributes.get("axis", 0)),
    "Slice": lambda attributes, value, *limits: value[slices(attributes, value.ndim, *limits)],
    "Concat": lambda attributes, *values: np.concatenate(values, attributes.get("axis", 1)),
    "Range": _range,
    "ReduceProd": lambda attributes, value, axes=None: np.prod(value, keepdims=bool(attributes.get("keepdims", 1))),
    "Floor": lambda attributes, value: np.floor(value),
}
