"""The Open Inference Protocol over REST: with Triton's client, and with raw requests."""

import json

import numpy as np
import pytest

import vgg
from conftest import EXAMPLES
from vgg.serving.refusals import Refusal
from vgg.serving.tensors import RequestedOutput, Tensor, write_response

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient")
PHOTO = EXAMPLES / "chelsea.png"


@pytest.fixture(scope="module")
def client(server):
    client = triton.InferenceServerClient(server.address.removeprefix("http://"), network_timeout=60, connection_timeout=60)
    yield client
    client.close()


@pytest.fixture(scope="module")
def batch(models) -> np.ndarray:
    image = vgg.Network.read(models["fc"]).preprocessing(PHOTO)
    return np.stack([image, image[:, ::-1]])


@pytest.fixture(scope="module")
def logits(models, batch) -> np.ndarray:
    return vgg.engines.open(models["fc"]).logits(batch)


def tensor(batch: np.ndarray, binary: bool = True):
    value = triton.InferInput("data", list(batch.shape), "FP32")
    value.set_data_from_numpy(batch, binary_data=binary)
    return value


def test_tritons_client_reads_metadata(client, server):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fc")
    assert client.is_model_ready("gap", "2")
    assert not client.is_model_ready("gap", "3")
    metadata = client.get_server_metadata()
    assert (metadata["name"], metadata["version"]) == ("vgg", vgg.__version__)
    assert "binary_tensor_data" in metadata["extensions"]
    assert "model_repository" not in metadata["extensions"]
    assert client.get_model_metadata("fc") == {
        "name": "fc", "versions": ["1"], "platform": "onnx_onnxv1",
        "inputs": [{"name": "data", "datatype": "FP32", "shape": [-1, 3, 224, 224]}],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 7]}],
    }  # fmt: skip
    assert client.get_model_metadata("gap")["versions"] == ["1", "2"]
    assert client.get_model_config("fc")["max_batch_size"] == 8
    assert [one["state"] for one in client.get_model_repository_index()] == ["READY"] * 3


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_tritons_client_gets_the_networks_logits(client, batch, logits, binary_in, binary_out):
    outputs = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer("fc", [tensor(batch, binary_in)], outputs=outputs, request_id="42")
    np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-5)
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("42", "fc", "1")


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_tritons_client_may_compress(client, batch, logits, algorithm):
    result = client.infer("fc", [tensor(batch)], request_compression_algorithm=algorithm)
    np.testing.assert_allclose(result.as_numpy("logits"), logits, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_tritons_client_gets_classes(client, batch, logits, models, binary):
    output = triton.InferRequestedOutput("logits", binary_data=binary, class_count=3)
    found = client.infer("fc", [tensor(batch)], outputs=[output]).as_numpy("logits")
    assert found.shape == (2, 3)
    names = vgg.Network.read(models["fc"]).labels.names
    for row, texts in zip(logits, found, strict=True):
        parts = [(text.decode() if isinstance(text, bytes) else text).split(":") for text in texts]
        assert [int(index) for _, index, _ in parts] == np.argsort(-row)[:3].tolist()
        assert [label for *_, label in parts] == [names[int(index)] for _, index, _ in parts]
        np.testing.assert_allclose([float(value) for value, *_ in parts], np.sort(row)[::-1][:3], atol=1e-5)


def test_every_layer_output_and_image_size_can_be_requested(client, models):
    images = np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32)
    outputs = [triton.InferRequestedOutput(name) for name in ("pool5", "logits")]
    result = client.infer("gap", [tensor(images)], model_version="1", outputs=outputs)
    expected = vgg.engines.open(models["gap"]).run(images, ("pool5", "logits"))
    for name, value in expected.items():
        np.testing.assert_allclose(result.as_numpy(name), value, atol=1e-4)


def test_concurrent_requests_get_their_own_results(client, server, batch, logits):
    many = triton.InferenceServerClient(server.address.removeprefix("http://"), concurrency=8, network_timeout=60)
    pending = [many.async_infer("fc", [tensor(batch[i % 2 : i % 2 + 1])]) for i in range(40)]
    for i, one in enumerate(pending):
        np.testing.assert_allclose(one.get_result().as_numpy("logits"), logits[i % 2 : i % 2 + 1], atol=1e-5)
    many.close()


def test_statistics_count(client, batch):
    before = client.get_inference_statistics("fc", "1")["model_stats"][0]
    client.infer("fc", [tensor(batch)])
    (after,) = client.get_inference_statistics("fc")["model_stats"]
    assert after["inference_count"] == before["inference_count"] + 2
    assert after["inference_stats"]["success"]["count"] == before["inference_stats"]["success"]["count"] + 1
    assert after["last_inference"] >= before["last_inference"]
    assert sum(one["compute_infer"]["count"] for one in after["batch_stats"]) == after["execution_count"]
    assert len(client.get_inference_statistics()["model_stats"]) == 3


def test_loading_is_disabled_by_default(client):
    for change in (client.load_model, client.unload_model):
        with pytest.raises(triton.InferenceServerException, match="loading and unloading models is disabled") as refused:
            change("fc")
        assert refused.value.status() == "403"


def request(**changes) -> dict:
    one = {"name": "data", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.5] * 3072, **changes.pop("input", {})}
    return {"inputs": [{key: value for key, value in one.items() if value is not None}], **changes}


@pytest.mark.parametrize(
    ("record", "line"),
    [
        ({}, "`inputs` must be a list of one input"),
        ({"inputs": [{}, {}]}, "`inputs` must be a list of one input"),
        (request(input={"name": "image"}), "unknown input 'image'; the input is 'data'"),
        (request(input={"datatype": "BOOL"}), "unsupported datatype 'BOOL'; the input is FP32, FP16, BF16, FP64, UINT8"),
        (request(input={"datatype": "BYTES"}), "`shape` of BYTES must be [batch] or [batch, 1]"),
        (request(input={"datatype": "BYTES", "shape": [2, 1], "data": ["AAAA"]}), "shape [2, 1] needs 2 values, not 1"),
        (request(input={"datatype": "BYTES", "shape": [1], "data": [7]}), "`data` of BYTES must be base64 text"),
        (request(input={"datatype": "BYTES", "shape": [1], "data": ["a.jpg"]}), "`data` 0: invalid base64"),
        (
            request(input={"datatype": "BYTES", "shape": [1], "data": ["anVuaw=="]}),
            "image: not an image, or an unsupported format",
        ),
        (request(input={"datatype": "UINT8", "data": [0.5] * 3072}), "values of UINT8 must be integers from 0 to 255"),
        (request(input={"datatype": "INT8", "data": [128] * 3072}), "values of INT8 must be integers from -128 to 127"),
        (request(input={"datatype": "INT64", "data": [2**24] * 3072}), "values of INT64 must be integers from -16,777,215 to"),
        (request(input={"datatype": "UINT8", "shape": [1, 10**12], "data": [1]}), "shape [1, 1000000000000] needs"),
        (request(input={"shape": [1, 3, 32, -32]}), "`shape` must be a list of integers of 0 or more"),
        (request(input={"shape": [1, 3, 32, True]}), "`shape` must be a list of integers of 0 or more"),
        (request(input={"shape": [10**12, 3, 32, 32]}), "1000000000000 images in one request; the maximum is 64"),
        (request(input={"shape": [3, 32, 32]}), "`shape` must be [batch, 3, height, width], not 3 integers"),
        (request(input={"shape": [1, 3, 16, 64]}), "vgg11 takes float32 [batch, 3, height, width]"),
        (request(input={"shape": [0, 3, 32, 32], "data": []}), "the batch is empty"),
        (request(input={"shape": [1, 3, 32, 2048], "data": [[0.5] * 2048] * 96}), "height and width must be at most 1024"),
        (request(input={"data": None}), "an input needs `data`"),
        (request(input={"data": ["1"] * 3072}), "`data` must contain only numbers"),
        (request(input={"data": [[1], [1, 2]]}), "shape [1, 3, 32, 32] needs 3072 values, not 3"),
        (request(input={"data": [[0] * 3000, [0] * 72]}), "`data` must be flat, or have rows of 32 values"),
        (request(input={"data": [[0] * 32] * 95 + [[0] * 31, 0]}), "`data` must be flat, or have rows of 32 values"),
        (request(input={"data": [0] * 3071 + [[0]]}), "`data` must contain only numbers"),
        (request(input={"data": "0" * 3072}), "an input needs `data`"),
        (request(input={"data": [1e39] * 3072}), "the input has values that are not finite"),
        (request(input={"parameters": {"shared_memory_region": "r"}}), "shared memory is not supported"),
        (request(input={"data": None, "parameters": {"binary_data_size": 4}}), "`binary_data_size` is 4, but 0 bytes"),
        (request(id=7), "`id` must be text"),
        (request(parameters={"timeout": "soon"}), "`timeout` must be an integer, in microseconds"),
        (request(outputs=[{"name": "prob"}]), "vgg11 has no layer output 'prob'"),
        (request(outputs=[{"name": "logits"}] * 2), "`outputs` has duplicate names"),
        (
            request(outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
            "`classification` must be a number of classes",
        ),
        (
            request(outputs=[{"name": "pool5", "parameters": {"classification": 1}}]),
            "only the output 'logits' supports `classification`",
        ),
    ],
)
def test_an_invalid_tensor_gets_a_message(server, record, line):
    response = server.ask("POST", "/v2/models/gap/infer", json=record)
    assert response.status_code in (400, 413, 415), response.text
    assert set(response.json()) == {"error"}
    assert response.json()["error"].startswith(line)


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "٣"])
def test_an_invalid_header_length_is_refused(server, length):
    headers = [(b"inference-header-content-length", length.encode())]
    response = server.client.post("/v2/models/gap/infer", content=b"{}", headers=headers)
    assert response.status_code == 400


def test_nan_in_json_is_refused(server):
    body = json.dumps(request()).replace("0.5", "NaN", 1)
    assert server.ask("POST", "/v2/models/gap/infer", content=body).json() == {
        "error": "the body is not valid JSON: JSON is malformed: invalid character (byte 83)"
    }


def test_values_json_cannot_represent_can_be_binary():
    infinite = Tensor("logits", np.array([[np.inf, 1]], np.float32), (1, 2))
    with pytest.raises(Refusal, match="request binary data"):
        write_response({}, [infinite], [RequestedOutput("logits")])
    body, length = write_response({}, [infinite], [RequestedOutput("logits", binary=True)])
    assert np.frombuffer(body[length:], "<f4").tolist() == [np.inf, 1]


def test_the_timeout_of_a_request_applies(server):
    images = np.zeros((6, 3, 256, 256), np.float32)
    one = {"name": "data", "datatype": "FP32", "shape": list(images.shape), "parameters": {"binary_data_size": images.nbytes}}
    text = json.dumps({"parameters": {"timeout": 1}, "inputs": [one]}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    response = server.ask("POST", "/v2/models/gap/infer", content=text + images.tobytes(), headers=headers)
    assert (response.status_code, response.json()) == (504, {"error": "the deadline passed before the response was ready"})
