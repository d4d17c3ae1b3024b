"""Bulk work in parts: in this process, on a Ray cluster of several node processes, and on a real S3 server."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow.dataset
import pytest

from conftest import needs_native, random_network
from loopback import serving
from miniature import pack, picture
from vgg import Error, Labels, datasets, scale
from vgg.classifier import Classifier
from vgg.evaluation import Protocol, evaluate, records
from vgg.features import Descriptor, extract
from vgg.preprocessing import PRESETS
from vgg.scale import places

# What Ray and the S3 client and server do not close or still call, which is not ours to mend.
pytestmark = [
    needs_native,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
RECIPE = replace(PRESETS["torchvision"], size=36, crop=32)
COUNT = 47
BROKEN = 13  # one of them
PART = 5


def network(seed=0, **options):
    return replace(random_network(seed=seed, labels=LABELS, **options), preprocessing=RECIPE)


MODELS = [("tiny", network())]


@pytest.fixture
def photos(tmp_path) -> Path:
    """Class folders with small pictures, one of them broken."""
    for index in range(COUNT):
        path = tmp_path / "photos" / LABELS.names[index % 7] / f"{index:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"nothing" if index == BROKEN else picture(index))
    return tmp_path / "photos"


def rows(output) -> list[dict]:
    """All rows of a run, by the pictures' names."""
    return sorted(pyarrow.dataset.dataset(str(output)).to_table().to_pylist(), key=lambda row: (row["image"], row.get("model")))


def classify(place, output, **options):
    return scale.run(scale.Classify(3), MODELS, [str(place)], str(output), **{"part": PART, "threads": 1, **options})


def near(found, expected):
    """Whether rows are the same, but for what another batch does to the last digits."""
    if isinstance(expected, float):
        return found == pytest.approx(expected, abs=1e-5)
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(near(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(near, found, expected))
    return found == expected


def test_rows_of_classify_are_the_classifiers(photos, tmp_path):
    done = classify(photos, tmp_path / "out")
    assert (done.pictures, done.failed, done.plan.parts) == (COUNT, 1, 10)
    broken = str(photos / LABELS.names[BROKEN % 7] / f"{BROKEN:03}.jpg")
    assert done.errors == [f"{broken}: is not an image that can be read"]
    found = rows(tmp_path / "out")
    for row, result in zip(found, Classifier(MODELS[0][1], threads=1).results(photos, 3), strict=True):
        assert (row["image"], row["error"]) == (result.image, result.error)
        assert (row["predictions"] is None) == (row["image"] == broken)
        assert near(row["predictions"] or [], [vars(one) for one in result.predictions])


def test_rows_of_features_are_the_vectors(photos, tmp_path):
    descriptor = Descriptor(("conv4_2", "fc7"), Protocol(flip=True), normalize=True)
    scale.run(scale.Describe(descriptor), MODELS, [str(photos)], str(tmp_path / "out"), part=1)  # a part of a broken one, too
    pictures = [(str(path), path) for path in sorted(photos.rglob("*.jpg"))]
    for row, one in zip(rows(tmp_path / "out"), extract(Classifier(MODELS[0][1]), pictures, descriptor), strict=True):
        assert (row["image"], row["error"]) == (one.image, one.error)
        for layer in descriptor.layers:
            assert near(row[layer], None if one.error else one.values[layer].tolist())
    [kind] = {field.type for field in pyarrow.dataset.dataset(str(tmp_path / "out")).schema if field.name == "fc7"}
    assert kind.list_size == 256


def test_figures_of_evaluate_are_those_of_one_run(photos, tmp_path):
    models = [*MODELS, ("other", network(1))]
    task = scale.Score(Protocol("ten-crop"), fuse=True)
    done = scale.run(task, models, [str(photos)], str(tmp_path / "out"), part=PART)
    assert (done.pictures, done.failed) == (COUNT, 1)
    found = scale.records(done, task, models)
    classifiers = [Classifier(one, name=name) for name, one in models]
    run = evaluate(classifiers, datasets.open(photos, 7, LABELS), task.protocol, fuse=True)
    for one, expected in zip(found, records(run), strict=True):
        expected |= {"images_per_second": None, "engine": None}
        assert one == {key: pytest.approx(value, abs=2e-4) for key, value in expected.items()}
    named = [row for row in rows(tmp_path / "out") if row["model"] == "tiny"]
    assert [row["label"] for row in named] == [Path(row["image"]).parent.name for row in named]


def test_figures_need_a_picture(tmp_path):
    (tmp_path / "list.txt").write_text("a.jpg 0\nb.jpg ant\n")
    done = scale.run(scale.Score(), MODELS, [str(tmp_path / "list.txt")], str(tmp_path / "out"))
    assert (done.pictures, done.failed) == (2, 2)
    with pytest.raises(Error, match=r"out: none of its 2 pictures could be read; .*/a\.jpg: there is no such file"):
        scale.records(done, scale.Score(), MODELS)


def test_a_run_that_is_cut_does_only_what_is_missing(photos, tmp_path):
    def stop(done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        classify(photos, tmp_path / "out", progress=stop)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len([name for name in before if name.startswith("part-")]) == 4
    (photos / "ant/999.jpg").write_bytes(picture(0))  # came later, and is no part of this run
    said = []
    classify(photos, tmp_path / "out", progress=lambda *done: said.append(done))
    assert said == [(number, 10) for number in range(4, 11)]
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == then for name, then in before.items())
    classify(photos, tmp_path / "whole", progress=lambda *done: None)
    assert near(rows(tmp_path / "out"), [row for row in rows(tmp_path / "whole") if not row["image"].endswith("999.jpg")])


def test_a_run_that_is_killed_leaves_whole_parts(photos, tmp_path):
    code = f"import test_scale; test_scale.classify({str(photos)!r}, 'out', part=1)"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
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
    with pytest.raises(Error, match=r"nowhere: there is no such file or folder"):
        classify(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(Error, match="no value of vgg11 is called 'fc9'"):
        scale.run(scale.Describe(Descriptor(("fc9",))), MODELS, [str(photos)], str(tmp_path / "out"))
    classify(photos, tmp_path / "out")  # where no part is, no run is
    with pytest.raises(Error, match=r"out: holds another run \(its options differ\)"):
        scale.run(scale.Classify(4), MODELS, [str(photos)], str(tmp_path / "out"), part=PART)
    with pytest.raises(Error, match=r"out: holds another run \(its models differ\)"):
        scale.run(scale.Classify(3), [("tiny", network(1))], [str(photos)], str(tmp_path / "out"), part=PART)
    with pytest.raises(Error, match="photos: is not empty, and holds no run of vgg"):
        classify(photos, photos)
    with pytest.raises(Error, match="no scale is called 'up'"):
        classify(photos, tmp_path / "out", scale="up")
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match=r"empty: has no images or \.tar shards in it"):
        classify(tmp_path / "empty", tmp_path / "other")


def test_shards_are_parts(photos, tmp_path):
    folder = tmp_path / "shards"
    folder.mkdir()
    members = [(f"{index:02}", picture(index), LABELS.names[index % 7].encode()) for index in range(12)]
    for number in range(3):
        part = members[4 * number : 4 * number + 4]
        (folder / f"{number}.tar").write_bytes(pack({f"{k}.{e}": c for k, p, t in part for e, c in (("jpg", p), ("cls", t))}))
    (folder / "3.tar").write_bytes((folder / "0.tar").read_bytes()[:1000])
    done = classify(folder, tmp_path / "out")
    assert (done.pictures, done.failed, done.plan.parts) == (13, 1, 4)
    assert done.errors[0].startswith(f"{folder}/3.tar: is damaged, cut short, or no tar file")
    assert rows(tmp_path / "out")[5]["image"] == f"{folder}/1.tar/05.jpg"
    with serving({f"{number}.tar": (folder / f"{number}.tar").read_bytes() for number in range(3)}) as server:
        task = scale.Score()
        url = f"{server.address}/{{}}.tar"
        for number in range(3):
            done = scale.run(task, MODELS, [url.format(number)], str(tmp_path / f"far{number}"))
            assert (done.pictures, done.failed) == (4, 0)
        assert [row["class"] for row in rows(tmp_path / "far2")] == [index % 7 for index in range(8, 12)]
        assert rows(tmp_path / "far2")[0]["image"] == url.format(2) + "/08.jpg"
    near_by = evaluate([Classifier(MODELS[0][1], name="tiny")], datasets.open(folder / "2.tar", 7, LABELS))
    assert scale.records(done, task, MODELS)[0]["top1"] == records(near_by)[0]["top1"]


def test_a_store_that_fails_is_no_broken_picture(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(places, "TRIES", 2)
    names = [f"{index}.jpg" for index in range(6)]
    with serving({name: picture(0) for name in names}) as server:
        urls = [f"{server.address}/{name}" for name in names]

        def run(output, progress=lambda *done: None):
            return scale.run(scale.Classify(), MODELS, urls, str(tmp_path / output), part=3, progress=progress)

        def fail(done, total):
            server.plan += ["status 500"] * 100 * (done == 1)

        with pytest.raises(Error, match=r"/\d\.jpg: can't be read, after 2 tries: 500"):
            run("out", fail)
        assert len(rows(tmp_path / "out")) == 3
        server.plan.clear()
        del server.files["4.jpg"]
        done = run("out")
        assert (done.pictures, done.failed) == (6, 1)
        assert done.errors == [f"{server.address}/4.jpg: there is no such file or folder"]


@pytest.fixture
def store(monkeypatch):
    """A bucket on a real S3 server, `s3://bucket`."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir("bucket")
    yield system
    server.stop()
    s3fs.S3FileSystem.clear_instance_cache()


def test_pictures_and_results_in_an_object_store(photos, tmp_path, store):
    store.put(str(photos), "bucket/photos", recursive=True)
    store.pipe_file("bucket/photos/ant/", b"")  # as consoles mark folders
    done = classify("s3://bucket/photos", "s3://bucket/out")
    assert (done.pictures, done.failed, done.plan.parts) == (COUNT, 1, 10)
    store.get("bucket/out", str(tmp_path / "out"), recursive=True)
    classify(photos, tmp_path / "near")
    for far, close in zip(rows(tmp_path / "out"), rows(tmp_path / "near"), strict=True):
        assert far["image"] == f"s3://bucket/photos{close['image'].removeprefix(str(photos))}"
        assert near(far["predictions"], close["predictions"])
    store.rm(f"bucket/out/{done.plan.name(7)}")
    said = []
    classify("s3://bucket/photos", "s3://bucket/out", progress=lambda *done: said.append(done))
    assert said == [(9, 10), (10, 10)]
    task = scale.Score()
    done = scale.run(task, MODELS, ["s3://bucket/photos"], "s3://bucket/scores", part=PART)
    assert scale.records(done, task, MODELS)[0]["images"] == COUNT - 1
    with pytest.raises(Error, match=r"s3://nobucket/x: there is no such file or folder"):
        classify("s3://nobucket/x", "s3://bucket/other")
    with pytest.raises(Error, match="s3://nobucket/out: can't be written"):
        classify("s3://bucket/photos", "s3://nobucket/out")
    with pytest.raises(Error, match="nostore://x: Protocol not known: nostore"):
        classify("nostore://x", tmp_path / "other")


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of a head that computes nothing and two machines of a processor each, all of them on loopback."""
    import ray
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False  # which would have it listen on the machine's own address
    from ray.cluster_utils import Cluster

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    health = {"initial_delay_ms": 0, "period_ms": 300, "failure_threshold": 3, "timeout_ms": 1000}
    common = {"node_ip_address": "127.0.0.1", "object_store_memory": 100 * 2**20}
    settings = {f"health_check_{name}": value for name, value in health.items()} | {
        "worker_niceness": 0,
        "actor_graceful_shutdown_timeout_ms": 1000,
    }
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": settings, **common}
    made = Cluster(initialize_head=True, head_node_args=head)
    for _ in range(2):
        made.add_node(num_cpus=1, **common)
    ray.init(address=made.address, _node_ip_address="127.0.0.1", log_to_driver=False, logging_level="ERROR")
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_machine_that_dies_loses_and_doubles_nothing(photos, tmp_path, cluster):
    """The other one does its parts, those that it was at, too."""
    models = [("small", random_network(input_size=224, width=1 / 4, labels=LABELS))]
    for index in range(100, 180):
        (photos / "gnu" / f"{index}.jpg").write_bytes(picture(index))

    def run(output, **options):
        return scale.run(scale.Classify(3), models, [str(photos)], str(tmp_path / output), part=PART, threads=1, **options)

    import ray

    alive = []

    def kill(done, total):
        alive.append(sum(node["Alive"] for node in ray.nodes()))
        if done == 6:
            victim = next(iter(cluster.worker_nodes))
            os.kill(victim.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    done = run("out", scale="ray", progress=kill)
    assert (done.pictures, done.failed, done.plan.parts) == (COUNT + 80, 1, 26)
    assert (alive[0], alive[-1]) == (3, 2)
    run("near")
    assert near(rows(tmp_path / "out"), rows(tmp_path / "near"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["_run.json", done.plan.inputs, *map(done.plan.name, range(26))]
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_an_error_of_a_worker_is_one_line(photos, tmp_path, cluster):
    with pytest.raises(Error, match="no value of vgg11 is called 'fc9'"):
        scale.run(scale.Describe(Descriptor(("fc9",))), MODELS, [str(photos)], str(tmp_path / "out"), scale="ray")


@dataclass(frozen=True)
class Poison(scale.Classify):
    """A task that one picture ends the process of, as a fault in a decoder would."""

    def table(self, models, samples, workers, batch_size):
        if any(one.name.endswith("020.jpg") for one in samples):
            os._exit(1)
        return super().table(models, samples, workers, batch_size)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_ends_its_worker_is_not_tried_forever(photos, tmp_path, cluster):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers know nothing of the tests
    with pytest.raises(Error, match=r"part \d ended its worker 4 times; one of its pictures may be to blame"):
        scale.run(Poison(), MODELS, [str(photos)], str(tmp_path / "out"), scale="ray", part=PART, threads=1)
    assert rows(tmp_path / "out")


@pytest.mark.full
def test_an_interrupt_of_the_command_leaves_whole_parts(tmp_path):
    for folder in range(3):
        (tmp_path / "photos" / str(folder)).mkdir(parents=True)
        for index in range(1000):
            (tmp_path / "photos" / str(folder) / f"{index:03}.jpg").write_bytes(picture(index))
    network().write(tmp_path / "tiny.onnx")
    command = [sys.executable, "-m", "vgg", "classify", "photos", "-m", "tiny.onnx", "--output", "out", "--scale", "ray"]
    run = subprocess.Popen(
        [*command, "--threads", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while run.poll() is None and not list(tmp_path.glob("out/part-*")):
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    said = run.communicate(timeout=60)[1]
    assert run.returncode == 130, said
    assert "vgg: cut short; the same command goes on from here" in said
    done = len(rows(tmp_path / "out"))
    assert 0 < done <= 3000
    assert done % 1000 == 0
    run = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=True)
    assert run.stderr.splitlines()[-1] == f"{tmp_path}/out: 3,000 pictures in 3 parts, 0 failed"
    assert len({row["image"] for row in rows(tmp_path / "out")}) == 3000
