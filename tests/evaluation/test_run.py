import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sklearn

from conftest import change_version, needs_native, random_network
from vgg import Error, Labels, Network, Notice, engines, sources, zoo
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
        balanced = np.mean([np.mean(order[targets == target, 0] == target) for target in range(7)])
        assert one["balanced_accuracy"] == round(100 * balanced, 3)
        assert one["roc_auc"] == pytest.approx(100 * sklearn.roc_auc_score(targets, score, multi_class="ovr"), abs=1e-3)
        if one is not found[0]:
            assert one["agreement"] == round(100 * np.mean(order[:, 0] == first), 3)
            assert 0 < one["mcnemar"] <= 1
    assert found[0]["agreement"] is found[0]["mcnemar"] is None
    assert [one["crop_pct"] for one in found[:3]] == [0.889, 0.889, 0.933]
    assert [one["img_size"] for one in found[:3]] == [32, 32, 224]


def test_a_broken_image_affects_no_other(dataset, tmp_path):
    whole = evaluate([model()], dataset)
    place = 11
    os.truncate(dataset.samples[place].path, 200)
    run = evaluate([model()], dataset)
    [record] = records(run)
    assert (record["images"], record["failed"]) == (COUNT - 1, 1)
    assert list(run.errors) == [place]
    assert dataset.samples[place].name in run.errors[place]
    others = [index for index in range(COUNT) if index != place]
    assert np.array_equal(run.results[0].top[others], whole.results[0].top[others])
    rows = list(predictions(run))
    assert rows[place]["error"] == run.errors[place]
    assert rows[place]["class_1"] is None


def test_all_broken_is_an_error(tmp_path):
    gone = Dataset("gone", [Sample("a.jpg", 0, str(tmp_path / "a.jpg")), Sample("b.jpg", 1, str(tmp_path / "b.jpg"))])
    with pytest.raises(Error, match=r"gone: none of its 2 images could be read; a\.jpg: file or folder not found"):
        evaluate([model()], gone)


def test_an_interrupted_evaluation_resumes(dataset):
    whole = records(evaluate([model(), model(1)], dataset, fuse=True))
    seen = []

    def stop(task, done, total, unit=""):
        seen.append((task, done, total, unit))
        if done >= 16:
            raise KeyboardInterrupt

    def note(task, done, total, unit=""):
        seen.append(done)

    with pytest.raises(KeyboardInterrupt):
        evaluate([model(), model(1)], dataset, fuse=True, batch_size=4, progress=stop)
    assert seen[-1] == ("Evaluating tiny-0, tiny-1", 16, COUNT, "")
    seen.clear()
    found = evaluate([model(), model(1)], dataset, fuse=True, batch_size=4, progress=note)
    assert seen == [20, 24, 28, 30]
    timeless = [{key: value for key, value in one.items() if key != "images_per_second"} for one in whole]
    assert [{key: value for key, value in one.items() if key != "images_per_second"} for one in records(found)] == timeless
    seen.clear()
    evaluate([model(), model(1)], dataset, fuse=True, batch_size=4, progress=note)
    assert seen[0] == 4  # a complete evaluation leaves no state


def interrupt(dataset, engine="onnxruntime"):
    """Interrupt an evaluation of `model()` after 4 images."""

    def stop(task, done, total, unit=""):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate([Classifier(model().network, engine, name="tiny-0")], dataset, batch_size=4, progress=stop)


def first_done(*arguments, **options):
    """The number of images done after the first batch of 4."""
    seen = []
    evaluate(*arguments, batch_size=4, progress=lambda task, done, total, unit="": seen.append(done), **options)
    return seen[0]


CHANGES = [
    "model",
    "engine",
    "runtime",
    "vgg",
    "instructions",
    "preprocessing",
    "views",
    "dataset",
    "fresh",
    "damage",
    "nothing",
]


@pytest.mark.parametrize("change", CHANGES)
def test_only_the_same_evaluation_resumes(dataset, tmp_path, monkeypatch, change):
    if change == "instructions" and engines.native_library() is None:
        pytest.skip("needs the native engine")
    interrupt(dataset, "native" if change == "instructions" else "onnxruntime")
    chosen, views = model(), Views("ten-crop") if change == "views" else Views()
    if change == "model":
        chosen = model(1, name="tiny-0")
    if change == "engine":
        pytest.importorskip("torch", reason="needs torch")
        chosen = Classifier(chosen.network, "torch", name="tiny-0")
    if change in ("runtime", "vgg"):
        change_version(monkeypatch, {"runtime": "onnxruntime", "vgg": "vgg"}[change])
    if change == "instructions":
        chosen = Classifier(chosen.network, "native", name="tiny-0")
        assert first_done([chosen], dataset) == 8
        interrupt(dataset, "native")
        monkeypatch.setenv("VGG_INSTRUCTIONS", "portable")
    if change == "preprocessing":
        chosen.network = replace(chosen.network, preprocessing=replace(SMALL, size=38))
    if change == "dataset":
        dataset = Dataset(dataset.name, dataset.samples[:-1])
    if change == "damage":
        [saved] = tmp_path.glob("cache/evaluations/*/state.npz")
        saved.write_bytes(saved.read_bytes()[:-50])
    assert first_done([chosen], dataset, views, fresh=change == "fresh") == (8 if change == "nothing" else 4)


def test_the_key_of_an_evaluation_is_computed_only_if_there_may_be_a_state(dataset, monkeypatch):
    """Hashing the parameters of VGG-16 takes a second."""

    def refuse(network):
        raise AssertionError("hashed")

    with monkeypatch.context() as patch:
        patch.setattr(Network, "sha256", refuse)
        evaluate([model()], dataset)
    interrupt(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(Network, "sha256", refuse)
        evaluate([model(1)], dataset)
        with pytest.raises(AssertionError, match="hashed"):
            evaluate([model()], dataset)
    assert first_done([model()], dataset) == 8


def test_a_complete_evaluation_is_kept_on_request(dataset):
    first = evaluate([model()], dataset, keep=True)
    assert not (evaluate([model()], dataset, keep=True, progress=None).results[0].top != first.results[0].top).any()


def test_an_evaluation_without_a_cache_folder_continues(dataset, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VGG_HOME", str(tmp_path / "file"))
    with pytest.warns(Notice, match="the evaluation can't be resumed if it is interrupted: .*file/evaluations"):
        assert records(evaluate([model()], dataset, keep=True))[0]["images"] == COUNT


def test_models_with_other_classes_are_refused(dataset):
    with pytest.raises(Error, match="tiny-1 and tiny-0 have different classes"):
        evaluate([model(), model(1, classes=5, labels=None)], dataset)
    with pytest.raises(Error, match="tiny-1 and tiny-0 have different classes"):
        evaluate([model(), model(1, labels=Labels(tuple(reversed(LABELS.names))))], dataset)
    evaluate([model(), model(1, labels=None)], dataset)


def test_real_accuracy_accepts_any_class_of_an_image(dataset, tmp_path):
    run = evaluate([model()], dataset)
    best = {sample.name: int(top) for sample, top in zip(dataset, run.results[0].top[:, 0], strict=True)}
    by_number = {int(name[-12:-4]): top for name, top in best.items()}
    # The first ten images show nothing, the next ten the predicted class and another one, the others another class.
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
        ("[[], []]", "no labels of these images"),
    ],
)
def test_bad_real_labels_are_one_clear_line(dataset, tmp_path, content, message):
    (tmp_path / "real.json").write_text(content)
    with pytest.raises(Error, match=message):
        read_real(tmp_path / "real.json", dataset, 7)
    with pytest.raises(Error, match="file or folder not found"):
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
    assert record["top5"] is record["top5_low"] is None


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
def note(task, done, total, unit=""):
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


def test_an_engine_that_normalises_gets_pixels_beside_one_that_does_not(dataset, monkeypatch):
    """With the same preprocessing, and views that are mirrored or parts of others."""
    network, dtypes = model().network, {}
    models = [Classifier(network, name, threads=1, name=name) for name in ("torch", "onnxruntime")]
    for one in models:
        run = one.engine.run

        def recorded(batch, outputs, run=run, name=one.name):
            dtypes.setdefault(name, set()).add(str(batch.dtype))
            return run(batch, outputs)

        monkeypatch.setattr(one.engine, "run", recorded)
    found = evaluate(models, dataset, Views("ten-crop", (36, 40)))
    assert dtypes == {"torch": {"uint8"}, "onnxruntime": {"float32"}}
    first, second = found.results
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
