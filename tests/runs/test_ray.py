"""Bulk work on a Ray cluster of several node processes."""

import os
import signal
import subprocess
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from conftest import needs_native, random_network
from miniature import jpeg
from runs_helpers import COUNT, LABELS, MODELS, PART, near, network, rows
from vgg import Error, runs
from vgg.errors import Notice
from vgg.features import Descriptor

# Ray leaves sockets open and calls deprecated functions.
pytestmark = [
    needs_native,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def test_a_machine_that_dies_loses_and_doubles_nothing(photos, tmp_path, cluster):
    """The other machine computes its parts, including those that were in progress."""
    models = [("small", random_network(input_size=224, width=1 / 4, labels=LABELS))]
    for index in range(100, 180):
        (photos / "gnu" / f"{index}.jpg").write_bytes(jpeg(index))

    def run(output, **options):
        return runs.run(runs.Classify(3), models, [str(photos)], str(tmp_path / output), part=PART, threads=1, **options)

    import ray

    alive = []

    def kill(task, done, total):
        alive.append(sum(node["Alive"] for node in ray.nodes()))
        if done == 6:
            victim = next(iter(cluster.worker_nodes))
            os.kill(victim.all_processes["raylet"][0].process.pid, signal.SIGKILL)

    done = run("out", runner="ray", progress=kill)
    assert (done.images, done.failed, done.plan.parts) == (COUNT + 80, 1, 26)
    assert (alive[0], alive[-1]) == (3, 2)
    run("near")
    assert near(rows(tmp_path / "out"), rows(tmp_path / "near"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        ["_run.json", done.plan.inputs, *map(done.plan.name, range(26))]
    )


def test_an_error_of_a_worker_is_one_line(photos, tmp_path, cluster):
    with pytest.raises(Error, match="vgg11 has no layer output 'fc9'"):
        runs.run(runs.Describe(Descriptor(("fc9",))), MODELS, [str(photos)], str(tmp_path / "out"), runner="ray")


@dataclass(frozen=True)
class Poison(runs.Classify):
    """A task whose process is ended by one image, as by a fault in a decoder."""

    def table(self, models, samples, workers, batch_size):
        if any(one.name.endswith("020.jpg") for one in samples):
            os._exit(1)
        return super().table(models, samples, workers, batch_size)


@pytest.mark.full
def test_a_part_that_ends_its_worker_is_not_repeated_forever(photos, tmp_path, cluster):
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers can't import the tests
    with pytest.raises(Error, match=r"part \d ended its worker 4 times; one of its images may be the cause"):
        runs.run(Poison(), MODELS, [str(photos)], str(tmp_path / "out"), runner="ray", part=PART, threads=1)
    assert rows(tmp_path / "out")


@pytest.mark.full
def test_an_interrupted_command_leaves_complete_parts(tmp_path):
    for folder in range(3):
        (tmp_path / "photos" / str(folder)).mkdir(parents=True)
        for index in range(1000):
            (tmp_path / "photos" / str(folder) / f"{index:03}.jpg").write_bytes(jpeg(index))
    network().write(tmp_path / "tiny.onnx")
    command = [sys.executable, "-m", "vgg", "classify", "photos", "-m", "tiny.onnx", "--output", "out", "--runner", "ray"]
    run = subprocess.Popen(
        [*command, "--threads", "1"], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while run.poll() is None and not list(tmp_path.glob("out/part-*")):
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does
    stderr = run.communicate(timeout=60)[1]
    assert run.returncode == 130, stderr
    assert "vgg: interrupted; the same command resumes" in stderr
    done = len(rows(tmp_path / "out"))
    assert 0 < done <= 3000
    assert done % 1000 == 0
    run = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=True)
    assert run.stderr.splitlines()[-1] == f"{tmp_path}/out: 3,000 images in 3 parts, 0 failed"
    assert len({row["image"] for row in rows(tmp_path / "out")}) == 3000


def test_a_notice_says_that_no_machine_has_room(photos, tmp_path, cluster):
    """The run goes on once there is such a machine."""
    seen = []

    def run():
        return runs.run(runs.Classify(3), MODELS, [str(photos)], str(tmp_path / "out"), runner="ray", part=PART, threads=2)

    with warnings.catch_warnings(), ThreadPoolExecutor(1) as pool:
        warnings.showwarning = lambda message, *_: seen.append(message)
        warnings.simplefilter("always", Notice)
        running = pool.submit(run)
        while not (seen or running.done()):
            time.sleep(0.01)
        cluster.add_node(num_cpus=2, node_ip_address="127.0.0.1", object_store_memory=100 * 2**20)
        done = running.result()
    assert "no machine of the Ray cluster has 2 processors" in str(seen[0])
    assert (done.images, done.failed) == (COUNT, 1)
