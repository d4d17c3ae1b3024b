"""The operations of a file in the order of execution, assembled into a network."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np

from .. import heads
from ..architectures import POOLINGS, Architecture
from ..arrays import Array
from ..errors import ModelError
from ..heads import Head, Step
from ..parameters import LowRank, Parameter, Part, expanded, is_int4
from .activations import Recorder
from .layouts import Found, Layer, assemble
from .nodes import multiplied

# What ends a network, and the output that it means.
OUTPUTS: dict[str, heads.Output] = {"softmax": "softmax", "log_softmax": "softmax", "sigmoid": "sigmoid"}

EPSILON = 1e-5  # of a batch normalisation that was written as a product and a sum


class Chain:
    """The operations so far, with the parameters of those that have some. Readers call a method for each operation.

    Attributes:
        operations: as `architectures.Operation`, with `softmax` and `log_softmax`; each with its number.
        channels_last: whether the map is flattened as height, width, channels.
        input_size: side of the input in pixels, 0 if it is not known.
        recorder: the quantizations of activations.
        assumed: what the file doesn't say.
    """

    def __init__(self, path: object) -> None:
        self.path = path
        self.layers: list[Layer] = []
        self.operations: list[Step] = []
        self.channels_last = False
        self.input_size = 0
        self.recorder = Recorder(path)
        self.assumed: list[str] = []
        self._epsilons: list[float] = []  # of each batch normalisation
        self._implied = False  # the last operation is a ReLU that only a zero point shows

    def error(self, message: str) -> ModelError:
        return ModelError(f"{self.path}: not a VGG network: {message}")

    def ends_in(self, *operations: str) -> bool:
        return bool(self.operations) and self.operations[-1].operation in operations

    def count(self, operation: str) -> int:
        return sum(step.operation == operation for step in self.operations)

    def add(self, operation: str, number: float | None = 0.0) -> None:
        """Append an operation without parameters; `number` as in `architectures.Layer`."""
        if not (operation == "relu" and self._implied):
            self.operations.append(Step(operation, number))
        self._implied = False

    def convolution(self, key: str, weight: Part, bias: Array | None) -> None:
        """Append a convolution; `key` names its weight in the file, [out, in, height, width]."""
        self._append("convolution", key, weight, bias)

    def linear(self, key: str, weight: Part, bias: Array | None) -> None:
        """Append a linear layer; `key` names its weight in the file, [out, in]."""
        if len(weight.shape) != 2:
            raise self.error(f"{key} has the shape {list(weight.shape)}, not that of a linear layer")
        product: Parameter = weight
        if self.ends_in("linear") and "bias" not in self.layers[-1]:  # two linear layers that are a weight of low rank
            right = self.layers[-1]["weight"].value
            if isinstance(right, LowRank) or weight.shape[1] != right.shape[0]:
                raise self.error(f"{key} has the shape {list(weight.shape)} after {list(right.shape)}")
            if self.recorder.forget(len(self.operations)):
                self.recorder.prevent(f"{key} is the second part of a weight of low rank")
            self.layers.pop()
            self.operations.pop()
            product = LowRank(weight, right)
        self._append("linear", key, product, bias)

    def _append(self, operation: str, key: str, weight: Parameter, bias: Array | None) -> None:
        layer: Layer = {"weight": Found(key, weight)}
        if bias is not None:
            layer["bias"] = Found(f"{key}'s bias", bias.reshape(-1))
        self.layers.append(layer)
        self.add(operation)

    def bias(self, key: str, value: Array) -> None:
        """A bias as an operation of its own after its layer."""
        if self._implied:  # its zero point was that of a sum with the bias missing
            self.operations.pop()
            self._implied = False
        if not self.ends_in("convolution", "linear") or "bias" in self.layers[-1]:
            raise self.error(f"unsupported operator {key}")
        self.layers[-1]["bias"] = Found(key, value.reshape(-1))
        self.recorder.forget(len(self.operations))  # a product that is rounded before its bias is added

    def batch_norm(self, layer: Layer, epsilon: float) -> None:
        """Append a batch normalisation."""
        self.layers.append(layer)
        self.add("batch_norm")
        self._epsilons.append(epsilon)

    def affine(self, key: str, scale: Array, shift: Array, size: int) -> None:
        """Append a product and a sum, for each of `size` channels, as a batch normalisation."""
        values = {
            "scale": np.broadcast_to(scale, size), "bias": np.broadcast_to(shift, size),
            "mean": np.zeros(size), "variance": np.full(size, 1 - EPSILON),
        }  # fmt: skip
        self.batch_norm({role: Found(key, value.astype(np.float32)) for role, value in values.items()}, EPSILON)

    def scale(self, scale: Array, shift: Array) -> None:
        """Multiply the last layer's output, and add to it."""
        layer, role = self.layers[-1], "scale" if self.ends_in("batch_norm") else "weight"
        weight, bias = layer.get(role), layer.get("bias")
        first = next(iter(layer.values()))
        quantized = self.recorder.forget(len(self.operations))  # a product may be rounded before its bias is added
        if quantized and ((scale != 1).any() or "bias" in layer):
            self.recorder.prevent(f"{first.key} is multiplied after it was quantized")
        if (scale != 1).any():
            value = _multiplied(weight.value, scale) if weight else np.broadcast_to(scale, first.value.shape).astype(np.float32)
            layer[role] = Found(weight.key if weight else first.key, value)
        if bias is not None or shift.any():
            before: Any = expanded(bias.value) if bias is not None else 0.0
            total = np.broadcast_to(before * scale + shift, first.value.shape[:1])
            layer["bias"] = Found(bias.key if bias is not None else f"{first.key}'s bias", total.astype(np.float32))

    def quantize(self, node: object, scale: Array, zero_point: Array) -> None:
        """Record a quantization, and the ReLU that quantizers leave out before a value that can't be negative."""
        self.recorder.quantize(node, len(self.operations) - self._implied, scale, zero_point)
        integers = zero_point.dtype.kind in "iu" or is_int4(zero_point)
        least = integers and np.all(zero_point == ml_dtypes.iinfo(zero_point.dtype).min)  # type: ignore[no-untyped-call]
        if least and self.ends_in("convolution", "linear", "batch_norm"):
            self.add("relu")
            self._implied = True

    def network(self) -> tuple[Architecture, dict[str, Parameter], bool]:
        """The architecture, its parameters under the paper's names, and whether a softmax ends the chain."""
        softmax = self.ends_in("softmax", "log_softmax")
        operations = [*self.operations]
        output = OUTPUTS.get(operations[-1].operation) if operations else None
        if output:
            operations.pop()
        if self._implied and operations[-1:] == [Step("relu")]:
            operations.pop()  # the output happens to be zero or more
        first = max((place for place, step in enumerate(operations) if step.operation == "max_pool"), default=-1) + 1
        trunk, rest = [step.operation for step in operations[:first]], operations[first:]
        if not any(step.operation == "linear" for step in rest):
            trunk, rest = [step.operation for step in operations], []
        depths = [0]
        for one in trunk:
            depths[-1] += one == "convolution"
            depths += [0] * (one == "max_pool")
        epsilon = self._same_epsilon()
        architecture, parameters, *_ = assemble(
            self.path, self.layers, epsilon=epsilon, channels_last=self.channels_last, lrn="lrn" in trunk,
            depths=depths, head=self._head(rest, output), input_size=self.input_size,
        )  # fmt: skip
        expected = [layer.operation for layer in architecture.layers if layer.operation not in ("flatten", "dropout")]
        named = [*trunk, *(step.operation for step in rest if step.operation != "dropout")]
        for place, (wanted, found) in enumerate(zip([*expected, "nothing"], [*named, "nothing"], strict=False), 1):
            if wanted != found:
                raise self.error(f"expected {wanted} as operation {place} of {architecture.name}, found {found}")
        return architecture, parameters, softmax

    def _same_epsilon(self) -> float:
        """One epsilon for all batch normalisations: the smallest. Larger ones become part of the variance."""
        epsilon = min(self._epsilons, default=Architecture.epsilon)
        norms = [layer for layer in self.layers if "mean" in layer]
        for layer, own in zip(norms, self._epsilons, strict=True):
            if own != epsilon:
                variance = layer["variance"]
                layer["variance"] = Found(
                    variance.key, (np.asarray(variance.value, np.float64) + (own - epsilon)).astype(np.float32)
                )
        return epsilon

    def _head(self, operations: list[Step], output: heads.Output | None) -> Head | None:
        """The head that these operations after the last max pooling are; None without one."""
        if not operations:
            return None
        linear = [
            layer["weight"].value.shape[0]
            for layer in self.layers
            if "weight" in layer and len(layer["weight"].value.shape) == 2
        ]
        pools = operations[0].operation in POOLINGS
        pooling = operations[0] if pools else Step("flatten", 1)
        while operations[pools].operation == "relu":  # changes nothing after a ReLU and a pooling
            operations.pop(pools)
        steps = []
        for step in operations[pools:]:
            if step.operation == "linear":
                units = linear.pop(0)
                step = Step("linear", units if linear else 0)
            steps.append(step)
        while steps[-1].operation == "dropout":
            steps.pop()
        kind: heads.Pooling = {"flatten": "flatten", "global_max_pool": "max"}.get(pooling.operation, "average")  # type: ignore[assignment]
        if units == 1 and output is None:
            self.assumed.append("one logit for two classes")
        if units == 1 and output in (None, "sigmoid"):
            output = "binary"
        try:
            return Head(tuple(steps), kind, int(pooling.number or 1), output or "softmax")
        except ModelError as error:
            raise self.error(str(error)) from None


def _multiplied(weight: Parameter, scale: Array) -> Parameter:
    if isinstance(weight, LowRank):
        return replace(weight, left=multiplied(weight.left, scale))
    return multiplied(weight, scale)
