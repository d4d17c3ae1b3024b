"""ONNX files as tools change or write them: precisions, fused and quantized operators, layouts, preprocessing."""

import re
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16 as float16_of_transformers

from conftest import random_network
from heads_helpers import CHANNELS, heads, run_onnx, without_gemm
from onnx_optimised import optimise
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


@settings(max_examples=60)
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
    same(engines.open(again, "native").logits(IMAGES), engines.open(again.expanded(), "onnxruntime").logits(IMAGES))


def test_one_note_says_that_activations_are_floats(tmp_path):
    written(tmp_path / "n.onnx", "gap")
    quantized_dynamically(tmp_path)
    reason = "(, since .* a scale for each batch)?"
    text = f"activations are computed in floats{reason}; their quantization in the file is not carried over"
    for read, count in (
        (Network.read, 1), (formats.load, 0), (engines.open, 0), (lambda path: engines.open(path, "native"), 1),
    ):  # fmt: skip
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            read(tmp_path / "q.onnx")
        pattern = re.escape(f"{tmp_path / 'q.onnx'}: ") + text
        assert sum(re.fullmatch(pattern, str(one.message)) is not None for one in caught) == count


def quantized_dynamically(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_dynamic(folder / "n.onnx", folder / "q.onnx")


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


HEAD = "average, 40 relu, classes"


@pytest.mark.parametrize(
    ("kinds", "form"),
    [(kinds, form) for kinds in ("u8s8", "s8s8") for form in ("QDQ", "QOperator", "all")] + [("u16s8", "QDQ"), ("u8s4", "QDQ")],
)
def test_static_quantization_as_onnx_runtime_saves_it(tmp_path, kinds, form):
    """At its default level, `all`, ONNX Runtime moves the channels of integer operators to the end."""
    network = written(tmp_path / "n.onnx", HEAD, opset=21)
    names = {"u8": "QUInt8", "s8": "QInt8", "u16": "QUInt16", "s4": "QInt4"}
    activations, weights = (getattr(QuantType, names[one]) for one in re.findall(r"[us]\d+", kinds))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(
            tmp_path / "n.onnx", tmp_path / "q.onnx", Images(), activation_type=activations, weight_type=weights,
            quant_format=QuantFormat.QOperator if form == "QOperator" else QuantFormat.QDQ, per_channel=True,
        )  # fmt: skip
    if form == "all":
        optimise(tmp_path / "q.onnx", "ALL")
        operators = {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
        assert {"QLinearConv", "NhwcMaxPool"} <= operators
    again = Network.read(tmp_path / "q.onnx")
    assert again.architecture.parameters == network.architecture.parameters
    assert isinstance(again.parameters["conv3_1.weight"], Quantized)
    same(engines.open(again, "native").logits(IMAGES), run_onnx(tmp_path / "q.onnx", IMAGES), 0.1)


class Images(CalibrationDataReader):
    def __init__(self) -> None:
        self._left = iter([{"data": IMAGES}])

    def get_next(self):
        return next(self._left, None)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("level", ["", "EXTENDED"])
def test_linear_layers_in_blocks_of_4_or_8_bits(tmp_path, bits, symmetric, level):
    network = written(tmp_path / "n.onnx", HEAD)
    without_gemm(tmp_path / "n.onnx")
    config = DefaultWeightOnlyQuantConfig(block_size=16, is_symmetric=symmetric, bits=bits, accuracy_level=1)
    quantizer = MatMulNBitsQuantizer(onnx.load(tmp_path / "n.onnx"), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(str(tmp_path / "q.onnx"))
    if level:
        optimise(tmp_path / "q.onnx", level)
    assert "MatMulNBits" in {node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node}
    again = Network.read(tmp_path / "q.onnx")
    assert again.architecture.parameters == network.architecture.parameters
    stored = again.parameters["fc7.weight"]
    assert isinstance(stored, Quantized)
    assert (stored.group, stored.values.dtype.name) == (16, f"{'' if symmetric else 'u'}int{bits}")
    for engine in ("native", "onnxruntime"):
        same(engines.open(again, engine).logits(IMAGES), run_onnx(tmp_path / "q.onnx", IMAGES), 5e-4)


def test_nodes_that_a_tool_left_in_another_order(tmp_path):
    written(tmp_path / "n.onnx", HEAD)
    expected = run_onnx(tmp_path / "n.onnx", IMAGES)
    model = float16_of_transformers(onnx.load(tmp_path / "n.onnx"), keep_io_types=True)
    assert model.graph.node[0].op_type != "Cast"  # which the first of them reads
    onnx.save(model, tmp_path / "h.onnx")
    same(engines.open(Network.read(tmp_path / "h.onnx"), "onnxruntime").logits(IMAGES), expected, 2e-2)


def function(name: str, operators: list[str], opsets: list[onnx.OperatorSetIdProto]) -> onnx.FunctionProto:
    nodes = [
        helper.make_node(one, [f"v{place}"], [f"v{place + 1}"], domain="" if one == "Relu" else "torch")
        for place, one in enumerate(operators)
    ]
    return helper.make_function("torch", name, ["v0"], [f"v{len(operators)}"], nodes, opsets)


def test_functions_in_a_file_are_replaced_by_their_operators(tmp_path):
    written(tmp_path / "n.onnx", HEAD)
    expected = run_onnx(tmp_path / "n.onnx", IMAGES)
    model = onnx.load(tmp_path / "n.onnx")
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("torch", 1)]
    called = [helper.make_node("Relu", ["x"], ["y"])]
    model.functions.append(helper.make_function("torch", "act", ["x"], ["y"], called, opsets[:1]))
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "act", "torch"
    model.opset_import.append(opsets[1])
    onnx.save(model, tmp_path / "f.onnx")
    same(engines.open(Network.read(tmp_path / "f.onnx"), "native").logits(IMAGES), expected)
    del model.functions[:]
    onnx.save(model, tmp_path / "f.onnx")
    with pytest.raises(ModelError, match=r"f\.onnx: not a VGG network: unsupported operator torch\.act \(node 'conv1_1'\)"):
        Network.read(tmp_path / "f.onnx")
    model.functions.append(function("act", ["act"], opsets))  # which calls itself
    for place in range(40):
        model.functions.append(function(f"f{place}", [f"f{place + 1}"] * 2, opsets))
    model.functions.append(function("f40", ["Relu"], opsets))
    onnx.save(model, tmp_path / "f.onnx")
    with pytest.raises(ModelError, match=r"damaged .*cycle"):
        Network.read(tmp_path / "f.onnx")
    del model.functions[0]
    model.graph.node[1].op_type = "f0"
    onnx.save(model, tmp_path / "f.onnx")
    with pytest.raises(ModelError, match="functions of more than 10000 operators"):
        Network.read(tmp_path / "f.onnx")
    branch = helper.make_graph([], "b", [], [])
    model.functions[0].node[0].attribute.append(helper.make_attribute("then_branch", branch))
    onnx.save(model, tmp_path / "f.onnx")
    with pytest.raises(ModelError, match=r"f\.onnx: unsupported functions with branches or several versions; export the model"):
        Network.read(tmp_path / "f.onnx")


@pytest.mark.parametrize(("key", "message"), [("opset", "opset 99 is newer than"), ("ir", "IR version 99 is newer than")])
def test_a_version_that_the_onnx_package_does_not_know_is_refused(tmp_path, key, message):
    written(tmp_path / "n.onnx", HEAD)
    model = onnx.load(tmp_path / "n.onnx")
    if key == "opset":
        model.opset_import[0].version = 99
    else:
        model.ir_version = 99
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=rf"n\.onnx: {message} .*; update vgg, or export the file with an older"):
        Network.read(tmp_path / "n.onnx")


@pytest.mark.parametrize(
    "names", ["block1_conv1/kernel:0", "model/block1_conv1/Conv2D/ReadVariableOp:0", "functional_1/a/BiasAdd:0"]
)
@pytest.mark.parametrize("tool", ["", "onnxsim", "dynamic", "optimised"])
def test_files_of_keras_are_recognised_by_names_after_any_tool(tmp_path, names, tool):
    written(tmp_path / "n.onnx", HEAD)
    model = onnx.load(tmp_path / "n.onnx")
    model.producer_name = "tool"
    for node in model.graph.node:  # as converters name weights and values
        node.input[:] = [names if one == "conv1_1.weight" else one for one in node.input]
    next(one for one in model.graph.initializer if one.name == "conv1_1.weight").name = names
    onnx.save(model, tmp_path / "n.onnx")
    if tool == "onnxsim":
        import onnxsim

        onnx.save(onnxsim.simplify(model)[0], tmp_path / "n.onnx")
    elif tool == "dynamic":
        quantized_dynamically(tmp_path)
        (tmp_path / "q.onnx").replace(tmp_path / "n.onnx")
    elif tool:
        optimise(tmp_path / "n.onnx", "EXTENDED")
    network = Network.read(tmp_path / "n.onnx")
    assert (network.preprocessing.name, network.preprocessing.channels) == ("caffe", "BGR")
