from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
import torch

from conftest import random_network
from vgg import Error, Network, engines
from vgg.architectures import CONFIGURATIONS
from vgg.engines import torch as home

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU here")


def images(count=2, height=32, width=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, height, width)).astype(np.float32)


def assert_close(found, expected, tolerance):
    """The same names and shapes, and values that differ by no more than a part of the largest."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, np.float32)
        largest = np.abs(value).max(initial=0)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance * largest, err_msg=name)


def assert_as_onnxruntime(network, batch):
    """Every named value is that of ONNX Runtime."""
    names = network.architecture.values
    expected = engines.open(network, "onnxruntime").run(batch, names)
    assert_close(engines.open(network, "torch").run(batch, names), expected, 1e-5)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("head", ["fc", "gap"])
@pytest.mark.parametrize("count", [1, 3])
def test_every_architecture_computes_what_onnxruntime_does(name, head, count):
    assert_as_onnxruntime(random_network(name, head=head), images(count))


def test_the_gap_head_takes_odd_sizes_and_batches_that_lie_otherwise():
    assert_as_onnxruntime(random_network(head="gap"), images(2, 33, 71))
    assert_as_onnxruntime(random_network(), images().transpose(0, 1, 3, 2))
    assert_as_onnxruntime(random_network(), images(0))


def test_larger_images_give_the_head_at_each_position_where_it_fits():
    network = random_network("vgg13", input_size=64)
    found = engines.open(network, "torch").run(images(2, 96, 160), ("pool5", "fc6", "logits"))
    assert [found[name].shape for name in ("fc6", "logits")] == [(2, 256, 2, 4), (2, 7, 2, 4)]
    weight, bias = (network.parameters[f"fc6.{role}"] for role in ("weight", "bias"))
    for row, column in np.ndindex(2, 4):
        seen = found["pool5"][:, :, row : row + 2, column : column + 2].reshape(2, -1)
        expected = np.maximum(seen @ weight.reshape(256, -1).T + bias, 0)
        np.testing.assert_allclose(found["fc6"][:, :, row, column], expected, rtol=1e-4, atol=1e-5)


def test_a_mapped_file_is_read_in_place(tmp_path):
    random_network().write(tmp_path / "tiny.safetensors")
    network = Network.read(tmp_path / "tiny.safetensors")
    assert not any(value.flags.writeable for value in network.parameters.values())
    assert_as_onnxruntime(network, images())  # torch would warn of an array that it can't write to


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["vgg11", "vgg11-lrn", "vgg16-bn"])
def test_the_numbers_of_a_gpu_are_near_enough(monkeypatch, name, dtype):
    monkeypatch.setattr(home, "_dtype", lambda device: dtype)
    network, batch = random_network(name), 100 * images()  # the squares of whose values float16 can't hold
    expected = engines.open(network, "onnxruntime").run(batch, network.architecture.values)
    assert_close(engines.open(network, "torch").run(batch, network.architecture.values), expected, 0.03)


def test_threads_are_those_of_the_process():
    before = torch.get_num_threads()
    try:
        engines.open(random_network(), "torch", threads=1)
        assert torch.get_num_threads() == 1
        engines.open(random_network(), "torch")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def assert_threads_can_share(engine, tolerance):
    batches = [images(1 + seed % 3, seed=seed) for seed in range(16)]
    expected = [engine.run(batch, ("fc6", "logits")) for batch in batches]
    with ThreadPool(8) as pool:
        found = pool.map(lambda batch: engine.run(batch, ("fc6", "logits")), batches)
    for values, others in zip(found, expected, strict=True):
        assert_close(values, others, tolerance)


def test_several_threads_share_an_engine():
    assert_threads_can_share(engines.open(random_network(), "torch"), 1e-5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_an_error():
    with pytest.raises(Error, match="finds no GPU; use the device cpu"):
        engines.open(random_network(), device="cuda")


@needs_gpu
@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("head", ["fc", "gap"])
def test_a_gpu_computes_what_the_cpu_does(name, head):
    network = random_network(name, head=head)
    names = network.architecture.values
    cpu, gpu = engines.open(network, "torch"), engines.open(network, "torch", device="cuda")
    for seed, shape in enumerate([(0, 32, 32), (1, 32, 32), (3, 32, 32), (2, 64, 96), (1, 32, 32)]):  # the last by replay
        batch = images(*shape, seed=seed)
        assert_close(gpu.run(batch, names), cpu.run(batch, names), 0.03)
        assert_close(gpu.run(batch), cpu.run(batch), 0.03)


@needs_gpu
def test_several_threads_share_a_gpu(monkeypatch):
    monkeypatch.setattr(home, "GRAPHS", 2)  # fewer than there are shapes, so that graphs come and go
    assert_threads_can_share(engines.open(random_network(), device="cuda"), 0)
