"""Files that Keras itself saves."""

import os
import re

os.environ["KERAS_BACKEND"] = "torch"

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import FIXTURES, read_damaged
from vgg import ModelError, Network, engines
from vgg.predictions import scores

keras = pytest.importorskip("keras", reason="keras, which writes the files, is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")

DEPTHS = {"vgg11-bn": (1, 1, 2, 2, 2), "vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


def build(name: str, gap: bool = False):
    """A narrow network as keras.applications builds it: bias and ReLU in the layer, the map flattened channels last."""
    layers = [keras.layers.Input((64, 64, 3))]
    for block, (depth, channels) in enumerate(zip(DEPTHS[name], (4, 8, 16, 32, 32), strict=True), 1):
        for index in range(1, depth + 1):
            plain = not name.endswith("-bn")
            options = {"activation": "relu"} if plain else {"use_bias": False}
            layers.append(keras.layers.Conv2D(channels, 3, padding="same", name=f"block{block}_conv{index}", **options))
            if not plain:
                layers += [keras.layers.BatchNormalization(epsilon=2e-3), keras.layers.ReLU()]
        layers.append(keras.layers.MaxPooling2D(2, 2))
    if gap:
        layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(7, name="predictions")]
    else:
        layers += [
            keras.layers.Flatten(),
            keras.layers.Dense(256, activation="relu"),
            keras.layers.Dense(256, activation="relu"),
        ]
        layers.append(keras.layers.Dense(7, name="predictions"))
    model = keras.Sequential(layers)
    rng = np.random.default_rng(0)

    def random(shape):
        fan_in = np.prod(shape[:-1])
        return np.abs(rng.normal(0.1, 0.15, shape)) if len(shape) == 1 else rng.normal(0, (2 / fan_in) ** 0.5, shape)

    model.set_weights([random(weight.shape) for weight in model.get_weights()])
    return model


def save_weights(model, path, **options):
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.mark.parametrize("name", DEPTHS)
@pytest.mark.parametrize("gap", [False, True])
def test_weights_alone_give_what_keras_gives(tmp_path, name, gap):
    from dataclasses import replace

    model = build(name, gap)
    save_weights(model, tmp_path / "n.h5")
    network = Network.read(tmp_path / "n.h5")
    assert (network.architecture.name, network.preprocessing.name) == (name, "caffe")
    # A weights-only file doesn't say which epsilon its batch normalisation had; Keras's default is taken.
    assert network.architecture.epsilon == (1e-3 if name.endswith("-bn") else 1e-5)
    network = replace(network, architecture=replace(network.architecture, epsilon=2e-3))
    images = np.random.default_rng(1).normal(size=(2, 3, 64, 64)).astype(np.float32)
    expected = keras.ops.convert_to_numpy(model(images.transpose(0, 2, 3, 1)))
    np.testing.assert_allclose(engines.open(network).logits(images), expected, atol=1e-5 * np.abs(expected).max())


def test_a_whole_model_is_read_with_its_epsilon(tmp_path):
    model = build("vgg11-bn")
    model.save(tmp_path / "n.h5")
    network = Network.read(tmp_path / "n.h5")
    assert (network.architecture.name, network.architecture.epsilon) == ("vgg11-bn", 2e-3)


def test_compressed_data_are_read_too(tmp_path):
    model = build("vgg16")
    save_weights(model, tmp_path / "n.h5")
    with h5py.File(tmp_path / "n.h5") as plain, h5py.File(tmp_path / "packed.h5", "w") as packed:
        packed.attrs.update(plain.attrs)
        for name, group in plain.items():
            packed.create_group(name).attrs.update(group.attrs)
            for key in group.attrs["weight_names"]:
                packed[name].create_dataset(key, data=group[key][()], compression="gzip")
    assert Network.read(tmp_path / "packed.h5").sha256() == Network.read(tmp_path / "n.h5").sha256()


def test_what_is_no_vgg_is_refused_by_its_first_key(tmp_path):
    model = keras.Sequential([keras.layers.Input((8, 8, 3)), keras.layers.Conv2D(8, 5, name="stem"), keras.layers.Dense(3)])
    save_weights(model, tmp_path / "n.h5")
    with pytest.raises(
        ModelError, match=r"not a VGG network: expected conv1_1\.weight \[64, 3, 3, 3\], found .*stem/kernel \[8, 3, 5, 5\]"
    ):
        Network.read(tmp_path / "n.h5")


def test_other_and_broken_hdf5_files_are_one_line(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    with pytest.raises(ModelError, match=r"other\.h5: an HDF5 file, but not Keras's: it has neither layer_names nor layers"):
        Network.read(tmp_path / "other.h5")
    save_weights(build("vgg16"), tmp_path / "n.h5")
    content = (tmp_path / "n.h5").read_bytes()
    for length in (20, 1000, len(content) // 2):
        (tmp_path / "cut.h5").write_bytes(content[:length])
        with pytest.raises(ModelError, match=r"cut\.h5: damaged or truncated Keras file"):
            Network.read(tmp_path / "cut.h5")


PIXELS = (np.arange(2 * 64 * 64 * 3) % 251).reshape(2, 64, 64, 3).astype(np.uint8)


@pytest.mark.parametrize(
    ("file", "head", "channels"),
    [
        ("keras2-whole.h5", "flatten batch-norm, 9 leaky-relu 0.2 dropout 0.25, classes", "BGR"),
        ("keras2-archive.keras", "flatten batch-norm, 9 leaky-relu 0.2 dropout 0.25, classes", "RGB"),
        ("keras2.weights.h5", "max, classes", ""),
        ("keras2-old.h5", "max, classes", ""),
    ],
)
def test_a_file_of_keras_2_gives_the_scores_that_it_gave(file, head, channels):
    """Its augmentation and preprocessing included; of the nested model, only a part was trained."""
    network = Network.read(FIXTURES / file)
    assert network.architecture.head == head
    assert (network.provenance.preprocessing, network.preprocessing.name) == (
        ("metadata", "keras") if channels else ("guess", "caffe")
    )
    inputs = (PIXELS / 127.5 - 1).transpose(0, 3, 1, 2).astype(np.float32)
    if channels:
        assert network.preprocessing.channels == channels
        inputs = np.stack([network.preprocessing(image) for image in PIXELS])
    expected = np.loadtxt(FIXTURES / f"{file.partition('.')[0].removesuffix('-old')}.scores.txt")
    found = scores(engines.open(network, "onnxruntime").logits(inputs), network.architecture.output)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_names_of_keras_2_12(tmp_path):
    """Layers have other groups there, and those with arrays count twice."""
    with h5py.File(FIXTURES / "keras2.weights.h5") as old, h5py.File(tmp_path / "n.weights.h5", "w") as new:

        def copied(path, member):
            if isinstance(member, h5py.Group) and path.endswith("/vars"):
                path = re.sub(r"(conv2d)_(\d+)", lambda match: f"{match[1]}_{2 * int(match[2])}", path)
                old.copy(member, new, path.replace("layers/", "_layer_checkpoint_dependencies/"))

        old.visititems(copied)
    network, reference = Network.read(tmp_path / "n.weights.h5"), Network.read(FIXTURES / "keras2.weights.h5")
    assert network.architecture.head == "max, classes"
    assert network.sha256() == reference.sha256()


@pytest.mark.parametrize("file", ["keras2-whole.h5", "keras2.weights.h5"])
@settings(max_examples=60)
@given(data=st.data())
def test_a_damaged_file_is_one_clear_line(tmp_path_factory, file, data):
    whole = tmp_path_factory.getbasetemp() / file
    whole.write_bytes((FIXTURES / file).read_bytes())
    read_damaged(data, whole, len(whole.read_bytes()))
