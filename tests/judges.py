"""Publishers' packages of perceptual metrics, which need torchvision."""

from functools import cache
from types import SimpleNamespace

import numpy as np
import torch

from vgg.perceptual.fitted import PLACES


def torchvision():
    """The package torchvision. Its operators in C++ require its own build of torch; two of them are declared here instead."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

    torchvision.library = library  # or the operators would end with it
    return torchvision


TORCHVISION = torchvision()


@cache
def random_features():
    """VGG-16's convolutions as torchvision's module, with random weights of realistic size."""
    torch.manual_seed(0)
    made = TORCHVISION.models.vgg.make_layers(TORCHVISION.models.vgg.cfgs["D"])
    for place in PLACES:
        torch.nn.init.normal_(made[place].weight, 0, (2 / made[place].weight[0].numel()) ** 0.5)
        torch.nn.init.normal_(made[place].bias, 0, 0.1)
    return made


def features(network):
    """VGG-16's convolutions as torchvision's module, with the weights of a network."""
    names = [layer.name for layer in network.architecture.layers if layer.operation == "convolution"]
    made = TORCHVISION.models.vgg.make_layers(TORCHVISION.models.vgg.cfgs["D"])
    for name, place in zip(names, PLACES, strict=True):
        for role in ("weight", "bias"):
            getattr(made[place], role).data = torch.tensor(np.asarray(network.parameters[f"{name}.{role}"], np.float32))
    return made


def of(network):
    """What the packages use of torchvision's `vgg16`."""
    return lambda pretrained: SimpleNamespace(features=features(network) if network else random_features())


def lpips(monkeypatch, network=None, **options):
    """LPIPS's module of the package lpips."""
    import lpips

    monkeypatch.setattr(TORCHVISION.models, "vgg16", of(network))
    return lpips.LPIPS(net="vgg", verbose=False, **options)


def dists(monkeypatch, network=None, **options):
    """DISTS's module of the package dists-pytorch."""
    import DISTS_pytorch

    monkeypatch.setattr(TORCHVISION.models, "vgg16", of(network))
    return DISTS_pytorch.DISTS(**options)


def tensor(image):
    """An image as torch's metrics take it: [1, 3, height, width], 0..1."""
    return torch.tensor(np.asarray(image, np.float32) / 255).permute(2, 0, 1)[None]
