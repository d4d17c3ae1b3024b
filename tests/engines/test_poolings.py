"""The three poolings of `Architecture.pooling` on every engine, against torch's own operations."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from conftest import needs_native, random_network
from vgg import Architecture, ModelError, engines
from vgg.engines.native_interface import available_instructions
from vgg.module import Module

INSTRUCTIONS = available_instructions() if engines.native_library() else []
# The kernel of DISTS's L2pooling.
WINDOW = np.hanning(5)[1:-1]
KERNEL = torch.tensor(np.outer(WINDOW, WINDOW) / np.outer(WINDOW, WINDOW).sum())


def pooled(network, pooling):
    return replace(network, architecture=replace(network.architecture, pooling=pooling))


def backbone(pooling, name="vgg11"):
    return pooled(random_network(name, head="none", classes=0), pooling)


def reference(value, pooling):
    """Pooling in float64."""
    value = torch.from_numpy(value).double()
    if pooling == "l2":
        kernel = KERNEL.expand(value.shape[1], 1, 3, 3)
        value = (functional.conv2d(value * value, kernel, stride=2, padding=1, groups=value.shape[1]) + 1e-12).sqrt()
    else:
        value = functional.max_pool2d(value, 2) if pooling == "max" else functional.avg_pool2d(value, 2)
    return value.numpy()


def outputs(network, batch):
    """All layer outputs by a plain loop over the layers, in float64."""
    found, value = {}, batch
    for layer in network.architecture.layers:
        if layer.operation == "convolution":
            weight, bias = (torch.from_numpy(network.parameters[f"{layer.name}.{role}"]).double() for role in layer.parameters)
            value = functional.conv2d(torch.from_numpy(value).double(), weight, bias, padding=1).numpy()
        elif layer.operation == "relu":
            value = np.maximum(value, 0)
        else:
            value = reference(value, network.architecture.pooling)
        found[layer.value] = value
    return found


def images(count, height, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, height, width)).astype(np.float32)


def check(engine, network, batch):
    """Each pooling within 1e-5 of its input's largest; the whole within the tolerance of the native engine's convolutions."""
    names, expected = network.architecture.values, outputs(network, batch)
    found = engine.run(batch, names)
    for before, name in zip(("", *names), names, strict=False):
        assert found[name].shape == network.architecture.shape(name, *np.array(batch.shape)[[0, 2, 3]]) == expected[name].shape
        assert np.abs(found[name] - expected[name]).max() <= 1e-4 * np.abs(expected[name]).max()
        if name.startswith("pool"):
            exact, limit = reference(found[before], network.architecture.pooling), 1e-5 * np.abs(found[before]).max()
            for value in (found[name], engine.run(batch, [name])[name]):  # the second may be fused with the convolution
                assert np.abs(value - exact).max() <= limit


@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
@pytest.mark.parametrize("name", [pytest.param("native", marks=needs_native), "onnxruntime", "openvino", "torch"])
def test_poolings_of_any_size(name, pooling):
    if name not in engines.installed():
        pytest.skip(f"{name} isn't installed; `scripts/setup test` installs it")
    network = backbone(pooling)
    engine = engines.open(network, name, threads=2)
    for height, width in ((32, 32), (33, 47), (70, 64), (101, 75)):  # of any size, also on engines that aren't dense
        check(engine, network, images(2, height, width))


@needs_native
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("pooling", ["average", "l2"])
def test_poolings_with_every_instruction_set(instructions, pooling, monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    network = backbone(pooling, "vgg16")
    check(engines.open(network, "native", threads=3), network, images(3, 65, 38))


@pytest.mark.parametrize("pooling", ["average", "l2"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", [one for one in engines.installed() if one != "openvino"])  # its ReLU turns NaN into 0
def test_a_value_that_is_no_number_stays_visible(name, value, pooling):
    batch = images(1, 64, 64)
    batch[0, 1, 0, 0] = value
    found = engines.open(backbone(pooling), name, threads=1).run(batch, ["pool1"])["pool1"]
    assert not np.isfinite(found).all()


def test_the_module_has_gradients():
    """Those of `l2` are finite also where all inputs are 0."""
    for pooling in ("average", "l2"):
        module = Module(backbone(pooling).architecture).double()
        module.initialise()
        batch = torch.zeros(1, 3, 32, 32, dtype=torch.double)
        batch[..., 16:] = torch.rand(1, 3, 32, 16, generator=torch.Generator().manual_seed(0), dtype=torch.double)
        batch.requires_grad_()
        module(batch, ["pool5"])["pool5"].sum().backward()
        assert batch.grad.isfinite().all()
        assert batch.grad.abs().max() > 0


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "torch"])
def test_a_head_reads_the_map_that_a_pooling_leaves(engine):
    """Of 45 pixels, `l2` leaves two positions and the others one."""
    network = random_network(input_size=45)
    assert network.architecture.parameters["fc6.weight"][2:] == (1, 1)
    architecture = replace(network.architecture, pooling="l2")
    assert architecture.parameters["fc6.weight"][2:] == (2, 2)
    network = random_network(input_size=45, pooling="l2", head="average 2, classes")
    batch = images(2, 45, 45)
    expected = engines.open(network, "onnxruntime").logits(batch)
    np.testing.assert_allclose(engines.open(network, engine).logits(batch), expected, rtol=1e-4, atol=1e-5)


def test_an_unknown_pooling_is_refused():
    with pytest.raises(ModelError, match="unknown pooling 'min'; choose from max, average, l2"):
        Architecture(pooling="min")


@pytest.mark.parametrize("suffix", [".onnx", ".safetensors", ".pth"])
def test_networks_of_other_poolings_are_not_written(suffix, tmp_path):
    path = tmp_path / f"made{suffix}"
    with pytest.raises(ModelError, match=rf"made\{suffix}: networks are written with max pooling only, not with l2 pooling$"):
        backbone("l2").write(path)
    assert not path.exists()
