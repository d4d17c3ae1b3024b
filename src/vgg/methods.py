"""The methods of explanation and the images of a network as data; `vgg.explanation` computes them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """A method of explanation."""

    source: str  # of its definition
    # Those of the options that it has, with their defaults:
    # layer: name of the layer output whose positions are explained, such as `conv4_3`; by default the last convolution.
    # window: side of the occluded square in pixels; by default a seventh of the input's side.
    # samples: number of gradients that are averaged.
    # size: short side of the image in pixels.
    options: Mapping[str, Any] = field(default_factory=dict)
    fine: bool = False  # whether the map consists of dots of single pixels; see `vgg.overlay.paint`


METHODS = {
    "grad-cam": Method("Selvaraju et al., arXiv 1610.02391", {"layer": None}),
    "grad-cam++": Method("Chattopadhay et al., arXiv 1710.11063", {"layer": None}),
    "layer-cam": Method("Jiang et al., IEEE Transactions on Image Processing 30, 2021", {"layer": None}),
    "score-cam": Method("Wang et al., arXiv 1910.01279", {"layer": None}),
    "occlusion": Method("Zeiler & Fergus, arXiv 1311.2901, section 4.2", {"window": None}),
    "saliency": Method("Simonyan et al., arXiv 1312.6034, section 3", fine=True),
    "smoothgrad": Method("Smilkov et al., arXiv 1706.03825", {"samples": 50}, fine=True),
    "integrated-gradients": Method("Sundararajan et al., arXiv 1703.01365", {"samples": 50}, fine=True),
    "class-map": Method("Simonyan & Zisserman, arXiv 1409.1556, section 3.2", {"size": 512}),
}
DEFAULT = "grad-cam"
# Images of the network itself, with the arguments of `vgg explain` that each takes.
INSIDE = {
    "filters": (),
    "layer-outputs": ("image", "layer"),
    "class-image": ("class",),
}
