"""Images in shards, on a web server and on a real S3 server."""

import pytest

from conftest import needs_native
from loopback import serving
from miniature import jpeg, pack
from runs_helpers import COUNT, LABELS, MODELS, PART, classify, near, rows
from vgg import Error, runs, sources
from vgg.classifier import Classifier
from vgg.evaluation import evaluate, records
from vgg.sources import stores

# fsspec's clients don't close all of their connections.
pytestmark = [
    needs_native,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]


def test_shards_are_parts(photos, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    members = [(f"{index:02}", jpeg(index), LABELS.names[index % 7].encode()) for index in range(12)]
    for number in range(3):
        part = members[4 * number : 4 * number + 4]
        (folder / f"{number}.tar").write_bytes(pack({f"{k}.{e}": c for k, p, t in part for e, c in (("jpg", p), ("cls", t))}))
    (folder / "3.tar").write_bytes((folder / "0.tar").read_bytes()[:1000])
    done = classify(folder, tmp_path / "out")
    assert (done.images, done.failed, done.plan.parts) == (13, 1, 4)
    assert done.errors[0].startswith(f"{folder}/3.tar: is damaged, truncated, or not a tar file")
    assert rows(tmp_path / "out")[5]["image"] == f"{folder}/1.tar/05.jpg"
    scored = runs.run(runs.Score(), MODELS, [str(folder)], str(tmp_path / "scored"))
    assert (scored.images, scored.failed) == (13, 1)
    with serving({f"{number}.tar": (folder / f"{number}.tar").read_bytes() for number in range(3)}) as server:
        task = runs.Score()
        url = f"{server.address}/{{}}.tar"
        for number in range(3):
            done = runs.run(task, MODELS, [url.format(number)], str(tmp_path / f"far{number}"))
            assert (done.images, done.failed) == (4, 0)
        assert [row["class"] for row in rows(tmp_path / "far2")] == [index % 7 for index in range(8, 12)]
        assert rows(tmp_path / "far2")[0]["image"] == url.format(2) + "/08.jpg"
    near_by = evaluate([Classifier(MODELS[0][1], name="tiny")], sources.open(folder / "2.tar", 7, LABELS))
    assert runs.records(done, task, MODELS)[0]["top1"] == records(near_by)[0]["top1"]


def test_a_failing_store_is_not_a_broken_image(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(stores, "TRIES", 2)
    names = [f"{index}.jpg" for index in range(6)]
    with serving({name: jpeg(0) for name in names}) as server:
        urls = [f"{server.address}/{name}" for name in names]

        def run(output, progress=lambda *done: None):
            return runs.run(runs.Classify(), MODELS, urls, str(tmp_path / output), part=3, progress=progress)

        def fail(task, done, total):
            server.plan += ["status 500"] * 100 * (done == 1)

        done = run("gone", lambda task, done, total: server.plan.extend(["status 410"] * (done == 0)))
        assert (done.images, done.failed) == (6, 1)
        assert ".jpg: can't be read: 410" in done.errors[0]
        with pytest.raises(Error, match=r"/\d\.jpg: can't be read, after 2 attempts: 500"):
            run("out", fail)
        assert len(rows(tmp_path / "out")) == 3
        server.plan.clear()
        del server.files["4.jpg"]
        done = run("out")
        assert (done.images, done.failed) == (6, 1)
        assert done.errors == [f"{server.address}/4.jpg: file or folder not found"]


def test_images_and_results_in_an_object_store(photos, tmp_path, store):
    store.put(str(photos), "bucket/photos", recursive=True)
    store.pipe_file("bucket/photos/ant/", b"")  # as consoles mark folders
    done = classify("s3://bucket/photos", "s3://bucket/out")
    assert (done.images, done.failed, done.plan.parts) == (COUNT, 1, 10)
    store.get("bucket/out", str(tmp_path / "out"), recursive=True)
    classify(photos, tmp_path / "near")
    for far, close in zip(rows(tmp_path / "out"), rows(tmp_path / "near"), strict=True):
        assert far["image"] == f"s3://bucket/photos{close['image'].removeprefix(str(photos))}"
        assert near(far["predictions"], close["predictions"])
    store.rm(f"bucket/out/{done.plan.name(7)}")
    reports = []
    classify("s3://bucket/photos", "s3://bucket/out", progress=lambda task, *done: reports.append(done))
    assert reports == [(9, 10), (10, 10)]
    task = runs.Score()
    done = runs.run(task, MODELS, ["s3://bucket/photos"], "s3://bucket/scores", part=PART)
    assert runs.records(done, task, MODELS)[0]["images"] == COUNT - 1
    store.call_s3("put_object", Bucket="bucket", Key="photos/ant/cold.jpg", Body=jpeg(0), StorageClass="GLACIER")
    done = classify("s3://bucket/photos", "s3://bucket/cold")
    assert (done.images, done.failed) == (COUNT + 1, 2)
    assert any(one.startswith("s3://bucket/photos/ant/cold.jpg: can't be read: ") for one in done.errors)
    with pytest.raises(Error, match=r"s3://nobucket/x: file or folder not found"):
        classify("s3://nobucket/x", "s3://bucket/other")
    with pytest.raises(Error, match="s3://nobucket/out: can't be written"):
        classify("s3://bucket/photos", "s3://nobucket/out")
    with pytest.raises(Error, match="nostore://x: Protocol not known: nostore"):
        classify("nostore://x", tmp_path / "other")
