"""Files that MXNet itself saved: 1.9.1, 0.11.0 and 0.9.5 (tests/fixtures/make_mxnet*.py)."""

import numpy as np
import pytest

from conftest import FIXTURES
from vgg import ModelError, Network, engines

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
