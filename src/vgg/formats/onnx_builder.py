"""The ONNX model of a network, without its parameters, at any opset from 3 on. All ONNX models of the package come from here.

What changed between the opsets, from onnx/docs/Changelog.md: Gemm's C is only broadcast when `broadcast` is set (below 7);
BatchNormalization needs `consumed_inputs` (below 6) and `is_test` (below 7) for inference; Cast's `to` is a string (below 6);
Softmax flattens all dimensions from its axis on (below 13).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from .. import architectures
from ..architectures import Architecture, Layer, Shape
from ..errors import ModelError
from ..network import Network
from ..parameters import LowRank, Part, Quantized, is_int4
from . import onnx_functions, onnx_names, onnx_preprocessing
from .nodes import Node
from .onnx_file import NEWEST, Port
from .onnx_messages import DATA_TYPES, FLOAT, FLOAT16, UINT8, Graph
from .onnx_names import PROBABILITIES

OLDEST, DEFAULT = 3, 17
PER_AXIS, BLOCKED = 13, 21  # DequantizeLinear with scales along an axis; with 4-bit integers and groups
PREPROCESSING = 18  # Resize with antialiasing


@dataclass(frozen=True)
class OnnxOptions:
    """The form of an ONNX model; see `vgg.formats.write`.

    Raises:
        ModelError: an option is invalid, or two contradict each other.
    """

    opset: int | None = None  # DEFAULT, or PREPROCESSING where that is needed
    outputs: tuple[str, ...] = ("logits",)  # names as in `Architecture.values`
    softmax: bool = False
    batch: int | None = None
    dense: bool = False
    bits: int = 32
    names: Literal["paper", "zoo"] = "paper"
    preprocessing: bool = False

    def __post_init__(self) -> None:
        if self.bits not in (16, 32):
            raise ModelError(f"invalid bits {self.bits}; the floats of an ONNX file have 16 or 32")
        if self.batch is not None and self.batch < 1:
            raise ModelError(f"invalid batch {self.batch}; it must be 1 or more")
        if self.names not in ("paper", "zoo"):
            raise ModelError(f"unknown names {self.names!r}; choose from paper, zoo")
        if self.dense and self.preprocessing:
            raise ModelError("dense and preprocessing exclude each other: preprocessing crops every image to one size")


@dataclass(frozen=True)
class Initializer:
    """A tensor of the model: the parameter `name`, called `title` in the file, written as `dtype` with the shape `dims`."""

    name: str
    title: str
    value: Part
    dtype: Any
    dims: Shape

    @property
    def nbytes(self) -> int:
        count, dtype = math.prod(self.dims), np.dtype(self.dtype)
        return (count + 1) // 2 if dtype.name in ("int4", "uint4") else count * int(dtype.itemsize)

    @property
    def data_type(self) -> int:
        return DATA_TYPES[np.dtype(self.dtype)]


def build(network: Network, options: OnnxOptions) -> tuple[Graph, list[Initializer]]:
    """The model that computes `options.outputs` of a network from `data`, without its initializers, and the initializers.

    Raises:
        ModelError: the opset or an output is unknown, or the options don't fit the network.
    """
    architecture = network.architecture
    oldest = PREPROCESSING if options.preprocessing else OLDEST
    opset = max(DEFAULT, oldest) if options.opset is None else options.opset
    if not oldest <= opset <= NEWEST:
        what = " with preprocessing" if options.preprocessing else ""
        raise ModelError(f"unsupported opset {opset}{what}; vgg writes {oldest} to {NEWEST}")
    architecture.check_values(options.outputs)
    if options.dense and not architecture.fixed_size:
        raise ModelError("the dense form turns linear layers into convolutions; in this network they don't read a map")
    if options.softmax and not architecture.classifier:
        raise ModelError("a network without a head has no probabilities")
    outputs = [name for name in architecture.values if name in options.outputs]
    builder = _Builder(network, opset, options, outputs)
    for layer in architecture.layers:
        if layer.operation != "dropout" and not (options.dense and layer.operation == "flatten"):
            builder.add(layer)
        if layer.value == outputs[-1]:
            break
    return builder.finish(), builder.initializers


class _Builder:
    """A graph under construction; `value` is the name of the value that the next layer reads."""

    def __init__(self, network: Network, opset: int, options: OnnxOptions, outputs: list[str]) -> None:
        self.network, self.opset, self.options, self.outputs = network, opset, options, outputs
        self.dtype: Any = np.float16 if options.bits == 16 else np.float32
        self.nodes: list[Node] = []
        self.initializers: list[Initializer] = []
        self.types: dict[str, int] = {}  # of the old Cast's outputs, which shape inference can't find
        self.value = "data"
        if options.preprocessing:
            self.nodes += onnx_preprocessing.nodes(network.preprocessing)
        if options.bits == 16:
            self.cast("data", "data.half", FLOAT16)
            self.value = "data.half"

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(Node(operator, tuple(inputs), (output,), attributes))

    def cast(self, value: str, output: str, to: int) -> None:
        self.node("Cast", [value], output, to=to if self.opset >= 6 else {FLOAT: "FLOAT", FLOAT16: "FLOAT16"}[to])
        if self.opset < 6:
            self.types[output] = to

    def add(self, layer: Layer) -> None:
        """Add a layer's operator and parameters."""
        weight = self.network.parameters[f"{layer.name}.weight"] if "weight" in layer.parameters else None
        operator, attributes = self.operator(layer)
        inputs = [self.value]
        if isinstance(weight, LowRank):  # two operators, the first one without bias
            right = self.parameter(f"{layer.name}.weight.right", weight.right, self.dims(layer, weight.right.shape))
            self.node(operator, [self.value, right], f"{layer.name}.low", **attributes)
            inputs = [f"{layer.name}.low"]
            attributes = {**attributes, "kernel_shape": [1, 1]} if self.options.dense else attributes
            inputs.append(self.parameter(f"{layer.name}.weight.left", weight.left, self.dims(layer, weight.left.shape)))
        for role, shape in layer.parameters.items():
            name = f"{layer.name}.{role}"
            value = self.network.parameters[name]
            if not isinstance(value, LowRank):
                inputs.append(self.parameter(name, value, self.dims(layer, shape) if role == "weight" else shape))
        half = self.options.bits == 16 and layer.value in self.outputs
        self.value = f"{layer.value}.half" if half else layer.value
        if layer.operation in onnx_functions.COMPOSED:
            architecture = self.network.architecture
            side = architecture.pooled(architecture.input_size, len(architectures.CHANNELS))
            self.nodes += onnx_functions.nodes(layer, inputs[0], self.value, self.opset, self.dtype, side)
        else:
            self.node(operator, inputs, self.value, **attributes)
        if half:
            self.cast(self.value, layer.value, FLOAT)

    def dims(self, layer: Layer, shape: Shape) -> Shape:
        """A weight's shape in the layer's operator."""
        if layer.operation != "linear":
            return shape
        return (*shape, 1, 1)[:4] if self.options.dense else (shape[0], math.prod(shape[1:]))

    def parameter(self, name: str, value: Part, dims: Shape) -> str:
        """Add a parameter's tensors; return the name that a node reads."""
        if self.options.bits == 16 or not isinstance(value, Quantized) or not _keeps(value, dims, self.opset):
            self.initializers.append(Initializer(name, name, value, self.dtype, dims))
            return name
        rows = (dims[0], math.prod(dims[1:])) if value.group else dims  # groups run along the rows of a matrix
        inputs = []
        parts = {"": value.values, ".scale": value.scale, ".zero_point": value.zero_point}
        for suffix, array in parts.items():
            if array is not None:
                inputs.append(f"{name}{suffix}")
                shape = tuple(array.shape) if suffix else rows
                self.initializers.append(Initializer(inputs[-1], inputs[-1], array, array.dtype, shape))
        output = f"{name}.float" if rows == dims else f"{name}.rows"
        grouped = {"block_size": value.group} if value.group else {}
        self.node("DequantizeLinear", inputs, output, axis=1 if value.group else value.axis, **grouped)
        if rows != dims:
            self.node("Constant", [], f"{name}.shape", value_ints=dims)
            self.node("Reshape", [output, f"{name}.shape"], f"{name}.float")
        return f"{name}.float"

    def operator(self, layer: Layer) -> tuple[str, dict[str, Any]]:
        """A layer's operator and its attributes at this opset."""
        old = self.opset < 7
        kernel = layer.parameters.get("weight", ())[2:]
        normalisation: dict[str, Any] = {"epsilon": self.network.architecture.epsilon}
        if old:
            normalisation["is_test"] = 1
        if self.opset < 6:
            normalisation["consumed_inputs"] = [0, 0, 0, 1, 1]
        linear: tuple[str, dict[str, Any]] = ("Gemm", {"transB": 1, "broadcast": 1} if old else {"transB": 1})
        if self.options.dense:
            linear = ("Conv", {"kernel_shape": kernel or [1, 1]})
        operators: dict[str, tuple[str, dict[str, Any]]] = {
            "convolution": ("Conv", {"kernel_shape": kernel, "pads": [side // 2 for side in kernel] * 2}),
            "batch_norm": ("BatchNormalization", normalisation),
            "lrn": ("LRN", {
                "size": architectures.LRN_SIZE, "alpha": architectures.LRN_ALPHA,
                "beta": architectures.LRN_BETA, "bias": architectures.LRN_K,
            }),
            "relu": ("Relu", {}),
            "max_pool": ("MaxPool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            "mean_pool": ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            "average_pool": ("GlobalAveragePool", {}),
            "global_max_pool": ("GlobalMaxPool", {}),
            "flatten": ("Flatten", {"axis": 1}),
            "linear": linear,
            "leaky_relu": ("LeakyRelu", {"alpha": layer.number}),
            "elu": ("Elu", {"alpha": layer.number}),
            "tanh": ("Tanh", {}),
            "sigmoid": ("Sigmoid", {}),
        }  # fmt: skip
        return operators.get(layer.operation, ("", {}))

    def probabilities(self) -> None:
        """Add the scores of the classes, which are the second dimension of the logits."""
        if self.network.architecture.output == "sigmoid":
            self.node("Sigmoid", ["logits"], PROBABILITIES)
            return
        if self.network.architecture.output == "binary":
            self.node("Neg", ["logits"], "logits.negative")
            self.node("Concat", ["logits.negative", "logits"], "logits.both", axis=1)
            self.node("Sigmoid", ["logits.both"], PROBABILITIES)
            return
        if self.opset >= 13 or not self.options.dense:
            self.node("Softmax", ["logits"], PROBABILITIES, axis=1)
            return
        self.node("Transpose", ["logits"], "logits.last", perm=[0, 2, 3, 1])
        self.node("Softmax", ["logits.last"], "probabilities.last", axis=3)  # flattens from this axis on: the classes only
        self.node("Transpose", ["probabilities.last"], PROBABILITIES, perm=[0, 3, 1, 2])

    def finish(self) -> Graph:
        architecture, options = self.network.architecture, self.options
        outputs = {name: _shape(architecture, name, options) for name in self.outputs}
        if options.softmax:
            self.probabilities()
            outputs["logits"][1] = self.network.architecture.classes
            outputs = {PROBABILITIES if name == "logits" else name: shape for name, shape in outputs.items()}
        batch: int | str = options.batch or "batch"
        if options.preprocessing:
            image, axes = Port("image", UINT8, [batch, "height", "width", 3]), "BFFC"
        else:
            side = architecture.input_size
            sides = [side, side] if architecture.fixed_map and not options.dense else ["height", "width"]
            image, axes = Port("data", FLOAT, [batch, 3, *sides]), "BCFF"
        titles = onnx_names.zoo_names(architecture, options.softmax) if options.names == "zoo" else {}

        def titled(*names: str) -> tuple[str, ...]:
            return tuple(titles.get(name, name) for name in names)

        self.initializers = [replace(one, title=titles.get(one.title, one.title)) for one in self.initializers]
        inputs = [replace(image, name=titles.get(image.name, image.name))]
        if self.opset < 7:  # in IR version 3, every initializer is an input
            inputs += [Port(one.title, one.data_type, [*one.dims]) for one in self.initializers]
        ports = [Port(titles.get(name, name), FLOAT, shape) for name, shape in outputs.items()]
        nodes = [replace(node, inputs=titled(*node.inputs), outputs=titled(*node.outputs)) for node in self.nodes]
        types = {titles.get(name, name): kind for name, kind in self.types.items()}
        return Graph(architecture.name, self.opset, nodes, inputs, ports, axes, types)


def _keeps(value: Quantized, dims: Shape, opset: int) -> bool:
    """Whether DequantizeLinear at this opset can express a quantized parameter of these dimensions."""
    oldest = BLOCKED if value.group or is_int4(value.values) else PER_AXIS
    flattens = dims != value.shape and value.axis != 0 and not value.group  # merges the axis that the scales run along
    return opset >= oldest and not flattens and value.values.dtype.name in ("int8", "uint8", "int4", "uint4")


def _shape(architecture: Architecture, value: str, options: OnnxOptions) -> list[int | str]:
    """The shape of a named value; sides that depend on the input's size are names."""
    side = architecture.input_size
    _, channels, *sides = architecture.shape(value, 1, side, side)
    free = (not architecture.fixed_map or options.dense) and not options.preprocessing
    if free and (options.dense or sides) and value != "pool6":
        return [options.batch or "batch", channels, f"{value}_height", f"{value}_width"]
    return [options.batch or "batch", channels, *sides]
