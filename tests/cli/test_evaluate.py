"""`vgg evaluate` and `vgg prepare` as a user runs them."""

import csv
import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from conftest import random_network, read_terminal
from miniature import CLASSES, train_tar, val_tar
from vgg import Labels
from vgg.preprocessing import PRESETS

VGG = [sys.executable, "-m", "vgg"]
LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu <& \"'>"))
COUNT = 20
SLOW = 12  # images that take a second each


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two small models, and images in class folders, one of them broken."""
    root = tmp_path_factory.mktemp("evaluate")
    recipe = replace(PRESETS["torchvision"], size=36, crop=32)
    for seed in range(2):
        replace(random_network(seed=seed, labels=LABELS), preprocessing=recipe).write(root / f"tiny-{seed}.onnx")
    rng = np.random.default_rng(0)
    for index in range(COUNT):
        folder = root / "data" / LABELS.names[index % 6]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{index}.png")
    (root / "data/ant/broken <b>.jpg").write_bytes(b"no image")
    for split in ("train", "val"):
        (root / "prepared" / split).mkdir(parents=True)
    return root


def vgg(place, *arguments, code=0):
    plain = {"COLUMNS": "200", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    environment = {**os.environ, **plain, "VGG_HOME": str(place / "cache")}
    found = subprocess.run(
        [*VGG, *map(str, arguments)], capture_output=True, text=True, cwd=place, env=environment, timeout=120
    )
    assert found.returncode == code, found.stderr
    return found


def test_every_format_tells_the_same(place):
    arguments = ("evaluate", "data", "-m", "tiny-0.onnx", "-m", "tiny-1.onnx", "--fuse", "-e", "onnxruntime")
    found = vgg(place, *arguments, "--format", "json", code=1)
    assert found.stderr == "vgg: ant/broken <b>.jpg: not an image, or an unsupported format\n"
    records = json.loads(found.stdout)
    assert [one["model"] for one in records] == ["tiny-0.onnx", "tiny-1.onnx", "tiny-0.onnx + tiny-1.onnx"]
    first = ["model", "images", "failed", "top1", "top1_err", "top1_low", "top1_high", "top5", "top5_err"]
    assert list(records[0])[:9] == first
    assert {"img_size", "crop_pct", "interpolation", "images_per_second", "cross_entropy", "calibration_error"} <= set(
        records[0]
    )
    assert (records[0]["images"], records[0]["failed"], records[0]["img_size"]) == (COUNT, 1, 32)
    assert 0 <= records[0]["top1_low"] <= records[0]["top1"] <= records[0]["top1_high"] <= 100
    rows = list(csv.DictReader(io.StringIO(vgg(place, *arguments, "--format", "csv", code=1).stdout)))
    assert [(row["model"], row["top1"], row["top5_low"]) for row in rows] == [
        (one["model"], str(one["top1"]), str(one["top5_low"])) for one in records
    ]
    table = vgg(place, *arguments, code=1).stdout
    assert f"{records[0]['top1']:.2f} ({records[0]['top1_low']:.1f}–{records[0]['top1_high']:.1f})" in table
    assert "McNemar's p" in table
    assert "ReaL" not in table


def test_predictions_are_the_ones_that_were_counted(place):
    arguments = ("evaluate", "data", "-m", "tiny-0.onnx", "--format", "json", "--predictions", "out.csv")
    [record] = json.loads(vgg(place, *arguments, code=1).stdout)
    rows = list(csv.DictReader(io.StringIO((place / "out.csv").read_text())))
    assert len(rows) == COUNT + 1
    right = [row["right"] for row in rows if not row["error"]]
    assert record["top1"] == round(100 * right.count("1") / COUNT, 3)
    assert all((row["class"] == row["class_1"]) == (row["right"] == "1") for row in rows if not row["error"])
    hits = [row["class"] in [row[f"class_{rank}"] for rank in range(1, 6)] for row in rows if not row["error"]]
    assert record["top5"] == round(100 * sum(hits) / COUNT, 3)
    loss = np.mean([float(row["cross_entropy"]) for row in rows if not row["error"]])
    assert record["cross_entropy"] == pytest.approx(loss, abs=1e-4)


class Page(HTMLParser):
    """What a page asks for, and whether its tags are balanced enough for a browser."""

    def __init__(self):
        super().__init__()
        self.addresses, self.tags = [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "srcset", "data")]


def test_the_report_is_one_page_with_everything_in_it(place):
    vgg(place, "evaluate", "data", "-m", "tiny-0.onnx", "-m", "tiny-1.onnx", "--report", "report.html", code=1)
    text = (place / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert all(one.startswith(("data:image/jpeg;base64,", "#")) for one in page.addresses)
    assert not re.findall(r"https?://|url\(|@import", text)
    assert page.tags.count("svg") == 4
    assert page.tags.count("script") == 1
    assert page.tags.count("img") >= 2 * 10
    for heading in ("Reliability", "Accuracy by class", "Classes", "Most frequent confusions", "Most confident mistakes"):
        assert f"<h3>{heading}</h3>" in text
    assert "broken &lt;b&gt;.jpg: not an image" in text  # nothing from outside becomes markup
    assert "<b>.jpg" not in text


def test_an_interrupted_run_resumes(place):
    """Large images give the time to interrupt the command after its first report of progress."""
    Image.new("1", (12_000, 12_000)).save(place / "slow.png")
    names = [f"{'./' * copy}data/{LABELS.names[i % 6]}/{i}.png {i % 6}" for copy in range(60) for i in range(COUNT)]
    slow = [f"{'./' * copy}slow.png 0" for copy in range(SLOW)]
    (place / "many.txt").write_text("\n".join([*names[:40], *slow, *names[40:]]))
    arguments = ["evaluate", "many.txt", "-m", "tiny-0.onnx", "-b", "4", "--format", "json"]
    environment = {**os.environ, "VGG_HOME": str(place / "cache"), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen([*VGG, *arguments], cwd=place, env=environment, stderr=theirs, text=True) as process:
        os.close(theirs)
        while b"Evaluating" not in os.read(ours, 4096):
            pass
        process.send_signal(signal.SIGINT)
        error = read_terminal(ours).decode()
    assert process.returncode == 130
    assert error.endswith("vgg: interrupted; the same command resumes\r\n")
    assert "Traceback" not in error
    (place / "slow.png").write_bytes(bytes((place / "slow.png").stat().st_size))
    [state] = (place / "cache/evaluations").iterdir()
    shutil.copytree(state, place / "state")
    [resumed] = json.loads(vgg(place, *arguments, code=1).stdout)
    assert not state.exists()
    shutil.move(place / "state", state)
    [whole] = json.loads(vgg(place, *arguments, "--fresh", code=1).stdout)
    assert not state.exists()
    assert (resumed["images"], resumed["failed"]) == (60 * COUNT, SLOW)
    assert {**resumed, "images_per_second": 0} == {**whole, "images_per_second": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: file or folder not found"),
        (["data", "--fuse"], "--fuse requires several models; repeat --model"),
        (["data", "--sizes", "big"], "--sizes takes comma-separated integers, such as 256,384,512"),
        (["data", "--sizes", "16"], "size 16 is smaller than the network's crop of 32"),
        (["data", "--protocol", "half"], "unknown protocol 'half'; choose from center, ten-crop, dense"),
        (["data", "--report", "no/where.html"], "no/where.html: can't be written: folder no not found"),
        (["data", "--report", "data"], "data: can't be written: is a folder"),
        (["data", "--no-resize", "--sizes", "48"], "--no-resize can't be combined with --sizes"),
        (["data", "--real", "data/ant/0.png"], "ReaL labels must be"),
        (["data", "-e", "onnxruntime", "-p", "dense"], "onnxruntime takes only crops of the network's input size"),
        (["tiny-0.onnx"], "a list of images must be UTF-8 text"),
        (["prepared"], "prepared/train: unknown class 'train'; the model has 7; did you mean prepared/val?"),
    ],
)
def test_mistakes_are_one_clear_line(place, arguments, message):
    found = vgg(place, "evaluate", *arguments, "-m", "tiny-0.onnx", code=1)
    assert message in found.stderr
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def test_prepare_then_check_then_evaluate(place, tmp_path):
    train, val = train_tar(tmp_path), val_tar(tmp_path)
    refused = vgg(place, "prepare", "imagenet", "--val", val, "-o", tmp_path / "out", code=1)
    assert "is damaged, or not the published archive" in refused.stderr
    assert refused.stderr.count("\n") == 1
    made = vgg(place, "prepare", "imagenet", "--train", train, "--val", val, "-o", tmp_path / "out", "--no-verify")
    assert made.stdout == made.stderr == ""
    assert sorted(path.name for path in (tmp_path / "out/train").iterdir()) == sorted(CLASSES)
    checked = vgg(place, "prepare", "check", tmp_path / "out", "--format", "json", code=1)
    problems = json.loads(checked.stdout)
    assert {tuple(one) for one in problems} == {("path", "problem")}
    assert "vgg: train 12 images, val 12 images;" in checked.stderr
    assert vgg(place, "prepare", "imagenet", "-o", tmp_path / "out", code=1).stderr.startswith("vgg: nothing to prepare")


def test_help_shows_examples(place):
    for verb in (["evaluate"], ["prepare"], ["prepare", "imagenet"], ["prepare", "check"]):
        assert "Example: vgg " + verb[0] in vgg(place, *verb, "--help").stdout
