"""Files that MXNet itself saved: 1.9.1, 0.11.0 and 0.9.5 (tests/fixtures/make_mxnet*.py)."""

import struct
import warnings

import numpy as np
import pytest

from conftest import FIXTURES, random_network
from vgg import ModelError, Network, engines
from vgg.formats import mxnet

IMAGES = np.sin(np.arange(2 * 3 * 32 * 32)).reshape(2, 3, 32, 32).astype(np.float32)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("mxnet-vgg16-bn.params", "vgg16-bn"),
        ("mxnet-vgg16-bn-exported.params", "vgg16-bn"),
        ("mxnet-vgg16-bn.onnx", "vgg16-bn"),
        ("mxnet-vgg11.params", "vgg11"),
        ("mxnet-vgg11-float16.params", "vgg11"),
    ],
)
def test_a_file_of_mxnets_gives_the_logits_that_mxnet_gave(file, name):
    network = Network.read(FIXTURES / file)
    assert (network.architecture.name, network.preprocessing.name) == (name, "zoo")
    expected = np.loadtxt(FIXTURES / f"mxnet-{name}.logits.txt")
    found = engines.open(network, "onnxruntime").logits(IMAGES)
    share = 1e-3 if "float16" in file else 1e-5  # the half file was made by rounding
    np.testing.assert_allclose(found, expected, atol=share * np.abs(expected).max())
    assert not network.parameters["fc6.weight"].flags.owndata


def test_every_version_of_the_format_is_read():
    files = [FIXTURES / f"mxnet-{version}-vgg11.params" for version in ("0.9.5-2", "0.11.0")]
    heads = [file.read_bytes()[24:28] for file in (*files, FIXTURES / "mxnet-vgg11.params")]
    assert [int.from_bytes(head, "little") for head in heads] == [4, 0xF993FAC8, 0xF993FAC9]
    oldest, old = (Network.read(file) for file in files)
    assert oldest.sha256() == old.sha256()
    assert old.architecture.name == "vgg11"
    np.testing.assert_allclose(np.std(old.parameters["fc7.weight"]), (2 / 64) ** 0.5, rtol=0.1)


def test_what_is_no_vgg_is_refused_by_its_first_name(tmp_path):
    content = (FIXTURES / "mxnet-vgg11.params").read_bytes().replace(b"features.0.weight", b"features.0.kernel")
    (tmp_path / "n.params").write_bytes(content)
    with pytest.raises(ModelError, match=r"expected a name such as vgg0_conv0_weight .* found features\.0\.kernel"):
        Network.read(tmp_path / "n.params")


def save(path, arrays):
    """Write arrays as MXNet does, version 2."""
    content = [mxnet.MAGIC, struct.pack("<Q", len(arrays))]
    for value in arrays.values():
        value = np.ascontiguousarray(value, np.float32)
        content.append(struct.pack(f"<IiI{value.ndim}q3i", 0xF993FAC9, 0, value.ndim, *value.shape, 1, 0, 0) + value.tobytes())
    content.append(struct.pack("<Q", len(arrays)))
    content += [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    path.write_bytes(b"".join(content))


def symbolic(network):
    """A network's arrays with the names of MXNet's training script, for pixels in RGB."""
    roles = {"scale": "gamma", "mean": "moving_mean", "variance": "moving_var"}
    arrays = {}
    for name, value in network.parameters.items():
        layer, role = name.split(".")
        norm = layer.startswith("bn")
        prefix = "aux:" if role in ("mean", "variance") else "arg:"
        value = value.reshape(len(value), -1) if name == "fc6.weight" else value
        key = f"{prefix}{layer}_{roles.get(role, 'beta' if norm and role == 'bias' else role)}"
        arrays[key] = value[:, ::-1] if name == "conv1_1.weight" else value
    return arrays


def read(path):
    """The network in a file, and the notice."""
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        return Network.read(path), str(notices[0].message)


@pytest.mark.parametrize("prefix", ["features.", ""])
def test_features_alone_are_a_backbone_and_their_linear_layers_are_left_out(tmp_path, prefix):
    whole = mxnet._arrays((FIXTURES / "mxnet-vgg11.params").read_bytes())
    features = {name: value for name, value in whole.items() if name.startswith("features.")}
    save(tmp_path / "n.params", {name.replace("features.", prefix): value for name, value in features.items()})
    network, notice = read(tmp_path / "n.params")
    assert (network.architecture.head, network.architecture.values[-1]) == ("none", "pool5")
    assert f"assumed a backbone without {prefix}21.weight" in notice
    reference = Network.read(FIXTURES / "mxnet-vgg11.params")
    found = [engines.open(one, "onnxruntime").run(IMAGES, ["pool5"])["pool5"] for one in (network, reference)]
    np.testing.assert_array_equal(*found)


def test_another_head_is_read_by_convention_which_is_stated(tmp_path):
    whole = mxnet._arrays((FIXTURES / "mxnet-vgg11.params").read_bytes())
    rng = np.random.default_rng(0)
    shapes = {"21.weight": (9, 8), "21.bias": (9,)}
    arrays = {name: value for name, value in whole.items() if not name.startswith(("features.2", "output"))}
    arrays |= {f"features.{name}": rng.normal(size=shape) for name, shape in shapes.items()}
    arrays |= {"output.weight": rng.normal(size=(3, 9)), "output.bias": rng.normal(size=3)}
    save(tmp_path / "n.params", arrays)
    network, notice = read(tmp_path / "n.params")
    assert "assumed the head 'average, 9 relu dropout, classes'" in notice
    assert "no preprocessing or input size in the file; using preprocessing 'zoo' and 224 x 224 pixels" in notice
    features = engines.open(network, "onnxruntime").run(IMAGES, ["pool5"])["pool5"].mean((2, 3))
    hidden = np.maximum(features @ arrays["features.21.weight"].T + arrays["features.21.bias"], 0)
    expected = hidden @ arrays["output.weight"].T + arrays["output.bias"]
    np.testing.assert_allclose(engines.open(network, "onnxruntime").logits(IMAGES), expected, rtol=1e-4, atol=1e-5)


def test_the_networks_of_mxnets_training_script_have_its_pixels_and_its_batch_normalisation(tmp_path):
    network = random_network("vgg11-bn", input_size=32)
    arrays = symbolic(network)
    for key in (key for key in arrays if key.endswith("gamma")):
        arrays[key] = np.full_like(arrays[key], 0.5)  # what weight decay makes of an array that is not used
    save(tmp_path / "n.params", arrays)
    found, notice = read(tmp_path / "n.params")
    assert notice.endswith("batch normalisation with epsilon 0.001, the default of MXNet's operator")
    assert (found.architecture.epsilon, found.preprocessing.name) == (1e-3, "caffe")
    np.testing.assert_array_equal(found.parameters["conv1_1.weight"], network.parameters["conv1_1.weight"])
    assert all((value == 1).all() for name, value in found.parameters.items() if name.endswith(".scale"))
    arrays["arg:bn1_1_gamma"] = np.linspace(0.5, 2, len(arrays["arg:bn1_1_gamma"]))  # trained, with fix_gamma=False
    save(tmp_path / "n.params", arrays)
    np.testing.assert_allclose(read(tmp_path / "n.params")[0].parameters["bn1_1.scale"][[0, -1]], [0.5, 2])


def test_the_reduced_vgg_of_ssd_is_a_backbone(tmp_path):
    arrays = symbolic(random_network("vgg16", head="none", classes=0))
    channels = len(arrays["arg:conv5_3_weight"])
    arrays |= {"arg:fc6_weight": np.ones((8, channels, 3, 3)), "arg:fc6_bias": np.ones(8)}
    arrays |= {"arg:fc7_weight": np.ones((8, 8, 1, 1)), "arg:fc7_bias": np.ones(8)}
    save(tmp_path / "n.params", arrays)
    network, notice = read(tmp_path / "n.params")
    assert (network.architecture.name, network.architecture.head) == ("vgg16", "none")
    assert "assumed a backbone without arg:fc6_weight and the like, since it is a dilated convolution, as in SSD" in notice
