"""Fine-tuning with frozen layers, and distillation: what is cached, and what comes of it."""

import tarfile
from dataclasses import replace

import numpy as np
import pytest

from conftest import random_network
from training_helpers import QUICK, cifar_folder, class_folders, options
from vgg import Error, Labels, ModelError, Network, engines, sources
from vgg.errors import Notice
from vgg.preprocessing import PRESETS
from vgg.progress import silent
from vgg.training import RECIPES, train
from vgg.training.cache import Cache
from vgg.training.loader import Loader
from vgg.training.loop import Trainer
from vgg.training.processes import processes
from vgg.training.setup import cache_values, prepare

TUNE = replace(RECIPES["finetune"], epochs=8, batch=8, views=2, thaw=1, patience=0, lr=1e-3)


def parent(name="vgg11", **options):
    """A network that has learnt something else: 7 classes, inputs of 32 pixels in BGR."""
    network = random_network(name, **options)
    recipe = replace(network.preprocessing, size=36, crop=32, channels="BGR", mean=(0.4, 0.5, 0.6))
    return replace(network, preprocessing=recipe, provenance=replace(network.provenance, licence="CC-BY 4.0"))


@pytest.mark.parametrize(("name", "freeze"), [("vgg11", "conv4"), ("vgg11-bn", "conv5"), ("vgg13", "fc6")])
def test_only_what_follows_the_frozen_layers_changes(name, freeze, tmp_path):
    data, network = class_folders(tmp_path / "data", each=12), parent(name)
    outcome = train(options(data, tmp_path / "run", replace(TUNE, thaw=0), start=network, freeze=freeze))
    learnt = Network.read(outcome.path)
    assert (learnt.architecture.name, learnt.labels.names) == (name, ("class0", "class1", "class2"))
    assert learnt.preprocessing == network.preprocessing
    assert learnt.provenance.licence == "CC-BY 4.0"
    same = {key for key in network.parameters if np.array_equal(network.parameters[key], learnt.parameters[key])}
    frozen = {"conv4": ("conv1", "conv2", "conv3", "conv4"), "conv5": ("conv", "bn"), "fc6": ("conv", "fc6")}[freeze]
    assert same == {key for key in network.parameters if key.startswith(frozen)}
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]


def test_the_cached_values_are_those_of_the_network(tmp_path):
    data, network = class_folders(tmp_path / "data"), parent()
    loader = Loader(sources.open(data, 3), TUNE, network.preprocessing, 0, 2)
    indices, views, engine = np.array([1, 5, 20]), (0, 1, None), engines.open(network)
    cache = Cache(tmp_path / "cache", loader, views, network, engine, "pool4")
    cache.fill(indices, engine, silent)
    for view in views:
        [batch] = loader.batches([indices], view)
        inputs = np.stack([network.preprocessing.normalise(pixels) for pixels in batch.inputs])
        expected = engines.open(network, "onnxruntime").run(inputs, ["pool4"])["pool4"]
        [found] = cache.batches([indices], view)
        np.testing.assert_allclose(found.inputs, expected, rtol=2e-3, atol=1e-3)
        assert found.targets.tolist() == [0, 0, 2]
    again = Cache(tmp_path / "cache", loader, views, network, engine, "pool4")
    again.fill(indices[1:], engine, lambda *done: pytest.fail("already computed"))
    done = []
    again.fill(np.array([2, 5]), engine, lambda task, *one: done.append(one[:2]))
    assert done == [(4, 6), (5, 6), (6, 6)]  # one of two images for each view
    other = engines.open(network, "onnxruntime")  # whose values may differ
    assert not Cache(tmp_path / "cache", loader, views, network, other, "pool4").rows(indices, 0).any()


def test_only_cached_values_are_of_the_same_views_again_and_again(tmp_path):
    data, network, recipe = class_folders(tmp_path / "data"), parent(), replace(TUNE, epochs=3, views=2)
    for freeze, views in (("", [0, 1, 2]), ("conv4", [0, 1, 0])):
        given = options(data, tmp_path / f"run{freeze}", recipe, start=network, freeze=freeze)
        with processes("cpu") as process:
            setup = prepare(given, print)
            cache_values(setup, given, process, silent)
            trainer, found = Trainer(given, setup, process, silent, print), []
            for trainer.epoch in range(3):
                found.append(trainer.view)
        assert found == views


def test_the_head_is_kept_where_the_classes_are_the_same(tmp_path):
    labels = Labels(("class0", "class1", "class2"))
    network = parent(classes=3, labels=labels)
    data = class_folders(tmp_path / "data")
    outcome = train(options(data, tmp_path / "run", replace(TUNE, lr=0.0, epochs=1), start=network))
    np.testing.assert_array_equal(Network.read(outcome.path).parameters["fc8.weight"], network.parameters["fc8.weight"])


def test_blocks_thaw_from_the_last_one_down_and_a_stalled_run_stops(tmp_path):
    data, network = class_folders(tmp_path / "data"), parent()
    outcome = train(options(data, tmp_path / "run", replace(TUNE, epochs=1, thaw=1), start=network))
    learnt = Network.read(outcome.path).parameters
    changed = {key.split(".")[0] for key in learnt if not np.array_equal(learnt[key], network.parameters.get(key))}
    assert changed == {"fc8"}
    lines: list[str] = []
    stalled = options(data, tmp_path / "stalled", replace(TUNE, lr=0.0, epochs=9, patience=2), start=network)
    outcome = train(stalled, log=lines.append)
    assert len(outcome.history) == 3
    assert lines[-1] == "stopped after epoch 3: no better top-1 in 2 epochs"


def test_a_student_learns_its_teachers_scores_without_labels(tmp_path):
    data = class_folders(tmp_path / "data", each=16)
    teacher = train(options(data, tmp_path / "teacher", replace(QUICK, epochs=8), arch="vgg13-bn"))
    teachers = [Network.read(teacher.path)] * 2
    recipe = replace(RECIPES["distil"], epochs=12, batch=8, views=2)
    others = {"teachers": teachers, "arch": "vgg11-bn", "matched": ("pool5",), "cache": tmp_path / "cache"}
    outcome = train(options(data / "class0" / "..", tmp_path / "run", recipe, **others))
    student = Network.read(outcome.path)
    assert student.labels.names == ("class0", "class1", "class2")
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]
    assert outcome.history[-1]["val_top1"] >= 75  # as the teacher says
    files = {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.*")}
    assert len(files) == 3 * 3  # of scores, validation scores, and matched values: values, which are known, and the key
    train(options(data / "class0" / "..", tmp_path / "again", recipe, **others))
    assert {file: file.stat().st_mtime_ns for file in (tmp_path / "cache").rglob("*.*")} == files


def test_images_beside_unlabelled_ones_need_the_teachers_classes(tmp_path):
    """CIFAR-10's test images are not of the teacher's three classes; a `val` folder of other classes is not used either."""
    teacher = random_network("vgg11", classes=3, labels=Labels(("class0", "class1", "class2")))
    run, others = tmp_path / "run", {"teachers": [teacher], "arch": "vgg11-bn"}
    with pytest.warns(Notice, match="not used, because its classes are not the teacher's .*CIFAR-10, which has 10 classes"):
        outcome = train(options(cifar_folder(tmp_path / "cifar"), run, replace(QUICK, epochs=1), **others))
    assert outcome.test is None
    class_folders(tmp_path / "data/train")
    class_folders(tmp_path / "data/val", classes=4, each=1)
    class_folders(tmp_path / "data/test", each=2)
    with pytest.warns(Notice, match="not used"):
        outcome = train(options(tmp_path / "data", run, replace(QUICK, epochs=1), fresh=True, **others))
    assert outcome.test["images"] == 6
    with pytest.raises(Error, match="class3"):
        train(options(tmp_path / "data", run, QUICK, fresh=True, val=tmp_path / "data/val", **others))


def test_a_student_that_is_its_teacher_stays_as_it_is(tmp_path):
    network = parent()
    recipe = replace(QUICK, epochs=1, weight_decay=0.0, crop_range=(0.3, 1.0), views=2)
    data = class_folders(tmp_path / "data")
    outcome = train(options(data, tmp_path / "run", recipe, teachers=[network], start=network, matched=("pool5", "fc7")))
    assert outcome.history[0]["val_top1"] == 100
    for name, value in Network.read(outcome.path).parameters.items():
        np.testing.assert_allclose(value, network.parameters[name], rtol=0, atol=1e-3, err_msg=name)


def test_teachers_see_what_the_student_sees_anew_in_every_epoch(tmp_path):
    """The teacher is the student with its channels in the other order, so nothing is to be learnt from it."""
    network = parent()
    recipe = network.preprocessing
    turned = replace(recipe, channels="RGB", mean=recipe.mean[::-1], std=recipe.std[::-1])
    parameters = {**network.parameters, "conv1_1.weight": network.parameters["conv1_1.weight"][:, ::-1]}
    teacher = replace(network, parameters=parameters, preprocessing=turned)
    quick = replace(QUICK, epochs=2, weight_decay=0.0, crop_range=(0.3, 1.0), lighting=0.1, views=0, mixup=0.5, cutmix=1.0)
    quick = replace(quick, erasing=0.5, policy="trivial", repeats=2)
    others = {"teachers": [teacher, teacher], "start": network, "matched": ("pool5", "fc7")}
    outcome = train(options(class_folders(tmp_path / "data"), tmp_path / "run", quick, **others))
    for name, value in Network.read(outcome.path).parameters.items():
        np.testing.assert_allclose(value, network.parameters[name], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("field", ["mixup", "cutmix"])
def test_layers_of_mixed_images_cannot_be_matched_with_those_of_whole_ones(field, tmp_path):
    others = {"teachers": [parent()], "start": parent(), "matched": ("pool5",)}
    with pytest.raises(Error, match="--match with mixed images requires --set views=0"):
        train(options(class_folders(tmp_path / "data"), tmp_path / "run", replace(QUICK, views=2, **{field: 0.2}), **others))


def test_shards_without_classes_are_unlabelled_images(tmp_path):
    images = sorted(class_folders(tmp_path / "data").rglob("*.png"))
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for number, path in enumerate(images):
            tar.add(path, f"{number}.png")
    outcome = train(options(tmp_path / "0.tar", tmp_path / "run", replace(QUICK, views=1), teachers=[parent()]))
    assert len(outcome.history) == 2
    assert not outcome.errors


def test_numbers_are_the_classes_of_a_network_with_as_many(tmp_path):
    data, names = class_folders(tmp_path / "data"), Labels(("red", "green", "blue"))
    lines = [f"{path} {path.parent.name[-1]}" for path in sorted(data.rglob("*.png"))]
    (tmp_path / "list.txt").write_text("\n".join(lines))
    start = replace(parent(classes=3), labels=names)
    outcome = train(options(tmp_path / "list.txt", tmp_path / "run", TUNE, start=start))
    assert Network.read(outcome.path).labels == names
    other = train(options(tmp_path / "list.txt", tmp_path / "other", TUNE, start=replace(parent(classes=4), labels=None)))
    assert Network.read(other.path).labels is None


def test_initial_parameters_come_with_their_preprocessing(tmp_path):
    data, caffe = class_folders(tmp_path / "data"), replace(PRESETS["caffe"], size=32, crop=32)
    lines, network = [], replace(parent("vgg11", width=1 / 16), preprocessing=caffe)
    setup = prepare(options(data, tmp_path / "run", init=network), lines.append)
    assert setup.preprocessing == caffe
    assert lines[0].endswith("; new: fc8")
    setup = prepare(options(data, tmp_path / "run", init=network, size=64, head="gap"), lines.append)
    assert setup.preprocessing == replace(caffe, size=64, crop=64)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"freeze": "conv4"}, "--freeze requires --from: a new network has no trained layers"),
        ({"matched": ("pool5",)}, "--match requires --teacher"),
        ({"start": parent(), "freeze": "conv9"}, "unknown layer 'conv9' of vgg11"),
        ({"teachers": [parent(), parent(classes=3)]}, "the teachers have different numbers of classes"),
        ({"teachers": [parent(input_size=64)]}, "the teacher vgg11 takes 64 pixels, not 32; use --input-size 64"),
        ({"teachers": [parent(input_size=64)], "start": parent()}, "takes 64 pixels, not 32; choose another teacher"),
        ({"teachers": [parent()], "labels": Labels(("a", "b"))}, "--labels can't be combined with --teacher"),
        ({"start": parent(), "init": parent()}, "--init-from is for a new network; --from keeps the network's own"),
        ({"start": parent(), "size": 64}, "--input-size is for a new network"),
        ({"start": parent(), "arch": "vgg13"}, "--arch is for a new network"),
        ({"start": parent(), "width": 0.5}, "--width is for a new network"),
        ({"teachers": [parent()], "matched": ("fc9",)}, "vgg11 has no layer output 'fc9'"),
        (
            {"teachers": [parent("vgg13", width=1 / 8)], "matched": ("pool5",)},
            r"pool5 is \[64, 1, 1\] in the teacher, \[32, 1, 1\] in the student",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(others, message, tmp_path):
    with pytest.raises((Error, ModelError), match=message):
        train(options(class_folders(tmp_path / "data"), tmp_path / "run", TUNE, **others))
