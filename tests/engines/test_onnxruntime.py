"""Files that quantize activations run on ONNX Runtime as they are; torch takes their weights."""

import warnings
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import vgg
from conftest import random_network
from vgg import ModelError, Notice, engines, formats
from vgg.predictions import scores
from vgg.preprocessing import PRESETS

IMAGES = np.random.default_rng(0).normal(size=(5, 3, 64, 64)).astype(np.float32)


class Images(CalibrationDataReader):
    def __init__(self):
        self._left = iter([{"data": image[None]} for image in IMAGES])

    def get_next(self):
        return next(self._left, None)


@pytest.fixture(params=[QuantFormat.QDQ, QuantFormat.QOperator], ids=["qdq", "qoperator"])
def quantized(request, tmp_path):
    def make(head="fc", end="", **form):
        source, path = tmp_path / "float.onnx", tmp_path / "int8.onnx"
        classes = 2 if "binary" in head else 7
        random_network("vgg16", input_size=64, head=head, classes=classes).write(source, opset=13, **form)
        if end:  # an operator behind the logits, in front of another output
            model = onnx.load(source)
            model.graph.node.add(op_type=end, input=["logits"], output=["scores"], name="scores")
            model.graph.output.append(onnx.helper.make_tensor_value_info("scores", 1, None))
            onnx.save(model, source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the quantizer warns of its own dependencies
            quantize_static(
                source, path, Images(), quant_format=request.param, per_channel=True,
                activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            )  # fmt: skip
        return path

    return make


def bare(path, batch):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: batch})[0]


def test_it_runs_as_it_is(quantized):
    path = quantized()
    graph = formats.load(path)
    assert isinstance(graph, formats.QuantizedGraph)
    assert graph.path == path
    opened = engines.open(graph, "onnxruntime")
    assert opened.name == "onnxruntime"
    assert np.array_equal(opened.logits(IMAGES), bare(path, IMAGES))
    assert opened.logits(IMAGES[:0]).shape == (0, 7)
    assert opened.run(IMAGES, ()) == {}
    with pytest.raises(ModelError, match="gives only its logits"):
        opened.run(IMAGES, ["fc7"])
    with pytest.raises(ModelError, match="vgg16 has no layer output 'fc9'; choose from conv1_1, conv1_2"):
        opened.run(IMAGES, ["fc9"])


def test_a_classifier_keeps_the_graph_when_preprocessing_and_labels_change(quantized, tmp_path):
    path = quantized()
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    classifier = vgg.load(path, "onnxruntime", preprocessing="caffe", labels=tmp_path / "labels.txt")
    assert (classifier.network.preprocessing, classifier.network.labels.names) == (PRESETS["caffe"], tuple("abcdefg"))
    assert classifier.network.provenance.preprocessing == classifier.network.provenance.labels == "given"
    assert isinstance(classifier.engine, engines.GraphEngine)
    assert np.array_equal(classifier.engine.logits(IMAGES), bare(path, IMAGES))


def test_a_changed_network_runs_its_own_weights(quantized):
    network = vgg.Network.read(quantized())
    doubled = replace(network, parameters={**network.parameters, "fc8.bias": network.parameters["fc8.bias"] + 1})
    found, expected = (engines.open(one, "onnxruntime").logits(IMAGES) for one in (doubled, network))
    np.testing.assert_allclose(found, expected + 1, rtol=1e-5, atol=1e-4)


def test_a_fixed_batch_is_filled_up(quantized):
    path = quantized(batch=1)
    expected = np.concatenate([bare(path, image[None]) for image in IMAGES])
    assert np.array_equal(engines.open(path, "onnxruntime").logits(IMAGES), expected)


def test_probabilities_count_as_logits(quantized):
    path = quantized(softmax=True)
    np.testing.assert_allclose(
        np.exp(engines.open(path, "onnxruntime").logits(IMAGES)), bare(path, IMAGES), rtol=1e-5, atol=1e-30
    )


HEADS = [
    "average, 40 gelu, classes",
    "max, 40 leaky-relu 0.1, classes",
    "40 silu, 20 tanh, classes",
    "40 elu, 20 relu, classes tanh",
]


@pytest.mark.parametrize("head", HEADS)
def test_scores_count_as_logits_of_any_head(quantized, head):
    for output, form in (("sigmoid", {"softmax": True}), ("binary", {"softmax": True}), ("softmax", {"end": "LogSoftmax"}),
                         ("sigmoid", {"end": "Sigmoid"}), ("binary", {"end": "Sigmoid"})):  # fmt: skip
        path = quantized(head if output == "softmax" else f"{head} {output}", **form)
        opened = engines.open(path, "onnxruntime")
        assert isinstance(opened, engines.GraphEngine)
        logits = opened.logits(IMAGES)
        assert logits.shape == (5, opened.graph.network.architecture.units)
        found = scores(logits, output)
        expected = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
            ["scores" if "end" in form else "probabilities"], {"data": IMAGES}
        )[0]
        expected = np.exp(expected) if output == "softmax" else expected
        first = 1 if output == "binary" else 0  # in 8 bits, the two scores' sum is not 1
        np.testing.assert_allclose(found[:, first:], expected[:, -found[:, first:].shape[1] :], atol=1e-6)


@pytest.mark.parametrize("head", HEADS)
def test_a_graph_of_any_head_without_our_metadata(quantized, head):
    path = quantized(head)
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    again = vgg.Network.read(path)
    assert again.architecture.head == head
    floats = random_network("vgg16", input_size=64, head=head)
    expected = engines.open(floats, "onnxruntime").logits(IMAGES)
    for found in (engines.open(again, "onnxruntime").logits(IMAGES), engines.open(path, "onnxruntime").logits(IMAGES)):
        assert np.abs(found - expected).max() < 0.2 * np.abs(expected).max()


def test_other_engines_take_the_weights(quantized):
    pytest.importorskip("torch", reason="needs torch")
    path = quantized()
    with pytest.warns(Notice, match="int8.onnx: activations are computed in floats; their"):
        torch = engines.open(path, "torch").logits(IMAGES)
    floats = engines.open(vgg.Network.read(path), "onnxruntime").logits(IMAGES)
    np.testing.assert_allclose(torch, floats, atol=1e-4 * np.abs(floats).max())
    assert not np.array_equal(floats, bare(path, IMAGES))


def test_a_graph_that_cannot_run_is_one_line(quantized):
    path = quantized()
    graph = formats.load(path)
    model = onnx.load(path)
    for entry in model.opset_import:
        entry.version = 999
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"int8.onnx: ONNX Runtime can't run it .*; the engine native can run its weights"):
        engines.open(graph, "onnxruntime")
