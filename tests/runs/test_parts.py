"""Bulk work in parts, in this process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset
import pytest

from conftest import needs_native
from miniature import jpeg
from quantized_files import quantized
from runs_helpers import BROKEN, COUNT, LABELS, MODELS, PART, classify, near, network, rows
from training_helpers import cifar_folder
from vgg import Error, runs, sources
from vgg.classifier import Classifier
from vgg.evaluation import evaluate, records
from vgg.features import Descriptor, extract
from vgg.formats import load
from vgg.views import Views

pytestmark = needs_native


def test_rows_of_classify_are_the_classifiers(photos, tmp_path):
    done = classify(photos, tmp_path / "out")
    assert (done.images, done.failed, done.plan.parts) == (COUNT, 1, 10)
    broken = str(photos / LABELS.names[BROKEN % 7] / f"{BROKEN:03}.jpg")
    assert done.errors == [f"{broken}: not an image, or an unsupported format"]
    found = rows(tmp_path / "out")
    for row, result in zip(found, Classifier(MODELS[0][1], threads=1).results(photos, 3), strict=True):
        assert (row["image"], row["error"]) == (result.image, result.error)
        assert (row["predictions"] is None) == (row["image"] == broken)
        assert near(row["predictions"] or [], [vars(one) for one in result.predictions])


def test_rows_of_features_are_the_vectors(photos, tmp_path):
    descriptor = Descriptor(("conv4_2", "fc7"), Views(flip=True), normalize=True)
    runs.run(runs.Describe(descriptor), MODELS, [str(photos)], str(tmp_path / "out"), part=1)  # one part is broken
    images = [(str(path), path) for path in sorted(photos.rglob("*.jpg"))]
    for row, one in zip(rows(tmp_path / "out"), extract(Classifier(MODELS[0][1]), images, descriptor), strict=True):
        assert (row["image"], row["error"]) == (one.image, one.error)
        for layer in descriptor.layers:
            assert near(row[layer], None if one.error else one.values[layer].tolist())
    [kind] = {field.type for field in pyarrow.dataset.dataset(str(tmp_path / "out")).schema if field.name == "fc7"}
    assert kind.list_size == 256


def test_a_file_with_other_quantized_activations_is_another_model(photos, tmp_path):
    def run(**extra):
        path = quantized(tmp_path, head="gap", classes=7, extra={"QuantizeBias": False, **extra})
        return runs.run(runs.Classify(3), [("q", load(path))], [str(photos)], str(tmp_path / "out"), part=PART)

    run()
    with pytest.raises(Error, match="holds other work"):
        run(ActivationSymmetric=True)  # the parameters are the same


def test_figures_of_evaluate_are_those_of_one_run(photos, tmp_path):
    models = [*MODELS, ("other", network(1))]
    task = runs.Score(Views("ten-crop"), fuse=True)
    done = runs.run(task, models, [str(photos)], str(tmp_path / "out"), part=PART)
    assert (done.images, done.failed) == (COUNT, 1)
    found = runs.records(done, task, models)
    classifiers = [Classifier(one, name=name) for name, one in models]
    run = evaluate(classifiers, sources.open(photos, 7, LABELS), task.protocol, fuse=True)
    for one, expected in zip(found, records(run), strict=True):
        expected |= {"images_per_second": None, "engine": None, "roc_auc": None}  # rows have the best five of seven classes
        assert one == {key: pytest.approx(value, abs=2e-4) for key, value in expected.items()}
    named = [row for row in rows(tmp_path / "out") if row["model"] == "tiny"]
    assert [row["label"] for row in named] == [Path(row["image"]).parent.name for row in named]


def test_figures_need_an_image(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg 0\nb.jpg ant\n")
    done = runs.run(runs.Score(), MODELS, [str(tmp_path / "list.txt")], str(tmp_path / "out"))
    assert (done.images, done.failed) == (2, 2)
    with pytest.raises(Error, match=r"out: none of the 2 images could be read; .*/a\.jpg: file or folder not found"):
        runs.records(done, runs.Score(), MODELS)


def test_an_interrupted_run_resumes_with_the_missing_parts(photos, tmp_path):
    def stop(task, done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classify(photos, tmp_path / "out", progress=stop)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len([name for name in before if name.startswith("part-")]) == 4
    (photos / "ant/999.jpg").write_bytes(jpeg(0))  # was added later and is not part of this run
    reports = []
    classify(photos, tmp_path / "out", progress=lambda task, *done: reports.append(done))
    assert reports == [(number, 10) for number in range(4, 11)]
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == then for name, then in before.items())
    classify(photos, tmp_path / "whole", progress=lambda *done: None)
    assert near(rows(tmp_path / "out"), [row for row in rows(tmp_path / "whole") if not row["image"].endswith("999.jpg")])


def test_a_killed_run_leaves_complete_parts(photos, tmp_path):
    code = f"import runs_helpers; runs_helpers.classify({str(photos)!r}, 'out', part=1)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for _ in range(3):
        run = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, env=environment)
        before = len(list(tmp_path.glob("out/part-*")))
        while run.poll() is None and len(list(tmp_path.glob("out/part-*"))) < before + 5:
            time.sleep(0.005)
        run.send_signal(signal.SIGKILL)
        run.wait()
        found = [row["image"] for row in rows(tmp_path / "out")]  # every part can be read
        assert len(set(found)) == len(found) >= before
    classify(photos, tmp_path / "out", part=1)
    classify(photos, tmp_path / "whole")
    assert near(rows(tmp_path / "out"), rows(tmp_path / "whole"))


def test_a_folder_holds_one_run(photos, tmp_path):
    with pytest.raises(Error, match=r"nowhere: file or folder not found"):
        classify(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(Error, match="vgg11 has no layer output 'fc9'"):
        runs.run(runs.Describe(Descriptor(("fc9",))), MODELS, [str(photos)], str(tmp_path / "out"))
    classify(photos, tmp_path / "out")  # where no part is, no run is
    with pytest.raises(Error, match=r"out: holds other work \(options\.top: 3, not 4\); use --fresh to start over"):
        runs.run(runs.Classify(4), MODELS, [str(photos)], str(tmp_path / "out"), part=PART)
    with pytest.raises(Error, match=r"out: holds other work \(models: .*\)"):
        runs.run(runs.Classify(3), [("tiny", network(1))], [str(photos)], str(tmp_path / "out"), part=PART)
    with pytest.raises(Error, match=r"out: holds other work \(engine: auto, not native\)"):
        classify(photos, tmp_path / "out", engine="native")
    for fresh in (False, True):
        with pytest.raises(Error, match="photos: is not empty and holds no run of vgg"):
            classify(photos, photos, fresh=fresh)
    with pytest.raises(Error, match="unknown runner 'up'; choose from local, ray"):
        classify(photos, tmp_path / "out", runner="up")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match=r"empty: has no images in it"):
        classify(tmp_path / "empty", tmp_path / "other")


def test_fresh_starts_over(photos, tmp_path):
    before = classify(photos, tmp_path / "out").plan
    (tmp_path / "out/notes.txt").write_text("kept")
    done = runs.run(runs.Classify(4), MODELS, [str(photos)], str(tmp_path / "out"), part=PART, fresh=True)
    expected = [done.plan.inputs, "_run.json", "notes.txt", *map(done.plan.name, range(10))]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(expected)
    assert before.name(0) != done.plan.name(0)
    reports = []
    runs.run(
        runs.Classify(4), MODELS, [str(photos)], str(tmp_path / "out"), part=PART, progress=lambda *now: reports.append(now)
    )
    assert reports == [("Classifying in parts", 10, 10)]
    (tmp_path / "out/_run.json").write_text("{")
    with pytest.raises(Error, match=r"_run\.json: is damaged; use --fresh to start over, or another folder"):
        classify(photos, tmp_path / "out")
    assert classify(photos, tmp_path / "out", fresh=True).images == COUNT


def test_lists_and_cifar10_in_parts(photos, tmp_path):
    names = [str(path.relative_to(tmp_path)) for path in sorted(photos.rglob("*.jpg"))]
    (tmp_path / "list.txt").write_text("\n".join(names))
    classify(tmp_path / "list.txt", tmp_path / "out")
    classify(photos, tmp_path / "whole")
    assert near(rows(tmp_path / "out"), rows(tmp_path / "whole"))
    folder = cifar_folder(tmp_path / "cifar")
    done = classify(folder, tmp_path / "records")
    assert (done.images, done.failed, done.plan.parts) == (64, 0, 1)
    assert f"{folder}/data_batch_1.bin/63" in [row["image"] for row in rows(tmp_path / "records")]


@pytest.mark.parametrize(("module", "option"), [("fsspec", "local"), ("pyarrow", "local"), ("ray", "ray")])
def test_a_missing_package_is_named(photos, tmp_path, monkeypatch, module, option):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Error, match=rf"requires {module}; install with `pip install 'vgg\[scale\]'`"):
        classify(photos, tmp_path / "out", runner=option)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux' list of threads")
def test_results_are_read_without_arrows_threads(photos, tmp_path):
    """Such a thread may still hold a Python file when the process ends, which aborts it, rarely."""
    classify(photos, tmp_path / "out")
    code = f"""
import os, threading, time, pyarrow.parquet
from vgg import runs
from vgg.runs.folder import Folder, Plan
import json
folder = Folder({str(tmp_path / "out")!r})
plan = Plan(**json.load(folder.open("_run.json")))
def others():
    return set(map(int, os.listdir("/proc/self/task"))) - {{one.native_id for one in threading.enumerate()}}
before = others()
assert sum(len(table) for table in folder.tables(plan, ["image", "error"])) == {COUNT}
assert sum(map(len, map(folder.inputs(plan), range(plan.parts)))) == {COUNT}
until = time.monotonic() + 5
while others() - before and time.monotonic() < until:  # the readers end
    time.sleep(0.01)
assert not others() - before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
