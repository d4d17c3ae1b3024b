"""Where a network looked: how much each place of a picture speaks for a class.

Two maps, both for the paper's head and for global average pooling. **Grad-CAM** (Selvaraju et al., arXiv 1610.02391) weighs
the channels of the last convolution by the class's gradient, which a short backward pass through the head gives, without
torch. The **class map** is that of the network's dense form (section 3.2 of the VGG paper, arXiv 1409.1556): its head at
each place of the whole picture gives the class's probability there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from .architectures import STRIDE
from .arrays import Array
from .classifier import Classifier
from .engines import GraphEngine, check_dense
from .errors import Error, ImageError
from .images import Picture, open_image
from .labels import find_class
from .network import Network
from .parameters import BLOCK_BYTES, LowRank, Parameter, expanded
from .predictions import Prediction, describe, softmax
from .preprocessing import Preprocessing

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of a picture's sides

METHODS = ("grad-cam", "class-map")
SCALE = 512  # pixels of the short side of a picture that is looked at whole
LARGEST, MAX_ASPECT = 1024, 4  # of its short side in pixels, and of its long side in short ones
# A box holds what is above this share of a map's largest value: Grad-CAM's 15% (its section 4.1). CAM took 20%.
THRESHOLD = 0.15
BOX_SIDE = 224  # the places along each side of a map when its box is sought


@dataclass(frozen=True)
class Explanation:
    """Where a network looked in a picture, for some classes."""

    image: Image.Image  # RGB, upright
    classes: list[Prediction]
    # float32 [classes, rows, columns]. Grad-CAM: in the logit's unit, negative where a place speaks against the class (where
    # the definition puts 0). Class map: probabilities.
    maps: Array
    seen: Box  # the part of the picture that the maps lie on

    def box(self, index: int = 0) -> tuple[int, int, int, int]:
        """The box around what speaks for a class: left, top, right, bottom in pixels, without the last column and row."""
        width, height = self.image.size
        left, top, right, bottom = box(self.maps[index], self.seen)
        return round(left * width), round(top * height), round(right * width), round(bottom * height)

    def overlay(self, boxes: bool = False) -> Image.Image:
        """The picture with the map on it, RGB; for several classes side by side, with their names. See `vgg.overlay`."""
        from .overlay import overlay  # which stands above this file, and is here for convenience

        return overlay(self, boxes)


def explain(
    classifier: Classifier,
    image: Picture,
    classes: Sequence[int | str] = (),
    *,
    method: str = "grad-cam",
    scale: int = SCALE,
    name: str | None = None,
) -> Explanation:
    """Where a classifier looked in a picture; see `Classifier.explain`. `name` is what to call the picture in an error."""
    if method not in METHODS:
        raise Error(f"no method is called {method!r}; there are {', '.join(METHODS)}")
    network, recipe = classifier.network, classifier.network.preprocessing
    chosen = [find_class(one, network.architecture.classes, network.labels) for one in classes]
    opened = open_image(image, name)
    batch = recipe(opened, name)[None]
    values = {key: value[0] for key, value in classifier.engine.run(batch, outputs(network)).items()}
    scores = softmax(values["logits"])
    chosen = chosen or [int(scores.argmax())]
    if method == "grad-cam":
        maps, area = grad_cam(network, values, chosen), seen(recipe, *opened.size)
    else:
        maps, area = _class_map(classifier, opened, chosen, scale, name or "the picture")
    return Explanation(opened, describe(scores, chosen, network.labels), maps, area)


def can_explain(classifier: Classifier) -> bool:
    """Whether the engine gives what Grad-CAM needs: a file that quantizes activations, run as it is, gives its logits only."""
    return not isinstance(classifier.engine, GraphEngine)


def outputs(network: Network) -> tuple[str, ...]:
    """The values that `grad_cam` needs: the last convolution, the layers of the head, the logits."""
    names = network.architecture.values
    last = names[names.index("pool5") - 1]
    return (last, "fc6", "fc7", "logits") if network.architecture.head == "fc" else (last, "logits")


def grad_cam(network: Network, values: Mapping[str, Array], classes: Sequence[int]) -> Array:
    """How much each place of the last convolution speaks for each of some classes.

    A channel weighs as much as the mean over its places of the logit's gradient; the map is the weighted sum of the channels.
    The definition then sets to 0 what speaks against the class, which is left to whoever draws the map.

    Args:
        network: any.
        values: `outputs(network)` for one picture of the network's input size, without the axis of the batch.
        classes: their indices.

    Returns:
        float32 [classes, rows, columns].
    """
    channels = values[outputs(network)[0]]
    # Max pooling hands each gradient on to one place, so that the sum over the places is the same before it and after it.
    weights = _pool5_gradient(network, values, classes) / np.float32(channels[0].size)
    return np.asarray(np.tensordot(weights, channels, 1))


def _pool5_gradient(network: Network, values: Mapping[str, Array], classes: Sequence[int]) -> Array:
    """The gradient of the classes' logits at pool5, summed over its places: float32 [classes, channels]."""
    signal = _rows(network.parameters["fc8.weight"], np.array(classes))
    if network.architecture.head == "gap":  # the mean's gradient: each place has its share of it
        return signal
    for layer in ("fc7", "fc6"):
        active = np.flatnonzero(values[layer])  # at all others the ReLU ends the gradient, so their weights are not read
        signal = _product(signal[:, active], network.parameters[f"{layer}.weight"], active)
    side = network.parameters["fc6.weight"].shape[-1]
    return np.asarray(signal.reshape(len(classes), -1, side * side).sum(-1))


def _product(signal: Array, weight: Parameter, rows: Array) -> Array:
    """signal [classes, rows] times those rows of a weight: [classes, inputs]. A few rows are in memory at a time."""
    if isinstance(weight, LowRank):
        return _product(_product(signal, weight.left, rows), weight.right, np.arange(weight.right.shape[0]))
    if isinstance(weight, np.ndarray) and weight.dtype == np.float32 and not weight.flags.c_contiguous:
        order = np.argsort(weight.strides)[::-1]
        lying = weight.transpose(order)
        if lying.flags.c_contiguous and order[-1] == 0:  # as in Keras's files: a column a unit, and rows are best read whole
            whole = np.zeros((weight.shape[0], len(signal)), np.float32)
            whole[rows] = signal.T
            found = (lying.reshape(-1, len(whole)) @ whole).reshape(*lying.shape[:-1], -1)
            return found.transpose(-1, *np.argsort(order[:-1])).reshape(len(signal), -1)
    inputs = int(np.prod(weight.shape[1:]))
    total = np.zeros((len(signal), inputs), np.float32)
    step = max(1, BLOCK_BYTES // (4 * inputs))
    for start in range(0, len(rows), step):
        # Not by `@`: its BLAS starts threads of its own beside the engine's, and copies what is read only once.
        total += np.einsum("kr,ri->ki", signal[:, start : start + step], _rows(weight, rows[start : start + step]))
    return total


def _rows(weight: Parameter, rows: Array) -> Array:
    """Some rows of a weight as a matrix, float32 [rows, inputs]."""
    part = weight[rows] if isinstance(weight, np.ndarray) else weight.take(rows)
    return part.reshape(len(rows), -1).astype(np.float32, copy=False)


def _class_map(classifier: Classifier, image: Image.Image, classes: Sequence[int], scale: int, name: str) -> tuple[Array, Box]:
    """The classes' probabilities at each place of a whole picture, [classes, rows, columns], and where the places lie."""
    network, recipe = classifier.network, classifier.network.preprocessing
    check_dense(classifier.engine, network.architecture)
    if not recipe.crop <= scale <= LARGEST:
        raise Error(f"the scale must be {recipe.crop} to {LARGEST} pixels, not {scale}")
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise ImageError(f"{name}: is more than {MAX_ASPECT} times as long as wide; no class map is made of it")
    recipe = replace(recipe, resize="short-round" if recipe.resize == "none" else recipe.resize, size=scale)
    width, height = recipe.resized(*image.size)
    batch = recipe.normalise(recipe.cut(image, (0, 0, width, height)))[None]
    if network.architecture.head == "gap":
        margin = 0  # a place of pool5 stands for the pixels that were pooled into it
        pool5 = classifier.engine.run(batch, ("pool5",))["pool5"][0]
        weight, bias = (expanded(network.parameters[f"fc8.{role}"]).astype(np.float32) for role in ("weight", "bias"))
        logits = np.tensordot(weight, pool5, 1) + bias[:, None, None]
    else:
        margin = (network.architecture.input_size - STRIDE) // 2  # a place stands for the middle of what it sees
        found = classifier.engine.logits(batch)[0]
        logits = found.reshape(len(found), *found.shape[1:] or (1, 1))
    maps = softmax(logits.transpose(1, 2, 0)).transpose(2, 0, 1)[list(classes)]
    _, rows, columns = maps.shape
    left, top = margin / width, margin / height
    return maps, (left, top, left + STRIDE * columns / width, top + STRIDE * rows / height)


def seen(preprocessing: Preprocessing, width: int, height: int) -> Box:
    """The part of a picture that the network sees after the crop: left, top, right, bottom, as shares of its sides."""
    across, down = preprocessing.resized(width, height)
    left, top = preprocessing.offset(across), preprocessing.offset(down)
    return left / across, top / down, (left + preprocessing.crop) / across, (top + preprocessing.crop) / down


def box(heat: Array, area: Box, threshold: float = THRESHOLD) -> Box:
    """The box around the largest connected region of a map that is above a share of its largest value.

    Args:
        heat: float32 [rows, columns].
        area: the part of the picture that it lies on.
        threshold: the share.

    Returns:
        The box as shares of the picture's sides; all of `area` where nothing speaks for the class.
    """
    smooth = np.asarray(Image.fromarray(heat).resize((BOX_SIDE, BOX_SIDE), Image.Resampling.BICUBIC))
    left, top, right, bottom = 0, 0, BOX_SIDE, BOX_SIDE
    if smooth.max() > 0:
        left, top, right, bottom = _largest(smooth > threshold * smooth.max())
    across, down = (area[2] - area[0]) / BOX_SIDE, (area[3] - area[1]) / BOX_SIDE
    return area[0] + left * across, area[1] + top * down, area[0] + right * across, area[1] + bottom * down


def _largest(mask: Array) -> tuple[int, int, int, int]:
    """The box of the largest region of a mask [rows, columns] whose places touch, if only by a corner."""
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8))
    rows, starts = np.nonzero(edges > 0)  # runs of places, row by row
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
