"""Caffe's `.caffemodel`: a NetParameter in protobuf's wire format, with V1 or V2 layers.

Fields by number, from src/caffe/proto/caffe.proto. NetParameter: layers (V1) 2, layer (V2) 100. V1LayerParameter: bottom 2,
top 3, name 4, type 5 (a number), blobs 6. LayerParameter: name 1, type 2 (text), bottom 3, top 4, blobs 7.
BlobProto: num, channels, height, width 1..4, data 5, shape 7, double_data 8; NVIDIA's raw_data_type 10, raw_data 12.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from . import walk
from .layouts import Bare
from .nodes import Node, numbered
from .protobuf import Buffer, Value, fields, floats, last, message, number, numbers, span, text

EPSILON = 1e-5  # BatchNorm's default
_V1_TYPES = {
    1: "Accuracy", 4: "Convolution", 5: "Data", 6: "Dropout", 8: "Flatten", 12: "ImageData", 14: "InnerProduct", 15: "LRN",
    17: "Pooling", 18: "ReLU", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split",
}  # fmt: skip
# Of a layer of this type: the field with its parameters in V1 and V2, and the parameters that are integers and floats.
_PARAMETERS: dict[str, tuple[int, int, Sequence[int], Sequence[int]]] = {
    "Convolution": (10, 106, (3, 5, 6, 9, 10, 13, 14, 18), ()), "InnerProduct": (17, 117, (6,), ()),
    "LRN": (18, 118, (1, 4), (2, 3, 5)), "Pooling": (19, 121, range(1, 11), ()), "BatchNorm": (0, 139, (), (3,)),
}  # fmt: skip
_OUTSIDE = ("Data", "ImageData", "Input", "HDF5Data", "MemoryData", "DummyData", "Accuracy", "SoftmaxWithLoss", "Split")
_SAME = {
    "Convolution": "Conv", "InnerProduct": "Gemm", "LRN": "LRN", "Pooling": "MaxPool", "ReLU": "Relu", "Softmax": "Softmax",
    "Dropout": "Dropout", "Flatten": "Flatten",
}  # fmt: skip


def read(path: Path) -> Bare:
    """The architecture of a file's layers, and their parameters, mapped."""
    mapped = map_file(path)
    layers = [_layer(mapped, value, number == 2) for number, value in fields(mapped, 0, len(mapped)) if number in (2, 100)]
    nodes, constants, start = _graph(path, layers)
    walked = walk.follow(path, *numbered(nodes, nodes[-1].outputs if nodes else ()), constants, start)
    return Bare(walked.architecture, walked.parameters)


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


@dataclass(frozen=True)
class _Layer:
    """A layer, with V2's word for its type."""

    name: str
    type: str
    bottoms: list[str]  # its inputs
    tops: list[str]  # its outputs
    blobs: list[Array]
    parameters: dict[int, list[Any]]  # by number, each with the values of the field's occurrences


def _layer(buffer: Buffer, value: Value, old: bool) -> _Layer:
    """A V1 or V2 layer."""
    bottoms, tops, name, kind, blobs = (2, 3, 4, 5, 6) if old else (3, 4, 1, 2, 7)
    places = [v1 if old else v2 for v1, v2, *_ in _PARAMETERS.values()]
    content = message(
        buffer, value,
        {bottoms: text, tops: text, name: text, kind: number if old else text, blobs: _blob, **dict.fromkeys(places, span)},
    )  # fmt: skip
    type = last(content[kind], "")
    type = _V1_TYPES.get(type, str(type)) if old else type
    parameters: dict[int, list[Any]] = {}
    if type in _PARAMETERS:
        v1, v2, integers, reals = _PARAMETERS[type]
        decoders = {**dict.fromkeys(integers, numbers), **dict.fromkeys(reals, floats)}
        parameters = message(buffer, last(content[v1 if old else v2], (0, 0)), decoders)
    return _Layer(last(content[name], ""), type, content[bottoms], content[tops], content[blobs], parameters)


def _graph(path: Path, layers: list[_Layer]) -> tuple[list[Node], dict[str, Any], str]:
    """The layers as ONNX operators, their blobs by name, and the input of the first one."""
    nodes: list[Node] = []
    constants: dict[str, Any] = {}
    used = [layer for layer in layers if layer.type not in _OUTSIDE]
    for place, layer in enumerate(used):
        if layer.type == "Scale" and place and used[place - 1].type == "BatchNorm":
            continue  # handled with the layer before it
        names = [f"{layer.name}.{number}" for number in range(len(layer.blobs))]
        blobs = [blob if index == 0 else blob.reshape(-1) for index, blob in enumerate(layer.blobs)]
        if layer.type == "InnerProduct" and blobs:
            blobs[0] = blobs[0].reshape(blobs[0].shape[-2:])
        constants |= dict(zip(names, blobs, strict=True))
        if layer.type == "BatchNorm":
            following = used[place + 1 : place + 2]
            scale = following[0] if following and following[0].type == "Scale" else None
            names = [f"{layer.name}.{role}" for role in ("scale", "bias", "mean", "variance")]
            constants |= dict(zip(names, _normalisation(layer, scale), strict=True))
            operator = "BatchNormalization"
            tops = scale.tops if scale else layer.tops
        elif layer.type in _SAME:
            operator, tops = _SAME[layer.type], layer.tops
        else:
            raise ModelError(f"{path}: not a VGG network: unsupported layer {layer.type} {layer.name!r}")
        nodes.append(Node(operator, (*layer.bottoms[:1], *names), tuple(tops[:1]), _attributes(path, layer)))
    return nodes, constants, nodes[0].inputs[0] if nodes and nodes[0].inputs else ""


def _attributes(path: Path, layer: _Layer) -> dict[str, Any]:
    """A layer's parameters as ONNX attributes, with Caffe's defaults."""

    def integers(*places: int, default: int) -> list[int]:
        return [one for place in places for part in layer.parameters[place] for one in part] or [default]

    def real(place: int, default: float) -> float:
        return float(last(layer.parameters[place], [default])[0])

    if layer.type == "Convolution":
        return {
            "pads": integers(3, 9, 10, default=0), "strides": integers(6, 13, 14, default=1),
            "group": integers(5, default=1)[0], "dilations": integers(18, default=1),
        }  # fmt: skip
    if layer.type == "InnerProduct":
        return {"transB": 1 - integers(6, default=0)[0]}
    if layer.type == "Pooling":
        if integers(1, default=0) != [0]:
            raise ModelError(f"{path}: not a VGG network: layer {layer.name!r} does not pool by the maximum")
        return {
            "kernel_shape": integers(2, 5, 6, default=1), "strides": integers(3, 7, 8, default=1),
            "pads": integers(4, 9, 10, default=0),
        }  # fmt: skip
    if layer.type == "LRN":
        if integers(4, default=0) != [0]:
            raise ModelError(f"{path}: not a VGG network: layer {layer.name!r} normalises within channels")
        return {"size": integers(1, default=5)[0], "alpha": real(2, 1.0), "beta": real(3, 0.75), "bias": real(5, 1.0)}
    return {"epsilon": real(3, EPSILON)} if layer.type == "BatchNorm" else {}


def _normalisation(layer: _Layer, scale: _Layer | None) -> list[Array]:
    """Scale, bias, mean and variance of a BatchNorm layer, which stores sums and their count, and its Scale layer."""
    mean, variance, *count = (blob.reshape(-1) for blob in layer.blobs)
    factor = np.float32(1 / count[0][0] if count and count[0][0] else 0 if count else 1)
    given = [blob.reshape(-1) for blob in scale.blobs] if scale else []
    defaults = [np.ones_like(mean), np.zeros_like(mean)]
    return [*given, *defaults[len(given) :], mean * factor, variance * factor]


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
