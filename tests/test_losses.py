"""vgg.torch: perceptual metrics with gradients, and style."""

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vgg
from conftest import EXAMPLES, random_network
from vgg.perceptual import IMAGE, PerceptualDistance, parts
from vgg.preprocessing import PRESETS

PHOTOS = [Image.open(EXAMPLES / name).convert("RGB").resize((50, 42)) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
BATCH = torch.stack([torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255 for photo in PHOTOS])
WIDE = (64, 128, 256, 512, 512)  # channels of the layer outputs of LPIPS and DISTS


METRICS = ("lpips", "dists", "cosine", "l1", "l2")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """Arguments of each metric: a VGG-16 of full width, and files of numbers as those of lpips and dists-pytorch."""
    folder, rng = tmp_path_factory.mktemp("fitted"), torch.Generator().manual_seed(0)
    linear = {f"lin{block}.model.1.weight": torch.rand(1, channels, 1, 1, generator=rng) for block, channels in enumerate(WIDE)}
    torch.save(linear, folder / "lpips.pth")
    torch.save({key: torch.rand(1, 3 + sum(WIDE), 1, 1, generator=rng) for key in ("alpha", "beta")}, folder / "dists.pt")
    whole = {"model": random_network("vgg16", width=1.0, head="none", classes=0)}
    narrow = {"model": random_network("vgg16-bn"), "metric": "features"}
    return {
        "lpips": whole | {"weights": folder / "lpips.pth"},
        "dists": whole | {"weights": folder / "dists.pt"},
        "cosine": narrow,
        "l1": narrow | {"kind": "l1", "layers": {"pool2": 0.5, "conv3_1": 2.0}},
        "l2": narrow | {"kind": "l2", "layers": ["conv4_2", "conv1_1"]},
    }


@pytest.mark.parametrize("name", METRICS)
def test_the_loss_is_the_distance(name, fitted):
    metric = fitted[name]
    loss = vgg.torch.PerceptualLoss(**metric)
    found = loss(BATCH, BATCH.roll(1, 0))
    expected = PerceptualDistance(**metric)(PHOTOS, [PHOTOS[2], PHOTOS[0], PHOTOS[1]])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    signed = vgg.torch.PerceptualLoss(**metric, signed=True, recompute=True)
    torch.testing.assert_close(signed(2 * BATCH - 1, 2 * BATCH.roll(1, 0) - 1), found, rtol=1e-4, atol=0)
    assert not list(loss.parameters())
    assert not loss.state_dict()


@pytest.fixture(params=METRICS)
def metric(request, fitted, monkeypatch):
    """A loss of each metric on a narrow network, for which the fitted ones have no files."""
    if request.param in ("lpips", "dists"):
        network = random_network("vgg16", width=1 / 8, head="none", classes=0)
        if request.param == "dists":
            network = replace(network, architecture=replace(network.architecture, pooling="l2"))
        made = parts(**fitted[request.param])
        weights = tuple(
            weight if tap == IMAGE else weight[..., ::8] for tap, weight in zip(made.taps, made.weights, strict=True)
        )
        monkeypatch.setattr("vgg.torch.metrics.parts_of", lambda *_, **__: replace(made, network=network, weights=weights))
    return vgg.torch.PerceptualLoss(**fitted[request.param])


def test_the_preprocessing_is_part_of_the_loss():
    network = replace(random_network("vgg16"), preprocessing=PRESETS["caffe"])
    found = vgg.torch.PerceptualLoss(network)(BATCH, BATCH[:1])
    np.testing.assert_allclose(found.numpy(), PerceptualDistance(network)(PHOTOS, PHOTOS[0]), rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_the_distance(metric):
    assert_gradient(metric)


def test_gradients_are_those_of_the_style():
    assert_gradient(vgg.torch.StyleLoss(random_network("vgg11")))


def assert_gradient(loss):
    """Against differences of the values, in random directions."""
    loss = loss.double()
    wanted = BATCH[:1, :, :32, :32].double()
    given = BATCH[1:2, :, :32, :32].double().requires_grad_()
    loss(given, wanted).sum().backward()
    rng = np.random.default_rng(0)
    for _ in range(5):
        step = torch.from_numpy(rng.normal(size=given.shape)) * 1e-8  # crosses few bends of ReLU and max pooling
        with torch.no_grad():
            change = float((loss(given + step, wanted) - loss(given - step, wanted)).sum())
        assert float((given.grad * 2 * step).sum()) == pytest.approx(
            change, rel=1e-3, abs=float(given.grad.norm() * step.norm() * 1e-5)
        )


def test_the_gradient_is_finite_for_equal_black_and_dead_images(metric):
    dead = copy.deepcopy(metric)
    for buffer in dead.values.module.buffers():
        buffer.zero_()
    black = torch.zeros_like(BATCH)
    cases = (metric, BATCH, BATCH), (metric, black, black), (metric, black, BATCH), (dead, BATCH, black)
    for made, images, targets in cases:
        given = images.clone().requires_grad_()
        found = made(given, targets)
        found.sum().backward()
        assert torch.isfinite(given.grad).all()
        if images is targets:
            assert found.abs().max() == 0
            assert given.grad.abs().max() < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_metrics_in_half_precision(metric, dtype):
    images, targets = BATCH[:, :, :32, :32], BATCH.roll(1, 0)[:, :, :32, :32]
    expected = metric(images, targets)
    half = copy.deepcopy(metric).to(dtype)
    for made, one, other, autocast in ((metric, images, targets, True), (half, images.to(dtype), targets.to(dtype), False)):
        given = one.clone().requires_grad_()
        with torch.autocast("cpu", dtype, enabled=autocast):
            found = made(given, other)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
        found.sum().backward()
        assert torch.isfinite(given.grad).all()


@pytest.mark.parametrize("layers", [(), ("pool2", "conv3_1")])
def test_the_loss_of_a_backbone_is_its_distance(layers):
    network = random_network("vgg16-bn", head="none", classes=0, last="conv3_2")
    found = vgg.torch.PerceptualLoss(network, layers=layers)(BATCH, BATCH.roll(1, 0))
    expected = PerceptualDistance(network, layers=layers)(PHOTOS, [PHOTOS[2], PHOTOS[0], PHOTOS[1]])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    style = vgg.torch.StyleLoss(network)
    assert style.values.names == ("conv1_1", "conv2_1", "conv3_1")
    assert style(BATCH[:1], BATCH[1:2]) > 0


def test_metrics_refuse_images_of_different_sizes():
    with pytest.raises(vgg.Error, match=r"images and targets differ in size, \[42, 50\] and \[42, 40\]; resize one of them"):
        vgg.torch.PerceptualLoss(random_network("vgg11"))(BATCH, BATCH[..., :40])


def test_an_image_can_be_reconstructed_by_its_loss():
    loss = vgg.torch.PerceptualLoss()
    given = torch.full_like(BATCH[:1], 0.5).requires_grad_()
    optimiser = torch.optim.Adam([given], 0.03)
    first = None
    for _ in range(12):
        optimiser.zero_grad()
        value = loss(given, BATCH[:1]).mean()
        first = first or value.item()
        value.backward()
        optimiser.step()
    assert value.item() < 0.7 * first


def test_style_is_the_difference_of_gram_matrices():
    network = random_network("vgg16")
    names = [f"conv{block}_1" for block in range(1, 6)]
    loss = vgg.torch.StyleLoss(network)
    found = loss(BATCH, BATCH[:1, :, :, :40])  # of another size
    engine = vgg.engines.open(vgg.perceptual.trunk(network), "torch")
    inputs = np.stack([network.preprocessing.normalise(np.asarray(photo)) for photo in PHOTOS])
    ours, theirs = engine.run(inputs, names), engine.run(np.ascontiguousarray(inputs[:1, :, :, :40]), names)
    expected = np.zeros(3)
    for name in names:
        grams = [np.einsum("ncyx,ndyx->ncd", value, value) / np.prod(value.shape[1:]) for value in (ours[name], theirs[name])]
        expected += np.square(grams[0] - grams[1]).sum((1, 2)) / 4 / 5  # Gatys et al., equations 4 and 5
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3)
    assert float(loss(BATCH[:1], BATCH[:1])) == 0


def test_without_torch_the_error_names_the_extra():
    code = "import sys; sys.modules['torch'] = None; import vgg; vgg.torch"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stderr
    assert said.endswith("vgg.errors.Error: vgg.torch requires torch; install with `pip install 'vgg[torch]'`\n")
