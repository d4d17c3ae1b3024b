"""TensorFlow Serving's REST interface and KServe's version 1."""

import base64
import json

import httpx
import numpy as np
import pytest

import vgg
from conftest import EXAMPLES, random_network
from serving_helpers import serving
from vgg.predictions import network_scores

PHOTOS = [EXAMPLES / "chelsea.png", EXAMPLES / "rocket.jpg"]
TEXTS = [base64.b64encode(photo.read_bytes()).decode() for photo in PHOTOS]
MIME = base64.encodebytes(PHOTOS[0].read_bytes()).decode()
PREDICT = "/v1/models/fc:predict"


@pytest.fixture(scope="module")
def network(models) -> vgg.Network:
    return vgg.Network.read(models["fc"])


@pytest.fixture(scope="module")
def scores(network) -> np.ndarray:
    batch = np.stack([network.preprocessing(photo) for photo in PHOTOS])
    return network_scores(network, vgg.engines.open(network).logits(batch))


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [{"b64": text} for text in TEXTS]},
        {"instances": [{"image_bytes": {"b64": text}} for text in TEXTS], "signature_name": "serving_default"},
        {"instances": [{"image_bytes": {"b64": text}, "key": "1"} for text in TEXTS]},
        {"instances": [{"data": text, "target": 0} for text in TEXTS]},  # KServe's TorchServe examples
        {"instances": TEXTS},
        {"instances": [[text] for text in TEXTS]},
        {"instances": [[{"b64": text}] for text in TEXTS]},
        {"inputs": [{"b64": text} for text in TEXTS]},
        {"inputs": {"image_bytes": [{"b64": text} for text in TEXTS]}},
        {"inputs": {"image_bytes": {"b64": TEXTS[0]}}},
        {"inputs": {"b64": TEXTS[0]}},
    ],
)
def test_images_get_their_scores(server, scores, body):
    response = server.ask("POST", PREDICT, json=body).json()
    expected = scores[: len(response["predictions"])]
    np.testing.assert_allclose(response["predictions"], expected, atol=1e-4)
    assert response.get("outputs") == (response["predictions"] if "inputs" in body else None)


def test_numbers_may_have_either_order_of_axes(server, network, scores):
    batch = np.stack([network.preprocessing(photo) for photo in PHOTOS])
    last = batch.transpose(0, 2, 3, 1).astype(np.float16)  # whose texts are short
    batch = batch.astype(np.float16)
    for body in (
        {"instances": batch.tolist()},
        {"instances": last.tolist()},
        {"instances": [{"input_1": image.tolist()} for image in last]},
        {"inputs": {"data": batch.tolist()}},
        {"inputs": last.tolist()},
    ):
        response = httpx.post(server.address + PREDICT, content=json.dumps(body, separators=(" , ", ":")), timeout=60).json()
        np.testing.assert_allclose(response["predictions"], scores, atol=1e-3)


def test_a_request_of_curl_works(server, scores):
    """Its content type is that of a form, and `base64` breaks lines, even inside a string of JSON."""
    body = json.dumps({"instances": [{"b64": MIME}]}).replace("\\n", "\n")
    headers = {"content-type": "application/x-www-form-urlencoded"}
    for path in (PREDICT, "/v1/models/fc/versions/1:predict"):
        response = server.ask("POST", path, content=body, headers=headers)
        np.testing.assert_allclose(response.json()["predictions"], scores[:1], atol=1e-4)


def test_examples_get_their_classes(server, network, scores):
    body = {"examples": [{"image_bytes": {"b64": text}} for text in TEXTS]}
    results = server.ask("POST", "/v1/models/fc:classify", json=body).json()["results"]
    order = np.argsort(-scores, axis=1)
    assert [[label for label, _ in row] for row in results] == [[network.labels.names[one] for one in row] for row in order]
    np.testing.assert_allclose([[score for _, score in row] for row in results], np.sort(scores)[:, ::-1], atol=1e-4)


def test_the_status_is_that_of_both_protocols(server):
    status = server.ask("GET", "/v1/models/gap").json()
    assert (status["name"], status["ready"]) == ("gap", True)
    ok = {"error_code": "OK", "error_message": ""}
    assert status["model_version_status"] == [{"version": one, "state": "AVAILABLE", "status": ok} for one in ("2", "1")]
    [one] = server.ask("GET", "/v1/models/gap/versions/1").json()["model_version_status"]
    assert one["version"] == "1"
    for path in ("/v1/models/resnet", "/v1/models/gap/versions/3", "/v1/models/resnet/metadata"):
        response = server.ask("GET", path)
        assert (response.status_code, set(response.json())) == (404, {"error"})


def test_the_metadata_has_a_signature_for_numbers_and_one_for_images(server):
    record = server.ask("GET", "/v1/models/gap/versions/1/metadata").json()
    assert record["model_spec"] == {"name": "gap", "signature_name": "", "version": "1"}
    signatures = record["metadata"]["signature_def"]["signature_def"]
    tensors = {name: next(iter(one["inputs"].items())) for name, one in signatures.items()}
    shapes = {key: (name, one["dtype"], [int(side["size"]) for side in one["tensor_shape"]["dim"]])
              for key, (name, one) in tensors.items()}  # fmt: skip
    assert shapes == {"serving_default": ("data", "DT_FLOAT", [-1, 3, 224, 224]), "images": ("b64", "DT_STRING", [-1])}
    [(name, output)] = signatures["images"]["outputs"].items()
    assert (name, [side["size"] for side in output["tensor_shape"]["dim"]]) == ("scores", ["-1", "7"])


def test_a_model_without_a_head_gives_features(tmp_path):
    random_network(head="none", classes=0, input_size=64).write(tmp_path / "backbone.onnx")
    with serving("-m", tmp_path / "backbone.onnx") as server:
        values = np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32)
        found = server.ask("POST", "/v1/models/backbone:predict", json={"instances": values.tolist()}).json()["predictions"]
        expected = vgg.engines.open(tmp_path / "backbone.onnx").run(values, ("pool5",))["pool5"]
        np.testing.assert_allclose(found, expected, atol=1e-4)
        refused = server.ask("POST", "/v1/models/backbone:classify", json={"examples": [{"b64": TEXTS[0]}]})
        assert (refused.status_code, "has no head" in refused.json()["error"]) == (400, True)


@pytest.mark.parametrize(
    ("body", "status", "line"),
    [
        (b"", 400, "the body is not valid JSON"),
        (PHOTOS[1].read_bytes(), 400, 'the body is not JSON; send {"instances"'),
        (b"[]", 400, "the body must be a JSON object"),
        (b"{}", 400, "the body must have `instances` or `inputs`"),
        ({"instances": [], "inputs": []}, 400, "the body must have `instances` or `inputs`"),
        ({"instances": []}, 400, "the request contains no image"),
        ({"instances": {"b64": TEXTS[0]}}, 400, "`instances` must be a list"),
        ({"instances": [{}]}, 400, "an instance must have one value"),
        ({"instances": [{"a": "AAAA", "b": "AAAA"}]}, 400, "an instance must have one value"),
        ({"instances": [{"a": {"a": {"a": "AAAA"}}}]}, 400, "an instance has more than two nested objects"),
        (b'{"instances": [%b"AAAA"%b]}' % (b'{"a": ' * 900, b"}" * 900), 400, "an instance has more than two nested objects"),
        ({"instances": [{"b64": "cat.jpg"}]}, 400, "instance 0: invalid base64"),
        ({"instances": [{"b64": str(base64.b64encode(b"a"))}]}, 400, "instance 0: Python's repr of bytes is not base64"),
        ({"instances": [{"b64": "anVuaw=="}]}, 400, "image: not an image"),
        ({"instances": [{"b64": TEXTS[0]}, "AAAA"]}, 400, "the instances must all have the same form"),
        ({"instances": ["AAAA"] * 65}, 413, "65 images in one request; the maximum is 64"),
        ({"instances": [[0.5, 0.5]]}, 400, "the numbers must be in lists nested 4 deep"),
        ({"instances": [[[[0.5] * 3] * 64] * 64] * 65}, 413, "65 images in one request; the maximum is 64"),
        ({"instances": [[[[0.5] * 4] * 224] * 224]}, 400, "vgg16 takes float32 [batch, 3, 224, 224]"),
        ({"instances": [[[[0.5] * 224] * 224] * 3, [[[0.5] * 224] * 224] * 2]}, 400, "shape [1, 3, 224, 224] needs"),
        ({"instances": [[[["a"] * 3] * 2] * 2]}, 400, "an instance must be base64 text"),
        ({"instances": [{"data": [[[0.5] * 3] * 224] * 223}]}, 400, "vgg16 takes float32"),
        ({"instances": 7}, 400, "`instances` must be a list"),
        ({"instances": [7]}, 400, "the numbers must be in lists nested 4 deep"),
        ({"instances": [None]}, 400, "the numbers must be in lists nested 4 deep"),
    ],
)
def test_an_invalid_request_gets_a_message(server, body, status, line):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = server.ask("POST", PREDICT, content=content)
    assert (response.status_code, set(response.json())) == (status, {"error"}), response.text
    assert response.json()["error"].startswith(line)


def test_requests_are_counted_and_logged(server):
    response = server.ask("POST", PREDICT, json={"instances": TEXTS}, headers={"x-request-id": "tf-1"})
    assert response.status_code == 200
    [entry] = server.logged(request_id="tf-1")
    assert (entry["status"], entry["model"], entry["images"], entry["path"]) == (200, "fc:1", 2, PREDICT)
    assert 'path="/v1/models/{model}:predict"' in server.ask("GET", "/metrics").text.replace("route=", "path=")
