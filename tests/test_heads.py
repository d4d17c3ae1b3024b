"""Heads as data: their text, and any of them on all engines and in files."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import needs_native, random_network
from heads_helpers import CHANNELS, heads, run_onnx
from vgg import Architecture, ModelError, Network, engines
from vgg.formats.onnx_builder import NEWEST
from vgg.heads import FC, GAP, parse
from vgg.predictions import scores


@given(head=heads())
def test_a_heads_text_is_read_as_the_same_head(head):
    assert parse(head.text) == head


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "invalid head ''"),
        ("average", "only its last linear layer has `classes`"),
        ("classes, 5", "only its last linear layer has `classes`"),
        ("average, 256 swish, classes", "unknown operation 'swish', not one of relu, leaky-relu"),
        ("average, many, classes", "unknown number of units 'many'"),
        ("max 7, classes", "average pools to any number of positions, max to one"),
        ("256 relu tanh, classes", "a linear layer has one activation"),
        ("256 relu dropout 50, classes", "the probability of dropout is 0 or more and below 1"),
        ("256 relu, classes dropout", "its output is that of a linear layer or activation"),
    ],
)
def test_a_text_that_is_no_head_is_refused(text, message):
    with pytest.raises(ModelError, match=message):
        Architecture(head=text)


def test_the_named_heads_are_values_of_the_same_kind():
    assert parse("4096 relu dropout, 4096 relu dropout, classes") == FC
    assert Architecture(head=FC.text).head == "fc"
    assert Architecture(head=GAP.text).head == "gap"
    assert Architecture(head="4096 relu dropout, 4096 relu dropout, classes", width=0.5).head != "fc"  # which has 2048 units


@needs_native
@settings(max_examples=25)
@given(head=heads(), channels=CHANNELS, bn=st.booleans(), size=st.sampled_from([64, 97]), seed=st.integers(0, 9))
def test_engines_and_files_agree_on_any_head(head, channels, bn, size, seed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    classes = 2 if head.output == "binary" else 5
    network = random_network(
        "vgg11-bn" if bn else "vgg11", seed, input_size=size, head=head.text, channels=channels, classes=classes
    )
    batch = np.random.default_rng(seed).normal(size=(2, 3, size, size)).astype(np.float32)
    logits = engines.open(network, "torch").logits(batch)
    assert logits.shape == (2, network.architecture.units)
    expected = scores(logits, head.output)
    assert expected.shape == (2, classes)
    for engine in ("native", "onnxruntime", "openvino"):
        found = scores(engines.open(network, engine).logits(batch), head.output)
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-5)
    for opset in (7, 13, NEWEST):
        network.write(folder / "n.onnx", opset=opset, softmax=opset == 13)
        again = Network.read(folder / "n.onnx")
        assert again.architecture == network.architecture
        assert again.sha256() == network.sha256()
        found = run_onnx(folder / "n.onnx", batch)
        np.testing.assert_allclose(found if opset == 13 else scores(found, head.output), expected, rtol=0, atol=5e-5)


@needs_native
@pytest.mark.parametrize("last", ["", "conv3_2", "pool2"])
@pytest.mark.parametrize("bn", [False, True])
def test_a_backbone_has_features_but_no_logits(last, bn, tmp_path):
    network = random_network("vgg11-bn" if bn else "vgg11", head="none", classes=0, last=last)
    name = last or "pool5"
    batch = np.random.default_rng(0).normal(size=(2, 3, 48, 80)).astype(np.float32)
    expected = engines.open(network, "torch").run(batch, (name,))[name]
    for engine in ("native", "onnxruntime", "openvino"):
        opened = engines.open(network, engine)
        np.testing.assert_allclose(opened.run(batch, (name,))[name], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
        with pytest.raises(ModelError, match=f"has no head, so it can't classify; its features are {name}"):
            opened.logits(batch)
    network.write(tmp_path / "n.onnx")
    assert Network.read(tmp_path / "n.onnx").architecture == network.architecture
    np.testing.assert_allclose(run_onnx(tmp_path / "n.onnx", batch), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
