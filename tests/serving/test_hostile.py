"""Hostile requests are refused within bounded memory, while the server responds to others."""

import json
import statistics
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

import hostile
from conftest import EXAMPLES
from hostile import GZIP, HOSTILE, MESSAGES, MODEL_INFER, SIZE, SMALL, Hostile, message, proto, send, small_bomb
from serving_helpers import Server, health_checks, memory, serving

DELAY = 0.25  # seconds that a health check may take meanwhile
ATTEMPTS = 3  # other programs may delay a health check as well


@pytest.fixture(scope="module")
def running(models) -> Iterator[Server]:
    with serving("-m", models["gap"], "--grpc-port", 0) as server:
        yield server


def host_of(server: Server) -> str:
    return server.address.removeprefix("http://")


def check(server: Server, name: str, limit: float, attempt: Callable[[], str]) -> None:
    """Run an attempt within a number of bytes of memory, while health checks are quick."""
    for _ in range(ATTEMPTS):
        before = memory(server, "VmRSS")
        Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # VmHWM starts anew
        with health_checks(server) as delays:
            outcome = attempt()
        delay, grown = max(delays, default=0), memory(server, "VmHWM") - before
        print(f"{name}: {delay * 1e3:.0f} ms, +{grown / 1e6:.0f} MB, {outcome[:90]}")
        assert grown < limit
        if delay < DELAY:
            return
    assert delay < DELAY


@pytest.mark.parametrize("one", HOSTILE, ids=lambda each: each.name)
def test_a_hostile_request_is_refused_at_little_cost(running, one):
    body = one.body()

    def attempt() -> str:
        status, text = send(host_of(running), one, body)
        assert status in one.statuses, text[:1000]
        assert len(text) < 20_000
        return f"{status} {text}"

    check(running, one.name, one.memory, attempt)


@pytest.mark.parametrize("one", MESSAGES, ids=lambda each: each.name)
def test_a_hostile_message_is_refused_at_little_cost(running, one):
    grpc = pytest.importorskip("grpc", reason="needs grpcio")
    body = one.body()
    with grpc.insecure_channel(running.log[0]["grpc"]) as channel:
        call = channel.unary_unary(one.path)

        def attempt() -> str:
            with pytest.raises(grpc.RpcError) as refused:
                call(body, timeout=60)
            assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert len(refused.value.details()) < 2000
            return str(refused.value.details())

        check(running, one.name, one.memory, attempt)


def test_refused_messages_leave_no_memory(running):
    grpc = pytest.importorskip("grpc", reason="needs grpcio")
    body = message(SMALL, proto(6, bytes(SIZE)))

    def attempt() -> str:
        with grpc.insecure_channel(running.log[0]["grpc"]) as channel:
            for _ in range(12):
                with pytest.raises(grpc.RpcError):
                    channel.unary_unary(MODEL_INFER)(body, timeout=60)
        return "12 messages were refused"

    check(running, "messages", 250e6, attempt)


def test_compressed_bodies_need_the_memory_of_their_content(running):
    bomb, body, count = Hostile("", "/v1/classify", bytes, headers=GZIP), small_bomb(), 24
    with ThreadPoolExecutor(count) as pool:

        def attempt() -> str:
            statuses = [status for status, _ in pool.map(lambda _: send(host_of(running), bomb, body), range(count))]
            assert set(statuses) <= {422, 503}
            return f"{statuses.count(422)} of {count} bodies were read"

        check(running, "compressed bodies", 600e6, attempt)


@pytest.mark.parametrize("seconds", [20, pytest.param(300, marks=pytest.mark.full)])
def test_normal_requests_succeed_beside_hostile_ones(models, seconds):
    pytest.importorskip("grpc", reason="needs grpcio")
    photo = (EXAMPLES / "rocket.jpg").read_bytes()
    with serving("-m", models["gap"], "--grpc-port", 0) as server:
        command = [sys.executable, hostile.__file__, host_of(server), server.log[0]["grpc"], str(seconds)]
        outcomes = Counter()
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as clients:

            def classify() -> None:
                while clients.poll() is None:
                    with httpx.Client(base_url=server.address, timeout=60) as client:
                        for _ in range(10):
                            outcomes[client.post("/v1/classify", content=photo).status_code] += 1

            threads = [threading.Thread(target=classify) for _ in range(2)]
            with health_checks(server) as delays:
                for thread in threads:
                    thread.start()
                counts = json.load(clients.stdout)
                for thread in threads:
                    thread.join()
        peak = memory(server, "VmHWM")
        p99 = statistics.quantiles(delays, n=100)[-1]
        print(f"normal: {dict(outcomes)}; hostile: {counts}; p99 {p99 * 1e3:.0f} ms of {len(delays)}, "
              f"max {max(delays) * 1e3:.0f} ms; {peak / 1e6:.0f} MB")  # fmt: skip
        assert set(outcomes) == {200}
        assert not [name for name in counts if name.startswith(("unexpected", "5")) and name != "503"]
        assert p99 < DELAY
        assert peak < 1e9
        assert not server.other
