"""The verbs that explain, measure and change networks, with heads of every kind and without one."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import vgg
from conftest import EXAMPLES, random_network
from vgg import Network, Preprocessing, engines

PHOTO = EXAMPLES / "chelsea.png"
NETWORKS = {
    "several": {"head": "max batch-norm, 20 silu, classes sigmoid"},
    "binary": {"head": "flatten batch-norm, 20 elu, classes binary", "classes": 2},
    "backbone": {"head": "none", "classes": 0, "last": "conv4_2"},
}


@pytest.fixture(scope="module", params=NETWORKS)
def place(request, tmp_path_factory):
    """A folder with a network as n.onnx."""
    folder = tmp_path_factory.mktemp(request.param)
    network = random_network("vgg11-bn", seed=2, input_size=64, **NETWORKS[request.param])
    replace(network, preprocessing=Preprocessing("small", size=72, crop=64)).write(folder / "n.onnx")
    return folder


def run(place, *arguments, code=0):
    command = [sys.executable, "-m", "vgg", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=120, check=False)
    assert found.returncode == code, found.stderr
    return found.stdout, found.stderr


def test_explain_prints_the_classes_or_the_layer_of_the_map(place):
    [*records] = json.loads(run(place, "explain", PHOTO, "-o", "h.png", "-m", "n.onnx", "--box", "--format", "json")[0])
    expected = vgg.load(place / "n.onnx").explain(PHOTO)
    assert [one.get("index") for one in records] == ([one.index for one in expected.classes] or [None])
    assert ("layer" in records[0]) == (place.name.startswith("backbone"))
    for index, record in enumerate(records):
        assert [record[side] for side in ("left", "top", "right", "bottom")] == pytest.approx(expected.box(index), abs=1)
    with Image.open(place / "h.png") as drawn:
        assert drawn.size == expected.overlay(True).size


def test_quantized_files_run_and_are_measured(place):
    network = Network.read(place / "n.onnx")
    last = network.architecture.values[-1]
    batch = np.stack([network.preprocessing(PHOTO)])
    expected = engines.open(network, "onnxruntime").run(batch, (last,))[last]
    for method in (["--bits", "4"], ["--method", "qdq", "--calibrate", EXAMPLES]):
        run(place, "quantize", "n.onnx", "-o", "q.onnx", *method)
        found = engines.open(str(place / "q.onnx")).run(batch, (last,))[last]
        assert np.abs(found - expected).max() < 0.1 + 0.3 * np.abs(expected).max()
    rows = json.loads(run(place, "bench", "-m", "n.onnx", "-e", "onnxruntime", "--rounds", "1", "--format", "json")[0])
    assert rows[0]["ms"] > 0
    layers = json.loads(run(place, "quantize", "n.onnx", "--per-layer", "--calibrate", EXAMPLES, "--format", "json")[0])
    assert [f"{one['layer']}.weight" for one in layers] == [name for name in network.parameters if name.endswith(".weight")]
    assert all(one["output dB"] > 20 for one in layers)


def test_evaluation_requires_a_head(place):
    if not place.name.startswith("backbone"):
        pytest.skip("has a head")
    _, error = run(place, "quantize", "n.onnx", "-o", "q.onnx", "--evaluate", EXAMPLES, code=1)
    assert error.startswith("vgg: this vgg11-bn has no head, so it can't classify")


def test_forms_of_a_file_are_those_of_the_head(place):
    dense = place.name.startswith("binary")  # the only one here that reads the map
    _, error = run(place, "convert", "n.onnx", "-o", "d.onnx", "--dense", code=0 if dense else 1)
    if dense:
        batch = np.random.default_rng(0).normal(size=(1, 3, 96, 128)).astype(np.float32)
        expected = engines.open(str(place / "n.onnx"), "torch").logits(batch)
        found = onnxruntime.InferenceSession(place / "d.onnx").run(None, {"data": batch})[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        again = engines.open(str(place / "d.onnx"), "torch").logits(batch)
        np.testing.assert_allclose(again, expected, atol=1e-5)
    else:
        assert (
            error
            == "vgg: d.onnx: the dense form turns linear layers into convolutions; in this network they don't read a map\n"
        )


def test_sample_data_is_made_and_checked(place):
    run(place, "sample", "make", "n.onnx", "-o", "s.tar.gz", "--sets", "1")
    [record] = json.loads(run(place, "sample", "check", "s.tar.gz", "--format", "json")[0])
    assert record["passed"]
