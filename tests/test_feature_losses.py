"""vgg.torch: the values and gradients of feature losses, against plain torch."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import vgg
from conftest import EXAMPLES, random_network
from vgg.preprocessing import PRESETS
from vgg.torch import Contextual, Difference, FeatureLoss, Gram, MeanVariance, TotalVariation

PHOTOS = [Image.open(EXAMPLES / name).convert("RGB").resize((64, 48)) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
BATCH = torch.stack([torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255 for photo in PHOTOS])
OTHER = BATCH.roll(1, 0)


def narrow(name="vgg19", **options):
    return random_network(name, **options)


def layer_outputs(network, images):
    """The output of every convolution and of its ReLU, by plain torch, in float64."""
    preprocessing = network.preprocessing
    value = (images.flip(1) if preprocessing.channels == "BGR" else images).double() * 255 * preprocessing.scale
    value = (value - torch.tensor(preprocessing.mean).double()[:, None, None]) / torch.tensor(preprocessing.std).double()[
        :, None, None
    ]
    found = {}
    for layer in network.architecture.layers:
        if layer.operation == "convolution":
            weight, bias = (
                torch.tensor(np.array(network.parameters[f"{layer.name}.{role}"])).double() for role in ("weight", "bias")
            )
            value = functional.conv2d(value, weight, bias, padding=1)
            found[f"{layer.name}.raw"] = value
            value = found[layer.name] = functional.relu(value)
        elif layer.operation == "max_pool":
            value = found[layer.name] = functional.max_pool2d(value, 2)
    return found


def matrices(value):
    return torch.einsum("nchw,ndhw->ncd", value, value) / value[0].numel()


def squares(names, weight=1.0):
    return lambda one, other: sum(weight * ((one[name] - other[name]) ** 2).mean((1, 2, 3)) for name in names)


def absolutes(names):
    return lambda one, other: sum(weight * (one[name] - other[name]).abs().mean((1, 2, 3)) for name, weight in names.items())


def styles(weights):
    def compare(one, other):
        parts = [weight * (matrices(one[name]) - matrices(other[name])) ** 2 for name, weight in weights.items()]
        return sum(part.sum((1, 2)) for part in parts)

    return compare


def statistics(one, other):
    total = 0
    for name in ("conv1_1", "conv2_1", "conv3_1", "conv4_1"):
        means = [value[name].mean((2, 3)) for value in (one, other)]
        deviations = [(value[name].var((2, 3), unbiased=False) + 1e-5).sqrt() for value in (one, other)]
        total = total + sum(((a - b) ** 2).mean(1) for a, b in (means, deviations))
    return total


JOHNSON = {"conv1_2": 5 / 64**2, "conv2_2": 5 / 128**2, "conv3_3": 5 / 256**2, "conv4_3": 5 / 512**2}  # a mean over entries
FIRST = tuple(f"conv{block}_1" for block in range(1, 6))
REFERENCES = {
    "johnson": lambda one, other: squares(["conv3_3"])(one, other) + styles(JOHNSON)(one, other),
    "johnson-super-resolution": squares(["conv2_2"]),
    "srgan-vgg22": lambda one, other: ((one["conv2_2"] / 12.75 - other["conv2_2"] / 12.75) ** 2).mean((1, 2, 3)),
    "srgan-vgg54": lambda one, other: ((one["conv5_4"] / 12.75 - other["conv5_4"] / 12.75) ** 2).mean((1, 2, 3)),
    "esrgan": absolutes({"conv5_4.raw": 1}),
    "real-esrgan": absolutes({"conv1_2.raw": 0.1, "conv2_2.raw": 0.1, "conv3_4.raw": 1, "conv4_4.raw": 1, "conv5_4.raw": 1}),
    "pix2pixhd": absolutes(dict(zip(FIRST, (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), strict=True))),
    "gatys-style": styles(dict.fromkeys(FIRST, 1 / 4 / 5)),
    "adain-style": statistics,
}


@pytest.mark.parametrize("preset", ["torchvision", "caffe"])
@pytest.mark.parametrize("name", vgg.torch.PRESETS)
def test_a_preset_and_its_gradient_are_those_of_plain_torch(name, preset):
    network = replace(narrow(vgg.torch.PRESETS[name].architecture), preprocessing=PRESETS[preset])
    loss = FeatureLoss.preset(name, network)
    given = BATCH.clone().requires_grad_()
    found = loss(given, OTHER)
    found.sum().backward()
    wanted = BATCH.double().requires_grad_()
    expected = REFERENCES[name](layer_outputs(network, wanted), layer_outputs(network, OTHER))
    expected.sum().backward()
    assert found.shape == (3,)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=0)
    assert (given.grad - wanted.grad).norm() < 1e-3 * wanted.grad.norm()
    assert loss(BATCH, BATCH).abs().max() == 0


def test_batch_normalisation_is_part_of_the_output_before_the_activation():
    network = narrow("vgg19-bn")
    found = FeatureLoss.preset("esrgan", network)(BATCH, OTHER)
    folded = network.fold_batch_norm()
    expected = REFERENCES["esrgan"](layer_outputs(folded, BATCH), layer_outputs(folded, OTHER))
    torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=0)


def test_terms_are_added_and_share_the_layer_outputs():
    network = narrow("vgg16")
    terms = [Difference({"conv2_2": 2.0}, "l1"), Gram({"conv2_2": 3.0}), MeanVariance({"pool1": 0.5}), TotalVariation(0.1)]
    passes = []
    mixed = FeatureLoss(network, terms)
    mixed.values.register_forward_hook(lambda *_: passes.append(1))
    torch.testing.assert_close(mixed(BATCH, OTHER), sum(FeatureLoss(network, [term])(BATCH, OTHER) for term in terms))
    assert len(passes) == 1


def test_total_variation():
    image = BATCH.double()
    down, across = image.diff(dim=2), image.diff(dim=3)
    for norm, size in (("l1", torch.abs), ("l2", torch.square)):
        loss = FeatureLoss(narrow("vgg11"), [TotalVariation(2.0, norm)])
        torch.testing.assert_close(loss(image, image), 2 * (size(down).mean((1, 2, 3)) + size(across).mean((1, 2, 3))))


def test_the_contextual_loss_follows_the_papers_equations():
    network = narrow("vgg19")
    found = FeatureLoss(network, [Contextual({"conv3_2": 1.0})])(BATCH[:2], OTHER[:2, :, :, :40])
    for index in range(2):
        ours = layer_outputs(network, BATCH[index : index + 1])["conv3_2"][0].flatten(1).T.numpy()
        theirs = layer_outputs(network, OTHER[index : index + 1, :, :, :40])["conv3_2"][0].flatten(1).T.numpy()
        centre = theirs.mean(0)
        ours, theirs = ours - centre, theirs - centre
        ours /= np.linalg.norm(ours, axis=1, keepdims=True)
        theirs /= np.linalg.norm(theirs, axis=1, keepdims=True)
        distance = 1 - ours @ theirs.T
        relative = distance / (distance.min(1, keepdims=True) + 1e-5)
        similarity = np.exp((1 - relative) / 0.5)
        similarity /= similarity.sum(1, keepdims=True)
        assert float(found[index]) == pytest.approx(-np.log(similarity.max(0).mean()), rel=1e-3)


def test_signed_images():
    network = narrow("vgg16")
    loss, signed = (FeatureLoss(network, [Difference({"conv2_1": 1.0})], signed=signed) for signed in (False, True))
    torch.testing.assert_close(signed(BATCH * 2 - 1, OTHER * 2 - 1), loss(BATCH, OTHER), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("images", "targets", "message"),
    [
        (BATCH[:, :1], BATCH, r"images must be float \[batch, 3, height, width\], not torch.float32 \[3, 1, 48, 64\]"),
        (BATCH, (BATCH * 255).byte(), r"images must be float .*, not torch.uint8 \[3, 3, 48, 64\]"),
        (BATCH, BATCH[0], r"images must be float .*, not torch.float32 \[3, 48, 64\]"),
        (BATCH, BATCH[:2], "2 targets for 3 images; give equally many, or one for all"),
        (BATCH, BATCH[..., :40], r"differ in size, \[48, 64\] and \[48, 40\]; resize one of them"),
    ],
)
def test_tensors_that_are_no_images_are_refused(images, targets, message):
    with pytest.raises(vgg.Error, match=message):
        FeatureLoss(narrow("vgg11"), [Difference({"conv1_1": 1.0})])(images, targets)


def test_wrong_networks_layers_and_presets_are_refused():
    with pytest.raises(vgg.ModelError, match="the loss 'esrgan' is defined on vgg19, not on vgg16"):
        FeatureLoss.preset("esrgan", narrow("vgg16"))
    with pytest.raises(vgg.Error, match="unknown preset 'vgg54' of a loss; choose from johnson"):
        FeatureLoss.preset("vgg54", narrow("vgg19"))
    with pytest.raises(vgg.ModelError, match="vgg16 has no layer output 'conv5_4'; choose from conv1_1, "):
        FeatureLoss(narrow("vgg16"), [Difference({"conv5_4": 1.0})])
    short = narrow("vgg16", head="none", classes=0, last="conv3_2")
    with pytest.raises(vgg.ModelError, match="vgg16 has no layer output 'conv5_1'; choose from conv1_1, "):
        FeatureLoss(short, [Difference({"conv5_1": 1.0})])
    for wrong in (lambda: Difference({"conv1_1": 1.0}, "L1"), lambda: TotalVariation(norm="L1")):
        with pytest.raises(vgg.Error, match="unknown norm 'L1'; choose from l1, l2"):
            wrong()
    with pytest.raises(vgg.Error, match="a loss needs one term or more"):
        FeatureLoss(narrow("vgg16"), [])
