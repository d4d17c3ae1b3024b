"""Formats of images: those that are read, and those that folders of images have beside them."""

import ctypes
import logging
import os
from functools import cache

from .errors import Error
from .extras import require

# Pillow's names of the formats that are read. The others are programs (Ghostscript would run EPS) or not for photographs.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "HEIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
HEIC = "HEIC"  # which pillow-heif reads

# Suffixes of images in a folder; pillow-heif is optional.
_NAMES = """
    apng avif bmp dib gif heic heics heif heifs hif j2c j2k jfif jp2 jpc jpe jpeg jpf jpg jpx mpo pbm pgm png pnm ppm tga tif
    tiff webp
"""
SUFFIXES = frozenset(f".{name}" for name in _NAMES.split())
# Kinds of files, by suffix, that can't be read, and of others that cameras, phones and scanners write.
OTHERS = {
    f".{suffix}": kind
    for kind, suffixes in {
        HEIC: "heic heics heif heifs hif",
        "camera raw": "3fr arw cr2 cr3 crw dng erf nef nrw orf pef raf raw rw2 sr2 srw",
        "JPEG XL": "jxl",
        "PDF": "pdf",
        "Photoshop": "psb psd",
        "SVG": "svg svgz",
        "video": "3gp avi m4v mkv mov mp4 mpeg mpg mts webm wmv",
    }.items()
    for suffix in suffixes.split()
}


def suffix_of(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def left_out(name: str) -> str | None:
    """The kind of a file that is left out of a folder of images, by its name; None for an image that is read, and others."""
    kind = OTHERS.get(suffix_of(name))
    return None if kind == HEIC and not heic_requirement() else kind


def is_heic(data: bytes) -> bool:
    """Whether a file names a brand of HEIC. AVIF has the same container, with other brands."""
    brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
    return data[4:8] == b"ftyp" and any(brand in brands for brand in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"))


@cache
def heic_requirement() -> str:
    """The reason why HEIC can't be read, and what to install; empty if it can."""
    try:
        require("HEIC", "heif", "pillow_heif")
    except Error as error:
        return str(error)
    return ""


@cache
def prepare_pillow() -> None:
    """Register the readers of all formats. Their errors are exceptions and nothing else: no lines on standard error."""
    from PIL import Image

    Image.init()
    if not heic_requirement():
        import pillow_heif

        pillow_heif.register_heif_opener(thumbnails=False)
    logging.getLogger("PIL").addHandler(logging.NullHandler())  # or Python prints what isn't handled
    _quieten_libtiff()


def _quieten_libtiff() -> None:
    """Remove libtiff's default handler, which writes a line for each damaged row, although Pillow raises an exception.

    Pillow has no setting for it. Where libtiff can't be found, because it is part of Pillow's own library or this is not
    Linux, its lines stay.
    """
    try:
        with open("/proc/self/maps") as maps:
            paths = {path for line in maps if os.path.basename(path := line.rpartition(" ")[2].strip()).startswith("libtiff")}
        for path in paths:
            ctypes.CDLL(path).TIFFSetErrorHandler(None)
    except (OSError, AttributeError):
        pass
