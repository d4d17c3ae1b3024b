"""Explanations: the evidence for a class at each position of an image.

`explain` computes a map by any of `vgg.methods.METHODS`, on any engine, without torch: weighted sums of a layer's channels
(`cam`), gradients at the pixels (`pixels`), logits of changed images (`perturbation`), and scores at each position (`dense`).
A network without a head has no classes; its map is the activation energy of its last layer. `filters`, `layer_outputs` and
`class_image` show a network itself.
"""

from .boxes import box, cropped_area
from .cam import energy, grad_cam, grad_cam_plus, layer_cam, outputs
from .inside import class_image, filters, layer_outputs
from .pixels import input_gradients
from .result import Explanation
from .run import can_explain, explain

__all__ = [
    "Explanation",
    "box",
    "can_explain",
    "class_image",
    "cropped_area",
    "energy",
    "explain",
    "filters",
    "grad_cam",
    "grad_cam_plus",
    "input_gradients",
    "layer_cam",
    "layer_outputs",
    "outputs",
]  # fmt: skip
