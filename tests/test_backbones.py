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


@pytest.mark.parametrize(("head", "layers"), [(FCN8, ["pool3", "pool4", "pool5"]), (UNet, [])])
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
    assert right > (0.85 if head is FCN8 else 0.95)
