"""ONNX files by exporters and tools, of any head: torch's two exporters, Keras's, onnxsim, onnxconverter-common, ONNX Runtime.

Each is compared with its own outputs, by ONNX Runtime.
"""

import os

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import pytest
import torch
from torch import nn

from torch_exports import IMAGES, LAST, Flow, export, ours, run, same, settled
from vgg import ModelError, Network
from vgg.predictions import scores

FLAT = 4 * LAST
HEADS = {
    "linear": lambda: Flow(lambda m, x: m.fc(torch.flatten(m.features(x), 1)), fc=nn.Linear(FLAT, 5)),
    "view": lambda: Flow(lambda m, x: m.fc(m.features(x).view(x.size(0), -1)), fc=nn.Linear(FLAT, 5)),
    "reshape-number": lambda: Flow(lambda m, x: m.fc(m.features(x).reshape(-1, FLAT)), fc=nn.Linear(FLAT, 5)),
    "channels-last": lambda: Flow(lambda m, x: m.fc(m.features(x).permute(0, 2, 3, 1).flatten(1)), fc=nn.Linear(FLAT, 5)),
    "mean": lambda: Flow(lambda m, x: m.fc(m.features(x).mean((2, 3))), fc=nn.Linear(LAST, 5)),
    "mean-by-sides": lambda: Flow(lambda m, x: m.fc(m.features(x).mean(3).mean(2)), fc=nn.Linear(LAST, 5)),
    "mean-of-flat": lambda: Flow(lambda m, x: m.fc(m.features(x).flatten(2).mean(-1)), fc=nn.Linear(LAST, 5)),
    "amax": lambda: Flow(lambda m, x: m.fc(m.features(x).amax((2, 3))), fc=nn.Linear(LAST, 5)),
    "max-pool": lambda: Flow(lambda m, x: m.fc(m.pool(m.features(x)).flatten(1)), pool=nn.MaxPool2d(2), fc=nn.Linear(LAST, 5)),
    "adaptive-max": lambda: Flow(
        lambda m, x: m.fc(m.pool(m.features(x)).flatten(1)), pool=nn.AdaptiveMaxPool2d(1), fc=nn.Linear(LAST, 5)
    ),
    "average-squeeze": lambda: Flow(
        lambda m, x: m.fc(m.pool(m.features(x)).squeeze(-1).squeeze(-1)), pool=nn.AdaptiveAvgPool2d(1), fc=nn.Linear(LAST, 5)
    ),
    "average-kernel": lambda: Flow(
        lambda m, x: m.fc(m.pool(m.features(x)).flatten(1)), pool=nn.AvgPool2d(2), fc=nn.Linear(LAST, 5)
    ),
    "convolutions": lambda: Flow(
        lambda m, x: m.head(m.pool(m.features(x))).flatten(1),
        pool=nn.AdaptiveAvgPool2d(1), head=nn.Sequential(nn.Conv2d(LAST, 24, 1), nn.LeakyReLU(0.2), nn.Conv2d(24, 5, 1)),
    ),
    "convolution-then-average": lambda: Flow(
        lambda m, x: m.pool(m.head(m.features(x))).flatten(1), pool=nn.AdaptiveAvgPool2d(1), head=nn.Conv2d(LAST, 5, 1)
    ),
    "dense": lambda: Flow(
        lambda m, x: m.head(m.features(x)).squeeze(), head=nn.Sequential(nn.Conv2d(LAST, 24, 2), nn.ReLU(), nn.Conv2d(24, 5, 1))
    ),
    "norms": lambda: Flow(
        lambda m, x: m.head(m.features(x).flatten(1)),
        head=nn.Sequential(
            settled(nn.BatchNorm1d(FLAT)), nn.Linear(FLAT, 24), settled(nn.BatchNorm1d(24)), nn.ELU(0.5), nn.Dropout(0.3),
            nn.Linear(24, 12, bias=False), nn.SiLU(), settled(nn.BatchNorm1d(12)), nn.Linear(12, 5),
        ),
    ),
    "norm-of-map": lambda: Flow(
        lambda m, x: m.fc(m.norm(m.features(x)).flatten(1)), norm=settled(nn.BatchNorm2d(LAST)), fc=nn.Linear(FLAT, 5)
    ),
    "norm-of-map-average": lambda: Flow(
        lambda m, x: m.fc(m.norm(m.features(x)).mean((2, 3))), norm=settled(nn.BatchNorm2d(LAST)), fc=nn.Linear(LAST, 5)
    ),
    "affine": lambda: Flow(
        lambda m, x: (m.b(torch.relu(m.a(m.features(x).flatten(1)) * 0.5 + m.shift)) - 1) / m.scale,
        a=nn.Linear(FLAT, 24), b=nn.Linear(24, 5), shift=nn.Parameter(torch.randn(24)), scale=nn.Parameter(torch.rand(5) + 1),
    ),
    "affine-after-relu": lambda: Flow(
        lambda m, x: m.b(torch.relu(m.a(m.features(x).flatten(1))) * 0.5 + m.shift),
        a=nn.Linear(FLAT, 24), b=nn.Linear(24, 5), shift=nn.Parameter(torch.randn(24)),
    ),
    "gelu": lambda: Flow(
        lambda m, x: m.head(m.features(x).flatten(1)),
        head=nn.Sequential(nn.Linear(FLAT, 24), nn.GELU(), nn.Linear(24, 12), nn.GELU("tanh"), nn.Linear(12, 5)),
    ),
    "activations": lambda: Flow(
        lambda m, x: m.head(m.features(x).flatten(1)),
        head=nn.Sequential(
            nn.Linear(FLAT, 24), nn.PReLU(), nn.Linear(24, 12), nn.Tanh(), nn.Linear(12, 12), nn.Sigmoid(), nn.Linear(12, 9),
            nn.CELU(), nn.Linear(9, 5), nn.LogSoftmax(1),
        ),
    ),
    "clip": lambda: Flow(
        lambda m, x: m.b(m.a(m.features(x).flatten(1)).clamp(min=0)).softmax(-1), a=nn.Linear(FLAT, 24), b=nn.Linear(24, 5)
    ),
    "parameters": lambda: Flow(
        lambda m, x: m.shift + torch.addmm(m.bias, m.features(x).flatten(1), m.weight, beta=0.5, alpha=2),
        weight=nn.Parameter(torch.randn(FLAT, 5)), bias=nn.Parameter(torch.randn(5)), shift=nn.Parameter(torch.randn(5)),
    ),
    "turned": lambda: Flow(
        lambda m, x: (m.weight @ m.features(x).flatten(1).T + m.bias).T,
        weight=nn.Parameter(torch.randn(5, FLAT)), bias=nn.Parameter(torch.randn(5, 1)),
    ),
    "one-logit": lambda: Flow(lambda m, x: m.fc(m.features(x).mean((2, 3))).sigmoid().squeeze(1), fc=nn.Linear(LAST, 1)),
    "labels-of-many": lambda: Flow(lambda m, x: torch.sigmoid(m.fc(m.features(x).mean((2, 3)))), fc=nn.Linear(LAST, 6)),
    "log-of-softmax": lambda: Flow(
        lambda m, x: torch.log(torch.softmax(m.fc(m.features(x).mean((2, 3))), 1)), fc=nn.Linear(LAST, 6)
    ),
    "pixels": lambda: Flow(
        lambda m, x: m.fc(m.features((x / 255 - m.mean) / m.std).mean((2, 3))), fc=nn.Linear(LAST, 5),
        mean=nn.Parameter(torch.tensor([0.5, 0.4, 0.3]).reshape(1, 3, 1, 1)),
        std=nn.Parameter(torch.tensor([0.2, 0.3, 0.25]).reshape(1, 3, 1, 1)),
    ),
    "backbone": lambda: Flow(lambda m, x: m.features(x), batch_norm=True),
    "backbone-conv5_2": lambda: Flow(lambda m, x: m.features[:-1](x)),
    "backbone-average": lambda: Flow(lambda m, x: m.features(x).mean((2, 3))),
}  # fmt: skip


def meaning(name: str, network: Network, logits):
    """What a file's output is of the logits."""
    if name in ("clip",):
        return scores(logits, "softmax")
    if name in ("activations", "log-of-softmax"):
        return np.log(scores(logits, "softmax"))
    if name in ("one-logit", "labels-of-many"):
        return scores(logits, network.architecture.output)[:, -6:] if name != "one-logit" else scores(logits, "binary")[:, 1]
    return logits


# Each head with one of the three forms of sizes in turn; with the slower exporter, those that it writes in another way.
BY_DYNAMO = ("view", "mean-of-flat", "norms", "affine", "gelu", "activations", "turned", "dense", "pixels", "one-logit")
FORMS = ("fixed", "batch", "any")
CASES = [
    pytest.param(name, dynamo, FORMS[(place + dynamo) % 3], id=f"{name}-{'dynamo' if dynamo else 'torchscript'}")
    for place, name in enumerate(HEADS)
    for dynamo in (False, True)
    if not dynamo or name in BY_DYNAMO
]
ANY_SIZE_REFUSED = ("max-pool", "average-kernel")  # pooling over 2x2 positions, which are a whole map only at one size


@pytest.mark.parametrize(("name", "dynamo", "sizes"), CASES)
def test_torchs_exporters_of_any_head(tmp_path, name, dynamo, sizes):
    sizes = "batch" if name in ANY_SIZE_REFUSED else sizes
    export(HEADS[name](), tmp_path / "n.onnx", dynamo, sizes)
    network = Network.read(tmp_path / "n.onnx")
    images = (IMAGES * 50 + 128).clip(0, 255) if name == "pixels" else IMAGES
    expected = run(tmp_path / "n.onnx", images)
    if name == "pixels":
        images = np.stack([network.preprocessing.normalise(image.transpose(1, 2, 0)) for image in images])
    if name == "backbone-average":
        same(ours(network).mean((2, 3)), expected)
    else:
        same(meaning(name, network, ours(network, images)), expected)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("max-pool", r"unsupported operator MaxPool \(node '\S+'\): it follows five other poolings"),
        ("average-kernel", r"AveragePool \(node '\S+'\) has kernel_shape \[2, 2\] for an input of any size; export it with a"),
    ],
)
def test_a_pooling_of_a_map_of_unknown_size_is_refused(tmp_path, name, message):
    export(HEADS[name](), tmp_path / "n.onnx", False, "any")
    with pytest.raises(ModelError, match=rf"n\.onnx: not a VGG network: {message}"):
        Network.read(tmp_path / "n.onnx")
