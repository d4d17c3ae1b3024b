"""Heads of every kind on the command line."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

import vgg
from conftest import EXAMPLES, random_network
from vgg import Labels

PHOTO = EXAMPLES / "chelsea.png"
LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
HEADLESS = (
    "vgg: this vgg11 has no head, so it can't classify; its features are pool5 (`vgg features`); `vgg train --from` trains "
    "a head"
)


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "vgg", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("heads")
    networks = {
        "several": random_network(labels=LABELS, head="average, 24 relu, classes sigmoid", seed=3),
        "unnamed": random_network(head="max batch-norm, classes", seed=3),
        "binary": random_network(head="max, classes binary", classes=2, seed=2),
        "backbone": random_network(head="none", classes=0),
        "pruned": random_network(
            channels=(4, 4, 4, 6, 8, 8, 8, 5), head="average 2, 12 leaky-relu dropout 0.25, classes", seed=1
        ),
    }
    for name, network in networks.items():
        network.write(place / f"{name}.onnx")
    return place


def test_several_labels_are_printed_above_the_threshold(folder):
    scores = vgg.load(folder / "several.onnx").scores(PHOTO)[0]
    order = sorted(range(7), key=lambda one: -scores[one])
    code, out, _ = run("classify", PHOTO, "-m", folder / "several.onnx", "--format", "json")
    assert code == 0
    assert [one["index"] for one in json.loads(out)[0]["predictions"]] == [one for one in order if scores[one] > 0.5]
    _, out, _ = run("classify", PHOTO, "-m", folder / "several.onnx", "--threshold", 0, "--format", "csv")
    assert [int(row["index"]) for row in csv.DictReader(io.StringIO(out))] == order
    _, out, _ = run("classify", PHOTO, "-m", folder / "several.onnx", "--threshold", 0, "--top", 2, "--format", "jsonl")
    assert [one["index"] for one in json.loads(out)["predictions"]] == order[:2]
    code, out, _ = run("classify", PHOTO, "-m", folder / "several.onnx", "--threshold", 1)
    assert (code, out.splitlines()) == (0, [str(PHOTO), "  no class above 1"])
    parts = folder / "parts"
    assert run("classify", PHOTO, "-m", folder / "several.onnx", "--threshold", 0, "-o", parts)[0] == 0
    import pyarrow.dataset

    [row] = pyarrow.dataset.dataset(parts).to_table().to_pylist()
    assert [one["index"] for one in row["predictions"]] == order


def test_classes_without_names_are_numbers_with_a_hint(folder, tmp_path):
    _, out, hints = run("classify", PHOTO, EXAMPLES / "rocket.jpg", "-m", folder / "unnamed.onnx", "--top", 1)
    assert [line.split()[-2] for line in out.splitlines()[1::2]] == ["class", "class"]
    assert hints == ["The classes have no names; name them with --labels FILE."]
    (tmp_path / "names.json").write_text(json.dumps({name: index for index, name in enumerate(LABELS.names)}))
    _, out, hints = run("classify", PHOTO, "-m", folder / "unnamed.onnx", "--top", 1, "--labels", tmp_path / "names.json")
    assert out.split()[-1] in LABELS.names
    assert hints == []


def test_one_logit_is_two_classes_with_names(folder, tmp_path):
    _, out, hints = run("classify", PHOTO, "-m", folder / "binary.onnx")
    assert {line.split()[-1] for line in out.splitlines()[1:]} == {"negative", "positive"}
    assert hints == []
    (tmp_path / "names.csv").write_text("0,healthy\n1,ill\n")
    _, out, _ = run("classify", PHOTO, "-m", folder / "binary.onnx", "--labels", tmp_path / "names.csv", "--format", "json")
    found = {one["label"]: one for one in json.loads(out)[0]["predictions"]}
    assert {name: one["index"] for name, one in found.items()} == {"healthy": 0, "ill": 1}
    assert found["healthy"]["score"] + found["ill"]["score"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("verb", [("classify", PHOTO), ("classify", PHOTO, "-o", "parts"), ("evaluate", EXAMPLES)])
def test_a_backbone_says_what_it_can_do(folder, tmp_path, monkeypatch, verb):
    monkeypatch.chdir(tmp_path)
    code, out, lines = run(*verb, "-m", folder / "backbone.onnx")
    assert (code, out, lines) == (1, "", [HEADLESS])
    assert not (tmp_path / "parts").exists()


def test_the_same_parameters_are_read_with_another_head(folder):
    plain = vgg.load(folder / "several.onnx")
    _, out, _ = run(
        "classify", PHOTO, "-m", folder / "several.onnx", "--head", "average, 24 gelu, classes", "--input-size", 64,
        "--top", 7, "--format", "json", "-e", "onnxruntime",
    )  # fmt: skip
    expected = vgg.load(folder / "several.onnx", "onnxruntime", head="average, 24 gelu, classes", input_size=64)
    found = {one["index"]: one["score"] for one in json.loads(out)[0]["predictions"]}
    assert [found[index] for index in range(7)] == pytest.approx(expected.scores(PHOTO)[0].tolist(), abs=1e-5)
    assert (expected.network.preprocessing.crop, expected.network.preprocessing.size) == (64, 73)
    assert plain.network.preprocessing.crop == 224
    code, _, lines = run("classify", PHOTO, "-m", folder / "several.onnx", "--head", "average, 25 relu, classes")
    assert (code, lines) == (1, ["vgg: head 'average, 25 relu, classes' of 32 pixels doesn't fit the file's layers, 32, 24, 7"])


def test_inspect_shows_the_head_by_layer(folder):
    def shown(name):
        lines = run("inspect", folder / f"{name}.onnx")[1].splitlines()
        return {line[:15].strip() or line[15:].split(",")[0]: line[15:] for line in lines}

    several = shown("several")
    assert several["head"] == "average, 32 inputs"
    assert (several["fc6"], several["fc7"]) == ("fc6, 24 units relu", "fc7, 7 units")
    assert several["scores"] == "sigmoid, 7 classes, any number for an image"
    pruned = shown("pruned")
    assert pruned["channels"] == "3x4, 6, 3x8, 5"
    assert pruned["head"] == "average 2, 5x2x2 inputs"
    assert pruned["fc6"] == "fc6, 12 units leaky-relu dropout 0.25"
    assert shown("unnamed")["head"] == "max batch-norm, 32 inputs"
    assert shown("binary")["scores"] == "binary, 2 classes with one logit"
    assert shown("binary")["labels"] == "none, shown as negative and positive; set with --labels"
    backbone = shown("backbone")
    assert backbone["head"] == "none; the last output is pool5, 32 channels, stride 32"
    assert "labels" not in backbone
    facts = json.loads(run("inspect", folder / "pruned.onnx", "--format", "json")[1])
    assert facts["head"]["layers"][0] == {"layer": "fc6", "units": 12, "steps": ["leaky-relu", "dropout", "0.25"]}
    assert json.loads(run("inspect", folder / "backbone.onnx", "--format", "json")[1])["backbone"] == {
        "last": "pool5", "channels": 32, "stride": 32,
    }  # fmt: skip


def test_inspect_shows_what_was_assumed_and_where_labels_are_from(tmp_path):
    import torch
    from torch import nn

    layers, before = [], 3
    for out in (4, "M", 8, "M", 8, 8, "M", 8, 8, "M", 8, 8, "M"):
        layers += [nn.MaxPool2d(2)] if out == "M" else [nn.Conv2d(before, out, 3, padding=1), nn.ReLU()]
        before = before if out == "M" else out
    features, classifier = nn.Sequential(*layers), nn.Sequential(nn.Linear(8 * 4, 12), nn.ReLU(), nn.Linear(12, 3))
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    state |= {f"classifier.{name}": value for name, value in classifier.state_dict().items()}
    torch.save({"state_dict": state, "classes": ["ant", "bee", "cat"]}, tmp_path / "n.pth")
    text = run("inspect", tmp_path / "n.pth")[1]
    assert "ReLU between linear layers" in text
    assert "set with --head and --output-activation" in text
    assert "3 (from the file)" in text
    _, out, _ = run("classify", PHOTO, "-m", tmp_path / "n.pth", "--format", "json")
    assert {one["label"] for one in json.loads(out)[0]["predictions"]} == {"ant", "bee", "cat"}
    given = ("--preset", "torchvision", "--labels", tmp_path / "names.txt")
    (tmp_path / "names.txt").write_text("ant\nbee\ncat")
    lines = run("convert", tmp_path / "n.pth", "-o", tmp_path / "n.onnx", *given)[2]
    assert "assumed" in lines[0]  # which neither option sets
    assert "ReLU between linear layers" in run("inspect", tmp_path / "n.onnx")[1]  # is recorded in the written file
    lines = run("convert", tmp_path / "n.pth", "-o", tmp_path / "n.onnx", *given, "--head", "12 tanh, classes")[2]
    assert len(lines) == 1
    text = run("inspect", tmp_path / "n.onnx")[1]
    assert "fc6, 12 units tanh" in text
    assert "assumed" not in text
    torch.save({"state_dict": state | {"criterion.weight": torch.ones(3)}}, tmp_path / "loss.pth")
    assert "left aside as no part of the network: criterion.weight" in run("inspect", tmp_path / "loss.pth")[1]


def test_parameters_that_are_no_numbers_are_refused_by_their_name(tmp_path):
    network = random_network(labels=LABELS, head="average, 24 relu, classes")
    weight = network.parameters["conv3_1.weight"].copy()
    weight[0, 0, 0, 0] = np.nan
    replace(network, parameters={**network.parameters, "conv3_1.weight": weight}).write(tmp_path / "broken.onnx")
    for verb in (("classify", PHOTO), ("explain", PHOTO, "-o", tmp_path / "heat.png")):
        code, out, lines = run(*verb, "-m", tmp_path / "broken.onnx")
        assert (code, out) == (1, "")
        assert lines == ["vgg: parameter conv3_1.weight has values that are not finite numbers, so the network can't be used"]
    text = run("inspect", tmp_path / "broken.onnx")[1]
    assert "DEFECT         parameter conv3_1.weight has values that are not finite numbers\n" in text
    code, _, lines = run("convert", tmp_path / "broken.onnx", "-o", tmp_path / "copy.safetensors")
    assert (code, len(lines)) == (0, 2)
    assert lines[0].endswith("conv3_1.weight has values that are not finite numbers; the numbers are kept, but predictions "
                             "with them are refused")  # fmt: skip
    refused = "vgg: parameter conv3_1.weight has values that are not finite numbers, so the network can't be used"
    broken = tmp_path / "copy.safetensors"
    for verb in (
        ("quantize", broken, "-o", tmp_path / "q.onnx"), ("sample", "make", broken, "-o", tmp_path / "s.tar.gz"),
        ("features", PHOTO, "-m", broken, "-o", tmp_path / "f.npz", "--layer", "pool3"),
    ):  # fmt: skip
        assert run(*verb)[::2] == (1, [refused])
    assert run("features", PHOTO, "-m", broken, "-o", tmp_path / "f.npz", "--layer", "pool2")[0] == 0
