"""vgg.gradients: the backward pass without torch is torch's."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vgg
from conftest import needs_native, random_network
from heads_helpers import CHANNELS, heads
from vgg import Quantized
from vgg.explanation import input_gradients
from vgg.gradients import gradient, maps, needed
from vgg.module import Module


def by_torch(network, batch, signal, start):
    """All layer outputs, and the gradients at one of them or at the input, in float64."""
    module = Module(network.architecture).eval()
    module.load(network)
    module.double()
    value = torch.from_numpy(batch).double().requires_grad_()
    values, kept = {}, value
    for layer, step in zip(network.architecture.layers, module, strict=True):
        value = step(value)
        values[layer.value] = value.detach().numpy()[0]
        if layer.value == start:
            value = kept = value.detach().requires_grad_()
    rows = [torch.autograd.grad(value[0] @ torch.from_numpy(row).double(), kept, retain_graph=True)[0][0] for row in signal]
    return values, np.stack([row.numpy() for row in rows])


def check(network, start="data", least=0.0):
    rng = np.random.default_rng(1)
    size = network.architecture.input_size
    batch = rng.normal(size=(1, 3, size, size)).astype(np.float32)
    signal = rng.normal(size=(2, network.architecture.units)).astype(np.float32)
    values, expected = by_torch(network, batch, signal, start)
    found = gradient(network, {name: values[name] for name in needed(network.architecture, start)}, signal, start)
    assert np.abs(expected).max() > least
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(np.abs(expected).max(), 1e-30))


@pytest.mark.parametrize("start", ["data", "conv1_1", "pool2", "conv4_1", "pool5"])
@pytest.mark.parametrize("name", ["vgg11", "vgg11-lrn", "vgg16-c", "vgg16", "vgg13-bn"])
def test_gradients_at_any_layer_are_those_of_torch(name, start):
    check(random_network(name, input_size=64), start)


@settings(max_examples=40)
@given(
    head=heads(), channels=CHANNELS, bn=st.booleans(), size=st.sampled_from([64, 97]), seed=st.integers(0, 9),
)  # fmt: skip
def test_gradients_of_any_head_are_those_of_torch(head, channels, bn, size, seed):
    classes = 2 if head.output == "binary" else 5
    options = {"input_size": size, "head": head.text, "channels": channels, "classes": classes}
    check(random_network("vgg11-bn" if bn else "vgg11", seed, **options), least=-1)  # some are 0 everywhere


def test_a_layer_that_the_network_lacks_is_refused():
    network = random_network("vgg16")
    for wrong in (lambda: needed(network.architecture, "conv5_4"), lambda: gradient(network, {}, np.ones((1, 7)), "conv5_4")):
        with pytest.raises(vgg.ModelError, match="vgg16 has no layer output 'conv5_4'; choose from conv1_1"):
            wrong()


def test_equal_maxima_pass_the_gradient_to_the_first_as_in_torch():
    value = np.random.default_rng(0).integers(0, 2, (5, 7, 9)).astype(np.float32)
    signal = np.random.default_rng(1).normal(size=(2, 5, 3, 4)).astype(np.float32)
    leaf = torch.from_numpy(value).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(leaf[None], 2)[0]
    expected = [torch.autograd.grad(pooled, leaf, torch.from_numpy(one), retain_graph=True)[0].numpy() for one in signal]
    np.testing.assert_array_equal(maps.max_pool(signal, value), expected)


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "int8", "transposed"])
def test_weights_of_convolutions_are_read_as_they_are_stored(kind):
    network = random_network("vgg11", input_size=64)
    stored = dict(network.parameters)
    for name, value in network.parameters.items():
        if value.ndim == 4 and kind == "int8":
            scale = np.abs(value).reshape(len(value), -1).max(1) / np.float32(127)
            stored[name] = Quantized(np.rint(value / scale[:, None, None, None]).astype(np.int8), scale)
        elif value.ndim == 4 and kind == "transposed":  # as in Keras's files
            stored[name] = np.ascontiguousarray(value.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1)
        elif value.ndim == 4:
            stored[name] = value.astype({"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}[kind])
    check(replace(network, parameters=stored))


@pytest.mark.parametrize("engine", [pytest.param("native", marks=needs_native), "onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("name", ["vgg11-lrn", "vgg13-bn"])
def test_the_values_of_any_engine_give_the_same_gradients(engine, name):
    network = random_network(name, input_size=64)
    classifier = vgg.load(network, engine)
    batch = np.random.default_rng(2).normal(size=(2, 3, 64, 64)).astype(np.float32)
    signal = np.eye(7, dtype=np.float32)[[4, 1]]
    found = input_gradients(classifier, batch, signal)
    assert found.dtype == np.float32
    for one, result in zip(batch, found, strict=True):
        _, expected = by_torch(network, one[None], signal, "data")
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
