"""What docs/compatibility.md promises: the public names, and files that earlier versions wrote."""

from importlib.util import module_from_spec, spec_from_file_location

import numpy as np
import pytest

import vgg
from conftest import FIXTURES, ROOT
from vgg.preprocessing import PRESETS

spec = spec_from_file_location("public_api", ROOT / "scripts/public_api.py")
public_api = module_from_spec(spec)
spec.loader.exec_module(public_api)
WRITTEN = [
    (folder, name)
    for folder in sorted(FIXTURES.glob("written-*"))
    for name in np.load(folder / "expected.npz").files
    if (folder / name).is_file()
]
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")


def test_the_public_names_are_those_recorded():
    recorded, found = public_api.FILE.read_text().splitlines(), list(public_api.lines())
    lost, added = sorted({*recorded} - {*found}), sorted({*found} - {*recorded})
    assert recorded == found, f"lost: {lost}; added: {added}; if that is intended, run scripts/public_api.py"


def test_the_page_names_no_module_that_is_not_public():
    assert {"vgg", "vgg.torch", "vgg.zoo"} <= {*public_api.modules()}
    assert public_api.FILE.name in (ROOT / "docs/compatibility.md").read_text()


@pytest.mark.parametrize(("folder", "name"), WRITTEN, ids=[f"{folder.name}/{name}" for folder, name in WRITTEN])
@pytest.mark.filterwarnings("ignore::vgg.Notice")
def test_a_file_of_an_earlier_version_gives_the_same_values(folder, name):
    expected = np.load(folder / "expected.npz")
    network = vgg.formats.read(folder / name)
    [values] = vgg.engines.open(network).run(expected["batch"], network.architecture.values[-1:]).values()
    np.testing.assert_allclose(values, expected[name], rtol=1e-3, atol=1e-4 * np.abs(expected[name]).max())
    if network.architecture.head == "none":
        assert network.labels is None
    elif name == "trained.onnx":
        assert network.labels.names == ("class0", "class1")
    else:
        assert network.labels.names == LABELS
        preset = "caffe" if name.startswith("normed") else "torchvision"
        assert network.preprocessing == PRESETS[preset].for_crop(32)


@pytest.mark.parametrize("folder", sorted(FIXTURES.glob("written-*")), ids=lambda folder: folder.name)
def test_other_files_of_an_earlier_version_are_read(folder):
    for name in ("qdq.onnx", "qoperator.onnx"):
        expected = np.load(folder / "expected.npz")
        logits = vgg.engines.open(vgg.formats.load(folder / name), "onnxruntime").logits(expected["batch"])
        step = np.abs(expected[f"integers {name}"]).max() / 100  # the last digit depends on the processor
        np.testing.assert_allclose(logits, expected[f"integers {name}"], atol=step)
    assert [one.passed for one in vgg.samples.check(folder / "samples.tar.gz")] == [True]
    features = np.load(folder / "features.npz")
    assert features["fc7"].shape == (len(features["names"]), 24)
    table = pytest.importorskip("pyarrow.parquet").read_table(folder / "part.parquet").to_pylist()
    first = vgg.Classifier(vgg.formats.read(folder / "float.onnx")).classify(ROOT / "examples/chelsea.png", top=1)[0]
    row = next(row for row in table if row["image"].endswith("chelsea.png"))
    assert row["predictions"][0]["label"] == first.label
