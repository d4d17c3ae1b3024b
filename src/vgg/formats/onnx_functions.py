"""Functions that are several ONNX operators, or became one operator only in a newer opset."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..architectures import L2_EPSILON, Layer
from ..arrays import Array
from ..errors import ModelError
from .nodes import Node
from .windows import windows

COMPOSED = ("gelu", "gelu_tanh", "silu", "adaptive_pool", "l2_pool")
BROADCASTING = 7  # the first opset that broadcasts as NumPy does
ERF, GELU = 9, 20  # the first opsets with these operators
# Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: erfc(x) for x >= 0 with an error below 1.5e-7.
ERFC_P, ERFC = 0.3275911, (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)


def nodes(layer: Layer, value: str, output: str, opset: int, dtype: Any, side: int) -> list[Node]:
    """The operators that compute `output` from `value` at an opset.

    Args:
        layer: of an operation in COMPOSED.
        value: the input's name.
        output: the output's name, which is also the prefix of the names in between.
        opset: the version of the operators.
        dtype: of the values, float32 or float16.
        side: of the map of `adaptive_pool`.

    Raises:
        ModelError: the opset is too old.
    """
    made = _Nodes(output, dtype)
    if layer.operation == "adaptive_pool":
        _pool(made, value, side, int(layer.number or 1))
    elif layer.operation == "l2_pool":  # the blur is the mean of two neighbours twice
        squares = made.add("Mul", value, value)
        around: dict[str, Any] = {"pads": [1, 1, 1, 1], "count_include_pad": 1}
        means = made.add("AveragePool", squares, kernel_shape=[2, 2], strides=[1, 1], **around)
        means = made.add("AveragePool", means, kernel_shape=[2, 2], strides=[2, 2])
        made.add("Sqrt", made.add("Add", means, made.constant(L2_EPSILON)), output=output)
    elif layer.operation == "silu":
        made.add("Mul", value, made.add("Sigmoid", value), output=output)
    elif opset >= GELU:
        made.add("Gelu", value, output=output, approximate="tanh" if layer.operation == "gelu_tanh" else "none")
    elif opset < BROADCASTING:
        raise ModelError(f"{layer.operation.replace('_', '-')} needs opset {BROADCASTING} or newer, not {opset}")
    elif layer.operation == "gelu_tanh":  # x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3)))
        cube = made.add("Mul", made.add("Mul", value, value), value)
        inner = made.add("Add", value, made.add("Mul", cube, made.constant(0.044715)))
        tanh = made.add("Tanh", made.add("Mul", inner, made.constant(math.sqrt(2 / math.pi))))
        half = made.add("Mul", value, made.constant(0.5))
        made.add("Mul", half, made.add("Add", tanh, made.constant(1)), output=output)
    elif opset >= ERF:  # x / 2 * (1 + erf(x / sqrt(2)))
        erf = made.add("Erf", made.add("Mul", value, made.constant(math.sqrt(0.5))))
        half = made.add("Mul", value, made.constant(0.5))
        made.add("Mul", half, made.add("Add", erf, made.constant(1)), output=output)
    else:  # max(x, 0) - |x| / 2 * erfc(|x| / sqrt(2))
        size = made.add("Abs", value)
        scaled = made.add("Mul", size, made.constant(math.sqrt(0.5)))
        t = made.add("Reciprocal", made.add("Add", made.add("Mul", scaled, made.constant(ERFC_P)), made.constant(1)))
        sum_ = made.constant(ERFC[-1])
        for factor in ERFC[-2::-1]:
            sum_ = made.add("Add", made.add("Mul", sum_, t), made.constant(factor))
        decay = made.add("Exp", made.add("Neg", made.add("Mul", scaled, scaled)))
        erfc = made.add("Mul", made.add("Mul", sum_, t), decay)
        tail = made.add("Mul", made.add("Mul", size, made.constant(0.5)), erfc)
        made.add("Sub", made.add("Relu", value), tail, output=output)
    return made.nodes


class _Nodes:
    """Nodes under construction, their values named after the output."""

    def __init__(self, name: str, dtype: Any) -> None:
        self.name, self.dtype = name, dtype
        self.nodes: list[Node] = []

    def add(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        output = output or f"{self.name}.{len(self.nodes)}"
        self.nodes.append(Node(operator, inputs, (output,), attributes))
        return output

    def constant(self, value: float | Array) -> str:
        return self.add("Constant", value=np.array(value, self.dtype))


def _pool(made: _Nodes, value: str, side: int, positions: int) -> None:
    """Average a map of `side` x `side` to `positions` x `positions`, whose windows are those of torch's AdaptiveAvgPool2d."""
    if side % positions == 0:
        kernel: Sequence[int] = [side // positions] * 2
        made.add("AveragePool", value, output=made.name, kernel_shape=kernel, strides=kernel)
        return
    shares = windows(side, positions)
    across = made.add("MatMul", value, made.constant(shares.T))
    made.add("MatMul", made.constant(shares), across, output=made.name)
