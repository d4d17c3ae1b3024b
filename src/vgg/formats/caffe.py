"""Caffe's `.caffemodel`: a NetParameter in protobuf's wire format, with V1 or V2 layers.

Fields by number, from src/caffe/proto/caffe.proto. NetParameter: layers (V1) 2, layer (V2) 100. V1LayerParameter: bottom 2,
top 3, name 4, type 5 (a number), blobs 6. LayerParameter: name 1, type 2 (text), bottom 3, top 4, blobs 7.
BlobProto: num, channels, height, width 1..4, data 5, shape 7, double_data 8; NVIDIA's raw_data_type 10, raw_data 12.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..files import map_file
from . import protobuf, walk
from .layouts import Bare
from .nodes import Node
from .protobuf import Buffer, Value, fields, span, text

EPSILON = 1e-5  # BatchNorm's default
_V1_TYPES = {
    1: "Accuracy", 4: "Convolution", 5: "Data", 6: "Dropout", 8: "Flatten", 12: "ImageData", 14: "InnerProduct", 15: "LRN",
    17: "Pooling", 18: "ReLU", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split",
}  # fmt: skip
# The fields with the parameters of a layer of this type: in V1, in V2.
_PARAMETERS = {
    "Convolution": (10, 106), "InnerProduct": (17, 117), "LRN": (18, 118), "Pooling": (19, 121), "BatchNorm": (None, 139),
}  # fmt: skip
_OUTSIDE = ("Data", "ImageData", "Input", "HDF5Data", "MemoryData", "DummyData", "Accuracy", "SoftmaxWithLoss", "Split")
_SAME = {
    "Convolution": "Conv", "InnerProduct": "Gemm", "LRN": "LRN", "Pooling": "MaxPool", "ReLU": "Relu", "Softmax": "Softmax",
    "Dropout": "Dropout", "Flatten": "Flatten",
}  # fmt: skip


def read(path: Path) -> Bare:
    """The architecture of a file's layers, and their parameters, mapped."""
    mapped = map_file(path)
    layers = [_Layer(mapped, value, number == 2) for number, value in fields(mapped, 0, len(mapped)) if number in (2, 100)]
    nodes, constants, start = _graph(path, layers)
    architecture, parameters, _ = walk.follow(path, nodes, constants, start, nodes[-1].outputs if nodes else ())
    return architecture, parameters


def matches(mapped: Buffer) -> bool:
    """Whether a file is a NetParameter, whose V1 layers have a number as type."""
    try:
        for number, value in fields(mapped, 0, len(mapped)):
            if number == 100:
                return True
            if number == 2:
                return any(part == 5 and isinstance(inner, int) for part, inner in fields(mapped, *span(value)))
    except ValueError:
        return False
    return False


class _Layer:
    """A V1 or V2 layer: its name, its type in V2's words, its inputs (bottoms), outputs (tops) and blobs."""

    def __init__(self, buffer: Buffer, value: Value, old: bool) -> None:
        self.buffer, self.old = buffer, old
        self.name = self.type = ""
        self.bottoms: list[str] = []
        self.tops: list[str] = []
        self.blobs: list[Array] = []
        self.parts: dict[int, Value] = {}
        names = {2: "bottom", 3: "top", 4: "name", 5: "type", 6: "blob"} if old else {
            1: "name", 2: "type", 3: "bottom", 4: "top", 7: "blob"
        }  # fmt: skip
        for number, part in fields(buffer, *span(value)):
            kind = names.get(number)
            if kind == "name":
                self.name = text(buffer, part)
            elif kind == "type":
                self.type = _V1_TYPES.get(protobuf.number(part), str(part)) if old else text(buffer, part)
            elif kind in ("bottom", "top"):
                (self.bottoms if kind == "bottom" else self.tops).append(text(buffer, part))
            elif kind == "blob":
                self.blobs.append(_blob(buffer, part))
            else:
                self.parts[number] = part

    def parameters(self) -> dict[int, list[Value]]:
        """The fields of the parameters of this type of layer, by number."""
        place = _PARAMETERS.get(self.type, (None, None))[0 if self.old else 1]
        values: dict[int, list[Value]] = {}
        for number, value in fields(self.buffer, *span(self.parts[place])) if place in self.parts else ():
            values.setdefault(number, []).append(value)
        return values


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
    found, buffer = layer.parameters(), layer.buffer

    def numbers(*places: int, default: int) -> list[int]:
        values = [number for place in places for value in found.get(place, ()) for number in protobuf.numbers(buffer, value)]
        return values or [default]

    def real(place: int, default: float) -> float:
        return float(protobuf.floats(buffer, found[place][0])[0]) if place in found else default

    if layer.type == "Convolution":
        return {
            "pads": numbers(3, 9, 10, default=0), "strides": numbers(6, 13, 14, default=1), "group": numbers(5, default=1)[0],
            "dilations": numbers(18, default=1),
        }  # fmt: skip
    if layer.type == "InnerProduct":
        return {"transB": 1 - numbers(6, default=0)[0]}
    if layer.type == "Pooling":
        if numbers(1, default=0) != [0]:
            raise ModelError(f"{path}: not a VGG network: layer {layer.name!r} does not pool by the maximum")
        return {
            "kernel_shape": numbers(2, 5, 6, default=1), "strides": numbers(3, 7, 8, default=1),
            "pads": numbers(4, 9, 10, default=0),
        }  # fmt: skip
    if layer.type == "LRN":
        if numbers(4, default=0) != [0]:
            raise ModelError(f"{path}: not a VGG network: layer {layer.name!r} normalises within channels")
        return {"size": numbers(1, default=5)[0], "alpha": real(2, 1.0), "beta": real(3, 0.75), "bias": real(5, 1.0)}
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
    legacy = {1: 1, 2: 1, 3: 1, 4: 1}
    shape: list[int] | None = None
    numbers: Array = np.empty(0, np.float32)
    kind = 1
    for number, part in fields(buffer, *span(value)):
        if number in legacy:
            legacy[number] = protobuf.number(part)
        elif number == 5:
            numbers = protobuf.floats(buffer, part)
        elif number == 7:
            shape = [side for _, dims in fields(buffer, *span(part)) for side in protobuf.numbers(buffer, dims)]
        elif number == 8:
            begin, end = span(part)
            numbers = np.frombuffer(buffer, "<f8", (end - begin) // 8, begin)
        elif number == 10:
            kind = protobuf.number(part)
        elif number == 12:
            begin, end = span(part)
            dtype = np.dtype(("<f8", "<f4", "<f2")[kind])
            numbers = np.frombuffer(buffer, dtype, (end - begin) // dtype.itemsize, begin)
    shape = list(legacy.values()) if shape is None else shape
    if min(shape, default=1) < 0 or math.prod(shape) != len(numbers):
        raise ValueError(f"a blob of shape {shape} has {len(numbers)} numbers")
    return numbers.reshape(shape)
