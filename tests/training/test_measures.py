"""Measures of validation images, and what they decide."""

import csv
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn import metrics as sklearn

from training_helpers import QUICK, class_folders, options
from vgg import Error, Network
from vgg.errors import Notice
from vgg.training import train
from vgg.training.history import epoch_line, has_stalled, kept_row, quality
from vgg.training.measures import Measures
from vgg.training.processes import Process
from vgg.training.targets import scores

ALONE = Process(torch.device("cpu"), 0, 1)


def measured(logits, targets, classes, output, batch=7):
    measures = Measures(classes, output)
    for start in range(0, len(logits), batch):
        measures.add(logits[start : start + batch], targets[start : start + batch])
    return measures.row(ALONE)


@pytest.mark.parametrize(("classes", "output"), [(4, "softmax"), (2, "softmax"), (2, "binary")])
def test_measures_are_scikit_learns(classes, output):
    generator = torch.Generator().manual_seed(classes)
    targets = torch.randint(0, classes, (60,), generator=generator)
    logits = torch.randn(60, 1 if output == "binary" else classes, generator=generator)
    logits += 0.5 * (targets[:, None] * 2 - 1 if output == "binary" else torch.nn.functional.one_hot(targets, classes))
    row, found = measured(logits, targets, classes, output), scores(logits, output).numpy()
    chosen = found.argmax(1)
    assert row["val_balanced"] == pytest.approx(100 * sklearn.balanced_accuracy_score(targets, chosen))
    assert row["val_top1"] == pytest.approx(100 * sklearn.accuracy_score(targets, chosen))
    area = sklearn.roc_auc_score(targets, found[:, 1] if classes == 2 else found, multi_class="ovr")
    assert row["val_auc"] == pytest.approx(100 * area)
    assert ("val_sensitivity" in row) == (classes == 2)
    if classes == 2:
        assert row["val_sensitivity"] == pytest.approx(100 * sklearn.recall_score(targets, chosen))
        assert row["val_specificity"] == pytest.approx(100 * sklearn.recall_score(targets, chosen, pos_label=0))


def test_measures_of_several_labels_and_of_many_classes():
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(50, 3, generator=generator) < 0.4
    logits = torch.randn(50, 3, generator=generator) + truth
    row = measured(logits, truth, 3, "sigmoid")
    assert list(row) == ["val_loss", "val_f1", "val_exact", "val_auc"]
    assert row["val_auc"] == pytest.approx(100 * sklearn.roc_auc_score(truth, logits.sigmoid()))
    many = measured(torch.randn(20, 101, generator=generator), torch.arange(20), 101, "softmax")
    assert list(many) == ["val_loss", "val_top1", "val_top5", "val_balanced"]
    one_class = measured(torch.randn(5, 2, generator=generator), torch.ones(5, dtype=torch.int64), 2, "softmax")
    assert math.isnan(one_class["val_auc"])
    assert math.isnan(one_class["val_specificity"])
    assert one_class["val_balanced"] == one_class["val_sensitivity"] == one_class["val_top1"]
    assert math.isnan(measured(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 3, "softmax")["val_balanced"])


ROWS = [
    {"val_loss": 0.9, "val_top1": 80.0, "val_balanced": 60.0, "val_auc": 70.0},
    {"val_loss": 0.7, "val_top1": 70.0, "val_balanced": 75.0, "val_auc": 70.0},
    {"val_loss": 0.5, "val_top1": 60.0, "val_balanced": 70.0, "val_auc": 65.0},
]


@pytest.mark.parametrize(("best", "place"), [("accuracy", 0), ("balanced", 1), ("auc", 1), ("loss", 2)])
def test_the_measure_decides_which_epoch_is_kept_and_when_to_stop(best, place):
    assert kept_row(ROWS, best) is ROWS[place]
    assert kept_row([*ROWS, ROWS[place] | {}], best) is ROWS[place]  # the first one
    assert kept_row([*ROWS, ROWS[place] | {"val_loss": math.nan}], best) is ROWS[place]
    assert quality(ROWS[2], "loss") == -0.5
    stalled = {patience: has_stalled(patience, ROWS, best) for patience in range(4)}
    last_better = {"accuracy": 0, "balanced": 1, "auc": 0, "loss": 2}[best]
    assert stalled == {0: False, **{patience: 2 - last_better >= patience for patience in (1, 2, 3)}}


def test_an_epoch_without_a_loss_does_not_stop_a_run():
    assert not has_stalled(2, [ROWS[0] | {"val_loss": math.nan}, *ROWS], "loss")


def test_a_line_shows_what_decides():
    timing = {"epoch": 3, "loss": 0.5, "lr": 0.01, "images_per_second": 9.0, "waited": 0.0}
    assert "loss 0.5000, top-1 80.00%, lr" in epoch_line(ROWS[0] | timing, 9, "accuracy")
    assert "loss 0.5000, AUC 70.00%, top-1 80.00%, lr" in epoch_line(ROWS[0] | timing, 9, "auc")
    assert "loss 0.5000, validation loss 0.9000, top-1 80.00%, lr" in epoch_line(ROWS[0] | timing, 9, "loss")
    two = ROWS[0] | timing | {"val_sensitivity": 55.0, "val_specificity": 90.0}
    assert "loss 0.5000, AUC 70.00%, sensitivity 55.00%, specificity 90.00%, lr" in epoch_line(two, 9, "auc")


@pytest.mark.parametrize("best", ["accuracy", "balanced", "auc", "loss"])
def test_the_network_of_the_best_epoch_is_written(best, tmp_path):
    data = class_folders(tmp_path / "data", classes=2, each=30)
    lines = []
    recipe = replace(QUICK, epochs=6, lr=0.02, best=best, patience=2)
    outcome = train(options(data, tmp_path / "run", recipe), log=lines.append)
    assert lines[0].endswith("; positive class: class1")
    kept = kept_row(outcome.history, best)
    assert f", epoch {kept['epoch']}: " in Network.read(outcome.path).provenance.source
    with (tmp_path / "run/log.csv").open() as file:
        [row, *_] = csv.DictReader(file)
    assert {"val_balanced", "val_auc", "val_sensitivity", "val_specificity"} <= set(row)
    values = [quality(row, best) for row in outcome.history]
    first = int(np.argmax(values))
    assert len(values) == 6 or len(values) - 1 - first == 2
    with pytest.raises(Error, match=r"recipe\.best"):
        train(options(data, tmp_path / "run", replace(recipe, best="loss" if best == "auc" else "auc")))


def test_without_validation_images_no_run_stops_early(tmp_path):
    data = class_folders(tmp_path / "data", classes=3, each=3)
    lines, test = [], class_folders(tmp_path / "test", classes=3, each=1)
    recipe = replace(QUICK, epochs=4, patience=1, batch=4)
    outcome = train(options(data, tmp_path / "run", recipe, test=test), log=lines.append)
    assert len(outcome.history) == 4
    assert all(", not validated, lr " in line for line in lines[1:5])
    assert all(math.isnan(row["val_top1"]) for row in outcome.history)
    assert Network.read(outcome.path).provenance.source.endswith(", epoch 4: not validated")
    assert (outcome.test["epoch"], outcome.test["images"]) == (4, 3)
    assert not [name for name in outcome.test if name.startswith("val_")]
    assert lines[-1].endswith("; epoch 4, not validated")
    with pytest.raises(Error, match="schedule=plateau requires validation images"):
        train(options(data, tmp_path / "other", replace(recipe, schedule="plateau")))


def test_validation_images_of_which_none_can_be_read_are_an_error(tmp_path):
    data, val = class_folders(tmp_path / "data"), tmp_path / "val"
    for index in range(3):
        (val / f"class{index}").mkdir(parents=True)
        (val / f"class{index}/broken.png").write_bytes(b"no image")
    with pytest.raises(Error, match="val: none of the 3 validation images can be read"):
        train(options(data, tmp_path / "run", val=val))


def test_the_loss_decides_where_the_auc_is_undefined(tmp_path):
    data, val = class_folders(tmp_path / "data", classes=2), class_folders(tmp_path / "val", classes=1)
    recipe, lines = replace(QUICK, best="auc", epochs=4, patience=1), []
    with pytest.warns(Notice, match="AUC is undefined: no class has validation images both of it and not of it"):
        outcome = train(options(data, tmp_path / "run", recipe, val=val), log=lines.append)
    assert all(math.isnan(row["val_auc"]) and math.isnan(row["val_sensitivity"]) for row in outcome.history)
    losses = [row["val_loss"] for row in outcome.history]
    assert kept_row(outcome.history, "auc")["val_loss"] == min(losses)
    assert len(losses) == 4 or losses[-1] >= losses[-2]
    assert "top-1" not in lines[1]
    assert ", specificity " in lines[1]
    assert ", sensitivity " not in lines[1]


def test_auc_is_for_up_to_a_hundred_classes(tmp_path):
    data = class_folders(tmp_path / "data", classes=101, each=2, side=8)
    with pytest.raises(Error, match="best=auc is for up to 100 classes, not 101"):
        train(options(data, tmp_path / "run", replace(QUICK, best="auc")))
