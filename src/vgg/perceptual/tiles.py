"""Parts of large images whose layer outputs, put together, are those of the whole image.

A tile is computed with a margin of the pixels that its layer outputs depend on. It begins at a multiple of the stride, so that
poolings combine the same pixels as in the whole image, and is padded with zeros only where the image ends.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ..architectures import STRIDE, Architecture

Box = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True)
class Tile:
    """A part of an image, in pixels."""

    box: Box  # with the margin: what is computed
    core: Box  # without it; an image's cores cover it once

    def area(self, architecture: Architecture, value: str) -> tuple[Box, Box]:
        """The positions of the core in a layer output, of the box and of the whole image, if it has them to its ends."""
        stride = reach(architecture)[value][0]
        top, left, bottom, right = self.box
        rows, columns = architecture.shape(value, 1, bottom - top, right - left)[2:]
        # Where the box and the core end together, the image ends, and its last position may be a part of a stride, or more.
        below = rows if self.core[2] == bottom else (self.core[2] - top) // stride
        beside = columns if self.core[3] == right else (self.core[3] - left) // stride
        inside = (self.core[0] - top) // stride, (self.core[1] - left) // stride, below, beside
        offset = (top // stride, left // stride) * 2
        return inside, tuple(a + b for a, b in zip(inside, offset, strict=True))  # type: ignore[return-value]


def tiles(architecture: Architecture, values: Iterable[str], height: int, width: int, pixels: int) -> Iterator[Tile]:
    """Tiles of an image for these layer outputs, of about `pixels` pixels each; one if the image is not larger."""
    down, across, margin = height, width, 0
    if height * width > pixels:
        found = reach(architecture)
        margin = max((found[value][1] for value in values), default=0)
        down, across = _cores(height, width, margin, pixels)
    for top in range(0, height, down):
        for left in range(0, width, across):
            core = top, left, min(top + down, height), min(left + across, width)
            box = max(top - margin, 0), max(left - margin, 0), min(core[2] + margin, height), min(core[3] + margin, width)
            yield Tile(box, core)


def reach(architecture: Architecture) -> dict[str, tuple[int, int]]:
    """For each layer output its stride, and the pixels around those of a position that it depends on, in whole STRIDEs."""
    found, margin, stride = {}, 0, 1
    for value in architecture.values:
        if weight := architecture.parameters.get(f"{value}.weight"):
            margin += weight[-1] // 2 * stride
        elif value.startswith("pool"):
            margin += stride if architecture.pooling == "l2" else 0
            stride *= 2
        found[value] = stride, -(-margin // STRIDE) * STRIDE
    return found


def _cores(height: int, width: int, margin: int, pixels: int) -> tuple[int, int]:
    """The height and width of the cores with the fewest pixels to compute in all, multiples of STRIDE."""
    choices = []
    for rows in range(1, -(-height // STRIDE) + 1):
        down = -(-height // rows // STRIDE) * STRIDE
        tall = min(down + 2 * margin, height)
        across = -(-width // STRIDE) * STRIDE if tall * width <= pixels else (pixels // tall - 2 * margin) // STRIDE * STRIDE
        if across > 0:
            columns = -(-width // across)
            choices.append((rows * columns * tall * min(across + 2 * margin, width), down, across))
    return min(choices)[1:] if choices else (STRIDE, STRIDE)
