"""From a graph of operators to the paper's layers: what ONNX, Caffe and Caffe2 files have in common.

The graph is walked from its input to its output. Each operator on the way is one of VGG's and does what it does there, or
is one that changes nothing at inference; what else it reads is constant. Operators bear ONNX's names.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Architecture
from ..arrays import Array
from ..errors import ModelError
from ..parameters import LowRank, Parameter, Part, expanded, shaped
from .constants import Node, folded, quantized, transposed
from .layouts import Found, Layer, assemble

BLOCKS = 5  # of convolutions, each with a pooling at its end


def recognise(
    path: object, nodes: Iterable[Node], constants: Mapping[str, Part], start: str, outputs: Sequence[str]
) -> tuple[Architecture, dict[str, Parameter], bool]:
    """The VGG that a graph computes.

    Args:
        path: the file, for errors.
        nodes: in the order of execution.
        constants: what the graph reads besides its input, by name.
        start: the graph's input.
        outputs: the graph's outputs; one of them must be the network's.

    Returns:
        The architecture, its parameters under the paper's names, and whether a softmax ends the graph.

    Raises:
        ModelError: the graph computes something else; the message names the first operator that shows it.
    """
    walk = _Walk(path, dict(constants), start)
    for node in nodes:
        walk.visit(node)
    if walk.value not in outputs:
        raise walk.error(f"its output {', '.join(outputs)} is not computed by a chain of VGG's operators")
    return walk.network()


class _Walk:
    """What has been found on the way: `value` is the name of the value that the next operator must read."""

    def __init__(self, path: object, constants: dict[str, Part], start: str) -> None:
        self.path, self.constants, self.value = path, constants, start
        self.shapes: set[str] = set()  # values made from the shape of the data
        self.layers: list[Layer] = []
        self.operations: list[str] = []  # as `architectures.Operation`
        self.epsilons: set[float] = set()
        self.channels_last = False
        self.implied = False  # the last operation is a ReLU that nothing says but a zero point

    def visit(self, node: Node) -> None:
        read = [name for name in node.inputs if name]
        if node.operator in ("Shape", "Size") or (self.shapes.intersection(read) and read[0] != self.value):
            self.shapes.update(node.outputs)
        elif self.value in read:
            step = getattr(self, f"_{node.operator.lower()}", None)
            if step is None and node.operator not in _UNCHANGING:
                raise self.error(f"{_named(node)} is no operator of one")
            if step is not None:
                step(node)
            self.value = node.outputs[0]
        elif all(name in self.constants for name in read):
            made = folded(node, [self.constants[name] if name else None for name in node.inputs])
            if made is not None:
                self.constants[node.outputs[0]] = made
        elif node.outputs and node.operator in _PARAMETRIC:
            raise self.error(f"its graph branches at {_named(node)}")

    def network(self) -> tuple[Architecture, dict[str, Parameter], bool]:
        softmax = self.operations[-1:] == ["softmax"]
        found = self.operations[: -1 if softmax else None]
        if self.implied and found[-1:] == ["relu"]:
            found.pop()  # an output that happens to be zero or more
        if len(self.epsilons) > 1:
            raise self.error("its batch normalisations differ in their epsilon")
        architecture, parameters = assemble(
            self.path, self.layers, epsilon=next(iter(self.epsilons), Architecture.epsilon),
            channels_last=self.channels_last, lrn="lrn" in found,
        )  # fmt: skip
        expected = [layer.operation for layer in architecture.layers if layer.operation != "flatten"]
        for place, (wanted, one) in enumerate(zip([*expected, "nothing"], [*found, "nothing"], strict=False)):
            if wanted != one:
                raise self.error(f"expected {wanted} as operation {place + 1} of {architecture.name}, found {one}")
        return architecture, parameters, softmax

    def error(self, message: str) -> ModelError:
        return ModelError(f"{self.path}: is not a VGG network: {message}")

    def constant(self, node: Node, place: int) -> Part:
        """What a node reads as its input number `place`, which must be constant."""
        name = node.inputs[place] if place < len(node.inputs) else ""
        if name not in self.constants:
            raise self.error(f"{_named(node)} reads {name or 'too few inputs'} where something constant should be")
        return self.constants[name]

    def array(self, node: Node, place: int) -> Array:
        return expanded(self.constant(node, place))

    def has(self, node: Node, place: int) -> bool:
        return place < len(node.inputs) and node.inputs[place] != ""

    def wanted(self, node: Node, **attributes: Any) -> None:
        """Raises ModelError unless each attribute that a node has is what it should be."""
        for key, value in attributes.items():
            found = node.attributes.get(key)
            same = all(one == value for one in found) if isinstance(found, list) else found == value
            if found is not None and not same and not (isinstance(found, float) and math.isclose(found, value, rel_tol=1e-6)):
                raise self.error(f"{_named(node)} has {key} {found}")

    # One method an operator, by its name in lower case.

    def _conv(self, node: Node) -> None:
        bias = self.array(node, 2) if self.has(node, 2) else None
        self._convolution(node, self.constant(node, 1), bias)

    def _convolution(self, node: Node, weight: Part, bias: Array | None) -> None:
        self.wanted(node, strides=1, dilations=1, group=1)
        if len(weight.shape) != 4:
            raise self.error(f"{_named(node)} has a weight of shape {list(weight.shape)}")
        head = self.operations.count("max_pool") == BLOCKS
        padded = node.attributes.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
        if not padded and not (node.attributes.get("auto_pad") == "VALID" and weight.shape[2] == 1):
            pads = node.attributes.get("pads") or [0]
            if any(pad != (0 if head else weight.shape[2] // 2) for pad in pads):
                raise self.error(f"{_named(node)} has pads {pads}")
        if head:  # the paper's dense form: linear layers as convolutions, of which the first sees the whole map
            self.linear(node, shaped(weight, (weight.shape[0], math.prod(weight.shape[1:]))), bias)
        else:
            self.add("convolution", node, weight, bias)

    def linear(self, node: Node, weight: Part, bias: Array | None) -> None:
        if len(weight.shape) != 2:
            raise self.error(f"{_named(node)} has a weight of shape {list(weight.shape)}")
        before = self.layers[-1] if self.operations[-1:] == ["linear"] else {}
        if before and "bias" not in before:  # a weight of low rank, as the two that it is a product of
            right = before["weight"].value
            if isinstance(right, LowRank) or weight.shape[1] != right.shape[0]:
                raise self.error(f"{_named(node)} has a weight of shape {list(weight.shape)}")
            self.layers.pop()
            self.operations.pop()
            self.add("linear", node, LowRank(weight, right), bias)
            return
        self.add("linear", node, weight, bias)

    def add(self, operation: str, node: Node, weight: Parameter, bias: Array | None) -> None:
        layer: Layer = {"weight": Found(_weight_name(node), weight)}
        if bias is not None:
            layer["bias"] = Found(f"{_weight_name(node)}'s bias", bias.reshape(-1))
        self.layers.append(layer)
        self.operations.append(operation)
        self.implied = False

    def _gemm(self, node: Node) -> None:
        self.wanted(node, alpha=1.0, beta=1.0, transA=0)
        weight = self.constant(node, 1)
        bias = self.array(node, 2) if self.has(node, 2) else None
        self.linear(node, weight if node.attributes.get("transB") else transposed(weight), bias)

    def _matmul(self, node: Node) -> None:
        self.linear(node, transposed(self.constant(node, 1)), None)

    def _add(self, node: Node) -> None:
        place = 1 if node.inputs[0] == self.value else 0
        self.bias(node, self.array(node, place))

    def bias(self, node: Node, value: Array) -> None:
        """A bias that stands in an operator of its own behind its layer."""
        if self.implied:
            self.operations.pop()  # it is the sum that is zero or more, not what goes into it
            self.implied = False
        if self.operations[-1:] not in (["convolution"], ["linear"]) or "bias" in self.layers[-1]:
            raise self.error(f"{_named(node)} is no operator of one")
        self.layers[-1]["bias"] = Found(node.outputs[0], value.reshape(-1))

    def _batchnormalization(self, node: Node) -> None:
        self.wanted(node, training_mode=0)
        roles = ("scale", "bias", "mean", "variance")
        self.layers.append({role: Found(node.inputs[place], self.array(node, place)) for place, role in enumerate(roles, 1)})
        self.epsilons.add(float(np.float32(node.attributes.get("epsilon", 1e-5))))
        self.operations.append("batch_norm")

    def _relu(self, node: Node) -> None:
        if not self.implied:
            self.operations.append("relu")
        self.implied = False

    def _clip(self, node: Node) -> None:
        low = node.attributes.get("min", self.array(node, 1) if self.has(node, 1) else None)
        if low is None or np.any(np.asarray(low) != 0) or "max" in node.attributes or self.has(node, 2):
            raise self.error(f"{_named(node)} is no ReLU")
        self.operations.append("relu")

    def _lrn(self, node: Node) -> None:
        defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}  # ONNX's, where a file says nothing
        said = replace(node, attributes={**defaults, **node.attributes})
        self.wanted(said, size=LRN_SIZE, alpha=LRN_ALPHA, beta=LRN_BETA, bias=LRN_K)
        self.operations.append("lrn")

    def _maxpool(self, node: Node) -> None:
        self.wanted(node, kernel_shape=2, strides=2, pads=0, dilations=1)
        if "strides" not in node.attributes:
            raise self.error(f"{_named(node)} has strides 1")
        self.operations.append("max_pool")

    def _globalaveragepool(self, node: Node) -> None:
        if self.operations[-1:] != ["linear"]:  # else the map of a dense form, which is one place at the usual size
            self.operations.append("average_pool")

    def _reducemean(self, node: Node) -> None:
        axes = self.array(node, 1) if self.has(node, 1) else np.asarray(node.attributes.get("axes", ()))
        if {int(axis) % 4 for axis in axes.reshape(-1)} != {2, 3}:
            raise self.error(f"{_named(node)} has axes {axes.tolist()}")
        self._globalaveragepool(node)

    def _averagepool(self, node: Node) -> None:
        self.wanted(node, kernel_shape=1, strides=1)  # what torch makes of an adaptive pooling that changes nothing

    def _softmax(self, node: Node) -> None:
        self.operations.append("softmax")

    _qlinearsoftmax = _softmax

    def _transpose(self, node: Node) -> None:
        if node.attributes.get("perm") == [0, 2, 3, 1] and self.operations and "linear" not in self.operations:
            self.channels_last = True

    # Quantized operators. A ReLU before an unsigned or saturating value is left out by those who make them.

    def quantize(self, zero_point: Array) -> None:
        low = np.iinfo(zero_point.dtype).min
        if self.operations[-1:] in (["convolution"], ["linear"], ["batch_norm"]) and (zero_point == low).all():
            self.operations.append("relu")
            self.implied = True

    def _quantizelinear(self, node: Node) -> None:
        self.quantize(self.array(node, 2) if self.has(node, 2) else np.zeros((), np.uint8))

    def weight(self, node: Node, place: int, axis: int) -> Part:
        """Quantized numbers, their scale and zero point, which a node reads from its input number `place` on."""
        values, scale, zero_point = (self.array(node, place + offset) for offset in range(3))
        return quantized(values, scale, zero_point, axis)

    def _qlinearconv(self, node: Node) -> None:
        bias = None
        if self.has(node, 8):
            bias = (self.array(node, 8) * (self.array(node, 1) * self.array(node, 4))).astype(np.float32)
        self._convolution(node, self.weight(node, 3, 0), bias)
        self.quantize(self.array(node, 7))

    def _qlinearmatmul(self, node: Node) -> None:
        self.linear(node, transposed(self.weight(node, 3, 1)), None)
        self.quantize(self.array(node, 7))

    def _qlinearadd(self, node: Node) -> None:
        place = 3 if node.inputs[0] == self.value else 0
        self.bias(node, expanded(self.weight(node, place, 0)))
        self.quantize(self.array(node, 7))

    def _qgemm(self, node: Node) -> None:
        self.wanted(node, alpha=1.0, transA=0)
        turned = bool(node.attributes.get("transB"))
        weight = self.weight(node, 3, 0 if turned else 1)
        bias = None
        if self.has(node, 6):
            bias = (self.array(node, 6) * (self.array(node, 1) * self.array(node, 4))).astype(np.float32)
        self.linear(node, weight if turned else transposed(weight), bias)
        if self.has(node, 8):
            self.quantize(self.array(node, 8))


# Operators that change nothing at inference, or nothing but the shape.
_UNCHANGING = frozenset((
    "Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "DequantizeLinear",
))  # fmt: skip
# Operators that make a value of their own; none may stand beside the chain.
_PARAMETRIC = frozenset((
    "Conv", "Gemm", "MatMul", "BatchNormalization", "QLinearConv", "QLinearMatMul", "QGemm", "Add", "Concat",
))  # fmt: skip


def _named(node: Node) -> str:
    return f"{node.operator} {node.outputs[0] if node.outputs else ''!r}"


def _weight_name(node: Node) -> str:
    place = 3 if node.operator.startswith("Q") else 1
    return node.inputs[place] if place < len(node.inputs) else node.outputs[0]
