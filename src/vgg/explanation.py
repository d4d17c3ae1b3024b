"""Explanations: the evidence for a class at each position of an image.

There are two kinds of map. **Grad-CAM** (Selvaraju et al., arXiv 1610.02391), for any head, weights the channels of the last
convolution by the class's gradient, computed by a short backward pass through the head, without torch. The **class map** is the
output of the network's dense form (section 3.2 of the VGG paper, arXiv 1409.1556): the class's score at each position of the
whole image. A network without a head has no classes; its map is the **activation energy** of its last layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .architectures import STRIDE
from .arrays import Array
from .engines import GraphEngine, Model, check_dense
from .errors import Error, ImageError
from .gradients import at_positions, needed, pool5_gradient
from .heads import Output
from .images import ImageLike, open_image
from .labels import find_class
from .network import Network
from .overlay import Box, overlay
from .predictions import THRESHOLD as CERTAIN
from .predictions import Prediction, describe, network_scores
from .predictions import scores as scores_of
from .preprocessing import Preprocessing

METHODS = ("grad-cam", "class-map")
SIZE = 512  # pixels of the short side of the image for a class map
LARGEST, MAX_ASPECT = 1024, 4  # limits of that side in pixels, and of the long side in short sides
# Positions above this share of a map's maximum are in the box: 15% in Grad-CAM (section 4.1), 20% in CAM.
THRESHOLD = 0.15
MOST = 5  # labels of an image that are explained by default
BOX_SIDE = 224  # side of the enlarged map in which the box is found


@dataclass(frozen=True)
class Explanation:
    """Heat maps of an image for some classes."""

    image: Image.Image  # RGB, upright
    classes: list[Prediction]  # empty if the network has no head: then there is one map, of the activation
    # float32 [classes, rows, columns]. Grad-CAM: in units of the logit; negative values, which its definition clips to 0, are
    # evidence against the class. Class map: scores. Activation energy: 0 or more.
    maps: Array
    area: Box  # the part of the image that the maps cover

    def box(self, index: int = 0) -> tuple[int, int, int, int]:
        """The box around the evidence for a class in pixels: left, top, right, bottom; right and bottom are exclusive."""
        width, height = self.image.size
        left, top, right, bottom = box(self.maps[index], self.area)
        return round(left * width), round(top * height), round(right * width), round(bottom * height)

    def overlay(self, boxes: bool = False) -> Image.Image:
        """The RGB image with the heat map on it; several classes are side by side, with captions.

        Args:
            boxes: draw each class's box.

        Returns:
            RGB, of the image's size, but at most 1024 pixels.
        """
        frames = [self.box(index) for index in range(len(self.maps))] if boxes else []
        return overlay(self.image, self.maps, self.area, self.classes, frames)


def explain(
    model: Model,
    image: ImageLike,
    classes: Sequence[int | str] = (),
    *,
    method: str = "grad-cam",
    size: int = SIZE,
    name: str | None = None,
) -> Explanation:
    """The evidence for classes in an image; see `Classifier.explain`.

    Args:
        model: a network on an engine, such as a `Classifier`.
        image: see `vgg.images.open_image`.
        classes: by index, WordNet id or name; by default the predicted class, or if an image has several labels, those with
            a score above 0.5, at most 5. None without a head.
        method: `grad-cam` or `class-map`; without a head, the map is the activation energy.
        size: short side of the image in pixels for a class map.
        name: the image's name in an error.
    """
    if method not in METHODS:
        raise Error(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    network, preprocessing = model.network, model.network.preprocessing
    architecture = network.architecture
    if not architecture.classifier and (classes or method != METHODS[0]):
        raise Error(f"this {architecture.name} has no head, so it has no classes to explain; only its activation is shown")
    chosen = [find_class(one, architecture.classes, network.class_names) for one in classes]
    opened = open_image(image, name)
    batch = preprocessing(opened, name)[None]
    values = {key: value[0] for key, value in model.engine.run(batch, outputs(network)).items()}
    area = cropped_area(preprocessing, *opened.size)
    if not architecture.classifier:
        return Explanation(opened, [], energy(network, values), area)
    scores = network_scores(network, values["logits"])
    chosen = chosen or _predicted(scores, architecture.output)
    if method == METHODS[0]:
        maps = grad_cam(network, values, chosen)
    else:
        maps, area = _class_map(model, opened, chosen, size, name or "the image")
    return Explanation(opened, describe(scores, chosen, network.class_names), maps, area)


def _predicted(scores: Array, output: Output | None) -> list[int]:
    """The classes that are explained by default: the best one, or all certain labels of an image, best first."""
    best = np.argsort(-scores, kind="stable")[:MOST].tolist()
    return [index for index in best if output == "sigmoid" and scores[index] > CERTAIN] or best[:1]


def can_explain(model: Model) -> bool:
    """Whether the engine returns the layer outputs for Grad-CAM. A file with quantized activations only returns logits."""
    return not isinstance(model.engine, GraphEngine)


def outputs(network: Network) -> tuple[str, ...]:
    """The layer outputs that `grad_cam` needs: the last convolution, and those of the head; or for `energy`, the last one."""
    names = network.architecture.values
    if not network.architecture.classifier:
        return names[-1:]
    return (names[names.index("pool5") - 1], *needed(network.architecture))


def grad_cam(network: Network, values: Mapping[str, Array], classes: Sequence[int]) -> Array:
    """Grad-CAM: the evidence for each class at each position of the last convolution.

    A channel's weight is the mean gradient of the logit over the channel's positions; the map is the weighted sum of the
    channels. Negative values, which the definition clips to 0, are kept. If one logit decides between two classes, it is the
    logit of the second, and its negative that of the first.

    Args:
        network: whose outputs `values` are.
        values: the `outputs(network)` for one image of the network's input size, without the batch axis.
        classes: indices of classes.

    Returns:
        float32 [classes, rows, columns].
    """
    channels, chosen = values[outputs(network)[0]], np.array(classes)
    units = np.array([[-1], [1]]) if network.architecture.output == "binary" else np.eye(network.architecture.units)
    signal = units[chosen].astype(np.float32)
    # Max pooling passes each gradient to one position, so the sum over positions is the same before and after it.
    weights = pool5_gradient(network, values, signal) / np.float32(channels[0].size)
    return np.asarray(np.tensordot(weights, channels, 1))


def energy(network: Network, values: Mapping[str, Array]) -> Array:
    """The activation energy of a network without a head: the mean square of the channels at each position of its last layer.

    It is the attention map of Zagoruyko & Komodakis, arXiv 1612.03928, section 3.1, with p = 2.

    Args:
        network: whose outputs `values` are.
        values: the `outputs(network)` for one image, without the batch axis.

    Returns:
        float32 [1, rows, columns].
    """
    return np.asarray(np.square(values[outputs(network)[0]]).mean(0, keepdims=True))


def _class_map(model: Model, image: Image.Image, classes: Sequence[int], size: int, name: str) -> tuple[Array, Box]:
    """The classes' scores at each position of the whole image, [classes, rows, columns], and the area they cover."""
    network, preprocessing = model.network, model.network.preprocessing
    head = network.architecture.classifier
    assert head is not None
    averages = head.pooling == "average" and head.side == 1
    if not averages and not head.maps:
        raise Error(f"no class map for the head {head.text!r}, which doesn't read or average the whole map; use {METHODS[0]}")
    check_dense(model.engine, network.architecture)
    if not preprocessing.crop <= size <= LARGEST:
        raise Error(f"the size for a class map must be {preprocessing.crop} to {LARGEST} pixels, not {size}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(f"{name}: the aspect ratio exceeds {MAX_ASPECT}, the limit for a class map")
    resize = "short-round" if preprocessing.resize == "none" else preprocessing.resize
    preprocessing = replace(preprocessing, resize=resize, size=size)
    width, height = preprocessing.resized(*image.size)
    batch = preprocessing.normalise(preprocessing.cut(image, (0, 0, width, height)))[None]
    if averages:
        margin = 0  # a position of pool5 covers the pixels that were pooled into it
        logits = at_positions(network, model.engine.run(batch, ("pool5",))["pool5"][0])
    else:
        margin = (network.architecture.input_size - STRIDE) // 2  # a position is the centre of its input
        found = model.engine.logits(batch)[0]
        logits = found.reshape(len(found), *found.shape[1:] or (1, 1))
    maps = scores_of(logits.transpose(1, 2, 0), network.architecture.output).transpose(2, 0, 1)[list(classes)]
    _, rows, columns = maps.shape
    left, top = margin / width, margin / height
    return maps, (left, top, left + STRIDE * columns / width, top + STRIDE * rows / height)


def cropped_area(preprocessing: Preprocessing, width: int, height: int) -> Box:
    """The part of an image that is in the network's crop: left, top, right, bottom, as shares of its sides."""
    across, down = preprocessing.resized(width, height)
    left, top = preprocessing.offset(across), preprocessing.offset(down)
    return left / across, top / down, (left + preprocessing.crop) / across, (top + preprocessing.crop) / down


def box(heat: Array, area: Box, threshold: float = THRESHOLD) -> Box:
    """The box around the largest connected region of a map above a share of its maximum.

    Args:
        heat: float32 [rows, columns].
        area: the part of the image that the map covers.
        threshold: the share, 0..1.

    Returns:
        The box as shares of the image's sides; all of `area` if there is no evidence for the class.
    """
    smooth = np.asarray(Image.fromarray(heat).resize((BOX_SIDE, BOX_SIDE), Image.Resampling.BICUBIC))
    left, top, right, bottom = 0, 0, BOX_SIDE, BOX_SIDE
    if smooth.max() > 0:
        left, top, right, bottom = _largest(smooth > threshold * smooth.max())
    across, down = (area[2] - area[0]) / BOX_SIDE, (area[3] - area[1]) / BOX_SIDE
    return area[0] + left * across, area[1] + top * down, area[0] + right * across, area[1] + bottom * down


def _largest(mask: Array) -> tuple[int, int, int, int]:
    """The box of the largest 8-connected region of a mask [rows, columns]."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8))
    rows, starts = np.nonzero(edges > 0)  # runs of positions, row by row
    stops = np.nonzero(edges < 0)[1]
    regions = list(range(len(rows)))  # of each run: itself, or an earlier run of the same region

    def first(run: int) -> int:
        while regions[run] != run:
            run = regions[run]
        return run

    for run, (row, start, stop) in enumerate(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True)):
        for other in range(run - 1, -1, -1):
            if rows[other] < row - 1:
                break
            if rows[other] == row - 1 and starts[other] <= stop and stops[other] >= start:
                one, two = sorted((first(run), first(other)))
                regions[two] = one
    owners = np.array([first(run) for run in range(len(rows))])
    kept = owners == np.bincount(owners, stops - starts).argmax()
    return int(starts[kept].min()), int(rows[kept].min()), int(stops[kept].max()), int(rows[kept].max()) + 1
