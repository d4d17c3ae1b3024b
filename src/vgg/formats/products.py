"""Convolutions and linear layers in a graph, in floats and integers."""

import math
from dataclasses import replace

import numpy as np

from ..arrays import Array
from ..heads import ACTIVATIONS, Step
from ..parameters import Part, expanded, shaped
from .dimensions import Dimensions
from .elements import Elements
from .frontier import BLOCKS
from .functions import LARGEST, shortest
from .layouts import Found
from .nodes import Node, multiplied, quantized, transposed, unpacked
from .pixels import Pixels
from .windows import windows

MATRICES = ("Gemm", "MatMul", "FusedMatMul", "FusedGemm", "MatMulInteger")  # may read the value as their second input
_FUSED = {  # of ONNX Runtime's fused operators: our activation
    "Relu": "relu", "LeakyRelu": "leaky_relu", "Elu": "elu", "Tanh": "tanh", "Sigmoid": "sigmoid",
}  # fmt: skip


class Products(Elements):
    """Takes the operators with weights."""

    as_map = False  # the last linear layer was a convolution
    pointwise = False  # and a 1x1 one on a map of several positions

    def sides(self, node: Node) -> list[int]:
        """Height and width of the map that a node reads."""
        if not self.dimensions.is_map:
            raise self.error(f"{node} reads a value of the dimensions {self.dimensions}")
        return [self.dimensions.sizes[axis] for axis in "HW"]

    def resize(self, height: int, width: int) -> None:
        self.dimensions = self.dimensions.sized(H=height, W=width)

    def conv(self, node: Node, weight: Part, bias: Array | None) -> None:
        sides = self.sides(node)
        self.expect(node, strides=1, dilations=1, group=1)
        if len(weight.shape) != 4 or weight.shape[2] != weight.shape[3]:
            raise self.error(f"{node} has a weight of shape {list(weight.shape)}")
        head, side = self.count("max_pool") == BLOCKS, weight.shape[2]
        pads = [pad + self.padding for pad in node.attributes.get("pads") or [0] * 4]
        if str(node.attributes.get("auto_pad")).startswith("SAME"):
            pads = [side // 2 + self.padding] * 4
        if any(pad != (0 if head else side // 2) for pad in pads):
            raise self.error(f"{node} has pads {pads}")
        self.padding = 0
        if head:
            self.dense(node, weight, bias, sides)
            return
        if not self.layers and not self.pixels.scales and self.pixels.order != Pixels().order:
            # The first convolution can read the channels in the order of the input.
            weight, self.pixels = expanded(weight)[:, np.argsort(self.pixels.order)], Pixels()
        self.convolution(key(node), weight, bias)
        self.dimensions = self.dimensions.sized(C=weight.shape[0])

    def dense(self, node: Node, weight: Part, bias: Array | None, sides: list[int]) -> None:
        """A linear layer as a convolution, the first one over the whole map, as in the paper's dense form."""
        units, _, side, _ = weight.shape
        known = not self.dimensions.free
        pointwise = side == 1 and sides != [1, 1] and not self.count("linear")
        if known and sides != [side, side] and not pointwise:
            raise self.error(f"{node} has a kernel of {side} x {side} for a map of {sides[0]} x {sides[1]}")
        self.pointwise, self.as_map = self.pointwise or pointwise, True
        self.linear(key(node), shaped(weight, (units, math.prod(weight.shape[1:]))), bias)
        self.dimensions = self.dimensions.sized(C=units)
        if known and not pointwise:
            self.resize(1, 1)
        elif not known:
            self.dimensions = self.dimensions.scaled(lambda size: size - side + 1)

    def matrix(
        self, node: Node, turned: tuple[bool, bool] = (False, False), factor: float = 1.0, bias: Array | None = None,
        weight: Part | None = None,
    ) -> None:  # fmt: skip
        """A product of the value and a constant matrix, in either order; `turned` says which of them are transposed."""
        second = node.inputs[0] != self.value
        weight = self.constant(node, int(not second)) if weight is None else weight
        if len(weight.shape) != 2:
            raise self.error(f"{node} has a weight of shape {list(weight.shape)}")
        if (
            self.dimensions.is_map
            and not self.as_map
            and self.window(expanded(weight if second else transposed(weight)), second)
        ):
            return
        # As (weight @ value.T).T equals value @ weight.T, the second input's images are those of the result's columns.
        weight = weight if turned[0 if second else 1] != second else transposed(weight)
        dimensions = self.dimensions.transposed(()) if turned[second] != second else self.dimensions
        made = self.product(node, dimensions, weight if factor == 1 else multiplied(weight, np.array(factor)), bias)
        self.dimensions = made.transposed(()) if second else made

    def product(self, node: Node, dimensions: Dimensions, weight: Part, bias: Array | None) -> Dimensions:
        """Append a linear layer with a weight [out, in]; the dimensions of its result."""
        *others, last = dimensions.significant
        first = not self.count("linear")
        if [one for one in others if one] != ["N"] or last not in (("C", "CHW", "HWC") if first else ("C", *self._unsettled())):
            raise self.error(f"{node} reads a value of the dimensions {self.dimensions}")
        units, inputs = weight.shape
        if not set(dimensions.shape[-1:]) <= {inputs} and not set(last) & set(dimensions.free):
            raise self.error(f"{node} has {inputs} inputs for {dimensions.shape[-1]} values")
        if bias is not None and bias.size not in (1, units):
            raise self.error(f"{node} has a bias of shape {list(bias.shape)}")
        if first and last != "C":
            self.channels_last = last == "HWC"
            self._spread(inputs)
        self.as_map = self.pointwise = False
        self.linear(key(node), weight, None if bias is None else np.broadcast_to(bias.reshape(-1), units))
        axes = (*("" if held in ("H", "W") else held for held in dimensions.axes[:-1]), "C")
        return replace(dimensions.sized(C=units, H=1, W=1), axes=axes)

    def _unsettled(self) -> tuple[str, ...]:
        """What a later linear layer may read besides units: the map of a dense form, whose size is unknown."""
        return ("CHW", "HWC") if self.dimensions.free else ()

    def _spread(self, inputs: int) -> None:
        """Repeat the numbers of a batch normalisation of the map for each position, since the head has a vector."""
        if not self.ends_in("batch_norm") or self.layers[-1]["mean"].value.shape[0] == inputs:
            return
        spread = np.tile if self.channels_last else np.repeat
        self.layers[-1] = {
            role: Found(found.key, spread(expanded(found.value), inputs // found.value.shape[0]))
            for role, found in self.layers[-1].items()
        }

    def window(self, shares: Array, rows: bool) -> bool:
        """Take one of the two products of an adaptive pooling, by columns and by rows; False for any other product."""
        axis = "H" if rows else "W"
        positions, side = shares.shape
        fits = self.dimensions.sizes[axis] == side and shares.size <= LARGEST and self.partial in ("", "adaptive_pool")
        if not fits or not np.allclose(shares, windows(side, positions), atol=1e-3):
            return False
        self.dimensions = self.dimensions.sized(**{axis: positions})
        sides = [self.dimensions.sizes[axis] for axis in "HW"]
        self.partial = "" if self.partial and sides == [positions] * 2 else "adaptive_pool"
        if not self.partial:
            self.add("adaptive_pool", positions)
        return True

    def since_pooling(self) -> list[str]:
        """The operations after the last max pooling."""
        names = [step.operation for step in self.operations]
        return names[len(names) - names[::-1].index("max_pool") :] if "max_pool" in names else names

    def pool_dense(self, node: Node, operation: str) -> None:
        """A pooling of the map of a dense form: at the usual size, it has one position."""
        if self.pointwise and operation == "average_pool" and self.count("linear") == 1 and self.ends_in("linear"):
            if self.recorder.forget(len(self.operations)):
                self.recorder.prevent(f"{node} pools quantized results of a linear layer")
            self.operations.insert(-1, Step(operation))  # the mean of a linear layer is that of its input's mean
        elif self.pointwise or not self.ends_in("linear"):
            raise self.error(f"unsupported operator {node}: it pools the results of the head")

    # One method per operator: `on_` and its name in lower case.

    def on_conv(self, node: Node) -> None:
        self.conv(node, self.constant(node, 1), self.optional(node, 2))
        self._fused(node, *node.attributes.get("activation_params", ()))

    on_fusedconv = on_conv

    def on_nhwcconv(self, node: Node) -> None:
        self.conv(node, self.array(node, 1).transpose(0, 3, 1, 2), self.optional(node, 2))
        self._fused(node, *node.attributes.get("activation_params", ()))

    on_nhwcfusedconv = on_nhwcconv

    def on_gemm(self, node: Node) -> None:
        if self.dimensions.is_map:  # which old files let Gemm flatten
            self.dimensions = self.dimensions.flattened(1)
        bias = self.optional(node, 2)
        turned = bool(node.attributes.get("transA")), bool(node.attributes.get("transB"))
        weight = self.constant(node, int(node.inputs[0] == self.value))
        if bias is not None and bias.size not in (1, *weight.shape):  # before it is multiplied
            raise self.error(f"{node} has a bias of shape {list(bias.shape)}")
        bias = None if bias is None else bias * np.float32(node.attributes.get("beta", 1.0))
        self.matrix(node, turned, float(node.attributes.get("alpha", 1.0)), bias)
        self._fused(node, *(node.attributes.get(name, 0.0) for name in ("activation_alpha",)))

    on_fusedgemm = on_gemm

    def _fused(self, node: Node, number: float | None = None, *others: float) -> None:
        """The activation of a fused operator."""
        name = node.attributes.get("activation")
        if name is None:
            return
        operation = _FUSED.get(name)
        if operation is None or any(others):
            raise self.error(f"{node} has the activation {name}")
        self.activation(node, operation, shortest(ACTIVATIONS[operation] if number is None else number))

    def on_matmul(self, node: Node) -> None:
        self.matrix(node)

    def on_fusedmatmul(self, node: Node) -> None:
        self.expect(node, transBatchA=0, transBatchB=0)
        turned = bool(node.attributes.get("transA")), bool(node.attributes.get("transB"))
        self.matrix(node, turned, float(node.attributes.get("alpha", 1.0)))

    def _integers(self, node: Node, values: int, zero_point: int, scale: Array, axis: int) -> Part:
        """A weight as integers; `values` and `zero_point` are the places of a node's inputs."""
        return quantized(self.array(node, values), scale, self.optional(node, zero_point), axis)

    def on_convinteger(self, node: Node) -> None:
        self.recorder.prevent(f"{node} has no scales")
        self.conv(node, self._integers(node, 1, 3, np.ones(1, np.float32), 0), None)

    def on_matmulinteger(self, node: Node) -> None:
        self.recorder.prevent(f"{node} has no scales")
        second = int(node.inputs[0] == self.value)
        self.matrix(node, weight=self._integers(node, second, 2 + second, np.ones(1, np.float32), second))

    def on_matmulintegertofloat(self, node: Node) -> None:
        self.recorder.prevent(f"{node} computes a scale for each batch")
        self.matrix(node, bias=self.optional(node, 6), weight=self._integers(node, 1, 5, self.array(node, 3), 1))
        self.scale(self.array(node, 2).reshape(-1), np.zeros(1))

    def on_dynamicquantizematmul(self, node: Node) -> None:
        self.recorder.prevent(f"{node} computes a scale for each batch")
        self.matrix(node, bias=self.optional(node, 4), weight=self._integers(node, 1, 3, self.array(node, 2), 1))

    def on_matmulnbits(self, node: Node) -> None:
        """A linear layer with one scale for each block of a row's 4-bit or 8-bit numbers, which are packed in bytes."""
        units, inputs, size, bits = (int(node.attributes.get(name, 4)) for name in ("N", "K", "block_size", "bits"))
        blocks = -(-inputs // max(size, 1))
        if bits not in (4, 8) or size < 8 or min(units, inputs) < 1:
            raise self.error(f"{node} has {bits} bits in blocks of {size}")
        if self.optional(node, 4) is not None:
            raise self.error(f"{node} has its inputs in another order, by g_idx")
        packed, scale = self.array(node, 1).reshape(units, -1), self.array(node, 2).reshape(units, blocks)
        values, zero_point = (
            unpacked(packed, bits, blocks * size, signed=self.optional(node, 3) is None),
            self.optional(node, 3),
        )
        if zero_point is not None and zero_point.dtype == np.uint8:
            zero_point = unpacked(zero_point.reshape(units, -1), bits, blocks)
        zero_point = None if zero_point is None else zero_point.reshape(units, blocks)
        weight = quantized(values[:, :inputs], scale, zero_point, 1, size)
        self.matrix(node, (False, True), bias=self.optional(node, 5), weight=weight)

    def scaled_bias(self, node: Node, place: int) -> Array | None:
        """An integer bias in floats: its scale is the product of the scales of input and weight."""
        bias = self.optional(node, place)
        if bias is None:
            return None
        numbers, *scales = (one.reshape(-1) for one in (bias, self.array(node, 1), self.array(node, 4)))
        if len({len(one) for one in (numbers, *scales)} - {1}) > 1 or bias.size not in (1, *self.constant(node, 3).shape):
            raise self.error(f"{node} has a bias of shape {list(bias.shape)}")
        return np.asarray(numbers * (scales[0] * scales[1]), np.float32)

    def on_qlinearconv(self, node: Node) -> None:
        self.integers_read(node, 1)
        self.conv(node, self.weight(node, 3, 0), self.scaled_bias(node, 8))
        self.integers_written(node, 6)

    def on_qlinearmatmul(self, node: Node) -> None:
        self.integers_read(node, 1)
        self.matrix(node, weight=self.weight(node, 3, 1))
        self.integers_written(node, 6)

    def on_qgemm(self, node: Node) -> None:
        if self.dimensions.is_map:
            self.dimensions = self.dimensions.flattened(1)
        self.integers_read(node, 1)
        self.expect(node, alpha=1.0, transA=0)
        turned = bool(node.attributes.get("transB"))
        self.matrix(node, (False, turned), bias=self.scaled_bias(node, 6), weight=self.weight(node, 3, 0 if turned else 1))
        self.integers_written(node, 7)


def key(node: Node) -> str:
    """The name of the weight of a convolution or linear layer in the file."""
    place = 3 if node.operator.startswith("Q") else 1
    return node.inputs[place] if place < len(node.inputs) else node.outputs[0]
