"""The table of published models, and the way from a name to a file and a classifier."""

import csv
import hashlib
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

import vgg
from conftest import EXAMPLES, random_network, read_terminal
from loopback import serving
from vgg import Error, Labels, Notice, zoo
from vgg.files import cache_folder
from vgg.preprocessing import PRESETS

FILE = "zoo/tiny-7.onnx"


def test_rows_of_the_onnx_model_zoo_match_its_manifest(shared):
    manifest = json.loads((shared / "reference" / "zoo_manifest_vgg.json").read_text())
    rows = {known.name: known for known in zoo.list() if known.name.startswith("zoo/")}
    assert len(rows) == len(manifest) == 12
    for entry in manifest:
        metadata = entry["metadata"]
        known = rows["zoo/" + entry["model_path"].rpartition("/")[2].removesuffix(".onnx")]
        assert known.address.endswith(entry["model_path"])
        assert (known.bytes, known.sha256) == (metadata["model_bytes"], metadata["model_sha"])
        assert (known.data_bytes, known.data_sha256) == (metadata["model_with_data_bytes"], metadata["model_with_data_sha"])
        assert (known.onnx, known.opset) == (entry["onnx_version"], entry["opset_version"])


def test_every_row_is_complete():
    rows = zoo.list()
    assert len(rows) == 12 + 8 + 8 + 2 + 8 + 8 + 4 * 12
    assert len({known.name for known in rows}) == len({known.file for known in rows}) == len({known.address for known in rows})
    for known in rows:
        publisher, name = known.name.split("/")
        assert name.removeprefix("bn-").startswith(known.architecture.name.split("-")[0])
        assert ("bn" in name) == known.architecture.configuration.batch_norm
        assert known.preset in PRESETS
        assert known.address.startswith("https://")
        assert known.licence in ("Apache-2.0", "BSD-3-Clause", "CC-BY-4.0", "MIT")
        prefix = publisher in ("torchvision", "mmpretrain")  # the hash's first digits, in the name of the file
        assert all(len(whole) == 64 for whole in (known.sha256, known.data_sha256) if whole and not prefix)
        if prefix:
            assert f"-{known.sha256}.pth" in known.address
        assert bool(known.sha1) == bool(known.member) == known.address.endswith(".zip")
        if known.sha1:
            assert len(known.sha1) == 40
            assert f"-{known.sha1[:8]}." in known.member
            assert known.member.split(".")[0] in known.address
        if known.bytes and "int8" not in name and "qdq" not in name:
            assert 0 < known.bytes - 4 * known.architecture.parameter_count < 2**20


def test_the_most_accurate_networks_are_published_with_their_accuracy():
    facts = {known.name: (known.architecture.name, known.preset, known.top1, known.top5) for known in zoo.list()}
    assert facts["gluoncv2/bn-vgg19"] == ("vgg19-bn", "gluon", 76.09, 93.11)
    assert facts["pytorchcv/bn-vgg19"] == ("vgg19-bn", "torchvision", 75.87, 92.88)
    assert facts["tf2cv/bn-vgg19b"] == ("vgg19-bn", "gluon", 75.14, 92.67)
    assert facts["mmpretrain/vgg19-bn"] == ("vgg19-bn", "torchvision", 74.68, 92.27)
    assert facts["gluoncv/vgg16"] == ("vgg16", "gluon", 73.23, 91.31)
    assert zoo.info("tf2cv/bn-vgg19").file == "tf2cv/bn-vgg19.h5"
    assert zoo.info("kerascv/vgg11").address.endswith("/v0.0.381/vgg11-1016-c6bc31d0.h5.zip")


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("vgg16", "zoo/vgg16-12"),
        ("vgg16-bn", "zoo/vgg16-bn-7"),
        ("vgg16_bn", "zoo/vgg16-bn-7"),
        ("vgg19", "zoo/vgg19-7"),
        ("vgg19-caffe2", "zoo/vgg19-caffe2-9"),
        ("vgg16-12-int8", "zoo/vgg16-12-int8"),
        ("zoo/vgg19-caffe2-3", "zoo/vgg19-caffe2-3"),
        ("vgg11", "torchvision/vgg11"),
        ("vgg13_bn", "torchvision/vgg13-bn"),
        ("torchvision/vgg16", "torchvision/vgg16"),
        ("torchvision/vgg16_bn", "torchvision/vgg16-bn"),
        ("timm/vgg16_bn.tv_in1k", "timm/vgg16_bn.tv_in1k"),
        ("keras/vgg19", "keras/vgg19"),
        ("pytorchcv/bn_vgg19b", "pytorchcv/bn-vgg19b"),
        ("mmpretrain/vgg19_bn", "mmpretrain/vgg19-bn"),
    ],
)
def test_a_short_name_has_one_meaning(name, meaning):
    assert zoo.info(name).name == meaning
    assert zoo.info(meaning).name == meaning


def test_an_unknown_name_is_one_line():
    with pytest.raises(Error, match="unknown published model 'vgg19-cafe2'; did you mean vgg19-caffe2"):
        zoo.info("vgg19-cafe2")
    with pytest.raises(Error, match="resnet50: file not found; unknown published model 'resnet50'; `vgg"):
        vgg.load("resnet50")


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("VGG_HOME", "~/models")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "models"
    monkeypatch.setenv("VGG_HOME", "")
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert cache_folder() == tmp_path / "cache" / "vgg"


@pytest.fixture
def classes(known, tmp_path, monkeypatch):
    """The bytes of a published network for images."""
    random_network(labels=Labels(tuple("abcdefg")), input_size=224, width=1 / 32).write(tmp_path / "n.onnx")
    content = (tmp_path / "n.onnx").read_bytes()
    row = replace(known, bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(zoo, "PUBLISHED", (row,))
    return content


def test_load_downloads_once_and_then_works_offline(classes, monkeypatch):
    with serving({FILE: classes}, ["cut 1000"]) as server:
        monkeypatch.setenv("VGG_MIRROR", server.address)
        with pytest.warns(Notice, match="downloading zoo/tiny-7 from http://127.0.0.1:"):
            first = vgg.load("tiny-7").classify(EXAMPLES / "coffee.png")
        assert len(server.requests) == 2
    assert vgg.load("zoo/tiny-7").classify(EXAMPLES / "coffee.png") == first
    assert zoo.cached(zoo.info("tiny-7"))
    (known,) = zoo.list()
    (cache_folder() / known.file).write_bytes(classes[:-1])
    assert zoo.cached(known) is None


def test_a_file_has_priority_over_a_published_name_and_a_folder_has_not(classes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny-7").mkdir()
    assert zoo.EMBEDDED_FILE == zoo.locate(None) == zoo.locate("vgg16-gap")
    with pytest.raises(Error, match="tiny-7: not downloaded yet, and"):
        zoo.locate("tiny-7")
    (tmp_path / "tiny-7").rmdir()
    (tmp_path / "tiny-7").write_bytes(classes)
    assert vgg.load("tiny-7").network.architecture.name == "vgg11"


@pytest.mark.parametrize("digest", ["sha256", "head", "md5", "sha1"])
def test_a_file_is_recognised_by_hash_and_size(known, model, tmp_path, monkeypatch, digest):
    (tmp_path / "any.bin").write_bytes(model)
    sha256, md5 = known.sha256, hashlib.md5(model).hexdigest()
    sha1 = hashlib.sha1(model).hexdigest()
    hashes = {
        "sha256": {"sha256": sha256},
        "head": {"sha256": sha256[:8]},
        "md5": {"sha256": None, "md5": md5},
        "sha1": {"sha256": None, "sha1": sha1},
    }[digest]
    row = replace(known, **hashes)
    unknown = replace(known, sha256=None)
    for one, fits in ((row, True), (replace(row, bytes=None), True), (replace(row, bytes=1), False), (unknown, False)):
        monkeypatch.setattr(zoo, "PUBLISHED", (one,))
        assert zoo.recognise(tmp_path / "any.bin", sha256) == (one if fits else None)


def test_the_embedded_network_needs_no_download():
    assert zoo.pull("vgg16-gap") == zoo.EMBEDDED_FILE


MAIN = """
import sys
from vgg import zoo, Architecture
zoo.PUBLISHED = tuple(
    zoo.Published(f"zoo/{name}", Architecture(), "zoo", "http://127.0.0.1:9/x.onnx", "", LENGTH, "HASH")
    for name in ("tiny-7", "tiny-8")
)
from vgg.cli import main
main()
"""


@pytest.fixture
def command(model, tmp_path):
    """The command line with two published models of its own, as a process."""
    code = MAIN.replace("LENGTH", str(len(model))).replace("HASH", hashlib.sha256(model).hexdigest())

    def command(*arguments, mirror, start=subprocess.run, **options):
        environment = {**os.environ, "VGG_HOME": str(tmp_path / "home"), "VGG_MIRROR": mirror, "TERM": "xterm"}
        return start([sys.executable, "-c", code, *arguments], env=environment, **options)

    return command


def test_pull_prints_paths(command, model, tmp_path):
    files = {FILE: model, "zoo/tiny-8.onnx": model}
    with serving(files, ["cut 100", "redirect /zoo/tiny-7.onnx"]) as server:
        result = command("pull", "tiny-7", "tiny-8", mirror=server.address, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [str(tmp_path / "home" / name) for name in files]
    listed = command("models", "--format", "csv", mirror="", capture_output=True, text=True).stdout
    here = {row["model"]: row["path"] for row in csv.DictReader(io.StringIO(listed))}
    assert [here[name] for name in ("zoo/tiny-7", "zoo/tiny-8")] == result.stdout.splitlines()
    offline = command("pull", "tiny-8", mirror="http://127.0.0.1:9", capture_output=True, text=True)
    assert (offline.returncode, offline.stdout) == (0, result.stdout.splitlines()[1] + "\n")


def test_pull_without_a_network_is_one_line_and_exit_1(command):
    result = command("pull", "tiny-7", mirror="http://127.0.0.1:9", capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == (
        "vgg: zoo/tiny-7: not downloaded yet, and can't connect to http://127.0.0.1:9/zoo/tiny-7.onnx "
        "(Connection refused); available offline: vgg16-gap\n"
    )


def test_progress_is_shown_on_a_terminal_only(command, model, tmp_path):
    ours, theirs = pty.openpty()
    with serving({FILE: model}, ["cut 100000"]) as server:
        process = command(
            "pull", "tiny-7", mirror=server.address, start=subprocess.Popen, stdout=subprocess.PIPE, stderr=theirs
        )
        os.close(theirs)
        shown = read_terminal(ours)
        output, _ = process.communicate()
    assert output.decode() == f"{tmp_path / 'home' / FILE}\n"
    assert b"zoo/tiny-7" in shown


def test_an_interrupted_download_resumes(command, model, tmp_path):
    with serving({FILE: model}, ["cut 100000", "hang"]) as server:
        process = command("pull", "tiny-7", mirror=server.address, start=subprocess.Popen, stderr=subprocess.PIPE)
        until = time.monotonic() + 30
        while len(server.requests) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
        assert (tmp_path / "home/zoo/.tiny-7.onnx.part").stat().st_size == 100_000
        result = command("pull", "tiny-7", mirror=server.address, capture_output=True)
        assert result.returncode == 0
        assert server.requests[-1][1]["Range"] == "bytes=100000-"
