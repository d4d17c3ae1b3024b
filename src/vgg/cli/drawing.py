"""Images that verbs write."""

import io
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Error
from ..files import replacing

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def check_path(path: Path) -> None:
    """Raise Error, before anything is computed, if an image can't be written to a path: its suffix or its folder."""
    if path.suffix.lower() not in SUFFIXES:
        raise Error(f"{path}: unsupported image format; use {', '.join(SUFFIXES)}")
    check_folder(path)


def check_folder(path: Path) -> None:
    """Raise Error if the folder of a file that will be written doesn't exist."""
    if not path.parent.is_dir():
        raise Error(f"{path}: can't be written: folder {path.parent} not found")


def write_image(image: "Image.Image", path: Path) -> None:
    """Write an image to a file, which is replaced as a whole."""
    encoded = io.BytesIO()
    kind = {".jpg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    image.save(encoded, kind, quality=92)
    with replacing(path) as file:
        file.write(encoded.getvalue())
