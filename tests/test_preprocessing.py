"""Each preset is held to the code of its origin, retold here step by step."""

import tracemalloc

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import EXAMPLES
from vgg import Error, ImageError, Preprocessing, preprocess
from vgg.preprocessing import IMAGENET_MEAN, IMAGENET_STD, PRESETS

PHOTOS = {path.stem: Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.*g"))}
PHOTOS["tall"] = PHOTOS["coffee"].crop((100, 0, 301, 400))
PHOTOS["small"] = PHOTOS["rocket"].resize((90, 131))
PHOTOS["mixed"] = PHOTOS["rocket"].crop((0, 0, 300, 199))
PHOTOS["exact"] = PHOTOS["coffee"].crop((0, 0, 256, 256))

every_photo = pytest.mark.parametrize("photo", PHOTOS.values(), ids=PHOTOS)


def short_side(image, whole, product_first):
    width, height = image.size
    short, long = sorted((width, height))
    length = whole(256 * long / short) if product_first else whole(256 / short * long)
    return image.resize((256, length) if width <= height else (length, 256), Image.Resampling.BILINEAR)


def test_there_are_seven_presets():
    assert set(PRESETS) == {"torchvision", "zoo", "gluon", "zoo-squash", "onnxrt", "caffe", "mms"}


@every_photo
def test_torchvision(photo):
    # torchvision/transforms/functional.py: resize by int(size * long / short), center_crop by int(round((h - 224) / 2.0)),
    # then ImageClassification: pil_to_tensor, convert_image_dtype(float), normalize.
    image = short_side(photo, int, True)
    left, top = (round((side - 224) / 2.0) for side in image.size)
    cropped = np.asarray(image.crop((left, top, left + 224, top + 224)))
    tensor = torch.from_numpy(cropped.copy()).permute(2, 0, 1).to(torch.float32) / 255
    expected = (tensor - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    assert np.array_equal(PRESETS["torchvision"].place(photo), cropped)
    np.testing.assert_allclose(preprocess(photo)[0], expected.numpy(), atol=1e-6)


@every_photo
def test_zoo(photo):
    # onnx/models imagenet_preprocess.py: the long side rounded, the crop's start w // 2 - 112, arithmetic in float64.
    image = np.array(short_side(photo, round, False))
    top, left = (side // 2 - 224 // 2 for side in image.shape[:2])
    cropped = image[top : top + 224, left : left + 224]
    expected = (cropped.transpose(2, 0, 1) / 255 - np.array(IMAGENET_MEAN)[:, None, None]) / np.array(IMAGENET_STD)[
        :, None, None
    ]
    assert np.array_equal(PRESETS["zoo"].place(photo), cropped)
    np.testing.assert_allclose(PRESETS["zoo"](photo), expected, atol=1e-6)


@every_photo
def test_gluon(photo):
    # MXNet's transforms.Resize(256, keep_ratio=True) is cv2.resize on bytes, the long side truncated (src/operator/image/
    # resize-inl.h). MXNet 1.9.1 itself gives the same within one level, where the rest of the crop is even.
    width, height = photo.size
    size = tuple(int(side * 256 / min(photo.size)) for side in (width, height))
    left, top = (round((side - 224) / 2) for side in size)
    resized = cv2.resize(np.asarray(photo), size, interpolation=cv2.INTER_LINEAR)
    difference = np.abs(PRESETS["gluon"].place(photo) - resized[top : top + 224, left : left + 224].astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.15


@every_photo
def test_zoo_squash(photo):
    # MXNet's transforms.Resize(256) is cv2.resize to 256x256 on bytes. OpenCV rounds its weights to 11 bits, which may
    # move a value by one level.
    expected = cv2.resize(np.asarray(photo), (256, 256), interpolation=cv2.INTER_LINEAR)[16:240, 16:240].astype(int)
    difference = np.abs(PRESETS["zoo-squash"].place(photo) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.15


@every_photo
def test_onnxrt(photo):
    # onnx/models onnxrt_inference.ipynb: floats are resized, so nothing is rounded.
    image = cv2.resize(np.asarray(photo) / 255.0, (256, 256))[16:240, 16:240]
    expected = ((image - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(PRESETS["onnxrt"](photo), expected, atol=1e-4)


@every_photo
def test_caffe(photo):
    # Short side 256, centre crop, planes blue, green, red, minus the means; keras/src/applications/imagenet_utils.py.
    cropped = PRESETS["zoo"].place(photo)
    expected = cropped[..., ::-1].astype(np.float32) - np.array([103.939, 116.779, 123.68], np.float32)
    np.testing.assert_allclose(PRESETS["caffe"](photo), expected.transpose(2, 0, 1), atol=1e-5)


@every_photo
def test_mms(photo):
    # Multi Model Server, utils/mxnet/image.py: imresize(…, interp=2), OpenCV's INTER_AREA, and no arithmetic at all.
    expected = cv2.resize(np.asarray(photo), (224, 224), interpolation=cv2.INTER_AREA).transpose(2, 0, 1)
    assert np.abs(PRESETS["mms"](photo) - expected).max() <= 1


def test_the_result_is_what_a_network_takes():
    batch = preprocess(EXAMPLES / "chelsea.png", "caffe")
    assert (batch.shape, batch.dtype, batch.flags.c_contiguous) == ((1, 3, 224, 224), np.float32, True)


@settings(max_examples=40)
@given(st.integers(1, 700), st.integers(1, 700), st.sampled_from(sorted(PRESETS)), st.integers(0, 255))
def test_a_plain_picture_of_any_size_stays_plain(width, height, name, level):
    value = PRESETS[name](np.full((height, width, 3), level, np.uint8))
    assert value.shape == (3, 224, 224)
    planes = value.reshape(3, -1)
    np.testing.assert_allclose(planes, np.repeat(planes[:, :1], planes.shape[1], 1), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 60_000, 3), (60_000, 1, 3)])
@pytest.mark.parametrize("name", PRESETS)
def test_a_hair_of_a_picture_costs_no_memory(shape, name):
    assert PRESETS[name](np.full(shape, 9, np.uint8)).shape == (3, 224, 224)


def test_cropping_alone_takes_the_middle_and_needs_enough_pixels():
    only_crop = Preprocessing("crop", resize="none")
    pixels = np.random.default_rng(0).integers(0, 256, (227, 230, 3), np.uint8)
    assert np.array_equal(only_crop.place(Image.fromarray(pixels)), pixels[1:225, 3:227])
    with pytest.raises(ImageError, match="200x227 pixels are smaller than the crop of 224"):
        only_crop(np.zeros((227, 200, 3), np.uint8))


@pytest.mark.parametrize(
    "options",
    [{"size": 100}, {"crop": 0}, {"crop": 20_000, "size": 20_000}, {"std": (1, 1, 0)}, {"resize": "long"}, {"channels": "GBR"}],
)
def test_impossible_recipes_are_refused(options):
    with pytest.raises(Error, match="invalid preprocessing"):
        Preprocessing("mine", **options)


def test_an_unknown_preset_is_named():
    with pytest.raises(Error, match="unknown preset 'tv'; choose from torchvision"):
        preprocess(EXAMPLES / "chelsea.png", "tv")


@pytest.mark.parametrize("size", [(1_000_000, 2), (2, 1_000_000), (3000, 3000)])
@pytest.mark.parametrize("name", PRESETS)
def test_memory_does_not_grow_with_the_image(name, size):
    image = Image.new("RGB", size)
    tracemalloc.start()
    try:
        PRESETS[name](image)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["zoo-squash", "onnxrt", "mms"])
@pytest.mark.parametrize("size", [(301, 457), (457, 301), (90, 700), (700, 90)])
def test_an_image_that_is_read_by_blocks_gives_the_same_input(monkeypatch, name, size):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8))
    whole = PRESETS[name](image)
    for module in ("decoding", "preprocessing"):
        monkeypatch.setattr(f"vgg.{module}.BLOCK", 2**10)
    monkeypatch.setattr("vgg.preprocessing.MEANS", 2**12)
    np.testing.assert_allclose(PRESETS[name](image), whole, atol=1e-6)
