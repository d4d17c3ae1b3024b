"""Hostile requests are refused within bounded memory, while the server responds to others."""

import http.client
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hostile import HOSTILE, Hostile
from serving_helpers import Server, serving

DELAY = 0.25  # seconds that a health check may take meanwhile
ATTEMPTS = 3  # other programs may delay a health check as well


@pytest.fixture(scope="module")
def running(models) -> Iterator[Server]:
    with serving("-m", models["gap"]) as server:
        yield server


def memory(server: Server, key: str) -> int:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key)) * 1024


@contextmanager
def measured(server: Server) -> Iterator[dict[str, float]]:
    """The longest health check, in seconds, and the peak memory of the server, in bytes, during a block."""
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")  # start VmHWM anew
    figures, stop = {"delay": 0.0, "peak": 0.0}, threading.Event()
    host = server.address.removeprefix("http://")

    def probe() -> None:
        connection = http.client.HTTPConnection(host, timeout=60)
        while not stop.wait(0.002):
            started = time.perf_counter()
            connection.request("GET", "/healthz")
            assert connection.getresponse().read()
            figures["delay"] = max(figures["delay"], time.perf_counter() - started)
        connection.close()

    thread = threading.Thread(target=probe)
    thread.start()
    try:
        yield figures
    finally:
        stop.set()
        thread.join()
        figures["peak"] = memory(server, "VmHWM")


def send(server: Server, hostile: Hostile, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"), timeout=60)
    headers = {"content-length": str(len(body)), **hostile.headers}
    connection.putrequest(hostile.method, hostile.path)
    for header in headers.items():
        connection.putheader(*header)
    connection.endheaders()
    with suppress(OSError):  # refused before the end of the body
        connection.sock.sendall(body)
    response = connection.getresponse()
    result = response.status, response.read()
    connection.close()
    return result


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda one: one.name)
def test_a_hostile_request_is_refused_at_little_cost(running, hostile):
    body = hostile.body()
    for attempt in range(ATTEMPTS):
        before = memory(running, "VmRSS")
        with measured(running) as figures:
            status, text = send(running, hostile, body)
        print(f"{hostile.name}: {len(body):,} bytes, {status}, {figures['delay'] * 1e3:.0f} ms, "
              f"+{(figures['peak'] - before) / 1e6:.0f} MB, {text[:90]!r}")  # fmt: skip
        assert status in hostile.statuses, text
        assert len(text) < 20_000
        assert figures["peak"] - before < hostile.memory
        if figures["delay"] < DELAY or attempt == ATTEMPTS - 1:
            break
    assert figures["delay"] < DELAY
