"""From a picture to a network's input, as each family of published weights was trained or measured.

Six presets live under names of their own, because "the" preprocessing of VGG does not exist: the same weights lose
points when they are fed by another family's recipe.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .errors import Error, ImageError
from .images import Picture, open_image

if TYPE_CHECKING:
    from PIL import Image

    from .arrays import Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_SIDE = 16_384  # pixels of a resized picture


@dataclass(frozen=True)
class Preprocessing:
    """How a picture becomes a network's input: resize, crop the centre, then (pixel * scale - mean) / std."""

    name: str
    # short-floor: the short side becomes `size`, the long side is cut to whole pixels, the crop's offset is rounded
    #   (torchvision). short-round: the long side is rounded, the offset cut (the ONNX Model Zoo's script).
    # squash: both sides become `size`, whatever the aspect. none: the picture is only cropped.
    resize: Literal["short-floor", "short-round", "squash", "none"] = "short-floor"
    size: int = 256  # pixels
    # antialias: Pillow's bilinear, which widens with the reduction. bilinear: two taps, half-pixel centres, rounded to
    #   8 bits (OpenCV's INTER_LINEAR). float: the same on floats, not rounded. area: OpenCV's INTER_AREA.
    interpolation: Literal["antialias", "bilinear", "float", "area"] = "antialias"
    crop: int = 224  # pixels; the side of the network's input
    channels: Literal["RGB", "BGR"] = "RGB"  # the order of the input's planes
    scale: float = 1 / 255  # multiplies pixels of 0..255
    mean: tuple[float, float, float] = IMAGENET_MEAN  # in the order of `channels`
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        fits = self.resize == "none" or self.size >= self.crop >= 1
        known = self.resize in RESIZES and self.interpolation in INTERPOLATIONS and self.channels in ("RGB", "BGR")
        if not (fits and known and self.crop >= 1 and len(self.mean) == len(self.std) == 3 and all(self.std)):
            raise Error(f"no preprocessing can work like this: {self!r}")

    def __call__(self, image: Picture, name: str | None = None) -> "Array":
        """The network's input for one picture.

        Args:
            image: whatever `vgg.images.open_image` takes.
            name: what to call it in an error.

        Returns:
            float32 [3, crop, crop].

        Raises:
            ImageError: the picture can't be read, or is smaller than the crop and not to be resized.
        """
        opened = open_image(image, name)
        if self.resize == "none" and min(opened.size) < self.crop:
            name = name or (str(image) if isinstance(image, str | Path) else "the image")
            raise ImageError(f"{name}: {opened.width}x{opened.height} pixels are fewer than the crop of {self.crop}")
        return self.normalise(self.place(opened))

    def place(self, image: "Image.Image") -> "Array":
        """The resized and cropped RGB pixels, [crop, crop, 3], 0..255: uint8, or float64 for `float`."""
        across, down = self.resized(*image.size)
        left, top = self.offset(across), self.offset(down)
        return self.cut(image, (left, top, left + self.crop, top + self.crop))

    def cut(self, image: "Image.Image", box: tuple[int, int, int, int]) -> "Array":
        """The RGB pixels of the resized picture inside a box (left, top, right, bottom), as `place` gives them.

        The resized picture is `resized(width, height)` pixels large; of most, only what lies in the box is made.
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
            # A hair of a picture would become one of millions of pixels, of which the box keeps few: make only those.
            source = (left * width / across, top * height / down, right * width / across, bottom * height / down)
            return np.asarray(image.resize((right - left, bottom - top), Image.Resampling.BILINEAR, source))
        pixels = np.asarray(image)
        by_area = self.interpolation == "area"
        shrinks = width >= across and height >= down
        for axis, (count, start, stop) in enumerate(((down, top, bottom), (across, left, right))):
            wanted = np.arange(start, stop)
            if by_area and shrinks:
                pixels = _area(pixels, axis, count, wanted)
            else:
                pixels = _two_taps(pixels, axis, count, wanted, by_area)
        return pixels if self.interpolation == "float" else np.rint(pixels).astype(np.uint8)

    def normalise(self, pixels: "Array") -> "Array":
        """float32 [3, height, width], normalised, from RGB pixels [height, width, 3] of 0..255."""
        import numpy as np

        planes = (pixels if self.channels == "RGB" else pixels[..., ::-1]).transpose(2, 0, 1)
        scaled = planes * np.float64(self.scale) - np.array(self.mean)[:, None, None]
        return np.ascontiguousarray(scaled / np.array(self.std)[:, None, None], np.float32)

    def resized(self, width: int, height: int) -> tuple[int, int]:
        """The width and height that a picture of this width and height is resized to."""
        if self.resize == "none":
            return width, height
        if self.resize == "squash":
            return self.size, self.size
        short = min(width, height)
        whole = int if self.resize == "short-floor" else round
        # The order of the operations decides the last pixel: torchvision divides last, the zoo's script first.
        long = [
            whole(self.size * side / short if self.resize == "short-floor" else self.size / short * side)
            for side in (width, height)
        ]
        return (self.size, long[1]) if width <= height else (long[0], self.size)

    def offset(self, side: int) -> int:
        """Where the crop begins along a side of the resized picture."""
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
        # onnx/models, the notebooks for training, validation and inference: MXNet's transforms.Resize(256), which keeps
        # no aspect and resizes by OpenCV.
        Preprocessing("zoo-squash", resize="squash", interpolation="bilinear"),
        # onnx/models, onnxrt_inference.ipynb, and the Intel Neural Compressor's example for vgg16-12 and its int8 forms.
        Preprocessing("onnxrt", resize="squash", interpolation="float"),
        # The authors' Caffe models, and Keras's made from them: planes in OpenCV's order, means of 0..255, no scaling.
        Preprocessing(
            "caffe", resize="short-round", channels="BGR", scale=1.0, mean=(103.939, 116.779, 123.68), std=(1.0, 1.0, 1.0)
        ),
        # Multi Model Server, mxnet_vision_service.py and utils/mxnet/image.py: straight to 224x224, raw pixels.
        Preprocessing(
            "mms", resize="squash", size=224, interpolation="area", scale=1.0, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)
        ),
    )
}


def preset(name: str) -> Preprocessing:
    """The published preprocessing of that name. Raises Error when there is none."""
    if name not in PRESETS:
        raise Error(f"no preprocessing is called {name!r}; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def preprocess(image: Picture, preprocessing: Preprocessing | str = "torchvision") -> "Array":
    """One picture as a network's input, float32 [1, 3, crop, crop].

    Args:
        image: a path, a file's bytes, a PIL image, or an array; see `vgg.images.open_image`.
        preprocessing: a `Preprocessing`, or the name of a preset: torchvision, zoo, zoo-squash, onnxrt, caffe, mms.

    Raises:
        ImageError: the picture can't be read.
    """
    return (preset(preprocessing) if isinstance(preprocessing, str) else preprocessing)(image)[None]


def _two_taps(pixels: "Array", axis: int, count: int, wanted: "Array", by_area: bool) -> "Array":
    """Linear interpolation between neighbours along an axis to `count` places, of which only those `wanted` are made.

    With `by_area`, the weights are those OpenCV gives INTER_AREA where a side grows: a place's share of each neighbour.
    """
    import numpy as np

    inverse = count / pixels.shape[axis]
    ratio = 1 / inverse  # in OpenCV's steps and its float32: where a place falls on a whole pixel, the last bit decides
    if by_area:
        low = np.floor(wanted * ratio)
        share = ((wanted + 1) - (low + 1) * inverse).astype(np.float32)
        share = np.where(share <= 0, 0, share - np.floor(share))
    else:
        place = (wanted + 0.5) * ratio - 0.5
        low = np.floor(place)
        share = place - low
    last = pixels.shape[axis] - 1
    share = np.where((low < 0) | (low >= last), 0, share)
    low = low.clip(0, last).astype(np.intp)
    share = share.reshape([-1 if axis == d else 1 for d in range(pixels.ndim)])
    return np.asarray(pixels.take(low, axis) * (1 - share) + pixels.take((low + 1).clip(0, last), axis) * share)


def _area(pixels: "Array", axis: int, count: int, wanted: "Array") -> "Array":
    """The mean over each place's exact share of an axis that shrinks to `count` places; only those `wanted` are made."""
    import numpy as np

    pixels = np.moveaxis(pixels, axis, 0)
    ratio = len(pixels) / count
    means = []
    for low, high in zip(wanted * ratio, (wanted + 1) * ratio, strict=True):
        first, end = int(low), min(math.ceil(high), len(pixels))
        places = np.arange(first, end)
        share = (np.minimum(places + 1, high) - np.maximum(places, low)) / ratio
        means.append(np.tensordot(share, pixels[first:end], 1))
    return np.moveaxis(np.stack(means), 0, axis)
