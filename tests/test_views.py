from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from conftest import needs_native, random_network
from vgg import Error, ImageError, sources
from vgg.classifier import Classifier
from vgg.evaluation import evaluate
from vgg.predictions import softmax
from vgg.preprocessing import PRESETS
from vgg.views import LARGEST, MAX_ASPECT, PROTOCOLS, Views

SMALL = replace(PRESETS["torchvision"], size=40, crop=32)
AS_IS = replace(SMALL, resize="none")


def photo(width, height, seed=0):
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def looked(protocol, image, preprocessing=SMALL):
    return list(protocol.of(image, preprocessing, "photo"))


def test_the_papers_150_crops():
    protocol = Views("multi-crop", sizes=(40, 48, 64), flip=True)
    views = looked(protocol, photo(70, 50))
    assert len(views) == protocol.count == 150
    assert all(view.shape == (3, 32, 32) for _, view in views)
    assert sum(weight for weight, _ in views) == pytest.approx(1)
    # The second of each pair is the first, mirrored; the first is the top left corner, the last but one the bottom right.
    whole = replace(SMALL, size=40)
    pixels = whole.normalise(whole.cut(photo(70, 50), (0, 0, 56, 40)))
    assert np.array_equal(views[0][1], pixels[:, :32, :32])
    assert np.array_equal(views[1][1], pixels[:, :32, 31::-1])
    assert np.array_equal(views[48][1], pixels[:, -32:, -32:])
    assert np.array_equal(views[24][1], pixels[:, 4:36, 12:44])


def test_ten_crops_are_corners_and_centre_each_mirrored():
    views = [view for _, view in looked(Views("ten-crop"), photo(60, 40))]
    assert len(views) == 10
    assert np.array_equal(views[8], SMALL(photo(60, 40)))
    assert np.array_equal(views[9], views[8][..., ::-1])
    pixels = SMALL.normalise(SMALL.cut(photo(60, 40), (0, 0, 60, 40)))
    corners = [pixels[:, y, x] for y in (slice(0, 32), slice(8, 40)) for x in (slice(0, 32), slice(28, 60))]
    assert all(np.array_equal(view, corner) for view, corner in zip(views[::2], corners, strict=False))


@pytest.mark.parametrize("preset", PRESETS)
def test_one_crop_of_many_is_the_centre_crop_with_every_preset(preset):
    recipe = replace(PRESETS[preset], crop=32, size=32 if preset == "mms" else 40)
    for size in ((70, 45), (31, 200), (40, 40)):
        [(weight, view)] = looked(Views("multi-crop", grid=1), photo(*size), recipe)
        assert weight == 1
        assert np.array_equal(view, recipe(photo(*size)))


def test_dense_views_are_the_whole_picture():
    [(_, view)] = looked(Views("dense"), photo(100, 50))
    assert view.shape == (3, 40, 80)
    views = looked(Views("dense", sizes=(32, 48), flip=True), photo(100, 50))
    assert [view.shape for _, view in views] == [(3, 32, 64), (3, 32, 64), (3, 48, 96), (3, 48, 96)]
    assert np.array_equal(views[1][1], views[0][1][..., ::-1])
    both = looked(Views("dense+multi-crop"), photo(100, 50))
    assert len(both) == 26
    assert both[0][0] == pytest.approx(0.5)
    assert both[1][0] == pytest.approx(0.02)


def test_a_picture_that_is_not_resized_is_taken_as_it_is():
    [(_, view)] = looked(Views("dense"), photo(32, 32), AS_IS)
    assert np.array_equal(view, AS_IS(photo(32, 32)))
    [(_, view)] = looked(Views("dense", sizes=(48,)), photo(40, 32), AS_IS)
    assert view.shape == (3, 48, 60)
    for size in ((31, 40), (LARGEST + 1, LARGEST + 1)):
        with pytest.raises(ImageError, match=r"photo: .* pixels are (smaller than the crop of 32|larger than 1024)"):
            looked(Views("dense"), photo(*size), AS_IS)


@settings(max_examples=30)
@example(6000, 6000, "dense+multi-crop", "torchvision", True)
@example(1, 6000, "dense", "zoo", False)
@example(6000, 1, "multi-crop", "onnxrt", False)
@given(
    st.one_of(st.integers(1, 300), st.integers(1, 6000)),
    st.one_of(st.integers(1, 300), st.integers(1, 6000)),
    st.sampled_from(PROTOCOLS),
    st.sampled_from(["torchvision", "zoo", "zoo-squash", "onnxrt"]),
    st.booleans(),
)
def test_pictures_of_any_size_give_views_of_bounded_size(width, height, protocol, preset, flip):
    recipe = replace(PRESETS[preset], size=40, crop=32)
    image = Image.new("RGB", (width, height), "teal")
    views = looked(Views(protocol, (40, 44), flip, grid=3), image, recipe)
    assert len(views) == Views(protocol, (40, 44), flip, grid=3).count
    assert sum(weight for weight, _ in views) == pytest.approx(1)
    for _, view in views:
        assert view.dtype == np.float32
        assert 32 <= min(view.shape[1:]) <= 44
        assert max(view.shape[1:]) <= MAX_ASPECT * min(view.shape[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"protocol": "sparse"}, "unknown protocol 'sparse'; choose from center, ten-crop"),
        ({"sizes": (0,)}, "sizes must be 1 to 1024 pixels"),
        ({"sizes": (5000,)}, "sizes must be 1 to 1024 pixels"),
        ({"grid": 0}, "the grid 1 or more"),
        ({"sizes": (256, 256)}, "duplicate size: 256, 256"),
    ],
)
def test_senseless_protocols_are_refused(options, message):
    with pytest.raises(Error, match=message):
        Views(**options)


def test_a_scale_below_the_crop_is_refused_before_anything_is_computed(tmp_path):
    classifier, dataset = setting(tmp_path, [(40, 40)])
    with pytest.raises(Error, match="size 31 is smaller than the network's crop of 32"):
        evaluate([classifier], dataset, Views("dense", (40, 31)))


def setting(folder, sizes, engine="onnxruntime", resize="short-floor"):
    """A narrow network and a dataset of images of these sizes."""
    for index, size in enumerate(sizes):
        (folder / f"{index % 7}").mkdir(exist_ok=True)
        photo(*size, seed=index).save(folder / f"{index % 7}/{index}.png")
    (folder / "list.txt").write_text("".join(f"{i % 7}/{i}.png {i % 7}\n" for i in range(len(sizes))))
    network = replace(random_network(), preprocessing=replace(SMALL, resize=resize))
    return Classifier(network, engine, threads=1, name="tiny"), sources.open(folder / "list.txt", 7)


SIZES = [(60, 40), (40, 60), (60, 40), (33, 80), (40, 40), (60, 40), (35, 32), (90, 34)]


@needs_native
def test_dense_on_pictures_of_the_crops_size_equals_the_centre_crop(tmp_path):
    classifier, dataset = setting(tmp_path, [(32, 32)] * 5, "native", "none")
    found = [evaluate([classifier], dataset, protocol).results[0] for protocol in (Views(), Views("dense"))]
    assert np.array_equal(found[0].top, found[1].top)
    assert np.abs(found[0].scores - found[1].scores).max() < 1e-5
    assert np.abs(found[0].losses - found[1].losses).max() < 1e-5


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "torch"])
def test_a_dense_score_is_the_mean_of_the_map_then_of_the_flips(tmp_path, engine):
    classifier, dataset = setting(tmp_path, SIZES, engine)
    run = evaluate([classifier], dataset, Views("dense", flip=True), batch_size=3)
    for place, sample in enumerate(dataset):
        rows = []
        for _, view in looked(Views("dense", flip=True), Image.open(sample.path)):
            logits = classifier.engine.logits(np.ascontiguousarray(view[None]))
            rows.append(softmax(logits.mean((2, 3)) if logits.ndim == 4 else logits)[0])
        assert np.sort(np.mean(rows, 0))[::-1][:5] == pytest.approx(run.results[0].scores[place], abs=1e-5)


@needs_native
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_batches_do_not_change_the_result(tmp_path, protocol):
    classifier, dataset = setting(tmp_path, SIZES, "native")
    look = Views(protocol, (40, 48), True)
    first = evaluate([classifier], dataset, look, batch_size=1, workers=1).results[0]
    second = evaluate([classifier], dataset, look, batch_size=7, workers=3).results[0]
    assert np.abs(first.losses - second.losses).max() < 1e-4
    assert np.abs(first.scores - second.scores).max() < 1e-4


def test_engines_that_take_no_whole_pictures_say_so(tmp_path):
    classifier, dataset = setting(tmp_path, SIZES)
    with pytest.raises(
        Error, match="onnxruntime takes only crops of the network's input size; for whole images use native or torch"
    ):
        evaluate([classifier], dataset, Views("dense"))
