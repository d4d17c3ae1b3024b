import tracemalloc
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import vgg
from conftest import EXAMPLES, needs_native, random_network
from reference import save_tiny
from vgg import Error, ImageError, ModelError, Preprocessing
from vgg.features import Descriptor, Features, extract, gather, write
from vgg.sources import find
from vgg.views import Views

PHOTOS = sorted(EXAMPLES.glob("*.*g"))
SMALL = Preprocessing("small", size=36, crop=32)
SCALES = (32, 40, 64)
WHOLE = pytest.param("native", marks=needs_native)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A small network's file, and the same in torch."""
    path = tmp_path_factory.mktemp("features") / "n.pth"
    return path, save_tiny(str(path))


def pixels(path, side):
    """An image with this short side as torchvision makes it, [1, 3, height, width]."""
    image = Image.open(path).convert("RGB")
    width, height = (int(side * length / min(image.size)) for length in image.size)
    array = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.float32) / 255
    return torch.from_numpy((array - SMALL.mean) / SMALL.std).permute(2, 0, 1)[None].float()


def appendix_b(module, path, side):
    """The paper's descriptor at one scale: fc6 and fc7 as convolutions, averaged over places and flip."""
    found = []
    with torch.inference_mode():
        whole = pixels(path, side)
        for view in (whole, whole.flip(3)):
            value = module.features(view)
            fc6, fc7 = module.classifier[0], module.classifier[3]
            value = functional.conv2d(value, fc6.weight.reshape(len(fc6.weight), value.shape[1], 1, 1), fc6.bias).relu()
            value = functional.conv2d(value, fc7.weight[:, :, None, None], fc7.bias).relu()
            found.append(value.mean((2, 3))[0].numpy())
    return np.mean(found, 0)


@pytest.mark.parametrize("engine", [WHOLE, "torch"])
def test_it_is_the_papers_descriptor(judged, engine):
    path, module = judged
    classifier = vgg.load(path, engine, preprocessing=SMALL)
    options = {"protocol": "dense", "sizes": SCALES, "flip": True}
    each = np.array([[appendix_b(module, photo, side) for side in SCALES] for photo in PHOTOS])
    np.testing.assert_allclose(classifier.features(PHOTOS, **options)["fc7"], each.mean(1), atol=1e-5)
    stacked = classifier.features(PHOTOS, "fc7", **options, stack=True, normalize=True)["fc7"]
    expected = each.reshape(len(PHOTOS), -1)
    assert stacked.dtype == np.float32
    np.testing.assert_allclose(stacked, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert np.linalg.norm(stacked, axis=1) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("engine", [WHOLE, "onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("head", ["fc", "average 2 batch-norm, 20 silu dropout, 30, classes relu", "none"])
def test_every_layer_of_a_crop(engine, head):
    network = random_network("vgg16", head=head, classes=0 if head == "none" else 7)
    classifier = vgg.load(replace(network, preprocessing=SMALL), engine)
    batch = np.stack([SMALL(photo) for photo in PHOTOS])
    names = classifier.network.architecture.values
    values = classifier.engine.run(batch, names)
    found = classifier.features(PHOTOS, names)
    assert list(found) == list(names)
    for name, value in values.items():
        expected = value if value.ndim == 2 else value.mean((2, 3))
        np.testing.assert_allclose(found[name], expected, atol=1e-5)
    kept = classifier.features(PHOTOS, ("conv5_3", names[-1]), maps=True)
    np.testing.assert_allclose(kept["conv5_3"], values["conv5_3"], atol=1e-6)
    np.testing.assert_allclose(kept[names[-1]], values[names[-1]], atol=1e-6)


@pytest.mark.parametrize("engine", [WHOLE, "torch", "onnxruntime"])
def test_a_backbone_describes_whole_images(engine):
    network = replace(random_network("vgg16-bn", head="none", classes=0, last="conv4_2"), preprocessing=SMALL)
    found = vgg.load(network, engine).features(PHOTOS[0], protocol="dense", sizes=SCALES, flip=True)["conv4_2"]
    judge, whole = vgg.engines.open(network, "torch"), [pixels(PHOTOS[0], side).numpy() for side in SCALES]
    views = [view for one in whole for view in (one, np.ascontiguousarray(one[..., ::-1]))]
    expected = [judge.run(view, ("conv4_2",))["conv4_2"].mean((2, 3)) for view in views]
    np.testing.assert_allclose(found, np.mean(expected, 0), atol=1e-5)


def test_without_a_layer_it_is_the_last_but_one():
    for head, layer in (
        ("fc", "fc7"), ("gap", "pool6"), ("max, 20 gelu, classes", "fc6"), ("classes sigmoid", "pool5"), ("none", "conv3_2"),
    ):  # fmt: skip
        options = {"classes": 0, "last": "conv3_2"} if head == "none" else {}
        classifier = vgg.load(replace(random_network(head=head, **options), preprocessing=SMALL))
        found = classifier.features(PHOTOS[0])
        assert list(found) == [layer]
        assert found[layer].shape == (1, classifier.network.architecture.shape(layer, 1, 32, 32)[1])


@needs_native
@pytest.mark.parametrize("protocol", ["center", "ten-crop", "dense", "multi-crop"])
def test_batches_do_not_change_the_features(protocol, tmp_path):
    classifier = vgg.load(replace(random_network(), preprocessing=SMALL), "native")
    (tmp_path / "broken.png").write_bytes(b"nothing")
    images = find([*PHOTOS, tmp_path / "broken.png", *reversed(PHOTOS)] * 3)
    descriptor = Descriptor(("fc7", "conv3_1"), Views(protocol, (40, 48), True), stack=True)
    one = list(extract(classifier, images, descriptor, batch_size=1, workers=1))
    many = list(extract(classifier, images, descriptor, batch_size=40, workers=3))
    assert [each.image for each in one] == [each.image for each in many] == [name for name, _ in images]
    for first, second in zip(one, many, strict=True):
        assert first.error == second.error
        assert bool(first.error) == first.image.endswith("broken.png")
        for layer, value in first.values.items():
            np.testing.assert_allclose(value, second.values[layer], atol=1e-5)


def test_pictures_are_drawn_as_they_are_needed():
    classifier = vgg.load(replace(random_network(), preprocessing=SMALL))
    drawn = 0

    def images():
        nonlocal drawn
        for index in range(1000):
            drawn += 1
            yield f"{index}", np.zeros((40, 40, 3), np.uint8)

    found = extract(classifier, images(), batch_size=4, workers=2)
    assert drawn == 0
    assert next(found).image == "0"
    assert drawn <= 20
    found.close()


def test_a_broken_picture_stops_features_but_not_extract(tmp_path):
    classifier = vgg.load(replace(random_network(), preprocessing=SMALL))
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"broken\.jpg: not an image"):
        classifier.features([PHOTOS[0], tmp_path / "broken.jpg"])
    good, bad = extract(classifier, find([PHOTOS[0], tmp_path / "broken.jpg"]))
    assert (good.error, bad.values) == (None, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "fc9"}, "vgg11 has no layer output 'fc9'; choose from conv1_1"),
        ({"stack": True}, "stacking requires two sizes or more"),
        ({"maps": True, "flip": True}, "feature maps require a single crop"),
        ({"maps": True, "protocol": "dense"}, "feature maps require a single crop"),
        ({"sizes": (16,)}, "size 16 is smaller than the network's crop of 32"),
        ({"protocol": "sparse"}, "unknown protocol 'sparse'"),
    ],
)
def test_what_does_not_fit_is_said(options, message):
    classifier = vgg.load(replace(random_network(), preprocessing=SMALL))
    with pytest.raises((Error, ModelError), match=message):
        classifier.features(PHOTOS, **options)


def test_engines_that_take_no_whole_pictures_say_so():
    classifier = vgg.load(replace(random_network(), preprocessing=SMALL), "onnxruntime")
    with pytest.raises(Error, match="onnxruntime takes only crops of the network's input size"):
        classifier.features(PHOTOS, protocol="dense")


def some(count, lengths):
    rng = np.random.default_rng(0)
    for index in range(count):
        if index % 7 == 3:
            yield Features(f"image {index}", {}, "is broken")
        else:
            yield Features(f"image {index}", {name: rng.random(length, np.float32) for name, length in lengths.items()})


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_files_hold_what_was_written(tmp_path, suffix):
    path, lengths = tmp_path / f"out.{suffix}", {"fc7": 16, "conv5_3": (4, 2, 2)}
    good = [one for one in some(700, lengths) if not one.error]
    assert write(some(700, lengths), path) == {"fc7": (600, 16), "conv5_3": (600, 4, 2, 2)}
    expected, names = gather(good), [one.image for one in good]
    if suffix == "npz":
        with zipfile.ZipFile(path) as archive:
            assert {entry.extract_version for entry in archive.infolist()} == {zipfile.ZIP64_VERSION}  # for more than 2 GiB
        with np.load(path) as found:
            assert found["names"].tolist() == names
            for layer, value in expected.items():
                assert found[layer].dtype == np.float32
                assert np.array_equal(found[layer], value)
    else:
        from pyarrow import parquet

        table = parquet.read_table(path)
        assert table["image"].to_pylist() == names
        for layer, value in expected.items():
            assert np.array_equal(np.stack(table[layer].to_numpy()), value.reshape(600, -1))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["npz", "parquet"])
def test_memory_does_not_grow_with_the_pictures(tmp_path, suffix):
    def peak(count):
        tracemalloc.start()
        write(some(count, {"fc7": 4096}), tmp_path / f"out.{suffix}")
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(10)  # which imports what is needed
    assert peak(4000) < peak(1000) + 2**20  # 49 MB more


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("out.csv", [], r"out\.csv: unsupported suffix; features are written to \.npz or \.parquet"),
        ("out.npz", [Features("a", {}, "is broken")], "out.npz: not written: none of the 1 images could be read"),
        ("out.parquet", [Features("a", {}, "is broken")], "not written: none of the 1 images could be read"),
        ("nowhere/out.npz", [], "can't be written: file or folder not found"),
    ],
)
def test_what_can_not_be_written_is_said_and_nothing_is_left(tmp_path, name, found, message):
    with pytest.raises(Error, match=message):
        write(found, tmp_path / name)
    assert list(tmp_path.iterdir()) == []
