"""Published networks in the layouts of their libraries: files of the real packages of osmr (tests/fixtures/make_osmr.py), and
modules of torch with the names of mmpretrain, pytorchcv and SparseML."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from conftest import FIXTURES
from torch_files import output, randomised, read
from vgg import Network, engines
from vgg.architectures import CONFIGURATIONS

SIDE, CLASSES = 64, 5
IMAGES = np.sin(np.arange(2 * 3 * SIDE * SIDE)).reshape(2, 3, SIDE, SIDE).astype(np.float32)
NAMES = ["vgg11", "vgg13", "vgg16", "vgg19", "vgg11-bn", "vgg13-bn", "vgg16-bn", "vgg19-bn"]


def check(path, expected: np.ndarray) -> tuple[Network, str]:
    """The network in a file, after a comparison of its logits with the expected ones, and the notices."""
    network, notices = read(path)
    found = engines.open(network, "onnxruntime").logits(IMAGES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5 * np.abs(expected).max())
    return network, notices


@pytest.mark.parametrize(
    ("file", "preset"),
    [
        ("osmr-pytorchcv.pth", "torchvision"),
        ("osmr-gluoncv2.params", "gluon"),
        ("osmr-kerascv.h5", "gluon"),
        ("osmr-tf2cv.tf2.h5", "gluon"),
    ],
)
def test_a_file_of_each_package_of_osmr_gives_the_logits_of_mxnet(file, preset):
    network, notices = check(FIXTURES / file, np.loadtxt(FIXTURES / "osmr.logits.txt"))
    assert (network.architecture.name, network.architecture.epsilon, network.preprocessing.name) == ("vgg11-bn", 1e-5, preset)
    assert not network.parameters["conv1_1.bias"].any()
    assert f"using preprocessing '{preset}'" in notices


class Block(nn.Module):
    def __init__(self, channels: int, out: int, bias: bool, norm: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, padding=1, bias=bias)
        if norm:
            self.bn = nn.BatchNorm2d(out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return (self.bn(x) if hasattr(self, "bn") else x).relu()


def built(name: str, bias: bool = True) -> tuple[list[list[Block]], nn.Sequential, nn.Sequential]:
    """The blocks of each stage, the head, and the whole network."""
    stages, channels = [], 3
    for out, depth in zip((2, 4, 8, 8, 8), CONFIGURATIONS[name].depths, strict=True):
        stages.append([Block(channels if unit == 0 else out, out, bias, name.endswith("-bn")) for unit in range(depth)])
        channels = out
    head = nn.Sequential(
        nn.Linear(8 * 4, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, CLASSES)
    )
    whole = nn.Sequential(*(one for stage in stages for one in (*stage, nn.MaxPool2d(2))), nn.Flatten(), head)
    return stages, head, randomised(whole)


def entries(prefix: str, module: nn.Module) -> dict[str, torch.Tensor]:
    return {f"{prefix}.{key}": value for key, value in module.state_dict().items()}


def mmpretrain(stages: list[list[Block]], head: nn.Sequential) -> dict:
    """A checkpoint of OpenMMLab: `backbone.features` is one Sequential of blocks and poolings."""
    state, number = {}, 0
    for stage in stages:
        for block in stage:
            state |= entries(f"backbone.features.{number}", block)
            number += 1
        number += 1
    return {"meta": {"mmcls_version": "0.9.0", "epoch": 100}, "state_dict": state | entries("backbone.classifier", head)}


def pytorchcv(stages: list[list[Block]], head: nn.Sequential) -> dict:
    state = {}
    for number, stage in enumerate(stages, 1):
        for unit, block in enumerate(stage, 1):
            state |= entries(f"features.stage{number}.unit{unit}", block)
    for name, place in (("fc1.fc", 0), ("fc2.fc", 3), ("fc3", 6)):
        state |= entries(f"output.{name}", head[place])
    return state


def sparseml(stages: list[list[Block]], head: nn.Sequential) -> dict:
    """A checkpoint of SparseML, as in SparseZoo."""
    state = {}
    for number, stage in enumerate(stages):
        for unit, block in enumerate(stage):
            state |= entries(f"sections.{number}.{unit}", block)
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
    return {
        "state_dict": state | entries("classifier.mlp", head),
        "optimizer": optimizer,
        "recipe": "!EpochRangeModifier",
        "epoch": 9,
    }


@pytest.mark.parametrize("layout", [mmpretrain, pytorchcv, sparseml])
@pytest.mark.parametrize("name", NAMES)
def test_the_names_of_a_library_give_the_logits_of_torch(tmp_path, layout, name):
    for bias in (True, False) if name.endswith("-bn") else (True,):
        stages, head, whole = built(name, bias)
        torch.save(layout(stages, head), tmp_path / "n.pth")
        network, _ = check(tmp_path / "n.pth", output(whole, IMAGES))
        assert (network.architecture.name, network.preprocessing.name) == (name, "torchvision")


class TwoOutputs(nn.Module):
    """SparseML's networks give the logits and their softmax."""

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.whole(x)
        return logits, logits.softmax(1)


def test_a_pruned_onnx_file_of_sparsezoo_has_two_outputs(tmp_path):
    _, _, whole = built("vgg16")
    with torch.no_grad():
        for value in whole.parameters():
            if value.ndim > 1:
                value[torch.rand_like(value) < 0.3] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            TwoOutputs(whole).eval(), (torch.from_numpy(IMAGES[:1]),), tmp_path / "model.onnx", dynamo=False,
            opset_version=11, input_names=["input"], output_names=["output_0", "output_1"],
            dynamic_axes={"input": {0: "batch"}},
        )  # fmt: skip
    network, _ = check(tmp_path / "model.onnx", output(whole, IMAGES))
    assert network.architecture.name == "vgg16"
    assert (network.parameters["conv5_3.weight"] == 0).mean() > 0.2
    assert Network.read(tmp_path / "model.onnx").preprocessing.name == "torchvision"
