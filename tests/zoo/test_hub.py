"""hf:// addresses, by the real huggingface_hub against a server on loopback that speaks the Hub's API."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from conftest import EXAMPLES, FIXTURES, random_network
from reference import timm_state, torchvision_like
from vgg import Error, Labels, zoo

LOCATE = """
import sys, warnings
from vgg import Error, zoo
warnings.simplefilter("ignore")
for address in sys.argv[1:]:
    reports = []
    try:
        print(zoo.locate(address, lambda *report: reports.append(report)), len(reports))
    except Error as error:
        print(error)
"""


class Evil:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


class Hub(BaseHTTPRequestHandler):
    """The Hub's API for models: the files of a revision, and each file with the headers that its client uses."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.respond()

    def do_GET(self):
        self.respond()

    def respond(self):
        path = self.path.partition("?")[0]
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?|/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        repository, revision, file = found[1] or found[3], found[2] or found[4] or "main", found[5]
        if repository.endswith("/gated"):
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        if repository.endswith("/broken"):
            return self.send(418, b"{}", {})
        if repository not in self.server.repositories:
            return self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        files = self.server.repositories[repository]
        if revision not in ("main", "v1%2Fa", self.server.commit):
            return self.send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if file is None:
            found = {"id": repository, "sha": self.server.commit, "siblings": [{"rfilename": one} for one in files]}
            return self.send(200, json.dumps(found).encode(), {})
        content = files[file]
        headers = {"X-Repo-Commit": self.server.commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        return self.send(200, content, headers)

    def send(self, status, content, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


@contextmanager
def serving(repositories):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.commit = repositories, "a" * 40
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory):
    """Repositories by name, each a dictionary of files."""
    folder = tmp_path_factory.mktemp("hub")
    network = random_network(labels=Labels(tuple("abcdefg")))
    contents = {}
    for name in ("model.onnx", "model.safetensors", "model.pth"):
        network.write(folder / name)
        contents[name] = (folder / name).read_bytes()
    safetensors = pytest.importorskip("safetensors.torch")
    state = timm_state(torchvision_like("vgg11", 1 / 16, 3, 32))
    safetensors.save_file(state, folder / "timm.safetensors")
    torch.save({"weights": state, "evil": Evil(folder / "ran")}, folder / "evil.bin")
    return {
        "me/several": {"README.md": b"# Model", "best/model.safetensors": b"", **contents},
        "me/timm": {
            "config.json": (FIXTURES / "timm-config.json").read_bytes(),
            "model.safetensors": (folder / "timm.safetensors").read_bytes(),
        },
        "me/data": {"net.onnx": contents["model.onnx"], "net.onnx.data": b"", "net.txt": b""},
        "me/two": {"a.onnx": b"", "b.onnx": b""},
        "me/none": {"README.md": b"", "tokenizer.json": b"{}"},
        "me/evil": {"pytorch_model.bin": (folder / "evil.bin").read_bytes()},
    }


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def run(repositories, home):
    """Run a command of Python with the Hub at the server, and an empty cache."""

    def command(*arguments, endpoint):
        environment = {
            **{name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")},
            "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=120)

    with serving(repositories) as endpoint:
        yield lambda *arguments, endpoint=endpoint: command(*arguments, endpoint=endpoint)


def located(run, *addresses, **options):
    done = run("-c", LOCATE, *addresses, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_an_address_is_a_file_in_the_cache_or_an_error_of_one_line(run, home, repositories):
    expected = {
        "hf://me/several": "several/model.safetensors",
        "hf:/me/several/model.onnx": "several/model.onnx",  # as a Path writes it
        "hf://me/several@v1%2Fa/model.pth": "several/model.pth",
        "hf://me/data": "data/net.onnx",
        "hf://me": "invalid address; use hf://owner/name",
        "hf://me/two": "several model files: a.onnx, b.onnx; add one of them",
        "hf://me/none": "no model file found; the repository has README.md, tokenizer.json",
        "hf://me/several/x.onnx": "file not found; the repository has README.md, best/model.safetensors, model.onnx",
        "hf://me/several@v2": "the repository has no revision 'v2'",
        "hf://me/missing": "repository not found, or private",
        "hf://me/gated": "access is restricted; accept the terms",
        "hf://me/broken": "not downloaded yet, and the Hub responded 418",
        "hf://m--e/several": "invalid name of a repository",
    }
    lines = located(run, *expected)
    for (address, text), line in zip(expected.items(), lines, strict=True):
        if text.startswith(("several/", "data/")):
            path, reports = line.rsplit(" ", 1)
            repository, file = text.split("/")
            assert path.endswith(f"models--me--{repository}/snapshots/{'a' * 40}/{file}")
            with open(path, "rb") as opened:
                assert opened.read() == repositories[f"me/{repository}"][file]
            assert int(reports) > 0
        else:
            assert line.startswith(f"{address}: {text}")
    external = home / "hub/models--me--data/snapshots" / ("a" * 40)
    assert sorted(path.name for path in external.iterdir()) == ["net.onnx", "net.onnx.data"]


def test_without_a_connection_the_cached_files_are_used(run):
    located(run, "hf://me/several", "hf://me/several/model.onnx")
    closed = "http://127.0.0.1:9"
    addresses = "hf://me/several", "hf://me/several/model.onnx", "hf://me/elsewhere", "hf://me/several/data.txt"
    first, second, third, other = located(run, *addresses, endpoint=closed)
    assert first.split()[0].endswith("model.safetensors")
    assert second.split()[0].endswith("model.onnx")
    assert third.startswith("hf://me/elsewhere: not downloaded yet, and the Hub can't be reached (")
    assert other.startswith("hf://me/several/data.txt: not downloaded yet, and the Hub can't be reached (")


def test_classify_takes_preprocessing_and_labels_from_timms_description(run):
    done = run("-m", "vgg", "classify", "-m", "hf://me/timm", "--format", "json", str(EXAMPLES / "chelsea.png"))
    assert done.returncode == 0, done.stderr
    assert {one["label"] for one in json.loads(done.stdout)[0]["predictions"]} == {"cat", "dog", "ferret"}
    assert "using" not in done.stderr  # of an assumption
    done = run("-m", "vgg", "inspect", "hf://me/timm", "--format", "json")
    preprocessing = json.loads(done.stdout)["preprocessing"]
    assert (preprocessing["crop"], preprocessing["size"], preprocessing["mean"]) == (32, 36, [0.5, 0.5, 0.5])


def test_no_code_in_a_pickle_is_run(run, repositories, tmp_path):
    done = run("-m", "vgg", "inspect", "hf://me/evil")
    assert "vgg11" in done.stdout
    content = repositories["me/evil"]["pytorch_model.bin"]
    (tmp_path / "evil.bin").write_bytes(content)
    made = Path(re.search(rb"/[\w./-]+/ran", zipfile.ZipFile(tmp_path / "evil.bin").read("evil/data.pkl"))[0].decode())
    assert made.parent.is_dir()
    assert not made.exists()
    torch.load(tmp_path / "evil.bin", weights_only=False)
    assert made.exists()


def test_the_package_is_named_if_it_is_missing(monkeypatch):
    monkeypatch.setattr("vgg.extras.is_installed", lambda package: package != "huggingface_hub")
    with pytest.raises(Error, match=r"hf:// requires huggingface_hub; install with `pip install 'vgg\[hub\]'`"):
        zoo.locate("hf://me/model")
