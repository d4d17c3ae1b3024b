"""Images of any kind, opened safely, as 8-bit RGB.

Pillow reads the files. If simplejpeg is installed, it decodes ordinary JPEG files, with the same pixels in half the time.
Images are converted as a viewer shows them: upright, on white where they are transparent, the first frame of an animation.
"""

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Union

from .decoding import BLOCK, blocks, memory
from .errors import ImageError, one_line
from .extras import is_installed
from .files import open_file, reason
from .image_formats import FORMATS, heic_requirement, is_heic, prepare_pillow
from .kinds import HEAD, describe

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_BYTES = 256 * 2**20
MAX_PIXELS = 178_956_970  # Pillow's own limit: half a gibibyte of RGB
MAX_MEMORY = 600 * 2**20  # bytes for decoding an image, so that a process needs less than 1 GB
# Reads of a file by Pillow's readers, in all and for each byte. They read each part of a file, such as a chunk or comment, by
# itself, so that millions of empty parts take many seconds.
READS, READS_PER_BYTE = 10_000, 1 / 256
REDUCTIONS = (1, 2, 4, 8)  # of each side, in which a JPEG file can be decoded
ORIENTATION = 0x0112  # EXIF's tag
AVIF_EXIF = re.compile(rb"(infe\x02.{7})Exif", re.DOTALL)  # the entry of the EXIF block, up to its type
# Entries of `Image.info` that can hold an orientation.
METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


class Readable(Protocol):
    """An object whose `read` returns an image file's bytes, such as a `vgg.sources.Sample` or an open file."""

    def read(self) -> bytes: ...


ImageLike = Union[str, Path, bytes, Readable, "Image.Image", "np.ndarray[Any, Any]"]


def open_image(source: ImageLike, name: str | None = None) -> "Image.Image":
    """An 8-bit RGB image, upright; a PIL image that is both is returned as it is.

    Args:
        source: a path; the bytes of a file, or an object to `read()` them from; a PIL image; or an array, uint8 (0..255) or
            uint16 (0..65535), [height, width] or [height, width, channels] with 1 (grey), 2 (grey, alpha), 3 (RGB) or
            4 (RGBA) channels.
        name: the image's name in an error; the path by default.

    Raises:
        ImageError: the image is missing, empty, truncated, not an image, or too large: it exceeds 256 MiB, 179 million pixels,
            or 600 MiB of memory while it is decoded. A JPEG file that would exceed them is decoded at a half to an eighth of
            its size.
    """
    from PIL import Image

    if isinstance(source, Image.Image):
        with _reported(name or "the image"):
            return _rgb(source, name or "the image")
    if isinstance(source, str | Path):
        name, source = name or str(source), _read(source)
    elif hasattr(source, "read"):
        source = source.read()
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = name or "the image's bytes", bytes(source)
        with _reported(name, data):
            image, reduction, fast = _opened(data, name)[:3]
            if reduction > 1:
                image.draft(None, (image.width // reduction, image.height // reduction))
            return _rgb((_fast_jpeg(image, data) if fast else None) or image, name)
    return _from_array(source, name or "the array")


def decoding_bytes(data: bytes) -> int:
    """An upper bound of the memory in bytes that `open_image` takes for an image's file, beside the file.

    Only the header is read. Raises ImageError where `open_image` does for a damaged header and for large images.
    """
    with _reported("the image's bytes"):
        return _opened(data, "the image's bytes")[3]


def _read(path: str | Path) -> bytes:
    try:
        with open_file(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise ImageError(f"{path}: is {size / 2**20:.0f} MiB; the limit for images is {MAX_BYTES // 2**20} MiB")
            return file.read(size)
    except OSError as error:
        raise ImageError(f"{path}: {reason(error)}") from None


class _Source(io.BytesIO):
    """The bytes of a file, which may be read a limited number of times."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data)
        self.left, self._name = READS + int(len(data) * READS_PER_BYTE), name

    def read(self, size: int | None = -1) -> bytes:
        self.left -= 1
        if self.left < 0:
            raise ImageError(f"{self._name}: has too many small parts, such as chunks, comments or padding")
        return super().read(size)


def _opened(data: bytes, name: str) -> tuple["Image.Image", int, bool, int]:
    """An image whose header was read, the reduction of its sides, whether simplejpeg may decode it, and the memory it takes."""
    from PIL import Image

    if not data:
        raise ImageError(f"{name}: is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: is {len(data) / 2**20:.0f} MiB; the limit for images is {MAX_BYTES // 2**20} MiB")
    prepare_pillow()
    if is_heic(data) and (missing := heic_requirement()):
        raise ImageError(f"{name}: {missing}")
    source = _Source(data, name)
    formats = [one for one in FORMATS if one in Image.OPEN]
    try:
        image = Image.open(source, formats=formats)
    except ValueError:  # of AVIF's reader, for any EXIF block that is invalid
        source = _Source(AVIF_EXIF.sub(rb"\1free", data), name)
        image = Image.open(source, formats=formats)
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise Image.DecompressionBombError
    if image.format == "PPM":
        source.left += len(data)  # numbers that are not bytes are read one by one
    elif image.tile and image.tile[0][0] == "bmp_rle":
        source.left += min(len(data), 3 * (pixels + image.height))  # as are runs, of two or three reads
    if image.format == "PNG":  # the orientation may follow the pixels
        turned = any(word in data for word in (b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp"))
    else:
        turned = _orientation(image) is not None
    working, stored = memory(image, data, turned=turned)
    fast = image.format == "JPEG" and image.mode in ("RGB", "L") and _has_simplejpeg()
    if fast and working + stored + 3 * pixels <= MAX_MEMORY:  # it returns an array
        return image, 1, True, working + stored + 3 * pixels
    for reduction in REDUCTIONS if image.format in ("JPEG", "MPO") else (1,):
        needed = working + stored // reduction**2
        if needed <= MAX_MEMORY:
            return image, reduction, False, needed
    raise ImageError(
        f"{name}: {image.width}x{image.height} pixels, which take {needed / 2**20:,.0f} MiB to decode; "
        f"the limit is {MAX_MEMORY // 2**20} MiB; resize it first"
    )


@contextmanager
def _reported(name: str, data: bytes = b"") -> Iterator[None]:
    """Raise an ImageError for anything that fails in an image, whose file's bytes may be given."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except UnidentifiedImageError:
        what = describe(name, data[:HEAD], "image") if data else None
        raise ImageError(f"{name}: {what or 'not an image, or an unsupported format'}") from None
    except Image.DecompressionBombError:
        raise ImageError(f"{name}: has more than {MAX_PIXELS:,} pixels; resize it first") from None
    except MemoryError:
        raise ImageError(f"{name}: not enough memory to decode it") from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything for a damaged file
        raise ImageError(f"{name}: is damaged or truncated ({one_line(error)})") from None


def _fast_jpeg(image: "Image.Image", data: bytes) -> "Image.Image | None":
    """An opened JPEG file decoded by simplejpeg; None if the file needs Pillow.

    Both use libjpeg-turbo with the accurate transform and smooth upsampling, so the pixels are equal. Decoding at a reduced
    scale would be faster, but differs by more than any preset's tolerance.
    """
    import simplejpeg
    from PIL import Image

    try:
        fast = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True))
    except ValueError:  # damaged or unusual: left to Pillow
        return None
    fast.info = image.info  # with the orientation
    return fast


@cache
def _has_simplejpeg() -> bool:
    return is_installed("simplejpeg")


def _rgb(image: "Image.Image", name: str) -> "Image.Image":
    if min(image.size) == 0:
        raise ImageError(f"{name}: has no pixels")
    image.load()
    turn = _orientation(image)
    if image.mode == "F":
        raise ImageError(f"{name}: has floating-point pixels of unknown range; convert it to 8 or 16 bits")
    if image.mode == "I":
        low, high = image.getextrema()
        if low < 0 or high > 65535:  # type: ignore[operator]
            raise ImageError(f"{name}: has integer pixels outside of 0..65535; convert it to 8 or 16 bits")
    if image.mode != "RGB" or image.has_transparency_data:
        image = _converted(image) if image.width * image.height <= BLOCK else _by_blocks(image)
        image.info = {}
    if turn is not None:
        image = image.transpose(turn)
        image.info = {key: value for key, value in image.info.items() if key not in METADATA}
    return image


def _by_blocks(image: "Image.Image") -> "Image.Image":
    """`_converted`, a block at a time, since a conversion makes several copies."""
    from PIL import Image

    converted = Image.new("RGB", image.size)
    for box in blocks(*image.size):
        converted.paste(_converted(image.crop(box)), box)
    return converted


def _converted(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow may widen to 32
        import numpy as np

        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _orientation(image: "Image.Image") -> "Image.Transpose | None":
    """How to turn an image so that it is upright; None if it is, or if its EXIF block is damaged."""
    from PIL.Image import Transpose

    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow's reader raises nearly anything
        return None
    turns = {
        2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
    }  # fmt: skip
    return turns.get(orientation)  # type: ignore[arg-type]


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
