"""ONNX files as tools change or write them: precisions, fused and quantized operators, layouts, preprocessing."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from conftest import random_network
from heads_helpers import CHANNELS, heads, run_onnx
from vgg import ModelError, Network, Quantized, engines, formats
from vgg.formats.onnx_builder import NEWEST
from vgg.predictions import scores, sigmoid

IMAGES = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
PIXELS = np.random.default_rng(1).integers(0, 256, (2, 64, 64, 3)).astype(np.float32)


def stripped(path: Path) -> Path:
    """The file without the metadata by which vgg reads its own."""
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, path)
    return path


def same(found, expected, tolerance=1e-4):
    assert np.abs(found.reshape(expected.shape) - expected).max() <= tolerance * np.abs(expected).max() + 1e-6


@settings(max_examples=60, deadline=None)
@given(
    head=heads(), channels=CHANNELS, bn=st.booleans(), size=st.sampled_from([64, 97]), opset=st.sampled_from([7, 13, NEWEST]),
    ends=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_file_of_ours_without_its_metadata_is_read_by_its_graph(
    tmp_path_factory, head, channels, bn, size, opset, ends, seed
):
    path = tmp_path_factory.mktemp("heads") / "n.onnx"
    network = random_network(
        "vgg11-bn" if bn else "vgg11", seed, input_size=size, head=head.text, channels=channels,
        classes=2 if head.output == "binary" else 5,
    )  # fmt: skip
    network.write(path, opset=opset, softmax=ends)
    again = Network.read(stripped(path))
    images = np.random.default_rng(seed).normal(size=(2, 3, size, size)).astype(np.float32)
    found = engines.open(again, "onnxruntime").logits(images)
    if ends:
        found = scores(found, again.architecture.output)
    elif head.steps[-1].operation == "sigmoid":  # which without metadata is the output
        found = sigmoid(found)
    same(found, run_onnx(path, images))


HEADS = [
    "classes", "average, 40 gelu batch-norm, 20 leaky-relu 0.2 dropout, classes sigmoid", "max, 24 silu, classes",
    "flatten batch-norm, 64 relu, 32 gelu-tanh, classes binary", "average 2, 30 elu 0.5, 20 tanh, classes", "fc", "gap",
]  # fmt: skip


def written(path: Path, head: str, name: str = "vgg11", opset: int = 17, size: int = 64) -> Network:
    network = random_network(name, input_size=size, head=head, classes=2 if "binary" in head else 7)
    network.write(path, opset=opset)
    stripped(path)
    return network


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("tool", ["onnxsim", "float16", "float16-inside"])
def test_a_file_that_a_tool_simplified_or_made_half(tmp_path, head, tool):
    written(tmp_path / "n.onnx", head, "vgg11-bn")
    model = onnx.load(tmp_path / "n.onnx")
    if tool == "onnxsim":
        import onnxsim

        model, _ = onnxsim.simplify(model)
    else:
        from onnxconverter_common import float16

        model = float16.convert_float_to_float16(model, keep_io_types=tool == "float16-inside")
    onnx.save(model, tmp_path / "n.onnx")
    network = Network.read(tmp_path / "n.onnx")
    images = IMAGES.astype(np.float16) if tool == "float16" else IMAGES
    expected = run_onnx(tmp_path / "n.onnx", images).astype(np.float32)
    same(engines.open(network, "onnxruntime").logits(IMAGES), expected, 1e-4 if tool == "onnxsim" else 2e-2)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("level", ["BASIC", "EXTENDED"])
def test_a_graph_that_onnx_runtime_optimised(tmp_path, head, level):
    written(tmp_path / "n.onnx", head, "vgg11-bn")
    optimise(tmp_path / "n.onnx", level)
    network = Network.read(tmp_path / "n.onnx")
    same(engines.open(network, "onnxruntime").logits(IMAGES), run_onnx(tmp_path / "n.onnx", IMAGES))


def optimise(path: Path, level: str) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, f"ORT_ENABLE_{level}")
    options.optimized_model_filepath = str(path)
    onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


def test_a_graph_in_the_layout_of_one_processor_is_refused_with_the_reason(tmp_path):
    written(tmp_path / "n.onnx", "gap")
    model = onnx.load(tmp_path / "n.onnx")
    model.opset_import.append(helper.make_opsetid("com.microsoft.nchwc", 1))
    model.graph.node[0].domain = "com.microsoft.nchwc"
    onnx.save(model, tmp_path / "n.onnx")
    with pytest.raises(
        ModelError, match=r"unsupported operator com\.microsoft\.nchwc\.Conv .* at the optimisation level extended"
    ):
        Network.read(tmp_path / "n.onnx")


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("form", ["integers", "unsigned", "fused", "per-channel"])
def test_dynamic_quantization_keeps_the_integers(tmp_path, head, form):
    network = written(tmp_path / "n.onnx", head)
    kind = QuantType.QUInt8 if form == "unsigned" else QuantType.QInt8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(tmp_path / "n.onnx", tmp_path / "q.onnx", weight_type=kind, per_channel=form == "per-channel")
    if form == "fused":
        optimise(tmp_path / "q.onnx", "EXTENDED")
    again = Network.read(tmp_path / "q.onnx")
    assert again.architecture.parameters == network.architecture.parameters
    stored = {
        tuple(sorted(array.astype(int).ravel()))
        for array in (numpy_helper.to_array(one) for one in onnx.load(tmp_path / "q.onnx").graph.initializer)
        if array.dtype in (np.int8, np.uint8)
    }
    for name, value in network.parameters.items():
        found = again.parameters[name]
        if name.endswith("weight"):
            assert isinstance(found, Quantized), name
            assert tuple(sorted(found.values.astype(int).ravel())) in stored
            assert np.abs(found.dequantize() - value).max() <= 0.51 * found.scale.max()
        else:
            np.testing.assert_allclose(found, value, rtol=1e-6)
    graph = engines.open(tmp_path / "q.onnx")
    assert graph.name == "onnxruntime"
    same(graph.logits(IMAGES), run_onnx(tmp_path / "q.onnx", IMAGES))


def test_a_quantized_graph_with_another_input_is_read_as_its_weights(tmp_path):
    """A graph that transposes or normalises its input would get that of the network."""
    written(tmp_path / "n.onnx", "gap")
    model = onnx.load(tmp_path / "n.onnx")
    model.graph.node.insert(0, helper.make_node("Transpose", ["pixels"], ["data"], "turn", perm=[0, 3, 1, 2]))
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["N", 64, 64, 3]))
    onnx.save(model, tmp_path / "n.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(tmp_path / "n.onnx", tmp_path / "q.onnx")
    found = formats.load(tmp_path / "q.onnx")
    assert isinstance(found, Network)
    expected = run_onnx(tmp_path / "q.onnx", IMAGES.transpose(0, 2, 3, 1))
    same(engines.open(found, "onnxruntime").logits(IMAGES), expected, 0.1)
