"""Downloads from a real server on loopback, with every fault that a server can have."""

import gc
import hashlib
import os
import subprocess
import sys
import threading
from dataclasses import replace
from urllib.error import HTTPError
from urllib.request import Request

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from loopback import serving
from vgg import Error, Notice, zoo
from vgg.zoo import download

FILE = "zoo/tiny-7.onnx"


def pulled(monkeypatch, server, name="tiny-7"):
    monkeypatch.setenv("VGG_MIRROR", server.address)
    return zoo.pull(name)


def left(tmp_path):
    """The names of the files in the cache, except locks of failed attempts."""
    return sorted(path.name for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_is_downloaded_once(known, model, tmp_path, monkeypatch):
    with serving({FILE: model}) as server:
        path = pulled(monkeypatch, server)
        assert path == tmp_path / "home" / FILE
        assert path.read_bytes() == model
        assert pulled(monkeypatch, server) == path
        assert len(server.requests) == 1
    assert left(tmp_path) == ["tiny-7.onnx"]
    assert zoo.pull("tiny-7") == path  # without a server


def test_progress_is_reported_in_bytes(known, model, monkeypatch):
    calls = []
    with serving({FILE: model}, ["cut 100000"]) as server:
        monkeypatch.setenv("VGG_MIRROR", server.address)
        zoo.pull("tiny-7", lambda *call: calls.append(call))
    assert {(task, total, unit) for task, _, total, unit in calls} == {("zoo/tiny-7", len(model), "bytes")}
    assert [done for _, done, _, _ in calls] == sorted({done for _, done, _, _ in calls})
    assert calls[-1][1] == len(model)


@pytest.mark.parametrize(
    ("plan", "requests"),
    [
        (["cut 100000", "cut 100", "cut 0", "cut 50000"], 5),
        (["no-length"], 1),
        (["length " + "9" * 5000], 1),
        (["chunked"], 1),
        (["cut 100000", "chunked"], 2),
        (["cut 100000", "no-length"], 2),
        (["cut 100000", "no-ranges"], 2),
        (["cut 100000", "wrong-range"], 3),
        (["cut 100000", "status 416"], 3),
        (["cut 100000", "garbage"], 3),
        (["status 503", "status 429", "status 500"], 4),
        (["garbage", "garbage"], 3),
        (["hang"], 2),
        (["redirect /zoo/tiny-7.onnx"] * 3, 4),
        (["cut 100000", "redirect /zoo/tiny-7.onnx", "cut 10"], 4),
    ],
)
def test_faults_of_a_server_are_recovered(known, model, tmp_path, monkeypatch, plan, requests):
    with serving({FILE: model}, plan) as server:
        assert pulled(monkeypatch, server).read_bytes() == model
        assert len(server.requests) == requests
    assert left(tmp_path) == ["tiny-7.onnx"]


def test_only_the_missing_bytes_are_requested(known, model, monkeypatch):
    with serving({FILE: model}, ["cut 1000", "cut 1000"]) as server:
        pulled(monkeypatch, server)
        assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=1000-", "bytes=2000-"]
        assert all("If-Range" in headers for _, headers in server.requests[1:])


def test_the_next_call_resumes(known, model, tmp_path, monkeypatch):
    with serving({FILE: model}, ["cut 100000", *["cut 0"] * 4]) as server:
        with pytest.raises(Error, match=r"connection closed after 100,000 of .* bytes; the same command resumes") as caught:
            pulled(monkeypatch, server)
        assert "\n" not in str(caught.value)
        assert left(tmp_path) == [".tiny-7.onnx.part"]
        assert pulled(monkeypatch, server).read_bytes() == model
        assert server.requests[-1][1]["Range"] == "bytes=100000-"
    assert left(tmp_path) == ["tiny-7.onnx"]


@pytest.mark.parametrize("etag", [True, False])
def test_two_versions_of_a_file_are_never_mixed(known, model, tmp_path, monkeypatch, etag):
    other = bytes(byte ^ 1 for byte in model)
    # The right file replaces another one: the ETag, or else the hash, causes a full download.
    with serving({FILE: other}, ["cut 100000", "swap"], etag=etag) as server:
        server.other = {FILE: model}
        assert pulled(monkeypatch, server).read_bytes() == model
        assert len(server.requests) == (2 if etag else 3)
    # Another file replaces the right one.
    (tmp_path / "home" / FILE).unlink()
    with serving({FILE: model}, ["cut 100000", "swap"], etag=etag) as server:
        server.other = {FILE: other}
        with pytest.raises(Error, match=r"not the published file: sha256 .*; deleted"):
            pulled(monkeypatch, server)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (["length 5"], "not the published file: [0-9,]+ bytes, expected [0-9,]+$"),
        (["length -5"], "not the published file: [0-9,]+ bytes, expected [0-9,]+$"),
        (["cut 1000", "length 5"], "not the published file: "),
        (["status 404"], "the server responded 404 Not Found$"),
        (["status 403"], "the server responded 403 Forbidden$"),
        (["loop"] * 30, "the server responded 302 .*infinite loop"),
        (["redirect ftp://127.0.0.1/x"], "127.0.0.1"),
        (["redirect file:///etc/passwd"], "is not allowed"),
        (["status 503"] * 9, "the server responded 503"),
        (["garbage"] * 9, "this is no HTTP"),
        (["hang"] * 9, "no data for"),
        (["cut 10", *["cut 0"] * 9], "connection closed after 10 of"),
    ],
)
def test_a_permanent_fault_is_one_line(known, model, tmp_path, monkeypatch, plan, message):
    with serving({FILE: model}, plan) as server, pytest.raises(Error, match=message) as caught:
        pulled(monkeypatch, server)
    assert "\n" not in str(caught.value)
    assert left(tmp_path) in ([".tiny-7.onnx.part"], [])


@pytest.mark.parametrize("target", ["http://[::1/x", "http://x:y/", "http://" + "x" * 99 + "/"])
def test_a_redirect_to_an_invalid_address_is_one_line(known, model, monkeypatch, target):
    with serving({FILE: model}, [f"redirect {target}"]) as server, pytest.raises(Error, match="can't connect to"):
        pulled(monkeypatch, server)
    gc.collect()  # an open connection would be a warning


def test_a_redirect_from_https_to_http_is_not_followed():
    handler, request = download._SafeRedirects(), Request("https://models.invalid/x")
    assert (
        handler.redirect_request(request, None, 302, "Found", {}, "https://cdn.invalid/x").full_url == "https://cdn.invalid/x"
    )
    with pytest.raises(HTTPError, match=r"insecure redirect to http://cdn\.invalid/x") as caught:
        handler.redirect_request(request, None, 302, "Found", {}, "http://cdn.invalid/x")
    caught.value.close()


@pytest.mark.parametrize("content", [b"", b"short", b"<html>Please log in</html>"])
def test_wrong_bytes_are_not_kept(known, model, tmp_path, monkeypatch, content):
    padded = content.ljust(len(model), b"x")  # of the right length, so that only the hash differs
    for served, why in ((content, "bytes, expected"), (padded, "sha256 .* expected")):
        with serving({FILE: served}) as server, pytest.raises(Error, match=f"not the published file: .*{why}"):
            pulled(monkeypatch, server)
        assert "tiny-7.onnx" not in left(tmp_path)


def test_a_longer_file_is_rejected(known, model, tmp_path, monkeypatch):
    with serving({FILE: model + b"more"}, ["chunked"]) as server, pytest.raises(Error, match="published file: more than"):
        pulled(monkeypatch, server)
    # A file without a published length has limits, too.
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, bytes=None, sha256=None),))
    with serving({FILE: b"<html>log in</html>"}) as server, pytest.raises(Error, match="not the published file: 19 bytes"):
        pulled(monkeypatch, server)
    with serving({FILE: model + bytes(2**21)}, ["chunked"]) as server, pytest.raises(Error, match="published file: more than"):
        pulled(monkeypatch, server)


def test_without_a_published_hash_a_notice_gives_the_hash_and_nothing_is_resumed(known, model, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, bytes=None, sha256=None),))
    part = tmp_path / "home" / "zoo" / ".tiny-7.onnx.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"another version")
    with serving({FILE: model}) as server:
        with pytest.warns(Notice, match=f"no hash of zoo/tiny-7 is published; .* sha256 {hashlib.sha256(model).hexdigest()}"):
            path = pulled(monkeypatch, server)
        assert "Range" not in server.requests[0][1]
    assert path.read_bytes() == model


@pytest.mark.parametrize("digest", [{"sha256": "head"}, {"sha256": None, "md5": "whole"}])
def test_the_first_digits_of_a_hash_or_md5_verify_a_file(known, model, monkeypatch, digest):
    head, md5 = known.sha256[:8], hashlib.md5(model).hexdigest()
    digest = {name: {"head": head, "whole": md5}.get(value) for name, value in digest.items()}
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, **digest),))
    with serving({FILE: bytes(len(model))}) as server, pytest.raises(Error, match="not the published file"):
        pulled(monkeypatch, server)
    with serving({FILE: model}) as server:
        assert pulled(monkeypatch, server).read_bytes() == model


def test_a_damaged_file_in_the_cache_is_replaced(known, model, tmp_path, monkeypatch):
    path = tmp_path / "home" / FILE
    path.parent.mkdir(parents=True)
    for damaged in (model[:-1], b"x" + model[1:], model + b"x"):
        path.write_bytes(damaged)
        with serving({FILE: model}) as server:
            assert pulled(monkeypatch, server).read_bytes() == model


def test_an_invalid_old_part_is_replaced(known, model, tmp_path, monkeypatch):
    part = tmp_path / "home" / "zoo" / ".tiny-7.onnx.part"
    part.parent.mkdir(parents=True)
    for old in (b"wrong", model + b"more", bytes(len(model)), model):
        part.write_bytes(old)
        with serving({FILE: model}) as server:
            path = pulled(monkeypatch, server)
        assert path.read_bytes() == model
        path.unlink()


@pytest.mark.parametrize("form", ["folder", "file://"])
def test_a_mirror_can_be_a_folder(known, model, tmp_path, monkeypatch, form):
    mirror = tmp_path / "a mirror"
    (mirror / "zoo").mkdir(parents=True)
    monkeypatch.setenv("VGG_MIRROR", str(mirror) if form == "folder" else mirror.as_uri())
    with pytest.raises(Error, match="file or folder not found"):
        zoo.pull("tiny-7")
    (mirror / FILE).write_bytes(model)
    assert zoo.pull("tiny-7").read_bytes() == model
    assert left(tmp_path) == ["tiny-7.onnx"]


@pytest.mark.parametrize("mirror", ["ftp://127.0.0.1/", "gopher://x", "://"])
def test_an_invalid_mirror_is_an_error(known, monkeypatch, mirror):
    monkeypatch.setenv("VGG_MIRROR", mirror)
    with pytest.raises(Error, match="invalid mirror; use a folder, or an http://, https:// or file:// address"):
        zoo.pull("tiny-7")


def test_without_a_mirror_the_publisher_is_requested(known, model, monkeypatch):
    with serving({"tiny-7.onnx": model}) as server:
        monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, address=f"{server.address}/tiny-7.onnx"),))
        assert zoo.pull("tiny-7").read_bytes() == model


def test_a_proxy_is_used(known, model, monkeypatch):
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, address="http://models.invalid/tiny-7.onnx"),))
    with serving({"http://models.invalid/tiny-7.onnx": model}) as server:
        monkeypatch.setenv("http_proxy", server.address)
        assert zoo.pull("tiny-7").read_bytes() == model


def test_without_a_network_the_error_lists_cached_models(known, model, tmp_path, monkeypatch):
    other = replace(known, name="zoo/other-7")
    monkeypatch.setattr(zoo, "PUBLISHED", (known, other))
    (tmp_path / "home" / "zoo").mkdir(parents=True)
    (tmp_path / "home" / "zoo" / "other-7.onnx").write_bytes(model)
    expected = (
        "zoo/tiny-7: not downloaded yet, and can't connect to http://127.0.0.1:9/tiny-7.onnx "
        r"\(Connection refused\); available offline: vgg16-gap, zoo/other-7$"
    )
    with pytest.raises(Error, match=expected):
        zoo.pull("tiny-7")


def test_several_processes_can_pull_the_same_file(known, model, tmp_path, monkeypatch):
    code = f"""
import sys, warnings
from dataclasses import replace
from vgg import zoo, Architecture
warnings.simplefilter("ignore")
zoo.PUBLISHED = (zoo.Published("zoo/tiny-7", Architecture(), "zoo", ".onnx", "", {len(model)}, "{known.sha256}"),)
print(zoo.pull("tiny-7"))
"""
    with serving({FILE: model}, ["cut 100000"] * 2) as server:
        environment = {**os.environ, "VGG_HOME": str(tmp_path / "home"), "VGG_MIRROR": server.address}
        started = [
            subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        results = [process.communicate(timeout=60) for process in started]
        assert [process.returncode for process in started] == [0] * 4, results
        assert len(server.requests) == 3  # one process downloads for all
    assert (tmp_path / "home" / FILE).read_bytes() == model
    assert left(tmp_path) == ["tiny-7.onnx"]


def test_several_threads_can_pull_the_same_file(known, model, tmp_path, monkeypatch):
    with serving({FILE: model}, ["cut 100000"]) as server:
        monkeypatch.setenv("VGG_MIRROR", server.address)
        found = []
        threads = [threading.Thread(target=lambda: found.append(zoo.pull("tiny-7").read_bytes())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [model] * 4


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, which requires root on Linux")
def test_a_full_disk_is_one_line(known, model, tmp_path, monkeypatch):
    disk = tmp_path / "home"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted")
    try:
        expected = r"tiny-7: the disk is full: 0.. MB needed in .*, 0.. MB free; set VGG_HOME"
        with serving({FILE: model}) as server, pytest.raises(Error, match=expected):
            pulled(monkeypatch, server)
        monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, bytes=None),))
        with serving({FILE: model}, ["no-length"]) as server, pytest.raises(Error, match=r"the disk is full$"):
            pulled(monkeypatch, server)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_unwritable_folder_is_one_line(known, model, tmp_path, monkeypatch):
    (tmp_path / "home").write_bytes(b"a file")
    with serving({FILE: model}) as server, pytest.raises(Error, match="can't be written: "):
        pulled(monkeypatch, server)


FAULTS = st.one_of(
    st.sampled_from(
        ["well", "no-length", "chunked", "no-ranges", "wrong-range", "garbage", "swap", "loop", "redirect /zoo/tiny-7.onnx"]
    ),
    st.integers(0, 400_000).map("cut {}".format),
    st.integers(-9, 9).map("length {}".format),
    st.sampled_from([204, 206, 301, 400, 404, 416, 429, 500, 503]).map("status {}".format),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FAULTS, max_size=12), st.booleans())
def test_any_sequence_of_faults_gives_the_right_file_or_one_error(known, model, tmp_path, monkeypatch, plan, etag):
    path = tmp_path / "home" / FILE
    path.unlink(missing_ok=True)
    with serving({FILE: model}, plan, etag=etag) as server:
        server.other = {FILE: bytes(byte ^ 1 for byte in model)}
        try:
            pulled(monkeypatch, server)
            failure = ""
        except Error as error:
            failure = str(error)
    assert "\n" not in failure
    assert path.exists() == (not failure)
    assert failure or path.read_bytes() == model
