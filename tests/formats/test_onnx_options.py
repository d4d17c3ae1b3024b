"""The forms in which a network is written, and that reading undoes them."""

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest

from conftest import EXAMPLES, random_network
from onnx_judge import error
from vgg import Labels, ModelError, Network, engines
from vgg.formats.onnx_builder import NEWEST
from vgg.formats.onnx_file import scan
from vgg.predictions import softmax
from vgg.preprocessing import PRESETS

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
OPSETS = (3, 5, 6, 7, 9, 12, 13, 18, NEWEST)


def session(path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network("vgg11-bn", input_size=64)


@pytest.fixture(scope="module")
def logits(network) -> np.ndarray:
    return engines.open(network, "onnxruntime").logits(IMAGES)


@pytest.mark.parametrize("opset", OPSETS)
def test_softmax(tmp_path, network, logits, opset):
    network.write(tmp_path / "n.onnx", opset=opset, softmax=True)
    assert [port.name for port in scan(tmp_path / "n.onnx").outputs] == ["probabilities"]
    assert error(tmp_path / "n.onnx", IMAGES, softmax(logits)) < 1e-5


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("probable", [False, True])
def test_the_dense_form_scores_each_place_as_the_usual_form_does(tmp_path, network, opset, probable):
    network.write(tmp_path / "n.onnx", opset=opset, dense=True, softmax=probable)
    large = np.random.default_rng(0).normal(size=(1, 3, 96, 128)).astype(np.float32)
    port = scan(tmp_path / "n.onnx").outputs[0]
    assert port.shape == ["batch", 7, "logits_height", "logits_width"]
    # fc6 sees 2x2 places of pool5, so the map is 2x3; an image whose pool5 is those places alone has no neighbours beyond its
    # edge, which the convolutions see. So the judge is the linear layers at each place of the whole image's pool5.
    features = torch_pool5(network, large)
    expected = np.stack([[head(network, features[:, :, y : y + 2, x : x + 2]) for x in range(3)] for y in range(2)])
    expected = expected.transpose(2, 3, 0, 1)
    if probable:
        expected = np.moveaxis(softmax(np.moveaxis(expected, 1, -1)), -1, 1)
    assert error(tmp_path / "n.onnx", large, expected) < 1e-5


def torch_pool5(network, images):
    import torch
    from torch.nn import functional

    value = torch.from_numpy(images).double()
    for layer in network.architecture.layers:
        arrays = [torch.from_numpy(np.array(network.parameters[f"{layer.name}.{role}"])).double() for role in layer.parameters]
        if layer.operation == "convolution":
            value = functional.conv2d(value, *arrays, padding=1)
        elif layer.operation == "batch_norm":
            scale, bias, mean, variance = arrays
            value = functional.batch_norm(value, mean, variance, scale, bias, eps=network.architecture.epsilon)
        elif layer.operation == "relu":
            value = torch.relu(value)
        elif layer.operation == "max_pool":
            value = functional.max_pool2d(value, 2)
        else:
            break
    return value.numpy()


def head(network, value):
    value = value.reshape(len(value), -1)
    for name in ("fc6", "fc7", "fc8"):
        weight = network.parameters[f"{name}.weight"].astype(np.float64)
        value = value @ weight.reshape(len(weight), -1).T + network.parameters[f"{name}.bias"]
        value = value if name == "fc8" else np.maximum(value, 0)
    return value


@pytest.mark.parametrize("opset", OPSETS)
def test_a_fixed_batch(tmp_path, network, logits, opset):
    network.write(tmp_path / "n.onnx", opset=opset, batch=2, outputs=["fc7"])
    model = scan(tmp_path / "n.onnx")
    assert [port.shape[0] for port in (*model.inputs, *model.outputs)] == [2, 2, 2]
    (port,) = [port for port in model.outputs if port.name == "logits"]
    found = error(tmp_path / "n.onnx", IMAGES, engines.open(network, "onnxruntime").run(IMAGES, ["fc7"])["fc7"])
    assert found < 1e-5  # the first output, in the order of the network
    assert port.shape == [2, 7]


@pytest.mark.parametrize("opset", OPSETS)
def test_16_bits_halve_the_file_and_keep_its_ports(tmp_path, network, logits, opset):
    network.write(tmp_path / "whole.onnx", opset=opset)
    network.write(tmp_path / "half.onnx", opset=opset, bits=16)
    whole, half = ((tmp_path / f"{name}.onnx").stat().st_size for name in ("whole", "half"))
    assert half < 0.6 * whole
    assert [(port.name, port.data_type) for port in scan(tmp_path / "half.onnx").outputs] == [("logits", 1)]
    assert error(tmp_path / "half.onnx", IMAGES, logits) < 1e-2
    again = Network.read(tmp_path / "half.onnx")
    assert again.sha256() == scan(tmp_path / "half.onnx").metadata["vgg.parameters_sha256"]
    for name, value in network.parameters.items():
        assert np.array_equal(again.parameters[name], value.astype(np.float16))


# The tensors that the zoo's manifest and files name: ports, and the features that its manifest calls `extra_ports`.
@pytest.mark.parametrize(
    ("name", "features"),
    [("vgg16", "flatten_70"), ("vgg16-bn", "flatten_135"), ("vgg19", "flatten_82"), ("vgg19-bn", "flatten_162")],
)
def test_the_zoos_names(tmp_path, name, features):
    network = random_network(name, input_size=64)
    network.write(tmp_path / "n.onnx", names="zoo", outputs=["fc7"])
    model = scan(tmp_path / "n.onnx")
    assert [port.name for port in model.inputs] == ["data"]
    assert [port.name for port in model.outputs] == [features, "vgg0_dense2_fwd"]
    assert {"vgg0_conv0_weight", "vgg0_dense2_bias"} <= set(model.tensors)
    assert name.endswith("-bn") == ("vgg0_batchnorm0_running_var" in model.tensors)
    assert all(tensor.startswith("vgg0_") for tensor in model.tensors)
    again = Network.read(tmp_path / "n.onnx")
    assert (again.architecture, again.sha256()) == (network.architecture, network.sha256())
    assert session(tmp_path / "n.onnx").run(["vgg0_dense2_fwd"], {"data": IMAGES})[0].shape == (2, 7)


def test_the_zoos_names_with_a_softmax_are_those_of_its_caffe2_files(tmp_path):
    network = random_network("vgg19", input_size=64)
    network.write(tmp_path / "n.onnx", names="zoo", softmax=True, opset=3)
    model = scan(tmp_path / "n.onnx")
    assert ([port.name for port in model.inputs], [port.name for port in model.outputs]) == (["data_0"], ["prob_1"])
    assert {"conv1_1_w_0", "fc8_b_0"} <= set(model.tensors)
    assert Network.read(tmp_path / "n.onnx").sha256() == network.sha256()


@pytest.mark.parametrize("options", [
    {"softmax": True}, {"dense": True, "softmax": True}, {"batch": 4}, {"preprocessing": True},
    {"names": "zoo", "preprocessing": True}, {"names": "zoo", "dense": True, "softmax": True, "opset": 4},
], ids=str)  # fmt: skip
def test_reading_undoes_every_form(tmp_path, options):
    network = random_network("vgg13-bn", input_size=64, epsilon=2e-3, labels=Labels(tuple("abcdefg")))
    network = replace(network, preprocessing=replace(PRESETS["caffe"], crop=64))
    network.write(tmp_path / "n.onnx", **options)
    again = Network.read(tmp_path / "n.onnx")
    assert again.sha256() == network.sha256()
    assert again.architecture == network.architecture
    assert (again.preprocessing, again.labels) == (network.preprocessing, network.labels)


@pytest.mark.parametrize("recipe", [name for name in PRESETS if name != "mms"])
@pytest.mark.parametrize("photo", ["chelsea.png", "rocket.jpg", "coffee.png"])
def test_preprocessing_in_the_graph_sees_what_python_sees(tmp_path, recipe, photo):
    from vgg.images import open_image

    image = np.asarray(open_image(EXAMPLES / photo))
    for resize in {PRESETS[recipe].resize, "none"}:
        preprocessing = replace(PRESETS[recipe], resize=resize)
        network = replace(random_network("vgg11", input_size=224), preprocessing=preprocessing)
        network.write(tmp_path / "n.onnx", preprocessing=True, outputs=["conv1_1"])
        onnx.checker.check_model(tmp_path / "n.onnx", full_check=True)
        model = scan(tmp_path / "n.onnx")
        assert [(port.name, port.data_type, port.shape) for port in model.inputs] == [
            ("image", 2, ["batch", "height", "width", 3])
        ]
        assert model.opset == 18
        found, seen = session(tmp_path / "n.onnx").run(["logits", "conv1_1"], {"image": image[None]})
        data = preprocessing(EXAMPLES / photo)[None]
        expected = engines.open(network, "onnxruntime").run(data, ["logits", "conv1_1"])
        assert np.abs(found - expected["logits"]).max() < 1e-2 * np.abs(expected["logits"]).max()
        assert np.abs(seen - expected["conv1_1"]).mean() < 1e-3 * np.abs(expected["conv1_1"]).max()


def test_what_contradicts_itself_is_said(tmp_path, network):
    path = tmp_path / "n.onnx"
    for options, message in (
        ({"bits": 8}, "invalid bits 8; the floats of an ONNX file have 16 or 32"),
        ({"batch": 0}, "invalid batch 0; it must be 1 or more"),
        ({"names": "keras"}, "unknown names 'keras'; choose from paper, zoo"),
        ({"dense": True, "preprocessing": True}, "dense and preprocessing exclude each other"),
        (
            {"opset": 17, "preprocessing": True},
            rf"unsupported opset 17 with preprocessing; vgg writes 18 to {NEWEST}",
        ),
    ):
        with pytest.raises(ModelError, match=message):
            network.write(path, **options)
    with pytest.raises(ModelError, match=r"n\.onnx: preprocessing 'mms' resizes by area"):
        replace(network, preprocessing=PRESETS["mms"]).write(path, preprocessing=True)
    with pytest.raises(ModelError, match=r"n\.onnx: the dense form turns linear layers into convolutions"):
        random_network(head="gap").write(path, dense=True)
    with pytest.raises(ModelError, match="only ONNX files have an opset"):
        network.write(tmp_path / "n.safetensors", softmax=True)
    assert not list(tmp_path.iterdir())


def test_triton_gets_a_model_repository(tmp_path):
    network = random_network("vgg11", labels=Labels(tuple("abcdefg")))
    network.write(tmp_path / "vgg11", outputs=("fc7",), layout="triton")
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()) == [
        "vgg11/1/model.onnx", "vgg11/config.pbtxt", "vgg11/labels.txt",
    ]  # fmt: skip
    text = (tmp_path / "vgg11/config.pbtxt").read_text()
    assert text == (
        'name: "vgg11"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 64\n'
        'input [\n  { name: "data", data_type: TYPE_FP32, dims: [ 3, 32, 32 ] }\n]\n'
        'output [\n  { name: "fc7", data_type: TYPE_FP32, dims: [ 256 ] },\n'
        '  { name: "logits", data_type: TYPE_FP32, dims: [ 7 ], label_filename: "labels.txt" }\n]\n'
        "dynamic_batching { }\n"
    )
    assert (tmp_path / "vgg11/labels.txt").read_text() == "a\nb\nc\nd\ne\nf\ng\n"
    assert Network.read(tmp_path / "vgg11/1/model.onnx").sha256() == network.sha256()
    from vgg import Error

    with pytest.raises(Error, match="vgg11: exists already"):
        network.write(tmp_path / "vgg11", layout="triton")
    network.write(tmp_path / "fixed", batch=4, layout="triton")
    assert (
        'max_batch_size: 0\ninput [\n  { name: "data", data_type: TYPE_FP32, dims: [ 4, 3, 32, 32 ] }'
        in (tmp_path / "fixed/config.pbtxt").read_text()
    )
