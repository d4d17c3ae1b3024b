"""The layers of a graph in the order of execution, assembled into a network."""

import numpy as np

from ..architectures import Architecture
from ..arrays import Array
from ..errors import ModelError
from ..parameters import LowRank, Parameter, Part
from .layouts import Found, Layer, assemble
from .nodes import Node


class Chain:
    """The operations of a graph so far, with the parameters of those that have some."""

    def __init__(self, path: object) -> None:
        self.path = path
        self.layers: list[Layer] = []
        self.operations: list[str] = []  # as `architectures.Operation`
        self.channels_last = False
        self._epsilons: set[float] = set()
        self._implied = False  # the last operation is a ReLU that only a zero point shows

    def error(self, message: str) -> ModelError:
        return ModelError(f"{self.path}: not a VGG network: {message}")

    def ends_in(self, *operations: str) -> bool:
        return bool(self.operations) and self.operations[-1] in operations

    def convolution(self, node: Node, weight: Part, bias: Array | None) -> None:
        self._append("convolution", node, weight, bias)

    def linear(self, node: Node, weight: Part, bias: Array | None) -> None:
        if len(weight.shape) != 2:
            raise self.error(f"{node} has a weight of shape {list(weight.shape)}")
        product: Parameter = weight
        if self.ends_in("linear") and "bias" not in self.layers[-1]:  # two linear layers that are a weight of low rank
            right = self.layers[-1]["weight"].value
            if isinstance(right, LowRank) or weight.shape[1] != right.shape[0]:
                raise self.error(f"{node} has a weight of shape {list(weight.shape)}")
            self.layers.pop()
            self.operations.pop()
            product = LowRank(weight, right)
        self._append("linear", node, product, bias)

    def _append(self, operation: str, node: Node, weight: Parameter, bias: Array | None) -> None:
        place = 3 if node.operator.startswith("Q") else 1
        name = node.inputs[place] if place < len(node.inputs) else node.outputs[0]
        layer: Layer = {"weight": Found(name, weight)}
        if bias is not None:
            layer["bias"] = Found(f"{name}'s bias", bias.reshape(-1))
        self.layers.append(layer)
        self.operations.append(operation)
        self._implied = False

    def bias(self, node: Node, value: Array) -> None:
        """A bias as an operator of its own after its layer."""
        if self._implied:  # its zero point was that of a sum with the bias missing
            self.operations.pop()
            self._implied = False
        if not self.ends_in("convolution", "linear") or "bias" in self.layers[-1]:
            raise self.error(f"unsupported operator {node}")
        self.layers[-1]["bias"] = Found(node.outputs[0], value.reshape(-1))

    def batch_norm(self, layer: Layer, epsilon: float) -> None:
        self.layers.append(layer)
        self.operations.append("batch_norm")
        self._epsilons.add(epsilon)

    def relu(self) -> None:
        if not self._implied:
            self.operations.append("relu")
        self._implied = False

    def quantize(self, zero_point: Array) -> None:
        """Record the ReLU that quantizers leave out before a value that can't be negative."""
        if self.ends_in("convolution", "linear", "batch_norm") and (zero_point == np.iinfo(zero_point.dtype).min).all():
            self.operations.append("relu")
            self._implied = True

    def network(self) -> tuple[Architecture, dict[str, Parameter], bool]:
        """The architecture, its parameters under the paper's names, and whether a softmax ends the graph."""
        softmax = self.ends_in("softmax")
        operations = self.operations[: -1 if softmax else None]
        if self._implied and operations[-1:] == ["relu"]:
            operations.pop()  # the output happens to be zero or more
        if len(self._epsilons) > 1:
            raise self.error("its batch normalisations have different epsilons")
        epsilon = next(iter(self._epsilons), Architecture.epsilon)
        architecture, parameters = assemble(
            self.path, self.layers, epsilon=epsilon, channels_last=self.channels_last, lrn="lrn" in operations
        )
        expected = [layer.operation for layer in architecture.layers if layer.operation != "flatten"]
        for place, (wanted, found) in enumerate(zip([*expected, "nothing"], [*operations, "nothing"], strict=False), 1):
            if wanted != found:
                raise self.error(f"expected {wanted} as operation {place} of {architecture.name}, found {found}")
        return architecture, parameters, softmax
