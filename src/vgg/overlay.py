"""Heat maps on pictures: a see-through glow, with boxes and names where they are wanted."""

from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .arrays import Array
from .explanation import Box, Explanation
from .predictions import Prediction

# From faint to strong: share, red, green, blue, opacity. The lightness rises steadily, as in matplotlib's inferno, and the
# opacity with it, so that what matters is bright and the rest of the picture stays as it is. The server's page paints the
# same (serving/page/heat.js), which a test holds.
COLOURS = (
    (0.0, 40, 20, 90, 0.0), (0.3, 70, 30, 130, 0.16), (0.55, 190, 50, 110, 0.42), (0.8, 245, 130, 50, 0.6),
    (1.0, 255, 225, 110, 0.7),
)  # fmt: skip
EDGE = 0.06  # the share of a map's side along which the glow fades out, so that the crop's border draws no line
LARGEST = 1024  # pixels; larger pictures are drawn smaller
INK = (20, 20, 24)
SMALLEST = 16  # pixels below a picture for its name
LINE, GAP, CAPTION = 1 / 160, 1 / 60, 1 / 14  # of the longer side: a box's line, the space between pictures, below them


def overlay(explanation: Explanation, boxes: bool = False) -> Image.Image:
    """An explanation's picture with its map on it; with several classes a picture each, side by side, and with their names.

    Args:
        explanation: what to draw.
        boxes: also draw each class's box.

    Returns:
        RGB, as large as the picture, but at most 1024 pixels; several are side by side.
    """
    picture = explanation.image.copy()
    picture.thumbnail((LARGEST, LARGEST))
    longer = max(picture.size)
    panels = []
    for index, heat in enumerate(explanation.maps):
        panel = paint(picture, heat, explanation.seen)
        if boxes:
            _frame(panel, explanation.box(index), panel.width / explanation.image.width, max(2, round(longer * LINE)))
        panels.append(panel)
    if len(panels) == 1:
        return panels[0]
    width, height, gap, caption = *picture.size, round(longer * GAP), max(SMALLEST, round(longer * CAPTION))
    sheet = Image.new("RGB", (len(panels) * (width + gap) - gap, height + caption), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(round(caption * 0.6))
    for place, (panel, one) in enumerate(zip(panels, explanation.classes, strict=True)):
        left = place * (width + gap)
        sheet.paste(panel, (left, 0))
        pen.text((left + width / 2, height + caption / 2), _fitting(one, font, width), INK, font, "mm")
    return sheet


def _frame(panel: Image.Image, box: tuple[int, int, int, int], scale: float, line: int) -> None:
    """Draw a box of the picture's pixels: a light line inside a dark one, seen on anything."""
    left, top, right, bottom = (round(side * scale) for side in box)
    pen, inner = ImageDraw.Draw(panel), max(1, line // 3)
    for colour, inset, width in ((INK, 0, line), ("white", inner, max(1, line - 2 * inner))):
        corners = left + inset, top + inset, right - 1 - inset, bottom - 1 - inset
        if corners[2] >= corners[0] and corners[3] >= corners[1]:
            pen.rectangle(corners, outline=colour, width=width)


def _fitting(one: Prediction, font: Any, width: int) -> str:
    """A class's name and score, with the name cut where it is too long."""
    name, cut = one.label, ""
    while name and font.getlength(f"{name}{cut}  {one.score:.1%}") > width:
        name, cut = name[:-1], "…"
    return f"{name}{cut}  {one.score:.1%}"


def paint(picture: Image.Image, heat: Array, area: Box) -> Image.Image:
    """A picture, RGB, with a map [rows, columns] on a part of it; places that speak against the class stay clear."""
    width, height = picture.size
    left, top, right, bottom = (round(share * side) for share, side in zip(area, (width, height) * 2, strict=True))
    right, bottom = max(right, left + 1), max(bottom, top + 1)  # of the tiniest pictures, too, there is a pixel
    smooth = np.asarray(Image.fromarray(heat).resize((right - left, bottom - top), Image.Resampling.BICUBIC))
    shares = (smooth / max(float(smooth.max()), 1e-9)).clip(0, 1)
    stops = np.array(COLOURS).T
    glow = np.stack([np.interp(shares, stops[0], stop) for stop in stops[1:]], -1)
    fade = np.outer(_fade(bottom - top), _fade(right - left))
    mask = Image.fromarray(np.uint8(np.rint(255 * glow[..., 3] * fade)))
    found = picture.copy()
    found.paste(Image.fromarray(np.uint8(np.rint(glow[..., :3]))), (left, top), mask)
    return found


def _fade(count: int) -> Array:
    """From 0 to 1 and back along a side, smoothly."""
    place = (np.arange(count) + 0.5) / count
    share = np.minimum(np.minimum(place, 1 - place) / EDGE, 1)
    return np.asarray(share * share * (3 - 2 * share))
