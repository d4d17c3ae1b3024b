"""Narrow VGG-11s with any head in torch, and their exports as ONNX."""

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import nn

from vgg import Network, engines

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
CHANNELS = (4, 8, 16, 16, 32, 32, 32, 32)
LAST = CHANNELS[-1]


def trunk(batch_norm: bool = False) -> nn.Sequential:
    """A narrow VGG-11's convolutions."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    channels = 3
    for place, out in enumerate(CHANNELS):
        layers.append(nn.Conv2d(channels, out, 3, padding=1))
        nn.init.kaiming_normal_(layers[-1].weight, nonlinearity="relu")
        layers += [settled(nn.BatchNorm2d(out))] if batch_norm else []
        layers += [nn.ReLU(), *([nn.MaxPool2d(2, 2)] if place in (0, 1, 3, 5, 7) else [])]
        channels = out
    return nn.Sequential(*layers)


def settled(norm):
    """A batch normalisation that has seen data."""
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, 0, 0.1)
    norm.running_mean.normal_(0, 0.1)
    norm.running_var.uniform_(0.5, 1.5)
    return norm


class Flow(nn.Module):
    """A trunk, followed by a function of modules that a network's author wrote."""

    def __init__(self, flow, batch_norm=False, **modules: nn.Module) -> None:
        super().__init__()
        self.features = trunk(batch_norm)
        for name, module in modules.items():
            setattr(self, name, module)
        self.flow = flow

    def forward(self, x):
        return self.flow(self, x)


def run(path: Path, images=IMAGES, output=0):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    port = session.get_inputs()[0]
    if port.type == "tensor(uint8)":
        images = images.astype(np.uint8)
    step = port.shape[0] if isinstance(port.shape[0], int) else len(images)
    return np.concatenate(
        [
            np.atleast_1d(session.run(None, {port.name: images[at : at + step]})[output]).reshape(step, -1)
            for at in range(0, len(images), step)
        ]
    )


def ours(network: Network, images=IMAGES, engine="native"):
    """The last layer's output for preprocessed images."""
    last = network.architecture.values[-1]
    return engines.open(network, engine).run(images, (last,))[last]


def same(found, expected, tolerance=1e-4):
    found = found.reshape(expected.shape)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max(), (found, expected)


def export(module: nn.Module, path: Path, dynamo: bool, sizes: str = "fixed", **options) -> None:
    module.eval()
    images = torch.from_numpy(IMAGES[:1] if sizes == "fixed" else IMAGES)
    axes = {0: "batch"} if sizes == "batch" else {0: "batch", 2: "height", 3: "width"}
    if sizes != "fixed" and dynamo:
        options["dynamic_shapes"] = (dict.fromkeys(axes, torch.export.Dim.DYNAMIC),)
    elif sizes != "fixed":
        options["dynamic_axes"] = {"input": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module, (images,), path, dynamo=dynamo, input_names=["input"], external_data=False, verbose=False, **options
        )
