"""Heat maps drawn on images, with boxes and captions."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .arrays import Array
from .predictions import Prediction

Box = tuple[float, float, float, float]  # left, top, right, bottom, as shares of an image's sides

# From weak to strong: share of the maximum, red, green, blue, opacity. Lightness and opacity rise steadily, as the lightness of
# matplotlib's inferno, so that strong evidence is bright and the rest of the image is unchanged. The server's page draws with
# the same colours (serving/page/heat.js); a test compares them.
COLOURS = (
    (0.0, 40, 20, 90, 0.0), (0.3, 70, 30, 130, 0.16), (0.55, 190, 50, 110, 0.42), (0.8, 245, 130, 50, 0.6),
    (1.0, 255, 225, 110, 0.7),
)  # fmt: skip
EDGE = 0.06  # share of a map's side along which it fades out inside the image, so that the crop's border is not visible
PERCENTILE, DARK = 99, 0.35  # of a fine map, what is drawn as its maximum, and the brightness of the image below it
LARGEST = 1024  # pixels; larger images are drawn smaller
INK = (20, 20, 24)
SMALLEST = 16  # pixels of a caption's height
LINE, GAP, CAPTION = 1 / 160, 1 / 60, 1 / 14  # of the longer side: a box's line, the space between images, a caption


def overlay(
    image: Image.Image,
    maps: Array,
    area: Box,
    classes: Sequence[Prediction],
    boxes: Sequence[tuple[int, ...]] = (),
    fine: bool = False,
) -> Image.Image:
    """An image with a heat map on it; for several classes one copy each, side by side, with captions.

    Args:
        image: RGB.
        maps: float32 [classes, rows, columns]; evidence against a class (below 0) is not drawn.
        area: the part of the image that the maps cover.
        classes: the class of each map, for the captions; empty for a map of the activation.
        boxes: the box of each map in pixels of the image: left, top, right, bottom. None are drawn if empty.
        fine: see `paint`.

    Returns:
        RGB, of the image's size, but at most 1024 pixels; a caption adds to its height.
    """
    small = image.copy()
    small.thumbnail((LARGEST, LARGEST))
    longer = max(small.size)
    panels = [paint(small, heat, area, fine) for heat in maps]
    for panel, box in zip(panels, boxes, strict=False):
        _frame(panel, box, panel.width / image.width, max(2, round(longer * LINE)))
    if len(panels) == len(classes) == 1:
        return panels[0]
    width, height, gap, caption = *small.size, round(longer * GAP), max(SMALLEST, round(longer * CAPTION))
    sheet = Image.new("RGB", (len(panels) * (width + gap) - gap, height + caption), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(round(caption * 0.6))
    named = [(one.label, f"  {one.score:.1%}") for one in classes] or [("activation", "")]
    for index, (panel, (label, score)) in enumerate(zip(panels, named, strict=True)):
        left = index * (width + gap)
        sheet.paste(panel, (left, 0))
        pen.text((left + width / 2, height + caption / 2), _caption(label, score, font, width), INK, font, "mm")
    return sheet


def paint(image: Image.Image, heat: Array, area: Box, fine: bool = False) -> Image.Image:
    """A copy of an RGB image with a heat map [rows, columns] on a part of it.

    A fine map consists of dots, of which a few are far stronger than all others. It is drawn on dark grey, and all dots above
    its 99th percentile are as bright as each other, as in SmoothGrad's figures.
    """
    width, height = image.size
    left, top, right, bottom = (round(share * side) for share, side in zip(area, (width, height) * 2, strict=True))
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # at least a pixel of the smallest images
    smooth = np.asarray(Image.fromarray(heat).resize((right - left, bottom - top), Image.Resampling.BICUBIC))
    strongest = np.percentile(heat.clip(0), PERCENTILE) if fine else smooth.max()
    shares = (smooth / max(float(strongest), 1e-9)).clip(0, 1)
    stops = np.array(COLOURS).T
    colours = np.stack([np.interp(shares, stops[0], stop) for stop in stops[1:]], -1)
    painted = image.copy()
    if fine:
        opacity = shares
        dark = painted.crop((left, top, right, bottom)).convert("L").point(lambda value: DARK * value)
        painted.paste(dark.convert("RGB"), (left, top))
    else:
        down, across = _fade(bottom - top, top > 0, bottom < height), _fade(right - left, left > 0, right < width)
        opacity = colours[..., 3] * np.outer(down, across)
    mask = Image.fromarray(np.uint8(np.rint(255 * opacity)))
    painted.paste(Image.fromarray(np.uint8(np.rint(colours[..., :3]))), (left, top), mask)
    return painted


def _fade(count: int, start: bool, end: bool) -> Array:
    """Smooth weights along a side: 1, but from 0 to 1 at its start and back at its end, if it fades out there."""
    position = (np.arange(count) + 0.5) / count
    share = np.minimum(np.minimum(position if start else 1, 1 - position if end else 1) / EDGE, 1)
    return np.asarray(share * share * (3 - 2 * share))


def _frame(panel: Image.Image, box: Sequence[int], scale: float, line: int) -> None:
    """Draw a box: a white line inside a dark one, visible on any image."""
    left, top, right, bottom = (round(side * scale) for side in box)
    pen, inner = ImageDraw.Draw(panel), max(1, line // 3)
    for colour, inset, width in ((INK, 0, line), ("white", inner, max(1, line - 2 * inner))):
        corners = left + inset, top + inset, right - 1 - inset, bottom - 1 - inset
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            pen.rectangle(corners, outline=colour, width=width)


def _caption(label: str, score: str, font: Any, width: int) -> str:
    """A class's label and score; a label that is too long is shortened."""
    end = ""
    while label and font.getlength(f"{label}{end}{score}") > width:
        label, end = label[:-1], "…"
    return f"{label}{end}{score}"
