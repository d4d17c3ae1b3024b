"""Which images train, which choose the epoch, and which are the test."""

import json
import re
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training_helpers import QUICK, cifar_folder, class_folders, options
from vgg import Error, Network, sources
from vgg.classifier import load
from vgg.training import train
from vgg.training.split import divide, groups_of, split


@pytest.mark.parametrize(("classes", "each"), [(3, 12), (100, 13), (10, 700)])
def test_each_part_has_its_share_of_each_class(classes, each):
    targets = np.repeat(np.arange(classes), each)
    count = len(targets)
    part = divide([(one,) for one in targets.tolist()], range(count), (0.1, 0.9), seed=0)
    held = np.bincount(targets[part == 0], minlength=classes)
    assert abs(held.sum() - count / 10) < 1
    assert np.abs(held - each / 10).max() <= 1
    five = divide([(one,) for one in targets.tolist()], range(count), (0.2,) * 5, seed=0)
    found = np.array([np.bincount(targets[five == one], minlength=classes) for one in range(5)])
    assert np.abs(found - each / 5).max() < 2
    assert np.ptp(found.sum(1)) <= 2
    assert not np.array_equal(five, divide([(one,) for one in targets.tolist()], range(count), (0.2,) * 5, seed=1))


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_groups_stay_together_and_classes_are_balanced(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 60, 400)
    targets = rng.choice(3, 60, p=[0.6, 0.3, 0.1])[groups]  # a patient has one class, mostly
    targets[:20] = rng.integers(0, 3, 20)
    part = divide([(one,) for one in targets.tolist()], groups.tolist(), (0.25,) * 4, seed)
    assert all(len(set(part[groups == one].tolist())) <= 1 for one in range(60))
    largest = max(Counter(groups.tolist()).values())
    for target in range(3):
        found = np.bincount(part[targets == target], minlength=4)
        assert np.ptp(found) <= 2 * largest
    assert np.ptp(np.bincount(part, minlength=4)) <= largest + 1


def test_several_labels_are_shared_out():
    rng = np.random.default_rng(0)
    marks = rng.random((1000, 6)) < [0.5, 0.3, 0.2, 0.1, 0.05, 0.02]
    part = divide([np.flatnonzero(row).tolist() for row in marks], range(1000), (0.2,) * 5, seed=0)
    found = np.array([marks[part == one].sum(0) for one in range(5)])
    assert (np.ptp(found, axis=0) <= 3).all()
    assert np.ptp(np.bincount(part)) <= 2


def test_a_tenth_is_held_out_but_at_most_2500(tmp_path):
    data = sources.open(class_folders(tmp_path / "data", each=12), 3)
    found = split(data, range(36), 0, hold_out=True)
    assert (len(found.train), len(found.val), len(found.test)) == (33, 3, 0)
    assert sorted(np.concatenate([found.train, found.val]).tolist()) == list(range(36))
    large = replace(data, samples=[data.samples[0]] * 30_000)
    assert len(split(large, range(30_000), 0, hold_out=True).val) == 2500
    assert len(split(large, range(30_000), 0, hold_out=False).val) == 0


def test_what_a_class_needs_is_not_held_out(tmp_path):
    """Of 30 classes, 20 have one image or one patient."""
    names = [f"{target}/p{target}_{number}" for target in range(30) for number in range(5 if target > 9 else 1)]
    data = sources.Dataset("", [sources.Sample(name, int(name.split("/")[0]), name) for name in names])
    groups = [name if int(name.split("/")[0]) > 19 else name.split("_")[0] for name in names]
    for seed in range(10):
        found = split(data, groups, seed, hold_out=True)
        assert {data.samples[index].target for index in found.train.tolist()} == set(range(30))
        assert abs(len(found.val) - 11) <= 1
        assert found.val.min() >= 60
    only = sources.Dataset("", data.samples[:10])
    assert len(split(only, range(10), 0, hold_out=True).val) == 0
    # Two images of a class are free, the other classes have one group each.
    names = [f"{target}/{number}" for target, count in enumerate((60, 40, 2)) for number in range(count)]
    data = sources.Dataset("", [sources.Sample(name, int(name[0]), name) for name in names])
    groups = [name if name[0] == "2" else name[0] for name in names]
    for seed in range(10):
        assert [name for index in split(data, groups, seed, hold_out=True).val for name in names[index][0]] == ["2"]


def test_a_class_is_never_held_out_whole():
    sizes = {"a": (0, 15), "b": (0, 15), "c": (1, 1), "d": (1, 1)}
    groups = [name for name, (_, count) in sizes.items() for _ in range(count)]
    data = sources.Dataset("", [sources.Sample(str(index), sizes[name][0], name) for index, name in enumerate(groups)])
    for seed in range(50):
        found = split(data, groups, seed, hold_out=True)
        assert {data.samples[index].target for index in found.train.tolist()} == {0, 1}
        assert not {groups[index] for index in found.train.tolist()} & {groups[index] for index in found.val.tolist()}


def test_names_that_match_are_groups(tmp_path):
    names = ["a/person1_x", "a/person1_y", "b/person10_x", "b/other", "b/another"]
    data = sources.Dataset("", [sources.Sample(name, 0, name) for name in names])
    assert groups_of(data, r"person\d+") == ["person1", "person1", "person10", 3, 4]
    assert groups_of(data, r"(person1)\d?_") == ["person1"] * 3 + [3, 4]
    assert groups_of(data, "") == [0, 1, 2, 3, 4]
    with pytest.raises(Error, match="--group patient: matches no image's name; the first is a/person1_x"):
        groups_of(data, "patient")
    with pytest.raises(Error, match=r"--group \(: is not a regular expression"):
        groups_of(data, "(")


def test_the_test_is_read_once_with_the_network_that_was_kept(tmp_path):
    data, run = cifar_folder(tmp_path / "cifar", train=80), tmp_path / "run"
    lines = []
    outcome = train(options(data, run, replace(QUICK, epochs=3)), log=lines.append)
    assert lines[0].startswith("72 training images of 10 classes, 8 validation images, 16 test images; vgg11")
    found = json.loads((run / "test.json").read_text())
    assert found == outcome.test
    test = sources.open(data / "test_batch.bin", 10)
    scores = load(outcome.path).scores(list(test))
    right = (scores.argmax(1) == [one.target for one in test]).mean()
    assert found["top1"] == pytest.approx(100 * right, abs=1e-3)
    best = max(outcome.history, key=lambda row: (row["val_top1"], -row["val_loss"]))
    assert (found["epoch"], found["val_top1"], found["images"]) == (best["epoch"], best["val_top1"], 16)
    assert lines[-1].startswith(f"test: top-1 {found['top1']:.2f}% ({found['top1_low']:.2f}–{found['top1_high']:.2f}), top-5 ")
    assert f"epoch {best['epoch']}, validation top-1 {best['val_top1']:.2f}%" in lines[-1]
    # Again, the images are not read: the record is that of the file.
    (run / "test.json").write_text(json.dumps(found | {"top1": 12.5}))
    again = train(options(data, run, replace(QUICK, epochs=3)))
    assert again.test["top1"] == 12.5
    # Killed after training, the run measures what is missing.
    (run / "test.json").unlink()
    again = train(options(data, run, replace(QUICK, epochs=3)))
    assert {**again.test, "images_per_second": 0} == {**found, "images_per_second": 0}
    assert json.loads((run / "test.json").read_text()) == again.test
    # A damaged record is an error, and that of a network that is trained anew is not used.
    for text in ("", "[]", "{}", json.dumps(found | {"top1": "high"}), json.dumps(found | {"errors": 1})):
        (run / "test.json").write_text(text)
        with pytest.raises(Error, match=r"test\.json: is damaged \(.*\); delete it, and the same command repeats the test"):
            train(options(data, run, replace(QUICK, epochs=3)))
    (run / "last.pt").unlink()
    again = train(options(data, run, replace(QUICK, epochs=3)))
    assert {**again.test, "images_per_second": 0} == {**found, "images_per_second": 0}


def test_folders_say_what_chooses_and_what_tests(tmp_path):
    data = tmp_path / "data"
    class_folders(data / "train", each=10)
    class_folders(data / "test", each=2)
    (data / "test/class0/broken.png").write_bytes(b"no image")
    lines = []
    outcome = train(options(data, tmp_path / "a"), log=lines.append)
    assert lines[0].startswith("27 training images of 3 classes, 3 validation images, 7 test images")
    assert (outcome.test["images"], outcome.test["failed"]) == (6, 1)
    assert list(outcome.test["errors"]) == ["class0/broken.png"] == list(outcome.errors)
    shutil.copytree(data / "test", data / "val")
    train(options(data, tmp_path / "b"), log=lines.append)
    assert any(one.startswith("30 training images of 3 classes, 7 validation images, 7 test images") for one in lines)
    shutil.rmtree(data / "test")
    outcome = train(options(data, tmp_path / "c"), log=lines.append)
    assert any(one.startswith("30 training images of 3 classes, 7 validation images; vgg11") for one in lines)
    assert outcome.test is None
    assert not (tmp_path / "c/test.json").exists()
    train(options(data, tmp_path / "f", test=data / "train/../val"), log=lines.append)  # as a test, it chooses nothing
    assert lines[-4].startswith("27 training images of 3 classes, 3 validation images, 7 test images; vgg11")
    train(options(data, tmp_path / "g", replace(QUICK, epochs=1, best="loss"), test=data / "val"), log=lines.append)
    assert re.search(r"; epoch 1, validation loss \d", lines[-1])
    outcome = train(options(data / "train", tmp_path / "d", test=data / "val"))
    assert outcome.test["images"] == 6
    with pytest.raises(Error, match="--val and --test are the same images"):
        train(options(data / "train", tmp_path / "e", test=data / "val", val=data / "val"))
    with pytest.raises(Error, match="holds other work"):
        train(options(data / "train", tmp_path / "d"))
    train(options(data / "train", tmp_path / "d", fresh=True))
    assert not (tmp_path / "d/test.json").exists()
    assert Network.read(tmp_path / "d/model.onnx").labels.names == ("class0", "class1", "class2")


def test_test_images_that_are_named_for_validation_are_no_test(tmp_path):
    data = cifar_folder(tmp_path / "cifar")
    lines = []
    outcome = train(options(data, tmp_path / "run", val=data / "test_batch.bin"), log=lines.append)
    assert lines[0].startswith("64 training images of 10 classes, 16 validation images; vgg11")
    assert outcome.test is None
