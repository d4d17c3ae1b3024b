"""Connections: their number, their speed, what is not HTTP, and their end."""

import json
import socket
import statistics
import threading
import time
from contextlib import suppress

import httpx
import pytest

from conftest import EXAMPLES
from serving_helpers import Server, gated, serving, until

PHOTO = (EXAMPLES / "rocket.jpg").read_bytes()
POST = b"POST /v1/classify HTTP/1.1\r\nHost: vgg\r\nContent-Length: %d\r\n\r\n" % len(PHOTO)
# A process with few descriptors, so that a test can use them up.
FEW = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); "
MAIN = "from vgg.cli import main; main()"


def connect(server: Server) -> socket.socket:
    host, port = server.address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def exchange(server: Server, *parts: bytes) -> tuple[bytes, bytes]:
    """Send bytes, and return the head and the body of the response."""
    with connect(server) as connection:
        for part in parts:
            connection.sendall(part)
        response = b""
        while received := connection.recv(65536):
            response += received
    head, _, body = response.partition(b"\r\n\r\n")
    return head, body


def test_responses_on_a_kept_connection_are_not_delayed(server):
    # With Nagle's algorithm, the second part of each response waits 40 ms for the client's acknowledgement of the first.
    seconds = []
    for _ in range(30):
        started = time.perf_counter()
        assert server.ask("GET", "/healthz").status_code == 200
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.03


def test_idle_connections_make_room_for_new_ones(models):
    with serving("-m", models["gap"], run=FEW + MAIN) as server:
        idle = [connect(server) for _ in range(400)]
        slow = [connect(server) for _ in range(100)]
        for one in slow:  # they have sent something more recently
            one.sendall(POST + PHOTO[:10])
        for _ in range(3):
            assert httpx.get(server.address + "/healthz", timeout=60).status_code == 200
            assert httpx.post(server.address + "/v1/classify", content=PHOTO, timeout=60).status_code == 200
        slow[-1].sendall(PHOTO[10:])
        assert slow[-1].recv(100).startswith(b"HTTP/1.1 200")
        for one in idle + slow:
            one.close()
        assert not [entry for entry in server.log if entry["level"] != "info"]
        assert not server.other


def test_a_connection_that_waits_for_its_response_is_not_closed(models):
    with gated("-m", models["gap"], before=FEW) as server, connect(server) as waiting:
        waiting.sendall(POST + PHOTO)
        until(lambda: 'decode_seconds_count{model="gap",version="1"} 1' in server.ask("GET", "/metrics").text)
        idle = [connect(server) for _ in range(200)]
        assert httpx.get(server.address + "/healthz", timeout=60).status_code == 200
        server.open_gate()
        assert waiting.recv(100).startswith(b"HTTP/1.1 200")
        for one in idle:
            one.close()


@pytest.mark.parametrize(
    ("path", "fields"),
    [(b"/v1/models", {"error"}), (b"/predictions/gap", {"code", "type", "message"}), (b"/v2/models/gap", {"error"})],
)
@pytest.mark.parametrize(
    "rest",
    [b" HTTP/1.1\r\nno header\r\n\r\n", b" HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b" HTTP/1\r\n\r\n", b" \xff\r\n\r\n"],
)
def test_what_is_not_http_gets_an_error_of_the_protocol(server, path, fields, rest):
    head, body = exchange(server, b"GET " + path + rest)
    assert head.startswith(b"HTTP/1.1 400 ")
    assert b"content-type: application/json" in head.lower()
    assert set(json.loads(body)) == fields
    identity = next(line.split(b": ")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"x-request-id"))
    (entry,) = server.logged(request_id=identity.decode())
    assert (entry["status"], entry["path"]) == (400, path.decode())


@pytest.mark.parametrize("junk", [b"\x16\x03\x01\x02\x00\x01" * 9 + b"\r\n\r\n", b"a" * 100_000, b"\r\n\r\n \r\n\r\n"])
def test_junk_gets_an_error(server, junk):
    with connect(server) as connection:
        connection.sendall(junk)
        assert connection.recv(65536).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 414 "))
    assert server.ask("GET", "/healthz").status_code == 200


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize(
    ("head", "status", "line"),
    [
        (b"GET /v1/models?" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: vgg\r\n\r\n", 414, "the request line is longer than 16 KiB"),
        (b"GET /v1/models HTTP/1.1\r\nHost: vgg\r\na: " + b"a" * 20_000 + b"\r\n\r\n", 431, "the headers are more than 100"),
        (b"GET /v1/models HTTP/1.1\r\nHost: vgg\r\n" + b"a: b\r\n" * 101 + b"\r\n", 431, "the headers are more than 100"),
        (b"GET /v1/models HTTP/1.1\r\nHost: vgg\r\n" + b"a: b\r\n" * 5000 + b"\r\n", 431, "the headers are more than 100"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "HTTP/2 is not supported on this port; clients of gRPC need"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "the client speaks TLS on a port without it"),
    ],
)
def test_a_head_that_is_too_large_or_of_another_protocol_gets_a_message(server, at_once, head, status, line):
    with connect(server) as connection:
        for part in [head] if at_once else [head[:30], head[30:]]:
            connection.sendall(part)
            time.sleep(0 if at_once else 0.05)
        response = b""
        with suppress(ConnectionResetError):  # the end of the head may be unread
            while received := connection.recv(65536):
                response += received
    assert response.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(response.partition(b"\r\n\r\n")[2])["error"].startswith(line)
    assert server.logged(status=status, error=json.loads(response.partition(b"\r\n\r\n")[2])["error"])


def test_a_hundred_headers_are_accepted(server):
    head = b"GET /v1/models HTTP/1.1\r\nHost: vgg\r\nConnection: close\r\n" + b"a: b\r\n" * 98 + b"\r\n"
    assert exchange(server, head)[0].startswith(b"HTTP/1.1 200 ")


def test_a_client_of_grpc_learns_of_the_wrong_port(server):
    triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    client = triton.InferenceServerClient(server.address.removeprefix("http://"))
    with pytest.raises(triton.InferenceServerException, match=r"Trying to connect an http1.x server \(HTTP status 505\)"):
        client.get_server_metadata()
    client.close()


@pytest.mark.parametrize("framing", [{"content-length": str(len(PHOTO))}, {"transfer-encoding": "chunked"}])
def test_a_client_may_wait_for_100_continue(server, framing):
    chunked = "transfer-encoding" in framing
    with connect(server) as connection:
        lines = {"Host": "vgg", "Expect": "100-continue", "Connection": "close", **framing}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        connection.sendall(f"POST /v1/classify HTTP/1.1\r\n{head}\r\n".encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(PHOTO), PHOTO) if chunked else PHOTO)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_a_chunk_that_is_not_http_ends_the_request(server):
    head = b"POST /predictions/gap HTTP/1.1\r\nHost: vgg\r\nTransfer-Encoding: chunked\r\n\r\n"
    _, body = exchange(server, head, b"zz\r\n\r\n")
    assert set(json.loads(body)) == {"code", "type", "message"}


def test_sigterm_resets_no_connection(models):
    with serving("-m", models["gap"]) as server:
        outcomes: list[str] = []

        def load() -> None:
            while True:
                try:
                    connection = connect(server)
                except ConnectionRefusedError:
                    return
                with connection:
                    try:
                        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: vgg\r\nConnection: close\r\n\r\n")
                        outcomes.append(connection.recv(65536)[:12].decode())
                    except OSError as error:
                        outcomes.append(str(error))

        threads = [threading.Thread(target=load) for _ in range(24)]
        for thread in threads:
            thread.start()
        until(lambda: len(outcomes) > 200)
        assert server.stop() == 0
        for thread in threads:
            thread.join()
    assert set(outcomes) <= {"HTTP/1.1 200", "HTTP/1.1 503"}
