"""ImageNet's localisation task, with boxes derived from heat maps.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015, section 4.2, which the VGG paper's
Appendix A follows: a prediction is correct if its class is, and if the intersection over union of its box and one of the
image's boxes of that class is above one half.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from ..arrays import Array
from ..errors import Error
from ..explanation import box, grad_cam
from ..files import open_file, reason
from ..network import Network
from ..overlay import Box
from ..sources import Dataset

OVERLAP = 0.5  # boxes are correct above it
MAX_BYTES = 2**20  # of an annotation


class Annotations:
    """ImageNet's boxes: a folder, or folders in it, with one XML file per image, as published; `a.xml` belongs to `a.jpg`.

    Raises Error if there is none for any image of the dataset.
    """

    def __init__(self, folder: str | Path, dataset: Dataset) -> None:
        wanted = {_stem(sample.name) for sample in dataset}
        self._files: dict[str, str] = {}
        for place, _, files in os.walk(folder):
            names = (os.path.splitext(file) for file in files)
            self._files |= {stem: os.path.join(place, stem + end) for stem, end in names if end == ".xml" and stem in wanted}
        if not self._files:
            raise Error(f"{folder}: no boxes of these images; a.jpg requires a.xml in this folder or in a folder in it")

    def digest(self) -> str:
        """SHA-256 of the files' names and sizes."""
        listed = ((stem, os.path.getsize(path)) for stem, path in sorted(self._files.items()) if os.path.exists(path))
        return hashlib.sha256(repr(list(listed)).encode(errors="surrogateescape")).hexdigest()

    def boxes(self, name: str) -> list[Box]:
        """The boxes of an image, in shares of its width and height, whatever its size is now; empty if there is no file.

        Raises Error if the file can't be read.
        """
        path = self._files.get(_stem(name))
        if path is None:
            return []
        try:
            if os.path.getsize(path) > MAX_BYTES:
                raise ValueError
            with open_file(path) as file:
                root = ElementTree.parse(file).getroot()
            width, height = (float(root.findtext(f"size/{side}") or "") for side in ("width", "height"))
            corners = [
                [float(one.findtext(corner) or "") for corner in ("xmin", "ymin", "xmax", "ymax")]
                for one in root.iterfind("object/bndbox")
            ]
            # The last column and row belong to the box, as in ImageNet's own evaluation.
            return [(x / width, y / height, (right + 1) / width, (bottom + 1) / height) for x, y, right, bottom in corners]
        except OSError as error:
            raise Error(f"{path}: {reason(error)}") from None
        except (ElementTree.ParseError, ValueError, ZeroDivisionError):
            raise Error(f"{path}: not an annotation in ImageNet's format, with a size and boxes") from None


def overlap(network: Network, values: Mapping[str, Array], target: int, area: Box, boxes: Sequence[Box]) -> float:
    """The largest intersection over union of the box from a class's heat map and the image's boxes, 0..1.

    Args:
        network: the network that computed `values`.
        values: layer outputs for the image, as for `vgg.explanation.grad_cam`.
        target: index of the class.
        area: the part of the image that the network has seen, in shares of its width and height; see `cropped_area`.
        boxes: of the image, in shares of its width and height; the result is nan if there are none.
    """
    if not boxes:
        return np.nan
    found = box(grad_cam(network, values, [target])[0], area)
    return max(intersection_over_union(found, one) for one in boxes)


def intersection_over_union(one: Box, other: Box) -> float:
    """The area that both boxes cover, divided by the area that they cover together, 0..1."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    both = max(0.0, across) * max(0.0, down)
    areas = [(right - left) * (bottom - top) for left, top, right, bottom in (one, other)]
    return both / max(sum(areas) - both, 1e-12)


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]
