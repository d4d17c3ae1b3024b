"""State dictionaries that are written: torch is the judge of the files, and modules with torchvision's and timm's keys of the
network. The lists of keys are from the real libraries (tests/fixtures/make_state_keys.py)."""

import json
import warnings
import zipfile

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from conftest import FIXTURES, random_network, read_damaged
from heads_helpers import heads
from reference import torchvision_like
from torch_files import features, output, read
from vgg import Architecture, Error, Labels, ModelError, Network, Notice, engines
from vgg.formats.state_keys import stored
from vgg.heads import Head
from vgg.module_layers import torch_layer
from vgg.parameters import LowRank, Quantized
from vgg.preprocessing import PRESETS

LISTS = json.loads((FIXTURES / "state-keys.json").read_text())
LABELS = Labels(tuple("abcdefg"))
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)


class Timm(nn.Module):
    """The modules of timm's VGG: fc6 and fc7 are convolutions, the output is averaged before `head.fc`."""

    def __init__(self, trunk: nn.Module, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.features = trunk
        self.pre_logits = nn.ModuleDict({"fc1": nn.Conv2d(channels, hidden, 7), "fc2": nn.Conv2d(hidden, hidden, 1)})
        self.head = nn.ModuleDict({"fc": nn.Linear(hidden, classes)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.features(x)
        for name in ("fc1", "fc2"):
            x = self.pre_logits[name](x).relu()
        return self.head["fc"](x.mean((2, 3)))


def library_module(keys: str, name: str) -> nn.Module:
    module = torchvision_like(name, 1 / 16, 7, 224, seed=9)
    return (module if keys == "torchvision" else Timm(module.features, 32, 256, 7)).eval()


def write(network: Network, path, keys: str | None = None) -> str:
    """Write a network; the notices."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Notice)
        network.write(path, keys=keys)
    return "\n".join(str(one.message) for one in caught)


def load(path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    return torch.load(path, weights_only=True, mmap=True)


def logits(network: Network, images: np.ndarray = IMAGES) -> np.ndarray:
    return engines.open(network, "onnxruntime").logits(images)


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 + 1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("keys", ["torchvision", "timm"])
@pytest.mark.parametrize("name", ["vgg11-bn", "vgg16", "vgg19-bn"])
def test_keys_and_shapes_are_those_of_the_library_in_its_order(keys, name):
    architecture = Architecture(name)
    parameters = {key: np.broadcast_to(np.float32(0), shape) for key, shape in architecture.parameters.items()}
    network = Network(architecture, parameters, PRESETS["torchvision"])
    assert [(one.key, list(one.shape)) for one in stored(network, keys)] == list(LISTS[keys][name].items())


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("keys", ["torchvision", "timm"])
@pytest.mark.parametrize("name", ["vgg16", "vgg13-bn"])
def test_the_librarys_module_loads_strictly_and_gives_the_same_logits(tmp_path, suffix, keys, name):
    network = random_network(name, labels=LABELS, input_size=224)
    path = tmp_path / f"n{suffix}"
    assert write(network, path, keys) == (
        f"{path}: it has other channels than 64, 128, 256, 512, 512, unlike {keys}'s networks; build such a module before "
        "loading the file"
    )
    module = library_module(keys, name)
    module.load_state_dict(load(path), strict=True)
    agree(output(module, IMAGES), logits(network))
    back, notices = read(path)
    assert (notices, back.architecture, back.labels, back.sha256()) == ("", network.architecture, LABELS, network.sha256())
    assert (back.preprocessing, back.provenance) == (network.preprocessing, network.provenance)


def test_the_papers_keys_are_the_default_of_safetensors_and_torchvisions_of_pth(tmp_path):
    network = random_network("vgg11-bn")
    for keys, file, key in (
        (None, "n.safetensors", "bn1_1.scale"),
        ("paper", "n.pth", "bn1_1.scale"),
        (None, "n.pth", "features.1.running_mean"),
    ):
        write(network, tmp_path / file, keys)
        assert key in load(tmp_path / file)
        assert Network.read(tmp_path / file).sha256() == network.sha256()


@pytest.mark.parametrize("keys", ["torchvision", "timm"])
def test_another_epsilon_becomes_torchs(tmp_path, keys):
    network = random_network("vgg11-bn", epsilon=1e-3, input_size=224)
    notice = write(network, tmp_path / "n.pth", keys)
    assert "variances are changed by 0.00099, since torch adds an epsilon of 1e-05, not 0.001" in notice
    module = library_module(keys, "vgg11-bn")
    module.load_state_dict(load(tmp_path / "n.pth"), strict=True)
    agree(output(module, IMAGES), logits(network))
    agree(logits(Network.read(tmp_path / "n.pth")), logits(network))


def test_a_preprocessing_that_is_not_the_librarys_is_stated(tmp_path):
    network = random_network()
    other = Network(network.architecture, network.parameters, PRESETS["caffe"])
    assert "its input is that of the preprocessing 'caffe', not torchvision's" in write(other, tmp_path / "n.pth")
    assert Network.read(tmp_path / "n.pth").preprocessing == PRESETS["caffe"]


def module_of(head: Head, architecture: Architecture) -> nn.Module:
    """A module with torchvision's three parts, the last two of a head of its own."""
    layers = [layer for layer in architecture.layers if not layer.name.startswith(("conv", "bn1_")) and "_" not in layer.name]
    made = [torch_layer(layer, architecture, 0.5) for layer in layers[5:] if layer.operation != "flatten"]
    pool = nn.Identity() if head.pooling == "flatten" else made.pop(0)
    trunk = features([64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"])
    module = nn.Sequential()
    for name, part in zip(
        ("features", "avgpool", "classifier"), (trunk, nn.Sequential(pool, nn.Flatten(1)), None), strict=True
    ):
        module.add_module(name, part or nn.Sequential(*(nn.Identity() if isinstance(one, nn.Flatten) else one for one in made)))
    return module.eval()


@settings(max_examples=8)
@given(head=heads(), seed=st.integers(0, 9))
def test_any_head_is_a_sequential_of_its_layers_and_is_read_again(tmp_path_factory, head, seed):
    path = tmp_path_factory.getbasetemp() / "head.pth"
    classes = 2 if head.output == "binary" else 4
    network = random_network(seed=seed, head=head.text, classes=classes, input_size=64, epsilon=1e-5)
    write(network, path)
    module = module_of(head, network.architecture)
    module.load_state_dict(load(path), strict=True)
    images = IMAGES[:, :, :64, :64]
    back = Network.read(path)
    assert (back.architecture, back.sha256()) == (network.architecture, network.sha256())
    agree(output(module, images).reshape(2, -1), logits(back, images).reshape(2, -1))


@pytest.mark.parametrize("last", ["", "conv4_2", "pool3"])
def test_a_backbone_has_the_keys_of_features_alone(tmp_path, last):
    whole = random_network("vgg11")
    architecture = Architecture("vgg11", 0, 1 / 16, 32, "none", last=last)
    parameters = {name: whole.parameters[name] for name in architecture.parameters}
    network = Network(architecture, parameters, whole.preprocessing)
    notice = write(network, tmp_path / "n.pth")
    assert f"{last or 'pool5'} as the last layer, unlike torchvision's networks" in notice
    state = load(tmp_path / "n.pth")
    end = {"": None, "conv4_2": 15, "pool3": 11}[last]
    trunk = torchvision_like("vgg11", 1 / 16, 7, 32).features[:end]
    trunk.load_state_dict({key.removeprefix("features."): value for key, value in state.items()}, strict=True)
    value = architecture.values[-1]
    expected = engines.open(network, "onnxruntime").run(IMAGES, [value])[value]
    agree(output(trunk, IMAGES), expected)
    assert Network.read(tmp_path / "n.pth").architecture == architecture


@pytest.mark.parametrize("file", ["n.pth", "n.safetensors"])
def test_quantized_and_low_rank_weights_become_floats_with_a_note(tmp_path, file):
    network, rng = random_network(), np.random.default_rng(0)
    parameters = dict(network.parameters)
    values = rng.integers(-127, 127, parameters["fc7.weight"].shape).astype(np.int8)
    parameters["fc7.weight"] = Quantized(values, np.full(len(values), 1e-3, np.float32))
    left, right = rng.normal(size=(256, 4)).astype(np.float32), rng.normal(size=(4, 32, 1, 1)).astype(np.float32)
    parameters["fc6.weight"] = LowRank(left, right)
    network = Network(network.architecture, parameters, network.preprocessing, LABELS)
    notice = write(network, tmp_path / file, "torchvision")
    assert "quantized and low-rank weights are written as float32 matrices" in notice
    state = load(tmp_path / file)
    np.testing.assert_array_equal(state["classifier.3.weight"], values * np.float32(1e-3))
    np.testing.assert_allclose(state["classifier.0.weight"], left @ right.reshape(4, -1), rtol=1e-5)
    agree(logits(Network.read(tmp_path / file), IMAGES[:, :, :32, :32]), logits(network, IMAGES[:, :, :32, :32]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(tmp_path, dtype):
    module = torchvision_like("vgg11", 1 / 16, 7, 32).to(dtype)
    torch.save(module.state_dict(), tmp_path / "n.pth")
    write(Network.read(tmp_path / "n.pth"), tmp_path / "back.pth")
    found = load(tmp_path / "back.pth")
    assert all(torch.equal(found[key], value) for key, value in module.state_dict().items())


def test_the_zip_file_is_as_torch_makes_it(tmp_path):
    path = tmp_path / "n.pth"
    write(random_network("vgg11-bn", labels=LABELS), path)
    torch.save(load(path), tmp_path / "archive.pth")
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(tmp_path / "archive.pth") as theirs, path.open("rb") as file:
        assert ours.testzip() is None
        missing = {*theirs.namelist()} - {*ours.namelist()}
        assert {name.split("/")[1].split("_")[0] for name in missing} == {".format", ".storage", ".data"}  # what readers ignore
        assert ours.read("archive/byteorder") == theirs.read("archive/byteorder") == b"little"
        assert ours.read("archive/version") == theirs.read("archive/version")
        for entry in ours.infolist():
            file.seek(entry.header_offset + 26)
            name, extra = np.frombuffer(file.read(4), np.uint16)
            assert (entry.header_offset + 30 + int(name) + int(extra)) % 64 == 0
    first = path.read_bytes()
    write(Network.read(path), path)
    assert path.read_bytes() == first


def test_a_state_dictionary_that_torch_saves_again_has_lost_the_metadata(tmp_path):
    network = random_network(labels=LABELS)
    write(network, tmp_path / "n.pth")
    torch.save(load(tmp_path / "n.pth"), tmp_path / "again.pth")
    again, notices = read(tmp_path / "again.pth")
    assert "no preprocessing or input size in the file" in notices
    assert (again.sha256(), again.labels) == (network.sha256(), None)


@pytest.mark.parametrize(
    ("network", "file", "keys", "message"),
    [
        (random_network("vgg11-lrn"), "n.pth", None, "torchvision has no local response normalisation, which vgg11-lrn has"),
        (
            random_network(input_size=224, head="average, 8 relu, classes"), "n.safetensors", "timm",
            "timm's head is the paper's fc6, fc7 and fc8 over a map of 7x7, not 'average, 8 relu, classes' of 224 pixels; use",
        ),
        (random_network(), "n.pth", "timm", "over a map of 7x7, not 'fc' of 32 pixels; use --keys torchvision"),
        (random_network(head="none", classes=0), "n.pth", "timm", "not 'none' of 32 pixels"),
        (random_network(), "n.onnx", "timm", "keys are of state dictionaries; write to .pth or .safetensors"),
        (random_network(), "n.bin", "timm", "unsupported suffix; networks are written to .onnx, .safetensors, .pth or .pt"),
    ],
)  # fmt: skip
def test_what_keys_cannot_express_is_refused_and_writes_nothing(tmp_path, network, file, keys, message):
    with pytest.raises(ModelError, match=message):
        network.write(tmp_path / file, keys=keys)
    assert not list(tmp_path.iterdir())


def test_options_of_onnx_and_a_missing_folder_are_refused(tmp_path):
    with pytest.raises(ModelError, match="only ONNX files have an opset"):
        random_network().write(tmp_path / "n.pth", softmax=True)
    with pytest.raises(Error, match=r"nowhere/n\.pth: can't be written: file or folder not found"):
        random_network().write(tmp_path / "nowhere" / "n.pth")


def with_metadata(path, content: bytes) -> None:
    """Replace the metadata in a file."""
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: archive.read(entry) for entry in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, old in entries.items():
            archive.writestr(name, content if name.endswith("vgg.json") else old)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{broken", "damaged or truncated torch file"),
        (b"[]", "damaged or truncated torch file"),
        (b" " * 2**21, "damaged or truncated torch file .*too large"),
        (b'{"vgg.architecture": "{}"}', "parameter conv1_1.weight of vgg16 is missing"),
        (b'{"vgg.architecture": "{}", "vgg.keys": "x"}', "damaged metadata entry 'vgg.keys'"),
        (b'{"vgg.keys": "timm"}', "missing or damaged metadata entry 'vgg.architecture'"),
    ],
)
def test_damaged_metadata_is_one_clear_line(tmp_path, content, message):
    write(random_network("vgg16", width=1, channels=(2,) * 13, head="gap"), tmp_path / "n.pth")
    with_metadata(tmp_path / "n.pth", content)
    with pytest.raises(ModelError, match=message) as error:
        Network.read(tmp_path / "n.pth")
    assert "\n" not in str(error.value)


@settings(max_examples=100)
@given(data=st.data())
def test_a_broken_file_is_one_clear_line(tmp_path_factory, data):
    whole = tmp_path_factory.getbasetemp() / "whole.pth"
    if not whole.exists():
        write(random_network(width=1 / 64), whole)
    read_damaged(data, whole, 4001)
