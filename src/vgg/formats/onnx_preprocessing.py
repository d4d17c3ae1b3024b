"""Preprocessing as ONNX operators of opset 18, so that a phone or a browser needs no image code.

Each step is the one in `vgg.preprocessing`, where the recipes and their sources are explained.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ..errors import ModelError
from ..preprocessing import Preprocessing

OPSET = 18  # in which Resize learned to antialias


def nodes(recipe: Preprocessing) -> list[onnx.NodeProto]:
    """Operators that make `data`, float32 [batch, 3, crop, crop], of `image`, uint8 [batch, height, width, 3], RGB.

    Raises:
        ModelError: the recipe resizes by area, which ONNX can't.
    """
    if recipe.interpolation == "area":
        raise ModelError(f"preprocessing {recipe.name!r} resizes by area, which ONNX has no operator for")
    made: list[onnx.NodeProto] = []

    def add(operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        made.append(helper.make_node(operator, inputs, [output], output, **attributes))
        return output

    def constant(value: Any, dtype: Any, output: str) -> str:
        return add("Constant", [], output, value=numpy_helper.from_array(np.array(value, dtype)))

    planes = add("Transpose", ["image"], "image.planes", perm=[0, 3, 1, 2])
    pixels = add("Cast", [planes], "image.float", to=TensorProto.FLOAT)
    sides = add("Shape", [planes], "image.sides", start=2, end=4)
    if recipe.resize != "none":
        sides = _resized(recipe, sides, add, constant)
        antialias = recipe.interpolation == "antialias"
        rounds = recipe.interpolation != "float"
        limits = [constant(limit, np.float32, f"image.{limit}") for limit in (0, 255)] if rounds else []
        # Pillow, whose bilinear is the antialiased one, resizes across, rounds to 8 bits, and then resizes down.
        for step, axes in (("across", [3]), ("down", [2])) if antialias else (("both", [2, 3]),):
            places = constant([axis - 2 for axis in axes], np.int64, f"{step}.axes")
            side = add("Gather", [sides, places], f"{step}.sides")
            pixels = add(
                "Resize", [pixels, "", "", side], f"{step}.resized", axes=axes, mode="linear", antialias=int(antialias),
                coordinate_transformation_mode="half_pixel",
            )  # fmt: skip
            if rounds:
                pixels = add("Clip", [add("Round", [pixels], f"{step}.rounded"), *limits], f"{step}.clipped")
    crop = constant([recipe.crop] * 2, np.int64, "crop")
    if recipe.resize == "short-floor":  # rounded half to even, as Python does
        room = add("Cast", [add("Sub", [sides, crop], "crop.room")], "crop.room.float", to=TensorProto.FLOAT)
        half = add("Mul", [room, constant(0.5, np.float32, "half")], "crop.half")
        start = add("Cast", [add("Round", [half], "crop.rounded")], "crop.start", to=TensorProto.INT64)
    else:
        middle = add("Div", [sides, constant([2, 2], np.int64, "two")], "crop.middle")
        start = add("Sub", [middle, constant([recipe.crop // 2] * 2, np.int64, "crop.reach")], "crop.start")
    end = add("Add", [start, crop], "crop.end")
    pixels = add("Slice", [pixels, start, end, constant([2, 3], np.int64, "crop.axes")], "image.cropped")
    if recipe.channels == "BGR":
        pixels = add("Gather", [pixels, constant([2, 1, 0], np.int64, "channels")], "image.channels", axis=1)
    std = np.array(recipe.std).reshape(3, 1, 1)
    scaled = add("Mul", [pixels, constant(recipe.scale / std, np.float32, "scale")], "image.scaled")
    add("Sub", [scaled, constant(np.array(recipe.mean).reshape(3, 1, 1) / std, np.float32, "mean")], "data")
    return made


def _resized(recipe: Preprocessing, sides: str, add: Any, constant: Any) -> str:
    """Height and width after the resize, int64 [2]."""
    if recipe.resize == "squash":
        return str(constant([recipe.size] * 2, np.int64, "resize.sides"))
    short = add("ReduceMin", [sides], "image.short", keepdims=1)
    if recipe.resize == "short-floor":
        grown = add("Mul", [sides, constant(recipe.size, np.int64, "resize.size")], "resize.grown")
        return str(add("Div", [grown, short], "resize.sides"))
    # In the order and the precision of the zoo's script, where they decide the last pixel.
    across, least = (add("Cast", [name], f"{name}.double", to=TensorProto.DOUBLE) for name in (sides, short))
    factor = add("Div", [constant(recipe.size, np.float64, "resize.size"), least], "resize.factor")
    exact = add("Mul", [factor, across], "resize.exact")
    return str(add("Cast", [add("Round", [exact], "resize.rounded")], "resize.sides", to=TensorProto.INT64))
