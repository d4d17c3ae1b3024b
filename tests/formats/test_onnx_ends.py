"""What torch's exporters write before the first convolution and after the last layer: pixels, scores, selected classes."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from onnx_optimised import optimise
from torch_exports import IMAGES, LAST, Flow, export, ours, run, same
from vgg import Network
from vgg.predictions import scores

MEAN, STD = (torch.tensor(one) for one in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
CAFFE = torch.tensor([103.939, 116.779, 123.68])
PIXELS = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3), np.uint8)


def planes(values):
    return values.reshape(3, 1, 1)


# What a network does to its pixels, the input's form, and the preset that this is.
FRONTS = {
    "0..1": (lambda x: (x - planes(MEAN)) / planes(STD), "unit", "torchvision"),
    "-1..1": (lambda x: ((x + 1) / 2 - planes(MEAN)) / planes(STD), "signed", "torchvision"),
    "0..255": (lambda x: x * planes(1 / 255 / STD) - planes(MEAN / STD), "planes", "torchvision"),
    "whole-map": (lambda x: x - planes(CAFFE).flip(0).expand(1, 3, 64, 64), "planes", "file"),
    "unsigned": (lambda x: x.float(), "unsigned", "file"),
    "unsigned-last": (lambda x: ((x.float() / 255 - MEAN) / STD).permute(0, 3, 1, 2), "image", "torchvision"),
    "one-image": (lambda x: ((x.float() / 255 - MEAN) / STD).permute(2, 0, 1)[None], "single", "torchvision"),
    "reversed": (lambda x: x[:, [2, 1, 0]] - planes(CAFFE), "planes", "caffe"),
    "by-channels": (
        lambda x: torch.stack([x[:, 2] - CAFFE[0], x[:, 1] - CAFFE[1], x[:, 0] - CAFFE[2]], 1), "planes", "caffe"
    ),
    "unequal": (lambda x: torch.cat([x[:, i].unsqueeze(1) * (2.0 + i) - 1 for i in range(3)], 1), "unit", "file"),
}  # fmt: skip


def given(form):
    if form in ("image", "single"):
        return PIXELS if form == "image" else PIXELS[0]
    values = PIXELS.transpose(0, 3, 1, 2).copy()
    floats = values.astype(np.float32)
    return {"unsigned": values, "planes": floats, "unit": floats / 255, "signed": floats / 127.5 - 1}[form]


@pytest.mark.parametrize(
    ("name", "dynamo"), [*((name, False) for name in FRONTS), *((name, True) for name in ("reversed", "unsigned-last"))]
)
def test_steps_before_the_first_convolution_become_the_preprocessing(tmp_path, name, dynamo):
    front, form, preset = FRONTS[name]
    images = given(form)
    module = Flow(lambda m, x: m.fc(m.features(front(x)).mean((2, 3))), fc=nn.Linear(LAST, 5)).eval()
    shapes = {"dynamic_shapes": ({0: torch.export.Dim.DYNAMIC},)} if dynamo else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.from_numpy(images),),
            tmp_path / "n.onnx",
            dynamo=dynamo,
            external_data=False,
            verbose=False,
            **shapes,
        )
    network = Network.read(tmp_path / "n.onnx")
    assert network.preprocessing.name == preset
    data = np.stack([network.preprocessing.normalise(image) for image in (PIXELS[:1] if form == "single" else PIXELS)])
    with torch.no_grad():
        same(ours(network, data), module(torch.from_numpy(images)).numpy(), 1e-3)


# What follows the logits, and what is removed of it, with a note.
TAILS = {
    "log-softmax": (lambda y: torch.log_softmax(y, 1), "softmax"),
    "softmax-then-log": (lambda y: torch.log(torch.softmax(y, 1) + 1e-8), "softmax"),
    "exponential": (lambda y: torch.exp(torch.log_softmax(y, 1)), "softmax"),
    "percent": (lambda y: torch.softmax(y, 1) * 100, "Mul"),
    "largest": (lambda y: torch.softmax(y, 1).max(1), "ReduceMax"),
    "best": (lambda y: y.argmax(1), "ArgMax"),
    "top": (lambda y: torch.softmax(y, 1).topk(3), "TopK"),
    "scores-and-best": (lambda y: (torch.softmax(y, 1), y.argmax(1)), "ArgMax"),
    "above": (lambda y: torch.sigmoid(y) > 0.5, "Greater"),
}


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("name", TAILS)
def test_steps_after_the_logits_are_removed(tmp_path, name, opset):
    tail, removed = TAILS[name]
    module = Flow(lambda m, x: tail(m.fc(m.features(x).mean((2, 3)))), fc=nn.Linear(LAST, 5)).eval()
    export(module, tmp_path / "n.onnx", False, opset_version=opset)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network = Network.read(tmp_path / "n.onnx")
    assert any(f"removed {'the ' * (removed == 'softmax')}{removed} at its end" in str(one.message) for one in caught)
    module.flow = lambda m, x: m.fc(m.features(x).mean((2, 3)))
    with torch.no_grad():
        same(ours(network), module(torch.from_numpy(IMAGES)).numpy())
    if name == "log-softmax":
        same(np.log(scores(ours(network), network.architecture.output)), run(tmp_path / "n.onnx"))


class QuickGelu(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"gelu": nn.GELU(), "gelu-tanh": nn.GELU("tanh"), "quick": QuickGelu()}


@pytest.mark.parametrize("level", ["", "BASIC", "EXTENDED"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_of_several_operators(tmp_path, name, level):
    """Before opset 20, torch's exporter ends a GELU with a product by 0.5; ONNX Runtime fuses the operators."""
    head = nn.Sequential(nn.Linear(LAST, 24), ACTIVATIONS[name], nn.Linear(24, 12), ACTIVATIONS[name], nn.Linear(12, 5))
    module = Flow(lambda m, x: m.head(m.features(x).mean((2, 3))), head=head).eval()
    export(module, tmp_path / "n.onnx", False, opset_version=13)
    path = tmp_path / "n.onnx"
    if level:
        optimise(path, level)
    with torch.no_grad():
        same(ours(Network.read(path)), module(torch.from_numpy(IMAGES)).numpy(), 1e-3)
