"""vgg.torch: feature losses against plain torch, and backbones."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
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


def styles(names, weight):
    return lambda one, other: sum(weight * ((matrices(one[name]) - matrices(other[name])) ** 2).sum((1, 2)) for name in names)


def statistics(one, other):
    total = 0
    for name in ("conv1_1", "conv2_1", "conv3_1", "conv4_1"):
        means = [value[name].mean((2, 3)) for value in (one, other)]
        deviations = [(value[name].var((2, 3), unbiased=False) + 1e-5).sqrt() for value in (one, other)]
        total = total + sum(((a - b) ** 2).mean(1) for a, b in (means, deviations))
    return total


JOHNSON = ("conv1_2", "conv2_2", "conv3_3", "conv4_3")
FIRST = tuple(f"conv{block}_1" for block in range(1, 6))
REFERENCES = {
    "johnson": lambda one, other: squares(["conv3_3"])(one, other) + styles(JOHNSON, 5)(one, other),
    "johnson-super-resolution": squares(["conv2_2"]),
    "srgan-vgg22": lambda one, other: ((one["conv2_2"] / 12.75 - other["conv2_2"] / 12.75) ** 2).mean((1, 2, 3)),
    "srgan-vgg54": lambda one, other: ((one["conv5_4"] / 12.75 - other["conv5_4"] / 12.75) ** 2).mean((1, 2, 3)),
    "esrgan": absolutes({"conv5_4.raw": 1}),
    "real-esrgan": absolutes({"conv1_2.raw": 0.1, "conv2_2.raw": 0.1, "conv3_4.raw": 1, "conv4_4.raw": 1, "conv5_4.raw": 1}),
    "pix2pixhd": absolutes(dict(zip(FIRST, (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), strict=True))),
    "gatys-style": styles(FIRST, 1 / 4 / 5),
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast(dtype):
    network = narrow("vgg16")
    terms = [Difference({"conv3_3": 1.0}), Gram({"conv2_1": 100.0}), MeanVariance({"conv4_1": 1.0})]
    loss = FeatureLoss(network, terms)
    expected = loss(BATCH, OTHER)
    given = BATCH.clone().requires_grad_()
    with torch.autocast("cpu", dtype):
        found = loss(given, OTHER)
        lpips = vgg.torch.PerceptualLoss(network)(given, OTHER)
    assert found.dtype == lpips.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
    (found + lpips).sum().backward()
    assert torch.isfinite(given.grad).all()
    half = loss.to(dtype)(BATCH.to(dtype), OTHER.to(dtype))
    torch.testing.assert_close(half, expected, rtol=0.1, atol=0)


def test_the_network_is_fixed_whatever_the_caller_does():
    loss = FeatureLoss(narrow("vgg16-bn"), [Difference({"conv3_3": 1.0})])
    before = loss(BATCH, OTHER)
    whole = nn.Sequential(nn.Identity(), loss).train()
    whole.requires_grad_(True)
    assert not list(whole.parameters())
    assert not whole.state_dict()
    assert not any(module.training for module in loss.values.modules())
    torch.testing.assert_close(loss(BATCH, OTHER), before, rtol=0, atol=0)


def test_recomputing_gives_the_same_gradient_with_less_memory():
    network = narrow("vgg19")
    saved = []
    for recompute in (False, True):
        loss = FeatureLoss.preset("real-esrgan", network, recompute=recompute)
        given = BATCH.clone().requires_grad_()
        kept = []

        def keep(value, kept=kept):
            kept.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            total = loss(given, OTHER).sum()
        total.backward()
        saved.append((total.detach(), given.grad, sum(kept)))
    torch.testing.assert_close(saved[1][:2], saved[0][:2])
    assert saved[1][2] < saved[0][2] / 3


def test_it_compiles_as_one_graph():
    loss = FeatureLoss.preset("real-esrgan", narrow("vgg19"))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    given, same = BATCH.clone().requires_grad_(), BATCH.clone().requires_grad_()
    found, expected = compiled(given, OTHER), loss(same, OTHER)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close((found, given.grad), (expected, same.grad))


def test_it_works_beside_a_distributed_generator(tmp_path):
    network = narrow("vgg11")
    network.write(tmp_path / "vgg11.onnx")
    code = f"""
import torch, vgg, warnings
warnings.simplefilter("ignore")
torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/rendezvous", rank=0, world_size=1)
generator = torch.nn.parallel.DistributedDataParallel(torch.nn.Conv2d(3, 3, 3, padding=1))
loss = vgg.torch.FeatureLoss({str(tmp_path / "vgg11.onnx")!r}, [vgg.torch.Difference({{"conv2_1": 1.0}})])
images = torch.rand(2, 3, 32, 32)
loss(generator(images), images).mean().backward()
print(all(bool(parameter.grad.abs().max() > 0) for parameter in generator.parameters()))
torch.distributed.destroy_process_group()
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


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
    assert vgg.torch.backbone(short).names == ("conv1_2", "conv2_2", "conv3_2")
    with pytest.raises(vgg.Error, match="a loss needs one term or more"):
        FeatureLoss(narrow("vgg16"), [])


# Backbones


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", ["vgg16", "vgg16-bn"])
def test_a_backbones_maps_are_the_engines(name, trainable):
    network = narrow(name)
    backbone = vgg.torch.backbone(network, trainable=trainable).eval()
    assert backbone.names == ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
    assert backbone.strides == (1, 2, 4, 8, 16)
    maps = backbone(BATCH)
    assert tuple(value.shape[1] for value in maps) == backbone.channels
    inputs = np.stack([network.preprocessing.normalise(np.asarray(photo)) for photo in PHOTOS])
    expected = vgg.engines.open(vgg.perceptual.trunk(network)).run(inputs, backbone.names)
    for value, found in zip(maps, expected.values(), strict=True):
        np.testing.assert_allclose(value.detach().numpy(), found, rtol=1e-3, atol=1e-4 * np.abs(found).max())


def test_what_learns_in_a_backbone():
    frozen = vgg.torch.backbone(narrow("vgg16-bn"), ["pool5"], trainable=False).train()
    assert not list(frozen.parameters())
    assert not any(module.training for module in frozen.trunk.modules())
    partly = vgg.torch.backbone(narrow("vgg16-bn"), ["pool3", "pool5", "conv4_3"], freeze="conv2").train()
    assert partly.names == ("pool3", "conv4_3", "pool5")
    assert partly.strides == (8, 8, 32)
    learning = {name.split(".")[1] for name, value in partly.named_parameters() if value.requires_grad}
    assert "conv3_1" in learning
    assert not learning & {"conv1_1", "conv2_2", "bn2_2"}
    with pytest.raises(vgg.ModelError, match="has no layer output 'fc6'"):
        vgg.torch.backbone(narrow("vgg16"), ["fc6"])
    with pytest.raises(vgg.ModelError, match=r"has no layer output 'conv5_3\.raw'"):
        vgg.torch.backbone(narrow("vgg16"), ["conv5_3.raw"])


class FCN8(nn.Module):
    """The skips of FCN-8s: scores of pool5, pool4 and pool3, each enlarged and added to the next."""

    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder = encoder
        self.scores = nn.ModuleList(nn.Conv2d(channels, classes, 1) for channels in encoder.channels)

    def forward(self, images):
        maps = [score(value) for score, value in zip(self.scores, self.encoder(images), strict=True)]
        total = maps[-1]
        for value in (*maps[-2::-1], images):
            total = functional.interpolate(total, value.shape[2:], mode="bilinear")
            total = total + value if value is not images else total
        return total


class UNet(nn.Module):
    def __init__(self, encoder, classes):
        super().__init__()
        self.encoder = encoder
        *rest, last = encoder.channels
        self.steps = nn.ModuleList()
        for channels in reversed(rest):
            self.steps.append(nn.Conv2d(last + channels, channels, 3, padding=1))
            last = channels
        self.score = nn.Conv2d(last, classes, 1)

    def forward(self, images):
        *rest, value = self.encoder(images)
        for step, skip in zip(self.steps, reversed(rest), strict=True):
            value = step(torch.cat([functional.interpolate(value, skip.shape[2:]), skip], 1)).relu()
        return self.score(value)


@pytest.mark.parametrize(("head", "layers"), [(FCN8, ["pool3", "pool4", "pool5"]), (UNet, [])])
def test_heads_for_segmentation_fit_a_photo(head, layers):
    """Cup or background, of the photo of a cup of coffee."""
    torch.manual_seed(0)
    image = BATCH[1:2, :, 8:40, 16:48]
    mask = (image.mean(1) > image.mean()).long()
    model = head(vgg.torch.backbone(narrow("vgg11-bn", width=0.25), layers), 2)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        loss = functional.cross_entropy(model(image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (model(image).argmax(1) == mask).float().mean()
    assert right > (0.85 if head is FCN8 else 0.95)
