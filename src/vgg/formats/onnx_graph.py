"""The ONNX graph that computes a network, without its numbers, at any opset from 3 on.

What changed between the opsets, from onnx/docs/Changelog.md: Gemm's C is only broadcast when `broadcast` says so (below 7);
BatchNormalization's `consumed_inputs` (below 6) and `is_test` (below 7) are needed for inference; Cast's `to` is a word
(below 6); Softmax takes everything from its axis on as one (below 13).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from .. import architectures
from ..architectures import Architecture, Layer, Shape
from ..errors import ModelError
from ..network import Network
from ..parameters import LowRank, Part, Quantized, is_int4
from . import onnx_preprocessing
from .onnx_options import OnnxOptions

PER_AXIS, BLOCKED = 13, 21  # the opsets in which DequantizeLinear learned scales along an axis; 4-bit numbers and groups
PROBABILITIES = "probabilities"


@dataclass(frozen=True)
class Initializer:
    """A tensor of the file: the parameter `name`, called `title` there, written as `dtype` with the shape `dims`."""

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
        return int(helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype)))


def build(
    network: Network, opset: int, values: Sequence[str], options: OnnxOptions
) -> tuple[onnx.GraphProto, list[Initializer]]:
    """The graph that computes `values` of a network from `data`, without its initializers, and those it needs.

    Raises:
        ModelError: there is no such value, or the options don't fit the network.
    """
    architecture = network.architecture
    architecture.check_values(values)
    if options.dense and architecture.head != "fc":
        raise ModelError("the dense form turns fc6, fc7 and fc8 into convolutions, and this network has no fc6")
    wanted = [name for name in architecture.values if name in values]
    made = _Graph(network, opset, options, wanted)
    for layer in architecture.layers:
        if not (options.dense and layer.operation == "flatten"):
            made.add(layer)
        if layer.value == wanted[-1]:
            break
    return made.finish()


class _Graph:
    """A graph in the making; `value` names what the next layer reads."""

    def __init__(self, network: Network, opset: int, options: OnnxOptions, wanted: list[str]) -> None:
        self.network, self.opset, self.options, self.wanted = network, opset, options, wanted
        self.dtype: Any = np.float16 if options.bits == 16 else np.float32
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[Initializer] = []
        self.types: list[onnx.ValueInfoProto] = []  # of values whose type the old Cast doesn't tell
        self.value = "data"
        if options.preprocessing:
            self.nodes += onnx_preprocessing.nodes(network.preprocessing)
        if options.bits == 16:
            self.cast("data", "data.half", TensorProto.FLOAT16)
            self.value = "data.half"

    def node(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [output], output, **attributes))

    def cast(self, value: str, output: str, to: int) -> None:
        self.node("Cast", [value], output, to=to if self.opset >= 6 else TensorProto.DataType.Name(to))
        if self.opset < 6:
            self.types.append(_port(output, to, None))

    def add(self, layer: Layer) -> None:
        """A layer's operator, with its parameters."""
        weight = self.network.parameters[f"{layer.name}.weight"] if "weight" in layer.parameters else None
        operator, attributes = self.operator(layer)
        inputs = [self.value]
        if isinstance(weight, LowRank):  # two of the layer's operators, the first without bias
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
        self.value = layer.value
        if self.options.bits == 16 and layer.value in self.wanted:
            self.value = f"{layer.value}.half"
            self.node(operator, inputs, self.value, **attributes)
            self.cast(self.value, layer.value, TensorProto.FLOAT)
        else:
            self.node(operator, inputs, self.value, **attributes)

    def dims(self, layer: Layer, shape: Shape) -> Shape:
        """A weight's shape as the layer's operator wants it."""
        if layer.operation != "linear":
            return shape
        return (*shape, 1, 1)[:4] if self.options.dense else (shape[0], math.prod(shape[1:]))

    def parameter(self, name: str, value: Part, dims: Shape) -> str:
        """Add a parameter's tensors; the name of what a node reads."""
        if self.options.bits == 16 or not isinstance(value, Quantized) or not _kept(value, dims, self.opset):
            self.initializers.append(Initializer(name, name, value, self.dtype, dims))
            return name
        rows = (dims[0], math.prod(dims[1:])) if value.group else dims  # groups run along rows of a matrix
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
            "average_pool": ("GlobalAveragePool", {}),
            "flatten": ("Flatten", {"axis": 1}),
            "linear": linear,
        }  # fmt: skip
        return operators[layer.operation]

    def softmax(self) -> None:
        """Probabilities from the logits, over the classes, which stand in the second dimension."""
        if self.opset >= 13 or not self.options.dense:
            self.node("Softmax", ["logits"], PROBABILITIES, axis=1)
            return
        self.node("Transpose", ["logits"], "logits.last", perm=[0, 2, 3, 1])
        self.node("Softmax", ["logits.last"], "probabilities.last", axis=3)  # below 13: of rows, which end at this axis
        self.node("Transpose", ["probabilities.last"], PROBABILITIES, perm=[0, 3, 1, 2])

    def finish(self) -> tuple[onnx.GraphProto, list[Initializer]]:
        architecture, options = self.network.architecture, self.options
        outputs = {name: _shape(architecture, name, options) for name in self.wanted}
        if options.softmax:
            self.softmax()
            outputs = {PROBABILITIES if name == "logits" else name: shape for name, shape in outputs.items()}
        free = architecture.head == "gap" or options.dense
        side = architecture.input_size
        batch: int | str = options.batch or "batch"
        if options.preprocessing:
            port = _port("image", TensorProto.UINT8, [batch, "height", "width", 3], "BFFC")
        else:
            shape = [batch, 3, "height" if free else side, "width" if free else side]
            port = _port("data", TensorProto.FLOAT, shape, "BCFF")
        titles = _titles(architecture, options) if options.names == "zoo" else {}
        self.initializers = [replace(one, title=titles.get(one.title, one.title)) for one in self.initializers]
        inputs = [port]
        if self.opset < 7:  # IR 3 knows no initializer that is not an input
            inputs += [_port(one.title, one.data_type, one.dims) for one in self.initializers]
        ports = [_port(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        made = helper.make_graph(self.nodes, architecture.name, inputs, ports, value_info=self.types)
        for one in (*made.input, *made.output, *made.value_info):
            one.name = titles.get(one.name, one.name)
        for node in made.node:
            node.name = titles.get(node.name, node.name)
            node.input[:] = [titles.get(name, name) for name in node.input]
            node.output[:] = [titles.get(name, name) for name in node.output]
        return made, self.initializers


def _kept(value: Quantized, dims: Shape, opset: int) -> bool:
    """Whether DequantizeLinear can say what a quantized parameter says, in this opset and with these dimensions."""
    needed = BLOCKED if value.group or is_int4(value.values) else PER_AXIS
    flattens = dims != value.shape and value.axis != 0 and not value.group  # scales within a map don't outlive that
    return opset >= needed and not flattens and value.values.dtype.name in ("int8", "uint8", "int4", "uint4")


def _port(name: str, data_type: int, shape: Sequence[int | str] | None, axes: str = "") -> onnx.ValueInfoProto:
    """An input or output; `axes` says of an image what its axes are: batch, channel, feature."""
    words = {"B": "DATA_BATCH", "C": "DATA_CHANNEL", "F": "DATA_FEATURE"}
    denotation = [words[axis] for axis in axes] if axes else None
    port = helper.make_tensor_value_info(name, data_type, shape, shape_denotation=denotation)
    if axes:
        port.type.denotation = "IMAGE"
    return port


def _shape(architecture: Architecture, value: str, options: OnnxOptions) -> list[int | str]:
    """The shape of a named value, as far as it is fixed."""
    side = architecture.input_size
    shape: list[int | str] = [options.batch or "batch", 3, side, side]
    free = architecture.head == "gap" or options.dense
    for layer in architecture.layers:
        if layer.operation == "convolution":
            shape[1] = layer.parameters["weight"][0]
        elif layer.operation == "max_pool":
            shape[2:] = [side // 2 for side in shape[2:] if isinstance(side, int)]
        elif layer.operation == "average_pool":
            shape[2:], free = [1, 1], False
        elif layer.operation == "linear":
            shape[1] = layer.parameters["weight"][0]
            shape[2:] = shape[2:] if options.dense else []
        if layer.value == value:
            break
    fixed = not free or len(shape) == 2 or options.preprocessing
    return shape if fixed else [*shape[:2], f"{value}_height", f"{value}_width"]


# What MXNet's exporter called the value of fc7 in the zoo's files.
_FEATURES = {"vgg16": "flatten_70", "vgg16-bn": "flatten_135", "vgg19": "flatten_82", "vgg19-bn": "flatten_162"}
_GLUON = {"scale": "gamma", "bias": "beta", "mean": "running_mean", "variance": "running_var"}


def _titles(architecture: Architecture, options: OnnxOptions) -> dict[str, str]:
    """The zoo's names of parameters and values: those of its MXNet files, or, with a softmax, of its Caffe2 files."""
    convolutions = [layer for layer in architecture.layers if layer.operation == "convolution"]
    linear = [layer for layer in architecture.layers if layer.operation == "linear"]
    titles: dict[str, str] = {}
    for layer in (*convolutions, *linear):
        if options.softmax:
            titles |= {f"{layer.name}.weight": f"{layer.name}_w_0", f"{layer.name}.bias": f"{layer.name}_b_0"}
    if options.softmax:
        return {**titles, "data": "data_0", PROBABILITIES: "prob_1"}
    for kind, layers in (("conv", convolutions), ("dense", linear)):
        for index, layer in enumerate(layers):
            title = f"vgg0_{kind}{index}"
            relu = f"vgg0_relu{index}_fwd" if kind == "conv" else f"{title}_relu_fwd"
            titles |= {f"{layer.name}.weight": f"{title}_weight", f"{layer.name}.bias": f"{title}_bias"}
            titles |= {layer.value: f"{title}_fwd", layer.name: relu}
            norm = layer.name.replace("conv", "bn")
            titles |= {f"{norm}.{ours}": f"vgg0_batchnorm{index}_{theirs}" for ours, theirs in _GLUON.items() if kind == "conv"}
            titles[norm] = titles.get(norm, f"vgg0_batchnorm{index}_fwd")
    titles |= {f"pool{index}": f"vgg0_pool{index - 1}_fwd" for index in range(1, 6)}
    if architecture.name in _FEATURES:
        titles["fc7"] = _FEATURES[architecture.name]
    return titles
