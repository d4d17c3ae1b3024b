"""Caffemodels, encoded by protobuf from Caffe's own description; OpenCV, which reads them by the same, is the judge."""

import cv2
import numpy as np
import pytest
from google.protobuf import text_format

from caffe_files import caffe_model
from conftest import random_network
from vgg import ModelError, Network, engines
from vgg.predictions import softmax

IMAGES = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)


def by_opencv(network, content: bytes) -> np.ndarray:
    """The probabilities that OpenCV's dnn module computes from a caffemodel."""
    text = text_format.MessageToString(caffe_model(network, inputs=True)).replace("pool: 0", "pool: MAX")
    net = cv2.dnn.readNetFromCaffe(np.frombuffer(text.encode(), np.uint8), np.frombuffer(content, np.uint8))
    net.setInput(IMAGES)
    return net.forward()


@pytest.mark.parametrize(("old", "legacy"), [(True, True), (True, False), (False, True), (False, False)])
@pytest.mark.parametrize("name", ["vgg11", "vgg11-lrn", "vgg16-c", "vgg19", "vgg11-bn"])
def test_both_generations_are_read_and_mean_what_opencv_reads(tmp_path, name, old, legacy):
    if name.endswith("-bn") and old:
        pytest.skip("batch normalisation is younger than V1 layers")
    network = random_network(name, input_size=64)
    content = caffe_model(network, old, legacy).SerializeToString()
    (tmp_path / "n.caffemodel").write_bytes(content)
    again = Network.read(tmp_path / "n.caffemodel")
    assert (again.architecture.name, again.preprocessing.name) == (name, "caffe")
    for key, value in network.parameters.items():
        np.testing.assert_allclose(again.parameters[key], value, rtol=1e-6)
    found = softmax(engines.open(again, "onnxruntime").logits(IMAGES))
    if not name.endswith("-lrn"):  # OpenCV takes k for 1, whatever the layer says
        np.testing.assert_allclose(found, by_opencv(network, content), rtol=2e-5, atol=1e-7)
    assert not again.parameters["fc6.weight"].flags.owndata


def test_half_precision_as_opencv_writes_it_is_read(tmp_path):
    network = random_network("vgg11", input_size=64)
    (tmp_path / "n.caffemodel").write_bytes(caffe_model(network).SerializeToString())
    cv2.dnn.shrinkCaffeModel(str(tmp_path / "n.caffemodel"), str(tmp_path / "half.caffemodel"))
    found = Network.read(tmp_path / "half.caffemodel").parameters
    assert found["fc7.weight"].dtype == np.float16
    for key, value in network.parameters.items():
        np.testing.assert_array_equal(found[key], value.astype(np.float16))


def test_a_fully_convolutional_model_is_read_as_the_network_it_came_from(tmp_path):
    network = random_network("vgg11", input_size=64)
    net = caffe_model(network)
    for layer in net.layer:
        if layer.type == "InnerProduct":
            weight = np.asarray(network.parameters[f"{layer.name}.weight"])
            layer.type = "Convolution"
            layer.convolution_param.num_output = len(weight)
            layer.convolution_param.kernel_size.append(2 if layer.name == "fc6" else 1)
            del layer.blobs[0].shape.dim[:]
            layer.blobs[0].shape.dim.extend((*weight.shape, 1, 1)[:4])
    (tmp_path / "n.caffemodel").write_bytes(net.SerializeToString())
    assert Network.read(tmp_path / "n.caffemodel").sha256() == network.sha256()


def test_what_is_no_vgg_is_refused_by_the_layer_that_shows_it(tmp_path):
    net = caffe_model(random_network("vgg11"))
    net.layer[1].type = "PReLU"
    (tmp_path / "n.caffemodel").write_bytes(net.SerializeToString())
    with pytest.raises(ModelError, match=r"n\.caffemodel: not a VGG network: unsupported layer PReLU 'relu_conv1_1'"):
        Network.read(tmp_path / "n.caffemodel")
    net = caffe_model(random_network("vgg11-lrn"))
    next(layer for layer in net.layer if layer.type == "LRN").lrn_param.k = 1
    (tmp_path / "n.caffemodel").write_bytes(net.SerializeToString())
    with pytest.raises(ModelError, match=r"not a VGG network: LRN \(node 'norm1'\) has bias 1\.0"):
        Network.read(tmp_path / "n.caffemodel")


@pytest.mark.parametrize("followed", [False, True])
def test_scale_and_bias_that_nvidias_caffe_stores_with_the_normalisation_are_read(tmp_path, followed):
    network = random_network("vgg11-bn", input_size=64)
    net = caffe_model(network)
    layers = list(net.layer)
    for place, layer in enumerate(layers[:-1]):
        if layer.type == "BatchNorm":
            layer.blobs.extend(layers[place + 1].blobs)
            if followed:
                layers[place + 1].blobs[0].data[:] = [2] * len(layer.blobs[0].data)
    if not followed:
        del net.layer[:]
        net.layer.extend(layer for layer in layers if layer.type != "Scale")
    (tmp_path / "n.caffemodel").write_bytes(net.SerializeToString())
    found = Network.read(tmp_path / "n.caffemodel").parameters
    for key, value in network.parameters.items():
        twice = followed and key.startswith("bn")
        value = 2 * value if twice and key.endswith("scale") else 3 * value if twice and key.endswith("bias") else value
        np.testing.assert_allclose(found[key], value, rtol=1e-6)


def test_a_normalisation_with_other_blobs_is_refused(tmp_path):
    net = caffe_model(random_network("vgg11-bn", input_size=64))
    norm = next(layer for layer in net.layer if layer.type == "BatchNorm")
    norm.blobs.add(data=[1.0]).shape.dim.append(1)
    (tmp_path / "n.caffemodel").write_bytes(net.SerializeToString())
    with pytest.raises(ModelError, match=r"layer BatchNorm 'bn1_1' with blobs of the sizes \d+, \d+, 1, 1; expected"):
        Network.read(tmp_path / "n.caffemodel")


@pytest.mark.parametrize(("kind", "number"), [("Silence", 36), ("EuclideanLoss", 7), ("HingeLoss", 28), ("InfogainLoss", 13)])
def test_layers_of_training_are_left_out(tmp_path, kind, number):
    network = random_network("vgg11", input_size=64)
    for old in (True, False):
        net = caffe_model(network, old)
        (net.layers if old else net.layer).add(name="loss", type=number if old else kind, bottom=["fc8"], top=["loss"])
        (tmp_path / "n.caffemodel").write_bytes(net.SerializeToString())
        assert Network.read(tmp_path / "n.caffemodel").sha256() == network.sha256()
