"""Narrow VGG networks as people build and save them with torch, and what vgg must make of their files."""

import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from reference import A
from vgg import ModelError, Network, Notice, engines
from vgg.predictions import scores

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
CLASSES = 5


def features(column: list = A, bn: bool = False, stop: int | None = None) -> nn.Sequential:
    """The convolutions, as torchvision's `features`, up to module `stop`."""
    layers, channels = [], 3
    for entry in column:
        if entry == "M":
            layers.append(nn.MaxPool2d(2, 2))
            continue
        out = entry // 16
        layers += [nn.Conv2d(channels, out, 3, padding=1), *([nn.BatchNorm2d(out)] if bn else []), nn.ReLU(inplace=True)]
        channels = out
    return nn.Sequential(*layers[:stop])


class Own(nn.Module):
    """A class of a user's own, with torchvision's names."""

    def __init__(self, head: nn.Module | None, pool: nn.Module | None = None, **options: object) -> None:
        super().__init__()
        self.features = features(**options)
        self.avgpool = pool or nn.Identity()
        if head is not None:
            self.classifier = head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1)) if hasattr(self, "classifier") else x


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with random parameters and statistics, for inference."""
    torch.manual_seed(seed)
    for one in module.modules():
        if isinstance(one, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(one.weight)
            if one.bias is not None:
                nn.init.uniform_(one.bias, -0.1, 0.1)
        if isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d):
            one.running_mean.uniform_(-0.1, 0.1)
            one.running_var.uniform_(0.5, 1.5)
            if one.affine:
                nn.init.uniform_(one.weight, 0.5, 1.5)
    return module.eval()


def output(module: nn.Module, images: np.ndarray = IMAGES) -> np.ndarray:
    with torch.no_grad():
        return module(torch.from_numpy(images)).numpy()


def read(path: Path | str) -> tuple[Network, str]:
    """The network in a file, and the notices."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        network = Network.read(path)
    return network, "\n".join(str(one.message) for one in caught)


def attempt(path: Path | str) -> str:
    """The error for a file, of one line that names it; empty if it was read."""
    try:
        read(path)
    except ModelError as error:
        message = str(error)
    else:
        return ""
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 1000
    return message


def check(path: Path, expected: np.ndarray, meaning: str = "logits", images: np.ndarray = IMAGES) -> tuple[Network, str]:
    """The network in a file, after a comparison of its output with the expected one, and the notices."""
    network, notices = read(path)
    opened = engines.open(network, "onnxruntime")
    if meaning == "map":
        value = network.architecture.values[-1]
        found = opened.run(images, (value,))[value]
    else:
        found = opened.logits(images)
        if meaning != "logits":
            found = scores(found, network.architecture.output)
        if meaning == "log_softmax":
            found = np.log(found)
        if meaning == "binary":
            found = found[:, 1:]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    return network, notices
