"""Evaluation of networks with a score for each class, and with one logit for two classes."""

import csv
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn

from conftest import random_network
from vgg import Error, Labels, ModelError, sources
from vgg.classifier import Classifier
from vgg.evaluation import evaluate, predictions, records
from vgg.evaluation.report import write
from vgg.preprocessing import PRESETS
from vgg.sources import Dataset
from vgg.views import Views

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
SMALL = replace(PRESETS["torchvision"], size=36, crop=32)
COUNT = 26


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_HOME", str(tmp_path / "cache"))


def model(seed=0, head="average, 24 relu, classes sigmoid", name="", **options):
    network = replace(random_network(seed=seed, head=head, **options), preprocessing=SMALL)
    return Classifier(network, "onnxruntime", threads=1, name=name or f"tiny-{seed}")


@pytest.fixture
def table(tmp_path):
    """A table of images with none to three of the first six classes."""
    rng = np.random.default_rng(1)
    rows = ["image," + ",".join(LABELS.names)]
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 256, (40 + index, 50, 3), np.uint8)).save(tmp_path / f"{index}.png")
        marks = (rng.random(7) < 0.3).astype(int)
        marks[6] = 0
        rows.append(f"{index}.png," + ",".join(map(str, marks)))
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return tmp_path / "table.csv"


def truth_of(dataset):
    return np.array([[index in one.classes for index in range(7)] for one in dataset])


def test_several_labels_are_measured_as_by_scikit_learn(table, tmp_path):
    dataset = sources.open(table, 7, LABELS, several=True)
    models = [model(labels=LABELS), model(1)]
    run = evaluate(models, dataset, Views(flip=True), fuse=True, batch_size=7)
    found = records(run, threshold=0.45)
    truth, scores = truth_of(dataset), [results.every for results in run.results]
    np.testing.assert_allclose(scores[2], (scores[0] + scores[1]) / 2, atol=1e-6)
    plain = evaluate(models, dataset)
    for one, results in zip(models, plain.results, strict=True):
        np.testing.assert_allclose(results.every, one.scores([sample.path for sample in dataset]), atol=1e-6)
    for record, score in zip(found, scores, strict=True):
        assert record["map"] == pytest.approx(100 * sklearn.average_precision_score(truth[:, :6], score[:, :6]), abs=1e-3)
        assert record["roc_auc"] == pytest.approx(100 * sklearn.roc_auc_score(truth[:, :6], score[:, :6]), abs=1e-3)
        for average in ("micro", "macro"):
            expected = sklearn.f1_score(truth, score > 0.45, average=average, zero_division=0)
            assert record[f"f1_{average}"] == pytest.approx(100 * expected, abs=1e-3)
        loss = [sklearn.log_loss(truth[:, one], score[:, one], labels=[False, True]) for one in range(7)]
        assert record["cross_entropy"] == pytest.approx(np.mean(loss), abs=1e-3)
        assert (record["images"], record["map_classes"], record["threshold"]) == (COUNT, 6, 0.45)
        same = None if score is scores[0] else 100 * np.mean(((score > 0.45) == (scores[0] > 0.45)).all(1))
        assert record["agreement"] == (None if same is None else pytest.approx(same, abs=1e-3))
        assert "top1" not in record
    rows = list(predictions(run))
    assert len(rows) == 3 * COUNT
    assert rows[0]["classes"] == " ".join(map(str, dataset.samples[0].classes))
    assert [rows[0][f"score_{index}"] for index in range(7)] == pytest.approx(scores[0][0].tolist(), abs=1e-6)
    write(run, found, tmp_path / "report.html", 0.45)
    page = (tmp_path / "report.html").read_text()
    assert f"{found[0]['map']:.2f}%" in page
    assert "above 0.45" in page
    assert "top-5" not in page


def test_an_interrupted_evaluation_of_several_labels_resumes(table):
    dataset = sources.open(table, 7, LABELS, several=True)
    whole = evaluate([model()], dataset)

    def interrupt(task, done, total, unit=""):
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([model()], dataset, batch_size=5, progress=interrupt)
    starts = []
    resumed = evaluate([model()], dataset, batch_size=5, progress=lambda task, done, *_: starts.append(done))
    assert starts[0] > 10
    np.testing.assert_allclose(resumed.results[0].every, whole.results[0].every, atol=1e-6)


def test_another_reading_of_the_same_parameters_is_another_evaluation(table):
    dataset = sources.open(table, 7, LABELS, several=True)
    evaluate([model()], dataset, keep=True)
    other = model()
    other = Classifier(other.network.read_as("average, 24 gelu, classes sigmoid"), "onnxruntime", threads=1, name=other.name)
    results = evaluate([other], dataset).results[0]
    np.testing.assert_allclose(results.every, other.scores([sample.path for sample in dataset]), atol=1e-6)


def test_one_logit_is_measured_as_by_scikit_learn(table, tmp_path):
    every = sources.open(table, 7, LABELS, several=True).samples
    samples = [replace(one, target=index % 2, several=None) for index, one in enumerate(every)]
    dataset = Dataset("pairs", samples)
    binary = model(head="average, classes binary", classes=2)
    softmax = model(head="average, classes", classes=2, seed=3)
    run = evaluate([binary, softmax], dataset)
    threshold = round(float(np.median(binary.scores([sample.path for sample in samples])[:, 1])), 3)
    found = records(run, threshold=threshold)
    truth = np.arange(COUNT) % 2 == 1
    for record, one in zip(found, (binary, softmax), strict=True):
        positive = one.scores([sample.path for sample in samples])[:, 1]
        assert record["roc_auc"] == pytest.approx(100 * sklearn.roc_auc_score(truth, positive), abs=1e-3)
        assert record["f1"] == pytest.approx(100 * sklearn.f1_score(truth, positive > threshold, zero_division=0), abs=1e-3)
        assert record["top1"] == pytest.approx(100 * np.mean((positive > 0.5) == truth), abs=1e-3)
        assert record["top5"] is None
        assert record["sensitivity"] == pytest.approx(100 * sklearn.recall_score(truth, positive > threshold), abs=1e-3)
        assert record["specificity"] == pytest.approx(100 * sklearn.recall_score(~truth, positive <= threshold), abs=1e-3)
        for name in ("roc_auc", "sensitivity", "specificity"):
            assert record[f"{name}_low"] <= record[name] <= record[f"{name}_high"] > record[f"{name}_low"]
        assert record["threshold"] == threshold
        balanced = sklearn.balanced_accuracy_score(truth, positive > 0.5)
        assert record["balanced_accuracy"] == pytest.approx(100 * balanced, abs=1e-3)
    write(run, found, tmp_path / "report.html", threshold)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<h3>Confusion matrix</h3>") == page.count("<h3>Operating points</h3>") == 2
    assert f"(columns, positive for scores above {threshold})" in page
    chosen = binary.scores([sample.path for sample in samples])[:, 1] > threshold
    assert not np.array_equal(chosen, run.results[0].top[:, 0])  # the classes with a score above 0.5
    right = [int(np.sum((chosen == one) & (truth == one))) for one in (0, 1)]
    row = f'<tr><th scope="row">positive<td class="number" style="--share:{(13 - right[1]) / 13:.0%}">{13 - right[1]}'
    assert f'{row}<td class="number" style="--share:{right[1] / 13:.0%}">{right[1]}' in page
    alone = records(evaluate([binary], Dataset("one", [one for one in samples if one.target])))
    assert all(alone[0][name] is None for name in ("roc_auc", "roc_auc_low", "specificity", "specificity_high"))


def test_data_and_networks_that_do_not_fit_are_refused(table):
    several = sources.open(table, 7, LABELS, several=True)
    with pytest.raises(Error, match="its images don't have one class each, as the output `softmax` requires"):
        evaluate([model(head="average, classes")], several)
    with pytest.raises(Error, match="can't be compared; only one of them has a score for each class"):
        evaluate([model(name="a"), model(head="average, classes", name="b")], several)
    with pytest.raises(ModelError, match="this vgg11 has no head, so it can't classify"):
        evaluate([model(head="none", classes=0)], several)
    with pytest.raises(Error, match="boxes require one"):
        evaluate([model()], several, boxes=".")


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "vgg", *map(str, arguments)], capture_output=True, text=True, timeout=120)


def test_the_command_line_evaluates_several_labels(table, tmp_path):
    one = model(labels=LABELS)
    one.network.write(tmp_path / "n.onnx")
    dataset = sources.open(table, 7, LABELS, several=True)
    [expected] = records(evaluate([one], dataset), threshold=0.3)
    arguments = ["evaluate", table, "-m", tmp_path / "n.onnx", "--threshold", 0.3, "-e", "onnxruntime"]
    done = run(*arguments, "--format", "json", "--predictions", tmp_path / "all.csv", "--report", tmp_path / "report.html")
    assert done.returncode == 0, done.stderr
    [record] = json.loads(done.stdout)
    assert {name: record[name] for name in ("map", "f1_micro", "f1_macro", "threshold", "images")} == {
        name: expected[name] for name in ("map", "f1_micro", "f1_macro", "threshold", "images")
    }
    assert len(list(csv.DictReader((tmp_path / "all.csv").read_text().splitlines()))) == COUNT
    shown = run(*arguments).stdout.splitlines()
    assert "mAP %" in shown[0]
    assert f"{record['map']:.2f}" in shown[1]
    softmax = run(*arguments, "--output-activation", "softmax")
    assert (softmax.returncode, softmax.stderr.count("\n")) == (1, 1)
    assert "table.csv, line 2: has" in softmax.stderr
    parts = run(*arguments, "-o", tmp_path / "parts")
    assert "several classes of an image are evaluated in one piece; leave out --output" in parts.stderr


def test_the_loss_of_quantizing_several_labels_is_that_of_mean_average_precision(table, tmp_path):
    model(labels=LABELS).network.write(tmp_path / "n.onnx")
    arguments = ("--evaluate", table, "--format", "json", "--threads", 1)
    done = run("quantize", tmp_path / "n.onnx", "-o", tmp_path / "q.onnx", "--bits", 4, *arguments)
    assert done.returncode == 0, done.stderr
    floats, quantized = json.loads(done.stdout)
    assert quantized["map lost"] == pytest.approx(floats["map"] - quantized["map"], abs=1e-3)
    assert "top1" not in floats
