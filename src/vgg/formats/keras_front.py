"""The layers in front of a Keras model's first convolution as a preprocessing.

Keras's examples give a model pixels of 0..255 in RGB, resized to the size of its input without regard to the aspect ratio,
bilinearly and without rounding, as a Resizing layer and image_dataset_from_directory do. A Resizing layer gives the size;
otherwise it is that of the input.
"""

from typing import Any, Literal

import numpy as np

from ..arrays import Array
from ..errors import ModelError
from ..parameters import expanded
from ..preprocessing import Preprocessing
from .keras_config import KerasLayer, is_reversal
from .keras_store import Store
from .pixels import Pixels

_REVERSED, _SAME = [2, 1, 0], [0, 1, 2]  # orders of channels
_LEAST = 1e-7  # of a standard deviation in a Normalization layer
# Arithmetic with a constant: the power of its factor, or the sign of its sum.
_FACTORS = {"multiply": 1, "mul": 1, "truediv": -1, "truedivide": -1, "divide": -1}
_SUMS = {"add": 1, "biasadd": 1, "subtract": -1, "sub": -1}


class Front:
    """The layers so far.

    Attributes:
        side: of the input in pixels, 0 if it is not known.
    """

    def __init__(self, path: object, store: Store, channels_last: bool) -> None:
        self.path, self._store, self._channels_last = path, store, channels_last
        self.side = 0
        self._pixels: Pixels | None = None  # if a layer changes the numbers
        self._size = 0  # that images are resized to, if a layer does it
        self._interpolation: Literal["float", "antialias"] = "float"

    @property
    def assumed(self) -> str:
        """What the layers don't show, and the convention that is used."""
        return "pixels of 0..1 in front of the normalisation, by its mean" if self._fractions else ""

    @property
    def _fractions(self) -> bool:
        """Whether the numbers are those of pixels of 0..1, not 0..255."""
        pixels = self._pixels or Pixels()
        scale, shift = np.array(pixels.scale), np.array(pixels.shift)
        return pixels.scales and bool((scale >= 0.5).all() and (shift <= 0).all() and (-shift <= scale).all())

    def preprocessing(self, side: int) -> Preprocessing | None:
        """That of an input of this side in pixels; None if no layer changes the numbers."""
        if self._pixels is None:
            return None
        scale, shift = np.array(self._pixels.scale), np.array(self._pixels.shift)
        if not np.isfinite((*scale, *shift)).all() or not scale.all():
            raise ValueError("its preprocessing has factors that are 0 or not finite")
        scale = scale / 255 if self._fractions else scale
        factor = scale[0] if (scale == scale[0]).all() else 1 / 255
        return Preprocessing(
            "keras", "squash", max(self._size, side), self._interpolation, side,
            "BGR" if list(self._pixels.order) == _REVERSED else "RGB", float(factor),
            _each(-shift / scale * factor), _each(factor / scale),
        )  # fmt: skip

    def unsupported(self, layer: KerasLayer, why: str = "") -> ModelError:
        return ModelError(f"{self.path}: not a VGG network: unsupported layer {layer}{why and f': {why}'}")

    def visit(self, layer: KerasLayer) -> bool:
        """Append a layer, if it is one of those that only preprocess; whether it is."""
        step = getattr(self, f"on_{layer.plain}", None)
        if step is not None:
            step(layer)
        elif layer.plain in _FACTORS:
            self._then(_operand(layer) ** _FACTORS[layer.plain], 0.0)
        elif layer.plain in _SUMS:
            self._then(1.0, _operand(layer) * _SUMS[layer.plain])
        return step is not None or layer.plain in (*_FACTORS, *_SUMS)

    def _then(self, factor: Any, term: Any) -> None:
        self._pixels = (self._pixels or Pixels()).then(np.asarray(factor), np.asarray(term))

    def _reorder(self, layer: KerasLayer, order: list[int]) -> None:
        if order not in (_REVERSED, _SAME) or not self._channels_last:
            raise self.unsupported(layer)
        self._pixels = (self._pixels or Pixels()).taken(order)

    # One method per class of layer or operation: `on_` and its plain name.

    def on_inputlayer(self, layer: KerasLayer) -> None:
        shape = layer.config.get("batch_shape", layer.config.get("batch_input_shape"))
        if self.side or not isinstance(shape, list) or len(shape) != 4:
            return
        height, width = shape[1:3] if self._channels_last else shape[2:]
        if height is not None and height != width:
            raise ModelError(f"{self.path}: not a VGG network: its input has {height}x{width} pixels, which is not a square")
        self.side = int(height or 0)

    def on_rescaling(self, layer: KerasLayer) -> None:
        self._then(_numbers(layer.config["scale"]), _numbers(layer.config.get("offset", 0.0)))

    def on_normalization(self, layer: KerasLayer) -> None:
        mean, variance = layer.config.get("mean"), layer.config.get("variance")
        if mean is None or variance is None:
            found = self._store.arrays(layer, ("mean", "variance", "count"))
            mean, variance = (expanded(found[role].value) for role in ("mean", "variance"))
        if layer.config.get("invert"):
            raise self.unsupported(layer, "it inverts a normalisation")
        std = np.maximum(np.sqrt(_numbers(variance)), _LEAST)
        self._then(1 / std, -_numbers(mean) / std)

    def on_resizing(self, layer: KerasLayer) -> None:
        config = layer.config
        if config.get("crop_to_aspect_ratio") or config.get("pad_to_aspect_ratio"):
            raise self.unsupported(layer, "it keeps the aspect ratio")
        if config.get("interpolation", "bilinear") != "bilinear" or config["height"] != config["width"] or self._cropped():
            raise self.unsupported(layer, "only bilinear resizing to a square is supported")
        self._interpolation = "antialias" if config.get("antialias") else "float"
        self._size = self.side = int(config["height"])

    def on_centercrop(self, layer: KerasLayer) -> None:
        side = int(layer.config["height"])
        centred = (self.side - side) // 2 == self.side // 2 - side // 2  # the offset of `squash`
        if side != layer.config["width"] or not 0 < side <= self.side or not centred:
            raise self.unsupported(layer, f"it crops {side} of {self.side or 'any number of'} pixels")
        self._size, self.side = self._size or self.side, side

    def on_randomcrop(self, layer: KerasLayer) -> None:
        if [layer.config.get(key) for key in ("height", "width")] != [self.side] * 2:
            raise self.unsupported(layer, "it crops at inference too")

    def _cropped(self) -> bool:
        return self._size > self.side

    def on_channels(self, layer: KerasLayer) -> None:
        self._reorder(layer, layer.config["order"])

    def on_getitem(self, layer: KerasLayer) -> None:
        self._reorder(layer, _REVERSED if is_reversal(layer) else [])

    def on_flip(self, layer: KerasLayer) -> None:
        self._reorder(layer, _REVERSED if layer.config.get("axis") in (-1, 3) else [])


def _each(numbers: Array) -> tuple[float, float, float]:
    red, green, blue = numbers.tolist()
    return red, green, blue


def _operand(layer: KerasLayer) -> Array:
    """The constant of an arithmetic operation."""
    return _numbers(layer.arguments[0] if layer.arguments else layer.keywords.get("bias", layer.keywords.get("y")))


def _numbers(value: Any) -> Array:
    """One number, or one for each channel, float64. Raises ValueError if it is something else."""
    numbers = np.asarray(value, np.float64)
    if numbers.size not in (1, 3) or numbers.shape[-1:] not in ((), (numbers.size,)) or not np.isfinite(numbers).all():
        raise ValueError(f"numbers of the shape {list(numbers.shape)} for 3 channels")
    return numbers.reshape(-1)
