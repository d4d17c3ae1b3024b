"""How a picture is looked at: one crop or many, or the whole of it, at one scale or several.

Sections 3.2 and 4 of the paper (arXiv 1409.1556). A protocol says which views of a picture the network sees; the picture's
class probabilities are the mean over the views' softmax. For a dense view, which is the whole picture, the network gives a
map of class scores, and its mean over the places is taken first.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .arrays import Array
from .errors import Error, ImageError
from .preprocessing import Preprocessing

PROTOCOLS = ("center", "ten-crop", "dense", "multi-crop", "dense+multi-crop")
GRID = 5  # crops along each side, as in the paper: 25 of a picture, 150 over three sizes and two flips
LARGEST = 1024  # pixels of the short side, beyond which a whole picture would take gigabytes
# A whole picture's long side is at most so many times the short one; of a longer one, the middle is taken. Else a row of
# thousands of pixels would take all memory. Of ImageNet's pictures, a handful in ten thousand are longer.
MAX_ASPECT = 4


@dataclass(frozen=True)
class Views:
    """Which views of a picture are scored; see the fields. Raises Error where they make no sense."""

    protocol: str = "center"  # one of PROTOCOLS
    sizes: tuple[int, ...] = ()  # short sides in pixels that the picture is resized to; none: as the preset says
    flip: bool = False  # each view also mirrored; ten-crop always does
    grid: int = GRID  # crops along each side of multi-crop; one is the centre

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise Error(f"no protocol is called {self.protocol!r}; there are {', '.join(PROTOCOLS)}")
        if self.grid < 1 or not all(1 <= scale <= LARGEST for scale in self.sizes):
            raise Error(f"sizes must be 1 to {LARGEST} pixels and the grid 1 or more, not {self.sizes} and {self.grid}")
        if len(set(self.sizes)) < len(self.sizes):
            raise Error(f"a scale is given twice: {', '.join(map(str, self.sizes))}")

    @property
    def dense(self) -> bool:
        """Whether the network sees whole pictures, larger than its crop."""
        return self.protocol.startswith("dense")

    @property
    def mirrored(self) -> bool:
        """Whether each view is also scored mirrored."""
        return self.flip or self.protocol == "ten-crop"

    @property
    def count(self) -> int:
        """How many views of a picture are scored."""
        places = {"center": 1, "ten-crop": 5, "dense": 1, "multi-crop": self.grid**2, "dense+multi-crop": 1 + self.grid**2}
        return places[self.protocol] * max(1, len(self.sizes)) * (1 + self.mirrored)

    def recipes(self, preprocessing: Preprocessing) -> list[Preprocessing]:
        """The network's preprocessing at each scale. Raises Error where a scale is smaller than the crop."""
        if self.sizes and min(self.sizes) < preprocessing.crop:
            raise Error(f"a scale of {min(self.sizes)} pixels is smaller than the network's crop of {preprocessing.crop}")
        kind = "short-round" if preprocessing.resize == "none" else preprocessing.resize
        return [replace(preprocessing, resize=kind, size=scale) for scale in self.sizes] or [preprocessing]

    def of(self, image: Image.Image, preprocessing: Preprocessing, name: str) -> Iterator[tuple[float, Array]]:
        """The views of a picture, each with its weight; the weights' sum is 1.

        Args:
            image: RGB.
            preprocessing: of the network. With sizes, a recipe that doesn't resize is made to.
            name: what to call the picture in an error.

        Returns:
            float32 [3, height, width], normalised, many of them sharing memory; crops have the recipe's crop size.

        Raises:
            ImageError: the picture is smaller than the crop, or too large to be taken whole, and not to be resized.
        """
        recipes = self.recipes(preprocessing)
        share = 1 / (len(recipes) * (1 + self.mirrored) * (1 + (self.protocol == "dense+multi-crop")))
        for recipe in recipes:
            short = min(recipe.resized(*image.size))
            if short < recipe.crop or (short > LARGEST and self.protocol != "center"):
                limit = f"fewer than the crop of {recipe.crop}" if short < recipe.crop else f"more than {LARGEST}; give a scale"
                raise ImageError(f"{name}: {image.width}x{image.height} pixels are {limit}")
            if self.protocol == "center":
                views = [(share, recipe.normalise(recipe.place(image)))]
            else:
                whole = recipe.normalise(recipe.cut(image, _bounded(*recipe.resized(*image.size))))
                views = [(share, whole)] if self.dense else []
                if self.protocol != "dense":
                    crops = self._crops(whole, recipe)
                    views += [(share / len(crops), crop) for crop in crops]
            for weight, view in views:
                yield weight, view
                if self.mirrored:
                    yield weight, view[..., ::-1]

    def _crops(self, whole: Array, recipe: Preprocessing) -> list[Array]:
        """The crops of a picture, as views of it: from the top left to the bottom right, or corners and centre."""
        side, (_, height, width) = recipe.crop, whole.shape
        centre = recipe.offset(height), recipe.offset(width)
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

    inputs: Array  # float32 [views, 3, height, width]
    owners: list[int]  # whose each view is
    weights: Array  # of each view in its owner's mean


def batches(views: Iterable[tuple[int, float, Array]], pixels: int) -> Iterator[ViewBatch]:
    """Views, each with its owner and its weight, as batches of one size and at most so many pixels, or of one view."""
    by_shape: dict[tuple[int, ...], list[tuple[int, float, Array]]] = {}
    for owner, weight, view in views:
        by_shape.setdefault(view.shape, []).append((owner, weight, view))
    for (_, height, width), found in by_shape.items():
        count = max(1, pixels // (height * width))
        for start in range(0, len(found), count):
            owners, weights, arrays = zip(*found[start : start + count], strict=True)
            yield ViewBatch(np.stack(arrays), list(owners), np.array(weights))


def _bounded(width: int, height: int) -> tuple[int, int, int, int]:
    """The box of a picture, or of its middle where its aspect is absurd."""
    longest = MAX_ASPECT * min(width, height)
    across, down = min(width, longest), min(height, longest)
    left, top = (width - across) // 2, (height - down) // 2
    return left, top, left + across, top + down
