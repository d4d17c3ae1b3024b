"""The command line as a user runs it: a process of its own, its two streams, its exit code."""

import csv
import io
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from conftest import EXAMPLES, FIXTURES, random_network, read_terminal
from quantized_files import quantized
from reference import save_tiny
from vgg import Architecture, Labels, Network, Provenance
from vgg.preprocessing import PRESETS

PHOTOS = sorted(map(str, EXAMPLES.glob("*.*g")))
VGG = [sys.executable, "-m", "vgg"]


def vgg(*arguments: object, **options) -> subprocess.CompletedProcess:
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1", "PYTHONUTF8": "1"}
    return subprocess.run([*VGG, *map(str, arguments)], capture_output=True, env=environment, timeout=120, **options)


def ok(*arguments: object, **options) -> str:
    result = vgg(*arguments, **options)
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    network = random_network(labels=Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu")), input_size=224, width=1 / 32)
    network.write(path)
    return path


def test_version_and_help():
    assert ok("--version").startswith("vgg 0.")
    assert shutil.which("vgg") is None or subprocess.run(["vgg", "--version"], check=True, capture_output=True).stdout
    for verb in ("classify", "convert", "inspect", "models", "pull", "sample", "bench"):
        assert f"Example: vgg {verb}" in ok(verb, "--help")


def test_json_is_a_list_of_records(model):
    records = json.loads(ok("classify", *PHOTOS, "--model", model, "--top", 2, "--format", "json"))
    assert [record["image"] for record in records] == PHOTOS
    assert {tuple(record) for record in records} == {("image", "model", "predictions")}
    assert records[0]["model"] == "tiny.onnx"
    assert {tuple(one) for record in records for one in record["predictions"]} == {("label", "score", "index", "wnid")}
    assert all(len(record["predictions"]) == 2 for record in records)


def test_every_format_tells_the_same(model):
    expected = json.loads(ok("classify", EXAMPLES, "-m", model, "--format", "json"))
    lines = [json.loads(line) for line in ok("classify", EXAMPLES, "-m", model, "--format", "jsonl").splitlines()]
    assert lines == expected
    rows = list(csv.DictReader(io.StringIO(ok("classify", EXAMPLES, "-m", model, "--format", "csv"))))
    flat = [(record["image"], rank, one["label"]) for record in expected for rank, one in enumerate(record["predictions"], 1)]
    assert [(row["image"], int(row["rank"]), row["label"]) for row in rows] == flat
    table = ok("classify", EXAMPLES, "-m", model)
    assert [line for line in table.splitlines() if not line.startswith(" ")] == PHOTOS
    assert all(record["predictions"][0]["label"] in table for record in expected)


def test_engines_agree(model):
    found = [
        json.loads(ok("classify", *PHOTOS, "-m", model, "--format", "json", "--engine", engine, "--threads", 1))
        for engine in ("native", "onnxruntime")
    ]
    labels = [[[one["label"] for one in record["predictions"]] for record in records] for records in found]
    assert labels[0] == labels[1]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--engine", "abacus"], "vgg: unknown engine 'abacus'; choose from auto, native, onnxruntime, openvino, torch\n"),
        (["--device", "tpu"], "vgg: unknown device 'tpu'; choose from cpu, cuda\n"),
        (["--device", "cuda", "--engine", "native"], "vgg: native runs on the CPU only; use torch on a GPU\n"),
    ],
)
def test_an_engine_or_device_that_there_is_not_is_one_line_and_exit_1(model, options, line):
    result = vgg("classify", PHOTOS[0], "-m", model, *options)
    assert (result.returncode, result.stdout, result.stderr.decode()) == (1, b"", line)


def test_standard_input_is_a_picture(model):
    piped = json.loads(ok("classify", "-", "-m", model, "--format", "json", input=Path(PHOTOS[0]).read_bytes()))
    direct = json.loads(ok("classify", PHOTOS[0], "-m", model, "--format", "json"))
    assert piped[0]["image"] == "standard input"
    assert piped[0]["predictions"] == direct[0]["predictions"]


def test_failures_are_listed_and_the_others_answered(model, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    places = [PHOTOS[0], tmp_path / "broken.jpg", tmp_path / "empty", PHOTOS[1]]
    result = vgg("classify", *places, "-m", model, "--format", "json")
    assert result.returncode == 1
    records = json.loads(result.stdout)
    assert [record["image"] for record in records] == [PHOTOS[0], str(tmp_path / "broken.jpg"), PHOTOS[1]]
    assert set(records[1]) == {"image", "error"}
    assert sorted(result.stderr.decode().splitlines()) == [
        f"vgg: {tmp_path / 'broken.jpg'}: not an image, or an unsupported format",
        f"vgg: {tmp_path / 'empty'}: has no images in it",
    ]


@pytest.mark.parametrize("format", ["table", "json", "jsonl", "csv"])
def test_nothing_to_answer_still_is_the_format(model, tmp_path, format):
    result = vgg("classify", tmp_path / "nowhere.png", "-m", model, "--format", format)
    assert result.returncode == 1
    assert result.stderr.decode() == f"vgg: {tmp_path / 'nowhere.png'}: file or folder not found\n"
    if format == "json":
        assert len(json.loads(result.stdout)) == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["classify", PHOTOS[0], "-m", "nowhere.onnx"], "vgg: nowhere.onnx: file or folder not found"),
        (
            ["classify", PHOTOS[0], "-m", PHOTOS[0]],
            f"vgg: {PHOTOS[0]}: is a PNG image; images are arguments, ",
        ),
        (["inspect", EXAMPLES], f"vgg: {EXAMPLES}: is a folder"),
        (["convert", "nowhere.pth", "-o", "out.onnx"], "vgg: nowhere.pth: file or folder not found"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_1(arguments, line):
    result = vgg(*arguments)
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr.decode().startswith(line)
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    "arguments", [["classify"], ["classify", "x.png", "--top"], ["convert", "x"], ["dance"], ["inspect", "--top", "3"]]
)
def test_wrong_usage_is_exit_2(arguments):
    result = vgg(*arguments)
    assert result.returncode == 2
    assert result.stdout == b""
    assert b" Error " in result.stderr  # the box that says what is wrong


def test_convert_makes_a_file_that_says_what_it_needs(tmp_path):
    save_tiny(str(tmp_path / "n.pth"), "vgg16-bn", size=224, width=1 / 32)
    (tmp_path / "labels.txt").write_text("a\nb\nc\nd\ne\nf\ng\n")
    result = vgg("convert", tmp_path / "n.pth", "-o", tmp_path / "n.onnx", "--opset", 13, "--preset", "caffe",
                 "--labels", tmp_path / "labels.txt", "--extra-outputs", "fc7", "--fold-batch-norm")  # fmt: skip
    assert result.returncode == 0
    assert result.stderr.decode() == f"{tmp_path / 'n.onnx'}: vgg16, 0.5 MB\n"
    network = Network.read(tmp_path / "n.onnx")
    assert (network.architecture.name, network.preprocessing) == ("vgg16", PRESETS["caffe"])
    assert network.labels == Labels(tuple("abcdefg"))
    assert (network.provenance.source, network.provenance.preprocessing) == ("n.pth", "given")
    facts = json.loads(ok("inspect", tmp_path / "n.onnx", "--format", "json"))
    assert (facts["opset"], [port["name"] for port in facts["outputs"]]) == (13, ["fc7", "logits"])


def test_a_guess_is_said_once_and_what_is_given_is_no_guess(tmp_path):
    save_tiny(str(tmp_path / "n.pth"))
    guess = vgg("convert", tmp_path / "n.pth", "-o", tmp_path / "n.onnx").stderr.decode().splitlines()
    assert guess[0] == (
        f"vgg: note: {tmp_path / 'n.pth'}: no preprocessing or input size in the file; using preprocessing 'torchvision' and "
        "32 x 32 pixels. Set with --preset and --input-size"
    )
    assert len(guess) == 2


def test_convert_writes_a_state_dictionary_with_the_librarys_keys(model, tmp_path):
    for options, file, key in (
        ((), "n.pth", "classifier.6.weight"),
        (("--keys", "timm"), "n.pth", "head.fc.weight"),
        (("--keys", "torchvision"), "n.safetensors", "classifier.6.weight"),
    ):
        result = vgg("convert", model, "-o", tmp_path / file, *options)
        assert (result.returncode, result.stdout) == (0, b"")
        note, written = result.stderr.decode().splitlines()
        assert note.startswith(f"vgg: note: {tmp_path / file}: it has other channels than 64, 128, 256, 512, 512, unlike ")
        assert written == f"{tmp_path / file}: vgg11, 0.5 MB"
        path = tmp_path / file
        state = torch.load(path, weights_only=True) if path.suffix == ".pth" else safetensors.torch.load_file(path)
        assert len(state[key]) == 7
        assert Network.read(path).labels == Network.read(model).labels
        facts = json.loads(ok("inspect", path, "--format", "json"))
        assert (facts["preprocessing_source"], facts["labels_source"], facts["parameters_intact"]) == (*["metadata"] * 2, True)
    refused = vgg("convert", model, "-o", tmp_path / "n.onnx", "--keys", "timm")
    assert (refused.returncode, refused.stderr.decode()) == (
        1, f"vgg: {tmp_path / 'n.onnx'}: keys are of state dictionaries; write to .pth or .safetensors, or leave out --keys\n"
    )  # fmt: skip


def test_a_full_disk_leaves_nothing_behind(tmp_path):
    save_tiny(str(tmp_path / "n.pth"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "n.onnx").write_bytes(b"older")
    limit = f"ulimit -f 100; exec {sys.executable} -W ignore -m vgg convert n.pth -o out/n.onnx"
    script = f"trap '' XFSZ; {limit}"
    result = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=False)
    assert result.returncode == 1
    assert b"out/n.onnx: can't be written: " in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["n.onnx"]
    assert (tmp_path / "out" / "n.onnx").read_bytes() == b"older"


def test_inspect_says_what_is_known_and_how(tmp_path):
    save_tiny(str(tmp_path / "n.pth"))
    facts = json.loads(ok("inspect", tmp_path / "n.pth", "--format", "json"))
    assert (facts["format"], facts["architecture"]["name"], facts["preprocessing_source"]) == ("torch", "vgg11", "guess")
    ok("convert", tmp_path / "n.pth", "-o", tmp_path / "n.onnx")
    facts = json.loads(ok("inspect", tmp_path / "n.onnx", "--format", "json"))
    assert (facts["format"], facts["opset"], facts["ir_version"], facts["parameters_intact"]) == ("onnx", 17, 8, True)
    assert (facts["preprocessing_source"], facts["provenance"]["preprocessing"]) == ("metadata", "guess")
    text = ok("inspect", tmp_path / "n.onnx")
    assert "torchvision (from the file's metadata; when written: guessed by the format)" in text
    content = bytearray((tmp_path / "n.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "n.onnx").write_bytes(content)
    assert "CHANGED since written" in ok("inspect", tmp_path / "n.onnx")


@pytest.mark.parametrize(("form", "title", "count"), [("qdq", "QDQ", 16), ("qoperator", "QOperator", 11)])
def test_inspect_shows_quantized_activations(tmp_path, form, title, count):
    path = FIXTURES / f"written-0.1/{form}.onnx"
    facts = json.loads(ok("inspect", path, "--format", "json"))["activations"]
    assert (facts["form"], len(facts["layer_outputs"]), facts["obstacle"]) == (title, count, None)
    assert facts["layer_outputs"]["data"] == [{"scale": pytest.approx(0.015992, rel=1e-4), "zero_point": 124, "dtype": "uint8"}]
    assert f"activations    {title}, {count} values in 8 bits; integers on the native engine" in ok("inspect", path)
    path = quantized(tmp_path, kinds=("u16", "s8"))
    assert "activations    QDQ; not in integers on the native engine, since QuantizeLinear (node" in ok("inspect", path)
    assert json.loads(ok("inspect", FIXTURES / "torch-legacy.onnx", "--format", "json"))["activations"] is None


def test_inspect_tells_what_it_can_of_another_programs_file():
    import onnx

    light = Path(onnx.__file__).parent / "backend/test/data/light/light_vgg19.onnx"
    facts = json.loads(ok("inspect", light, "--format", "json"))
    assert (facts["producer"], facts["opset"], facts["ir_version"]) == ("onnx-caffe2", 9, 3)
    assert facts["inputs"] == [{"name": "data_0", "shape": [1, 3, 224, 224]}]


def test_a_published_file_is_known_by_its_hash(tmp_path, monkeypatch):
    from vgg import formats, zoo

    save_tiny(str(tmp_path / "n.pth"))
    sha256 = formats.digest(tmp_path / "n.pth")[:8]
    known = zoo.Published("someone/vgg11", Architecture("vgg11"), "zoo", "", "", None, sha256)
    monkeypatch.setattr(zoo, "PUBLISHED", (known,))
    network = Network.read(tmp_path / "n.pth")
    assert network.preprocessing.name == "zoo"
    assert (network.provenance.published, network.provenance.preprocessing) == ("someone/vgg11", "known hash")
    assert isinstance(network.provenance, Provenance)


def test_models_are_listed():
    records = json.loads(ok("models", "--format", "json"))
    assert {"zoo/vgg16-12", "torchvision/vgg16-bn", "timm/vgg19_bn.tv_in1k"} <= {record["model"] for record in records}
    assert ok("models").splitlines()[0].startswith("model")
    assert len(list(csv.DictReader(io.StringIO(ok("models", "--format", "csv"))))) == len(records)


def test_shell_completion_is_offered():
    command = f"{shlex.join(VGG)} --show-completion; exit $?"  # two commands, so that the shell stays, to be recognised
    result = subprocess.run(["bash", "-c", command], capture_output=True, check=False)
    assert b"_VGG_COMPLETE" in result.stdout.upper()


def test_completion_completes():
    environment = {**os.environ, "_VGG_COMPLETE": "complete_bash", "COMP_WORDS": "vgg cl", "COMP_CWORD": "1"}
    code = "import sys; sys.argv[0] = 'vgg'; from vgg.cli import main; main()"
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.split() == ["classify"]


def test_many_pictures_show_a_bar_on_a_terminal_and_the_result_stays_clean(model, tmp_path):
    for index in range(20):
        shutil.copy(PHOTOS[0], tmp_path / f"{index}.png")
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    command = [*VGG, "classify", str(tmp_path), "-m", str(model), "--format", "jsonl"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment) as process:
        os.close(theirs)
        shown = read_terminal(ours)
        output = process.stdout.read().decode()
    assert process.returncode == 0
    assert b"Classifying" in shown
    assert len([json.loads(line) for line in output.splitlines()]) == 20


def test_a_reader_that_leaves_early_is_no_error(model, tmp_path):
    for index in range(30):
        shutil.copy(PHOTOS[0], tmp_path / f"{index}.png")
    command = " ".join([*VGG, "classify", str(tmp_path), "-m", str(model), "--format", "jsonl"])
    result = subprocess.run(["bash", "-c", f"{command} | head -n 1"], capture_output=True, check=False)
    assert result.stdout.count(b"\n") == 1
    assert result.stderr == b""
