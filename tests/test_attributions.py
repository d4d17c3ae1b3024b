"""vgg.explanation: the maps of each method are those of the packages captum and grad-cam."""

import re
from dataclasses import replace

import captum.attr
import numpy as np
import pytest
import torch
from PIL import Image

import vgg
from conftest import EXAMPLES, FIXTURES, ROOT, needs_native, random_network
from vgg import Error, Network, Preprocessing
from vgg.explanation import cam, explain, outputs, pixels
from vgg.explanation.perturbation import score_cam
from vgg.methods import METHODS
from vgg.module import Module

PHOTO = EXAMPLES / "chelsea.png"
SMALL = Preprocessing("small", size=72, crop=64)
ENGINES = [pytest.param("native", marks=needs_native), "onnxruntime", "openvino", "torch"]
CLASSES = (4, 1)


@pytest.fixture(scope="module")
def fixture():
    with np.load(FIXTURES / "attributions.npz") as stored:
        return Network.read(FIXTURES / "attributions.safetensors"), dict(stored)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("layer", ["conv5_2", "conv3_2"])
@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "layer-cam", "score-cam"])
def test_class_activation_maps_are_those_of_grad_cam(fixture, method, layer, engine):
    network, stored = fixture
    classifier, image = vgg.load(network, engine), stored["input"]
    values = {name: value[0] for name, value in classifier.engine.run(image[None], outputs(network, layer)).items()}
    if method == "score-cam":
        found = score_cam(classifier, image, values[layer], cam.signals(network, [0, 3]))
    else:
        functions = {"grad-cam": cam.grad_cam, "grad-cam++": cam.grad_cam_plus, "layer-cam": cam.layer_cam}
        found = functions[method](network, values, [0, 3], layer)
    expected = stored[f"{method} {layer}"]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.clip(0), other, rtol=0, atol=1e-4 * other.max())


@pytest.fixture(scope="module", params=["vgg11", "vgg13-bn"])
def pair(request):
    """A network, the same in torch, and what captum computed of it."""
    network = replace(random_network(request.param, 3, input_size=64), preprocessing=SMALL)
    module = Module(network.architecture).eval()
    module.load(network)
    for layer in module:
        if isinstance(layer, torch.nn.ReLU):
            layer.inplace = False  # captum's hooks forbid it
    return network, module.double(), {}


def by_captum(module, batch, method, target, monkeypatch):
    """The map of a class by captum, as `vgg` reduces colours."""
    value = torch.from_numpy(batch).double().requires_grad_()
    if method == "grad-cam":
        layer = [one for one in module if isinstance(one, torch.nn.ReLU)][-3]  # before the two of the head
        return captum.attr.LayerGradCam(module, layer).attribute(value, target)[0, 0]
    if method == "occlusion":
        window = {"sliding_window_shapes": (3, 20, 20), "strides": (3, 10, 10)}
        return captum.attr.Occlusion(module).attribute(value, target=target, **window)[0, 0]
    if method == "integrated-gradients":
        return captum.attr.IntegratedGradients(module).attribute(value, target=target, n_steps=7)[0].sum(0)
    saliency = captum.attr.Saliency(module)
    if method == "saliency":
        return saliency.attribute(value, target, abs=False)[0].abs().amax(0)
    rng, spread = np.random.default_rng(pixels.SEED), pixels.NOISE * np.ptp(batch)
    noise = torch.from_numpy(spread * rng.standard_normal((7, *batch.shape[1:]), np.float32)).double()
    monkeypatch.setattr(torch, "normal", lambda *_: noise)  # captum's own noise would be another
    tunnel = captum.attr.NoiseTunnel(saliency)
    return tunnel.attribute(value, nt_type="smoothgrad", nt_samples=7, target=target, abs=False)[0].abs().amax(0)


OPTIONS = {"occlusion": {"window": 20}, "integrated-gradients": {"samples": 7}, "smoothgrad": {"samples": 7}}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", ["grad-cam", "saliency", *OPTIONS])
def test_attributions_are_those_of_captum(pair, method, engine, monkeypatch):
    network, module, expected = pair
    found = vgg.load(network, engine).explain(PHOTO, CLASSES, method=method, **OPTIONS.get(method, {}))
    assert found.maps.dtype == np.float32
    for target, one in zip(CLASSES, found.maps, strict=True):
        if (method, target) not in expected:
            expected[method, target] = by_captum(module, SMALL(PHOTO)[None], method, target, monkeypatch).detach().numpy()
        wanted = expected[method, target]
        np.testing.assert_allclose(one, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


def test_integrated_gradients_sum_to_the_difference_of_the_logits(pair):
    network, *_ = pair
    classifier = vgg.load(network, "torch")
    found = classifier.explain(PHOTO, CLASSES, method="integrated-gradients", samples=400)
    batch = SMALL(PHOTO)[None]
    change = (classifier.engine.logits(batch) - classifier.engine.logits(np.zeros_like(batch)))[0, list(CLASSES)]
    np.testing.assert_allclose(found.maps.sum((1, 2)), change, atol=0.02 * np.abs(change).max())


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_own_map_reports_progress_and_is_drawn(method):
    network = replace(random_network(input_size=64), preprocessing=SMALL)
    calls = []
    options = {"samples": 6} if "samples" in METHODS[method].options else {}
    found = explain(vgg.load(network), PHOTO, [2, 5], method=method, progress=lambda *call: calls.append(call), **options)
    assert found.method == method
    assert found.maps.dtype == np.float32
    assert not np.array_equal(found.maps[0], found.maps[1])
    long = method in ("score-cam", "occlusion", "smoothgrad", "integrated-gradients")
    assert bool(calls) == long
    if long:
        assert calls[-1][1] == calls[-1][2] > 1
        assert [call[1] for call in calls] == sorted(call[1] for call in calls)
    drawn = np.asarray(found.overlay(boxes=True))
    without = np.asarray(replace(found, maps=np.zeros_like(found.maps)).overlay(boxes=True))
    assert (drawn != without).mean() > 0.01
    for index in range(2):
        left, top, right, bottom = found.box(index)
        assert 0 <= left < right <= 451
        assert 0 <= top < bottom <= 300


def test_one_strong_dot_hides_no_others():
    heat = np.full((64, 64), 0.01, np.float32)
    heat[16:48:4, 16:48:4] = 1
    heat[10, 10] = 1000
    found = vgg.explanation.Explanation(Image.new("RGB", (64, 64), "red"), [], heat[None], (0, 0, 1, 1), "saliency")
    drawn = np.asarray(found.overlay().crop((0, 0, 64, 64))).astype(int)
    assert drawn[20, 20].min() > 90  # as bright as the strongest
    assert drawn[18, 18].max() < 40  # the image, dark and grey


@pytest.mark.parametrize("method", ["grad-cam", "grad-cam++", "layer-cam", "score-cam"])
def test_the_map_of_any_layer_has_its_positions(method):
    classifier = vgg.load(replace(random_network(input_size=64), preprocessing=SMALL))
    found = classifier.explain(PHOTO, 2, method=method, layer="conv2_1")
    assert found.maps.shape == (1, 32, 32)
    default = classifier.explain(PHOTO, 2, method=method)
    same = classifier.explain(PHOTO, 2, method=method, layer="conv5_2")
    np.testing.assert_array_equal(default.maps, same.maps)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "saliency", "layer": "conv1_1"}, "the method saliency has no option 'layer'; it has none"),
        ({"method": "occlusion", "samples": 5}, "the method occlusion has no option 'samples'; its options are window"),
        ({"size": 512}, "the method grad-cam has no option 'size'; its options are layer"),
        ({"layer": "fc6"}, "layer output fc6 has no positions; choose from conv1_1, "),
        ({"layer": "conv9"}, "vgg11 has no layer output 'conv9'; choose from conv1_1, "),
        ({"method": "occlusion", "window": 65}, "the window must be 1 to 64 pixels, the side of the input, not 65"),
        ({"method": "smoothgrad", "samples": 0}, "the number of samples must be 1 to 10,000, not 0"),
    ],
)
def test_an_option_that_does_not_fit_is_an_error(options, message):
    classifier = vgg.load(replace(random_network(input_size=64), preprocessing=SMALL))
    with pytest.raises(Error, match=re.escape(message)):
        classifier.explain(PHOTO, 2, **options)


def test_the_page_lists_every_method_with_its_source():
    text = " ".join((ROOT / "docs/explain.md").read_text().split())
    for name, method in METHODS.items():
        assert f"| `{name}` |" in text
        for paper in re.findall(r"arXiv (\S+?),?(?: |$)", method.source):
            assert f"arxiv.org/abs/{paper}" in text, name
