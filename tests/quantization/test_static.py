import os
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationMethod
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from PIL import Image

import vgg
from conftest import change_version, needs_native, random_network
from saturation import product, run
from vgg import ModelError, Network, engines
from vgg.quantization import calibration, quantize_weights, static
from vgg.quantization.calibration import batches, ranges
from vgg.quantization.static import quantize_static, write
from vgg.sources import unlabelled

COUNT = 11


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(COUNT):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((80, 80)).save(folder / f"{index}.png")
    return folder


def network(name="vgg16", **options):
    made = random_network(name, width=1 / 8, input_size=64, **options)
    return replace(made, preprocessing=replace(made.preprocessing, crop=64, size=64))


def preprocessed(one, place):
    return np.concatenate(list(batches(unlabelled(place), one)))


def extremes(one, place):
    """The range of each value, found in one go."""
    batch = preprocessed(one, place)
    values = {"data": batch, **engines.open(one, "onnxruntime").run(batch, one.architecture.values)}
    return {name: (array.min(), array.max()) for name, array in values.items()}


def test_ranges_are_found_without_a_cache(place, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VGG_HOME", str(tmp_path / "file"))
    with pytest.warns(vgg.Notice, match=r"the next calibration computes the ranges again: .*file"):
        found = ranges(network("vgg11"), unlabelled(place))
    assert "logits" in found.keys()  # noqa: SIM118


def test_ranges_are_those_of_all_images_and_are_remembered(place, monkeypatch):
    one = network("vgg11-lrn")
    found = ranges(one, unlabelled(place))
    for name, (low, high) in extremes(one, place).items():
        np.testing.assert_allclose(found[name].range_value, (low, high), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(calibration, "batches", None)
    again = ranges(one, unlabelled(place))
    assert again.keys() == found.keys()
    assert all(again[name].range_value == found[name].range_value for name in found.keys())  # noqa: SIM118
    monkeypatch.undo()


@pytest.mark.parametrize(
    "change", ["network", "architecture", "images", "method", "engine", "runtime", "vgg", "instructions", "fresh", "nothing"]
)
def test_only_the_same_calibration_is_remembered(place, tmp_path, monkeypatch, change):
    monkeypatch.setenv("VGG_HOME", str(tmp_path / "home"))
    if change == "instructions" and engines.native_library() is None:
        pytest.skip("needs the native engine")
    real, opened = engines.open, "native" if change == "instructions" else "onnxruntime"
    monkeypatch.setattr(engines, "open", lambda model: real(model, opened))
    ranges(network("vgg11"), unlabelled(place))
    one, images, options, calls = network("vgg11"), unlabelled(place), {}, []
    if change == "network":
        one = network("vgg11", seed=1)
    if change == "architecture":
        one = replace(
            one, architecture=replace(one.architecture, head=one.architecture.classifier.text.replace("relu", "tanh"))
        )
    if change == "images":
        shutil.copytree(place, tmp_path / "images")
        (tmp_path / "images/0.png").rename(tmp_path / "images/x.png")
        images = unlabelled(tmp_path / "images")
    if change in ("method", "fresh"):
        options = {"method": "percentile"} if change == "method" else {"fresh": True}
    if change == "engine":
        pytest.importorskip("torch", reason="needs torch")
        opened = "torch"
    if change == "instructions":
        monkeypatch.setenv("VGG_INSTRUCTIONS", "portable")
    if change in ("runtime", "vgg"):
        change_version(monkeypatch, {"runtime": "onnxruntime", "vgg": "vgg"}[change])
    ranges(one, images, progress=lambda *done: calls.append(done), **options)
    assert calls == ([] if change == "nothing" else [("Calibrating", done, COUNT) for done in (*range(2, COUNT, 2), COUNT)])


def test_a_percentile_leaves_outliers_out(place, capsys):
    one = network("vgg11")
    batch, whole = preprocessed(one, place), extremes(one, place)
    found = ranges(one, unlabelled(place), "percentile")
    assert capsys.readouterr().out == ""
    for name in ("data", "conv1_1", "conv3_1"):
        array = batch if name == "data" else engines.open(one, "onnxruntime").run(batch, [name])[name]
        low, high = found[name].range_value
        assert whole[name][0] <= low < high < whole[name][1]
        assert np.mean(array <= high) == pytest.approx(calibration.PERCENTILE / 100, abs=2e-3)


@pytest.mark.parametrize("format", ["qdq", "qoperator"])
@pytest.mark.parametrize("activations", ["u8", "s8"])
@pytest.mark.parametrize("floats", [(), ("conv1_1", "fc8")], ids=["all", "but two"])
@pytest.mark.parametrize("name", ["vgg11", "vgg16-bn"])
def test_what_is_written_runs_and_is_read(tmp_path, place, format, activations, floats, name):
    one = network(name)
    batch = preprocessed(one, place)
    model = quantize_static(one, ranges(one, unlabelled(place)), format, activations=activations, float_layers=floats)
    write(model, one, tmp_path / "q.onnx")
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)
    again = Network.read(tmp_path / "q.onnx")
    assert (again.architecture, again.preprocessing) == (one.fold_batch_norm().architecture, one.preprocessing)
    kept = {name.removesuffix(".weight") for name, value in again.parameters.items() if isinstance(value, np.ndarray)}
    assert {layer for layer in kept if not layer.endswith("bias")} == set(floats)
    for value in again.parameters.values():
        assert isinstance(value, np.ndarray) or (np.abs(value.values.astype(int)).max() <= 64 and len(set(value.scale)) > 1)
    expected = engines.open(one, "onnxruntime").logits(batch)
    found = engines.open(tmp_path / "q.onnx").logits(batch)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    operators = {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    assert ("QLinearConv" in operators) == (format == "qoperator")


@pytest.mark.parametrize("format", ["qdq", "qoperator"])
def test_a_scale_that_is_no_number_is_refused(tmp_path, place, format):
    """Integers would hide it."""
    one = network("vgg11")
    write(quantize_static(one, ranges(one, unlabelled(place)), format), one, tmp_path / "q.onnx")
    model = onnx.load(tmp_path / "q.onnx")
    scale = next(one for one in model.graph.initializer if "conv" in one.name and one.name.endswith("scale") and not one.dims)
    scale.CopyFrom(onnx.numpy_helper.from_array(np.full(tuple(scale.dims), np.nan, np.float32), scale.name))
    onnx.save(model, tmp_path / "q.onnx")
    with pytest.raises(ModelError, match=r"q\.onnx: .* has the scale nan; that of activations must be a number greater than 0"):
        engines.open(tmp_path / "q.onnx")


HEADS = [
    "classes", "max, 40 leaky-relu 0.1, classes", "average 2 batch-norm, 40 gelu batch-norm, 30, classes sigmoid",
    "flatten batch-norm, 64 silu dropout, classes binary", "max, 40 elu, 30 tanh, classes", "average 2, 40 relu, classes relu",
    "100 gelu-tanh, 20 sigmoid, classes tanh", "average, 40 leaky-relu, classes", "none",
]  # fmt: skip


@pytest.mark.parametrize("format", ["qdq", "qoperator"])
@pytest.mark.parametrize("head", HEADS)
def test_any_head_and_a_backbone_are_quantized(tmp_path, place, format, head):
    """Activations other than ReLU stay float, and so do the values that they read."""
    classes = {"none": 0, HEADS[3]: 2}.get(head, 7)
    one = network("vgg11-bn", head=head, classes=classes, last="conv5_1" if head == "none" else "")
    if head.endswith("classes relu"):  # else most logits are 0
        one = replace(one, parameters={**one.parameters, "fc7.bias": one.parameters["fc7.bias"] + 1})
    batch, last = preprocessed(one, place), one.architecture.values[-1]
    write(quantize_static(one, ranges(one, unlabelled(place)), format), one, tmp_path / "q.onnx")
    onnx.checker.check_model(tmp_path / "q.onnx", full_check=True)
    expected = engines.open(one, "onnxruntime").run(batch, (last,))[last]
    opened = engines.open(tmp_path / "q.onnx", "onnxruntime")
    found = opened.run(batch, (last,))[last]
    assert found.shape == expected.shape
    if engines.native_library():
        native = engines.open(tmp_path / "q.onnx", "native")
        assert (native.name, type(native).__name__) == ("native", "NativeGraphEngine")
        np.testing.assert_allclose(native.run(batch, (last,))[last], found, atol=1e-6 * np.abs(found).max())
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()
    again = Network.read(tmp_path / "q.onnx")
    assert again.architecture == one.fold_batch_norm().architecture
    weights = engines.open(again, "torch").run(batch, (last,))[last]
    assert np.abs(weights - expected).max() < 0.1 * np.abs(expected).max()
    if head == "none":
        with pytest.raises(ModelError, match="gives only its conv5_1; use the engine native for other values"):
            opened.run(batch, ("conv3_1",))
    else:
        assert len(np.unique(found)) > 0.9 * (found != 0).sum()  # not rounded to 8 bits


def test_no_pair_of_products_overflows():
    """vpmaddubsw at its limits: activations of 255 with weights of 64 are exact, with weights of 127 they are not."""
    left = np.full((1, 2), 255, np.uint8)
    for limit, exact in ((static.REDUCED, True), (static.REDUCED + 1, False), (127, False)):
        for sign in (1, -1):
            right = np.full((2, 1), sign * limit, np.int8)
            assert np.array_equal(product(left, right, True), product(left, right, False)) == exact
    rng = np.random.default_rng(0)
    left, right = rng.choice([0, 255], (40, 300)).astype(np.uint8), rng.choice([-64, 64], (300, 20)).astype(np.int8)
    assert np.array_equal(product(left, right, True), product(left, right, False))


def loud(one):
    """A network whose weights are all as large as a channel's largest."""
    parameters = {
        name: np.sign(value) * np.abs(value).mean() if name.endswith("weight") else value
        for name, value in one.parameters.items()
    }
    return replace(one, parameters={name: value.astype(np.float32) for name, value in parameters.items()})


@pytest.mark.parametrize("activations", ["u8", "s8"])
def test_the_file_is_right_without_vnni_and_the_published_recipe_is_not(tmp_path, place, activations):
    one = loud(network("vgg11"))
    batch = preprocessed(one, place)[:2]
    found, expected = ranges(one, unlabelled(place)), engines.open(one, "onnxruntime").logits(batch)
    lost = {}
    for reduced in (True, False):
        write(quantize_static(one, found, "qoperator", activations=activations, reduce_range=reduced), one, tmp_path / "q.onnx")
        exact, saturated = (run(tmp_path / "q.onnx", batch, saturating) for saturating in (False, True))
        assert np.array_equal(exact, saturated) == reduced
        lost[reduced] = [float(np.abs(logits - expected).max() / np.abs(expected).max()) for logits in (exact, saturated)]
        if reduced:  # the emulation is ONNX Runtime's arithmetic, to a rounding here and there
            theirs = engines.open(tmp_path / "q.onnx", "native").logits(batch)
            np.testing.assert_allclose(exact, theirs, rtol=0, atol=0.03 * np.abs(theirs).max())
    assert max(*lost[True], lost[False][0]) < 0.1
    assert lost[False][1] > 3 * lost[True][1]


RUN = """
import sys, numpy as np
from vgg import engines
np.save(sys.argv[2], engines.open(sys.argv[1], "openvino").logits(np.load(sys.argv[3])))
"""


@pytest.mark.parametrize("activations", ["u8", "s8"])
def test_openvino_is_right_with_its_kernels_for_avx2(tmp_path, place, activations):
    """oneDNN, OpenVINO's library of kernels, is restricted to AVX2, so it uses vpmaddubsw."""
    pytest.importorskip("openvino", reason="openvino isn't installed; `scripts/setup test` installs it")
    one = loud(network("vgg11"))
    batch = preprocessed(one, place)[:2]
    np.save(tmp_path / "batch.npy", batch)
    found, expected = ranges(one, unlabelled(place)), engines.open(one, "onnxruntime").logits(batch)
    lost = {}
    for reduced in (True, False):
        write(quantize_static(one, found, activations=activations, reduce_range=reduced), one, tmp_path / "q.onnx")
        arguments = [sys.executable, "-c", RUN, "q.onnx", "logits.npy", "batch.npy"]
        subprocess.run(arguments, check=True, cwd=tmp_path, env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"})
        without = np.load(tmp_path / "logits.npy")
        lost[reduced] = float(np.abs(without - expected).max() / np.abs(expected).max())
        logits = engines.open(tmp_path / "q.onnx", "openvino").logits(batch)
        assert np.abs(logits - expected).max() < 0.03 * np.abs(expected).max()
    assert lost[True] < 0.03
    assert lost[False] > 3 * lost[True]


def test_a_stand_in_is_quantized_as_the_whole_network_would_be(tmp_path, place):
    """Each activation has the scale that the quantizer finds by itself; each bias is in units of both scales."""
    one = network("vgg11")
    model = quantize_static(one, ranges(one, unlabelled(place)), "qoperator")
    stored = {init.name: onnx.numpy_helper.to_array(init) for init in model.graph.initializer}
    node = next(node for node in model.graph.node if node.op_type == "QLinearConv")
    x_scale, w_scale, bias = (stored[node.input[place]] for place in (1, 4, 8))
    assert np.abs(bias * x_scale * w_scale - one.parameters["conv1_1.bias"]).max() <= 0.51 * (x_scale * w_scale).max()
    assert stored["conv1_1.weight_quantized"].shape == one.parameters["conv1_1.weight"].shape


@needs_native
def test_other_engines_take_the_weights(tmp_path, place):
    one = network("vgg11")
    write(quantize_static(one, ranges(one, unlabelled(place))), one, tmp_path / "q.onnx")
    batch = preprocessed(one, place)
    expected = engines.open(one, "native").logits(batch)
    found = engines.open(tmp_path / "q.onnx", "native").logits(batch)
    assert np.abs(found - expected).max() < 0.1 * np.abs(expected).max()


def test_quantized_networks_are_refused(place):
    one = network("vgg11")
    data = TensorsData(CalibrationMethod.MinMax, {"data": TensorData(lowest=np.float32(0), highest=np.float32(1))})
    with pytest.raises(ModelError, match="already quantized"):
        quantize_static(quantize_weights(one), data)


def test_broken_images_and_folders_without_images_are_errors(tmp_path):
    with pytest.raises(vgg.ImageError, match="has no images in it"):
        unlabelled(tmp_path)
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(vgg.ImageError, match=r"a\.png"):
        ranges(network(), unlabelled(tmp_path))
