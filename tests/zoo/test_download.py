"""Downloads from a real server on loopback that does everything wrong that a server can do."""

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
    """What lies in the cache, but for the lock of a failed attempt."""
    return sorted(path.name for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".lock")


def test_a_file_comes_whole_and_is_then_there(known, model, tmp_path, monkeypatch):
    with serving({FILE: model}) as server:
        path = pulled(monkeypatch, server)
        assert path == tmp_path / "home" / FILE
        assert path.read_bytes() == model
        assert pulled(monkeypatch, server) == path
        assert len(server.requests) == 1
    assert left(tmp_path) == ["tiny-7.onnx"]
    assert zoo.pull("tiny-7") == path  # without a server


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
def test_what_a_server_does_wrong_is_mended(known, model, tmp_path, monkeypatch, plan, requests):
    with serving({FILE: model}, plan) as server:
        assert pulled(monkeypatch, server).read_bytes() == model
        assert len(server.requests) == requests
    assert left(tmp_path) == ["tiny-7.onnx"]


def test_only_what_is_missing_is_asked_for(known, model, monkeypatch):
    with serving({FILE: model}, ["cut 1000", "cut 1000"]) as server:
        pulled(monkeypatch, server)
        assert [headers.get("Range") for _, headers in server.requests] == [None, "bytes=1000-", "bytes=2000-"]
        assert all("If-Range" in headers for _, headers in server.requests[1:])


def test_the_next_call_goes_on_where_the_last_ended(known, model, tmp_path, monkeypatch):
    with serving({FILE: model}, ["cut 100000", *["cut 0"] * 4]) as server:
        with pytest.raises(Error, match=r"the connection was cut after 100,000 of .* bytes; what came is kept") as caught:
            pulled(monkeypatch, server)
        assert "\n" not in str(caught.value)
        assert left(tmp_path) == [".tiny-7.onnx.part"]
        assert pulled(monkeypatch, server).read_bytes() == model
        assert server.requests[-1][1]["Range"] == "bytes=100000-"
    assert left(tmp_path) == ["tiny-7.onnx"]


@pytest.mark.parametrize("etag", [True, False])
def test_a_file_that_changes_between_two_ranges_is_never_mixed(known, model, tmp_path, monkeypatch, etag):
    other = bytes(byte ^ 1 for byte in model)
    # The right file replaces another one: it comes whole, by its ETag, or since the hash didn't fit.
    with serving({FILE: other}, ["cut 100000", "swap"], etag=etag) as server:
        server.other = {FILE: model}
        assert pulled(monkeypatch, server).read_bytes() == model
        assert len(server.requests) == (2 if etag else 3)
    # Another file replaces the right one: there is no right one any more.
    (tmp_path / "home" / FILE).unlink()
    with serving({FILE: model}, ["cut 100000", "swap"], etag=etag) as server:
        server.other = {FILE: other}
        with pytest.raises(Error, match=r"is not the file that was published: sha256 .*; it was not kept"):
            pulled(monkeypatch, server)
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (["length 5"], "is not the file that was published: [0-9,]+ bytes, not [0-9,]+$"),
        (["length -5"], "is not the file that was published: [0-9,]+ bytes, not [0-9,]+$"),
        (["cut 1000", "length 5"], "is not the file that was published"),
        (["status 404"], "the server answers 404 Not Found$"),
        (["status 403"], "the server answers 403 Forbidden$"),
        (["loop"] * 30, "the server answers 302 .*infinite loop"),
        (["redirect ftp://127.0.0.1/x"], "127.0.0.1"),
        (["redirect file:///etc/passwd"], "is not allowed"),
        (["status 503"] * 9, "the server answers 503"),
        (["garbage"] * 9, "this is no HTTP"),
        (["hang"] * 9, "nothing came for"),
        (["cut 10", *["cut 0"] * 9], "the connection was cut after 10 of"),
    ],
)
def test_what_can_not_be_mended_is_one_line(known, model, tmp_path, monkeypatch, plan, message):
    with serving({FILE: model}, plan) as server, pytest.raises(Error, match=message) as caught:
        pulled(monkeypatch, server)
    assert "\n" not in str(caught.value)
    assert left(tmp_path) in ([".tiny-7.onnx.part"], [])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # urllib leaves the answer open
@pytest.mark.parametrize("target", ["http://[::1/x", "http://x:y/", "http://" + "x" * 99 + "/"])
def test_a_redirect_to_no_address_is_one_line(known, model, monkeypatch, target):
    with serving({FILE: model}, [f"redirect {target}"]) as server, pytest.raises(Error, match="there is no connection to"):
        pulled(monkeypatch, server)


def test_a_redirect_from_https_to_http_is_not_followed():
    handler, request = download._SafeRedirects(), Request("https://models.invalid/x")
    assert (
        handler.redirect_request(request, None, 302, "Found", {}, "https://cdn.invalid/x").full_url == "https://cdn.invalid/x"
    )
    with pytest.raises(HTTPError, match=r"redirects to http://cdn\.invalid/x, which is not safe") as caught:
        handler.redirect_request(request, None, 302, "Found", {}, "http://cdn.invalid/x")
    caught.value.close()


@pytest.mark.parametrize("content", [b"", b"short", b"<html>Please log in</html>"])
def test_wrong_bytes_are_not_kept(known, model, tmp_path, monkeypatch, content):
    padded = content.ljust(len(model), b"x")  # of the right length, so that only the hash tells
    for served, why in ((content, "bytes, not"), (padded, "sha256 .* not")):
        with serving({FILE: served}) as server, pytest.raises(Error, match=f"is not the file that was published: .*{why}"):
            pulled(monkeypatch, server)
        assert "tiny-7.onnx" not in left(tmp_path)


def test_more_than_there_should_be_is_not_taken(known, model, tmp_path, monkeypatch):
    with serving({FILE: model + b"more"}, ["chunked"]) as server, pytest.raises(Error, match="published: more than"):
        pulled(monkeypatch, server)
    # A file whose length nobody says has an end all the same.
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, bytes=None, sha256=None),))
    with serving({FILE: model + bytes(2**21)}, ["chunked"]) as server, pytest.raises(Error, match="published: more than"):
        pulled(monkeypatch, server)


def test_without_a_published_hash_the_hash_is_said_and_nothing_is_resumed(known, model, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, bytes=None, sha256=None),))
    part = tmp_path / "home" / "zoo" / ".tiny-7.onnx.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"another version")
    with serving({FILE: model}) as server:
        with pytest.warns(Notice, match=f"nobody publishes a hash .* is {hashlib.sha256(model).hexdigest()}"):
            path = pulled(monkeypatch, server)
        assert "Range" not in server.requests[0][1]
    assert path.read_bytes() == model


@pytest.mark.parametrize("digest", [{"sha256": "head"}, {"sha256": None, "md5": "whole"}])
def test_the_head_of_a_hash_and_md5_do_as_well(known, model, monkeypatch, digest):
    head, md5 = known.sha256[:8], hashlib.md5(model).hexdigest()
    digest = {name: {"head": head, "whole": md5}.get(value) for name, value in digest.items()}
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, **digest),))
    with serving({FILE: bytes(len(model))}) as server, pytest.raises(Error, match="is not the file"):
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


def test_an_old_part_that_is_wrong_or_too_long_does_no_harm(known, model, tmp_path, monkeypatch):
    part = tmp_path / "home" / "zoo" / ".tiny-7.onnx.part"
    part.parent.mkdir(parents=True)
    for old in (b"wrong", model + b"more", bytes(len(model)), model):
        part.write_bytes(old)
        with serving({FILE: model}) as server:
            path = pulled(monkeypatch, server)
        assert path.read_bytes() == model
        path.unlink()


@pytest.mark.parametrize("form", ["folder", "file://"])
def test_a_folder_is_a_mirror_and_so_is_somebodys_cache(known, model, tmp_path, monkeypatch, form):
    mirror = tmp_path / "a mirror"
    (mirror / "zoo").mkdir(parents=True)
    monkeypatch.setenv("VGG_MIRROR", str(mirror) if form == "folder" else mirror.as_uri())
    with pytest.raises(Error, match="file or folder not found"):
        zoo.pull("tiny-7")
    (mirror / FILE).write_bytes(model)
    assert zoo.pull("tiny-7").read_bytes() == model
    assert left(tmp_path) == ["tiny-7.onnx"]


@pytest.mark.parametrize("mirror", ["ftp://127.0.0.1/", "gopher://x", "://"])
def test_a_mirror_is_a_folder_or_the_web(known, monkeypatch, mirror):
    monkeypatch.setenv("VGG_MIRROR", mirror)
    with pytest.raises(Error, match="a mirror is a folder, or an address of http://, https:// or file://"):
        zoo.pull("tiny-7")


def test_the_publishers_address_is_asked_without_a_mirror(known, model, monkeypatch):
    with serving({"tiny-7.onnx": model}) as server:
        monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, address=f"{server.address}/tiny-7.onnx"),))
        assert zoo.pull("tiny-7").read_bytes() == model


def test_a_proxy_is_used(known, model, monkeypatch):
    monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, address="http://models.invalid/tiny-7.onnx"),))
    with serving({"http://models.invalid/tiny-7.onnx": model}) as server:
        monkeypatch.setenv("http_proxy", server.address)
        assert zoo.pull("tiny-7").read_bytes() == model


def test_without_a_network_it_says_so_and_what_is_here(known, model, tmp_path, monkeypatch):
    other = replace(known, name="zoo/other-7")
    monkeypatch.setattr(zoo, "PUBLISHED", (known, other))
    (tmp_path / "home" / "zoo").mkdir(parents=True)
    (tmp_path / "home" / "zoo" / "other-7.onnx").write_bytes(model)
    expected = (
        "zoo/tiny-7 is not on this machine, and there is no connection to http://127.0.0.1:9/tiny-7.onnx "
        r"\(Connection refused\); here there is vgg16-gap, zoo/other-7$"
    )
    with pytest.raises(Error, match=expected):
        zoo.pull("tiny-7")


def test_two_processes_may_pull_the_same_file(known, model, tmp_path, monkeypatch):
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
        assert len(server.requests) == 3  # what one brings, all have
    assert (tmp_path / "home" / FILE).read_bytes() == model
    assert left(tmp_path) == ["tiny-7.onnx"]


def test_threads_may_pull_the_same_file(known, model, tmp_path, monkeypatch):
    with serving({FILE: model}, ["cut 100000"]) as server:
        monkeypatch.setenv("VGG_MIRROR", server.address)
        found = []
        threads = [threading.Thread(target=lambda: found.append(zoo.pull("tiny-7").read_bytes())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [model] * 4


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small disk, which takes root on Linux")
def test_a_full_disk_is_one_line(known, model, tmp_path, monkeypatch):
    disk = tmp_path / "home"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("may not mount a small disk")
    try:
        expected = r"tiny-7: the disk is full: 0.. MB more are needed in .*, 0.. are free; VGG_HOME"
        with serving({FILE: model}) as server, pytest.raises(Error, match=expected):
            pulled(monkeypatch, server)
        monkeypatch.setattr(zoo, "PUBLISHED", (replace(known, bytes=None),))
        with serving({FILE: model}, ["no-length"]) as server, pytest.raises(Error, match=r"the disk is full$"):
            pulled(monkeypatch, server)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_can_not_be_written_is_one_line(known, model, tmp_path, monkeypatch):
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


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(FAULTS, max_size=12), st.booleans())
def test_whatever_a_server_does_the_file_is_right_or_there_is_one_error(known, model, tmp_path, monkeypatch, plan, etag):
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
