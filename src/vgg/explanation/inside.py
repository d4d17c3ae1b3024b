"""Images of what a network has learned: its first filters, its layer outputs, and an image that maximises a class."""

import math

import numpy as np
from PIL import Image

from ..arrays import Array
from ..engines import Model
from ..errors import Error, ModelError
from ..images import ImageLike
from ..labels import find_class
from ..network import Network
from ..parameters import expanded
from ..preprocessing import Preprocessing
from ..progress import Progress, silent
from .cam import chosen_layer, signals
from .pixels import input_gradients

SHEET = 512  # pixels of a sheet's width, about; small tiles are enlarged by whole numbers
CHANNELS = 64  # on a sheet by default
# Of the ascent: the step's mean length in standard deviations of a pixel, the share by which the image fades in each step, the
# most pixels by which it is shifted, and the number of steps from one blur to the next.
RATE, DECAY, JITTER, BLUR = 0.05, 0.002, 16, 4


def filters(network: Network) -> Image.Image:
    """The filters of the first convolution as a sheet of RGB tiles, in order.

    Grey is 0; each filter is scaled to its own largest weight. Batch normalisation is not included.
    """
    weights = expanded(network.parameters["conv1_1.weight"]).astype(np.float32)
    weights = weights if network.preprocessing.channels == "RGB" else weights[:, ::-1]
    largest = np.abs(weights).max((1, 2, 3), keepdims=True)
    return _sheet(0.5 + weights.transpose(0, 2, 3, 1) / (2 * np.maximum(largest, 1e-12)))


def layer_outputs(model: Model, image: ImageLike, layer: str, channels: int = CHANNELS) -> Image.Image:
    """A layer output for an image as a sheet of grey tiles, one for each channel, in order.

    Args:
        model: a network on an engine, such as a `Classifier`.
        image: see `vgg.images.open_image`.
        layer: name of a layer output that is a map, `conv1_1` … `pool5`.
        channels: number of channels; if there are more, those with the largest mean.

    Returns:
        RGB; black is 0, and white each channel's largest value.

    Raises:
        ImageError: the image can't be read.
        ModelError: the layer is unknown, or no map.
    """
    name = chosen_layer(model.network.architecture, layer)
    values = model.engine.run(model.network.preprocessing(image)[None], (name,))[name][0]
    strongest = np.sort(np.argsort(-values.mean((1, 2)), kind="stable")[:channels])
    chosen = values[strongest].clip(0)
    scaled = chosen / np.maximum(chosen.max((1, 2), keepdims=True), 1e-12)
    return _sheet(np.repeat(scaled[..., None], 3, -1))


def class_image(
    model: Model, target: int | str, *, steps: int = 200, seed: int = 0, progress: Progress = silent
) -> Image.Image:
    """An image that maximises the logit of a class: Simonyan et al., arXiv 1312.6034, section 2.

    Gradient ascent from noise around the mean colour. The image fades in each step, which is the paper's L2 regularisation.
    Shifts by random numbers of pixels and a blur after every fourth step keep the image from becoming noise, after Yosinski
    et al., arXiv 1506.06579, section 3.

    Args:
        model: a network with a head, on an engine.
        target: class index, WordNet id or name.
        steps: number of gradients.
        seed: random seed.
        progress: called after each step.

    Returns:
        RGB, of the size of the network's input.

    Raises:
        Error: unknown class, no head, or no steps.
    """
    network, preprocessing = model.network, model.network.preprocessing
    if not network.architecture.classifier:
        raise ModelError(f"this {network.architecture.name} has no head, so it has no classes")
    if steps < 1:
        raise Error(f"the number of steps must be 1 or more, not {steps}")
    signal = signals(network, [find_class(target, network.architecture.classes, network.class_names)])
    side = preprocessing.crop
    low, high = (preprocessing.normalise(np.full((1, 1, 3), value, np.uint8)) for value in (0, 255))
    rng, middle, spread = np.random.default_rng(seed), (low + high) / 2, (high - low) / 4
    image = 0.1 * rng.standard_normal((3, side, side), np.float32)  # in units of `spread` around `middle`
    bounds = (low - middle) / spread, (high - middle) / spread
    for step in range(1, steps + 1):
        shift = rng.integers(-JITTER, JITTER + 1, 2)
        moved = np.roll(image, shift, (1, 2))
        slope = input_gradients(model, (middle + spread * moved)[None], signal)[0, 0] * spread
        slope = np.roll(slope, -shift, (1, 2))
        image += RATE * slope / np.maximum(np.abs(slope).mean(), 1e-12)
        image *= 1 - DECAY
        if step % BLUR == 0 and step < steps:
            for axis in (1, 2):
                image = (np.roll(image, -1, axis) + 2 * image + np.roll(image, 1, axis)) / 4
        image = image.clip(*bounds).astype(np.float32)
        progress("Class image", step, steps)
    return Image.fromarray(_pixels(preprocessing, middle + spread * image))


def _pixels(preprocessing: Preprocessing, values: Array) -> Array:
    """The RGB pixels, uint8 [height, width, 3], of a normalised input [3, height, width]."""
    planes = values.transpose(1, 2, 0) * np.array(preprocessing.std) + np.array(preprocessing.mean)
    pixels = np.rint(planes / preprocessing.scale).clip(0, 255).astype(np.uint8)
    return np.asarray(pixels if preprocessing.channels == "RGB" else pixels[..., ::-1])


def _sheet(tiles: Array) -> Image.Image:
    """Tiles [count, height, width, 3] of 0..1 side by side in rows, with white lines between them."""
    count, height, width, _ = tiles.shape
    across = math.ceil(math.sqrt(count))
    scale = max(1, SHEET // (across * width))
    pixels = np.uint8(np.rint(255 * tiles)).repeat(scale, 1).repeat(scale, 2)
    gap = max(1, scale // 4)
    size = across * (width * scale + gap) - gap, math.ceil(count / across) * (height * scale + gap) - gap
    sheet = Image.new("RGB", size, "white")
    for place, tile in enumerate(pixels):
        row, column = divmod(place, across)
        sheet.paste(Image.fromarray(tile), (column * (width * scale + gap), row * (height * scale + gap)))
    return sheet
