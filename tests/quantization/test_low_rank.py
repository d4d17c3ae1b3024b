import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from conftest import random_network
from vgg import Error, LowRank, ModelError, engines
from vgg.parameters import expanded
from vgg.quantization import Quantizer, Scheme
from vgg.quantization.calibration import batches, responses
from vgg.quantization.low_rank import STEP, directions, factored, parse, ranks
from vgg.sources import unlabelled


def network(**options):
    made = random_network("vgg11", width=1 / 8, input_size=64, **options)
    return replace(made, preprocessing=replace(made.preprocessing, crop=64, size=64))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(20):
        Image.fromarray(rng.integers(0, 255, (9, 9, 3), np.uint8)).resize((80, 80)).save(folder / f"{index}.png")
    return folder


def matrix(one, name):
    value = expanded(one.parameters[name])
    return value.reshape(len(value), -1)


def test_without_images_it_is_the_truncated_singular_value_decomposition():
    one = network()
    found = directions(one)
    made = factored(one, found, {"fc6": 100, "fc7": 64})
    for name, rank in (("fc6.weight", 100), ("fc7.weight", 64)):
        assert isinstance(made.parameters[name], LowRank)
        u, s, v = np.linalg.svd(matrix(one, name), full_matrices=False)
        np.testing.assert_allclose(matrix(made, name), (u[:, :rank] * s[:rank]) @ v[:rank], atol=2e-4)
        np.testing.assert_allclose(found[name[:3]].energy[: len(s)], s**2 / (s**2).sum(), rtol=1e-2, atol=1e-6)
    assert np.array_equal(made.parameters["fc6.bias"], one.parameters["fc6.bias"])


def test_a_layer_that_would_not_become_smaller_stays():
    one = network()
    made = factored(one, directions(one), {"fc6": 400, "fc7": 64})
    assert made.parameters["fc6.weight"] is one.parameters["fc6.weight"]
    assert isinstance(made.parameters["fc7.weight"], LowRank)


def test_responses_are_those_of_the_layers_before_their_bias(place):
    one = network()
    batch = np.concatenate(list(batches(unlabelled(place), one)))
    values = engines.open(one, "onnxruntime").run(batch, ("pool5", "fc6"))
    found = responses(one, unlabelled(place))
    for name, inputs in (("fc6", values["pool5"]), ("fc7", values["fc6"])):
        expected = inputs.reshape(len(batch), -1) @ matrix(one, f"{name}.weight").T
        np.testing.assert_allclose(found[name].mean, expected.mean(0), atol=1e-4)
        np.testing.assert_allclose(found[name].covariance, np.cov(expected.T, bias=True), atol=1e-4)


HEAD = "average 2 batch-norm, 400 gelu batch-norm, 300, 200 leaky-relu 0.2 dropout, classes sigmoid"


def test_each_hidden_layer_of_any_head_has_its_rank(place):
    """Batch normalisation is folded, so that a layer reads the output of the one before."""
    one = network(head=HEAD)
    batch = np.concatenate(list(batches(unlabelled(place), one)))
    expected = engines.open(one, "onnxruntime").logits(batch)
    whole = one.fold_batch_norm()
    found = directions(whole, unlabelled(place))
    assert {name: len(each.energy) for name, each in found.items()} == {"fc6": 400, "fc7": 300, "fc8": 200}
    seen = responses(whole, unlabelled(place))
    values = engines.open(whole, "onnxruntime").run(batch, ("pool6", "fc6", "fc7"))
    for name, inputs in zip(("fc6", "fc7", "fc8"), values.values(), strict=True):
        outputs = inputs.reshape(len(batch), -1) @ matrix(whole, f"{name}.weight").T
        np.testing.assert_allclose(seen[name].mean, outputs.mean(0), atol=1e-4 * np.abs(outputs).max())
    made = factored(whole, found, dict.fromkeys(found, 90))
    logits = engines.open(made, "onnxruntime").logits(batch)
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    quantized = Quantizer(one, unlabelled(place)).quantize(Scheme(rank="90"))
    assert quantized.architecture == whole.architecture
    assert [name for name, value in quantized.parameters.items() if isinstance(value, LowRank)] == [
        "fc6.weight", "fc7.weight", "fc8.weight",
    ]  # fmt: skip


def test_one_image_is_no_covariance(place, tmp_path):
    shutil.copy(place / "0.png", tmp_path)
    with np.errstate(all="raise"):
        made = factored(network(), directions(network(), unlabelled(tmp_path)), {"fc6": 64, "fc7": 64})
    assert all(np.isfinite(made.parameters[f"{name}.weight"].left).all() for name in ("fc6", "fc7"))


def test_with_images_it_is_more_accurate_for_them(place):
    one = network()
    batch = np.concatenate(list(batches(unlabelled(place), one)))
    expected = engines.open(one, "onnxruntime").logits(batch)
    lost = []
    for seen in (None, unlabelled(place)):
        made = factored(one, directions(one, seen), {"fc6": 64, "fc7": 64})
        lost.append(np.abs(engines.open(made, "onnxruntime").logits(batch) - expected).max())
    assert lost[1] < 0.05 * lost[0]


def test_what_a_rank_may_be():
    assert [parse(text) for text in ("512", "90%", "45 MB", "4.5MB")] == [(512, ""), (90, "%"), (45, "MB"), (4.5, "MB")]
    for text in ("", "0", "many", "5.5", "101%", "-3", "45GB"):
        with pytest.raises(
            Error, match=r"invalid rank .*; use an integer, a share of the energy such as 90%, or a size such as 45MB"
        ):
            parse(text)


def test_the_rank_by_number_energy_and_size(tmp_path):
    one = network()
    found = directions(one)
    assert ranks(found, "9999", len) == {"fc6": 512, "fc7": 512}
    for share in (0.3, 0.8):
        for name, rank in ranks(found, f"{100 * share:g}%", len).items():
            energy = found[name].energy.cumsum()
            assert energy[rank - 1] >= share > (energy[rank - STEP - 1] if rank > STEP else 0)
    for bits in (8, 4):
        sizes = []
        for size in (0.9, 0.7):
            quantizer = Quantizer(one)
            quantizer.write(quantizer.quantize(Scheme(bits=bits, rank=f"{size}MB")), tmp_path / "n.onnx", "")
            sizes.append((tmp_path / "n.onnx").stat().st_size / 1e6)
        assert 0.2 < sizes[1] <= sizes[0] <= 0.9
        assert sizes[1] <= 0.7
    with pytest.raises(Error, match=r"--rank 0.1MB: the file has 0\.\d MB even with the smallest rank, 64"):
        Quantizer(one).quantize(Scheme(rank="0.1MB"))


def test_what_has_no_rank(place):
    for one in (network(head="gap"), network(head="classes sigmoid"), network(head="none", classes=0)):
        with pytest.raises(
            ModelError, match=f"requires a linear layer before the last one; the head '{one.architecture.head}'"
        ):
            Quantizer(one, unlabelled(place)).quantize(Scheme(rank="64"))
    small = network(head="average, 40 relu, classes")
    for rank, smallest in (("40", 40), ("90%", 64)):
        with pytest.raises(ModelError, match=f"--rank {rank}: no linear layer of .* becomes smaller with rank {smallest}"):
            Quantizer(small, unlabelled(place)).quantize(Scheme(rank=rank))
    assert isinstance(Quantizer(small).quantize(Scheme(rank="20")).parameters["fc6.weight"], LowRank)
    with pytest.raises(Error, match="a low rank requires the method weights"):
        Quantizer(network()).quantize(Scheme(method="qdq", rank="64"))
