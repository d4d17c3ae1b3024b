from dataclasses import replace
from unittest.mock import ANY

import numpy as np
import pytest
from PIL import Image

from conftest import change_version, random_network
from vgg import Architecture, Error, Labels, Network, engines, sources
from vgg.formats import load as load_model
from vgg.quantization import (
    Evaluator,
    Quantizer,
    Scheme,
    fallbacks,
    noise,
    per_layer,
    quantize_weights,
    tune,
)  # fmt: skip
from vgg.quantization.calibration import batches
from vgg.sources import unlabelled

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
COUNT = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Random images in class folders."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(COUNT):
        (folder / LABELS.names[index % 7]).mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((40, 40))
        image.save(folder / LABELS.names[index % 7] / f"{index}.png")
    return folder


@pytest.fixture
def network():
    made = random_network("vgg11", width=1 / 8, labels=LABELS)
    return replace(made, preprocessing=replace(made.preprocessing, crop=32, size=36))


def evaluator(network, place, **options):
    return Evaluator(network, sources.open(place, 7, LABELS), **options)


def test_the_first_scheme_that_is_accurate_enough_is_written_with_a_note(tmp_path, network, place):
    one, path = evaluator(network, place), tmp_path / "n.onnx"
    quantizer = Quantizer(network, unlabelled(place))
    trials = list(tune(quantizer, one, fallbacks(Scheme(bits=4), network.architecture), path, tolerance=0, agreement=100))
    assert [trial.loss <= 0 and trial.agreement == 100 for trial in trials] == [*[False] * (len(trials) - 1), True]
    assert [path] == list(tmp_path.iterdir())
    assert path.stat().st_size == pytest.approx(trials[-1].size, abs=500)
    note = Network.read(path).provenance.quantization
    assert note.startswith(f"{trials[-1].scheme}: top-1 {trials[-1].record['top1']:.2f}%, ")
    assert f"of {COUNT} images" in note
    assert note.endswith(f"the first of {len(trials)} schemes within 0 points of float32 with 100% agreement")


def test_the_figures_are_those_of_vgg_evaluate(tmp_path, network, place):
    from vgg import load
    from vgg.evaluation import evaluate, records

    path = tmp_path / "n.onnx"
    quantizer = Quantizer(network, unlabelled(place))
    (trial,) = tune(quantizer, evaluator(network, place), [Scheme(method="qdq")], path)
    network.write(tmp_path / "float.onnx")
    run = evaluate([load(tmp_path / "float.onnx"), load(path)], sources.open(place, 7, LABELS))
    first, second = records(run)
    for key in ("top1", "top5", "agreement", "images", "engine", "cross_entropy"):
        assert trial.record[key] == second[key]
    assert trial.loss == pytest.approx(first["top1"] - second["top1"])


def test_evaluations_are_remembered(tmp_path, network, place, monkeypatch):
    quantizer, asked = Quantizer(network), []
    one = evaluator(network, place, progress=lambda task, done, total, unit="": asked.append((task, done)))
    first = list(tune(quantizer, one, [Scheme()], tmp_path / "n.onnx"))
    assert asked[-1] == ("Evaluating weights int8", COUNT)
    asked.clear()
    again = list(tune(quantizer, one, [Scheme()], tmp_path / "n.onnx"))
    assert (again, asked) == (first, [])
    other = evaluator(network, place, preprocessing=replace(network.preprocessing, resize="none"), progress=one.progress)
    list(tune(quantizer, other, [Scheme()], tmp_path / "n.onnx"))
    assert asked
    asked.clear()
    again = evaluator(network, place, fresh=True, progress=one.progress)
    assert again.compare(quantizer.quantize(Scheme()), "weights int8") == first[0].record | {"images_per_second": ANY}
    again.compare(quantizer.quantize(Scheme(bits=4)), "weights int4")
    finished = [task for task, done in asked if done == COUNT]
    assert finished == [f"Evaluating {name}" for name in ("float32", "weights int8", "weights int4")]


@pytest.mark.parametrize("change", ["network", "engine", "vgg", "nothing"])
def test_only_the_same_evaluation_is_remembered(network, place, monkeypatch, change):
    evaluator(network, place, engine="onnxruntime").compare(quantize_weights(network), "n")
    asked = []
    if change == "vgg":
        change_version(monkeypatch, "vgg")
    if change == "engine":
        pytest.importorskip("torch", reason="needs torch")
    engine, bits = "torch" if change == "engine" else "onnxruntime", 4 if change == "network" else 8
    other = evaluator(network, place, engine=engine, progress=lambda task, done, *_: asked.append((task, done)))
    other.compare(quantize_weights(network, bits), "n")
    finished = {"network": ["n"], "nothing": []}.get(change, ["float32", "n"])
    assert [task for task, done in asked if done == COUNT] == [f"Evaluating {name}" for name in finished]


def test_a_file_with_other_scales_of_activations_is_evaluated_again(tmp_path, network, place):
    """Both files have the same weights; only the ranges of the activations differ."""
    finished = []
    quantizer = Quantizer(network, unlabelled(place))
    one = evaluator(network, place, progress=lambda task, done, *_: finished.append(task) if done == COUNT else None)
    for calibration in ("minmax", "percentile", "minmax"):
        path = tmp_path / f"{calibration}.onnx"
        quantizer.write(quantizer.quantize(Scheme("qdq", calibration=calibration)), path, "")
        one.compare(load_model(path), "q")
    assert finished == ["Evaluating float32", "Evaluating q", "Evaluating q"]


def test_agreement_alone_is_a_condition_and_loss_is_unlimited(tmp_path, network, place):
    path, schemes = tmp_path / "n.onnx", fallbacks(Scheme(bits=4), network.architecture)
    trials = list(tune(Quantizer(network), evaluator(network, place), schemes, path, agreement=100))
    assert [trial.agreement == 100 for trial in trials] == [*[False] * (len(trials) - 1), True]
    assert len(trials) > 1
    assert Network.read(path).provenance.quantization.endswith(f"the first of {len(trials)} schemes with 100% agreement")


def test_nothing_is_written_if_no_scheme_is_accurate_enough(tmp_path, network, place):
    path = tmp_path / "n.onnx"
    schemes = [Scheme(rank="64"), Scheme(bits=4, rank="64")]
    with pytest.raises(Error, match=r"not written: none of 2 schemes is within 0 points of .* with 100% agreement"):
        list(tune(Quantizer(network), evaluator(network, place), schemes, path, tolerance=0, agreement=100))
    assert not list(tmp_path.iterdir())


def test_fallbacks_are_larger_and_more_accurate():
    sizes = {4: 0, 8: 1}
    found = list(fallbacks(Scheme(bits=4, rank="64"), Architecture()))
    assert [sizes[one.bits] for one in found] == sorted(sizes[one.bits] for one in found)
    assert all(one.rank == "64" for one in found)
    assert len({str(one) for one in found}) == len(found)
    for calibration in ("minmax", "percentile"):
        static = list(fallbacks(Scheme(method="qdq", calibration=calibration), Architecture()))
        assert [len(one.float_layers) for one in static] == sorted(len(one.float_layers) for one in static)
        assert len({str(one) for one in static}) == len(static)


def test_fallbacks_keep_the_last_linear_layers():
    for head, last in (("fc", ("fc7", "fc8")), ("gap", ("fc8",)), ("9 gelu, 8, 7 relu, classes sigmoid", ("fc8", "fc9"))):
        architecture = Architecture(head=head)
        assert [one.int8_layers for one in fallbacks(Scheme(bits=4), architecture)] == [(), last, (), ()]
        static = [one.float_layers for one in fallbacks(Scheme(method="qdq"), architecture)]
        assert static == [(), (), last[-1:], ("conv1_1", "conv1_2", last[-1])]


def test_each_layer_alone(network, place):
    found = list(per_layer(network, Scheme(bits=4), evaluator(network, place)))
    weights = [name for name in network.parameters if name.endswith(".weight")]
    assert [f"{one.layer}.weight" for one in found] == weights
    assert all(one.weight > (15 if one.layer.startswith("fc") else 35) for one in found)
    assert all(one.record["images"] == COUNT for one in found)
    (quiet, *_) = per_layer(network, Scheme())
    assert (quiet.loss, quiet.record, quiet.output) == (None, None, None)
    name = "conv1_1.weight"
    assert quiet.weight == noise(network.parameters[name], quantize_weights(network).parameters[name])


def test_noise_of_layer_outputs(network, place):
    images = unlabelled(place)
    batch = np.concatenate(list(batches(images, network)))[::2]  # 15 of 30, of which at most 16 are used
    found = {one.layer: one.output for one in per_layer(network, Scheme(bits=4), images=images)}
    for layer, value in (("conv1_1", "conv1_1"), ("conv3_2", "conv3_2"), ("fc6", "fc6"), ("fc8", "logits")):
        alone = quantize_weights(network, 4, layers=[layer])
        expected, found_alone = (engines.open(one, "onnxruntime").run(batch, (value,))[value] for one in (network, alone))
        ratio = 10 * np.log10(np.square(expected).sum() / np.square(found_alone - expected).sum())
        assert found[layer] == pytest.approx(ratio, abs=0.1)
    labelled = {one.layer: one.output for one in per_layer(network, Scheme(bits=4), evaluator(network, place))}
    assert labelled == pytest.approx(found, abs=0.01)


def test_a_static_method_requires_images(network):
    with pytest.raises(Error, match="the method qdq requires calibration images; set --calibrate"):
        Quantizer(network).quantize(Scheme(method="qdq"))
