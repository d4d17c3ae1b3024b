"""gRPC's health service, with the client that the gRPC project publishes, and the readiness of the server."""

import queue
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from conftest import EXAMPLES
from serving_helpers import Server, gated, serving, until

grpc = pytest.importorskip("grpc", reason="needs vgg[grpc]")
health = pytest.importorskip("grpc_health.v1.health_pb2", reason="needs grpcio-health-checking")
stubs = pytest.importorskip("grpc_health.v1.health_pb2_grpc")

PHOTO = (EXAMPLES / "rocket.jpg").read_bytes()
INFERENCE = "inference.GRPCInferenceService"
SERVING, NOT_SERVING, SERVICE_UNKNOWN = 1, 2, 3


@contextmanager
def client(address: str) -> Iterator[Any]:
    with grpc.insecure_channel(address) as channel:
        yield stubs.HealthStub(channel)


def check(stub: Any, name: str = "") -> int:
    return stub.Check(health.HealthCheckRequest(service=name), timeout=30, wait_for_ready=True).status


def watch(stub: Any, name: str = "") -> "queue.Queue[int | None]":
    """The statuses that arrive; None when the call ends."""
    statuses: queue.Queue[int | None] = queue.Queue()

    def read() -> None:
        try:
            for response in stub.Watch(health.HealthCheckRequest(service=name), timeout=60):
                statuses.put(response.status)
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):  # a side has closed the channel
                raise
        statuses.put(None)

    threading.Thread(target=read, daemon=True).start()
    return statuses


def test_the_health_follows_models_and_the_shutdown(models, tmp_path):
    (tmp_path / "spare.onnx").write_bytes(models["gap"].read_bytes())
    with gated("-m", models["gap"], "--grpc-port", 0, "--repository", tmp_path, "--batch-size", 1) as server:
        server.open_gate()
        with client(server.log[0]["grpc"]) as stub, grpc.insecure_channel(server.log[0]["grpc"]) as channel:
            assert [check(stub, name) for name in ("", INFERENCE, "gap")] == [SERVING] * 3
            with pytest.raises(grpc.RpcError) as unknown:
                check(stub, "spare")
            assert (unknown.value.code(), unknown.value.details()) == (grpc.StatusCode.NOT_FOUND, "unknown service 'spare'")
            statuses, spare = watch(stub), watch(stub, "spare")
            assert (statuses.get(timeout=30), spare.get(timeout=30)) == (SERVING, SERVICE_UNKNOWN)
            assert server.ask("POST", "/v2/repository/models/spare/load").status_code == 200
            assert spare.get(timeout=30) == SERVING
            assert server.logged(message="loaded a model", model="spare:1")[0]["seconds"] > 0
            # The published package has no message for List yet: a map from names to responses of Check.
            listed = channel.unary_unary(f"/{health.DESCRIPTOR.services_by_name['Health'].full_name}/List")(b"", timeout=30)
            assert all(name.encode() in listed for name in ("gap", "spare", INFERENCE))
            assert listed.count(b"\x12\x02\x08\x01") == 4  # status 1
            assert server.ask("POST", "/v2/repository/models/spare/unload").status_code == 200
            assert spare.get(timeout=30) == SERVICE_UNKNOWN

            server.close_gate()
            with httpx.Client(timeout=60) as other:
                thread = threading.Thread(target=other.post, args=(f"{server.address}/v1/classify",), kwargs={"content": PHOTO})
                thread.start()
                until(lambda: "vgg_decode_seconds_count" in server.ask("GET", "/metrics").text)
                server.process.send_signal(signal.SIGTERM)
                assert [statuses.get(timeout=30) for _ in range(2)] == [NOT_SERVING, None]
                assert server.ask("GET", "/readyz").status_code == 503
                server.open_gate()
                thread.join()
            assert server.process.wait(60) == 0


def test_the_server_is_live_but_not_ready_until_its_models_have_run(models):
    code = """import sys, threading, signal, vgg.cli, vgg.engines as engines
import vgg.serving.repository as repository
gate, Original = threading.Event(), repository.Classifier
signal.signal(signal.SIGUSR1, lambda *_: gate.set())
class Classifier(Original):
    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        run = self.engine.run
        def waiting(batch, outputs):
            gate.wait()
            print("batch", len(batch), file=sys.stderr, flush=True)
            return run(batch, outputs)
        self.engine.run = waiting
repository.Classifier = Classifier
vgg.cli.main()"""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        port, grpc_port = one.getsockname()[1], other.getsockname()[1]
    found: dict[str, Any] = {}

    def look() -> None:
        address = f"http://127.0.0.1:{port}"
        with client(f"127.0.0.1:{grpc_port}") as stub:
            found["health"] = [check(stub, name) for name in ("", "gap")]
            statuses = watch(stub)
            found["watched"] = [statuses.get(timeout=30)]
            responses = {
                path: httpx.get(address + path) for path in ("/healthz", "/readyz", "/v2/health/ready", "/ping", "/metrics")
            }
            responses["/v1/classify"] = httpx.post(f"{address}/v1/classify", content=PHOTO)
            found["responses"] = {path: response.status_code for path, response in responses.items()}
            found["ready"], found["refused"] = responses["/readyz"].json(), responses["/v1/classify"]
            found["process"].send_signal(signal.SIGUSR1)
            found["watched"].append(statuses.get(timeout=30))

    class Starting(Server):
        def _read(self) -> None:
            found["process"] = self.process
            super()._read()

    looking = threading.Thread(target=look)
    looking.start()
    server = Starting("-m", models["gap"], "--port", port, "--grpc-port", grpc_port, "--batch-size", 3, run=code)
    try:
        looking.join()
        assert found["health"] == [NOT_SERVING, NOT_SERVING]
        assert found["watched"] == [NOT_SERVING, SERVING]
        assert found["responses"] == {
            "/healthz": 200, "/metrics": 200, "/readyz": 503, "/v2/health/ready": 503, "/ping": 503, "/v1/classify": 503,
        }  # fmt: skip
        assert found["ready"] == {"status": "loading"}
        assert found["refused"].json() == {"error": "the server is loading its models; try again later"}
        assert found["refused"].headers["retry-after"] == "1"
        assert server.ask("GET", "/readyz").json() == {"status": "ready"}
        assert [line.strip() for line in server.other] == ["batch 1", "batch 3"]
        assert server.logged(models=["gap:1"])[0]["seconds"] > 0
    finally:
        server.stop()


def test_watchers_are_limited_and_need_no_key(models, tmp_path):
    (tmp_path / "keys").write_text("secret")
    options = ("-m", models["gap"], "--grpc-port", 0, "--queue", 1, "--api-key-file", tmp_path / "keys")
    with serving(*options) as server, client(server.log[0]["grpc"]) as stub:
        calls = [stub.Watch(health.HealthCheckRequest(), timeout=60) for _ in range(17)]
        failures = []
        for call in calls:
            try:
                assert next(call).status == SERVING
            except grpc.RpcError as error:
                failures.append((error.code(), error.details()))
        assert failures == [(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many clients watch the health; use Check")]
        assert check(stub) == SERVING  # beside all watchers
        for call in calls:
            call.cancel()
        until(lambda: watches(stub))
        with grpc.insecure_channel(server.log[0]["grpc"]) as channel:
            method = channel.unary_unary("/grpc.health.v1.Health/Check")
            with pytest.raises(grpc.RpcError) as invalid:
                method(b"\xff", timeout=30)
            assert invalid.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def watches(stub: Any) -> bool:
    try:
        return next(stub.Watch(health.HealthCheckRequest(), timeout=30)).status == SERVING
    except grpc.RpcError:
        return False


def test_a_deadline_of_grpc_cancels_the_work(models):
    triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    with gated("-m", models["gap"], "--grpc-port", 0, "--batch-size", 1) as server:
        with triton.InferenceServerClient(server.log[0]["grpc"]) as stub:
            data = triton.InferInput("data", [5, 3, 32, 32], "FP32")
            data.set_data_from_numpy(np.zeros((5, 3, 32, 32), np.float32))
            with pytest.raises(triton.InferenceServerException, match="Deadline Exceeded"):
                stub.infer("gap", [data], client_timeout=1)
        (entry,) = server.logged(method="ModelInfer")
        assert entry["status"] == 499
        text = server.ask("GET", "/metrics").text
        assert 'nv_inference_request_failure{model="gap",reason="CANCELED",version="1"} 1.0' in text
        assert 'nv_inference_pending_request_count{model="gap",version="1"} 0.0' in text
        server.open_gate()
        assert server.ask("POST", "/v1/classify", content=PHOTO).status_code == 200
        assert 'nv_inference_count{model="gap",version="1"} 2.0' in server.ask("GET", "/metrics").text
