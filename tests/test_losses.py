"""vgg.torch: the same distances with gradients."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import vgg
from conftest import EXAMPLES, random_network
from vgg.perceptual import PerceptualDistance
from vgg.preprocessing import PRESETS

PHOTOS = [Image.open(EXAMPLES / name).convert("RGB").resize((80, 64)) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
BATCH = torch.stack([torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255 for photo in PHOTOS])


@pytest.mark.parametrize("preset", ["torchvision", "caffe"])
def test_the_loss_is_the_distance(preset):
    network = replace(random_network("vgg16"), preprocessing=PRESETS[preset])
    loss = vgg.torch.PerceptualLoss(network)
    found = loss(BATCH, BATCH.roll(1, 0))
    expected = PerceptualDistance(network)(PHOTOS, [PHOTOS[2], PHOTOS[0], PHOTOS[1]])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    assert not list(loss.parameters())
    assert not loss.state_dict()


@pytest.mark.parametrize("layers", [(), ("pool2", "conv3_1")])
def test_the_loss_of_a_backbone_is_its_distance(layers):
    network = random_network("vgg16-bn", head="none", classes=0, last="conv3_2")
    found = vgg.torch.PerceptualLoss(network, layers=layers)(BATCH, BATCH.roll(1, 0))
    expected = PerceptualDistance(network, layers=layers)(PHOTOS, [PHOTOS[2], PHOTOS[0], PHOTOS[1]])
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)
    style = vgg.torch.StyleLoss(network)
    assert style.values.names == ("conv1_1", "conv2_1", "conv3_1")
    assert style(BATCH[:1], BATCH[1:2]) > 0


@pytest.mark.parametrize("loss", [vgg.torch.PerceptualLoss, vgg.torch.StyleLoss])
def test_gradients_are_those_of_the_loss(loss):
    made = loss(random_network("vgg11", input_size=32)).double()
    wanted = BATCH[:1, :, :32, :32].double()
    given = BATCH[1:2, :, :32, :32].double().requires_grad_()
    made(given, wanted).sum().backward()
    rng = np.random.default_rng(0)
    for _ in range(5):  # against differences, in a random direction
        step = torch.from_numpy(rng.normal(size=given.shape)) * 1e-6
        with torch.no_grad():
            change = float((made(given + step, wanted) - made(given - step, wanted)).sum())
        assert float((given.grad * 2 * step).sum()) == pytest.approx(change, rel=1e-3)


def test_an_image_without_features_has_a_gradient():
    network = random_network("vgg11", input_size=32)
    dead = {name: np.zeros_like(value) if name.startswith("conv1") else value for name, value in network.parameters.items()}
    loss = vgg.torch.PerceptualLoss(replace(network, parameters=dead))
    given = BATCH[:1].clone().requires_grad_()
    loss(given, BATCH[1:2]).sum().backward()
    assert torch.isfinite(given.grad).all()


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
    found = loss(BATCH, BATCH[:1, :, :, :64])  # of another size
    engine = vgg.engines.open(vgg.perceptual.trunk(network), "torch")
    inputs = np.stack([network.preprocessing.normalise(np.asarray(photo)) for photo in PHOTOS])
    ours, theirs = engine.run(inputs, names), engine.run(np.ascontiguousarray(inputs[:1, :, :, :64]), names)
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
