"""The same parameters read with another head, compared with torch."""

import numpy as np
import pytest
import torch
from torch import nn

from conftest import random_network
from vgg import ModelError, Network, Notice, engines
from vgg.parameters import LowRank, expanded
from vgg.predictions import scores
from vgg.quantization import Scheme, quantize_weights

POOLED = "average, 24 relu, classes"
MAP = "24 relu dropout 0.5, classes"  # of 2x2 positions
NORMED = "average, 24 relu batch-norm, 12 relu, classes"
# The head of the file, another one of the same parameters, and what torch computes for it from pool5, given the linear layers
# and the batch normalisations.
CASES = {
    "gelu": (POOLED, "average, 24 gelu, classes", lambda x, a, b: b(nn.GELU()(a(x.mean((2, 3)))))),
    "tanh-gelu": (POOLED, "average, 24 gelu-tanh, classes", lambda x, a, b: b(nn.GELU("tanh")(a(x.mean((2, 3)))))),
    "slope": (POOLED, "average, 24 leaky-relu 0.3, classes", lambda x, a, b: b(nn.LeakyReLU(0.3)(a(x.mean((2, 3)))))),
    "nothing": (POOLED, "average, 24, classes", lambda x, a, b: b(a(x.mean((2, 3))))),
    "elu": (POOLED, "max, 24 elu, classes", lambda x, a, b: b(nn.ELU()(a(x.amax((2, 3)))))),
    "silu": (POOLED, "average, 24 silu dropout 0.2, classes", lambda x, a, b: b(nn.SiLU()(a(x.mean((2, 3)))))),
    "sigmoids": (POOLED, "average, 24 sigmoid, classes sigmoid", lambda x, a, b: b(torch.sigmoid(a(x.mean((2, 3))))).sigmoid()),
    "tanh": (POOLED, "average, 24 tanh, classes", lambda x, a, b: b(torch.tanh(a(x.mean((2, 3)))))),
    "last": (POOLED, "average, 24 relu, classes relu", lambda x, a, b: torch.relu(b(torch.relu(a(x.mean((2, 3))))))),
    "map": (MAP, "average 2, 24 tanh, classes", lambda x, a, b: b(torch.tanh(a(nn.AdaptiveAvgPool2d(2)(x).flatten(1))))),
    "flat": ("average 2, 24 relu, classes", "24 silu, classes", lambda x, a, b: b(nn.SiLU()(a(x.flatten(1))))),
    "one": ("average, classes", "max, classes sigmoid", lambda x, a: a(x.amax((2, 3))).sigmoid()),
    "norm": (
        NORMED,
        "average, 24 batch-norm gelu, 12 silu, classes",
        lambda x, a, b, c, n: c(nn.SiLU()(b(nn.GELU()(n(a(x.mean((2, 3)))))))),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_are_read_with_any_head_that_fits(case, tmp_path):
    head, other, computed = CASES[case]
    network = random_network(head=head, input_size=64, seed=4)
    read = network.read_as(other)
    batch = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    pool5 = torch.from_numpy(engines.open(network, "onnxruntime").run(batch, ("pool5",))["pool5"])
    modules = []
    for layer in network.architecture.layers:
        values = [torch.from_numpy(network.parameters[f"{layer.name}.{role}"]) for role in layer.parameters]
        if layer.operation == "linear":
            modules.append(lambda x, w=values[0], b=values[1]: nn.functional.linear(x, w.flatten(1), b))
    for layer in network.architecture.layers:
        values = [torch.from_numpy(network.parameters[f"{layer.name}.{role}"]) for role in layer.parameters]
        if layer.operation == "batch_norm":
            scale, bias, mean, variance = values
            modules.append(lambda x, a=scale, b=bias, m=mean, v=variance: nn.functional.batch_norm(x, m, v, a, b))
    expected = computed(pool5, *modules).numpy()
    read.write(tmp_path / "n.onnx")
    for one in (read, Network.read(tmp_path / "n.onnx")):
        found = engines.open(one, "onnxruntime").logits(batch)
        found = scores(found, "sigmoid") if read.architecture.output == "sigmoid" else found
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    back = read.read_as(head, input_size=64)
    assert back.architecture == network.architecture
    assert back.sha256() == network.sha256()


def test_the_only_layer_of_one_head_is_the_first_of_another():
    network = random_network(head="gap", input_size=224)
    assert [name for name in network.parameters if name.startswith("fc")] == ["fc8.weight", "fc8.bias"]
    read = network.read_as("average, classes sigmoid")
    assert [name for name in read.parameters if name.startswith("fc")] == ["fc6.weight", "fc6.bias"]
    np.testing.assert_array_equal(read.parameters["fc6.weight"], network.parameters["fc8.weight"])
    assert read.read_as("gap").sha256() == network.sha256()


def test_the_output_alone_changes_the_meaning_of_the_logits():
    network = random_network(width=1 / 16)
    assert network.read_as(output="sigmoid").architecture.output == "sigmoid"
    assert network.read_as(output="sigmoid").read_as("fc").architecture == network.architecture
    one = random_network(head="average, classes binary", classes=2)
    assert one.read_as("max, classes").architecture.output == "binary"
    assert one.read_as(output="sigmoid").architecture == one.architecture


def test_crop_and_resize_follow_the_size_of_the_input():
    network = random_network(head=POOLED, input_size=224)
    read = network.read_as(input_size=96)
    assert (read.architecture.input_size, read.preprocessing.crop, read.preprocessing.size) == (96, 96, 110)
    flat = network.read_as("24 relu, classes")  # reads one position
    assert (flat.architecture.input_size, flat.preprocessing.crop) == (32, 32)
    odd = random_network(head=MAP, input_size=64).read_as(input_size=80)  # 80 pixels have 2x2 positions as well
    assert engines.open(odd, "onnxruntime").logits(np.zeros((1, 3, 80, 80), np.float32)).shape == (1, 7)


def test_quantized_and_low_rank_weights_are_read_too():
    network = random_network(head="average 2, 24 relu, classes", input_size=64)
    batch = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    left, right = np.ones((24, 2), np.float32), np.ones((2, 32, 2, 2), np.float32)
    low = {**network.parameters, "fc6.weight": LowRank(left, right)}
    for one in (quantize_weights(network, Scheme(bits=4).bits), Network(network.architecture, low, network.preprocessing)):
        expected = engines.open(one, "onnxruntime").logits(batch)
        read = one.read_as("24 relu, classes")
        np.testing.assert_allclose(engines.open(read, "onnxruntime").logits(batch), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        (
            "average, 25 relu, classes",
            {},
            "head 'average, 25 relu, classes' of 64 pixels doesn't fit the file's layers, 32x2x2, 24, 7",
        ),
        ("24 relu, 5 relu, classes", {}, "doesn't fit the file's layers, 32x2x2, 24, 7"),
        ("average, 24 relu, classes", {}, "doesn't fit the file's layers, 32x2x2, 24, 7"),
        ("24 relu batch-norm, classes", {}, "doesn't fit the file's layers, 32x2x2, 24, 7"),
        ("none", {}, "head 'none' has no layers for those of the file"),
        ("24 swish, classes", {}, "unknown operation 'swish'"),
        ("", {"output": "binary"}, "a binary output is one logit; the file has 7"),
    ],
)
def test_a_head_that_does_not_fit_is_refused_with_the_files_units(head, options, message):
    with pytest.raises(ModelError, match=message) as error:
        random_network(head=MAP, input_size=64).read_as(head, **options)
    assert "\n" not in str(error.value)


def test_one_logit_has_no_softmax():
    with pytest.raises(ModelError, match="one logit has no softmax"):
        random_network(head="average, classes binary", classes=2).read_as(output="softmax")
    with pytest.raises(ModelError, match="has no head"):
        random_network(head="none", classes=0).read_as("average, classes")


def test_an_input_size_that_changes_the_map_is_read_as_adaptive_pooling():
    """torchvision's VGG averages any map to 7 x 7 positions, of which the state dictionary has no trace."""
    network = random_network(head=MAP, input_size=64)
    for size in (32, 100):
        with pytest.warns(Notice, match=f"assumed adaptive average pooling to them at {size} pixels. Set with --head"):
            sized = network.read_as(input_size=size)
        assert (sized.architecture.input_size, sized.preprocessing.crop) == (size, size)
        batch = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
        found = engines.open(sized, "onnxruntime").run(batch, ["pool5", "logits"])
        pooled = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(found["pool5"]), 2).flatten(1).numpy()
        weights = [expanded(sized.parameters[f"fc{n}.weight"]) for n in (6, 7)]
        hidden = pooled @ weights[0].reshape(24, -1).T + sized.parameters["fc6.bias"]
        logits = hidden.clip(0) @ weights[1].T + sized.parameters["fc7.bias"]
        np.testing.assert_allclose(found["logits"], logits, atol=1e-5)
    assert network.read_as(input_size=70).architecture.head == network.architecture.head
