"""Sample data: written, read by other programs, checked, in every layout that the zoo has used."""

import csv
import io
import json
import subprocess
import sys
import tarfile
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from conftest import EXAMPLES, needs_native, random_network
from reference import save_tiny
from vgg import Error, Labels, ModelError, Network, engines, samples, zoo

RTOL, ATOL = 1e-3, 1e-7


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.onnx"
    random_network(labels=Labels(tuple("abcdefg")), input_size=224, width=1 / 32).write(path)
    return path


@pytest.fixture(scope="module")
def tarball(model):
    """Three sets of random pixels."""
    samples.make(model, model.parent / "tiny.tar.gz")
    return model.parent / "tiny.tar.gz"


@pytest.fixture
def folder(tarball, tmp_path):
    with tarfile.open(tarball) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "tiny"


def output(folder, values, index=0):
    """Replace an output."""
    tensor = numpy_helper.from_array(np.asarray(values, np.float32), "logits")
    (folder / f"test_data_set_{index}" / "output_0.pb").write_bytes(tensor.SerializeToString())


def expected(folder, index=0):
    path = folder / f"test_data_set_{index}" / "output_0.pb"
    return numpy_helper.to_array(onnx.TensorProto.FromString(path.read_bytes())).copy()


@pytest.mark.parametrize("engine", ["onnxruntime", pytest.param("native", marks=needs_native), "openvino", "torch"])
def test_sample_data_passes_on_every_engine(tarball, engine):
    found = samples.check(tarball, engine=engine)
    assert [one.set for one in found] == ["test_data_set_0", "test_data_set_1", "test_data_set_2"]
    assert all(one.passed and 0 <= one.error < 1e-4 and one.share < 1 for one in found)


def test_the_layout_and_the_tolerance_are_the_zoos(tarball, model, folder):
    with tarfile.open(tarball) as tar:
        members = tar.getmembers()
    names = [f"tiny/test_data_set_{index}/{role}_0.pb" for index in range(3) for role in ("input", "output")]
    assert [member.name for member in members] == [*names, "tiny/tiny.onnx"]
    assert {(one.mtime, one.uid, one.gid, one.uname, one.gname, one.mode) for one in members} == {(0, 0, 0, "", "", 0o644)}
    assert (folder / "tiny.onnx").read_bytes() == model.read_bytes()
    session = onnxruntime.InferenceSession(folder / "tiny.onnx", providers=["CPUExecutionProvider"])
    for place in sorted(folder.glob("test_data_set_*")):
        given, wanted = (onnx.TensorProto.FromString((place / f"{role}_0.pb").read_bytes()) for role in ("input", "output"))
        assert (given.name, list(given.dims), wanted.name, list(wanted.dims)) == ("data", [1, 3, 224, 224], "logits", [1, 7])
        (found,) = session.run(None, {"data": numpy_helper.to_array(given)})
        np.testing.assert_allclose(found, numpy_helper.to_array(wanted), rtol=RTOL, atol=ATOL)


def test_a_long_name_in_another_script_works(model, tmp_path):
    path = tmp_path / ("модель " * 18 + ".onnx")
    path.write_bytes(model.read_bytes())
    samples.make(path, tmp_path / "s.tar.gz", sets=1)
    assert samples.check(tmp_path / "s.tar.gz")[0].passed


def test_the_same_call_writes_the_same_bytes(tarball, model, tmp_path):
    samples.make(model, tmp_path / "again.tgz")
    assert (tmp_path / "again.tgz").read_bytes() == tarball.read_bytes()
    samples.make(model, tmp_path / "other.tar.gz", seed=1)
    assert (tmp_path / "other.tar.gz").read_bytes() != tarball.read_bytes()


def test_images_are_preprocessed_for_the_model(model, tmp_path):
    photos = sorted(EXAMPLES.glob("*.*g"))
    assert samples.make(model, tmp_path / "s.tar.gz", photos) == len(photos)
    with tarfile.open(tmp_path / "s.tar.gz") as tar:
        tensor = onnx.TensorProto.FromString(tar.extractfile("tiny/test_data_set_1/input_0.pb").read())
    np.testing.assert_array_equal(numpy_helper.to_array(tensor)[0], Network.read(model).preprocessing(photos[1]))
    assert all(one.passed for one in samples.check(tmp_path / "s.tar.gz"))


def test_other_formats_are_converted_to_onnx(tmp_path):
    save_tiny(str(tmp_path / "n.pth"), size=224, width=1 / 32)
    samples.make(tmp_path / "n.pth", tmp_path / "n.tar.gz", sets=1)
    assert [one.passed for one in samples.check(tmp_path / "n.tar.gz")] == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.pth", "n.tar.gz"]


def test_extra_outputs_are_compared_by_name(model, tmp_path):
    Network.read(model).write(tmp_path / "n.onnx", outputs=["fc7", "pool5"])
    samples.make(tmp_path / "n.onnx", tmp_path / "n.tar.gz", sets=1)
    assert samples.check(tmp_path / "n.tar.gz")[0].passed
    other = replace(Network.read(model), parameters={k: v * 1.01 for k, v in Network.read(model).parameters.items()})
    other.write(tmp_path / "other.onnx")
    assert not samples.check(tmp_path / "n.tar.gz", tmp_path / "other.onnx")[0].passed


def test_a_folder_and_a_plain_tar_are_read(tarball, folder, tmp_path):
    wanted = samples.check(tarball)
    assert samples.check(folder) == wanted
    with tarfile.open(tmp_path / "plain.tar", "w") as tar:
        tar.add(folder, "tiny")
    assert samples.check(tmp_path / "plain.tar") == wanted
    (folder / "._tiny.onnx").write_bytes(b"left by macOS")
    assert samples.check(folder) == wanted


@pytest.mark.parametrize("old", [True, False], ids=["as Python 2 wrote it", "as today"])
def test_an_old_npz_is_read_alone_in_a_folder_and_in_a_tarball(folder, tmp_path, old):
    given = numpy_helper.to_array(onnx.TensorProto.FromString((folder / "test_data_set_0/input_0.pb").read_bytes()))
    arrays = (
        {"inputs": given[None], "outputs": expected(folder)[None]} if old else {"inputs": given, "outputs": expected(folder)}
    )
    for place in folder.glob("test_data_set_*"):
        for path in place.iterdir():
            path.unlink()
    (np.savez if old else np.savez_compressed)(folder / "test_data_0.npz", **arrays)
    with tarfile.open(tmp_path / "old.tar.gz", "w:gz") as tar:
        tar.add(folder, "tiny")
    for place in (folder / "test_data_0.npz", folder, tmp_path / "old.tar.gz"):
        (found,) = samples.check(place)
        assert (found.set, found.passed) == ("test_data_0", True)


def test_probabilities_are_compared_with_the_softmax(folder):
    logits = expected(folder).astype(np.float64)
    probabilities = np.exp(logits) / np.exp(logits).sum()
    output(folder, probabilities)
    assert samples.check(folder)[0].passed
    output(folder, probabilities[:, ::-1])
    assert not samples.check(folder)[0].passed


@pytest.mark.parametrize("change", ["one value", "all a little", "nan", "infinity"])
def test_a_wrong_output_fails(folder, change):
    values = expected(folder, 1)
    if change == "all a little":
        values *= 1.002
    else:
        values[0, 3] = {"one value": values[0, 3] * 1.01 + 0.01, "nan": np.nan, "infinity": np.inf}[change]
    output(folder, values, 1)
    assert [one.passed for one in samples.check(folder)] == [True, False, True]


def test_rounding_of_large_sums_is_allowed(folder):
    values = expected(folder)
    values[0, 3] += 1e-5 * np.abs(values).max()
    output(folder, values)
    assert samples.check(folder)[0].passed


def test_another_model_can_be_checked(tarball, model, tmp_path, monkeypatch):
    random_network(seed=1, input_size=224, width=1 / 32).write(tmp_path / "other.onnx")
    assert not any(one.passed for one in samples.check(tarball, tmp_path / "other.onnx"))
    row = zoo.Published("zoo/tiny-7", random_network().architecture, "zoo", "x.onnx", "", model.stat().st_size)
    monkeypatch.setattr(zoo, "PUBLISHED", (row,))
    monkeypatch.setenv("VGG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VGG_MIRROR", str(tmp_path / "mirror"))
    (tmp_path / "mirror/zoo").mkdir(parents=True)
    (tmp_path / "mirror/zoo/tiny-7.onnx").write_bytes(model.read_bytes())
    assert all(one.passed for one in samples.check(tarball, "tiny-7"))


def test_unfitting_sample_data_is_one_line(tarball, folder, tmp_path, model):
    random_network(input_size=64).write(tmp_path / "small.onnx")
    with pytest.raises(ModelError, match=r"tiny.tar.gz: test_data_set_0 doesn't fit the model: vgg11 takes float32 \["):
        samples.check(tarball, tmp_path / "small.onnx", "onnxruntime")
    output(folder, np.zeros((1, 9)))
    with pytest.raises(Error, match=r"doesn't fit the model: expected output \[1, 9\], got \[1, 7\]"):
        samples.check(folder)
    (folder / "test_data_set_0/output_0.pb").unlink()
    with pytest.raises(Error, match="test_data_set_0: 1 inputs and 0 outputs; expected 1 input and at least 1 output"):
        samples.check(folder)
    (folder / "second.onnx").write_bytes(model.read_bytes())
    with pytest.raises(Error, match="ambiguous: 2 models"):
        samples.check(folder)
    for path in folder.glob("*.onnx"):
        path.unlink()
    with pytest.raises(Error, match=r"no \.onnx file in the sample data"):
        samples.check(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(Error, match="no sample data found, neither"):
        samples.check(tmp_path / "empty")
    with pytest.raises(Error, match="file or folder not found"):
        samples.check(tmp_path / "nothing.tar.gz")
    with pytest.raises(Error, match=r"unsupported suffix; sample data is written as \.tar\.gz"):
        samples.make(model, tmp_path / "x.zip")
    with pytest.raises(Error, match="file or folder not found"):
        samples.make(model, tmp_path / "nowhere" / "x.tar.gz")


def test_a_graph_that_onnx_runtime_rejects_is_one_line(model, tmp_path, monkeypatch):
    graph = onnx.load(model)
    graph.opset_import[0].version = 99
    onnx.save(graph, tmp_path / "future.onnx")
    with pytest.raises(ModelError, match=r"ONNX Runtime can't run it .*; `vgg convert` updates old files"):
        samples.make(tmp_path / "future.onnx", tmp_path / "x.tar.gz")
    assert not (tmp_path / "x.tar.gz").exists()


def vgg(*arguments):
    command = [sys.executable, "-m", "vgg", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line_writes_and_checks_sample_data(model, tmp_path):
    made = vgg("sample", "make", model, EXAMPLES, "-o", tmp_path / "s.tar.gz")
    assert (made.returncode, made.stdout) == (0, "")
    assert made.stderr == f"{tmp_path / 's.tar.gz'}: 3 sets, {(tmp_path / 's.tar.gz').stat().st_size / 1e6:,.1f} MB\n"
    table = vgg("sample", "check", tmp_path / "s.tar.gz", "-e", "onnxruntime", "--threads", 1)
    assert (table.returncode, table.stderr) == (0, "")
    assert table.stdout.splitlines()[0].split() == ["set", "error", "of", "allowed", "passed"]
    wrong = tmp_path / "wrong.onnx"
    random_network(seed=2, input_size=224, width=1 / 32).write(wrong)
    found = vgg("sample", "check", tmp_path / "s.tar.gz", "-m", wrong, "--format", "json")
    assert found.returncode == 1
    assert [(one["set"], one["passed"]) for one in json.loads(found.stdout)] == [
        (f"test_data_set_{index}", False) for index in range(3)
    ]
    rows = list(csv.DictReader(io.StringIO(vgg("sample", "check", tmp_path / "s.tar.gz", "--format", "csv").stdout)))
    assert [row["passed"] for row in rows] == ["True"] * 3
    failed = vgg("sample", "check", tmp_path)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr == f"vgg: {tmp_path}: no sample data found, neither test_data_set_0/input_0.pb nor test_data_0.npz\n"


@needs_native
def test_the_real_vgg16_passes_on_the_native_engine(real_onnx, tmp_path):
    network = Network.read(real_onnx["vgg16"])
    pixels = np.random.RandomState(0).randint(0, 256, (224, 224, 3), np.uint8)
    batches = [network.preprocessing(EXAMPLES / "chelsea.png")[None], network.preprocessing.normalise(pixels)[None]]
    judge = engines.open(network, "onnxruntime")
    for index, batch in enumerate(batches):  # as a folder, which is faster than a tarball
        (tmp_path / f"test_data_set_{index}").mkdir()
        for role, values in (("input", batch), ("output", judge.logits(batch))):
            data = numpy_helper.from_array(values, role).SerializeToString()
            (tmp_path / f"test_data_set_{index}" / f"{role}_0.pb").write_bytes(data)
    assert [one.passed for one in samples.check(tmp_path, real_onnx["vgg16"], "native")] == [True, True]


@pytest.mark.parametrize(
    ("head", "classes", "softmax"),
    [
        ("average, 24 relu, classes sigmoid", 7, False),
        ("average, 24 relu, classes sigmoid", 7, True),
        ("max, classes binary", 2, False),
        ("max, classes binary", 2, True),
        ("none", 0, False),
    ],
)
def test_outputs_of_any_head_are_checked(tmp_path, head, classes, softmax):
    network = random_network(head=head, classes=classes, input_size=224, width=1 / 32)
    network.write(tmp_path / "tiny.onnx", softmax=softmax)
    samples.make(tmp_path / "tiny.onnx", tmp_path / "tiny.tar.gz", sets=1)
    [found] = samples.check(tmp_path / "tiny.tar.gz")
    assert found.passed
    other = replace(network, parameters={name: value * 1.1 for name, value in network.parameters.items()})
    other.write(tmp_path / "other.onnx", softmax=softmax)
    [found] = samples.check(tmp_path / "tiny.tar.gz", tmp_path / "other.onnx")
    assert not found.passed


def test_the_sigmoid_of_one_logit_is_the_second_classes_score(tmp_path):
    network = random_network(head="max, classes binary", classes=2, input_size=224, width=1 / 32)
    network.write(tmp_path / "tiny.onnx")
    samples.make(tmp_path / "tiny.onnx", tmp_path / "tiny.tar.gz", sets=1)
    with tarfile.open(tmp_path / "tiny.tar.gz") as tar:
        tar.extractall(tmp_path, filter="data")
    score = 1 / (1 + np.exp(-expected(tmp_path / "tiny")))
    path = tmp_path / "tiny/test_data_set_0/output_0.pb"
    path.write_bytes(numpy_helper.from_array(score.astype(np.float32), "dense_1").SerializeToString())
    assert [one.passed for one in samples.check(tmp_path / "tiny")] == [True]
