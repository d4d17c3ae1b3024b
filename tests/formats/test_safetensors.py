"""The safetensors package is the judge of what we write, and the producer of what we read."""

import json
import struct
import warnings

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FIXTURES, random_network, read_damaged
from reference import timm_state, torchvision_like
from vgg import ModelError, Network


@pytest.mark.parametrize("name", ["vgg16", "vgg13-bn"])
def test_both_layouts_give_the_same_network(tmp_path, name):
    module = torchvision_like(name, 1 / 16, 7, 64)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "torchvision.safetensors")
    safetensors.torch.save_file(timm_state(module), tmp_path / "timm.safetensors")
    one, other = (Network.read(tmp_path / f"{layout}.safetensors") for layout in ("torchvision", "timm"))
    assert (one.architecture.name, one.architecture) == (name, other.architecture)
    assert one.sha256() == other.sha256()


def test_what_we_write_the_package_reads(tmp_path):
    network = random_network("vgg11-bn")
    network.write(tmp_path / "n.safetensors")
    found = safetensors.numpy.load_file(tmp_path / "n.safetensors")
    assert set(found) == set(network.parameters)
    assert all(np.array_equal(found[name], value) for name, value in network.parameters.items())


def test_the_papers_names_need_no_description(tmp_path):
    network = random_network("vgg16-bn")
    safetensors.numpy.save_file(dict(network.parameters), tmp_path / "n.safetensors")
    assert Network.read(tmp_path / "n.safetensors").sha256() == network.sha256()


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


@pytest.mark.parametrize(
    "content",
    [
        file_of(b"{broken"),
        file_of(b"{" * 100_000),
        file_of(json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode(), b"short"),
        file_of(json.dumps({"a": {"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 16]}}).encode(), b"x" * 16),
        file_of(json.dumps({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}).encode(), b"x" * 16),
        file_of(json.dumps({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [16, 0]}}).encode(), b"x" * 16),
        struct.pack("<Q", 99_000_000) + b"{",
    ],
)
def test_a_damaged_file_is_one_clear_line(tmp_path, content):
    (tmp_path / "n.safetensors").write_bytes(content)
    with pytest.raises(
        ModelError, match=r"n\.safetensors: (damaged or truncated safetensors file|unsupported format)"
    ) as error:
        Network.read(tmp_path / "n.safetensors")
    assert "\n" not in str(error.value)


@settings(max_examples=150)
@given(data=st.data())
def test_a_broken_file_is_one_clear_line(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    whole = folder / "whole.safetensors"
    if not whole.exists():
        random_network(width=1 / 64).write(whole)
    read_damaged(data, whole, 4001)


@pytest.mark.parametrize(("described", "used"), [(70, 70), (128, 64)])
def test_the_input_size_of_timms_description_is_used_if_the_head_reads_its_map(tmp_path, described, used):
    safetensors.torch.save_file(timm_state(torchvision_like("vgg11", 1 / 16, 3, 64)), tmp_path / "model.safetensors")
    config = json.loads((FIXTURES / "timm-config.json").read_text())
    config["pretrained_cfg"]["input_size"] = [3, described, described]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        network = Network.read(tmp_path / "model.safetensors")
    assert (network.architecture.input_size, network.preprocessing.crop) == (used, used)
    stated = any("input size of 128 pixels not used, but 64, since the head reads" in str(one.message) for one in notices)
    assert stated == (described != used)
