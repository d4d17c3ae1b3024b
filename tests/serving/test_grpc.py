"""The Open Inference Protocol over gRPC, with Triton's client."""

import queue
import signal

import numpy as np
import pytest

import vgg
from conftest import EXAMPLES
from serving_helpers import gated, serving, until

triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")


@pytest.fixture(scope="module")
def running(models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("repository")
    (folder / "spare.onnx").write_bytes(models["gap"].read_bytes())
    with serving("-m", models["fc"], "-m", models["gap"], "--grpc-port", 0, "--repository", folder) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    client = triton.InferenceServerClient(running.log[0]["grpc"])
    yield client
    client.close()


@pytest.fixture(scope="module")
def batch(models) -> np.ndarray:
    image = vgg.Network.read(models["fc"]).preprocessing(EXAMPLES / "chelsea.png")
    return np.stack([image, image[:, ::-1]])


def tensor(batch: np.ndarray, name: str = "data"):
    value = triton.InferInput(name, list(batch.shape), "FP32")
    value.set_data_from_numpy(batch)
    return value


def test_it_reads_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fc", "1")
    assert not client.is_model_ready("resnet")
    assert client.get_server_metadata().name == "vgg"
    metadata = client.get_model_metadata("fc")
    assert (metadata.platform, list(metadata.inputs[0].shape)) == ("onnx_onnxv1", [-1, 3, 224, 224])
    assert client.get_model_config("fc").config.max_batch_size == 8


def test_it_gets_the_networks_logits_and_classes(client, models, batch):
    expected = vgg.engines.open(models["fc"]).logits(batch)
    result = client.infer("fc", [tensor(batch)], request_id="7")
    np.testing.assert_allclose(result.as_numpy("logits"), expected, atol=1e-5)
    assert (result.get_response().id, result.get_response().model_version) == ("7", "1")
    output = triton.InferRequestedOutput("logits", class_count=2)
    found = client.infer("fc", [tensor(batch)], outputs=[output]).as_numpy("logits")
    indices = [[int(text.decode().split(":")[1]) for text in row] for row in found]
    assert indices == np.argsort(-expected, axis=1)[:, :2].tolist()


def test_it_reads_statistics_and_loads_models(client):
    (before,) = client.get_inference_statistics("fc").model_stats
    assert before.inference_count >= 4
    client.load_model("spare")
    assert client.is_model_ready("spare")
    assert {one.name for one in client.get_model_repository_index().models} == {"fc", "gap", "spare"}
    client.unload_model("spare")
    assert not client.is_model_ready("spare")


def test_errors_have_a_status_and_a_message(client, batch):
    for call, code, line in (
        (lambda: client.infer("resnet", [tensor(batch)]), "NOT_FOUND", "unknown model 'resnet'"),
        (lambda: client.infer("fc", [tensor(batch[:, :, :64])]), "INVALID_ARGUMENT", "vgg16 takes float32"),
        (
            lambda: client.infer("fc", [tensor(batch, "image")]),
            "INVALID_ARGUMENT",
            "unknown input 'image'; the input is 'data'",
        ),
        (lambda: client.infer("fc", [tensor(np.zeros((65, 3, 224, 224), np.float32))]), "RESOURCE_EXHAUSTED", "larger"),
        (lambda: client.infer("gap", [tensor(batch)], timeout=1), "DEADLINE_EXCEEDED", "the deadline passed"),
    ):
        with pytest.raises(triton.InferenceServerException, match=line) as refused:
            call()
        assert refused.value.status() == f"StatusCode.{code}"


def test_a_call_has_an_id_in_the_log(client, running, batch):
    client.infer("fc", [tensor(batch)], headers={"x-request-id": "call-1"})
    (entry,) = running.logged(request_id="call-1")
    assert (entry["method"], entry["status"]) == ("ModelInfer", 200)


def test_the_work_of_a_cancelled_call_is_dropped(models, batch):
    with gated("-m", models["fc"], "--batch-size", 1, "--grpc-port", 0) as server:
        client = triton.InferenceServerClient(server.log[0]["grpc"])
        many = np.repeat(batch, 6, 0)
        call = client.async_infer("fc", [tensor(many)], lambda **_: None, headers={"x-request-id": "call-2"})
        until(lambda: waiting(server) == 11)  # one image is in the engine
        call.cancel()
        (entry,) = server.logged(request_id="call-2")
        assert entry["status"] == 499
        assert waiting(server) == 0
        server.open_gate()
        client.infer("fc", [tensor(batch[:1])])
        (statistics,) = client.get_inference_statistics("fc").model_stats
        assert (statistics.inference_stats.fail.count, statistics.inference_count) == (1, 2)
        client.close()


def test_sigterm_finishes_accepted_calls(models, batch):
    with gated("-m", models["fc"], "--batch-size", 1, "--grpc-port", 0) as server:
        client = triton.InferenceServerClient(server.log[0]["grpc"])
        results = queue.Queue()
        many = np.repeat(batch, 4, 0)
        client.async_infer("fc", [tensor(many)], lambda result, error: results.put(error or result))
        until(lambda: waiting(server) == 7)
        server.process.send_signal(signal.SIGTERM)
        server.logged(message="shutting down")
        server.open_gate()
        assert results.get(timeout=60).as_numpy("logits").shape == (8, 7)
        assert server.process.wait(60) == 0
        client.close()


def waiting(server) -> int:
    """The number of images that wait for the engine."""
    lines = server.ask("GET", "/metrics").text.splitlines()
    return int(float(next(line for line in lines if line.startswith("nv_inference_pending_request_count{")).split()[-1]))


def test_keys_are_required(models, tmp_path):
    (tmp_path / "keys").write_text("secret")
    with serving("-m", models["fc"], "--grpc-port", 0, "--api-key-file", tmp_path / "keys") as server:
        client = triton.InferenceServerClient(server.log[0]["grpc"])
        with pytest.raises(triton.InferenceServerException, match="an API key is required"):
            client.get_server_metadata()
        assert client.get_server_metadata(headers={"authorization": "Bearer secret"}).name == "vgg"
        client.close()
