"""Served networks with several labels per image, with two classes and one logit, and without a head."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import vgg
from conftest import EXAMPLES, random_network
from serving_helpers import serving
from vgg import Labels
from vgg.predictions import sigmoid

PHOTO = EXAMPLES / "chelsea.png"
LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
HEADLESS = (
    "this vgg11 has no head, so it can't classify; its features are pool5 (`vgg features`); `vgg train --from` trains a head"
)


@pytest.fixture(scope="module")
def networks():
    return {
        "several": random_network(labels=LABELS, head="average, 24 relu, classes sigmoid", input_size=64, seed=3),
        "binary": random_network(head="max, classes binary", classes=2, input_size=64, seed=2),
        "backbone": random_network(head="none", classes=0, input_size=64),
    }


@pytest.fixture(scope="module")
def running(networks, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    options = []
    for name, network in networks.items():
        replace(network, preprocessing=network.preprocessing.for_crop(64)).write(folder / f"{name}.onnx")
        options += ["-m", folder / f"{name}.onnx"]
    with serving(*options, "--grpc-port", 0) as server:
        server.folder = folder
        yield server


def classify(running, model, **params):
    return running.ask("POST", "/v1/classify", params={"model": model, **params}, content=PHOTO.read_bytes())


def test_several_labels_are_those_above_the_threshold(running):
    classifier = vgg.load(running.folder / "several.onnx")
    scores = classifier.scores(PHOTO)[0]
    order = sorted(range(7), key=lambda one: -scores[one])
    between = float(scores[order[2]] + scores[order[3]]) / 2
    for params, wanted in (
        ({}, [one for one in order if scores[one] > 0.5]),
        ({"threshold": 0}, order),
        ({"threshold": between}, order[:3]),
        ({"threshold": between, "top": 2}, order[:2]),
        ({"threshold": 1}, []),
    ):
        [result] = classify(running, "several", **params).json()["results"]
        assert [one["index"] for one in result["predictions"]] == wanted
        assert [one["score"] for one in result["predictions"]] == pytest.approx(scores[wanted].tolist(), abs=1e-4)
    assert sum(scores) > 1.5
    form = running.ask("POST", "/v1/classify", files={"a": PHOTO.read_bytes()}, data={"threshold": "0", "model": "several"})
    assert len(form.json()["results"][0]["predictions"]) == 7
    explained = classify(running, "several", explain="true", threshold=1)
    assert explained.json()["results"][0] == {"image": "image", "predictions": []}


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "1_0", "", "many"])
def test_an_invalid_threshold_is_refused(running, value):
    response = classify(running, "several", threshold=value)
    assert (response.status_code, response.json()["error"]) == (400, "threshold must be a number from 0 to 1")


def test_one_logit_is_two_classes(running):
    classifier = vgg.load(running.folder / "binary.onnx")
    [logit] = classifier.logits(PHOTO)[0].tolist()
    positive = float(sigmoid(np.array(logit)))
    found = classify(running, "binary").json()["results"][0]["predictions"]
    assert {one["label"]: one["score"] for one in found} == pytest.approx(
        {"positive": positive, "negative": 1 - positive}, abs=1e-4
    )
    assert [one["index"] for one in found] == ([1, 0] if logit > 0 else [0, 1])
    mms = running.ask("POST", "/predictions/binary", content=PHOTO.read_bytes()).json()
    assert [one["class"] for one in mms] == [one["label"] for one in found]
    values = classifier.preprocess(PHOTO).ravel().tolist()
    body = {
        "inputs": [{"name": "data", "datatype": "FP32", "shape": [1, 3, 64, 64], "data": values}],
        "outputs": [{"name": "logits", "parameters": {"classification": 2}}],
    }
    [output] = running.ask("POST", "/v2/models/binary/infer", json=body).json()["outputs"]
    texts = [text.split(":") for text in output["data"]]
    assert [text[2] for text in texts] == [one["label"] for one in found]
    assert [float(text[0]) for text in texts] == pytest.approx([abs(logit), -abs(logit)], abs=1e-4)


def test_a_backbone_gives_features_and_refuses_to_classify(running, networks):
    for path in ("/v1/classify?model=backbone", "/v1/classify?model=backbone&explain=true", "/predictions/backbone"):
        response = running.ask("POST", path, content=PHOTO.read_bytes())
        assert response.status_code == 400
        assert HEADLESS in response.text
    batch = np.random.default_rng(0).normal(size=(2, 3, 64, 96)).astype(np.float32)
    expected = vgg.engines.open(networks["backbone"]).run(batch, ("pool5",))["pool5"]
    body = {"inputs": [{"name": "data", "datatype": "FP32", "shape": list(batch.shape), "data": batch.ravel().tolist()}]}
    [output] = running.ask("POST", "/v2/models/backbone/infer", json=body).json()["outputs"]
    assert (output["name"], output["shape"]) == ("pool5", [2, 32, 2, 3])
    np.testing.assert_allclose(np.reshape(output["data"], expected.shape), expected, rtol=0, atol=1e-5)
    body["outputs"] = [{"name": "logits", "parameters": {"classification": 2}}]
    refused = running.ask("POST", "/v2/models/backbone/infer", json=body)
    assert (refused.status_code, refused.json()["error"]) == (400, HEADLESS)


def test_grpc_gives_a_backbones_features(running, networks):
    triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    batch = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    value = triton.InferInput("data", [1, 3, 64, 64], "FP32")
    value.set_data_from_numpy(batch)
    client = triton.InferenceServerClient(running.log[0]["grpc"])
    expected = vgg.engines.open(networks["backbone"]).run(batch, ("pool5",))["pool5"]
    np.testing.assert_allclose(client.infer("backbone", [value]).as_numpy("pool5"), expected, rtol=0, atol=1e-5)
    client.close()


def test_metadata_describes_each_output(running):
    listed = {one["name"]: (one["classes"], one["output"]) for one in running.ask("GET", "/v1/models").json()["models"]}
    assert listed == {"several": (7, "sigmoid"), "binary": (2, "binary"), "backbone": (0, None)}
    for name, output in (
        ("several", ["logits", [-1, 7]]),
        ("binary", ["logits", [-1, 1]]),
        ("backbone", ["pool5", [-1, 32, -1, -1]]),
    ):
        [found] = running.ask("GET", f"/v2/models/{name}").json()["outputs"]
        assert [found["name"], found["shape"]] == output
        [config] = running.ask("GET", f"/v2/models/{name}/config").json()["output"]
        assert [config["name"], [-1, *config["dims"]]] == output
    assert running.ask("GET", "/metrics").status_code == 200


def test_weights_that_are_no_numbers_are_refused_at_start(tmp_path):
    network = random_network(labels=LABELS)
    weight = network.parameters["conv3_1.weight"].copy()
    weight[0, 0, 0, 0] = np.nan
    replace(network, parameters={**network.parameters, "conv3_1.weight": weight}).write(tmp_path / "broken.onnx")
    command = [sys.executable, "-m", "vgg", "serve", "-m", tmp_path / "broken.onnx", "--port", "0"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert process.returncode == 1
    assert "broken.onnx: parameter conv3_1.weight has values that are not finite numbers" in process.stderr
    assert process.stderr.count("\n") == 1
