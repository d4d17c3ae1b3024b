"""Products of bfloat16: against a reference in NumPy, on every instruction set, and where they are refused."""

import json
import subprocess
import sys
import warnings
from dataclasses import replace
from itertools import pairwise

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vgg
from conftest import EXAMPLES, needs_native, random_network
from vgg import Error, ModelError, Notice, Quantized, engines
from vgg.engines.native_interface import available_instructions
from vgg.formats import QuantizedGraph

INSTRUCTIONS = available_instructions() if engines.native_library() else ["auto"]
WITHOUT = "no instructions for bfloat16"
pytestmark = pytest.mark.filterwarnings(f"ignore:{WITHOUT}")

# Winograd's F(4x4, 3x3) for the points 0, 2/3, -2/3, 3/2, -3/2 and infinity: each position of a transformed row is a value of
# the polynomials whose product the convolution is; Lavin & Gray, arXiv 1509.09308.
POINTS = np.array([0, 2 / 3, -2 / 3, 3 / 2, -3 / 2])
OTHERS = [np.delete(POINTS, index) for index in range(5)]
OUTPUT = np.vstack([np.vander(POINTS, 4, increasing=True), [0, 0, 0, 1]]).T
WEIGHT = np.vstack([np.vander(POINTS, 3, increasing=True) / [[np.prod(POINTS[i] - OTHERS[i])] for i in range(5)], [0, 0, 1]])
INPUT = np.zeros((6, 6))
for row, roots in enumerate([*OTHERS, POINTS]):
    INPUT[row, : len(roots) + 1] = np.poly(roots)[::-1]


def rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def convolution(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A 3x3 convolution and its ReLU, with transformed inputs and weights rounded to bfloat16 and everything else exact."""
    side = maps.shape[-1]
    padded = np.pad(maps.astype(np.float64), ((0, 0), (0, 0), (1, 5), (1, 5)))
    found = np.zeros((len(maps), len(weight), side + 4, side + 4))
    weights = rounded(np.einsum("yi,ocij,xj->yxoc", WEIGHT, weight.astype(np.float64), WEIGHT))
    for y, x in np.ndindex(-(-side // 4), -(-side // 4)):
        tile = padded[:, :, 4 * y : 4 * y + 6, 4 * x : 4 * x + 6]
        inputs = rounded(np.einsum("yi,bcij,xj->yxbc", INPUT, tile, INPUT))
        products = np.einsum("yxbc,yxoc->yxbo", inputs, weights)
        found[:, :, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4] = np.einsum("iy,yxbo,jx->boij", OUTPUT, products, OUTPUT)
    return np.maximum(found[:, :, :side, :side] + bias[:, None, None], 0)


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def quantized(weight: np.ndarray) -> Quantized:
    """Eight bits and a scale per output channel."""
    scale = np.abs(weight).reshape(len(weight), -1).max(1) / 127
    values = np.round(weight / scale[:, None, None, None]).astype(np.int8)
    return Quantized(values, scale.astype(np.float32), None, 0)


def images(count: int = 2, side: int = 64) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 3, side, side)).astype(np.float32)


@needs_native
@pytest.mark.parametrize("instructions", INSTRUCTIONS)
def test_convolutions_round_their_transformed_inputs_and_weights(instructions, monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", instructions)
    network = random_network("vgg13", head="gap", input_size=64)
    values, batch = network.architecture.values, images()
    exact = engines.open(network, "native").run(batch, values)
    found = engines.open(network, "native", precision="bf16").run(batch, values)
    assert apart(found["conv1_1"], exact["conv1_1"]) < 1e-6  # three channels: not by Winograd's filtering
    for before, name in pairwise(values):
        if name.startswith("conv"):
            weight, bias = (network.parameters[f"{name}.{role}"] for role in ("weight", "bias"))
            assert apart(found[name], convolution(found[before], weight, bias)) < 1e-3
    assert 1e-3 < apart(found["pool5"], exact["pool5"]) < 3e-2


@needs_native
def test_without_instructions_for_it_a_note_says_that_it_can_be_slow(monkeypatch):
    monkeypatch.setenv("VGG_INSTRUCTIONS", "portable")
    with pytest.warns(Notice, match=f"{WITHOUT} in portable; bf16 can take longer than float32"):
        engines.open(random_network(), "native", precision="bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engines.open(random_network(), "native", precision="float32")


@needs_native
def test_linear_weights_are_rounded_and_their_inputs_are_not():
    network = random_network()
    engine = engines.open(network, "native", precision="bf16")
    found = engine.run(images(3, 32), ("pool5", "fc6", "fc7"))
    for before, name in (("pool5", "fc6"), ("fc6", "fc7")):
        weight, bias = (network.parameters[f"{name}.{role}"] for role in ("weight", "bias"))
        inputs = found[before].reshape(3, -1).astype(np.float64)
        expected = np.maximum(inputs @ rounded(weight).reshape(len(weight), -1).T + bias, 0)
        assert apart(found[name].reshape(expected.shape), expected) < 1e-5


@needs_native
@settings(max_examples=20)
@given(
    name=st.sampled_from(["vgg11", "vgg16-c", "vgg16-bn"]),
    width=st.floats(0.06, 0.3),
    height=st.integers(32, 100),
    across=st.integers(32, 100),
    batch=st.integers(1, 18),
    threads=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_network_any_batch_any_size_is_near_to_float32(name, width, height, across, batch, threads, seed):
    network = random_network(name, seed, head="gap", width=width)
    inputs = np.random.default_rng(seed).normal(size=(batch, 3, height, across)).astype(np.float32)
    engine = engines.open(network, "native", threads=threads, precision="bf16")
    found, exact = engine.run(inputs, ["pool3"])["pool3"], engines.open(network, "native").run(inputs, ["pool3"])["pool3"]
    assert apart(found, exact) < 4e-2


@needs_native
def test_integers_and_bad_numbers():
    network = random_network(head="gap")
    eight = replace(
        network, parameters={**network.parameters, "conv2_1.weight": quantized(network.parameters["conv2_1.weight"])}
    )
    batch = images(2, 32)
    found, exact = (engines.open(eight, "native", precision=one).logits(batch) for one in ("bf16", "float32"))
    assert 1e-5 < apart(found, exact) < 3e-2
    batch[1, 0, 5, 5] = np.nan
    found = engines.open(network, "native", precision="bf16").logits(batch)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("engine", ["openvino", "torch"])
def test_other_engines_have_it(engine):
    network = random_network(head="gap", input_size=64)
    opened, exact = engines.open(network, engine, precision="bf16"), engines.open(network, "onnxruntime").logits(images())
    found = opened.logits(images())
    assert (found.dtype, engines.identity(opened)["precision"]) == (np.float32, "bf16")
    assert 1e-5 < apart(found, exact) < 5e-2
    assert apart(engines.open(network, engine, precision="float32").logits(images()), exact) < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int3"}, "unknown precision 'int3'; choose from auto, float32, bf16"),
        ({"precision": "bf16", "engine": "onnxruntime"}, "onnxruntime has no precision bf16; use native, openvino or torch"),
    ],
)
def test_what_there_is_not_is_said(options, message):
    with pytest.raises(Error, match=message):
        engines.open(random_network(), **options)


def test_auto_is_an_engine_that_has_it(monkeypatch):
    monkeypatch.setattr(engines, "problem", lambda name: "no native engine here" if name in ("native", "openvino") else "")
    with pytest.warns(Notice, match="using torch, which is slower: no native engine here"):
        assert engines.open(random_network(), precision="bf16").name == "torch"
    monkeypatch.setattr(engines, "problem", lambda name: "" if name == "onnxruntime" else "no native engine here")
    with pytest.raises(Error, match=r"no native engine here, or `pip install 'vgg\[openvino\]'`"):
        engines.open(random_network(), precision="bf16")


@needs_native
def test_a_file_with_quantized_activations_is_refused(tmp_path):
    graph = QuantizedGraph(random_network(), tmp_path / "int8.onnx", True, "logits", "")
    with pytest.raises(ModelError, match=r"int8.onnx: a file with quantized activations can't be computed in bf16"):
        engines.open(graph, "native", precision="bf16")


@needs_native
def test_the_verbs_have_it(tmp_path):
    random_network().write(tmp_path / "tiny.safetensors")

    def run(verb, *arguments):
        command = [sys.executable, "-W", "ignore", "-m", "vgg", verb, "-e", "native", "--format", "json", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    found = run("bench", "-m", tmp_path / "tiny.safetensors", "--precision", "auto", "--precision", "bf16", "--rounds", 1)
    assert [one["engine"] for one in json.loads(found.stdout)] == ["native", "native, bf16"]
    best = []
    for precision in ("float32", "bf16"):
        [image] = json.loads(run("classify", EXAMPLES / "chelsea.png", "--precision", precision).stdout)
        best.append(image["predictions"][0])
    assert best[0]["label"] == best[1]["label"]
    assert 0 < abs(best[0]["score"] - best[1]["score"]) < 0.02
    found = run("classify", EXAMPLES / "chelsea.png", "--precision", "int3")
    assert (found.returncode, found.stderr) == (1, "vgg: unknown precision 'int3'; choose from auto, float32, bf16\n")


def test_an_interrupted_evaluation_resumes_only_with_the_same_precision():
    opened = [engines.open(random_network(), "torch", precision=one) for one in ("auto", "float32", "bf16")]
    first, second, third = (engines.identity(one) for one in opened)
    assert first == second != third


@needs_native
def test_real_networks_have_the_same_best_classes(real_models, shared):
    network = vgg.Network.read(real_models["vgg16"])
    preprocessing = replace(network.preprocessing, resize="none")
    paths = sorted((shared / "images/validation").glob("*/*"))[::65]
    batch = np.stack([preprocessing(path) for path in paths])
    exact, found = (engines.open(network, "native", precision=one).logits(batch) for one in ("float32", "bf16"))
    assert (found.argmax(1) == exact.argmax(1)).all()
    assert 1e-3 < np.sqrt(np.square(found - exact).mean() / np.square(exact).mean()) < 1e-2
