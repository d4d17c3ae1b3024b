"""Boxes around the evidence for a class."""

import numpy as np
from PIL import Image

from ..arrays import Array
from ..overlay import Box
from ..preprocessing import Preprocessing

# Positions above this share of a map's maximum are in the box: 15% in Grad-CAM (section 4.1), 20% in CAM.
THRESHOLD = 0.15
CELL = 16  # pixels of the input per position of the last convolution, after four poolings of 2
SIDE = 224  # of the enlarged map in which the box is found


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
    smooth = np.asarray(Image.fromarray(heat).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    left, top, right, bottom = 0, 0, SIDE, SIDE
    if smooth.max() > 0:
        left, top, right, bottom = _largest(smooth > threshold * smooth.max())
    across, down = (area[2] - area[0]) / SIDE, (area[3] - area[1]) / SIDE
    return area[0] + left * across, area[1] + top * down, area[0] + right * across, area[1] + bottom * down


def coarse(heat: Array) -> Array:
    """The means of a map [rows, columns] over cells of 16 x 16 pixels, as many as the last convolution has positions."""
    rows, columns = (max(1, side // CELL) for side in heat.shape)
    return np.asarray(Image.fromarray(heat).resize((columns, rows), Image.Resampling.BOX))


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
