import warnings
from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import random_network, read_damaged
from onnx_judge import error
from reference import torchvision_like
from test_network import quantized
from vgg import Labels, ModelError, Network, Notice, Provenance, Quantized
from vgg.architectures import CONFIGURATIONS
from vgg.formats import state_dict
from vgg.formats.onnx_builder import DEFAULT, NEWEST, OLDEST
from vgg.formats.onnx_file import scan
from vgg.parameters import expanded
from vgg.preprocessing import PRESETS

OPSETS = range(OLDEST, NEWEST + 1)
IMAGES = np.random.default_rng(0).normal(size=(3, 3, 64, 64)).astype(np.float32)


def run(path, images=IMAGES, outputs=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(outputs, {"data": images})


def as_network(name: str, module: torch.nn.Module, **options) -> Network:
    """Our network with the parameters of a torch module."""
    state = {key: value.numpy() for key, value in module.state_dict().items()}
    content = state_dict.from_state_dict("module", state)
    return Network(replace(content.architecture, name=name, **options), content.parameters, PRESETS["torchvision"])


@pytest.mark.parametrize("gap", [False, True], ids=["fc", "gap"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_architecture_at_every_opset_gives_what_torchs_own_modules_give(tmp_path, name, gap):
    module = torchvision_like(name, 1 / 16, 9, 64, gap)
    network = as_network(name, module)
    image = IMAGES[:1]
    with torch.no_grad():
        expected = module(torch.from_numpy(image)).numpy()
    for opset in (3, 5, 6, 7, 9, 13, NEWEST) if gap else OPSETS:
        path = tmp_path / f"{opset}.onnx"
        network.write(path, opset=opset)
        model = scan(path)
        assert model.opset == opset
        newest = onnx.helper.find_min_ir_version_for([onnx.helper.make_opsetid("", max(opset, 7))])
        assert model.ir_version == (3 if opset < 7 else max(4, newest))
        assert [(port.name, port.shape[0]) for port in model.inputs] == [("data", "batch")]
        assert [(port.name, port.shape) for port in model.outputs] == [("logits", ["batch", 9])]
        assert error(path, image, expected) < 1e-5, opset
        path.unlink()


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_named_value_is_what_torch_computes_there(tmp_path, name):
    module = torchvision_like(name, 1 / 16, 9, 64)
    network = as_network(name, module)
    names = network.architecture.values
    network.write(tmp_path / "all.onnx", outputs=names[:-1])
    onnx.checker.check_model(tmp_path / "all.onnx", full_check=True)
    found = dict(zip(names, run(tmp_path / "all.onnx", outputs=list(names)), strict=True))
    values, value = [], torch.from_numpy(IMAGES)
    with torch.no_grad():
        for layer in (*module.features, module.flatten, *module.classifier):
            value = layer(value)
            if isinstance(layer, torch.nn.ReLU | torch.nn.MaxPool2d | torch.nn.LocalResponseNorm):
                values.append(value)
        values.append(value)
    for key, expected in zip(names, values, strict=True):
        np.testing.assert_allclose(found[key], expected.numpy(), atol=1e-5 * float(expected.abs().max()), err_msg=key)


def test_the_file_has_everything_that_classifying_needs(tmp_path):
    labels = Labels(tuple("abcdefg"))
    origin = Provenance("source.pth", "torch", "0" * 64, "torchvision/vgg11", "known hash", "given")
    network = replace(random_network(), preprocessing=PRESETS["caffe"], labels=labels, provenance=origin)
    network.write(tmp_path / "n.onnx")
    again = Network.read(tmp_path / "n.onnx")
    assert (again.architecture, again.preprocessing, again.labels) == (network.architecture, PRESETS["caffe"], labels)
    assert again.provenance == origin
    text = scan(tmp_path / "n.onnx").metadata
    assert text["vgg.parameters_sha256"] == network.sha256() == again.sha256()
    assert (text["Image.BitmapPixelFormat"], text["Image.NominalPixelRange"]) == ("Bgr8", "NominalRange_0_255")
    model = onnx.load(tmp_path / "n.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == text
    assert model.graph.input[0].type.denotation == "IMAGE"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_network_survives_its_file_exactly(tmp_path, name):
    network = random_network(name, epsilon=1e-3 if name.endswith("-bn") else 1e-5)
    for path in (tmp_path / "n.onnx", tmp_path / "n.safetensors"):
        network.write(path)
        again = Network.read(path)
        assert again.architecture == network.architecture
        assert all(np.array_equal(again.parameters[key], value) for key, value in network.parameters.items())


def test_writing_is_deterministic_to_the_byte_and_aligned(tmp_path):
    network = random_network(width=1 / 8)
    network.write(tmp_path / "one.onnx")
    Network.read(tmp_path / "one.onnx").write(tmp_path / "two.onnx")
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()
    tensors = scan(tmp_path / "one.onnx").tensors.values()
    assert all(tensor.begin % 64 == 0 for tensor in tensors if tensor.end - tensor.begin >= 4096)
    assert sum(tensor.end - tensor.begin >= 4096 for tensor in tensors) >= 8


def test_our_scanner_finds_what_onnx_finds(tmp_path):
    random_network("vgg16-bn").write(tmp_path / "n.onnx", outputs=["fc7"])
    found, expected = scan(tmp_path / "n.onnx"), onnx.load(tmp_path / "n.onnx")
    assert [one.name for one in expected.graph.initializer] == list(found.tensors)
    for one in expected.graph.initializer:
        assert np.array_equal(found.array(one.name), onnx.numpy_helper.to_array(one))
    assert found.producer == expected.producer_name == "vgg"
    assert (found.opset, found.ir_version) == (DEFAULT, expected.ir_version)


def test_half_precision_is_widened_exactly(tmp_path):
    network = random_network()
    half = replace(network, parameters={name: value.astype(np.float16) for name, value in network.parameters.items()})
    half.write(tmp_path / "n.onnx")
    again = Network.read(tmp_path / "n.onnx")
    assert all(np.array_equal(again.parameters[name], value) for name, value in half.parameters.items())


@pytest.mark.parametrize("opset", [OLDEST, 12, 13, 21, NEWEST])
def test_quantized_weights_are_kept_from_opset_13_and_expanded_before(tmp_path, opset):
    network = random_network()
    parameters = {name: quantized(value) if name.endswith("weight") else value for name, value in network.parameters.items()}
    network = replace(network, parameters=parameters)
    path = tmp_path / "n.onnx"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network.write(path, opset=opset)
    assert [issubclass(one.category, Notice) for one in caught] == ([] if opset >= 13 else [True])
    again = Network.read(path)
    assert isinstance(again.parameters["fc7.weight"], Quantized) == (opset >= 13)
    network.expanded().write(tmp_path / "plain.onnx")
    images = IMAGES[:, :, :32, :32].copy()
    assert error(path, images, run(tmp_path / "plain.onnx", images)[0]) < 1e-5


@pytest.mark.parametrize("kind", ["int4", "groups", "a scale a column"])
def test_quantized_weights_are_kept_where_the_operator_can_say_them(tmp_path, kind):
    network = random_network(input_size=64)
    rng, shape = np.random.default_rng(0), network.parameters["fc6.weight"].shape
    values = rng.integers(-7, 8, shape).astype(ml_dtypes.int4 if kind == "int4" else np.int8)
    scales = {"int4": shape[:1], "groups": (shape[0], 8), "a scale a column": shape[1:2]}[kind]
    scale = rng.uniform(0.01, 0.02, scales).astype(np.float32)
    options = {"int4": {}, "groups": {"group": 16}, "a scale a column": {"axis": 1}}[kind]
    stored = Quantized(values, scale, **options)
    network = replace(network, parameters={**network.parameters, "fc6.weight": stored})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network.write(tmp_path / "n.onnx", opset=21)
    notes = ["expanded 1 quantized weights to float32" in str(one.message) for one in caught]
    assert notes == ([True] if "column" in kind else [])
    found = Network.read(tmp_path / "n.onnx").parameters["fc6.weight"]
    assert isinstance(found, Quantized) == (not caught)
    np.testing.assert_array_equal(expanded(found), stored.dequantize())


@pytest.mark.parametrize("opset", [0, 2, NEWEST + 1])
def test_an_opset_that_cannot_be_written_is_said(tmp_path, opset):
    with pytest.raises(ModelError, match=rf"unsupported opset {opset}; vgg writes 3 to {NEWEST}"):
        random_network().write(tmp_path / "n.onnx", opset=opset)
    assert not list(tmp_path.iterdir())


def test_an_unknown_output_is_said(tmp_path):
    with pytest.raises(ModelError, match=r"vgg11 has no layer output 'fc9'; choose from conv1_1, pool1"):
        random_network().write(tmp_path / "n.onnx", outputs=["fc9"])
    assert not list(tmp_path.iterdir())


def test_a_network_beyond_two_gibibytes_is_refused_before_anything_is_written(tmp_path):
    architecture = replace(random_network().architecture, width=3, input_size=224)
    parameters = {name: np.broadcast_to(np.zeros((), np.float32), shape) for name, shape in architecture.parameters.items()}
    huge = Network(architecture, parameters, PRESETS["torchvision"])
    with pytest.raises(ModelError, match=r"needs 4\.\d GiB; an ONNX file holds at most 2"):
        huge.write(tmp_path / "huge.onnx")
    assert not list(tmp_path.iterdir())


@settings(max_examples=200)
@given(st.data())
def test_a_broken_file_is_one_clear_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "whole.onnx"
    if not whole.exists():
        random_network(width=1 / 64).write(whole)
    read_damaged(data, whole, 2**31)
