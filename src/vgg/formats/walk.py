"""From a graph of operators to the paper's layers, for ONNX, Caffe and Caffe2 files.

The graph is followed from its input to its output. Each operator on the way must be one of VGG's, with VGG's attributes, or
change nothing at inference; its other inputs must be constant. Operators have ONNX's names.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..architectures import LRN_ALPHA, LRN_BETA, LRN_K, LRN_SIZE, Architecture
from ..arrays import Array
from ..parameters import Parameter, Part, expanded, shaped
from .chain import Chain
from .layouts import Found
from .nodes import Node, folded, quantized, transposed

BLOCKS = 5  # of convolutions, each followed by a pooling
# Operators that change nothing at inference, or only the shape.
_UNCHANGING = frozenset((
    "Identity", "Dropout", "Cast", "Flatten", "Reshape", "Squeeze", "Unsqueeze", "DequantizeLinear",
))  # fmt: skip
# Operators that compute a value; none may be outside the chain.
_COMPUTING = frozenset((
    "Conv", "Gemm", "MatMul", "BatchNormalization", "QLinearConv", "QLinearMatMul", "QGemm", "Add", "Concat",
))  # fmt: skip


def follow(
    path: object, nodes: Iterable[Node], constants: Mapping[str, Part], start: str, outputs: Sequence[str]
) -> tuple[Architecture, dict[str, Parameter], bool]:
    """The VGG network that a graph computes.

    Args:
        path: the file, for errors.
        nodes: in the order of execution.
        constants: the graph's constants by name.
        start: the graph's input.
        outputs: the graph's outputs; one of them must be the network's.

    Returns:
        The architecture, its parameters under the paper's names, and whether a softmax ends the graph.

    Raises:
        ModelError: the graph computes something else; the message names the first operator that shows it.
    """
    walk = _Walk(path, constants, start)
    for node in nodes:
        walk.visit(node)
    if walk.value not in outputs:
        raise walk.error(f"its output {', '.join(outputs)} is not computed by a chain of VGG's operators")
    return walk.network()


class _Walk(Chain):
    """The way through a graph so far: `value` is the name of the value that the next operator must read."""

    def __init__(self, path: object, constants: Mapping[str, Part], start: str) -> None:
        super().__init__(path)
        self.constants, self.value = dict(constants), start
        self.shapes: set[str] = set()  # values computed from the shape of the data

    def visit(self, node: Node) -> None:
        inputs = [name for name in node.inputs if name]
        if node.operator in ("Shape", "Size") or (self.shapes.intersection(inputs) and inputs[0] != self.value):
            self.shapes.update(node.outputs)
        elif self.value in inputs:
            step = getattr(self, f"on_{node.operator.lower()}", None)
            if step is not None:
                step(node)
            elif node.operator not in _UNCHANGING:
                raise self.error(f"unsupported operator {node}")
            self.value = node.outputs[0]
        elif all(name in self.constants for name in inputs):
            constant = folded(node, [self.constants[name] if name else None for name in node.inputs])
            if constant is not None:
                self.constants[node.outputs[0]] = constant
        elif node.outputs and node.operator in _COMPUTING:
            raise self.error(f"the graph branches at {node}")

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

    # One method per operator: `on_` and its name in lower case.

    def on_conv(self, node: Node) -> None:
        self.conv(node, self.constant(node, 1), self.optional(node, 2))

    def conv(self, node: Node, weight: Part, bias: Array | None) -> None:
        self.expect(node, strides=1, dilations=1, group=1)
        if len(weight.shape) != 4:
            raise self.error(f"{node} has a weight of shape {list(weight.shape)}")
        head = self.count("max_pool") == BLOCKS
        automatic = node.attributes.get("auto_pad", "NOTSET")
        if automatic not in ("SAME_UPPER", "SAME_LOWER") and not (automatic == "VALID" and weight.shape[2] == 1):
            pads = node.attributes.get("pads") or [0]
            if any(pad != (0 if head else weight.shape[2] // 2) for pad in pads):
                raise self.error(f"{node} has pads {pads}")
        if head:  # the paper's dense form: linear layers as convolutions, the first one over the whole map
            self.linear(_key(node), shaped(weight, (weight.shape[0], math.prod(weight.shape[1:]))), bias)
        else:
            self.convolution(_key(node), weight, bias)

    def on_gemm(self, node: Node) -> None:
        self.expect(node, alpha=1.0, beta=1.0, transA=0)
        weight = self.constant(node, 1)
        self.linear(_key(node), weight if node.attributes.get("transB") else transposed(weight), self.optional(node, 2))

    def on_matmul(self, node: Node) -> None:
        self.linear(_key(node), transposed(self.constant(node, 1)), None)

    def on_add(self, node: Node) -> None:
        self.bias(str(node), self.array(node, 1 if node.inputs[0] == self.value else 0))

    def on_batchnormalization(self, node: Node) -> None:
        self.expect(node, training_mode=0)
        roles = ("scale", "bias", "mean", "variance")
        layer = {role: Found(node.inputs[place], self.array(node, place)) for place, role in enumerate(roles, 1)}
        self.batch_norm(layer, float(np.float32(node.attributes.get("epsilon", 1e-5))))

    def on_relu(self, node: Node) -> None:
        self.add("relu")

    def on_clip(self, node: Node) -> None:
        low = node.attributes.get("min", self.optional(node, 1))
        if low is None or np.any(np.asarray(low) != 0) or "max" in node.attributes or self.optional(node, 2) is not None:
            raise self.error(f"{node} is not a ReLU: its limits are not 0 and infinity")
        self.add("relu")

    def on_lrn(self, node: Node) -> None:
        defaults = {"alpha": 1e-4, "beta": 0.75, "bias": 1.0}  # ONNX's
        complete = replace(node, attributes={**defaults, **node.attributes})
        self.expect(complete, size=LRN_SIZE, alpha=LRN_ALPHA, beta=LRN_BETA, bias=LRN_K)
        self.add("lrn")

    def on_maxpool(self, node: Node) -> None:
        self.expect(replace(node, attributes={"strides": 1, **node.attributes}), kernel_shape=2, strides=2, pads=0, dilations=1)
        self.add("max_pool")

    def on_globalaveragepool(self, node: Node) -> None:
        if not self.ends_in("linear"):  # which is the map of a dense form, one position at the usual size
            self.add("average_pool")

    def on_reducemean(self, node: Node) -> None:
        axes = self.optional(node, 1)
        axes = np.asarray(node.attributes.get("axes", ())) if axes is None else axes
        if {int(axis) % 4 for axis in axes.reshape(-1)} != {2, 3}:
            raise self.error(f"{node} has axes {axes.tolist()}")
        self.on_globalaveragepool(node)

    def on_averagepool(self, node: Node) -> None:
        self.expect(node, kernel_shape=1, strides=1)  # torch's export of an adaptive pooling that changes nothing

    def activation(self, node: Node, operation: str, number: float = 0.0) -> None:
        """An activation of the head; those of the convolutions are ReLUs."""
        if not self.count("linear"):
            raise self.error(f"unsupported operator {node}")
        self.add(operation, round(number, 8))  # of a float32

    def on_leakyrelu(self, node: Node) -> None:
        self.activation(node, "leaky_relu", node.attributes.get("alpha", 0.01))

    def on_elu(self, node: Node) -> None:
        self.activation(node, "elu", node.attributes.get("alpha", 1.0))

    def on_gelu(self, node: Node) -> None:
        self.activation(node, "gelu_tanh" if node.attributes.get("approximate") == "tanh" else "gelu")

    def on_tanh(self, node: Node) -> None:
        self.activation(node, "tanh")

    def on_sigmoid(self, node: Node) -> None:
        self.activation(node, "sigmoid")

    def on_logsoftmax(self, node: Node) -> None:
        self.add("log_softmax")

    def on_globalmaxpool(self, node: Node) -> None:
        self.add("global_max_pool")

    def on_softmax(self, node: Node) -> None:
        self.add("softmax")

    on_qlinearsoftmax = on_softmax

    def on_transpose(self, node: Node) -> None:
        if node.attributes.get("perm") == [0, 2, 3, 1] and self.operations and not self.count("linear"):
            self.channels_last = True

    def on_quantizelinear(self, node: Node) -> None:
        zero_point = self.optional(node, 2)
        self.quantize(np.zeros((), np.uint8) if zero_point is None else zero_point)

    def weight(self, node: Node, place: int, axis: int) -> Part:
        """Quantized numbers, scale and zero point: a node's three inputs from number `place` on."""
        values, scale, zero_point = (self.array(node, place + offset) for offset in range(3))
        return quantized(values, scale, zero_point, axis)

    def scaled_bias(self, node: Node, place: int) -> Array | None:
        """An integer bias in floats: its scale is the product of the scales of input and weight."""
        bias = self.optional(node, place)
        return None if bias is None else (bias * (self.array(node, 1) * self.array(node, 4))).astype(np.float32)

    def on_qlinearconv(self, node: Node) -> None:
        self.conv(node, self.weight(node, 3, 0), self.scaled_bias(node, 8))
        self.quantize(self.array(node, 7))

    def on_qlinearmatmul(self, node: Node) -> None:
        self.linear(_key(node), transposed(self.weight(node, 3, 1)), None)
        self.quantize(self.array(node, 7))

    def on_qlinearadd(self, node: Node) -> None:
        self.bias(str(node), expanded(self.weight(node, 3 if node.inputs[0] == self.value else 0, 0)))
        self.quantize(self.array(node, 7))

    def on_qgemm(self, node: Node) -> None:
        self.expect(node, alpha=1.0, transA=0)
        turned = bool(node.attributes.get("transB"))
        weight = self.weight(node, 3, 0 if turned else 1)
        self.linear(_key(node), weight if turned else transposed(weight), self.scaled_bias(node, 6))
        zero_point = self.optional(node, 8)
        if zero_point is not None:
            self.quantize(zero_point)


def _key(node: Node) -> str:
    """The name of the weight of a convolution or linear layer in the file."""
    place = 3 if node.operator.startswith("Q") else 1
    return node.inputs[place] if place < len(node.inputs) else node.outputs[0]
