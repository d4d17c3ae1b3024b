"""Caffe2's pair of files: `init_net.pb` with the parameters, `predict_net.pb` with the graph.

Both are a NetDef in protobuf's wire format. Fields by number, from caffe2/proto/caffe2.proto. NetDef: op 2, external_input 7,
external_output 8. OperatorDef: input 1, output 2, type 4, arg 5. Argument: name 1, f 2, i 3, s 4, floats 5, ints 6.
"""

from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from . import protobuf, walk
from .layouts import Bare, reading
from .nodes import Node, filled, numbered
from .protobuf import Buffer, Value, fields, last, message, span, text

EPSILON = 1e-5  # SpatialBN's default
_FLOAT = 5 << 3 | 5  # the tag, a byte, before each number of `floats`, which are not packed
_FILLS = ("GivenTensorFill", "ConstantFill")
_SAME = {
    "Conv": "Conv", "FC": "Gemm", "Relu": "Relu", "MaxPool": "MaxPool", "LRN": "LRN", "SpatialBN": "BatchNormalization",
    "Dropout": "Dropout", "Softmax": "Softmax", "Reshape": "Reshape", "Flatten": "Flatten", "Copy": "Identity",
    "AveragePool": "AveragePool", "Sigmoid": "Sigmoid", "Tanh": "Tanh", "Elu": "Elu", "LeakyRelu": "LeakyRelu",
}  # fmt: skip


def companions(path: Path) -> dict[str, Path]:
    """The other half of a network, by its name. Raises ModelError if it is missing."""
    fills = _fills(_operators(map_file(path)))
    here, there = ("init", "predict") if fills else ("predict", "init")
    other = path.with_name(path.name.replace(here, there))
    if other == path or not other.exists():
        raise ModelError(f"{path}: half of a Caffe2 network; put the other half, {there}_net.pb, beside it")
    return {other.name: other}


def _fills(operators: list[Node]) -> bool:
    """Whether operators make the parameters, rather than compute."""
    return any(node.operator.endswith("Fill") for node in operators)


def read(path: Path) -> Bare:
    """The parameters in a pair of files, mapped; `path` is either one, and the other is beside it."""
    operators = _operators(map_file(path))
    fills, other = _fills(operators), next(iter(companions(path).values()))
    with reading(other, "Caffe2"):
        others = _operators(map_file(other))
    filling, computing = (operators, others) if fills else (others, operators)
    constants = {node.outputs[0]: _filled(path, node) for node in filling if node.outputs}
    nodes = [_node(path, node) for node in computing]
    start = next((name for node in nodes for name in node.inputs[:1] if name not in constants), "")
    walked = walk.follow(path, *numbered(nodes, nodes[-1].outputs if nodes else ()), constants, start)
    return Bare(walked.architecture, walked.parameters, assumed=walked.assumed)


def matches(mapped: Buffer) -> bool:
    """Whether a file is a NetDef, whose operators have text as type."""
    try:
        for number, value in fields(mapped, 0, len(mapped)):
            if number == 2:
                return any(part == 4 and not isinstance(inner, int) for part, inner in fields(mapped, *span(mapped, value)))
    except ValueError:
        return False
    return False


def _operators(mapped: Buffer) -> list[Node]:
    """The operators of a NetDef with Caffe2's names, their arguments as attributes."""
    operators: list[Node] = message(mapped, (0, len(mapped)), {2: _operator})[2]
    return operators


def _operator(buffer: Buffer, value: Value) -> Node:
    content = message(buffer, value, {1: text, 2: text, 4: text, 5: _argument})
    return Node(last(content[4], ""), tuple(content[1]), tuple(content[2]), dict(content[5]))


def _argument(buffer: Buffer, place: Value) -> tuple[str, Any]:
    """An argument's name and content. The numbers of `floats` are one view, in steps of five bytes."""
    (begin, end), name = span(buffer, place), ""
    content: Any = None
    while begin < end:
        for number, value in fields(buffer, begin, end):
            if number == 1:
                name = text(buffer, value)
            elif number == 2:
                content = float(protobuf.floats(buffer, value)[0])
            elif number == 3:
                content = protobuf.number(buffer, value)
            elif number == 4:
                content = protobuf.lenient_text(buffer, value)
            elif number == 6:
                content = content if isinstance(content, list) else []
                content += protobuf.numbers(buffer, value)
            elif number == 5:
                content, begin = _floats(buffer, *span(buffer, value), end)
                break
        else:
            break
    return name, content


def _floats(buffer: Buffer, first: int, last: int, end: int) -> tuple[Array, int]:
    """The numbers that start at `first`, and their end: packed, or one after another, each with its tag."""
    if last - first != 4:
        return protobuf.floats(buffer, (first, last)), last
    most = (end - first + 1) // 5
    tags = np.ndarray((most,), np.uint8, buffer, first - 1, (5,))
    count = 0
    while count < most:  # in blocks, so that at most one block is checked in vain
        block = tags[count : count + protobuf.BLOCK] == _FLOAT
        count += len(block) if block.all() else int(block.argmin())
        if not block.all():
            break
    return np.ndarray((count,), "<f4", buffer, first, (5,)), first - 1 + 5 * count


def _filled(path: Path, node: Node) -> Array:
    """The tensor of an operator in `init_net.pb`."""
    if node.operator not in _FILLS:
        raise ModelError(f"{path}: unsupported operator {node}; parameters come from {' or '.join(_FILLS)}")
    shape = node.attributes.get("shape")
    if not isinstance(shape, list) or min(shape, default=0) < 0:
        raise ValueError(f"{node.outputs[0]} has no shape")
    if node.operator == "ConstantFill":
        return filled(shape, np.float32(node.attributes.get("value", 0)))
    return np.asarray(node.attributes.get("values", np.empty(0, np.float32))).reshape(shape)


def _node(path: Path, node: Node) -> Node:
    """A Caffe2 operator as ONNX's."""
    arguments = node.attributes
    operator = _SAME.get(node.operator)
    if operator is None:
        raise ModelError(f"{path}: not a VGG network: unsupported operator {node}")
    if arguments.get("order", "NCHW") != "NCHW":
        raise ModelError(f"{path}: unsupported order of dimensions; channels must be first (NCHW)")

    def sides(one: str, *each: str, default: int) -> list[int]:
        values = arguments.get(f"{one}s", [arguments[name] for name in each if name in arguments])
        return values or [arguments.get(one, default)]

    attributes: dict[str, Any] = {}
    if operator in ("MaxPool", "AveragePool") and arguments.get("global_pooling"):
        operator = f"Global{operator}"
    elif operator in ("Conv", "MaxPool", "AveragePool"):
        attributes = {
            "strides": sides("stride", "stride_h", "stride_w", default=1), "dilations": sides("dilation", default=1),
            "pads": sides("pad", "pad_t", "pad_l", "pad_b", "pad_r", default=0), "group": arguments.get("group", 1),
            "kernel_shape": sides("kernel", "kernel_h", "kernel_w", default=1),
        }  # fmt: skip
    elif operator == "Gemm":
        attributes = {"transB": 1}
    elif operator == "LRN":
        attributes = {name: arguments.get(name) for name in ("size", "alpha", "beta")} | {"bias": arguments.get("bias", 1.0)}
    elif operator in ("Elu", "LeakyRelu"):
        attributes = {"alpha": arguments.get("alpha", 1.0 if operator == "Elu" else 0.01)}
    elif operator == "BatchNormalization":
        attributes = {"epsilon": arguments.get("epsilon", EPSILON)}
    return Node(operator, node.inputs, node.outputs, attributes)
