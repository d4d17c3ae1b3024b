"""Hostile requests are refused within bounded memory, while the server responds to others."""

import http.client
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from hostile import GZIP, HOSTILE, MESSAGES, Hostile, small_bomb
from serving_helpers import Server, measured, memory, serving

DELAY = 0.25  # seconds that a health check may take meanwhile
ATTEMPTS = 3  # other programs may delay a health check as well


@pytest.fixture(scope="module")
def running(models) -> Iterator[Server]:
    with serving("-m", models["gap"], "--grpc-port", 0) as server:
        yield server


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


def check(server: Server, name: str, limit: float, attempt: Callable[[], str]) -> None:
    """Run an attempt until health checks are quick meanwhile; the memory is limited in each."""
    for _ in range(ATTEMPTS):
        before = memory(server, "VmRSS")
        with measured(server) as figures:
            outcome = attempt()
        grown = figures["peak"] - before
        print(f"{name}: {figures['delay'] * 1e3:.0f} ms, +{grown / 1e6:.0f} MB, {outcome[:90]}")
        assert grown < limit
        if figures["delay"] < DELAY:
            return
    assert figures["delay"] < DELAY


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda one: one.name)
def test_a_hostile_request_is_refused_at_little_cost(running, hostile):
    body = hostile.body()

    def attempt() -> str:
        status, text = send(running, hostile, body)
        assert status in hostile.statuses, text[:1000]
        assert len(text) < 20_000
        return f"{status} {text}"

    check(running, hostile.name, hostile.memory, attempt)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda one: one.name)
def test_a_hostile_message_is_refused_at_little_cost(running, message):
    grpc = pytest.importorskip("grpc", reason="needs grpcio")
    body = message.body()
    with grpc.insecure_channel(running.log[0]["grpc"]) as channel:
        call = channel.unary_unary(message.path)

        def attempt() -> str:
            with pytest.raises(grpc.RpcError) as refused:
                call(body, timeout=60)
            assert refused.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
            assert len(refused.value.details()) < 2000
            return str(refused.value.details())

        check(running, message.name, message.memory, attempt)


def test_compressed_bodies_need_the_memory_of_their_content(running):
    bomb, body = Hostile("", "/v1/classify", bytes, headers=GZIP), small_bomb()
    with ThreadPoolExecutor(60) as pool:

        def attempt() -> str:
            statuses = [status for status, _ in pool.map(lambda _: send(running, bomb, body), range(60))]
            assert set(statuses) <= {422, 503}
            return f"{statuses.count(422)} of 60 bodies were read"

        check(running, "60 compressed bodies", 600e6, attempt)
