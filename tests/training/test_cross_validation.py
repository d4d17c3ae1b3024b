"""Cross-validation: each image is the test of one network, which has not seen it."""

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as sklearn

from conftest import random_network
from training_helpers import QUICK, class_folders, options
from vgg import Error, Labels, Network, sources
from vgg.classifier import load
from vgg.training import RECIPES, cross_validate, train
from vgg.training.images import open_images

FILES = ("folds.json", "predictions.csv")
TUNE = replace(RECIPES["finetune"], epochs=2, batch=8, views=2, lr=1e-3, best="auc", balance="loss", patience=1)


def patients(folder, classes=2, each=18):
    """Images of patients with three images each, but for the last six, which have one; named p0_0, p0_1 …"""
    data = class_folders(folder, classes, each)
    for target in range(classes):
        for number in range(each):
            name = f"p{target}{number // 3}_{number % 3}" if number < each - 6 else f"other{number}"
            (data / f"class{target}/{number}.png").rename(data / f"class{target}/{name}.png")
    return data


def table(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_each_image_is_tested_once_by_a_network_that_has_not_seen_it(tmp_path):
    data, run = patients(tmp_path / "data"), tmp_path / "run"
    recipe, others = replace(QUICK, epochs=3, best="auc"), {"group": r"p\d+", "arch": "vgg11-bn"}
    lines = []
    found = cross_validate(options(data, run, recipe, **others), 3, log=lines.append)
    assert lines[0].startswith("fold 1 of 3: 22 training images of 2 classes, 2 validation images, 12 test images; ")
    assert "; 8 groups and 12 images without a group; " in lines[0]
    rows = table(run / "predictions.csv")
    assert list(rows[0]) == ["image", "fold", "class", "score_class0", "score_class1"]
    dataset = sources.open(data, 2)
    assert sorted(row["image"] for row in rows) == [one.name for one in dataset]
    assert all(row["image"].startswith(row["class"]) for row in rows)
    # Groups are in one fold, and neither chose the epoch nor trained the network that is tested on them.
    folds = {row["image"]: row["fold"] for row in rows}
    for number in range(1, 4):
        images = open_images(options(data, run, recipe, fold=(number, 3), **others), "softmax")
        sets = [{dataset.samples[index].name for index in part} for part in vars(images.split).values()]
        assert sum(map(len, sets)) == len(dataset) == len(set.union(*sets))
        assert sets[2] == {name for name, fold in folds.items() if fold == str(number)}
        named = [{match[0] for name in part if (match := re.search(r"p\d+", name))} for part in sets]
        assert not named[0] & named[2]
        assert not (named[0] | named[2]) & named[1]
        assert [sum("class1" in name for name in part) for part in (sets[0] | sets[1], sets[2])] == [12, 6]
        scores = load(run / f"fold-{number}/model.onnx").scores(list(images.test))
        expected = [[row["score_class0"], row["score_class1"]] for row in rows if row["fold"] == str(number)]
        np.testing.assert_allclose(scores, np.array(expected, float), atol=1e-6)
    # The measures are those of the predictions.
    written = json.loads((run / "folds.json").read_text())
    assert [one["fold"] for one in written["folds"]] == [1, 2, 3]
    assert [one.test for one in found.folds] == [{k: v for k, v in one.items() if k != "fold"} for one in written["folds"]]
    truth = np.array([row["class"] == "class1" for row in rows])
    positive = np.array([float(row["score_class1"]) for row in rows])
    assert written["pooled"] == found.pooled
    assert found.pooled["images"] == 36
    assert found.pooled["roc_auc"] == pytest.approx(100 * sklearn.roc_auc_score(truth, positive), abs=1e-3)
    assert found.pooled["top1"] == pytest.approx(100 * np.mean((positive > 0.5) == truth), abs=1e-3)
    assert found.pooled["sensitivity"] == pytest.approx(100 * np.mean(positive[truth] > 0.5), abs=1e-3)
    assert list(found.mean) == ["top1", "balanced_accuracy", "roc_auc", "sensitivity", "specificity"]
    for name, mean in found.mean.items():
        values = [one[name] for one in written["folds"]]
        assert (mean, found.deviation[name]) == pytest.approx((np.mean(values), np.std(values, ddof=1)), abs=1e-3)
    # A finished fold is not computed again; a missing one is.
    before = {path: (run / path).read_bytes() for path in FILES}
    kept = (run / "fold-1/last.pt").stat().st_mtime_ns
    (run / "fold-2/test.json").unlink()
    cross_validate(options(data, run, recipe, **others), 3)
    assert (run / "fold-1/last.pt").stat().st_mtime_ns == kept
    assert (run / "predictions.csv").read_bytes() == before["predictions.csv"]
    (run / "fold-3/test.csv").unlink()
    cross_validate(options(data, run, recipe, **others), 3)
    assert (run / "predictions.csv").read_bytes() == before["predictions.csv"]
    (run / "fold-3/test.csv").write_text("image,fold,class,score_class0,score_class1\n1.png,3,class0,0.5\n")
    with pytest.raises(Error, match=r"fold-3/test\.csv: is damaged \(.*\); delete it, and the same command repeats the test"):
        cross_validate(options(data, run, recipe, **others), 3)
    with pytest.raises(Error, match=r"fold-1: holds other work \(fold: \[1, 3\], not \[1, 4\]; "):
        cross_validate(options(data, run, recipe, **others), 4)


def test_a_fold_is_a_run_and_a_run_is_no_cross_validation(tmp_path):
    data = patients(tmp_path / "data")
    train(options(data, tmp_path / "run"))
    with pytest.raises(Error, match="run: holds a run without folds; use --fresh"):
        cross_validate(options(data, tmp_path / "run"), 2)
    cross_validate(options(data, tmp_path / "run", fresh=True), 2)
    assert not (tmp_path / "run/last.pt").exists()
    again = train(options(data, tmp_path / "run/fold-2", fold=(2, 2)))
    assert again.test["images"] == 18


def test_options_that_do_not_fit_delete_no_folds(tmp_path):
    data, run = patients(tmp_path / "data"), tmp_path / "run"
    cross_validate(options(data, run), 2)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(Error, match="matches no image's name"):
        cross_validate(options(data, run, group="nobody", fresh=True), 2)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_frozen_layers_are_computed_once_for_all_folds(tmp_path):
    data, network = patients(tmp_path / "data"), random_network("vgg11")
    network = replace(network, preprocessing=replace(network.preprocessing, size=36, crop=32))
    found = cross_validate(options(data, tmp_path / "run", TUNE, start=network, freeze="conv5", group=r"p\d+"), 3)
    assert len(list((tmp_path / "run/cache").iterdir())) == 2  # for training and for evaluation
    assert not list((tmp_path / "run").glob("fold-*/cache"))
    first: dict[str, float] = {}  # share of the values that are known at the first report of each task
    train(
        options(data, tmp_path / "all", TUNE, start=network, freeze="conv5", group=r"p\d+", cache=tmp_path / "run/cache"),
        lambda task, done, total, *unit: first.setdefault(task, done / total),
    )
    assert len(list((tmp_path / "run/cache").iterdir())) == 2  # a run without folds shares them
    assert first.get("Computing pool5 of vgg11", 1) > 0.5
    alone = train(options(data, tmp_path / "alone", TUNE, start=network, freeze="conv5", group=r"p\d+", fold=(2, 3)))
    assert Network.read(alone.path).sha256() == Network.read(found.folds[1].path).sha256()


def test_folders_may_be_the_folds(tmp_path):
    for number in (1, 2, 10):
        class_folders(tmp_path / f"data/fold-{number}", classes=3, each=6)
    found = cross_validate(options(tmp_path / "data", tmp_path / "run"), 3)
    rows = table(tmp_path / "run/predictions.csv")
    assert {(row["image"].split("/")[0], row["fold"]) for row in rows} == {("fold-1", "1"), ("fold-2", "2"), ("fold-10", "3")}
    assert found.pooled["images"] == 54
    assert "sensitivity" not in found.mean
    with pytest.raises(Error, match="data: has 3 folds, fold-1 and following; use --folds 3"):
        train(options(tmp_path / "data", tmp_path / "plain"))
    shutil.rmtree(tmp_path / "data/fold-2/class1")
    with pytest.raises(Error, match=r"fold-2: has other classes than .*fold-1; each fold must have all classes"):
        cross_validate(options(tmp_path / "data", tmp_path / "other"), 3)


def test_several_labels(tmp_path):
    folder = class_folders(tmp_path / "data", classes=3, each=8)
    rows = [f"class{one}/{number}.png,class{one}|class{one - 1}" for one in (1, 2) for number in range(8)]
    rows += [f"class0/{number}.png," for number in range(8)]
    (folder / "table.csv").write_text("\n".join(["image,labels", *rows]))
    head = {"head": "average, classes sigmoid"}
    found = cross_validate(options(folder / "table.csv", tmp_path / "run", replace(QUICK, balance="loss"), **head), 2)
    assert found.pooled["images"] == 24
    assert list(found.mean) == ["map", "f1_micro", "f1_macro", "roc_auc"]
    rows = table(tmp_path / "run/predictions.csv")
    truth = np.array([[name in row["class"].split("|") for name in ("class0", "class1", "class2")] for row in rows])
    scores = np.array([[float(row[f"score_class{one}"]) for one in range(3)] for row in rows])
    assert found.pooled["map"] == pytest.approx(100 * sklearn.average_precision_score(truth, scores), abs=1e-3)


@pytest.mark.parametrize(
    ("others", "count", "message"),
    [
        ({"val": "."}, 2, "--val and --test can't be combined with --folds"),
        ({"test": "."}, 2, "--val and --test can't be combined with --folds"),
        ({"group": "class1/|class0/"}, 2, "all images of class class0 are in one fold; a class requires two images or groups"),
        ({"group": r"class"}, 2, "has 1 group of images, too few for 2 folds"),
        ({"teachers": [random_network("vgg11", labels=Labels(tuple("abcdefg")))]}, 2, "--folds requires labels"),
    ],
)
def test_what_cannot_be_divided_is_refused(others, count, message, tmp_path):
    data = class_folders(tmp_path / "data", classes=2, each=8)
    with pytest.raises(Error, match=message):
        cross_validate(options(data, tmp_path / "run", **others), count)


RUN = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from training_helpers import QUICK, options
from vgg.training import cross_validate
recipe = replace(QUICK, epochs=2, balance="sampling", best="balanced", mixup=0.2)
cross_validate(options(Path({data!r}), Path(sys.argv[1]), recipe, group="p[0-9]+", save_seconds=0.0), 2)
"""


def test_killed_at_any_moment_it_ends_the_same(tmp_path):
    data, path = patients(tmp_path / "data"), tmp_path / "run.py"
    path.write_text(RUN.format(tests=str(Path(__file__).parent.parent), data=str(data)))
    subprocess.run([sys.executable, path, tmp_path / "whole"], check=True, capture_output=True, timeout=120)
    run = tmp_path / "cut"
    running = subprocess.Popen([sys.executable, path, run], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while running.poll() is None and not (run / "fold-2/last.pt").exists():
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (run / "fold-1/test.json").exists()
    assert not (run / "folds.json").exists()
    subprocess.run([sys.executable, path, run], check=True, capture_output=True, timeout=120)
    assert (run / "predictions.csv").read_bytes() == (tmp_path / "whole/predictions.csv").read_bytes()
    for number in (1, 2):
        one, two = (Network.read(tmp_path / name / f"fold-{number}/model.onnx").sha256() for name in ("cut", "whole"))
        assert one == two
    one, two = (json.loads((tmp_path / name / "folds.json").read_text()) for name in ("cut", "whole"))
    for record in one["folds"] + two["folds"]:
        record.pop("images_per_second")
    assert one == two


def test_names_of_classes_that_are_not_clear_are_numbers_in_tables(tmp_path):
    """Two classes of ImageNet are cranes."""
    data = class_folders(tmp_path / "data", each=9)
    listed = [f"data/class{target}/{number}.png {target}" for target in range(3) for number in range(9)]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    labels = Labels(("crane", "a|b", "crane"))
    found = cross_validate(options(tmp_path / "list.txt", tmp_path / "run", QUICK, labels=labels), 3)
    rows = table(tmp_path / "run/predictions.csv")
    assert {row["class"] for row in rows} == {"0", "1", "2"}
    scores = np.array([[float(row[f"score_{target}"]) for target in range(3)] for row in rows])
    right = np.mean(scores.argmax(1) == [int(row["class"]) for row in rows])
    assert found.pooled["top1"] == pytest.approx(100 * right, abs=1e-3)
    assert data.exists()


def test_a_cross_validation_is_not_overwritten_by_a_run(tmp_path):
    data, run = class_folders(tmp_path / "data", each=9), tmp_path / "run"
    cross_validate(options(data, run, replace(QUICK, epochs=1)), 2)
    with pytest.raises(Error, match="holds a cross-validation; use --fresh to start over, or choose another folder"):
        train(options(data, run, replace(QUICK, epochs=1)))
    (run / "fold-notes.txt").write_text("mine")
    (run / "fold-analysis").mkdir()
    (run / "fold-analysis/log.csv").write_text("mine")
    (run / "fold-2/notes.txt").write_text("mine")
    train(options(data, run, replace(QUICK, epochs=1), fresh=True))
    assert sorted(path.name for path in run.glob("fold-*")) == ["fold-2", "fold-analysis", "fold-notes.txt"]
    assert (run / "fold-analysis/log.csv").exists()
    assert [path.name for path in (run / "fold-2").iterdir()] == ["notes.txt"]
