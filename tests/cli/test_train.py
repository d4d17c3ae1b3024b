"""`vgg train` as a user runs it."""

import os
import re
import subprocess
import sys

import pytest

from training_helpers import cifar100_folder, class_folders
from vgg import Network

TINY = (
    "--arch",
    "vgg11",
    "--width",
    "0.0625",
    "--input-size",
    "32",
    "-b",
    "8",
    "--epochs",
    "1",
    "--set",
    "jitter=0",
    "-r",
    "zoo",
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    class_folders(root / "data")
    (root / "data/class0/broken.png").write_bytes(b"no image")
    return root


def vgg(place, *arguments, code=0):
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PYTHONUTF8": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vgg", "train", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=place, env=environment, timeout=120)
    assert found.returncode == code, found.stderr
    return found


def test_a_run_from_start_to_end(place):
    class_folders(place / "val", each=2)
    (place / "val/class0/broken.png").write_bytes(b"no image")
    own = ("--val", "val", *TINY)
    found = vgg(place, "data", "-o", "run", *own)
    assert found.stdout == "run/model.onnx\n"
    lines = found.stderr.splitlines()
    assert lines[0].startswith("25 training images of 3 classes, 7 validation images; vgg11")
    assert lines[1].startswith("epoch 1 of 1: loss ")
    assert "of the time waiting for images" in lines[1]
    assert lines[2:] == ["vgg: skipped: class0/broken.png: not an image, or an unsupported format"]
    network = Network.read(place / "run/model.onnx")
    assert (network.architecture.head, network.labels.names) == ("gap", ("class0", "class1", "class2"))
    assert vgg(place, "data", "-o", "run", *own).stdout == "run/model.onnx\n"
    other = vgg(place, "data", "-o", "run", *own, "--lr", "0.5", code=1)
    assert "vgg: run: holds other work (recipe.lr: 0.01, not 0.5); use --fresh to start over" in other.stderr
    assert vgg(place, "data", "-o", "run", *own, "--lr", "0.5", "--fresh").stdout == "run/model.onnx\n"


def test_cifar100_is_learnt_and_evaluated(place):
    cifar100_folder(place / "cifar-100-binary")
    small = ("--arch", "vgg11-bn", "--width", "0.0625", "-b", "50", "--epochs", "1")
    found = vgg(place, "cifar-100-binary", "-o", "small", *small)
    first, *_ = found.stderr.splitlines()
    assert first.startswith("180 training images of 100 classes, 20 validation images, 16 test images; vgg11-bn")
    assert first.endswith("recipe cifar")
    assert Network.read(place / "small/model.onnx").labels.names[99] == "fine99"
    other = vgg(place, "cifar-100-binary", "-o", "small", *small, "--lr", "0.2", code=1)
    assert "(recipe.lr: 0.1, not 0.2)" in other.stderr
    command = [sys.executable, "-m", "vgg", "evaluate", "cifar-100-binary/test.bin", "-m", "small/model.onnx"]
    evaluated = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=120, check=True)
    assert "16" in evaluated.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("data", "-o", "new", "--set", "flip=yes"),
            "vgg: invalid value 'yes' of flip; choose from random, alternating, none\n",
        ),
        (("data", "-o", "new", "--input-size", "64", "--set", "ema=2"), "vgg: recipe cifar with values out of range: ema=2"),
        (("data", "-o", "new", "--input-size", "65", "--set", "ema=2"), "vgg: recipe modern with values out of range: ema=2"),
        (("nowhere", "-o", "new"), "vgg: nowhere: file or folder not found\n"),
        (("data", "-o", "new", "-r", "best"), "vgg: unknown recipe 'best'; choose from zoo, paper, torchvision, modern, "),
        (
            ("data", "-o", "new", "--freeze", "conv4"),
            "vgg: --freeze requires --from: a new network has no trained layers",
        ),
        (
            ("data", "-o", "new", "--group", "patient"),
            "vgg: --group patient: matches no image's name; the first is class0/",
        ),
        (
            ("data", "-o", "new", "--find-lr", "--folds", "100"),
            "vgg: data: has 25 groups of images, too few for 100 folds\n",
        ),
    ],
)
def test_errors_are_one_line(place, arguments, message):
    found = vgg(place, *arguments, code=1)
    assert found.stderr.startswith(message)
    assert len(found.stderr.splitlines()) == 1
    assert not (place / "new" / "last.pt").exists()


def test_folds_and_learning_rates(place):
    class_folders(place / "two", classes=2, each=30)
    found = vgg(place, "two", "-o", "folds", *TINY, "--folds", "2", "--set", "best=auc")
    heading, *rows = found.stdout.splitlines()
    measures = ("top-1 %", "balanced accuracy %", "AUC %", "sensitivity %", "specificity %")
    assert re.split(r"  +", heading) == ["fold", "images", *measures]
    assert [row.split()[0] for row in rows] == ["1", "2", "mean", "all"]
    assert rows[2].count(" ± ") == 5
    assert rows[3].split()[1] == "60"
    lines = found.stderr.splitlines()
    assert lines[0].startswith("fold 1 of 2: 27 training images of 2 classes, 3 validation images, 30 test images; ")
    assert lines[0].endswith("; positive class: class1")
    assert lines[1].startswith("fold 1 of 2: epoch 1 of 1: loss ")
    assert ", AUC " in lines[1]
    assert lines[2].startswith("fold 1 of 2: test: top-1 ")
    found = vgg(place, "two", "-o", "rate", *TINY, "--find-lr", "--folds", "2")
    assert found.stderr.startswith("27 training images of 2 classes, 3 validation images, 30 test images; ")
    assert found.stdout.splitlines()[0].split() == ["lr", "loss"]
    assert "suggestion" in found.stdout.splitlines()[-1]
    assert sorted(path.name for path in (place / "rate").iterdir()) == ["lr.csv", "lr.png"]
