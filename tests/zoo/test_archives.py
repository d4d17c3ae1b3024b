"""Published files in a zip file at their address, as osmr's and GluonCV's. The hash is that of the file, not of the archive."""

import hashlib
import io
import zipfile
from dataclasses import replace

import pytest

from loopback import serving
from vgg import Error, zoo

MEMBER = "tiny-0123-4567.onnx"


def packed(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.fixture
def row(known, model, monkeypatch):
    """Publish the file in an archive, with its SHA-1."""

    def publish(address: str, **changes: object) -> None:
        row = replace(
            known, address=address, bytes=None, sha256=None, sha1=hashlib.sha1(model).hexdigest(), member=MEMBER, **changes
        )
        monkeypatch.setattr(zoo, "PUBLISHED", (row,))

    return publish


def cached(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "home").rglob("*") if path.is_file() and path.suffix != ".lock")


@pytest.mark.parametrize("plan", [[], ["cut 1000"], ["cut 1000", "no-ranges"]])
def test_the_file_is_taken_out_of_the_archive(row, model, tmp_path, plan):
    with serving({"a.zip": packed(**{"README": b"text", MEMBER: model})}, plan) as server:
        row(f"{server.address}/a.zip")
        path = zoo.pull("tiny-7")
        assert path == tmp_path / "home/zoo/tiny-7.onnx"
        assert path.read_bytes() == model
        count = len(server.requests)
        assert zoo.pull("tiny-7") == path
        assert len(server.requests) == count
    assert cached(tmp_path) == ["tiny-7.onnx"]
    known = zoo.recognise(path, hashlib.sha256(model).hexdigest())
    assert known
    assert known.name == "zoo/tiny-7"


def test_a_mirror_has_the_file_itself(row, model, tmp_path, monkeypatch):
    row("http://127.0.0.1:9/a.zip")
    with serving({"zoo/tiny-7.onnx": model}) as server:
        monkeypatch.setenv("VGG_MIRROR", server.address)
        assert zoo.pull("tiny-7").read_bytes() == model


@pytest.mark.parametrize(
    "archive",
    [
        packed(**{MEMBER: b"another file"}),
        packed(**{"other.onnx": b"x" * 1000}),
        packed(**{MEMBER: bytes(2**27)}),  # more than such a network has
        packed(**{MEMBER: b"0123456789" * 1000})[:-30],
        packed(**{MEMBER: bytes(range(256)) * 100}).replace(b"\x01\x02\x03", b"\xff\xff\xff"),
        b"no archive",
    ],
)
def test_what_is_not_the_published_file_is_deleted(row, tmp_path, archive):
    with serving({"a.zip": archive}) as server:
        row(f"{server.address}/a.zip")
        with pytest.raises(Error, match=r"a\.zip: not the published file: sha1 [0-9a-f]{40}, expected [0-9a-f]{40}; deleted"):
            zoo.pull("tiny-7")
    assert cached(tmp_path) == []


def test_a_file_of_an_impossible_size_is_not_hashed(row, tmp_path, monkeypatch):
    row("http://127.0.0.1:9/a.zip")
    monkeypatch.setattr(zoo, "digest", lambda *_: pytest.fail("hashed"))
    for size in (1000, 10**7):
        (tmp_path / "n.bin").write_bytes(bytes(size))
        assert zoo.recognise(tmp_path / "n.bin", "") is None
