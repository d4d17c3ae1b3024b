"""Whether a network finds where its class is: ImageNet's localisation task, with boxes made from heat maps.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, section 4.2, by which the VGG paper's
Appendix A measures as well: a guess is right when its class is, and its box covers one of the picture's boxes of that class by
more than half, as intersection over union.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..arrays import Array
from ..errors import Error
from ..explanation import box, cropped_area, grad_cam
from ..files import reason
from ..network import Network
from ..overlay import Box
from ..sources import Dataset

OVERLAP = 0.5  # a box is right above it
MAX_BYTES = 2**20  # of an annotation


class Annotations:
    """ImageNet's boxes: a folder of XML files as published, one a picture and of the same name, in folders or not.

    Raises Error where the folder has none of the dataset's pictures.
    """

    def __init__(self, folder: str | Path, dataset: Dataset) -> None:
        wanted = {_stem(sample.name) for sample in dataset}
        self._files: dict[str, str] = {}
        for place, _, files in os.walk(folder):
            names = (os.path.splitext(file) for file in files)
            self._files |= {stem: os.path.join(place, stem + end) for stem, end in names if end == ".xml" and stem in wanted}
        if not self._files:
            raise Error(f"{folder}: has no boxes of these pictures; for a.jpg there must be a.xml in it, or in a folder in it")

    def boxes(self, name: str) -> list[Box]:
        """The boxes of a picture, as shares of its sides, whatever size it has now; none where there is no file.

        Raises Error when a file can't be read.
        """
        path = self._files.get(_stem(name))
        if path is None:
            return []
        try:
            if os.path.getsize(path) > MAX_BYTES:
                raise ValueError
            root = ElementTree.parse(path).getroot()
            width, height = (float(root.findtext(f"size/{side}") or "") for side in ("width", "height"))
            corners = [
                [float(one.findtext(corner) or "") for corner in ("xmin", "ymin", "xmax", "ymax")]
                for one in root.iterfind("object/bndbox")
            ]
            # The last column and row belong to a box, as in ImageNet's own evaluation.
            return [(x / width, y / height, (right + 1) / width, (bottom + 1) / height) for x, y, right, bottom in corners]
        except OSError as error:
            raise Error(f"{path}: {reason(error)}") from None
        except (ElementTree.ParseError, ValueError, ZeroDivisionError):
            raise Error(f"{path}: is no annotation as ImageNet has them, with size and boxes") from None


def overlap(network: Network, values: Mapping[str, Array], target: int, size: tuple[int, int], boxes: Sequence[Box]) -> float:
    """How well the box of a class's heat map fits the best of a picture's boxes: intersection over union, 0..1.

    Args:
        network: whose `values` they are, as for `vgg.explanation.grad_cam`.
        target: the class.
        size: the picture's width and height in pixels.
        boxes: as shares of its sides; nan comes of none.
    """
    if not boxes:
        return np.nan
    found = box(grad_cam(network, values, [target])[0], cropped_area(network.preprocessing, *size))
    return max(intersection_over_union(found, one) for one in boxes)


def intersection_over_union(one: Box, other: Box) -> float:
    """The share of the area of two boxes together that both cover, 0..1."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, across) * max(0.0, down)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return both / max(sum(areas) - both, 1e-12)


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]
