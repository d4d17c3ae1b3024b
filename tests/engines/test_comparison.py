"""`Engine.differences` and `Engine.moments` against torch in float64, on every engine."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import needs_native, random_network
from vgg import Error, ModelError, engines
from vgg.engines import comparison
from vgg.engines.native_interface import available_instructions

LAYERS = ("conv1_2", "pool1", "conv2_2", "conv3_3", "conv4_3", "pool4", "conv5_3", "pool5")
INSTRUCTIONS = available_instructions() if engines.native_library() else []


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "onnxruntime", "openvino", "torch"])
def name(request):
    if request.param not in engines.installed():
        pytest.skip(f"{request.param} isn't installed; `scripts/setup test` installs it")
    return request.param


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that maps are compared in several blocks."""
    monkeypatch.setattr(comparison, "BLOCK", 2000)


def images(count, height=40, width=70, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, height, width)).astype(np.float32)


def backbone(**options):
    return random_network("vgg16", **{"head": "none", "classes": 0, **options})


def weights(network, layers, seed=0):
    random = np.random.default_rng(seed)
    return {one: random.random(network.architecture.shape(one, 1, 32, 32)[1], np.float32) for one in layers}


def differences(values, pairs, layers, kind):
    found = {}
    for layer, weight in layers.items():
        maps = torch.from_numpy(values[layer]).double()
        if kind == "cosine":
            maps = maps / (maps.square().sum(1, keepdim=True).sqrt() + 1e-10)
        apart = maps[pairs[:, 0]] - maps[pairs[:, 1]]
        apart = apart.abs() if kind == "l1" else apart.square()
        found[layer] = (apart * torch.from_numpy(weight).double()[:, None, None]).sum(1).numpy()
    return found


def moments(values, pairs, layers, area):
    found = {}
    for layer in layers:
        maps = torch.from_numpy(values[layer]).double()
        top, left, bottom, right = area.get(layer, (0, 0, *maps.shape[2:]))
        maps = maps[:, :, top:bottom, left:right]
        a, b = (maps[pairs[:, side]] for side in (0, 1))
        found[layer] = torch.stack([one.sum((2, 3)) for one in (a, b, a * a, b * b, a * b)], 1).numpy()
    return found


def check(engine, network, batch, pairs):
    """Both comparisons from the engine's own layer outputs."""
    layers = weights(network, LAYERS)
    values = engine.run(batch, LAYERS)
    for kind in ("cosine", "l1", "l2"):
        for names in (LAYERS, ("conv1_2", "conv5_3"), ("conv3_3",)):  # with all outputs, and with those that may be fused
            chosen = {one: layers[one] for one in names}
            expected = differences(values, pairs, chosen, kind)
            found = engine.differences(batch, pairs, chosen, kind)
            assert list(found) == list(names)
            for one in names:
                assert found[one].dtype == np.float32
                assert found[one].shape == expected[one].shape
                assert np.abs(found[one] - expected[one]).max() <= 1e-5 * expected[one].max()
                assert (found[one][pairs[:, 0] == pairs[:, 1]] == 0).all()
                assert found[one].min() >= 0
    area = {"conv1_2": (3, 5, 31, 17), "conv5_3": (1, 0, 2, 2), "pool5": (0, 0, 0, 0)}
    for names, chosen_area in ((LAYERS, {}), (LAYERS, area), (("conv2_2",), None)):
        expected = moments(values, pairs, names, chosen_area or {})
        found = engine.moments(batch, pairs, names, chosen_area)
        for one in names:
            assert found[one].dtype == np.float64
            np.testing.assert_allclose(found[one], expected[one], rtol=1e-6, atol=1e-9)


def test_pairs_in_any_order(name):
    network = backbone()
    engine = engines.open(network, name, threads=2)
    check(engine, network, images(5), np.array([[0, 3], [3, 1], [2, 2], [4, 0], [0, 3], [1, 0]]))


@pytest.mark.parametrize("pooling", ["average", "l2"])
def test_with_other_poolings(name, pooling):
    network = backbone(pooling=pooling)
    check(engines.open(network, name, threads=2), network, images(2, 45, 33), np.array([[1, 0]]))


@needs_native
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("threads", [1, 3])
def test_with_every_instruction_set(instructions, threads, monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    network = backbone(input_size=64)
    check(engines.open(network, "native", threads=threads), network, images(3), np.array([[0, 1], [0, 2], [1, 1]]))


@needs_native
def test_more_images_than_are_computed_together():
    """A reference in many pairs, the second half against the first, and distant pairs."""
    network, count = backbone(), 37
    engine = engines.open(network, "native", threads=2)
    batch = images(count, 32, 32)
    for pairs in (
        [(0, index) for index in range(1, count)],
        [(index, index + 18) for index in range(18)],
        [(index, (index * index) % count) for index in range(count)],
        [(36, 0), (1, 35), (36, 1), (20, 36)],
    ):
        check(engine, network, batch, np.array(pairs))


def test_equal_images_do_not_differ(name):
    network = backbone(input_size=64)
    batch = images(2, 64, 64)[[0, 1, 0, 1]]
    pairs = np.array([[0, 2], [1, 3], [0, 0]])
    engine = engines.open(network, name, threads=2)
    for found in engine.differences(batch, pairs, weights(network, LAYERS)).values():
        assert (found == 0).all()
    for found in engine.moments(batch, pairs, LAYERS).values():
        np.testing.assert_array_equal(found[:, 0], found[:, 1])
        np.testing.assert_array_equal(found[:, 2], found[:, 3])
        np.testing.assert_array_equal(found[:, 2], found[:, 4])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_number_stays_visible(name, value):
    network = backbone()
    batch = images(2)
    batch[1, 0, 20, 30] = value
    if name == "openvino" and np.isnan(value):
        pytest.skip("OpenVINO's ReLU turns NaN into 0")
    engine = engines.open(network, name, threads=1)
    with np.errstate(invalid="ignore"):
        for kind in ("cosine", "l1", "l2"):
            assert not np.isfinite(
                engine.differences(batch, np.array([[0, 1]]), weights(network, LAYERS), kind)["conv1_2"]
            ).all()
        assert not np.isfinite(engine.moments(batch, np.array([[0, 1]]), ["conv1_2"])["conv1_2"]).all()


def test_no_pairs_no_images(name):
    network = backbone()
    engine = engines.open(network, name, threads=1)
    none = np.empty((0, 2), int)
    found = engine.differences(images(2), none, weights(network, ["conv2_2"]))
    assert found["conv2_2"].shape == (0, 20, 35)
    assert engine.moments(images(0), none, ["conv2_2"])["conv2_2"].shape == (0, 5, 8)


def test_variances_of_large_means_are_precise(name):
    """A variance of a ten-millionth of the squared mean, which float32 has no digits for."""
    network = backbone()
    bias = np.full_like(network.parameters["conv1_1.bias"], 1000)
    network = replace(network, parameters={**network.parameters, "conv1_1.bias": bias})
    engine = engines.open(network, name, threads=1)
    batch = images(2, 64, 64)
    values = engine.run(batch, ["conv1_1"])["conv1_1"].astype(np.float64)
    a, _, squares, _, _ = engine.moments(batch, np.array([[0, 1]]), ["conv1_1"])["conv1_1"][0] / 64**2
    expected = values[0].var((1, 2))
    assert expected.max() < 1e-5 * 1000**2
    np.testing.assert_allclose(squares - a**2, expected, rtol=1e-7)


def test_invalid_arguments_are_refused(name):
    network = random_network("vgg16", input_size=64)
    engine = engines.open(network, name, threads=1)
    batch, pairs, layers = images(2, 64, 64), np.array([[0, 1]]), weights(network, ["conv2_2"])
    for wrong in ([[0, 2]], [[-1, 0]], [0, 1], [[0.0, 1.0]], [[0, 1, 1]]):
        with pytest.raises(Error, match=r"^pairs "):
            engine.differences(batch, np.array(wrong), layers)
        with pytest.raises(Error, match=r"^pairs "):
            engine.moments(batch, np.array(wrong), ["conv2_2"])
    with pytest.raises(Error, match=r"weights of conv2_2 have the shape \[9\], not \[8\]"):
        engine.differences(batch, pairs, {"conv2_2": np.ones(9)})
    with pytest.raises(Error, match="unknown kind of difference 'l3'; choose from cosine, l1, l2"):
        engine.differences(batch, pairs, layers, "l3")
    with pytest.raises(ModelError, match=r"fc7 belongs to the head; .*, such as pool5"):
        engine.moments(batch, pairs, ["fc7"])
    with pytest.raises(ModelError, match="vgg16 has no layer output 'conv9'"):
        engine.moments(batch, pairs, ["conv9"])
    with pytest.raises(Error, match=r"the area \(0, 0, 33, 32\) of conv2_2 is not in its map of 32x32 positions"):
        engine.moments(batch, pairs, ["conv2_2"], {"conv2_2": (0, 0, 33, 32)})
    with pytest.raises(ModelError, match="vgg16 takes float32"):
        engine.differences(batch.astype(np.float64), pairs, layers)
