"""Operation of the server: limits, deadlines, shutdown, API keys, metrics, logs."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from conftest import EXAMPLES, ROOT
from serving_helpers import Server, gated, serving, until

PHOTO = (EXAMPLES / "rocket.jpg").read_bytes()
CLASSIFY = "/v1/classify"


def infer(server: Server, count: int, timeout: float = 60) -> httpx.Response:
    """Send an inference request with a number of images."""
    shape, size = [count, 3, 32, 32], count * 3 * 32 * 32 * 4
    tensor = {"name": "data", "datatype": "FP32", "shape": shape, "parameters": {"binary_data_size": size}}
    text = json.dumps({"inputs": [tensor]}).encode()
    headers = {"inference-header-content-length": str(len(text))}
    return httpx.post(f"{server.address}/v2/models/gap/infer", content=text + bytes(size), headers=headers, timeout=timeout)


def waiting(server: Server) -> float:
    return metric(server, "nv_inference_pending_request_count")


def metric(server: Server, name: str, **labels: str) -> float:
    text = server.ask("GET", "/metrics").text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.removesuffix("_total") == name.removesuffix("_total") and labels.items() <= sample.labels.items()
    )


def test_start_takes_little_cpu_time(models):
    with serving("-m", models["gap"]) as server:
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[11]) + int(fields[12])
        assert ticks / os.sysconf("SC_CLK_TCK") < 2
        assert server.log[0]["models"] == ["gap:1"]


def test_a_full_queue_refuses_at_once(models):
    with gated("-m", models["gap"], "--queue", 2, "--batch-size", 1) as server, ThreadPoolExecutor(2) as pool:
        requests = [pool.submit(infer, server, 2)]
        until(lambda: waiting(server) == 1)  # the other image is in the engine
        requests.append(pool.submit(infer, server, 1))
        until(lambda: waiting(server) == 2)
        refused = server.ask("POST", CLASSIFY, content=PHOTO)  # at once: the engine is still waiting
        assert (refused.status_code, refused.json()) == (503, {"error": "the queue is full; try again later"})
        assert int(refused.headers["retry-after"]) >= 1
        assert metric(server, "nv_inference_request_failure", reason="REJECTED") == 1
        server.open_gate()
        assert [request.result().status_code for request in requests] == [200, 200]
        assert server.ask("POST", CLASSIFY, content=PHOTO).status_code == 200
        assert metric(server, "nv_inference_request_success", model="gap") == 3


def test_the_deadline_cancels_a_request_and_its_work(models):
    with gated("-m", models["gap"], "--deadline-seconds", 2, "--batch-size", 1) as server:
        late = infer(server, 4)
        assert late.status_code == 504
        assert late.json() == {"error": "the deadline passed before the response was ready"}
        until(lambda: waiting(server) == 0)
        assert metric(server, "nv_inference_request_failure", reason="CANCELED") == 1
        server.open_gate()
        assert infer(server, 1).status_code == 200
        assert metric(server, "nv_inference_count", model="gap") == 2  # the image that was in the engine, and the new one


def test_a_disconnect_cancels_the_work(models):
    with gated("-m", models["gap"], "--batch-size", 1) as server:
        with pytest.raises(httpx.ReadTimeout):
            infer(server, 12, timeout=0.5)
        (entry,) = server.logged(status=499)
        assert entry["model"] == "gap:1"
        until(lambda: waiting(server) == 0)
        assert metric(server, "nv_inference_request_failure", reason="CANCELED") == 1
        server.open_gate()
        assert server.ask("POST", CLASSIFY, content=PHOTO).status_code == 200
        assert metric(server, "nv_inference_count", model="gap") <= 2  # at most one of the twelve was in the engine


def test_sigterm_under_load_loses_no_accepted_request(models):
    with gated("-m", models["gap"], "--batch-size", 1) as server:
        responses = []

        def load() -> None:
            with httpx.Client(timeout=60) as client:
                while True:
                    try:
                        responses.append(client.post(server.address + CLASSIFY, content=PHOTO))
                    except httpx.HTTPError:  # the server is down, or closed an idle connection; the log shows what it accepted
                        return

        threads = [threading.Thread(target=load) for _ in range(8)]
        for thread in threads:
            thread.start()
        server.open_gate()
        until(lambda: len(responses) >= 16)
        server.close_gate()
        until(lambda: waiting(server) == 7)  # all clients wait: one for the engine, the others in the queue
        server.process.send_signal(signal.SIGTERM)
        server.logged(message="shutting down")
        checks = [server.ask("GET", path).status_code for path in ("/readyz", "/healthz", "/metrics")]
        refused = server.ask("POST", CLASSIFY, content=PHOTO)
        server.open_gate()
        assert server.process.wait(60) == 0
        for thread in threads:
            thread.join()
        assert checks == [503, 200, 200]
        assert refused.status_code == 503
        assert {response.status_code for response in responses} <= {200, 503}
        for response in [refused, *(one for one in responses if one.status_code == 503)]:
            assert response.json() == {"error": "the server is shutting down"}
            assert "retry-after" in response.headers
        entries = [entry for entry in server.log if entry["message"] == "request" and entry["path"] == CLASSIFY]
        assert {entry["status"] for entry in entries} == {200, 503}
        accepted = sum(entry["status"] == 200 for entry in entries)
        assert accepted == sum(response.status_code == 200 for response in responses)  # every result has arrived
        assert accepted >= 16 + 8
        assert server.log[-1]["message"] == "shut down"
        assert server.log[-1]["unanswered"] == 0


def test_sigterm_while_models_load_ends_the_process():
    code = """import sys, vgg.cli, vgg.serving.repository as repository
def load(*_):
    print("loading", file=sys.stderr, flush=True)
    sys.stdin.read()
repository.open_model = load
vgg.cli.main()"""
    command = [sys.executable, "-c", code, "serve", "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "loading\n"
        process.send_signal(signal.SIGTERM)
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_the_shutdown_is_bounded(models):
    with gated("-m", models["gap"], "--drain-seconds", 0.1, "--batch-size", 1) as server, ThreadPoolExecutor(1) as pool:
        request = pool.submit(infer, server, 12)
        until(lambda: waiting(server) == 11)
        server.process.send_signal(signal.SIGTERM)
        response = request.result()  # although the engine is still waiting
        assert (response.status_code, response.json()) == (503, {"error": "the server is shutting down"})
        server.open_gate()
        assert server.process.wait(60) == 0


def test_the_containers_command_runs_without_root_on_a_read_only_filesystem():
    lines = dict(line.split(" ", 1) for line in (ROOT / "Containerfile").read_text().splitlines() if line[:1].isupper())
    user, group = lines["USER"].split(":")
    prepared = "mount -o remount,bind,ro / && mount -t tmpfs tmpfs /tmp && ! touch /usr/probe 2>&-"
    home, python = Path.home(), sys.base_prefix
    if Path(python).is_relative_to(home):  # which other users may not read
        hidden = f"mount --bind {python} /mnt && mount -t tmpfs -o mode=755 tmpfs {home}"
        prepared = f"{hidden} && mkdir -p {python} && mount --bind /mnt {python} && {prepared}"
    if os.geteuid() or subprocess.run(["unshare", "--mount", "sh", "-c", prepared], capture_output=True).returncode:
        pytest.skip("needs the permission to mount")
    command = f"exec setpriv --reuid {user} --regid {group} --clear-groups --no-new-privs --bounding-set=-all"
    within = ("unshare", "--mount", "sh", "-c", f'{prepared} && {command} env -i {lines["ENV"]} "$@"', "sh")
    _, verb, *options = json.loads(lines["ENTRYPOINT"])
    assert verb == "serve"
    with serving(*options, within=within) as server:
        status = Path(f"/proc/{server.process.pid}/status").read_text()
        assert f"Uid:\t{user}\t{user}\t{user}\t{user}" in status
        assert "CapEff:\t0000000000000000" in status
        assert server.ask("POST", CLASSIFY, content=PHOTO).status_code == 200
        assert server.stop() == 0
        assert not server.other


def test_metrics_have_tritons_names_and_histograms(server):
    response = server.ask("POST", CLASSIFY, params={"model": "fc"}, content=PHOTO)
    assert response.status_code == 200
    response = server.ask("GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    for name in ("request_success", "request_failure", "count", "exec_count", "request_duration_us", "queue_duration_us",
                 "compute_input_duration_us", "compute_infer_duration_us", "compute_output_duration_us"):  # fmt: skip
        assert f"# TYPE nv_inference_{name} counter\n" in response.text
        assert metric(server, f"nv_inference_{name}") >= 0
    for stage in ("queue", "decode", "inference", "total"):
        assert families[f"vgg_{stage}_seconds"].type == "histogram"
        assert metric(server, f"vgg_{stage}_seconds_count", model="fc") >= 1
    assert metric(server, "vgg_batch_size_count", model="fc") >= 1
    assert metric(server, "vgg_http_requests_total", route=CLASSIFY, status="200") >= 1
    assert metric(server, "process_resident_memory_bytes") > 0


def test_cross_origin_calls_are_disabled_by_default(server, models):
    headers = {"origin": "https://example.org"}
    assert "access-control-allow-origin" not in server.ask("GET", "/v1/models", headers=headers).headers
    preflight = {**headers, "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in server.ask("OPTIONS", CLASSIFY, headers=preflight).headers
    with serving("-m", models["gap"], "--allow-origin", "https://example.org") as open_server:
        for method, path, sent in (("GET", "/v1/models", headers), ("OPTIONS", CLASSIFY, preflight)):
            response = open_server.ask(method, path, headers=sent)
            assert response.headers["access-control-allow-origin"] == "https://example.org"
        others = open_server.ask("GET", "/v1/models", headers={"origin": "https://example.com"})
        assert "access-control-allow-origin" not in others.headers
        # What a browser would send without asking first is refused as well.
        for one, origin, status in (
            (server, "https://example.org", 403),
            (open_server, "https://example.org", 200),
            (open_server, "https://example.com", 403),
        ):
            for site in ({"sec-fetch-site": "cross-site"}, {}):  # over plain HTTP, browsers send the origin only
                sent = {"origin": origin, **site}
                assert one.ask("POST", CLASSIFY, content=PHOTO, headers=sent).status_code == status
        own = {"origin": server.address}
        assert server.ask("POST", CLASSIFY, content=PHOTO, headers=own).status_code == 200
        assert server.ask("GET", "/", headers={"sec-fetch-site": "cross-site"}).status_code == 200  # a link


def test_keys_guard_everything_but_health_and_the_page(models, tmp_path):
    (tmp_path / "keys").write_text("first-key\nsecond-key\n")
    with serving("-m", models["gap"], "--api-key-file", tmp_path / "keys") as server:
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz", "/ping", "/v2/health/live", "/page/page.js"):
            assert server.ask("GET", path).status_code == 200
        for path in ("/v1/models", "/metrics", "/v2", "/nothing"):
            assert server.ask("GET", path).status_code == 401
        for headers in ({}, {"x-api-key": "third-key"}, {"authorization": "Bearer x"}, {"authorization": "Basic first-key"}):
            response = server.ask("POST", CLASSIFY, content=PHOTO, headers=headers)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        for headers in (
            {"x-api-key": "first-key"},
            {"authorization": "Bearer second-key"},
            {"authorization": "bearer second-key"},
        ):
            assert server.ask("POST", CLASSIFY, content=PHOTO, headers=headers).status_code == 200
        assert not any("-key" in json.dumps(entry) for entry in server.log)


def test_an_internal_error_has_its_traceback_in_the_log_only(models):
    # No request should cause this, so the test removes the decoder.
    code = "import vgg.serving.application as a; a._decode = None; from vgg.cli import main; main()"
    with serving("-m", models["gap"], run=code) as server:
        response = server.ask("POST", CLASSIFY, content=PHOTO)
        assert (response.status_code, response.json()) == (500, {"error": "internal error; see the server's log"})
        (entry,) = server.logged(message="internal error")
        assert (entry["level"], entry["request_id"]) == ("error", response.headers["x-request-id"])
        assert "TypeError" in entry["exception"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-m", "nowhere.onnx"], "vgg: nowhere.onnx: can't be copied to the temporary folder: file or folder not found"),
        (["-m", "gap", "-m", "gap"], "vgg: two models have the name gap, version 1; choose names with --model NAME=PATH"),
        (["-m", "gap", "--api-key-file", os.devnull], "vgg: /dev/null: no API keys; write one per line"),
        (["-m", "gap", "--api-key-file", "nowhere"], "vgg: nowhere: file or folder not found"),
        (
            ["-m", "gap", "--api-key-file", "NOTES"],
            "vgg: NOTES: API key 2 has spaces; write one key per line, without comments",
        ),
        (["-m", "gap", "--port", "TAKEN"], "vgg: can't listen on 127.0.0.1 port TAKEN: address already in use"),
        (["-m", "gap", "--host", "192.0.2.1"], "vgg: can't listen on 192.0.2.1 port 0: cannot assign requested"),
        (["-m", "gap", "--engine", "abacus"], "vgg: unknown engine 'abacus'"),
    ],
)
def test_a_failed_start_prints_one_line(models, options, line, tmp_path):
    (tmp_path / "NOTES").write_text("first\nsecret  # of Alice\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        options = [{"gap": str(models["gap"]), "TAKEN": port}.get(option, option) for option in options]
        command = [sys.executable, "-m", "vgg", "serve", "--port", "0", *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith(line.replace("TAKEN", port))
    assert result.stderr.count("\n") == 1


def test_a_missing_package_is_reported_with_its_extra():
    code = "import sys; sys.modules['uvicorn'] = None; from vgg.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code, "serve"], capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "vgg: serving requires uvicorn; install with `pip install 'vgg[serve]'`\n"
