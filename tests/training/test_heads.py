"""Heads of any kind: trained from scratch, on another network's layers, and by teachers."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

import vgg
from conftest import random_network
from training_helpers import QUICK, class_folders, options
from vgg import Architecture, Error, Labels, Network, engines
from vgg.module import Module
from vgg.training import RECIPES, train
from vgg.training.measures import measured, measures
from vgg.training.student import kept_layers, origin
from vgg.training.targets import loss, scores

STILL = replace(QUICK, epochs=1, lr=0.0, plain_lr=0.0, weight_decay=0.0)  # learns nothing
TUNE = replace(RECIPES["finetune"], epochs=6, batch=8, views=2, thaw=0, patience=0, lr=3e-3)
COLOURS = ("red", "green", "blue")


def parent(**options):
    network = random_network("vgg11", **options)
    crop = network.architecture.input_size
    return replace(network, preprocessing=replace(network.preprocessing, size=crop + 4, crop=crop))


def coloured(folder, count=36, side=40):
    """Images with any of three colours, and a table of them."""
    folder.mkdir(parents=True)
    rng, rows = np.random.default_rng(0), ["image,labels"]
    for number in range(count):
        chosen = [colour for colour in range(3) if number >> colour & 1]
        pixels = rng.integers(0, 60, (side, side, 3), np.uint8)
        pixels[..., chosen] += 190
        Image.fromarray(pixels).save(folder / f"{number}.png")
        rows.append(f"{number}.png,{'|'.join(COLOURS[one] for one in chosen)}")
    (folder / "train.csv").write_text("\n".join(rows))
    return folder / "train.csv"


HEADS = [
    "average, 24 relu batch-norm dropout 0.1, classes",
    "flatten batch-norm, 16 leaky-relu 0.1, 12 batch-norm silu dropout, classes",
    "max, classes sigmoid",
    "average 2, 20 gelu, classes binary",
]


@pytest.mark.parametrize("head", HEADS)
def test_a_head_is_learnt_and_is_in_the_file(head, tmp_path):
    classes = 2 if head.endswith("binary") else 3
    data = class_folders(tmp_path / "data", classes, each=12)
    recipe = replace(QUICK, epochs=12, lr=0.02)
    outcome = train(options(data, tmp_path / "run", recipe, arch="vgg11-bn", size=64, head=head))
    network = Network.read(outcome.path)
    assert network.architecture == Architecture("vgg11-bn", classes, 1 / 16, 64, head)
    assert outcome.history[-1]["loss"] < 0.7 * outcome.history[0]["loss"]
    right = 0
    classifier = vgg.load(network)
    for number in range(classes):
        [row] = classifier.scores(data / f"class{number}" / "0.png")
        right += int(row.argmax() == number)
    assert right == classes


def test_an_image_may_have_several_labels(tmp_path):
    table = coloured(tmp_path / "data")
    recipe = replace(QUICK, epochs=10, lr=0.05)
    others = {"val": table, "arch": "vgg11-bn", "head": "average, 16 relu, classes sigmoid"}
    lines = []
    outcome = train(options(table, tmp_path / "run", recipe, **others), log=lines.append)
    network = Network.read(outcome.path)
    assert network.labels.names == ("blue", "green", "red")
    with (tmp_path / "run/log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [name for name in rows[0] if name.startswith("val_")] == ["val_loss", "val_f1", "val_exact", "val_auc"]
    best = max(outcome.history, key=lambda row: (row["val_f1"], -row["val_loss"]))
    assert best["val_f1"] > 90
    assert f"F1 {best['val_f1']:.2f}%" in network.provenance.source
    assert any(f", F1 {best['val_f1']:.2f}%, lr" in line for line in lines)
    # The figures are those of the file.
    found = vgg.load(network).scores([table.parent / f"{number}.png" for number in range(36)]) > 0.5
    truth = np.array([[number >> colour & 1 for colour in (2, 1, 0)] for number in range(36)], bool)
    assert 200 * (found & truth).sum() / (found.sum() + truth.sum()) == pytest.approx(best["val_f1"], abs=2)
    assert 100 * (found == truth).all(1).mean() == pytest.approx(best["val_exact"], abs=4)
    again = train(options(table, tmp_path / "run", recipe, **others))
    assert again.history == outcome.history


def test_several_labels_require_independent_scores(tmp_path):
    table = coloured(tmp_path / "data")
    with pytest.raises(Error, match=r"train\.csv, line 2: has no class|only a network with the output `sigmoid`"):
        train(options(table, tmp_path / "run", STILL, labels=Labels(COLOURS)))


def unchanged(before, after, names):
    """Our layers whose parameters are those of another network's, by `names`."""
    return {
        own
        for own, other in names.items()
        if all(
            np.array_equal(after.parameters[f"{own}.{role}"], before.parameters[f"{other}.{role}"])
            for layer in after.architecture.layers
            if layer.name == own
            for role in layer.parameters
        )
    }


OLD = "flatten batch-norm, 20 batch-norm relu, 30 gelu, classes"
CASES = [  # a head, and the layers of OLD's head that it keeps
    ("flatten batch-norm, 20 batch-norm relu, 30 gelu, 9, classes", {"bn5", "fc6", "bn6", "fc7"}),
    ("flatten batch-norm, 20 batch-norm relu, 31 gelu, 30, classes", {"bn5", "fc6", "bn6"}),
    ("flatten batch-norm, 20 gelu dropout, 30, classes sigmoid", {"bn5", "fc6"}),
    ("20 batch-norm relu, 30 gelu, classes", set()),
    ("average, 20 relu, classes", set()),
    ("gap", set()),
    (OLD, {"bn5", "fc6", "bn6", "fc7"}),
]


@pytest.mark.parametrize(("head", "expected"), CASES)
def test_the_part_of_another_network_that_fits_is_kept(head, expected, tmp_path):
    network = parent(head=OLD, input_size=64)
    lines = []
    data = class_folders(tmp_path / "data")
    outcome = train(options(data, tmp_path / "run", STILL, start=network, head=head), log=lines.append)
    learnt = Network.read(outcome.path)
    assert learnt.architecture.head == Architecture(head=head, width=1 / 16).head
    trunk = {name.split(".")[0] for name in network.parameters if "_" in name}
    names = kept_layers(learnt.architecture, network.architecture, last=False)
    assert set(names) == trunk | expected
    normalised = {"bn5", "bn6"}  # whose statistics follow the images
    assert unchanged(network, learnt, names) == set(names) - normalised
    new = [layer.name for layer in learnt.architecture.layers if layer.parameters and layer.name not in names]
    assert lines[0].endswith(f"; new: {', '.join(new)}")


def test_layers_that_are_added_keep_those_before_them_and_the_last_one_with_its_classes(tmp_path):
    labels = Labels(("class0", "class1", "class2"))
    network = parent(head="gap", classes=3, labels=labels)
    data = class_folders(tmp_path / "data")
    for head, kept in (("average, classes sigmoid", "fc6"), ("gap", "fc8"), ("average, 3 relu, classes", "fc6")):
        outcome = train(options(data, tmp_path / head, STILL, start=network, head=head))
        np.testing.assert_array_equal(
            Network.read(outcome.path).parameters[f"{kept}.weight"], network.parameters["fc8.weight"].reshape(3, -1)
        )


@pytest.mark.parametrize("last", ["", "conv5_2", "conv3_2", "pool2"])
@pytest.mark.parametrize("head", [None, "flatten, 12 relu, classes binary"])
def test_a_backbone_gets_a_head(last, head, tmp_path):
    """The layers that it doesn't have are new."""
    channels = (8, 9, 10, 11, 12, 13, 14, 15)
    network = parent(head="none", classes=0, last=last, channels=channels, input_size=64)
    data = class_folders(tmp_path / "data", 2)
    learnt = Network.read(train(options(data, tmp_path / "run", STILL, start=network, head=head)).path)
    assert learnt.architecture == Architecture("vgg11", 2, 1 / 16, 64, head or "gap", channels=channels)
    names = {name.split(".")[0] for name in network.parameters}
    assert unchanged(network, learnt, {name: name for name in names}) == names
    assert all(value.std() > 0 for key, value in learnt.parameters.items() if key.endswith("weight"))


@pytest.mark.parametrize(
    ("start", "head", "freeze"),
    [
        ({"head": "fc"}, "average, 12 batch-norm relu, classes", "conv5"),
        ({"head": "none", "classes": 0}, "max batch-norm, classes sigmoid", "conv5"),
        ({"head": "200 relu, classes"}, "200 gelu, 20 relu, classes", "fc6"),
    ],
)
def test_frozen_layers_compute_what_the_new_network_does(start, head, freeze, tmp_path):
    network, data = parent(**start), class_folders(tmp_path / "data", each=12)
    outcome = train(options(data, tmp_path / "run", TUNE, start=network, head=head, freeze=freeze))
    learnt = Network.read(outcome.path)
    frozen = {name.split(".")[0] for name in network.parameters if name.startswith(("conv", freeze))}
    assert unchanged(network, learnt, {name: name for name in frozen}) == frozen
    assert outcome.history[-1]["loss"] < outcome.history[0]["loss"]
    # Their cached values are those of the new head, also where its activation differs.
    module = Module(learnt.architecture)
    value = module.end_of(freeze)[1]
    source = origin(network, module, network.preprocessing)
    batch = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    found, expected = (engines.open(one, "onnxruntime").run(batch, (value,))[value] for one in (source, learnt))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("output", ["sigmoid", "binary"])
@pytest.mark.parametrize("views", [0, 2])
def test_a_student_that_is_its_teacher_stays_as_it_is(output, views, tmp_path):
    network = parent(head=f"average, 20 silu, classes {output}", classes=2 if output == "binary" else 7)
    recipe = replace(QUICK, weight_decay=0.0, crop_range=(0.3, 1.0), views=views, temperature=3.0)
    data = class_folders(tmp_path / "data")
    others = {"teachers": [network, network], "start": network, "matched": ("fc6",)}
    outcome = train(options(data, tmp_path / "run", recipe, **others))
    for name, value in Network.read(outcome.path).parameters.items():
        np.testing.assert_allclose(value, network.parameters[name], rtol=0, atol=1e-3, err_msg=name)
    assert outcome.history[0]["val_exact" if output == "sigmoid" else "val_top1"] == 100


def test_a_new_student_has_its_teachers_output(tmp_path):
    teacher = parent(head="average, 20 silu, classes sigmoid", labels=Labels(tuple("abcdefg")))
    outcome = train(options(class_folders(tmp_path / "data"), tmp_path / "run", QUICK, teachers=[teacher], size=32))
    student = Network.read(outcome.path)
    assert (student.architecture.head, student.labels) == ("average dropout, classes sigmoid", teacher.labels)


def test_batch_normalisation_in_a_head_is_that_of_the_images(tmp_path):
    """Its statistics move in training, and stay where it is frozen."""
    network = parent(head="average batch-norm, 20 relu batch-norm, 12 batch-norm, classes")
    data = class_folders(tmp_path / "data")
    free = Network.read(train(options(data, tmp_path / "free", STILL, start=network)).path)
    held = Network.read(train(options(data, tmp_path / "held", replace(STILL, views=1), start=network, freeze="fc7")).path)
    for name in ("bn5", "bn6", "bn7"):
        assert not np.array_equal(free.parameters[f"{name}.mean"], network.parameters[f"{name}.mean"])
        assert np.array_equal(held.parameters[f"{name}.mean"], network.parameters[f"{name}.mean"])
    with pytest.raises(Error, match="a batch of 8 in 8 parts: a part requires 2 images for batch normalisation"):
        train(options(data, tmp_path / "small", STILL, start=network, micro_batch=1))


def test_dropout_is_the_heads_or_the_recipes():
    module = Module(Architecture("vgg11", 3, 1 / 16, 32, "average dropout, 20 relu dropout 0.2, 9 dropout 0, classes"), 0.4)
    assert [layer.p for layer in module if isinstance(layer, torch.nn.Dropout)] == [0.4, 0.2, 0.0]


def test_losses_and_measures_are_those_of_their_definitions():
    generator = torch.Generator().manual_seed(0)
    logits, truth = torch.randn(50, 4, generator=generator), torch.rand(50, 4, generator=generator) < 0.4
    found = loss(logits, truth.float(), "sigmoid", 0.2)
    expected = functional.binary_cross_entropy(logits.sigmoid(), 0.8 * truth.float() + 0.1)
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
    one, target = logits[:, :1], truth[:, 0].long()
    wanted = functional.one_hot(target, 2).float()
    expected = functional.binary_cross_entropy(one[:, 0].sigmoid(), target.float())
    assert float(loss(one, wanted, "binary")) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(scores(one, "binary")[:, 1], one[:, 0].sigmoid(), rtol=1e-5)
    found = measures(measured(one, target, "binary"), "binary")
    assert found["val_top1"] == pytest.approx(100 * float(((one[:, 0] > 0) == truth[:, 0]).float().mean()))
    assert found["val_loss"] == pytest.approx(float(expected), rel=1e-5)
    halves = [measured(logits[part], truth[part], "sigmoid") for part in (slice(0, 20), slice(20, 50))]
    found, chosen = measures(sum(halves), "sigmoid"), logits > 0
    both = float((chosen & truth).sum())
    precision, recall = both / float(chosen.sum()), both / float(truth.sum())
    assert found["val_f1"] == pytest.approx(200 * precision * recall / (precision + recall))
    assert found["val_exact"] == pytest.approx(100 * float((chosen == truth).all(1).float().mean()))
    assert np.isnan(measures(np.zeros((3, 2)), "sigmoid")["val_f1"])


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ({"head": "none"}, "--head none has nothing to train; use a head such as 'average, 256 relu dropout 0.5, classes'"),
        ({"head": "average, 20 swish, classes"}, "unknown operation 'swish'"),
        ({"head": "average, classes binary"}, "has 3 classes; a head with the output `binary` is for two, use `--head`"),
        ({"start": parent(head="classes binary", classes=2)}, "has 3 classes; a head with the output `binary` is for two"),
        ({"start": parent(), "head": "average, 9, classes", "freeze": "fc6"}, "--freeze fc6 includes fc6, which is new"),
        (
            {"start": parent(head="none", classes=0, last="conv4_1"), "freeze": "conv5"},
            "--freeze conv5 includes conv4_2, which is new",
        ),
        ({"teachers": [parent(head="none", classes=0)]}, "this vgg11 has no head, so it can't classify"),
        (
            {"teachers": [parent(head="classes sigmoid")], "head": "average, classes"},
            "the teachers' output is sigmoid, the student's softmax; use --head",
        ),
        (
            {"teachers": [parent(), parent(head="classes sigmoid")]},
            "the teachers' output is softmax, the student's sigmoid; use --head",
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused(others, message, tmp_path):
    with pytest.raises(Error, match=message):
        train(options(class_folders(tmp_path / "data"), tmp_path / "run", TUNE, **others))
