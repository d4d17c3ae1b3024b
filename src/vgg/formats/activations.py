"""The quantization of activations that a graph contains, by the layer outputs of an architecture."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, cast

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..errors import ModelError
from ..heads import Step


@dataclass(frozen=True)
class Quantization:
    """How a layer output is stored in 8 bits: real value = (integer - zero_point) * scale.

    Integers are rounded half to even, and clipped to the range of the dtype.
    """

    scale: float  # a float32 number greater than 0
    zero_point: int  # of the dtype
    dtype: Literal["uint8", "int8"] = "uint8"

    @property
    def unsigned_zero(self) -> int:
        """The zero point if the same values are stored as uint8: signed integers plus 128."""
        return self.zero_point + (128 if self.dtype == "int8" else 0)


Activations = Mapping[str, tuple[Quantization, ...]]


class Recorder:
    """Records the quantizations along a chain of operations, each with the number of operations before it.

    Args:
        path: the file, for errors.

    Attributes:
        obstacle: why the chain can't be computed with integers as it is; "" if it can.
    """

    def __init__(self, path: object) -> None:
        self._path = path
        self.obstacle = ""
        self._found: dict[int, list[Quantization]] = {}
        self._last: Quantization | None = None

    def prevent(self, obstacle: str) -> None:
        """Record that the graph can't be computed with integers as it is; the first reason is kept."""
        self.obstacle = self.obstacle or obstacle

    def quantize(self, node: object, place: int, scale: Array, zero_point: Array) -> None:
        """Record that a node quantizes the value after `place` operations. Raises ModelError for invalid numbers."""
        self._last = self._read(node, scale, zero_point)
        if self._last:
            self._found.setdefault(place, []).append(self._last)

    def dequantize(self, node: object, scale: Array, zero_point: Array | None) -> None:
        """Check that a node reads integers as they were quantized last. Raises ModelError for invalid numbers."""
        dtype = np.dtype(self._last.dtype if self._last else np.uint8)
        zero_point = np.zeros((), dtype) if zero_point is None else zero_point
        if self._read(node, scale, zero_point) != self._last:
            self.prevent(f"{node} reads integers with another scale or zero point than they were quantized with")

    def forget(self, place: int) -> bool:
        """Remove the quantizations after `place` operations; whether there were any."""
        return bool(self._found.pop(place, None))

    def _read(self, node: object, scale: Array, zero_point: Array) -> Quantization | None:
        """One scale and zero point; None, with an obstacle, if the engine's integers can't express them."""
        if zero_point.dtype.name in ("float64", "float32", "float16", "bfloat16"):
            raise ModelError(f"{self._path}: {node} has a zero point of {zero_point.dtype.name}, not of an integer type")
        numbers = scale.astype(np.float32).reshape(-1)
        if not numbers.size or not (np.isfinite(numbers) & (numbers > 0)).all():
            found = next((one for one in numbers.tolist() if not (math.isfinite(one) and one > 0)), "none")
            raise ModelError(f"{self._path}: {node} has the scale {found}; that of activations must be a number greater than 0")
        if zero_point.dtype.name not in ("uint8", "int8"):
            self.prevent(f"{node} quantizes to {zero_point.dtype.name}")
        elif (numbers != numbers[0]).any() or (zero_point != zero_point.reshape(-1)[:1]).any():
            self.prevent(f"{node} has several scales of one layer output")
        else:
            dtype = cast("Literal['uint8', 'int8']", zero_point.dtype.name)
            return Quantization(float(numbers[0]), int(zero_point.reshape(-1)[0]), dtype)
        return None

    def assigned(self, operations: Sequence[Step], architecture: Architecture) -> dict[str, tuple[Quantization, ...]]:
        """The quantizations of each layer output, in order; empty if there is an obstacle.

        Those before a ReLU are assigned to its output: rounding and ReLU can change places, since 0 is rounded to itself. So
        can rounding and max pooling, whose input therefore has the quantizations of its output if it has none itself.

        Args:
            operations: those of the chain, some of which the architecture may not have.
            architecture: of the chain.
        """
        layers = [layer for layer in architecture.layers if layer.operation not in ("flatten", "dropout")]
        values, reached = ["data"], 0  # the layer output after each number of operations
        for step in operations:
            if reached < len(layers) and layers[reached].operation == step.operation:
                reached += 1
            elif reached == len(layers) and step.operation != "dropout":
                break  # of scores
            values.append(layers[reached - 1].value if reached else "data")
        following = dict(zip([layer.value for layer in layers], [*layers[1:], None], strict=True))
        found: dict[str, list[Quantization]] = {}
        for place in sorted(self._found):
            if place >= len(values):
                continue
            value, after = values[place], following.get(values[place])
            if value not in ("data", *architecture.values):
                if after is None or after.operation != "relu":
                    self.prevent(f"{value} is quantized before its {after.operation if after else 'end'}")
                    continue
                value = after.value
            found.setdefault(value, []).extend(self._found[place])
        for before, layer in pairwise(layers):
            if layer.operation == "max_pool" and layer.value in found:
                found.setdefault(before.value, found[layer.value])
        if len(_distinct(found.get("data", ()))) > 1:
            self.prevent("the images are quantized twice")
        if not found:
            self.prevent("no activation is quantized with a constant scale")
        if any(layer.operation == "batch_norm" for layer in architecture.layers):
            self.prevent("it has batch normalisation")
        return {} if self.obstacle else {value: _distinct(several) for value, several in found.items()}


def _distinct(several: Sequence[Quantization]) -> tuple[Quantization, ...]:
    """Quantizations without those that repeat the one before, which change nothing."""
    return tuple(one for place, one in enumerate(several) if not place or one != several[place - 1])
