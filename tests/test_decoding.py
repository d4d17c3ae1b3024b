"""Memory for decoding images: estimated from the header, never exceeded, and limited."""

import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image

from vgg import ImageError
from vgg.image_formats import prepare_pillow
from vgg.images import MAX_MEMORY, decoding_bytes, open_image

WIDTH, HEIGHT = 2800, 2000
OVERHEAD = 8 * 2**20  # bytes: libraries that are loaded, and buffers
MEASURE = """
import os, re, sys, warnings
from vgg.images import open_image
from vgg.image_formats import prepare_pillow
warnings.simplefilter("ignore")
import numpy, simplejpeg
prepare_pillow()

def kilobytes(field):
    return int(re.search(field + r":\\s+(\\d+)", open("/proc/self/status").read())[1])

for path in sys.argv[1:]:
    sys.stdout.flush()
    if not os.fork():
        data = open(path, "rb").read()
        before = kilobytes("VmRSS")
        try:
            open_image(data)
        except Exception as error:
            print(error, file=sys.stderr)
        print((kilobytes("VmHWM") - before) * 1024)
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, colours: int, *, depth: int = 8, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG file of zeros, made a row at a time."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colours]
    packer, row = zlib.compressobj(1), bytes(1 + (width * samples * depth + 7) // 8)
    pixels = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colours, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + after + chunk(b"IEND", b"")


def files() -> dict[str, bytes]:
    """Large images of each format and mode."""
    rgb = Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
    rgba = rgb.copy()
    rgba.putalpha(Image.radial_gradient("L").resize(rgb.size))
    turn = Image.Exif()
    turn[0x0112] = 6
    sixteen = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint16))
    one_strip = {"compression": "tiff_adobe_deflate", "strip_size": 2**31 - 1}
    kinds = {
        "png-grey": png(WIDTH, HEIGHT, 0), "png-16": png(WIDTH, HEIGHT, 0, depth=16), "png-1": png(WIDTH, HEIGHT, 0, depth=1),
        "png-rgb": png(WIDTH, HEIGHT, 2), "png-rgb-16": png(WIDTH, HEIGHT, 2, depth=16), "png-la": png(WIDTH, HEIGHT, 4),
        "png-rgba": png(WIDTH, HEIGHT, 6), "png-rgba-16": png(WIDTH, HEIGHT, 6, depth=16),
        "png-key": png(WIDTH, HEIGHT, 2, before=chunk(b"tRNS", bytes(6))),
        "png-palette": png(WIDTH, HEIGHT, 3, before=chunk(b"PLTE", bytes(6)) + chunk(b"tRNS", b"\0")),
        "png-turned": png(WIDTH, HEIGHT, 6, after=chunk(b"eXIf", turn.tobytes()[6:])),
        "jpeg": saved(rgb, "JPEG"), "jpeg-grey": saved(rgb.convert("L"), "JPEG"), "jpeg-turned": saved(rgb, "JPEG", exif=turn),
        "jpeg-444": saved(rgb, "JPEG", progressive=True, subsampling=0), "jpeg-420": saved(rgb, "JPEG", progressive=True),
        "jpeg-cmyk": saved(rgb.convert("CMYK"), "JPEG", progressive=True), "bmp": saved(rgb, "BMP"), "tga": saved(rgb, "TGA"),
        "mpo": saved(rgb, "MPO", save_all=True, append_images=[rgb.resize((40, 30))]), "tga-rle": saved(rgba, "TGA", rle=True),
        "ppm": saved(rgb, "PPM"), "pgm-16": saved(sixteen, "PPM"), "gif": saved(rgb.quantize(8), "GIF"),
        "gif-frames": saved(rgb.quantize(8), "GIF", save_all=True, append_images=[rgb.quantize(4)]),
        "ppm-plain": b"P3 1000 1000 1000\n" + b"7 " * 3_000_000, "pgm-1000": b"P5 2000 1000 1000\n" + bytes(4_000_000),
        "webp": saved(rgb, "WEBP", method=0), "webp-lossless": saved(rgba, "WEBP", lossless=True, quality=0, method=0),
        "webp-alpha": saved(rgba, "WEBP", method=0, quality=10), "tiff": saved(rgb, "TIFF"),
        "tiff-strip": saved(rgb, "TIFF", **one_strip), "tiff-alpha": saved(rgba, "TIFF", **one_strip, exif=turn),
        "tiff-jpeg": saved(rgb, "TIFF", compression="jpeg", strip_size=2**31 - 1), "tiff-16": saved(sixteen, "TIFF"),
        "jp2": saved(rgb.resize((1800, 1300)), "JPEG2000"), "jp2-tiles": saved(rgba, "JPEG2000", tile_size=(512, 512)),
        "jp2-blocks": saved(rgb.resize((800, 600)), "JPEG2000", codeblock_size=(4, 4)),
        "jp2-grey": saved(rgb.convert("L"), "JPEG2000"),
    }  # fmt: skip
    if "AVIF" in Image.SAVE:
        kinds["avif"] = saved(rgb.resize((2000, 1500)), "AVIF", speed=10, subsampling="4:4:4")
        kinds["avif-alpha"] = saved(rgba.resize((2000, 1500)), "AVIF", speed=10)
    kinds |= heif_files()
    return kinds


def heif_files() -> dict[str, bytes]:
    """In the forms of phones (tiles, turned), and in those that take most memory."""
    import pillow_heif

    prepare_pillow()
    rgb = Image.linear_gradient("L").resize((1000, 750)).convert("RGB")
    rgba = rgb.copy()
    rgba.putalpha(Image.radial_gradient("L").resize(rgb.size))
    turn = Image.Exif()
    turn[0x0112] = 6
    exif = turn.tobytes()
    kinds = {
        "heif": saved(rgb, "HEIF"), "heif-alpha": saved(rgba, "HEIF", chroma=444, exif=exif),
        "heif-grey": saved(rgb.convert("L"), "HEIF"),
    }  # fmt: skip
    options = pillow_heif.options
    options.GRID_TILE_SIZE, options.SAVE_HDR_TO_12_BIT = 512, True
    try:
        kinds["heif-tiles"] = saved(rgb, "HEIF", exif=exif)
        deep = (np.asarray(rgba).astype(np.uint16) * 257).tobytes()
        file = io.BytesIO()
        options.GRID_TILE_SIZE = 0
        pillow_heif.from_bytes("RGBA;16", rgba.size, deep).save(file, chroma=444, exif=exif)
        kinds["heif-12"] = file.getvalue()
        file = io.BytesIO()
        pillow_heif.from_bytes("RGBA;16", rgba.size, deep).save(file, chroma=422)
        kinds["heif-422"] = file.getvalue()
    finally:
        options.GRID_TILE_SIZE, options.SAVE_HDR_TO_12_BIT = 0, False
    return kinds


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_decoding_takes_no_more_memory_than_its_estimate(tmp_path):
    found = files()
    for name, data in found.items():
        (tmp_path / name).write_bytes(data)
    paths = [tmp_path / name for name in found]
    run = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    peaks = dict(zip(found, map(int, run.stdout.split()), strict=True))
    estimates = {name: decoding_bytes(data) for name, data in found.items()}
    table = {name: (peak, estimates[name]) for name, peak in peaks.items()}
    assert not {name: pair for name, pair in table.items() if pair[0] > pair[1] + OVERHEAD}
    # An estimate that is far too high would refuse good images.
    assert not {name: pair for name, pair in table.items() if pair[1] > 3 * pair[0] + OVERHEAD}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    "data",
    [
        png(12_000, 12_000, 6),
        png(90_000_000, 1, 6),
        png(11_000, 10_000, 2, after=chunk(b"eXIf", b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0")),
        saved(Image.new("RGB", (6600, 6600)), "WEBP", method=0),
    ],
)
def test_an_image_that_would_take_too_much_memory_is_refused_before_it_is_decoded(data):
    for refuse in (open_image, decoding_bytes):
        with pytest.raises(ImageError, match=r"[0-9]+x[0-9]+ pixels, which take [0-9,]+ MiB to decode; the limit is 600 MiB"):
            refuse(data)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_large_jpeg_is_decoded_at_a_reduced_size():
    image = Image.linear_gradient("L").resize((9000, 9000)).convert("RGB")
    data = saved(image, "JPEG", progressive=True, subsampling=0, quality=40)
    assert decoding_bytes(data) <= MAX_MEMORY
    opened = open_image(data)
    assert opened.size == (4500, 4500)
    expected = image.resize((64, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(opened.resize((64, 64), Image.Resampling.BOX), float) - np.asarray(expected, float)).max() < 2


@pytest.mark.parametrize("size", [1000, 60])
def test_blocks_give_the_same_pixels(monkeypatch, size):
    rng = np.random.default_rng(0)
    rgba = Image.fromarray(rng.integers(0, 255, (131, 97, 4), np.uint8), "RGBA")
    turn = Image.Exif()
    turn[0x0112] = 6
    sixteen = Image.fromarray(rng.integers(0, 65535, (131, 97), np.uint16))
    palette = saved(rgba.convert("RGB").quantize(16), "PNG", transparency=3)
    contents = [saved(rgba, "PNG"), saved(rgba.convert("LA"), "PNG", exif=turn), saved(sixteen, "PNG"), palette]
    contents += [saved(rgba.convert("CMYK"), "TIFF"), saved(rgba.convert("1"), "PNG"), saved(rgba, "WEBP", lossless=True)]
    whole = [np.asarray(open_image(data)) for data in contents]
    for module in ("images", "decoding"):
        monkeypatch.setattr(f"vgg.{module}.BLOCK", size)
    for data, expected in zip(contents, whole, strict=True):
        assert np.array_equal(open_image(data), expected)


def test_the_type_is_known_before_anything_is_decoded():
    """An icon's image is decoded when Pillow opens it, whatever its size."""
    with pytest.raises(ImageError, match="is an icon; convert it to JPEG or PNG"):
        open_image(saved(Image.new("RGB", (16, 16)), "ICO"))


@pytest.mark.parametrize("data", [b"", b"nothing", saved(Image.new("RGB", (16, 16)), "PNG")[:30]])
def test_the_estimate_refuses_what_is_no_image(data):
    with pytest.raises(ImageError):
        decoding_bytes(data)


def crowded(format: str, part: bytes, place: int, count: int) -> bytes:
    """A small image with many small parts at a place of its file."""
    data = saved(Image.new("P" if format == "GIF" else "RGB", (8, 8)), format)
    return data[:place] + part * count + data[place:]


@pytest.mark.parametrize(
    ("format", "part", "place"),
    [
        ("PNG", chunk(b"prIv", b""), 33),
        ("PNG", chunk(b"IDAT", b""), 33),
        ("JPEG", b"\xff\xfe\0\2", 2),
        ("JPEG", b"\xff", 2),
        ("GIF", b"\x21\xfe\1a\0", 13 + 3 * 2),
    ],
    ids=["chunks", "data chunks", "comments", "padding", "extensions"],
)
def test_an_image_of_millions_of_small_parts_is_refused_soon(format, part, place):
    data = crowded(format, part, place, 2**23 // len(part))
    started = time.process_time()
    with pytest.raises(ImageError, match="has too many small parts"):
        open_image(data)
    assert time.process_time() - started < 1  # 2 to 4 seconds without the limit
    assert open_image(crowded(format, part, place, 100)).size == (8, 8)
