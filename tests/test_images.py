import io
import os
import random
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import EXAMPLES
from vgg import Error, ImageError, Labels, Network
from vgg.image_formats import prepare_pillow
from vgg.images import open_image
from vgg.sources import Sample
from vgg.sources import open as open_dataset

prepare_pillow()  # HEIC is written as well
CAT = Image.open(EXAMPLES / "chelsea.png").convert("RGB")


def saved(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def far(one: Image.Image, other: Image.Image) -> float:
    """The mean difference of two images, in levels of 0..255."""
    return np.abs(np.asarray(one, float) - np.asarray(other, float)).mean()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM", "TGA"])
def test_lossless_formats_come_through_unchanged(format):
    assert np.array_equal(open_image(saved(CAT, format)), CAT)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "JPEG2000", "AVIF", "HEIF"])
def test_lossy_formats_come_through(format):
    assert far(open_image(saved(CAT, format, quality=90) if format != "JPEG2000" else saved(CAT, format)), CAT) < 4


def test_a_path_bytes_an_image_and_an_array_are_the_same(tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(saved(CAT, "PNG"))
    for source in (path, str(path), path.read_bytes(), Image.open(path), np.asarray(CAT)):
        image = open_image(source)
        assert image.mode == "RGB"
        assert np.array_equal(image, CAT)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_turned_as_its_exif_says(orientation):
    turned = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = CAT.transpose(turned[orientation]) if orientation in turned else CAT
    assert far(open_image(saved(stored, "JPEG", quality=95, exif=exif)), CAT) < 3


def test_cmyk_is_shown_in_its_colours():
    assert far(open_image(saved(CAT.convert("CMYK"), "JPEG", quality=95)), CAT) < 4


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_cut(format):
    grey = CAT.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert far(open_image(saved(deep, format)), grey.convert("RGB")) == 0


def test_grey_palette_and_one_bit_become_rgb():
    grey = CAT.convert("L")
    assert far(open_image(saved(grey, "PNG")), grey.convert("RGB")) == 0
    palette = CAT.quantize(64)
    assert far(open_image(saved(palette, "PNG")), palette.convert("RGB")) == 0
    bits = CAT.convert("1")
    assert far(open_image(saved(bits, "PNG")), bits.convert("RGB")) == 0


def test_bmp_files_with_run_lengths_are_read():
    width, height = 200, 300
    grey = np.arange(width * height, dtype=np.uint32).reshape(height, width) // 2 % 256
    rows = b"".join(bytes(byte for value in row[::2] for byte in (2, value)) + b"\0\0" for row in grey[::-1]) + b"\0\1"
    palette = bytes(byte for value in range(256) for byte in (value, value, value, 0))
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0)
    start = 14 + len(header + palette)
    data = struct.pack("<2sIHHI", b"BM", start + len(rows), 0, 0, start) + header + palette + rows
    assert far(open_image(data), Image.fromarray(grey.astype(np.uint8)).convert("RGB")) == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode):
    image = Image.new("RGBA", (40, 30), (255, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 30))
    if mode == "P":
        palette = Image.new("P", (40, 30), 1)
        palette.putpalette([0, 0, 0, 255, 0, 0])
        palette.paste(0, (0, 0, 20, 30))
        data = saved(palette, "PNG", transparency=1)
    else:
        data = saved(image.convert(mode), "PNG")
    opened = open_image(data)
    assert opened.getpixel((5, 5)) == (0, 0, 0)
    assert opened.getpixel((35, 5)) == (255, 255, 255)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG", "AVIF", "MPO", "HEIF"])
def test_a_moving_picture_gives_its_first_frame(format):
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    opened = open_image(saved(frames[0], format, save_all=True, append_images=frames[1:]))
    assert far(opened, frames[0]) < 3


@pytest.mark.parametrize("shape", [(8, 9), (8, 9, 1), (8, 9, 2), (8, 9, 3), (8, 9, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_arrays_of_the_documented_shapes_are_pictures(shape, dtype):
    image = open_image(np.full(shape, np.iinfo(dtype).max, dtype)[::-1])
    assert (image.mode, image.size) == ("RGB", (9, 8))
    assert image.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("array", [np.zeros((8, 9), np.float32), np.zeros((3, 8, 9), np.uint8), np.zeros((0, 4, 3), np.uint8)])
def test_other_arrays_are_refused(array):
    with pytest.raises(ImageError, match="an array must be"):
        open_image(array)


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size, with no pixels to speak of."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"hello, this is no picture", "not an image, or an unsupported format"),
        (saved(CAT, "JPEG")[:5000], "is damaged or truncated"),
        (saved(CAT, "PNG")[:5000], "is damaged or truncated"),
        (png_of(15_000, 15_000), "has more than 178,956,970 pixels"),
        (png_of(60_000, 60_000), "has more than 178,956,970 pixels"),
        (saved(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "has floating-point pixels"),
        (saved(Image.fromarray(np.full((4, 4), -1000, np.int32)), "TIFF"), "has integer pixels outside of 0..65535"),
        (saved(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF"), "has integer pixels outside of 0..65535"),
    ],
)
def test_what_cannot_be_shown_is_one_line_with_the_files_name(tmp_path, content, why):
    path = tmp_path / "broken.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageError) as error:
        open_image(path)
    assert str(error.value).startswith(f"{path}: {why}")
    assert "\n" not in str(error.value)


def damaged_exif() -> list[bytes]:
    """EXIF blocks that Pillow's reader fails at in each of its ways."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a maker"
    whole = exif.tobytes()
    rng = random.Random(0)
    blocks = [whole[:10], whole[:6] + b"XX*\0" + whole[10:], whole[:6] + b"II*\0\xff\xff\xff\xff", b"Exif\0\0" + b"\xff" * 50]
    for _ in range(60):
        block = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            block[rng.randrange(6, len(block))] = rng.choice((0, 1, 0x80, 0xFF))
        blocks.append(bytes(block[: rng.randint(8, len(block))]))
    return blocks


@pytest.mark.parametrize("brand", [b"heic", b"mif1"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_heic_is_turned_once(orientation, brand):
    exif = Image.Exif()
    exif[0x0112] = orientation
    small = CAT.resize((60, 40))
    content = saved(small, "HEIF", quality=95, exif=exif.tobytes())  # pillow-heif writes HEIF's own boxes as well
    content = content[:8] + brand + content[12:]
    expected = open_image(saved(small, "PNG", exif=exif))
    opened = open_image(content)
    assert opened.size == expected.size
    assert far(opened, expected) < 3
    assert np.array_equal(open_image(opened), opened)
    assert np.array_equal(open_image(Image.open(io.BytesIO(content))), opened)


def test_an_avif_image_with_an_invalid_exif_block_is_read():
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "a maker"})
    content = saved(CAT.resize((60, 40)), "AVIF", exif=exif)
    broken = content.replace(b"MM\0*", b"XX\0*").replace(b"II*\0", b"XX*\0")
    assert broken != content
    with pytest.raises(ValueError, match="Invalid Exif payload"):
        Image.open(io.BytesIO(broken))
    assert np.array_equal(open_image(broken), open_image(content))  # which has AVIF's own box as well


def test_libraries_print_nothing_about_damaged_images(tmp_path):
    """libtiff would print a line for each damaged row."""
    bits = CAT.convert("1")
    for number, compression in enumerate(("group3", "group4", "tiff_lzw", "tiff_adobe_deflate", "jpeg")):
        content = bytearray(saved(bits if "group" in compression else CAT, "TIFF", compression=compression))
        for place in range(300, len(content) - 400, 50):
            content[place] ^= 0x5A
        (tmp_path / f"{number}.tif").write_bytes(content)
    deep = saved(CAT, "TIFF").replace(struct.pack("<HHII", 277, 3, 1, 3), struct.pack("<HHII", 277, 3, 1, 65535))
    (tmp_path / "samples.tif").write_bytes(deep)  # of which Pillow's own log would say something
    command = [sys.executable, "-m", "vgg", "classify", str(tmp_path), "--format", "csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stderr.splitlines()
    assert 3 <= len(lines) <= 6
    assert all(line.startswith(f"vgg: {tmp_path}/") and line.count(str(tmp_path)) == 1 for line in lines)
    assert len({line.split(":")[1] for line in lines}) == len(lines)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_damaged_exif_block_only_costs_the_orientation(format):
    small = CAT.resize((60, 40))
    plain = sorted(small.size)
    for block in damaged_exif():
        opened = open_image(saved(small, format, exif=block))
        assert sorted(opened.size) == plain
        assert sorted(open_image(opened).size) == plain  # a second conversion, as by the server


def test_an_upright_image_is_not_turned_again():
    exif = Image.Exif()
    exif[0x0112] = 6
    for format in ("JPEG", "PNG", "TIFF", "WEBP"):
        opened = open_image(saved(CAT.resize((60, 40)), format, exif=exif))
        assert opened.size == (40, 60)
        assert np.array_equal(open_image(opened), opened)


def test_a_damaged_image_of_pillow_is_an_image_error():
    for data in (saved(CAT, "PNG")[:5000], saved(CAT, "JPEG")[:5000], saved(CAT, "WEBP")[:3000]):
        with pytest.raises(ImageError, match="is damaged or truncated"):
            open_image(Image.open(io.BytesIO(data)) if data[:4] != b"RIFF" else data, "cat")


def special_files(folder: Path) -> list[Path]:
    """A pipe, a socket and a device, whose reading would not end."""
    os.mkfifo(folder / "pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket.png"))
    (folder / "device.png").symlink_to("/dev/zero")
    return [folder / f"{name}.png" for name in ("pipe", "socket", "device")]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("index", range(3))
def test_a_pipe_socket_or_device_is_refused_at_once(tmp_path, index):
    path = special_files(tmp_path)[index]
    for refuse in (open_image, lambda path: Sample("x", 0, str(path)).read()):
        with pytest.raises(ImageError, match="is not a regular file"):
            refuse(path)
    for refuse in (Network.read, Labels.read, lambda path: open_dataset(str(path) + ".txt", 10)):
        if refuse not in (Network.read, Labels.read):
            path.rename(f"{path}.txt")
        with pytest.raises(Error, match="is not a regular file"):
            refuse(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(ImageError, match=r"nowhere\.png: file or folder not found"):
        open_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        open_image(tmp_path)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.png"
    with open(path, "wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ImageError, match="is 300 MiB; the limit for images is 256 MiB"):
        open_image(path)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "TGA", "JPEG2000", "AVIF", "HEIF"])
def test_mutated_files_give_a_picture_or_an_error_and_nothing_else(format):
    rng = random.Random(format)
    whole = saved(CAT.resize((60, 40)), format)
    for _ in range(60):
        broken = bytearray(whole)
        for _ in range(rng.randint(1, 12)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            assert open_image(bytes(broken[: rng.randint(1, len(broken))] if rng.random() < 0.3 else broken)).mode == "RGB"
        except ImageError as error:
            assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_simplejpeg_and_pillow_agree_on_every_pixel(monkeypatch, subsampling, orientation, mode):
    pytest.importorskip("simplejpeg")
    exif = Image.Exif()
    exif[0x0112] = orientation
    for options in ({}, {"progressive": True}, {"quality": 30}):
        content = saved(CAT.resize((331, 217)).convert(mode), "JPEG", subsampling=subsampling, exif=exif, **options)
        found = [_decoded(monkeypatch, content, fast) for fast in (True, False)]
        assert found[0].shape == ((331, 217, 3) if orientation == 6 else (217, 331, 3))
        assert np.array_equal(*found)


def test_with_simplejpeg_a_damaged_file_is_what_pillow_says_it_is(monkeypatch):
    pytest.importorskip("simplejpeg")
    errors = []
    for fast in (True, False):
        with pytest.raises(ImageError) as raised:
            _decoded(monkeypatch, saved(CAT, "JPEG")[:-2000], fast)
        errors.append(str(raised.value))
    assert errors[0] == errors[1]


def _decoded(monkeypatch, content, fast):
    monkeypatch.setattr("vgg.images._has_simplejpeg", lambda: fast)
    return np.asarray(open_image(content))
