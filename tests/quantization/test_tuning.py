from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import random_network
from vgg import Error, Labels, Network, engines, sources
from vgg.quantization import Configuration, Judge, Pictures, Quantizer, ladder, noise, per_layer, quantize_weights, tune
from vgg.quantization.quantizer import silent

LABELS = Labels(("ant", "bee", "cat", "dog", "eel", "fox", "gnu"))
COUNT = 30


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Pictures in class folders, each in that of the class which the network sees in it."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for index in range(COUNT):
        (folder / LABELS.names[index % 7]).mkdir(exist_ok=True)
        image = Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((40, 40))
        image.save(folder / LABELS.names[index % 7] / f"{index}.png")
    return folder


@pytest.fixture
def network():
    made = random_network("vgg11", width=1 / 8, labels=LABELS)
    return replace(made, preprocessing=replace(made.preprocessing, crop=32, size=36))


def judge(network, place, **options):
    return Judge(network, sources.open(place, 7, LABELS), Pictures(place), **options)


def test_the_first_that_is_near_enough_is_written_and_says_why(tmp_path, network, place):
    one, path = judge(network, place), tmp_path / "n.onnx"
    quantizer = Quantizer(network, Pictures(place))
    trials = list(tune(quantizer, one, ladder(Configuration(bits=4)), path, tolerance=0, agreement=100))
    assert [trial.loss <= 0 and trial.agreement == 100 for trial in trials] == [*[False] * (len(trials) - 1), True]
    assert [path] == list(tmp_path.iterdir())
    assert path.stat().st_size == pytest.approx(trials[-1].size, abs=500)
    said = Network.read(path).provenance.quantization
    assert said.startswith(f"{trials[-1].configuration}: top-1 {trials[-1].record['top1']:.2f}%, ")
    assert f"of {COUNT} pictures" in said
    assert said.endswith(f"the first of {len(trials)} tried that is within 0 points")


def test_the_figures_are_those_of_vgg_evaluate(tmp_path, network, place):
    from vgg import load
    from vgg.evaluation import evaluate, records

    path = tmp_path / "n.onnx"
    quantizer = Quantizer(network, Pictures(place))
    (trial,) = tune(quantizer, judge(network, place), [Configuration(format="qdq")], path)
    network.write(tmp_path / "float.onnx")
    run = evaluate([load(tmp_path / "float.onnx"), load(path)], sources.open(place, 7, LABELS))
    first, second = records(run)
    for key in ("top1", "top5", "agreement", "images", "engine", "cross_entropy"):
        assert trial.record[key] == second[key]
    assert trial.loss == pytest.approx(first["top1"] - second["top1"])


def test_what_was_judged_is_remembered_and_what_was_cut_goes_on(tmp_path, network, place, monkeypatch):
    quantizer, asked = Quantizer(network), []
    one = judge(network, place, progress=lambda what, done, total: asked.append((what, done)))
    first = list(tune(quantizer, one, [Configuration()], tmp_path / "n.onnx"))
    assert asked[-1] == ("weights int8", COUNT)
    asked.clear()
    again = list(tune(quantizer, one, [Configuration()], tmp_path / "n.onnx"))
    assert (again, asked) == (first, [])
    other = judge(network, place, preprocessing=replace(network.preprocessing, resize="none"), progress=one.progress)
    list(tune(quantizer, other, [Configuration()], tmp_path / "n.onnx"))
    assert asked


def test_nothing_is_written_where_nothing_is_near_enough(tmp_path, network, place):
    path = tmp_path / "n.onnx"
    rungs = [Configuration(rank="64"), Configuration(bits=4, rank="64")]
    with pytest.raises(Error, match=r"nothing written: none of 2 configurations is within 0 points of .* and 100% agreement"):
        list(tune(Quantizer(network), judge(network, place), rungs, path, tolerance=0, agreement=100))
    assert not list(tmp_path.iterdir())


def test_a_ladder_goes_up():
    sizes = {4: 0, 8: 1}
    found = list(ladder(Configuration(bits=4, rank="64")))
    assert [sizes[one.bits] for one in found] == sorted(sizes[one.bits] for one in found)
    assert all(one.rank == "64" for one in found)
    assert len({str(one) for one in found}) == len(found)
    for calibration in ("minmax", "percentile"):
        static = list(ladder(Configuration(format="qdq", calibration=calibration)))
        assert [len(one.floats) for one in static] == sorted(len(one.floats) for one in static)
        assert len({str(one) for one in static}) == len(static)


def test_each_layer_alone(network, place):
    found = list(per_layer(network, Configuration(bits=4), judge(network, place)))
    weights = [name for name in network.parameters if name.endswith(".weight")]
    assert [f"{one.layer}.weight" for one in found] == weights
    assert all(one.weight > (15 if one.layer.startswith("fc") else 35) for one in found)
    assert all(one.record["images"] == COUNT for one in found)
    (quiet, *_) = per_layer(network, Configuration())
    assert (quiet.loss, quiet.record, quiet.answer) == (None, None, None)
    name = "conv1_1.weight"
    assert quiet.weight == noise(network.parameters[name], quantize_weights(network).parameters[name])


def test_noise_in_what_layers_answer(network, place):
    pictures = Pictures(place)
    batch = np.concatenate(list(pictures.batches(network)))[::2]  # 15 of 30, of which at most 16 are looked at
    found = {one.layer: one.answer for one in per_layer(network, Configuration(bits=4), pictures=pictures)}
    for layer, value in (("conv1_1", "conv1_1"), ("conv3_2", "conv3_2"), ("fc6", "fc6"), ("fc8", "logits")):
        alone = quantize_weights(network, 4, only=[layer])
        expected, heard = (engines.open(one, "onnxruntime").run(batch, (value,))[value] for one in (network, alone))
        ratio = 10 * np.log10(np.square(expected).sum() / np.square(heard - expected).sum())
        assert found[layer] == pytest.approx(ratio, abs=0.1)
    labelled = {one.layer: one.answer for one in per_layer(network, Configuration(bits=4), judge(network, place))}
    assert labelled == pytest.approx(found, abs=0.01)


def test_a_static_format_needs_pictures(network):
    with pytest.raises(Error, match="the format qdq needs pictures for calibration; give --calibrate"):
        Quantizer(network, None, silent).make(Configuration(format="qdq"))
