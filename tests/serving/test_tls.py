"""TLS on the HTTP and the gRPC port, with certificates made for the test."""

import asyncio
import datetime
import json
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from conftest import EXAMPLES, ROOT
from serving_helpers import Server, gated, serving, until
from vgg.serving.connections import Opening

trustme = pytest.importorskip("trustme", reason="needs trustme")

PHOTO = (EXAMPLES / "rocket.jpg").read_bytes()
CLASSIFY = "/v1/classify"


class Authority:
    """A certificate authority and the files of a server."""

    def __init__(self, folder: Path) -> None:
        self.ca, self.folder = trustme.CA(), folder
        self.certificate, self.key = folder / "tls.crt", folder / "tls.key"
        self.trusting = ssl.create_default_context()
        self.ca.configure_trust(self.trusting)
        self.options = ("--tls-cert", self.certificate, "--tls-key", self.key)

    def issue(self, **options: object) -> None:
        """Replace the files by those of a new certificate."""
        issued = self.ca.issue_cert("127.0.0.1", **options)
        self.certificate.write_bytes(b"".join(one.bytes() for one in issued.cert_chain_pems))
        self.key.write_bytes(issued.private_key_pem.bytes())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.issue()
    return made


def address(server: Server) -> tuple[str, int]:
    return "127.0.0.1", httpx.URL(server.address).port


def served(server: Server, authority: Authority) -> bytes:
    """The certificate that a new connection gets."""
    with (
        socket.create_connection(address(server), 30) as plain,
        authority.trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        return secure.getpeercert(binary_form=True)


def test_http_and_grpc_use_tls(models, authority):
    triton = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    options = ("-m", models["gap"], "--grpc-port", 0, *authority.options)
    with serving(*options, verify=authority.trusting) as server:
        ready = server.log[0]
        assert ready["address"].startswith("https://127.0.0.1:")
        assert ready["certificate_expires"] > time.strftime("%Y-%m-%d")
        for _ in range(2):  # on one connection
            response = server.ask("POST", CLASSIFY, content=PHOTO)
            assert (response.status_code, len(response.json()["results"])) == (200, 1)
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{server.address}/healthz")
        old = authority.trusting
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        assert served(server, authority)
        legacy = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        legacy.check_hostname, legacy.verify_mode = False, ssl.CERT_NONE
        legacy.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLS"):
            legacy.minimum_version = legacy.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection(address(server), 30) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
            legacy.wrap_socket(plain)
        root = authority.folder / "ca.pem"
        authority.ca.cert_pem.write_to_path(root)
        with triton.InferenceServerClient(ready["grpc"], ssl=True, root_certificates=str(root)) as client:
            assert client.get_server_metadata().name == "vgg"
        with (
            triton.InferenceServerClient(ready["grpc"]) as client,
            pytest.raises(triton.InferenceServerException, match="UNAVAILABLE"),
        ):
            client.get_server_metadata()
        assert server.stop() == 0
        assert not server.other


def test_http_on_the_port_of_https_gets_a_message(models, authority):
    with serving("-m", models["gap"], *authority.options, verify=authority.trusting) as server:
        for path, error in (
            ("/v1/models", {"error": "this port requires TLS; use https://"}),
            ("/ping", {"code": 400, "type": "Refusal", "message": "this port requires TLS; use https://"}),
        ):
            response = httpx.get(server.address.replace("https", "http") + path)
            assert (response.status_code, response.json()) == (400, error)
        assert httpx.post(server.address.replace("https", "http") + CLASSIFY, content=PHOTO).status_code == 400
        with socket.create_connection(address(server), 30) as garbage:
            garbage.sendall(b"\x16\x03\x01\x00\x05hello")  # looks like a handshake
            assert garbage.recv(100)[:1] in (b"\x15", b"")  # an alert, or nothing
        assert server.ask("GET", "/readyz").status_code == 200
        health = next(line for line in (ROOT / "Containerfile").read_text().splitlines() if line.startswith("HEALTHCHECK"))
        _, *command = json.loads(health.removeprefix("HEALTHCHECK CMD ").replace("8080", str(address(server)[1])))
        assert subprocess.run([sys.executable, *command], timeout=60).returncode == 0
        server.stop()
        assert subprocess.run([sys.executable, *command], timeout=60, capture_output=True).returncode == 1


def test_a_renewed_certificate_is_used_after_sighup(models, authority):
    grpc = pytest.importorskip("grpc", reason="needs grpcio")
    options = ("-m", models["gap"], "--grpc-port", 0, *authority.options)
    with serving(*options, verify=authority.trusting) as server:
        host, port = server.log[0]["grpc"].split(":")

        def both() -> set[bytes]:
            return {
                served(server, authority),
                ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)), timeout=30)),
            }

        assert server.ask("GET", "/readyz").status_code == 200
        before = both()
        authority.issue()
        assert both() == before
        assert len(before) == 1
        server.process.send_signal(signal.SIGHUP)
        server.logged(message="reloaded the TLS certificate")
        after = both()
        assert len(after) == 1
        assert after != before
        assert server.ask("GET", "/readyz").status_code == 200  # the open connection continues
        authority.key.write_text("no key")
        server.process.send_signal(signal.SIGHUP)
        (entry,) = server.logged(message="the TLS certificate could not be reloaded")
        assert (entry["level"], entry["error"]) == ("error", f"{authority.key}: no private key in PEM format")
        assert both() == after
        assert grpc  # the port is gRPC's


def test_a_disconnect_cancels_the_work_and_a_shutdown_finishes_it(models, authority):
    options = ("-m", models["gap"], "--batch-size", 1, *authority.options)
    with gated(*options, verify=authority.trusting) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.address + CLASSIFY, content=PHOTO, verify=authority.trusting, timeout=1)
        server.logged(status=499)
        with (
            socket.create_connection(address(server), 30) as plain,
            authority.trusting.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            head = f"POST {CLASSIFY} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(PHOTO)}\r\n\r\n"
            connection.sendall(head.encode() + PHOTO)
            until(lambda: 'vgg_decode_seconds_count{model="gap",version="1"} 2.0' in server.ask("GET", "/metrics").text)
            server.process.send_signal(signal.SIGTERM)
            server.logged(message="shutting down")
            server.open_gate()
            answer = b""
            while part := connection.recv(2**16):
                answer += part
            assert answer.startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(60) == 0


def test_silent_connections_make_room_and_handshakes_have_a_deadline(models, authority):
    code = """import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
import vgg.serving.connections as connections; connections.HANDSHAKE = 3.0
from vgg.cli import main; main()"""
    with serving("-m", models["gap"], *authority.options, run=code, verify=authority.trusting) as server:
        silent = [socket.create_connection(address(server), 30) for _ in range(200)]
        assert server.ask("GET", "/healthz").status_code == 200
        silent[-1].settimeout(30)
        assert silent[-1].recv(1) == b""  # closed, since it sent no handshake
        for one in silent:
            one.close()
        with httpx.Client(verify=authority.trusting, timeout=30) as other:
            assert other.get(f"{server.address}/healthz").status_code == 200
        assert not [entry for entry in server.log if entry["level"] == "error"]  # no descriptor was missing


def test_a_connection_beyond_the_limit_is_closed(authority):
    async def main() -> bytes:
        loop, context, faults = asyncio.get_running_loop(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), []
        context.load_cert_chain(authority.certificate, authority.key)
        loop.set_exception_handler(lambda loop, context: faults.append(context))
        server = await loop.create_server(lambda: Opening(context, set(), 0, lambda secure: None), "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            async with asyncio.timeout(30):
                received = await reader.read()
            writer.close()
            await writer.wait_closed()
        assert not faults
        return received

    with suppress(ConnectionResetError):
        assert asyncio.run(main()) == b""


@pytest.mark.parametrize(
    ("fault", "line"),
    [
        ("no certificate", "tls.crt: file or folder not found"),
        ("folder", "tls.key: is a folder"),
        ("der", "tls.crt: no certificate in PEM format"),
        ("truncated", "tls.crt: invalid certificate or key: "),
        ("encrypted", "tls.key: the private key is encrypted; decrypt it with `openssl pkey -in FILE -out NEW_FILE`"),
        ("mismatch", "tls.key: not the private key of "),
        ("expired", "tls.crt: certificate has expired"),
        ("swapped", "tls.key: no certificate in PEM format"),
    ],
)
def test_unusable_files_are_one_line(authority, fault, line):
    certificate, key = authority.certificate, authority.key
    now = datetime.datetime.now(datetime.UTC)
    if fault == "no certificate":
        certificate.unlink()
    elif fault == "folder":
        key.unlink()
        key.mkdir()
    elif fault == "der":
        certificate.write_bytes(ssl.PEM_cert_to_DER_cert(certificate.read_text().partition("-----END CERTIFICATE-----")[0]
                                                         + "-----END CERTIFICATE-----"))  # fmt: skip
    elif fault == "truncated":
        certificate.write_text(certificate.read_text()[:300])
    elif fault == "encrypted":
        command = ("openssl", "pkey", "-aes256", "-passout", "pass:secret", "-in", key, "-out", key.with_suffix(".new"))
        if not shutil.which("openssl"):
            pytest.skip("needs openssl")
        subprocess.run(command, check=True)
        key = key.with_suffix(".new").rename(key)
    elif fault == "mismatch":
        old = certificate.read_bytes()
        authority.issue()
        certificate.write_bytes(old)
    elif fault == "expired":
        authority.issue(not_before=now - datetime.timedelta(2), not_after=now - datetime.timedelta(1))
    elif fault == "swapped":
        certificate, key = key, certificate
    command = [sys.executable, "-m", "vgg", "serve", "--port", "0", "--tls-cert", certificate, "--tls-key", key]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(f"vgg: {authority.folder}/{line}"), json.dumps(result.stderr)
    assert result.stderr.count("\n") == 1


def test_both_files_are_required(authority):
    command = [sys.executable, "-m", "vgg", "serve", "--port", "0", "--tls-cert", authority.certificate]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2
    assert "TLS requires --tls-cert and --tls-key" in result.stderr
