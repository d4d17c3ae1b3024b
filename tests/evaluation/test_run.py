import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import needs_native, random_network
from vgg import Error, Labels, sources, zoo
from vgg.classifier import Classifier
from vgg.evaluation import evaluate, predictions, read_real, records
from vgg.predictions import softmax
from vgg.preprocessing import PRESETS
from vgg.sources import Dataset, Sample
from vgg.views import Views

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
SMALL = replace(PRESETS["torchvision"], size=36, crop=32)
COUNT = 30


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VGG_HOME", str(tmp_path / "cache"))


def model(seed=0, recipe=SMALL, labels=LABELS, name="", **options):
    network = replace(random_network(seed=seed, labels=labels, **options), preprocessing=recipe)
    return Classifier(network, "onnxruntime", threads=1, name=name or f"tiny-{seed}")


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    rng = np.random.default_rng(1)
    for index in range(COUNT):
        folder = tmp_path / "data" / LABELS.names[index % 7]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + index, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"ILSVRC2012_val_{index + 1:08d}.png")
    return sources.open(tmp_path / "data", 7, LABELS)


def expected(classifier, dataset):
    logits = classifier.logits([sample.path for sample in dataset])
    return softmax(logits), np.array([sample.target for sample in dataset])


def test_figures_are_those_of_the_classifier(dataset):
    models = [model(), model(1), model(2, PRESETS["torchvision"], input_size=224)]
    models[2].network = replace(models[2].network, preprocessing=replace(SMALL, size=240, crop=224))
    run = evaluate(models, dataset, fuse=True, batch_size=7)
    found = records(run)
    assert [one["model"] for one in found] == ["tiny-0", "tiny-1", "tiny-2", "tiny-0 + tiny-1 + tiny-2"]
    scores = [expected(one, dataset)[0] for one in models]
    targets = expected(models[0], dataset)[1]
    scores.append(np.mean(scores, 0))
    first = scores[0].argmax(1)
    for one, score in zip(found, scores, strict=True):
        order = np.argsort(-score, 1, kind="stable")
        assert one["images"] == COUNT
        assert one["failed"] == 0
        assert one["top1"] == round(100 * np.mean(order[:, 0] == targets), 3)
        assert one["top5"] == round(100 * np.mean((order[:, :5] == targets[:, None]).any(1)), 3)
        assert one["top1_err"] == round(100 - one["top1"], 3)
        assert one["top1_low"] < one["top1"] < one["top1_high"]
        assert one["cross_entropy"] == pytest.approx(-np.log(score[np.arange(COUNT), targets]).mean(), abs=1e-3)
        if one is not found[0]:
            assert one["agreement"] == round(100 * np.mean(order[:, 0] == first), 3)
            assert 0 < one["mcnemar"] <= 1
    assert found[0]["agreement"] is found[0]["mcnemar"] is None
    assert [one["crop_pct"] for one in found[:3]] == [0.889, 0.889, 0.933]
    assert [one["img_size"] for one in found[:3]] == [32, 32, 224]


def test_a_broken_picture_costs_the_run_nothing_else(dataset, tmp_path):
    whole = evaluate([model()], dataset)
    place = 11
    os.truncate(dataset.samples[place].path, 200)
    run = evaluate([model()], dataset)
    [record] = records(run)
    assert (record["images"], record["failed"]) == (COUNT - 1, 1)
    assert list(run.errors) == [place]
    assert dataset.samples[place].name in run.errors[place]
    others = [index for index in range(COUNT) if index != place]
    assert np.array_equal(run.answers[0].top[others], whole.answers[0].top[others])
    rows = list(predictions(run))
    assert rows[place]["error"] == run.errors[place]
    assert rows[place]["class_1"] is None


def test_all_broken_is_an_error(tmp_path):
    gone = Dataset("gone", [Sample("a.jpg", 0, str(tmp_path / "a.jpg")), Sample("b.jpg", 1, str(tmp_path / "b.jpg"))])
    with pytest.raises(Error, match=r"gone: none of its 2 pictures could be read; a\.jpg: there is no such file"):
        evaluate([model()], gone)


def test_a_run_that_is_cut_goes_on_where_it_was(dataset):
    whole = records(evaluate([model(), model(1)], dataset, fuse=True))
    seen = []

    def stop(done):
        seen.append(done)
        if done >= 16:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([model(), model(1)], dataset, fuse=True, batch_size=4, progress=stop)
    assert seen[-1] == 16
    seen.clear()
    found = evaluate([model(), model(1)], dataset, fuse=True, batch_size=4, resume=True, progress=seen.append)
    assert seen == [20, 24, 28, 30]
    timeless = [{key: value for key, value in one.items() if key != "images_per_second"} for one in whole]
    assert [{key: value for key, value in one.items() if key != "images_per_second"} for one in records(found)] == timeless
    seen.clear()
    evaluate([model(), model(1)], dataset, fuse=True, batch_size=4, resume=True, progress=seen.append)
    assert seen[0] == 4  # what was finished is forgotten


@pytest.mark.parametrize("change", ["model", "protocol", "dataset", "nothing", "damage"])
def test_only_the_same_run_is_resumed(dataset, tmp_path, change):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([model()], dataset, batch_size=4, progress=stop)
    if change == "dataset":
        dataset = Dataset(dataset.name, dataset.samples[:-1])
    if change == "damage":
        [saved] = (tmp_path / "cache/evaluations").iterdir()
        saved.write_bytes(saved.read_bytes()[:-50])
    seen = []
    chosen = model(1, name="tiny-0") if change == "model" else model()
    protocol = Views("ten-crop") if change == "protocol" else Views()
    evaluate([chosen], dataset, protocol, batch_size=4, resume=True, progress=seen.append)
    assert seen[0] == (8 if change == "nothing" else 4)


def test_models_with_other_classes_are_refused(dataset):
    with pytest.raises(Error, match="tiny-1 has other classes than tiny-0"):
        evaluate([model(), model(1, classes=5, labels=None)], dataset)
    with pytest.raises(Error, match="tiny-1 has other classes than tiny-0"):
        evaluate([model(), model(1, labels=Labels(tuple(reversed(LABELS.names))))], dataset)
    evaluate([model(), model(1, labels=None)], dataset)


def test_real_accuracy_counts_any_of_a_pictures_classes(dataset, tmp_path):
    run = evaluate([model()], dataset)
    best = {sample.name: int(top) for sample, top in zip(dataset, run.answers[0].top[:, 0], strict=True)}
    by_number = {int(name[-12:-4]): answer for name, answer in best.items()}
    # The first ten pictures show nothing, the next ten what the model says and more, the others something else.
    listed = [
        [] if n <= 10 else sorted({by_number[n], 3}) if n <= 20 else [(by_number[n] + 1) % 7] for n in range(1, COUNT + 1)
    ]
    (tmp_path / "real.json").write_text(json.dumps(listed))
    [record] = records(run, read_real(tmp_path / "real.json", dataset, 7))
    assert (record["real"], record["real_images"]) == (50.0, 20)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "ReaL labels must be a JSON list"),
        ('{"a": 1}', "ReaL labels must be a JSON list"),
        ("[[1], [true]]", "ReaL labels must be a JSON list"),
        ("[[1], [7]]", "with a list of classes, below 7"),
        ("[[], []]", "none is here"),
    ],
)
def test_bad_real_labels_are_one_clear_line(dataset, tmp_path, content, message):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(Error, match=message):
        read_real(tmp_path / "real.json", dataset, 7)
    with pytest.raises(Error, match="there is no such file"):
        read_real(tmp_path / "none.json", dataset, 7)


def test_the_published_figure_stands_beside_the_measured_one(dataset):
    known = zoo.list()[2]
    classifier = model()
    classifier.network = replace(classifier.network, provenance=replace(classifier.network.provenance, published=known.name))
    [record] = records(evaluate([classifier], dataset))
    assert (record["published"], record["published_top1"], record["published_top5"]) == (known.name, known.top1, known.top5)


def test_two_classes_have_no_fifth_guess(dataset, tmp_path):
    labels = Labels(("ant", "bee"))
    two = sources.open(tmp_path / "data", 7, LABELS).samples
    pair = Dataset("pair", [sample for sample in two if sample.target < 2])
    [record] = records(evaluate([model(classes=2, labels=labels)], pair))
    assert record["top5"] == 100


MEMORY = """
import resource, sys
from dataclasses import replace
from conftest import random_network
from vgg.classifier import Classifier
from vgg.sources import Dataset, Sample
from vgg.evaluation import evaluate

from vgg.preprocessing import PRESETS
path, count = sys.argv[1], int(sys.argv[2])
network = random_network(width=1 / 64)
network = replace(network, preprocessing=replace(PRESETS["torchvision"], size=32, crop=32))
samples = [Sample("a.png", 3, path)] * count
peaks = []
def note(done):
    with open("/proc/self/statm") as file:
        peaks.append((done, int(file.read().split()[1]) * resource.getpagesize()))
evaluate([Classifier(network, sys.argv[3], threads=1)], Dataset("same", samples), progress=note)
early = max(size for done, size in peaks if count // 10 <= done <= count // 5)
late = max(size for done, size in peaks if done > count // 5)
print((late - early) / 2**20)
"""


@needs_native
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of a process's memory")
@pytest.mark.parametrize("count", [4_000, pytest.param(100_000, marks=pytest.mark.full)])
def test_memory_stays_flat(tmp_path, count):
    Image.new("RGB", (34, 32), "teal").save(tmp_path / "a.png")
    arguments = [sys.executable, "-W", "ignore", "-c", MEMORY, tmp_path / "a.png", str(count), "native"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    grown = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout
    assert float(grown) < 16, f"{grown} MiB"
