"""The memory that decoding an image takes, estimated from the header before anything is decoded, and blocks that bound it.

The estimates are upper bounds: bytes per pixel as measured for each of Pillow's decoders, and what a hostile header may add.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

BLOCK = 2**20  # pixels that are converted at once, and
COPIES = 16  # bytes of a pixel meanwhile
RGB = 4  # bytes of a pixel in an RGB image
COMPRESSED_TEXT = 64 * 2**20  # bytes; Pillow's limit for the compressed texts of a PNG file
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_COMPRESSION, TIFF_SAMPLES, TIFF_ROWS = 256, 257, 258, 259, 277, 278
TIFF_TILE_WIDTH, TIFF_TILE_HEIGHT = 322, 323
TIFF_JPEG = (6, 7)  # values of TIFF_COMPRESSION
# JPEG 2000's segment SIZ, with the sides of the image, the tiles and their offsets, and the number of components; its segments
# COD and COC, with the flags, the exponents of a code block's sides, and the sizes of precincts if the flags say so.
J2K_SIZE = re.compile(rb"\xff\x4f\xff\x51.{4}(.{32})(..)", re.DOTALL)
J2K_BLOCKS = re.compile(
    rb"\xff(?:\x52\x00[\x0c-\x2d](.).{4}(.)(.)(.)..|\x53\x00[\x09-\x2a].(.)(.)(.)(.)..)(.{0,33})", re.DOTALL
)
J2K_BLOCK, J2K_PRECINCT, J2K_TILE = 400, 400, 12_000  # bytes of openjpeg's records


def memory(image: "Image.Image", data: bytes, *, turned: bool) -> tuple[int, int]:
    """An upper bound of the bytes that decoding an image and converting it to RGB takes, beside its file.

    Args:
        image: opened by Pillow, not loaded.
        data: its file.
        turned: whether its EXIF orientation may turn it.

    Returns:
        The bytes for decoding, and those for pixels, fewer if the decoder reduces the image. Both are in use together.
    """
    stored, working = _stored(image), len(data) + _WORKING[image.format or ""](image, data)
    if image.mode != "RGB" or "transparency" in image.info:
        stored += RGB
        working += COPIES * min(image.width * image.height, BLOCK)
    if turned:
        stored += RGB
    return working, image.width * image.height * stored


def blocks(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Boxes (left, top, right, bottom) of at most `BLOCK` pixels that cover an image, row by row."""
    across = min(width, BLOCK)
    down = BLOCK // across
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _stored(image: "Image.Image") -> int:
    """Bytes of a pixel in Pillow's memory."""
    return 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4


def _per_pixel(size: int) -> Callable[["Image.Image", bytes], int]:
    return lambda image, data: size * image.width * image.height


def _listed(image: "Image.Image", data: bytes) -> int:
    """The list of bytes that Pillow makes of unusual BMP and PPM files."""
    return 0 if image.tile[0][0] == "raw" else 9 * image.width * image.height  # type: ignore[attr-defined]


def _jpeg(image: "Image.Image", data: bytes) -> int:
    """The coefficients, 2 bytes each, unless the first scan has all components."""
    layers: list[tuple[int, int, int, int]] = image.layer  # type: ignore[attr-defined]  # id, horizontal and vertical sampling
    count = len(layers)
    scan = b"\xff\xda" + (6 + 2 * count).to_bytes(2, "big") + bytes([count])  # what Pillow has just read
    start = image.fp.tell() - 8 - 2 * count  # type: ignore[attr-defined]
    if data[start : start + 5] == scan and "progressive" not in image.info:
        return 0
    across, down = (max(layer[side] for layer in layers) for side in (1, 2))
    share = sum(layer[1] * layer[2] for layer in layers) / (across * down)
    width, height = (-(-side // (8 * most)) * 8 * most for side, most in ((image.width, across), (image.height, down)))
    return ceil(2 * share * width * height)


def _png(image: "Image.Image", data: bytes) -> int:
    return COMPRESSED_TEXT if b"zTXt" in data or b"iTXt" in data else 0


def _tiff(image: "Image.Image", data: bytes) -> int:
    """A strip or tile, in full, and its compressed bytes; nothing for a file that is not compressed."""
    if image.tile[0][0] == "raw":  # type: ignore[attr-defined]
        return 0
    tags: Mapping[int, Any] = image.tag_v2  # type: ignore[attr-defined]
    samples, bits = int(tags.get(TIFF_SAMPLES, 1)), int(max(tags.get(TIFF_BITS, (1,))))
    if TIFF_TILE_WIDTH in tags:
        pixels = int(tags[TIFF_TILE_WIDTH]) * int(tags.get(TIFF_TILE_HEIGHT, image.height))
    else:
        pixels = image.width * min(int(tags.get(TIFF_ROWS, image.height)), image.height)
    per_pixel = ceil(samples * bits / 8)
    if tags.get(TIFF_COMPRESSION) in TIFF_JPEG:
        per_pixel += 2 * samples + 4  # coefficients, and RGBA
    return len(data) + pixels * per_pixel


def _avif(image: "Image.Image", data: bytes) -> int:
    """Planes of up to 16 bits, twice if they are joined to a grid, the result, and a reserve for the decoder."""
    return (24 if b"grid" in data else 16) * image.width * image.height


def _heif(image: "Image.Image", data: bytes) -> int:
    """The planes, and copies of half as much again as those of the result, in 8 or 16 bits; and a copy of the file."""
    channels, depth = len(image.getbands()), 1 if image.info.get("bit_depth") == 8 else 2
    planes = {420: 1.5, 422: 2}.get(image.info.get("chroma", 0), 3) + channels - 3 if channels > 2 else channels
    return len(data) + ceil(depth * (planes + 1.5 * channels) * image.width * image.height)


def _jpeg2000(image: "Image.Image", data: bytes) -> int:
    """A tile of all components as 32-bit and as packed numbers, and records of its tiles, precincts and code blocks."""
    area, precinct = 2**12, 2**30  # samples
    for found in J2K_BLOCKS.finditer(data):
        flags, levels, across, down = (one[0] for one in (found.groups()[:4] if found[1] else found.groups()[4:8]))
        area = min(area, 2 ** (across % 16 + down % 16 + 4))
        if flags & 1:
            precinct = min([precinct, *(2 ** (one % 16 + one // 16) for one in found[9][: levels + 1])])
    needed = 0
    for found in J2K_SIZE.finditer(data):
        components, samples, tiles = int.from_bytes(found[2], "big"), 1, 1
        sides = [int.from_bytes(found[1][at : at + 4], "big") for at in range(0, 32, 4)]
        for end, tile, offset in zip(sides[:2], sides[4:6], sides[6:], strict=True):
            samples *= min(end, tile)
            tiles *= ceil(max(end - offset, 0) / max(tile, 1))
        records = 2 * samples * (J2K_BLOCK / area + J2K_PRECINCT / precinct) + J2K_TILE * tiles
        needed = max(needed, components * ceil(8 * samples + records))
    return needed


# Bytes that a decoder takes beside the image. WebP has two canvases, its result and a plane of alpha.
_WORKING: Mapping[str, Callable[["Image.Image", bytes], int]] = {
    "AVIF": _avif, "BMP": _listed, "DIB": _listed, "GIF": _per_pixel(1), "HEIF": _heif, "JPEG": _jpeg, "MPO": _jpeg,
    "JPEG2000": _jpeg2000, "PNG": _png, "PPM": _listed, "TGA": _per_pixel(1), "TIFF": _tiff, "WEBP": _per_pixel(13),
}  # fmt: skip
