"""Files that torch itself saves, in both of its formats."""

import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import read_damaged
from reference import save_tiny, timm_state, torchvision_like
from vgg import ModelError, Network
from vgg.architectures import CONFIGURATIONS

NAMES = sorted(set(CONFIGURATIONS) - {"vgg11-lrn"})


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_a_state_dictionary_is_read(tmp_path, name, zipped):
    module = torchvision_like(name, 1 / 16, 7, 64)
    torch.save(module.state_dict(), tmp_path / "n.pth", _use_new_zipfile_serialization=zipped)
    network = Network.read(tmp_path / "n.pth")
    assert (network.architecture.name, network.architecture.input_size) == (name, 64)
    state = module.state_dict()
    assert np.array_equal(network.parameters["conv1_1.weight"], state["features.0.weight"])
    assert np.array_equal(network.parameters["fc6.weight"].reshape(256, -1), state["classifier.0.weight"])
    assert np.array_equal(network.parameters["fc8.bias"], state["classifier.6.bias"])


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_and_timms_layouts_give_the_same_network(tmp_path, name):
    module = torchvision_like(name, 1 / 16, 7, 64)
    torch.save(module.state_dict(), tmp_path / "torchvision.pth")
    torch.save(timm_state(module), tmp_path / "timm.pth")
    one, other = (Network.read(tmp_path / f"{layout}.pth") for layout in ("torchvision", "timm"))
    assert one.architecture == other.architecture
    assert one.sha256() == other.sha256()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_kept(tmp_path, dtype):
    module = torchvision_like("vgg11", 1 / 16, 7, 32).to(dtype)
    torch.save(module.state_dict(), tmp_path / "n.pth")
    found = Network.read(tmp_path / "n.pth").parameters["fc7.weight"]
    assert str(dtype) == f"torch.{found.dtype.name}"
    assert np.array_equal(found.astype(np.float32), module.state_dict()["classifier.3.weight"].float())


@pytest.mark.parametrize("wrap", ["state_dict", "model", "model_state_dict"])
def test_a_checkpoint_of_a_data_parallel_run_is_read(tmp_path, wrap):
    module = torchvision_like("vgg11", 1 / 16, 7, 32)
    state = {f"module.{key}": torch.nn.Parameter(value) for key, value in module.state_dict().items()}
    torch.save({"epoch": 3, "arch": "vgg11", "best": torch.tensor(0.5), wrap: state}, tmp_path / "checkpoint.pt")
    assert Network.read(tmp_path / "checkpoint.pt").architecture.name == "vgg11"


def test_shared_and_transposed_storages_are_read_as_torch_means_them(tmp_path):
    module = torchvision_like("vgg11", 1 / 16, 7, 32)
    state = module.state_dict()
    state["classifier.3.weight"] = state["classifier.3.weight"].T
    both = torch.cat([state["features.0.bias"], state["features.0.bias"]])
    state["features.0.bias"] = both[4:]
    for zipped in (True, False):
        torch.save(state, tmp_path / "n.pth", _use_new_zipfile_serialization=zipped)
        network = Network.read(tmp_path / "n.pth")
        assert np.array_equal(network.parameters["fc7.weight"], state["classifier.3.weight"])
        assert np.array_equal(network.parameters["conv1_1.bias"], both[4:])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile-was-here",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_hostile_pickle_runs_nothing(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    state = torchvision_like("vgg11", 1 / 16, 7, 32).state_dict()
    torch.save({**state, "features.0.weight": Hostile()}, "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ModelError, match=r"evil\.pth: not a VGG network: features\.0\.weight is not a tensor of floats, but"):
        Network.read("evil.pth")
    assert not os.path.exists("hostile-was-here")


def test_a_network_of_another_kind_is_refused_by_its_first_key(tmp_path):
    state = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64)}
    torch.save(state, tmp_path / "resnet.pth")
    with pytest.raises(ModelError) as error:
        Network.read(tmp_path / "resnet.pth")
    assert str(error.value) == (
        f"{tmp_path}/resnet.pth: not a VGG network: expected a key such as features.0.weight [64, 3, 3, 3], "
        "found conv1.weight [64, 3, 7, 7], bn1.weight [64]"
    )


@pytest.mark.parametrize(
    ("key", "shape", "message"),
    [
        (
            "features.3.weight",
            (8, 4, 5, 5),
            r"expected conv2_1\.weight \[8, 4, 3, 3\], found features\.3\.weight \[8, 4, 5, 5\]",
        ),
        ("features.3.bias", (9,), r"expected conv2_1\.bias \[8\], found features\.3\.bias \[9\]"),
        ("classifier.3.weight", (256, 255), r"expected fc7\.weight \[256, 256\], found classifier\.3\.weight \[256, 255\]"),
        ("features.18.weight", None, r"expected conv5_2\.weight \[32, 32, 3, 3\], found features\.18\.bias \[32\]"),
    ],
)
def test_the_first_key_that_does_not_fit_is_named(tmp_path, key, shape, message):
    state = torchvision_like("vgg11", 1 / 16, 7, 32).state_dict()
    if shape:
        state[key] = torch.zeros(shape)
    else:
        del state[key]
    torch.save(state, tmp_path / "n.pth")
    with pytest.raises(ModelError, match=message):
        Network.read(tmp_path / "n.pth")


def test_features_alone_are_a_backbone(tmp_path):
    state = {key: value for key, value in torchvision_like("vgg16", 1 / 16, 7, 32).state_dict().items() if "features" in key}
    torch.save(state, tmp_path / "n.pth")
    architecture = Network.read(tmp_path / "n.pth").architecture
    assert (architecture.name, architecture.head, architecture.values[-1]) == ("vgg16", "none", "pool5")


def test_neither_torch_nor_onnx_is_needed_to_read(tmp_path):
    save_tiny(str(tmp_path / "n.pth"))
    code = f"import sys, vgg; vgg.Network.read({str(tmp_path / 'n.pth')!r}); print({{'torch', 'onnx'}} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


@pytest.mark.parametrize(
    ("content", "held"),
    [
        ({}, "nothing"),
        ({"a": 1, 2: None}, "a (int), 2 (NoneType)"),
        ([1, 2], "0 (int), 1 (int)"),
        (3, "one int"),
        ({"state_dict": {"a": "b"}}, "state_dict (dict)"),
        (torch.zeros(3), "one [3]"),
        (
            {"fc.weight": torch.zeros(2, 3), "fc.bias": torch.zeros(2), "best": np.float64(3)},
            "fc.weight [2, 3], fc.bias [2], best",
        ),
        (nn.Sequential(nn.Linear(2, 2)), "one torch.nn.modules.container.Sequential"),
    ],
)
def test_a_sound_file_without_a_network_says_what_it_holds(tmp_path, content, held):
    torch.save(content, tmp_path / "n.pth")
    with pytest.raises(ModelError, match=rf"n\.pth: no network in it; it holds {re.escape(held)}.*\. Save that of a model"):
        Network.read(tmp_path / "n.pth")


def test_a_plain_pickle_or_zip_is_none_of_torchs(tmp_path):
    (tmp_path / "p.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ModelError, match=r"no network in it; it holds a \(int\)"):
        Network.read(tmp_path / "p.pth")
    np.savez(tmp_path / "z.npz", a=np.zeros(3))
    with pytest.raises(ModelError, match="is a file of NumPy arrays"):
        Network.read(tmp_path / "z.npz")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@settings(max_examples=150)
@given(data=st.data())
def test_a_broken_file_is_one_clear_line(tmp_path_factory, zipped, data):
    folder = tmp_path_factory.getbasetemp()
    whole = folder / f"whole-{zipped}.pth"
    if not whole.exists():
        state = torchvision_like("vgg11", 1 / 64, 3, 32).state_dict()
        torch.save(state, whole, _use_new_zipfile_serialization=zipped)
    # The pickle, where damage matters most, is in the first kilobytes.
    read_damaged(data, whole, 6001)
