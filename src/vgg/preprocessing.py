"""Preprocessing: from an image to a network's input, as each family of published weights was trained or evaluated.

There is no single preprocessing for VGG, so there are seven presets. A network loses accuracy with another family's preset.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .decoding import BLOCK, blocks
from .errors import Error, ImageError
from .images import ImageLike, open_image

if TYPE_CHECKING:
    from PIL import Image

    from .arrays import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 16_384  # pixels of a resized image, and of a crop
MEANS = 2**22  # pixels whose means are computed at once


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image: resize, crop the centre, then (pixel * scale - mean) / std.

    Raises Error if the fields are invalid.
    """

    name: str
    # short-floor: the short side becomes `size`, the long side is rounded down, the crop's offset is rounded
    #   (torchvision). short-round: the long side is rounded, the offset is rounded down (the ONNX Model Zoo's script).
    # squash: both sides become `size`. none: the image is only cropped.
    resize: Literal["short-floor", "short-round", "squash", "none"] = "short-floor"
    size: int = 256  # pixels
    # antialias: Pillow's bilinear, whose support grows with the reduction. bilinear: two taps, half-pixel centres, rounded to
    #   8 bits (OpenCV's INTER_LINEAR). float: the same without rounding. area: OpenCV's INTER_AREA.
    interpolation: Literal["antialias", "bilinear", "float", "area"] = "antialias"
    crop: int = 224  # pixels; the side of the network's input
    channels: Literal["RGB", "BGR"] = "RGB"  # order of the input's channels
    scale: float = 1 / 255  # factor of pixels 0..255
    mean: tuple[float, float, float] = IMAGENET_MEAN  # in the order of `channels`
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        fits = self.resize == "none" or self.size >= self.crop >= 1
        known = self.resize in RESIZES and self.interpolation in INTERPOLATIONS and self.channels in ("RGB", "BGR")
        if not (fits and known and 1 <= self.crop <= MAX_SIDE and len(self.mean) == len(self.std) == 3 and all(self.std)):
            raise Error(f"invalid preprocessing: {self!r}")

    def __call__(self, image: ImageLike, name: str | None = None, *, pixels: bool = False) -> "Array":
        """The network's input for one image.

        Args:
            image: see `vgg.images.open_image`.
            name: the image's name in an error.
            pixels: see `prepared`.

        Returns:
            float32 [3, crop, crop]; uint8 if `pixels` are wanted and whole numbers.

        Raises:
            ImageError: the image can't be read, or is smaller than the crop and is not resized.
        """
        opened = open_image(image, name)
        if self.resize == "none" and min(opened.size) < self.crop:
            name = name or (str(image) if isinstance(image, str | Path) else "the image")
            raise ImageError(f"{name}: {opened.width}x{opened.height} pixels are smaller than the crop of {self.crop}")
        return self.prepared(self.place(opened), pixels=pixels)

    def place(self, image: "Image.Image") -> "Array":
        """The resized and cropped RGB pixels, [crop, crop, 3], 0..255: uint8, or float64 for `float`."""
        across, down = self.resized(*image.size)
        left, top = self.offset(across), self.offset(down)
        return self.cut(image, (left, top, left + self.crop, top + self.crop))

    def cut(self, image: "Image.Image", box: tuple[int, int, int, int]) -> "Array":
        """The RGB pixels of the resized image inside a box (left, top, right, bottom), as `place` returns them.

        The resized image has `resized(width, height)` pixels. Where possible, only the box is computed.
        """
        import numpy as np
        from PIL import Image

        width, height = image.size
        across, down = self.resized(width, height)
        left, top, right, bottom = box
        if (across, down) == (width, height):
            pixels = np.asarray(image.crop(box))
            return pixels.astype(np.float64) if self.interpolation == "float" else pixels
        if self.interpolation == "antialias":
            if max(across, down) <= MAX_SIDE:
                return np.asarray(image.resize((across, down), Image.Resampling.BILINEAR).crop(box))
            # A very thin image would be resized to millions of pixels, of which the box has few: compute only those.
            source = (left * width / across, top * height / down, right * width / across, bottom * height / down)
            return np.asarray(image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, source))
        rows, columns = np.arange(top, bottom), np.arange(left, right)
        by_area = self.interpolation == "area"
        if by_area and width >= across and height >= down:
            pixels = _area(image, (down, across), (rows, columns))
        else:
            pixels = _two_taps(image, [_taps(height, down, rows, by_area), _taps(width, across, columns, by_area)])
        return pixels if self.interpolation == "float" else np.rint(pixels).astype(np.uint8)

    def for_crop(self, crop: int) -> "Preprocessing":
        """The same preprocessing for an input of another size: images are resized in the same proportion."""
        return replace(self, crop=crop, size=max(crop, round(self.size * crop / self.crop)))

    def normalise(self, pixels: "Array") -> "Array":
        """float32 [3, height, width], normalised, from RGB pixels [height, width, 3] of 0..255."""
        import numpy as np

        planes = (pixels if self.channels == "RGB" else pixels[..., ::-1]).transpose(2, 0, 1)
        scaled = planes * np.float64(self.scale) - np.array(self.mean)[:, None, None]
        return np.ascontiguousarray(scaled / np.array(self.std)[:, None, None], np.float32)

    def prepared(self, placed: "Array", *, pixels: bool) -> "Array":
        """The input of an engine, [3, height, width], from the RGB pixels of `place` or `cut`.

        Args:
            placed: [height, width, 3], 0..255.
            pixels: whether the engine normalises (`vgg.engines.takes_pixels`): then uint8 pixels stay as they are, without a
                copy. Others, of the interpolation `float`, are normalised here.
        """
        return placed.transpose(2, 0, 1) if pixels and placed.dtype == "uint8" else self.normalise(placed)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The width and height after resizing an image of this width and height."""
        if self.resize == "none":
            return width, height
        if self.resize == "squash":
            return self.size, self.size
        short = min(width, height)
        whole = int if self.resize == "short-floor" else round
        # The order of the operations can change the last pixel: torchvision divides last, the zoo's script first.
        long = [
            whole(self.size * side / short if self.resize == "short-floor" else self.size / short * side)
            for side in (width, height)
        ]
        return (self.size, long[1]) if width <= height else (long[0], self.size)

    def offset(self, side: int) -> int:
        """Start of the crop along a side of the resized image, in pixels."""
        return round((side - self.crop) / 2) if self.resize == "short-floor" else side // 2 - self.crop // 2


RESIZES = ("short-floor", "short-round", "squash", "none")
INTERPOLATIONS = ("antialias", "bilinear", "float", "area")

PRESETS = {
    preset.name: preset
    for preset in (
        # torchvision's ImageClassification(crop_size=224), resize_size=256.
        Preprocessing("torchvision"),
        # onnx/models, validated/vision/classification/imagenet_preprocess.py, `preprocess`.
        Preprocessing("zoo", resize="short-round"),
        # GluonCV's and osmr's evaluation: MXNet's transforms.Resize(256, keep_ratio=True), which resizes with OpenCV. Its crop
        # starts one pixel earlier where an odd number of pixels remains.
        Preprocessing("gluon", interpolation="bilinear"),
        # onnx/models, the notebooks for training, validation and inference: MXNet's transforms.Resize(256), which ignores the
        # aspect ratio and resizes with OpenCV.
        Preprocessing("zoo-squash", resize="squash", interpolation="bilinear"),
        # onnx/models, onnxrt_inference.ipynb, and the Intel Neural Compressor's example for vgg16-12 and its int8 versions.
        Preprocessing("onnxrt", resize="squash", interpolation="float"),
        # The authors' Caffe models, and Keras's conversions: channels in OpenCV's order, means in 0..255, no scaling.
        Preprocessing(
            "caffe", resize="short-round", channels="BGR", scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)
        ),
        # Multi Model Server, mxnet_vision_service.py and utils/mxnet/image.py: resized to 224x224, raw pixels.
        Preprocessing(
            "mms", resize="squash", size=224, interpolation="area", scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        ),
    )
}


def preset(name: str) -> Preprocessing:
    """The preset of this name. Raises Error if it is unknown."""
    if name not in PRESETS:
        raise Error(f"unknown preset {name!r}; choose from {', '.join(PRESETS)}")
    return PRESETS[name]


def preprocess(image: ImageLike, preprocessing: Preprocessing | str = "torchvision") -> "Array":
    """One image as a network's input, float32 [1, 3, crop, crop].

    Args:
        image: a path, a file's bytes, a PIL image, or an array; see `vgg.images.open_image`.
        preprocessing: a `Preprocessing`, or the name of a preset: torchvision, zoo, gluon, zoo-squash, onnxrt, caffe, mms.

    Raises:
        ImageError: the image can't be read.
    """
    return (preset(preprocessing) if isinstance(preprocessing, str) else preprocessing)(image)[None]


def _taps(length: int, count: int, wanted: "Array", by_area: bool) -> "tuple[Array, Array, Array]":
    """Linear interpolation of `length` pixels to `count`, of which only those `wanted` are computed.

    With `by_area`, the weights are those of OpenCV's INTER_AREA for enlarging: a pixel's share of each neighbour.

    Returns:
        The lower and the upper neighbour of each pixel, and the share of the upper one.
    """
    import numpy as np

    share: Array
    inverse = count / length
    ratio = 1 / inverse  # OpenCV's steps in its float32: at whole pixels, the last bit matters
    if by_area:
        low = np.floor(wanted * ratio)
        share = ((wanted + 1) - (low + 1) * inverse).astype(np.float32)
        share = np.where(share <= 0, 0, share - np.floor(share))
    else:
        position = (wanted + 0.5) * ratio - 0.5
        low = np.floor(position)
        share = position - low
    last = length - 1
    share = np.where((low < 0) | (low >= last), 0, share)
    low = low.clip(0, last).astype(np.intp)
    return low, (low + 1).clip(0, last), share


def _two_taps(image: "Image.Image", taps: "Sequence[tuple[Array, Array, Array]]") -> "Array":
    """Linear interpolation along both axes, each with its `_taps`."""
    import numpy as np

    if image.width * image.height <= BLOCK:
        pixels = np.asarray(image)
    else:  # read only the rows and columns that are needed
        needed = [np.unique(np.concatenate(neighbours)) for *neighbours, _ in taps]
        pixels = _gathered(image, *needed)
        taps = [(*np.searchsorted(some, neighbours), share) for some, (*neighbours, share) in zip(needed, taps, strict=True)]
    for axis, (low, high, share) in enumerate(taps):
        share = share.reshape([-1 if axis == d else 1 for d in range(pixels.ndim)])
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(high, axis) * share
    return np.asarray(pixels)


def _gathered(image: "Image.Image", rows: "Array", columns: "Array") -> "Array":
    """The pixels in these rows and columns, uint8 [rows, columns, 3], read block by block."""
    import numpy as np

    gathered = np.empty((len(rows), len(columns), 3), np.uint8)
    for left, top, right, bottom in blocks(*image.size):
        begin, end = np.searchsorted(rows, (top, bottom))
        first, last = np.searchsorted(columns, (left, right))
        if begin < end and first < last:
            block = np.asarray(image.crop((left, top, right, bottom)))
            gathered[begin:end, first:last] = block.take(rows[begin:end] - top, 0).take(columns[first:last] - left, 1)
    return gathered


def _area(image: "Image.Image", counts: tuple[int, int], wanted: "tuple[Array, Array]") -> "Array":
    """The mean over each pixel's exact share of an image reduced to `counts` rows and columns, of those wanted."""
    import numpy as np

    width, height = image.size
    whole = np.asarray(image) if width * height <= MEANS else None

    def rows(first: int, end: int) -> "Array":
        return np.asarray(image.crop((0, first, width, end))) if whole is None else whole[first:end]

    at_once, found = max(1, MEANS // width), []
    for start in range(0, len(wanted[0]), at_once):
        means = np.moveaxis(_means(rows, height, counts[0], wanted[0][start : start + at_once]), 1, 0)
        found.append(_means(lambda first, end: means[first:end], width, counts[1], wanted[1]))  # noqa: B023
    return np.moveaxis(np.concatenate(found, 1), 0, 1)


def _means(part: Callable[[int, int], "Array"], length: int, count: int, wanted: "Array") -> "Array":
    """The means of the pixels wanted along the first axis reduced to `count`; `part` returns a range of its `length` pixels."""
    import numpy as np

    ratio, means = length / count, []
    for low, high in zip(wanted * ratio, (wanted + 1) * ratio, strict=True):
        first, end = int(low), min(math.ceil(high), length)
        pixel = np.arange(first, end)
        share = (np.minimum(pixel + 1, high) - np.maximum(pixel, low)) / ratio
        means.append(np.tensordot(share, part(first, end), 1))
    return np.stack(means)
