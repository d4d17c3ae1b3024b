"""The class map: the dense form of a network, section 3.2 of the VGG paper, arXiv 1409.1556."""

from collections.abc import Sequence
from dataclasses import replace

from PIL import Image

from ..architectures import STRIDE
from ..arrays import Array
from ..engines import Model, check_dense
from ..errors import Error, ImageError
from ..gradients import at_positions
from ..overlay import Box
from ..predictions import scores as scores_of

LARGEST, MAX_ASPECT = 1024, 4  # limits of the short side in pixels, and of the long side in short sides


def class_map(model: Model, image: Image.Image, classes: Sequence[int], size: int, name: str) -> tuple[Array, Box]:
    """The classes' scores at each position of the whole image, [classes, rows, columns], and the area they cover."""
    network, preprocessing = model.network, model.network.preprocessing
    head = network.architecture.classifier
    assert head is not None
    averages = head.pooling == "average" and head.side == 1
    if not averages and not head.maps:
        raise Error(f"no class map for the head {head.text!r}, which doesn't read or average the whole map; use another method")
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
        # A position is the centre of its input, whose pixels beyond a multiple of the stride are not read.
        margin = (network.architecture.input_size // STRIDE - 1) * STRIDE // 2
        found = model.engine.logits(batch)[0]
        logits = found.reshape(len(found), *found.shape[1:] or (1, 1))
    maps = scores_of(logits.transpose(1, 2, 0), network.architecture.output).transpose(2, 0, 1)[list(classes)]
    _, rows, columns = maps.shape
    left, top = margin / width, margin / height
    return maps, (left, top, left + STRIDE * columns / width, top + STRIDE * rows / height)
