"""The result of an explanation."""

from dataclasses import dataclass

from PIL import Image

from ..arrays import Array
from ..methods import DEFAULT, METHODS
from ..overlay import Box, overlay
from ..predictions import Prediction
from .boxes import box, coarse


@dataclass(frozen=True)
class Explanation:
    """Heat maps of an image for some classes."""

    image: Image.Image  # RGB, upright
    classes: list[Prediction]  # empty if the network has no head: then there is one map, of the activation
    # float32 [classes, rows, columns], in units of the logit or of its gradient; a class map has scores. Negative values are
    # evidence against the class: Grad-CAM's, which its definition clips to 0, occlusion's and integrated gradients'.
    maps: Array
    area: Box  # the part of the image that the maps cover
    method: str = DEFAULT  # one of METHODS

    def box(self, index: int = 0) -> tuple[int, int, int, int]:
        """The box around the evidence for a class in pixels: left, top, right, bottom; right and bottom are exclusive."""
        width, height = self.image.size
        heat = coarse(self.maps[index]) if METHODS[self.method].fine else self.maps[index]
        left, top, right, bottom = box(heat, self.area)
        return round(left * width), round(top * height), round(right * width), round(bottom * height)

    def overlay(self, boxes: bool = False) -> Image.Image:
        """The RGB image with the heat map on it; several classes are side by side, with captions.

        Args:
            boxes: draw each class's box.

        Returns:
            RGB, of the image's size, but at most 1024 pixels.
        """
        frames = [self.box(index) for index in range(len(self.maps))] if boxes else []
        return overlay(self.image, self.maps, self.area, self.classes, frames, METHODS[self.method].fine)
