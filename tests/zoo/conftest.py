import hashlib

import pytest

from conftest import random_network
from vgg import Labels, zoo
from vgg.zoo import download


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """The bytes of a model file, about 300 KB."""
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    random_network(labels=Labels(tuple("abcdefg"))).write(path)
    return path.read_bytes()


@pytest.fixture
def known(model, monkeypatch, tmp_path):
    """The only published file, with an empty cache folder."""
    monkeypatch.setenv("VGG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VGG_MIRROR", raising=False)
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    row = zoo.Published(
        "zoo/tiny-7", random_network().architecture, "zoo", "http://127.0.0.1:9/tiny-7.onnx", "Apache-2.0", len(model),
        hashlib.sha256(model).hexdigest(),
    )  # fmt: skip
    monkeypatch.setattr(zoo, "PUBLISHED", (row,))
    monkeypatch.setattr(download, "PAUSE", 0.001)
    monkeypatch.setattr(download, "TIMEOUT", 0.5)
    return row
