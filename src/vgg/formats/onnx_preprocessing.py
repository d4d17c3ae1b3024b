"""Preprocessing as ONNX operators of opset 18, so that a phone or a browser needs no image code.

Each step is the same as in `vgg.preprocessing`, which documents the presets and their sources.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ModelError
from ..preprocessing import Preprocessing
from .nodes import Node
from .onnx_messages import DOUBLE, FLOAT, INT64


def nodes(preprocessing: Preprocessing) -> list[Node]:
    """Operators that compute `data`, float32 [batch, 3, crop, crop], from `image`, uint8 [batch, height, width, 3], RGB.

    Raises:
        ModelError: the preprocessing resizes by area, which no ONNX operator does.
    """
    if preprocessing.interpolation == "area":
        raise ModelError(f"preprocessing {preprocessing.name!r} resizes by area, which no ONNX operator does")
    nodes: list[Node] = []

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        nodes.append(Node(operator, tuple(inputs), (output,), attributes))
        return output

    def constant(value: Any, dtype: Any, output: str) -> str:
        return add("Constant", [], output, value=np.array(value, dtype))

    planes = add("Transpose", ["image"], "image.planes", perm=[0, 3, 1, 2])
    pixels = add("Cast", [planes], "image.float", to=FLOAT)
    sides = add("Shape", [planes], "image.sides", start=2, end=4)
    if preprocessing.resize != "none":
        sides = _resized(preprocessing, sides, add, constant)
        antialias = preprocessing.interpolation == "antialias"
        rounds = preprocessing.interpolation != "float"
        limits = [constant(limit, np.float32, f"image.{limit}") for limit in (0, 255)] if rounds else []
        # Pillow's bilinear filter, which antialiases, resizes the width, rounds to 8 bits, and then resizes the height.
        for step, axes in (("across", [3]), ("down", [2])) if antialias else (("both", [2, 3]),):
            places = constant([axis - 2 for axis in axes], np.int64, f"{step}.axes")
            side = add("Gather", [sides, places], f"{step}.sides")
            pixels = add(
                "Resize", [pixels, "", "", side], f"{step}.resized", axes=axes, mode="linear", antialias=int(antialias),
                coordinate_transformation_mode="half_pixel",
            )  # fmt: skip
            if rounds:
                pixels = add("Clip", [add("Round", [pixels], f"{step}.rounded"), *limits], f"{step}.clipped")
    crop = constant([preprocessing.crop] * 2, np.int64, "crop")
    if preprocessing.resize == "short-floor":  # rounds half to even, as Python does
        room = add("Cast", [add("Sub", [sides, crop], "crop.room")], "crop.room.float", to=FLOAT)
        half = add("Mul", [room, constant(0.5, np.float32, "half")], "crop.half")
        start = add("Cast", [add("Round", [half], "crop.rounded")], "crop.start", to=INT64)
    else:
        middle = add("Div", [sides, constant([2, 2], np.int64, "two")], "crop.middle")
        start = add("Sub", [middle, constant([preprocessing.crop // 2] * 2, np.int64, "crop.reach")], "crop.start")
    end = add("Add", [start, crop], "crop.end")
    pixels = add("Slice", [pixels, start, end, constant([2, 3], np.int64, "crop.axes")], "image.cropped")
    if preprocessing.channels == "BGR":
        pixels = add("Gather", [pixels, constant([2, 1, 0], np.int64, "channels")], "image.channels", axis=1)
    std = np.array(preprocessing.std).reshape(3, 1, 1)
    scaled = add("Mul", [pixels, constant(preprocessing.scale / std, np.float32, "scale")], "image.scaled")
    add("Sub", [scaled, constant(np.array(preprocessing.mean).reshape(3, 1, 1) / std, np.float32, "mean")], "data")
    return nodes


def _resized(preprocessing: Preprocessing, sides: str, add: Any, constant: Any) -> str:
    """Height and width after the resize, int64 [2]."""
    if preprocessing.resize == "squash":
        return str(constant([preprocessing.size] * 2, np.int64, "resize.sides"))
    short = add("ReduceMin", [sides], "image.short", keepdims=1)
    if preprocessing.resize == "short-floor":
        grown = add("Mul", [sides, constant(preprocessing.size, np.int64, "resize.size")], "resize.grown")
        return str(add("Div", [grown, short], "resize.sides"))
    # Order and precision of the zoo's script, which decide the last pixel.
    across, least = (add("Cast", [name], f"{name}.double", to=DOUBLE) for name in (sides, short))
    factor = add("Div", [constant(preprocessing.size, np.float64, "resize.size"), least], "resize.factor")
    exact = add("Mul", [factor, across], "resize.exact")
    return str(add("Cast", [add("Round", [exact], "resize.rounded")], "resize.sides", to=INT64))
