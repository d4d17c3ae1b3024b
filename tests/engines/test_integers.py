"""Files with quantized activations on the native engine: in integers, with the same results as NumPy bit for bit."""

import warnings
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import integers_reference
import vgg
from conftest import FIXTURES, needs_native
from quantized_files import EXACT, IMAGES, bare, quantized, simulated
from vgg import Network, Notice, engines, explanation, formats
from vgg.engines.native_interface import available_instructions
from vgg.evaluation.results import content_hash
from vgg.files import digest
from vgg.parameters import Quantized

pytestmark = needs_native
INSTRUCTIONS = available_instructions() if engines.native_library() else ["auto"]
CASES = {title: arguments for title, arguments in EXACT.items() if "level" not in arguments and "tensors" not in title}


def outputs(graph, batch=IMAGES):
    """All layer outputs of the native engine, and of the reference."""
    opened = engines.open(graph, "native")
    assert (type(opened).__name__, opened.name) == ("NativeGraphEngine", "native")
    return opened.run(batch, graph.network.architecture.values), integers_reference.run(graph, batch)


def check_same(found, expected):
    assert [*found] == [*expected]
    for name, array in found.items():
        assert np.array_equal(array.reshape(expected[name].shape), expected[name]), name


@pytest.mark.parametrize("arguments", CASES.values(), ids=CASES)
def test_every_layer_output_is_that_of_numpy(tmp_path, arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        graph = formats.load(quantized(tmp_path, **arguments), ["preprocessing", "labels", "input_size"])
        check_same(*outputs(graph))


@pytest.mark.parametrize("instructions", INSTRUCTIONS)
@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_logits_are_those_of_onnx_runtime(tmp_path, monkeypatch, form, instructions):
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    path = quantized(tmp_path, form, name="vgg16")
    opened, expected = engines.open(path, "native", threads=2), bare(path)
    assert np.array_equal(opened.logits(IMAGES), expected)
    assert np.array_equal(opened.logits(IMAGES[1:2]), expected[1:2])
    assert opened.logits(IMAGES[:0]).shape == (0, 7)


@pytest.mark.parametrize("twice", [False, True], ids=["once", "before and after the ReLU"])
def test_pairs_before_each_layer(tmp_path, twice):
    check_same(*outputs(formats.load(simulated(tmp_path / "q.onnx", twice))))


def test_images_of_any_size(tmp_path):
    graph = formats.load(quantized(tmp_path, head="gap"))
    check_same(*outputs(graph, np.random.default_rng(1).normal(size=(2, 3, 96, 160)).astype(np.float32)))


def test_logits_at_each_position_of_a_larger_image(tmp_path):
    path = quantized(tmp_path)
    opened, network = engines.open(path, "native"), Network.read(path).expanded()
    wide = np.random.default_rng(1).normal(size=(1, 3, 64, 128)).astype(np.float32)
    values = opened.run(wide, ["pool5", "logits"])
    assert values["logits"].shape == (1, 7, 1, 3)
    value = values["pool5"][0, :, :, 2:]  # the last position
    for layer, name in (("fc6", "fc6"), ("fc7", "fc7"), ("fc8", "logits")):
        weight, bias = network.parameters[f"{layer}.weight"], network.parameters[f"{layer}.bias"]
        form = opened.graph.activations[name][-1]  # with the zero point 0 of a ReLU, if there is one
        value = weight.reshape(len(weight), -1) @ value.reshape(-1) + bias
        value = (np.rint(value / form.scale) + form.zero_point).clip(0, 255) - form.zero_point
        value *= form.scale
    assert np.abs(values["logits"][0, :, 0, 2] - value).max() <= 1.01 * form.scale


@pytest.mark.parametrize("only", [["Conv"], ["Conv", "Relu", "MaxPool"], ["Gemm"]], ids=str)
def test_layers_that_the_file_leaves_in_floats(tmp_path, only):
    path = quantized(tmp_path, only=only)
    found, expected = outputs(formats.load(path))
    np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["logits"], bare(path), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kinds", [("u8", "s8"), ("u8", "u8")], ids="".join)
def test_rows_whose_weights_are_almost_0_keep_their_bias(tmp_path, kinds):
    graph = formats.load(quantized(tmp_path, kinds=kinds, head="average, 40 relu, classes"))
    parameters = dict(graph.network.parameters)
    for name in ("conv3_1", "fc6", "fc7"):
        weight, bias = parameters[f"{name}.weight"], np.array(parameters[f"{name}.bias"])
        assert isinstance(weight, Quantized)
        scale = weight.scale.copy()
        scale[:4], bias[:4] = (1e-20, 2e-10, 0, 0), (0.5, 0.25, 0.75, 0)
        parameters |= {f"{name}.weight": replace(weight, scale=scale), f"{name}.bias": bias}
    found = engines.open(replace(graph, network=replace(graph.network, parameters=parameters)), "native")
    floats = engines.open(Network(graph.network.architecture, parameters, graph.network.preprocessing), "native")
    values, expected = found.run(IMAGES, ["conv3_1", "fc6", "logits"]), floats.run(IMAGES, ["conv3_1", "fc6", "logits"])
    for name in ("conv3_1", "fc6", "logits"):
        step = graph.activations[name][-1].scale
        biases = expected[name][:, :4]
        np.testing.assert_allclose(biases.reshape(4, 4, -1)[0, :, 0], [0.5, 0.25, 0.75, 0], atol=1e-3)
        assert np.abs(values[name][:, :4] - biases).max() <= 0.51 * step


@pytest.mark.parametrize("kinds", [("u8", "s8"), ("u8", "u8")], ids="".join)
def test_rows_may_have_negative_scales(tmp_path, kinds):
    """As a batch normalisation that was multiplied into them leaves them."""
    graph = formats.load(quantized(tmp_path, kinds=kinds, head="average, 40 relu, classes"))
    parameters = dict(graph.network.parameters)
    for name in ("conv1_1.weight", "conv2_1.weight", "conv3_1.weight", "fc6.weight", "fc7.weight"):
        weight = parameters[name]
        assert isinstance(weight, Quantized)
        values, scale = weight.values.copy(), weight.scale.copy()
        values[1].flat[:2] = np.iinfo(values.dtype).min, np.iinfo(values.dtype).max
        scale[1::3] *= -1
        parameters[name] = replace(weight, values=values, scale=scale)
    changed = replace(graph, network=replace(graph.network, parameters=parameters))
    check_same(*outputs(changed))
    logits = engines.open(changed, "native").logits(IMAGES)  # with pooling fused into the convolutions
    assert np.array_equal(logits, outputs(changed)[1]["logits"])


def test_comparisons_are_those_of_the_layer_outputs(tmp_path):
    opened = engines.open(quantized(tmp_path), "native")
    pairs, weights = np.array([[0, 1], [2, 2]]), {"conv2_1": np.ones(8, np.float32)}
    value = opened.run(IMAGES, ["conv2_1"])["conv2_1"].astype(np.float64)
    found = opened.differences(IMAGES, pairs, weights, "l2")["conv2_1"]
    np.testing.assert_allclose(found, np.square(value[[0, 2]] - value[[1, 2]]).sum(1), rtol=1e-5, atol=1e-6)
    sums = opened.moments(IMAGES, pairs, ["conv2_1"])["conv2_1"]
    np.testing.assert_allclose(sums[0, 0], value[0].sum((1, 2)), rtol=1e-9)


def test_times_are_of_layer_outputs(tmp_path):
    opened = engines.open(simulated(tmp_path / "q.onnx", twice=True), "native")
    opened.logits(IMAGES)
    times = opened.times()
    assert [*times] == [*opened.graph.network.architecture.values]
    assert all(seconds >= 0 for seconds in times.values())


# Which engine runs a file


def test_auto_is_native_if_it_can_compute_with_integers(tmp_path, monkeypatch):
    monkeypatch.setattr(engines, "instruction_set", lambda: "avx512_vnni")
    assert engines.open(quantized(tmp_path)).name == "native"
    path = quantized(tmp_path, kinds=("u16", "s8"))
    opened = engines.open(path)
    assert opened.name == "onnxruntime"
    assert np.array_equal(opened.logits(IMAGES), bare(path))


def test_auto_is_openvino_with_amx_for_files_that_it_reads(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(engines, "instruction_set", lambda: "amx_int8")
    assert engines.open(quantized(tmp_path)).name == "openvino"
    assert engines.open(quantized(tmp_path, form="QOperator")).name == "native"


def test_the_native_engine_says_why_it_computes_in_floats(tmp_path):
    path = quantized(tmp_path, head="40 gelu, classes")
    with pytest.warns(Notice) as caught:
        opened = engines.open(path, "native")
    assert [str(one.message) for one in caught] == [
        f"{path}: activations are computed in floats, since fc6.raw is quantized before its gelu; their quantization in the "
        "file is not carried over"
    ]
    floats = engines.open(Network.read(path), "onnxruntime").logits(IMAGES)
    np.testing.assert_allclose(opened.logits(IMAGES), floats, rtol=1e-4, atol=1e-4)


def test_images_that_are_quantized_twice_run_on_another_engine(tmp_path):
    path = quantized(tmp_path)
    model = onnx.load(path)
    graph = model.graph
    pair = [
        helper.make_node("QuantizeLinear", ["data", "early.s", "early.z"], ["early.q"]),
        helper.make_node("DequantizeLinear", ["early.q", "early.s", "early.z"], ["early"]),
    ]
    numbers = {"early.s": np.float32(0.3), "early.z": np.uint8(128)}
    graph.initializer.extend(numpy_helper.from_array(array, key) for key, array in numbers.items())
    next(node for node in graph.node if "data" in node.input).input[0] = "early"
    for place, node in enumerate(pair):
        graph.node.insert(place, node)
    onnx.save(model, path)
    found = formats.load(path)
    assert (found.activations, found.obstacle) == ({}, "the images are quantized twice")
    assert engines.open(found).name != "native"
    assert np.array_equal(engines.open(found, "onnxruntime").logits(IMAGES), bare(path))


def test_a_classifier_computes_explains_and_is_identified_by_its_file():
    path = FIXTURES / "written-0.1/qdq.onnx"
    classifier = vgg.load(path, engine="native")
    assert isinstance(classifier.engine, engines.GraphEngine)
    assert not isinstance(classifier.engine, engines.WholeGraphEngine)
    assert content_hash(classifier) == digest(path)
    assert explanation.can_explain(classifier)
    image = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    assert np.isfinite(classifier.explain(image).maps).all()
    assert not explanation.can_explain(vgg.load(path, engine="onnxruntime"))


def test_a_truncated_file_is_one_line(tmp_path):
    path = quantized(tmp_path, head="gap")
    content = path.read_bytes()
    for length in (len(content) // 3, len(content) - 100):
        (tmp_path / "short.onnx").write_bytes(content[:length])
        with pytest.raises(vgg.ModelError, match=r"^.*short.onnx: .*(truncated|damaged)"):
            engines.open(tmp_path / "short.onnx")


def test_floats_after_integers_and_back(tmp_path):
    """A layer in the middle whose weight is not quantized."""
    path = quantized(tmp_path)
    graph = formats.load(path)
    parameters = dict(graph.network.parameters)
    parameters["conv3_1.weight"] = parameters["conv3_1.weight"].dequantize()
    changed = replace(graph, network=replace(graph.network, parameters=parameters))
    found, expected = outputs(changed)
    assert np.array_equal(found["pool2"], expected["pool2"])
    step = graph.activations["conv3_1"][-1].scale
    assert np.abs(found["conv3_1"] - expected["conv3_1"]).max() <= 1.01 * step
