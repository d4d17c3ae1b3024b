"""Caffe's and Caffe2's files of networks with other heads, and of the reduced VGGs; torch computes the reference."""

import warnings

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from caffe_files import append, caffe2_nets, caffe_model
from conftest import random_network
from vgg import ModelError, Network, engines
from vgg.predictions import scores

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 3, 64, 64)).astype(np.float32)
BACKBONE = random_network("vgg16", head="none", classes=0, input_size=64)
CHANNELS = 32


def trunk(last: str = "pool5") -> torch.Tensor:
    """The map after this layer."""
    value = torch.from_numpy(IMAGES)
    for layer in BACKBONE.architecture.layers:
        if layer.operation == "convolution":
            weight, bias = (torch.from_numpy(BACKBONE.parameters[f"{layer.name}.{role}"]) for role in ("weight", "bias"))
            value = F.conv2d(value, weight, bias, padding=1)
        elif layer.operation == "relu":
            value = value.relu()
        elif layer.operation == "max_pool":
            value = F.max_pool2d(value, 2)
        if layer.value == last:
            return value
    raise KeyError(last)


def numbers(*shape: int) -> np.ndarray:
    return RNG.normal(0, (2 / shape[-1]) ** 0.5 if len(shape) > 1 else 0.1, shape).astype(np.float32)


def read(net, path) -> tuple[Network, str]:
    """The network in a file, and the notices."""
    path.write_bytes(net.SerializeToString())
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        network = Network.read(path)
    return network, " ".join(str(notice.message) for notice in notices)


FIRST, SECOND = (numbers(9, CHANNELS), numbers(9)), (numbers(3, 9), numbers(3))
WIDE = (numbers(9, CHANNELS * 4), numbers(9))
ONE = (numbers(1, CHANNELS), numbers(1))
MEAN, VARIANCE, SCALE, SHIFT = numbers(9), np.abs(numbers(9)) + 0.5, numbers(9), numbers(9)


def affine(value, parameters):
    return F.linear(value, *map(torch.from_numpy, parameters))


def mean(value):
    return value.mean((2, 3))


# Layers after pool5, the head, what they compute, and a part of the notice. Each layer: type, blobs, parameters.
HEADS = {
    "global average": (
        [("Pooling", (), {"pool": 1, "global_pooling": True}), ("InnerProduct", FIRST, {}), ("Softmax", (), {})],
        "gap", lambda x: affine(mean(x), FIRST).softmax(1), ""),
    "average of a window": (
        [("Pooling", (), {"pool": 1, "kernel_size": 2, "stride": 1}), ("InnerProduct", FIRST, {}), ("Softmax", (), {})],
        "gap", lambda x: affine(mean(x), FIRST).softmax(1),
        "assumed an input of 64x64 pixels, whose map layer 'layer0' pools as a whole"),
    "global maximum": (
        [("Pooling", (), {"pool": 0, "global_pooling": True}), ("InnerProduct", FIRST, {}), ("Sigmoid", (), {})],
        "max, classes sigmoid", lambda x: affine(x.amax((2, 3)), FIRST).sigmoid(), ""),
    "another width": (
        [("InnerProduct", WIDE, {}), ("ReLU", (), {}), ("Dropout", (), {"dropout_ratio": 0.25}), ("InnerProduct", SECOND, {}),
         ("Softmax", (), {})],
        "9 relu dropout 0.25, classes", lambda x: affine(affine(x.flatten(1), WIDE).relu(), SECOND).softmax(1), ""),
    "a slope": (
        [("InnerProduct", WIDE, {}), ("ReLU", (), {"negative_slope": 0.25}), ("InnerProduct", SECOND, {}), ("Softmax", (), {})],
        "9 leaky-relu 0.25, classes",
        lambda x: affine(F.leaky_relu(affine(x.flatten(1), WIDE), 0.25), SECOND).softmax(1), ""),
    "tanh": (
        [("InnerProduct", WIDE, {}), ("TanH", (), {}), ("InnerProduct", SECOND, {}), ("SigmoidCrossEntropyLoss", (), {})],
        "9 tanh, classes sigmoid", lambda x: affine(affine(x.flatten(1), WIDE).tanh(), SECOND).sigmoid(), ""),
    "no bias": (
        [("InnerProduct", WIDE[:1], {}), ("Softmax", (), {})], "classes",
        lambda x: (x.flatten(1) @ torch.from_numpy(WIDE[0]).T).softmax(1), ""),
    "one unit": (
        [("Pooling", (), {"pool": 1, "global_pooling": True}), ("InnerProduct", ONE, {}), ("Sigmoid", (), {})],
        "average, classes binary",
        lambda x: torch.stack([1 - (p := affine(mean(x), ONE).sigmoid()[:, 0]), p], 1), ""),
    "one unit alone": (
        [("Pooling", (), {"pool": 1, "global_pooling": True}), ("InnerProduct", ONE, {})],
        "average, classes binary",
        lambda x: torch.stack([1 - (p := affine(mean(x), ONE).sigmoid()[:, 0]), p], 1),
        "assumed one logit for two classes. Set with --head and --output-activation"),
}  # fmt: skip
NEWER = {
    "batch normalisation": (
        [("InnerProduct", WIDE, {}), ("BatchNorm", (MEAN * 4, VARIANCE * 4, [4.0]), {"eps": 0.01}),
         ("Scale", (SCALE, SHIFT), {}), ("ReLU", (), {}), ("InnerProduct", SECOND, {}), ("Softmax", (), {})],
        "9 batch-norm relu, classes",
        lambda x: affine(F.batch_norm(affine(x.flatten(1), WIDE), *map(torch.from_numpy, (MEAN, VARIANCE, SCALE, SHIFT)),
                                      eps=0.01).relu(), SECOND).softmax(1), ""),
    "elu": (
        [("InnerProduct", WIDE, {}), ("ELU", (), {"alpha": 0.5}), ("InnerProduct", SECOND, {}), ("Softmax", (), {})],
        "9 elu 0.5, classes", lambda x: affine(F.elu(affine(x.flatten(1), WIDE), 0.5), SECOND).softmax(1), ""),
}  # fmt: skip


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("name", [*HEADS, *NEWER])
def test_any_head_is_read(tmp_path, name, old):
    if old and name in NEWER:
        pytest.skip("a layer younger than V1 layers")
    layers, head, compute, stated = (HEADS | NEWER)[name]
    net = caffe_model(BACKBONE, old=old)
    value = "pool5"
    for place, (kind, blobs, options) in enumerate(layers):
        append(net, kind, f"layer{place}", value, f"layer{place}", blobs, **options)
        value = f"layer{place}"
    network, notices = read(net, tmp_path / "n.caffemodel")
    assert network.architecture.head == head
    assert stated in notices
    assert ("assumed" in notices) == bool(stated)
    found = scores(engines.open(network, "onnxruntime").logits(IMAGES), network.architecture.output)
    np.testing.assert_allclose(found, compute(trunk()).numpy(), atol=1e-5)


@pytest.mark.parametrize(("classes", "fc8"), [(2622, "fc8"), (365, "fc8a")])
def test_the_papers_head_with_other_classes(tmp_path, classes, fc8):
    """VGG-Face and Places365."""
    network = random_network("vgg16", classes=classes, width=1 / 64, input_size=224)
    net = caffe_model(network, old=classes == 2622)
    for layer in (*net.layers, *net.layer):
        if layer.name == "fc8":
            layer.name = fc8
    again, notices = read(net, tmp_path / "n.caffemodel")
    assert again.sha256() == network.sha256()
    assert (again.architecture.head, again.architecture.input_size, again.labels) == ("fc", 224, None)
    assert "using preprocessing 'caffe'. Set with --preset" in notices


def reduced(kind: str, old: bool):
    """The VGGs of SSD, ParseNet and DeepLab: a dilated fc6, and other poolings."""
    net = caffe_model(BACKBONE, old=old)
    layers = net.layers if old else net.layer
    window = {"deeplab": ("pool1", 3, 2), "deeplab-pool4": ("pool4", 3, 1), "ssd": ("pool5", 3, 1)}.get(kind)
    for layer in layers:
        if window and layer.name == window[0]:
            layer.pooling_param.kernel_size, layer.pooling_param.stride, layer.pooling_param.pad = *window[1:], 1
    dilation = {} if kind == "padded" else {"dilation": [6]}
    blobs = (numbers(8, CHANNELS, 3, 3), numbers(8))
    append(net, "Convolution", "fc6", "pool5", "fc6", blobs, pad=[1 if kind == "padded" else 6], kernel_size=[3], **dilation)
    append(net, "ReLU", "relu6", "fc6", "fc6")
    append(net, "Convolution", "fc7", "fc6", "fc7", (numbers(8, 8, 1, 1), numbers(8)), kernel_size=[1])
    if kind == "ssd":
        append(net, "Concat", "mbox", "conv4_3", "mbox")
    return net


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("kind", "last", "first"),
    [
        ("ssd", "conv5_3", "pool5"), ("parsenet", "pool5", "fc6"), ("padded", "pool5", "fc6"), ("deeplab", "conv1_2", "pool1"),
        ("deeplab-pool4", "conv4_3", "pool4"),
    ],
)  # fmt: skip
def test_a_reduced_vgg_is_a_backbone_and_what_is_left_out_is_stated(tmp_path, kind, last, first, old):
    network, notices = read(reduced(kind, old), tmp_path / "n.caffemodel")
    assert f"assumed a backbone up to '{last}', without layer '{first}' and those after it" in notices
    value = network.architecture.values[-1]
    assert value == last
    found = engines.open(network, "onnxruntime").run(IMAGES, [value])[value]
    np.testing.assert_allclose(found, trunk(last).numpy(), atol=1e-5)


def test_copies_that_caffe_inserts_are_followed(tmp_path):
    net = caffe_model(random_network("vgg11", input_size=64))
    layers = list(net.layer)
    place = next(place for place, layer in enumerate(layers) if layer.name == "pool3")
    layers[place].bottom[0] = "copy_0"
    del net.layer[place:]
    split = net.layer.add(name="split", type="Split", bottom=["conv3_2"], top=["copy_0", "copy_1"])
    assert split.top[1] == "copy_1"
    net.layer.extend(layers[place:])
    assert read(net, tmp_path / "n.caffemodel")[0].architecture.name == "vgg11"


@pytest.mark.parametrize("declared", ["input_dim", "Input"])
def test_the_input_that_a_file_declares_is_taken(tmp_path, declared):
    net = caffe_model(BACKBONE)
    if declared == "Input":
        net.layer.add(name="data", type="Input", top=["data"]).input_param.shape.add(dim=[1, 3, 96, 96])
        net.layer.insert(0, net.layer.pop())
    else:
        net.input_dim.extend([1, 3, 96, 96])
    append(net, "Pooling", "pool6", "pool5", pool=1, kernel_size=3)
    append(net, "InnerProduct", "fc", "pool6", blobs=FIRST)
    network, notices = read(net, tmp_path / "n.caffemodel")
    assert (network.architecture.head, network.architecture.input_size) == ("gap", 96)
    assert "assumed" not in notices
    net.layer[-2].pooling_param.kernel_size = 2
    with pytest.raises(ModelError, match="not a VGG network: AveragePool"):
        read(net, tmp_path / "n.caffemodel")


def test_what_is_no_chain_is_refused_by_the_layer_that_shows_it(tmp_path):
    net = caffe_model(BACKBONE)
    append(net, "Concat", "joined", "pool5")
    net.layer[-1].bottom.append("pool4")
    with pytest.raises(ModelError, match=r"n\.caffemodel: not a VGG network: unsupported layer Concat 'joined'"):
        read(net, tmp_path / "n.caffemodel")
    del net.layer[-1]
    append(net, "Pooling", "drawn", "pool5", pool=2, kernel_size=2)
    with pytest.raises(ModelError, match=r"layer 'drawn' pools by neither the maximum nor the mean"):
        read(net, tmp_path / "n.caffemodel")


@pytest.mark.parametrize("kind", ["AveragePool", "MaxPool"])
def test_caffe2_with_another_head(tmp_path, kind):
    init, predict = caffe2_nets(BACKBONE)
    for name, value in zip(("w", "b"), FIRST, strict=True):
        fill = init.op.add(type="GivenTensorFill", output=[name])
        fill.arg.add(name="shape", ints=value.shape)
        fill.arg.add(name="values", floats=value.ravel().tolist())
    predict.op.add(type=kind, input=["pool5"], output=["pool6"]).arg.add(name="global_pooling", i=1)
    predict.op.add(type="FC", input=["pool6", "w", "b"], output=["fc"])
    predict.op.add(type="Sigmoid", input=["fc"], output=["prob"])
    (tmp_path / "predict_net.pb").write_bytes(predict.SerializeToString())
    network, _ = read(init, tmp_path / "init_net.pb")
    assert network.architecture.head == f"{'average' if kind == 'AveragePool' else 'max'}, classes sigmoid"
    pooled = mean(trunk()) if kind == "AveragePool" else trunk().amax((2, 3))
    found = scores(engines.open(network, "onnxruntime").logits(IMAGES), "sigmoid")
    np.testing.assert_allclose(found, affine(pooled, FIRST).sigmoid().numpy(), atol=1e-5)
