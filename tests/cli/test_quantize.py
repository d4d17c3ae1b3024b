"""`vgg quantize` as a user runs it."""

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import random_network, read_terminal
from vgg import Labels, Network, Quantized

VGG = [sys.executable, "-m", "vgg"]
LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("quantize")
    one = random_network("vgg11", width=1 / 8, labels=LABELS)
    replace(one, preprocessing=replace(one.preprocessing, crop=32, size=36)).write(root / "n.onnx")
    rng = np.random.default_rng(0)
    for index in range(14):
        folder = root / "data" / LABELS.names[index % 7]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{index}.png")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "a.png").write_bytes(b"no image")
    return root


def vgg(place, *arguments, code=0, home="home"):
    environment = {**os.environ, "VGG_HOME": str(place / home)}
    done = subprocess.run(
        [*VGG, "quantize", *map(str, arguments)], capture_output=True, text=True, cwd=place, env=environment, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done


def test_weights_require_only_the_model(place):
    done = vgg(place, "n.onnx", "-o", "w.onnx", "--bits", 4)
    assert done.stdout == ""
    assert done.stderr.startswith("w.onnx: vgg11, 0.3 MB")
    kinds = {one.values.dtype.name for one in Network.read(place / "w.onnx").parameters.values() if isinstance(one, Quantized)}
    assert kinds == {"int8", "int4"}


def test_the_loss_is_printed(place):
    images = ("--calibrate", "data", "--evaluate", "data", "--format", "json")
    done = vgg(place, "n.onnx", "-o", "q.onnx", "--method", "qdq", *images)
    first, second = json.loads(done.stdout)
    assert (first["scheme"], second["scheme"]) == ("float32", "qdq, u8, minmax")
    assert second["images"] == 14
    assert second["top1 lost"] == pytest.approx(first["top1"] - second["top1"])
    assert second["MB"] == round((place / "q.onnx").stat().st_size / 1e6, 2)
    assert re.search("ms per image on (native|openvino), ", done.stderr)  # openvino if it is installed, with AMX
    done = vgg(place, "n.onnx", "-o", "t.onnx", "--bits", 4, "--evaluate", "data", "--tolerance", 50, "--format", "csv")
    assert [row["scheme"] for row in csv.DictReader(io.StringIO(done.stdout))] == ["float32", "weights int4"]


def test_the_same_command_resumes_and_fresh_starts_over(place, tmp_path):
    arguments = ("n.onnx", "-o", tmp_path / "q.onnx", "--method", "qdq", "--calibrate", "data", "--evaluate", "data")
    options = {"home": tmp_path / "home"}
    first = vgg(place, *arguments, "--format", "csv", **options).stdout
    kept = sorted(path.parent.parent.name for path in tmp_path.glob("home/*/*/state.npz"))
    assert kept == ["calibrations", "evaluations", "evaluations"]
    for path in tmp_path.glob("home/evaluations/*/state.npz"):  # as if nothing had been classified correctly
        arrays = dict(np.load(path))
        np.savez(path, **{**arrays, "top_0": np.full_like(arrays["top_0"], 99)})
    again = vgg(place, *arguments, "--format", "csv", **options).stdout
    assert [row["top5"] for row in csv.DictReader(io.StringIO(again))] == ["0.0", "0.0"]
    assert vgg(place, *arguments, "--format", "csv", "--fresh", **options).stdout == first
    assert vgg(place, *arguments, "--format", "csv", **options).stdout == first


@pytest.mark.parametrize("fresh", [False, True])
def test_an_interrupted_command_says_that_it_resumes(fresh, place, tmp_path):
    """Large images give the time to interrupt the command after its first report of progress."""
    Image.new("1", (12_000, 12_000)).save(tmp_path / "slow.png")
    slow = [f"{'./' * copy}slow.png 1" for copy in range(20)]
    (tmp_path / "list.txt").write_text("\n".join([f"{place / 'data/ant/0.png'} 0", *slow]))
    command = [*VGG, "quantize", "n.onnx", "-o", tmp_path / "q.onnx", "--evaluate", tmp_path / "list.txt"]
    environment = {**os.environ, "VGG_HOME": str(tmp_path / "home"), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    if fresh:
        command.append("--fresh")
    with subprocess.Popen(command, cwd=place, env=environment, stderr=theirs, text=True) as process:
        os.close(theirs)
        while b"Evaluating" not in os.read(ours, 4096):
            pass
        process.send_signal(signal.SIGINT)
        error = read_terminal(ours).decode()
    assert process.returncode == 130
    assert error.endswith(f"vgg: interrupted; the same command {'without --fresh ' * fresh}resumes\r\n")
    assert not (tmp_path / "q.onnx").exists()


def test_layers_as_a_table_and_a_plot(place):
    done = vgg(place, "n.onnx", "--per-layer", "--evaluate", "data", "--plot", "layers.png")
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["layer", "parameters", "weight", "dB", "output", "dB", "top1", "lost", "agreement"]
    assert [line.split()[0] for line in lines[1:]][-3:] == ["fc6", "fc7", "fc8"]
    with Image.open(place / "layers.png") as image:
        assert image.format == "PNG"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("missing.onnx", "-o", "x.onnx"), "missing.onnx: file or folder not found"),
        (("n.onnx", "-o", "x.onnx", "--method", "qdq"), "the method qdq requires calibration images; set --calibrate"),
        (("n.onnx", "-o", "x.onnx", "--method", "qdq", "--calibrate", "empty"), "empty: has no images in it"),
        (("n.onnx", "-o", "x.onnx", "--method", "qdq", "--calibrate", "broken"), "broken/a.png: "),
        (("n.onnx", "-o", "x.onnx", "--method", "qdq", "--bits", "4"), "the method qdq has 8 bits; 4 bits require the method"),
        (("n.onnx", "-o", "x.onnx", "--calibration", "percentile"), "the method weights leaves activations as they are"),
        (("n.onnx", "-o", "x.onnx", "--plot", "x.png"), "--plot draws the layers; set --per-layer"),
        (("n.onnx", "-o", "x.onnx", "--no-resize"), "--no-resize is for labelled images; set --evaluate"),
        (("n.onnx", "-o", "x.onnx", "--rank", "many"), "invalid rank 'many'; use an integer"),
        (("n.onnx", "-o", "x.safetensors"), "x.safetensors: the output must be an .onnx file in an existing folder"),
        (("n.onnx", "-o", "x.onnx", "--tolerance", "1"), "--tolerance and --agreement require labelled images; set --evaluate"),
        (("w.onnx", "-o", "x.onnx"), "conv1_1.weight is already quantized"),
        (
            ("n.onnx", "-o", "x.onnx", "--rank", "64", "--evaluate", "data", "--tolerance", "0", "--agreement", "100"),
            "x.onnx: not written: none of 2 schemes is within 0 points",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_no_file(place, arguments, line):
    if arguments[0] == "w.onnx" and not (place / "w.onnx").exists():
        vgg(place, "n.onnx", "-o", "w.onnx")
    before = sorted(place.iterdir())
    done = vgg(place, *arguments, code=1)
    assert done.stderr.startswith("vgg: ")
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert [path for path in sorted(place.iterdir()) if path not in before and path.name != "home"] == []


def test_an_output_or_layers_are_required(place):
    assert "Invalid value for --output: required without --per-layer" in vgg(place, "n.onnx", code=2).stderr
