"""The way along a graph: the value that it has reached, the functions of it that are pending, and what it did to the pixels.

A value may be read by several operators if what they compute of it comes together again, as in `x * sigmoid(x)`. Until
then these results are functions of the value, and the one in which they meet is recognised as a whole.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..arrays import Array
from ..heads import ACTIVATIONS
from ..parameters import Part, expanded
from .chain import OUTPUTS, Chain
from .dimensions import Dimensions, Mismatch
from .functions import OPERATORS, SWISH, Function, Operand, TooLarge, compute, is_pair, recognised
from .nodes import BLOCKED, DOMAINS, FOLDED, Node, folded
from .pixels import Pixels

BLOCKS = 5  # of convolutions, each followed by a pooling
MOST = 10_000  # operators of a graph; VGG-19 quantized in small steps has fewer than 1000
LEAST = 1e-9  # factor of a pixel
PENDING = 64  # functions of one value
# Operators with parameters; none may be outside the chain.
_WEIGHTED = frozenset((
    "Conv", "Gemm", "MatMul", "BatchNormalization", "QLinearConv", "QLinearMatMul", "QGemm", "ConvInteger", "MatMulInteger",
    "FusedConv", "FusedGemm", "FusedMatMul", "DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits",
    "NhwcConv", "NhwcFusedConv",
))  # fmt: skip
_PASSING = ("Cast", "QuantizeLinear", "DequantizeLinear")  # may stand between the operators of a function
_SELECTING = ("ArgMax", "TopK", "Greater", "GreaterOrEqual")  # what follows them are classes, not scores
NEGLIGIBLE = 1e-5  # what is added to a probability before its logarithm


class Frontier(Chain):
    """A chain under construction from the operators of a graph. `value` names the value that it has reached."""

    def __init__(self, path: object, constants: Mapping[str, Part], start: str, dimensions: Dimensions) -> None:
        super().__init__(path)
        self.constants, self.value, self.dimensions = dict(constants), start, dimensions
        self.pixels = Pixels()
        self.pair = False  # the output is that of two classes, 1 - p and p
        self.ignored = ""  # the operator that selects classes after the scores
        self.functions = {start: Function.identity(len(dimensions.axes))}
        self._readers: dict[str, list[Node]] = {}  # those of each value that are not visited yet
        self._shapes = {start: dimensions.shape}
        self._budget = FOLDED

    def operator(self, node: Node) -> None:
        """Append what an operator computes of `value`, and set `dimensions` to those of its result."""
        raise NotImplementedError

    def follow(self, nodes: Sequence[Node], outputs: Sequence[str]) -> str:
        """Visit the operators on the way to the network's output, the deepest one; return its name."""
        if len(nodes) > MOST:
            raise self.error(f"a graph of {len(nodes)} operators; those of VGG networks have fewer than {MOST}")
        depths, end = self._explore(nodes, outputs)
        needed = {end}
        for node in reversed(nodes):
            if needed.intersection(node.outputs) and self.value not in node.outputs:
                needed.update(name for name in node.inputs if name)
        way = [node for node in nodes if needed.intersection(node.outputs) and self.value not in node.outputs]
        for node in way:
            for name in set(node.inputs) if node.operator not in ("Shape", "Size") else ():
                self._readers.setdefault(name, []).append(node)
        for node in way:
            try:
                self._visit(node)
            except Mismatch as error:
                raise self.error(f"{node} doesn't fit the value that it reads: {error}") from None
        for node in nodes:
            stray = node.operator in _WEIGHTED and not needed.intersection(node.outputs)
            if stray and any(name in depths for name in node.inputs):
                raise self.error(f"the graph branches at {node}")
        if self.value != end:
            raise self.error(f"its output {end} is not computed by a chain of VGG's operators")
        return end

    def _explore(self, nodes: Iterable[Node], outputs: Sequence[str]) -> tuple[dict[str, int], str]:
        """The number of operators from the start to each value, and the name of the network's output."""
        depths = {self.value: 0}
        selected: set[str] = set()  # the results of selecting operators
        before: dict[str, str] = {}  # a selecting operator's input
        chosen = {node.inputs[0] for node in nodes if node.operator in _SELECTING and node.inputs}
        for node in nodes:
            found = [depths[name] for name in node.inputs if name in depths]
            if not found or node.operator in ("Shape", "Size"):
                continue
            depths.update((name, max(found) + 1) for name in node.outputs)
            selects = node.operator in _SELECTING or (node.operator == "ReduceMax" and node.inputs[0] in chosen)
            if selects and not selected.intersection(node.inputs):
                before.setdefault(node.inputs[0], node.operator)
            if selects or selected.intersection(node.inputs):
                selected.update(node.outputs)
        plain = [name for name in outputs if name in depths and name not in selected]
        ends = plain or [name for name in before if selected.intersection(outputs)]
        end = max(ends, key=lambda name: depths[name], default=outputs[-1])
        self.ignored = next(iter(before.values())) if selected.intersection(outputs) else ""
        return depths, end

    def _visit(self, node: Node) -> None:
        if node.domain not in DOMAINS:
            blocked = f": {BLOCKED}" if node.domain == "com.microsoft.nchwc" else ""
            raise self.error(f"unsupported operator {node}{blocked}")
        inputs = [name for name in node.inputs if name]
        read = {name for name in inputs if name in self.functions}
        for name in read if node.operator not in ("Shape", "Size") else ():
            self._readers[name].remove(node)
        if node.operator in ("Shape", "Size") and inputs[0] in self._shapes:
            sides = np.array(self._shapes[inputs[0]], np.int64)
            sides = sides[node.attributes.get("start", 0) : node.attributes.get("end")]
            self.constants[node.outputs[0]] = sides if node.operator == "Shape" else np.asarray(np.prod(sides))
        elif not read and all(name in self.constants for name in inputs):
            self._fold(node)
        elif not read:
            raise self.error(f"the graph branches at {node}")
        elif not self.function(node):
            self.alone(node)
            self.operator(node)
            self._reach(node.outputs[0])

    def alone(self, node: Node) -> None:
        """Raises ModelError unless a node reads `value`, and nothing else does any more."""
        others = [one for name in self.functions for one in self._readers.get(name, [])]
        if others or not set(node.inputs) & {self.value}:
            first = min((str(one) for one in others), default="another operator")
            raise self.error(f"the graph branches at {node}: {first} reads the same value")

    def _reach(self, name: str) -> None:
        self.value = name
        self.functions = {name: Function.identity(len(self.dimensions.axes))}
        self._shapes[name] = self.dimensions.shape

    def _fold(self, node: Node) -> None:
        """Compute a node of constants, while these are not too many."""
        given = [self.constants[name] if name else None for name in node.inputs]
        try:
            result = folded(node, given) if self._budget > 0 else None
        except TooLarge as error:
            raise self.error(f"{node} {error}, more than those of VGG networks") from None
        if result is not None:
            if isinstance(result, np.ndarray) and result.base is None:
                self._budget -= result.size
            self.constants[node.outputs[0]] = result

    def constant(self, node: Node, place: int) -> Part:
        """A node's input number `place`, which must be constant."""
        name = node.inputs[place] if place < len(node.inputs) else ""
        if name not in self.constants:
            raise self.error(f"{node} reads {name}, which is not constant" if name else f"{node} has too few inputs")
        return self.constants[name]

    def array(self, node: Node, place: int) -> Array:
        return expanded(self.constant(node, place))

    def optional(self, node: Node, place: int) -> Array | None:
        return self.array(node, place) if place < len(node.inputs) and node.inputs[place] else None

    def expect(self, node: Node, **attributes: Any) -> None:
        """Raises ModelError if one of a node's attributes has another value than this."""
        for key, value in attributes.items():
            found = node.attributes.get(key)
            same = all(one == value for one in found) if isinstance(found, list) else found == value
            if found is not None and not same and not (isinstance(found, float) and math.isclose(found, value, rel_tol=1e-6)):
                raise self.error(f"{node} has {key} {found}")

    def function(self, node: Node) -> bool:
        """Take a node that computes a function of each element; False if it does not."""
        raise NotImplementedError

    def computed(self, node: Node, operator: str, operands: Sequence[str | Array]) -> None:
        """Record what an operator computes of functions of `value`, by their names, and constants."""
        given: list[Operand] = []
        for one in operands:
            if isinstance(one, str) and one and one not in self.functions and one not in self.constants:
                raise self.error(f"{node} reads {one}, which is not constant")
            named = self.functions.get(one) or expanded(self.constants[one]) if isinstance(one, str) and one else one
            given.append(named if isinstance(named, Function | np.ndarray) else None)
        try:
            self.record(node, compute(operator, node.attributes, given))
        except (TypeError, ValueError) as error:
            raise self.error(f"unsupported operator {node}: {error}") from None

    def record(self, node: Node, function: Function) -> None:
        """Record a node's function of `value`; it becomes an operation if it is the only one that is still read."""
        name = node.outputs[0]
        self.functions = {key: one for key, one in self.functions.items() if self._readers.get(key) or key == self.value}
        self.functions[name] = function
        self._shapes[name] = self.dimensions.shape
        if len(self.functions) > PENDING:
            raise self.error(f"the graph branches at {node}")
        if any(self._readers.get(key) for key in self.functions if key != name) or self._is_part(function):
            return
        if function.values is None:
            self._affine(node, function)
        elif is_pair(function):
            self.pair = True
            self.add("sigmoid")
        elif found := recognised(function):
            self.activation(node, *found)
        elif self._continues(name):
            return
        else:
            raise self.error(f"unsupported operator {node}: an unknown function of {self.value}")
        self._reach(name)

    def _continues(self, name: str) -> bool:
        """Whether operators of each element follow, as the factor 0.5 at the end of a GELU."""
        readers = [node.operator.removeprefix("QLinear") for node in self._readers.get(name, [])]
        return bool(readers) and all(one in OPERATORS or one in _PASSING for one in readers)

    def _is_part(self, function: Function) -> bool:
        """Whether a function has a part of the channels, or is [-x, x], of whose sigmoids the scores of two classes consist."""
        if function.channels is not None:
            return True
        scale, shift = function.scale.reshape(-1), function.shift.reshape(-1)
        return function.values is None and scale.tolist() == [-1, 1] and not shift.any() and self.dimensions.sizes["C"] == 1

    def activation(self, node: Node, operation: str, number: float) -> None:
        """An activation of the head; those of the convolutions are ReLUs."""
        if operation != "relu" and not self.count("linear"):
            raise self.error(f"unsupported operator {node}")
        if operation == SWISH:  # silu(a * x) / a
            if not self.ends_in("linear", "batch_norm"):
                raise self.error(f"unsupported operator {node}")
            self.scale(np.array([number]), np.zeros(1))
            self.add("silu")
            self.affine(str(node), np.array([1 / number]), np.zeros(1), self.dimensions.sizes["C"])
            return
        self.add(operation, number)

    def add(self, operation: str, number: float | None = 0.0) -> None:
        if operation in (*ACTIVATIONS, *OUTPUTS) and operation != "relu":
            self.withdraw()
        super().add(operation, number)

    def withdraw(self) -> None:
        """Remove the ReLU that a zero point showed, since what follows shows that the layer has none."""
        if self._implied:
            self.operations.pop()
            self._implied = False

    def _affine(self, node: Node, function: Function) -> None:
        """A product and a sum: of the pixels, of a layer before it, or a batch normalisation."""
        if function.is_identity:
            return
        place = self.dimensions.channel
        if any(size != 1 for at, size in enumerate(function.shape) if at != place):
            raise self.error(f"unsupported operator {node}: its constants differ from position to position")
        scale, shift = function.scale.reshape(-1), function.shift.reshape(-1)
        size = self.dimensions.shape[place] if place is not None else 1
        if not self.layers:
            self.pixels = self.pixels.then(scale, shift)
            numbers = np.array((self.pixels.scale, self.pixels.shift))
            if not np.isfinite(numbers).all() or np.abs(numbers[0]).min() < LEAST:
                raise self.error(f"unsupported operator {node}: it makes pixels {numbers.tolist()}")
        elif self.ends_in("sigmoid") and self.dimensions.sizes["C"] == 1 and scale.tolist() == [-1, 1]:
            if shift.tolist() != [1, 0]:
                raise self.error(f"unsupported operator {node}")
            self.pair = True
        elif self.ends_in("softmax") and scale.size == 1 and scale > 0 and np.abs(shift).max() <= NEGLIGIBLE:
            self.ignored = self.ignored or ("" if scale == 1 else node.operator)
        elif {scale.size, shift.size} - {1, size}:
            raise self.error(f"unsupported operator {node}: constants for {max(scale.size, shift.size)} of {size} channels")
        elif self.ends_in("convolution", "linear", "batch_norm") or self._implied:
            self.withdraw()
            if {scale.size, shift.size} - {1, next(iter(self.layers[-1].values())).value.shape[0]}:
                raise self.error(f"unsupported operator {node}")
            self.scale(scale, shift)
        elif self.count("linear") or self.count("max_pool") == BLOCKS:
            self.affine(str(node), scale, shift, size)
        else:
            raise self.error(f"unsupported operator {node}")
