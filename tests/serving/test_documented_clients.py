"""The examples for clients in docs/serving.md run, and print predictions of the library."""

import re
import shutil
import subprocess
import sys

import pytest

import vgg
from conftest import EXAMPLES, ROOT, random_network
from serving_helpers import serving

pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
TEXT = (ROOT / "docs/serving.md").read_text()
SECTION = TEXT[TEXT.index("\n## Clients") : TEXT.index("\n## Capacity")]


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    shutil.copy(EXAMPLES / "rocket.jpg", folder / "cat.jpg")
    network = random_network(labels=vgg.labels.imagenet(), classes=1000, input_size=224, width=1 / 32, head="gap")
    network.write(folder / "vgg16-gap.onnx")
    with serving("-m", folder / "vgg16-gap.onnx") as server:
        server.folder = folder
        yield server


def run(running, command: list[str], code: str) -> str:
    code = code.replace("127.0.0.1:8080", running.address.removeprefix("http://"))
    done = subprocess.run([*command, code], cwd=running.folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands_work(running):
    [block] = re.findall(r"```console\n(.*?)```", SECTION, re.DOTALL)
    printed = run(running, ["bash", "-c"], "\n".join(line.removeprefix("$ ") for line in block.splitlines()))
    assert printed.startswith('{"predictions":[[')
    assert '"serving_default"' in printed


def test_the_code_prints_the_librarys_predictions(running):
    version_1, encoded, preprocessed = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    expected = [one.label for one in vgg.load(running.folder / "vgg16-gap.onnx").classify(running.folder / "cat.jpg")]
    assert run(running, [sys.executable, "-c"], version_1).startswith(expected[0] + " ")
    printed = run(running, [sys.executable, "-c"], encoded + preprocessed).splitlines()
    assert [line.split(":")[2] for line in printed[:5]] == expected
    assert printed[5:] == ["(1, 1000)"]
