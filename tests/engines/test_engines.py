"""What every engine promises; the `engine` fixture goes through those that are installed with the package itself."""

import json
import threading
from dataclasses import replace
from importlib.metadata import version
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import needs_native, random_network
from vgg import Error, ModelError, engines
from vgg.engines import engine as engine_home
from vgg.engines import native_interface
from vgg.engines.engine import instruction_set


def images(count=2, size=32, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3, size, size)).astype(np.float32)


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "onnxruntime"])
def engine(request):
    return request.param


@pytest.fixture(params=[pytest.param("native", marks=needs_native), "onnxruntime", "openvino", "torch"])
def any_engine(request):
    if request.param not in engines.installed():
        pytest.skip(f"{request.param} isn't installed; `scripts/setup test` installs it")
    return request.param


def test_named_values_come_in_any_combination(engine):
    opened = engines.open(random_network("vgg16-bn"), engine)
    found = opened.run(images(), ("fc7", "logits", "conv5_3", "pool1"))
    assert {name: value.shape for name, value in found.items()} == {
        "fc7": (2, 256), "logits": (2, 7), "conv5_3": (2, 32, 2, 2), "pool1": (2, 4, 16, 16),
    }  # fmt: skip
    assert found["fc7"].min() == 0  # after the ReLU
    np.testing.assert_allclose(found["logits"], opened.logits(images()), rtol=1e-5, atol=1e-6)


def test_the_gap_head_takes_any_size(engine):
    opened = engines.open(random_network(head="gap"), engine)
    for size in (32, 64, 100):
        assert opened.logits(images(1, size)).shape == (1, 7)


@pytest.mark.parametrize("batch", [images()[0], images().astype(np.float64), images()[:, :1], images(size=16)])
def test_unsupported_inputs_are_refused(any_engine, batch):
    with pytest.raises(ModelError, match=r"vgg11 takes float32 \[batch, 3, "):
        engines.open(random_network(), any_engine).logits(batch)


@pytest.mark.parametrize("name", [name for name in ("onnxruntime", "openvino") if name in engines.installed()])
def test_engines_without_the_dense_form_refuse_larger_images(name):
    with pytest.raises(ModelError, match=r"vgg11 takes float32 \[batch, 3, 32, 32\], not "):
        engines.open(random_network(), name).logits(images(size=64))


@pytest.mark.parametrize("name", [name for name in ("onnxruntime", "openvino") if name in engines.installed()])
def test_a_server_that_is_asked_for_many_sets_of_outputs_keeps_the_last_ones(name, monkeypatch):
    """Each set is a model of its own, with a copy of the weights."""
    monkeypatch.setattr(engine_home, "MODELS", 2)
    opened = engines.open(random_network(), name, threads=1)
    expected = opened.run(images(), ("pool1", "pool2"))["pool1"]
    for outputs in (["logits"], ["pool3", "logits"], ["logits"], ["pool1", "pool2"]):
        found = opened.run(images(), outputs)
    assert [*opened._models] == [("logits",), ("pool1", "pool2")]
    np.testing.assert_array_equal(found["pool1"], expected)


def test_no_outputs_are_no_values(any_engine):
    assert engines.open(random_network(), any_engine).run(images(), ()) == {}


def test_an_unknown_output_is_refused(any_engine):
    with pytest.raises(ModelError, match="vgg11 has no layer output 'fc9'"):
        engines.open(random_network(), any_engine).run(images(), ["fc9"])


def test_several_threads_share_an_engine(engine):
    opened = engines.open(random_network(), engine, threads=1)
    batches = [images(seed=seed) for seed in range(8)]
    expected = [opened.logits(batch) for batch in batches]
    found: dict[int, np.ndarray] = {}

    def work(index):
        found[index] = opened.run(batches[index], ("fc6", "logits"))["logits"]

    workers = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for index, logits in enumerate(expected):
        np.testing.assert_allclose(found[index], logits, rtol=1e-5, atol=1e-6)


@needs_native
def test_the_best_engine_there_is_gets_chosen():
    assert engines.open(random_network()).name == "native"
    assert engines.installed()[:2] == ("native", "onnxruntime")


def test_a_model_is_opened_by_its_path(tmp_path):
    random_network().write(tmp_path / "tiny.onnx")
    assert engines.open(tmp_path / "tiny.onnx").logits(images()).shape == (2, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "abacus"}, "unknown engine 'abacus'; choose from auto, native, "),
        ({"threads": 0}, "threads must be 1 or more"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"engine": "native", "device": "cuda"}, "native runs on the CPU only"),
    ],
)
def test_what_there_is_not_is_said(options, message):
    with pytest.raises(Error, match=message):
        engines.open(random_network(), **options)


@pytest.mark.parametrize("name", engines.installed())
def test_an_identity_has_name_version_and_instruction_set(name):
    opened = engines.open(random_network(), name)
    identity = engines.identity(opened)
    assert identity["name"] == name
    if name == "native":
        assert identity["version"] == native_interface.build() != ""
        assert identity["instructions"] in native_interface.available_instructions()
    else:
        assert identity["version"].startswith(version(name).split("+")[0])
        assert identity["instructions"] == instruction_set() != ""
    assert json.loads(json.dumps(identity)) == identity


@needs_native
def test_an_identity_follows_the_instruction_set_that_the_native_engine_uses(monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", "portable")
    network = random_network()
    assert engines.identity(engines.open(network, "native"))["instructions"] == "portable"
    assert engines.identity(engines.open(network, "onnxruntime"))["instructions"] == instruction_set()


def test_the_identity_of_an_engine_on_a_gpu_names_it(monkeypatch):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    identity = engines.identity(SimpleNamespace(name="torch", device="cuda"))
    common = {"name": "torch", "precision": "float32", "version": torch.__version__}
    assert identity == {**common, "instructions": "NVIDIA H100"}


@pytest.mark.parametrize(
    ("name", "value"), [("conv3_1.weight", -np.inf), ("fc6.weight", -np.inf), ("fc7.bias", np.nan), ("bn3_1.variance", -1)]
)
def test_a_run_that_needs_parameters_that_are_no_numbers_is_refused(any_engine, name, value):
    """After a ReLU, minus infinity is 0 in every engine, and NaN in some of them."""
    network = random_network("vgg11-bn" if name.startswith("bn") else "vgg11")
    damaged = network.parameters[name].copy()
    damaged.flat[3] = value
    opened = engines.open(replace(network, parameters={**network.parameters, name: damaged}), any_engine, threads=1)
    for _ in range(2):
        with pytest.raises(ModelError, match=rf"parameter {name} has (values that are not finite numbers|negative values)"):
            opened.logits(images())
    before = "fc6" if name.startswith("fc7") else "conv2_1"
    expected = engines.open(network, any_engine, threads=1).run(images(), [before])[before]
    np.testing.assert_array_equal(opened.run(images(), [before])[before], expected)


@pytest.mark.parametrize("side", [1, 2, 3, 7])
def test_adaptive_average_pooling_equals_torchs_at_any_size(any_engine, side):
    """Maps smaller than the pooling's output, whose values are repeated, and sizes that aren't multiples of 32."""
    head = f"average{f' {side}' * (side > 1)}, 24 relu, classes"
    network = random_network(head=head)
    for size in (32, 63, 100, 225):
        sized = network.read_as(input_size=size)
        found = engines.open(sized, any_engine, threads=1).run(images(2, size), ["pool5", "pool6"])
        expected = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(found["pool5"]), side).numpy()
        np.testing.assert_allclose(found["pool6"], expected.reshape(found["pool6"].shape), atol=1e-6)
