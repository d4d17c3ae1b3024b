import csv
import json
import math
import os
import platform
import random
import resource
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vgg
from conftest import needs_native
from training_helpers import QUICK, cifar_folder, class_folders, options
from vgg import Error, Network, engines
from vgg.module import Module
from vgg.store import differences
from vgg.training import RECIPES, train
from vgg.training.checkpoint import load


def test_a_network_learns_class_folders_and_has_their_names(tmp_path):
    data = class_folders(tmp_path / "data", each=12)
    lines = []
    outcome = train(options(data, tmp_path / "run", replace(QUICK, epochs=10), arch="vgg11-bn"), log=lines.append)
    network = Network.read(outcome.path)
    assert network.labels.names == ("class0", "class1", "class2")
    assert network.preprocessing.crop == 32
    assert "recipe zoo" in network.provenance.source
    assert outcome.history[-1]["val_top1"] == 100
    assert vgg.load(outcome.path).classify(data / "class2" / "3.png", top=1)[0].label == "class2"
    assert lines[0].startswith("33 training images of 3 classes, 3 validation images; vgg11-bn")
    with (tmp_path / "run" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in outcome.history]
    with Image.open(tmp_path / "run" / "curves.png") as image:
        assert image.format == "PNG"


def test_tensorboard_reads_the_log(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    outcome = train(options(class_folders(tmp_path / "data"), tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    found = events.Scalars("loss")
    assert [event.step for event in found] == [1, 2]
    assert [event.value for event in found] == pytest.approx([row["loss"] for row in outcome.history])


@needs_native
def test_cifar10_gets_a_small_head_and_three_engines_agree_on_what_was_learnt(tmp_path):
    data = cifar_folder(tmp_path / "cifar")
    outcome = train(options(data, tmp_path / "run", replace(RECIPES["modern"], epochs=2, batch=32), arch="vgg11-bn", size=None))
    network = Network.read(outcome.path)
    assert (network.architecture.head, network.architecture.input_size, network.labels.names[3]) == ("gap", 32, "cat")
    batch = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    found = [engines.open(outcome.path, engine).logits(batch) for engine in ("torch", "onnxruntime", "native")]
    for one in found[1:]:
        np.testing.assert_allclose(one, found[0], rtol=0, atol=1e-4 * np.abs(found[0]).max())


def hashes(outcome):
    return Network.read(outcome.path).sha256(), [row["loss"] for row in outcome.history]


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path):
    data = cifar_folder(tmp_path / "cifar")
    whole = train(options(data, tmp_path / "whole"))
    parts = train(options(data, tmp_path / "parts", micro_batch=2))
    for name, value in Network.read(whole.path).parameters.items():
        np.testing.assert_allclose(Network.read(parts.path).parameters[name], value, rtol=0, atol=1e-5)


RUN = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from training_helpers import QUICK, options
from vgg.training import RECIPES, train
recipe = {recipe}
outcome = train(options(Path({data!r}), Path(sys.argv[1]), recipe, **{others}))
print(*(path.read_text() for path in Path("/proc/self/task").glob("*/comm")))  # the threads that are left
"""


def script(tmp_path, data, recipe, **others):
    path = tmp_path / "run.py"
    tests = str(Path(__file__).parent.parent)
    path.write_text(RUN.format(tests=tests, data=str(data), recipe=recipe, others=others))
    return path


@pytest.mark.parametrize("noisy", [False, True], ids=["plain", "everything random, batch norm"])
def test_two_processes_learn_what_one_does(noisy, tmp_path):
    data = cifar_folder(tmp_path / "cifar")
    recipe = "replace(QUICK, batch=16)"
    if noisy:
        recipe = (
            "replace(RECIPES['modern'], batch=16, epochs=2, warm_up=0, jitter=0.4, lighting=0.1, dropout=0.5, cutmix=1.0, "
            "erasing=0.5, repeats=2, policy='rand', flip='alternating')"
        )
    others = {"arch": "vgg11-bn" if noisy else "vgg11"}
    path = script(tmp_path, data, recipe, **others)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    outcome = subprocess.run([*torchrun, path, tmp_path / "two"], capture_output=True, text=True, timeout=300)
    assert outcome.returncode == 0, outcome.stderr
    assert "gloo" not in outcome.stdout  # such a thread may abort a process that exits
    # Without batch norm, parts don't matter; with it, one process takes the same parts after each other.
    path = script(tmp_path, data, recipe, **others, **({"micro_batch": 8} if noisy else {}))
    subprocess.run([sys.executable, path, tmp_path / "one"], check=True, capture_output=True, timeout=300)
    # The last state, since another epoch may be the best one: batch norm's statistics are of the first process's images only.
    one, two = (load(tmp_path / run / "last.pt") for run in ("one", "two"))
    for name, value in one["module"].items():
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
            torch.testing.assert_close(two["module"][name], value, rtol=0, atol=1e-5)
    if not noisy:
        for row, other in zip(one["history"], two["history"], strict=True):
            measures = {name for name in row if name.startswith("val_")}
            assert {"val_top1", "val_balanced", "val_auc"} <= measures
            assert {name: other[name] for name in measures} == pytest.approx({name: row[name] for name in measures}, abs=0.01)
    assert json.loads((tmp_path / "two/test.json").read_text())["images"] == 16


EVERYTHING = (
    "replace(RECIPES['cifar'], batch=16, epochs=4, optimizer='muon', policy='trivial', erasing=0.5, mixup=0.2, cutmix=1.0, "
    "repeats=2, dropout=0.2, jitter=0.4, progressive=0.5, balance='sampling', best='auc')"
)


@pytest.mark.parametrize(
    ("recipe", "size"),
    [
        ("replace(RECIPES['modern'], batch=16, epochs=4, warm_up=1, jitter=0.4, balance='sampling', best='auc')", 32),
        (EVERYTHING, 64),
    ],
    ids=["modern", "everything"],
)
def test_a_run_killed_at_any_moment_ends_the_same(recipe, size, tmp_path):
    data = cifar_folder(tmp_path / "cifar", train=160)
    path = script(tmp_path, data, recipe, arch="vgg11-bn", size=size, save_seconds=0.0)
    subprocess.run([sys.executable, path, tmp_path / "whole"], check=True, capture_output=True)
    rng, kills = random.Random(0), 0
    while True:
        running = subprocess.Popen([sys.executable, path, tmp_path / "cut"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        before = (tmp_path / "cut" / "last.pt").stat().st_mtime_ns if (tmp_path / "cut" / "last.pt").exists() else 0
        while running.poll() is None:  # until it has gone on a little
            last = tmp_path / "cut" / "last.pt"
            if kills < 2 and last.exists() and last.stat().st_mtime_ns != before:
                time.sleep(rng.uniform(0, 0.3))
                running.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.01)
        output = running.communicate()
        if running.returncode == 0:
            break
        assert running.returncode == -signal.SIGKILL, output
    assert kills == 2
    assert Network.read(tmp_path / "cut" / "model.onnx").sha256() == Network.read(tmp_path / "whole" / "model.onnx").sha256()
    one, two = (load(tmp_path / run / "last.pt") for run in ("cut", "whole"))
    for state in (one, two):
        for row in state["history"]:
            for name in ("seconds", "images_per_second", "waited", "time"):
                row.pop(name)
    assert one["history"] == two["history"]
    for name, tensor in two["module"].items():
        assert torch.equal(one["module"][name], tensor), name
    assert one["optimizer"]["param_groups"] == two["optimizer"]["param_groups"]
    for index, values in two["optimizer"]["state"].items():
        assert torch.equal(one["optimizer"]["state"][index]["momentum_buffer"], values["momentum_buffer"]), index
    tests = [json.loads((tmp_path / run / "test.json").read_text()) for run in ("cut", "whole")]
    assert tests[0] | {"images_per_second": 0} == tests[1] | {"images_per_second": 0}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep memory")
def test_freed_memory_is_kept_for_the_next_step():
    code = """
import resource, torch
from vgg.training.processes import processes

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        values = [torch.zeros(2**21).add_(1) for _ in range(8)]
        del values
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

with processes("cpu"):
    print(*(faults() for _ in range(4)))
"""
    first, *later = map(int, subprocess.check_output([sys.executable, "-c", code], text=True).split())
    assert min(later) < first / 10  # memory may grow once more


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_steps_images(tmp_path):
    data = class_folders(tmp_path / "data")
    with pytest.raises(Error, match=r"the loss is (nan|inf) in epoch \d+, step \d+; .*nan.pt has the step's images"):
        train(options(data, tmp_path / "run", replace(QUICK, lr=1e20, epochs=5)))
    state = load(tmp_path / "run" / "nan.pt")
    assert state["inputs"][0].shape == (8, 32, 32, 3)
    assert len(state["names"]) == 8


def test_another_run_is_refused_and_deleted_only_when_asked(tmp_path):
    data, run = class_folders(tmp_path / "data"), tmp_path / "run"
    train(options(data, run))
    (run / "notes.txt").write_text("the user's own")
    before = (run / "last.pt").read_bytes()
    message = r"run: holds other work \(architecture.name: vgg11, not vgg13\); use --fresh to start over"
    with pytest.raises(Error, match=message):
        train(options(data, run, arch="vgg13"))
    (data / "empty").mkdir()
    with pytest.raises(Error, match="class empty has no images"):
        train(options(data, run, arch="vgg13", fresh=True))
    (data / "empty").rmdir()
    assert (run / "last.pt").read_bytes() == before
    outcome = train(options(data, run, arch="vgg13", fresh=True))
    assert Network.read(outcome.path).architecture.name == "vgg13"
    assert [row["epoch"] for row in outcome.history] == [1, 2]
    assert (run / "notes.txt").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"nonsense", r"last.pt: damaged, or not a checkpoint of `vgg train` \(UnpicklingError\); use --fresh"),
        ({"config": {}, "epoch": 1}, "last.pt: checkpoint of an earlier version of vgg; use --fresh"),
        ({"epoch": 1}, "last.pt: not a checkpoint of `vgg train`; use --fresh"),
    ],
)
def test_a_checkpoint_that_cannot_be_resumed_is_refused(content, message, tmp_path):
    data, last = class_folders(tmp_path / "data"), tmp_path / "run" / "last.pt"
    last.parent.mkdir()
    torch.save(content, last) if isinstance(content, dict) else last.write_bytes(content)
    with pytest.raises(Error, match=message):
        train(options(data, tmp_path / "run"))
    assert len(train(options(data, tmp_path / "run", fresh=True)).history) == 2


def test_validation_images_of_an_option_are_another_run_than_held_out_ones(tmp_path):
    """Also if they are the training images themselves."""
    data, run = class_folders(tmp_path / "data", each=12), tmp_path / "run"
    train(options(data, run))
    with pytest.raises(Error, match="holds other work \\(held_out: True, not False"):
        train(options(data, run, val=data))


def test_a_class_folder_that_is_not_utf8_is_refused_before_training(tmp_path):
    data = class_folders(tmp_path / "data")
    os.rename(data / "class1", os.fsencode(data) + b"/caf\xe9")
    with pytest.raises(Error, match=r"the name of the class caf\\udce9 is not UTF-8; rename it"):
        train(options(data, tmp_path / "run"))


def test_a_finished_run_gives_its_result_again(tmp_path):
    data = class_folders(tmp_path / "data")
    first = train(options(data, tmp_path / "run"))
    assert hashes(train(options(data, tmp_path / "run"))) == hashes(first)


def test_a_process_that_ends_after_the_checkpoint_loses_no_network(tmp_path):
    """The network of the best epoch is written after the checkpoint, so that it is never that of an epoch that is repeated."""
    data, recipe = class_folders(tmp_path / "data"), replace(QUICK, epochs=1)
    first = train(options(data, tmp_path / "run", recipe))
    expected = hashes(first)
    assert (tmp_path / "run/last.pt").stat().st_mtime_ns <= first.path.stat().st_mtime_ns
    first.path.unlink()
    assert hashes(train(options(data, tmp_path / "run", recipe))) == expected


def test_a_run_that_stopped_early_is_not_resumed(tmp_path):
    data, lines = class_folders(tmp_path / "data"), []
    recipe = replace(QUICK, epochs=9, patience=1, lr=1e-9)
    first = train(options(data, tmp_path / "run", recipe))
    assert len(first.history) == 2
    train(options(data, tmp_path / "run", recipe), log=lines.append)
    assert not any("resuming" in line for line in lines)


def test_a_checkpoint_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, ("true",)

    torch.save({"key": Hostile()}, tmp_path / "last.pt")
    with pytest.raises(Error, match=r"damaged, or not a checkpoint of `vgg train` \(UnpicklingError\)"):
        load(tmp_path / "last.pt")


def test_a_full_disk_is_a_one_line_error_and_the_last_checkpoint_stays(tmp_path):
    data = cifar_folder(tmp_path / "cifar")
    path = script(tmp_path, data, "replace(QUICK, epochs=1)")
    subprocess.run([sys.executable, path, tmp_path / "run"], check=True, capture_output=True)
    size = (tmp_path / "run" / "last.pt").stat().st_size
    before = load(tmp_path / "run" / "last.pt")

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    code += "from pathlib import Path\nfrom vgg.training import checkpoint\nfrom vgg import Error\n"
    code += f"path = Path({str(tmp_path / 'run' / 'last.pt')!r})\nstate = checkpoint.load(path)\n"
    code += "try:\n    checkpoint.save(path, state)\nexcept Error as error:\n    print(error)\n"
    run = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"{tmp_path / 'run' / 'last.pt'}: can't be written: ")
    assert len(run.stdout.splitlines()) == 1
    assert [file.name for file in (tmp_path / "run").iterdir() if file.suffix == ".part"] == []
    assert not differences(load(tmp_path / "run" / "last.pt")["key"], before["key"])


def test_no_more_images_are_computed_at_once_than_allowed(tmp_path, monkeypatch):
    seen, forward = [], Module.forward

    def recorded(self, batch, *arguments, **named):
        seen.append((self.training, len(batch)))
        return forward(self, batch, *arguments, **named)

    monkeypatch.setattr(Module, "forward", recorded)
    data = class_folders(tmp_path / "data", each=20)
    for micro_batch, most in ((0, 8), (4, 4)):
        seen.clear()
        train(options(data, tmp_path / f"run{micro_batch}", val=data, micro_batch=micro_batch))
        assert {max(count for training, count in seen if training is phase) for phase in (True, False)} == {most}


def test_a_large_seed_is_one_too(tmp_path):
    assert train(options(class_folders(tmp_path / "data"), tmp_path / "run", seed=2**62)).history


def test_a_run_inside_the_images_is_refused(tmp_path):
    data = class_folders(tmp_path / "data")
    for output in (data / "run", data):
        with pytest.raises(Error, match=r"is inside the folder of images .*data; choose another output folder"):
            train(options(data, output))
    assert sorted(path.name for path in data.iterdir()) == ["class0", "class1", "class2"]
    cifar = cifar_folder(tmp_path / "cifar")
    assert train(options(cifar, cifar / "run")).history


def test_broken_images_are_skipped_and_named(tmp_path):
    data = class_folders(tmp_path / "data")
    (data / "class0" / "broken.png").write_bytes(b"no image")
    outcome = train(options(data, tmp_path / "run", replace(QUICK, epochs=6)))
    assert list(outcome.errors) == ["class0/broken.png"]
    assert math.isfinite(outcome.history[-1]["loss"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("empty", "class empty has no images"),
        ("single", "has one class only"),
        ("few", "has 22 training images, fewer than a batch of 256; use --batch-size 22"),
        ("nothing", "has no class folders in it"),
        ("missing", "file or folder not found"),
    ],
)
def test_unsuitable_images_are_refused(wrong, message, tmp_path):
    data = class_folders(tmp_path / "data", classes=1 if wrong == "single" else 3)
    recipe = replace(QUICK, batch=256) if wrong == "few" else QUICK
    if wrong == "empty":
        (data / "empty").mkdir()
    if wrong == "nothing":
        data = data / "class0"
    if wrong == "missing":
        data = data / "nowhere"
    with pytest.raises(Error, match=message):
        train(options(data, tmp_path / "run", recipe))
