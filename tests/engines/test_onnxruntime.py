"""Files that quantize activations run on ONNX Runtime as they are; other engines take their weights."""

import warnings
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

import vgg
from conftest import needs_native, random_network
from vgg import ModelError, engines, formats
from vgg.preprocessing import PRESETS

IMAGES = np.random.default_rng(0).normal(size=(5, 3, 64, 64)).astype(np.float32)


class Images(CalibrationDataReader):
    def __init__(self):
        self._left = iter([{"data": image[None]} for image in IMAGES])

    def get_next(self):
        return next(self._left, None)


@pytest.fixture(params=[QuantFormat.QDQ, QuantFormat.QOperator], ids=["qdq", "qoperator"])
def quantized(request, tmp_path):
    def make(**form):
        source, path = tmp_path / "float.onnx", tmp_path / "int8.onnx"
        random_network("vgg16", input_size=64).write(source, opset=13, **form)
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
    opened = engines.open(graph)
    assert opened.name == "onnxruntime"
    assert np.array_equal(opened.logits(IMAGES), bare(path, IMAGES))
    assert opened.logits(IMAGES[:0]).shape == (0, 7)
    with pytest.raises(ModelError, match="gives only its logits"):
        opened.run(IMAGES, ["fc7"])
    with pytest.raises(ModelError, match="vgg16 has no layer output 'fc9'; choose from conv1_1, conv1_2"):
        opened.run(IMAGES, ["fc9"])


def test_a_classifier_keeps_the_graph_when_preprocessing_and_labels_change(quantized, tmp_path):
    path = quantized()
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    classifier = vgg.load(path, preprocessing="caffe", labels=tmp_path / "labels.txt")
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
    assert np.array_equal(engines.open(path).logits(IMAGES), expected)


def test_probabilities_count_as_logits(quantized):
    path = quantized(softmax=True)
    np.testing.assert_allclose(np.exp(engines.open(path).logits(IMAGES)), bare(path, IMAGES), rtol=1e-5, atol=1e-30)


@needs_native
def test_other_engines_take_the_weights(quantized):
    path = quantized()
    native = engines.open(path, "native").logits(IMAGES)
    floats = engines.open(vgg.Network.read(path), "onnxruntime").logits(IMAGES)
    np.testing.assert_allclose(native, floats, atol=1e-4 * np.abs(floats).max())
    assert not np.array_equal(floats, bare(path, IMAGES))


def test_a_graph_that_cannot_run_is_one_line(quantized):
    path = quantized()
    graph = formats.load(path)
    model = onnx.load(path)
    for entry in model.opset_import:
        entry.version = 999
    onnx.save(model, path)
    with pytest.raises(ModelError, match=r"int8.onnx: ONNX Runtime can't run it .*; the engine native can run its weights"):
        engines.open(graph)
