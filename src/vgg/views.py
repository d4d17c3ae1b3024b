"""Views of an image: one crop or many, or the whole image, at one size or several.

Sections 3.2 and 4 of the paper (arXiv 1409.1556). `Views` defines which views of an image the network gets; the image's class
probabilities are the mean of the views' softmax. A dense view is the whole image, for which the network returns a map of
class scores; the map's mean over its positions is taken first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .arrays import Array
from .engines import Model, check_dense
from .errors import Error, ImageError
from .preprocessing import Preprocessing

PROTOCOLS = ("center", "ten-crop", "dense", "multi-crop", "dense+multi-crop")
GRID = 5  # crops along each side, as in the paper: 25 of an image, 150 with three sizes and the flip
LARGEST = 1024  # pixels of the short side; the network's output for a larger image would take gigabytes
# The long side of a whole image is at most this many short sides, else the middle is taken, since a row of thousands of pixels
# would take all memory. A few of 10,000 images of ImageNet are longer.
MAX_ASPECT = 4
BATCH_SIZE = 16  # views per engine batch
TOGETHER = 64  # views that are prepared together, about, so that views of the same size share a batch


@dataclass(frozen=True)
class Views:
    """The views of an image that are scored. Raises Error if the fields are invalid."""

    protocol: str = "center"  # one of PROTOCOLS
    sizes: tuple[int, ...] = ()  # short sides in pixels that the image is resized to; if empty, the preset's
    flip: bool = False  # add the mirrored copy of each view; ten-crop always does
    grid: int = GRID  # crops along each side of multi-crop; 1 is the centre

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise Error(f"unknown protocol {self.protocol!r}; choose from {', '.join(PROTOCOLS)}")
        if self.grid < 1 or not all(1 <= size <= LARGEST for size in self.sizes):
            raise Error(f"sizes must be 1 to {LARGEST} pixels and the grid 1 or more, not {self.sizes} and {self.grid}")
        if len(set(self.sizes)) < len(self.sizes):
            raise Error(f"duplicate size: {', '.join(map(str, self.sizes))}")

    @property
    def dense(self) -> bool:
        """Whether whole images, larger than the network's crop, are among the views."""
        return self.protocol.startswith("dense")

    @property
    def mirrored(self) -> bool:
        """Whether the mirrored copy of each view is scored too."""
        return self.flip or self.protocol == "ten-crop"

    @property
    def count(self) -> int:
        """Number of views of an image."""
        crops = {"center": 1, "ten-crop": 5, "dense": 1, "multi-crop": self.grid**2, "dense+multi-crop": 1 + self.grid**2}
        return crops[self.protocol] * max(1, len(self.sizes)) * (1 + self.mirrored)

    def together(self, batch_size: int) -> int:
        """The number of images that are prepared together: about TOGETHER views, or a batch if that is more."""
        return max(1, min(batch_size, max(TOGETHER, batch_size) // self.count))

    def preprocessings(self, preprocessing: Preprocessing) -> list[Preprocessing]:
        """The network's preprocessing at each size. Raises Error if a size is smaller than the crop."""
        if self.sizes and min(self.sizes) < preprocessing.crop:
            raise Error(f"size {min(self.sizes)} is smaller than the network's crop of {preprocessing.crop} pixels")
        resize = "short-round" if preprocessing.resize == "none" else preprocessing.resize
        return [replace(preprocessing, resize=resize, size=size) for size in self.sizes] or [preprocessing]

    def of(
        self, image: Image.Image, preprocessing: Preprocessing, name: str, *, pixels: bool = False
    ) -> Iterator[tuple[float, Array]]:
        """The views of an image, each with its weight; the weights' sum is 1.

        Args:
            image: RGB.
            preprocessing: the network's. If it does not resize but `sizes` are given, images are resized all the same.
            name: the image's name in an error.
            pixels: whether the engine normalises, see `Preprocessing.prepared`.

        Returns:
            Pairs of a weight and a view, float32 [3, height, width], normalised, or uint8 pixels. Crops have the
            preprocessing's crop size; views may share memory.

        Raises:
            ImageError: the image is smaller than the crop, or too large for a dense view, and is not resized.
        """
        preprocessings = self.preprocessings(preprocessing)
        share = 1 / (len(preprocessings) * (1 + self.mirrored) * (1 + (self.protocol == "dense+multi-crop")))
        for one in preprocessings:
            short = min(one.resized(*image.size))
            if short < one.crop or (short > LARGEST and self.protocol != "center"):
                limit = f"smaller than the crop of {one.crop}" if short < one.crop else f"larger than {LARGEST}; give a size"
                raise ImageError(f"{name}: {image.width}x{image.height} pixels are {limit}")
            if self.protocol == "center":
                views = [(share, one.prepared(one.place(image), pixels=pixels))]
            else:
                whole = one.prepared(one.cut(image, _bounded(*one.resized(*image.size))), pixels=pixels)
                views = [(share, whole)] if self.dense else []
                if self.protocol != "dense":
                    crops = self._crops(whole, one)
                    views += [(share / len(crops), crop) for crop in crops]
            for weight, view in views:
                yield weight, view
                if self.mirrored:
                    yield weight, view[..., ::-1]

    def _crops(self, whole: Array, preprocessing: Preprocessing) -> list[Array]:
        """The crops of a whole view, without a copy: row by row, or the corners and the centre."""
        side, (_, height, width) = preprocessing.crop, whole.shape
        centre = preprocessing.offset(height), preprocessing.offset(width)
        if self.protocol == "ten-crop":
            bottom, right = height - side, width - side
            corners = [(0, 0), (0, right), (bottom, 0), (bottom, right), centre]
        elif self.grid == 1:
            corners = [centre]
        else:
            steps = [step / (self.grid - 1) for step in range(self.grid)]
            corners = [(round(y * (height - side)), round(x * (width - side))) for y in steps for x in steps]
        return [whole[:, top : top + side, left : left + side] for top, left in corners]


@dataclass(frozen=True)
class ViewBatch:
    """Views of the same size, ready for the engine."""

    inputs: Array  # float32 [views, 3, height, width], or uint8 for an engine that normalises
    owners: list[int]  # the owner of each view
    weights: Array  # of each view in its owner's mean


def batches(views: Iterable[tuple[int, float, Array]], pixels: int) -> Iterator[ViewBatch]:
    """Views, given with owner and weight, in batches of one size, each of at most `pixels` pixels or of one view."""
    by_shape: dict[tuple[int, ...], list[tuple[int, float, Array]]] = {}
    for owner, weight, view in views:
        by_shape.setdefault(view.shape, []).append((owner, weight, view))
    for (_, height, width), same in by_shape.items():
        count = max(1, pixels // (height * width))
        for start in range(0, len(same), count):
            owners, weights, arrays = zip(*same[start : start + count], strict=True)
            yield ViewBatch(np.stack(arrays), list(owners), np.array(weights))


def check_views(model: Model, views: Views) -> None:
    """Raise Error if a model does not support the views: a size is too small, or the engine takes no whole images."""
    views.preprocessings(model.network.preprocessing)
    if views.dense:
        check_dense(model.engine, model.network.architecture)


def _bounded(width: int, height: int) -> tuple[int, int, int, int]:
    """The box of an image, or of its middle if it is too long."""
    longest = MAX_ASPECT * min(width, height)
    across, down = min(width, longest), min(height, longest)
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
