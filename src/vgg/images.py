"""Images of any kind, opened safely, as 8-bit RGB.

Pillow reads the files. If simplejpeg is installed, it decodes ordinary JPEG files, with the same pixels in half the time.
Images are converted as a viewer shows them: upright, on white where they are transparent, the first frame of an animation.
"""

import io
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, Union

from .errors import ImageError
from .files import reason

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 178_956_970  # Pillow's own limit: half a gibibyte of RGB
# Pillow's names of the formats that are read. The others are programs (Ghostscript would run EPS) or not for photographs.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "ICO", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TGA", "TIFF", "WEBP")
# Suffixes of images in a folder.
SUFFIXES = frozenset(
    f".{name}"
    for name in "avif bmp gif jfif jp2 jpe jpeg jpg pbm pgm png pnm ppm tga tif tiff webp".split()  # noqa: SIM905
)


class Readable(Protocol):
    """An object whose `read` returns an image file's bytes, such as a `vgg.sources.Sample` or an open file."""

    def read(self) -> bytes: ...


ImageLike = Union[str, Path, bytes, Readable, "Image.Image", "np.ndarray[Any, Any]"]


def open_image(source: ImageLike, name: str | None = None) -> "Image.Image":
    """An 8-bit RGB image, upright.

    Args:
        source: a path; the bytes of a file, or an object to `read()` them from; a PIL image; or an array, uint8 (0..255) or
            uint16 (0..65535), [height, width] or [height, width, channels] with 1 (grey), 2 (grey, alpha), 3 (RGB) or
            4 (RGBA) channels.
        name: the image's name in an error; the path by default.

    Raises:
        ImageError: the image is missing, empty, truncated, not an image, or exceeds 256 MiB or 179 million pixels.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        return _rgb(source, name or "the image")
    if hasattr(source, "read"):
        source = source.read()
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), len(source), name or "the image's bytes")
    if isinstance(source, str | Path):
        try:
            with open(source, "rb") as file:
                return _decode(file, file.seek(0, io.SEEK_END), name or str(source))
        except OSError as error:
            raise ImageError(f"{source}: {reason(error)}") from None
    return _from_array(source, name or "the array")


def decoding_bytes(data: bytes) -> int:
    """An upper bound of the memory in bytes that `open_image` takes for an image's file, from its header.

    Raises:
        ImageError: as `open_image`.
    """
    from PIL import Image

    try:
        Image.init()
        with Image.open(io.BytesIO(data), formats=[one for one in FORMATS if one in Image.OPEN]) as image:
            # The image, its background and their composite, each at most 4 bytes per pixel, and the result.
            return image.width * image.height * (16 if image.mode not in ("RGB", "L") else 7)
    except Exception as error:
        raise ImageError(f"is damaged or truncated ({error})") from None


def _decode(file: BinaryIO, size: int, name: str) -> "Image.Image":
    from PIL import Image, UnidentifiedImageError

    if size == 0:
        raise ImageError(f"{name}: is empty")
    if size > MAX_BYTES:
        raise ImageError(f"{name}: is {size / 2**20:.0f} MiB; the limit for images is {MAX_BYTES // 2**20} MiB")
    file.seek(0)
    try:
        Image.init()
        image = Image.open(file, formats=[one for one in FORMATS if one in Image.OPEN])
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise Image.DecompressionBombError
        return _rgb(_fast_jpeg(image, file) or image, name)
    except UnidentifiedImageError:
        raise ImageError(f"{name}: not an image, or an unsupported format") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: has more than {MAX_PIXELS:,} pixels; resize it first") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for a damaged file
        raise ImageError(f"{name}: is damaged or truncated ({error})") from None


def _fast_jpeg(image: "Image.Image", file: BinaryIO) -> "Image.Image | None":
    """An opened JPEG file decoded by simplejpeg; None if that is not installed or the file needs Pillow.

    Both use libjpeg-turbo with the accurate transform and smooth upsampling, so the pixels are equal. Decoding at a reduced
    scale would be faster, but differs by more than any preset's tolerance.
    """
    if image.format != "JPEG" or image.mode not in ("RGB", "L") or not _has_simplejpeg():
        return None
    import simplejpeg
    from PIL import Image

    file.seek(0)
    try:
        fast = Image.fromarray(simplejpeg.decode_jpeg(file.read(), "RGB", fastdct=False, fastupsample=False, strict=True))
    except ValueError:  # damaged or unusual: left to Pillow
        file.seek(0)
        return None
    fast.info = image.info  # with the orientation
    return fast


@cache
def _has_simplejpeg() -> bool:
    return find_spec("simplejpeg") is not None


def _rgb(image: "Image.Image", name: str) -> "Image.Image":
    from PIL import Image, ImageOps

    if min(image.size) == 0:
        raise ImageError(f"{name}: has no pixels")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ImageError(f"{name}: has floating-point pixels of unknown range; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16 bits, which Pillow may widen to 32
        import numpy as np

        image = _from_array(np.asarray(image).clip(0, 65535).astype(np.uint16), name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: Any, name: str) -> "Image.Image":
    import numpy as np
    from PIL import Image

    array = np.asarray(array)
    if array.dtype == np.uint16:
        array = (array // 257).astype(np.uint8)
    if array.dtype != np.uint8:
        raise ImageError(f"{name}: an array must be uint8 (0..255) or uint16, not {array.dtype}")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (2, 3, 4))):
        raise ImageError(f"{name}: an array must be [height, width] or [height, width, 1..4], not {list(array.shape)}")
    return _rgb(Image.fromarray(np.ascontiguousarray(array)), name)
