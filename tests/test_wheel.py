"""What an installed wheel must do on every platform. It runs where nothing but vgg, pytest and hypothesis is installed."""

import json
import subprocess
import sys
from importlib.metadata import metadata

import numpy as np

import vgg
from conftest import EXAMPLES, random_network
from vgg import engines
from vgg.engines import native_interface


def test_it_classifies_the_examples():
    command = [sys.executable, "-m", "vgg", "classify", str(EXAMPLES), "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    best = [one["predictions"][0]["label"] for one in json.loads(done.stdout)]
    assert best == ["tabby", "espresso", "missile"]


def plain_logits(network, batch):
    """The logits of a network without batch normalisation, by loops over the positions of a kernel."""
    value = batch.astype(np.float64)
    for layer in network.architecture.layers:
        weight, bias = (network.parameters.get(f"{layer.name}.{role}") for role in ("weight", "bias"))
        if layer.operation == "convolution":
            rows, columns = value.shape[2:]
            padded = np.pad(value, ((0, 0), (0, 0), (1, 1), (1, 1)))
            value = bias[:, None, None] + sum(
                np.einsum("oc,ncyx->noyx", weight[:, :, y, x], padded[:, :, y : y + rows, x : x + columns])
                for y in range(3)
                for x in range(3)
            )
        elif layer.operation == "relu":
            value = value.clip(0)
        elif layer.operation == "max_pool":
            count, channels, rows, columns = value.shape
            value = value.reshape(count, channels, rows // 2, 2, columns // 2, 2).max((3, 5))
        elif layer.operation == "linear":
            value = value.reshape(len(value), -1) @ weight.reshape(len(weight), -1).T + bias
    return value


def test_it_has_the_engine_and_each_instruction_set_is_right(monkeypatch):
    assert engines.native_library()
    network = random_network()
    batch = np.random.default_rng(0).normal(0, 1, (3, 3, 32, 32)).astype(np.float32)
    expected = plain_logits(network, batch)
    available = native_interface.available_instructions()
    assert {"auto", "portable"} <= {*available}
    for name in available:
        monkeypatch.setenv("VGG_INSTRUCTIONS", name)
        found = engines.open(network, "native", threads=2).logits(batch)
        assert abs(found - expected).max() <= 1e-5 * abs(expected).max()


def test_its_metadata_is_that_of_this_version():
    facts = metadata("vgg")
    assert facts["Version"] == vgg.__version__
    assert facts["Requires-Python"] == ">=3.11"
    assert {"LICENSE", "NOTICE"} <= {*facts.get_all("License-File")}
