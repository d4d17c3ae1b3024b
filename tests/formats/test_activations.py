"""The scales of activations that a file has: computed with them in NumPy, it gives what ONNX Runtime gives, bit for bit."""

import re
import warnings

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic

import integers_reference
from conftest import FIXTURES, random_network
from quantized_files import EXACT, IMAGES, bare, quantized, simulated
from vgg import ModelError, Network, formats


def logits(graph, batch=IMAGES):
    return integers_reference.run(graph, batch)[graph.network.architecture.values[-1]]


@pytest.mark.parametrize("arguments", EXACT.values(), ids=EXACT)
def test_the_scales_of_onnx_runtimes_quantizer(tmp_path, arguments):
    path = quantized(tmp_path, **arguments)
    graph = formats.load(path)
    assert not graph.obstacle
    assert {"data", "conv1_1", "conv4_2"} <= {*graph.activations}
    expected = bare(path)
    assert np.array_equal(logits(graph).reshape(expected.shape), expected)


@pytest.mark.parametrize("kind", ["qdq", "qoperator"])
def test_the_scales_of_vggs_files(kind):
    path = FIXTURES / f"written-0.1/{kind}.onnx"
    graph = formats.load(path)
    size = graph.network.architecture.input_size
    batch = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)
    assert "logits" not in graph.activations
    assert np.array_equal(logits(graph, batch), bare(path, batch))


@pytest.mark.parametrize("twice", [False, True], ids=["once", "before and after the ReLU"])
def test_pairs_before_each_layer(tmp_path, twice):
    path = simulated(tmp_path / "q.onnx", twice)
    graph = formats.load(path)
    assert [len(graph.activations[name]) for name in ("data", "conv1_1", "conv3_1", "pool1")] == [1, 1, 1 + twice, 1]
    assert (graph.activations["pool1"] == graph.activations["conv1_1"]) == (not twice)  # rounded before the maximum
    found, expected = logits(graph), bare(path)
    # ONNX Runtime computes this file in floats: values on the border of two integers may be rounded to the other one.
    assert np.abs(found - expected).max() <= 0.01 * np.abs(expected).max()


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
def test_a_product_that_is_rounded_before_its_bias_is_not_rounded(tmp_path, form):
    """As the Intel Neural Compressor writes linear layers."""
    path = quantized(tmp_path, form, matmul=True)
    graph = formats.load(path)
    assert [len(graph.activations[name]) for name in ("fc6", "fc7", "logits")] == [1, 1, 1]
    found, expected = logits(graph), bare(path)
    assert (found.argmax(1) == expected.argmax(1)).all()
    assert np.abs(found - expected).max() <= 0.04 * np.abs(expected).max()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"kinds": ("u16", "s8")}, r"QuantizeLinear \(node 'data_QuantizeLinear_Output'\) quantizes to uint16"),
        ({"head": "40 gelu, classes"}, "fc6.raw is quantized before its gelu"),
        ({"head": "40 tanh, classes", "form": "QOperator"}, "fc6.raw is quantized before its tanh"),
        ({"name": "vgg11-bn"}, "conv1_1.raw is quantized before its batch_norm"),
    ],
)  # fmt: skip
def test_what_integers_cannot_express_has_a_reason(tmp_path, arguments, reason):
    graph = formats.load(quantized(tmp_path, **arguments))
    assert not graph.activations
    assert re.search(reason, graph.obstacle)


def test_scales_that_are_computed_for_each_batch(tmp_path):
    random_network("vgg11", head="gap", input_size=64).write(tmp_path / "n.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(tmp_path / "n.onnx", tmp_path / "q.onnx")
    graph = formats.load(tmp_path / "q.onnx")
    assert not graph.activations
    assert "computes a scale for each batch" in graph.obstacle


def replaced(path, name, array):
    """The file with other numbers in an initializer."""
    model = onnx.load(path)
    one = next(one for one in model.graph.initializer if one.name == name)
    one.CopyFrom(numpy_helper.from_array(array, one.name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("form", ["QDQ", "QOperator"])
@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("scale", np.float32(0), "has the scale 0.0; that of activations must be a number greater than 0"),
        ("scale", np.float32(-1), "has the scale -1.0; that"),
        ("scale", np.float32("nan"), "has the scale nan; that"),
        ("scale", np.float32("inf"), "has the scale inf; that"),
        ("scale", np.zeros(0, np.float32), "has the scale none; that"),
        ("zero_point", np.float32(0), "has a zero point of float32, not of an integer type"),
    ],
)
def test_invalid_numbers_are_one_line(tmp_path, form, name, array, message):
    value = "conv2_1" if form == "QDQ" else "conv2_1.raw"
    path = replaced(quantized(tmp_path, form), f"{value}_{name}", array)
    for read in (formats.load, Network.read):
        with pytest.raises(ModelError, match=rf"^{path}: .*Linear.*conv2_1.*{message}") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_integers_that_are_read_with_another_scale(tmp_path):
    path = quantized(tmp_path)
    model = onnx.load(path)
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear" and "conv2_1_Q" in node.input[0])
    node.input[1] = next(one.name for one in model.graph.initializer if "conv3_1_scale" in one.name)
    onnx.save(model, path)
    graph = formats.load(path)
    assert not graph.activations
    assert "reads integers with another scale or zero point than they were quantized with" in graph.obstacle


def test_a_quantizer_without_zero_point(tmp_path):
    """Its type is then an attribute, since opset 21."""
    path = quantized(tmp_path, kinds=("s8", "s8"), extra={"ActivationSymmetric": True})
    model = onnx.load(path)
    zeros = {one.name for one in model.graph.initializer if one.name.endswith("zero_point") and not one.dims}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.input) > 2 and node.input[2] in zeros:
            del node.input[2]
            if node.op_type == "QuantizeLinear":
                node.attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    onnx.save(model, path)
    graph = formats.load(path)
    assert {one.dtype for several in graph.activations.values() for one in several} == {"int8"}
    assert np.array_equal(logits(graph), bare(path))
