from dataclasses import replace
from multiprocessing.pool import ThreadPool

import ml_dtypes
import numpy as np
import pytest

from conftest import random_network
from vgg import Network, Quantized, engines
from vgg.architectures import CONFIGURATIONS

pytest.importorskip("openvino", reason="openvino isn't installed; `scripts/setup test` installs it")


def images(count=2, height=32, width=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, height, width)).astype(np.float32)


def assert_as_onnxruntime(network, batch):
    """Every named value is that of ONNX Runtime, but for 1e-5 of the largest."""
    names = network.architecture.values
    expected = engines.open(network, "onnxruntime").run(batch, names)
    found = engines.open(network, "openvino").run(batch, names)
    assert tuple(found) == names
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, np.float32)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5 * np.abs(value).max(initial=0), err_msg=name)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("head", ["fc", "gap"])
@pytest.mark.parametrize("count", [1, 3])
def test_every_architecture_computes_what_onnxruntime_does(name, head, count):
    assert_as_onnxruntime(random_network(name, head=head), images(count))


def test_the_gap_head_takes_odd_sizes_and_batches_that_lie_otherwise():
    assert_as_onnxruntime(random_network(head="gap"), images(2, 33, 71))
    assert_as_onnxruntime(random_network(head="gap"), images(2, 70, 71)[:, ::-1, ::2])
    assert_as_onnxruntime(random_network(), images().transpose(0, 1, 3, 2))
    assert_as_onnxruntime(random_network(), images(0))


def quantized(weight, dtype, group=0):
    """A weight in integers, with a scale a row or for every `group` neighbours; with zero points when the dtype has no sign."""
    highest = float(ml_dtypes.iinfo(dtype).max)
    lowest = 0 if ml_dtypes.iinfo(dtype).min == 0 else -highest
    parts = weight.reshape(len(weight), -1, group or weight[0].size)
    low = parts.min(2) if lowest == 0 else -np.abs(parts).max(2)
    scale = (parts.max(2) - low if lowest == 0 else -low) / highest
    zero = np.round(-low / scale) if lowest == 0 else np.zeros_like(low)
    values = (np.round(parts / scale[:, :, None]) + zero[:, :, None]).clip(lowest, highest)
    scale, zero = (one if group else one[:, 0] for one in (scale, zero.astype(dtype)))
    values = values.reshape(weight.shape).astype(dtype)
    return Quantized(values, scale, zero if lowest == 0 else None, group=group)


@pytest.mark.parametrize(
    ("dtype", "group"), [(np.int8, 0), (np.uint8, 0), (np.int8, 32), (ml_dtypes.int4, 32), (ml_dtypes.uint4, 32)]
)
def test_quantized_weights_are_what_they_stand_for(dtype, group):
    network = random_network(width=1 / 8, classes=5)
    weights = [name for name in network.parameters if name.endswith(".weight") and (not group or name.startswith("fc"))]
    parameters = {name: quantized(network.parameters[name], dtype, group) for name in weights}
    assert_as_onnxruntime(replace(network, parameters={**network.parameters, **parameters}), images())


@pytest.mark.parametrize(("axis", "group"), [(1, 0), (0, 48)])
def test_other_scales_are_right_too(axis, group):
    network = random_network(width=1 / 8)
    rng = np.random.default_rng(0)
    values = rng.integers(-127, 128, (512, 512), np.int8)
    shape = [512, -(-512 // group)] if group else [512]
    weight = Quantized(values, rng.uniform(0.0005, 0.001, shape).astype(np.float32), axis=axis, group=group)
    assert_as_onnxruntime(replace(network, parameters={**network.parameters, "fc7.weight": weight}), images())


def test_a_mapped_file_is_read_in_place(tmp_path):
    random_network().write(tmp_path / "tiny.safetensors")
    network = Network.read(tmp_path / "tiny.safetensors")
    assert not any(value.flags.writeable for value in network.parameters.values())
    assert_as_onnxruntime(network, images())


def test_several_threads_share_an_engine():
    engine = engines.open(random_network(), "openvino", threads=1)
    batches = [images(1 + seed % 3, seed=seed) for seed in range(16)]
    expected = [engine.logits(batch) for batch in batches]
    with ThreadPool(8) as pool:
        found = pool.map(lambda batch: engine.run(batch, ("fc6", "logits"))["logits"], batches)
    for logits, value in zip(found, expected, strict=True):
        np.testing.assert_allclose(logits, value, rtol=1e-5, atol=1e-6)
