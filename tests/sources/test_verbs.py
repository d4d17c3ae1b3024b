"""Verbs with images at URLs, as a user runs them."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from conftest import random_network
from loopback import serving
from miniature import jpeg, pack
from vgg import Labels
from vgg.preprocessing import PRESETS

SHARD = pack({f"{n}.{suffix}": content for n in range(7) for suffix, content in (("jpg", jpeg(n)), ("cls", str(n).encode()))})
FILES = {"a.jpg": jpeg(0), "0.tar": SHARD, "list.txt": b"a.jpg 1\n"}


TINY = ["--arch", "vgg11", "--width", "0.1", "--input-size", "32", "--epochs", "1", "--batch-size", "2"]


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (["classify", "{}/a.jpg", "{}/0.tar", "{}/list.txt", "-m", "tiny.onnx"], ""),
        (["features", "{}/0.tar", "-m", "tiny.onnx", "-o", "out.npz"], "out.npz"),
        (["explain", "{}/a.jpg", "-m", "tiny.onnx", "-o", "out.png"], "out.png"),
        (["sample", "make", "tiny.onnx", "{}/list.txt", "-o", "out.tar.gz"], "out.tar.gz"),
        (["quantize", "tiny.onnx", "-o", "out.onnx", "--evaluate", "{}/0.tar"], "out.onnx"),
        (["train", "{}/0.tar", "-o", "out", *TINY], "out/model.onnx"),
    ],
)
def test_images_may_be_at_urls(tmp_path, arguments, output):
    recipe = replace(PRESETS["torchvision"], size=36, crop=32)
    replace(random_network(labels=Labels(tuple("abcdefg"))), preprocessing=recipe).write(tmp_path / "tiny.onnx")
    environment = {**os.environ, "VGG_HOME": str(tmp_path / "cache")}
    with serving(FILES) as server:
        command = [sys.executable, "-m", "vgg", *(one.format(server.address) for one in arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / output).exists()
    if arguments[0] == "classify":
        names = [line.removeprefix(server.address) for line in done.stdout.splitlines() if not line.startswith(" ")]
        assert names == ["/a.jpg", *(f"/0.tar/{n}.jpg" for n in range(7)), "/a.jpg"]


def test_explain_takes_a_single_image(tmp_path):
    (tmp_path / "0.tar").write_bytes(SHARD)
    command = [sys.executable, "-m", "vgg", "explain", "0.tar", "-o", "out.png"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "vgg: 0.tar: has 7 images; choose one\n")
