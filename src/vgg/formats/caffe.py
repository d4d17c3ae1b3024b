"""Caffe's `.caffemodel`: a NetParameter in protobuf's wire format, with V1 or V2 layers.

Fields by number, from src/caffe/proto/caffe.proto. NetParameter: layers (V1) 2, input_dim 4, input_shape 8, layer (V2) 100.
V1LayerParameter: bottom 2, top 3, name 4, type 5 (a number), blobs 6. LayerParameter: name 1, type 2 (text), bottom 3, top 4,
blobs 7. InputParameter: shape 1.
BlobProto: num, channels, height, width 1..4, data 5, shape 7, double_data 8; NVIDIA's raw_data_type 10, raw_data 12.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..architectures import STRIDE
from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from . import walk
from .frontier import BLOCKS
from .layouts import Bare
from .nodes import Node, numbered
from .protobuf import Buffer, Value, fields, floats, last, message, number, numbers, span, text

EPSILON = 1e-5  # BatchNorm's default
_V1_TYPES = {
    1: "Accuracy", 3: "Concat", 4: "Convolution", 5: "Data", 6: "Dropout", 7: "EuclideanLoss", 8: "Flatten", 9: "HDF5Data",
    12: "ImageData", 13: "InfogainLoss", 14: "InnerProduct", 15: "LRN", 16: "MultinomialLogisticLoss", 17: "Pooling",
    18: "ReLU", 19: "Sigmoid", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split", 23: "TanH", 24: "WindowData", 25: "Eltwise",
    27: "SigmoidCrossEntropyLoss", 28: "HingeLoss", 29: "MemoryData", 32: "DummyData", 36: "Silence",
}  # fmt: skip
# Of a layer of this type: the field with its parameters in V1 and V2, and the parameters that are integers and floats.
_PARAMETERS: dict[str, tuple[int, int, Sequence[int], Sequence[int]]] = {
    "Convolution": (10, 106, (3, 5, 6, 9, 10, 13, 14, 18), ()), "InnerProduct": (17, 117, (6,), ()),
    "LRN": (18, 118, (1, 4), (2, 3, 5)), "Pooling": (19, 121, range(1, 13), ()), "ReLU": (30, 123, (), (1,)),
    "Dropout": (12, 108, (), (1,)), "BatchNorm": (0, 139, (), (3,)), "ELU": (0, 140, (), (1,)),
}  # fmt: skip
_INPUT = 143  # the field with the parameters of a layer Input
_OUTSIDE = (
    "Data", "ImageData", "WindowData", "Input", "HDF5Data", "MemoryData", "DummyData", "Accuracy", "Silence", "SoftmaxWithLoss",
    "EuclideanLoss", "HingeLoss", "InfogainLoss", "MultinomialLogisticLoss",
)  # fmt: skip
_SAME = {
    "Convolution": "Conv", "InnerProduct": "Gemm", "LRN": "LRN", "ReLU": "Relu", "ELU": "Elu", "Sigmoid": "Sigmoid",
    "SigmoidCrossEntropyLoss": "Sigmoid", "TanH": "Tanh", "Softmax": "Softmax", "Dropout": "Dropout", "Flatten": "Flatten",
}  # fmt: skip
_POOLINGS = (("MaxPool", "GlobalMaxPool"), ("AveragePool", "GlobalAveragePool"))


@dataclass(frozen=True)
class _Layer:
    """A layer, with V2's word for its type."""

    name: str
    type: str
    bottoms: list[str]  # its inputs
    tops: list[str]  # its outputs
    blobs: list[Array]
    parameters: dict[int, list[Any]]  # by number, each with the values of the field's occurrences


def read(path: Path) -> Bare:
    """The network of a file's layers, its parameters mapped.

    The reduced VGGs of DeepLab, ParseNet and SSD have another pooling or a dilated convolution in place of one of the paper's.
    They are read as a backbone up to that layer.
    """
    mapped = map_file(path)
    content = message(mapped, (0, len(mapped)), {2: span, 4: numbers, 8: _shape, 100: span})
    layers = [_layer(mapped, place, old) for number, old in ((2, True), (100, False)) for place in content[number]]
    dims = [one for part in content[4] for one in part] or last(content[8], [])
    layers, assumed = _reduced(layers)
    side = 0 if assumed else _side(dims, layers)
    pooled = next((layer for layer in layers if not (side or assumed) and _pooling(layer) == 1), None)
    if pooled and (kernel := _integers(pooled, 2, 5, default=0)[0]):
        side = kernel * STRIDE
        assumed = f"an input of {side}x{side} pixels, whose map layer {pooled.name!r} pools as a whole"
    nodes, constants, start = _graph(path, layers)
    dimensions = walk.MAP.sized(H=side, W=side) if side else walk.MAP
    walked = walk.follow(path, *numbered(nodes, nodes[-1].outputs if nodes else ()), constants, start, dimensions)
    return Bare(walked.architecture, walked.parameters, assumed=" and ".join(filter(None, (assumed, walked.assumed))))


def _reduced(layers: list[_Layer]) -> tuple[list[_Layer], str]:
    """The layers up to the first one that is a reduced VGG's; and what is left out, if there is such a layer."""
    convolutions = poolings = 0
    for place, layer in enumerate(layers):
        if layer.type == "Convolution":
            padded = poolings == BLOCKS and _integers(layer, 3, 9, 10, default=0) != [0]
            other = padded or any(one > 1 for one in _integers(layer, 18, default=1))
            convolutions += 1
        else:
            window = {*_integers(layer, 2, 5, 6, default=2), *_integers(layer, 3, 7, 8, default=1)}
            other = _pooling(layer) == 0 and poolings < BLOCKS and window != {2}
            poolings += layer.type == "Pooling"
        if other and convolutions > 1:
            before = next(one.name for one in layers[:place][::-1] if one.type in ("Convolution", "Pooling"))
            return layers[:place], f"a backbone up to {before!r}, without layer {layer.name!r} and those after it"
    return layers, ""


def _pooling(layer: _Layer) -> int | None:
    """0 for the pooling of windows by the maximum, 1 by the mean; None of other layers."""
    windows = layer.type == "Pooling" and not any(_integers(layer, 12, default=0))
    return _integers(layer, 1, default=0)[0] if windows else None


def _side(dims: list[int], layers: list[_Layer]) -> int:
    """Height and width of the input in pixels, 0 if the file doesn't say them or they differ."""
    shapes = [dims, *(layer.parameters[1][-1] for layer in layers if layer.type == "Input" and layer.parameters.get(1))]
    return next((shape[2] for shape in shapes if len(shape) == 4 and shape[2] == shape[3] > 0), 0)


def matches(mapped: Buffer) -> bool:
    """Whether a file is a NetParameter, whose V1 layers have a number as type."""
    try:
        for number, value in fields(mapped, 0, len(mapped)):
            if number == 100:
                return True
            if number == 2:
                return any(part == 5 and isinstance(inner, int) for part, inner in fields(mapped, *span(mapped, value)))
    except ValueError:
        return False
    return False


def _layer(buffer: Buffer, value: Value, old: bool) -> _Layer:
    """A V1 or V2 layer."""
    bottoms, tops, name, kind, blobs = (2, 3, 4, 5, 6) if old else (3, 4, 1, 2, 7)
    places = [v1 if old else v2 for v1, v2, *_ in _PARAMETERS.values()]
    content = message(
        buffer, value,
        {
            bottoms: text, tops: text, name: text, kind: number if old else text, blobs: _blob,
            **dict.fromkeys((*places, _INPUT), span),
        },
    )  # fmt: skip
    type = last(content[kind], "")
    type = _V1_TYPES.get(type, str(type)) if old else type
    parameters: dict[int, list[Any]] = {}
    if type in _PARAMETERS:
        v1, v2, integers, reals = _PARAMETERS[type]
        decoders = {**dict.fromkeys(integers, numbers), **dict.fromkeys(reals, floats)}
        parameters = message(buffer, last(content[v1 if old else v2], (0, 0)), decoders)
    elif type == "Input":
        parameters = message(buffer, last(content[_INPUT], (0, 0)), {1: _shape})
    return _Layer(last(content[name], ""), type, content[bottoms], content[tops], content[blobs], parameters)


def _graph(path: Path, layers: list[_Layer]) -> tuple[list[Node], dict[str, Any], str]:
    """The layers as ONNX operators, their blobs by name, and the input of the first one."""
    nodes: list[Node] = []
    constants: dict[str, Any] = {}
    copies: dict[str, str] = {}  # by a layer Split, and what they are copies of
    used = [layer for layer in layers if layer.type not in _OUTSIDE]
    for place, layer in enumerate(used):
        if layer.type == "Scale" and place and used[place - 1].type == "BatchNorm":
            continue  # handled with the layer before it
        bottoms = [copies.get(name, name) for name in layer.bottoms[:1]]
        if layer.type == "Split":
            copies |= dict.fromkeys(layer.tops, bottoms[0])
            continue
        names = [f"{layer.name}.{number}" for number in range(len(layer.blobs))]
        blobs = [blob if index == 0 else blob.reshape(-1) for index, blob in enumerate(layer.blobs)]
        if layer.type == "InnerProduct" and blobs:
            blobs[0] = blobs[0].reshape(blobs[0].shape[-2:])
        constants |= dict(zip(names, blobs, strict=True))
        tops = layer.tops
        if layer.type == "BatchNorm":
            following = used[place + 1 : place + 2]
            scale = following[0] if following and following[0].type == "Scale" else None
            names = [f"{layer.name}.{role}" for role in ("scale", "bias", "mean", "variance")]
            constants |= dict(zip(names, _normalisation(path, layer, scale), strict=True))
            tops = scale.tops if scale else tops
        operator, attributes = _operator(path, layer)
        nodes.append(Node(operator, (*bottoms, *names), tuple(tops[:1]), attributes))
    return nodes, constants, nodes[0].inputs[0] if nodes and nodes[0].inputs else ""


def _integers(layer: _Layer, *places: int, default: int) -> list[int]:
    """The integers among a layer's parameters in these fields, or Caffe's default."""
    return [one for place in places for part in layer.parameters.get(place, ()) for one in part] or [default]


def _operator(path: Path, layer: _Layer) -> tuple[str, dict[str, Any]]:
    """A layer's ONNX operator and attributes, with Caffe's defaults."""

    def integers(*places: int, default: int) -> list[int]:
        return _integers(layer, *places, default=default)

    def real(place: int, default: float) -> float:
        return float(last(layer.parameters[place], [default])[0])

    if layer.type == "BatchNorm":
        return "BatchNormalization", {"epsilon": real(3, EPSILON)}
    if layer.type == "Pooling":
        method, everywhere = integers(1, default=0)[0], integers(12, default=0)[0]
        if method not in (0, 1):
            raise ModelError(f"{path}: not a VGG network: layer {layer.name!r} pools by neither the maximum nor the mean")
        window = {
            "kernel_shape": _both(integers(2, 5, 6, default=1)), "strides": _both(integers(3, 7, 8, default=1)),
            "pads": integers(4, 9, 10, default=0), "ceil_mode": 1,
        }  # fmt: skip
        return _POOLINGS[method][bool(everywhere)], {} if everywhere else window
    if layer.type not in _SAME:
        raise ModelError(f"{path}: not a VGG network: unsupported layer {layer.type} {layer.name!r}")
    attributes: dict[str, Any] = {}
    operator = _SAME[layer.type]
    if layer.type == "Convolution":
        attributes = {
            "pads": integers(3, 9, 10, default=0), "strides": integers(6, 13, 14, default=1),
            "group": integers(5, default=1)[0], "dilations": integers(18, default=1),
        }  # fmt: skip
    elif layer.type == "InnerProduct":
        attributes = {"transB": 1 - integers(6, default=0)[0]}
    elif layer.type == "LRN":
        if integers(4, default=0) != [0]:
            raise ModelError(f"{path}: not a VGG network: layer {layer.name!r} normalises within channels")
        attributes = {"size": integers(1, default=5)[0], "alpha": real(2, 1.0), "beta": real(3, 0.75), "bias": real(5, 1.0)}
    elif layer.type == "ReLU" and real(1, 0.0):
        operator, attributes = "LeakyRelu", {"alpha": real(1, 0.0)}
    elif layer.type == "Dropout":
        attributes = {"ratio": real(1, 0.5)}
    elif layer.type == "ELU":
        attributes = {"alpha": real(1, 1.0)}
    return operator, attributes


def _both(values: list[int]) -> list[int]:
    """A number for height and width."""
    return values * 2 if len(values) == 1 else values


def _normalisation(path: Path, layer: _Layer, scale: _Layer | None) -> list[Array]:
    """Scale, bias, mean and variance of a BatchNorm layer and its Scale layer.

    Caffe stores the sums of mean and variance, and their count. NVIDIA's Caffe adds scale and bias with `scale_bias`.
    """
    blobs = [blob.reshape(-1) for blob in layer.blobs]
    if len(blobs) not in (2, 3, 5) or any(len(blob) != 1 for blob in blobs[2:3]):
        sizes = ", ".join(str(len(blob)) for blob in blobs) or "none"
        raise ModelError(
            f"{path}: unsupported layer BatchNorm {layer.name!r} with blobs of the sizes {sizes}; expected mean, variance and "
            "count, and scale and bias after them if it has these"
        )
    mean, variance, *count = blobs[:3]
    factor = np.float32(1 / count[0][0] if count and count[0][0] else 0 if count else 1)
    found, shift = blobs[3:] or [np.ones_like(mean), np.zeros_like(mean)]
    given = [blob.reshape(-1) for blob in scale.blobs] if scale else []
    if given:
        found, shift = found * given[0], shift * given[0] + (given[1] if len(given) > 1 else 0)
    return [found, shift, mean * factor, variance * factor]


def _blob(buffer: Buffer, value: Value) -> Array:
    """A BlobProto as a view of the file. Older ones have four dimensions, the first ones being 1."""
    sides = (1, 2, 3, 4)
    content = message(buffer, value, {**dict.fromkeys(sides, number), 5: floats, 7: _shape, 8: span, 10: number, 12: span})
    shape = last(content[7], [last(content[side], 1) for side in sides])
    values: Array = last(content[5], np.empty(0, np.float32))
    if content[8]:
        values = floats(buffer, content[8][-1], "<f8")
    elif content[12]:
        values = floats(buffer, content[12][-1], ("<f8", "<f4", "<f2")[last(content[10], 1)])
    if min(shape, default=1) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"a blob of shape {shape} has {len(values)} numbers")
    return values.reshape(shape)


def _shape(buffer: Buffer, value: Value) -> list[int]:
    """BlobShape: dim 1."""
    return [side for part in message(buffer, value, {1: numbers})[1] for side in part]
