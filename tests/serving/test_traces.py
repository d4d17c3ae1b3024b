"""OpenTelemetry traces: a real server exports to a collector on loopback."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import numpy as np
import pytest

from conftest import EXAMPLES
from serving_helpers import gated, serving, until

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs vgg[telemetry]")
service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")

PHOTO = (EXAMPLES / "rocket.jpg").read_bytes()
CALLER = "00f067aa0ba902b7"  # a span


class Collector(ThreadingHTTPServer):
    """Keeps the spans that it receives; while `open` is not set, it does not respond."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.open = threading.Event()
        self.open.set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def trace(self, number: str) -> dict[str, list[Any]]:
        """Wait for the spans of a trace; by name. The request's span is the last."""

        def found() -> list[Any]:
            return [span for span in self.spans if span.trace_id.hex() == number]

        until(lambda: any(span.kind == 2 for span in found()))
        names: dict[str, list[Any]] = {}
        for span in found():
            names.setdefault(span.name, []).append(span)
        return names


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.open.wait(30)
        assert self.path == "/v1/traces"
        for group in service.ExportTraceServiceRequest.FromString(body).resource_spans:
            self.server.resources.append(attributes(group.resource))
            for scope in group.scope_spans:
                self.server.spans += scope.spans
        self.server.headers.append(dict(self.headers))
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()


@contextmanager
def collecting() -> Iterator[Collector]:
    with Collector() as collector:
        thread = threading.Thread(target=collector.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield collector
        finally:
            collector.open.set()
            collector.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")  # milliseconds


def attributes(holder: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in holder.attributes}


def header(number: str, sampled: bool = True) -> dict[str, str]:
    return {"traceparent": f"00-{number}-{CALLER}-0{int(sampled)}"}


def number(digit: int) -> str:
    return f"{digit:032x}"


def is_within(inner: Any, outer: Any) -> bool:
    return outer.start_time_unix_nano <= inner.start_time_unix_nano <= inner.end_time_unix_nano <= outer.end_time_unix_nano


def test_http_and_grpc_requests_continue_the_callers_trace(models, monkeypatch):
    triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "classifier")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=zoo")
    options = ("-m", models["gap"], "--grpc-port", 0, "--traces")
    with collecting() as collector, serving(*options, collector.address) as server:
        before = time.time_ns()
        assert server.ask("POST", "/v1/classify", content=PHOTO, headers=header(number(1))).status_code == 200
        with triton.InferenceServerClient(server.log[0]["grpc"]) as client:
            batch = np.zeros((2, 3, 224, 224), np.float32)
            data = triton.InferInput("data", list(batch.shape), "FP32")
            data.set_data_from_numpy(batch)
            client.infer("gap", [data], headers=header(number(2)))
            with pytest.raises(triton.InferenceServerException):
                client.infer("resnet", [data], headers=header(number(3)))
        first, second = collector.trace(number(1)), collector.trace(number(2))
        assert set(first) == {"POST /v1/classify", "decode", "queue", "engine"}
        assert set(second) == {"inference.GRPCInferenceService/ModelInfer", "queue", "engine"}
        for spans in (first, second):
            (request, *stages) = sorted((span for group in spans.values() for span in group), key=lambda one: one.kind != 2)
            assert (request.kind, request.parent_span_id.hex()) == (2, CALLER)  # a server's span
            assert all((stage.parent_span_id, is_within(stage, request)) == (request.span_id, True) for stage in stages)
            assert before < request.start_time_unix_nano < time.time_ns()
        found = attributes(first["POST /v1/classify"][0])
        assert found.items() >= {
            "http.request.method": "POST", "http.route": "/v1/classify", "url.path": "/v1/classify", "url.scheme": "http",
            "http.response.status_code": 200, "client.address": "127.0.0.1", "vgg.model": "gap:1", "vgg.images": 1,
        }.items()  # fmt: skip
        assert attributes(first["engine"][0]) == {"vgg.batch_size": 1, "vgg.images": 1}
        assert attributes(first["decode"][0]) == {"vgg.width": 640, "vgg.height": 427}
        found = attributes(second["inference.GRPCInferenceService/ModelInfer"][0])
        assert found.items() >= {
            "rpc.system.name": "grpc", "rpc.method": "inference.GRPCInferenceService/ModelInfer",
            "rpc.response.status_code": "OK",
        }.items()  # fmt: skip
        assert sum(attributes(one)["vgg.images"] for one in second["engine"]) == 2
        (refused,) = (span for group in collector.trace(number(3)).values() for span in group)
        assert (attributes(refused)["rpc.response.status_code"], refused.status.code) == ("NOT_FOUND", 0)  # the client's error
        assert collector.resources[0].items() >= {"service.name": "classifier"}.items()
        assert collector.headers[0]["x-tenant"] == "zoo"
        assert server.logged(trace_id=number(1))[0]["path"] == "/v1/classify"
        assert server.logged(trace_id=number(2))[0]["method"] == "ModelInfer"


def test_requests_that_share_a_batch_have_engine_spans_of_the_same_times(models):
    with collecting() as collector, gated("-m", models["gap"], "--traces", collector.address) as server:
        server.open_gate()
        server.ask("POST", "/v1/classify", content=PHOTO)  # spans are made before the first check below
        server.close_gate()
        with ThreadPoolExecutor(4) as pool:

            def ask(index: int) -> httpx.Response:
                return httpx.post(f"{server.address}/v1/classify", content=PHOTO, headers=header(number(index)), timeout=60)

            calls = [pool.submit(ask, 1)]
            until(lambda: pending(server) == 0 and metric(server, "vgg_decode_seconds_count") == 2)  # it is in the engine
            calls += [pool.submit(ask, index) for index in (2, 3, 4)]
            until(lambda: metric(server, "vgg_decode_seconds_count") == 5)  # they wait for the engine
            server.open_gate()
            assert [call.result().status_code for call in calls] == [200] * 4
        engines = [collector.trace(number(index))["engine"][0] for index in (1, 2, 3, 4)]
        assert [attributes(one)["vgg.batch_size"] for one in engines] == [1, 3, 3, 3]
        for end in ("start_time_unix_nano", "end_time_unix_nano"):
            times = [getattr(one, end) for one in engines[1:]]
            assert max(times) - min(times) < 10**6  # each request reads the clock once
        queued = collector.trace(number(2))["queue"][0]
        assert queued.end_time_unix_nano == engines[1].start_time_unix_nano >= engines[0].end_time_unix_nano - 10**6


def pending(server) -> float:
    return metric(server, "nv_inference_pending_request_count")


def metric(server, name: str) -> float:
    return float(re.search(rf"^{name}\{{.*\}} (\S+)$", server.ask("GET", "/metrics").text, re.MULTILINE)[1])


def test_failures_are_marked_and_health_checks_have_no_trace(models):
    code = "import vgg.serving.model_server as one; one._classes = None; from vgg.cli import main; main()"
    with collecting() as collector, serving("-m", models["gap"], "--traces", collector.address, run=code) as server:
        for path in ("/healthz", "/readyz", "/metrics", "/"):
            server.ask("GET", path, headers=header(number(5)))
        assert server.ask("POST", "/v1/classify", content=b"text", headers=header(number(6))).status_code == 422
        server.ask("POST", "/v1/classify", content=PHOTO, headers=header(number(7), sampled=False))
        assert server.ask("POST", "/predictions/gap", content=PHOTO, headers=header(number(8))).status_code == 500
        broken = collector.trace(number(8))["POST /predictions/{model}"][0]
        assert (broken.status.code, attributes(broken)["error.type"]) == (2, "500")
        unread = collector.trace(number(6))
        assert (unread["decode"][0].status.code, unread["POST /v1/classify"][0].status.code) == (2, 0)
        assert {span.trace_id.hex() for span in collector.spans} == {number(6), number(8)}


def test_the_last_spans_are_exported_at_the_end(models, monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "600000")
    with collecting() as collector:
        with serving("-m", models["gap"], "--traces", f"{collector.address}/v1/traces") as server:
            server.ask("POST", "/v1/classify", content=PHOTO)
            assert not collector.spans
            assert server.stop() == 0
        assert len(collector.spans) == 4


@pytest.mark.parametrize("fault", ["down", "hanging"])
def test_a_collector_that_fails_changes_nothing_for_requests(models, fault):
    with socket.create_server(("127.0.0.1", 0)) as taken, collecting() as collector:
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        if fault == "down":
            taken.close()
        else:
            collector.open.clear()
            address = collector.address
        with serving("-m", models["gap"], "--traces", address) as server:
            for _ in range(3):
                started = time.monotonic()
                assert server.ask("POST", "/v1/classify", content=PHOTO).status_code == 200
                assert time.monotonic() - started < 5
                time.sleep(0.1)  # the spans are exported
            if fault == "down":
                until(lambda: any(entry["level"] == "warning" for entry in server.log))
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
            assert time.monotonic() - started < 9  # 3 s for the last spans
            assert not server.other  # every line of the log is JSON
        assert {entry["status"] for entry in server.log if entry["message"] == "request"} == {200}


def test_traces_are_off_by_default(models):
    code = "import atexit, sys; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); from vgg.cli import main; main()"
    with serving("-m", models["gap"], run=code) as server:
        server.ask("POST", "/v1/classify", content=PHOTO, headers=header(number(9)))
        (entry,) = server.logged(message="request")
        assert "trace_id" not in entry
        assert server.stop() == 0
        assert "vgg.serving.traces" in server.other[-1].split()
        assert not [name for name in server.other[-1].split() if name.startswith("opentelemetry")]


def test_an_address_that_is_no_url_is_refused():
    command = [sys.executable, "-m", "vgg", "serve", "--port", "0", "--traces", "collector:4318"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    line = "vgg: the collector of traces must have an address such as http://127.0.0.1:4318, not 'collector:4318'\n"
    assert result.stderr == line
