"""Every reader, fed with files that were cut, changed or made to lie about lengths: one clear line, and little memory."""

import os
import tracemalloc
import warnings
from pathlib import Path

os.environ["KERAS_BACKEND"] = "torch"

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorData, TensorsData

from caffe_files import caffe2_nets, caffe_model
from conftest import FIXTURES, random_network
from vgg import Labels, ModelError, Network, engines
from vgg.formats import detect
from vgg.formats.protobuf import fields
from vgg.quantization import quantize_weights, static

detect(FIXTURES / "mxnet-vgg11.params")  # imports the readers, whose code would count as memory


def whole(kind: str, folder: Path) -> tuple[str, bytes]:
    """A file's name and content; what lies beside it is written."""
    network = random_network(width=1 / 64)
    if kind == "caffe2":
        init, predict = (net.SerializeToString() for net in caffe2_nets(network))
        (folder / "predict_net.pb").write_bytes(predict)
        return "init_net.pb", init
    if kind.startswith("caffe"):
        return "n.caffemodel", caffe_model(network, old="v1" in kind, legacy="v1" in kind).SerializeToString()
    if kind == "keras":
        return "n.keras", keras_file(folder)
    file = FIXTURES / kind
    for beside in FIXTURES.glob(f"{kind}.*"):
        (folder / beside.name).write_bytes(beside.read_bytes())
    return f"broken-{kind}", file.read_bytes()


def keras_file(folder: Path) -> bytes:
    keras = pytest.importorskip("keras")
    layers = [keras.layers.Input((32, 32, 3))]
    for channels, depth in ((1, 1), (2, 1), (4, 2), (8, 2), (8, 2)):
        layers += [keras.layers.Conv2D(channels, 3, padding="same", activation="relu") for _ in range(depth)]
        layers.append(keras.layers.MaxPooling2D())
    layers += [keras.layers.Flatten(), *(keras.layers.Dense(units) for units in (64, 64, 7))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        keras.Sequential(layers).save(folder / "whole.keras")
    return (folder / "whole.keras").read_bytes()


KINDS = (
    "mxnet-vgg16-bn.params", "mxnet-0.11.0-vgg11.params", "mxnet-0.9.5-2-vgg11.params", "mxnet-vgg16-bn.onnx",
    "torch-legacy.onnx", "torch-dynamo.onnx", "caffe-v1", "caffe-v2", "caffe2", "keras",
)  # fmt: skip
LENGTHS = (b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\xff\x07", b"\xff" * 9 + b"\x01", b"\0" * 8, b"\0\0\0\x80", b"\x80" * 10)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(data=st.data())
def test_a_broken_file_is_one_clear_line(tmp_path_factory, kind, data):
    folder = tmp_path_factory.getbasetemp() / f"broken-{kind}"
    if not folder.exists():
        folder.mkdir()
        name, content = whole(kind, folder)
        (folder / name).write_bytes(content)
        (folder / "name").write_text(name)
        (folder / "content").write_bytes(content)
    name, content = (folder / "name").read_text(), bytearray((folder / "content").read_bytes())
    # Where a file says what it is and how long its parts are, damage matters most: at the head, at the end, anywhere.
    places = st.one_of(
        st.integers(0, 400), st.integers(max(0, len(content) - 600), len(content) - 1), st.integers(0, len(content) - 1)
    )
    for place in data.draw(st.lists(places, max_size=6)):
        lie = data.draw(st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from(LENGTHS)))
        content[place : place + len(lie)] = lie
    path = folder / name
    path.write_bytes(content[: data.draw(st.integers(1, len(content)))] if data.draw(st.booleans()) else content)
    tracemalloc.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            Network.read(path)
    except ModelError as error:
        assert name in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
        assert len(str(error)) < 1000  # noqa: PT017
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 2 * len(content) + 2_000_000, peak  # what Python itself needs comes on top


def test_a_message_does_not_quote_the_broken_file(tmp_path):
    name, content = whole("keras", tmp_path)
    content = bytearray(content)
    place = content.index(b"config.json") - 4  # the length of the name, which zipfile's message quotes
    content[place : place + 2] = b"\xff\xff"
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=r"\.keras: damaged or truncated Keras file") as caught:
        Network.read(tmp_path / name)
    assert len(str(caught.value)) < 500


def static_model(network: Network) -> onnx.ModelProto:
    """The network with quantized activations, of random ranges."""
    batch = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    values = {"data": batch, **engines.open(network).run(batch, network.architecture.values)}
    ranges = {name: TensorData(lowest=array.min(), highest=array.max()) for name, array in values.items()}
    return static.quantize_static(network, TensorsData(CalibrationMethod.MinMax, ranges))


@pytest.mark.parametrize("kind", ["floats", "zoo", "int8", "old", "static"])
def test_a_file_that_ends_between_two_fields_is_truncated(tmp_path, kind):
    """The graph is whole and only entries of the metadata are missing: nothing is guessed."""
    path, network = tmp_path / "n.onnx", random_network(labels=Labels(tuple("abcdefg")), width=1 / 64)
    if kind == "static":
        static.write(static_model(network), network, path)
    else:
        written = quantize_weights(network) if kind == "int8" else network
        written.write(path, names="zoo" if kind == "zoo" else "paper", opset=7 if kind == "old" else 17)
    content = path.read_bytes()
    ends = [value[1] for _, value in fields(content, 0, len(content)) if isinstance(value, tuple)]
    whole = Network.read(path)
    assert len(ends) > 6
    for end in ends[:-1]:
        path.write_bytes(content[:end])
        with pytest.raises(ModelError, match=r"n\.onnx: (is truncated|missing|damaged or truncated)"):
            Network.read(path)
    path.write_bytes(content)
    assert Network.read(path).preprocessing == whole.preprocessing
