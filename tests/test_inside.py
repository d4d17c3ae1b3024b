"""vgg.explanation: images of what a network has learned."""

from dataclasses import replace

import numpy as np
import pytest

import vgg
from conftest import EXAMPLES, random_network
from vgg import Error, Labels, Preprocessing
from vgg.explanation import class_image, filters, layer_outputs
from vgg.explanation.inside import _pixels
from vgg.preprocessing import PRESETS

PHOTO = EXAMPLES / "chelsea.png"
SMALL = Preprocessing("small", size=72, crop=64)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_filters_are_tiles_in_the_colours_of_the_weights(channels):
    preset = replace(SMALL, channels=channels)
    network = replace(random_network(input_size=64), preprocessing=preset)
    weights = network.parameters["conv1_1.weight"]  # four filters: two rows of two
    sheet = np.asarray(filters(network)).astype(float)
    side = (len(sheet) - 21) // 6  # pixels of one weight; the line between tiles is a quarter of that
    assert sheet.shape == (6 * side + side // 4, 6 * side + side // 4, 3)
    for index, (row, column) in enumerate(np.ndindex(2, 2)):
        expected = 127.5 + 127.5 * weights[index] / np.abs(weights[index]).max()
        for down, across in np.ndindex(3, 3):
            place = [
                one * (3 * side + side // 4) + within * side + side // 2 for one, within in ((row, down), (column, across))
            ]
            colour = expected[:, down, across] if channels == "RGB" else expected[::-1, down, across]
            np.testing.assert_allclose(sheet[*place], colour, atol=0.51)


def test_layer_outputs_are_tiles_of_the_strongest_channels_in_order():
    classifier = vgg.load(replace(random_network(input_size=64), preprocessing=SMALL))
    values = classifier.engine.run(SMALL(PHOTO)[None], ("pool2",))["pool2"][0]  # 8 channels of 16x16
    strongest = sorted(np.argsort(-values.mean((1, 2)), kind="stable")[:4])
    sheet = np.asarray(layer_outputs(classifier, PHOTO, "pool2", channels=4))
    assert sheet.shape == (516, 516, 3)  # two tiles of 16x16 pixels of 16, and a line of 4
    for index, (row, column) in zip(strongest, np.ndindex(2, 2), strict=True):
        tile = sheet[row * 260 + 8 : row * 260 + 256 : 16, column * 260 + 8 : column * 260 + 256 : 16, 0]
        np.testing.assert_allclose(tile, 255 * values[index] / max(values[index].max(), 1e-12), atol=0.51)
    with pytest.raises(Error, match="layer output fc6 has no positions"):
        layer_outputs(classifier, PHOTO, "fc6")


@pytest.mark.parametrize("name", PRESETS)
def test_pixels_come_back_from_the_input(name):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(_pixels(PRESETS[name], PRESETS[name].normalise(pixels)), pixels)


@pytest.mark.parametrize("channels", ["RGB", "BGR"])
def test_a_class_image_maximises_its_class(channels):
    names = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
    preset = replace(SMALL, resize="none", channels=channels)
    classifier = vgg.load(replace(random_network(labels=names, input_size=64), preprocessing=preset))
    calls = []
    logits = []
    for target in ("cat", 5):
        image = class_image(classifier, target, steps=12, progress=lambda *call: calls.append(call))
        assert image.size == (64, 64)
        logits.append(classifier.logits(image)[0])
    assert logits[0][2] > logits[1][2] + 0.3
    assert logits[1][5] > logits[0][5] + 0.3
    assert calls[11] == ("Class image", 12, 12)
    first, again, other = (class_image(classifier, 1, steps=2, seed=seed) for seed in (3, 3, 4))
    assert first.tobytes() == again.tobytes() != other.tobytes()


def test_what_has_no_class_image_is_an_error():
    with pytest.raises(Error, match="this vgg11 has no head, so it has no classes"):
        class_image(vgg.load(random_network(head="none", classes=0)), 1)
    with pytest.raises(Error, match="the number of steps must be 1 or more, not 0"):
        class_image(vgg.load(random_network()), 1, steps=0)
