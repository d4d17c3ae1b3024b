"""`vgg explain` as a user runs it."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import vgg
from conftest import EXAMPLES, random_network
from vgg.explanation import class_image, filters, layer_outputs

PHOTO = EXAMPLES / "chelsea.png"


def run(place, *arguments, code=0, **options):
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "vgg", "explain", *map(str, arguments)]
    found = subprocess.run(command, capture_output=True, cwd=place, env=environment, timeout=120, **options)
    assert found.returncode == code, found.stderr
    return found.stdout.decode(), found.stderr.decode()


def test_a_picture_and_records_are_what_the_library_says(tmp_path):
    expected = vgg.load().explain(PHOTO, ["tabby", 287])
    arguments = (PHOTO, "-o", "heat.png", "--class", "tabby", "-c", "287", "--box")
    records = json.loads(run(tmp_path, *arguments, "--format", "json")[0])
    assert [(one["label"], one["index"], one["wnid"]) for one in records] == [
        ("tabby", 281, "n02123045"), ("lynx", 287, "n02127052"),
    ]  # fmt: skip
    for index, record in enumerate(records):
        sides = [record[side] for side in ("left", "top", "right", "bottom")]
        assert sides == pytest.approx(expected.box(index), abs=1)
    with Image.open(tmp_path / "heat.png") as drawn:
        assert (drawn.format, drawn.size) == ("PNG", expected.overlay(True).size)
    rows = list(csv.DictReader(io.StringIO(run(tmp_path, *arguments, "--format", "csv")[0])))
    assert [row["label"] for row in rows] == ["tabby", "lynx"]


def test_a_method_and_a_layer_are_those_of_the_library(tmp_path):
    arguments = ("--method", "layer-cam", "--layer", "conv4_3", "--class", "tabby")
    run(tmp_path, PHOTO, "-o", "heat.png", *arguments)
    expected = vgg.load().explain(PHOTO, "tabby", method="layer-cam", layer="conv4_3").overlay()
    with Image.open(tmp_path / "heat.png") as drawn:
        assert np.abs(np.asarray(drawn).astype(int) - np.asarray(expected)).max() <= 1


@pytest.mark.skipif(os.name != "posix", reason="sends an interrupt")
def test_an_interrupt_leaves_nothing_behind(tmp_path):
    command = [sys.executable, "-m", "vgg", "explain", PHOTO, "-o", "heat.png", "--method", "smoothgrad", "--samples", "10000"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        time.sleep(3)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("name", "format"), [("heat.jpg", "JPEG"), ("heat.webp", "WEBP")])
def test_standard_input_and_other_formats(tmp_path, name, format):
    with PHOTO.open("rb") as file:
        table, _ = run(tmp_path, "-", "-o", name, "--method", "class-map", "--size", "320", stdin=file)
    assert table.split()[:5] == ["label", "score", "index", "wnid", "tabby"]
    with Image.open(tmp_path / name) as drawn:
        assert drawn.format == format
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([PHOTO, "-o", "heat.txt"], "heat.txt: unsupported image format; use .png, .jpg, .jpeg, .webp"),
        ([PHOTO, "-o", "heat.png", "-c", "tab"], "unknown class 'tab'; the model has 1000; did you mean tabby"),
        (["missing.png", "-o", "nowhere/heat.png"], "nowhere/heat.png: can't be written: folder nowhere not found"),
        (
            [PHOTO, "-o", "heat.png", "--window", "9"],
            "the method grad-cam has no option 'window'; its options are layer",
        ),
        (["missing.png", "-o", "heat.png"], "missing.png: file or folder not found"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, arguments, line):
    stdout, said = run(tmp_path, *arguments, code=1)
    assert stdout == ""
    assert said.startswith(f"vgg: {line}")
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_images_of_the_network_are_those_of_the_library(tmp_path):
    network = random_network(classes=5, width=1 / 16, head="gap")
    network.write(tmp_path / "small.onnx")
    classifier = vgg.load(tmp_path / "small.onnx")
    expected = {
        "filters": filters(classifier.network),
        "layer-outputs": layer_outputs(classifier, PHOTO, "conv2_1"),
        "class-image": class_image(classifier, 3),
    }
    arguments = {"filters": [], "layer-outputs": [PHOTO, "--layer", "conv2_1"], "class-image": ["--class", "3"]}
    for method, image in expected.items():
        output = f"{method}.png"
        printed, _ = run(tmp_path, *arguments[method], "-m", "small.onnx", "-o", output, "--method", method, "--format", "json")
        with Image.open(tmp_path / output) as drawn:
            np.testing.assert_array_equal(np.asarray(drawn), np.asarray(image))
    assert json.loads(printed)[0]["index"] == 3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--method", "saliency"], "the method saliency explains an image; give one"),
        ([PHOTO, "--method", "filters"], "the method filters takes no image"),
        ([PHOTO, "--method", "layer-outputs"], "the method layer-outputs needs --layer"),
        (["--method", "class-image"], "the method class-image needs --class"),
        (["--method", "class-image", "-c", "1", "-c", "2"], "the method class-image takes one --class, not 2"),
        (["--method", "filters", "--box"], "the method filters takes no --box"),
    ],
)
def test_arguments_that_an_image_of_the_network_lacks_or_does_not_take(tmp_path, arguments, error):
    assert error in run(tmp_path, *arguments, "-o", "drawn.png", code=1)[1]
    assert not (tmp_path / "drawn.png").exists()
