"""Operators of each element, and those that take channels of the input in another order."""

from dataclasses import replace

import numpy as np

from ..arrays import Array
from ..heads import Step
from ..parameters import Part, expanded
from .frontier import Frontier
from .functions import OPERATORS, Function
from .nodes import INTEGERS, Node, axes_of, quantized, slices
from .onnx_file import DTYPES

# Operators that change nothing at inference.
_UNCHANGING = ("Identity", "Dropout", "Cast", "DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear")
_COLOURS = 3  # channels of the input
_ORDERS = ((0, 1, 2), (2, 1, 0))


class Elements(Frontier):
    """Takes the operators whose results are functions of each element; see `Frontier.function`."""

    partial = ""  # the pooling of which only rows or columns are done; the others must be next
    padding = 0  # pixels of zeros that an operator has put around the map, for the next convolution

    def function(self, node: Node) -> bool:
        self._unfinished(node)
        if node.operator in _UNCHANGING:
            self._unchanging(node)
        elif node.operator in ("Concat", "QLinearConcat"):
            self._concatenate(node)
        elif node.operator in ("Split", "Slice", "Gather", "GatherND") and len(self.dimensions.axes) > 1:
            self._take(node)
        elif node.operator == "Unsqueeze" and (found := self.functions.get(node.inputs[0])) and found.dropped:
            self._restore(node, found)
        elif node.operator == "Exp" and self.ends_in("log_softmax") and node.inputs[0] == self.value:
            self.operations[-1] = Step("softmax")
            self.record(node, self.functions[self.value])
        elif node.operator in OPERATORS:
            self.computed(node, node.operator, node.inputs)
        elif node.operator.removeprefix("QLinear") in OPERATORS:
            self._quantized(node)
        else:
            return False
        return True

    def _unfinished(self, node: Node) -> None:
        """Raises ModelError if the operators before a node need others than this one."""
        if node.operator in (*_UNCHANGING, "Transpose"):
            return
        if self.partial and not node.operator.startswith(("Reduce", "MatMul")):
            raise self.error(f"{node} reads a map of which only a side is pooled")
        if (self.padding and "Conv" not in node.operator) or self.pair:
            raise self.error(f"unsupported operator {node}")

    def weight(self, node: Node, place: int, axis: int) -> Part:
        """Quantized numbers, scale and zero point: a node's three inputs from number `place` on."""
        values, scale, zero_point = (self.array(node, place + offset) for offset in range(3))
        return quantized(values, scale, zero_point, axis)

    def zero_point(self, node: Node, place: int) -> Array:
        """The zero point of a node's result; without one, 0 of the type that the node names, or of uint8."""
        found, uint8 = self.optional(node, place), 2
        return np.zeros((), DTYPES[node.attributes.get("output_dtype") or uint8]) if found is None else found

    def integers_read(self, node: Node, place: int) -> None:
        """Check the scale and zero point with which a node reads the value; `place` is that of the scale."""
        self.recorder.dequantize(node, self.array(node, place), self.optional(node, place + 1))

    def integers_written(self, node: Node, place: int) -> None:
        """Record the scale and zero point of a node's result, if it has them; `place` is that of the scale."""
        scale = self.optional(node, place)
        if scale is not None:
            self.quantize(node, scale, self.zero_point(node, place + 1))

    def _quantized(self, node: Node) -> None:
        """An operator of integers, with a scale and zero point after each input, and after all of them for the output."""
        operator = node.operator.removeprefix("QLinear")
        count = 2 if operator in ("Add", "Mul") else 1
        operands: list[str | Array] = [
            name if name in self.functions else expanded(self.weight(node, 3 * place, 0))
            for place, name in enumerate(node.inputs[: 3 * count : 3])
        ]
        for place, one in enumerate(operands):
            if isinstance(one, str):
                self.integers_read(node, 3 * place + 1)
        self.computed(node, operator, operands)
        if self.value == node.outputs[0]:
            self.integers_written(node, 3 * count)
        else:
            self.recorder.prevent(f"{node} quantizes a part of an activation")

    def _unchanging(self, node: Node) -> None:
        function = self.functions.get(node.inputs[0])
        if function is None:
            raise self.error(f"{node} reads {node.inputs[0]}, which is not constant")
        if node.operator == "Cast" and node.attributes.get("to") in INTEGERS:
            raise self.error(f"unsupported operator {node}: it rounds to integers")
        if node.operator == "Dropout":
            training = self.optional(node, 2)
            if training is not None and training.any():
                raise self.error(f"{node} is in training mode")
            ratio = self.optional(node, 1)
            ratio = np.asarray(node.attributes.get("ratio", 0.5)) if ratio is None else ratio
            if self.dimensions.significant == ("N", "C") and self.count("linear"):
                self.add("dropout", round(float(ratio), 6))
        if node.operator == "DequantizeLinear":
            self.integers_read(node, 1)
        if node.operator == "QuantizeLinear" and function.is_identity and node.inputs[0] == self.value:
            self.integers_written(node, 1)
        elif node.operator == "QuantizeLinear":
            self.recorder.prevent(f"{node} quantizes a part of an activation")
        if node.operator == "DynamicQuantizeLinear":  # as if the scale were 1
            self.recorder.prevent(f"{node} computes a scale for each batch")
            self.constants |= dict(zip(node.outputs[1:], (np.ones((), np.float32), np.zeros((), np.uint8)), strict=False))
        self.record(node, function)

    def _take(self, node: Node) -> None:
        """Channels of the input, by a Split, Slice or Gather."""
        place, rank, axis = self.dimensions.channel, len(self.dimensions.axes), int(node.attributes.get("axis", 0))
        taken: list[list[int]] = []
        if not self.layers and not self.operations and place is not None and node.inputs[0] == self.value:
            if node.operator == "Slice":
                limits = slices(node.attributes, rank, *(self.optional(node, at) for at in range(1, 5)))
                others = [one for at, one in enumerate(limits) if at != place]
                if all((one.start or 0, one.step or 1) == (0, 1) and (one.stop or 2**31) >= 2**31 - 1 for one in others):
                    taken = [list(range(_COLOURS))[limits[place]]]
            elif axis % rank == place and node.operator == "Split" and len(node.outputs) == _COLOURS:
                taken = [[channel] for channel in range(_COLOURS)]
            elif axis % rank == place and node.operator == "Gather" and self.array(node, 1).ndim < 2:
                taken = [[int(channel) for channel in self.array(node, 1).reshape(-1)]]
            elif place == 0 and node.operator == "GatherND" and self.array(node, 1).shape[1:] == (1,):
                taken = [[int(channel) for channel in self.array(node, 1)[:, 0]]]
        if not taken or not all(channels and -_COLOURS <= min(channels) <= max(channels) < _COLOURS for channels in taken):
            raise self.error(f"unsupported operator {node}")
        for name, channels in zip(node.outputs, taken, strict=False):
            dropped = node.operator == "Gather" and not self.array(node, 1).ndim
            known = tuple(channel % _COLOURS for channel in channels)
            function = replace(Function.identity(rank), channels=known, dropped=dropped)
            self._choose(replace(node, outputs=(name,)), function)

    def _restore(self, node: Node, function: Function) -> None:
        """The dimension of a channel that a Gather with one number dropped."""
        axes, rank = axes_of(node.attributes, self.optional(node, 1)), len(self.dimensions.axes)
        if axes is None or [int(axis) % rank for axis in axes] != [self.dimensions.channel]:
            raise self.error(f"unsupported operator {node}")
        self.record(node, replace(function, dropped=False))

    def _concatenate(self, node: Node) -> None:
        """Channels of the input again, or the two classes of one logit."""
        names = node.inputs[2::3] if node.operator == "QLinearConcat" else node.inputs
        functions = [self.functions[name] for name in names if name in self.functions]
        place, rank = self.dimensions.channel, len(self.dimensions.axes)
        fits = len(functions) == len(names) and place is not None and int(node.attributes.get("axis", 1)) % rank == place
        if place is None or not fits or any(one.values is not None or one.dropped for one in functions):
            raise self.error(f"unsupported operator {node}")
        channels = [one.channels or tuple(range(self.dimensions.shape[place])) for one in functions]
        joined = sum(channels, ())
        if len(joined) > _COLOURS:
            raise self.error(f"unsupported operator {node}")
        shape = [len(joined) if at == place else 1 for at in range(rank)]
        scale, shift = (
            np.concatenate([np.broadcast_to(array.reshape(-1), len(one)) for array, one in zip(arrays, channels, strict=True)])
            for arrays in ([one.scale for one in functions], [one.shift for one in functions])
        )
        part = None if self.layers else joined
        self._choose(node, Function(scale.reshape(shape), shift.reshape(shape), None, part))

    def _choose(self, node: Node, function: Function) -> None:
        """Record channels; all three of them, in order or reversed, are the input."""
        if function.channels in _ORDERS:
            self.pixels = self.pixels.taken(function.channels or _ORDERS[0])
            function = replace(function, channels=None)
        self.record(node, function)
