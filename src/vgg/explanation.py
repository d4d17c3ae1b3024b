"""Explanations: the evidence for a class at each position of an image.

There are two kinds of map, both for the paper's head and for global average pooling. **Grad-CAM** (Selvaraju et al., arXiv
1610.02391) weights the channels of the last convolution by the class's gradient, computed by a short backward pass through
the head, without torch. The **class map** is the output of the network's dense form (section 3.2 of the VGG paper, arXiv
1409.1556): the class's probability at each position of the whole image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .architectures import STRIDE
from .arrays import Array
from .engines import GraphEngine, Model, check_dense
from .errors import Error, ImageError
from .images import ImageLike, open_image
from .labels import find_class
from .network import Network
from .overlay import Box, overlay
from .parameters import BLOCK_BYTES, LowRank, Parameter, expanded
from .predictions import Prediction, describe, softmax
from .preprocessing import Preprocessing

METHODS = ("grad-cam", "class-map")
SIZE = 512  # pixels of the short side of the image for a class map
LARGEST, MAX_ASPECT = 1024, 4  # limits of that side in pixels, and of the long side in short sides
# Positions above this share of a map's maximum are in the box: 15% in Grad-CAM (section 4.1), 20% in CAM.
THRESHOLD = 0.15
BOX_SIDE = 224  # side of the enlarged map in which the box is found


@dataclass(frozen=True)
class Explanation:
    """Heat maps of an image for some classes."""

    image: Image.Image  # RGB, upright
    classes: list[Prediction]
    # float32 [classes, rows, columns]. Grad-CAM: in units of the logit; negative values, which its definition clips to 0, are
    # evidence against the class. Class map: probabilities.
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
        classes: by index, WordNet id or name; the predicted class by default.
        method: `grad-cam` or `class-map`.
        size: short side of the image in pixels for a class map.
        name: the image's name in an error.
    """
    if method not in METHODS:
        raise Error(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
    network, preprocessing = model.network, model.network.preprocessing
    chosen = [find_class(one, network.architecture.classes, network.labels) for one in classes]
    opened = open_image(image, name)
    batch = preprocessing(opened, name)[None]
    values = {key: value[0] for key, value in model.engine.run(batch, outputs(network)).items()}
    scores = softmax(values["logits"])
    chosen = chosen or [int(scores.argmax())]
    if method == "grad-cam":
        maps, area = grad_cam(network, values, chosen), cropped_area(preprocessing, *opened.size)
    else:
        maps, area = _class_map(model, opened, chosen, size, name or "the image")
    return Explanation(opened, describe(scores, chosen, network.labels), maps, area)


def can_explain(model: Model) -> bool:
    """Whether the engine returns the layer outputs for Grad-CAM. A file with quantized activations only returns logits."""
    return not isinstance(model.engine, GraphEngine)


def outputs(network: Network) -> tuple[str, ...]:
    """The layer outputs that `grad_cam` needs: the last convolution, the layers of the head, the logits."""
    names = network.architecture.values
    last = names[names.index("pool5") - 1]
    return (last, "fc6", "fc7", "logits") if network.architecture.head == "fc" else (last, "logits")


def grad_cam(network: Network, values: Mapping[str, Array], classes: Sequence[int]) -> Array:
    """Grad-CAM: the evidence for each class at each position of the last convolution.

    A channel's weight is the mean gradient of the logit over the channel's positions; the map is the weighted sum of the
    channels. Negative values, which the definition clips to 0, are kept.

    Args:
        network: whose outputs `values` are.
        values: the `outputs(network)` for one image of the network's input size, without the batch axis.
        classes: indices of classes.

    Returns:
        float32 [classes, rows, columns].
    """
    channels = values[outputs(network)[0]]
    # Max pooling passes each gradient to one position, so the sum over positions is the same before and after it.
    weights = _pool5_gradient(network, values, classes) / np.float32(channels[0].size)
    return np.asarray(np.tensordot(weights, channels, 1))


def _pool5_gradient(network: Network, values: Mapping[str, Array], classes: Sequence[int]) -> Array:
    """The gradient of the classes' logits at pool5, summed over positions: float32 [classes, channels]."""
    signal = _rows(network.parameters["fc8.weight"], np.array(classes))
    if network.architecture.head == "gap":  # the gradient of the mean, summed over positions
        return signal
    for layer in ("fc7", "fc6"):
        active = np.flatnonzero(values[layer])  # elsewhere the ReLU's gradient is 0, so those weights are not read
        signal = _product(signal[:, active], network.parameters[f"{layer}.weight"], active)
    side = network.parameters["fc6.weight"].shape[-1]
    return np.asarray(signal.reshape(len(classes), -1, side * side).sum(-1))


def _product(signal: Array, weight: Parameter, rows: Array) -> Array:
    """signal [classes, rows] times these rows of a weight: [classes, inputs]. A few rows are in memory at a time."""
    if isinstance(weight, LowRank):
        return _product(_product(signal, weight.left, rows), weight.right, np.arange(weight.right.shape[0]))
    if isinstance(weight, np.ndarray) and weight.dtype == np.float32 and not weight.flags.c_contiguous:
        order = np.argsort(weight.strides)[::-1]
        lying = weight.transpose(order)
        if lying.flags.c_contiguous and order[-1] == 0:  # as in Keras's files: one column per unit; whole rows are read
            whole = np.zeros((weight.shape[0], len(signal)), np.float32)
            whole[rows] = signal.T
            found = (lying.reshape(-1, len(whole)) @ whole).reshape(*lying.shape[:-1], -1)
            return found.transpose(-1, *np.argsort(order[:-1])).reshape(len(signal), -1)
    inputs = int(np.prod(weight.shape[1:]))
    total = np.zeros((len(signal), inputs), np.float32)
    step = max(1, BLOCK_BYTES // (4 * inputs))
    for start in range(0, len(rows), step):
        # Not `@`: BLAS would start threads beside the engine's, and copy rows that are read once.
        total += np.einsum("kr,ri->ki", signal[:, start : start + step], _rows(weight, rows[start : start + step]))
    return total


def _rows(weight: Parameter, rows: Array) -> Array:
    """Some rows of a weight as a matrix, float32 [rows, inputs]."""
    part = weight[rows] if isinstance(weight, np.ndarray) else weight.take(rows)
    return part.reshape(len(rows), -1).astype(np.float32, copy=False)


def _class_map(model: Model, image: Image.Image, classes: Sequence[int], size: int, name: str) -> tuple[Array, Box]:
    """The classes' probabilities at each position of the whole image, [classes, rows, columns], and the area they cover."""
    network, preprocessing = model.network, model.network.preprocessing
    check_dense(model.engine, network.architecture)
    if not preprocessing.crop <= size <= LARGEST:
        raise Error(f"the size for a class map must be {preprocessing.crop} to {LARGEST} pixels, not {size}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(f"{name}: the aspect ratio exceeds {MAX_ASPECT}, the limit for a class map")
    resize = "short-round" if preprocessing.resize == "none" else preprocessing.resize
    preprocessing = replace(preprocessing, resize=resize, size=size)
    width, height = preprocessing.resized(*image.size)
    batch = preprocessing.normalise(preprocessing.cut(image, (0, 0, width, height)))[None]
    if network.architecture.head == "gap":
        margin = 0  # a position of pool5 covers the pixels that were pooled into it
        pool5 = model.engine.run(batch, ("pool5",))["pool5"][0]
        weight, bias = (expanded(network.parameters[f"fc8.{role}"]).astype(np.float32) for role in ("weight", "bias"))
        logits = np.tensordot(weight, pool5, 1) + bias[:, None, None]
    else:
        margin = (network.architecture.input_size - STRIDE) // 2  # a position is the centre of its input
        found = model.engine.logits(batch)[0]
        logits = found.reshape(len(found), *found.shape[1:] or (1, 1))
    maps = softmax(logits.transpose(1, 2, 0)).transpose(2, 0, 1)[list(classes)]
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
