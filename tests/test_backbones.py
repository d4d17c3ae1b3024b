"""vgg.torch: backbones, alone and under the heads of segmentation and detection networks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional

import vgg
from conftest import EXAMPLES, random_network

PHOTOS = [Image.open(EXAMPLES / name).convert("RGB").resize((64, 48)) for name in ("chelsea.png", "coffee.png", "rocket.jpg")]
BATCH = torch.stack([torch.from_numpy(np.array(photo)).permute(2, 0, 1) / 255 for photo in PHOTOS])


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("name", ["vgg16", "vgg16-bn"])
def test_a_backbones_maps_are_the_engines(name, trainable):
    network = random_network(name)
    backbone = vgg.torch.backbone(network, trainable=trainable).eval()
    assert backbone.names == ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
    assert backbone.strides == (1, 2, 4, 8, 16)
    maps = backbone(BATCH)
    assert tuple(value.shape[1] for value in maps) == backbone.channels
    inputs = np.stack([network.preprocessing.normalise(np.asarray(photo)) for photo in PHOTOS])
    expected = vgg.engines.open(vgg.perceptual.trunk(network)).run(inputs, backbone.names)
    for value, found in zip(maps, expected.values(), strict=True):
        np.testing.assert_allclose(value.detach().numpy(), found, rtol=1e-3, atol=1e-4 * np.abs(found).max())


def test_a_classifiers_maps_are_those_of_a_backbone():
    """Of the same crops, at several scales in one call, whatever head the network has."""
    network = random_network("vgg16-bn", input_size=64)
    names = ("conv2_2", "pool3", "conv5_3")
    crops = torch.from_numpy(np.stack([network.preprocessing(photo) for photo in PHOTOS]))
    expected = vgg.torch.backbone(network, names, trainable=False, normalise=False)(crops)
    found = vgg.load(network).features(PHOTOS, names, maps=True)
    assert list(found) == list(names)
    for value, other in zip(expected, found.values(), strict=True):
        np.testing.assert_allclose(other, value.numpy(), rtol=1e-3, atol=1e-4 * float(value.max()))


def test_what_learns_in_a_backbone():
    frozen = vgg.torch.backbone(random_network("vgg16-bn"), ["pool5"], trainable=False).train()
    assert not list(frozen.parameters())
    assert not any(module.training for module in frozen.trunk.modules())
    partly = vgg.torch.backbone(random_network("vgg16-bn"), ["pool3", "pool5", "conv4_3"], freeze="conv2").train()
    assert partly.names == ("pool3", "conv4_3", "pool5")
    assert partly.strides == (8, 8, 32)
    learning = {name.split(".")[1] for name, value in partly.named_parameters() if value.requires_grad}
    assert "conv3_1" in learning
    assert not learning & {"conv1_1", "conv2_2", "bn2_2"}
    trunk = partly.trunk
    before = {name: value.clone() for name, value in partly.named_buffers()}
    partly(BATCH)
    for name, value in partly.named_buffers():  # the statistics of batch normalisation
        learns = name.startswith("trunk.bn") and int(name[len("trunk.bn")]) > 2
        assert torch.equal(value, before[name]) != learns, name
    assert not trunk.bn2_2.training
    assert trunk.bn3_1.training
    short = random_network("vgg16", head="none", classes=0, last="conv3_2")
    assert vgg.torch.backbone(short).names == ("conv1_2", "conv2_2", "conv3_2")
    with pytest.raises(vgg.ModelError, match="has no layer output 'fc6'"):
        vgg.torch.backbone(random_network("vgg16"), ["fc6"])
    with pytest.raises(vgg.ModelError, match=r"has no layer output 'conv5_3\.raw'"):
        vgg.torch.backbone(random_network("vgg16"), ["conv5_3.raw"])


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


class FPN(nn.Module):
    """A feature pyramid, of a dictionary of maps as torchvision's, with a score at its finest level."""

    def __init__(self, encoder, classes, width=16):
        super().__init__()
        self.encoder = encoder
        self.inner = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in encoder.channels)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in encoder.channels)
        self.score = nn.Conv2d(width, classes, 1)

    def pyramid(self, maps):
        *rest, top = [inner(value) for inner, value in zip(self.inner, maps.values(), strict=True)]
        levels = [top]
        for value in reversed(rest):
            levels.insert(0, value + functional.interpolate(levels[0], value.shape[2:]))
        return {name: layer(level) for name, layer, level in zip(maps, self.layers, levels, strict=True)}

    def forward(self, images):
        levels = self.pyramid(dict(zip(self.encoder.names, self.encoder(images), strict=True)))
        finest = levels[self.encoder.names[0]]
        return functional.interpolate(self.score(finest.relu()), images.shape[2:], mode="bilinear")


@pytest.mark.parametrize(
    ("head", "layers"), [(FPN, ["conv2_1", "conv3_2", "conv4_2"]), (FCN8, ["pool3", "pool4", "pool5"]), (UNet, [])]
)
def test_heads_for_segmentation_fit_a_photo(head, layers):
    """Cup or background, of the photo of a cup of coffee."""
    torch.manual_seed(0)
    image = BATCH[1:2, :, 8:40, 16:48]
    mask = (image.mean(1) > image.mean()).long()
    model = head(vgg.torch.backbone(random_network("vgg11-bn", width=0.25), layers), 2)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(40):
        loss = functional.cross_entropy(model(image), mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = (model(image).argmax(1) == mask).float().mean()
    assert right > (0.95 if head is UNet else 0.85)


class SSD(nn.Module):
    """A score and a box for each position of each map: the box is relative to a square of four strides around the position."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleList(nn.Conv2d(channels, 5, 3, padding=1) for channels in encoder.channels)

    def forward(self, images):
        """Scores [batch, positions] and boxes [batch, positions, 4] as centre and size in pixels."""
        found, squares = [], []
        for head, value, stride in zip(self.heads, self.encoder(images), self.encoder.strides, strict=True):
            rows, columns = value.shape[2:]
            y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
            side = torch.full_like(x, 4) * stride
            squares.append(torch.stack([(x + 0.5) * stride, (y + 0.5) * stride, side, side], -1).flatten(0, 1))
            found.append(head(value).flatten(2).transpose(1, 2))
        made, square = torch.cat(found, 1), torch.cat(squares)
        centre = square[:, :2] + made[..., 1:3] * square[:, 2:]
        return made[..., 0], torch.cat([centre, square[:, 2:] * made[..., 3:].exp()], -1)


def overlap(one, other):
    """Intersection over union of boxes as centre and size."""
    low = torch.maximum(one[..., :2] - one[..., 2:] / 2, other[..., :2] - other[..., 2:] / 2)
    high = torch.minimum(one[..., :2] + one[..., 2:] / 2, other[..., :2] + other[..., 2:] / 2)
    shared = (high - low).clamp(min=0).prod(-1)
    return shared / (one[..., 2:].prod(-1) + other[..., 2:].prod(-1) - shared)


def test_a_head_for_detection_fits_a_photo():
    """The box of the cup in the photo of a cup of coffee."""
    torch.manual_seed(0)
    image, cup = BATCH[1:2], torch.tensor([27.0, 22.0, 26.0, 26.0])
    model = SSD(vgg.torch.backbone(random_network("vgg11-bn", width=0.25), ["conv3_2", "conv4_2"]))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    with torch.no_grad():
        model.heads.apply(lambda layer: [value.zero_() for value in layer.parameters(False)])
        matched = overlap(model(image)[1], cup) > 0.5  # of the squares themselves
    assert 0 < int(matched.sum()) < matched.numel() / 4
    for _ in range(40):
        scores, boxes = model(image)
        loss = functional.binary_cross_entropy_with_logits(scores, matched.float())
        loss = loss + functional.smooth_l1_loss(boxes[matched], cup.expand_as(boxes[matched]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores, boxes = model(image)
    assert float(overlap(boxes.detach()[0, scores[0].argmax()], cup)) > 0.8
